"""The compiled side of truth: derivatives are autograd's, models bring their buffers."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pylandscape as pl

EPS = torch.finfo(torch.float64).eps


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class Awkward(nn.Module):
    """A small network whose hidden values are treated in a peculiar way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(2, 3), nn.Linear(3, 1), how
        self.weights = [self.a.weight]

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if self.how == "no_grad":
            with torch.no_grad():
                h = torch.tanh(self.a(x))
        elif self.how == "decorated":
            h = self.frozen(x)
        elif self.how == "detach":
            h = h.detach()
        elif self.how == "data":
            h = h.data
        elif self.how == "Function":
            h = Reversal.apply(h)
        elif self.how == "straight through":
            h = h + (torch.relu(h) - h).detach()
        elif self.how == "a little":
            h = h - 0.01 * h.mean(1, keepdim=True).detach()
        elif self.how == "list":
            h = torch.tanh(x @ self.weights[0].T)
        return self.b(h)

    @torch.no_grad()
    def frozen(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x))


SEPARATING = ("no_grad", "decorated", "detach", "data", "Function", "straight through", "a little")


def regression(count: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(count, 2, generator=g), torch.randn(count, 1, generator=g)


def autograd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    value = F.mse_loss(model(x), y)
    found = torch.autograd.grad(
        value, list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.reshape(-1) for g in found]).double()


