"""The derivatives of each kind of op on a GPU, for the passes of derivatives.py.

Names: dy is the adjoint of y, a leading r the tangent along a vector, so rdy is the tangent of the
adjoint. Tensors are (k, rows, features), at theta (1, rows, features).

A new op: a `Handler` in `HANDLERS` under its kind. Those of images and sequences are in
derivative_layers.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._native import core
from .op import Source
from .sweep import HANDLERS, Handler

if TYPE_CHECKING:
    from .op import Op
    from .sweep import Sweep


_SUMS = (core.Binary.add, core.Binary.sub)


def _tangents(op: Op, s: Sweep) -> list[Tensor | None]:
    return [s.tangents.get(x) for x in op.inputs]


class Linear(Handler):
    """y = W x + b on each of ``outer`` groups. ry = V x + W rx + rb; rdW = rdy x^T + dy rx^T;
    rdx = W^T rdy + V^T dy."""

    masks = True
    wants_adjoint = True

    def values(self, op: Op) -> set[int]:
        return {op.inputs[0], *super().values(op)}

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        x, rx, v = op.inputs[0], s.tangents.get(op.inputs[0]), s.along(op.weight)
        pairs = []
        if v is not None:
            pairs.append((_columns(op, s.value(x)), _matrix(op, v).mT))
        if rx is not None:
            pairs.append((_columns(op, rx), _matrix(op, weight_at(op, s)).mT))
        bias, shape = s.along(op.bias), (s.k, s.rows, op.outer * op.m)
        if not pairs:
            assert bias is not None
            t = bias[:, None].expand(s.k, s.rows * op.outer, op.m).reshape(shape)
            return s.bend(t, s.value(op.output), positive=True) if op.relu else t
        if op.relu:
            y = s.value(op.output)
            _, bent = s.multiply(pairs, bias=bias, first=y, positive=True, keep=False)
            return bent.view(shape)
        unary = s.s.followers[i]
        if unary is None:
            return s.multiply(pairs, bias=bias)[0].view(shape)
        # z itself is asked for where the function curves.
        t, bent = s.multiply(pairs, bias=bias, first=s.tile.saved[unary][0], keep=s.second)
        s.tangents[s.s.ops[unary].output] = bent.view(shape)
        return t.view(shape) if s.second else t

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        x = op.inputs[0]
        dy = dy.reshape(len(dy), -1, op.m)
        rx = s.tangents.get(x) if s.second else None
        at_theta = s.adjoint(op.output).view(1, -1, op.m) if s.second else dy
        pairs = [(dy, _columns(op, s.value(x)))]
        if rx is not None:
            pairs.append((at_theta, _columns(op, rx)))
        s.sum(pairs, op.weight, op.bias, op.transposed)
        if x not in s.s.moves:
            return
        pairs = [(dy, _matrix(op, weight_at(op, s)))]
        v = s.along(op.weight) if s.second else None
        if v is not None:
            pairs.append((at_theta, _matrix(op, v)))
        if not self._reverse_with_unary(op, s, pairs):
            t, _ = s.multiply(pairs)
            s.add(x, _placed(t.view(len(t), s.rows, -1), op.first(), s.s.features(x)))

    def _reverse_with_unary(self, op: Op, s: Sweep, pairs: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether x was the output of a function that nobody else reads: done together."""
        x = op.inputs[0]
        made = s.s.producer.get(x)
        whole = x in s.s.alone and op.outer * op.k == s.s.features(x)
        if made is None or not whole or s.at_theta:
            return False
        before = s.s.ops[made]
        shape = (len(pairs[0][0]), s.rows, -1)
        if before.relu:
            _, bent = s.multiply(pairs, first=s.value(x), positive=True, keep=False)
            s.masked.add(x)
            s.add(x, bent.view(shape))
            return True
        if before.kind != "unary":
            return False
        first, curved = s.tile.saved[made]
        r = s.tangents[before.inputs[0]] if s.second else None
        more = curved if s.second else None
        _, bent = s.multiply(pairs, first=first, curved=more, r=r, keep=False)
        s.finish(made, before.inputs[0], bent.view(shape))
        return True

    def samples(self, i: int, op: Op, s: Sweep, out: Tensor) -> None:
        count = len(out)
        dy = s.adjoint(op.output)[0, :count].reshape(count, op.outer, op.m)
        if op.weight is not None and op.weight[0] >= 0:
            x = _columns(op, s.value(op.inputs[0])).view(-1, op.outer, op.k)[:count]
            found = torch.bmm(x.mT, dy) if op.transposed else torch.bmm(dy.mT, x)
            part_of(out, op.weight).add_(found.view(count, -1))
        if op.bias is not None and op.bias[0] >= 0:
            part_of(out, op.bias).add_(dy.sum(1))


