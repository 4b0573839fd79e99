"""What the noise of the data leaves of a picture: masks, bands, verdicts."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.cli.app import main
from pylandscape.errors import InvalidArgument
from pylandscape.results.curve import Curve
from pylandscape.results.grid_values import Grid
from pylandscape.results.surface import Surface

BOTH = ("standard_error", "difference_standard_error")
QUIET = {"progress": False}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def landscape(count: int = 60, shift: float = 0.0, **more) -> pl.Landscape:
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=gen, dtype=torch.float64)
    y = (x.sum(1, keepdim=True) + torch.randn(count, 1, generator=gen).double()) + shift
    model = nn.Linear(3, 1).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=gen))
    return pl.Landscape(model, "mse", (x, y), **more)


def surface(land: pl.Landscape, **more) -> Surface:
    d = torch.eye(land.n_params, dtype=torch.float64)[:2]
    return pl.plane(land, *d, (-1, 1, 9), (-0.5, 0.5, 5), metrics=BOTH, **QUIET, **more)


def facts(**more) -> dict:
    """Of a result made by hand, whose centre is in it."""
    return {"dtype": "float64", "request": {"data": "a"}, **more}


def test_a_point_differs_from_the_centre_where_the_samples_own_differences_say_so():
    found = surface(landscape())
    apart = np.abs(found.values - found.values[4, 2])
    want = apart > 2 * found.metrics["difference_standard_error"]
    assert np.array_equal(found.significant(), want)
    assert not found.significant()[4, 2]
    assert 0 < want.sum() < want.size
    wide = found.significant(errors=5)
    assert wide.sum() < want.sum()
    assert not (wide & ~want).any()


def test_the_paired_error_is_no_larger_than_the_bound_without_it():
    found = surface(landscape())
    alone = Surface(found.x, found.y, metrics={k: found.metrics[k] for k in ("loss", BOTH[0])},
                    info=found.info)  # fmt: skip
    assert not (alone.significant() & ~found.significant()).any()
    assert alone.significant().sum() < found.significant().sum()


def test_a_slice_beside_the_centre_is_compared_with_the_centre():
    land = landscape()
    d = torch.eye(land.n_params, dtype=torch.float64)[:3]
    grid = pl.grid(land, d, [(-1, 1, 3)] * 3, metrics=BOTH, **QUIET)
    whole = grid.significant()
    for index in range(3):
        part = grid.slice(2, index)
        assert np.array_equal(part.significant(), whole[..., index])
        assert part.check()
        assert np.array_equal(grid.slice(1, index).significant(), whole[:, index])


def test_two_surfaces_of_one_centre_differ_by_the_smaller_bound():
    land = landscape()
    one = surface(land)
    d = torch.eye(4, dtype=torch.float64)
    other = pl.plane(land, d[0], d[2], (-1, 1, 9), (-0.5, 0.5, 5), metrics=BOTH, **QUIET)
    own, through = (one.metrics[m] + other.metrics[m] for m in BOTH)
    want = np.abs(one.values - other.values) > 2 * np.minimum(own, through)
    assert np.array_equal(one.significant(other), want)
    assert not one.significant(one).any()
    moved = surface(land, theta=land.theta + 0.1)  # the samples' losses there are others
    want = np.abs(one.values - moved.values) > 2 * (one.metrics[BOTH[0]] + moved.metrics[BOTH[0]])
    assert np.array_equal(one.significant(moved), want)


def test_surfaces_of_other_data_are_independent_and_a_number_has_no_error():
    one, other = surface(landscape()), surface(landscape(shift=0.3))
    noise = np.hypot(one.metrics[BOTH[0]], other.metrics[BOTH[0]])
    want = np.abs(one.values - other.values) > 2 * noise
    assert np.array_equal(one.significant(other), want)
    want = np.abs(one.values - 3.0) > 2 * one.metrics[BOTH[0]]
    assert np.array_equal(one.significant(3), want)


def test_a_subset_says_more_of_its_data_than_of_the_population():
    part = surface(landscape(samples=50))
    left = np.sqrt(1 - 50 / 60)
    apart = np.abs(part.values - part.values[4, 2])
    want = apart > 2 * left * part.metrics[BOTH[1]]
    assert np.array_equal(part.significant(of="data"), want)
    assert want.sum() > part.significant().sum()
    every = surface(landscape()).significant(of="data")  # all of the data: no error is left
    assert every.sum() == every.size - 1


def test_between_solutions_a_barrier_is_told_from_noise():
    land = landscape()
    ends = [land.theta, land.theta + 1.0]
    curve = pl.interpolate(land, ends, (0, 1, 5), metrics=BOTH, **QUIET)
    losses = np.array(curve.info["vertex_losses"])
    apart = curve.values - ((1 - curve.x) * losses[0] + curve.x * losses[1])
    want = np.abs(apart) > 2 * curve.metrics[BOTH[1]]
    assert np.array_equal(curve.significant(), want)
    with pytest.raises(InvalidArgument, match="'difference_standard_error' among them"):
        Curve(curve.x, metrics={k: curve.metrics[k] for k in ("loss", BOTH[0])}, info=curve.info,
              kind="interpolation").significant()  # fmt: skip
    ends.append(land.theta - 1.0)
    triangle = pl.interpolate(land, ends, (0, 1, 3), (0, 1, 3), metrics=BOTH, **QUIET)
    assert triangle.significant().shape == (3, 3)
    assert not triangle.significant()[0].any()  # alpha = 0 is the first solution itself


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"errors": 0}, "errors: expected a positive number, got 0"),
        ({"of": "all"}, "of: expected 'population' or 'data', got 'all'"),
        ({"other": "x"}, "other: expected None, a number or another Surface, got str"),
        ({"other": Surface([0, 1], [0, 1], np.zeros((2, 2)))}, "at the same steps"),
    ],
)
def test_bad_questions_are_refused_by_name(more, said):
    with pytest.raises(InvalidArgument, match=said):
        surface(landscape()).significant(**more)


def test_without_errors_the_message_says_how_to_get_them():
    plain = Surface([-1, 0, 1], [0, 1], np.zeros((3, 2)))
    with pytest.raises(InvalidArgument, match="compute it with metrics="):
        plain.significant()
    with pytest.raises(InvalidArgument, match="compute it with metrics="):
        plain.plot(band=True)


def test_points_that_are_not_finite_are_in_no_mask():
    values, error = np.array([np.nan, 1.0, np.inf, 2.0]), np.array([np.nan, 0.1, np.nan, 0.1])
    curve = Curve([-1, 0, 1, 2], metrics={"loss": values, BOTH[1]: error}, info=facts())
    assert curve.significant().tolist() == [False, False, False, True]


# --- check() ------------------------------------------------------------------------------------


def wells(depth: float, error: float) -> Curve:
    x = np.linspace(-1, 1, 21)
    values = 1 - np.exp(-((x / 0.2) ** 2)) - depth * np.exp(-(((x - 0.7) / 0.1) ** 2))
    errors = {name: np.full(21, error) for name in BOTH}
    return Curve(x, metrics={"loss": values, **errors}, info=facts(center_loss=values[10]))


def said(result) -> str:
    return " ".join(m for _, name, m in result.check().findings if name == "noise")


def test_check_says_which_minima_are_within_the_noise():
    assert "1 of 1 minima beside the lowest are no deeper" in said(wells(0.2, 0.06))
    assert "minima" not in said(wells(0.2, 0.01))


def test_check_says_whether_the_lowest_point_is_lower_than_the_centre():
    assert "below the centre's, within 2 standard errors" in said(wells(1.1, 0.06))
    assert "below the centre's, beyond the data's" in said(wells(1.1, 0.01))
    assert said(Curve([0, 1], [0.0, 1.0])) == ""  # nothing is known of the data


def test_check_says_whether_a_barrier_is_within_the_noise():
    info = facts(vertex_losses=[0.0, 0.0])
    errors = {name: np.array([0.0, 0.3, 0.0]) for name in BOTH}
    for height, word in ((0.5, "within 2"), (0.7, "beyond")):
        metrics = {"loss": np.array([0.0, height, 0.0]), **errors}
        curve = Curve([0, 0.5, 1], metrics=metrics, info=info, kind="interpolation")
        assert f"the barrier (x = 0.5) is {height}" in said(curve)
        assert word in said(curve)


# --- pictures -----------------------------------------------------------------------------------


def gids(ax) -> list:
    return [a.get_gid() for a in ax.get_children() if a.get_gid()]


@pytest.mark.parametrize("log", [False, True])
def test_a_contour_has_its_band_where_it_may_lie(log):
    x = np.linspace(-1, 1, 41)
    values = np.broadcast_to((2 + x)[:, None], (41, 5))
    metrics = {"loss": values, BOTH[0]: np.full((41, 5), 0.1)}
    ax = Surface(x, np.linspace(0, 1, 5), metrics=metrics).plot(band=True, levels=[2.0], log=log)
    (band,) = [a for a in ax.get_children() if a.get_gid() == "band"]
    seen = np.concatenate([p.vertices for p in band.get_paths()])[:, 0]
    np.testing.assert_allclose([seen.min(), seen.max()], [-0.2, 0.2], atol=1e-9)
    assert "2 standard errors" in ax.get_title(loc="left")


def test_a_curve_has_its_band_and_other_kinds_refuse_one():
    curve = wells(0.2, 0.05)
    ax = curve.plot(band=3)
    (band,) = [a for a in ax.get_children() if a.get_gid() == "band"]
    top = np.concatenate([p.vertices for p in band.get_paths()])[:, 1].max()
    np.testing.assert_allclose(top, curve.values.max() + 0.15)
    found = surface(landscape())
    with pytest.raises(InvalidArgument, match="band: expected with kind 'contour', got kind 'heat"):
        found.plot("heat", band=True)
    with pytest.raises(InvalidArgument, match="band: expected True or a positive number, got -1"):
        found.plot(band=-1)
    with pytest.raises(InvalidArgument, match="band: expected with metric 'loss'"):
        found.plot(metric=BOTH[0], band=True)


def test_the_shell_draws_bands_and_grids(tmp_path, capsys):
    surface(landscape(), path=tmp_path / "s.h5")
    picture = tmp_path / "s.png"
    assert main(["plot", str(tmp_path / "s.h5"), "--band", "--out", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    values = np.add.outer(np.add.outer(np.arange(4.0), np.arange(3.0)), np.arange(5.0) ** 2)
    Grid([np.arange(4), np.arange(3), np.arange(5)], values).save(tmp_path / "g.h5")
    assert main(["plot", str(tmp_path / "g.h5"), "--out", str(tmp_path / "g.png")]) == 0
    assert (tmp_path / "g.png").stat().st_size > 10_000
    twice = ["plot", str(tmp_path / "g.h5"), str(tmp_path / "g.h5"), "--out", str(picture)]
    assert main(twice) == 2
    assert "expected one grid" in capsys.readouterr().err
