"""A model of many ops, losses with their targets, how far derivatives may be off, and the same
answers of two engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pylandscape as pl

EPS_FACTOR = 60  # of the largest element, over a dozen ops; 1 to 7 are typical


class Everything(nn.Module):
    """Every kind of op that the program has, on inputs (N, 7), to outputs (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(7, 12), nn.Linear(12, 12), nn.Linear(24, 5)
        self.norm, self.scale = nn.LayerNorm(12), nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(nn.functional.gelu(self.a(x), approximate="tanh"))
        gate = torch.softmax(self.b(h), -1)
        h = h * gate + self.scale
        h = torch.cat([h / (1.5 + torch.sigmoid(gate)), torch.tanh(h) - 0.3 * gate], 1)
        out: Tensor = self.c(h)
        return out


def error(got: Tensor, want: Tensor, dtype: torch.dtype) -> float:
    """Largest error in eps of the largest element."""
    scale = want.abs().max().clamp_min(1e-300)
    return float((got.double() - want).abs().max() / scale) / torch.finfo(dtype).eps


def assert_same_answers(land: pl.Landscape, other: pl.Landscape, rtol: float, atol: float) -> None:
    """Loss, gradient, Hessian product and gradients of the samples at a point beside theta."""
    p = land.theta + 0.1 * torch.randn(land.n_params, dtype=land.theta.dtype)
    v = torch.randn(land.n_params, dtype=land.theta.dtype)
    for ask in (
        lambda of: torch.as_tensor(of.losses(points=p[None])),
        lambda of: of.gradient(p),
        lambda of: of.hvp(v, p),
        lambda of: of.per_sample_gradients(p),
    ):
        torch.testing.assert_close(ask(land), ask(other), rtol=rtol, atol=atol)


def assert_trained_alike(land: pl.Landscape) -> None:
    """Three steps of the core end where torch's do."""
    ends = []
    for engine in ("native", "torch"):
        runs = pl.train(land, [land.theta], pl.SGD(lr=0.1), steps=3, batch_size=4, metrics=(),
                        engine=engine, progress=False)  # fmt: skip
        ends.append(runs.ends())
    torch.testing.assert_close(*ends)


LOSSES: dict[str, tuple[Callable[[], Any], Callable[[int], Tensor]]] = {
    "cross_entropy": (nn.CrossEntropyLoss, lambda n: torch.randint(0, 5, (n,))),
    "ignored": (
        lambda: nn.CrossEntropyLoss(ignore_index=3),
        lambda n: torch.randint(0, 5, (n,)),
    ),
    "weighted and smoothed": (
        lambda: nn.CrossEntropyLoss(weight=torch.rand(5) + 0.1, label_smoothing=0.1),
        lambda n: torch.randint(0, 5, (n,)),
    ),
    "probabilities": (
        lambda: nn.CrossEntropyLoss(weight=torch.rand(5) + 0.1),
        lambda n: torch.softmax(torch.randn(n, 5), 1),
    ),
    "sum": (
        lambda: nn.CrossEntropyLoss(reduction="sum"),
        lambda n: torch.randint(0, 5, (n,)),
    ),
    "mse": (nn.MSELoss, lambda n: torch.randn(n, 5)),
    "bce": (
        lambda: nn.BCEWithLogitsLoss(pos_weight=torch.rand(5) * 2),
        lambda n: torch.rand(n, 5),
    ),
}
