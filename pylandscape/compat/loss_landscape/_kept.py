"""Compiled networks, kept from one `eval_loss` to the next of the same network and data.

A loop sets weights and evaluates, over and over. What could change between two calls is looked at
in each: the network's structure and buffers, the criterion, the tensors of the data (by identity
and torch's version counters: what NumPy writes into their memory behind torch's back is not seen).
Loaders that shuffle, augment or read files are run through, as in the original.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset, default_collate

from ...errors import PylandscapeError
from ...theta.losses import KnownLoss, resolve_loss
from ._landscape import Asked

AFTER = 2  # calls: capturing costs as much as several
MAX_BYTES = 1 << 30  # of data that is kept

Point = Callable[[Tensor], dict[str, Any]]


@dataclass
class _Kept:
    """What a network was evaluated with, and from the third time on the compiled function."""

    structure: str  # of the network, and the loss
    buffers: list[Tensor]  # of the network, and the loss's weights
    tensors: list[Tensor]
    versions: list[int]
    calls: int = 0
    ask: Point | None = None
    reason: str = "the first points of a loop"
    tried: bool = field(default=False)

    def is_of(self, other: _Kept) -> bool:
        """Whether a call asks the same of the same network."""
        return (
            self.versions == other.versions
            and len(self.tensors) == len(other.tensors)
            and all(a is b for a, b in zip(self.tensors, other.tensors, strict=True))
            and self.structure == other.structure
            and len(self.buffers) == len(other.buffers)
            and all(map(_same, self.buffers, other.buffers))
        )


_kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def compiled(net: nn.Module, criterion: Any, loader: Any) -> tuple[Point | None, str]:
    """The function from theta (1, n) to {"loss": (1,), "accuracy": (1,)}, or None and why not."""
    tensors = _tensors(loader)
    if tensors is None:
        return None, "a loader that may give other data every time"
    if sum(t.nbytes for t in tensors) > MAX_BYTES:
        return None, f"more than {MAX_BYTES >> 30} GiB of data"
    parts = [*net.parameters(), *net.buffers(), *tensors]
    if any(t.device.type != "cpu" for t in parts):
        return None, "not on the CPU"
    spec = resolve_loss(criterion)
    if not isinstance(spec, KnownLoss):
        return None, f"the loss {spec.name!r} is Python code"
    scalars = (
        spec.kind, spec.reduction, spec.ignore_index, spec.label_smoothing, spec.numbers,
    )  # fmt: skip
    weights = [w for w in (spec.weight, spec.pos_weight) if w is not None]
    now = _Kept(
        f"{net!r} {scalars} {[p.dtype for p in net.parameters()]}",
        [*net.buffers(), *weights],
        tensors,
        [t._version for t in tensors],
    )
    found = _kept.get(net)
    if found is None or not found.is_of(now):
        now.buffers = [b.detach().clone() for b in now.buffers]
        found = _kept[net] = now
    found.calls += 1
    if found.calls > AFTER and not found.tried:
        found.tried = True
        try:
            found.ask, found.reason = _compile(net, criterion, tensors)
        except PylandscapeError as error:
            found.reason = str(error)
    return found.ask, found.reason


def _compile(net: nn.Module, criterion: Any, tensors: list[Tensor]) -> tuple[Point | None, str]:
    """Of a copy, so that the network itself can be forgotten."""
    data = list(zip(tensors[::2], tensors[1::2], strict=True))
    asked = Asked(copy.deepcopy(net), criterion, data, states=False)
    native = asked.land.native
    if native is None:
        return None, asked.land.engine_report().reason or "the torch engine"
    return native.prepare_points(asked.metrics), ""


def _tensors(loader: Any) -> list[Tensor] | None:
    """Inputs and targets, batch by batch, of a loader that always gives these; else None."""
    if type(loader) is DataLoader and type(loader.dataset) is TensorDataset:
        steady = type(loader.sampler) is SequentialSampler and not loader.drop_last
        steady = steady and loader.collate_fn is default_collate
        steady = steady and len(loader.dataset.tensors) == 2
        return list(loader.dataset.tensors) if steady else None
    if not isinstance(loader, list | tuple):
        return None
    parts = [part for batch in loader if isinstance(batch, list | tuple) for part in batch]
    whole = len(parts) == 2 * len(loader) and all(isinstance(part, Tensor) for part in parts)
    return parts if whole and parts else None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
