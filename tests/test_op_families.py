"""Element-wise functions and losses beyond the common ones: values, gradients and Hessians of the
compiled engine against float64 torch, on the CPU and through the CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cuda_support import Backend, backend, one_thread  # noqa: F401
from derivative_support import EPS_FACTOR, error
from test_derivatives import Exact
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape._native import core

DTYPES = [torch.float32, torch.float64]
Function = Callable[[Tensor], Tensor]


class Through(nn.Module):
    """A linear layer, a function (or a module) of its outputs, and a linear layer."""

    def __init__(self, function: Any, width: int = 6, after: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(after, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.function(self.first(x)))
        return out


def agrees(
    model: nn.Module, x: Tensor, y: Tensor, loss: Any = "mse", factor: float = 1.0
) -> pl.Landscape:
    """Losses of three points, the gradient and the whole Hessian are float64 torch's, of a program
    in either dtype whose derivatives are compiled. Gives the landscape in float64."""
    exact = Exact(model, loss, x, y)
    for dtype in DTYPES:
        own = model.to(dtype)
        target = y.to(dtype) if y.is_floating_point() else y
        land = pl.Landscape(own, loss, (x.to(dtype), target), engine="native")
        report = land.engine_report()
        assert report.derivatives is None, report  # no other engine's
        at = torch.tensor([[0.0], [0.2], [-0.1]], dtype=torch.float64)
        d = torch.randn(land.n_params, generator=torch.Generator().manual_seed(1)).to(dtype)
        reference = pl.Landscape(
            own.double(), loss, (x.to(dtype).double(), target.double() if y.is_floating_point()
                                 else y), engine="torch"
        )  # fmt: skip
        want = reference.losses(at, d.double()[None])
        rounding = 400 * factor * torch.finfo(dtype).eps
        np.testing.assert_allclose(land.losses(at, d[None]), want, rtol=rounding, atol=rounding)
        assert error(land.gradient(), exact.gradient, dtype) <= EPS_FACTOR * factor
        assert error(land.hessian(), exact.hessian, dtype) <= EPS_FACTOR * factor
    return land


def data(width: int = 3, samples: int = 11) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 5), torch.randn(samples, width)


FUNCTIONS: dict[str, Any] = {
    "hardswish": F.hardswish,
    "mish": F.mish,
    "softsign": F.softsign,
    "log_sigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "celu": lambda h: F.celu(h, 0.5),
    "threshold": lambda h: F.threshold(h, 0.1, 0.3),
    "rrelu": nn.RReLU().eval(),
    "softplus, steep": nn.Softplus(5.0, 2.0),
    "sine": lambda h: torch.sin(30 * h),
    "cosine": lambda h: torch.cos(3 * h),
    "erf": torch.erf,
    "exponential": lambda h: torch.exp(-h.square()),
    "power of two": lambda h: torch.exp2(h),
    "logarithms": lambda h: torch.log(h * h + 0.5) + torch.log1p(h.abs()) + (h.abs() + 1).log2(),
    "roots": lambda h: torch.sqrt(h.square() + 1) + (h.square() + 2) ** 0.5,
    "inverse root": lambda h: torch.rsqrt(h.square() + 1) + (h.square() + 2) ** -0.5,
    "number by tensor": lambda h: 1.5 / (h.square() + 1) + torch.reciprocal(h.abs() + 2),
    "powers": lambda h: h**3 - 0.5 * h**5 + (h.square() + 1) ** -1.7 + (2 + h.abs()) ** -2,
    "bounds": lambda h: torch.clamp_min(h, -0.4) + h.clamp(max=0.3) + F.hardtanh(h, -0.2, 0.6),
    "a chain": lambda h: torch.sin(h).mul(2).abs().add(1).log().neg(),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_elements_has_torchs_values_gradient_and_hessian(name: str) -> None:
    torch.manual_seed(len(name))
    agrees(Through(FUNCTIONS[name]), *data(), factor=3.0)


def test_hardsigmoid_has_the_hessian_that_torch_lacks() -> None:
    torch.manual_seed(2)
    model = Through(F.hardsigmoid)
    same = Through(lambda h: (h / 6 + 0.5).clamp(0, 1))
    same.load_state_dict(model.state_dict())
    x, y = data()
    exact = Exact(same, "mse", x, y)
    land = pl.Landscape(model.float(), "mse", (x, y), engine="native")
    assert error(land.gradient(), exact.gradient, torch.float32) <= EPS_FACTOR
    assert error(land.hessian(), exact.hessian, torch.float32) <= EPS_FACTOR


class Swish(nn.Module):
    """SwiGLU (Shazeer 2020): silu(a) b for the halves a and b."""

    def forward(self, h: Tensor) -> Tensor:
        a, b = h.chunk(2, -1)
        return F.silu(a) * b


class Periodic(nn.Module):
    """sin(w x) with learnt frequencies, and Snake: x + sin^2(a x) / a (Liu et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.sin(self.w * h).pow(2) / self.w


LEARNT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "PReLU": (nn.PReLU, 6),
    "PReLU of each channel": (lambda: nn.PReLU(6), 6),
    "GLU": (lambda: nn.GLU(), 3),
    "SwiGLU": (Swish, 3),
    "learnt frequencies": (Periodic, 6),
}


