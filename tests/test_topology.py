"""Merge trees against gudhi, invariances, planted wells, walls, files, pictures."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

import pylandscape as pl
from pylandscape.errors import InvalidArgument, PylandscapeError
from pylandscape.topology.trees import loops

gudhi = pytest.importorskip("gudhi")
SIDES = {1: 30, 2: 9, 3: 6, 4: 5}


def grid_of(values) -> pl.Grid:
    return pl.Grid([np.arange(n, dtype=float) for n in np.shape(values)], values=values)


def random_values(seed: int, d: int) -> np.ndarray:
    """With ties, and walls in every second one."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, SIDES[d], size=d))
    values = rng.integers(0, rng.choice([3, 8, 1000]), size=shape).astype(float)
    if seed % 2:
        values[rng.random(shape) < 0.15] = np.inf
        values.flat[0] = 1.0
    return values


def in_order(pairs) -> list:
    found = np.asarray(pairs, dtype=float).reshape(-1, 2)
    return sorted(map(tuple, found[found[:, 0] < found[:, 1]].tolist()))


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_pairs_are_those_of_gudhi_with_ties_and_walls(d):
    for seed in range(25):
        values = random_values(seed, d)
        peer = gudhi.CubicalComplex(vertices=values)
        peer.compute_persistence(homology_coeff_field=2, min_persistence=0.0)
        found = grid_of(values).topology().pairs(noise=True)
        assert in_order(found) == in_order(peer.persistence_intervals_in_dimension(0))
        if d > 1:
            holes = peer.persistence_intervals_in_dimension(d - 1)
            assert in_order(loops(values)) == in_order(holes)


def test_pairs_follow_monotone_maps_flips_and_transposition():
    for seed in range(20):
        values = random_values(seed, 3)
        pairs = in_order(grid_of(values).topology().pairs(noise=True))
        for other in (values[::-1], values[:, ::-1, ::-1], values.transpose(2, 0, 1)):
            assert in_order(grid_of(other).topology().pairs(noise=True)) == pairs
        mapped = [(np.exp(a / 500), np.exp(b / 500)) for a, b in pairs]
        found = grid_of(np.exp(values / 500)).topology().pairs(noise=True)
        assert np.array_equal(in_order(found), sorted(mapped))


