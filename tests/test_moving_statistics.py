"""bn="interpolate": running statistics that move along with the parameters, in both engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.results.mixtures import barycentric_weights, bilinear_weights
from pylandscape.theta.directions import as_steps

EPS = torch.finfo(torch.float64).eps


def samples(count: int = 30) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    x = torch.randn(count, 4, generator=g, dtype=torch.float64)
    return x, torch.randint(0, 3, (count,), generator=g)


def network(seed: int, affine: bool = True) -> nn.Sequential:
    """Two batch norms, one in the middle and one at the end, with statistics of their own."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, affine=affine), nn.Tanh(),
        nn.Linear(6, 3), nn.BatchNorm1d(3),
    ).double()  # fmt: skip
    for norm in (model[1], model[4]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return model.eval()


def own_loss(model: nn.Module) -> float:
    x, y = samples()
    with torch.no_grad():
        return F.cross_entropy(model(x), y).item()


@pytest.fixture(params=["torch", "native"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Engine, "name", request.param)


class _Engine:
    name = "torch"  # of the landscapes under test


def landscape(model: nn.Module, **options: Any) -> pl.Landscape:
    options = {"bn": "interpolate", "engine": _Engine.name, **options}
    return pl.Landscape(model, "cross_entropy", samples(), **options)


def between(a: nn.Module, b: nn.Module, alpha: float) -> nn.Module:
    """A copy of ``a`` whose parameters and statistics are (1 - alpha) a + alpha b."""
    mixed, other = network(0), b.state_dict()
    state = {
        name: (1 - alpha) * t + alpha * other[name] if t.is_floating_point() else t
        for name, t in a.state_dict().items()
    }
    mixed.load_state_dict(state)
    return mixed.eval()


def test_a_vertex_has_the_loss_of_its_own_model_and_the_points_between_mixed_statistics() -> None:
    a, b = network(0), network(1)
    land = landscape(a)
    curve = pl.interpolate(land, [a, b.state_dict()], (-0.25, 1.25, 7), progress=False)
    want = [own_loss(between(a, b, alpha)) for alpha in curve.x]
    assert np.allclose(curve.values, want, rtol=200 * EPS, atol=0)
    at = {float(x): v for x, v in zip(curve.x, curve.values, strict=True)}
    assert at[0.0] == pytest.approx(own_loss(a), rel=10 * EPS)
    assert at[1.0] == pytest.approx(own_loss(b), rel=10 * EPS)
    assert curve.info["vertex_losses"] == pytest.approx([at[0.0], at[1.0]], rel=10 * EPS)
    fixed = pl.Landscape(a, "cross_entropy", samples(), engine="torch")
    assert fixed.loss(b) == pytest.approx(own_loss(b), rel=10 * EPS)  # by its own statistics
    parameters = pl.Landscape(b, "cross_entropy", samples(), engine="torch").theta
    assert abs(fixed.loss(parameters) - own_loss(b)) > 1e-3  # the statistics matter


@pytest.mark.parametrize("count", [3, 4])
def test_three_and_four_solutions_mix_their_statistics_with_the_same_weights(count: int) -> None:
    models = [network(seed) for seed in range(count)]
    land = landscape(models[0])
    axis = np.array([0.0, 0.4, 1.0])
    surface = pl.interpolate(land, models, axis, axis, progress=False)
    mesh = np.meshgrid(axis, axis, indexing="ij")
    weights = (barycentric_weights if count == 3 else bilinear_weights)(*(m.ravel() for m in mesh))
    states = [model.state_dict() for model in models]
    for w, value in zip(weights, surface.values.ravel(), strict=True):
        mixed = network(0)
        mixed.load_state_dict(
            {
                name: sum(c * s[name] for c, s in zip(w, states, strict=True))
                if states[0][name].is_floating_point()
                else states[0][name]
                for name in states[0]
            }
        )
        assert value == pytest.approx(own_loss(mixed), rel=200 * EPS)


def test_a_target_direction_carries_the_statistics_and_a_random_one_leaves_them() -> None:
    a, b = network(0), network(1)
    land, fixed = landscape(a), pl.Landscape(a, "cross_entropy", samples(), engine="torch")
    towards = pl.target_direction(land, b)
    curve = pl.line(land, towards, np.array([0.0, 0.5, 1.0]), progress=False)
    want = [own_loss(a), own_loss(between(a, b, 0.5)), own_loss(b)]
    assert np.allclose(curve.values, want, rtol=200 * EPS, atol=0)
    assert curve.info["center_loss"] == pytest.approx(curve.info["model_loss"], rel=10 * EPS)

    random, across = pl.random_directions(land, 2)
    c = np.linspace(-1, 1, 5)[:, None]
    want = fixed.losses(c, random)
    assert np.allclose(land.losses(c, random), want, rtol=100 * EPS, atol=0)
    assert np.allclose(land.losses(c, random.vector.numpy()), want, rtol=100 * EPS, atol=0)
    plane = pl.plane(land, towards, across, np.array([0.0, 1.0]), np.array([0.0]), progress=False)
    assert plane.values[1, 0] == pytest.approx(own_loss(b), rel=200 * EPS)


def test_a_theta_brings_its_own_statistics_where_it_has_them() -> None:
    a, b = network(0), network(1)
    land, fixed = landscape(a), pl.Landscape(b, "cross_entropy", samples(), engine="torch")
    d = pl.random_directions(land, 1, theta=b)[0]
    assert land.loss() == pytest.approx(own_loss(a), rel=10 * EPS)
    assert land.loss(b) == pytest.approx(own_loss(b), rel=10 * EPS)
    parameters = fixed.theta  # alone they say nothing of statistics
    with_mine = pl.Landscape(a, "cross_entropy", samples(), engine="torch").loss(parameters)
    assert land.loss(parameters) == pytest.approx(with_mine, rel=10 * EPS)
    curve = pl.line(land, d, (-1, 1, 3), theta=b.state_dict(), progress=False)
    assert np.allclose(curve.values, fixed.losses(curve.x[:, None], d), rtol=100 * EPS, atol=0)


def test_derivatives_are_those_of_the_parameters_with_the_statistics_held() -> None:
    a, b = network(0), network(1)
    land = landscape(a)
    for model, theta in ((a, None), (b, b)):
        fixed = pl.Landscape(model, "cross_entropy", samples(), engine="torch")
        v = torch.randn(2, land.n_params, generator=torch.Generator().manual_seed(0)).double()
        pairs = [
            (land.gradient(theta), fixed.gradient()),
            (land.hvp(v, theta), fixed.hvp(v)),
            (land.hvp(v[0], theta), fixed.hvp(v[0])),
            (land.gauss_newton_product(v, theta), fixed.gauss_newton_product(v)),
            (land.covariance_product(v, theta), fixed.covariance_product(v)),
            (land.per_sample_gradients(theta), fixed.per_sample_gradients()),
            (land.linear_operator(theta) @ v[0].numpy(), fixed.linear_operator() @ v[0].numpy()),
        ]
        for got, want in pairs:
            assert got.shape == want.shape
            got, want = torch.as_tensor(got), torch.as_tensor(want)
            assert float((got - want).abs().max()) <= 1000 * EPS * float(want.abs().max())
    found = pl.eigenpairs(land, 1, progress=False)
    assert found.vectors.shape == (1, land.n_params)


def test_a_negative_variance_gives_nan_for_every_metric_and_is_counted() -> None:
    a, b = network(0), network(1)
    a[1].running_var.fill_(1.0)
    b[1].running_var.fill_(1.0)
    b[1].running_var[2] = 0.5  # 1 - alpha / 2: zero at 2, negative beyond
    b[4].running_var.copy_(a[4].running_var)  # nothing else turns negative
    land = landscape(a)
    axis = np.array([0.0, 1.0, 2.0, 2.0 + 1e-9, 3.0])
    curve = pl.interpolate(land, [a, b], axis, metrics=["accuracy"], progress=False)
    assert np.isfinite(curve.values[:3]).all()
    assert np.isnan(curve.values[3:]).all()
    assert np.isnan(curve.metrics["accuracy"][3:]).all()
    assert curve.info["negative_variance"] == 2 == curve.info["nonfinite"]
    found = {f.name: f for f in curve.check().findings}
    assert "2 of them because interpolated variances are negative" in found["finite"].message
    points = torch.stack([land.origin, land.origin])
    points[1, -3:] = -1e-7  # within epsilon of a variance that would give a number
    assert np.isfinite(land.losses(points=points)).tolist() == [True, False]
    assert not torch.isfinite(land.gradient(points[1])).any()


def test_what_has_no_statistics_is_refused_where_they_are_needed() -> None:
    a, b = network(0), network(1)
    land, fixed = landscape(a), pl.Landscape(a, "cross_entropy", samples(), engine="torch")
    theta = fixed.theta
    with pytest.raises(pl.InvalidArgument, match=r"vertices\[1\]: .*module or a state dict.*alone"):
        pl.interpolate(land, [a, theta], progress=False)
    with pytest.raises(pl.InvalidArgument, match=r"target: .*module or a state dict"):
        pl.target_direction(land, theta)
    with pytest.raises(pl.LayoutMismatch, match=r"expected the buffer '1\.running_mean'"):
        pl.target_direction(land, dict(b.named_parameters()))
    towards = pl.Direction(torch.ones_like(theta), {"kind": "target"})
    with pytest.raises(pl.InvalidArgument, match=r"direction: .*moves the running statistics too"):
        pl.line(land, towards, progress=False)
    with pytest.raises(pl.InvalidArgument, match=r"normalize: .*moves running statistics"):
        pl.target_direction(land, b, normalize="filter")
    wrong = pl.Direction(theta, {}, torch.zeros(2))
    with pytest.raises(pl.LayoutMismatch, match=r"expected \(18,\) running statistics, got \(2,\)"):
        land.losses([[0.0]], wrong)
    with pytest.raises(pl.InvalidArgument, match="points: expected shape"):
        land.losses(points=torch.zeros(1, land.n_params + 1))
    broken = b.state_dict()
    broken["1.running_var"][0] = torch.inf
    with pytest.raises(pl.InvalidArgument, match="target: expected finite"):
        pl.target_direction(land, broken)


def test_ignored_norms_keep_their_statistics() -> None:
    a, b = network(0), network(1)
    land = landscape(a)
    every = pl.target_direction(land, b)
    one = pl.target_direction(land, b, ignore=("1.*",))
    assert not one.statistics[:12].any()
    assert torch.equal(one.statistics[12:], every.statistics[12:])
    assert not pl.target_direction(land, b, ignore=("norm",)).statistics.any()


def test_statistics_move_where_their_names_match_params() -> None:
    a, b = network(0), network(1)
    land = landscape(a, params=("1.*", "0.*"))
    mixed = network(0)
    mixed.load_state_dict(
        {**a.state_dict(), **{k: v for k, v in b.state_dict().items() if k[0] in "01"}}
    )
    rows, _ = as_steps(land, pl.target_direction(land, mixed))
    assert rows.shape == (1, land.n_params + 12)
    assert land.loss(mixed) == pytest.approx(own_loss(mixed), rel=10 * EPS)
    with pytest.raises(pl.InvalidArgument, match=r"theta: .*outside theta .*'3\.weight' differs"):
        land.loss(b)
    weights = landscape(a, params=("*.weight",))
    assert weights.moved is weights.layout  # no statistics match: nothing but theta moves


def test_a_model_without_running_statistics_is_evaluated_as_ever() -> None:
    x, y = samples()
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 3)).double()
    assert landscape(plain).losses([[0.5]], torch.ones(1, 15)) == pytest.approx(
        pl.Landscape(plain, "cross_entropy", (x, y), engine="torch").losses(
            [[0.5]], torch.ones(1, 15)
        )
    )
    own = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    assert landscape(own).loss() == pytest.approx(own_loss(own), rel=10 * EPS)


