"""A private copy of a module and of what a loss or objective holds of it.

A landscape answers for its own copy of the user's module, so that nothing it does reaches the
module and nothing that happens to the module later reaches the landscape. What hangs together in
the module hangs together in the copy: tied parameters, views of one storage, lists that hold
parameters, hooks that are methods of the module. Functions (losses, objectives, hooks) whose
closures, defaults, arguments or globals hold the module or its tensors are made anew around the
copy's.
"""

from __future__ import annotations

import copy as copying
import copyreg
import functools
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InvalidArgument, NotDifferentiable, PylandscapeError, wrapping
from .eval_mode import unwrapped
from .held_state import CACHED
from .references import ATOMS, SEARCHED, children, global_names, held_directly, parts_of, slots_of

_CONTAINERS = {dict, list, set, deque}


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
        self._targets = parts_of(model)
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
        if isinstance(x, ATOMS):
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
        kind = type(x)
        if kind in _CONTAINERS or (kind is OrderedDict and not x.__dict__):
            own = self._note(x, kind(maxlen=x.maxlen) if kind is deque else kind())
            if x:
                self._fill(own, x, self.copy)
            return own
        if isinstance(x, Tensor):
            return self._tensor(x)
        if isinstance(x, nn.Module) and unwrapped(x) is not x:
            return self._memo.setdefault(id(x), self.copy(unwrapped(x)))
        if kind is tuple:
            parts = tuple(self.copy(part) for part in x)
            if all(a is b for a, b in zip(parts, x, strict=True)):
                return x
            return self._note(x, parts)
        if isinstance(x, np.ndarray) and x.dtype != object:
            return self._note(x, self._array(x))
        if isinstance(x, types.FunctionType | types.MethodType | functools.partial):
            return self._rebound(x)
        if isinstance(x, CACHED):
            return self._cached(x)
        if isinstance(x, weakref.ref):
            return self._weak(x)
        if kind.__module__ == "itertools":  # whose list of what it gave is not to be put back
            own = self._memo[id(x)] = copying.deepcopy(x, dict(self._memo))  # goes on by itself
            self.pairs.append((x, None))  # its id stays taken
            return own
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
                if isinstance(x, nn.Module) and _share_memory(x, own):
                    self._memo.pop(id(x), None)
                    return self._by_parts(x)  # its copy would move with it
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
        if isinstance(x, nn.Module):
            self._module_slots(x, own)
        for item in items or ():
            own.append(self.copy(item))
        for key, value in pairs or ():
            own[self.copy(key)] = self.copy(value)
        return own

    def _module_slots(self, x: nn.Module, own: nn.Module) -> None:
        """What a module's ``__slots__`` hold, which torch's modules leave out of their state."""
        for _, place in slots_of(type(x)):
            try:
                value = place.__get__(x)
            except AttributeError:  # empty
                continue
            place.__set__(own, self.copy(value))

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
        if isinstance(x, nn.Parameter) and (plain or not issubclass(type(x), nn.Parameter)):
            own = nn.Parameter(own, x.requires_grad)  # of the class that the copy is of
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

    def _array(self, x: np.ndarray) -> np.ndarray:
        """A copy. Refused where it lies in a parameter's memory: it would not move with theta."""
        at = x.__array_interface__["data"][0]
        for t in self._targets.values():
            if not isinstance(t, nn.Parameter) or t.device.type != "cpu" or not x.size:
                continue
            if t.layout != torch.strided or t.is_meta:
                continue
            storage = t.untyped_storage()
            if 0 <= at - storage.data_ptr() < storage.nbytes():
                raise InvalidArgument(
                    f"model: a numpy array of shape {x.shape} in it shares the memory of a "
                    f"parameter of shape {tuple(t.shape)}, and would not follow the landscape's "
                    "copy of it; compute from the parameter itself (parameter.detach().numpy() "
                    "where it is used)"
                )
        return x.copy()

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
        if isinstance(x, ATOMS):
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
        if type(x) in _CONTAINERS:
            own = self._note(x, deque(maxlen=x.maxlen) if isinstance(x, deque) else type(x)())
            self._fill(own, x, self._rebound)
            return own
        if isinstance(x, tuple):
            parts = [self._rebound(part) for part in x]
            return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
        if isinstance(x, CACHED):
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
        names = global_names(f)
        reached = {name: value for name, value in names.items() if self._reaches(value)}
        cells = None
        if f.__closure__ is not None:
            cells = tuple(map(self._cell, f.__closure__))
        scope = {**f.__globals__} if reached else f.__globals__
        own = types.FunctionType(f.__code__, scope, f.__name__, None, cells)
        self._note(f, own)
        for name, value in reached.items():
            scope[name] = self._rebound(value)
        for cell, old in zip(cells or (), f.__closure__ or (), strict=True):
            if cell is not old and not any(cell is known for known in self.cells):
                self.cells.append(cell)
                cell.cell_contents = self.rebound(old.cell_contents)
        if f.__defaults__ is not None:
            own.__defaults__ = tuple(self.rebound(a) for a in f.__defaults__)
        if f.__kwdefaults__ is not None:
            own.__kwdefaults__ = {k: self.rebound(a) for k, a in f.__kwdefaults__.items()}
        own.__qualname__, own.__module__, own.__doc__ = f.__qualname__, f.__module__, f.__doc__
        own.__dict__.update({name: self._rebound(value) for name, value in f.__dict__.items()})
        return own

    def _cell(self, cell: types.CellType) -> types.CellType:
        """A new cell for a variable that holds something of the module, one for all functions that
        share the variable; the user's own for others, which functions that are shared may write."""
        if id(cell) in self._memo:
            return self._memo[id(cell)]
        try:
            x = cell.cell_contents
        except ValueError:  # empty
            return cell
        if isinstance(x, nn.Module | Tensor) or (not isinstance(x, ATOMS) and self._reaches(x)):
            self.pairs.append((cell, None))  # its id stays taken
            self._memo[id(cell)] = types.CellType()
            return self._memo[id(cell)]
        return cell

    def _reaches(self, x: Any) -> bool:
        """Whether x holds a part of the module, or directly any module or tensor and is no
        container."""
        if any(isinstance(part, nn.Module | Tensor) for part in held_directly(x)):
            return True
        seen: set[int] = set()
        kept: list[Any] = []
        waiting = [x]
        while waiting and len(seen) < SEARCHED:
            y = waiting.pop()
            if isinstance(y, ATOMS) or id(y) in seen or id(y) in self._held:
                continue
            if id(y) in self._targets:
                return True
            seen.add(id(y))
            kept.append(y)
            waiting.extend(children(y))
        if not waiting:
            self._held |= seen
            self.pairs += [(y, None) for y in kept]
        return False


def _share_memory(a: nn.Module, b: Any) -> bool:
    """Whether a parameter of one lies in the memory of a parameter of the other."""
    if a is b or not isinstance(b, nn.Module):
        return True
    places = [
        {p.untyped_storage().data_ptr() for p in m.parameters() if p.layout == torch.strided}
        for m in (a, b)
    ]
    return bool((places[0] & places[1]) - {0})


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
