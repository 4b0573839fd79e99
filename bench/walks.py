"""Walks: 100 progressive gradient walks of 100 points, XOR and Iris, against a vmapped torch walk.

The torch walk is what one would write: torch.func.vmap of grad_and_value over all walks at every
step, in float64, losses and gradient norms kept.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pylandscape.clouds.walk_steps import Streams
from pylandscape.clouds.walks import gradient_walk
from pylandscape.landscape import Landscape

from .harness import Arm, Row, interleave, rows
from .w2 import _iris
from .workloads import mlp, reference, split, spread

BOUND, FRACTION = 1.0, 0.1
RTOL = 1e-9


def walks(quick: bool, repetitions: int) -> list[Row]:
    torch.manual_seed(0)
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    label = torch.tensor([[0.0], [1], [1], [0]])
    x, y = _iris()
    one_hot = F.one_hot(y, 3).to(x)
    cases = (
        ("XOR 2-2-1 sigmoid", mlp(2, 2, 1, activation=nn.Sigmoid), corners, label, 25),
        ("XOR 2-2-2-1 ReLU", mlp(2, 2, 2, 1), corners, label, 20),
        ("Iris 4-4-4-3 ReLU", mlp(4, 4, 4, 3), x, one_hot, 20),
    )
    table = []
    for name, model, inputs, target, wanted in cases:
        table += _case(name, model, inputs, target, wanted, quick, repetitions)
    return table


def _case(
    name: str, model: nn.Module, x: Tensor, y: Tensor, wanted: float, quick: bool, repetitions: int
) -> list[Row]:
    count, steps = (6, 5) if quick else (100, 100)
    land = Landscape(model, "mse", (x, y))

    def ours() -> Any:
        return gradient_walk(land, count, steps, BOUND, FRACTION, progress=False)

    peer = _TorchWalk(model, x.double(), y.double(), count, steps)
    arms = [
        Arm("pylandscape gradient_walk", ours, count * steps),
        Arm("torch.func.vmap walk", peer.run, count * steps, wanted),
    ]
    found = ours()
    sample = spread(50, count * steps)
    points = torch.as_tensor(found.flat())[torch.as_tensor(sample)]
    want = reference(model, F.mse_loss, x, y, points)
    arms[0].check(found.losses.ravel()[sample], want, RTOL)
    # with our random numbers, the torch walk goes where ours goes
    draws = Streams(0, range(count), land.n_params).next(steps)
    same = peer.walk(torch.as_tensor(np.ascontiguousarray(draws)))
    arms[1].check(same[1].T.ravel()[torch.as_tensor(sample)], want, RTOL)
    interleave(arms, repetitions)
    return rows(f"{count} walks x {steps}, {name}", arms[0], arms[1:], "point")


class _TorchWalk:
    """All walks at once, step by step."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, count: int, steps: int) -> None:
        exact = copy.deepcopy(model).double().requires_grad_(False)
        names = [name for name, _ in exact.named_parameters()]
        parameters = list(exact.parameters())
        self.n = sum(p.numel() for p in parameters)
        self.count, self.steps = count, steps

        def loss(theta: Tensor) -> Tensor:
            state = dict(zip(names, split(theta, parameters), strict=True))
            return F.mse_loss(torch.func.functional_call(exact, state, (x,)), y)

        self.both = torch.func.vmap(torch.func.grad_and_value(loss))
        self.generator = torch.Generator().manual_seed(0)

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        shape = (self.steps, self.count, self.n)
        return self.walk(torch.rand(shape, generator=self.generator, dtype=torch.float64))

    def walk(self, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points (T, W, n), losses (T, W), gradient norms (T, W)."""
        points = torch.empty_like(uniform)
        losses = torch.empty(uniform.shape[:2], dtype=torch.float64)
        norms = torch.empty_like(losses)
        longest = FRACTION * 2 * BOUND
        theta = BOUND * (2 * uniform[0] - 1)
        for t in range(self.steps):
            gradient, losses[t] = self.both(theta)
            points[t], norms[t] = theta, gradient.norm(dim=1)
            if t + 1 < self.steps:
                step = longest * uniform[t + 1]
                theta = theta + torch.where(gradient > 0, -step, step)
        return points, losses, norms
