"""Barriers between 10 models of 784-20-10 and average-case flatness, against torch's loops.

Barriers: all 45 lines of 25 points; loss-landscapes' `linear_interpolation` samples t = 1/s .. 1 of
each line in the same number of points. Flatness: 1,000 draws of the element-wise adaptive average
case; independent draws lose the first layer's identity, so that a draw costs a whole forward pass.
Curve: steps of Adam on the bend of a Bezier curve, 4 points of it and all data a step.
"""

from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl

from .harness import Arm, Row, absent, interleave, rows
from .workloads import digits, mlp, reference, split, spread

POINTS, RTOL = 25, 1e-4  # float32 outputs
RHO = 0.1


def connectivity(quick: bool, repetitions: int) -> list[Row]:
    torch.manual_seed(0)
    x, y = digits()
    count, draws = (3, 8) if quick else (10, 500)
    models = [mlp(784, 20, 10) for _ in range(count)]
    land = pl.Landscape(models[0], "cross_entropy", (x, y), engine="native")
    return [
        *_barriers(land, models, x, y, repetitions),
        *_flatness(land, x, y, draws, repetitions),
        *_curve(land, models[:2], x, y, 3 if quick else 50, repetitions),
    ]


def _barriers(
    land: pl.Landscape, models: list[nn.Module], x: Tensor, y: Tensor, repetitions: int
) -> list[Row]:
    pairs = list(combinations(range(len(models)), 2))
    units = len(pairs) * POINTS
    name = f"barriers, {len(models)} models of 784-20-10, {POINTS} points a pair"
    thetas = torch.stack([torch.nn.utils.parameters_to_vector(m.parameters()) for m in models])
    thetas = thetas.detach()
    alpha = torch.linspace(0, 1, POINTS, dtype=torch.float64)

    def ours() -> np.ndarray:
        found = pl.barriers(land, models, points=POINTS, progress=False)
        return np.concatenate([found.values[i, j] for i, j in pairs])

    mine = Arm("pylandscape barriers()", ours, units, note="with functional distances")
    lines = torch.stack([a * thetas[j] + (1 - a) * thetas[i] for i, j in pairs for a in alpha])
    sample = spread(12, units)
    want = reference(models[0], F.cross_entropy, x, y, lines[torch.as_tensor(sample)])
    mine.check(ours()[sample], want, RTOL)
    probe = copy.deepcopy(models[0]).requires_grad_(False)
    own = list(probe.parameters())

    def loop() -> np.ndarray:
        out = []
        with torch.inference_mode():
            for i, j in pairs:
                for a in alpha.tolist():
                    parts = split(torch.lerp(thetas[i], thetas[j], a), own)
                    torch._foreach_copy_(own, parts)
                    out.append(float(F.cross_entropy(probe(x), y)))
        return np.array(out)

    arms = [Arm("torch loop", loop, units, 20)]
    arms[0].check(loop()[sample], want, RTOL)
    table: list[Row] = []
    try:
        from loss_landscapes import linear_interpolation
        from loss_landscapes.metrics import Loss
    except ImportError:
        table.append(absent(name, "loss-landscapes 3.0.6 linear_interpolation", "not installed"))
    else:
        metric = Loss(F.cross_entropy, x, y)

        def peer() -> np.ndarray:
            found = [
                linear_interpolation(models[i], models[j], metric, POINTS, deepcopy_model=True)
                for i, j in pairs
            ]
            return np.concatenate(found)

        arms.append(Arm("loss-landscapes 3.0.6 linear_interpolation", peer, units, 20))
        ends = [POINTS * (k + 1) - 1 for k in range(len(pairs))]  # its last point is the second
        arms[-1].check(peer()[ends], ours()[ends], RTOL)
    interleave([mine, *arms], repetitions)
    return rows(name, mine, arms, "point") + table


def _flatness(land: pl.Landscape, x: Tensor, y: Tensor, draws: int, repetitions: int) -> list[Row]:
    name = f"adaptive average flatness, {2 * draws} draws, 784-20-10"

    def ours() -> pl.FlatnessRow:
        found = pl.flatness(land, ("average_element",), rho=RHO, draws=draws)
        return found["average_element"]

    mine = Arm("pylandscape flatness()", ours, 2 * draws)
    probe = copy.deepcopy(land.model).requires_grad_(False)
    own = list(probe.parameters())
    theta = land.theta.clone()
    generator = torch.Generator().manual_seed(0)

    def loop() -> np.ndarray:
        rises = np.empty(2 * draws)
        with torch.inference_mode():
            base = float(F.cross_entropy(probe(x), y))
            for i in range(draws):
                step = RHO * theta.abs() * torch.randn(theta.shape, generator=generator)
                for k, sign in enumerate((1, -1)):
                    torch._foreach_copy_(own, split(theta + sign * step, own))
                    rises[2 * i + k] = float(F.cross_entropy(probe(x), y)) - base
            torch._foreach_copy_(own, split(theta, own))
        return rises

    arm = Arm("torch loop", loop, 2 * draws, 4)
    row, found = ours(), loop()  # other draws: they agree within their errors
    error = float(np.hypot(row.standard_error, found.reshape(-1, 2).mean(1).std() / draws**0.5))
    assert abs(row.value - found.mean()) < 5 * error, (row.value, found.mean(), error)
    mine.error, arm.error = row.standard_error / row.value, error / row.value
    interleave([mine, arm], repetitions)
    return rows(name, mine, [arm], "draw")


def _curve(
    land: pl.Landscape, models: list[nn.Module], x: Tensor, y: Tensor, steps: int, repetitions: int
) -> list[Row]:
    name, samples, rate = f"Bezier curve, 784-20-10, {steps} steps", 4, 0.01

    def ours() -> np.ndarray:
        found = pl.connect(
            land, *models, steps=steps, lr=rate, samples=samples, points=3, progress=False
        )
        return found.vertices[1]

    first, last = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in models)
    own = [p.detach() for p in land.model.parameters()]
    names = [n for n, _ in land.model.named_parameters()]

    def loop(double: bool = False) -> np.ndarray:
        kind = torch.float64 if double else torch.float32
        a, b, inputs = first.to(kind), last.to(kind), x.to(kind)
        bend = torch.nn.Parameter((a + b) / 2)
        adam = torch.optim.Adam([bend], lr=rate)
        for k in range(steps):
            adam.param_groups[0]["lr"] = 0.5 * rate * (1.0 + np.cos(np.pi * k / steps))
            adam.zero_grad()
            u = np.random.default_rng([0, k]).random(samples)
            for t in ((np.arange(samples) + u) / samples).tolist():
                theta = (1 - t) ** 2 * a + 2 * t * (1 - t) * bend + t**2 * b
                parts = dict(zip(names, split(theta, own), strict=True))
                out = torch.func.functional_call(land.model, parts, (inputs,))
                (F.cross_entropy(out, y) / samples).backward()
            adam.step()
        return bend.detach().numpy()

    mine, arm = Arm("pylandscape connect()", ours, steps), Arm("torch loop", loop, steps, 4)
    want = loop(double=True)
    for each in (mine, arm):
        gap = np.linalg.norm(each.run() - want) / np.linalg.norm(want)
        each.error = float(gap)
        assert each.error < 1e-2, (each.name, each.error)  # Adam's first steps have the sign of g
    interleave([mine, arm], repetitions)
    return rows(name, mine, [arm], "step")
