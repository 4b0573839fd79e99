"""Weights that the forward pass computes of parameters: compiled, with torch's derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cuda_support import Backend, backend, one_thread  # noqa: F401
from derivative_support import EPS_FACTOR, error
from test_op_families import agrees
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl


class Weights(nn.Module):
    """A call of (module, h (N, 4)) with parameters to compute with, between linear layers."""

    def __init__(self, call: Callable[[Weights, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.call = nn.Linear(3, 4), nn.Linear(4, 2), call
        self.w, self.b = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
        self.low, self.up = nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(1, 4))
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("mask", torch.ones(4, 4).tril())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.call(self, self.first(x)).reshape(x.shape[0], 4))
        return out


CALLS: dict[str, Callable[[Weights, Tensor], Tensor]] = {
    "a learnt temperature": lambda m, h: h * m.scale.exp(),
    "a gate": lambda m, h: m.scale.sigmoid() * h + (1 - m.scale.sigmoid()) * h.tanh(),
    "a mask": lambda m, h: F.linear(h, m.w * m.mask, m.b),
    "a low rank": lambda m, h: F.linear(h, m.w + 2.0 * (m.low @ m.up)),
    "weight norm": lambda m, h: F.linear(h, m.low * m.w / m.w.norm(dim=1, keepdim=True), m.b),
    "unit weights": lambda m, h: F.linear(F.normalize(h), F.normalize(m.w, dim=-1)),
    "weight standardisation": lambda m, h: F.linear(
        h, (m.w - m.w.mean(1, keepdim=True)) / (m.w.std(1, keepdim=True) + 1e-3)
    ),
    "a matrix product": lambda m, h: h @ (m.w + m.w.T).tanh(),
    "an einsum": lambda m, h: torch.einsum("ni,ij,j->nj", h, m.w.softmax(0), m.b.exp()),
    "a computed bias": lambda m, h: F.linear(h, m.w, F.softplus(m.b)),
    "a mixture": lambda m, h: (m.w.softmax(-1)[0] * h) + m.b.square().sum() * h,
    "a view": lambda m, h: h * torch.sigmoid(m.w)[:, 1] + m.w.exp().t().reshape(2, 8)[1, 3:7],
    "divided": lambda m, h: h / (1 + m.b.abs()) - 1.0 / (2 + m.b.square()),
    "a kernel": lambda m, h: F.conv1d(
        h.unflatten(1, (2, 2)), m.w.tanh().view(2, 2, 4)[..., :3], m.b[:2].exp(), padding=1
    ),
    "kernels of groups": lambda m, h: F.conv2d(
        h.view(-1, 2, 2, 1), (m.w * 0.5)[:2, :3].reshape(2, 1, 3, 1), padding=(1, 0), groups=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_computed_weight_has_torchs_values_gradient_and_hessian(name: str) -> None:
    torch.manual_seed(len(name))
    agrees(Weights(CALLS[name]), torch.randn(7, 3), torch.randn(7, 2), factor=4.0)


def test_a_large_computed_weight_goes_to_torch() -> None:
    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.tanh(), self.bias)

    x, y = torch.randn(3, 300), torch.randn(3, 300)
    report = pl.Landscape(Masked(300, 300), "mse", (x, y)).engine_report()
    assert "90000 elements of a computed parameter" in str(report.reason)


def test_computed_weights_of_many_samples_go_to_torch_which_computes_them_once() -> None:
    model = Weights(CALLS["a mask"])
    x, y = torch.randn(1 << 15, 3), torch.randn(1 << 15, 2)
    few = pl.Landscape(model, "mse", (x[: 1 << 13], y[: 1 << 13])).engine_report()
    many = pl.Landscape(model, "mse", (x, y)).engine_report()
    assert (few.engine, many.engine) == ("native", "torch")
    assert "16 elements of a parameter that the forward pass computes" in str(many.reason)


@pytest.mark.ci
@pytest.mark.parametrize("name", ["weight norm", "a kernel"])
def test_the_cuda_engine_has_the_same_values_and_derivatives(
    backend: Backend,  # noqa: F811
    one_thread: None,  # noqa: F811
    name: str,
) -> None:
    torch.manual_seed(4)
    model = Weights(CALLS[name]).double()
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    land = pl.Landscape(model, "mse", (x, y), engine="native")
    engine = backend.engine(model, land)
    v, there = torch.randn(2, land.n_params).double(), land.theta.to(backend.device)
    assert error(engine.gradient(there).cpu(), land.gradient(), torch.float64) <= EPS_FACTOR
    found = engine.product("hessian", there, v.to(backend.device)).cpu()
    assert error(found, land.hvp(v), torch.float64) <= EPS_FACTOR
