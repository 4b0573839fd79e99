"""The permutations of a network's parameters that leave its outputs alone, found from one run.

The network runs once on a few samples while every ATen operation is seen (so that no graph has to
be captured: whatever runs can be looked at). Each parameter's axes start free; the operations unify
and fix them (axis_rules.py). What stays free are the symmetry classes: sets of units, and inside a
head the features of every head on their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .axes import Atom, Axis, Joined, Product, atoms, fix, fresh, resolved, spread, whole
from .axis_rules import RULES, Operation, pointwise

if TYPE_CHECKING:
    from ..landscape import Landscape

Places = NDArray[np.intp]
Element = dict[int, Places]  # by id of an atom: (n,), of an inner one (n_outer, n)
SAMPLES = 2  # that are traced
COUNTED = {"mm", "bmm", "addmm", "baddbmm", "convolution", "embedding", "add"}
_SEEN = 4  # operations a class that activation matching looks at


@dataclass(eq=False)
class SymmetryClass:
    """Units that may change places: those of `atom`, and inside each the ones of `inner`."""

    name: str
    atom: Atom
    inner: dict[str, Atom] = field(default_factory=dict)
    seen: list[tuple[int, int, Axis]] = field(default_factory=list)  # operation, dim, its axis

    @property
    def members(self) -> list[Atom]:
        return [self.atom, *self.inner.values()]


@dataclass(eq=False)
class Symmetries:
    """The classes of a network, and the axes of its tensors by name, families written out."""

    classes: list[SymmetryClass]
    axes: dict[str, list[Axis]]
    fixed: dict[str, str]  # axes that no class moves, and why; without inputs and outputs
    unknown: list[str]  # operations without a rule
    names: list[str]  # of the operations whose results activation matching may look at

    def identity(self) -> Element:
        """The element that moves nothing."""
        found: Element = {}
        for c in self.classes:
            found[id(c.atom)] = np.arange(c.atom.size)
            for atom in c.inner.values():
                found[id(atom)] = np.tile(np.arange(atom.size), (c.atom.size, 1))
        return found

    def random(self, seed: int) -> Element:
        """A random element."""
        generator = np.random.default_rng(seed)
        return {k: generator.permuted(p, axis=-1) for k, p in self.identity().items()}

    def apply(self, element: Element, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with their units in the element's order: unit i is the old one at p[i]."""
        found = {}
        for name, tensor in tensors.items():
            for dim, axis in enumerate(self.axes.get(name, ())):
                order = places(axis, element)
                if order is not None:
                    at = torch.from_numpy(order).to(tensor.device)
                    tensor = tensor.index_select(dim, at)
            found[name] = tensor
        return found

    def touched(self, c: SymmetryClass) -> list[str]:
        """The tensors that a class moves."""
        own = {id(a) for a in c.members}
        return [
            name
            for name, axes in self.axes.items()
            if any(id(a) in own for axis in axes for a in atoms(axis))
        ]


def places(axis: Axis, element: Element) -> Places | None:
    """Which old place comes to each place of an axis; None where none moves."""
    if not any(id(a) in element for a in atoms(axis)):
        return None
    return _places(axis, element, {})


def _places(axis: Axis, element: Element, at: dict[int, int]) -> Places:
    if isinstance(axis, Atom):
        found = element.get(id(axis))
        if found is None:
            return np.arange(axis.size)
        if found.ndim == 1:
            return found
        return found[at[id(axis.outer[0])]]
    if isinstance(axis, Joined):
        offsets = np.cumsum([0, *(p.size for p in axis.parts)])
        parts = [_places(p, element, at) + o for p, o in zip(axis.parts, offsets, strict=False)]
        return np.concatenate(parts)
    if not axis.factors:
        return np.zeros(1, dtype=np.intp)
    first, rest = axis.factors[0], Product(axis.factors[1:])
    own = _places(first, element, at)
    if not isinstance(first, Atom):
        inner = _places(rest, element, at)
        return (own[:, None] * rest.size + inner).reshape(-1)
    rows = [_places(rest, element, {**at, id(first): i}) for i in range(first.size)]
    return (own[:, None] * rest.size + np.stack(rows)).reshape(-1)


def coordinates(axis: Axis, atom: Atom) -> Places:
    """The atom's place at every place of an axis; -1 where it takes no part."""
    if isinstance(axis, Atom):
        return np.arange(axis.size) if axis is atom else np.full(axis.size, -1)
    if isinstance(axis, Joined):
        return np.concatenate([coordinates(p, atom) for p in axis.parts])
    found = np.full(1, -1)
    for f in axis.factors:
        own = coordinates(f, atom)
        found = np.where(own[None, :] >= 0, own[None, :], found[:, None]).reshape(-1)
    return found


