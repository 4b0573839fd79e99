"""A private copy of a module and of what a loss or objective holds of it.

A landscape answers for its own copy of the user's module, so that nothing it does reaches the
module and nothing that happens to the module later reaches the landscape. What hangs together in
the module hangs together in the copy: tied parameters, views of one storage, lists that hold
parameters, hooks that are methods of the module. Functions (losses, objectives, hooks) whose
closures, defaults, arguments or globals hold the module or its tensors are made anew around the
copy's.
"""

from __future__ import annotations

import copyreg
import functools
import random
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InvalidArgument, NotDifferentiable, PylandscapeError, wrapping
from .data import dense_parts

_CACHED = type(functools.lru_cache(int))
_SEARCHED = 20_000  # objects looked through for what a function holds of the module
_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type, range, slice, property, type(...),
    types.ModuleType, types.BuiltinFunctionType, types.CodeType, torch.dtype, torch.device,
    torch.layout, torch.memory_format, torch.Size,
)  # fmt: skip
_LIBRARIES = {"torch", "numpy", "scipy", "pylandscape", *sys.stdlib_module_names} - {"__main__"}


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile's wrapper."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif type(model).__name__ == "OptimizedModule" and isinstance(
            getattr(model, "_orig_mod", None), nn.Module
        ):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def has_own_eval(model: nn.Module) -> bool:
    """Whether eval mode is more than flags: a module has a train() or eval() of its own."""
    return any(
        type(m).train is not nn.Module.train
        or type(m).eval is not nn.Module.eval
        or "train" in vars(m)
        or "eval" in vars(m)
        for m in model.modules()
    )


def into_eval(model: nn.Module) -> None:
    """Eval mode as the user's own ``model.eval()`` gives it, which may do more than set flags.

    Raises:
        InvalidArgument: it raises, or changes parameters, which then are not those of theta.
    """
    if not any(m.training for m in model.modules()) or not has_own_eval(model):
        return
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    try:
        model.eval()
    except Exception as error:
        raise wrapping(
            error, f"model: its eval() raised {type(error).__name__}: {error}"
        ) from error
    after = dict(model.named_parameters())
    changed = [n for n, v in before.items() if n not in after or not same_bits(after[n], v)]
    for name in changed:
        if name in after and after[name].shape == before[name].shape:
            after[name].data.copy_(before[name])
    if changed:
        raise InvalidArgument(
            f"model: its own eval() changes the parameter {changed[0]!r} (does it fold weights?); "
            "call model.eval() before, so that theta is what the model then has"
        )


