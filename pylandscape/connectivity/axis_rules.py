"""What each ATen operation means for the axes of its operands: one rule per operation.

A rule gets the operands' axes and gives the result's; on the way it unifies axes that have to move
alike and fixes those that may not move. Composite operations (linear, einsum, attention, recurrent
layers) come as what they are made of. An operation without a rule fixes all axes that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .axes import (
    ONE,
    Atom,
    Axis,
    Joined,
    Product,
    cut,
    family,
    fix,
    fresh,
    resolved,
    split,
    taken,
    unify,
)

Axes = list[Axis]
RULES: dict[str, Callable[[Operation], Any]] = {}
SAMPLING = "positions that are sampled"


class Operation:
    """One call: its arguments by name, its result, and the axes of its tensors."""

    def __init__(self, name: str, values: dict[str, Any], result: Any, axes_of: Any) -> None:
        self.name, self.values, self.result, self._axes_of = name, values, result, axes_of
        self.contracted: list[tuple[Axis, Axes]] = []  # (summed over, axes that stay beside it)

    def axes(self, name: str) -> Axes:
        return list(self._axes_of(self.values[name]))

    def given(self, name: str) -> bool:
        return isinstance(self.values.get(name), Tensor)

    def dim(self, of: Sequence[Any], name: str = "dim") -> int:
        d = int(self.values[name])
        return d % max(len(of), 1)

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []

        def look(x: Any) -> None:
            if isinstance(x, Tensor):
                found.append(x)
            elif isinstance(x, list | tuple):
                for y in x:
                    look(y)

        look(list(self.values.values()))
        return found


def rule(*names: str) -> Callable[[Callable[[Operation], Any]], Callable[[Operation], Any]]:
    def register(f: Callable[[Operation], Any]) -> Callable[[Operation], Any]:
        RULES.update(dict.fromkeys(names, f))
        return f

    return register


def pointwise(op: Operation) -> Axes:
    """Elementwise, operands broadcast against each other."""
    found: Axes = []
    for tensor in op.tensors():
        axes = list(op._axes_of(tensor))
        found = together(found, axes)
    return found


def together(a: Axes, b: Axes) -> Axes:
    """The axes of two operands, broadcast."""
    size = max(len(a), len(b))
    a, b = [ONE] * (size - len(a)) + a, [ONE] * (size - len(b)) + b
    found: Axes = []
    for x, y in zip(a, b, strict=True):
        if x.size == 1 or y.size == 1:
            found.append(y if x.size == 1 else x)
        else:
            unify(x, y)
            found.append(x)
    return found


@rule("detach", "alias", "clone", "contiguous", "_to_copy", "lift_fresh", "lift_fresh_copy",
      "_softmax", "_log_softmax", "_safe_softmax", "zero", "fill", "native_dropout", "dropout",
      "_conj", "resolve_conj", "to", "renorm", "relu", "log_softmax", "softmax")  # fmt: skip
def same(op: Operation) -> Axes:
    return op.axes(next(iter(op.values)))


@rule("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_empty",
      "zeros", "ones", "full", "empty", "new_full", "scalar_tensor")  # fmt: skip
def constant(op: Operation) -> Axes:
    return [fresh(n) for n in op.result.shape]


@rule("copy")
def copy(op: Operation) -> Axes:
    together(own := op.axes("self"), op.axes("src"))
    return own


@rule("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "addbmm")
def product(op: Operation) -> Axes:
    names = [n for n, v in op.values.items() if isinstance(v, Tensor)]
    a, b = (op.axes(n) for n in names[-2:])
    batched = op.name in ("bmm", "baddbmm")
    if op.name == "addbmm":
        fix(a[0], "a sum over batches")
        fix(b[0], "a sum over batches")
    if batched or op.name == "addbmm":
        unify(a[0], b[0])
    inner = b[-2] if len(b) > 1 else b[0]
    unify(a[-1], inner)
    op.contracted.append((a[-1], [a[-1], *(a[:1] if batched else [])]))
    found = [*a[:-1], *b[-1:]] if len(b) > 1 else a[:-1]
    if op.name == "addbmm":
        found = found[1:]
    return together(found, op.axes(names[0])) if len(names) > 2 else found


@rule("convolution", "_convolution")
def convolution(op: Operation) -> Axes:
    x, w = op.axes("input"), op.axes("weight")
    v = op.values
    groups, turned = int(v["groups"]), bool(v["transposed"])
    for axis in w[2:]:
        fix(axis, "the places of a kernel")
    into, out = (w[0], w[1]) if turned else (w[1], w[0])
    if groups > 1:
        parts = split(x[1], groups)
        first = split(w[0], groups)
        if parts is None or first is None:
            fix(x[1], "groups that cut blocks")
            for axis in w[:2]:
                fix(axis, "groups that cut blocks")
            return [x[0], *(fresh(n, "groups that cut blocks") for n in op.result.shape[1:])]
        unify(parts[0], first[0])
        if turned:
            into, out = first[1], Product((first[0], w[1]))
        else:
            out = w[0]
        unify(parts[1], into)
    else:
        unify(x[1], into)
    if op.given("bias"):
        unify(op.axes("bias")[0], out)
    point = all(n == 1 for n in v["weight"].shape[2:]) and not any(v["padding"])
    spatial: Axes = []
    for axis, n in zip(x[2:], op.result.shape[2:], strict=True):
        keep = point and n == axis.size and set(v["stride"]) == {1} and not turned
        if not keep:
            fix(axis, SAMPLING)
        spatial.append(axis if keep else fresh(n, SAMPLING))
    return [x[0], out, *spatial]


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
      "cudnn_batch_norm", "miopen_batch_norm", "batch_norm", "_batch_norm_with_update",
      "_batch_norm_no_update")  # fmt: skip
def batch_norm(op: Operation) -> list[Axes]:
    x = op.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if op.given(name):
            unify(op.axes(name)[0], x[1])
    return [x, *([[x[1]] if t.numel() == x[1].size else None for t in op.result[1:]])]  # type: ignore[list-item]


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(op: Operation) -> list[Axes]:
    x = op.axes("input")
    count = len(op.values["normalized_shape"])
    for name in ("weight", "bias"):
        if op.given(name):
            for own, axis in zip(op.axes(name), x[-count:], strict=True):
                unify(own, axis)
    rest = [*x[:-count], *[ONE] * count]
    return [x, *[rest] * (len(op.result) - 1)]


@rule("native_group_norm")
def group_norm(op: Operation) -> list[Axes]:
    x = op.axes("input")
    for name in ("weight", "bias"):
        if op.given(name):
            unify(op.axes(name)[0], x[1])
    parts = split(x[1], int(op.values["group"]))
    if parts is None:
        fix(x[1], "groups that cut blocks")
        parts = (fresh(int(op.values["group"]), "groups"), ONE)
    return [x, [x[0], parts[0]], [x[0], parts[0]]]


@rule("sum", "mean", "amax", "amin", "any", "all", "var", "std", "var_mean", "std_mean", "prod",
      "logsumexp", "linalg_vector_norm", "norm", "nansum")  # fmt: skip
def reduced(op: Operation) -> Any:
    x = op.axes(next(iter(op.values)))
    dims = op.values.get("dim")
    if dims is None or dims == []:
        dims = range(len(x))
    chosen = {d % max(len(x), 1) for d in ([dims] if isinstance(dims, int) else dims)}
    kept = bool(op.values.get("keepdim", False))
    found = [ONE if d in chosen else a for d, a in enumerate(x) if kept or d not in chosen]
    return [found] * len(op.result) if isinstance(op.result, tuple) else found


@rule("cumsum", "cumprod", "flip", "roll", "argmax", "argmin", "sort", "topk", "max", "min",
      "index_select", "gather", "tril", "triu", "logcumsumexp", "unfold", "median")  # fmt: skip
def along(op: Operation) -> Any:
    """The places of some axes count; the others stay as they are."""
    x = op.axes("self")
    dims = op.values.get("dim", op.values.get("dims", op.values.get("dimension")))
    if op.name in ("tril", "triu"):
        dims = [-2, -1]
    if dims is None or dims == []:
        dims = list(range(len(x)))
    why = f"an order in op {op.name!r}"
    chosen = {d % max(len(x), 1) for d in ([dims] if isinstance(dims, int) else dims)}
    for d in chosen:
        fix(x[d], why)
    many = isinstance(op.result, list | tuple)
    for other in op.tensors()[1:]:
        for axis in op._axes_of(other):
            fix(axis, why)
    shape = (op.result[0] if many else op.result).shape
    if len(shape) == len(x):
        found = [fresh(n, why) if d in chosen else x[d] for d, n in enumerate(shape)]
        if op.name == "gather":
            for axis in x:
                fix(axis, why)
            found = [fresh(n, why) for n in shape]
    elif len(shape) < len(x):
        found = [a for d, a in enumerate(x) if d not in chosen]
    else:
        found = [fresh(n, why) if d in chosen else x[d] for d, n in enumerate(shape[: len(x)])]
        found += [fresh(n, why) for n in shape[len(x) :]]
    return [found] * len(op.result) if many else found


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d",
      "avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
      "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d",
      "upsample_nearest3d", "upsample_bilinear2d", "upsample_linear1d", "upsample_bicubic2d",
      "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
      "replication_pad2d", "pixel_shuffle_spatial")  # fmt: skip
def sampled(op: Operation) -> Any:
    x = op.axes(next(iter(op.values)))
    many = isinstance(op.result, tuple)
    shape = (op.result[0] if many else op.result).shape
    first = 2 if len(x) > 2 and "1d" not in op.name and len(x) >= 4 else len(x) - 1
    first = len(x) - (3 if "3d" in op.name else 2 if "2d" in op.name else 1)
    for axis in x[first:]:
        fix(axis, SAMPLING)
    found = [*x[:first], *(fresh(n, SAMPLING) for n in shape[first:])]
    return [found] * len(op.result) if many else found


@rule("constant_pad_nd")
def padded(op: Operation) -> Axes:
    x, pad = op.axes("self"), list(op.values["pad"])
    for k in range(len(pad) // 2):
        before, after = pad[2 * k : 2 * k + 2]
        d = len(x) - 1 - k
        if before < 0 or after < 0:
            fix(x[d], "negative padding")
            x[d] = fresh(op.result.shape[d], "negative padding")
        elif before or after:
            parts = [fresh(n) for n in (before,) if n] + [x[d]]
            x[d] = Joined(parts + [fresh(n) for n in (after,) if n])
    return x


@rule("embedding")
def embedding(op: Operation) -> Axes:
    w = op.axes("weight")
    fix(w[0], "the entries of an embedding")
    return [*op.axes("indices"), w[1]]


@rule("index")
def index(op: Operation) -> Axes:
    x, given = op.axes("self"), list(op.values["indices"])
    chosen = [d for d, i in enumerate(given) if i is not None]
    why = "places that are indexed"
    for d in chosen:
        fix(x[d], why)
    if len(chosen) == 1 and given[chosen[0]].dtype != torch.bool:
        d = chosen[0]
        return [*x[:d], *op._axes_of(given[d]), *x[d + 1 :]]
    for axis in x:
        fix(axis, why)
    return [fresh(n, why) for n in op.result.shape]


@rule("view", "reshape", "_unsafe_view", "_reshape_alias", "unflatten", "flatten")
def reshaped(op: Operation) -> Axes:
    old, new = op.axes("self"), list(op.result.shape)
    found: Axes = []
    i = 0
    rest: Axis = ONE  # of the old axes, what the new ones have not used yet
    for k, n in enumerate(new):
        if n == 1:
            found.append(ONE)
            continue
        while rest.size % n and i < len(old):
            rest = resolved(Product((rest, old[i])))
            i += 1
        while rest.size < n and i < len(old):
            rest = resolved(Product((rest, old[i])))
            i += 1
        parts = split(rest, n) if rest.size % n == 0 else None
        if parts is None:
            why = "a reshape that cuts blocks"
            for axis in (rest, *old[i:]):
                fix(axis, why)
            return found + [fresh(m, why) for m in new[k:]]
        found.append(parts[0])
        rest = resolved(parts[1])
    return found


@rule("permute")
def permuted(op: Operation) -> Axes:
    x = op.axes("self")
    return [x[d] for d in op.values["dims"]]


@rule("t")
def turned(op: Operation) -> Axes:
    return op.axes("self")[::-1]


@rule("transpose")
def transposed(op: Operation) -> Axes:
    x = op.axes("self")
    if x:
        a, b = int(op.values["dim0"]), int(op.values["dim1"])
        x[a], x[b] = x[b], x[a]
    return x


@rule("expand", "expand_as", "broadcast_to")
def expanded(op: Operation) -> Axes:
    x, shape = op.axes("self"), op.result.shape
    x = [ONE] * (len(shape) - len(x)) + x
    return [fresh(n) if a.size == 1 else a for a, n in zip(x, shape, strict=True)]


@rule("repeat")
def repeated(op: Operation) -> Axes:
    x, times = op.axes("self"), list(op.values["repeats"])
    x = [ONE] * (len(times) - len(x)) + x
    return [resolved(Product((fresh(k), a))) for k, a in zip(times, x, strict=True)]


@rule("squeeze", "squeeze_copy")
def squeezed(op: Operation) -> Axes:
    x, dims = op.axes("self"), op.values.get("dim")
    chosen = range(len(x)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % max(len(x), 1) for d in chosen}
    return [a for d, a in enumerate(x) if not (d in gone and a.size == 1)]


@rule("unsqueeze")
def unsqueezed(op: Operation) -> Axes:
    x = op.axes("self")
    d = int(op.values["dim"]) % (len(x) + 1)
    return [*x[:d], ONE, *x[d:]]


@rule("slice")
def sliced(op: Operation) -> Axes:
    x, v = op.axes("self"), op.values
    d = int(v.get("dim") or 0) % len(x)
    size, step = x[d].size, int(v.get("step") or 1)
    start, end = v.get("start") or 0, v.get("end")
    start = min(max(start + size if start < 0 else start, 0), size)
    end = size if end is None else end
    end = min(max(end + size if end < 0 else end, start), size)
    why = "places that are chosen one by one"
    if step != 1:
        fix(x[d], why)
        x[d] = fresh(op.result.shape[d], why)
    else:
        x[d] = part(x[d], int(start), int(end))
    return x


def part(axis: Axis, start: int, end: int) -> Axis:
    """Places start .. end of an axis."""
    if (start, end) == (0, axis.size):
        return axis
    first = cut(axis, start)
    second = cut(first[1], end - start) if first is not None else None
    if second is None:
        fix(axis, "blocks that a slice cuts")
        return fresh(end - start, "blocks that a slice cuts")
    return second[0] if second[0].size != 1 else ONE


@rule("select")
def selected(op: Operation) -> Axes:
    x = op.axes("self")
    d = op.dim(x)
    return taken(x, d, int(op.values["index"]) % x[d].size)


@rule("unbind")
def unbound(op: Operation) -> list[Axes]:
    x = op.axes("self")
    d = int(op.values.get("dim") or 0) % len(x)
    return [taken(x, d, i) for i in range(len(op.result))]


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk",
      "unsafe_chunk", "tensor_split")  # fmt: skip
def parted(op: Operation) -> list[Axes]:
    x = op.axes("self")
    d = int(op.values.get("dim") or 0) % len(x)
    found, at = [], 0
    for piece in op.result:
        n = piece.shape[d]
        found.append([*x[:d], part(x[d], at, at + n), *x[d + 1 :]])
        at += n
    return found


@rule("cat")
def joined(op: Operation) -> Axes:
    parts = [list(op._axes_of(t)) for t in op.values["tensors"] if t.numel() or t.dim() > 1]
    d = int(op.values.get("dim") or 0) % len(parts[0])
    found = parts[0]
    for other in parts[1:]:
        for k, (a, b) in enumerate(zip(found, other, strict=True)):
            if k != d:
                unify(a, b)
    return [Joined([p[d] for p in parts]) if k == d else a for k, a in enumerate(found)]


@rule("stack")
def stacked(op: Operation) -> Axes:
    parts = [list(op._axes_of(t)) for t in op.values["tensors"]]
    over = fresh(len(parts), "places of a stack")
    found: Axes = []
    for axes in zip(*parts, strict=True):
        one, *others = map(resolved, axes)
        if all(o is one for o in others) or not isinstance(over, Atom) or one.size == 1:
            found.append(one)
        else:  # each place keeps an order of its own as long as the stack is not mixed
            found.append(family(axes, over))
    d = int(op.values.get("dim") or 0) % (len(found) + 1)
    return [*found[:d], over, *found[d:]]
