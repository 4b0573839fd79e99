"""Lowering of calls that move elements and compute nothing: views, copies, padding, concatenation.

A view is found by calling torch's own function on a tensor of row numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..theta import random_source
from .interpreter import Call, op
from .of_data import TAKE_DATA
from .values import FILL, Fixed, Known, Merged, OfData, Slot, counting, is_number


def _call_on(call: Call, index: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if any(isinstance(a, Slot | Fixed) for a in (*args, *kwargs.values())):
        raise call.refuse("tensor arguments")
    args, kwargs = torch.fx.node.map_aggregate(
        (tuple(args), kwargs), lambda a: a.value if isinstance(a, Known) else a
    )
    return call.function(index, *args, **kwargs)


def _shown(call: Call, x: Slot | Merged | Fixed, index: Any, fill: float = 0.0) -> Any:
    if isinstance(index, list | tuple):
        return tuple(_shown(call, x, i, fill) for i in index)
    if isinstance(x, Slot | Merged):
        return call.lowering.shown(x, index, fill)
    return x.view(index)


@op(
    "flatten", "reshape", "view", "unflatten", "unsqueeze", "squeeze", "_unsafe_view", "ravel",
    "permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "mT", "numpy_T",
    "getitem", "slice", "select", "narrow", "chunk", "split", "split_with_sizes", "tensor_split",
    "unbind", "flip", "roll", "expand", "broadcast_to", "repeat", "tile", "repeat_interleave",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "index_select", "index", "gather",
    "take_along_dim",
)  # fmt: skip
def _view(call: Call, input: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(input, Fixed):
        index = input.elements()
    else:
        index = call.lowering.full(input if isinstance(input, Merged) else call.view(input))
    return _shown(call, input, _call_on(call, index.contiguous(), args, kwargs))


@op("getattr")
def _attribute(call: Call, input: Any, name: str) -> Any:
    if name not in ("T", "mT", "data"):
        raise call.refuse(repr(name))
    return _view(call, input, name)


@op("expand_as", "view_as", "reshape_as")
def _as(call: Call, input: Any, other: Any) -> Any:
    x = call.view(input)
    index = call.lowering.full(x).contiguous()
    shape = call.value.shape
    changed = index.expand(shape) if call.name == "expand_as" else index.view(shape)
    return call.lowering.from_full(x, changed)


@op("pad", "constant_pad_nd")
def _pad(call: Call, input: Any, pad: Any, mode: Any = "constant", value: Any = None) -> Slot:
    x = call.view(input)
    index = call.lowering.full(x).contiguous()
    if call.name == "constant_pad_nd":  # (input, pad, value)
        mode, value = "constant", mode if mode != "constant" else value
    if mode == "constant":
        padded = torch.nn.functional.pad(index, pad, value=FILL)
        return call.lowering.from_full(x, padded, float(value or 0.0))
    padded = torch.nn.functional.pad(index.double(), pad, mode=mode)
    return call.lowering.from_full(x, padded.long())


@op(
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
)  # fmt: skip
def copies(call: Call, input: Any, *args: Any, **kwargs: Any) -> Slot:
    x = call.view(input)
    copied = _call_on(call, call.lowering.full(x).double(), args, kwargs)
    return call.lowering.from_full(x, copied.long())


@op("contiguous", "clone", "alias", "positive", "detach")
def _same(call: Call, input: Any, memory_format: Any = None) -> Slot | Fixed:
    return input if isinstance(input, Fixed) else call.view(input)


@op("to", "float", "double", "type_as", "_to_copy")
def _cast(call: Call, input: Any, *args: Any, **kwargs: Any) -> Slot:
    return call.view(input)


def filled(call: Call, x: Slot, mask: Tensor, fill: float) -> Slot:
    """x with a constant where the mask, as wide as the traced value, is true."""
    index = torch.where(mask, FILL, call.lowering.full(x).broadcast_to(mask.shape))
    return call.lowering.from_full(x, index, fill)


def _number(call: Call, value: Any) -> float:
    if isinstance(value, Known) and value.value.numel() == 1:
        return float(value.value)
    if not is_number(value):
        raise call.refuse("a value that is not one number")
    return float(value)


@op("masked_fill", "masked_fill_")
def _masked_fill(call: Call, input: Any, mask: Any, value: Any) -> Slot:
    if isinstance(mask, OfData):
        return _chosen(call, mask, _number(call, value), call.rows(input))
    if not isinstance(mask, Known):
        raise call.refuse("a mask that is not constant")
    where = mask.value.broadcast_to(call.value.shape)
    return filled(call, call.view(input), where, _number(call, value))


@op("where")
def _where(call: Call, condition: Any, input: Any, other: Any) -> Slot:
    if isinstance(condition, OfData):
        return _chosen(call, condition, call.rows(input), call.rows(other))
    if not isinstance(condition, Known):
        raise call.refuse("a condition that is not constant")
    where = condition.value.broadcast_to(call.value.shape)
    if isinstance(input, Slot):
        return filled(call, input, ~where, _number(call, other))
    return filled(call, call.view(other), where, _number(call, input))


def _chosen(call: Call, condition: OfData, x: Any, y: Any) -> Slot:
    """x where a condition of the data is true, else y: of numbers, what is added; of the rest,
    products with ones and zeros."""
    parts = []
    for value, form in ((x, "value"), (y, "not")):
        if is_number(value) or (isinstance(value, Known) and value.value.numel() == 1):
            number = _number(call, value)
            if form == "not" and not is_number(x) and number == 0.0:
                continue
            condition_of = "number" if form == "value" else "other"
            parts.append(call.lowering.data_slot(condition, condition_of, number))
        else:
            parts.append(call.binary("mul", value, call.lowering.data_slot(condition, form)))
    if len(parts) == 1:
        return parts[0]
    return call.binary("add", *parts)


@op("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
def _constant(call: Call, *args: Any, **kwargs: Any) -> Known:
    return Known(call.value.clone())  # which an op in place may change


@op("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
def _dropout(
    call: Call,
    input: Any,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Slot:
    if not training or p == 0.0:
        return call.view(input)
    if not call.lowering.trains:
        raise call.refuse("dropout that is active in eval mode")
    return _dropped(call, call.view(input), float(p))


def _dropped(call: Call, x: Slot, rate: float) -> Slot:
    """Active dropout: a number decides over each element of a sample, or over each channel."""
    dims = {"dropout": None, "dropout1d": 2, "dropout2d": 3, "dropout3d": 4}
    if call.name not in dims or x.axis != 0 or not x.shape:
        raise call.refuse("active in train mode")
    if not call.lowering.covers(x):
        x = call.slot(x)
    size, wanted = prod(x.shape), dims[call.name]
    numbers, count = counting(size).view(x.shape), size
    if wanted is not None:
        if len(x.shape) != wanted:
            raise call.refuse("an image without a batch dimension")
        count = x.shape[0]
        numbers = counting(count).view(-1, *[1] * (wanted - 1)).expand(x.shape)
    index = torch.empty(size, dtype=torch.int64)
    index[call.lowering.rows(x).reshape(-1)] = numbers.reshape(-1)
    found = call.program.dropout(
        x.id, rate, random_source.quantile(rate), call.lowering.dropouts, count, index
    )
    call.lowering.dropouts += 1
    return Slot(found, x.shape, x.axis, x.index)


@op("cat", "concat", "concatenate")
def _cat(call: Call, tensors: Any, dim: int = 0) -> Slot:
    return _concatenated(call, list(tensors), dim)


@op("stack")
def _stack(call: Call, tensors: Any, dim: int = 0) -> Slot:
    dim %= call.value.dim()
    wider: list[Any] = []
    for x in tensors:
        if isinstance(x, Fixed):
            wider.append(_shown(call, x, x.elements().unsqueeze(dim)))
        else:
            wider.append(_shown(call, x, call.lowering.full(call.view(x)).unsqueeze(dim)))
    return _concatenated(call, wider, dim)


def _concatenated(call: Call, parts: list[Any], dim: int) -> Slot:
    """Row blocks one after the other, in the order that the parts have in common."""
    first = next((x for x in parts if isinstance(x, Slot)), None)
    if first is None:
        raise call.refuse("operands that are not computed from the input")
    d = call.dim(first, dim)
    slots = [_as_slot(call, x, first) for x in parts]
    orders = {call.lowering.order(x) for x in slots}
    order = orders.pop() if len(orders) == 1 else None
    order = order or tuple(range(len(first.shape)))
    slots = [call.lowering.in_dims(x, order) for x in slots]
    outer = prod(first.shape[a] for a in order[: order.index(d)])
    found = call.program.concat([x.id for x in slots], outer)
    shape = list(first.shape)
    shape[d] = sum(x.shape[d] for x in slots)
    return call.lowering.ordered(found, tuple(shape), first.axis, order)


def _as_slot(call: Call, x: Any, like: Slot) -> Slot:
    if isinstance(x, Fixed):
        shape = tuple(n for d, n in enumerate(x.shape) if d != like.axis)
        return call.placed(x, Slot(-1, shape, like.axis))
    if call.view(x).axis != like.axis:
        raise call.refuse("operands with their batches in different dimensions")
    return call.view(x)


TAKE_DATA.update((_masked_fill, _where))
