"""Ultrametricity of end points, and fitness-distance correlation."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import pdist, squareform
from torch import nn

import pylandscape as pl

QUIET = {"progress": False}


def of_distances(d, **options):
    return pl.ultrametricity(d, metric="precomputed", **QUIET, **options)


def cloud(count, n, seed=0):
    return np.random.default_rng(seed).standard_normal((count, n))


def test_the_distances_of_a_tree_have_the_indices_0_0_1_0():
    tree = squareform(cophenet(linkage(pdist(cloud(30, 5)), "average")))
    found = of_distances(tree, clouds=10)
    assert found.indices == pytest.approx([0.0, 0.0, 1.0, 0.0], abs=1e-12)
    assert found.shares[0] == 1.0
    assert found.score < -2.0  # further from Gaussian clouds than their spread


def test_equilateral_triangles_count_as_ultrametric():
    found = of_distances(np.ones((5, 5)) - np.eye(5), clouds=0)
    assert found.s == found.gap == found.rammal == 0.0
    assert np.isnan(found.correlation)
    assert np.isnan(found.score)


@pytest.mark.parametrize(("n", "s"), [(2, 0.42), (10, 0.48), (50, 0.48)])
def test_gaussian_clouds_have_the_known_s_whatever_the_dimension(n, s):
    found = pl.ultrametricity(cloud(80, n), clouds=0, **QUIET)
    assert found.s == pytest.approx(s, abs=0.02)
    assert found.errors[0] < 0.02


def test_the_other_ratio_collapses_with_the_dimension():
    gaps = [pl.ultrametricity(cloud(60, n), clouds=0, **QUIET).gap for n in (2, 3000)]
    assert gaps[0] == pytest.approx(0.21, abs=0.03)
    assert gaps[1] == pytest.approx(0.011, abs=0.003)


def test_a_gaussian_cloud_lies_within_its_matched_clouds():
    found = pl.ultrametricity(cloud(40, 6) * [1, 1, 1, 1, 5, 5], clouds=30, **QUIET)
    assert abs(found.score) < 3.0
    assert abs(found.gap - found.null[:, 1].mean()) < 4 * found.null[:, 1].std()
    assert found.null_shares.sum(axis=1) == pytest.approx(1.0)


def test_indices_are_those_of_a_loop_over_triangles():
    d = squareform(pdist(cloud(9, 3)))
    sides = np.array([
        sorted([d[i, j], d[j, k], d[i, k]])
        for i in range(9) for j in range(i) for k in range(j)
    ])  # fmt: skip
    low, mid, top = sides.T
    found = of_distances(d, clouds=0)
    assert found.s == pytest.approx(((top - mid) / (top - low)).mean(), rel=1e-12)
    assert found.gap == pytest.approx(((top - mid) / top).mean(), rel=1e-12)
    assert found.correlation == pytest.approx(np.corrcoef(top, mid)[0, 1], rel=1e-9)
    u = squareform(cophenet(linkage(squareform(d), "single")))
    assert found.rammal == pytest.approx((d - u).sum() / d.sum(), rel=1e-12)


def test_the_jackknife_error_is_the_spread_over_samples():
    found = [pl.ultrametricity(cloud(25, 5, seed), clouds=0, **QUIET) for seed in range(40)]
    spread = np.std([f.indices for f in found], axis=0)
    mean = np.mean([f.errors for f in found], axis=0)
    assert (np.abs(np.log(mean / spread)) < np.log(1.6)).all()


def test_images_under_the_group_are_one_point_in_the_quotient():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    group = pl.EquioutputGroup(model)
    base = cloud(4, group.n)
    moved = np.concatenate([
        group.apply(element, base) for element in group.random_elements(3, seed=1)
    ])  # fmt: skip
    for metric in ("canonical", "quotient"):
        found = pl.ultrametricity(moved, metric=metric, group=group, clouds=2, **QUIET)
        assert found.distances[0, 4] < 1e-7
        assert found.distances[0, 1] > 0.1
        assert found.null.shape == (2, 4)
    plain = pl.ultrametricity(moved, clouds=0, **QUIET)
    assert plain.distances[0, 4] > 0.1


def test_models_runs_and_points_are_taken_alike(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None].repeat(1, 2)
    land = pl.Landscape(model, "mse", (x, x[:, :1] ** 2))
    runs = pl.train(land, 4, pl.SGD(lr=0.1), steps=5, metrics=(), progress=False)
    ends = pl.ultrametricity(runs.ends(), clouds=3, **QUIET)
    assert (pl.ultrametricity(runs, clouds=3, **QUIET).null == ends.null).all()
    assert (pl.ultrametricity(runs[:], clouds=3, **QUIET).indices == ends.indices).all()
    states = [runs[p][-1] for p in range(4)]
    assert pl.ultrametricity(states, clouds=0, **QUIET).indices == pytest.approx(ends.indices)
    ends.save(tmp_path / "u.h5")
    again = pl.load(tmp_path / "u.h5")
    assert (again.distances == ends.distances).all()
    assert repr(again) == repr(ends)


@pytest.mark.parametrize(
    ("given", "options", "named"),
    [
        (np.zeros((2, 3)), {}, "models: expected at least 3"),
        (np.full((4, 3), np.nan), {}, "model 0"),
        (np.ones((4, 4)), {"metric": "precomputed"}, "diagonal"),
        (np.triu(np.ones((4, 4)), 1), {"metric": "precomputed"}, "symmetric"),
        (np.ones((4, 3)), {"metric": "precomputed"}, r"\(P, P\)"),
        (np.zeros((4, 3)), {"metric": "quotient"}, "group: expected an EquioutputGroup"),
        (np.zeros((4, 3)), {"metric": "cosine"}, "metric"),
        (np.zeros((4, 3)), {"clouds": -1}, "clouds"),
    ],
)
def test_what_is_no_set_of_points_is_refused_by_name(given, options, named):
    with pytest.raises(pl.InvalidArgument, match=named):
        pl.ultrametricity(given, progress=False, **options)


def test_the_tree_and_the_histogram_draw_themselves():
    left, right = pl.ultrametricity(cloud(12, 4), clouds=4, **QUIET).plot(title="ends")
    assert len(left.patches) == 20
    assert len(right.lines) == 11  # P - 1 joins


# ------------------------------------------------------------------ fitness-distance correlation


def bowl(n):
    """L(theta) = ‖theta‖^2 / 2."""
    return pl.from_function(lambda theta: 0.5 * float(theta["x"] @ theta["x"]), {"x": np.zeros(n)})


@pytest.mark.parametrize(("n", "r"), [(1, 0.968), (2, 0.980), (5, 0.992)])
def test_a_quadratic_over_the_ball_has_the_known_correlation(n, r):
    found = pl.fitness_distance(bowl(n), np.zeros(n), 4000, radius=2.0, draw="ball", **QUIET)
    moments = [n / (n + k) for k in (1, 2, 3, 4)]  # E[R^k] of the unit ball
    exact = (moments[2] - moments[0] * moments[1]) / np.sqrt(
        (moments[1] - moments[0] ** 2) * (moments[3] - moments[1] ** 2)
    )
    assert exact == pytest.approx(r, abs=1e-3)
    assert found.r == pytest.approx(exact, abs=4 * found.standard_error + 1e-3)


def test_distance_itself_has_1_its_negative_has_minus_1_and_a_constant_has_none():
    d = np.random.default_rng(0).uniform(size=200)
    assert pl.FitnessDistance(d, d).r == pytest.approx(1.0)
    assert pl.FitnessDistance(d, 3.0 - 2.0 * d).r == pytest.approx(-1.0)
    assert np.isnan(pl.FitnessDistance(d, np.full(200, 0.3)).r)
    assert np.isnan(pl.FitnessDistance(d, np.where(d < 0.5, np.inf, d)).r)


def teacher():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(50, 3, dtype=torch.float64)
    return model, pl.Landscape(model, "mse", (x, model(x).detach()))


def test_a_students_loss_is_zero_at_the_teacher_and_the_nearest_image_is_no_further():
    model, land = teacher()
    group = pl.EquioutputGroup(model)
    found = pl.fitness_distance(land, points=100, draw="box", radius=1.0, group=group, **QUIET)
    assert land.loss() < 1e-30
    assert (found.nearest <= found.distances + 1e-12).all()
    assert found.nearest.mean() < 0.9 * found.distances.mean()
    assert (found.losses == land.losses(points=np.random.default_rng(0).uniform(
        -1.0, 1.0, (100, land.n_params)
    ))).all()  # fmt: skip


def test_a_stopped_run_goes_on_and_other_requests_are_refused(tmp_path):
    _, land = teacher()
    options = {"points": 40, "progress": False}
    first = pl.fitness_distance(land, path=tmp_path / "f.h5", **options)
    again = pl.fitness_distance(land, path=tmp_path / "f.h5", **options)
    assert (again.losses == first.losses).all()
    assert again.nearest is None
    assert (first.losses == pl.fitness_distance(land, **options).losses).all()
    with pytest.raises(pl.ResumeMismatch):
        pl.fitness_distance(land, path=tmp_path / "f.h5", seed=1, **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"draw": "cube"}, "draw"),
        ({"radius": -1.0}, "radius"),
        ({"points": 2}, "points"),
        ({"points": np.zeros((5, 2))}, "points: expected shape"),
        ({"points": np.full((5, 21), np.inf)}, "points: expected finite"),
        ({"group": pl.EquioutputGroup([(2, 2), (2, 1)])}, "group"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(options, named):
    _, land = teacher()
    with pytest.raises(pl.InvalidArgument, match=named):
        pl.fitness_distance(land, progress=False, **options)


def test_the_scatter_draws_itself():
    model, land = teacher()
    group = pl.EquioutputGroup(model)
    axes = pl.fitness_distance(land, points=30, group=group, **QUIET).plot()
    assert len(axes.collections) == 2
