"""Lowering of elementwise calls."""

from __future__ import annotations

import math
from typing import Any

from .interpreter import Call, op
from .values import Fixed, Handler, Slot, is_number

# Calls that are one function of the core, which has the first of their names.
_PLAIN: tuple[tuple[str, ...], ...] = (
    ("relu", "relu_"),
    ("tanh", "tanh_"),
    ("sigmoid", "sigmoid_"),
    ("silu", "silu_"),
    ("hardswish", "hardswish_"),
    ("mish", "mish_"),
    ("softsign",),
    ("square",),
    ("abs", "absolute"),
    ("exp", "exp_"),
    ("log",),
    ("log1p", "special_log1p"),
    ("sqrt",),
    ("rsqrt",),
    ("sin",),
    ("cos",),
    ("erf", "special_erf"),
)


def _plain(function: str) -> Handler:
    def lower(call: Call, input: Any, inplace: bool = False) -> Slot:
        return call.unary(input, function)

    return lower


for _names in _PLAIN:
    op(*_names)(_plain(_names[0]))


@op("leaky_relu", "leaky_relu_")
def _leaky_relu(
    call: Call, input: Any, negative_slope: float = 0.01, inplace: bool = False
) -> Slot:
    return call.unary(input, "leaky_relu", negative_slope)


@op("gelu")
def _gelu(call: Call, input: Any, approximate: str = "none") -> Slot:
    return call.unary(input, "gelu" if approximate == "none" else "gelu_tanh")


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
    return call.unary(input, "hardtanh", 0.0, 6.0)


