"""Fully connected networks of any depth: plain, with shortcuts, or densely connected."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .datasets import Images
from .networks import seeded


class Block(nn.Module):
    """f(h) = relu(norm(W h + c)): h + f(h) with a shortcut, f(h) without, (h, f(h)) if dense."""

    def __init__(self, inner: int, outer: int, kind: str, bn: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inner, outer)
        self.norm: nn.Module = nn.BatchNorm1d(outer) if bn else nn.Identity()
        self.act = nn.ReLU()
        self.kind = kind

    def forward(self, h: Tensor) -> Tensor:
        found: Tensor = self.act(self.norm(self.linear(h)))
        if self.kind == "residual":
            return h + found
        return torch.cat([h, found], dim=1) if self.kind == "dense" else found


def mlp(
    data: Images, depth: int, width: int, kind: str = "residual", *, bn: bool = True, seed: int = 0
) -> nn.Sequential:
    """A linear layer, ``depth`` blocks and a linear read-out; ``kind``: "residual", "plain" or
    "dense" (each block adds a quarter of the width to what all later ones see)."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = [
            nn.Flatten(), nn.Linear(data.channels * data.side**2, width), nn.ReLU()
        ]  # fmt: skip
        inner = width
        for _ in range(depth):
            outer = max(1, width // 4) if kind == "dense" else width
            layers.append(Block(inner, outer, kind, bn))
            inner = inner + outer if kind == "dense" else width
        return nn.Sequential(*layers, nn.Linear(inner, data.classes))

    found: nn.Sequential = seeded(build, seed)
    return found
