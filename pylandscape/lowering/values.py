"""Values of an interpreted module: slots of the program, constants, shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
Handler = Callable[..., Any]
FILL = -1  # in an index: a constant, not an element


@lru_cache(maxsize=64)
def counting(size: int) -> Tensor:
    return torch.arange(size)


@dataclass(frozen=True, eq=False)
class Slot:
    """A value of the program, one column per sample, and how the traced tensor shows it.

    The traced tensor has its batch dimension at ``axis``; ``shape`` is the rest. Its element e of a
    sample is row ``index[e]`` of the slot; without an index the rows are in order. Views (permute,
    slice, expand ...) are new indices of the same slot and cost nothing until somebody needs the
    rows in order.
    """

    id: int
    shape: Shape
    axis: int = 0
    index: Tensor | None = None  # of `shape`

    def dim(self, d: int) -> int | None:
        """Dimension d of the traced tensor as one of ``shape``; None for the batch."""
        d %= len(self.shape) + 1
        return None if d == self.axis else d - (d > self.axis)


@dataclass(frozen=True, eq=False)
class Fixed:
    """A parameter or buffer: where the program finds it (offset in theta, or -1 - constant).

    Element e is number ``index[e]`` of the ``size`` there; without an index they are in order.
    """

    source: int
    shape: Shape
    size: int
    index: Tensor | None = None

    def elements(self) -> Tensor:
        return counting(self.size).view(self.shape) if self.index is None else self.index

    def view(self, index: Tensor) -> Fixed:
        """The elements with these numbers, of the same kind."""
        return replace(self, shape=tuple(index.shape), index=index)


@dataclass(frozen=True, eq=False)
class Computed(Fixed):
    """What the forward pass computes of parameters alone: element e is row ``index[e]`` of the
    ``size`` of slot ``source``, the same for every sample."""

    def slot(self, rank: int | None = None) -> Slot:
        """As a value with a batch dimension in front, of ``rank`` dimensions behind it."""
        index = self.elements()
        index = index.reshape([1] * ((rank or 0) - index.dim()) + list(index.shape))
        return Slot(self.source, tuple(index.shape), 0, index)


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor that depends on neither the input nor a parameter: a mask, a table of positions."""

    value: Tensor


@dataclass(frozen=True, eq=False)
class OfData:
    """A value that the forward pass computes of its inputs alone (of_data.py), as it was traced."""

    node: torch.fx.Node
    value: Any


@dataclass(frozen=True, eq=False)
class Packed:
    """A PackedSequence: x, of shape (time, ...), up to ``lengths``, the same for all samples or
    one for each."""

    x: Slot
    lengths: int | OfData


@dataclass(frozen=True)
class Unread:
    """A result that was not lowered; a call that reads it is refused."""

    what: str


@dataclass(frozen=True, eq=False)
class Merged:
    """A traced tensor in whose first dimension are the samples and the first of ``slot.shape``.

    That is what ``logits.view(-1, classes)`` makes of (samples, tokens, classes). Calls that treat
    every row alone are lowered as if the dimension were still two.
    """

    slot: Slot  # its axis is 0


def later(source: int, by: int) -> int:
    """The source of what lies `by` elements behind."""
    return source + by if source >= 0 else source - by


def is_repeated(x: Tensor, d: int) -> bool:
    """Whether x holds the same several times along dimension d."""
    return x.shape[d] > 1 and torch.equal(x, x.narrow(d, 0, 1).expand_as(x))


TAKE_KNOWN: set[Handler] = set()  # handlers that want Known tensors as they are


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)