@pytest.mark.parametrize("how", SEPARATING)
def test_derivatives_are_autograds_where_the_forward_pass_separates_them(how: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = Awkward(how), regression()
    land = pl.Landscape(model, nn.MSELoss(), (x, y))
    torch.testing.assert_close(land.gradient(), autograd(model, x, y), rtol=1e-5, atol=1e-7)
    assert land.engine == "torch"
    if how != "data":  # which the program has no op for
        assert "separates values from derivatives" in str(land.engine_report())


@pytest.mark.parametrize("how", ["plain", "list"])
def test_an_ordinary_network_stays_compiled_and_a_list_of_parameters_is_followed(how: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = Awkward(how), regression()
    land = pl.Landscape(model, nn.MSELoss(), (x, y))
    assert land.engine == "native" or how == "list"
    torch.testing.assert_close(land.gradient(), autograd(model, x, y), rtol=1e-5, atol=1e-7)
    at_zero = float((y**2).mean())
    assert land.loss(torch.zeros(land.n_params)) == pytest.approx(at_zero, rel=1e-6)


class Saturated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        nn.init.zeros_(self.norm.weight)
        nn.init.constant_(self.b.bias[:1], 60.0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.b(torch.relu(self.norm(self.a(x)))), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vanishing_gradients_and_kinks_at_theta_refuse_no_ordinary_network(
    dtype: torch.dtype,
) -> None:
    models = [
        Saturated(),
        nn.Sequential(nn.Linear(2, 1), nn.Softmax(1)),  # constant: its gradient is rounding
        nn.Sequential(nn.Linear(2, 6, bias=False), nn.ReLU(), nn.Linear(6, 2)),
        nn.Sequential(nn.Linear(2, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(),
                      nn.Linear(400, 2)),
    ]  # fmt: skip
    x = torch.cat([torch.zeros(4, 2), torch.randn(20, 2)]).to(dtype)
    for model in models:
        model = model.eval().to(dtype)
        y = torch.zeros(24, model(x).shape[1], dtype=dtype)
        assert (
            pl.Landscape(model, "mse", (x, y), engine="native").engine_report().derivatives is None
        )


class FixedBatch(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc, self.how = nn.Linear(6, 3), how
        self.register_buffer("shift", torch.ones(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "view":
            return self.fc(x.view(4, -1))
        if self.how == "assert":
            assert x.shape[0] == 4
        if self.how == "odd":
            {}["missing"]
        return self.fc(x.flatten(1)) + (self.shift if self.how == "buffer" else 0)


@pytest.mark.parametrize("how", ["view", "buffer", "assert"])
@pytest.mark.parametrize("batches", [1, 2])
def test_a_batch_size_fixed_in_the_forward_pass_is_a_reason_and_no_error(
    how: str, batches: int
) -> None:
    x, y = torch.randn(4, 3, 2), torch.randint(0, 3, (4,))
    model = FixedBatch(how)
    land = pl.Landscape(model, nn.CrossEntropyLoss(), [(x, y)] * batches)
    assert land.loss() == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-5)
    assert "another number of samples" in str(land.engine_report())


def test_a_branch_on_values_is_refused_at_once_and_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else -self.fc(x)

    class Python(Branch):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * float(x.sum())

    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    assert "decides on the values" in str(
        pl.Landscape(Branch(), "cross_entropy", (x, y)).engine_report()
    )
    assert pl.Landscape(Python(), "cross_entropy", (x, y)).engine == "torch"
    said = capfd.readouterr()
    assert said.err == said.out == ""


SHIFT = torch.tensor([0.5, -0.25, 1.0])  # outside of the module, so of float32 in every copy


class Single(nn.Module):
    """Its forward pass fails in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(F.linear(x, self.a.weight, SHIFT)))


def test_a_network_of_float32_alone_is_compared_in_float32() -> None:
    torch.manual_seed(0)
    model, x, y = Single(), torch.randn(9, 2), torch.randn(9, 1)
    with pytest.raises(RuntimeError):
        Single().double()(x.double())
    land = pl.Landscape(model, "mse", (x, y), engine="native")
    loss = F.mse_loss(model(x), y)
    want = torch.autograd.grad(loss, [model.a.weight, model.b.weight, model.b.bias])
    assert land.engine_report().derivatives is None
    assert land.loss() == pytest.approx(loss.item(), rel=1e-6)
    named = land.layout.unflatten(land.gradient())
    for name, w in zip(("a.weight", "b.weight", "b.bias"), want, strict=True):
        torch.testing.assert_close(named[name].float(), w)


@pytest.mark.parametrize("samples", [20, 200, 2000])
def test_few_samples_are_compared_beside_the_one_pass_over_the_data(samples: int) -> None:
    seen: list[int] = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if type(x) is Tensor:
                seen.append(len(x))
            return super().forward(x)

    x, y = torch.randn(samples, 2), torch.randn(samples, 1)
    pl.Landscape(nn.Sequential(Counting(2, 3), nn.Tanh(), nn.Linear(3, 1)), "mse", (x, y))
    assert samples <= sum(seen) <= samples + 400
    assert max(seen[1:]) <= 128


def test_two_threads_at_two_points_get_their_own_products() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
    land = pl.Landscape(model, "cross_entropy", (torch.randn(30, 6), torch.randint(0, 2, (30,))))
    assert land.engine == "native"
    points, v = [land.theta, -land.theta], torch.ones(land.n_params)
    want = [land.gauss_newton_product(v, point) for point in points]
    wrong: list[str] = []

    def run(i: int) -> None:
        for _ in range(300):
            try:
                if not torch.equal(land.gauss_newton_product(v, points[i]), want[i]):
                    wrong.append("another number")
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_threads_make_one_evaluator_of_points() -> None:
    land = pl.Landscape(nn.Linear(2, 1), "mse", regression())
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(land.point_evaluator())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 1


def normed(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2.0)
    return model.eval()


@pytest.fixture(params=["auto", "torch"])
def pair(request: pytest.FixtureRequest) -> tuple[pl.Landscape, nn.Module, pl.Landscape]:
    """A landscape, another model, and the landscape of that."""
    x, y = (t.double() for t in regression(12))
    here, there = (
        pl.Landscape(normed(seed), "mse", (x, y), engine=request.param) for seed in (0, 1)
    )
    return here, normed(1), there


def test_everything_at_another_model_is_that_models(pair: Any) -> None:
    land, b, there = pair
    x, y = (t.double() for t in regression(12))
    assert land.loss(b) == pytest.approx(float(F.mse_loss(b(x), y).detach()), rel=10 * EPS)
    assert land.loss(b.state_dict()) == there.loss()
    assert land.loss() != land.loss(b)
    v = torch.randn(2, land.n_params, dtype=torch.float64)
    assert torch.equal(land.gradient(b), there.gradient())
    assert torch.equal(land.hvp(v, b), there.hvp(v))
    assert torch.equal(land.covariance_product(v, b), there.covariance_product(v))
    assert torch.equal(land.per_sample_gradients(b), there.per_sample_gradients())
    assert torch.equal(land.hessian(b), there.hessian())
    operator = land.linear_operator(b)
    np.testing.assert_array_equal(operator @ v[0].numpy(), there.linear_operator() @ v[0].numpy())
    d = pl.random_directions(there, 2)
    c = np.linspace(-1, 1, 5)[:, None] * np.ones(2)
    np.testing.assert_array_equal(land.losses(c, d, theta=b), there.losses(c, d))
    quiet = {"progress": False}
    line = pl.line(land, d[0], (-1, 1, 3), theta=b, **quiet)
    np.testing.assert_array_equal(line.values, pl.line(there, d[0], (-1, 1, 3), **quiet).values)
    plane = pl.plane(land, *d, (-1, 1, 3), (-1, 1, 3), theta=b.state_dict(), **quiet)
    np.testing.assert_array_equal(
        plane.values, pl.plane(there, *d, (-1, 1, 3), (-1, 1, 3), **quiet).values
    )
    assert line.info["model_loss"] == pytest.approx(there.loss(), rel=10 * EPS)
    assert line.check().ok
    top = pl.eigenpairs(land, 2, theta=b, **quiet).values
    np.testing.assert_array_equal(top, pl.eigenpairs(there, 2, **quiet).values)
    nodes = pl.spectrum(land, probes=1, steps=5, theta=b, **quiet).nodes
    np.testing.assert_array_equal(nodes, pl.spectrum(there, probes=1, steps=5, **quiet).nodes)
    points = there.theta[None]
    np.testing.assert_array_equal(
        pl.hessians(land.at(b), points).matrices, pl.hessians(there, points).matrices
    )
    with pytest.raises(pl.InvalidArgument, match="running statistics"):
        pl.hessians(land, b)


def test_models_that_differ_in_buffers_alone_are_different_requests(
    pair: Any, tmp_path: Any
) -> None:
    land, b, _ = pair
    d = pl.random_directions(land, 1)[0]
    path = tmp_path / "line.h5"
    first = pl.line(land, d, (-1, 1, 3), theta=b, path=path, progress=False)
    again = pl.line(land, d, (-1, 1, 3), theta=b, path=path, progress=False)
    np.testing.assert_array_equal(first.values, again.values)
    other = normed(1)
    other[1].running_mean += 0.1
    with pytest.raises(pl.ResumeMismatch, match="model_state"):
        pl.line(land, d, (-1, 1, 3), theta=other, path=path, progress=False)


def test_models_with_other_statistics_are_no_vertices_or_targets(pair: Any) -> None:
    land, b, _ = pair
    a = land.model
    for ask in (
        lambda: pl.interpolate(land, [a, b], progress=False),
        lambda: pl.target_direction(land, b),
    ):
        with pytest.raises(pl.InvalidArgument, match=r"bn='interpolate' moves .*bn='recompute'"):
            ask()
    with pytest.raises(pl.LayoutMismatch, match=r"'1\.running_mean'.*missing"):
        land.loss(dict(b.named_parameters()))
    same = normed(0)
    with torch.no_grad():
        same[0].weight += 1
    curve = pl.interpolate(land, [a, same], (0, 1, 3), progress=False)
    assert curve.values[-1] == pytest.approx(land.loss(same), rel=10 * EPS)


@pytest.mark.parametrize("bn", ["recompute", "batch"])
def test_modes_that_find_statistics_need_none_of_a_model(bn: str) -> None:
    x, y = (t.double() for t in regression(12))
    land, there = (pl.Landscape(normed(seed), "mse", (x, y), bn=bn) for seed in (0, 1))
    assert land.loss(normed(1)) == pytest.approx(there.loss(), rel=10 * EPS)
    assert land.at(normed(1)) is land
    assert pl.interpolate(land, [normed(0), normed(1)], (0, 1, 2), progress=False).values[
        -1
    ] == pytest.approx(there.loss(), rel=10 * EPS)


class Shifted(nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.shift


def test_other_buffers_come_with_a_model_and_are_named_where_they_cannot() -> None:
    torch.manual_seed(0)
    a, b, (x, y) = Shifted(0.0), Shifted(2.0), regression()
    land = pl.Landscape(a, "mse", (x, y))
    assert land.loss(b) == pytest.approx(float(F.mse_loss(b(x), y).detach()), rel=1e-6)
    with pytest.raises(pl.InvalidArgument, match=r"target: .*'shift' differ; land\.at"):
        pl.target_direction(land, b)


def test_a_place_is_no_direction_and_a_module_no_landscape() -> None:
    model = nn.Linear(2, 1)
    land = pl.Landscape(model, "mse", regression())
    for place in (model, model.state_dict()):
        with pytest.raises(
            pl.InvalidArgument, match=r"direction: .*target_direction\(land, model\)"
        ):
            pl.line(land, place, progress=False)
        with pytest.raises(pl.InvalidArgument, match=r"directions: .*target_direction"):
            pl.hidden_curvature(land, place, progress=False)
    for ask in (pl.plane, pl.line, pl.random_directions, pl.hessians):
        with pytest.raises(
            pl.InvalidArgument, match=r"land: .*expected a Landscape, got the module"
        ):
            ask(model, torch.zeros(3), torch.zeros(3)) if ask is pl.plane else ask(model, 1)


def test_a_class_of_loss_is_its_default_instance_and_near_ones_are_named() -> None:
    x, y = torch.randn(9, 2), torch.randint(0, 3, (9,))
    model = nn.Linear(2, 3)
    by_class = pl.Landscape(model, nn.CrossEntropyLoss, (x, y))
    assert by_class.engine == "native"
    assert by_class.loss() == pl.Landscape(model, nn.CrossEntropyLoss(), (x, y)).loss()
    x, y = regression()
    squashed = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())
    near = {
        nn.MultiLabelSoftMarginLoss(): "has the numbers of loss='bce_with_logits'",
        nn.SoftMarginLoss(): "BCEWithLogitsLoss with targets 0 and 1",
        F.soft_margin_loss: "soft_margin_loss is not compiled",
    }
    for loss, words in near.items():
        report = pl.Landscape(squashed, loss, (x, y.abs().clamp(max=1))).engine_report()
        assert words in str(report)


def test_the_report_says_where_derivatives_run() -> None:
    x, y = (t.double() for t in regression(12))
    batch = pl.Landscape(normed(0), "mse", (x, y), bn="batch").engine_report()
    assert str(batch).startswith("native (")
    assert "torch" not in str(batch)
    norm = nn.BatchNorm1d(4, track_running_stats=False).double()
    untracked = nn.Sequential(nn.Linear(2, 4).double(), norm, nn.Linear(4, 1).double())
    both = pl.Landscape(untracked, "mse", (x, y)).engine_report()
    assert both.engine == "native"
    assert both.derivatives is None
    assert "the samples' own derivatives torch (samples depend on their batch" in str(both)
    one = pl.Landscape(normed(0), "mse", (x, y)).engine_report()
    assert str(one).startswith("native (")


def test_a_half_precision_model_says_how_it_is_computed() -> None:
    x, y = (t.bfloat16() for t in regression())
    model = nn.Linear(2, 1).bfloat16()
    assert "forward pass runs in bfloat16" in str(
        pl.Landscape(model, "mse", (x, y)).engine_report()
    )


def test_a_hessian_beyond_the_memory_is_refused_before_it_is_made() -> None:
    model = nn.Linear(1000, 1700)
    land = pl.Landscape(model, "mse", (torch.randn(2, 1000), torch.randn(2, 1700)))
    with pytest.raises(pl.InvalidArgument, match=r"hessian: .*n = 1,701,700 .* GiB"):
        land.hessian()
