"""What Python objects compute, in words and digests: the same in every process, without addresses.

A `Record` names functions by their source (source_code.py), closures, defaults and the globals that
the code names; modules by type, settings and the code of `forward`; other objects by
type, code and state. Libraries (torch, NumPy, SciPy, the standard library, this package) are known
by name, other installed packages by name and the checksums of their files (installed.py). What
cannot be looked into, such as a compiled extension, is listed in `Record.opaque`.
"""

from __future__ import annotations

import builtins
import copyreg
import enum
import functools
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import digest, text_digest
from .installed import installed
from .source_code import named_code, names_in

LIBRARIES = frozenset(
    {"torch", "numpy", "scipy", "builtins", "pylandscape", *sys.stdlib_module_names}
) - {"__main__"}
DEPTH = 3  # of the modules in modules that code names
LONGEST = 300  # characters of a value that is shown as it is
MOST = 20_000  # objects that one record looks into
HOOKS = (
    "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks",
)  # fmt: skip
_STANDARD = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_PLAIN = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis), slice, range)
_DESCRIPTORS = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)
_BY_STATE = (  # classes of the standard library that are data
    "re.", "decimal.", "fractions.", "datetime.", "pathlib.", "collections.", "uuid.", "string.",
    "operator.", "random.", "zoneinfo.", "types.SimpleNamespace", "argparse.Namespace",
)  # fmt: skip
_NOT_SETTINGS = frozenset(vars(nn.Module())) | {"_is_full_backward_hook", "_version"}
_ALWAYS = ("forward", "__call__", "__getattr__", "__getattribute__", "__torch_function__")
_NOT_COMPUTING = frozenset(
    {"__init__", "__repr__", "__str__", "extra_repr", "__doc__", "__module__", "__qualname__",
     "__dict__", "__weakref__", "__annotations__", "__firstlineno__", "__static_attributes__",
     "__slots__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__",
     "__hash__", "__match_args__", "__dataclass_fields__", "__dataclass_params__",
     "__annotate__", "__annotate_func__", "__annotations_cache__", "__classdictcell__"}
)  # fmt: skip


