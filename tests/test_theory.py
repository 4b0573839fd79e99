"""Known results: XOR, linear networks and autoencoders, non-ascending paths, the command."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import pylandscape as pl
from pylandscape.cli import app
from pylandscape.critical.linear_networks import linear_network
from pylandscape.critical.monotone import is_non_ascending, monotone_path
from pylandscape.curvature.at_points import hessians
from pylandscape.experiments.theorems import (
    PLATEAUS,
    Check,
    TheoryTable,
    check_group,
    check_linear_network,
    check_xor,
    theory,
    xor_landscape,
)

EPS = np.finfo(np.float64).eps


def regression(count=40, d=5, o=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, d))
    return x, x @ rng.standard_normal((d, o)) + rng.standard_normal((count, o))


def spectra(net):
    values = hessians(net.land, net.points).eigenvalues()
    zero = 1e-9 * np.abs(values).max(axis=1, keepdims=True)
    return (values < -zero).sum(axis=1), (np.abs(values) <= zero).sum(axis=1)


def test_published_indices_and_nullities_of_a_5_2_4_network():
    net = linear_network(*regression(), 2, lower_ranks=False)
    index, nullity = spectra(net)
    found = dict(zip(net.sets, zip(index.tolist(), nullity.tolist(), strict=True), strict=True))
    assert found[(0, 1)] == (0, 4)
    assert found[(0, 2)] == (1, 4)
    assert found[(2, 3)] == (4, 4)
    assert set(nullity.tolist()) == {4}  # p^2


@pytest.mark.parametrize(("d", "p", "o"), [(5, 2, 4), (5, 3, 4), (3, 2, 5), (3, 1, 2), (4, 4, 4)])
def test_formulas_hold_at_every_critical_point(d, p, o):
    net = linear_network(*regression(d=d, o=o, seed=d), p)
    found = hessians(net.land, net.points)
    scale = net.losses.max()
    assert found.norms.max() <= 8 * net.land.n_params * EPS * scale
    np.testing.assert_allclose(found.losses, net.losses, rtol=0, atol=1e-14 * scale)
    index, nullity = spectra(net)
    np.testing.assert_array_equal(index, net.index)
    np.testing.assert_array_equal(nullity, net.nullity)
    assert (index == 0).sum() == 1  # the top p, nothing else, is a minimum


def test_the_critical_points_are_those_of_any_invertible_factor():
    one, two = (linear_network(*regression(), 2, seed=seed) for seed in (0, 1))
    assert np.abs(one.points[-1] - two.points[-1]).max() > 0.1
    np.testing.assert_array_equal(one.losses, two.losses)
    np.testing.assert_allclose(
        two.land.losses(points=torch.as_tensor(two.points)), one.losses, rtol=1e-13
    )


def test_tables_of_linear_networks_and_autoencoders_hold():
    x, y = regression(d=4, o=3)
    for table in (check_linear_network(x, y, 2), check_linear_network(x, None, 2)):
        assert table.ok, str(table)
    assert len(table.checks) == 11 + 2  # sets of at most 2 of 4, the origin, PCA


def test_group_table_holds():
    table = check_group(samples=100_000)
    assert table.ok, str(table)


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_xor_tables_hold(loss):
    table = check_xor(loss, starts=4, descents=5)
    assert table.ok, str(table)


@pytest.mark.parametrize(
    ("loss", "top", "level"), [("mse", 0.1875, 0.25), ("ce", 0.375, np.log(2))]
)
def test_xor_at_the_origin_is_stationary_and_singular(loss, top, level):
    found = hessians(xor_landscape(loss), np.zeros((1, 9)))
    assert found.losses[0] == pytest.approx(level, rel=4 * EPS)
    assert found.norms[0] <= 4 * EPS
    np.testing.assert_allclose(
        found.eigenvalues()[0], [*np.zeros(8), top], rtol=4 * EPS, atol=9 * EPS * top
    )


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_plateau_levels_are_limits_of_saturated_networks(loss):
    # Hidden units far out give indicators of halves of the plane; the output weights reach the
    # best outputs that are left.
    land, far = xor_landscape(loss), 60.0
    half = far / 2
    exact = [far, far, far, far, -half, -3 * half, far, -2 * far, -half]
    # unit 1 = (1, 1): outputs 1/3 for the others, 0 for (1, 1) would be 1/6 with labels swapped
    logit = np.log(2.0)
    three = [far, far, 0, 0, -3 * half, 0, -far, 0, logit]
    # units (0, 0) -> 0, (1, 0) -> 1 and the other two undecided
    two = [far, 0, 0, far, -half, -half, far, -far, 0.0]
    losses = land.losses(points=torch.tensor([exact, two, three], dtype=torch.float64))
    wanted = PLATEAUS[loss]
    assert losses[0] == pytest.approx(wanted[0], abs=1e-10)
    assert losses[2] == pytest.approx(wanted[2], abs=1e-10)
    assert wanted == tuple(sorted(wanted))


def test_a_non_ascending_path_reaches_the_minimum_from_a_plateau_of_descents():
    land = xor_landscape()
    rng = np.random.default_rng(0)
    for seed in range(4):
        path = monotone_path(land, 3.0 * rng.standard_normal(9), 0.01, seed=seed)
        assert path.reached, repr(path)
        assert (np.diff(path.losses) <= 0.0).all()
        assert is_non_ascending(path.points, 64 * EPS, land=land, between=100)
        assert len(path.moves) == len(path.points) - 1


def test_a_monotone_path_that_is_there_does_not_move():
    path = monotone_path(xor_landscape(), np.zeros(9), 0.25)
    assert path.points.shape == (1, 9)
    assert path.reached


def test_negative_curvature_leaves_an_exact_saddle():
    x, y = regression()
    net = linear_network(x, y, 2, lower_ranks=False)
    saddle = net.points[net.sets.index((0, 2))]
    path = monotone_path(net.land, saddle, float(net.losses.min()) * (1 + 1e-6))
    assert path.reached, repr(path)


@pytest.mark.parametrize(
    ("losses", "atol", "verdict"),
    [
        ([3.0, 2.0, 2.0], 0.0, True), ([3.0, 2.0, 2.1], 0.0, False), ([3.0, 2.0, 2.1], 0.11, True),
        ([1.0], 0.0, True), ([1.0, np.nan], 1.0, False),
    ],
)  # fmt: skip
def test_non_ascending_is_what_it_says(losses, atol, verdict):
    assert is_non_ascending(losses, atol) is verdict


def test_a_bump_between_two_corners_is_seen():
    land = xor_landscape()
    ends = np.stack([np.zeros(9), np.r_[np.zeros(8), -0.0]])
    ends[0, 8], ends[1, 8] = 1.0, 0.0
    assert is_non_ascending(ends, land=land)
    ends[1, 8] = -0.9  # down to L(0), then up again
    assert (
        land.losses(points=torch.as_tensor(ends))[1] < land.losses(points=torch.as_tensor(ends))[0]
    )
    assert not is_non_ascending(ends, land=land)
    assert is_non_ascending(ends, land=land, between=0)


def test_bad_paths_and_starts_are_refused():
    land = xor_landscape()
    with pytest.raises(pl.InvalidArgument, match="atol"):
        is_non_ascending([1.0], -1.0)
    with pytest.raises(pl.InvalidArgument, match="path: expected losses"):
        is_non_ascending(np.zeros((2, 9)))
    with pytest.raises(pl.InvalidArgument, match=r"path: expected shape \(T, 9\)"):
        is_non_ascending(np.zeros((2, 8)), land=land)
    with pytest.raises(pl.InvalidArgument, match="start: expected finite"):
        monotone_path(land, np.full(9, np.nan), 0.1)
    with pytest.raises(pl.InvalidArgument, match="tries"):
        monotone_path(land, np.zeros(9), 0.1, tries=0)


@pytest.mark.parametrize(
    ("x", "y", "hidden", "match"),
    [
        (np.ones((9, 2)), np.ones((9, 1)), 1, "x: expected rank 2"),
        (np.eye(3), np.eye(4), 1, "y: expected 3 rows"),
        (np.eye(3), None, 1, "coincide"),
        (np.diag([1.0, 2.0, 3.0]), None, 4, "hidden: expected 1 .. 3"),
        (np.zeros(3), None, 1, "x: expected finite numbers"),
    ],
)
def test_data_without_a_closed_form_are_refused(x, y, hidden, match):
    with pytest.raises(pl.InvalidArgument, match=match):
        linear_network(x, y, hidden)


def test_unknown_checks_are_refused():
    with pytest.raises(pl.InvalidArgument, match="checks: expected some of"):
        theory("ising")
    with pytest.raises(pl.InvalidArgument, match="starts: expected at least 1"):
        theory("xor", starts=0)


def test_command_prints_the_tables_and_counts_them(capsys):
    assert app.main(["theory", "group", "linear"]) == 0
    out = capsys.readouterr().out
    assert "3715891200" in out
    assert "I = {1,3}" in out
    assert "checks hold" in out
    assert "FAIL" not in out


def test_a_failed_check_is_no_bad_input(capsys, monkeypatch):
    rows = (Check("one", "1", "2", False), Check("two", "2", "2", True))
    monkeypatch.setattr(
        sys.modules[theory.__module__], "theory", lambda name, **_: [TheoryTable(name, rows)]
    )
    assert app.main(["theory", "group"]) == 1
    captured = capsys.readouterr()
    assert "1 of 2 checks hold" in captured.out
    assert "1 of 2 checks FAILED" in captured.err


def test_a_start_from_which_greed_ends_on_a_plateau_finds_its_path():
    """The second of the command's six: three of four greedy descents end at 1/8."""
    land, rng = xor_landscape("mse"), np.random.default_rng(0)
    start = 2.0 * rng.standard_normal((122, 9))[121]
    path = monotone_path(land, start, 0.01, seed=1, max_moves=80)
    assert path.reached
    assert is_non_ascending(path.points, 64 * EPS, land=land, between=200)


def test_command_refuses_an_unknown_check(capsys):
    assert app.main(["theory", "ising"]) == 2
    assert "expected some of group, xor, linear" in capsys.readouterr().err
