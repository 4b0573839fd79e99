"""Where the weights of a multilayer perceptron lie in theta, and how its units change places."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..arrays import Array
from ..errors import InvalidArgument

ODD = ("Identity", "Tanh", "Softsign", "Hardtanh", "Tanhshrink", "Softshrink", "Hardshrink")
NOT_ODD = (
    "ReLU", "ReLU6", "LeakyReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Softplus",
    "Sigmoid", "LogSigmoid", "Hardsigmoid", "Hardswish", "Threshold",
)  # fmt: skip
IGNORED = (nn.Flatten, nn.Dropout, nn.Identity)
Index = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class GroupElement:
    """One signed permutation per hidden layer: the new unit i is signs[i] times unit orders[i].

    Attributes:
        orders: per hidden layer (M_l,) int, a permutation.
        signs: per hidden layer (M_l,) float64, +1 or -1.
    """

    orders: tuple[NDArray[np.intp], ...]
    signs: tuple[Array, ...]

    def after(self, first: GroupElement) -> GroupElement:
        """The element that does `first`, then this one."""
        pairs = list(zip(self.orders, first.orders, strict=True))
        orders = tuple(theirs[mine] for mine, theirs in pairs)
        signs = tuple(
            s * t[o] for s, t, o in zip(self.signs, first.signs, self.orders, strict=True)
        )
        return GroupElement(orders, signs)

    def inverse(self) -> GroupElement:
        orders = tuple(np.argsort(order) for order in self.orders)
        signs = tuple(s[o] for s, o in zip(self.signs, orders, strict=True))
        return GroupElement(orders, signs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GroupElement) or len(self.orders) != len(other.orders):
            return False
        mine, theirs = (*self.orders, *self.signs), (*other.orders, *other.signs)
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(part.tobytes() for part in (*self.orders, *self.signs)))


@dataclass(frozen=True)
class Layers:
    """Sizes (in, out) of the layers, whether they have biases, activations between them.

    A unit of hidden layer l (0-based) has row i of weights(l), place i of biases(l) and column i of
    weights(l + 1).
    """

    sizes: tuple[tuple[int, int], ...]
    bias: tuple[bool, ...]
    activations: tuple[str, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(out for _, out in self.sizes[:-1])

    @property
    def n(self) -> int:
        return self.offset(len(self.sizes))

    def offset(self, layer: int) -> int:
        """Where the weights of a layer begin in theta."""
        before = list(zip(self.sizes, self.bias, strict=True))[:layer]
        return sum(out * (inputs + has) for (inputs, out), has in before)

    def weights(self, layer: int) -> Index:
        """Places (out, in) of a layer's weights in theta."""
        inputs, out = self.sizes[layer]
        return self.offset(layer) + np.arange(out * inputs).reshape(out, inputs)

    def biases(self, layer: int) -> Index:
        """Places (out,) of its biases; raises InvalidArgument where it has none."""
        if not self.bias[layer]:
            raise InvalidArgument(f"layers: expected biases, got none in layer {layer + 1}")
        inputs, out = self.sizes[layer]
        return self.offset(layer) + out * inputs + np.arange(out)

    def incoming(self, layer: int) -> Index:
        """Places (out, in + bias): of each unit its bias, if there are any, then its weights."""
        weights = self.weights(layer)
        return np.c_[self.biases(layer), weights] if self.bias[layer] else weights

    def outgoing(self, layer: int) -> Index:
        """Places (M_l, next layer's out) of the weights that leave the units of a hidden layer."""
        return self.weights(layer + 1).T

    def action(self, orders: Sequence[Index], signs: Sequence[Array]) -> tuple[Index, Array]:
        """index, factor (n,): g theta = factor * theta[index]."""
        index, factor = np.arange(self.n), np.ones(self.n)
        if [len(o) for o in orders] != list(self.widths):
            raise InvalidArgument(
                f"element: expected one of the widths {self.widths}, got "
                f"{tuple(len(o) for o in orders)}"
            )
        for layer, (inputs, _) in enumerate(self.sizes):
            places = self.weights(layer)
            rows, row_signs = np.arange(len(places)), np.ones(len(places))
            columns, column_signs = np.arange(inputs), np.ones(inputs)
            if layer < len(orders):
                rows, row_signs = orders[layer], signs[layer]
            if layer > 0:
                columns, column_signs = orders[layer - 1], signs[layer - 1]
            index[places] = places[np.ix_(rows, columns)]
            factor[places] = np.outer(row_signs, column_signs)
            if self.bias[layer]:
                index[self.biases(layer)] = self.biases(layer)[rows]
                factor[self.biases(layer)] = row_signs
        return index, factor


