"""A compiled program's ops by torch's products and convolutions, over many points at once.

For networks on a GPU that do not fit a block's shared memory (csrc/common/resident.h), and for the
values that no point changes. A value is (g, samples, rows): g points, or 1 where it is the same at
all of them. What stands between the products (sums over directions, biases, activations, windows,
losses) is one kernel each (csrc/cuda/wide.cu, layers.cu).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._native import core
from .conv import Conv, convolve, extra_elements, way_of
from .op import Op, Source
from .parameters import Parameters

_IDENTITY = (int(core.Unary.affine), 1.0, 0.0)
_RELU = (int(core.Unary.relu), 0.0, 0.0)
_BINARY: dict[Any, Callable[..., Tensor]] = {
    core.Binary.add: torch.add,
    core.Binary.sub: torch.sub,
    core.Binary.mul: torch.mul,
    core.Binary.div: torch.div,
}
_PRODUCT_BYTES = 256 << 20  # float64 rows of a fixed value at a time

Function = tuple[int, float, float]  # a unary op with its two numbers
Reader = Callable[[Source], Tensor]  # (1 or g, elements) of a use


class TorchProgram:
    """The ops of a program, over values that are tensors on ``device``.

    ``fused``: with the epilogues of convolutions and the lookups that losses run with; without,
    op by op, as derivatives need them.
    """

    def __init__(
        self, program: Any, kernels: Any, device: torch.device, *, fused: bool = True
    ) -> None:
        self.ops = tuple(Op.of(described) for described in program.op_list(fused))
        self.output: int = program.output
        self._kernels, self._device = kernels, device
        readers = [x for op in self.ops for x in op.inputs] + [self.output]
        self._alone = {slot for slot in readers if readers.count(slot) == 1}
        self._kept: dict[tuple[int, str], Tensor] = {}  # by op: indices and factors, on the device
        self.way: Callable[[Conv, int, bool], str] = way_of

    def run(
        self, todo: Sequence[int], values: dict[int, Tensor], parameters: Parameters
    ) -> dict[int, Tensor]:
        """Runs the ops with the numbers ``todo``, in order; ``values`` (by slot) grows.

        What no later op reads is dropped, so that its memory can be used again.
        """
        last = {x: i for i in todo for x in self.ops[i].inputs}
        held = {slot for slot in values if slot not in last}
        for i in todo:
            op = self.ops[i]
            if op.output not in values:
                values[op.output] = self._apply(i, op, values, parameters)
            for x in {x for x in op.inputs if last[x] == i and x not in held and x != self.output}:
                del values[x]
        return values

    def products(
        self, op: Op, x: Tensor, theta: Reader, moves: Sequence[Reader], bias: bool
    ) -> Tensor:
        """Terms (1 + moves, samples, outer * m) of a linear op on x (1, samples, rows), which no
        point changes: with theta's weight (and bias), and with each direction's. Summed in float64.
        """
        samples = x.shape[1]
        terms = x.new_empty(1 + len(moves), samples, op.outer * op.m)
        weights = [self._weight(op, source)[0].double() for source in (theta, *moves)]
        step = max(1, _PRODUCT_BYTES // (8 * op.outer * max(op.k, op.m)))
        for at in range(0, samples, step):
            part = self._columns(op, x[:, at : at + step]).double()[0]
            for term, weight in zip(terms, weights, strict=True):
                term[at : at + step] = (part @ weight.T).reshape(-1, op.outer * op.m)
            if bias and op.bias is not None:
                first = terms[0, at : at + step].view(-1, op.outer, op.m)
                first += theta(op.bias)[0]
        return terms

    def combine(self, op: Op, terms: Tensor, c: Tensor, bias: Tensor | None) -> Tensor:
        """(g, samples, outer * m) of the terms of `products`, coefficients (g, moves) and a bias
        (g, m) that the points move."""
        own = _none(terms) if bias is None else bias.contiguous()
        rows = terms.view(len(terms), -1, op.m)
        found = self._kernels.combine_terms(rows, c.contiguous(), own, *_end(op))
        return torch.as_tensor(found).view(len(c), terms.shape[1], -1)

    def _columns(self, op: Op, x: Tensor) -> Tensor:
        """(g, samples * outer, k): what a linear op multiplies."""
        first = op.first()
        return x[..., first : first + op.outer * op.k].reshape(len(x), -1, op.k)

    def _weight(self, op: Op, parameters: Reader) -> Tensor:
        """(g, m, k)."""
        assert op.weight is not None
        weight = parameters(op.weight)
        if op.transposed:
            return weight.view(-1, op.k, op.m).transpose(1, 2)
        return weight.view(-1, op.m, op.k)

    def _apply(self, i: int, op: Op, values: Mapping[int, Tensor], p: Parameters) -> Tensor:
        inputs = [values[x] for x in op.inputs]
        call: Callable[..., Tensor] = getattr(self, f"_{op.kind}")
        return call(i, op, inputs, p)

    def _unary(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        x = inputs[0]
        # Nobody else reads it, and it is neither the data nor a value of all points.
        own = op.inputs[0] in self._alone and op.inputs[0] != 0 and len(x) > 1
        return self._finish(x, x.shape[2], len(x), f=(int(op.function), op.a, op.b), own=own)

    def _dropout(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        return inputs[0]  # training alone drops

    def _binary(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        found = _BINARY[op.function](*inputs)
        return torch.relu_(found) if op.relu else found

    def _softmax(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        x = inputs[0]
        groups = x.reshape(*x.shape[:2], op.outer, op.k, op.inner)
        if op.bounds:
            hidden = torch.arange(op.k, device=x.device) >= self._index(i, "bounds")[:, None]
            groups = groups.masked_fill(hidden[:, :, None], float("-inf"))
        found = torch.log_softmax(groups, 3) if op.log else torch.softmax(groups, 3)
        return found.view(x.shape)

    def _expand(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        assert op.weight is not None
        return p(op.weight).index_select(1, self._index(i, "index")).unsqueeze(1)

    def _gather(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        x = inputs[0]
        found = x.index_select(2, self._index(i, "from"))
        if min(op.index, default=0) < 0:
            found.masked_fill_(self._index(i, "index") < 0, op.a)
        return found

    def _linear(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        x = inputs[0]
        columns, weight = self._columns(op, x), self._weight(op, p)
        bias = None if op.bias is None else p(op.bias)
        g = max(len(columns), len(weight), 1 if bias is None else len(bias))
        transposed = weight.transpose(1, 2)
        if len(weight) == 1:
            z = (columns.reshape(-1, op.k) @ transposed[0]).view(len(columns), -1, op.m)
        else:
            z = torch.bmm(columns.expand(g, -1, -1), transposed)
        z = self._finish(z, op.m, g, shift=bias, f=_end(op), own=True)
        return z.view(g, x.shape[1], op.outer * op.m)

    def _conv(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        assert op.conv is not None
        x, m = inputs[0], op.conv.outputs
        weight, scale, shift = p.convolution(op)
        add = inputs[1] if len(inputs) > 1 else None
        around = [len(t) for t in (scale, shift, add) if t is not None]
        g = max(len(x), len(weight), *around, 1)
        if add is not None:
            add = add.expand(len(add), x.shape[1], -1).contiguous()

        def of(t: Tensor | None, first: int, count: int) -> Tensor | None:
            return t if t is None or len(t) == 1 else t[first : first + count]

        def finish(result: Tensor, first: int, to: Tensor) -> None:
            count = len(to)
            parts = [of(t, first, count) for t in (scale, shift, add)]
            self._finish(result, m, count, *parts, f=_end(op), to=to)

        if g == max(len(x), len(weight)):
            way = self.way(op.conv, x.shape[1], len(x) == 1)
            return convolve(op.conv, x, weight, way, finish)
        # The same at all points, but for what comes after it.
        whole = convolve(op.conv, x, weight, "", lambda result, first, to: None)
        return self._finish(whole, m, g, scale, shift, add, f=_end(op))

    def _batch_norm(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        x = inputs[0]
        if op.own_statistics():
            assert op.norm is not None
            scale, shift = self._batch_affine(op, x, p)
        else:
            scale, shift = p.norm(op)
        return self._finish(x, op.k, max(len(x), len(scale)), scale, shift, f=_end(op))

    def _batch_affine(self, op: Op, x: Tensor, p: Parameters) -> tuple[Tensor, Tensor]:
        """Scale and shift (g, channels) from the statistics of x (g, samples, pixels * channels),
        which are one batch, in float64."""
        assert op.norm is not None
        rows = x.reshape(len(x), -1, op.k)
        variance, mean = torch.var_mean(rows.double(), dim=1, correction=0)
        gain, shift = op.norm["gain"], op.norm["shift"]
        scale = 1 / torch.sqrt(variance + op.norm["eps"])
        scale = scale if gain is None else scale * p(gain)
        moved = -mean * scale
        moved = moved if shift is None else moved + p(shift)
        return scale.to(x.dtype), moved.to(x.dtype)

    def _layer_norm(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        x = inputs[0]
        groups = x.reshape(*x.shape[:2], op.outer, op.k)
        found = torch.nn.functional.layer_norm(groups, (op.k,), eps=op.a)
        return self._affine(op, found.view(x.shape), op.k, p)

    def _group_norm(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        x = inputs[0]
        apart = x.reshape(*x.shape[:2], op.inner, op.outer, -1)  # (g, N, pixels, groups, channels)
        together = apart.transpose(2, 3)
        sizes = tuple(together.shape[3:])
        found = torch.nn.functional.layer_norm(together.contiguous(), sizes, eps=op.a)
        return self._affine(
            op, found.transpose(2, 3).reshape(x.shape), op.k // op.inner * op.outer, p
        )

    def _affine(self, op: Op, x: Tensor, m: int, p: Parameters) -> Tensor:
        """x with its gain and shift, in x where that can be."""
        scale, shift = (None if use is None else p(use) for use in (op.weight, op.bias))
        g = max(len(t) for t in (x, scale, shift) if t is not None)
        return self._finish(x, m, g, scale, shift, f=_end(op), own=True)

    def _concat(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        g, samples = max(len(x) for x in inputs), max(x.shape[1] for x in inputs)
        outer = op.outer
        if op.rows:
            inputs = [x[..., a : a + n] for x, (a, n) in zip(inputs, op.rows, strict=True)]
            outer = 1
        parts = [x.expand(g, samples, -1).unflatten(2, (outer, -1)) for x in inputs]
        return torch.cat(parts, 3).view(g, samples, -1)

    def _pool(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        x = inputs[0]
        found = self._kernels.pool_windows(
            x.reshape(-1, x.shape[2] // op.k, op.k), self._index(i, "bounds"),
            self._index(i, "index"), self._factor(i), int(op.function),
        )  # fmt: skip
        return torch.as_tensor(found).view(*x.shape[:2], -1)

    def _matmul(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        assert op.matmul is not None
        m, n, k = op.matmul["sizes"]
        x, y = (
            t.index_select(2, self._index(i, name)).unflatten(2, (op.outer, *sizes))
            for t, name, sizes in zip(inputs, ("x", "y"), ((m, k), (k, n)), strict=True)
        )
        found = torch.matmul(x, y).flatten(2)
        found = found if op.a == 1.0 else found.mul_(op.a)
        order = self._index(i, "z")
        return found if len(order) == 0 else found.index_select(2, order)

    def _embedding(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        assert op.weight is not None
        return self._rows_of(i, p(op.weight).unflatten(1, (op.m, op.k)), inputs[0])

    def _lookup(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        assert op.weight is not None
        assert op.second is not None
        key = (op.weight, op.second, op.bias)
        if key not in p.tables:
            p.tables[key] = self._table(op, p)
        return self._rows_of(i, p.tables[key], inputs[0])

    def _table(self, op: Op, p: Parameters) -> Tensor:
        """(g, ids, m): the products of all rows of an embedding, fewer than the samples'."""
        assert op.weight is not None
        assert op.second is not None
        rows, weight = p(op.weight).unflatten(1, (-1, op.k)), p(op.second).unflatten(1, (op.m, -1))
        g = max(len(rows), len(weight))
        table = torch.matmul(rows, weight.transpose(1, 2))
        bias = None if op.bias is None else p(op.bias)
        g = max(g, 1 if bias is None else len(bias))
        return self._finish(table, op.m, g, shift=bias, own=True)

    def _rows_of(self, i: int, table: Tensor, x: Tensor) -> Tensor:
        """(g, samples, ids * size) from a table (g, ids, size)."""
        ids = x[0].index_select(1, self._index(i, "index")).long()
        found = table.index_select(1, ids.reshape(-1))
        return found.view(len(table), len(ids), -1)

    def _cell(self, i: int, op: Op, inputs: list[Tensor], p: Parameters) -> Tensor:
        g, samples = max(len(x) for x in inputs), max(x.shape[1] for x in inputs)
        rows = [x.expand(g, samples, -1).contiguous().flatten(0, 1) for x in inputs]
        first = op.rows[2][0] if op.rows else 0
        found = self._kernels.recurrent_cell(*rows, first, int(op.function))
        return torch.as_tensor(found).view(g, samples, -1)

    def _finish(
        self,
        x: Tensor,
        m: int,
        g: int,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        add: Tensor | None = None,
        *,
        f: Function = _IDENTITY,
        own: bool = False,
        to: Tensor | None = None,
    ) -> Tensor:
        """f(x * scale + shift + add) at g points: x and add (1 or g, ...) in rows of m, scale and
        shift (1 or g, m). Into ``to``, or into x where that is its ``own``, or into new memory."""
        x = x.contiguous()
        if to is None:
            to = x if own and len(x) == g else x.new_empty(g, *x.shape[1:])
        if to is x and f == _IDENTITY and scale is None and shift is None and add is None:
            return x
        none = _none(x)
        given = [none if t is None else t.contiguous() for t in (scale, shift)]
        more = none if add is None else add.reshape(len(add), -1, m)
        rows = x.reshape(len(x), -1, m)
        self._kernels.epilogue_(to.view(g, -1, m), rows, *given, more, *f)
        return to

    def _index(self, i: int, name: str) -> Tensor:
        """A list of op i on the device."""
        if (i, name) not in self._kept:
            op = self.ops[i]
            if name == "from":  # of a gather, without what is filled
                found = torch.tensor(op.index, dtype=torch.int64).clamp_(min=0)
            elif name in ("x", "y", "z"):
                assert op.matmul is not None
                found = _product_rows(op.matmul, name)
            else:
                found = torch.tensor(getattr(op, name), dtype=torch.int64)
            self._kept[i, name] = found.to(self._device)
        return self._kept[i, name]

    def _factor(self, i: int) -> Tensor:
        if (i, "factor") not in self._kept:
            found = torch.tensor(self.ops[i].factor, dtype=torch.float64, device=self._device)
            self._kept[i, "factor"] = found
        return self._kept[i, "factor"]


