"""State that lies outside of the module: closures, globals, classes, defaults of its code.

A counter that a helper function keeps, a global dict, a class attribute, a list as a default
argument: the module and the landscape's copy of it share these, for they belong to the code. What
the code changes and also reads (a factor that counts the calls, uses.py) holds what it held when
the landscape was made whenever that code runs, and afterwards again what the user has in it. What
the code only changes are notes that it takes: they stay, each for itself. What it only reads is
read as it stands.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from ..errors import InvalidArgument
from . import context
from .held_state import BUFFERS, CACHED, STATEFUL, State, is_iterator, position, size_of, version_of
from .references import ATOMS, SEARCHED, global_names, names_of, of_a_library, slots_of
from .uses import Uses, may_write

_HELD = 16 << 20  # bytes of tensors and arrays held twice; larger ones are watched
_LONG = 100_000  # entries of a container that is held
_MISSING = object()
_SIMPLE = {type(None), bool, int, float, complex, str, bytes}
_CONTAINERS = {dict, OrderedDict, list, set}
_MARKERS = {"abc", "typing", "enum", "contextlib", "dataclasses", "threading"}  # bases of classes
_ANYONE = object()  # the label of what code that is not known here may use
_PLAIN = {
    "builtins", "collections", "types", "argparse", "functools", "random", "copy", "weakref",
    "queue",
}  # fmt: skip
_LOOKED_INTO = (
    nn.Module, Optimizer, LRScheduler, threading.local, Dataset, DataLoader, Sampler,
)  # fmt: skip
_SPREADS_NOT = (types.FunctionType, types.MethodType, type, nn.Module, types.ModuleType)


class _Reached:
    """What code and objects lead to: objects with contents, cells of functions, named places.

    By which names it leads there is kept, as edges (object, label, object), where None is no name
    of its own (elements of a list).
    """

    def __init__(self, roots: Iterable[Any], known: set[int]) -> None:
        self._known = known  # ids of objects that somebody else puts back
        self.objects: list[Any] = []
        self.cells: list[types.CellType] = []
        self.names_of_cells: list[str] = []
        self.iterators: list[Any] = []
        self.files: list[Any] = []
        self.instances: list[Any] = []  # of classes of the user's
        self.unseen: dict[int, Any] = {}  # by id, what methods of libraries may read
        self.steps = False  # whether an optimiser or a schedule is among the objects
        self.places: list[tuple[Any, tuple[str, ...] | None]] = []  # None: all names of a class
        self.codes: list[types.CodeType] = []
        self.edges: list[tuple[Any, Any, Any]] = []
        self._waiting = deque((None, None, x) for x in roots)  # what is near comes first
        self._globals: dict[int, tuple[Any, set[str]]] = {}
        seen: dict[int, Any] = {}
        while self._waiting and len(seen) < SEARCHED:
            parent, label, x = self._waiting.popleft()
            kind = type(x)
            if kind in _SIMPLE:
                continue
            self.edges.append((parent, label, x))
            if id(x) in seen:
                continue
            seen[id(x)] = x  # keeps it alive: its id stays taken
            if kind in _CONTAINERS:
                found = self._contents(x)
            elif not isinstance(x, ATOMS) or isinstance(x, type):
                found = self._visit(x)
            else:
                continue
            self._waiting.extend((x, name, y) for name, y in found)
        self.objects = [x for x in self.objects if id(x) not in known]
        self.places += [(table, tuple(sorted(names))) for table, names in self._globals.values()]

    def _visit(self, x: Any) -> Iterable[tuple[Any, Any]]:
        """Notes what x holds. Returns what to look at next, with labels."""
        if isinstance(x, type):
            return self._class(x)
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.MethodType):
            return (_parameter(x.__func__, 0), x.__self__), (None, x.__func__)
        if isinstance(x, staticmethod | classmethod):
            return ((None, x.__func__),)
        if isinstance(x, property):
            return [(None, f) for f in (x.fget, x.fset) if f is not None]
        if isinstance(x, functools.cached_property):
            return ((None, x.func),)
        if isinstance(x, functools.partial):
            self.objects.append(x.keywords)
            given = [(_parameter(x.func, i), a) for i, a in enumerate(x.args)]
            given += [(_parameter(x.func, n), a) for n, a in x.keywords.items()]
            return [(None, x.func), (None, x.keywords), *given]
        if isinstance(x, weakref.ref):
            return ((None, x()),)
        if isinstance(x, ContextVar):  # its default is shared by all contexts
            self.objects.append(x)
            try:
                return ((None, x.get()),)
            except LookupError:
                return ()
        if isinstance(x, STATEFUL):
            self.objects.append(x)
            return ()
        if isinstance(x, io.IOBase) and not isinstance(x, BUFFERS):
            self.files.append(x)
            return ()
        if is_iterator(x):
            self.iterators.append(x)
            return ()
        if isinstance(x, np.random.Generator):
            self.objects.append(x.bit_generator)
            return ((None, x.bit_generator),)
        if isinstance(x, tuple | frozenset):
            return [(None, part) for part in x]
        if isinstance(x, dict | list | set | deque):
            return [*self._contents(x), *self._own_attributes(x)]
        if isinstance(x, CACHED):
            self.objects.append(x)
            return ((None, x.__wrapped__),)
        return self._instance(x)

    def _own_attributes(self, x: Any) -> Iterable[tuple[Any, Any]]:
        """Of a subclass of a container."""
        table = getattr(x, "__dict__", None)
        if not isinstance(table, dict) or of_a_library(type(x).__module__):
            return ()
        self.objects.append(table)
        return [(None, type(x)), (None, table), *table.items()]

    def _contents(self, x: Any) -> Iterable[tuple[Any, Any]]:
        if not x:
            self.objects.append(x)
            return ()
        if len(x) <= _LONG:
            self.objects.append(x)
        if len(x) >= SEARCHED:
            return ()
        if isinstance(x, dict):
            named = [(n if isinstance(n, str) else None, value) for n, value in x.items()]
            return [*((None, key) for key in x), *named]
        return [(None, part) for part in x]

    def _function(self, f: types.FunctionType) -> Iterable[tuple[Any, Any]]:
        library = of_a_library(f.__module__)
        own = None if library else f
        code = f.__code__
        first = code.co_argcount - len(f.__defaults__ or ())
        found = [(_parameter(own, first + i), d) for i, d in enumerate(f.__defaults__ or ())]
        found += f.__dict__.items()
        for name, cell in zip(code.co_freevars, f.__closure__ or (), strict=True):
            try:
                found.append((name if own else None, cell.cell_contents))
            except ValueError:  # empty
                continue
            self.cells.append(cell)
            self.names_of_cells.append(name)
        if library:
            return found
        self.codes.append(code)
        self.objects.append(f.__dict__)
        found.append((None, f.__dict__))
        if f.__kwdefaults__:
            self.objects.append(f.__kwdefaults__)
            found += [(_parameter(f, n), d) for n, d in f.__kwdefaults__.items()]
        names = names_of(code)
        self._place(f.__globals__, names)
        for name, value in global_names(f).items():
            if value is os and "environ" in names:
                found.append((_ANYONE, os.environ))
            if not isinstance(value, types.ModuleType):
                found.append((name, value))
            elif not of_a_library(value.__name__):  # a user's settings, as a file of their own
                self._place(vars(value), names)
                found += [(n, vars(value)[n]) for n in names & vars(value).keys()]
        return found

    def _place(self, table: dict[str, Any], names: set[str]) -> None:
        self._globals.setdefault(id(table), (table, set()))[1].update(names)

    def _class(self, kind: type) -> Iterable[tuple[Any, Any]]:
        if of_a_library(kind.__module__):
            return ()
        self.places.append((kind, None))
        return [*vars(kind).items(), *((None, of) for of in (type(kind), *kind.__bases__))]

    def _instance(self, x: Any) -> Iterable[tuple[Any, Any]]:
        kind = type(x)
        self.steps |= isinstance(x, Optimizer | LRScheduler)
        known = isinstance(x, _LOOKED_INTO)
        if not known and of_a_library(kind.__module__) and _root(kind) not in _PLAIN:
            return ()
        self.instances.append(x)
        found: list[tuple[Any, Any]] = [(None, kind)]
        slots = [name for name, _ in slots_of(kind)]
        if slots:
            self.places.append((x, tuple(slots)))
            found += [(name, getattr(x, name, None)) for name in slots]
        table = getattr(x, "__dict__", None)
        if isinstance(table, dict):
            self.objects.append(x)
            found += table.items() if id(x) not in self._known else _filled(table)
        if id(x) not in self._known and any(map(_of_unseen_code, kind.__mro__)):
            self.unseen.update((id(y), y) for y in (x, *(y for _, y in found)))
        return found

    def bearing(self, test: Callable[[Any], bool], also: Iterable[Any] = ()) -> set[int]:
        """Ids of the objects with a name that passes, of ``also``, and of what these hold."""
        below: dict[int, list[Any]] = {}
        found: dict[int, Any] = {}
        waiting = list(also)
        for parent, label, x in self.edges:
            if parent is not None and not isinstance(parent, _SPREADS_NOT):
                below.setdefault(id(parent), []).append(x)
            if label is _ANYONE or isinstance(x, CACHED) or (label is not None and test(label)):
                waiting.append(x)
        kinds = {id(kind): kind for kind in map(type, self.instances)}
        chosen = {i for i, kind in kinds.items() if any(map(test, _selves(kind)))}
        waiting += [x for x in self.instances if id(type(x)) in chosen]
        while waiting:
            x = waiting.pop()
            if id(x) not in found:
                found[id(x)] = x
                waiting.extend(below.get(id(x), ()))
        return set(found)


def _selves(kind: type) -> list[Any]:
    """The labels of an object in methods of its class."""
    methods = [
        f
        for base in kind.__mro__
        if not of_a_library(base.__module__)
        for f in vars(base).values()
        if isinstance(f, types.FunctionType) and f.__code__.co_argcount
    ]
    return [_parameter(f, 0) for f in methods]


def _of_unseen_code(kind: type) -> bool:
    """Whether a class has methods of a library, whose text is not looked at."""
    return of_a_library(kind.__module__) and _root(kind) not in _PLAIN | _MARKERS


def _parameter(f: Any, which: int | str) -> Any:
    """The label of a parameter of a function, by its place or name."""
    if isinstance(f, types.MethodType):
        f, which = f.__func__, which + 1 if isinstance(which, int) else which
    code = getattr(f, "__code__", None)
    if code is None:
        return _ANYONE
    if isinstance(which, int):
        if which >= len(code.co_varnames):
            return _ANYONE
        which = code.co_varnames[which]
    return which if which in code.co_cellvars else (code, which)


def _filled(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What leads on; most containers of a module of torch are empty."""
    for name, value in table.items():
        kind = type(value)
        if kind not in _SIMPLE and (kind not in _CONTAINERS or value):
            yield name, value


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0]