@pytest.mark.parametrize("name", LEARNT)
def test_gates_and_learnt_slopes_are_torchs(name: str) -> None:
    torch.manual_seed(3)
    make, after = LEARNT[name]
    agrees(Through(make(), after=after), *data())


def test_a_prelu_of_units_that_are_zero_has_torchs_slope() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.PReLU(4), nn.Linear(4, 3))
    agrees(model, *data())


@pytest.mark.parametrize("zero", [False, True])
def test_products_of_a_prelu_are_torchs_where_its_units_are_zero(zero: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2)).double()
    nn.init.zeros_(model[0].bias)
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    x[0] *= not zero
    land = pl.Landscape(model, nn.MSELoss(), (x, y))
    p, v = list(model.parameters()), torch.randn(land.n_params).double()
    g = torch.autograd.grad(nn.MSELoss()(model(x), y), p, create_graph=True)
    h = torch.autograd.grad(torch.cat([t.reshape(-1) for t in g]) @ v, p)
    torch.testing.assert_close(land.hvp(v), torch.cat([t.reshape(-1) for t in h]))
    assert land.engine == "native"
    assert land.engine_report().derivatives is None


def test_prelu_and_glu_take_the_channels_of_an_image() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.PReLU(4), nn.GLU(1), nn.Hardswish(), nn.Flatten(), nn.Linear(18, 3)
    )
    agrees(model, torch.randn(7, 2, 5, 5), torch.randn(7, 3))


# Losses

PAIRS: dict[str, tuple[Any, Callable[[], nn.Module], str]] = {
    "l1": (nn.L1Loss(), nn.Identity, "real"),
    "l1, sum": (nn.L1Loss(reduction="sum"), nn.Identity, "real"),
    "smooth_l1": (nn.SmoothL1Loss(), nn.Identity, "real"),
    "smooth_l1, beta": (nn.SmoothL1Loss(beta=0.4), nn.Identity, "real"),
    "smooth_l1, beta 0": (nn.SmoothL1Loss(beta=0.0), nn.Identity, "real"),
    "huber": (nn.HuberLoss(), nn.Identity, "real"),
    "huber, delta": (nn.HuberLoss(reduction="sum", delta=0.3), nn.Identity, "real"),
    "bce": (nn.BCELoss(), nn.Sigmoid, "binary"),
    "bce of shares, weighted": (nn.BCELoss(torch.tensor([0.5, 2.0, 1.0])), nn.Sigmoid, "share"),
    "kl": (nn.KLDivLoss(reduction="batchmean"), lambda: nn.LogSoftmax(1), "one-hot"),
    "kl of logarithms": (
        nn.KLDivLoss(reduction="sum", log_target=True), lambda: nn.LogSoftmax(1), "logs",
    ),
    "poisson": (nn.PoissonNLLLoss(), nn.Identity, "count"),
    "poisson, full": (nn.PoissonNLLLoss(full=True), nn.Identity, "count"),
    "poisson of rates": (
        nn.PoissonNLLLoss(log_input=False, full=True, reduction="sum"), nn.Softplus, "count",
    ),
}  # fmt: skip


