"""What code computes on its way to a value, call by call."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ENDS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.detach}
_UNWRITTEN = ("empty", "new_empty")


class Calls(TorchFunctionMode):
    """The names of torch's functions that code calls inside, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


class Computed(TorchDispatchMode):
    """Notes the tensors that torch computes inside, and which of them a number is taken from.

    A loss that is a count of errors is the same for many outputs: two runs with one value may have
    computed two functions. `results` tells them apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[str, bool, set[int], list[tuple[int, int | None]]]] = []
        self._alive: list[Any] = []  # memory that is named stays taken

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        read, made = list(_tensors((args, kwargs))), list(_tensors(out))
        unwritten = func.__name__.startswith(_UNWRITTEN)
        results = [(_memory(t), None if unwritten else _checksum(t)) for t in made]
        ends = func.overloadpacket in _ENDS
        self._calls.append((func.__name__, ends, {_memory(t) for t in read}, results))
        self._alive += [*read, *made]
        return out

    def results(self) -> list[tuple[str, tuple[int | None, ...]]]:
        """Each call on the way to a number that Python has seen, with checksums of its results."""
        needed: set[int] = set()
        found = []
        for name, ends, read, made in reversed(self._calls):
            sums = tuple(value for memory, value in made if memory in needed)
            if sums or ends:
                found.append((name, sums))
                needed |= read
        return found


class Cuts(TorchFunctionMode):
    """Notes the first call that takes a value out of autograd's graph: detach, .data, and whatever
    runs while gradients are disabled."""

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        disabled = not torch.is_grad_enabled()
        if self.found is None and (disabled or func in _CUTTING):
            given = [t for t in _tensors((args, kwargs)) if t.requires_grad]
            if given:
                name = getattr(func, "__name__", str(func))
                if name == "__get__":  # of an attribute
                    name = "." + getattr(func.__self__, "__name__", name)
                self.found = name
                self.found += " while gradients are disabled" if disabled else ""
        return func(*args, **(kwargs or {}))


_DATA: Any = Tensor.data
_CUTTING = {Tensor.detach, Tensor.detach_, torch.detach, torch.detach_, _DATA.__get__}


@contextmanager
def graphless() -> Iterator[None]:
    """Gradients enabled, and what backward passes would need let go."""
    with torch.enable_grad(), saved_tensors_hooks(_drop, _gone):
        yield


def _drop(t: Tensor) -> None:
    return None


def _gone(x: Any) -> Tensor:
    raise RuntimeError("no graph is kept here")


def own_function(result: Tensor) -> str | None:
    """The name of an autograd function of the user's own in the graph of a result."""
    waiting, seen = [result.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            own = type(node)._forward_cls
            if own.__module__.partition(".")[0] != "torch":
                return str(own.__name__)
        waiting += [before for before, _ in node.next_functions]
    return None


def _tensors(nest: Any) -> Iterator[Tensor]:
    return (t for t in tree_leaves(nest) if isinstance(t, Tensor))


def _memory(t: Tensor) -> int:
    """The memory that a tensor shares with its views."""
    return int(t.untyped_storage()._cdata) if t.layout == torch.strided else id(t)


def _checksum(t: Tensor) -> int | None:
    """Of its bits; None where they are not at hand."""
    if t.layout != torch.strided or t.is_meta or t.is_quantized:
        return None
    with torch.no_grad():
        flat = t.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        return zlib.crc32(flat.view(torch.uint8).numpy().data) if flat.numel() else 0