class _Places:
    """The values of names: of globals, of classes, of objects with slots."""

    def __init__(self, places: list[tuple[Any, tuple[str, ...] | None]]) -> None:
        self._places = places
        self._before = [_values(owner, names) for owner, names in places]

    def differ(self) -> bool:
        return any(
            not _same(before, _values(owner, names))
            for (owner, names), before in zip(self._places, self._before, strict=True)
        )

    def restore(self) -> None:
        for (owner, names), before in zip(self._places, self._before, strict=True):
            now = _values(owner, names)
            if not _same(before, now):
                for name in before.keys() | now.keys():
                    value = before.get(name, _MISSING)
                    if value is not now.get(name, _MISSING):
                        _set(owner, name, value)


def _values(owner: Any, names: tuple[str, ...] | None) -> dict[str, Any]:
    if names is None:
        return {n: v for n, v in vars(owner).items() if n[:2] != "__"}
    if isinstance(owner, dict | type):
        table = owner if isinstance(owner, dict) else vars(owner)
        return {n: table.get(n, _MISSING) for n in names}
    return {n: getattr(owner, n, _MISSING) for n in names}


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(v is b[n] for n, v in a.items())


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        if value is _MISSING:
            owner.pop(name, None)
        else:
            owner[name] = value
    elif value is _MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


