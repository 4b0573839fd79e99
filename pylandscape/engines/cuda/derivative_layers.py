"""Derivatives of convolutions, batch and group norm, pooling, matrix products and embeddings on a
GPU (see derivative_ops.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._native import core
from .conv import Conv, _windows
from .derivative_ops import LayerNorm, part_of, weight_at
from .sweep import HANDLERS, Handler

if TYPE_CHECKING:
    from .op import Op
    from .sweep import Sweep

CONV_ROWS = 256  # samples whose convolutions' sums are in the program's dtype


class GroupNorm(LayerNorm):
    """Groups of channels at all pixels, with one gain for each channel."""

    def _gains(self, op: Op, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, op.k // op.inner * op.outer)

    def _shape(self, op: Op) -> tuple[int, int, int, bool]:
        return (op.outer, op.k, op.inner, True)


class BatchNorm(Handler):
    """y = scale x + shift in each of k channels, by fixed statistics, which have no derivatives."""

    wants_adjoint = True

    def values(self, op: Op) -> set[int]:
        return {op.inputs[0], *super().values(op)}

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        assert op.norm is not None
        rx, shape = s.tangents.get(op.inputs[0]), (s.k, -1, op.k)
        rgain, rshift = s.along(op.norm["gain"]), s.along(op.norm["shift"])
        scale, inverse, centre = s.d.channels(op)
        found = None if rx is None else rx.reshape(shape) * scale
        if rgain is None and rshift is None:
            return (
                s.zeros(s.s.features(op.output)) if found is None else found.view(s.k, s.rows, -1)
            )
        moved = inverse.new_zeros(s.k, op.k)
        if rgain is not None:
            moved = torch.addcmul(moved, rgain, centre)
        if rshift is not None:
            moved = moved + rshift
        if rgain is not None:
            x = s.value(op.inputs[0]).reshape(1, -1, op.k) * (rgain * inverse)[:, None]
            found = x if found is None else found.add_(x)
        found = moved[:, None].expand(shape) if found is None else found.add_(moved[:, None])
        return found.reshape(s.k, s.rows, -1)

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        assert op.norm is not None
        x = op.inputs[0]
        gain = op.norm["gain"]
        scale, inverse, _ = s.d.channels(op)
        dy = dy.reshape(len(dy), -1, op.k)
        rgain = s.along(gain) if s.second else None
        rx = s.tangents.get(x) if s.second else None
        at_theta = s.adjoint(op.output).view(1, -1, op.k) if s.second else dy
        if s.sums is not None and gain is not None and gain[0] >= 0:
            terms = dy * self._normalised(op, s)
            if rx is not None:
                terms += at_theta * inverse * rx.reshape(len(rx), -1, op.k)
            s.sum_rows(terms, gain)
        s.sum_rows(dy, op.norm["shift"])
        if x not in s.s.moves:
            return
        dx = dy * scale
        if rgain is not None:
            dx += at_theta * (rgain * inverse)[:, None]
        s.add(x, dx.view(len(dy), s.rows, -1))

    def samples(self, i: int, op: Op, s: Sweep, out: Tensor) -> None:
        assert op.norm is not None
        dy = s.adjoint(op.output).view(1, -1, op.k)
        for name, t in (("gain", dy * self._normalised(op, s)), ("shift", dy)):
            use = op.norm[name]
            if use is not None and use[0] >= 0:
                rows = t.view(s.rows, -1, op.k)[: len(out)]
                part_of(out, use).add_(rows.double().sum(1).to(out))

    def _normalised(self, op: Op, s: Sweep) -> Tensor:
        _, inverse, centre = s.d.channels(op)
        x = s.value(op.inputs[0]).reshape(1, -1, op.k)
        return torch.addcmul(centre, x, inverse)


class Convolution(Handler):
    """y = W * x + b, the adjoints by torch's own; vector by vector, so that the algorithm does not
    depend on how many there are. Sums over at most CONV_ROWS samples are in the program's dtype."""

    wants_adjoint = True

    def values(self, op: Op) -> set[int]:
        return {op.inputs[0], *super().values(op)}

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        x, conv = op.inputs[0], _there_conv(op)
        rx, v, bias = s.tangents.get(x), s.along(op.weight), s.along(op.bias)
        out = s.s.none.new_empty(s.k, s.rows, s.s.features(op.output))
        filters = _filters(conv, weight_at(op, s))
        for j in range(s.k):
            own = None if bias is None else bias[j]
            found = None
            if v is not None:
                found = _convolved(conv, s.value(x)[0], _filters(conv, v[j]), own)
                own = None
            if rx is not None:
                more = _convolved(conv, rx[j], filters, own)
                found = more if found is None else found.add_(more)
            if found is None:
                assert own is not None
                found = own.repeat(s.rows, out.shape[2] // len(own))
            out[j] = found
        return out

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        x, conv = op.inputs[0], _there_conv(op)
        assert op.weight is not None
        weigh = s.sums is not None and op.weight[0] >= 0
        rx = s.tangents.get(x) if s.second else None
        v = s.along(op.weight) if s.second else None
        filters = _filters(conv, weight_at(op, s))
        s.sum_rows(dy.reshape(len(dy), -1, conv.outputs), op.bias)
        wanted = x in s.s.moves
        out = s.s.none.new_empty(len(dy), s.rows, s.s.features(x)) if wanted else None
        for j in range(len(dy)):
            for part in _row_parts(s.rows):
                to = None if out is None else out[j, part]
                terms = [(dy[j], s.value(x)[0], filters, to, weigh)]
                if s.second and (v is not None or rx is not None):
                    more = None if v is None else to
                    old = s.value(x)[0] if rx is None else rx[j]
                    own = filters if v is None else _filters(conv, v[j])
                    terms.append(
                        (s.adjoint(op.output)[0], old, own, more, weigh and rx is not None)
                    )
                for n, (d, a, w, into, sums) in enumerate(terms):
                    dx, dw = _adjoints(conv, d[part], a[part], w, into is not None, sums)
                    if into is not None and dx is not None:
                        into.copy_(dx) if n == 0 else into.add_(dx)
                    if dw is not None and s.sums is not None:
                        part_of(s.sums[j : j + 1], op.weight).add_(dw.reshape(1, -1))
        if out is not None:
            s.add(x, out)

    def samples(self, i: int, op: Op, s: Sweep, out: Tensor) -> None:
        conv, count = _there_conv(op), len(out)
        dy, x = s.adjoint(op.output)[0, :count], s.value(op.inputs[0])[:, :count]
        pixels = dy.reshape(count, -1, conv.outputs)
        if op.bias is not None and op.bias[0] >= 0:
            part_of(out, op.bias).add_(pixels.sum(1))
        if op.weight is None or op.weight[0] < 0:
            return
        if conv.groups == 1:
            windows = _windows(conv, x).view(count, -1, conv.taps * conv.channels)
            found = torch.bmm(pixels.mT, windows).unflatten(2, (conv.taps, conv.channels))
            part_of(out, op.weight).add_(found.mT.reshape(count, -1))
            return
        filters = _filters(conv, weight_at(op, s))
        for j in range(count):
            _, dw = _adjoints(conv, dy[j : j + 1], x[0, j : j + 1], filters, False, True)
            assert dw is not None
            part_of(out[j : j + 1], op.weight).add_(dw.reshape(1, -1))


class Pool(Handler):
    """Maxima and sums over windows of pixels: linear, with the windows' winners at theta."""

    def values(self, op: Op) -> set[int]:
        return {op.inputs[0]} if self._even(op) else set()

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        rx = s.tangents[op.inputs[0]]
        bounds, index = s.s.list_of(i, "bounds"), s.s.list_of(i, "index")
        if self._sums(op):
            found = s.s.kernels.pool_windows(
                rx.reshape(s.k * s.rows, -1, op.k), bounds, index, s.s.torch_program._factor(i),
                int(op.function),
            )  # fmt: skip
        else:
            found = s.s.kernels.pool_tangent(
                rx.reshape(s.k, s.rows, -1, op.k), *self._winners(i, op, s), bounds, index
            )
        return torch.as_tensor(found).view(s.k, s.rows, -1)

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        x, index = op.inputs[0], s.s.list_of(i, "index")
        winners = [s.s.none] * 3 if self._sums(op) else self._winners(i, op, s)
        inverse = s.s.inverse(i, "index", s.s.features(x) // op.k)
        found = s.s.kernels.pool_reverse(
            dy.reshape(len(dy), s.rows, -1, op.k), *winners, index,
            s.s.torch_program._factor(i), *inverse, s.s.windows(i),
        )  # fmt: skip
        s.add(x, found.view(len(dy), s.rows, -1))

    def reverse_at_theta(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        if not self._sums(op):
            x = s.value(op.inputs[0]).view(s.rows, -1, op.k)
            bounds, index = s.s.list_of(i, "bounds"), s.s.list_of(i, "index")
            s.tile.saved[i] = s.s.kernels.pool_winners(x, bounds, index, self._even(op))
        self.reverse(i, op, s, dy)

    def _winners(self, i: int, op: Op, s: Sweep) -> list[Tensor]:
        return [s.value(op.inputs[0]) if self._even(op) else s.s.none, *s.tile.saved[i]]

    def _sums(self, op: Op) -> bool:
        return bool(op.function == core.Pool.sum)

    def _even(self, op: Op) -> bool:
        return bool(op.function == core.Pool.max_even)


class Matmul(Handler):
    """z = scale x y of the rows of two values, as matrices (outer, m, k) and (outer, k, n)."""

    wants_adjoint = True

    def values(self, op: Op) -> set[int]:
        return {*op.inputs, *super().values(op)}

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        x, y = op.inputs
        pairs = [(s.tangents.get(x), s.value(y)), (s.value(x), s.tangents.get(y))]
        out = None
        for a, b in pairs:
            if a is None or b is None:
                continue
            a, b = self._operand(i, op, s, "x", a), self._operand(i, op, s, "y", b)
            found = _batched(a, b, s.k)
            out = found if out is None else out.add_(found)
        assert out is not None
        out = out.flatten(2)
        out = out if op.a == 1.0 else out.mul_(op.a)
        order = s.s.list_of(i, "z")
        return out if len(order) == 0 else out.index_select(2, order)

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        x, y = op.inputs
        d = self._result(i, op, s, dy)
        a, b = self._operand(i, op, s, "x", s.value(x)), self._operand(i, op, s, "y", s.value(y))
        rx, ry = (s.tangents.get(slot) if s.second else None for slot in op.inputs)
        at_theta = self._result(i, op, s, s.adjoint(op.output)) if s.second else d
        if x in s.s.moves:
            found = _batched(d, b.mT, len(dy))
            if ry is not None:
                found += _batched(at_theta, self._operand(i, op, s, "y", ry).mT, len(dy))
            self._scatter(i, op, s, "x", found)
        if y in s.s.moves:
            found = _batched(a.mT, d, len(dy))
            if rx is not None:
                found += _batched(self._operand(i, op, s, "x", rx).mT, at_theta, len(dy))
            self._scatter(i, op, s, "y", found)

    def _operand(self, i: int, op: Op, s: Sweep, name: str, t: Tensor) -> Tensor:
        assert op.matmul is not None
        m, n, k = op.matmul["sizes"]
        sizes = (m, k) if name == "x" else (k, n)
        return t.index_select(2, s.s.list_of(i, name)).unflatten(2, (op.outer, *sizes))

    def _result(self, i: int, op: Op, s: Sweep, dz: Tensor) -> Tensor:
        """scale dz as matrices."""
        assert op.matmul is not None
        m, n, _ = op.matmul["sizes"]
        order = s.s.list_of(i, "z")
        if len(order):
            dz = torch.empty_like(dz).index_copy_(2, order, dz)
        return (dz * op.a).unflatten(2, (op.outer, m, n))

    def _scatter(self, i: int, op: Op, s: Sweep, name: str, found: Tensor) -> None:
        slot = op.inputs[0 if name == "x" else 1]
        inverse = s.s.inverse(i, name, s.s.features(slot))
        s.add(slot, s.s.kernels.scatter_sums(found.flatten(2).contiguous(), *inverse))


class Embedding(Handler):
    """Rows of a table (m, k), by ids in the data; one row, b, may have no derivative."""

    wants_adjoint = True

    def values(self, op: Op) -> set[int]:
        return {op.inputs[0], *super().values(op)}

    def tangent(self, i: int, op: Op, s: Sweep) -> Tensor:
        v = s.along(op.weight)
        assert v is not None
        ids = self._ids(i, op, s)
        found = v.unflatten(1, (op.m, op.k)).index_select(1, ids.reshape(-1))
        if op.b >= 0:
            found.masked_fill_((ids.reshape(-1) == int(op.b))[:, None], 0)
        return found.view(s.k, s.rows, -1)

    def reverse(self, i: int, op: Op, s: Sweep, dy: Tensor) -> None:
        if s.sums is None or op.weight is None or op.weight[0] < 0:
            return
        ids = self._ids(i, op, s).reshape(-1)
        for j in range(len(dy)):
            own = self._wanted(op, ids, dy[j].reshape(-1, op.k)).double()
            table = own.new_zeros(op.m, op.k).index_put_((ids,), own, accumulate=True)
            part_of(s.sums[j : j + 1], op.weight).add_(table.view(1, -1))

    def samples(self, i: int, op: Op, s: Sweep, out: Tensor) -> None:
        assert op.weight is not None
        ids, count = self._ids(i, op, s)[: len(out)], len(out)
        dy = s.adjoint(op.output)[0, :count].reshape(-1, op.k)
        own = self._wanted(op, ids.reshape(-1), dy)
        first = torch.arange(count, device=ids.device)[:, None] * op.m
        table = own.new_zeros(count * op.m, op.k)
        table.index_put_(((first + ids).reshape(-1),), own, accumulate=True)
        part_of(out, op.weight).add_(table.view(count, -1))

    def _ids(self, i: int, op: Op, s: Sweep) -> Tensor:
        """(rows, ids)."""
        return s.value(op.inputs[0])[0].index_select(1, s.s.list_of(i, "index")).long()

    def _wanted(self, op: Op, ids: Tensor, dy: Tensor) -> Tensor:
        return dy.masked_fill((ids == int(op.b))[:, None], 0) if op.b >= 0 else dy


HANDLERS |= {
    "group_norm": GroupNorm(),
    "batch_norm": BatchNorm(),
    "conv": Convolution(),
    "pool": Pool(),
    "matmul": Matmul(),
    "embedding": Embedding(),
}


def _there_conv(op: Op) -> Conv:
    assert op.conv is not None
    return op.conv


def _filters(conv: Conv, weight: Tensor) -> Tensor:
    """Parameters (elements,) or (1, elements) as torch's (rows, channels, h, w)."""
    return weight.reshape(conv.outputs, conv.channels, *conv.kernel)


def _pixels(x: Tensor, sizes: tuple[int, int]) -> Tensor:
    """(images, channels, h, w) with the memory of x (images, h * w * channels): channels_last."""
    return x.unflatten(1, (*sizes, -1)).permute(0, 3, 1, 2)


def _convolved(conv: Conv, x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """(images, pixels * outputs) of x (images, pixels * channels)."""
    found = F.conv2d(
        _pixels(x, conv.image), filters, bias, conv.stride, conv.pad, conv.dilation, conv.groups
    )
    return found.permute(0, 2, 3, 1).reshape(len(x), -1)


def _adjoints(
    conv: Conv, dy: Tensor, x: Tensor, filters: Tensor, wants_dx: bool, wants_dw: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Those of images (images, pixels * channels) and filters, from dy (images, pixels * rows)."""
    if not (wants_dx or wants_dw):
        return None, None
    dx, dw, _ = torch.ops.aten.convolution_backward(
        _pixels(dy, conv.result), _pixels(x, conv.image), filters, None, conv.stride, conv.pad,
        conv.dilation, False, [0, 0], conv.groups, [wants_dx, wants_dw, False],
    )  # fmt: skip
    return dx.permute(0, 2, 3, 1).reshape(len(x), -1) if wants_dx else None, dw


def _row_parts(rows: int) -> list[slice]:
    return [slice(a, min(rows, a + CONV_ROWS)) for a in range(0, rows, CONV_ROWS)]


def _batched(a: Tensor, b: Tensor, k: int) -> Tensor:
    """a b of (1 | k, rows, outer, ., .), vector by vector: each call has the same shapes."""
    parts = [torch.matmul(a[j if len(a) > 1 else 0], b[j if len(b) > 1 else 0]) for j in range(k)]
    return torch.stack(parts)