class Record:
    """Names objects and collects what they consist of.

    Args:
        known: {id of a tensor: words}: tensors whose numbers are told elsewhere.

    Attributes:
        parts: {words: text}, such as {"code of <lambda>": "source 12ab..."}.
        opaque: the words of what cannot be looked into.
    """

    def __init__(self, known: Mapping[int, str] | None = None) -> None:
        self.parts: dict[str, str] = {}
        self.opaque: list[str] = []
        self._known = dict(known or {})
        self._seen: dict[int, str] = {}
        self._named: dict[str, list[int]] = {}
        self._scanned: set[type] = set()  # libraries' classes
        self._alive: list[Any] = []  # ids stay unique while their objects live

    def add(self, words: str, value: Any) -> None:
        """Put a value among the parts; equal words get a number."""
        new = id(value) not in self._seen
        text = self.value(value, words)
        if not (new and isinstance(value, nn.Module)):  # whose tree is among the parts by now
            self._part(words, _short(text))

    def value(self, value: Any, words: str) -> str:
        """A text that tells equal values from others; functions and classes leave parts too."""
        if isinstance(value, enum.Enum):
            return f"{type(value).__qualname__}.{value.name}"
        if isinstance(value, _PLAIN) and type(value) in _PLAIN:
            return repr(value)
        if isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format):
            return str(value)
        if id(value) in self._known:
            return self._known[id(value)]
        if id(value) in self._seen:
            return self._seen[id(value)]
        if len(self._alive) > MOST:
            return self._hidden(words, "more objects than can be looked into")
        self._alive.append(value)
        self._seen[id(value)] = f"again a {type(value).__name__}"
        try:
            text = self._looked_into(value, words)
        except Exception as error:  # whatever foreign objects raise when they are read
            text = self._hidden(words, f"{self._type_name(type(value))}, {type(error).__name__}")
        self._seen[id(value)] = text
        return text

    def module(self, module: nn.Module, words: str = "module", told: bool = False) -> str:
        """A module's tree: types, settings, hooks, code. `told`: its tensors are told elsewhere."""
        own: dict[str, Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        first: dict[int, str] = {}
        for name, tensor in own.items():
            if id(tensor) in first:
                self._part(f"{words}, {name}", f"tied to {first[id(tensor)]}")
            elif not told:
                text = self._known.get(id(tensor)) or self._tensor(tensor)
                self._part(f"{words}, {name}", text)
            first.setdefault(id(tensor), name)
            self._known.setdefault(id(tensor), f"its tensor {name}")
            for hook in (getattr(tensor, "_backward_hooks", None) or {}).values():
                self.add(f"hook on the gradient of {name}", hook)
        inside: list[tuple[str, nn.Module]] = []
        ids: set[int] = set()
        for name, child in module.named_modules(remove_duplicate=False):
            label = f"{words} {name!r}" if name else f"{words} itself"
            if id(child) in ids:
                self._part(label, f"the same as {self._seen[id(child)]}")
                continue
            inside.append((label, child))
            ids.add(id(child))
            self._seen[id(child)] = label
            self._alive.append(child)
        for label, child in inside:
            self._part(label, _short(self._one_module(child, label)))
        return f"{words} {self._type_name(type(module))}"

    def _one_module(self, module: nn.Module, label: str) -> str:
        settings = {n: v for n, v in vars(module).items() if n not in _NOT_SETTINGS}
        if isinstance(module, torch.jit.ScriptModule):
            settings = {}  # they are in the graph
        absent = [
            f"{n}=None" for table in (module._parameters, module._buffers)
            for n, tensor in table.items() if tensor is None
        ]  # fmt: skip
        shown = [f"{n}={self.value(settings[n], f'{n} of {label}')}" for n in _in_order(settings)]
        for table in HOOKS:
            for hook in getattr(module, table).values():
                self.add(f"{table.strip('_').removesuffix('s').replace('_', ' ')} of {label}", hook)
        if isinstance(module, torch.fx.GraphModule):
            self._part(f"graph of {label}", text_digest(module.code))
        elif isinstance(module, torch.jit.ScriptModule):
            self._part(f"graph of {label}", text_digest(str(getattr(module, "code", ""))))
        self._methods(type(module), _ALWAYS)
        self._patched(type(module))
        return f"{self._type_name(type(module))}({', '.join([*shown, *absent])})"

    # --- values --------------------------------------------------------------------------------

    def _looked_into(self, value: Any, words: str) -> str:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray) and value.dtype.kind != "O":
            return f"array {value.dtype} {value.shape} {digest(value)}"
        if isinstance(value, np.generic | np.dtype):
            return repr(value)
        if isinstance(value, tuple | list) and type(value) in (tuple, list, torch.Size):
            inside = [self.value(each, words) for each in value]
            return f"{type(value).__name__}({', '.join(inside)})"
        if type(value) in (set, frozenset):
            return f"{{{', '.join(sorted(self.value(each, words) for each in value))}}}"
        if isinstance(value, dict | types.MappingProxyType) and _is_library(type(value).__module__):
            pairs = (f"{self.value(k, words)}: {self.value(v, words)}" for k, v in value.items())
            return f"{type(value).__name__}({', '.join(pairs)})"
        if isinstance(value, nn.Module):
            return self.module(value, words)
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return f"partial({', '.join(self.value(each, words) for each in parts)})"
        if isinstance(value, types.MethodType):
            own = self.value(value.__self__, words)
            return f"{self.value(value.__func__, words)} of {own}"
        if isinstance(value, types.FunctionType):
            return self._function(value, words)
        if isinstance(value, staticmethod | classmethod):
            return self.value(value.__func__, words)
        if isinstance(value, property):
            return self.value((value.fget, value.fset), words)
        if isinstance(value, functools.cached_property):
            return self.value(value.func, words)
        if isinstance(value, types.ModuleType):
            return f"the module {value.__name__}"
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, _DESCRIPTORS) or type(value) is object:  # slots, sentinels
            return f"a {type(value).__name__}"
        if isinstance(value, types.GenericAlias | types.UnionType):
            return repr(value)
        if isinstance(value, weakref.ref):
            return self.value(value(), words)
        if isinstance(value, torch.Generator):
            return f"generator {digest(value.get_state())}"
        return self._callable_or_object(value, words)

    def _callable_or_object(self, value: Any, words: str) -> str:
        if isinstance(value, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            known = str(value).partition(".")[0] in ("aten", "prim", "prims")
            return str(value) if known else self._hidden(words, f"operator {value}")
        if isinstance(value, torch.jit.ScriptFunction):
            return f"script {text_digest(str(value.code))}"
        cls = type(value)
        if isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType | np.ufunc):
            name = getattr(value, "__qualname__", None) or value.__name__
            own = getattr(value, "__self__", None)
            if own is not None and not isinstance(own, types.ModuleType | type):
                return f"{name} of {self.value(own, words)}"
            home = getattr(value, "__module__", None) or getattr(own, "__name__", None)
            if isinstance(value, np.ufunc):
                home = "numpy"
            library = home is None or _is_library(home)
            return f"{home}.{name}" if library else self._hidden(words, f"{home}.{name}")
        if cls.__module__ != "builtins" and not _is_library(cls.__module__):
            state = self._state(value, words)
            return f"{self.value(cls, words)}({state})"
        name = self._type_name(cls)
        if name.startswith("pylandscape.") and callable(getattr(value, "describe", None)):
            return self.value(value.describe(), words)  # a Landscape, an operator
        top = cls.__module__.partition(".")[0]
        if (top in ("torch", "scipy", "numpy", "pylandscape") or top not in LIBRARIES) and (
            hasattr(value, "__dict__") or hasattr(cls, "__slots__")
        ):
            return f"{name}({self._state(value, words)})"
        if name.startswith(_BY_STATE) or name.startswith("numpy.random"):
            registered = copyreg.dispatch_table.get(cls)
            reduced: Any = registered(value) if registered else value.__reduce_ex__(4)
            return f"{name}({self.value(reduced[:3], words)})"
        return self._hidden(words, name)

    def _state(self, value: Any, words: str) -> str:
        state = dict(getattr(value, "__dict__", {}))
        for cls in type(value).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    state[name] = getattr(value, name)
        if isinstance(value, torch.no_grad | torch.enable_grad | torch.inference_mode):
            state.pop("prev", None)  # the mode before it was entered
        shown = [f"{n}={self.value(state[n], f'{n} of {words}')}" for n in _in_order(state)]
        for kind in (tuple, list, set, dict, int, float, str):
            if isinstance(value, kind):
                plain: Any = kind
                shown.append(self.value(plain(value), words))
        return ", ".join(shown)

    def _tensor(self, tensor: Tensor) -> str:
        return f"tensor {tensor.dtype} {tuple(tensor.shape)} {digest(tensor)}"

    def _hidden(self, words: str, what: str) -> str:
        self.opaque.append(f"{words} ({what})")
        return f"{what}, which cannot be looked into"

    # --- code ----------------------------------------------------------------------------------

    def _function(self, f: types.FunctionType, words: str) -> str:
        compiled = f.__dict__.get("_torchdynamo_orig_callable")
        if compiled is not None:
            return self.value(compiled, words)
        home = str(f.__globals__.get("__name__"))
        library, name = _is_library(home), f.__name__
        self._of(home)
        if not library:
            self._code(f.__code__, f"code of {name}", name, f.__globals__)
        self._around(f, name)
        full = f"{home}.{f.__qualname__}" if library else f"function {f.__qualname__}"
        return self._numbered(full, f)

    def _around(self, f: types.FunctionType, name: str) -> None:
        """The closure, the defaults and the attributes of a function."""
        own = names_in(f.__code__).written
        for variable, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            if variable == "__class__" or variable in own:  # super(): its methods are followed
                continue
            try:
                inside = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            self.add(f"{variable} of {name}", inside)
        if _is_library(str(f.__globals__.get("__name__"))):
            return
        if f.__defaults__ or f.__kwdefaults__:
            self.add(f"defaults of {name}", (f.__defaults__, f.__kwdefaults__))
        for attribute, inside in f.__dict__.items():
            if attribute != "__wrapped__":
                self.add(f"{attribute} of {name}", inside)

    def _code(self, code: types.CodeType, words: str, name: str, where: dict[str, Any]) -> None:
        self._part(words, named_code(code))
        names = names_in(code)
        for variable in names.globals:
            if variable in names.written:
                continue
            if variable in where:
                self._global(variable, where[variable], name, names.attributes)
            elif not hasattr(builtins, variable):
                self._part(f"{variable} of {name}", "not defined")
        for imported in names.imports:
            module = sys.modules.get(imported)
            if module is not None:
                self._global(imported, module, name, names.attributes)

    def _global(self, variable: str, value: Any, name: str, attributes: tuple[str, ...]) -> None:
        self.add(f"{variable} of {name}", value)
        if isinstance(value, types.ModuleType) and not _is_library(value.__name__):
            for attribute in attributes:
                if attribute in vars(value) and variable.count(".") < DEPTH:
                    self._global(
                        f"{variable}.{attribute}", vars(value)[attribute], name, attributes
                    )

    def _class(self, cls: type) -> str:
        """A class by its name and, where it is no library's, by the code of all methods."""
        if not _is_library(cls.__module__):
            found = [n for c in _own_bases(cls) for n in vars(c) if n not in _NOT_COMPUTING]
            self._methods(cls, tuple(dict.fromkeys(found)))
        return self._type_name(cls)

    def _methods(self, cls: type, names: tuple[str, ...]) -> None:
        """The attributes of a class with these names, and those that their code names."""
        key = -id(cls)  # beside the class itself, which may be seen as a value
        done = set(self._seen.get(key, "").split())
        self._alive.append(cls)
        waiting = [n for n in names if n not in done]
        while waiting:
            name = waiting.pop(0)
            if name in done:
                continue
            done.add(name)
            self._seen[key] = " ".join(done)
            for owner in _own_bases(cls):
                if name in vars(owner):
                    codes = self._attribute(name, vars(owner)[name], owner)
                    for code in codes:
                        waiting += [a for a in names_in(code).attributes if a not in done]

    def _patched(self, cls: type) -> None:
        """Methods that someone has put into a library's class, which its name does not tell."""
        for owner in cls.__mro__:
            if owner in self._scanned or not _is_library(owner.__module__):
                continue
            self._scanned.add(owner)
            for name, value in list(vars(owner).items()):
                homes = [str(f.__globals__.get("__name__")) for f in _functions_of(value)]
                if homes and not all(map(_is_library, homes)):
                    self._attribute(name, value, owner)

    def _attribute(self, name: str, value: Any, owner: type) -> list[types.CodeType]:
        functions = list(_functions_of(value))
        if not functions:
            self.add(f"{name} of {owner.__name__}", value)
        for f in functions:
            if id(f) not in self._seen:
                self._alive.append(f)
                self._seen[id(f)] = self._numbered(f"function {f.__qualname__}", f)
                label = f"{name} of {owner.__name__}"
                if not _is_library(str(f.__globals__.get("__name__"))):
                    self._code(f.__code__, label, label, f.__globals__)
                self._around(f, label)
        return [f.__code__ for f in functions]

    def _part(self, words: str, text: str) -> None:
        name, count = words, 1
        while name in self.parts:
            count += 1
            name = f"{words} ({count})"
        self.parts[name] = text

    def _of(self, module: str) -> None:
        """Put the installed package that something is of among the parts."""
        top = module.partition(".")[0]
        if top not in LIBRARIES and (files := installed(module)) is not None:
            self.parts[f"package {top}"] = files

    def _numbered(self, name: str, of: Any) -> str:
        """The name, with a number where functions or classes before have the same one."""
        same = self._named.setdefault(name, [])
        if id(of) not in same:
            self._alive.append(of)
            same.append(id(of))
        at = same.index(id(of)) + 1
        return name if at == 1 else f"{name} ({at})"

    def _type_name(self, cls: type) -> str:
        """With its module where it is a library's; a script's classes move between modules."""
        self._of(cls.__module__)
        whole = f"{cls.__module__}.{cls.__qualname__}"
        return self._numbered(whole if _is_library(cls.__module__) else cls.__qualname__, cls)


def _is_library(module: str | None) -> bool:
    top = (module or "builtins").partition(".")[0]
    if top not in LIBRARIES:
        return module is not None and installed(module) is not None
    if top not in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(top), "__file__", None)  # a script may be called statistics.py
    return file is None or file.startswith(_STANDARD)


def _own_bases(cls: type) -> list[type]:
    return [c for c in cls.__mro__ if not _is_library(c.__module__)]


def _functions_of(value: Any) -> Iterator[types.FunctionType]:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, functools.cached_property):
        value = value.func
    for f in (value.fget, value.fset) if isinstance(value, property) else (value,):
        if isinstance(f, types.FunctionType):
            yield f


def _in_order(names: Iterable[str]) -> list[str]:
    """Sorted, private names last."""
    return sorted(names, key=lambda name: (name.startswith("_"), name))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:40]}... {text_digest(text)}"
