"""topology: the join tree and its persistence pairs, against gudhi.

Values are smooth noise: 1001 x 1001 and 101^3. gudhi is asked for dimension 0 and computes the
others too. Answers are the pairs, equal bit for bit.
"""

from __future__ import annotations

import numpy as np

from pylandscape.topology.trees import merge_tree

from .harness import Arm, Row, absent, interleave, rows


def topology(quick: bool, repetitions: int) -> list[Row]:
    shapes = ((31, 31), (9, 9, 9)) if quick else ((1001, 1001), (101, 101, 101))
    return [
        row for shape in shapes for full in (False, True) for row in _rows(shape, full, repetitions)
    ]


def values_of(shape: tuple[int, ...]) -> np.ndarray:
    """Noise smoothed over a few cells, as landscapes are, with a little of it left."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).standard_normal(shape)
    return gaussian_filter(noise, 2.0, mode="nearest") + 1e-3 * noise


def in_order(pairs: np.ndarray) -> np.ndarray:
    """Rows (birth, death) without those of length 0, sorted."""
    kept = pairs[pairs[:, 0] < pairs[:, 1]]
    return kept[np.lexsort(kept.T)]


def _rows(shape: tuple[int, ...], full: bool, repetitions: int) -> list[Row]:
    """``full``: neighbours along the diagonals too, as gudhi has them for values of cells; in two
    dimensions it has an algorithm of its own for these."""
    size = "x".join(map(str, shape))
    name = (
        f"join tree and pairs, {size}, {3 ** len(shape) - 1 if full else 2 * len(shape)} neighbours"
    )
    values = values_of(shape)

    def ours() -> np.ndarray:
        tree = merge_tree(values, full=full)
        ends = np.append(values.ravel(), np.inf)  # -1: never
        return np.stack([ends[tree.extrema], ends[tree.deaths]], axis=1)

    mine = Arm("pylandscape", ours)
    try:
        from gudhi.sklearn import CubicalPersistence
    except ImportError:
        return [*rows(name, mine, [], "grid"), absent(name, "gudhi", "not installed")]
    of = "top_dimensional_cells" if full else "vertices"

    def peer() -> np.ndarray:
        return np.asarray(CubicalPersistence(0, of).fit_transform([values])[0])

    arm = Arm("gudhi CubicalPersistence", peer, target=3, note=of)
    np.testing.assert_array_equal(in_order(peer()), in_order(ours()))
    mine.error = arm.error = 0.0
    interleave([mine, arm], repetitions)
    return rows(name, mine, [arm], "grid")
