"""Landscapes with known answers, for the tests of grids, files and journals."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import pylandscape
from pylandscape.landscape import Landscape


class Point(nn.Module):
    """A model that is nothing but its parameters."""

    def __init__(self, theta: np.ndarray) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(theta, dtype=torch.float64))


def scalar_landscape(f, theta) -> Landscape:
    """L(theta) = f(theta), f on float64 tensors (n,)."""
    return Landscape(
        Point(np.asarray(theta)), objective=lambda m, _: f(m.theta), data=[torch.zeros(1)]
    )


def quadratic(curvature, theta=None) -> Landscape:
    """L(theta) = sum_i curvature_i theta_i^2 / 2, centred at `theta` (default 0)."""
    a = torch.as_tensor(curvature, dtype=torch.float64)
    return scalar_landscape(
        lambda t: 0.5 * (a * t * t).sum(), np.zeros(len(a)) if theta is None else theta
    )


def classifier(seed: int = 0, *, engine: str = "native", unit=nn.Tanh) -> Landscape:
    """A small MLP with cross-entropy on 40 random points."""
    gen = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), unit(), nn.Linear(6, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=gen))
    x = torch.randn(40, 4, generator=gen)
    y = torch.randint(0, 3, (40,), generator=gen)
    return Landscape(model, nn.CrossEntropyLoss(), (x, y), engine=engine)


def directions(land: Landscape, count: int, seed: int = 1) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(count, land.n_params, generator=gen, dtype=torch.float64).to(
        land.theta.dtype
    )


def child_environment() -> dict[str, str]:
    """For a Python process that imports the same pylandscape and these tests."""
    folders = [str(Path(pylandscape.__file__).parents[1]), str(Path(__file__).parent)]
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, *([before] if before else [])])}


def run_python(*words: str) -> subprocess.CompletedProcess[str]:
    """``python words...`` away from a checkout, whose folder would hide an installed package."""
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=child_environment(),
        cwd=tempfile.gettempdir(),
    )
