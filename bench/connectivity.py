"""Barriers between 10 models of 784-20-10 and average-case flatness, against torch's loops.

Barriers: all 45 lines of 25 points; loss-landscapes' `linear_interpolation` samples t = 1/s .. 1 of
each line in the same number of points. Flatness: 1,000 draws of the element-wise adaptive average
case; independent draws lose the first layer's identity, so that a draw costs a whole forward pass.
Curve: steps of Adam on the bend of a Bezier curve, 4 points of it and all data a step.
Recomputed: lines between ResNets whose running statistics are found anew at every point, against
torch.optim.swa_utils.update_bn and a forward pass. Alignment: weight matching of two networks, of
which one is the other with small noise and its units shuffled, so that the true order is known.
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
from .networks import ResNet, settle
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
        *_recomputed(quick, repetitions),
        *_alignment("MLP 784-512-512-10", _mlp(quick), repetitions),
        *_alignment("VGG-16", _vgg(quick), repetitions),
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


def _recomputed(quick: bool, repetitions: int) -> list[Row]:
    depth, count, points = (8, 2, 3) if quick else (20, 4, 6)
    samples, size = (8, 8) if quick else (32, 32)
    x, y = torch.randn(samples, 3, size, size), torch.randint(0, 10, (samples,))
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, samples, 16)]
    models = [settle(ResNet(depth), x) for _ in range(count)]
    land = pl.Landscape(models[0], "cross_entropy", batches, bn="recompute", engine="native")
    pairs = list(combinations(range(count), 2))
    alpha = np.linspace(0, 1, points)
    units = count + len(pairs) * (points - 2)
    name = f"barriers, {count} ResNet-{depth}, bn='recompute', {points} points a pair"

    def ours() -> np.ndarray:
        found = pl.barriers(land, models, points=points, progress=False)
        return np.concatenate([found.values[i, j] for i, j in pairs])

    probe = copy.deepcopy(models[0])
    own = list(probe.parameters())
    thetas = [[p.detach() for p in m.parameters()] for m in models]

    def at(parts: list[Tensor]) -> float:
        with torch.no_grad():
            torch._foreach_copy_(own, parts)
            torch.optim.swa_utils.update_bn(batches, probe)
            probe.eval()
            return sum(float(F.cross_entropy(probe(a), b, reduction="sum")) for a, b in batches)

    def loop() -> np.ndarray:
        ends = [at(parts) / samples for parts in thetas]
        out = []
        for i, j in pairs:
            inner = [
                at(torch._foreach_lerp(thetas[i], thetas[j], float(a))) / samples
                for a in alpha[1:-1]
            ]
            out += [ends[i], *inner, ends[j]]
        return np.array(out)

    mine, arm = Arm("pylandscape barriers()", ours, units), Arm("torch loop", loop, units, 2)
    arm.note = "update_bn, then a forward pass"
    mine.check(ours(), loop(), 1e-3)  # float32 both
    interleave([mine, arm], repetitions)
    return rows(name, mine, [arm], "point")


def _mlp(quick: bool) -> tuple[nn.Module, Tensor]:
    return (
        (mlp(8, 6, 6, 3), torch.randn(4, 8))
        if quick
        else (mlp(784, 512, 512, 10), torch.randn(16, 784))
    )


def _vgg(quick: bool) -> tuple[nn.Module, Tensor]:
    """VGG-16's convolutions with batch norm, its widths a quarter of the paper's."""
    widths = (
        [4, "M", 6, "M"]
        if quick
        else [16, 16, "M", 32, 32, "M", 64, 64, 64, "M", 128, 128, 128, "M", 128, 128, 128, "M"]
    )
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    size = 4 if quick else 32
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)]
    x = torch.randn(4, 3, size, size)
    return settle(nn.Sequential(*layers), x), x


def _alignment(name: str, made: tuple[nn.Module, Tensor], repetitions: int) -> list[Row]:
    """Both get the model and a noisy copy of it in another order of its units."""
    model, x = made
    model = model.eval()
    y = torch.zeros(len(x), dtype=torch.int64)
    land = pl.Landscape(model, "cross_entropy", (x, y))
    other = _shuffled(model)
    weights = [p.detach() for p in other.parameters() if p.dim() > 1]
    noise = [0.1 * p.std() * torch.randn_like(p) for p in weights]
    torch._foreach_add_(weights, noise)
    workload = f"weight matching, {name}"
    want = float(torch.sqrt(sum((n.double() ** 2).sum() for n in noise)))

    def ours() -> float:
        return pl.align(land, model, other, points=0, progress=False).distance[1]

    mine = Arm("pylandscape align()", ours, note="with the proof on the data")
    mine.check(ours(), want, 1e-4)
    try:
        from rebasin import PermutationCoordinateDescent
    except ImportError:
        interleave([mine], repetitions)
        missing = absent(workload, "rebasin 0.0.47", "not installed, or torchview")
        return [*rows(workload, mine, [], "run"), missing]

    def peer() -> float:
        moved = copy.deepcopy(other)
        PermutationCoordinateDescent(model, moved, x[:1]).rebasin()
        pairs = zip(model.parameters(), moved.parameters(), strict=True)
        return float(torch.sqrt(sum(((a - b).detach().double() ** 2).sum() for a, b in pairs)))

    arm = Arm("rebasin 0.0.47", peer, 1, 1)
    found = peer()
    arm.error = abs(found - want) / want
    assert want <= found * (1 + 1e-4), (want, found)  # ours is the true order
    interleave([mine, arm], repetitions)
    return rows(workload, mine, [arm], "run")


def _shuffled(model: nn.Module) -> nn.Module:
    """The same function with the units of each hidden layer of a chain at random places."""
    other = copy.deepcopy(model)
    order: Tensor | None = None
    layers = [m for m in other if any(True for _ in m.parameters())]
    last = [m for m in layers if not isinstance(m, nn.BatchNorm2d)][-1]
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.BatchNorm2d):
                for t in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                    t.copy_(t[order])
                continue
            if order is not None:
                layer.weight.copy_(layer.weight[:, order])
            if layer is not last:
                order = torch.randperm(len(layer.weight))
                layer.weight.copy_(layer.weight[order])
                layer.bias.copy_(layer.bias[order])
    return other