class _Part:
    """Some of what was reached: objects, cells, places; by default all."""

    def __init__(self, reached: _Reached) -> None:
        self.objects = reached.objects
        self.cells = reached.cells
        self.places = reached.places
        self.iterators: list[Any] = []

    @classmethod
    def changed_and_read(cls, reached: _Reached) -> _Part:
        """What the code changes and reads."""
        part = cls(reached)
        uses = Uses(reached.codes)
        unseen = [x for x in reached.unseen.values() if not isinstance(x, _SPREADS_NOT)]
        read = reached.bearing(uses.reads, unseen)
        part.iterators = [x for x in reached.iterators if id(x) in read]
        if uses.everything:
            return part
        whole = read & reached.bearing(uses.writes)
        written = [n for n in uses.written if isinstance(n, str)]
        names = [n for n in written if uses.reads_binding(n)]
        part.objects = [x for x in reached.objects if id(x) in whole]
        named: list[tuple[Any, Iterable[str] | None]] = []
        for x in reached.objects:
            if id(x) in whole:
                continue
            if not isinstance(x, dict):
                chosen = written if id(x) in reached.unseen else names
                named.append((getattr(x, "__dict__", None), chosen))
            elif not x or any(n in x for n in names):
                named.append((x, names))
        for owner, known in reached.places:
            if id(owner) in whole:
                named.append((owner, known))
            else:
                named.append((owner, names if known is None else {*known} & {*names}))
        part.places = [
            (owner, None if chosen is None else tuple(sorted(chosen)))
            for owner, chosen in named
            if owner is not None and (chosen is None or chosen)
        ]
        cells = zip(reached.cells, reached.names_of_cells, strict=True)
        part.cells = [cell for cell, name in cells if name in names]
        return part

    def __bool__(self) -> bool:
        return bool(self.objects or self.cells or self.places or self.iterators)


