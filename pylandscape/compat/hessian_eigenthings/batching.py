"""Batches of a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import InvalidArgument


def assert_microbatch_safe(model: nn.Module) -> None:
    """InvalidArgument for a model with batch norm, whose batches cannot be cut."""
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if norms:
        raise InvalidArgument(
            "microbatch_size: expected a model without BatchNorm, whose statistics are those of "
            f"whole batches (or microbatch_unsafe=True), got {', '.join(norms[:5])}"
        )


def iterate_batches(source: Iterable[Any], num_batches: int | None = None) -> Iterator[Any]:
    """The first num_batches batches; all for None."""
    return iter(source) if num_batches is None else islice(source, num_batches)


def move_batch_to_device(batch: Any, device: torch.device) -> Any:
    """The batch with all tensors in it on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move_batch_to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)([move_batch_to_device(value, device) for value in batch])
    return batch