def test_a_shared_batch_norm_moves_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.BatchNorm1d(4)
            self.out = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.second(torch.tanh(self.first(x))))

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = Shared().double()
        model.first.running_mean.normal_()
        return model.eval()

    a, b = make(0), make(1)
    land = landscape(a)
    assert land.moved.n - land.n_params == 8
    assert land.loss(b) == pytest.approx(own_loss(b), rel=10 * EPS)
    state = {k: v for k, v in b.state_dict().items() if not k.startswith("first")}
    assert land.loss(state) == pytest.approx(own_loss(b), rel=10 * EPS)  # under either name


def test_a_file_belongs_to_the_statistics_too(tmp_path) -> None:
    a, b = network(0), network(1)
    path = tmp_path / "between.h5"
    first = pl.interpolate(landscape(a), [a, b], (0, 1, 5), path=path, progress=False)
    again = pl.interpolate(landscape(a), [a, b], (0, 1, 5), path=path, progress=False)
    assert np.array_equal(first.values, again.values)
    assert "interpolated like the parameters" in str(again.check())
    assert again.check().ok
    b[1].running_mean[0] += 1e-3
    with pytest.raises(pl.ResumeMismatch, match="digest"):
        pl.interpolate(landscape(a), [a, b], (0, 1, 5), path=path, progress=False)
    fixed = pl.Landscape(a, "cross_entropy", samples(), engine="torch")
    with pytest.raises(pl.ResumeMismatch, match="bn: file 'interpolate', request 'eval'"):
        pl.interpolate(fixed, [a, fixed.theta], (0, 1, 5), path=path, progress=False)
    moved = network(0)
    moved[1].running_mean[0] += 1e-3
    random = pl.random_directions(landscape(a), 1)[0]
    path = tmp_path / "line.h5"
    pl.line(landscape(a), random, (-1, 1, 3), path=path, progress=False)
    with pytest.raises(pl.ResumeMismatch, match="theta"):
        pl.line(landscape(moved), random, (-1, 1, 3), path=path, progress=False)


