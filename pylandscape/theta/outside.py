"""State that lies outside of the module: closures, globals, classes, defaults of its code.

A counter that a helper function keeps, a global dict, a class attribute, a list as a default
argument: the module and the landscape's copy of it share these, for they belong to the code. Where
the code itself changes them and L depends on that (a factor that counts the calls), they hold what
they held when the landscape was made whenever it runs that code, and afterwards again what the user
has in them. Where L does not, they are notes that the user's code takes, and stay. What the code
only reads is read as it stands.
"""

from __future__ import annotations

import functools
import random
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import InvalidArgument
from .held_state import CACHED, State, version_of
from .references import ATOMS, SEARCHED, global_names, names_of, of_a_library, slots_of

_HELD = 16 << 20  # bytes of tensors and arrays held twice; larger ones are watched
_LONG = 100_000  # entries of a container that is held
_MISSING = object()
_SIMPLE = {type(None), bool, int, float, complex, str, bytes}
_CONTAINERS = {dict, OrderedDict, list, set}
_STATEFUL = (Tensor, np.ndarray, torch.Generator, random.Random, np.random.RandomState)
_PLAIN = {"builtins", "collections", "types", "argparse", "functools", "random", "copy"}


class _Reached:
    """What code and objects lead to: objects with contents, cells of functions, named places."""

    def __init__(self, roots: Iterable[Any], known: set[int]) -> None:
        self._known = known  # ids of objects that somebody else puts back
        self.objects: list[Any] = []
        self.cells: list[types.CellType] = []
        self.steps = False  # whether an optimiser or a schedule is among the objects
        self.places: list[tuple[Any, tuple[str, ...] | None]] = []  # None: all names of a class
        self._waiting = list(roots)
        self._globals: dict[int, tuple[Any, set[str]]] = {}
        seen: dict[int, Any] = {}
        while self._waiting and len(seen) < SEARCHED:
            x = self._waiting.pop()
            kind = type(x)
            if kind in _SIMPLE or id(x) in seen:
                continue
            seen[id(x)] = x  # keeps it alive: its id stays taken
            if kind in _CONTAINERS:
                self._waiting.extend(self._contents(x))
            elif not isinstance(x, ATOMS) or isinstance(x, type):
                self._waiting.extend(self._visit(x))
        self.objects = [x for x in self.objects if id(x) not in known]
        self.places += [(table, tuple(sorted(names))) for table, names in self._globals.values()]

    def _visit(self, x: Any) -> Iterable[Any]:
        """Notes what x holds. Returns what to look at next."""
        if isinstance(x, type):
            return self._class(x)
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.MethodType):
            return x.__self__, x.__func__
        if isinstance(x, staticmethod | classmethod):
            return (x.__func__,)
        if isinstance(x, property):
            return [f for f in (x.fget, x.fset) if f is not None]
        if isinstance(x, functools.cached_property):
            return (x.func,)
        if isinstance(x, functools.partial):
            self.objects.append(x.keywords)
            return [x.func, *x.args, *x.keywords.values()]
        if isinstance(x, weakref.ref):
            return (x(),)
        if isinstance(x, _STATEFUL):
            self.objects.append(x)
            return ()
        if isinstance(x, np.random.Generator):
            self.objects.append(x.bit_generator)
            return ()
        if isinstance(x, tuple | frozenset):
            return x
        if isinstance(x, dict | list | set | deque):
            return self._contents(x)
        if isinstance(x, CACHED):
            self.objects.append(x)
            return (x.__wrapped__,)
        return self._instance(x)

    def _contents(self, x: Any) -> Iterable[Any]:
        if not x:
            self.objects.append(x)
            return ()
        if len(x) <= _LONG:
            self.objects.append(x)
        if len(x) >= SEARCHED:
            return ()
        return [*x.keys(), *x.values()] if isinstance(x, dict) else list(x)

    def _function(self, f: types.FunctionType) -> Iterable[Any]:
        found = [*(f.__defaults__ or ()), *f.__dict__.values()]
        for cell in f.__closure__ or ():
            try:
                found.append(cell.cell_contents)
            except ValueError:  # empty
                continue
            self.cells.append(cell)
        if of_a_library(f.__module__):
            return found
        self.objects.append(f.__dict__)
        if f.__kwdefaults__:
            self.objects.append(f.__kwdefaults__)
            found += f.__kwdefaults__.values()
        names = names_of(f.__code__)
        self._place(f.__globals__, names)
        for value in global_names(f).values():
            if not isinstance(value, types.ModuleType):
                found.append(value)
            elif not of_a_library(value.__name__):  # a user's settings, as a file of their own
                self._place(vars(value), names)
                found += [vars(value)[name] for name in names & vars(value).keys()]
        return found

    def _place(self, table: dict[str, Any], names: set[str]) -> None:
        self._globals.setdefault(id(table), (table, set()))[1].update(names)

    def _class(self, kind: type) -> Iterable[Any]:
        if of_a_library(kind.__module__):
            return ()
        self.places.append((kind, None))
        return [*vars(kind).values(), *kind.__bases__]

    def _instance(self, x: Any) -> Iterable[Any]:
        kind = type(x)
        self.steps |= isinstance(x, Optimizer | LRScheduler)
        known = isinstance(x, nn.Module | Optimizer | LRScheduler | threading.local)
        if not known and of_a_library(kind.__module__) and _root(kind) not in _PLAIN:
            return ()
        found: list[Any] = [kind]
        slots = [name for name, _ in slots_of(kind)]
        if slots:
            self.places.append((x, tuple(slots)))
            found += [getattr(x, name, None) for name in slots]
        table = getattr(x, "__dict__", None)
        if isinstance(table, dict):
            self.objects.append(x)
            found += table.values() if id(x) not in self._known else _filled(table)
        return found


