"""Lowering of linear layers, layer norm and softmax."""

from __future__ import annotations

from math import prod
from typing import Any

from .interpreter import Call, op
from .matmul import contract, labelled, leading
from .values import Computed, Slot


@op("linear")
def _linear(call: Call, input: Any, weight: Any, bias: Any = None) -> Slot:
    x = call.view(input)
    call.dim(x, -1)
    if isinstance(weight, Computed) or isinstance(bias, Computed):
        return _with_computed(call, x, weight, bias)
    weight = call.fixed(weight)
    m, k = weight.shape
    *outer, _ = x.shape
    source, (id, first) = call.source(bias), call.lowering.block(x)
    result = call.program.linear(id, prod(outer), k, m, weight.source, source, first)
    return Slot(result, (*outer, m), x.axis)


def _with_computed(call: Call, x: Slot, weight: Any, bias: Any) -> Slot:
    names = [*leading(len(x.shape)), "k"]
    operands = labelled(call, x, names), labelled(call, weight, ("m", "k"))
    found = contract(call, *operands, (*names[:-1], "m"))
    return found if bias is None else call.binary("add", found, bias)


@op("layer_norm")
def _layer_norm(
    call: Call,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Slot:
    x = call.slot(input)
    size = prod(tuple(normalized_shape))
    for d in range(len(normalized_shape)):
        call.dim(x, -1 - d)
    outer = prod(x.shape) // max(1, size)
    gain, shift = call.source(weight), call.source(bias)
    result = call.program.layer_norm(x.id, outer, size, float(eps), gain, shift)
    return Slot(result, x.shape, x.axis)


def _softmax_over(call: Call, input: Any, dim: Any, log: bool) -> Slot:
    x = call.slot(input)
    d = call.dim(x, dim)
    outer, inner = prod(x.shape[:d]), prod(x.shape[d + 1 :])
    result = call.program.softmax(x.id, log, outer, x.shape[d], inner)
    return Slot(result, x.shape, x.axis)


@op("softmax", "_softmax")
def _softmax(call: Call, input: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Slot:
    return _softmax_over(call, input, dim, log=False)


@op("softmin")
def _softmin(call: Call, input: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Slot:
    return _softmax_over(call, call.unary(input, "affine", -1.0), dim, log=False)


@op("log_softmax", "_log_softmax")
def _log_softmax(call: Call, input: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Slot:
    return _softmax_over(call, input, dim, log=True)
