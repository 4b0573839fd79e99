"""What an object refers to: the parts of a module, and whether a function reaches one of them."""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SEARCHED = 20_000  # objects looked through for what a function holds of the module
ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type, range, slice, property, type(...),
    types.ModuleType, types.BuiltinFunctionType, types.CodeType, torch.dtype, torch.device,
    torch.layout, torch.memory_format, torch.Size,
)  # fmt: skip
_LIBRARIES = {"torch", "numpy", "scipy", "pylandscape", *sys.stdlib_module_names} - {"__main__"}


def parts_of(model: nn.Module) -> dict[int, Any]:
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


@functools.lru_cache(maxsize=4096)
def of_a_library(module: str | None) -> bool:
    """Whether a module is torch's, Python's own, or of a package that was installed."""
    root = (module or "").partition(".")[0]
    if root in _LIBRARIES:
        return True
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def global_names(f: types.FunctionType) -> dict[str, Any]:
    """The globals that the function's code names, also in functions inside it."""
    root = (f.__module__ or "").partition(".")[0]
    if root in _LIBRARIES:
        return {}
    names = sorted(names_of(f.__code__))
    return {name: f.__globals__[name] for name in names if name in f.__globals__}


def names_of(code: types.CodeType) -> set[str]:
    """The names of globals and attributes in code, also of functions inside it."""
    inner = (names_of(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*inner)


def slots_of(kind: type) -> Iterator[tuple[str, Any]]:
    """The names, and what gets and sets each, of what ``__slots__`` of a class and its bases
    hold."""
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if isinstance(place := vars(base).get(name), types.MemberDescriptorType):
                yield name, place


def held_directly(x: Any) -> Iterable[Any]:
    """What a function, a method or an object that is called holds directly."""
    if isinstance(x, functools.partial):
        return [*x.args, *x.keywords.values()]
    if isinstance(x, types.FunctionType):
        return [*_cells(x), *(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
    if isinstance(x, types.MethodType):
        return held_directly(x.__self__)
    return list(getattr(x, "__dict__", {}).values()) if callable(x) else []


def _cells(f: types.FunctionType) -> Iterator[Any]:
    for cell in f.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # empty
            continue


def children(x: Any) -> Iterable[Any]:
    if isinstance(x, types.FunctionType):
        return [*held_directly(x), *global_names(x).values(), *x.__dict__.values()]
    if isinstance(x, types.MethodType):
        return [x.__self__, x.__func__]
    if isinstance(x, functools.partial):
        return [x.func, *x.args, *x.keywords.values()]
    if isinstance(x, dict):
        return [*x.keys(), *x.values()] if len(x) < SEARCHED else []
    if isinstance(x, list | tuple | set | frozenset | deque):
        return list(x) if len(x) < SEARCHED else []
    if isinstance(x, Tensor | np.ndarray):
        return []
    if isinstance(x, weakref.ref):
        return [x()]
    return list(getattr(x, "__dict__", {}).values())
