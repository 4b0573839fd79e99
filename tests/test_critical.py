"""Finding critical points: against closed forms, certificates, merging, resuming, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.critical import search
from pylandscape.critical.find import find_critical_points
from pylandscape.critical.linear_networks import linear_network
from pylandscape.critical.symmetry import EquioutputGroup
from pylandscape.experiments.theorems import XOR_UPPER, xor_landscape

EPS = np.finfo(np.float64).eps
QUIET = {"progress": False}


def network(hidden: int = 2):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 4))
    y = x @ rng.standard_normal((4, 3)) + rng.standard_normal((30, 3))
    return linear_network(x, y, hidden)


class Polynomial(nn.Module):
    """f(a, b) = (a^2 - 1)^2 / 4 + b^2 / 2 - b^4 / 40: known critical points, no symmetry group."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        a, b = self.theta
        return (a**2 - 1.0) ** 2 / 4.0 + b**2 / 2.0 - b**4 / 40.0 + 0.0 * x.sum()


def polynomial() -> pl.Landscape:
    data = [torch.zeros(1, 1, dtype=torch.float64)]
    return pl.Landscape(Polynomial(), objective=lambda model, batch: model(batch), data=data)


def grid(points: int = 7) -> np.ndarray:
    axis = np.linspace(-3.3, 3.4, points)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize("method", ["newton", "gradient_norm"])
@pytest.mark.parametrize("solver", ["exact", "products"])
def test_every_critical_point_of_a_polynomial_is_found(method, solver):
    starts = grid(7 if solver == "exact" else 5)
    found = find_critical_points(polynomial(), starts, method, solver=solver, **QUIET)

    wanted = [(a, b) for a in (-1.0, 0.0, 1.0) for b in (-np.sqrt(10.0), 0.0, np.sqrt(10.0))]
    assert len(found) == 9
    far = np.abs(found.points[:, None] - np.array(wanted)).max(axis=2).min(axis=0)
    assert far.max() < 1e-9
    assert found.gradient_norms.max() <= 1e-10
    if solver == "exact":
        assert found.counts() == {"convex": 2, "saddle": 5, "concave": 2}
        curvature = {(True, True): 0, (True, False): 1, (False, True): 1, (False, False): 2}
        for point, index in zip(found.points, found.index, strict=True):
            assert index == curvature[(abs(point[0]) > 0.5, abs(point[1]) < 0.5)]
        assert (found.certificates == "isolated").all()


def test_certificate_bounds_the_distance_to_the_true_point():
    found = find_critical_points(polynomial(), [0.9, 0.1], tol=1e-2, **QUIET)
    distance = np.linalg.norm(found.points[0] - [1.0, 0.0])
    assert distance <= found.radius[0] + 4 * EPS
    # H = diag(2, 1) there: beta = 1, and sqrt(g^T H^-1 g) of what is left of the gradient
    assert found.beta[0] == pytest.approx(1.0, rel=1e-6)
    np.testing.assert_allclose(found.extremes[0], [1.0, 2.0], rtol=1e-6)


def test_lipschitz_estimate_is_that_of_a_cubic():
    # Third derivatives at (1, 0): 6 along a, 0 along b; the sampled directions see up to 6 |u_a|.
    found = find_critical_points(polynomial(), [1.1, 0.0], samples=50, **QUIET)
    assert 5.0 < found.lipschitz[0] < 6.1


def test_without_samples_there_is_no_certificate():
    found = find_critical_points(polynomial(), [1.1, 0.0], samples=0, **QUIET)
    assert found.certificates.tolist() == ["none"]
    assert np.isnan(found.lipschitz).all()


@pytest.mark.parametrize("method", ["newton", "gradient_norm"])
def test_starts_beside_saddles_of_a_linear_network_go_there(method):
    net = network()
    noise = np.random.default_rng(1).standard_normal(net.points.shape)

    found = find_critical_points(
        net.land, net.points + 1e-3 * noise, method, dedupe=False, rtol=1e-9, **QUIET
    )

    assert found.outcome_counts() == {"converged": len(net.sets)}
    np.testing.assert_allclose(found.final_losses, net.losses, rtol=1e-9)
    places = found.starts
    np.testing.assert_array_equal(found.index[places], net.index)
    np.testing.assert_array_equal(found.nullity[places], net.nullity)
    assert set(found.certificates[net.nullity[np.argsort(places)] > 0]) <= {"range", "none"}


