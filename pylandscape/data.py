"""The data of a landscape: batches read once, in order, and kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import digest_of_all
from .errors import InvalidArgument


@dataclass(frozen=True)
class Batch:
    """One batch: ``raw`` as it was given, split into model inputs and target where it can be."""

    raw: Any
    inputs: Any
    target: Any
    size: int


@contextmanager
def untouched_random_state(device: torch.device | None = None) -> Iterator[None]:
    """Runs user code without moving torch's global generators."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


class Dataset:
    """Batches of (inputs, target), or of anything when they go to an objective.

    ``data``: a pair (x, y) of tensors or arrays (one batch), a DataLoader, or any iterable of
    batches. Tensors must be on ``device`` unless ``move``. A batch may have several targets per
    input, where the model gives as many rows of outputs (tokens). Raises InvalidArgument for empty
    data and for batches that are no pair where pairs are needed.
    """

    def __init__(self, data: Any, *, pairs: bool, device: torch.device, move: bool) -> None:
        with untouched_random_state():
            raw = [data] if _is_pair_of_tensors(data) else _read(data)
        if not raw:
            raise InvalidArgument("data: expected at least one batch, got none")
        self.batches = [_batch(_placed(item, device, move), i, pairs) for i, item in enumerate(raw)]
        self.size = sum(batch.size for batch in self.batches)
        if self.size == 0:
            raise InvalidArgument("data: expected at least one sample, got none")
        self.digest = digest_of_all(batch.raw for batch in self.batches)

    def tensors(self) -> tuple[Tensor, Tensor] | None:
        """All inputs and targets, concatenated; None where batches are not plain tensor pairs."""
        inputs = [batch.inputs for batch in self.batches]
        targets = [batch.target for batch in self.batches]
        for parts in (inputs, targets):
            if not all(isinstance(part, Tensor) and part.dim() > 0 for part in parts):
                return None
            if len({(part.shape[1:], part.dtype) for part in parts}) > 1:
                return None
        if len(inputs) == 1:
            return inputs[0], targets[0]
        return torch.cat(inputs), torch.cat(targets)


def _is_pair_of_tensors(data: Any) -> bool:
    return (
        isinstance(data, tuple | list)
        and len(data) == 2
        and all(isinstance(part, Tensor | np.ndarray) for part in data)
    )


def _read(data: Any) -> list[Any]:
    if isinstance(data, Mapping | str | Tensor | np.ndarray) or not isinstance(data, Iterable):
        raise InvalidArgument(
            "data: expected a pair (x, y) of tensors, a DataLoader or an iterable of batches, "
            f"got {type(data).__name__}"
        )
    return list(data)


def _placed(item: Any, device: torch.device, move: bool) -> Any:
    """The item with its arrays as tensors on ``device``; moved there only if ``move``."""
    if isinstance(item, np.ndarray):
        return torch.from_numpy(np.array(item)).to(device)
    if isinstance(item, Tensor):
        if item.device != device and not move:
            raise InvalidArgument(
                f"data: expected tensors on {device}, where the model is, got {item.device}; "
                f"move one of them, or pass device= to have the data moved"
            )
        return item.detach().to(device)
    if isinstance(item, Mapping):
        return {key: _placed(value, device, move) for key, value in item.items()}
    if isinstance(item, tuple | list):
        placed = [_placed(value, device, move) for value in item]
        return type(item)(*placed) if hasattr(item, "_fields") else type(item)(placed)
    return item


def _batch(item: Any, index: int, pairs: bool) -> Batch:
    if isinstance(item, tuple | list) and len(item) == 2:
        inputs, target = item
        size = _leading_size(inputs)
        targets = _leading_size(target)
        # A multiple: targets of tokens, where the model gives (N * T, ...) for N sequences.
        if pairs and size is not None and targets is not None and targets % max(size, 1):
            raise InvalidArgument(f"data: batch {index} has {size} inputs but {targets} targets")
        return Batch(item, inputs, target, size if size is not None else 1)
    if pairs:
        raise InvalidArgument(
            f"data: expected batch {index} to be a pair (inputs, target), got "
            f"{type(item).__name__}; for other batches use objective=f(model, batch)"
        )
    size = _leading_size(item)
    return Batch(item, None, None, size if size is not None else 1)


def _leading_size(item: Any) -> int | None:
    """The length of the first tensor with a leading dimension."""
    if isinstance(item, Tensor):
        return int(item.shape[0]) if item.dim() > 0 else None
    values: Sequence[Any] = ()
    if isinstance(item, Mapping):
        values = list(item.values())
    elif isinstance(item, tuple | list):
        values = item
    return next((size for size in map(_leading_size, values) if size is not None), None)
