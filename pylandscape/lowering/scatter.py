"""Lowering of scatter, index_add and index_copy with constant indices, the same for all samples.

Where every result has one source at most, it is a view of it with zeros; otherwise a sum.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from .._native import core
from .interpreter import Call, op
from .shapes import filled
from .values import FILL, TAKE_KNOWN, Known, Slot, counting


@op("scatter", "scatter_")
def _scatter(call: Call, input: Any, dim: int, index: Any, src: Any = None, **kwargs: Any) -> Slot:
    if kwargs or not isinstance(index, Known) or not isinstance(src, Slot):
        raise call.refuse("anything but values at constant indices")
    part = _leading(call.lowering.full(src), index.value)
    shape = call.value.shape
    if int(torch.zeros(shape).scatter_add(dim, index.value, torch.ones(part.shape)).max()) > 1:
        raise call.refuse("an index twice")
    return _placed(call, input, src, torch.full(shape, FILL).scatter(dim, index.value, part))


@op("index_copy", "index_copy_")
def _index_copy(call: Call, input: Any, dim: int, index: Any, source: Any) -> Slot:
    if not isinstance(index, Known) or not isinstance(source, Slot):
        raise call.refuse("anything but values at constant indices")
    if len(index.value.unique()) < index.value.numel():
        raise call.refuse("an index twice")
    full = call.lowering.full(source)
    target = torch.full(call.value.shape, FILL).index_copy(dim, index.value, full)
    return _placed(call, input, source, target)


@op("scatter_add", "scatter_add_")
def _scatter_add(call: Call, input: Any, dim: int, index: Any, src: Any) -> Slot:
    if not isinstance(index, Known) or not isinstance(src, Slot):
        raise call.refuse("anything but values at constant indices")
    to = _numbers(call.value.shape).gather(dim, index.value)
    part = _leading(call.lowering.full(src), index.value)
    return _plus(call, input, _sums(call, call.lowering.from_full(src, part), to))


@op("index_add", "index_add_")
def _index_add(
    call: Call, input: Any, dim: int, index: Any, source: Any, alpha: float = 1.0
) -> Slot:
    if not isinstance(index, Known) or not isinstance(source, Slot):
        raise call.refuse("anything but values at constant indices")
    to = _numbers(call.value.shape).index_select(dim, index.value)
    found = _sums(call, source, to)
    return _plus(call, input, found if alpha == 1 else call.unary(found, "affine", alpha, 0.0))


def _leading(full: Tensor, index: Tensor) -> Tensor:
    """The elements that an index of this shape reads."""
    return full[tuple(slice(0, n) for n in index.shape)]


def _numbers(shape: torch.Size) -> Tensor:
    return counting(prod(shape)).view(shape)


def _placed(call: Call, input: Any, source: Slot, target: Tensor) -> Slot:
    """The elements ``target`` of a source, and the input's where there is none."""
    found = call.lowering.from_full(source, target)
    if isinstance(input, Slot):
        return _plus(call, filled(call, input, target != FILL, 0.0), found)
    if isinstance(input, Known):
        return _plus(call, Known(input.value.expand(target.shape) * (target == FILL)), found)
    raise call.refuse("a parameter that is written to")


def _plus(call: Call, input: Any, found: Slot) -> Slot:
    if isinstance(input, Known) and not bool(input.value.any()):
        return found
    return call.binary("add", input, found)


def _sums(call: Call, source: Slot, to: Tensor) -> Slot:
    """Sums of the source's elements, each to the result's element ``to``, of the traced shape."""
    axis, samples = source.axis, call.lowering.samples
    shape = call.value.shape
    if len(shape) != len(source.shape) + 1 or shape[axis] != samples:
        raise call.refuse("values with their batch in another dimension")
    own = [n for d, n in enumerate(shape) if d != axis]
    position = _numbers(torch.Size(own)).unsqueeze(axis).expand(shape).reshape(-1)
    sample = counting(samples).view(-1, *[1] * (len(own) - axis))
    first, *rest = position[to].unbind(axis)
    if not torch.equal(sample.expand(shape).reshape(-1)[to], sample.expand(to.shape)) or not all(
        torch.equal(first, other) for other in rest
    ):
        raise call.refuse("indices that are not the same for all samples")
    order = torch.argsort(first.reshape(-1), stable=True)
    taps = call.lowering.rows(source).reshape(-1)[order].contiguous()
    counts = torch.bincount(first.reshape(-1), minlength=prod(own))
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    factors = torch.ones(len(taps), dtype=torch.float64)
    found = call.program.pool(
        source.id, core.Pool.sum, 1, prod(own), bounds, len(taps), taps,
        factors, per_tap=True,
    )  # fmt: skip
    return Slot(found, tuple(own), axis)


TAKE_KNOWN.update((_scatter, _index_copy, _scatter_add, _index_add))