def test_products_reach_the_same_saddles_as_exact_hessians():
    net = network()
    starts = net.points + 1e-3 * np.random.default_rng(1).standard_normal(net.points.shape)
    exact = find_critical_points(net.land, starts, dedupe=False, **QUIET)
    products = find_critical_points(net.land, starts, dedupe=False, solver="products", **QUIET)
    np.testing.assert_allclose(products.final_losses, exact.final_losses, rtol=1e-9)
    assert products.eigenvalues is None
    np.testing.assert_allclose(products.extremes[:, 1], exact.extremes[:, 1], rtol=1e-2)


def test_float32_products_reach_float64_gradients():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(200, 3), torch.randn(200, 1)
    land = pl.Landscape(model, "mse", (x, y))
    start = np.concatenate([np.zeros(20), [float(y.mean())]]) + 1e-2
    found = find_critical_points(land, start, solver="products", **QUIET)
    assert found.outcome_counts() == {"converged": 1}
    assert found.gradient_norms[0] <= 1e-10


def test_images_are_merged_modulo_symmetry_and_counted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    x = torch.linspace(-2, 2, 12, dtype=torch.float64)[:, None]
    land = pl.Landscape(model, "mse", (x, torch.sin(2.0 * x) + 0.3))
    group = EquioutputGroup(land)
    starts = group.images(np.array([2.0, -0.7, 0.3, 0.5, 1.1, 0.8, 0.2]))

    plain = find_critical_points(land, starts, max_iter=400, **QUIET)
    merged = find_critical_points(land, starts, max_iter=400, dedupe="symmetry", **QUIET)
    given = find_critical_points(land, starts, max_iter=400, dedupe=group, **QUIET)

    assert plain.outcome_counts() == {"converged": 8}
    assert len(plain) == 8
    assert len(merged) == len(given) == 1
    assert merged.multiplicity.tolist() == [8]
    assert (merged.starts == 0).all()


def test_coinciding_points_are_merged_and_counted():
    found = find_critical_points(polynomial(), [[0.9, 0.1], [1.1, -0.1], [0.1, 0.1]], **QUIET)
    assert found.multiplicity.tolist() == [2, 1]
    assert found.starts.tolist() == [0, 0, 1]
    every = find_critical_points(polynomial(), [[0.9, 0.1], [1.1, -0.1]], dedupe=False, **QUIET)
    assert len(every) == 2


def test_xor_has_its_two_levels_and_runaways_are_flat_not_critical():
    land = xor_landscape()
    starts = 2.0 * np.random.default_rng(1).standard_normal((12, 9))

    found = find_critical_points(
        land, np.concatenate([starts, [XOR_UPPER], np.zeros((1, 9))]), rtol=1e-9, **QUIET
    )

    assert [round(level, 5) for level, _ in found.levels(1e-6)] == [0.25, 0.28235]
    assert (found.kinds == "singular").all()
    assert found.outcome_counts()["flat"] > 0
    assert found.starts[-1] >= 0  # theta = 0 is critical itself


def test_points_whose_hessian_vanishes_are_flat():
    class Quartic(Polynomial):
        def forward(self, x):
            return (self.theta**4).sum() + 0.0 * x.sum()

    data = [torch.zeros(1, 1, dtype=torch.float64)]
    land = pl.Landscape(Quartic(), objective=lambda model, batch: model(batch), data=data)
    found = find_critical_points(land, np.zeros(2), **QUIET)
    assert found.outcomes.tolist() == ["flat"]
    assert len(found) == 0


def test_stationary_points_of_the_norm_alone_are_stalled():
    class Bump(Polynomial):  # f' = 1 + a^2 has no zero; |f'| is least at 0, where f'' = 0
        def forward(self, x):
            a, b = self.theta
            return a + a**3 / 3.0 + b**2 / 2.0 + 0.0 * x.sum()

    data = [torch.zeros(1, 1, dtype=torch.float64)]
    land = pl.Landscape(Bump(), objective=lambda model, batch: model(batch), data=data)
    for method in ("newton", "gradient_norm"):
        found = find_critical_points(land, [0.5, 0.5], method, max_iter=500, **QUIET)
        assert found.outcomes.tolist() == ["stalled"]
        assert found.final_norms[0] == pytest.approx(1.0, rel=1e-6)


