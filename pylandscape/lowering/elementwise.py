"""Lowering of elementwise calls."""

from __future__ import annotations

from typing import Any

from .interpreter import Call, op
from .values import Fixed, Slot, is_number


@op("relu", "relu_")
def _relu(call: Call, input: Any, inplace: bool = False) -> Slot:
    return call.unary(input, "relu")


@op("leaky_relu", "leaky_relu_")
def _leaky_relu(
    call: Call, input: Any, negative_slope: float = 0.01, inplace: bool = False
) -> Slot:
    return call.unary(input, "leaky_relu", negative_slope)


@op("tanh", "tanh_")
def _tanh(call: Call, input: Any) -> Slot:
    return call.unary(input, "tanh")


@op("sigmoid", "sigmoid_")
def _sigmoid(call: Call, input: Any) -> Slot:
    return call.unary(input, "sigmoid")


@op("gelu")
def _gelu(call: Call, input: Any, approximate: str = "none") -> Slot:
    return call.unary(input, "gelu" if approximate == "none" else "gelu_tanh")


@op("silu", "silu_")
def _silu(call: Call, input: Any, inplace: bool = False) -> Slot:
    return call.unary(input, "silu")


@op("softplus")
def _softplus(call: Call, input: Any, beta: float = 1.0, threshold: float = 20.0) -> Slot:
    return call.unary(input, "softplus", beta, threshold)


@op("elu", "elu_")
def _elu(
    call: Call,
    input: Any,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
    inplace: bool = False,
) -> Slot:
    if input_scale != 1.0:
        raise call.refuse(f"input_scale={input_scale}")
    return call.unary(input, "elu", alpha, float(scale))


@op("selu", "selu_")
def _selu(call: Call, input: Any, inplace: bool = False) -> Slot:
    return call.unary(input, "elu", 1.6732632423543772, 1.0507009873554805)


@op("relu6")
def _relu6(call: Call, input: Any, inplace: bool = False) -> Slot:
    return call.unary(input, "clamp", 0.0, 6.0)


@op("hardtanh", "hardtanh_")
def _hardtanh(
    call: Call, input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Slot:
    return call.unary(input, "clamp", min_val, max_val)


@op("clamp", "clamp_", "clip")
def _clamp(call: Call, input: Any, min: Any = None, max: Any = None) -> Slot:
    if isinstance(min, Slot | Fixed) or isinstance(max, Slot | Fixed):
        raise call.refuse("tensor bounds")
    low = -float("inf") if min is None else min
    return call.unary(input, "clamp", low, float("inf") if max is None else max)


@op("square")
def _square(call: Call, input: Any) -> Slot:
    return call.unary(input, "square")


@op("pow")
def _pow(call: Call, input: Any, exponent: Any) -> Slot:
    if exponent == 2 and isinstance(exponent, int | float):
        return call.unary(input, "square")
    raise call.refuse(f"exponent {exponent!r}")


@op("abs")
def _abs(call: Call, input: Any) -> Slot:
    return call.unary(input, "abs")


@op("exp")
def _exp(call: Call, input: Any) -> Slot:
    return call.unary(input, "exp")


@op("neg")
def _neg(call: Call, input: Any) -> Slot:
    return call.unary(input, "affine", -1.0, 0.0)


@op("add", "add_", "iadd", "radd")
def _add(call: Call, input: Any, other: Any, alpha: float = 1.0) -> Slot:
    if is_number(other):
        return call.unary(input, "affine", 1.0, float(other) * alpha)
    if is_number(input):
        return call.unary(other, "affine", alpha, float(input))
    scaled = other if alpha == 1 else call.unary(other, "affine", alpha, 0.0)
    return call.binary("add", input, scaled)


@op("sub", "sub_", "isub")
def _sub(call: Call, input: Any, other: Any, alpha: float = 1.0) -> Slot:
    if is_number(other):
        return call.unary(input, "affine", 1.0, -float(other) * alpha)
    if is_number(input):
        return call.unary(other, "affine", -alpha, float(input))
    scaled = other if alpha == 1 else call.unary(other, "affine", alpha, 0.0)
    return call.binary("sub", input, scaled)


@op("rsub")
def _rsub(call: Call, input: Any, other: Any, alpha: float = 1.0) -> Slot:
    return _sub(call, other, input, alpha)


@op("mul", "mul_", "imul", "multiply")
def _mul(call: Call, input: Any, other: Any) -> Slot:
    if is_number(other):
        return call.unary(input, "affine", float(other), 0.0)
    if is_number(input):
        return call.unary(other, "affine", float(input), 0.0)
    return call.binary("mul", input, other)


@op("div", "div_", "truediv", "itruediv", "true_divide")
def _div(call: Call, input: Any, other: Any, rounding_mode: str | None = None) -> Slot:
    if rounding_mode is not None or is_number(input):
        raise call.refuse("a rounding mode or a number divided by a tensor")
    if is_number(other) and float(other) != 0.0:
        return call.unary(input, "affine", 1.0 / float(other), 0.0)
    return call.binary("div", input, other)