def units(axis: Axis, c: SymmetryClass, inner: Atom | None = None) -> Places | None:
    """(n, m): the m places of an axis that go with each unit of a class; with `inner`, with each
    unit inside of each unit (n_outer n_inner, m); without it, only what no inner one orders."""
    outer = coordinates(axis, c.atom)
    if inner is not None:
        own = coordinates(axis, inner)
        key, count = np.where(own >= 0, outer * inner.size + own, -1), c.atom.size * inner.size
    else:
        key, count = outer, c.atom.size
        for atom in c.inner.values():
            key = np.where(coordinates(axis, atom) >= 0, -1, key)
    there = np.flatnonzero(key >= 0)
    if not len(there):
        return None
    order: Places = there[np.argsort(key[there], kind="stable")].reshape(count, -1)
    return order


class _Recorder(TorchDispatchMode):
    """Follows the axes through every operation that runs inside."""

    def __init__(
        self, known: Sequence[tuple[Tensor, list[Axis]]], filled: frozenset[int] = frozenset()
    ) -> None:
        super().__init__()
        self.filled = filled  # operations whose constants are written into later
        self.constants: dict[int, tuple[Tensor, int]] = {}  # by storage: its operation
        self.written: set[int] = set()
        self.known = {id(t): (t, axes) for t, axes in known}  # tensors are kept: ids stay theirs
        self.seen: list[list[Axis]] = []  # the axes of every tensor
        self.contracted: list[tuple[Axis, list[Axis]]] = []
        self.unknown: list[str] = []
        self.names: list[str] = []  # of counted operations: others depend on the batch's size
        self.number = 0  # of all
        self.matched: list[tuple[int, list[Axis]]] = []

    def axes_of(self, tensor: Tensor) -> list[Axis]:
        found = self.known.get(id(tensor))
        if found is None:
            axes = [_by_value(tensor, d) for d in range(tensor.dim())]
            if any(_moves(a) for a in axes) and _uniform(tensor):
                return axes  # of its own at each use: zeros that two layers start from
            self.put(tensor, axes)
            return axes
        return found[1]

    def put(self, tensor: Tensor, axes: list[Axis]) -> None:
        self.known[id(tensor)] = tensor, axes
        self.seen.append(axes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        values = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        values |= {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | kwargs
        values = {a.name: values[a.name] for a in schema.arguments if a.name in values}
        result = func(*args, **kwargs)
        name = schema.name.split("::")[-1]
        plain = name.removesuffix("_") if name.endswith("_") else name
        self.number += 1
        if plain in COUNTED:
            self.names.append(plain)
        op = Operation(plain, values, result, self.axes_of)
        results = list(result) if isinstance(result, list | tuple) else [result]
        if not any(isinstance(r, Tensor) for r in results):
            return result
        if self._constant(op, results, name != plain):
            return result  # looked at by its values where it is used
        found = self._found(func, op, results)
        self.contracted += op.contracted
        for r, axes in zip(results, found, strict=True):
            if isinstance(r, Tensor) and axes is not None:
                self.put(r, axes)
        if plain in COUNTED and found[0] is not None:
            self.matched.append((len(self.names) - 1, found[0]))
        return result

    def _constant(self, op: Operation, results: list[Any], in_place: bool) -> bool:
        """Whether it computes with constants alone, to one value, that nothing else overwrites."""
        tensors = op.tensors()
        number = self.number
        if in_place and tensors and id(tensors[0]) not in self.known:
            kept = self.constants.get(tensors[0].untyped_storage()._cdata)
            if kept is not None and any(id(t) in self.known for t in tensors[1:]):
                self.written.add(kept[1])
        if any(id(t) in self.known for t in tensors):
            return False
        made = [r for r in results if isinstance(r, Tensor)]
        for r in made:
            self.constants.setdefault(r.untyped_storage()._cdata, (r, number))
        filled = any(self.constants[r.untyped_storage()._cdata][1] in self.filled for r in made)
        return not filled and (not tensors or all(_uniform(r) for r in made))

    def _found(self, func: Any, op: Operation, results: list[Any]) -> list[list[Axis] | None]:
        follow = RULES.get(op.name)
        if follow is None and torch.Tag.pointwise in func.tags:
            follow = pointwise
        if follow is not None:
            try:
                found: list[list[Axis] | None] = (
                    follow(op) if isinstance(op.result, list | tuple) else [follow(op)]
                )
                if _fit(found, results):
                    return found
            except (ValueError, KeyError, IndexError, TypeError, AssertionError):
                pass  # a call that the rule does not know: as one without a rule
        why = f"op {op.name!r} has no rule"
        self.unknown.append(op.name)
        for tensor in op.tensors():
            for axis in self.axes_of(tensor):
                fix(axis, why)
        return [
            [fresh(n, why) for n in r.shape] if isinstance(r, Tensor) else None for r in results
        ]


def _fit(found: Sequence[list[Axis] | None], results: Sequence[Any]) -> bool:
    return len(found) == len(results) and all(
        axes is None or (isinstance(r, Tensor) and [a.size for a in axes] == list(r.shape))
        for axes, r in zip(found, results, strict=True)
    )


def _uniform(tensor: Tensor) -> bool:
    return tensor.numel() == 0 or bool((tensor == tensor.reshape(-1)[0]).all())


def _moves(axis: Axis) -> bool:
    return isinstance(axis, Atom) and not axis.fixed


def _by_value(tensor: Tensor, dim: int) -> Axis:
    """The axis of a constant: free where all its places hold the same."""
    first = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
    same = bool((tensor == first).all()) if tensor.numel() else True
    return fresh(tensor.shape[dim], None if same else "a constant")


@contextmanager
def plain_operations() -> Iterator[None]:
    """Attention, convolutions and recurrent layers as the operations that they are made of."""
    switches: Any = torch._C  # torch.backends.mkldnn.flags also sets what warns
    before = switches._get_mkldnn_enabled()
    try:
        switches._set_mkldnn_enabled(False)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        switches._set_mkldnn_enabled(before)


def find_symmetries(land: Landscape, point: Tensor) -> Symmetries:
    """The symmetry classes of the landscape's model, from one run at a point."""
    named, recorder = _followed(land, point, frozenset())
    if recorder.written:  # buffers that the model fills: their parts belong together
        named, recorder = _followed(land, point, frozenset(recorder.written))
    return _classes(named, recorder)


def _followed(
    land: Landscape, point: Tensor, filled: frozenset[int]
) -> tuple[dict[str, list[Axis]], _Recorder]:
    model, engine = land.model, land.eager
    objective = not hasattr(land.loss_spec, "reduction") and hasattr(land.loss_spec, "weights")
    named: dict[str, list[Axis]] = {}
    known: list[tuple[Tensor, list[Axis]]] = []
    with engine.session():
        engine.move(point)
        for name, p in model.named_parameters():
            why = None if name in land.layout.aliases else "a parameter outside theta"
            named[name] = [fresh(n, why) for n in p.shape]
            known.append((p, named[name]))
        for name, buffer in statistics_of(model).items():
            named[name] = [fresh(n) for n in buffer.shape]
            known.append((buffer, named[name]))
        batch = engine.batch(0).first(SAMPLES)
        for tensor in batch.tensors():
            known.append((tensor, [fresh(n, "the input") for n in tensor.shape]))
        recorder = _Recorder(known, filled)
        with plain_operations(), recorder:
            output = engine.outputs(batch)
        if not objective:
            for tensor in tensors_in(output):
                for axis in recorder.axes_of(tensor):
                    fix(axis, "the output")
    used = {n for axes in recorder.seen for a in axes for n in atom_ids(a)}
    for axes in named.values():  # a parameter that no operation reads
        for axis in axes:
            if not any(i in used for i in atom_ids(axis)):
                fix(axis, "no operation reads it")
    return named, recorder


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of normalisation layers by name."""
    found = {}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for short in ("running_mean", "running_var"):
                buffer = getattr(module, short)
                if buffer is not None:
                    found[f"{prefix}.{short}".lstrip(".")] = buffer
    return found


def tensors_in(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    if isinstance(values, str | int | float | bool | type(None)):
        return []
    try:
        return [t for v in values for t in tensors_in(v)]
    except TypeError:  # an object: its attributes
        return [t for v in vars(output).values() for t in tensors_in(v)]


def atom_ids(axis: Axis) -> set[int]:
    return {id(a) for a in atoms(axis)}


def _classes(named: dict[str, list[Axis]], recorder: _Recorder) -> Symmetries:
    _end_families(recorder)
    axes = {name: [spread(a) for a in own] for name, own in named.items()}
    for own in axes.values():  # the same units twice in one flattened axis
        for axis in own:
            for atom in _repeated(axis):
                fix(atom, "units that stand twice in one axis")
    free: dict[int, Atom] = {}
    names: dict[int, str] = {}
    fixed: dict[str, str] = {}
    for name, own in axes.items():
        for dim, axis in enumerate(own):
            within = list(dict.fromkeys(atoms(axis)))
            for k, atom in enumerate(within):
                if not atom.fixed:
                    free.setdefault(id(atom), atom)
                    label = f"{name}[{dim}]" + (f"/{k}" if len(within) > 1 else "")
                    names.setdefault(id(atom), label)
            if all(a.fixed for a in within):
                reason = next((a.reason for a in within), None)
                if reason not in (None, "the input", "the output", "the places of a kernel"):
                    fixed[f"{name}[{dim}]"] = str(reason)
    inner = _inner(free, axes, recorder)
    classes: dict[int, SymmetryClass] = {}
    for key, atom in free.items():
        if key not in inner:
            classes[key] = SymmetryClass(names[key], atom)
    for key, outer in inner.items():
        classes[id(outer)].inner[names[key]] = free[key]
    for c in classes.values():
        found = []
        for number, own in recorder.matched:
            for dim, axis in enumerate(own):
                written = spread(axis)
                if id(c.atom) in atom_ids(written):
                    found.append((number, dim, written))
                    break
        step = max(1, -(-len(found) // _SEEN))
        c.seen = found[::step]
    return Symmetries(
        list(classes.values()), axes, fixed, list(dict.fromkeys(recorder.unknown)), recorder.names
    )


def _end_families(recorder: _Recorder) -> None:
    """Where a tensor has blocks without the axis that counts them, all blocks have one order."""
    checks = [(own, own) for own in recorder.seen]
    checks += [([axis], beside) for axis, beside in recorder.contracted]
    ended = True
    while ended:
        ended = False
        for own, beside in checks:
            within = [a for axis in own for a in atoms(axis) if a.over is not None]
            if not within:
                continue
            there = {i for axis in beside for i in atom_ids(axis)}
            for atom in within:
                if atom.over is not None and id(resolved(atom.over)) not in there:
                    whole(atom)
                    ended = True


def _inner(
    free: dict[int, Atom], axes: dict[str, list[Axis]], recorder: _Recorder
) -> dict[int, Atom]:
    """The atoms whose order may be another in each place of an outer one, and that one."""
    outer: dict[int, Atom] = {}
    for key, atom in free.items():
        found = {
            id(a): a
            for o in atom.outer
            for a in [resolved(o)]
            if isinstance(a, Atom) and not a.fixed
        }
        plain = all(isinstance(resolved(o), Atom) for o in atom.outer)
        if len(found) == 1 and plain:
            (own,) = found.values()
            if id(own) in free and own is not atom:
                atom.outer = (own,)
                outer[key] = own
    outer = {k: o for k, o in outer.items() if id(o) not in outer}
    beside_all = [(own, own) for own in recorder.seen]
    beside_all += [([axis], beside) for axis, beside in recorder.contracted]
    done: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for within, beside in beside_all:
        mark = tuple(map(id, within)), tuple(map(id, beside))
        if mark in done:
            continue
        done.add(mark)
        there = {i for axis in beside for i in atom_ids(axis)}
        for i in {i for axis in within for i in atom_ids(axis)}:
            if i in outer and id(outer[i]) not in there:
                del outer[i]
    for axis in (a for own in axes.values() for a in own):
        for i in _misplaced(axis, outer, set()):
            outer.pop(i, None)
    return outer


def _misplaced(axis: Axis, outer: dict[int, Atom], before: set[int]) -> list[int]:
    """Inner atoms that do not stand inside their outer one."""
    if isinstance(axis, Atom):
        return [id(axis)] if id(axis) in outer and id(outer[id(axis)]) not in before else []
    if isinstance(axis, Joined):
        return [i for p in axis.parts for i in _misplaced(p, outer, before)]
    found: list[int] = []
    before = set(before)
    for f in axis.factors:
        found += _misplaced(f, outer, before)
        before |= {id(f)}
    return found


def _repeated(axis: Axis) -> list[Atom]:
    if isinstance(axis, Atom):
        return []
    if isinstance(axis, Joined):
        return [a for p in axis.parts for a in _repeated(p)]
    seen: set[int] = set()
    found = [a for f in axis.factors for a in _repeated(f)]
    for f in axis.factors:
        for atom in atoms(f):
            if id(atom) in seen and not atom.fixed:
                found.append(atom)
        seen |= atom_ids(f)
    return found
