"""Tiny members of the families of bench/networks.py, their data, and exact losses over a plane."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl

sys.path.append(str(Path(__file__).parent.parent))  # behind an installed package

from bench import networks
from bench.workloads import reference

CLASSES = 5
FAR = 1e6  # the loss that the far points reach


@dataclass(frozen=True)
class Family:
    """How to make a tiny member, the shape of a sample, and how many layers a value goes through.

    A shape of one number is a length of tokens below CLASSES.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    depth: int
    samples: int = 13
    steps: int = 12

    def data(self) -> tuple[Tensor, Tensor]:
        if len(self.shape) == 1:
            text = torch.randint(0, CLASSES, (self.samples, self.shape[0] + 1))
            return text[:, :-1].contiguous(), text[:, 1:].contiguous()
        return torch.randn(self.samples, *self.shape), torch.randint(0, CLASSES, (self.samples,))


_PLAN = (5, "M", 9, 7, "M", 11, "M")
_lenet = partial(networks.lenet, 13, 2, (3, 5, 11, 9), CLASSES)
_nin = partial(networks.nin, width=12, classes=CLASSES)
_vgg = partial(networks.vgg, _PLAN, 9, hidden=17, classes=CLASSES)
_resnet = partial(networks.ResNet, classes=CLASSES)
_vit = partial(networks.ViT, 12, 3, 12, 2, 3, classes=CLASSES)

FAMILIES = {
    "LeNet": Family(_lenet, (2, 13, 13), 5),
    "LeNet with BN and dropout": Family(partial(_lenet, bn=True, dropout=0.5), (2, 13, 13), 7),
    "NIN": Family(partial(_nin, dropout=0.0), (3, 9, 9), 9),
    "NIN with BN and dropout": Family(partial(_nin, bn=True), (3, 9, 9), 18),
    "VGG": Family(partial(_vgg, dropout=0.0), (3, 9, 9), 6),
    "VGG with BN and dropout": Family(partial(_vgg, bn=True), (3, 9, 9), 10),
    "DCNN": Family(
        partial(networks.dcnn, (12, 6, 6, 6, 6), side=32, classes=CLASSES), (3, 32, 32), 11
    ),
    "ResNet-20, option A": Family(partial(_resnet, 20, 5), (3, 9, 9), 20),
    "ResNet-20, option B": Family(partial(_resnet, 20, 4, shortcut="B"), (3, 8, 8), 20),
    "ResNet-20, no shortcuts": Family(partial(_resnet, 20, 4, shortcut=None), (3, 8, 8), 20),
    "ResNet-56": Family(partial(_resnet, 56, 3), (3, 8, 8), 56, samples=6, steps=4),
    "ResNet-56, no shortcuts": Family(
        partial(_resnet, 56, 3, shortcut=None), (3, 8, 8), 56, samples=6, steps=4
    ),
    "Wide-ResNet": Family(partial(networks.wide_resnet, 10, 2, 4, classes=CLASSES), (3, 8, 8), 10),
    "DenseNet-BC": Family(partial(networks.densenet_bc, 3, 4, classes=CLASSES), (3, 8, 8), 22),
    "ViT": Family(_vit, (3, 12, 12), 18),
    "ViT with a class token and nn.MultiheadAttention": Family(
        partial(_vit, token="class", attention=networks.TorchAttention), (3, 12, 12), 18
    ),
    "LSTM language model": Family(partial(networks.LanguageModel, CLASSES, 10), (7,), 16),
}


def member(name: str, trained: bool, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    """A random or briefly trained member in eval mode, and its data.

    Both have seen the data in train mode, so that batch norm has statistics of them.
    """
    family = FAMILIES[name]
    model = family.make()
    x, y = family.data()
    steps = family.steps if trained else 2
    optimiser = torch.optim.Adam(model.parameters(), 1e-2 if trained else 0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    if dtype is torch.float64 and x.is_floating_point():
        x = x.double()
    return model.to(dtype).eval(), x, y


def landscape(model: nn.Module, x: Tensor, y: Tensor, engine: str = "native") -> pl.Landscape:
    return pl.Landscape(model, "cross_entropy", (x, y), engine=engine)


def plane(land: pl.Landscape) -> Tensor:
    """Two directions (2, n): filter-normalised as in papers, and Gaussian in all parameters."""
    (one,) = pl.random_directions(land, 1, seed=3)
    other = torch.randn(land.n_params, generator=torch.Generator().manual_seed(4))
    scale = land.theta.abs().mean()
    return torch.stack([one.vector, other.to(land.theta) * scale])


def losses_at(land: pl.Landscape, x: Tensor, y: Tensor, c: Tensor, d: Tensor) -> np.ndarray:
    """Losses at theta + C D by float64 torch."""
    points = land.theta.double() + c.double() @ d.double()
    return reference(land.model, F.cross_entropy, x, y, points)


def grid(land: pl.Landscape, x: Tensor, y: Tensor, d: Tensor) -> Tensor:
    """Coefficients (G, 2) of a plane: 3 x 3 points near theta, and some where the loss is FAR."""
    near = torch.tensor([-1.0, 0.0, 0.7], dtype=torch.float64)
    corner, radius = torch.ones(1, 2, dtype=torch.float64), 1.4
    while losses_at(land, x, y, radius * corner, d)[0] < FAR:
        radius *= 1.4
        assert radius < 1e12, "the loss does not grow"
    far = radius * torch.tensor([[1.0, 1], [-1, 1], [1, -0.5], [0, 0.5]], dtype=torch.float64)
    return torch.cat([torch.cartesian_prod(near, near), far])


def worst_error(got: np.ndarray, want: np.ndarray, depth: int, dtype: torch.dtype) -> float:
    """Largest error in units of what is allowed: 20 eps depth (|loss| + 0.01)."""
    allowed = 20 * torch.finfo(dtype).eps * depth * (np.abs(want) + 0.01)
    return float(np.max(np.abs(got - want) / allowed))