class State:
    """What a set of objects holds, to be put back: attributes, contents, tensors in place.

    Args:
        objects: modules, dicts, lists, sets, tensors, arrays, generators and others with
            attributes; what they refer to is held only if it is among them.
        cells: of functions that are among the objects' owners.
        moved: ids of tensors whose values somebody else writes: only watched.
        lazy: ids of tensors too large to hold twice: only watched until `hold` is told a value.
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
            elif isinstance(x, _CACHED):
                self._caches.append((x, x.cache_info()))
            elif isinstance(getattr(x, "__dict__", None), dict) and not isinstance(x, type):
                tables[id(x.__dict__)] = x.__dict__
        self._tables = list(tables.values())
        self._views = [t.values() if isinstance(t, dict) else t for t in self._tables]
        self._cells = list(cells)
        moved, lazy = set(moved), set(lazy)
        self._tensors = list(tensors.values())
        self._watched = [id(t) in moved for t in self._tensors]
        self._values: list[Tensor | None] = [
            None if id(t) in moved or id(t) in lazy else _held(t) for t in self._tensors
        ]
        self._silent: list[int] = []  # tensors that change without a new version
        self._silent_arrays: list[int] = []
        self.settle()

    def _add_generator(self, x: Any, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        self._generators.append((x, get, put, get()))

    def settle(self) -> None:
        """Takes the attributes and contents of now as those to put back."""
        self._before = [dict(t) if isinstance(t, dict) else t.copy() for t in self._tables]
        self._ids = list(map(id, chain.from_iterable(self._views)))
        self._contents = [cell.cell_contents for cell in self._cells]
        self._versions = list(map(_version, self._tensors))
        self._flags = [t.requires_grad for t in self._tensors]

    def differs(self) -> bool:
        """Whether attributes or contents are others than those to put back."""
        now = list(map(id, chain.from_iterable(self._views)))
        return now != self._ids or any(
            cell.cell_contents is not content
            for cell, content in zip(self._cells, self._contents, strict=True)
        )

    def restore(self) -> None:
        """Puts everything back. Raises InvalidArgument for a tensor that was not held."""
        if list(map(id, chain.from_iterable(self._views))) != self._ids:
            for table, before in zip(self._tables, self._before, strict=True):
                _refill(table, before)
        for cell, content in zip(self._cells, self._contents, strict=True):
            if cell.cell_contents is not content:
                cell.cell_contents = content
        if list(map(_version, self._tensors)) != self._versions:
            for i, t in enumerate(self._tensors):
                if _version(t) != self._versions[i]:
                    self._put_back(i)
        for i in self._silent:
            self._put_back(i)
        for i in self._silent_arrays:
            np.copyto(*self._arrays[i])
        if [t.requires_grad for t in self._tensors] != self._flags:
            for t, flag in zip(self._tensors, self._flags, strict=True):
                if t.is_leaf and t.requires_grad != flag:
                    t.requires_grad_(flag)
        for cached, info in self._caches:
            if cached.cache_info() != info:
                cached.cache_clear()
        for _, _, put, state in self._generators:
            put(state)

    def _put_back(self, i: int) -> None:
        tensor, value = self._tensors[i], self._values[i]
        if value is None and not self._watched[i]:
            raise InvalidArgument(
                f"model: its forward pass changed a tensor of shape {tuple(tensor.shape)} in "
                "place that it left alone when the landscape was made; a frozen parameter is "
                "expected to keep its values"
            )
        if value is not None:
            if tensor.layout == torch.strided and tensor.shape == value.shape:
                tensor.data.copy_(value)
            else:  # sparse, or resized by the forward pass
                tensor.data = value.clone()
        self._versions[i] = _version(tensor)

    def put_back_changes(self) -> None:
        """`restore`, also of tensors that changed without a new version."""
        for i, (t, value) in enumerate(zip(self._tensors, self._values, strict=True)):
            if value is not None and i not in self._silent and not same_bits(t, value):
                self._silent.append(i)
        self._silent_arrays = list(range(len(self._arrays)))
        self.restore()

    def learn(self, pristine: Callable[[Tensor], Tensor | None]) -> bool:
        """After a first run: whether tensors changed in place, and which change unseen.

        ``pristine``: the value from before the run of a tensor that was not held.
        """
        changed = False
        for i, t in enumerate(self._tensors):
            value = self._values[i]
            if _version(t) != self._versions[i]:
                changed = True
                if value is None and not self._watched[i]:
                    self._values[i] = pristine(t)
            elif value is not None and not same_bits(t, value):
                changed = True
                self._silent.append(i)
        for i, (array, held) in enumerate(self._arrays):
            if array.tobytes() != held.tobytes():
                self._silent_arrays.append(i)
        return changed


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _held(t: Tensor) -> Tensor:
    return t.detach().clone()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN equal to NaN."""
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if a.layout != torch.strided:
        return all(same_bits(x, y) for x, y in zip(dense_parts(a), dense_parts(b), strict=True))
    a, b = a.detach(), b.detach()
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


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


