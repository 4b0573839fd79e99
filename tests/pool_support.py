"""Small networks around one op on images, and the comparison of their landscapes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import pylandscape as pl

Op = Callable[[Tensor], Tensor]


class Image(nn.Module):
    """A linear layer makes an image (channels, *sizes) of x (N, 5); `op`; a linear layer to 3."""

    def __init__(self, op: Op, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.op, self.shape = op, shape
        self.make = nn.Linear(5, torch.Size(shape).numel())
        with torch.no_grad():
            self.read = nn.Linear(op(torch.zeros(2, *shape)).flatten(1).shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.read(self.op(self.make(x).view(-1, *self.shape)).flatten(1))
        return out


class Raw(nn.Module):
    """`op` on the data themselves, (N, channels, *sizes), then a linear layer to 3."""

    def __init__(self, op: Op, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.op = op
        with torch.no_grad():
            self.read = nn.Linear(op(torch.zeros(2, *shape)).flatten(1).shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.read(self.op(x).flatten(1))
        return out


def landscapes(
    model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype
) -> tuple[pl.Landscape, pl.Landscape]:
    """The native landscape in `dtype`, and torch's in float64 of the same (rounded) model."""
    model = model.to(dtype)
    x = x.to(dtype)
    native = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    exact = copy.deepcopy(model).double()
    return native, pl.Landscape(exact, "cross_entropy", (x.double(), y), engine="torch")


def assert_close(got: Tensor, want: Tensor, eps: float, factor: float = 60) -> None:
    scale = want.abs().max().clamp_min(1e-3)
    error = float((got.double() - want).abs().max() / scale)
    assert error <= factor * eps, f"{error / eps:.1f} eps"


def check(model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    """Losses on a plane and all first and second derivatives are those of float64 torch."""
    y = torch.arange(len(x)) % 3
    native, exact = landscapes(model, x, y, dtype)
    g = torch.Generator().manual_seed(1)
    d = torch.randn(2, native.n_params, generator=g, dtype=torch.float64).to(dtype) * 0.3
    c = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-0.5, 2.0]], dtype=torch.float64)
    eps = torch.finfo(dtype).eps
    assert_close(
        torch.from_numpy(native.losses(c, d)), torch.from_numpy(exact.losses(c, d.double())), eps
    )
    assert_close(native.gradient(), exact.gradient(), eps)
    assert_close(native.hvp(d), exact.hvp(d.double()), eps)
    assert_close(native.gauss_newton_product(d), exact.gauss_newton_product(d.double()), eps)
    assert_close(native.per_sample_gradients(), exact.per_sample_gradients(), eps)
