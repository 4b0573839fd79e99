"""Small landscapes whose walks and curvature are known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import pylandscape as pl


def xor(dtype: torch.dtype = torch.float64) -> pl.Landscape:
    """XOR, 2-2-1 sigmoid, mean squared error: n = 9."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1), nn.Sigmoid()).to(dtype)
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=dtype)
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=dtype)
    return pl.Landscape(model, "mse", (x, y))


class Vector(nn.Module):
    """Nothing but n parameters."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.theta


def free(n: int, loss: Callable[[Tensor], Tensor]) -> pl.Landscape:
    """L(theta) = loss(theta)."""
    return pl.Landscape(
        Vector(n), objective=lambda model, _: loss(model.theta), data=[torch.ones(1)]
    )


def quadratic(n: int, c: float = 1.0, used: int | None = None) -> pl.Landscape:
    """L = c / 2 sum theta_j^2, over the first `used` components."""
    return free(n, lambda theta: 0.5 * c * theta[:used].square().sum())


def absolute_sum(n: int) -> pl.Landscape:
    return free(n, lambda theta: theta.abs().sum())
