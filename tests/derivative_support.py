"""A model of many ops, losses with their targets, and how far derivatives may be off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
