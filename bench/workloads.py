"""Models, data and points that several benchmarks share, and the float64 reference."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def mlp(*dims: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(dims)):
        layers.append(nn.Linear(a, b))
        if i < len(dims) - 2:
            layers.append(activation())
    return nn.Sequential(*layers)


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits at 28 x 28: X (1797, 784), y (1797,)."""
    from pylandscape.experiments.demo import digits_28x28

    x, y = digits_28x28()
    return x.reshape(len(x), -1), y


def grid(nx: int, ny: int) -> Tensor:
    """Coefficients (nx * ny, 2) float64 of a grid over [-1, 1]^2, the second axis fastest."""
    x, y = np.linspace(-1, 1, nx), np.linspace(-1, 1, ny)
    return torch.as_tensor(np.stack([g.ravel() for g in np.meshgrid(x, y, indexing="ij")], axis=1))


def spread(count: int, of: int) -> np.ndarray:
    """``count`` of the numbers below ``of``, evenly, both ends among them."""
    return np.unique(np.linspace(0, of - 1, min(count, of)).round().astype(int))


def reference(model: nn.Module, loss: Any, x: Tensor, y: Tensor, points: Tensor) -> np.ndarray:
    """Losses (P,) at points (P, n): float64 torch, one point at a time."""
    exact = copy.deepcopy(model).double().eval()
    names = [name for name, _ in exact.named_parameters()]
    x, y = (t.double() if t.is_floating_point() else t for t in (x, y))
    out = []
    for theta in points.double():
        parts = split(theta, list(exact.parameters()))
        state = dict(zip(names, parts, strict=True))
        out.append(float(loss(torch.func.functional_call(exact, state, (x,)), y)))
    return np.array(out)


def split(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat vector (n,), shaped as the parameters."""
    parts = vector.split([p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
