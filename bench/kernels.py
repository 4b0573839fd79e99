"""Kernels alone: products as a share of the sgemm peak, the others of the copy bandwidth.

The kernels of the program run inside programs that are little else. Where an op stands between
thin layers, it stands there several times over, and the time of a program that has it once is
taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pylandscape._native import core

from .harness import Arm, Row, interleave, sgemm_arms

RTOL = 1e-4
COPIES = {"exp": 3}  # of an elementwise op; exp of exp overflows soon
MANY = 17
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.1),  # relu is part of the linear kernel
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
    "exp": torch.exp,
}
PARAMETERS = {"leaky_relu": (0.1, 0.0), "softplus": (1.0, 20.0)}


@dataclass(frozen=True)
class Layer:
    """A linear layer k -> m (``name`` "linear"), or an elementwise op."""

    name: str
    k: int = 0
    m: int = 0


@dataclass
class Rate:
    """``arm`` (less ``less``) does ``work`` billions of ``unit``s, moving ``gigabytes``."""

    arm: Arm
    work: float
    unit: str = "GFLOP/s"
    gigabytes: float | None = None
    less: Arm | None = None

    def seconds(self) -> np.ndarray:
        own = np.array(self.arm.seconds)
        return own if self.less is None else own - np.array(self.less.seconds)


def microbenchmarks(quick: bool, repetitions: int) -> list[Row]:
    torch.manual_seed(0)
    size, big, samples = (128, 10_000, 64) if quick else (2048, 16_000_000, 2048)
    u, v = torch.randn(big), torch.empty(big)
    products = [Rate(arm, 1e-9 * arm.units) for arm in sgemm_arms(size)]
    copy = Rate(Arm(f"torch copy_ {big:,}", lambda: v.copy_(u)), 0, "GB/s", 8e-9 * big)
    rates = [*products, copy]
    rates += [_product(k, m, samples, quick) for k, m in ((20, 10), (64, 64), (512, 512))]
    rates += [_product(10, 10, 150, quick, points=16 if quick else 4096)]
    rates += [_combination(samples, quick)]
    for name in UNARY:
        rates += _elementwise(name, samples, quick)
    rates += [
        _loss("cross_entropy", 10, samples, quick),
        _loss("bce_with_logits", 10, samples, quick),
    ]
    rates += _directions(big // 4)
    arms = [arm for rate in rates for arm in (rate.arm, rate.less) if arm is not None]
    interleave(arms, repetitions)
    peak = min(products, key=lambda rate: float(np.median(rate.seconds())))
    top = peak.work / peak.seconds()
    bandwidth = (copy.gigabytes or 0) / copy.seconds()
    return [_row(rate, top, bandwidth) for rate in rates]


def _row(rate: Rate, top: np.ndarray, bandwidth: np.ndarray) -> Row:
    seconds = rate.seconds()
    row: Row = {"workload": "kernels", "arm": rate.arm.name, "error": rate.arm.error}
    row["median_us"] = float(np.median(seconds)) * 1e6
    if rate.work:
        row["rate"], row["unit"] = float(np.median(rate.work / seconds)), rate.unit
    if rate.work and rate.unit == "GFLOP/s":
        row["share_of_sgemm"] = float(np.median(rate.work / seconds / top))
    if rate.gigabytes:
        row["gigabytes_per_second"] = float(np.median(rate.gigabytes / seconds))
        row["share_of_copy"] = float(np.median(rate.gigabytes / seconds / bandwidth))
    return row


def as_markdown(table: Sequence[Row]) -> str:
    lines = ["| kernel | rate | of the sgemm peak | GB/s | of the copy |", "|---|---|---|---|---|"]
    for row in table:
        rate = f"{row['rate']:.3g} {row['unit']}" if "rate" in row else ""
        product = f"{row['share_of_sgemm']:.0%}" if "share_of_sgemm" in row else ""
        moved = f"{row['gigabytes_per_second']:.3g}" if "share_of_copy" in row else ""
        share = f"{row['share_of_copy']:.0%}" if "share_of_copy" in row else ""
        lines.append(f"| {row['arm']} | {rate} | {product} | {moved} | {share} |")
    return "\n".join(lines)


def _product(k: int, m: int, samples: int, quick: bool, points: int | None = None) -> Rate:
    """Three layers k -> m -> k -> m at random points, and one to the loss, which is not counted."""
    points = points or (2 if quick else max(8, 100_000 // (k * m)))
    layers = [Layer("linear", *s) for s in ((k, m), (m, k), (k, m), (m, 1))]
    arm = _arm(f"linear {k}x{m}, {samples} samples, {points} points", layers, samples, points)
    return Rate(arm, 6e-9 * k * m * samples * points)


def _elementwise(name: str, samples: int, quick: bool) -> list[Rate]:
    wide, points = (32, 2) if quick else (256, 16)
    count = COPIES.get(name, MANY)

    def arm(copies: int) -> Arm:
        layers = [Layer("linear", 1, wide), *[Layer(name)] * copies, Layer("linear", wide, 1)]
        return _arm(name, layers, samples, points)

    elements = 1e-9 * (count - 1) * wide * samples * points
    return [Rate(arm(count), elements, "G elements/s", 8 * elements, less=arm(1))]


def _combination(samples: int, quick: bool) -> Rate:
    """The first layer by its identity: z0 + a z1 + b z2, and one feature out."""
    wide, points = (32, 4) if quick else (256, 64)
    layers = [Layer("linear", 8, wide), Layer("linear", wide, 1)]
    elements = 1e-9 * wide * samples * points
    arm = _arm(f"first layer combined, 2 directions, {wide} wide", layers, samples, points, plane=2)
    return Rate(arm, elements, "G elements/s", 16 * elements)


def _loss(kind: str, features: int, samples: int, quick: bool) -> Rate:
    points = 2 if quick else 256
    name = f"{kind}, {features} outputs (with the thin layer before it)"
    arm = _arm(name, [Layer("linear", 1, features)], samples, points, loss=kind)
    return Rate(arm, 1e-9 * features * samples * points, "G elements/s")


def _directions(n: int) -> list[Rate]:
    out, theta, raw = torch.empty(n), torch.randn(n), torch.randn(n)
    d = torch.randn(2, n)
    c = torch.tensor([[0.25, -0.5]], dtype=torch.float64)
    moved = torch.empty(1, n)
    edges = torch.arange(0, n + 1, max(1, n // 1000))
    segments = torch.stack([edges[:-1], edges[1:]], dim=1)
    ops = torch.ops.pylandscape
    g = 1e-9 * n
    return [
        Rate(Arm("gaussian", lambda: ops.gaussian(1, 2, 0, out=out)), g, "G numbers/s", 4 * g),
        Rate(
            Arm(
                "normalize_direction",
                lambda: ops.normalize_direction(raw, theta, segments, "filter", out=out),
            ),
            g,
            "G numbers/s",
            12 * g,
        ),
        Rate(
            Arm(
                "random_direction",
                lambda: ops.random_direction(theta, segments, "filter", 1, 0, out=out),
            ),
            g,
            "G numbers/s",
            8 * g,
        ),
        Rate(
            Arm("perturb, 2 directions", lambda: ops.perturb(theta, c, d, out=moved)),
            g,
            "G numbers/s",
            16 * g,
        ),
    ]


def _arm(
    name: str,
    layers: list[Layer],
    samples: int,
    points: int,
    plane: int = 0,
    loss: str = "mse",
) -> Arm:
    """The program's losses at random points, or at points of a ``plane`` of that dimension."""
    n = sum(layer.k * layer.m for layer in layers)
    theta = torch.cat([torch.randn(s.k * s.m) / max(s.k, 1) ** 0.5 for s in layers])
    x = torch.randn(samples, layers[0].k)
    width = layers[-1].m
    dense = torch.rand(samples, width, dtype=torch.float64)
    index = torch.randint(0, width, (samples,))
    program = core.ProgramF32(n, 0, 0)
    slot, at = program.input(layers[0].k), 0
    for layer in layers:
        if layer.name == "linear":
            slot = program.linear(slot, 1, layer.k, layer.m, at, None)
            at += layer.k * layer.m
        else:
            slope = PARAMETERS.get(layer.name, (0.0, 0.0))
            slot = program.unary(slot, getattr(core.Unary, layer.name), *slope)
    program.finish(slot)
    program.set_data(samples, x.data_ptr())
    by_class = loss == "cross_entropy"
    targets = (index.data_ptr(), 0) if by_class else (0, dense.data_ptr())
    program.set_loss(getattr(core.Loss, loss), width, 1, 0.0, [], [], *targets)
    if plane:
        directions = torch.randn(plane, n) * 0.1
        coordinates = torch.randn(points, plane)
        question = core.QuestionF32(program, theta.data_ptr(), directions.data_ptr(), plane)
        thetas = theta + coordinates @ directions
    else:
        thetas = coordinates = theta * (1 + 0.1 * torch.randn(points, n))
        question = core.QuestionF32(program)
    out = np.empty(points)

    def run() -> np.ndarray:
        question.run(points, coordinates.data_ptr(), out.ctypes.data, 0, 0)
        return out

    arm = Arm(name, run)
    want = [
        _exact(layers, t.double(), x.double(), index if by_class else dense, loss)
        for t in thetas[:3]
    ]
    arm.check(run()[:3] / samples, want, RTOL)
    return arm


def _exact(layers: list[Layer], theta: Tensor, x: Tensor, target: Tensor, loss: str) -> float:
    at = 0
    for layer in layers:
        if layer.name == "linear":
            x = x @ theta[at : at + layer.k * layer.m].view(layer.m, layer.k).T
            at += layer.k * layer.m
        else:
            x = UNARY[layer.name](x)
    losses: dict[str, Any] = {
        "mse": F.mse_loss,
        "cross_entropy": F.cross_entropy,
        "bce_with_logits": F.binary_cross_entropy_with_logits,
    }
    scale = x.shape[1] if loss != "cross_entropy" else 1  # the program's sum is over the elements
    return float(losses[loss](x, target)) * scale