def test_starts_that_are_not_finite_or_leave_are_reported_and_the_rest_answered():
    starts = np.array([[np.nan, 0.0], [0.9, 0.1], [1e200, 0.0], [40.0, 0.0]])
    found = find_critical_points(polynomial(), starts, bound=20.0, **QUIET)
    assert found.outcomes.tolist() == ["not finite", "converged", "not finite", "far"]
    assert found.starts.tolist() == [-1, 0, -1, -1]


def test_no_converged_start_gives_an_empty_set():
    found = find_critical_points(polynomial(), [[np.nan, 0.0]], **QUIET)
    assert len(found) == 0
    assert found.counts() == {}
    assert "0 points" in repr(found)
    assert found.levels() == []


def test_a_spent_budget_is_reported():
    found = find_critical_points(polynomial(), [0.5, 3.0], max_iter=1, **QUIET)
    assert found.outcomes.tolist() == ["exhausted"]


@pytest.mark.parametrize("solver", ["exact", "products"])
def test_files_give_back_the_same_set(tmp_path, solver):
    path = tmp_path / "c.h5"
    land, starts = polynomial(), grid(4)
    found = find_critical_points(land, starts, solver=solver, path=path, **QUIET)

    read = pl.load(path)

    assert repr(read) == repr(found)
    for name in found.ARRAYS:
        mine, theirs = getattr(found, name), getattr(read, name)
        if mine is None:
            assert theirs is None
        else:
            np.testing.assert_array_equal(theirs, mine)
            assert theirs.dtype.kind == mine.dtype.kind
    assert read.table() == found.table()


def test_an_empty_set_is_saved_too(tmp_path):
    found = find_critical_points(polynomial(), [[np.nan, 0.0]], path=tmp_path / "c.h5", **QUIET)
    assert repr(pl.load(tmp_path / "c.h5")) == repr(found)


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path, monkeypatch):
    land, starts, path = polynomial(), grid(5), tmp_path / "c.h5"
    whole = find_critical_points(land, starts, **QUIET)
    steps, ask = [], search.DenseSearch.advance

    def stopping(self, at):
        steps.append(len(at))
        if len(steps) == 4:
            raise KeyboardInterrupt
        ask(self, at)

    monkeypatch.setattr(search.DenseSearch, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        find_critical_points(land, starts, path=path, **QUIET)
    monkeypatch.setattr(search.DenseSearch, "advance", ask)
    again = find_critical_points(land, starts, path=path, **QUIET)

    np.testing.assert_array_equal(again.points, whole.points)
    np.testing.assert_array_equal(again.iterations, whole.iterations)


def test_a_file_of_another_request_is_refused(tmp_path):
    land, path = polynomial(), tmp_path / "c.h5"
    find_critical_points(land, [0.9, 0.1], path=path, **QUIET)
    with pytest.raises(pl.ResumeMismatch):
        find_critical_points(land, [0.9, 0.2], path=path, **QUIET)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "bfgs"}, "method: expected one of"),
        ({"solver": "dense"}, "solver: expected one of"),
        ({"tol": 0.0}, "tol: expected a positive number"),
        ({"tol": "small"}, "tol: expected a positive number"),
        ({"max_iter": 0}, "max_iter: expected at least 1, got 0"),
        ({"samples": 1.5}, "samples: expected an integer"),
        ({"bound": -1.0}, "bound: expected a positive number"),
        ({"dedupe": "all"}, "dedupe: expected True"),
        ({"dedupe": EquioutputGroup([(2, 2), (2, 1)])}, "dedupe: expected the group of a network"),
        ({"dedupe": "symmetry"}, "Linear layer"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(options, match):
    with pytest.raises(pl.InvalidArgument, match=match):
        find_critical_points(polynomial(), [0.9, 0.1], **{**QUIET, **options})


def test_starts_of_another_length_are_refused():
    with pytest.raises(pl.InvalidArgument, match="points: expected shape"):
        find_critical_points(polynomial(), np.zeros((3, 5)), **QUIET)
