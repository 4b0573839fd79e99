"""Passes over the ops of one tile for a block of vectors, and what each kind of op adds to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..._native import core
from .op import Source

if TYPE_CHECKING:
    from .op import Op
    from .structure import Structure


class Handler:
    """Of an op that reads slots and gives one; methods for op number i of a sweep."""

    masks = False  # `tangent` applies the op's relu itself
    wants_adjoint = False  # whether the adjoint of its output at theta is asked for later

    def values(self, op: Op) -> set[int]:
        """Slots whose values at theta the passes of a product, and `samples`, ask for."""
        return {op.output} if op.relu else set()

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        """ry (k, rows, features) of the inputs' tangents and the vectors."""
        raise NotImplementedError

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        """Adds to the adjoints of inputs and parameters, from that of the output.

        With ``s.second``, dy is rdy, and what is added are the tangents of the adjoints.
        """
        raise NotImplementedError

    def reverse_at_theta(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        """The same at theta; keeps in ``s.tile.saved`` what products will need."""
        self.reverse(i, op, s, dy)

    def samples(self, i: int, op: Op, s: Sweep, out: Tensor) -> None:
        """out (samples, n) += the gradients of the samples' own terms in the parameters."""
        raise NotImplementedError


HANDLERS: dict[str, Handler] = {}  # by kind of op; derivative_ops.py and _layers.py fill it

ROWS = core.WARP  # a tile's rows are a multiple; every vector's values then begin aligned
LARGE = 1 << 27  # multiply-adds of one vector's product from which torch multiplies
SUM_ROWS = 512  # rows that torch adds in the program's dtype; beyond, sums are double


@dataclass
class Tile:
    """Some samples at theta: values and adjoints by slot, ``saved`` by op what it keeps."""

    first: int
    count: int
    values: dict[int, Tensor] = field(default_factory=dict)
    adjoints: dict[int, Tensor] = field(default_factory=dict)
    saved: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def tensors(self) -> Iterator[Tensor]:
        yield from self.values.values()
        yield from self.adjoints.values()
        for group in self.saved.values():
            yield from group


class Kept(Protocol):
    """Derivatives at one theta, as far as passes and handlers ask them."""

    structure: Structure

    def parameter(self, use: Source) -> Tensor:
        """(1, elements) at theta."""

    def channels(self, op: Op) -> tuple[Tensor, ...]:
        """Scale, inverse and centre (channels,) of a batch norm."""


class Sweep:
    """Passes over the ops of one tile for k vectors: tangents forward, adjoints backward.

    ``vectors`` (k, n); ``sums`` (k, n) float64 takes the parameters' adjoints. ``second``: the
    adjoints are tangents of those at theta (the Hessian), else they are adjoints themselves.
    Without vectors, adjoints at theta, which the tile keeps.
    """

    def __init__(
        self,
        derivatives: Kept,
        tile: Tile,
        k: int,
        vectors: Tensor | None = None,
        sums: Tensor | None = None,
        *,
        second: bool = False,
    ) -> None:
        self.d, self.s, self.tile, self.k = derivatives, derivatives.structure, tile, k
        self.vectors, self.sums, self.second = vectors, sums, second
        self.at_theta = vectors is None
        self.tangents: dict[int, Tensor] = {}
        self.adjoints: dict[int, Tensor] = {}
        self.masked: set[int] = set()  # slots whose adjoint is already that before the relu
        self._done: set[int] = set()

    @property
    def rows(self) -> int:
        return -(-self.tile.count // ROWS) * ROWS

    def forward(self) -> None:
        """Tangents of everything that moves."""
        s = self.s
        last = {x: i for i, op in enumerate(s.ops) for x in op.inputs}
        for i, op in enumerate(s.ops):
            if op.output not in s.moves or op.output in self.tangents:
                continue
            handler = HANDLERS[op.kind]
            found = handler.tangent(i, op, self)
            if op.relu and not handler.masks:
                found = self.bend(found, self.value(op.output), positive=True)
            self.tangents[op.output] = found
            if not self.second:  # nobody asks for them later
                for x in op.inputs:
                    if last[x] == i and x != s.output:
                        self.tangents.pop(x, None)

    def reverse(self) -> None:
        """Adjoints of everything that moves, from the output's."""
        for i in reversed(range(len(self.s.ops))):
            op = self.s.ops[i]
            if op.output not in self.s.moves or i in self._done:
                continue
            dy = self.adjoints.pop(op.output, None)
            if dy is None:  # nobody reads it
                dy = self.zeros(self.s.features(op.output))
            if op.relu and op.output not in self.masked:
                dy = self.bend(dy, self.value(op.output), positive=True)
            handler = HANDLERS[op.kind]
            if self.at_theta:
                if handler.wants_adjoint:
                    self.tile.adjoints[op.output] = dy
                handler.reverse_at_theta(i, op, self, dy)
            else:
                handler.reverse(i, op, self, dy)

    def value(self, slot: int) -> Tensor:
        """(1, rows, features) at theta."""
        return self.tile.values[slot]

    def adjoint(self, slot: int) -> Tensor:
        """(1, rows, features) at theta; before the relu of the op that gives it."""
        return self.tile.adjoints[slot]

    def along(self, use: Source | None) -> Tensor | None:
        """(k, elements): how the vectors move a parameter, or None where they do not."""
        if use is None or use[0] < 0 or self.vectors is None:
            return None
        return self.vectors[:, use[0] : use[0] + use[1]]

    def zeros(self, features: int) -> Tensor:
        return self.s.none.new_zeros(self.k, self.rows, features)

    def add(self, slot: int, x: Tensor) -> None:
        """The adjoint of a slot += x (k, rows, features)."""
        if slot not in self.s.moves:
            return
        old = self.adjoints.get(slot)
        self.adjoints[slot] = x if old is None else old + x

    def finish(self, i: int, slot: int, x: Tensor) -> None:
        """Op i is done: its input ``slot`` has the adjoint x."""
        self._done.add(i)
        self.add(slot, x)

    def bend(
        self,
        x: Tensor,
        first: Tensor,
        *,
        positive: bool = False,
        bias: Tensor | None = None,
        curved: Tensor | None = None,
        r: Tensor | None = None,
    ) -> Tensor:
        """first x + curved r; x += bias before, in place. ``positive``: slopes are first > 0."""
        none = self.s.none
        found = self.s.kernels.bend_(
            x.contiguous(), none if bias is None else bias, first, positive,
            none if curved is None else curved, none if r is None else r.contiguous(),
        )  # fmt: skip
        return torch.as_tensor(found)

    def multiply(
        self,
        pairs: list[tuple[Tensor, Tensor]],
        *,
        bias: Tensor | None = None,
        first: Tensor | None = None,
        positive: bool = False,
        curved: Tensor | None = None,
        r: Tensor | None = None,
        keep: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """t = sum of a b over pairs of (1 | k, m, inner) and (1 | k, inner, columns), plus bias
        (k, columns); with ``first`` also bent = first t + curved r, and then t only to ``keep`` it.
        (t, bent); what was not asked for is empty."""
        none = self.s.none
        m, columns = pairs[0][0].shape[1], pairs[0][1].shape[2]
        if m * columns * sum(a.shape[2] for a, _ in pairs) < LARGE:
            (a, b), (c, d) = pairs[0], pairs[1] if len(pairs) > 1 else (none, none)
            t, bent = self.s.kernels.pair_products(
                a, b, c, d, none if bias is None else bias, none if first is None else first,
                positive, none if curved is None else curved,
                none if r is None else r.contiguous(), keep,
            )  # fmt: skip
            return t, bent
        t = a_by_b(pairs, self.k)
        if first is not None:
            return t, self.bend(t, first, positive=positive, bias=bias, curved=curved, r=r)
        if bias is not None:
            t += bias[:, None]
        return t, none

    def sum(
        self,
        pairs: list[tuple[Tensor, Tensor]],
        weight: Source | None,
        bias: Source | None,
        transposed: bool = False,
    ) -> None:
        """The adjoint of a weight (m, columns) += sum over rows of a b, for pairs of
        (1 | k, rows, m) and (1 | k, rows, columns); that of a bias (m,) += the sums of the first
        a (k, rows, m)."""
        if self.sums is None:
            return
        weight = weight if weight is not None and weight[0] >= 0 else None
        bias = bias if bias is not None and bias[0] >= 0 else None
        a, b = pairs[0]
        m, columns, kernels = a.shape[2], b.shape[2], self.s.kernels
        if weight is None:
            if bias is not None:
                kernels.add_row_sums_(self.sums, bias[0], a.contiguous(), 0)
        elif a.shape[1] * m * columns * len(pairs) < LARGE:
            c, d = pairs[1] if len(pairs) > 1 else (self.s.none, self.s.none)
            at = -1 if bias is None else bias[0]
            kernels.pair_sums_(self.sums, weight[0], at, transposed, a, b, c, d)
        else:
            for j in range(self.k):
                for x, y in pairs:
                    parts = summed(x[j if len(x) > 1 else 0], y[j if len(y) > 1 else 0])
                    out = self.sums[j : j + 1]
                    kernels.add_row_sums_(out, weight[0], parts, m if transposed else 0)
            if bias is not None:
                kernels.add_row_sums_(self.sums, bias[0], a.contiguous(), 0)

    def sum_rows(self, x: Tensor, use: Source | None) -> None:
        """The adjoint of a parameter += the sums of x (k, rows, elements) over its rows."""
        if self.sums is not None and use is not None and use[0] >= 0:
            self.s.kernels.add_row_sums_(self.sums, use[0], x.contiguous(), 0)


def a_by_b(pairs: list[tuple[Tensor, Tensor]], k: int) -> Tensor:
    """(k, m, columns), vector by vector: each product has the same shapes whatever k is."""
    (a, b), *more = pairs
    out = a.new_empty(k, a.shape[1], b.shape[2])
    for j in range(k):
        torch.mm(a[j if len(a) > 1 else 0], b[j if len(b) > 1 else 0], out=out[j])
        for c, d in more:
            out[j].addmm_(c[j if len(c) > 1 else 0], d[j if len(d) > 1 else 0])
    return out


def summed(x: Tensor, y: Tensor) -> Tensor:
    """Sums (1, parts, m * columns) of x (rows, m) and y (rows, columns) over SUM_ROWS rows each."""
    rows, m, columns = len(x), x.shape[1], y.shape[1]
    whole = rows // SUM_ROWS
    parts = x.new_empty(-(-rows // SUM_ROWS), m, columns)
    if whole:
        split = whole * SUM_ROWS
        a = x[:split].unflatten(0, (whole, SUM_ROWS))
        b = y[:split].unflatten(0, (whole, SUM_ROWS))
        torch.bmm(a.mT, b, out=parts[:whole])
    if rows > whole * SUM_ROWS:
        torch.mm(x[whole * SUM_ROWS :].mT, y[whole * SUM_ROWS :], out=parts[whole])
    return parts.view(1, len(parts), m * columns)
