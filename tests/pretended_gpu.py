"""A GPU that is not there: tensors that say they are on cuda:0, kept apart from the others.

Within `pretended_gpu` whatever is put on a CUDA device becomes an `OnDevice` tensor, which computes
on the CPU. Mixing it with a tensor of the CPU, or asking for its address or a NumPy array, is an
error as on a GPU; the library's CUDA ops run by emulation (tests/emulation), those of a Lanczos
step by torch. So a run from a model to a result finds what would fail on a GPU for the wrong
device, though not for its arithmetic.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from cuda_support import PlainOps
from emulation_support import emulated_ops
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import pylandscape  # noqa: F401
from pylandscape._native import cuda_problem
from pylandscape.engines.cuda import engine
from pylandscape.engines.points import cuda as points_cuda

CUDA = torch.device("cuda", 0)
SHARED_LIMIT = 227 << 10  # of sm_90
# Calls whose tensors may be on two devices, and calls about devices.
FREE = {"copy_", "__getitem__", "__setitem__", "index_put_", "_has_compatible_shallow_copy_type"}
PLAIN = {"_parse_to", "device", "get_device_module"}
TENSORS = {"grad", "data", "T", "mT", "H", "mH", "real", "imag"}  # properties that are tensors
DEVICE = {"device": CUDA, "is_cuda": True, "is_cpu": False}


class OnDevice(Tensor):
    """A tensor of the pretended GPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    def __deepcopy__(self, memo: Any) -> Tensor:
        with torch._C.DisableTorchFunction():
            copy = self.detach().clone().as_subclass(OnDevice).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copy._is_param = True
            return copy

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class _Everywhere(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """cuda:0, and a torch that believes in it."""
    if cuda_problem() is None:
        pytest.skip("there is a GPU, and what is tested with it needs no pretended one")
    emulated_ops()
    properties = SimpleNamespace(
        major=9, minor=0, multi_processor_count=8, total_memory=1 << 33, name="pretended"
    )
    state = torch.zeros(16, dtype=torch.uint8)
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": lambda *_: nullcontext(),
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (9, 0),
        "mem_get_info": lambda *_: (1 << 30, 1 << 33),
        "synchronize": lambda *_: None,
        "is_current_stream_capturing": lambda: False,
        "manual_seed": lambda *_: None,
        "get_rng_state": lambda *_: state,
        "set_rng_state": lambda *_: None,
        "_lazy_init": lambda: None,
    }
    limits = SimpleNamespace(cuda_shared_limit=lambda _: SHARED_LIMIT)
    modules = [m for name, m in sys.modules.items() if name.startswith("pylandscape.")]
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with ExitStack() as stack:
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for module in modules:
            if hasattr(module, "cuda_problem"):
                usable = mock.Mock(return_value=None)
                stack.enter_context(mock.patch.object(module, "cuda_problem", usable))
        for module in (engine, points_cuda):
            stack.enter_context(mock.patch.object(module, "ops", _Ops(limits)))
        stack.enter_context(_Everywhere())
        yield CUDA


class _Ops:
    """The library's ops, and those that a GPU alone can answer."""

    def __init__(self, limits: SimpleNamespace) -> None:
        self._limits = limits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._limits, name, None) or getattr(torch.ops.pylandscape, name)


def _is_cuda(x: Any) -> bool:
    return (isinstance(x, torch.device) and x.type == "cuda") or (
        isinstance(x, str) and x.split(":")[0] == "cuda"
    )


def _is_cpu(x: Any) -> bool:
    return isinstance(x, str | torch.device) and str(x) == "cpu"


def _wrapped(x: Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", str(func))
    leaves = tree_leaves((args, kwargs))
    if name in PLAIN or func is torch.device or any(isinstance(x, fx.Proxy) for x in leaves):
        return func(*args, **kwargs)
    found = [x for x in leaves if isinstance(x, OnDevice)]
    field = getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else ""
    if found and field in DEVICE:
        return DEVICE[field]
    own = str(getattr(func, "_qualified_op_name", ""))
    if found and own.startswith("pylandscape::"):  # it checks its devices itself
        own = own.removeprefix("pylandscape::")
        func = getattr(PlainOps, own, None) or getattr(torch.ops.pylandscape_emulated, own)
        if own in ("basis_pass_", "row_dots"):
            _check_devices(own, found, leaves, moves=False)
    elif found and name not in FREE:
        _check_devices(name, found, leaves, moves=name == "to" and len(args) > 1)
    to_cuda = any(map(_is_cuda, leaves)) or (name == "to" and _moves_to(args[1:], OnDevice))
    to_cpu = name == "cpu" or (any(map(_is_cpu, leaves)) and name != "__get__")
    cpu = torch.device("cpu")
    args, kwargs = tree_map(lambda x: cpu if _is_cuda(x) else x, (args, kwargs))
    if name == "to" and to_cuda and not isinstance(args[0], OnDevice):
        kwargs["copy"] = True  # as moving does
    if name == "cuda":
        func, to_cuda = torch.clone, True
    with torch._C.DisableTorchFunction():
        result = func(*args, **kwargs)
        if name == "__get__" and field not in TENSORS:
            return result
        return tree_map(lambda x: _place(x, args, bool(found), to_cuda, to_cpu), result)


def _moves_to(others: tuple[Any, ...], kind: type) -> bool:
    return any(isinstance(x, kind) for x in others)


def _check_devices(name: str, found: list[Any], leaves: list[Any], moves: bool) -> None:
    if name in ("numpy", "data_ptr"):
        raise TypeError(f"{name} of a tensor on cuda:0")
    host = [
        x
        for x in leaves
        if isinstance(x, Tensor) and not isinstance(x, OnDevice) and x.dim() > 0 and not _wrapped(x)
    ]
    if host and not moves:
        shapes = [tuple(x.shape) for x in host]
        raise RuntimeError(f"{name}: all tensors must be on one device; on the CPU: {shapes}")


def _place(x: Any, args: tuple[Any, ...], found: bool, to_cuda: bool, to_cpu: bool) -> Any:
    """A result where it would be: on the device if anything it is made of is, or asked for."""
    if not isinstance(x, Tensor) or _wrapped(x) or any(x is a for a in args):
        return x.clone().as_subclass(Tensor) if to_cpu and isinstance(x, OnDevice) else x
    if to_cuda or (found and not to_cpu):
        return x if isinstance(x, OnDevice) else x.as_subclass(OnDevice)
    return x.clone().as_subclass(Tensor) if isinstance(x, OnDevice) else x
