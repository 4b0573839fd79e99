"""Lowering of convolutions and of batch norm (rows: h, w, channel)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .conv_windows import conv_of_windows, sizes_of
from .interpreter import Call, op
from .values import FILL, Computed, Slot


@op("conv1d", "conv2d")
def _conv(
    call: Call,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Slot:
    dims = 1 if call.name == "conv1d" else 2
    x = image(call, input, dims)
    if isinstance(weight, Computed) and not isinstance(padding, str):
        return conv_of_windows(call, x, weight, bias, stride, padding, dilation, groups)
    weight = call.fixed(weight)
    out, channels, *kernel = weight.shape
    stride, dilation = sizes_of(stride, dims), sizes_of(dilation, dims)
    if isinstance(padding, str):
        pads = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)
        ]
        if any(p % 2 for p in pads):  # one more zero behind than before
            more = [n for p in reversed(pads) for n in (0, p % 2)]
            index = torch.nn.functional.pad(call.lowering.full(x).contiguous(), more, value=FILL)
            x = call.lowering.from_full(x, index)
        padding = [p // 2 for p in pads]
    pad = sizes_of(padding, dims)
    order = (*range(1, dims + 1), 0)
    x = call.lowering.in_dims(x, order)
    wide = [_pair(sizes, 0 if sizes is pad else 1) for sizes in (x.shape[1:], kernel, stride, pad)]
    found = call.program.conv(
        x.id, groups, channels, out // groups, *wide, _pair(dilation, 1), weight.source,
        call.source(bias),
    )  # fmt: skip
    return call.lowering.ordered(found, tuple(call.value.shape[1:]), 0, order)


def image(call: Call, input: Any, dims: int) -> Slot:
    x = call.view(input)
    if x.axis != 0 or len(x.shape) != dims + 1:
        raise call.refuse("an image without a leading batch dimension")
    return x


def _pair(sizes: Sequence[int], first: int) -> tuple[int, int]:
    """(h, w); a sequence is an image of height 1."""
    return (first, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


@op("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
def _batch_norm_module(call: Call, input: Any) -> Slot:
    m: nn.modules.batchnorm._BatchNorm = call.function
    if m.training or m.running_mean is None or call.lowering.collect:
        moves = call.lowering.trains and m.training and m.track_running_stats
        keep = (call.lowering.collect or moves) and m.running_mean is not None
        kept = (m.running_mean, m.running_var) if keep else (None, None)
        momentum = -1.0 if m.momentum is None else float(m.momentum)
        return _batch_norm(call, input, m.weight, m.bias, None, None, m.eps, kept, momentum)
    return _batch_norm(call, input, m.weight, m.bias, m.running_mean, m.running_var, m.eps)


@op("batch_norm")
def _batch_norm_function(call: Call, input: Any, *args: Any, **kwargs: Any) -> Slot:
    names = ["running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"]
    if isinstance(call.function, torch._ops.OpOverload):
        names = [*names[2:4], *names[:2], *names[4:], "cudnn_enabled"]
    given = dict(zip(names, args, strict=False)) | kwargs
    if given.get("training", False) and given.get("running_mean") is not None:
        raise call.refuse("running statistics that the forward pass changes")
    return _batch_norm(
        call, input, given.get("weight"), given.get("bias"), given.get("running_mean"),
        given.get("running_var"), given.get("eps", 1e-5),
    )  # fmt: skip


def _batch_norm(
    call: Call,
    input: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    eps: float,
    kept: tuple[Any, Any] = (None, None),
    momentum: float = 0.1,
) -> Slot:
    """With the batch's own statistics where there is no mean; they are kept in ``kept``, in
    training with torch's momentum, negative for cumulative averages."""
    x = call.view(input)
    c = call.dim(x, 1)
    order = call.lowering.order(x)
    if order is None or order[-1] != c:
        order = (*(d for d in range(len(x.shape)) if d != c), c)
    x = call.lowering.in_dims(x, order)
    of = (x.id, prod(x.shape) // x.shape[c], x.shape[c], float(eps))
    affine = [_source(call, t) for t in (weight, bias)]
    if mean is None:
        where = [_source(call, t) for t in kept]
        found = call.program.batch_norm_own(*of, *affine, *where, momentum)
    else:
        given = [_source(call, t) for t in (mean, variance)]
        found = call.program.batch_norm(*of, *given, *affine)
    return call.lowering.ordered(found, x.shape, x.axis, order)


def _source(call: Call, value: Any) -> int | None:
    """Where a parameter or buffer is: lowered, or a module's own tensor."""
    if isinstance(value, Tensor):
        if id(value) not in call.lowering.sources:
            raise call.refuse("a tensor that is not a parameter or buffer")
        return call.lowering.sources[id(value)]
    return call.source(value)