def _filled(table: dict[str, Any]) -> Iterator[Any]:
    """What leads on; most containers of a module of torch are empty."""
    for value in table.values():
        kind = type(value)
        if kind not in _SIMPLE and (kind not in _CONTAINERS or value):
            yield value


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
    if isinstance(owner, dict):
        return {n: owner.get(n, _MISSING) for n in names}
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


class Held:
    """What all of it holds at one time."""

    def __init__(self, reached: _Reached, lazy: set[int]) -> None:
        self.state = State(reached.objects, reached.cells, moved=lazy)
        self.places = _Places(reached.places)

    def touched(self) -> bool:
        return self.state.touched() or self.places.differ()

    def restore(self) -> None:
        self.places.restore()
        self.state.put_back_changes()


class Outside:
    """The state around a module and its loss, held as it is now.

    Args:
        roots: the module and the loss or objective.
        own: objects that somebody else puts back.
    """

    def __init__(self, roots: Iterable[Any], own: Iterable[Any] = ()) -> None:
        reached = self._reached = _Reached(roots, {id(x) for x in own})
        self._large = _too_large(reached.objects)
        reached.objects = [
            x for x in reached.objects if not (isinstance(x, np.ndarray) and id(x) in self._large)
        ]
        self._watched = [x for x in reached.objects if id(x) in self._large]
        self._made = self.now()
        self.steps = reached.steps  # whether it has an optimiser or a schedule: not notes
        self.holds = False  # whether it is what it was at the making wherever code runs

    def now(self) -> Held:
        """What it holds at this time."""
        return Held(self._reached, set(self._large))

    def touched(self) -> bool:
        """Whether it has changed since the making."""
        return self._made.touched()

    def restore(self) -> None:
        """What it held when the landscape was made."""
        self._made.restore()

    def writes(self) -> bool:
        """Whether it changes tensors or arrays in place."""
        return self._made.state.writes()

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Code that runs inside leaves nothing in it."""
        try:
            yield
        finally:
            self._made.restore()

    @contextmanager
    def session(self) -> Iterator[None]:
        """Inside, what is held is as at the making; after it, what the user has in it.

        Raises InvalidArgument where code changed a tensor too large to be held.
        """
        users = None
        if self.holds and self._made.touched():
            users = self.now()
            self._made.restore()
        versions = [version_of(t) for t in self._watched]
        try:
            yield
        finally:
            if self.holds:
                self._made.restore()
            if users is not None:
                users.restore()
        for t, version in zip(self._watched, versions, strict=True):
            if self.holds and version_of(t) != version:
                raise InvalidArgument(
                    f"model: a tensor of shape {tuple(t.shape)} outside of it (a global variable, "
                    "a closure, a class) is changed in place by its code, and its value depends "
                    "on it: hold it as a buffer of the module"
                )


def _too_large(objects: list[Any]) -> set[int]:
    """Ids of the tensors and arrays that are not held twice: the largest ones."""
    sizes = []
    for x in objects:
        if isinstance(x, Tensor):
            strided = x.layout == torch.strided and not x.is_inference()
            sizes.append((x.numel() * x.element_size() if strided else 1 << 60, id(x)))
        elif isinstance(x, np.ndarray):
            sizes.append((x.nbytes, id(x)))
    room, large = _HELD, set()
    for size, name in sorted(sizes):
        room -= size
        if room < 0:
            large.add(name)
    return large