def test_directions_of_a_picture_are_found_again_and_convexity_moves_statistics() -> None:
    a, b = network(0), network(1)
    land = landscape(a)
    picture = pl.plane(land, *pl.random_directions(land, 2), (-1, 1, 3), (-1, 1, 3), progress=False)
    assert pl.hidden_curvature(land, picture, progress=False).curvatures.shape == (2,)
    steps = (pl.target_direction(land, b), pl.random_directions(land, 1)[0])
    at = np.array([1.0])
    found = pl.convexity(land, *steps, at, np.array([0.0]), progress=False)
    own = pl.Landscape(b, "cross_entropy", samples(), engine="torch").hessian()
    assert found.metrics["lambda_max"][0, 0] == pytest.approx(
        float(torch.linalg.eigvalsh(own)[-1]), rel=1e-9
    )


def test_a_directions_norm_and_distance_count_the_parameters_alone() -> None:
    a, b = network(0), network(1)
    land = landscape(a)
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    far = torch.cat([(p - q).detach().reshape(-1) for p, q in pairs])
    want = float(torch.linalg.vector_norm(far))
    curve = pl.interpolate(land, [a, b], (0, 1, 3), progress=False)
    assert curve.distance.max() == pytest.approx(want)
    line = pl.line(land, pl.target_direction(land, b), (0, 1, 3), progress=False)
    assert line.info["direction_norms"] == [pytest.approx(want)]
    own = torch.cat([p.detach().reshape(-1) for p in a.parameters()])
    assert line.info["theta_norm"] == pytest.approx(float(torch.linalg.vector_norm(own)))
