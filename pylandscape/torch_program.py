"""A compiled program's ops by torch's matrix products, over many points at once.

For networks on a GPU that do not fit a block's shared memory (csrc/common/resident.h), and for the
values that no point changes. A value is (g, samples, rows): g points, or 1 where it is the same at
all of them. What stands between the products (sums over directions, biases, activations, losses) is
one kernel each (csrc/cuda/wide.cu).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._native import core

# Parameters (g, elements) of a use (source, elements); g = 1 where no point moves it.
Parameters = Callable[[tuple[int, int]], Tensor]
Source = tuple[int, int]

_IDENTITY = (int(core.Unary.affine), 1.0, 0.0)
_RELU = (int(core.Unary.relu), 0.0, 0.0)
_PRODUCT_BYTES = 256 << 20  # float64 rows of a fixed value at a time


@dataclass(frozen=True)
class Op:
    """One op of csrc/program/program.h, as `op_list` describes it."""

    kind: str
    inputs: tuple[int, ...]
    output: int
    weight: Source | None
    bias: Source | None
    transposed: bool
    function: int
    relu: bool
    log: bool
    a: float
    b: float
    outer: int
    k: int
    m: int
    inner: int
    index: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Op:
        lists = {name: tuple(described[name]) for name in ("inputs", "index", "rows")}
        return cls(**{**described, **lists})

    def first(self) -> int:
        """The first row of the first input."""
        return self.rows[0][0] if self.rows else 0


class TorchProgram:
    """The ops of a program, over values that are tensors on ``device``."""

    def __init__(self, program: Any, kernels: Any, device: torch.device) -> None:
        self.ops = tuple(Op.of(described) for described in program.op_list())
        self.output: int = program.output
        self._kernels, self._device = kernels, device
        readers = [x for op in self.ops for x in op.inputs] + [self.output]
        self._alone = {slot for slot in readers if readers.count(slot) == 1}
        self._indices: dict[int, Tensor] = {}  # by op
        self._none = torch.empty(0, device=device)

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
        self, op: Op, x: Tensor, theta: Parameters, moves: Sequence[Parameters], bias: bool
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
        function, a, b = _RELU if op.relu else _IDENTITY
        own = self._none.to(terms.dtype) if bias is None else bias.contiguous()
        rows = terms.view(len(terms), -1, op.m)
        found = self._kernels.combine_terms(rows, c.contiguous(), own, function, a, b)
        return torch.as_tensor(found).view(len(c), terms.shape[1], -1)

    def _columns(self, op: Op, x: Tensor) -> Tensor:
        """(g, samples * outer, k): what a linear op multiplies."""
        first = op.first()
        return x[..., first : first + op.outer * op.k].reshape(len(x), -1, op.k)

    def _weight(self, op: Op, parameters: Parameters) -> Tensor:
        """(g, m, k)."""
        assert op.weight is not None
        weight = parameters(op.weight)
        if op.transposed:
            return weight.view(-1, op.k, op.m).transpose(1, 2)
        return weight.view(-1, op.m, op.k)

    def _apply(self, i: int, op: Op, values: Mapping[int, Tensor], p: Parameters) -> Tensor:
        inputs = [values[x] for x in op.inputs]
        if op.kind == "linear":
            return self._linear(op, inputs[0], p)
        if op.kind == "unary":
            x = inputs[0]
            # Nobody else reads it, and it is neither the data nor a value of all points.
            own = op.inputs[0] in self._alone and op.inputs[0] != 0 and len(x) > 1
            return self._activate(x if own else x.clone(), None, (op.function, op.a, op.b))
        if op.kind == "binary":
            call = (torch.add, torch.sub, torch.mul, torch.div)[op.function]
            found = call(inputs[0], inputs[1])
            return torch.relu_(found) if op.relu else found
        if op.kind == "layer_norm":
            return self._layer_norm(op, inputs[0], p)
        if op.kind == "softmax":
            x = inputs[0]
            groups = x.reshape(*x.shape[:2], op.outer, op.k, op.inner)
            found = torch.log_softmax(groups, 3) if op.log else torch.softmax(groups, 3)
            return found.view(x.shape)
        if op.kind == "concat":
            return self._concat(op, inputs)
        if op.kind == "expand":
            assert op.weight is not None
            return p(op.weight)[:, self._index(i, op)].unsqueeze(1)
        if op.kind == "gather":
            index = self._index(i, op)
            found = inputs[0][..., index.clamp(min=0)]
            return torch.where(index < 0, op.a, found) if min(op.index, default=0) < 0 else found
        raise AssertionError(op.kind)

    def _linear(self, op: Op, x: Tensor, p: Parameters) -> Tensor:
        columns, weight = self._columns(op, x), self._weight(op, p)
        bias = None if op.bias is None else p(op.bias)
        g = max(len(columns), len(weight), 1 if bias is None else len(bias))
        transposed = weight.transpose(1, 2)
        if len(weight) == 1:
            z = (columns.reshape(-1, op.k) @ transposed[0]).view(len(columns), -1, op.m)
            z = z.expand(g, -1, -1)
        else:
            z = torch.bmm(columns.expand(g, -1, -1), transposed)
        bias = None if bias is None else bias.expand(g, -1)
        z = self._activate(z, bias, _RELU if op.relu else _IDENTITY)
        return z.view(g, x.shape[1], op.outer * op.m)

    def _activate(self, x: Tensor, bias: Tensor | None, f: tuple[int, float, float]) -> Tensor:
        if bias is None and f == _IDENTITY:
            return x
        own = self._none.to(x.dtype) if bias is None else bias.contiguous()
        found = self._kernels.activate_(x.contiguous(), own, *f)
        return torch.as_tensor(found)

    def _layer_norm(self, op: Op, x: Tensor, p: Parameters) -> Tensor:
        groups = x.reshape(*x.shape[:2], op.outer, op.k)
        found = torch.nn.functional.layer_norm(groups, (op.k,), eps=op.a)
        if op.weight is not None:
            found = found * p(op.weight)[:, None, None]
        if op.bias is not None:
            found = found + p(op.bias)[:, None, None]
        return found.reshape(len(found), x.shape[1], -1)

    def _concat(self, op: Op, inputs: list[Tensor]) -> Tensor:
        g, samples = max(len(x) for x in inputs), max(x.shape[1] for x in inputs)
        if op.rows:
            inputs = [x[..., a : a + n] for x, (a, n) in zip(inputs, op.rows, strict=True)]
            outer = 1
        else:
            outer = op.outer
        parts = [x.expand(g, samples, -1).reshape(g, samples, outer, -1) for x in inputs]
        return torch.cat(parts, 3).view(g, samples, -1)

    def _index(self, i: int, op: Op) -> Tensor:
        if i not in self._indices:
            self._indices[i] = torch.tensor(op.index, dtype=torch.int64, device=self._device)
        return self._indices[i]


def values_per_sample(program: TorchProgram, features: Callable[[int], int]) -> int:
    """How many numbers a sample's values take at most, at one point."""
    widths = [features(op.output) + sum(features(x) for x in op.inputs) for op in program.ops]
    return max(widths, default=1) * 2
