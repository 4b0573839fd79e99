"""Lowers a captured graph to the compiled program.

The graph is run once on a few samples; beside each concrete value stands its lowered form: a
``Slot`` of the program, a ``Fixed`` tensor of the model, or a plain Python value. The table
``_OPS`` holds one handler per torch call, under the call's name (function, method and ATen overload
alike), with torch's own argument names.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._native import core
from .errors import NotLowered, UnknownOp


@dataclass(frozen=True)
class Slot:
    """A value with one row per sample: ``shape`` excludes the batch dimension."""

    id: int
    shape: tuple[int, ...]

    @property
    def features(self) -> int:
        return _product(self.shape)


@dataclass(frozen=True)
class Fixed:
    """A parameter or buffer: where the program finds it (offset in theta, or -1 - constant)."""

    source: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return _product(self.shape)


class Lowering(torch.fx.Interpreter):
    """Runs the graph and builds the program beside it; ``result`` is the network's result."""

    def __init__(
        self,
        graph: torch.fx.GraphModule,
        program: Any,
        sources: Mapping[int, int],
    ) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.program = program
        self.sources = sources  # id(tensor) -> source
        self.lowered: dict[torch.fx.Node, Any] = {}
        self.samples = 0
        self.trace_dtype = torch.float32
        self.inputs = 0
        self.result: Slot | None = None
        self.names: list[str] = []

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        self.lowered[n] = self._lower(n, value)
        return value

    def _lower(self, node: torch.fx.Node, value: Any) -> Any:
        if node.op == "placeholder":
            return self._lower_input(node, value)
        if node.op == "get_attr":
            if not isinstance(value, Tensor) or id(value) not in self.sources:
                raise NotLowered(f"attribute {node.target!r} is not a parameter or buffer")
            return Fixed(self.sources[id(value)], tuple(value.shape))
        args: Any = torch.fx.node.map_arg(node.args, lambda n: self.lowered[n])
        kwargs: Any = torch.fx.node.map_arg(node.kwargs, lambda n: self.lowered[n])
        if node.op == "output":
            result = args[0]
            if not isinstance(result, Slot):
                raise NotLowered("the model does not return one tensor with a row per sample")
            self.result = result
            return result
        if not isinstance(value, Tensor):
            return value  # sizes and other Python values; checked by the comparison with the module
        name = _call_name(node)
        if node.op == "call_module":
            name = type(self.fetch_attr(str(node.target))).__name__
        handler = _OPS.get(name)
        if handler is None:
            raise UnknownOp(f"op {name!r} is not in the native engine")
        self._check_value(name, value)
        try:
            result = handler(_Call(self, name, tuple(value.shape[1:])), *args, **kwargs)
        except TypeError as error:  # an argument that the handler does not take
            raise NotLowered(f"op {name!r}: unsupported arguments ({error})") from error
        self.names.append(name)
        if _in_place(node, name):
            self._rebind(node, result)
        return result

    def _lower_input(self, node: torch.fx.Node, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value  # an argument left at its default
        self.inputs += 1
        if self.inputs > 1:
            raise NotLowered("the model takes more than one input")
        if value.dim() < 1 or not value.is_floating_point():
            raise NotLowered(f"the input is {value.dtype}, not floating point")
        self.samples, self.trace_dtype = value.shape[0], value.dtype
        shape = tuple(value.shape[1:])
        return Slot(self.program.input(_product(shape)), shape)

    def _check_value(self, name: str, value: Tensor) -> None:
        if value.dim() < 1 or value.shape[0] != self.samples:
            raise NotLowered(
                f"op {name!r} gives shape {tuple(value.shape)}: no leading batch dimension"
            )
        if value.dtype != self.trace_dtype:
            raise NotLowered(
                f"op {name!r} gives {value.dtype} where the input is {self.trace_dtype}"
            )

    def _rebind(self, node: torch.fx.Node, result: Slot) -> None:
        """After an in-place op every earlier name of the same memory means the new value."""
        target: Any = node.args[0]
        memory = self.env[target].untyped_storage().data_ptr()
        for other, value in self.env.items():
            known = self.lowered.get(other)
            if (
                isinstance(value, Tensor)
                and isinstance(known, Slot)
                and value.untyped_storage().data_ptr() == memory
            ):
                if known.features != result.features:
                    raise NotLowered("an in-place op on a part of a tensor")
                self.lowered[other] = Slot(result.id, known.shape)


@dataclass(frozen=True)
class _Call:
    """What a handler may use: the program, the op's name, the result's per-sample shape."""

    lowering: Lowering
    name: str
    shape: tuple[int, ...]

    @property
    def program(self) -> Any:
        return self.lowering.program

    def refuse(self, why: str) -> NotLowered:
        return NotLowered(f"op {self.name!r}: {why}")

    def slot(self, value: Any) -> Slot:
        if not isinstance(value, Slot):
            raise self.refuse("an operand that is not computed from the input")
        return value

    def unary(self, x: Any, f: str, a: float = 0.0, b: float = 0.0) -> Slot:
        x = self.slot(x)
        return Slot(self.program.unary(x.id, getattr(core.Unary, f), float(a), float(b)), x.shape)

    def reshaped(self, x: Any) -> Slot:
        x = self.slot(x)
        if x.features != _product(self.shape):
            raise self.refuse("it mixes samples")
        return Slot(x.id, self.shape)

    def operand(self, value: Any) -> Slot:
        """A slot of the result's shape; a fixed tensor is repeated for every sample."""
        if isinstance(value, Slot):
            if value.shape != self.shape:
                raise self.refuse(f"broadcasts {value.shape} to {self.shape}")
            return value
        if not isinstance(value, Fixed):
            raise self.refuse("an operand that is no tensor")
        shape = value.shape
        if len(shape) > len(self.shape):
            if shape[0] != 1:
                raise self.refuse("a fixed operand with a batch dimension")
            shape = shape[1:]
        index = torch.arange(value.numel).reshape(shape).expand(self.shape).reshape(-1)
        return Slot(self.program.expand(value.source, value.numel, index.tolist()), self.shape)


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _call_name(node: torch.fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1]
    return getattr(node.target, "__name__", str(node.target))


_IN_PLACE_OPERATORS = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def _in_place(node: torch.fx.Node, name: str) -> bool:
    return (
        name.endswith("_") or bool(node.kwargs.get("inplace")) or node.target in _IN_PLACE_OPERATORS
    )


Handler = Callable[..., Slot]
_OPS: dict[str, Handler] = {}


def _op(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for name in names:
            _OPS[name] = handler
        return handler

    return register


@_op("linear")
def _linear(call: _Call, input: Any, weight: Any, bias: Any = None) -> Slot:
    x = call.slot(input)
    if not isinstance(weight, Fixed) or not (bias is None or isinstance(bias, Fixed)):
        raise call.refuse("weights that are computed, not parameters")
    m, k = weight.shape
    outer = x.features // k if k else _product(x.shape[:-1])
    bias_source = None if bias is None else bias.source
    result = call.program.linear(x.id, outer, k, m, weight.source, bias_source)
    return Slot(result, call.shape)


@_op("relu", "relu_")
def _relu(call: _Call, input: Any, inplace: bool = False) -> Slot:
    return call.unary(input, "relu")


@_op("leaky_relu", "leaky_relu_")
def _leaky_relu(
    call: _Call, input: Any, negative_slope: float = 0.01, inplace: bool = False
) -> Slot:
    return call.unary(input, "leaky_relu", negative_slope)


@_op("tanh", "tanh_")
def _tanh(call: _Call, input: Any) -> Slot:
    return call.unary(input, "tanh")


@_op("sigmoid", "sigmoid_")
def _sigmoid(call: _Call, input: Any) -> Slot:
    return call.unary(input, "sigmoid")


@_op("gelu")
def _gelu(call: _Call, input: Any, approximate: str = "none") -> Slot:
    return call.unary(input, "gelu" if approximate == "none" else "gelu_tanh")


@_op("silu", "silu_")
def _silu(call: _Call, input: Any, inplace: bool = False) -> Slot:
    return call.unary(input, "silu")


@_op("softplus")
def _softplus(call: _Call, input: Any, beta: float = 1.0, threshold: float = 20.0) -> Slot:
    return call.unary(input, "softplus", beta, threshold)


@_op("elu", "elu_")
def _elu(
    call: _Call,
    input: Any,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
    inplace: bool = False,
) -> Slot:
    if input_scale != 1.0:
        raise call.refuse(f"input_scale={input_scale}")
    return call.unary(input, "elu", alpha, float(scale))


@_op("selu", "selu_")
def _selu(call: _Call, input: Any, inplace: bool = False) -> Slot:
    return call.unary(input, "elu", 1.6732632423543772, 1.0507009873554805)


@_op("relu6")
def _relu6(call: _Call, input: Any, inplace: bool = False) -> Slot:
    return call.unary(input, "clamp", 0.0, 6.0)


@_op("hardtanh", "hardtanh_")
def _hardtanh(
    call: _Call, input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Slot:
    return call.unary(input, "clamp", min_val, max_val)


@_op("clamp", "clamp_", "clip")
def _clamp(call: _Call, input: Any, min: Any = None, max: Any = None) -> Slot:
    if isinstance(min, Slot | Fixed) or isinstance(max, Slot | Fixed):
        raise call.refuse("tensor bounds")
    low = -float("inf") if min is None else min
    return call.unary(input, "clamp", low, float("inf") if max is None else max)


@_op("square")
def _square(call: _Call, input: Any) -> Slot:
    return call.unary(input, "square")


@_op("pow")
def _pow(call: _Call, input: Any, exponent: Any) -> Slot:
    if exponent == 2 and isinstance(exponent, int | float):
        return call.unary(input, "square")
    raise call.refuse(f"exponent {exponent!r}")


@_op("abs")
def _abs(call: _Call, input: Any) -> Slot:
    return call.unary(input, "abs")


@_op("exp")
def _exp(call: _Call, input: Any) -> Slot:
    return call.unary(input, "exp")


@_op("neg")
def _neg(call: _Call, input: Any) -> Slot:
    return call.unary(input, "affine", -1.0, 0.0)


def _binary(call: _Call, f: str, input: Any, other: Any) -> Slot:
    result = call.program.binary(
        getattr(core.Binary, f), call.operand(input).id, call.operand(other).id
    )
    return Slot(result, call.shape)


@_op("add", "add_", "iadd", "radd")
def _add(call: _Call, input: Any, other: Any, alpha: float = 1.0) -> Slot:
    if _is_number(other):
        return call.unary(input, "affine", 1.0, float(other) * alpha)
    if _is_number(input):
        return call.unary(other, "affine", alpha, float(input))
    scaled = other if alpha == 1 else call.unary(call.operand(other), "affine", alpha, 0.0)
    return _binary(call, "add", input, scaled)


@_op("sub", "sub_", "isub")
def _sub(call: _Call, input: Any, other: Any, alpha: float = 1.0) -> Slot:
    if _is_number(other):
        return call.unary(input, "affine", 1.0, -float(other) * alpha)
    if _is_number(input):
        return call.unary(other, "affine", -alpha, float(input))
    scaled = other if alpha == 1 else call.unary(call.operand(other), "affine", alpha, 0.0)
    return _binary(call, "sub", input, scaled)


@_op("rsub")
def _rsub(call: _Call, input: Any, other: Any, alpha: float = 1.0) -> Slot:
    return _sub(call, other, input, alpha)


@_op("mul", "mul_", "imul", "multiply")
def _mul(call: _Call, input: Any, other: Any) -> Slot:
    if _is_number(other):
        return call.unary(input, "affine", float(other), 0.0)
    if _is_number(input):
        return call.unary(other, "affine", float(input), 0.0)
    return _binary(call, "mul", input, other)


@_op("div", "div_", "truediv", "itruediv", "true_divide")
def _div(call: _Call, input: Any, other: Any, rounding_mode: str | None = None) -> Slot:
    if rounding_mode is not None or _is_number(input):
        raise call.refuse("a rounding mode or a number divided by a tensor")
    if _is_number(other) and float(other) != 0.0:
        return call.unary(input, "affine", 1.0 / float(other), 0.0)
    return _binary(call, "div", input, other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


@_op("flatten", "reshape", "view", "unflatten", "unsqueeze", "squeeze", "_unsafe_view")
def _reshape(call: _Call, input: Any, *args: Any, **kwargs: Any) -> Slot:
    return call.reshaped(input)


@_op("contiguous", "clone", "alias", "positive")
def _same(call: _Call, input: Any, memory_format: Any = None) -> Slot:
    return call.reshaped(input)


@_op("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
def _dropout(
    call: _Call,
    input: Any,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Slot:
    if training and p != 0.0:
        raise call.refuse("dropout that is active in eval mode")
    return call.reshaped(input)


@_op("to", "float", "double", "type_as", "_to_copy")
def _cast(call: _Call, input: Any, *args: Any, **kwargs: Any) -> Slot:
    return call.reshaped(input)


@_op("layer_norm")
def _layer_norm(
    call: _Call,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Slot:
    x = call.slot(input)
    size = _product(tuple(normalized_shape))
    for parameter in (weight, bias):
        if not (parameter is None or isinstance(parameter, Fixed)):
            raise call.refuse("weights that are computed, not parameters")
    gain = None if weight is None else weight.source
    shift = None if bias is None else bias.source
    result = call.program.layer_norm(x.id, x.features // size, size, float(eps), gain, shift)
    return Slot(result, x.shape)


def _softmax_over(call: _Call, input: Any, dim: Any, log: bool) -> Slot:
    x = call.slot(input)
    if not isinstance(dim, int):
        raise call.refuse("no dim given")
    axis = (dim % (len(x.shape) + 1)) - 1
    if axis < 0:
        raise call.refuse("over the batch dimension")
    outer, inner = _product(x.shape[:axis]), _product(x.shape[axis + 1 :])
    return Slot(call.program.softmax(x.id, log, outer, x.shape[axis], inner), x.shape)


@_op("softmax", "_softmax")
def _softmax(call: _Call, input: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Slot:
    return _softmax_over(call, input, dim, log=False)


@_op("log_softmax", "_log_softmax")
def _log_softmax(call: _Call, input: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Slot:
    return _softmax_over(call, input, dim, log=True)


@_op("cat", "concat", "concatenate")
def _cat(call: _Call, tensors: Any, dim: int = 0) -> Slot:
    inputs = [call.slot(t) for t in tensors]
    axis = (dim % (len(call.shape) + 1)) - 1
    if axis < 0:
        raise call.refuse("over the batch dimension")
    outer = _product(call.shape[:axis])
    return Slot(call.program.concat([x.id for x in inputs], outer), call.shape)
