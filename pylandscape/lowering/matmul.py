"""Lowering of products of two values, or of a value and a parameter: matmul, bmm, einsum ...

All of them are sums over pairs of elements, told by labels as in einsum: a label that both
operands and the result have is looped over (`outer`), one that only the operands have is summed
over (k), the others are rows (i) and columns (j) of matrices. Where the labels of i, k and j step
evenly through the rows of a slot, the kernel reads them where they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from .._native import core
from .interpreter import Call, op
from .pool import reduced
from .values import Computed, Fixed, Slot, counting, later


@dataclass(frozen=True)
class Labelled:
    """An operand: one label per dimension of its traced tensor (Fixed: of its shape)."""

    value: Slot | Fixed
    labels: tuple[str, ...]

    @property
    def batch(self) -> str | None:
        return self.labels[self.value.axis] if isinstance(self.value, Slot) else None

    @property
    def inner(self) -> tuple[str, ...]:
        """The labels without the batch."""
        return tuple(label for label in self.labels if label != self.batch)

    def elements(self, call: Call) -> Tensor:
        """Rows of the slot, or elements of the parameter, of ``inner``."""
        x = self.value
        return x.elements() if isinstance(x, Fixed) else call.lowering.rows(x)

    def sizes(self) -> dict[str, int]:
        return dict(zip(self.inner, self.value.shape, strict=True))


def grouped(call: Call, x: Labelled, *groups: Sequence[str]) -> Tensor:
    """x's elements with one dimension per group of labels; none of them is left out."""
    index, sizes = x.elements(call), x.sizes()
    order = [x.inner.index(label) for group in groups for label in group]
    return index.permute(order).reshape([prod(sizes[a] for a in group) for group in groups])


def contract(call: Call, x: Labelled, y: Labelled, out: Sequence[str], scale: float = 1.0) -> Slot:
    """The sum over every label that `out` does not have, times scale."""
    batch = x.batch or y.batch
    if batch is None:
        raise call.refuse("operands that are not computed from the input")
    if {x.batch, y.batch} - {None, batch} or batch not in out:
        raise call.refuse("operands with their batches in different dimensions")
    if any(isinstance(a.value, Fixed) and batch in a.labels for a in (x, y)):
        raise call.refuse("a fixed operand with a batch dimension")
    x, y = (
        Labelled(a.value.slot(), (batch, *a.labels)) if isinstance(a.value, Computed) else a
        for a in (x, y)
    )
    result = [label for label in out if label != batch]
    axis = list(out).index(batch)
    both = [label for label in x.inner if label in y.inner]
    outer = [label for label in result if label in both]
    k = [label for label in both if label not in result]
    i = [label for label in result if label in x.inner and label not in both]
    j = [label for label in result if label in y.inner and label not in both]
    if {*x.inner, *y.inner} != {*outer, *i, *j, *k}:
        raise call.refuse("a sum over a dimension of one operand")
    sizes = x.sizes() | y.sizes()
    if isinstance(x.value, Fixed):
        x, y, i, j = y, x, j, i
    order, found = None, None
    if isinstance(y.value, Fixed) and not outer:
        found, order = _weighted(call, x, y, i, j, k, scale), [*i, *j]
    if found is None:
        found, order = _multiplied(call, x, y, (outer, i, j, k), sizes, scale)
    shape = tuple(sizes[label] for label in result)
    assert order is not None
    return call.lowering.ordered(found, shape, axis, [result.index(label) for label in order])


def _weighted(
    call: Call,
    x: Labelled,
    y: Labelled,
    i: Sequence[str],
    j: Sequence[str],
    k: Sequence[str],
    scale: float,
) -> int | None:
    """A linear layer, where the parameter's elements are a matrix or the transpose of one."""
    assert isinstance(x.value, Slot)
    assert isinstance(y.value, Fixed)
    for transposed, groups in ((False, (j, k)), (True, (k, j))):
        source = start_of(y.value, grouped(call, y, *groups))
        if source is None:
            continue
        in_order = call.lowering.in_dims(x.value, [x.inner.index(label) for label in (*i, *k)])
        sizes = x.sizes() | y.sizes()
        outer, depth, width = (prod(sizes[a] for a in group) for group in (i, k, j))
        linear = call.program.linear_transposed if transposed else call.program.linear
        found: int = linear(in_order.id, outer, depth, width, source, None)
        return scaled(call, found, scale)
    return None


