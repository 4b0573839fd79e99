"""Lowering of fixed linear maps along dimensions: interpolation, local response norm, running sums.

Such a map is a matrix per dimension. Together they are one op: a sum over windows of pixels with a
factor for every tap (lowering/pool.py has the sums and maxima without).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._native import core
from .interpreter import Call, op
from .shapes import copies
from .values import Slot

_MOST_TAPS = 1 << 24  # that are listed for one op


@op("interpolate")
def _interpolate(
    call: Call,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Slot:
    options = {
        "size": size, "scale_factor": scale_factor, "mode": mode, "align_corners": align_corners,
        "recompute_scale_factor": recompute_scale_factor, "antialias": antialias,
    }  # fmt: skip
    if mode in ("nearest", "nearest-exact"):
        return copies(call, input, **options)
    return _mapped(call, call.view(input), lambda x: F.interpolate(x, **options))


@op(
    "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip
def _upsample(call: Call, input: Any, *args: Any, **kwargs: Any) -> Slot:
    return _mapped(call, call.view(input), lambda x: call.function(x, *args, **kwargs))


def _mapped(call: Call, x: Slot, resample: Callable[[Tensor], Tensor]) -> Slot:
    """The product of torch's own maps along each dimension of an image, found by its unit images,
    which are constant along the other dimensions."""
    if x.axis != 0 or len(x.shape) < 2:
        raise call.refuse("an image without a leading batch dimension")
    sizes, maps = x.shape[1:], {}
    for d, n in enumerate(sizes):
        unit = torch.eye(n, dtype=torch.float64).view(n, 1, *[n if e == d else 1 for e, _ in
                                                             enumerate(sizes)])  # fmt: skip
        found = resample(unit.expand(n, 1, *sizes).contiguous())[:, 0].movedim(1 + d, 1)
        matrix = found.reshape(n, found.shape[1], -1)[:, :, 0].T
        maps[1 + d] = torch.where(matrix.abs() > 1e-12, matrix, 0.0)
    return linear_along(call, x, maps)


def linear_along(call: Call, x: Slot, maps: Mapping[int, Tensor]) -> Slot:
    """x with each dimension d of its shape multiplied by maps[d] (outputs, inputs)."""
    order = call.lowering.order(x) or tuple(range(len(x.shape)))
    x = call.lowering.in_dims(x, order)
    last = max(i for i, d in enumerate(order) if d in maps)
    taps = torch.zeros(1, 1, dtype=torch.int64)  # (outputs, taps), -1 where there is none
    weights = torch.ones(1, 1, dtype=torch.float64)
    for d in order[: last + 1]:
        own, factors = _taps(maps[d]) if d in maps else _own(x.shape[d])
        if taps.numel() * own.numel() > _MOST_TAPS:
            raise call.refuse("a linear map of too many elements")
        hidden = (taps < 0)[:, None, :, None] | (own < 0)[None, :, None, :]
        joined = taps[:, None, :, None] * x.shape[d] + own[None, :, None, :]
        shape = (len(taps) * len(own), -1)
        taps = joined.masked_fill(hidden, -1).reshape(shape)
        weights = (weights[:, None, :, None] * factors[None, :, None, :]).reshape(shape)
    listed = taps >= 0
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), listed.sum(1).cumsum(0)])
    index, factor = taps[listed].contiguous(), weights[listed].contiguous()
    found = call.program.pool(
        x.id, core.Pool.sum, prod(x.shape[d] for d in order[last + 1 :]), len(taps),
        bounds, index.numel(), index, factor, per_tap=True,
    )  # fmt: skip
    result = tuple(len(maps[d]) if d in maps else n for d, n in enumerate(x.shape))
    return call.lowering.ordered(found, result, x.axis, order)


def _own(size: int) -> tuple[Tensor, Tensor]:
    return torch.arange(size)[:, None], torch.ones(size, 1, dtype=torch.float64)


def _taps(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Which inputs each output takes, -1 behind the last, and the factors."""
    used = matrix != 0
    most = max(1, int(used.sum(1).max()))
    first = torch.argsort((~used).int(), dim=1, stable=True)[:, :most]
    factors = matrix.gather(1, first)
    return torch.where(factors != 0, first, -1), factors


@op("local_response_norm")
def _local_response_norm(
    call: Call, input: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Slot:
    """x (k + alpha mean of x^2 over neighbouring channels)^-beta (Krizhevsky et al. 2012)."""
    x = call.view(input)
    if x.axis != 0 or len(x.shape) < 2:
        raise call.refuse("an image without a leading batch dimension")
    near = torch.arange(x.shape[0])
    step = near[None, :] - near[:, None]  # from the output's channel to the input's
    band = ((step >= -(size // 2)) & (step <= (size - 1) // 2)).double() * (alpha / size)
    squares = linear_along(call, call.unary(x, "square"), {0: band})
    share = call.unary(call.unary(squares, "affine", 1.0, k), "power", -beta)
    return call.binary("mul", x, share)


@op("cumsum")
def _cumsum(call: Call, input: Any, dim: int) -> Slot:
    x = call.view(input)
    d = call.dim(x, dim)
    n = x.shape[d]
    if n == 0:
        raise call.refuse("an empty dimension")
    return linear_along(call, x, {d: torch.ones(n, n, dtype=torch.float64).tril()})
