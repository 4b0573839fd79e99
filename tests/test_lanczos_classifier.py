"""Classes from products alone: they agree with the exact ones, or are left open."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grid_support import classifier, quadratic
from torch import nn

from pylandscape.critical.classification import classify
from pylandscape.critical.lanczos_classifier import null_residual
from pylandscape.curvature.operators import as_operator
from pylandscape.landscape import Landscape

QUIET = {"progress": False}


def both(land, points, **options):
    return (classify(land, points, method=m, **QUIET, **options) for m in ("exact", "lanczos"))


def assert_consistent(exact, found):
    """Decided points are right, and the bounds hold, up to rounding."""
    decided = found.kinds != "undecided"
    assert np.array_equal(found.kinds[decided], exact.kinds[decided])
    slack = 1e-6 * np.abs(exact.bounds).max(axis=(1, 2), keepdims=True)
    assert (found.bounds[..., :1] - slack <= exact.bounds[..., :1]).all()
    assert (exact.bounds[..., 1:] <= found.bounds[..., 1:] + slack).all()


def regression(unit, seed=0, width=12, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(60, d, generator=gen, dtype=dtype) for d in (6, 2))
    model = nn.Sequential(
        nn.Linear(6, width), unit(), nn.Linear(width, width), unit(), nn.Linear(width, 2)
    ).to(dtype)
    return Landscape(model, nn.MSELoss(), (x, y))


@pytest.mark.parametrize(("low", "high", "kind"), [(0.1, 5.0, "convex"), (-5.0, -0.1, "concave")])
def test_definite_matrices_are_recognised_far_before_their_last_eigenvalue(low, high, kind):
    curvature = np.linspace(low, high, 600)
    found = classify(quadratic(curvature), np.zeros((1, 600)), method="lanczos", steps=60, **QUIET)
    assert found.kinds.tolist() == [kind]
    assert found.index[0] == (600 if kind == "concave" else 0)
    assert found.index_error[0] == pytest.approx(0.0, abs=1e-9)


def test_ends_are_sharpened_where_the_density_leaves_them_open():
    curvature = np.geomspace(1e-4, 1.0, 300)
    few = {"steps": 8, "probes": 1}
    found = classify(quadratic(curvature), np.zeros((1, 300)), method="lanczos", **few, **QUIET)
    assert found.kinds.tolist() == ["convex"]
    assert found.bounds[0, 0, 0] > 0.0


def test_a_saddle_whose_zeros_are_not_ruled_out_is_undecided():
    curvature = np.linspace(-1.0, 3.0, 600)
    found = classify(quadratic(curvature), np.zeros((1, 600)), method="lanczos", **QUIET)
    assert found.kinds.tolist() == ["undecided"]
    assert found.counts()["undecided"] == 1
    assert found.bounds[0, 0, 1] < 0 < found.bounds[0, 1, 0]
    assert abs(found.index[0] - 150) <= max(5 * found.index_error[0], 10)
    assert np.isnan(found.margins[0])


def test_a_saddle_is_found_where_all_eigenvalues_are():
    curvature = np.linspace(-2.0, 3.1, 40)
    found = classify(quadratic(curvature), np.zeros((1, 40)), method="lanczos", **QUIET)
    assert found.kinds.tolist() == ["saddle"]
    nearest = np.abs(curvature).min()
    assert found.bounds[0, 2] == pytest.approx([nearest, nearest], rel=1e-10)


@pytest.mark.parametrize("unit", [nn.Tanh, nn.ReLU])
def test_a_regression_network_agrees_with_the_exact_path(unit):
    land = regression(unit)
    points = np.random.default_rng(0).normal(size=(6, land.n_params)) / 2
    exact, found = both(land, points, rtol=1e-6)
    assert_consistent(exact, found)
    assert found.losses == pytest.approx(exact.losses, rel=1e-12)
    assert found.gradient_norms == pytest.approx(exact.gradient_norms, rel=1e-10)
    assert (np.abs(found.index - exact.index) <= 4 * found.index_error + 0.5).all()
    assert (np.abs(found.nullity - exact.nullity) <= 4 * found.nullity_error + 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_units_are_certified_singular(dtype):
    land = regression(nn.ReLU, dtype=dtype)
    theta = land.theta.clone()
    theta[72:84] = -50.0  # biases of the first layer: all of its units die
    exact, found = both(land, theta[None].double().numpy(), rtol=1e-5)
    assert exact.kinds.tolist() == found.kinds.tolist() == ["singular"]


def test_softmax_cross_entropy_is_certified_singular_by_the_shift_of_its_outputs():
    land = classifier()
    points = np.random.default_rng(0).normal(size=(5, land.n_params))
    found = classify(land, points, method="lanczos", steps=10, probes=2, **QUIET)
    assert found.rtol == land.n_params * float(torch.finfo(torch.float32).eps)
    assert found.kinds.tolist() == ["singular"] * 5
    op = as_operator(land)
    scale = float(torch.linalg.matrix_norm(land.hessian(), 2))
    assert null_residual(op) <= 10 * float(torch.finfo(torch.float32).eps) * scale


def test_a_point_that_is_not_finite_is_invalid_and_the_rest_is_answered():
    land = classifier()
    points = np.random.default_rng(0).normal(size=(3, land.n_params))
    points[1, 3] = np.nan
    found = classify(land, points, method="lanczos", steps=10, probes=2, **QUIET)
    assert found.kinds.tolist() == ["singular", "invalid", "singular"]
    assert found.index[1] == -1
    assert np.isnan(found.losses[1])


def test_large_models_go_to_lanczos_by_themselves():
    land = quadratic(np.linspace(1.0, 2.0, 2001))
    found = classify(land, np.zeros((2, 2001)), steps=20, probes=1, **QUIET)
    assert found.method == "lanczos"
    assert found.kinds.tolist() == ["convex"] * 2
    assert found.eigenvalues is None
    assert np.isnan(found.index_error).all()  # of one probe


def test_a_run_by_lanczos_is_kept_and_resumed(tmp_path, monkeypatch):
    import pylandscape.critical.lanczos_classifier as module

    land, path = quadratic(np.linspace(0.5, 2.0, 100)), tmp_path / "c.h5"
    points = np.random.default_rng(0).normal(size=(6, 100))
    options = {"method": "lanczos", "steps": 20, "probes": 1, **QUIET}
    whole = classify(land, points, **options)
    honest, calls = module.spectrum, []

    def spectrum(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(*args, **kwargs)

    monkeypatch.setattr(module, "spectrum", spectrum)
    monkeypatch.setattr("pylandscape.runs.chunks.next_size", lambda size, seconds: 1)
    with pytest.raises(KeyboardInterrupt):
        classify(land, points, path=path, **options)
    found = classify(land, points, path=path, **options)
    assert found.info["resumed"] == 3
    assert found.bounds.tobytes() == whole.bounds.tobytes()
