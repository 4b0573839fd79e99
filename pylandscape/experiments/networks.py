"""The networks of the studies: small forms of those in the papers, and the papers' own sizes.

All are drawn from a seed and leave torch's random state alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .datasets import Images, Text


def seeded(build: Callable[[], nn.Module], seed: int) -> Any:
    """What ``build`` makes under a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def nin(data: Images, width: int = 8, bn: bool = True, seed: int = 0) -> nn.Sequential:
    """Network in network (Lin et al. 2014): three blocks of a convolution and 1 x 1 convolutions,
    pooled over the whole image at the end. The paper's has width 192 (two 1 x 1 a block)."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        inner = data.channels
        for block, size in enumerate((5, 3, 3)):
            outer = width if block == 0 else 2 * width
            layers += [*_conv(inner, outer, size, bn), *_conv(outer, outer, 1, bn)]
            if block < 2:
                layers += [nn.MaxPool2d(2)]
            inner = outer
        layers += [nn.Conv2d(inner, data.classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers)

    found: nn.Sequential = seeded(build, seed)
    return found


def vgg(data: Images, width: int = 8, bn: bool = True, seed: int = 0) -> nn.Sequential:
    """VGG (Simonyan, Zisserman 2015): pairs of 3 x 3 convolutions, halved by pooling, and two fully
    connected layers."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        inner, side = data.channels, data.side
        for outer in (width, 2 * width):
            layers += [*_conv(inner, outer, 3, bn), *_conv(outer, outer, 3, bn), nn.MaxPool2d(2)]
            inner, side = outer, side // 2
        layers += [nn.Flatten(), nn.Linear(inner * side * side, 4 * width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(4 * width, data.classes))

    found: nn.Sequential = seeded(build, seed)
    return found


def fc2(data: Images, width: int = 32, bn: bool = False, seed: int = 0) -> nn.Sequential:
    """Two hidden layers, fully connected, ReLU."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        inner = data.channels * data.side**2
        for _ in range(2):
            norm: list[nn.Module] = [nn.BatchNorm1d(width)] if bn else []
            layers += [nn.Linear(inner, width), *norm, nn.ReLU()]
            inner = width
        return nn.Sequential(*layers, nn.Linear(inner, data.classes))

    found: nn.Sequential = seeded(build, seed)
    return found


def dcnn(data: Images, widths: tuple[int, ...] = (128, 64, 64, 64, 64), seed: int = 0,
         bn: bool = True) -> nn.Sequential:  # fmt: skip
    """Five 3 x 3 convolutions with stride 2 and ReLU, and a linear read-out: 188,810 parameters at
    3 x 32 x 32 (Zhang et al.). Batch norm has no factors and offsets of its own."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        inner, side = data.channels, data.side
        for outer in widths:
            stride = 2 if side > 1 else 1
            norm: list[nn.Module] = [nn.BatchNorm2d(outer, affine=False)] if bn else []
            layers += [nn.Conv2d(inner, outer, 3, stride, 1), *norm, nn.ReLU()]
            inner, side = outer, -(-side // stride)
        layers += [nn.Flatten(), nn.Linear(inner * side * side, data.classes)]
        return nn.Sequential(*layers)

    found: nn.Sequential = seeded(build, seed)
    return found


class WordLSTM(nn.Module):
    """Next-word prediction: embedding, LSTM, linear read-out; (N, T) -> (N, words, T)."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.out = nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.lstm(self.embedding(x))[0]).transpose(1, 2)
        return found


def lstm(data: Text, width: int = 16, seed: int = 0) -> WordLSTM:
    """A `WordLSTM` of the words of a text."""
    found: WordLSTM = seeded(lambda: WordLSTM(len(data.words), width), seed)
    return found


def _conv(inner: int, outer: int, size: int, bn: bool) -> list[nn.Module]:
    norm: list[nn.Module] = [nn.BatchNorm2d(outer)] if bn else []
    return [nn.Conv2d(inner, outer, size, padding=size // 2), *norm, nn.ReLU()]