def targets(kind: str, samples: int) -> Tensor:
    x = torch.randn(samples, 3)
    return {
        "real": x,
        "binary": (x > 0).float(),
        "share": torch.sigmoid(x),
        "one-hot": F.one_hot(x.argmax(1), 3).float(),
        "logs": torch.log_softmax(x, 1),
        "count": x.abs().mul(2).round(),
    }[kind]


@pytest.mark.parametrize("name", PAIRS)
def test_a_loss_of_pairs_is_compiled_with_torchs_value_and_derivatives(name: str) -> None:
    torch.manual_seed(6)
    loss, last, kind = PAIRS[name]
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3), last())
    x, y = torch.randn(13, 5), targets(kind, 13)
    land = agrees(model, x, y, loss)
    loss = loss.double()
    value = loss(model(x.double()), y.double()).item()
    assert land.loss() == pytest.approx(value, rel=1e-12)
    # Batches of unlike sizes are combined by the loss's own denominator.
    parts = [(x[:4].double(), y[:4].double()), (x[4:].double(), y[4:].double())]
    split = pl.Landscape(model, loss, parts, engine="native")
    assert split.loss() == pytest.approx(value, rel=1e-12)


def test_saturated_probabilities_are_bounded_as_torch_bounds_them() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Sigmoid()).double()
    nn.init.ones_(model[0].weight)
    x = torch.tensor([[-2000.0], [2000.0], [0.5]]).double()
    y = torch.tensor([[1.0], [0.0], [1.0]]).double()
    land = pl.Landscape(model, "bce", (x, y), engine="native")
    want = nn.BCELoss()(model(x), y)
    assert land.loss() == pytest.approx(want.item(), rel=1e-14)
    assert land.losses(points=torch.tensor([[float("nan")]]).double()).tolist() != [0.0]


def test_names_functions_and_classes_of_a_loss_are_one_loss() -> None:
    torch.manual_seed(7)
    x, y = torch.randn(9, 5), torch.rand(9, 3)
    model = nn.Sequential(nn.Linear(5, 3), nn.Sigmoid())
    for name, function, make in (
        ("l1", F.l1_loss, nn.L1Loss), ("smooth_l1", F.smooth_l1_loss, nn.SmoothL1Loss),
        ("huber", F.huber_loss, nn.HuberLoss), ("bce", F.binary_cross_entropy, nn.BCELoss),
        ("poisson_nll", F.poisson_nll_loss, nn.PoissonNLLLoss),
    ):  # fmt: skip
        lands = [pl.Landscape(model, loss, (x, y)) for loss in (name, function, make, make())]
        assert {land.engine for land in lands} == {"native"}
        assert len({land.loss() for land in lands}) == 1


def test_accuracy_of_bce_is_that_of_its_logits() -> None:
    torch.manual_seed(8)
    x, y = torch.randn(40, 5), (torch.rand(40, 2) > 0.5).float()
    inner = nn.Linear(5, 2)
    kinds = (("bce", nn.Sequential(inner, nn.Sigmoid())), ("bce_with_logits", inner))
    for engine in ("native", "torch"):
        found = [
            pl.Landscape(model, loss, (x, y), engine=engine).evaluate(
                np.zeros((1, 1)), torch.zeros(1, 12), metrics=("accuracy",)
            )["accuracy"][0]
            for loss, model in kinds
        ]
        assert found[0] == found[1]
        assert 0 < found[0] < 1