class Held:
    """What all of a part holds at one time."""

    def __init__(self, part: _Part, lazy: set[int]) -> None:
        self.state = State(part.objects, part.cells, moved=lazy)
        self.places = _Places(part.places)

    def touched(self) -> bool:
        return self.state.touched() or self.places.differ()

    def glanced(self) -> bool:
        """`touched`, but for what tensors and arrays hold that change without a new version."""
        return self.state.glanced() or self.places.differ()

    def restore(self) -> None:
        self.places.restore()
        self.state.put_back_changes()


class Outside:
    """The state around a module and its loss, held as it is now.

    Args:
        roots: the module and the loss or objective.
        own: objects that somebody else puts back.
        caches: whether those of functools are emptied.

    Attributes:
        steps: whether it has an optimiser or a schedule, which are no notes.
        holds: whether any of it is what it was at the making wherever code runs.
    """

    def __init__(self, roots: Iterable[Any], own: Iterable[Any] = (), caches: bool = True) -> None:
        reached = self.reached = _Reached(roots, {id(x) for x in own})
        if not caches:
            reached.objects = [x for x in reached.objects if not isinstance(x, CACHED)]
        self._large = _too_large(reached.objects)
        reached.objects = [
            x for x in reached.objects if isinstance(x, Tensor) or id(x) not in self._large
        ]
        self._context = any(isinstance(x, ContextVar) for x in reached.objects)
        self._part = _Part(reached)
        self._all = self._made = self._now()  # made: of the part
        self.steps = reached.steps
        self.holds = False
        self._watches = False  # whether a later run may show that it must be held
        self._read: Held | None = None  # what the user has in it, until code changes that
        self._positions = [(x, position(x)) for x in reached.iterators]

    def _now(self) -> Held:
        return Held(self._part, self._large)

    def touched(self) -> bool:
        """Whether it has changed since the making."""
        return self._all.touched()

    def restore(self) -> None:
        """All as it was at the making."""
        self._all.restore()

    def writes(self) -> bool:
        """Whether tensors or arrays that are held were changed in place."""
        return self.holds and self._made.state.writes()

    def choose(self) -> None:
        """From now on, of what is as at the making only what the code changes and reads."""
        if not self.steps:
            self._part = _Part.changed_and_read(self.reached)
            self._made = self._now()

    def choose_as(self, other: Outside) -> None:
        """The same part as in another copy of the same code."""
        if other.chosen:
            self.choose()

    @property
    def chosen(self) -> bool:
        """Whether it is told apart what is held and what are notes."""
        return self._made is not self._all

    def settle(self, depends: Callable[[Callable[[], None]], bool]) -> None:
        """After a first run: what to hold from now on.

        ``depends(restore)``: whether L depends on what the run changed and is not held, and
        `restore` puts back; if so, all is held.
        """
        changed = self.touched()
        takes = bool(self.reached.iterators)
        if not (changed or takes or any(map(may_write, self.reached.codes))):
            return
        if self.steps:
            self.holds = True
            return
        left, cached = self._now(), self._all.state.caches_used()
        self.restore()
        self.choose()
        self._watches = bool(self._part)
        self._positions = [
            each for each in self._positions if any(each[0] is x for x in self._part.iterators)
        ]
        self._check_iterators()
        left.restore()
        self.holds = cached or self._made.touched()
        if not changed:
            return
        if depends(self._all.restore):
            self._part, self._made = _Part(self.reached), self._all
            self.holds = True
        else:
            left.restore()

    def before_point(self) -> None:
        """What is held, as at the making; in the session that shows it, as the user had it."""
        start = self._read or self._made
        if self._watches and not self.holds:
            self.holds = start.glanced()
        if self.holds:
            start.restore()

    def _check_iterators(self) -> None:
        for x, before in self._positions:
            if position(x) != before:
                raise InvalidArgument(
                    "model: its code, or that of the loss, takes from an iterator (a "
                    f"{type(x).__name__}) and so has another value at every call: it keeps state "
                    "that nothing can set back; keep a number in a buffer or an attribute instead"
                )

    def put_back(self) -> None:
        """What `choose` chose, else all, as at the making."""
        self._made.restore()

    @contextmanager
    def own_context(self) -> Iterator[None]:
        with context.own_context() if self._context else nullcontext():
            yield

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Code that runs inside leaves nothing in it."""
        with self.own_context():
            try:
                yield
            finally:
                self._all.restore()

    @contextmanager
    def session(self) -> Iterator[None]:
        """Inside, what is held is as at the making; after it, what the user has in it.

        Raises InvalidArgument where code changed a tensor too large to be held.
        """
        with self.own_context():
            users = None
            if (self.holds or self._watches) and self._made.touched():
                users = self._now()
                if self.holds:
                    self._made.restore()
                else:  # what is only read is read as it stands
                    self._read = users
            self._positions = [(x, position(x)) for x, _ in self._positions]
            versions = {id(t): version_of(t) for t in self._watched()}
            try:
                yield
            finally:
                self.before_point()
                self._read = None
                if users is not None and self.holds:
                    users.restore()
        if self._watches:
            self._check_iterators()
        for t in self._watched():
            if self.holds and version_of(t) != versions.get(id(t)):
                raise InvalidArgument(
                    f"model: a tensor of shape {tuple(t.shape)} outside of it (a global variable, "
                    "a closure, a class) is changed in place by its code, and its value depends "
                    "on it: hold it as a buffer of the module"
                )

    def _watched(self) -> list[Tensor]:
        """Tensors of the part that are too large to be held."""
        return [x for x in self._part.objects if isinstance(x, Tensor) and id(x) in self._large]


@contextmanager
def reading(data: Any) -> Iterator[None]:
    """Inside, data are read; after it, the objects that give them are as they were: counters,
    positions, generators, what was cached.

    Unless an iterator or a file of theirs has moved on, which nothing sets back: their state then
    fits to that.
    """
    readers = list(_with_code(data))
    if not readers:
        yield
        return
    outside = Outside(readers, caches=False)
    before = [(x, position(x)) for x in (*outside.reached.iterators, *outside.reached.files)]
    with outside.own_context():
        try:
            yield
        finally:
            if all(position(x) == at for x, at in before):
                outside.restore()


def _with_code(data: Any) -> Iterator[Any]:
    """The objects whose own code runs when data are read."""
    if type(data) in (tuple, list, dict):
        for part in data.values() if isinstance(data, dict) else data:
            yield from _with_code(part)
    elif type(data) not in (Tensor, np.ndarray, TensorDataset, *_SIMPLE):
        yield data


def _too_large(objects: list[Any]) -> set[int]:
    """Ids of the tensors and arrays that are not held twice: the largest ones."""
    sizes = []
    for x in objects:
        if isinstance(x, Tensor):
            strided = x.layout == torch.strided and not x.is_inference()
            sizes.append((x.numel() * x.element_size() if strided else 1 << 60, id(x)))
        elif isinstance(x, np.ndarray):
            sizes.append((x.nbytes, id(x)))
        elif isinstance(x, BUFFERS):
            sizes.append((size_of(x), id(x)))
    room, large = _HELD, set()
    for size, name in sorted(sizes):
        room -= size
        if room < 0:
            large.add(name)
    return large