def layers_of(source: Any, activation: Any = None, bias: Any = None) -> Layers:
    """The layers of a model, a landscape or a list of (in, out) sizes; see `EquioutputGroup`."""
    from ..landscape import Landscape

    if isinstance(source, Landscape):
        found = layers_of(source.model, activation, bias)
        if source.n_params != found.n:
            raise InvalidArgument(
                f"layers: expected a landscape of all {found.n} parameters of its model, got one "
                f"of {source.n_params} (params=)"
            )
        return found
    if isinstance(source, nn.Module):
        if activation is not None or bias is not None:
            raise InvalidArgument("activation, bias: expected only with sizes, the model has them")
        return _of_model(source)
    return _of_sizes(source, activation, bias)


def numbers(value: Any, name: str) -> Array:
    """A tensor, array or list as float64."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{name}: expected numbers, got {type(value).__name__}") from error


def _of_model(model: nn.Module) -> Layers:
    linears: list[nn.Linear] = []
    between: list[list[str]] = []
    for module in _flat(model):
        if isinstance(module, nn.Linear):
            linears.append(module)
            between.append([])
        elif isinstance(module, IGNORED):
            continue
        elif between:
            between[-1].append(_activation(module))
        else:
            raise InvalidArgument(
                f"model: expected a Linear layer first, got {type(module).__name__}"
            )
    if not linears:
        raise InvalidArgument("model: expected a Sequential with Linear layers, got none")
    if len({id(p) for m in linears for p in m.parameters()}) != sum(
        len(list(m.parameters())) for m in linears
    ):
        raise InvalidArgument("model: expected layers of their own parameters, got shared ones")
    sizes = tuple((m.in_features, m.out_features) for m in linears)
    activations = tuple(_composed(names) for names in between[:-1])
    return _checked(Layers(sizes, tuple(m.bias is not None for m in linears), activations))


def _flat(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, nn.Sequential):
        return [each for child in model for each in _flat(child)]
    return [model]


def _activation(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Hardtanh) and module.min_val != -module.max_val:
        return "ReLU6" if module.min_val == 0 else "Threshold"
    if name not in ODD + NOT_ODD:
        raise InvalidArgument(
            f"model: expected a Sequential of Linear layers and elementwise activations, got {name}"
        )
    return name


def _composed(names: list[str]) -> str:
    """One name for activations in a row: a composition of odd ones is odd."""
    if not names:
        return "Identity"
    return next((name for name in names if name not in ODD), names[-1])


def _of_sizes(source: Any, activation: Any, bias: Any) -> Layers:
    try:
        sizes = tuple((operator.index(i), operator.index(o)) for i, o in source)
    except (TypeError, ValueError):
        raise InvalidArgument(
            "layers: expected a model, a Landscape or (in, out) sizes, got "
            f"{source if isinstance(source, list | tuple) else type(source).__name__}"
        ) from None
    if not sizes or min(map(min, sizes)) < 1:
        raise InvalidArgument(f"layers: expected sizes of 1 or more, got {list(sizes)}")
    hidden = len(sizes) - 1
    given = "Tanh" if activation is None else activation
    names = [given] * hidden if isinstance(given, str) else list(given)
    known = {name.lower(): name for name in ODD + NOT_ODD}
    unknown = [name for name in names if str(name).lower() not in known]
    if unknown or len(names) != hidden:
        raise InvalidArgument(
            f"activation: expected one name, or {hidden} of them, of {', '.join(ODD + NOT_ODD)}, "
            f"got {activation!r}"
        )
    has = [bias is not False] * len(sizes) if bias is None or bias in (True, False) else list(bias)
    if len(has) != len(sizes):
        raise InvalidArgument(f"bias: expected {len(sizes)} bools, got {bias!r}")
    return _checked(Layers(sizes, tuple(map(bool, has)), tuple(known[n.lower()] for n in names)))


def _checked(layers: Layers) -> Layers:
    for (_, out), (inputs, _) in zip(layers.sizes[:-1], layers.sizes[1:], strict=True):
        if out != inputs:
            raise InvalidArgument(
                f"layers: expected each layer to take what the one before gives, got {layers.sizes}"
            )
    return layers
