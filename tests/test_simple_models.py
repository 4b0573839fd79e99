"""Basins and their volumes, polynomial networks and interpolators, searches by a model."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.experiments import (
    BasinModel,
    Polynomial,
    find_interpolator,
    pbil,
    polynomial_network,
    relu_fit,
    solution_counts,
    volume_law,
)
from pylandscape.experiments.global_search import global_search

# ---------------------------------------------------------------------------------------- basins


def test_a_simple_basin_is_its_formula_and_a_collection_is_the_least():
    one = BasinModel(np.zeros(3), width=2.0)
    points = np.random.default_rng(0).standard_normal((5, 3))
    assert one(points) == pytest.approx(1 - np.exp(-(points**2).sum(1) / 4), rel=1e-12)
    two = BasinModel(np.array([[0.0, 0, 0], [3.0, 0, 0]]), width=2.0)
    assert (two(points) == np.minimum(one(points), BasinModel([3.0, 0, 0], 2.0)(points))).all()
    assert two(np.array([3.0, 0, 0])) == 0.0


def test_averages_within_a_basin_stay_below_the_larger_end_and_across_basins_rise_above_both():
    two = BasinModel(np.array([[0.0, 0.0], [4.0, 0.0]]))
    inside = two.line([0.0, 0.0], [1.5, 0.0])
    assert inside.values.max() <= max(inside.values[[0, -1]]) + 1e-12
    assert inside.values[100] == pytest.approx(1 - np.exp(-(0.75**2)), rel=1e-12)
    assert inside.values[100] < inside.values[-1]
    flank = BasinModel(np.zeros(1)).line([0.0], [3.0])  # a concave flank: above the mean
    assert flank.values[100] == pytest.approx(0.895, abs=1e-3)
    assert flank.values[[0, -1]].mean() == pytest.approx(0.5, abs=1e-3)
    across = two.line([0.2, 0.0], [3.8, 0.0])
    assert across.values[100] > max(across.values[[0, -1]])
    assert across.barrier > 0.5


def test_a_basin_fractal_has_walls_at_all_losses_and_the_simple_basin_none():
    def walls(model):
        values = model.grid((-1, 1, 4001)).values
        return values[1:-1][(values[1:-1] > values[:-2]) & (values[1:-1] >= values[2:])]

    assert len(walls(BasinModel(np.zeros(1)))) == 0
    few, many = (walls(BasinModel(np.zeros(1), ripples=0.4, octaves=k)) for k in (2, 5))
    assert len(many) > 3 * len(few) > 0
    assert many.min() < 0.5
    assert many.max() > 0.9
    assert BasinModel(np.zeros(1), ripples=0.4)(np.zeros(1)) == 0.0


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_model_is_drawn_over_its_first_parameters(axes):
    model = BasinModel(np.zeros(4))
    found = model.grid(*[(-1, 1, 5)] * axes)
    centre = (2,) * axes
    assert found.values[centre] == 0.0
    assert found.values.shape == (5,) * axes
    found.plot()


def test_volumes_follow_the_law_of_a_quadratic():
    found = volume_law(dimensions=(1, 2, 3, 10, 100), samples=8000)
    assert (np.abs(found.shares - found.expected) <= 4.5 * found.errors).all()
    assert found.expected[1] == pytest.approx(found.levels)
    assert found.shares[4, 4] == 0.0  # half the loss in 100 dimensions: 2^-50
    assert np.all(found.shares[:, -1] == 1.0)


def test_another_loss_does_not_follow_it():
    found = volume_law(lambda p: (p**2).sum(1) ** 2, dimensions=(2,), samples=4000)
    assert np.abs(found.shares - np.sqrt(found.levels)).max() < 0.05
    assert np.abs(found.shares - found.expected).max() > 0.15


def test_a_random_step_in_a_bowl_almost_never_leads_lower():
    n, r, sigma, count = 100, 1.0, 0.05, 40_000
    rng = np.random.default_rng(0)
    start = np.zeros(n)
    start[0] = r
    falls = (((start + sigma * rng.standard_normal((count, n))) ** 2).sum(1) < r**2).mean()
    phi = 0.5 * math.erfc(sigma * n / (2 * r) / math.sqrt(2))
    assert phi == pytest.approx(0.0062, abs=1e-4)
    assert falls == pytest.approx(phi, abs=4 * math.sqrt(phi / count) + 5e-4)


def test_volumes_are_kept_and_drawn(tmp_path):
    found = volume_law(dimensions=(2, 5), samples=100)
    found.save(tmp_path / "v.h5")
    assert (pl.load(tmp_path / "v.h5").shares == found.shares).all()
    assert len(found.plot().lines) >= 2


@pytest.mark.parametrize(
    ("ask", "named"),
    [
        (lambda: BasinModel(np.zeros((0, 2))), "centres"),
        (lambda: BasinModel([0.0], width=0.0), "width"),
        (lambda: BasinModel([0.0])(np.zeros((3, 2))), "theta"),
        (lambda: BasinModel([0.0]).grid((0, 1, 3), (0, 1, 3)), "axes"),
        (lambda: volume_law(levels=[0.5, 2.0]), "levels"),
        (lambda: volume_law(lambda p: -p[:, 0]), "loss"),
    ],
)
def test_models_that_make_no_sense_are_refused_by_name(ask, named):
    with pytest.raises(pl.InvalidArgument, match=named):
        ask()


# ----------------------------------------------------------------------------------- polynomials


def test_the_quadratic_nearest_to_relu_is_known():
    assert relu_fit(2) == pytest.approx([3 / 32, 1 / 2, 15 / 32], rel=1e-12)


@pytest.mark.parametrize(("degree", "radius"), [(1, 1.0), (2, 3.0), (5, 0.5)])
def test_a_fit_is_the_least_square_on_its_interval(degree, radius):
    x = np.linspace(-radius, radius, 200_001)
    basis = x[:, None] ** np.arange(degree + 1)
    best = np.linalg.lstsq(basis, np.maximum(x, 0), rcond=None)[0]
    assert relu_fit(degree, radius) == pytest.approx(best, rel=1e-3, abs=1e-4)
    module = Polynomial(degree=degree, radius=radius)
    t = torch.linspace(-1, 1, 7, dtype=torch.float64)
    want = sum(c * t.numpy() ** k for k, c in enumerate(module.coefficients))
    assert module(t).numpy() == pytest.approx(want, rel=1e-12, abs=1e-15)


def test_a_polynomial_network_is_one_of_its_weights_and_the_model_stays():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    found = polynomial_network(model.double(), degree=2)
    assert sum(isinstance(m, Polynomial) for m in found.modules()) == 2
    assert not any(isinstance(m, Polynomial) for m in model.modules())
    x = torch.randn(1, 3, dtype=torch.float64)
    state = {k: v.detach() for k, v in found.state_dict().items()}
    t = np.linspace(-1, 1, 15)
    values = [
        float(torch.func.functional_call(found, {k: s * v for k, v in state.items()}, (x,))[0, 0])
        for s in t
    ]  # of degree (1 2 + 1) 2 = 6 in a common factor of all weights
    fit = np.polynomial.polynomial.polyfit(t, values, 6)
    assert np.polynomial.polynomial.polyval(t, fit) == pytest.approx(values, abs=1e-9)
    with pytest.raises(pl.InvalidArgument, match="ReLU"):
        polynomial_network(nn.Linear(2, 2))


def test_the_papers_counts():
    counts = solution_counts(2, 4, 50_000)
    assert counts.shub_smale == 1e5
    assert counts.bezout == 2e5


def interpolating(activation, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), activation, nn.Linear(8, 1)).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    return pl.Landscape(model, "mse", (x, y))


@pytest.mark.parametrize("activation", [nn.Tanh(), Polynomial()])
def test_an_interpolator_has_as_many_zero_eigenvalues_as_theory_says(activation, tmp_path):
    land = interpolating(activation)
    found = find_interpolator(land)
    assert found.loss < 1e-24
    assert land.n_params == 41
    assert found.nullity == found.least_nullity == 35
    assert found.negative == 0
    assert found.rank == 6
    found.save(tmp_path / "i.h5")
    assert pl.load(tmp_path / "i.h5").nullity == 35
    assert len(found.plot().lines) == 3


def test_no_interpolator_is_said_with_how_far_it_came():
    torch.manual_seed(0)
    x, y = torch.randn(40, 2, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64)
    land = pl.Landscape(nn.Linear(2, 1).double(), "mse", (x, y))
    with pytest.raises(pl.InvalidArgument, match="40 equations"):
        find_interpolator(land, steps=20)


# -------------------------------------------------------------------------------------- searches


def sphere(points):
    return ((points - 0.5) ** 2).sum(axis=1)


def test_pbil_finds_the_minimum_of_a_sphere_and_random_search_is_slower():
    found = global_search(sphere, 2, evaluations=4000, runs=3, progress=False)
    assert found.final("pbil").max() < 1e-5
    assert np.median(found.final("random")) > 10 * found.final("pbil").max()
    assert found.theta[0] == pytest.approx(np.full((3, 2), 0.5), abs=5e-3)
    assert (np.diff(found.best, axis=2) <= 0).all()


def test_pbil_moves_towards_the_best_by_its_rate():
    rng = np.random.default_rng(0)
    stream = pbil(sphere, 2, rng, population=20, elite=4, rate=0.5)
    points, losses = next(stream)
    best = points[np.argsort(losses)[:4]]
    after, _ = next(stream)
    z = np.random.default_rng(0).standard_normal((40, 2))[20:]
    want = 0.5 * best.mean(0) + (0.5 + 0.5 * best.std(0)) * z
    assert after == pytest.approx(want, rel=1e-12)


def xor():
    torch.manual_seed(0)
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    return pl.Landscape(model, "mse", (x, torch.tensor([[0.0], [1], [1], [0]]).double()))


def test_searches_of_a_network_stand_beside_descent_and_go_on(tmp_path):
    options = {"runs": 2, "evaluations": 600, "progress": False}
    found = global_search(xor(), path=tmp_path / "s.h5", **options)
    assert found.methods == ["pbil", "random", "gradient"]
    assert np.isfinite(found.best).all()
    land = xor()
    for m in range(3):
        for r in range(2):
            assert land.loss(torch.tensor(found.theta[m, r])) == pytest.approx(
                found.best[m, r, -1], rel=1e-6
            )
    again = global_search(xor(), path=tmp_path / "s.h5", **options)
    assert (again.best == found.best).all()
    assert (global_search(xor(), **options).best == found.best).all()
    assert len(found.plot().lines) == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"methods": ["gradient"]}, "methods"),
        ({"methods": ["annealing"]}, "methods"),
        ({"elite": 51}, "elite"),
        ({"evaluations": 10}, "evaluations"),
        ({"rate": 0.0}, "rate"),
        ({"path": "x.h5"}, "path"),
    ],
)
def test_searches_that_make_no_sense_are_refused_by_name(options, named):
    with pytest.raises(pl.InvalidArgument, match=named):
        global_search(sphere, 2, progress=False, **options)
