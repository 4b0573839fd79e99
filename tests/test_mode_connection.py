"""Curves between models, planes through merges."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import pylandscape as pl
from pylandscape.engines.training import CurveSlopes
from pylandscape.results.mode_connection import curve_weights

QUIET = {"progress": False}


def digits(count=600):
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x[:count] / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)
    return x, torch.tensor(y[:count])


def cnn(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def trained_cnn(seed, data):
    model, (x, y) = cnn(seed), data
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(90):
        batch = slice(step * 100 % 600, step * 100 % 600 + 100)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimiser.step()
    return model


def mlp(seed, norm=False):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(8))
    return nn.Sequential(*layers).double()


def data():
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    return x, (x[:, :3] ** 2).argmax(1)


def small(norm=False, **options):
    return pl.Landscape(mlp(9, norm), "cross_entropy", data(), **options)


def vector(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_a_curve_goes_around_the_barrier_of_two_independently_trained_cnns():
    given = digits()
    a, b = trained_cnn(0, given), trained_cnn(1, given)
    land = pl.Landscape(a, "cross_entropy", given)
    found = pl.connect(land, a, b, steps=60, lr=0.03, samples=2, points=15, **QUIET)
    assert found.line_barrier > 0.5
    assert found.barrier < 0.1
    assert found.length > found.line_length
    assert torch.equal(found.theta(0), vector(a))
    assert torch.equal(found.theta(1), vector(b))
    assert np.isfinite(found.history).all()


@pytest.mark.parametrize("kind", ["bezier", "polychain"])
def test_the_gradient_is_the_slope_of_the_mean_over_t(kind):
    from pylandscape.connectivity.curves import _Training

    land, t = small(), np.array([0.2, 0.7])
    training = _Training(land, vector(mlp(1)), vector(mlp(2)), kind, 2)
    step = torch.randn(2, land.n_params, dtype=torch.float64)
    _, slope = training._slope(t)
    free, values = training.free.clone(), []
    for sign in (1, -1):
        training.free = free + sign * 1e-5 * step
        values.append(training._slope(t)[0])
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float((slope * step).sum()), rel=1e-6)


def several(kind):
    """Networks whose first layers read the data in several ways."""
    torch.manual_seed(3)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 5), nn.Linear(6, 5, bias=False)
            self.last = nn.Linear(5, 3)
            if kind == "tied":
                self.second.weight = self.first.weight
            if kind == "frozen":
                self.second.requires_grad_(False)

        def forward(self, x):
            if kind == "tokens":
                x = x.view(-1, 3, 2).flatten(1)
            gate = self.second(x).tanh()
            if kind == "tied":  # also by an op that does not read the data
                gate = gate + nn.functional.linear(
                    self.first(x) @ self.first.weight, self.second.weight
                )
            return self.last(torch.relu(self.first(x)) * gate)

    return Model().double()


@pytest.mark.parametrize("kind", ["two", "tied", "frozen", "tokens"])
def test_slopes_along_a_curve_are_the_mixed_gradients_of_its_points(kind):
    model = several(kind)
    land = pl.Landscape(model, "cross_entropy", data(), engine="native")
    vertices = land.theta + 0.3 * torch.randn(4, land.n_params, dtype=torch.float64)
    weights = torch.from_numpy(curve_weights("bezier", 2, np.array([0.1, 0.4, 0.8])))
    slopes = CurveSlopes(land, vertices[[0, -1]])
    exact = pl.Landscape(model, "cross_entropy", data(), engine="torch")
    for _ in range(2):  # the second time with the ends' products of the first
        losses, found = slopes(weights, vertices[1:-1])
        points = weights @ vertices
        gradients = torch.stack([exact.gradient(p) for p in points])
        want = weights[:, 1:-1].T @ gradients
        assert losses.tolist() == pytest.approx(exact.losses(points=points).tolist(), rel=1e-12)
        assert float((found - want).abs().max()) <= 1e-12 * float(want.abs().max())
        vertices[1:-1] += 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_have_their_bits_for_any_number_of_threads(dtype):
    torch.manual_seed(0)
    x, y = torch.randn(1500, 40, dtype=dtype), torch.randint(0, 3, (1500,))
    model = nn.Sequential(nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3)).to(dtype)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    vertices = land.theta.double() + torch.randn(3, land.n_params, dtype=torch.float64)
    weights = torch.from_numpy(curve_weights("bezier", 1, np.array([0.2, 0.5])))
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(CurveSlopes(land, vertices[[0, 2]])(weights, vertices[1:2]))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    alone = [land.gradient((w @ vertices).to(dtype)) for w in weights]
    want = sum(w[1] * g for w, g in zip(weights, alone, strict=True))
    close = 1e-4 if dtype == torch.float32 else 1e-12
    assert float((found[0][1][0] - want).abs().max()) <= close * float(want.abs().max())


def test_the_losses_are_those_at_the_curve_s_points():
    land = small()
    found = pl.connect(land, mlp(1), mlp(2), bends=2, steps=5, points=7, **QUIET)
    for t, value in zip(found.t, found.values, strict=True):
        assert land.loss(found.theta(t)) == pytest.approx(value, rel=1e-12)
    line = pl.interpolate(land, [mlp(1), mlp(2)], x=(0, 1, 7), **QUIET)
    assert found.line == pytest.approx(line.values, rel=1e-12)
    assert found.line_barrier == pytest.approx(line.barrier, rel=1e-9)


@pytest.mark.parametrize("kind", ["bezier", "polychain"])
def test_for_a_convex_loss_the_curve_is_no_worse_on_average_than_the_line(kind):
    land = pl.Landscape(nn.Linear(6, 3).double(), "cross_entropy", data())
    a, b = torch.randn(2, land.n_params, dtype=torch.float64, generator=torch.manual_seed(1))
    found = pl.connect(land, a, b, kind=kind, bends=2, steps=100, lr=0.05, **QUIET)
    assert found.values.mean() < found.line.mean()


def test_weights_sum_to_one_and_the_length_of_an_untrained_curve_is_the_distance():
    t = np.linspace(0, 1, 11)
    for kind in ("bezier", "polychain"):
        assert curve_weights(kind, 3, t).sum(axis=1) == pytest.approx(np.ones(11), abs=1e-14)
        found = pl.connect(small(), mlp(1), mlp(2), kind=kind, bends=3, steps=0, **QUIET)
        assert found.length == pytest.approx(float((vector(mlp(1)) - vector(mlp(2))).norm()))
        assert found.values == pytest.approx(found.line, rel=1e-9)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    from pylandscape.connectivity import curves

    land, options = small(), {"steps": 12, "bends": 2, **QUIET}
    whole = pl.connect(land, mlp(1), mlp(2), **options)
    apply, path = curves.apply, tmp_path / "c.h5"

    def stopped(rule, theta, slope, moments, step, rate):
        if step == 8:
            raise KeyboardInterrupt
        apply(rule, theta, slope, moments, step, rate)

    monkeypatch.setattr(curves, "apply", stopped)
    with pytest.raises(KeyboardInterrupt):
        pl.connect(land, mlp(1), mlp(2), path=path, **options)
    monkeypatch.setattr(curves, "apply", apply)
    found = pl.connect(land, mlp(1), mlp(2), path=path, **options)
    loaded = pl.load(path)
    for other in (found, loaded):
        assert np.array_equal(other.vertices, whole.vertices)
        assert np.array_equal(other.history, whole.history)
    with pytest.raises(pl.ResumeMismatch):
        pl.connect(land, mlp(1), mlp(2), path=path, **{**options, "seed": 1})
    with pytest.raises(pl.InvalidArgument, match="connection_plane"):
        loaded.plane()


@pytest.mark.parametrize("bn", ["recompute", "interpolate"])
def test_batch_norm_is_recomputed_or_comes_along(bn):
    land, a, b = small(True, bn=bn), mlp(1, True), mlp(2, True)
    found = pl.connect(land, a, b, steps=20, lr=0.02, points=5, **QUIET)
    assert found.values[2] == pytest.approx(land.loss(found.point(0.5)), rel=1e-9)
    assert found.history[-1] < found.history[0]
    assert torch.equal(found.theta(1), vector(b))
    assert found.plane(points=5, **QUIET).values.shape == (5, 5)


def test_the_plane_holds_the_curve_and_draws_it():
    land = small()
    found = pl.connect(land, mlp(1), mlp(2), steps=30, lr=0.05, **QUIET)
    surface = found.plane(points=9, **QUIET)
    (x, y) = surface.info["paths"]["curve"][50]
    theta = surface.frame.theta + x * surface.frame.directions[0] + y * surface.frame.directions[1]
    assert theta == pytest.approx(found.theta(0.5), abs=1e-9)
    ax = surface.plot()
    assert {"curve", "line"} <= {t.get_text() for legend in ax.figure.legends or [ax.get_legend()]
                                 for t in legend.get_texts()}  # fmt: skip


def test_merges_lie_where_their_models_do():
    land, models = small(), [mlp(1), mlp(2), mlp(3)]
    found = pl.merge_plane(land, models, x=(0, 1, 3), y=(0, 1, 3), **QUIET)
    base, a, b = map(vector, models)
    want = {
        "base": base, "a": a, "b": b, "soup": (a + b) / 2, "average of all": (base + a + b) / 3,
        "sum": a + b - base,
    }  # fmt: skip
    for name, theta in want.items():
        assert found.info["merges"][name] == pytest.approx(land.loss(theta), rel=1e-10)
    assert found.values[1, 1] == pytest.approx(land.loss((a + b) / 2), rel=1e-10)
    assert found.values[2, 0] == pytest.approx(land.loss(a), rel=1e-10)
    assert found.plot() is not None


def test_the_same_model_twice_has_no_barrier_and_is_told():
    with pytest.warns(UserWarning, match="equal"):
        found = pl.connect(small(), mlp(1), mlp(1), **QUIET)
    assert found.barrier == found.line_barrier == found.length == 0.0
    with pytest.raises(pl.InvalidArgument, match="off the straight line"):
        found.plane(**QUIET)


def test_bad_input_is_named():
    land, a, b = small(), mlp(1), mlp(2)
    for options, word in (
        ({"kind": "spline"}, "kind"), ({"bends": 0}, "bends"), ({"lr": 0}, "lr"),
        ({"points": 2}, "points"), ({"steps": -1}, "steps"),
    ):  # fmt: skip
        with pytest.raises(pl.InvalidArgument, match=rf"^{word}"):
            pl.connect(land, a, b, **options, **QUIET)
    with pytest.raises(pl.LayoutMismatch, match=r"^b: .*0\.weight"):
        pl.connect(land, a, nn.Linear(2, 2), **QUIET)
    with pytest.raises(pl.LayoutMismatch, match=r"^models\[2\]: .*0\.weight"):
        pl.merge_plane(land, [a, b, nn.Linear(2, 2)], **QUIET)
    for models in ([a, b], [a, a, b], a):
        with pytest.raises(pl.InvalidArgument, match=r"^models"):
            pl.merge_plane(land, models, **QUIET)
    with pytest.raises(pl.InvalidArgument, match=r"^merges"):
        pl.merge_plane(land, [a, b, mlp(3)], merges={"mine": (1,)}, **QUIET)


def test_the_former_name_of_hidden_curvature_tells_the_new_one():
    land = small()
    directions = pl.random_directions(land, 2, seed=1)
    with pytest.warns(DeprecationWarning, match="hidden_curvature"):
        old = pl.sharpness(land, directions, **QUIET)
    new = pl.hidden_curvature(land, directions, **QUIET)
    assert np.array_equal(old.curvatures, new.curvatures)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_loss_without_derivatives_is_refused_for_training(engine):
    def errors(outputs, target):
        return (outputs.argmax(1) != target).double().mean()

    land = pl.Landscape(mlp(9), errors, data(), engine=engine)
    with pytest.raises(pl.NotDifferentiable):
        pl.connect(land, mlp(1), mlp(2), **QUIET)
    assert np.isfinite(pl.connect(land, mlp(1), mlp(2), steps=0, **QUIET).line_barrier)


def test_recomputing_without_batch_norm_is_said():
    land = small(bn="recompute")
    with pytest.warns(UserWarning, match="nothing is recomputed"):
        found = pl.connect(land, mlp(1), mlp(2), steps=2, **QUIET)
    assert len(found.history) == 2
    with pytest.warns(UserWarning, match="nothing is recomputed"):
        pl.merge_plane(land, [mlp(1), mlp(2), mlp(3)], x=(0, 1, 2), y=(0, 1, 2), **QUIET)
