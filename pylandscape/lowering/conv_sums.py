"""Lowering of convolutions that are a product with the weight and sums or copies around it:
transposed ones (what each pixel adds to the result, then summed), those of volumes (windows copied,
then multiplied), and the windows alone (unfold)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from .._native import core
from .conv import image
from .conv_windows import conv_of_windows, shifted, sizes_of, windows_of
from .interpreter import Call, op
from .pool import pool_of
from .values import Computed, Slot, later

_MOST_TAPS = 1 << 24  # that are listed for one op


@op("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(
    call: Call,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Slot:
    dims = int(call.name[-2])
    x, weight = image(call, input, dims), call.fixed(weight)
    channels, out, *kernel = weight.shape  # of the input, and of one group's result
    order = (*range(1, dims + 1), 0)
    sizes = tuple(call.value.shape[2:])
    where = [
        _contributions(*along)
        for along in zip(
            sizes, x.shape[1:], kernel, *(sizes_of(v, dims) for v in (stride, padding, dilation)),
            strict=True,
        )
    ]  # fmt: skip
    taps = _summands(call, where, x.shape[1:], kernel, out)
    pixels, wide, own = prod(x.shape[1:]), out * prod(kernel), channels // groups
    parts = []
    for part, group in _groups(call, x, groups):
        rows = call.lowering.in_dims(part, order).id
        source = later(weight.source, group * own * wide)
        product = call.program.linear_transposed(rows, pixels, own, wide, source, None)
        parts.append(pool_of(call, product, core.Pool.sum, 1, taps))
    found = parts[0] if groups == 1 else call.program.concat(parts, prod(sizes))
    result = call.lowering.ordered(found, (groups * out, *sizes), 0, order)
    if bias is None:
        return result
    return shifted(call, result, bias)


def _groups(call: Call, x: Slot, groups: int) -> list[tuple[Slot, int]]:
    """The channels of each group, as views of x."""
    if groups == 1:
        return [(x, 0)]
    rows = call.lowering.rows(x).chunk(groups)
    return [(Slot(x.id, tuple(r.shape), x.axis, r), g) for g, r in enumerate(rows)]


def _contributions(
    outputs: int, inputs: int, kernel: int, stride: int, padding: int, dilation: int
) -> list[list[tuple[int, int]]]:
    """Of each output along a dimension: which input adds to it with which tap of the kernel."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(outputs)]
    for i in range(inputs):
        for k in range(kernel):
            o = i * stride + k * dilation - padding
            if 0 <= o < outputs:
                found[o].append((i, k))
    return found


def _summands(
    call: Call,
    where: list[list[list[tuple[int, int]]]],
    inputs: Sequence[int],
    kernel: Sequence[int],
    out: int,
) -> Tensor:
    """Rows of the products (pixels, out, taps of the kernel) that make each of (outputs, out)."""
    pixel, tap = torch.zeros(2, 1, 1, dtype=torch.int64)
    for along, n, k in zip(where, inputs, kernel, strict=True):
        most = max(1, max(len(pairs) for pairs in along))
        own = torch.tensor([[*pairs, *[(-1, -1)] * (most - len(pairs))] for pairs in along])
        if len(pixel) * pixel.shape[1] * own.numel() * out > _MOST_TAPS:
            raise call.refuse("an image of too many elements")
        gone = (pixel < 0)[:, None, :, None] | (own[..., 0] < 0)[None, :, None, :]
        shape = (len(pixel) * len(own), -1)
        pixel, tap = (
            (a[:, None, :, None] * size + b[None, :, None, :]).masked_fill(gone, -1).reshape(shape)
            for a, b, size in ((pixel, own[..., 0], n), (tap, own[..., 1], k))
        )
    whole = prod(kernel)
    rows = pixel[:, None] * (out * whole) + torch.arange(out)[:, None] * whole + tap[:, None]
    return rows.masked_fill((pixel < 0)[:, None].expand_as(rows), -1).flatten(0, 1)


@op("conv3d")
def _conv3d(
    call: Call,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Slot:
    """One plane of the result after the other, so that only its windows are copied at a time."""
    x = image(call, input, 3)
    if isinstance(weight, Computed) and not isinstance(padding, str):
        return conv_of_windows(call, x, weight, bias, stride, padding, dilation, groups)
    weight = call.fixed(weight)
    out, channels, *kernel = weight.shape
    if isinstance(padding, str) and padding != "valid":
        raise call.refuse(f"padding={padding!r}")
    pads = sizes_of(0 if isinstance(padding, str) else padding, 3)
    rows = windows_of(call, x, kernel, sizes_of(stride, 3), pads, sizes_of(dilation, 3))
    sizes, own, size = tuple(rows.shape[1:4]), out // groups, channels * prod(kernel)
    windows = rows.unflatten(0, (groups, channels)).permute(2, 3, 4, 0, 1, 5, 6, 7)
    source, planes = call.source(bias), []
    for plane in windows:  # (h, w, groups, channels, kernel)
        parts = []
        for g in range(groups):
            copied = call.lowering.gathered(x, plane[:, :, g].reshape(-1), None).id
            own_bias = None if source is None else later(source, g * own)
            at = later(weight.source, g * own * size)
            parts.append(call.program.linear(copied, prod(sizes[1:]), size, own, at, own_bias))
        whole = parts[0] if groups == 1 else call.program.concat(parts, prod(sizes[1:]))
        planes.append((whole, 0, prod(sizes[1:]) * out))
    joined = call.lowering.join(planes, (prod(sizes) * out,), 0)
    return call.lowering.ordered(joined.id, (out, *sizes), 0, (1, 2, 3, 0))


@op("unfold", "im2col")
def _unfold(call: Call, input: Any, *args: Any, **kwargs: Any) -> Slot:
    """Torch's own windows of the elements' numbers, with zero for the padding."""
    x = call.view(input)
    if call.value.dim() != 3 or len(x.shape) != 3:
        raise call.refuse("windows of anything but images")
    numbers = (call.lowering.full(x) + 1).double()
    return call.lowering.from_full(x, call.function(numbers, *args, **kwargs).long() - 1)
