"""Lowering of pooling and of sums, means and maxima over dimensions: one op over windows of pixels.

A window is the list of pixels it covers: what lies in the padding is not listed, and an average's
divisor is its own. Images are taken and given channels last, all channels of a pixel together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from .._native import core
from .interpreter import Call, op
from .values import Slot

INDICES = object()  # where torch gives indices: no value that an op could take


@dataclass(frozen=True)
class Window:
    """One output's inputs along one dimension; `padded` counts those in the padding as well."""

    taps: Sequence[int]
    padded: int


@op(
    "max_pool1d", "max_pool2d", "max_pool3d",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
)  # fmt: skip
def _max_pool(
    call: Call,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    x, dims, sizes = _image(call, input)
    windows = _windows(dims, x, sizes, kernel_size, stride, padding, dilation)
    if not all(w.taps for along in windows for w in along):
        raise call.refuse("a window that lies in the padding")
    return _values(call, _pooled(call, x, core.Pool.max, windows))


@op("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(
    call: Call,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Slot:
    x, dims, sizes = _image(call, input)
    windows = _windows(dims, x, sizes, kernel_size, stride, padding, 1)
    divisors = [
        float(divisor_override or prod(w.padded if count_include_pad else len(w.taps) for w in at))
        for at in product(*windows)
    ]
    return _pooled(call, x, core.Pool.sum, windows, divisors)


@op("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive_avg_pool(call: Call, input: Any, output_size: Any) -> Slot:
    x, _, sizes = _image(call, input)
    windows = _adaptive(x, sizes)
    divisors = [float(prod(w.padded for w in at)) for at in product(*windows)]
    return _pooled(call, x, core.Pool.sum, windows, divisors)


@op(
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d_with_indices",
)  # fmt: skip
def _adaptive_max_pool(
    call: Call, input: Any, output_size: Any, return_indices: bool = False
) -> Any:
    x, _, sizes = _image(call, input)
    return _values(call, _pooled(call, x, core.Pool.max, _adaptive(x, sizes)))


def _image(call: Call, input: Any) -> tuple[Slot, int, tuple[int, ...]]:
    """The input, how many of its last dimensions are pooled, and their sizes in the result."""
    x, dims = call.view(input), int(call.name.split("pool")[1][0])
    first = call.value if isinstance(call.value, Tensor) else call.value[0]
    if x.axis > len(x.shape) - dims:
        raise call.refuse("over the batch dimension")
    if 0 in first.shape or 0 in x.shape:
        raise call.refuse("an empty image")
    return x, dims, tuple(first.shape[-dims:])


def _values(call: Call, result: Slot) -> Any:
    return result if isinstance(call.value, Tensor) else (result, INDICES)


def _windows(
    dims: int,
    x: Slot,
    outputs: Sequence[int],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> list[list[Window]]:
    """The windows along each of the last `dims` dimensions; torch has found how many there are."""
    kernel = _tuple(kernel_size, dims)
    step = kernel if stride is None or stride == [] else _tuple(stride, dims)
    return [
        [_window(o * s - p, k, d, p, n) for o in range(count)]
        for n, count, k, s, p, d in zip(
            x.shape[-dims:], outputs, kernel, step, _tuple(padding, dims), _tuple(dilation, dims),
            strict=True,
        )
    ]  # fmt: skip


def _window(first: int, kernel: int, dilation: int, padding: int, size: int) -> Window:
    taps = [first + dilation * i for i in range(kernel)]
    # A ceil_mode window may reach beyond the padding: that part counts for nothing.
    return Window([t for t in taps if 0 <= t < size], sum(t < size + padding for t in taps))


def _adaptive(x: Slot, outputs: Sequence[int]) -> list[list[Window]]:
    windows = []
    for n, count in zip(x.shape[-len(outputs) :], outputs, strict=True):
        ranges = [range(o * n // count, -(-(o + 1) * n // count)) for o in range(count)]
        windows.append([Window(r, len(r)) for r in ranges])
    return windows


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * dims if len(values) == 1 else values


def _pooled(
    call: Call,
    x: Slot,
    mode: Any,
    windows: list[list[Window]],
    divisors: Sequence[float] | None = None,
) -> Slot:
    """x pooled over its last dimensions, channels last."""
    dims, rank = len(windows), len(x.shape)
    order = (*range(rank - dims, rank), *range(rank - dims))
    sizes, leading = x.shape[rank - dims :], x.shape[: rank - dims]
    pixels = torch.arange(prod(sizes)).view(sizes)
    for d, along in enumerate(windows):  # one dimension after the other: (outputs ..., taps ...)
        most = max(len(w.taps) for w in along)
        listed = torch.tensor([[*w.taps, *[-1] * (most - len(w.taps))] for w in along])
        picked = pixels.index_select(d, listed.clamp(min=0).flatten()).unflatten(d, (-1, most))
        hidden = (listed < 0).view(*[1] * d, -1, most, *[1] * (picked.dim() - d - 2))
        pixels = picked.masked_fill(hidden, -1).movedim(d + 1, -1)
    taps = pixels.reshape(prod(pixels.shape[:dims]), -1)
    channels = call.lowering.in_dims(x, order)
    found = pool_of(call, channels.id, mode, prod(leading), taps, divisors)
    return call.lowering.ordered(found, (*leading, *pixels.shape[:dims]), x.axis, order)


def pool_of(
    call: Call, slot: int, mode: Any, channels: int, taps: Tensor, divisors: Any = None
) -> int:
    """The pool over taps (outputs, most): pixels of `channels` rows, -1 where there is none."""
    listed = taps >= 0
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), listed.sum(1).cumsum(0)])
    index = taps[listed].contiguous()
    factors = torch.empty(0, dtype=torch.float64)
    if divisors is not None:
        factors = 1 / torch.tensor(divisors, dtype=torch.float64)
    found: int = call.program.pool(
        slot, mode, channels, len(taps), bounds, index.numel(), index,
        factors if divisors is not None else 0,
    )  # fmt: skip
    return found


@op("mean")
def _mean(
    call: Call, input: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None,
    axis: Any = None, keepdims: bool = False,
) -> Slot:  # fmt: skip
    if dtype is not None:
        raise call.refuse("a dtype")
    return reduced(call, input, core.Pool.sum, _over(dim, axis), keepdim or keepdims, mean=True)


@op("sum")
def _sum(
    call: Call, input: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None,
    axis: Any = None, keepdims: bool = False,
) -> Slot:  # fmt: skip
    if dtype is not None:
        raise call.refuse("a dtype")
    return reduced(call, input, core.Pool.sum, _over(dim, axis), keepdim or keepdims)


@op("amax")
def _amax(call: Call, input: Any, dim: Any = None, keepdim: bool = False) -> Slot:
    return reduced(call, input, core.Pool.max_even, dim, keepdim)


@op("amin")
def _amin(call: Call, input: Any, dim: Any = None, keepdim: bool = False) -> Slot:
    return _negative(call, _amax(call, _negative(call, input), dim, keepdim))


def _negative(call: Call, x: Any) -> Slot:
    return call.unary(x, "affine", -1.0)


@op("maximum", "minimum")
def _of_two(call: Call, input: Any, other: Any) -> Slot:
    """The larger or smaller of two values: a window of both, whose slope goes evenly to equals."""
    a, b = call.pair(input, other)
    ids = [a.id, b.id]
    if call.name == "minimum":
        ids = [call.program.unary(i, core.Unary.affine, -1.0, 0.0) for i in ids]
    both = call.program.concat(ids, 1)
    size = call.program.features(a.id)
    found = pool_of(call, both, core.Pool.max_even, size, torch.tensor([[0, 1]]))
    result = Slot(found, a.shape, a.axis, a.index)
    return _negative(call, result) if call.name == "minimum" else result


@op("min")
def _min(call: Call, input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    if not isinstance(dim, int):
        return _max(call, input, dim, keepdim)  # refuses it
    values = reduced(call, _negative(call, input), core.Pool.max, dim, keepdim)
    return _negative(call, values), INDICES


@op("max")
def _max(call: Call, input: Any, dim: Any = None, keepdim: bool = False) -> tuple[Slot, object]:
    if not isinstance(dim, int):
        raise call.refuse("over the batch dimension, or of two tensors")
    return reduced(call, input, core.Pool.max, dim, keepdim), INDICES


@op("getattr")
def _attribute(call: Call, input: Any, name: str) -> Slot:
    """The values of a maximum with indices."""
    if name != "values" or not isinstance(input, tuple):
        raise call.refuse(f"attribute {name!r}")
    return call.view(input[0])


def _over(dim: Any, axis: Any) -> Any:
    return axis if dim is None else dim


def reduced(
    call: Call, input: Any, mode: Any, dim: Any, keepdim: bool, *, mean: bool = False
) -> Slot:
    """x over the dimensions `dim`, from the rows where they stand, the others in their order."""
    x = call.view(input)
    over = (dim,) if isinstance(dim, int) else tuple(dim or ())
    gone = {call.dim(x, d) for d in over}
    if not gone or 0 in x.shape:
        raise call.refuse("over the batch dimension, or of nothing")
    order = call.lowering.order(x) or tuple(range(len(x.shape)))
    kept = [d for d in order if d not in gone]
    rows = call.lowering.rows(x).permute(*kept, *[d for d in order if d in gone])
    count = prod(x.shape[d] for d in gone)
    together = 0  # dimensions, from the last, of which all elements stand side by side
    while together < len(kept) and order[-1 - together] == kept[-1 - together]:
        together += 1
    channels = _side_by_side(rows, [x.shape[d] for d in kept[len(kept) - together :]], count)
    if call.program.features(x.id) % channels:
        channels = 1
    taps = rows.reshape(-1, channels, count)[:, 0] // channels
    divisors = [float(count)] * len(taps) if mean else None
    found = pool_of(call, x.id, mode, channels, taps, divisors)
    if keepdim:
        shape = tuple(1 if d in gone else n for d, n in enumerate(x.shape))
        return call.lowering.ordered(found, shape, x.axis, (*sorted(gone), *kept))
    at = sorted(kept)
    before = sum(d < x.axis for d in gone)
    shape = tuple(x.shape[d] for d in at)
    return call.lowering.ordered(found, shape, x.axis - before, [at.index(d) for d in kept])


def _side_by_side(rows: Tensor, sizes: Sequence[int], count: int) -> int:
    """The product of as many last `sizes` as give aligned blocks of consecutive rows."""
    for first in range(len(sizes)):
        channels = prod(sizes[first:])
        blocks = rows.reshape(-1, channels, count)
        start = blocks[:, :1]
        run = torch.arange(channels).view(1, -1, 1)
        if torch.equal(blocks, start + run) and not bool((start % channels).any()):
            return channels
    return 1
