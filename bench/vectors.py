"""W5, W6: normalisation and draw over ResNet-18's parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.directions import _segments
from pylandscape.layout import ParameterLayout

from .timing import Arm, agree, interleave, rows


def resnet18(width: int = 64) -> nn.Module:
    """A module that has ResNet-18's parameters (11.7 million at width 64), for its layout."""
    shapes: list[tuple[int, ...]] = [(width, 3, 7, 7), (width,), (width,)]
    inside = width
    for stage in range(4):
        outside = width * 2**stage
        for block in range(2):
            for channels in (inside if block == 0 else outside, outside):
                shapes += [(outside, channels, 3, 3), (outside,), (outside,)]
            if block == 0 and stage > 0:
                shapes += [(outside, inside, 1, 1), (outside,), (outside,)]
        inside = outside
    shapes += [(1000, inside), (1000,)]
    module = nn.Module()
    for i, shape in enumerate(shapes):
        module.register_parameter(f"p{i}", nn.Parameter(torch.randn(shape)))
    return module


def _per_filter_loop(theta: list[Tensor], d: list[Tensor]) -> None:
    """As in Li et al.'s code: one filter at a time, in place."""
    for w, v in zip(theta, d, strict=True):
        if v.dim() <= 1:
            v.fill_(0)
        else:
            for row, own in zip(v, w, strict=True):
                row.mul_(own.norm() / (row.norm() + 1e-10))


def _vectorised(theta: list[Tensor], d: list[Tensor]) -> None:
    for w, v in zip(theta, d, strict=True):
        if v.dim() <= 1:
            v.zero_()
        else:
            own = w.flatten(1).norm(dim=1)
            scale = own / (v.flatten(1).norm(dim=1) + 1e-10)
            v.mul_(scale.view(-1, *[1] * (v.dim() - 1)))


def w5_w6(quick: bool, repetitions: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = resnet18(8 if quick else 64)
    layout = ParameterLayout.of(model)
    theta = layout.flatten(dict(model.named_parameters()), torch.float32, "cpu")
    segments = _segments(layout, True, ("bias", "norm"))
    ops = torch.ops.pylandscape
    raw = torch.randn_like(theta)
    out, summed = torch.empty_like(theta), torch.empty_like(theta)
    work = raw.clone()
    parts = list(layout.unflatten(theta).values())
    views = list(layout.unflatten(work).values())

    def normalise() -> Tensor:
        return ops.normalize_direction(raw, theta, segments, "filter", out=out)

    def draw() -> Tensor:
        return ops.random_direction(theta, segments, "filter", 1, 0, out=out)

    def draw_by_torch() -> None:
        work.normal_()
        _vectorised(parts, views)

    for by_torch in (_vectorised, _per_filter_loop):
        work.copy_(raw)
        by_torch(parts, views)
        torch.testing.assert_close(normalise(), work, rtol=1e-5, atol=1e-7)
    norms = torch.stack(
        [v.flatten(1).norm(dim=1).sum() for v in layout.unflatten(draw()).values() if v.dim() > 1]
    )
    wanted = torch.stack([w.flatten(1).norm(dim=1).sum() for w in parts if w.dim() > 1])
    agree("draw", norms, wanted, 1e-4)

    n = layout.n
    mine = Arm("pylandscape normalize_direction", normalise, note=f"{n / 1e6:.1f} M parameters")
    add = Arm("torch.add(out=)", lambda: torch.add(raw, theta, out=summed), target=1.2)
    loop = Arm("per-filter loop", lambda: _per_filter_loop(parts, views), target=18)
    vector = Arm("vectorised torch", lambda: _vectorised(parts, views), target=1)
    drawn = Arm("pylandscape random_direction", draw, note="draw and normalisation in one pass")
    randn = Arm("torch normal_ + vectorised torch", draw_by_torch, target=3)
    interleave([mine, add, loop, vector, drawn, randn], repetitions)
    name = "W5 filter normalisation, ResNet-18"
    table = rows(name, mine, [add], "call", ours_at_most=True)
    table += rows(name, mine, [loop, vector], "call")[1:]
    return table + rows("W6 draw + normalisation, ResNet-18", drawn, [randn], "call")


def gaussian_rate(quick: bool, repetitions: int) -> list[dict[str, Any]]:
    """The draw alone, against torch's."""
    count = 10_000 if quick else 4_000_000
    out, other = torch.empty(count), torch.empty(count)
    assert torch.equal(pl.gaussian(1, 2, 0, 100), pl.gaussian(1, 2, 0, 200)[:100])
    mine = Arm(
        "pylandscape gaussian", lambda: torch.ops.pylandscape.gaussian(1, 2, 0, out=out), count
    )
    randn = Arm("torch normal_", other.normal_, count)
    interleave([mine, randn], repetitions)
    return rows("kernel: Gaussian draw", mine, [randn], "number")
