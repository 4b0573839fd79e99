"""What belongs to the whole process while the torch engine runs: switches and generators, put back.

Whoever turns one holds `LOCK`.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ..theta.data import generator_states, set_generators, untouched_random_state
from ..theta.held_state import environment, set_environment

P = ParamSpec("P")
R = TypeVar("R")
LOCK = threading.RLock()  # torch's switches and generators belong to the whole process


class _Checkpoint:
    """Stands for re-entrant checkpointing, whose gradients torch.autograd.grad cannot ask for."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return function(*args)
        with torch.no_grad():  # torch's own gives no gradient either
            return function(*args)


def _set_deterministic(asked: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(asked[0], warn_only=asked[1])


_SETTINGS: tuple[tuple[Any, Any], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
    ),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (environment, set_environment),
    (np.geterr, lambda before: np.seterr(**before)),
)  # of the process, that a forward pass may change


def outside_inference_mode(f: Callable[P, R]) -> Callable[P, R]:
    """f with inference mode off, whose tensors do not count how often they change."""

    @functools.wraps(f)
    def outside(*args: P.args, **keywords: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return f(*args, **keywords)
        with torch.inference_mode(False):
            return f(*args, **keywords)

    return outside


class Autocast:
    """The automatic casting that is on around the caller, to be had again at any later time.

    ``said``: the words for it where it is on, else None.
    """

    def __init__(self, device: torch.device) -> None:
        kinds = dict.fromkeys(("cpu", device.type))
        self._of = {k: (torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds}
        on, dtype = self._of[device.type]
        told = str(dtype).removeprefix("torch.")
        self.said = f"torch.autocast to {told} is on" if on else None

    def put(self) -> None:
        for kind, (on, dtype) in self._of.items():
            torch.set_autocast_enabled(kind, on)
            torch.set_autocast_dtype(kind, dtype)
        torch.clear_autocast_cache()


@contextmanager
def switches(device: torch.device, autocast: Autocast) -> Iterator[None]:
    """Switches and generators of the whole process, as the engine needs them."""
    around = Autocast(device)
    checkpoints: Any = torch.utils.checkpoint
    fast, own = torch.backends.mha.get_fastpath_enabled(), checkpoints.CheckpointFunction
    settings = [(put, get()) for get, put in _SETTINGS]
    kept = generator_states()

    def undo() -> None:
        torch.backends.mha.set_fastpath_enabled(fast)
        checkpoints.CheckpointFunction = own
        for (get, _), (put, value) in zip(_SETTINGS, settings, strict=True):
            if get() != value:
                put(value)
        if generator_states() != kept:
            set_generators(kept)
        around.put()

    with ExitStack() as stack:
        stack.enter_context(untouched_random_state(device))
        if "torch._dynamo" in sys.modules:  # compiled code has no second derivative
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            # torch's inference kernel of transformer layers is another function at padded places.
            torch.backends.mha.set_fastpath_enabled(False)
            checkpoints.CheckpointFunction = _Checkpoint
            autocast.put()
            yield
        finally:
            persistently(undo)


@contextmanager
def attribute_set(modules: Sequence[nn.Module], name: str, value: Any) -> Iterator[None]:
    """An attribute of each module has this value inside."""
    before = [module.__dict__.get(name) for module in modules]
    try:
        for module in modules:
            module.__dict__[name] = value
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            module.__dict__[name] = old


def dense_gradients(model: nn.Module) -> AbstractContextManager[None]:
    """Gradients of embeddings are parts of one dense vector."""
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    return attribute_set([m for m in tables if m.sparse], "sparse", False)


def persistently(f: Callable[[], None]) -> None:
    """f, again if Ctrl-C comes in between, which is raised afterwards."""
    interrupt: KeyboardInterrupt | None = None
    while True:
        try:
            f()
            break
        except KeyboardInterrupt as late:
            interrupt = late
    if interrupt is not None:
        raise interrupt


def return_unused_memory() -> None:
    """Lets the C library give back what was freed, which it may keep for blocks of other sizes:
    beside activations of some 25 MB up to 50 MB and more. Only glibc does, and has this call."""
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return None
    return found