def start_of(weight: Fixed, elements: Tensor) -> int | None:
    """The source of these elements of a parameter if they lie there in order, one by one."""
    flat = elements.reshape(-1)
    first = int(flat[0]) if flat.numel() else 0
    if not torch.equal(flat - first, counting(flat.numel())):
        return None
    return later(weight.source, first)


def scaled(call: Call, slot: int, scale: float) -> int:
    if scale == 1.0:
        return slot
    found: int = call.program.unary(slot, core.Unary.affine, scale, 0.0)
    return found


@dataclass(frozen=True)
class _Matrices:
    """Slot `id` as matrices: where each of them begins, and the steps along its two dimensions."""

    id: int
    first: Tensor
    steps: tuple[int, int]


def _matrices(call: Call, x: Labelled, *groups: Sequence[str]) -> _Matrices:
    rows = grouped(call, x, *groups)
    value = x.value
    if isinstance(value, Slot):
        found = _evenly(value.id, rows)
        if found is not None:
            return found
        id = call.lowering.gathered(value, rows.reshape(-1), None).id
    else:
        id = call.program.expand(value.source, value.size, rows.reshape(-1).tolist())
    even = _evenly(id, counting(rows.numel()).view(rows.shape))
    assert even is not None
    return even


def _evenly(id: int, rows: Tensor) -> _Matrices | None:
    first = rows[:, 0, 0]
    a, b = ((rows[0].select(d, min(1, rows.shape[1 + d] - 1)) - rows[0].select(d, 0))[0]
            for d in (0, 1))  # fmt: skip
    along = counting(rows.shape[1])[:, None] * a + counting(rows.shape[2]) * b
    even = torch.equal(rows, first[:, None, None] + along)
    return _Matrices(id, first, (int(a), int(b))) if even else None


def _multiplied(
    call: Call,
    x: Labelled,
    y: Labelled,
    labels: tuple[Sequence[str], Sequence[str], Sequence[str], Sequence[str]],
    sizes: dict[str, int],
    scale: float,
) -> tuple[int, list[str]]:
    """The product of two slots, and the order of the labels in its rows."""
    outer, i, j, k = labels
    if any(size == 0 for size in sizes.values()):
        raise call.refuse("an empty operand")
    a, b = _matrices(call, x, outer, i, k), _matrices(call, y, outer, k, j)
    m, n, depth = (prod(sizes[label] for label in group) for group in (i, j, k))
    count = len(a.first)
    # Rows of y that run (k, outer, j), as of values whose heads lie side by side, give a result of
    # the same kind (i, outer, j): what follows puts the heads together again.
    merged = count > 1 and abs(b.steps[1]) < abs(int(b.first[1] - b.first[0])) < abs(b.steps[0])
    z_outer = counting(count) * (n if merged else m * n)
    zi = count * n if merged else n
    found = call.program.matmul(
        a.id, b.id, (m, n, depth), (*a.steps, *b.steps, zi, 1),
        a.first.tolist(), b.first.tolist(), z_outer.tolist(), float(scale),
    )  # fmt: skip
    return found, [*i, *outer, *j] if merged else [*outer, *i, *j]


def labelled(call: Call, x: Any, labels: Sequence[str]) -> Labelled:
    if not isinstance(x, Slot | Fixed):
        raise call.refuse("an operand that is no tensor")
    if len(labels) != len(x.shape) + isinstance(x, Slot):
        raise call.refuse(f"{len(labels)} dimensions named of {len(x.shape)}")
    return Labelled(x, tuple(labels))


def dims(x: Slot | Fixed) -> int:
    return len(x.shape) + isinstance(x, Slot)


def broadcast(call: Call, operands: Sequence[Labelled]) -> list[Labelled]:
    """Operands whose dimensions of size 1 are as long as the others' of the same label."""
    sizes: dict[str, int] = {}
    batch = next((x.batch for x in operands if x.batch is not None), None)
    for x in operands:
        for label, size in x.sizes().items():
            sizes[label] = max(size, sizes.get(label, 1))
    wider = []
    for x in operands:
        if isinstance(x.value, Fixed) and batch in x.labels:
            at = x.labels.index(batch)
            if x.value.shape[at] != 1:
                raise call.refuse("a fixed operand with a batch dimension")
            index = x.value.elements().select(at, 0)
            x = Labelled(x.value.view(index), tuple(label for label in x.labels if label != batch))
        shape = tuple(sizes[label] for label in x.inner)
        if shape != x.value.shape:
            index = x.elements(call).expand(shape)
            value = x.value
            x = Labelled(
                value.view(index)
                if isinstance(value, Fixed)
                else Slot(value.id, shape, value.axis, index),
                x.labels,
            )
        wider.append(x)
    return wider