def test_maxima_are_the_minima_of_what_is_negated_but_for_the_neighbours_on_the_diagonal():
    ring = np.array([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
    t = grid_of(ring).topology()
    assert len(t.pairs()) == 5  # corners and centre are apart along the axes
    assert len(t.pairs("maxima")) == 1  # the ring hangs together along the diagonals
    line = np.array([0.0, 2, 1, 3, -1])
    turned = grid_of(-line).topology().pairs("maxima")
    assert np.array_equal(turned, -grid_of(line).topology().pairs())


def test_planted_wells_are_found_with_their_depths_and_borders():
    axis = np.linspace(-3, 3, 61)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    centres, depths = [(-1.5, -1.5), (1.5, 1.0), (-1.0, 1.8), (3.0, -3.0)], [4.0, 3.0, 2.0, 1.0]
    f = -sum(
        h * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.08)
        for (a, b), h in zip(centres, depths, strict=True)
    )
    surface = pl.Surface(axis, axis, values=f)
    basins = surface.topology().basins(-0.5)
    for basin, centre, depth in zip(basins, centres, depths, strict=True):
        assert basin.position == pytest.approx(centre)
        assert basin.value == pytest.approx(-depth, rel=1e-6)
    assert [b.border for b in basins] == [False, False, False, True]
    pairs = surface.topology().pairs()
    assert pairs[0, 1] == np.inf
    assert pairs[1:4, 0] == pytest.approx([-3, -2, -1], rel=1e-6)
    assert np.abs(pairs[1:4, 1]).max() < 1e-3


def test_smad_is_over_the_edges_of_the_tree_and_not_over_pairs():
    t = pl.Curve(np.arange(7.0), values=[5.0, 1, 4, 2, 9, 0, 6]).topology()
    # 1 and 2 join at 4; their component joins 0 at 9, where the minimum 0 has its edge.
    assert t.smad() == pytest.approx(((4 - 1) + (4 - 2) + (9 - 0)) / 3)
    assert t.mean_persistence() == pytest.approx(((4 - 2) + (9 - 1)) / 2)
    assert t.join.elders().tolist() == [-1, 0, 1]


def test_walls_leave_regions_with_minima_of_their_own_and_are_never_filled():
    values = np.array([[1.0, np.nan, 0], [2, np.inf, 3], [1.5, -np.inf, 4]])
    t = grid_of(values).topology()
    assert np.array_equal(t.pairs(), [[1.0, np.inf], [0.0, np.inf], [1.5, 2.0]]) or np.array_equal(
        t.pairs(), [[0.0, np.inf], [1.0, np.inf], [1.5, 2.0]]
    )
    assert sum(b.size for b in t.basins(np.inf)) == 6


def test_what_is_rounding_is_counted_apart():
    rng = np.random.default_rng(0)
    values = 5 + 1e-8 * rng.normal(size=200)
    t = pl.Curve(np.arange(200.0), values=values, info={"dtype": "float32"}).topology()
    assert len(t.pairs()) == 1
    assert t.below_noise() > 20
    double = pl.Curve(np.arange(200.0), values=values, info={"dtype": "float64"}).topology()
    assert len(double.pairs()) > 20


def test_a_constant_grid_is_one_basin():
    t = grid_of(np.ones((4, 5))).topology()
    assert np.array_equal(t.pairs(), [[1.0, np.inf]])
    assert np.isnan(t.smad())
    assert [b.size for b in t.basins(1.0)] == [20]


def test_distances_are_stable_and_need_gudhi(monkeypatch):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(12, 13))
    moved = values + rng.uniform(-0.05, 0.05, size=values.shape)
    t1, t2 = grid_of(values).topology(), grid_of(moved).topology()
    for of in ("minima", "maxima"):
        assert 0 < pl.bottleneck_distance(t1, t2, of) <= np.abs(moved - values).max() + 1e-12
        assert pl.bottleneck_distance(t1, t1, of) < 1e-300
        near, far = pl.bottleneck_distance(t1, t2, of), pl.wasserstein_distance(t1, t2, of)
        assert far >= near - 1e-12
    with pytest.raises(InvalidArgument, match="t2: expected a Topology, got ndarray"):
        pl.bottleneck_distance(t1, values)
    real = builtins.__import__

    def without(name, *more):
        if name.startswith("gudhi"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PylandscapeError, match=r"pylandscape\[topology\]"):
        pl.bottleneck_distance(t1, t2)


def test_a_topology_is_saved_and_drawn(tmp_path):
    import matplotlib.pyplot as plt

    t = grid_of(np.random.default_rng(2).normal(size=(9, 8, 7))).topology()
    t.save(tmp_path / "t.h5")
    again = pl.load(tmp_path / "t.h5")
    assert isinstance(again, pl.Topology)
    assert repr(again) == repr(t)
    assert np.array_equal(again.pairs(), t.pairs())
    for kind in ("tree", "barcode", "diagram"):
        plt.close(t.draw(kind, of="maxima", most=10).figure)
    with pytest.raises(InvalidArgument, match="kind: expected 'tree'"):
        t.draw("map")
    with pytest.raises(InvalidArgument, match="of: expected 'minima'"):
        t.pairs("saddles")
    with pytest.raises(InvalidArgument, match="level: expected a number"):
        t.basins(float("nan"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((3, 3), np.inf), "expected finite values, got none among 9"),
        (np.ones((1, 1)), "at least two values"),
    ],
)
def test_grids_without_a_shape_are_refused(values, message):
    with pytest.raises(InvalidArgument, match=message):
        grid_of(values).topology()


def test_the_memory_of_a_huge_grid_is_said_beforehand():
    huge = pl.Curve([0.0, 1.0], values=[0.0, 1.0])
    huge.metrics["loss"] = np.broadcast_to(0.0, (2**16, 2**16))  # takes no memory
    with pytest.raises(InvalidArgument, match=r"at most 2\^31 - 2 values, got 4,294.*112 GiB"):
        huge.topology()