class Unary(Handler):
    """y = f(x): ry = f' rx; rdx = f' rdy + (f'' dy) rx. Keeps f' and f'' dy."""

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        t, (first, curved) = s.tangents[op.inputs[0]], s.tile.saved[i]
        if int(op.function) == int(core.Unary.positive):  # NaN where there are no tangents
            return s.bend(t, first, curved=curved, r=t)
        return s.bend(t, first)

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        first, curved = s.tile.saved[i]
        if not s.second:
            s.add(op.inputs[0], s.bend(dy, first))
            return
        s.add(op.inputs[0], s.bend(dy, first, curved=curved, r=s.tangents[op.inputs[0]]))

    def reverse_at_theta(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        first, curved, dx = s.s.kernels.unary_slopes(
            s.value(op.inputs[0]), dy.contiguous(), int(op.function), op.a, op.b
        )
        s.tile.saved[i] = (first, curved)
        s.add(op.inputs[0], dx)


class Binary(Handler):
    """Sums, differences, products and quotients of two values."""

    wants_adjoint = True

    def values(self, op: Op) -> set[int]:
        own = set() if op.function in _SUMS else {*op.inputs, op.output}
        return own | super().values(op)

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        rx, rz = _tangents(op, s)
        x, z = op.inputs
        if op.function in _SUMS:
            sign = -1 if op.function == core.Binary.sub else 1
            if rx is None or rz is None:
                return rx if rx is not None else sign * there(rz)
            return torch.add(rx, rz, alpha=sign)
        if op.function == core.Binary.mul:
            parts = [r * s.value(other) for r, other in ((rx, z), (rz, x)) if r is not None]
        else:
            y, q = s.value(z), s.value(op.output)
            parts = [] if rx is None else [rx / y]
            parts += [] if rz is None else [-q * rz / y]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        x, z = op.inputs
        if op.function in _SUMS:
            s.add(x, dy)
            s.add(z, -dy if op.function == core.Binary.sub else dy)
            return
        rx, rz = _tangents(op, s) if s.second else (None, None)
        at_theta = s.adjoint(op.output) if s.second else None
        if op.function == core.Binary.mul:
            for slot, other, r in ((x, z, rz), (z, x, rx)):
                if slot in s.s.moves:
                    own = dy * s.value(other)
                    s.add(slot, own if r is None else own + there(at_theta) * r)
            return
        # q = x / y: dx = dq / y, dy = -dx q; along a vector rdx = (rdq - dx ry) / y.
        y, q = s.value(z), s.value(op.output)
        if not s.second:
            dx = dy / y
            s.add(x, dx)
            s.add(z, -dx * q)
            return
        dx = there(at_theta) / y
        rdx = (dy if rz is None else dy - dx * rz) / y
        s.add(x, rdx)
        s.add(z, -(rdx * q + dx * s.tangents[op.output]))


class LayerNorm(Handler):
    """Groups of features, normalised (csrc/cuda/group_slopes.cu)."""

    wants_adjoint = True

    def values(self, op: Op) -> set[int]:
        return {op.inputs[0], *super().values(op)}

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        rx, rgain, rshift = s.tangents.get(op.inputs[0]), s.along(op.weight), s.along(op.bias)
        return self._slopes(op, s, 0, rx, rgain=rgain, rshift=rshift)[0]

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        if s.second:
            found, terms = self._slopes(
                op, s, 2, dy, s.adjoint(op.output), s.tangents.get(op.inputs[0]),
                s.along(op.weight),
            )  # fmt: skip
        else:
            found, terms = self._slopes(op, s, 1, dy)
        s.sum_rows(self._gains(op, terms), op.weight)
        s.sum_rows(self._gains(op, dy), op.bias)
        if op.inputs[0] in s.s.moves:
            s.add(op.inputs[0], found)

    def samples(self, i: int, op: Op, s: Sweep, out: Tensor) -> None:
        dy = s.adjoint(op.output)
        _, terms = self._slopes(op, s, 1, dy)
        for x, use in ((terms, op.weight), (dy, op.bias)):
            if use is not None and use[0] >= 0:
                rows = self._gains(op, x).view(s.rows, -1, use[1])[: len(out)]
                part_of(out, use).add_(rows.double().sum(1).to(out))

    def _gains(self, op: Op, x: Tensor) -> Tensor:
        """(k, rows of their own, gains)."""
        return x.reshape(len(x), -1, op.k)

    def _slopes(
        self,
        op: Op,
        s: Sweep,
        which: int,
        given: Tensor | None,
        dy: Tensor | None = None,
        rx: Tensor | None = None,
        rgain: Tensor | None = None,
        rshift: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        none = s.s.none
        gain = none if op.weight is None else s.d.parameter(op.weight).contiguous()
        optional = [none if t is None else t.contiguous() for t in (given, dy, rx)]
        rgain, rshift = (none if t is None else t for t in (rgain, rshift))
        wanted = which == 0 or op.inputs[0] in s.s.moves
        found, terms = s.s.kernels.norm_slopes(
            s.value(op.inputs[0]), *optional, gain, rgain, rshift, s.k, which, *self._shape(op),
            op.a, wanted,
        )  # fmt: skip
        return found, terms

    def _shape(self, op: Op) -> tuple[int, int, int, bool]:
        """Groups, features of each, pixels, and whether gains are those of the groups' channels."""
        return (op.outer, op.k, 1, False)


class Softmax(Handler):
    """Softmax and log-softmax over the middle of (outer, k, inner)."""

    wants_adjoint = True

    def values(self, op: Op) -> set[int]:
        return {op.output}

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        return self._slopes(op, s, s.tangents[op.inputs[0]], True)

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        more = (s.adjoint(op.output), s.tangents[op.output]) if s.second else ()
        s.add(op.inputs[0], self._slopes(op, s, dy, False, *more))

    def _slopes(self, op: Op, s: Sweep, given: Tensor, tangent: bool, *more: Tensor) -> Tensor:
        dy, ry = (t.contiguous() for t in more) if more else (s.s.none, s.s.none)
        found = s.s.kernels.softmax_slopes(
            s.value(op.output), given.contiguous(), dy, ry, op.log, tangent, op.outer, op.k,
            op.inner,
        )  # fmt: skip
        return torch.as_tensor(found)


class Concat(Handler):
    """Parts of the inputs one after the other, within each of ``outer`` groups."""

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        parts = []
        for slot, (outer, first, count) in zip(op.inputs, self._parts(op, s), strict=True):
            r = s.tangents.get(slot)
            if r is None:
                r = s.zeros(s.s.features(slot))
            parts.append(r[..., first : first + outer * count].unflatten(2, (outer, count)))
        return torch.cat(parts, 3).flatten(2)

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        parts = self._parts(op, s)
        outer = parts[0][0]
        pieces = dy.unflatten(2, (outer, -1)).split([count for _, _, count in parts], 3)
        for slot, piece, (_, first, _) in zip(op.inputs, pieces, parts, strict=True):
            if slot in s.s.moves:
                s.add(slot, _placed(piece.flatten(2), first, s.s.features(slot)))

    def _parts(self, op: Op, s: Sweep) -> list[tuple[int, int, int]]:
        """(groups, first feature, features of a group) of each input."""
        if op.rows:
            return [(1, first, count) for first, count in op.rows]
        return [(op.outer, 0, s.s.features(x) // op.outer) for x in op.inputs]


class Expand(Handler):
    """Feature f is element index[f] of a parameter."""

    wants_adjoint = True

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        v = s.along(op.weight)
        assert v is not None
        return v[:, s.s.list_of(i, "index")][:, None].expand(s.k, s.rows, -1)

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        if s.sums is None:
            return
        assert op.weight is not None
        sums = s.sums.new_zeros(len(dy), dy.shape[2])
        s.s.kernels.add_row_sums_(sums, 0, dy.contiguous(), 0)
        inverse = s.s.inverse(i, "index", op.weight[1])
        found = s.s.kernels.scatter_sums(sums[:, None], *inverse)
        part_of(s.sums, op.weight).add_(found[:, 0])

    def samples(self, i: int, op: Op, s: Sweep, out: Tensor) -> None:
        assert op.weight is not None
        inverse = s.s.inverse(i, "index", op.weight[1])
        found = s.s.kernels.scatter_sums(s.adjoint(op.output).contiguous(), *inverse)
        part_of(out, op.weight).add_(found[0, : len(out)])


class Gather(Handler):
    """Feature f is feature index[f] of the input, or constant."""

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        found = s.tangents[op.inputs[0]].index_select(2, s.s.list_of(i, "from"))
        if min(op.index, default=0) < 0:
            found.masked_fill_(s.s.list_of(i, "index") < 0, 0)
        return found

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        x = op.inputs[0]
        inverse = s.s.inverse(i, "index", s.s.features(x))
        s.add(x, s.s.kernels.scatter_sums(dy.contiguous(), *inverse))


HANDLERS |= {
    "linear": Linear(),
    "unary": Unary(),
    "binary": Binary(),
    "layer_norm": LayerNorm(),
    "softmax": Softmax(),
    "concat": Concat(),
    "expand": Expand(),
    "gather": Gather(),
}


def weight_at(op: Op, s: Sweep) -> Tensor:
    assert op.weight is not None
    return s.d.parameter(op.weight)


def _matrix(op: Op, weight: Tensor) -> Tensor:
    """(g, m, k) of the elements (g, m * k) of a linear op's weight."""
    if op.transposed:
        return weight.unflatten(1, (op.k, op.m)).mT
    return weight.unflatten(1, (op.m, op.k))


def _columns(op: Op, x: Tensor) -> Tensor:
    """(g, rows * outer, k): what a linear op multiplies."""
    first = op.first()
    return x[..., first : first + op.outer * op.k].reshape(len(x), -1, op.k)


def _placed(x: Tensor, first: int, features: int) -> Tensor:
    """x (g, rows, some) as features first, first + 1 ... of as many, the others zero."""
    return F.pad(x, (first, features - first - x.shape[2]))


def part_of(out: Tensor, use: Source) -> Tensor:
    return out[:, use[0] : use[0] + use[1]]


def there(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