def _none(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _end(op: Op) -> Function:
    return _RELU if op.relu else _IDENTITY


def _product_rows(matmul: Mapping[str, Any], name: str) -> Tensor:
    """The rows of an operand, (outer, its two dimensions) in order; of z, where each row of the
    result comes from, or nothing where that is its own place."""
    m, n, k = matmul["sizes"]
    xi, xk, yk, yj, zi, zj = matmul["strides"]
    (rows, down), (columns, right) = {
        "x": ((m, xi), (k, xk)), "y": ((k, yk), (n, yj)), "z": ((m, zi), (n, zj)),
    }[name]  # fmt: skip
    first = torch.tensor(matmul[f"{name}_outer"], dtype=torch.int64)
    found = (
        first[:, None, None] + (torch.arange(rows) * down)[:, None] + torch.arange(columns) * right
    )
    if name != "z":
        return found.reshape(-1)
    order = torch.argsort(found.reshape(-1))
    return order[:0] if torch.equal(order, torch.arange(len(order))) else order


def most_alive(program: TorchProgram, todo: Sequence[int], features: Callable[[int], int]) -> int:
    """How many numbers a sample's values take at most together, at one point, ways of convolutions
    apart."""
    last = {x: i for i in todo for x in program.ops[i].inputs}
    alive: set[int] = set()
    most = features(program.output)
    for i in todo:
        op = program.ops[i]
        alive.add(op.output)
        more = features(op.output)  # what comes before the epilogue, or is laid out anew
        if op.kind in ("matmul", "group_norm", "cell"):
            more += sum(features(x) for x in op.inputs)
        if op.kind == "matmul" and op.matmul is not None:
            m, n, k = op.matmul["sizes"]
            more += op.outer * (m * k + k * n)
        if op.own_statistics():
            more += 2 * features(op.output)  # float64
        most = max(most, sum(features(x) for x in alive) + more)
        alive -= {x for x in op.inputs if last[x] == i and x != program.output}
    return most


def most_extra(program: TorchProgram, todo: Sequence[int], samples: int) -> int:
    """What convolutions and tables of embeddings hold beside values, for one point."""
    sizes = [0]
    for i in todo:
        op = program.ops[i]
        if op.conv is not None:
            way = program.way(op.conv, samples, op.inputs[0] == 0)
            sizes.append(extra_elements(op.conv, samples, way))
    looked_up = [program.ops[i] for i in todo if program.ops[i].kind == "lookup"]
    tables = {(op.weight, op.second, op.bias): op.outer * op.m for op in looked_up}
    return max(sizes) + sum(tables.values())
