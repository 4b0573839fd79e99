"""The convexity map: known spectra, dense against Lanczos, resumed runs, wrong arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grid_support import classifier, directions, quadratic, scalar_landscape

from pylandscape.errors import InvalidArgument, LayoutMismatch, ResumeMismatch
from pylandscape.landscape import Landscape
from pylandscape.results.loading import load
from pylandscape.runs.journal import Journal
from pylandscape.surfaces.convexity_map import METRICS, convexity
from pylandscape.surfaces.grids import plane

QUIET = {"progress": False}
UNIT = np.eye(4)
LANCZOS = {"dense": 0, "tol": 1e-4}
WAYS = [{}, LANCZOS, {**LANCZOS, "warm": True}]


def grid(size=3):
    return {"x": (-1, 1, size), "y": (-0.5, 1, size + 1), **QUIET}


def quartic():
    """L = sum theta^4 / 12 - theta_0^2: its Hessian is diag(theta^2) - 2 e_0 e_0^T."""
    return scalar_landscape(lambda t: (t**4).sum() / 12 - t[0] ** 2, [0.0, 0.5, 1.0, 3.0])


@pytest.mark.parametrize("way", WAYS)
def test_a_convex_quadratic_has_a_positive_ratio_everywhere(way):
    land = quadratic([4.0, 1.0, 2.0, 8.0])
    surface = convexity(land, UNIT[0], UNIT[1], **grid(), **way)
    assert list(surface.metrics) == list(METRICS)
    assert surface.metrics["lambda_min"] == pytest.approx(np.full((3, 4), 1.0), rel=1e-3)
    assert surface.metrics["lambda_max"] == pytest.approx(np.full((3, 4), 8.0), rel=1e-3)
    assert surface.metrics["ratio"] == pytest.approx(np.full((3, 4), 0.125), rel=1e-3)
    assert surface.info["no_positive_curvature"] == surface.info["not_converged"] == 0
    flat = plane(land, UNIT[0], UNIT[1], **grid())
    assert surface.values.tobytes() == flat.values.tobytes()
    assert surface.kind == "plane"


def test_a_saddle_of_two_and_minus_one_has_the_ratio_one_half():
    surface = convexity(quadratic([2.0, -1.0]), *np.eye(2), **grid())
    assert surface.metrics["ratio"] == pytest.approx(np.full((3, 4), 0.5), rel=1e-14)
    assert (surface.metrics["lambda_min"] < 0).all()


@pytest.mark.parametrize("way", WAYS)
def test_curvature_that_changes_over_the_grid_is_followed(way):
    surface = convexity(quartic(), UNIT[0], UNIT[2], (-3, 3, 7), (-1, 3, 9), **QUIET, **way)
    x, y = surface.x[:, None], surface.y[None]
    every = np.stack(np.broadcast_arrays(x**2 - 2, 0.25, (1 + y) ** 2, 9.0))
    scale = every.max(axis=0)
    assert np.abs(surface.metrics["lambda_max"] - scale).max() <= 1e-3 * scale.max()
    assert np.abs(surface.metrics["lambda_min"] - every.min(axis=0)).max() <= 1e-3 * scale.max()


@pytest.mark.parametrize("way", WAYS)
def test_points_without_positive_curvature_keep_their_numbers_and_are_counted(way):
    land = scalar_landscape(lambda t: (t[0] ** 3 - t[1:].square().sum()) / 2, np.zeros(4))
    surface = convexity(land, UNIT[0], UNIT[1], (-2, 2, 4), (0, 1, 2), **QUIET, **way)
    high = np.maximum(3 * surface.x, -1)[:, None].repeat(2, 1)
    assert surface.metrics["lambda_max"] == pytest.approx(high, abs=1e-3)
    assert surface.info["no_positive_curvature"] == 4
    assert surface.metrics["ratio"][0] == pytest.approx(np.full(2, 6.0), rel=1e-3)


def test_a_flat_loss_has_no_ratio():
    surface = convexity(scalar_landscape(lambda t: 0 * t.sum(), np.zeros(4)), *UNIT[:2], **grid())
    assert not surface.metrics["lambda_max"].any()
    assert np.isnan(surface.metrics["ratio"]).all()
    assert surface.info["no_positive_curvature"] == 12


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_that_is_not_finite_has_no_eigenvalues(way):
    land = scalar_landscape(
        lambda t: (t * t).sum() * torch.where(t[1] > 0.9, torch.inf, 1.0), np.zeros(4)
    )
    surface = convexity(land, *UNIT[:2], **grid(), **way)
    assert np.isinf(surface.values[:, -1]).all()
    assert np.isnan(surface.metrics["lambda_max"][:, -1]).all()
    assert surface.metrics["lambda_max"][:, :-1] == pytest.approx(np.full((3, 3), 2.0))
    assert surface.info["nonfinite"] == 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["native", "torch"])
def test_the_map_of_an_mlp_is_that_of_its_hessian_in_float64(engine, way):
    land = classifier(engine=engine)
    wide = Landscape(
        land.model, torch.nn.CrossEntropyLoss(), [
            (b.inputs.double(), b.target) for b in land.dataset.batches
        ], engine="torch", dtype=torch.float64,
    )  # fmt: skip
    d1, d2 = directions(land, 2)
    surface = convexity(land, d1, d2, **grid(), **way)
    for i, x in enumerate(surface.x):
        for j, y in enumerate(surface.y):
            theta = wide.theta + x * d1.double() + y * d2.double()
            exact = torch.linalg.eigvalsh(wide.hessian(theta))
            low, high = float(exact[0]), float(exact[-1])
            assert abs(surface.metrics["lambda_max"][i, j] - high) <= 1e-3 * high
            assert abs(surface.metrics["lambda_min"][i, j] - low) <= 1e-3 * high
            assert abs(surface.metrics["ratio"][i, j] - abs(low / high)) <= 2e-3
    assert surface.info["not_converged"] == 0
    assert surface.info["eigenvalues"]["method"] == ("lanczos" if way else "dense")


def test_theta_moves_the_centre():
    surface = convexity(
        quartic(), *UNIT[:2], (0, 0, 1), (0, 0, 1), theta=np.array([5.0, 0, 0, 0]), **QUIET
    )
    assert surface.metrics["lambda_max"][0, 0] == pytest.approx(23.0)
    assert surface.metrics["lambda_min"][0, 0] == pytest.approx(0.0)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_a_hessian_that_is_not_finite_has_no_eigenvalues(engine):
    land = scalar_landscape(lambda t: t.square().sum() + t[0].abs().sqrt(), np.ones(4))
    hvp = land.hvp
    land.hvp = lambda v, theta=None: hvp(v, theta) * (np.nan if theta[0] < 0.5 else 1.0)
    for way in WAYS:
        surface = convexity(land, *UNIT[:2], **grid(), **way)
        assert np.isfinite(surface.values).all()
        assert np.isnan(surface.metrics["lambda_max"][0]).all()
        assert np.isfinite(surface.metrics["lambda_max"][1:]).all()


def test_cold_points_follow_an_eigenvalue_that_takes_the_lead():
    def loss(t):
        crossing = (3 + t[0]) * t[5] ** 2 + (3 - t[0]) * t[6] ** 2 - (1 + t[0]) * t[7] ** 2
        return (torch.linspace(0.01, 1, 300) * t * t).sum() / 2 + crossing / 2

    land, unit = scalar_landscape(loss, np.zeros(300)), np.eye(300)
    axes = {"x": (0, 0, 1), "y": (-2, 2, 21), **QUIET}
    exact, found = convexity(land, unit[1], unit[0], **axes), convexity(
        land, unit[1], unit[0], dense=0, **axes
    )  # fmt: skip
    for name in ("lambda_min", "lambda_max"):
        away = np.abs(found.metrics[name] - exact.metrics[name])
        assert (away <= 1e-3 * exact.metrics["lambda_max"]).all()


# --- resuming ----------------------------------------------------------------------------------


class Stop(Exception):
    """Raised in the middle of a run."""


def interrupted(monkeypatch, count, call):
    real, left = Journal.append, [count]

    def append(self, start, block):
        if not left[0]:
            raise Stop
        left[0] -= 1
        real(self, start, block)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append)
        with pytest.raises(Stop):
            call()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 6, 8, 11])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(
    tmp_path, monkeypatch, count, way
):
    monkeypatch.setattr("pylandscape.runs.chunks.CHUNK_SECONDS", 0.0)  # one point at a time
    path, land = tmp_path / "c.h5", classifier()
    d1, d2 = directions(land, 2)

    def ask(path=None):
        return convexity(land, d1, d2, **grid(), path=path, **way)

    whole = ask()
    interrupted(monkeypatch, count, lambda: ask(path))
    resumed = ask(path)
    assert resumed.info["resumed"] == count
    for found in (resumed, load(path), ask(path)):
        assert list(found.metrics) == list(METRICS)
        for name, values in whole.metrics.items():
            assert found.metrics[name].tobytes() == values.tobytes()
        for name in ("request", "no_positive_curvature", "not_converged", "eigenvalues"):
            assert found.info[name] == whole.info[name]
    assert [p.name for p in tmp_path.iterdir()] == ["c.h5"]


def test_another_way_to_the_eigenvalues_is_another_request(tmp_path):
    path, land = tmp_path / "c.h5", quadratic([4.0, 1.0, 2.0, 8.0])

    def ask(**options):
        return convexity(land, *UNIT[:2], **grid(), path=path, **options)

    ask()
    ask(tol=1e-2)  # means nothing to dense eigenvalues
    with pytest.raises(ResumeMismatch, match=r"eigenvalues\.method: file 'dense', request 'lan"):
        ask(dense=0)
    with pytest.raises(ResumeMismatch, match="metrics"):
        plane(land, *UNIT[:2], **grid(), path=path)


# --- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tol": 0.0}, "tol: expected a number between 0 and 1, got 0.0"),
        ({"tol": 1.0}, "tol: expected"),
        ({"tol": np.nan}, "tol: expected"),
        ({"tol": "1e-3"}, "tol: expected"),
        ({"dense": -1}, "dense: expected at least 0, got -1"),
        ({"dense": 2.5}, "dense: expected an integer, got 2.5"),
        ({"seed": -1}, "seed: expected"),
        ({"x": (1, -1, 3)}, "x: expected"),
        ({"y": [1, 0]}, "y: expected"),
    ],
)
def test_wrong_arguments_are_named(options, said):
    with pytest.raises(InvalidArgument, match=said):
        convexity(quadratic([1.0] * 4), *UNIT[:2], **{**grid(), **options})


def test_wrong_directions_are_named():
    land = quadratic([1.0] * 4)
    with pytest.raises(LayoutMismatch, match="d2"):
        convexity(land, UNIT[0], np.zeros(3), **grid())
    with pytest.raises(InvalidArgument, match="d1: expected one direction"):
        convexity(land, UNIT[:2], UNIT[0], **grid())
    with pytest.raises(LayoutMismatch, match="theta"):
        convexity(land, *UNIT[:2], theta=np.zeros(3), **grid())


@pytest.mark.parametrize(("width", "method"), [(4, "dense"), (20, "lanczos")])
def test_without_dense_the_cheaper_method_is_taken(width: int, method: str) -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 9)
    )
    land = Landscape(model, "mse", (torch.randn(6, 3), torch.randn(6, 9)))
    assert land.engine == "native"
    found = convexity(land, *torch.randn(2, land.n_params), x=(0, 0, 1), y=(0, 0, 1), **QUIET)
    assert found.info["eigenvalues"]["method"] == method