def leading(count: int) -> list[str]:
    """Labels of dimensions that are counted from the right."""
    return [f"b{d}" for d in range(count, 0, -1)]


def _product(call: Call, x: Any, y: Any, scale: float = 1.0) -> Slot:
    for value in (x, y):
        if not isinstance(value, Slot | Fixed):
            raise call.refuse("an operand that is no tensor")
        if dims(value) == 0:
            raise call.refuse("a number")
    row = [] if dims(x) == 1 else ["i"]
    column = [] if dims(y) == 1 else ["j"]
    a = labelled(call, x, [*leading(dims(x) - 2), *row, "k"])
    b = labelled(call, y, [*leading(dims(y) - 2), "k", *column])
    out = [*leading(max(dims(x), dims(y)) - 2), *row, *column]
    a, b = broadcast(call, (a, b))
    return contract(call, a, b, out, scale)


@op("matmul", "bmm", "mm", "mv", "__matmul__")
def _matmul(call: Call, input: Any, other: Any = None, mat2: Any = None, vec: Any = None) -> Slot:
    return _product(call, input, next(y for y in (other, mat2, vec, 0) if y is not None))


@op("baddbmm", "addmm", "addmv")
def _add_product(
    call: Call, input: Any, x: Any, y: Any, *, beta: float = 1.0, alpha: float = 1.0
) -> Slot:
    product = _product(call, x, y, float(alpha))
    if beta == 0:
        return product
    if beta != 1:
        raise call.refuse(f"beta={beta}")
    return call.binary("add", input, product)


@op("einsum")
def _einsum(call: Call, equation: Any, *operands: Any) -> Slot:
    """Pairs of operands, from the first that depends on the input on; what only one operand has is
    summed before."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str):
        raise call.refuse("an equation that is no string")
    parts, out = _equation(call, equation, [dims(v) for v in operands])
    given = broadcast(call, [labelled(call, v, p) for v, p in zip(operands, parts, strict=True)])
    given.sort(key=lambda x: isinstance(x.value, Fixed))
    found, rest = given[0], given[1:]
    while rest:
        y, rest = rest[0], rest[1:]
        wanted = {*out, *(label for x in rest for label in x.labels)}
        found, y = (
            _without(call, a, {*a.inner} - wanted - {*b.labels})
            for a, b in ((found, y), (y, found))
        )
        kept = tuple(a for a in dict.fromkeys((*found.labels, *y.labels)) if a in wanted)
        kept = tuple(out) if not rest and {*kept} == {*out} else kept
        found = Labelled(contract(call, found, y, kept), kept)
    found = _without(call, found, {*found.inner} - {*out})
    assert isinstance(found.value, Slot)
    if found.labels == tuple(out):
        return found.value
    moved = call.lowering.full(found.value).permute([found.labels.index(a) for a in out])
    return call.lowering.from_full(found.value, moved)


def _equation(
    call: Call, equation: str, ranks: Sequence[int]
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """The labels of each operand and of the result; an ellipsis stands for dimensions counted from
    its right."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    parts, most = [], 0
    for part, rank in zip(inputs.split(","), ranks, strict=True):
        before, dots, after = part.partition("...")
        hidden = leading(rank - len(before) - len(after)) if dots else []
        most = max(most, len(hidden))
        parts.append((*before, *hidden, *after))
    if any(len(set(part)) != len(part) for part in parts):
        raise call.refuse("a diagonal")
    if not arrow:
        letters = [a for part in parts for a in part if len(a) == 1]
        out = "..." * (most > 0) + "".join(sorted(a for a in {*letters} if letters.count(a) == 1))
    before, dots, after = out.partition("...")
    return parts, (*before, *(leading(most) if dots else []), *after)


def _without(call: Call, x: Labelled, gone: set[str]) -> Labelled:
    """x summed over labels."""
    if not gone:
        return x
    if not isinstance(x.value, Slot):
        raise call.refuse("a sum over a dimension of a parameter")
    over = [d for d, label in enumerate(x.labels) if label in gone]
    kept = tuple(label for label in x.labels if label not in gone)
    return Labelled(reduced(call, x.value, core.Pool.sum, over, False), kept)
