"""Windows of images as rows, and convolutions with a weight that the forward pass computes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from .interpreter import Call
from .matmul import Labelled, contract
from .values import FILL, Computed, Fixed, Slot


def sizes_of(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * dims if len(values) == 1 else values


def shifted(call: Call, x: Slot, bias: Any) -> Slot:
    """An image (channels, ...) plus a parameter for each channel."""
    if not isinstance(bias, Fixed):
        raise call.refuse("a bias that is computed from the input")
    return call.binary("add", x, bias.view(bias.elements().reshape(-1, *[1] * (len(x.shape) - 1))))


def conv_of_windows(
    call: Call, x: Slot, weight: Computed, bias: Any, steps: Any, pads: Any, gaps: Any, groups: int
) -> Slot:
    """A convolution with a weight that is computed: windows copied, then a product of values."""
    out, channels, *kernel = weight.shape
    dims = len(kernel)
    rows = windows_of(call, x, kernel, *(sizes_of(v, dims) for v in (steps, pads, gaps)))
    sizes, size = tuple(rows.shape[1 : 1 + dims]), channels * prod(kernel)
    rows = rows.unflatten(0, (groups, channels)).movedim(1, 1 + dims)
    copied = call.lowering.gathered(x, rows.reshape(-1), None)
    windows = Labelled(Slot(copied.id, (groups, prod(sizes), size), 0), ("batch", "g", "p", "k"))
    matrices = Labelled(weight.view(weight.elements().reshape(groups, -1, size)), ("g", "o", "k"))
    found = contract(call, windows, matrices, ("batch", "g", "o", "p"))
    index = call.lowering.rows(found).reshape(out, *sizes)
    result = Slot(found.id, tuple(index.shape), 0, index)
    return result if bias is None else shifted(call, result, bias)


def windows_of(
    call: Call,
    x: Slot,
    kernel: Sequence[int],
    steps: Sequence[int],
    pads: Sequence[int],
    gaps: Sequence[int],
) -> Tensor:
    """Rows of the windows of an image: (channels, outputs ..., kernel ...)."""
    around = [n for p in reversed(pads) for n in (p, p)]
    rows = torch.nn.functional.pad(call.lowering.rows(x).contiguous(), around, value=FILL)
    for d, (k, step, gap) in enumerate(zip(kernel, steps, gaps, strict=True)):
        rows = rows.unfold(1 + d, (k - 1) * gap + 1, step)[..., ::gap]
    return rows
