"""Models of several inputs, as models of one: its rows are those of all inputs, one after another.

``((x1, x2), y)`` is called as ``model(x1, x2)``, ``({"a": x1, "b": x2}, y)`` as ``model(a=x1,
b=x2)``. A program has one input; `Form` says where each of the module's lies in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotLowered
from .interpreter import Call, op
from .of_data import DataRows, Needed, rows_of
from .values import Slot

_WHOLE = (torch.int64, torch.int32, torch.bool)


@dataclass(frozen=True)
class Piece:
    """One of the module's inputs: its place among the arguments, or its keyword."""

    key: int | str
    shape: tuple[int, ...]  # of a sample
    dtype: torch.dtype
    first: int  # of its rows

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + prod(self.shape))

    def of(self, packed: Tensor) -> Tensor:
        """This input of packed ones (N, rows)."""
        own = packed[:, self.rows].reshape(-1, *self.shape)
        return own if self.dtype.is_floating_point else _whole(own, self.dtype)


@dataclass(frozen=True)
class Form:
    """How the inputs of a sample lie in one row."""

    pieces: tuple[Piece, ...]
    rows: tuple[DataRows, ...] = ()  # behind the pieces: what torch computes of them alone

    @property
    def whole(self) -> list[int]:
        """The rows of whole numbers."""
        rows = [p.rows for p in self.pieces if not p.dtype.is_floating_point]
        return [row for part in rows for row in range(part.start, part.stop)]

    @property
    def width(self) -> int:
        """Rows of the pieces."""
        return max(piece.rows.stop for piece in self.pieces)

    def with_rows(self, need: Needed, inputs: Tensor, sizes: Sequence[int]) -> tuple[Form, Tensor]:
        """The form with the rows that are needed, and the packed inputs (N, rows) with them."""
        batches = inputs[:, : self.width].split(list(sizes))
        found, values = rows_of(need, batches, inputs.shape[1])
        return replace(self, rows=(*self.rows, found)), torch.cat([inputs, values], dim=1)

    def again(self, inputs: Tensor, sizes: Sequence[int]) -> Tensor:
        """Packed inputs (N, rows), the rows behind the pieces computed anew in their dtype."""
        own = inputs[:, : self.width].contiguous()
        parts = own.split(list(sizes))
        values = [torch.cat([rows.of(part) for part in parts]) for rows in self.rows]
        return torch.cat([own, *values], dim=1)

    def module(self, model: nn.Module) -> nn.Module:
        """The same module, with the same tensors, of the packed inputs."""
        if "forward" in model.__dict__:
            raise NotLowered("several inputs, and a forward that was replaced")
        kind: Any = type(type(model).__name__, (_OfPacked, type(model)), {})
        own: nn.Module = kind.__new__(kind)
        own.__dict__.update(model.__dict__, _packed_form=self)
        return own

    def example(self, packed: Tensor, few: int) -> Tensor:
        """Samples to trace with: of whole numbers the largest, which are an id as well as a length
        that reaches the end."""
        found = packed[torch.arange(few) % len(packed)]
        for piece in self.pieces:
            if not piece.dtype.is_floating_point and 0 not in piece.shape:
                found[:, piece.rows] = packed[:, piece.rows].max()
        return found


class _OfPacked:
    _packed_form: Form

    def forward(self, packed: Tensor) -> Any:
        parts = {piece.key: piece.of(packed) for piece in self._packed_form.pieces}
        listed = [part for key, part in parts.items() if isinstance(key, int)]
        named = {key: part for key, part in parts.items() if isinstance(key, str)}
        return super().forward(*listed, **named)  # type: ignore[misc]


def _whole(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Whole numbers, which the program holds as floating-point ones."""
    return x.to(dtype)


torch.fx.wrap("_whole")


@op("_whole")
def _lower_whole(call: Call, x: Any, dtype: torch.dtype) -> Slot:
    found = call.view(x)
    call.lowering.hold_ids(found)
    return found


def pack_one(inputs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Form]:
    """The only input (N, ...), packed."""
    packed = _exact(inputs, dtype).reshape(len(inputs), -1)
    shape = tuple(inputs.shape[1:])
    return packed, Form((Piece(0, shape, inputs.dtype, 0),))


def pack(batches: Sequence[Any], dtype: torch.dtype) -> tuple[Tensor, Form]:
    """The inputs of all batches (N, rows) of ``dtype`` on the CPU, and how they lie there.

    Raises NotLowered where they are not several tensors with a row for each sample.
    """
    forms: list[dict[int | str, Tensor]] = []
    for batch in batches:
        named = isinstance(batch.inputs, Mapping)
        if not named and not isinstance(batch.inputs, tuple | list):
            raise NotLowered("the data are not (input tensor, target tensor) batches")
        items = batch.inputs.items() if named else enumerate(batch.inputs)
        forms.append({key: _checked(part, batch.size, dtype) for key, part in items})
    first = forms[0]
    about = {key: (part.shape[1:], part.dtype) for key, part in first.items()}
    if not first or any(
        {key: (part.shape[1:], part.dtype) for key, part in form.items()} != about for form in forms
    ):
        raise NotLowered("several inputs that are not alike in all batches")
    if len({kind for _, kind in about.values() if kind.is_floating_point}) > 1:
        raise NotLowered("several inputs of several floating-point dtypes")
    pieces, columns, row = [], [], 0
    for key, part in first.items():
        pieces.append(Piece(key, tuple(part.shape[1:]), part.dtype, row))
        row += prod(part.shape[1:])
        whole = torch.cat([form[key] for form in forms]).detach().cpu()
        columns.append(_exact(whole, dtype).reshape(len(whole), -1))
    return torch.cat(columns, dim=1).contiguous(), Form(tuple(pieces))


def _exact(whole: Tensor, dtype: torch.dtype) -> Tensor:
    packed = whole.to(dtype)
    if not whole.is_floating_point() and not torch.equal(packed.to(whole.dtype), whole):
        raise NotLowered(f"whole numbers that {dtype} does not hold")
    return packed


def _checked(part: Any, size: int, dtype: torch.dtype) -> Tensor:
    if not isinstance(part, Tensor) or part.layout != torch.strided:
        raise NotLowered(f"an input is a {type(part).__name__}, or a sparse tensor")
    if part.dim() == 0 or len(part) != size:
        raise NotLowered("an input has no row for each sample")
    if not part.is_floating_point() and part.dtype not in _WHOLE:
        raise NotLowered(f"an input is {part.dtype}, neither floating point nor int64 or bool")
    if part.is_floating_point() and torch.finfo(part.dtype).eps < torch.finfo(dtype).eps:
        raise NotLowered(f"an input is {part.dtype}, wider than the {dtype} asked for")
    return part