class Snapshot:
    """The copy ``model`` of a module, and functions made anew around it by `rebound`.

    Floating-point tensors are converted to ``dtype`` and all tensors moved to ``device`` where
    these are given. What cannot be copied (locks, generators, open files) is shared; a tensor that
    is the result of a computation is copied without its graph.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._dtype, self._device = dtype, device
        self._memo: dict[int, Any] = {}
        self._storages: dict[tuple[int, int, torch.dtype, torch.device], Tensor] = {}
        self._held: set[int] = set()  # no path leads from these objects to the module
        self.cells: list[types.CellType] = []
        self.pairs: list[tuple[Any, Any]] = []  # (original, copy): keeps both alive
        self._targets = _parts(model)
        self.model: nn.Module = self.copy(model)

    def alias(self, x: Any, of: Any) -> None:
        """From now on a copy of the wrapper x is that of the module ``of`` in it, which code may
        still ask for its ``.module``."""
        own = self._memo[id(x)] = self._memo[id(of)]
        own.__dict__.setdefault("module", own)
        self._targets[id(x)] = x

    def originals(self) -> list[Any]:
        """What was copied, as the user has it."""
        return [x for x, own in self.pairs if x is not None and own is not None]

    def copies(self) -> list[Any]:
        """The landscape's own objects."""
        return [own for _, own in self.pairs if own is not None]

    def forget_originals(self) -> None:
        """Lets go of the user's objects; nothing can be copied or rebound afterwards."""
        self.pairs = [(None, own) for _, own in self.pairs]
        self._memo.clear()
        self._storages.clear()
        self._targets = {}

    def rebound(self, x: Any) -> Any:
        """x with the copy wherever x holds the module or its tensors, itself where it holds none.

        Modules and tensors that x is, or that a function holds directly, are copied too.
        """
        if isinstance(x, nn.Module | Tensor):
            return self.copy(x)
        return self._rebound(x)

    def copy(self, x: Any) -> Any:
        """A deep copy of x, by the same memory of what was copied before."""
        if isinstance(x, _ATOMS):
            return x
        if id(x) in self._memo:
            return self._memo[id(x)]
        try:
            return self._copied(x)
        except (MemoryError, torch.OutOfMemoryError, RecursionError, PylandscapeError):
            raise
        except Exception as error:  # whatever cannot be copied is shared, but for what moves
            if isinstance(x, nn.Module | Tensor):
                raise wrapping(
                    error,
                    f"model: a {type(x).__name__} in it cannot be copied, and the landscape moves "
                    f"a copy of its own: {type(error).__name__}: {error}",
                ) from error
            self._memo[id(x)] = x
            return x

    def _note(self, x: Any, own: Any) -> Any:
        self._memo[id(x)] = own
        self.pairs.append((x, own))
        return own

    def _copied(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self._tensor(x)
        if isinstance(x, nn.Module) and unwrapped(x) is not x:
            return self._memo.setdefault(id(x), self.copy(unwrapped(x)))
        kind = type(x)
        if kind in (dict, list, set, deque):
            own = self._note(x, kind(maxlen=x.maxlen) if kind is deque else kind())
            self._fill(own, x, self.copy)
            return own
        if kind is tuple:
            parts = tuple(self.copy(part) for part in x)
            if all(a is b for a, b in zip(parts, x, strict=True)):
                return x
            return self._note(x, parts)
        if isinstance(x, np.ndarray) and x.dtype != object:
            return self._note(x, x.copy())
        if isinstance(x, types.FunctionType | types.MethodType | functools.partial):
            return self._rebound(x)
        if isinstance(x, _CACHED):
            return self._cached(x)
        if isinstance(x, weakref.ref):
            return self._weak(x)
        if isinstance(x, threading.local):  # what this thread has in it
            own = self._note(x, type(x)())
            self._fill(own.__dict__, x.__dict__, self.copy)
            return own
        if isinstance(x, torch.Generator):
            own = torch.Generator(x.device)
            own.set_state(x.get_state())
            return self._note(x, own)
        custom = getattr(kind, "__deepcopy__", None)
        if custom is not None and getattr(custom, "__module__", "") != parametrize.__name__:
            if isinstance(x, nn.Module):
                for t in (*x.parameters(), *x.buffers()):
                    self.copy(t)
            before = len(self._memo)
            try:
                own = custom(x, self._memo)
                self._memo[id(x)] = own
                alive = self._memo.get(id(self._memo))  # copy.deepcopy's own list
                made = [y for y in list(self._memo.values())[before:] if y is not alive]
                self.pairs += [(None, y) for y in made]
                self.pairs.append((x, own))
                return own
            except Exception:
                if not isinstance(x, nn.Module):
                    raise
        return self._by_parts(x)

    def _by_parts(self, x: Any) -> Any:
        """As copy.deepcopy copies an object that says how it is pickled."""
        reduce = copyreg.dispatch_table.get(type(x))
        recipe: Any
        if getattr(type(x).__getstate__, "__module__", "") == parametrize.__name__:  # it refuses
            recipe = copyreg.__newobj__, (type(x),), x.__dict__  # type: ignore[attr-defined]
        else:
            recipe = reduce(x) if reduce is not None else x.__reduce_ex__(4)
        if isinstance(recipe, str):
            return x
        make, args, state, items, pairs = (*recipe, None, None, None)[:5]
        own = self._note(x, make(*(self.copy(a) for a in args)))
        if state is not None:
            slots = None
            if not hasattr(own, "__setstate__") and isinstance(state, tuple) and len(state) == 2:
                state, slots = state
            if isinstance(state, dict):
                state = {name: self.copy(value) for name, value in state.items()}
            else:
                state = self.copy(state)
            if hasattr(own, "__setstate__"):
                own.__setstate__(state)
            elif state:
                own.__dict__.update(state)
            for name, value in (slots or {}).items():
                setattr(own, name, self.copy(value))
        for item in items or ():
            own.append(self.copy(item))
        for key, value in pairs or ():
            own[self.copy(key)] = self.copy(value)
        return own

    def _tensor(self, x: Tensor) -> Tensor:
        plain = type(x) in (Tensor, nn.Parameter, nn.Buffer)
        if not x.is_leaf and (own := self._computed(x)) is not None:
            return self._note(x, own)
        with torch.inference_mode(False), torch.no_grad():
            if x.layout == torch.strided and not x.is_quantized and type(x.detach()) is Tensor:
                own = self._strided(x.detach())
            else:
                own = x.detach().clone()
                own = own.to(self._device or x.device, self._cast_of(x))
        if isinstance(x, nn.Parameter) and plain:
            own = nn.Parameter(own, x.requires_grad)
        elif isinstance(x, nn.Parameter):
            own = own.as_subclass(type(x)).requires_grad_(x.requires_grad)
        elif type(x) is nn.Buffer:
            own = nn.Buffer(own, persistent=getattr(x, "persistent", True))
        elif x.is_leaf and x.requires_grad:
            own.requires_grad_()
        self._note(x, own)
        for name, value in x.__dict__.items():
            if name != "persistent":
                setattr(own, name, self.copy(value))
        if x.is_leaf and x.requires_grad:
            for hook in (getattr(x, "_backward_hooks", None) or {}).values():
                own.register_hook(self.copy(hook))
        return own

    def _computed(self, x: Tensor) -> Tensor | None:
        """The same view of the copy of what x is a view of, where that is a parameter; of another
        result of the module's parameters, values that no derivative goes through in silence."""
        base = x._base
        if base is not None and id(base) in self._targets and base.layout == torch.strided:
            own = self.copy(base)
            with torch.inference_mode(False), torch.enable_grad():
                if own.is_leaf and base.requires_grad:
                    own.requires_grad_()
                return own.as_strided(x.shape, x.stride(), x.storage_offset())
        leaves = [t for t in _leaves(x) if id(t) in self._targets]
        if not leaves:
            return None
        with torch.inference_mode(False), torch.enable_grad():
            anchors = [self.copy(t).requires_grad_() for t in leaves]
            value = x.detach().clone().to(self._device or x.device, self._cast_of(x))
            own = _Kept.apply(value, *anchors)
        return own

    def _cached(self, x: Any) -> Any:
        """An empty cache around the same function, where that holds something of the module."""
        if not self._reaches(x):
            return x
        again = functools.lru_cache(**x.cache_parameters())
        return self._note(x, again(self.rebound(x.__wrapped__)))

    def _cast_of(self, x: Tensor) -> torch.dtype:
        return self._dtype if self._dtype is not None and x.is_floating_point() else x.dtype

    def _strided(self, x: Tensor) -> Tensor:
        """A copy that shares its storage with the copies of those that share x's."""
        dtype, device = self._cast_of(x), self._device or x.device
        size, step = x.untyped_storage().nbytes(), x.element_size()
        overlaps = any(s == 0 and n > 1 for s, n in zip(x.stride(), x.shape, strict=True))
        if overlaps or size % step or x.is_meta or x.is_conj() or x.is_neg() or x.numel() == 0:
            return x.clone(memory_format=torch.contiguous_format).to(device, dtype)
        key = (x.untyped_storage().data_ptr(), size, x.dtype, x.device)
        whole = self._storages.get(key)
        if whole is None:
            flat = torch.empty(0, dtype=x.dtype, device=x.device).set_(
                x.untyped_storage(), 0, (size // step,), (1,)
            )
            whole = self._storages[key] = flat.to(device, dtype, copy=True)
            self.pairs.append((x, None))  # its address stays taken
        return whole.as_strided(x.shape, x.stride(), x.storage_offset()).detach()

    def _weak(self, x: Any) -> Any:
        target = x()
        if not isinstance(target, nn.Module | Tensor) or type(x) is not weakref.ref:
            return x
        return self._note(x, weakref.ref(self.copy(target)))

    def _fill(self, own: Any, x: Any, of: Callable[[Any], Any]) -> None:
        if isinstance(x, dict):
            own.update({of(key): of(value) for key, value in x.items()})
        elif isinstance(x, set):
            own.update(of(part) for part in x)
        else:
            own.extend(of(part) for part in x)

    def _rebound(self, x: Any) -> Any:
        if isinstance(x, _ATOMS):
            return x
        if id(x) in self._memo:
            return self._memo[id(x)]
        if not self._reaches(x):
            return x
        if isinstance(x, nn.Module | Tensor):
            return self.copy(x)
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.MethodType):
            return self._note(x, types.MethodType(x.__func__, self._rebound(x.__self__)))
        if isinstance(x, functools.partial):
            args = [self.rebound(a) for a in x.args]
            keywords = {name: self.rebound(a) for name, a in x.keywords.items()}
            return self._note(x, functools.partial(self._rebound(x.func), *args, **keywords))
        if type(x) in (dict, list, set, deque):
            own = self._note(x, deque(maxlen=x.maxlen) if isinstance(x, deque) else type(x)())
            self._fill(own, x, self._rebound)
            return own
        if isinstance(x, tuple):
            parts = [self._rebound(part) for part in x]
            return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
        if isinstance(x, _CACHED):
            return self._cached(x)
        if isinstance(x, weakref.ref):
            return self._weak(x)
        try:
            table = x.__dict__
            own = object.__new__(type(x))
        except (AttributeError, TypeError):
            return self.copy(x)
        self._note(x, own)
        own.__dict__.update(table)
        for name, value in table.items():
            own.__dict__[name] = self.rebound(value)
        return own

    def _function(self, f: types.FunctionType) -> Any:
        names = _global_names(f)
        reached = {name: value for name, value in names.items() if self._reaches(value)}
        cells = None
        if f.__closure__ is not None:
            cells = tuple(types.CellType() for _ in f.__closure__)
        scope = {**f.__globals__} if reached else f.__globals__
        own = types.FunctionType(f.__code__, scope, f.__name__, None, cells)
        self._note(f, own)
        for name, value in reached.items():
            scope[name] = self._rebound(value)
        for cell, old in zip(cells or (), f.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self.rebound(old.cell_contents)
            except ValueError:  # an empty cell
                continue
            self.cells.append(cell)
        if f.__defaults__ is not None:
            own.__defaults__ = tuple(self.rebound(a) for a in f.__defaults__)
        if f.__kwdefaults__ is not None:
            own.__kwdefaults__ = {k: self.rebound(a) for k, a in f.__kwdefaults__.items()}
        own.__qualname__, own.__module__, own.__doc__ = f.__qualname__, f.__module__, f.__doc__
        own.__dict__.update({name: self._rebound(value) for name, value in f.__dict__.items()})
        return own

    def _reaches(self, x: Any) -> bool:
        """Whether x holds a part of the module, or directly any module or tensor and is no
        container."""
        if any(isinstance(part, nn.Module | Tensor) for part in _direct(x)):
            return True
        seen: set[int] = set()
        kept: list[Any] = []
        waiting = [x]
        while waiting and len(seen) < _SEARCHED:
            y = waiting.pop()
            if isinstance(y, _ATOMS) or id(y) in seen or id(y) in self._held:
                continue
            if id(y) in self._targets:
                return True
            seen.add(id(y))
            kept.append(y)
            waiting.extend(_children(y))
        if not waiting:
            self._held |= seen
            self.pairs += [(y, None) for y in kept]
        return False


class _Kept(torch.autograd.Function):
    """A value computed before the landscape was made, whose graph belongs to the user's tensors."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *of: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *g: Any) -> Any:
        raise NotDifferentiable(
            "model: it reads a tensor that was computed from its parameters before the landscape "
            "was made, and whose graph a derivative would follow; compute it in forward(), "
            "or keep a detach() of it"
        )


def _leaves(x: Tensor) -> list[Tensor]:
    """The tensors at the ends of x's graph."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    waiting: list[Any] = [x.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                found.append(node.variable)
            waiting.extend(before for before, _ in node.next_functions)
    return found


def _parts(model: nn.Module) -> dict[int, Any]:
    """The modules of a tree, their tensors, and the containers that hold them directly, by id."""
    found: dict[int, Any] = {}
    for module in model.modules():
        found[id(module)] = module
        for table in (module.__dict__, module._parameters, module._buffers):
            for value in table.values():
                if isinstance(value, Tensor):
                    found[id(value)] = value
                elif type(value) in (list, dict, set, deque) and table is module.__dict__:
                    tensors = list(_tensors_in(value, 2))
                    found.update({id(t): t for t in tensors})
                    if tensors:
                        found[id(value)] = value
    return found


def _tensors_in(x: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif depth and isinstance(x, dict):
        for value in list(x.values()):
            yield from _tensors_in(value, depth - 1)
    elif depth and isinstance(x, list | tuple | set | deque):
        for value in list(x):
            yield from _tensors_in(value, depth - 1)


def _global_names(f: types.FunctionType) -> dict[str, Any]:
    """The globals that the function's code names, also in functions inside it."""
    root = (f.__module__ or "").partition(".")[0]
    if root in _LIBRARIES:
        return {}
    names: set[str] = set()
    codes = [f.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
    return {name: f.__globals__[name] for name in sorted(names) if name in f.__globals__}


def _direct(x: Any) -> Iterable[Any]:
    """What a function, a method or an object that is called holds directly."""
    if isinstance(x, functools.partial):
        return [*x.args, *x.keywords.values()]
    if isinstance(x, types.FunctionType):
        return [*_cells(x), *(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
    if isinstance(x, types.MethodType):
        return _direct(x.__self__)
    return list(getattr(x, "__dict__", {}).values()) if callable(x) else []


def _cells(f: types.FunctionType) -> Iterator[Any]:
    for cell in f.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # empty
            continue


def _children(x: Any) -> Iterable[Any]:
    if isinstance(x, types.FunctionType):
        return [*_direct(x), *_global_names(x).values(), *x.__dict__.values()]
    if isinstance(x, types.MethodType):
        return [x.__self__, x.__func__]
    if isinstance(x, functools.partial):
        return [x.func, *x.args, *x.keywords.values()]
    if isinstance(x, dict):
        return [*x.keys(), *x.values()] if len(x) < _SEARCHED else []
    if isinstance(x, list | tuple | set | frozenset | deque):
        return list(x) if len(x) < _SEARCHED else []
    if isinstance(x, Tensor | np.ndarray):
        return []
    if isinstance(x, weakref.ref):
        return [x()]
    return list(getattr(x, "__dict__", {}).values())
