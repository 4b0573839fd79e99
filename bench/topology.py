"""topology: the join tree and its persistence pairs, against gudhi.

Values are smooth noise: 1001 x 1001 and 101^3. gudhi is asked for dimension 0 and computes the
others too. Answers are the pairs, equal bit for bit.

landscaper: everything that `topology()` gives of 41 x 41, and a grid of 11^3 points, against
Landscaper 1.3.1. It takes minutes, so each of its arms runs once, between two runs of ours. Its
package needs others that this one's benchmarks do not (pip install landscaper).
"""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.results.surface import Surface
from pylandscape.topology.trees import merge_tree

from .harness import Arm, Row, absent, interleave, rows, timed
from .workloads import digits, mlp


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


def landscaper(quick: bool, _: int) -> list[Row]:
    name = "everything of topology(), 41x41"
    try:
        import landscaper as peer
    except ImportError as error:
        return [absent(name, "Landscaper", str(error))]
    return [*_everything(peer, quick, name), *_volume(peer, quick)]


def _everything(peer: Any, quick: bool, name: str) -> list[Row]:
    side = 9 if quick else 41
    values, axis = values_of((side, side)), np.linspace(-1, 1, side)
    surface = Surface(axis, axis, values)
    found = surface.topology()

    def ours() -> Any:
        tree = surface.topology()
        return tree.barcode(), tree.pairs("maxima"), tree.smad(), tree.join.parents

    def theirs() -> Any:
        own = peer.LossLandscape(values.copy(), [axis, axis])
        return own.get_sublevel_tree(), own.get_super_tree(), own.get_persistence()

    mine = Arm("pylandscape topology(), pairs, SMAD", ours)
    arm = Arm("Landscaper, both merge trees and the persistence", theirs, target=100)
    tree = _once(mine, arm)[0]
    lowest = values.ravel()[found.join.extrema]
    leaves = np.sort([values.ravel()[k] for k in tree.leaves])
    arm.note = f"minima: {lowest.size} here, {leaves.size} there; run once"
    assert leaves[0] == lowest.min()
    return rows(name.replace("41x41", f"{side}x{side}"), mine, [arm], "grid")


def _volume(peer: Any, quick: bool) -> list[Row]:
    steps = 3 if quick else 11
    torch.manual_seed(0)
    x, y = digits()
    model = mlp(784, 20, 10)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    directions = pl.random_directions(land, 3, seed=1)
    lists = [[p.clone() for p in land.layout.unflatten(d.vector).values()] for d in directions]

    def loss(own: torch.nn.Module, data: Any) -> float:
        return float(F.cross_entropy(own(data[0]), data[1]))

    def ours() -> np.ndarray:
        return pl.grid(land, directions, [(-1, 1, steps)] * 3, progress=False).values

    def theirs() -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = peer.compute.compute_loss_landscape(
                copy.deepcopy(model), (x, y), copy.deepcopy(lists), loss, steps=steps,
                distance=1.0, dim=3, device="cpu",
            )  # fmt: skip
        return np.asarray(found[0])

    mine = Arm("pylandscape grid()", ours, steps**3)
    arm = Arm("Landscaper compute(dim=3)", theirs, steps**3, target=30)
    grid = _once(mine, arm)
    centre = (steps // 2,) * 3
    np.testing.assert_allclose(grid[centre], ours()[centre], rtol=1e-5)
    arm.note = "its own directions and steps; the centre is equal; run once"
    return rows(f"{steps}^3 grid, 784-20-10", mine, [arm], "point")


def _once(mine: Arm, arm: Arm) -> Any:
    """Times the other one once, and ours before and after; gives the other one's answer."""
    kept: list[Any] = []

    def run() -> None:
        kept.append(arm.run())

    mine.run()
    before = timed(mine.run, 3)
    arm.seconds.append(timed(run))
    mine.seconds.append((before + timed(mine.run, 3)) / 2)
    return kept[0]
