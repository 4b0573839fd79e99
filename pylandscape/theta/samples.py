"""The samples of a landscape's data, cut into mini-batches anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgument
from .data import Batch


class Samples:
    """All samples of the batches, in order: `take` gives any of them as a batch of their form.

    A tensor belongs to the samples where its length is a multiple of their number (targets of
    tokens have several rows for each sample); all batches must agree about which do.

    Raises:
        InvalidArgument: batches of different forms or shapes (padded to different lengths), or
            tensors that do not have a row for each sample.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.size = sum(batch.size for batch in batches)
        sizes = [batch.size for batch in batches]
        pairs = batches[0].inputs is not None
        parts = [(b.inputs, b.target) if pairs else b.raw for b in batches]
        self._pairs, self._whole = pairs, _joined(parts, sizes)

    def take(self, rows: Tensor) -> Batch:
        """The batch of the samples ``rows`` (B,) int64, in this order; tensors are new."""
        found, count = _taken(self._whole, rows, self.size), len(rows)
        inputs, target = found if self._pairs else (None, None)
        return Batch(found, inputs, target, count)


def _joined(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = parts[0]
    if any(type(p) is not type(first) for p in parts):
        raise _refused("batches of different forms")
    if isinstance(first, Tensor):
        ratios = {
            len(p) / size if p.dim() and p.layout == torch.strided else 0.5
            for p, size in zip(parts, sizes, strict=True)
        }
        if len(ratios) > 1 or next(iter(ratios)) % 1:
            raise _refused("a tensor that has no row for each sample")
        if len({(p.shape[1:], p.dtype) for p in parts}) > 1:
            raise _refused("batches of different shapes")
        return torch.cat([p.detach() for p in parts])
    if isinstance(first, Mapping):
        if any(p.keys() != first.keys() for p in parts):
            raise _refused("batches with different keys")
        return {key: _joined([p[key] for p in parts], sizes) for key in first}
    if isinstance(first, tuple | list):
        if any(len(p) != len(first) for p in parts):
            raise _refused("batches of different lengths")
        found = [_joined(column, sizes) for column in zip(*parts, strict=True)]
        return type(first)(*found) if hasattr(first, "_fields") else type(first)(found)
    if all(p is first or p == first for p in parts):
        return first
    raise _refused(f"a {type(first).__name__} that differs from batch to batch")


def _taken(whole: Any, rows: Tensor, size: int) -> Any:
    if isinstance(whole, Tensor):
        each = len(whole) // size
        if each == 1:
            return whole.index_select(0, rows.to(whole.device))
        grouped = whole.view(size, each, *whole.shape[1:])
        return grouped.index_select(0, rows.to(whole.device)).flatten(0, 1)
    if isinstance(whole, Mapping):
        return {key: _taken(value, rows, size) for key, value in whole.items()}
    if isinstance(whole, tuple | list):
        found = [_taken(value, rows, size) for value in whole]
        return type(whole)(*found) if hasattr(whole, "_fields") else type(whole)(found)
    return whole


def _refused(what: str) -> InvalidArgument:
    return InvalidArgument(
        f"data: training draws mini-batches of single samples from it, but it has {what}; give "
        "tensors with one row for each sample, of one shape"
    )
