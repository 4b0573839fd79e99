"""Kernels alone, on programs that are little else; products as a share of the sgemm peak."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pylandscape._native import core

from .timing import Arm, interleave


def _program(
    layers: list[tuple[str, int, int]], samples: int
) -> tuple[Any, int, list[torch.Tensor]]:
    """A program whose last layers alone depend on the point; what it needs is kept alive."""
    n = sum(k * m for name, k, m in layers if name == "linear")
    program = core.ProgramF32(n, 0, 0)
    width = layers[0][1]
    slot, at = program.input(width), 0
    for name, k, m in layers:
        if name == "linear":
            slot = program.linear(slot, 1, k, m, at, None)
            at, width = at + k * m, m
        else:
            slot = program.unary(slot, getattr(core.Unary, name), 1.0, 0.0)
    program.finish(slot)
    x = torch.randn(samples, layers[0][1])
    target = torch.randint(0, width, (samples,))
    program.set_data(samples, x.data_ptr())
    program.set_loss(core.Loss.cross_entropy, width, 1, 0.0, [], [], target.data_ptr(), 0)
    return program, n, [x, target]


def _arm(name: str, layers: list[tuple[str, int, int]], samples: int, points: int) -> Arm:
    program, n, kept = _program(layers, samples)
    question = core.QuestionF32(program)
    p = torch.randn(points, n) * 0.05
    loss = np.empty(points)

    def run() -> Any:
        question.run(points, p.data_ptr(), loss.ctypes.data, 0, 0)
        return kept and loss

    return Arm(name, run)


def microbenchmarks(quick: bool, repetitions: int) -> list[dict[str, Any]]:
    samples = 64 if quick else 2048
    size, big = (128, 10_000) if quick else (2048, 16_000_000)
    a, b, c = (torch.randn(size, size) for _ in range(3))
    u, v = torch.randn(big), torch.empty(big)
    peak = Arm("torch.mm", lambda: torch.mm(a, b, out=c), 2.0 * size**3)
    copy = Arm("copy", lambda: v.copy_(u), 8.0 * big)
    shapes = [(64, 64), (20, 10), (256, 256), (512, 512)]
    arms, work = [], []
    for k, m in shapes:
        points = 2 if quick else max(2, 40_000 // (k * m))
        arms.append(_arm(f"linear {m}x{k}, {samples} samples", [("linear", k, m)], samples, points))
        work.append(2.0 * k * m * samples * points)
    wide, points = 32 if quick else 256, 2 if quick else 64
    for name in ("relu", "tanh", "sigmoid", "gelu", "silu", "softplus", "exp"):
        layers = [("linear", 1, wide), (name, wide, wide), ("linear", wide, 1)]
        arms.append(_arm(f"{name} between two thin layers", layers, samples, points))
        work.append(1.0 * wide * samples * points)
    arms.append(_arm("cross-entropy of 10 classes", [("linear", 1, 10)], samples, points))
    work.append(10.0 * samples * points)
    interleave([peak, copy, *arms], repetitions)
    gflops = 1e-9 / np.median(peak.per_unit)
    bandwidth = 1e-9 / np.median(copy.per_unit)
    table = [
        {"workload": "kernels", "arm": f"torch.mm {size}", "value": gflops, "unit": "GFLOP/s"},
        {"workload": "kernels", "arm": "copy", "value": bandwidth, "unit": "GB/s"},
    ]
    for arm, amount in zip(arms, work, strict=True):
        rate = float(np.median(amount / np.array(arm.seconds))) * 1e-9
        product = arm.name.startswith("linear")
        table.append(
            {
                "workload": "kernels",
                "arm": arm.name,
                "value": rate,
                "unit": "GFLOP/s" if product else "G elements/s",
                "share": rate / gflops if product else None,
            }
        )
    return table


def as_markdown(table: list[dict[str, Any]]) -> str:
    lines = ["| kernel | rate | share of the sgemm peak |", "|---|---|---|"]
    for row in table:
        share = f"{row['share']:.0%}" if row.get("share") else ""
        lines.append(f"| {row['arm']} | {row['value']:.3g} {row['unit']} | {share} |")
    return "\n".join(lines)
