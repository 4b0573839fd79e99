"""W5, W6: filter normalisation and Gaussian draw over ResNet-18's parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.theta.directions import _segments

from .harness import Arm, Row, interleave, rows

RTOL = 1e-5  # float32 products of norms whose sums of squares are in float64 or float32


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


def per_filter_loop(theta: list[Tensor], d: list[Tensor]) -> None:
    """As Li et al. do it: one filter at a time, in place."""
    for w, v in zip(theta, d, strict=True):
        if v.dim() <= 1:
            v.fill_(0)
        else:
            for row, own in zip(v, w, strict=True):
                row.mul_(own.norm() / (row.norm() + 1e-10))


def vectorised(theta: list[Tensor], d: list[Tensor]) -> None:
    """One call per tensor, in place."""
    for w, v in zip(theta, d, strict=True):
        if v.dim() <= 1:
            v.zero_()
        else:
            own = torch.linalg.vector_norm(w.flatten(1), dim=1)
            scale = own / (torch.linalg.vector_norm(v.flatten(1), dim=1) + 1e-10)
            v.mul_(scale.view(-1, *[1] * (v.dim() - 1)))


def w5_w6(quick: bool, repetitions: int) -> list[Row]:
    torch.manual_seed(0)
    model = resnet18(8 if quick else 64)
    zero = [torch.zeros(1)]
    land = pl.Landscape(model, objective=lambda m, batch: next(m.parameters()).sum(), data=zero)
    layout, theta = land.layout, land.theta
    segments = _segments(layout, True, ("bias", "norm"))
    ops = torch.ops.pylandscape
    raw = torch.randn_like(theta)
    out, summed = torch.empty_like(theta), torch.empty_like(theta)
    work = raw.clone()
    parts = list(layout.unflatten(theta).values())
    views = list(layout.unflatten(work).values())

    def normalise() -> Tensor:
        done: Tensor = ops.normalize_direction(raw, theta, segments, "filter", out=out)
        return done

    def normalise_in_place() -> Tensor:
        done: Tensor = ops.normalize_direction(work, theta, segments, "filter", out=work)
        return done

    def draw() -> Tensor:
        done: Tensor = ops.random_direction(theta, segments, "filter", 1, 0, out=out)
        return done

    def draw_by_torch() -> None:
        work.normal_()
        vectorised(parts, views)

    size = f"{layout.n / 1e6:.1f} M parameters"
    mine = Arm("pylandscape normalize_direction", normalise, note=f"{size}, the draw excluded")
    add = Arm("torch.add(out=)", lambda: torch.add(raw, theta, out=summed), target=1.2)
    add.at_most, add.note = True, "of as many numbers"
    inside = Arm("pylandscape normalize_direction, in place", normalise_in_place)
    inside.note = f"{size}, the draw excluded"
    loop = Arm("per-filter loop", lambda: per_filter_loop(parts, views), target=18, note="in place")
    vector = Arm("vectorised torch", lambda: vectorised(parts, views), target=1, note="in place")
    drawn = Arm("pylandscape random_direction", draw, note="draw and normalisation in one pass")
    randn = Arm("torch normal_ + vectorised torch", draw_by_torch, target=3, note="in place")
    whole = Arm("pl.random_directions(land, 1)", lambda: pl.random_directions(land, 1))
    whole.note = "all of the call"

    exact = [v.double() for v in layout.unflatten(raw).values()]
    vectorised([w.double() for w in parts], exact)
    used = torch.cat([v.flatten() for v in exact]) != 0
    want = torch.cat([v.flatten() for v in exact])[used]
    mine.check(normalise()[used], want, RTOL)
    assert not normalise()[~used].any()
    for arm in (inside, vector, loop):
        work.copy_(raw)
        arm.run()
        arm.check(work[used], want, RTOL)
    norms = _filter_norms(parts)
    for arm in (drawn, randn):
        arm.run()
        got = out if arm is drawn else work
        arm.check(_filter_norms(list(layout.unflatten(got).values())), norms, RTOL)
    public = list(layout.unflatten(whole.run()[0].vector).values())
    whole.check(_filter_norms(public), norms, RTOL)

    interleave([mine, add, inside, vector, loop, drawn, randn, whole], repetitions)
    name = "W5 filter normalisation, ResNet-18"
    table = rows(name, mine, [add], "call") + rows(name, inside, [vector, loop], "call")
    return table + rows("W6 draw + normalisation, ResNet-18", drawn, [randn, whole], "call")


def _filter_norms(parts: list[Tensor]) -> Tensor:
    return torch.cat([p.double().flatten(1).norm(dim=1) for p in parts if p.dim() > 1])