@op("hardtanh", "hardtanh_")
def _hardtanh(
    call: Call, input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Slot:
    return call.unary(input, "hardtanh", min_val, max_val)


@op("clamp", "clamp_", "clip")
def _clamp(call: Call, input: Any, min: Any = None, max: Any = None) -> Slot:
    if isinstance(min, Slot | Fixed) or isinstance(max, Slot | Fixed):
        raise call.refuse("tensor bounds")
    low = -float("inf") if min is None else min
    return call.unary(input, "clamp", low, float("inf") if max is None else max)


@op("clamp_min", "clamp_min_")
def _clamp_min(call: Call, input: Any, min: Any) -> Slot:
    return _clamp(call, input, min)


@op("clamp_max", "clamp_max_")
def _clamp_max(call: Call, input: Any, max: Any) -> Slot:
    return _clamp(call, input, None, max)


@op("hardsigmoid", "hardsigmoid_")
def _hardsigmoid(call: Call, input: Any, inplace: bool = False) -> Slot:
    return call.unary(call.unary(input, "affine", 1.0 / 6.0, 0.5), "hardtanh", 0.0, 1.0)


@op("logsigmoid", "log_sigmoid")
def _log_sigmoid(call: Call, input: Any) -> Slot:
    """-log(1 + exp(-x))."""
    return _neg(call, call.unary(_neg(call, input), "softplus", 1.0, math.inf))


@op("tanhshrink")
def _tanhshrink(call: Call, input: Any) -> Slot:
    return call.binary("sub", input, call.unary(input, "tanh"))


@op("celu", "celu_")
def _celu(call: Call, input: Any, alpha: float = 1.0, inplace: bool = False) -> Slot:
    return call.unary(call.unary(input, "affine", 1.0 / alpha), "elu", 1.0, alpha)


@op("threshold", "threshold_", "_threshold")
def _threshold(
    call: Call, input: Any, threshold: float, value: float, inplace: bool = False
) -> Slot:
    return call.unary(input, "threshold", threshold, value)


@op("rrelu")
def _rrelu(
    call: Call,
    input: Any,
    lower: float = 1.0 / 8.0,
    upper: float = 1.0 / 3.0,
    training: bool = False,
    inplace: bool = False,
) -> Slot:
    if training:
        raise call.refuse("random slopes in eval mode")
    return call.unary(input, "leaky_relu", (lower + upper) / 2)


@op("prelu", "_prelu_kernel")
def _prelu(call: Call, input: Any, weight: Any) -> Slot:
    """max(x, 0) + w (x - max(x, 0)): at zero, the slope is w, as torch has it. Where that is
    differentiated, torch has the slope 1 there, and no function has both: products are NaN, and
    torch is asked for them."""
    if not isinstance(weight, Fixed):
        raise call.refuse("slopes that are no parameter")
    elements = weight.elements().reshape(-1)
    if elements.numel() > 1:  # one for each channel, the traced dimension 1
        elements = elements.view(-1, *[1] * (call.value.dim() - 2))
    slope = weight.view(elements)
    positive = call.unary(input, "positive")
    return call.binary(
        "add", positive, call.binary("mul", call.binary("sub", input, positive), slope)
    )


@op("glu")
def _glu(call: Call, input: Any, dim: int = -1) -> Slot:
    x = call.view(input)
    call.dim(x, dim)
    kept, gate = (call.lowering.from_full(x, part) for part in call.lowering.full(x).chunk(2, dim))
    return call.binary("mul", kept, call.unary(gate, "sigmoid"))


_POWERS = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt"}


@op("pow", "float_power", "rpow")
def _pow(call: Call, input: Any, exponent: Any) -> Slot:
    if call.name == "rpow":
        input, exponent = exponent, input
    if is_number(input) and not is_number(exponent):
        if not input > 0:
            raise call.refuse(f"base {input!r}")
        return call.unary(call.unary(exponent, "affine", math.log(input)), "exp")
    if isinstance(input, Slot) and isinstance(exponent, Slot | Fixed):  # NaN below zero, as torch's
        return call.unary(call.binary("mul", call.unary(input, "log"), exponent), "exp")
    if not is_number(exponent) or not is_number(float(exponent)) or exponent == 0:
        raise call.refuse(f"exponent {exponent!r}")
    p = float(exponent)
    if p == 1.0:
        return call.view(input)
    if p == -1.0:
        return call.unary(input, "reciprocal", 1.0)
    if 1.0 < p < 2.0:  # a relu before it selects in torch; ours would multiply 0 and infinity
        raise call.refuse(f"exponent {p:g}, whose second derivative is infinite at 0")
    return call.unary(input, _POWERS.get(p, "power"), p)


@op("addcmul", "addcdiv")
def _add_product(call: Call, input: Any, tensor1: Any, tensor2: Any, value: float = 1.0) -> Slot:
    """input + value * tensor1 * tensor2, or with the quotient."""
    if not isinstance(tensor1, Slot) and not isinstance(tensor2, Slot):
        raise call.refuse("of parameters alone")
    found = call.binary("mul" if call.name == "addcmul" else "div", tensor1, tensor2)
    return _add(call, input, found, value)


@op("lerp")
def _lerp(call: Call, input: Any, end: Any, weight: Any) -> Slot:
    """input + weight (end - input)."""
    step = call.binary("sub", end, input)
    return call.binary("add", input, _mul(call, step, weight))


@op("tan")
def _tan(call: Call, input: Any) -> Slot:
    return call.binary("div", call.unary(input, "sin"), call.unary(input, "cos"))


@op("sinh", "cosh")
def _hyperbolic(call: Call, input: Any) -> Slot:
    """(e^x -+ e^-x) / 2; near 0 a sinh has the rounding of 1."""
    up, down = call.unary(input, "exp"), call.unary(_neg(call, input), "exp")
    both = call.binary("sub" if call.name == "sinh" else "add", up, down)
    return call.unary(both, "affine", 0.5)


@op("erfc", "special_erfc")
def _erfc(call: Call, input: Any) -> Slot:
    """1 - erf(x); beyond x = 3 with the rounding of 1."""
    return call.unary(call.unary(input, "erf"), "affine", -1.0, 1.0)


@op("exp2", "special_exp2")
def _exp2(call: Call, input: Any) -> Slot:
    return call.unary(call.unary(input, "affine", math.log(2.0)), "exp")


@op("log2", "log10")
def _log_of_base(call: Call, input: Any) -> Slot:
    base = 2.0 if call.name == "log2" else 10.0
    return call.unary(call.unary(input, "log"), "affine", 1.0 / math.log(base))


@op("reciprocal")
def _reciprocal(call: Call, input: Any) -> Slot:
    return call.unary(input, "reciprocal", 1.0)


@op("neg", "negative")
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
    if rounding_mode is not None:
        raise call.refuse("a rounding mode")
    if is_number(input):
        return call.unary(other, "reciprocal", float(input))
    if is_number(other) and float(other) != 0.0:
        return call.unary(input, "affine", 1.0 / float(other), 0.0)
    return call.binary("div", input, other)