def test_targets_of_another_shape_are_refused_by_name() -> None:
    land = pl.Landscape(nn.Linear(5, 1), "huber", (torch.randn(4, 5), torch.randn(4, 1)))
    assert land.engine == "native"
    with pytest.raises(pl.InvalidArgument, match=r"huber expected targets of the outputs' shape"):
        pl.Landscape(nn.Linear(5, 1), "huber", (torch.randn(4, 5), torch.randn(4))).loss()


# The same through the CUDA kernels

UNARY: dict[str, tuple[float, float, Function]] = {
    "hardswish": (0, 0, F.hardswish),
    "mish": (0, 0, F.mish),
    "softsign": (0, 0, F.softsign),
    "threshold": (0.2, 0.7, lambda x: F.threshold(x, 0.2, 0.7)),
    "log": (0, 0, torch.log),
    "log1p": (0, 0, torch.log1p),
    "sqrt": (0, 0, torch.sqrt),
    "rsqrt": (0, 0, torch.rsqrt),
    "reciprocal": (1.5, 0, lambda x: 1.5 / x),
    "power": (2.5, 0, lambda x: x**2.5),
    "sin": (0, 0, torch.sin),
    "cos": (0, 0, torch.cos),
    "erf": (0, 0, torch.erf),
}
_POSITIVE = ("log", "sqrt", "rsqrt", "power", "log1p")


@pytest.mark.parametrize("name", UNARY)
def test_the_cuda_kernels_have_the_function_and_its_slopes(
    backend: Backend,  # noqa: F811
    name: str,
) -> None:
    a, b, reference = UNARY[name]
    x = 3 * torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = (x.abs() + 0.01 if name in _POSITIVE else x).requires_grad_()
    want = reference(x)
    (first,) = torch.autograd.grad(want.sum(), x, create_graph=True)
    second = torch.zeros_like(x)
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), x)
    number = int(getattr(core.Unary, name))
    for dtype in DTYPES:
        given = x.detach().to(backend.device, dtype)
        none, out = given.new_empty(0), torch.empty_like(given)[None]
        backend.ops.epilogue_(out, given[None], none, none, none, number, float(a), float(b))
        slopes = backend.ops.unary_slopes(
            given, torch.full_like(given, 2.0), number, float(a), float(b)
        )
        rounding = 40 * torch.finfo(dtype).eps
        for got, exact in zip((out[0], *slopes), (want, first, 2 * second, 2 * first), strict=True):
            torch.testing.assert_close(
                got.double().cpu(), exact.detach(), rtol=rounding, atol=rounding
            )


@pytest.mark.parametrize("name", ["huber", "smooth_l1", "bce", "kl", "poisson, full",
                                  "poisson of rates"])  # fmt: skip
@pytest.mark.parametrize("limit", [None, 0], ids=["resident", "by products"])
def test_the_cuda_engine_has_the_losses_and_their_derivatives(
    backend: Backend,  # noqa: F811
    one_thread: None,  # noqa: F811
    name: str,
    limit: int | None,
) -> None:
    torch.manual_seed(9)
    loss, last, kind = PAIRS[name]
    model = nn.Sequential(nn.Linear(5, 4), nn.Hardswish(), nn.Linear(4, 3), last()).double()
    x, y = torch.randn(37, 5).double(), targets(kind, 37).double()
    land = pl.Landscape(model, loss, (x, y), engine="native")
    engine = backend.engine(model, land, **({} if limit is None else {"shared_limit": limit}))
    theta = land.theta
    points = theta + 0.1 * torch.randn(4, len(theta)).double()
    got = engine.prepare_points(("loss",))(points.to(backend.device))["loss"]
    np.testing.assert_allclose(got, land.losses(points=points), rtol=1e-12)
    v = torch.randn(2, len(theta)).double()
    there = theta.to(backend.device)
    assert error(engine.gradient(there).cpu(), land.gradient(), torch.float64) <= EPS_FACTOR
    found = engine.product("hessian", there, v.to(backend.device)).cpu()
    assert error(found, land.hvp(v), torch.float64) <= EPS_FACTOR
