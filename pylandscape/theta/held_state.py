"""What objects hold (attributes, contents, tensors changed in place), to be put back."""

from __future__ import annotations

import array
import ctypes
import functools
import io
import os
import random
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument
from .context import give, value_of

CACHED = type(functools.lru_cache(int))
_MANY = 1 << 14  # bytes from which on a comparison of whole numbers is the quicker one
_AT_ONCE = 1 << 16  # of these numbers: what comparing them takes stays in the cache
_COMPARED = 1 << 20  # bytes of held tensors whose values are looked at before every point
_CTYPES: Any = ctypes.c_int.__mro__[-2]  # the class of all objects that hold C's data
BUFFERS = (bytearray, array.array, memoryview, io.BytesIO, io.StringIO, _CTYPES)
STATEFUL = (
    Tensor, np.ndarray, torch.Generator, random.Random, np.random.RandomState, ContextVar,
    type(os.environ), *BUFFERS,
)  # fmt: skip


class State:
    """What a set of objects holds, to be put back: attributes, contents, tensors in place.

    Args:
        objects: modules, dicts, lists, sets, tensors, arrays, generators and others with
            attributes; what they refer to is held only if it is among them.
        cells: of functions that are among the objects' owners.
        moved: ids of tensors whose values somebody else writes: only watched.
        lazy: ids of tensors too large to hold twice: only watched until `learn` finds one changed.
    """

    def __init__(
        self,
        objects: Iterable[Any],
        cells: Iterable[types.CellType] = (),
        moved: Iterable[int] = (),
        lazy: Iterable[int] = (),
    ) -> None:
        tables: dict[int, Any] = {}
        tensors: dict[int, Tensor] = {}
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._generators: list[tuple[Any, Callable[[], Any], Callable[[Any], Any], Any]] = []
        self._caches: list[tuple[Any, Any]] = []  # of functools, with what their info was
        self._variables: list[tuple[ContextVar[Any], Any]] = []
        for x in objects:
            if isinstance(x, Tensor):
                tensors[id(x)] = x
            elif isinstance(x, dict | list | set | deque):
                tables[id(x)] = x
            elif isinstance(x, np.ndarray):
                self._arrays.append((x, x.copy()))
            elif isinstance(x, torch.Generator):
                self._add_generator(x, x.get_state, x.set_state)
            elif isinstance(x, random.Random | np.random.RandomState):
                name = "state" if isinstance(x, random.Random) else "_state"
                names = {"state": ("getstate", "setstate"), "_state": ("get_state", "set_state")}
                get, put = (getattr(x, n) for n in names[name])
                self._add_generator(x, get, put)
            elif isinstance(x, np.random.BitGenerator):
                self._add_generator(x, partial(getattr, x, "state"), partial(setattr, x, "state"))
            elif x is os.environ:
                self._add_generator(x, environment, set_environment)
            elif isinstance(x, ContextVar):
                self._variables.append((x, value_of(x)))
            elif isinstance(x, BUFFERS):
                self._add_generator(x, partial(_bytes_of, x), partial(_put_bytes, x))
            elif isinstance(x, CACHED):
                self._caches.append((x, x.cache_info()))
            elif isinstance(getattr(x, "__dict__", None), dict) and not isinstance(x, type):
                tables[id(x.__dict__)] = x.__dict__
        self._tables = list(tables.values())
        self._views = [t.values() if isinstance(t, dict) else t for t in self._tables]
        self._cells = list(cells)
        moved, lazy = set(moved), set(lazy)
        self._tensors = list(tensors.values())
        views = _overlaps([t for t in self._tensors if id(t) in moved])
        self._watched = [id(t) in moved or views(t) for t in self._tensors]
        self._values: list[Tensor | None] = [
            None if watched or id(t) in lazy else _held(t)
            for t, watched in zip(self._tensors, self._watched, strict=True)
        ]
        self._silent: list[int] = []  # tensors that change without a new version
        self._silent_arrays: list[int] = []
        self._compared = self._smallest()
        self.settle()

    def _add_generator(self, x: Any, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        self._generators.append((x, get, put, get()))

    def _smallest(self) -> list[int]:
        """Held tensors that may change unseen (by ``.data``, in fused kernels of observers) at any
        point, far from those where `learn` looks."""
        sizes = [
            (t.numel() * t.element_size(), i)
            for i, (t, value) in enumerate(zip(self._tensors, self._values, strict=True))
            if value is not None and t.layout == torch.strided and not t.is_meta
        ]
        found, room = [], _COMPARED
        for size, i in sorted(sizes):
            room -= size
            if room < 0:
                break
            found.append(i)
        return found

    def settle(self) -> None:
        """Takes the attributes and contents of now as those to put back."""
        self._before = list(map(_contents, self._tables))
        self._ids = list(map(id, chain.from_iterable(self._views)))
        self._contents = [cell.cell_contents for cell in self._cells]
        self._versions = list(map(version_of, self._tensors))
        self.settle_flags()

    def settle_flags(self) -> None:
        """Takes requires_grad of now as what to put back."""
        self._flags = [t.requires_grad for t in self._tensors]

    def differs(self) -> bool:
        """Whether attributes or contents are others than those to put back."""
        now = list(map(id, chain.from_iterable(self._views)))
        return (
            now != self._ids
            or any(
                cell.cell_contents is not content
                for cell, content in zip(self._cells, self._contents, strict=True)
            )
            or any(value_of(x) is not value for x, value in self._variables)
        )

    def glanced(self) -> bool:
        """`touched`, but for what tensors and arrays hold that change without a new version."""
        return (
            self.differs()
            or list(map(version_of, self._tensors)) != self._versions
            or any(_bits(get()) != _bits(state) for _, get, _, state in self._generators)
            or self.caches_used()
        )

    def touched(self) -> bool:
        """Whether anything is other than what is to be put back."""
        return (
            self.glanced()
            or self.writes()
            or [t.requires_grad for t in self._tensors] != self._flags
        )

    def caches_used(self) -> bool:
        """Whether caches of functools gave or took something."""
        return any(_used(cached, info) for cached, info in self._caches)

    def writes(self) -> bool:
        """Whether tensors or arrays were changed in place."""
        return (
            list(map(version_of, self._tensors)) != self._versions
            or any(
                value is not None and not same_bits(t, value)  # by .data, without a new version
                for t, value in zip(self._tensors, self._values, strict=True)
            )
            or any(a.tobytes() != held.tobytes() for a, held in self._arrays)
        )

    def restore(self) -> None:
        """Puts everything back. Raises InvalidArgument for a tensor that was not held."""
        if list(map(id, chain.from_iterable(self._views))) != self._ids:
            for table, before in zip(self._tables, self._before, strict=True):
                _refill(table, before)
        for cell, content in zip(self._cells, self._contents, strict=True):
            if cell.cell_contents is not content:
                cell.cell_contents = content
        if list(map(version_of, self._tensors)) != self._versions:
            for i, t in enumerate(self._tensors):
                if version_of(t) != self._versions[i]:
                    self._put_back(i)
        for i in self._silent:
            self._put_back(i)
        for i in self._compared:
            t, value = self._tensors[i], self._values[i]
            if value is not None and not _equal(t, value):
                self._put_back(i)
        for i in self._silent_arrays:
            np.copyto(*self._arrays[i])
        if [t.requires_grad for t in self._tensors] != self._flags:
            for t, flag in zip(self._tensors, self._flags, strict=True):
                if t.is_leaf and t.requires_grad != flag:
                    t.requires_grad_(flag)
        for i, (cached, info) in enumerate(self._caches):
            if _used(cached, info):  # even where it only gave what it had, of another point
                cached.cache_clear()
                self._caches[i] = cached, cached.cache_info()
        for x, get, put, state in self._generators:
            if not isinstance(x, BUFFERS) or get() != state:
                put(state)
        for x, value in self._variables:
            if value_of(x) is not value:
                give(x, value)

    def _put_back(self, i: int) -> None:
        tensor, value = self._tensors[i], self._values[i]
        if value is None and not self._watched[i]:
            raise InvalidArgument(
                f"model: its forward pass changed a tensor of shape {tuple(tensor.shape)} in "
                "place that it left alone when the landscape was made; a frozen parameter is "
                "expected to keep its values"
            )
        if value is not None:
            same = tensor.shape == value.shape and tensor.dtype == value.dtype
            if tensor.layout == torch.strided and same:
                tensor.data.copy_(value)
            else:  # sparse, or of another size or type since the forward pass
                tensor.data = value.clone()
        self._versions[i] = version_of(tensor)

    def put_back_changes(self) -> None:
        """`restore`, also of tensors that changed without a new version."""
        for i, (t, value) in enumerate(zip(self._tensors, self._values, strict=True)):
            if value is not None and i not in self._silent and not same_bits(t, value):
                self._silent.append(i)
        self._silent_arrays = [
            i for i, (a, held) in enumerate(self._arrays) if a.tobytes() != held.tobytes()
        ]
        self.restore()

    def learn(self, pristine: Callable[[Tensor], Tensor | None]) -> bool:
        """After a first run: whether tensors changed in place, and which change unseen.

        ``pristine``: the value from before the run of a tensor that was not held.
        """
        changed = False
        for i, t in enumerate(self._tensors):
            value = self._values[i]
            lazy = value is None and not self._watched[i]
            before = pristine(t) if lazy else value
            seen = version_of(t) != self._versions[i]
            if not seen and (before is None or same_bits(t, before)):
                continue
            changed = True
            if lazy and before is not None:
                self._values[i] = before.clone()
            if not seen and i not in self._silent:
                self._silent.append(i)
        for i, (a, held) in enumerate(self._arrays):
            if i not in self._silent_arrays and a.tobytes() != held.tobytes():
                self._silent_arrays.append(i)
        return changed


def version_of(t: Tensor) -> int:
    """How often it was changed in place; 0 where torch does not count."""
    return 0 if t.is_inference() else t._version


def _span(t: Tensor) -> tuple[int, int]:
    """Which bytes of its storage its elements lie in, the last excluded.

    Told without the tensor's own address: on a GPU it need not be asked for."""
    steps = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    first = int(t.storage_offset())
    return first * t.element_size(), (first + steps + 1) * t.element_size()


def _overlaps(of: list[Tensor]) -> Callable[[Tensor], bool]:
    """Whether a tensor lies in the memory of one of these, and so changes with it."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for t in of:
        if t.layout == torch.strided and not t.is_meta and t.numel():
            spans.setdefault(t.untyped_storage().data_ptr(), []).append(_span(t))

    def overlaps(t: Tensor) -> bool:
        if t.layout != torch.strided or t.is_meta or not t.numel():
            return False
        theirs = spans.get(t.untyped_storage().data_ptr(), ())
        if not theirs:
            return False
        first, end = _span(t)
        return any(a < end and first < b for a, b in theirs)

    return overlaps


def _used(cached: Any, before: Any) -> bool:
    """Whether a cache that holds something was asked since."""
    now = cached.cache_info()
    return bool(now.currsize) and now != before


def _bits(state: Any) -> Any:
    """The state of a generator or a buffer, comparable."""
    if isinstance(state, bytes):
        return state
    return state.numpy().tobytes() if isinstance(state, Tensor) else repr(state)


def environment() -> dict[Any, Any]:
    """The environment's variables as the system has them, comparable."""
    return dict(getattr(os.environ, "_data", os.environ))  # decoding each takes a hundred times it


def set_environment(before: dict[Any, Any]) -> None:
    if environment() != before:
        os.environ.clear()
        os.environ.update({os.fsdecode(k): os.fsdecode(value) for k, value in before.items()})


def is_iterator(x: Any) -> bool:
    """Whether it is one of Python's own, which only go forward."""
    kind = type(x)
    return hasattr(kind, "__next__") and kind.__module__ in ("builtins", "itertools")


def position(x: Any) -> Any:
    """What tells how far an iterator has gone, where it can be told."""
    if isinstance(x, io.IOBase):
        try:
            return None if x.closed else x.tell()
        except (OSError, ValueError):  # it is no file, or lines are being taken from it
            return object()
    if isinstance(x, types.GeneratorType):
        frame = x.gi_frame
        if frame is None:
            return None
        return (frame.f_lasti, *map(id, frame.f_locals.values()), position(x.gi_yieldfrom))
    if not is_iterator(x):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return tuple(map(_told, x.__reduce__()))
        except Exception:  # later versions of Python have none
            return repr(x)


def _told(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(map(_told, part))
    if isinstance(part, int | str):
        return part
    return position(part) if is_iterator(part) else id(part)


def size_of(x: Any) -> int:
    """The bytes that a buffer takes."""
    if isinstance(x, io.BytesIO | io.StringIO):
        return 0 if x.closed else len(x.getvalue())
    return ctypes.sizeof(x) if isinstance(x, _CTYPES) else memoryview(x).nbytes


def _bytes_of(x: Any) -> Any:
    if isinstance(x, io.BytesIO | io.StringIO):
        return () if x.closed else (x.getvalue(), x.tell())
    return bytes(x) if isinstance(x, bytearray | _CTYPES) else x.tobytes()


def _put_bytes(x: Any, held: Any) -> None:
    if isinstance(x, io.BytesIO | io.StringIO):
        if held and not x.closed:
            x.seek(0)
            x.truncate()
            x.write(held[0])
            x.seek(held[1])
    elif isinstance(x, _CTYPES):
        ctypes.memmove(ctypes.addressof(x), held, len(held))
    elif isinstance(x, array.array):
        del x[:]
        x.frombytes(held)
    elif isinstance(x, bytearray):
        x[:] = held
    else:
        np.copyto(np.asarray(x), np.frombuffer(held, np.asarray(x).dtype).reshape(x.shape))


def _held(t: Tensor) -> Tensor:
    return t.detach().clone()


def _equal(a: Tensor, b: Tensor) -> bool:
    """The same without NaN, quickly."""
    return a.shape == b.shape and a.dtype == b.dtype and (_same_bytes(a, b) or torch.equal(a, b))


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two large tensors of one shape and dtype have the same bytes, told several times as
    fast as `torch.equal` does; False also where that is not told."""
    size = a.numel() * a.element_size()
    if size < _MANY:
        return False
    a, b = a.detach(), b.detach()
    for t in (a, b):
        plain = type(t) is Tensor and t.device.type == "cpu" and t.is_contiguous()
        if not plain or t.is_conj() or t.is_neg() or t.is_quantized:
            return False
    x, y = (t.view(-1).view(torch.uint8).numpy() for t in (a, b))
    whole = size - size % 8
    v, w = x[:whole].view(np.int64), y[:whole].view(np.int64)
    parts = ((v[i : i + _AT_ONCE], w[i : i + _AT_ONCE]) for i in range(0, len(v), _AT_ONCE))
    return all(np.array_equal(*part) for part in chain(parts, [(x[whole:], y[whole:])]))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN equal to NaN."""
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if a.is_meta or b.is_meta:  # without values
        return a.is_meta and b.is_meta
    if a.layout != torch.strided:
        return all(same_bits(x, y) for x, y in zip(dense_parts(a), dense_parts(b), strict=True))
    a, b = a.detach(), b.detach()
    return _same_bytes(a, b) or torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def dense_parts(t: Tensor) -> list[Tensor]:
    """The strided tensors that a tensor of any layout is made of."""
    t = t.detach()
    if t.is_quantized:
        return [t.int_repr()]
    if t.layout == torch.strided:
        return [t]
    if t.layout == torch.sparse_coo:
        t = t.coalesce()
        return [t.indices(), t.values()]
    if t.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [t.crow_indices(), t.col_indices(), t.values()]
    if t.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [t.ccol_indices(), t.row_indices(), t.values()]
    return [t.to_dense()]


def _contents(table: Any) -> Any:
    """A copy of plain type, whatever a subclass makes of ``copy()``."""
    if isinstance(table, dict):
        return dict(table)
    return set(table) if isinstance(table, set) else list(table)


def _refill(table: Any, before: Any) -> None:
    if isinstance(table, dict):
        for name in table.keys() - before.keys():
            table.pop(name, None)
        table.update(before)
    elif isinstance(table, set):
        table.intersection_update(before)
        table.update(before)
    elif len(table) != len(before) or any(a is not b for a, b in zip(table, before, strict=True)):
        table.clear()
        table.extend(before)
