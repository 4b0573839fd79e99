"""Lowering of what is made of sums: RMS norm, unit vectors, variances, logsumexp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from .._native import core
from .interpreter import Call, op
from .pool import reduced
from .values import Slot


def _wide(call: Call, x: Slot) -> Call:
    """The same call, as one whose result has x's traced shape."""
    shape = (*x.shape[: x.axis], call.lowering.samples, *x.shape[x.axis :])
    return replace(call, value=torch.empty(shape, device="meta"))


@op("rms_norm")
def _rms_norm(
    call: Call, input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> Slot:
    """x / sqrt(mean of x^2 + eps) times a gain (Zhang & Sennrich 2019)."""
    x = call.view(input)
    over = tuple(range(-len(normalized_shape), 0))
    if eps is None:  # of the dtype that is computed in
        eps = torch.finfo(torch.float64 if call.program.double else torch.float32).eps
    mean = reduced(call, call.unary(x, "square"), core.Pool.sum, over, True, mean=True)
    share = call.unary(call.unary(mean, "affine", 1.0, eps), "rsqrt")
    y = call.binary("mul", x, share)
    return y if weight is None else call.binary("mul", y, weight)


@op("normalize")
def _normalize(
    call: Call, input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None
) -> Slot:
    """x / max(|x|, eps)."""
    if p != 2.0 or out is not None:
        raise call.refuse(f"p={p}")
    x = call.view(input)
    squares = reduced(call, call.unary(x, "square"), core.Pool.sum, dim, True)
    bounded = call.unary(call.unary(squares, "length"), "clamp", eps, float("inf"))
    return call.binary("div", x, bounded)


@op("norm")
def _norm(call: Call, input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False) -> Slot:
    if p not in (2, "fro") or dim is None:
        raise call.refuse("another norm than the Euclidean one over dimensions")
    squares = reduced(call, call.unary(input, "square"), core.Pool.sum, dim, keepdim)
    return call.unary(squares, "length")


@op("linalg_vector_norm")
def _vector_norm(call: Call, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False) -> Slot:
    return _norm(call, x, ord, dim, keepdim)


@op("std")
def _std(
    call: Call,
    input: Any,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Slot:
    variance = _var(call, input, dim, unbiased, keepdim, correction=correction)
    return call.unary(variance, "length")


@op("var")
def _var(
    call: Call,
    input: Any,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Slot:
    if isinstance(dim, bool) or dim is None:
        raise call.refuse("over all dimensions")
    x = call.view(input)
    over: Sequence[int] = (dim,) if isinstance(dim, int) else tuple(dim)
    degrees = float(prod(x.shape[call.dim(x, d)] for d in over))
    degrees -= float(unbiased) if correction is None else correction
    if degrees <= 0:
        raise call.refuse("a variance without degrees of freedom")
    mean = reduced(call, x, core.Pool.sum, over, True, mean=True)
    squares = call.unary(_wide(call, x).binary("sub", x, mean), "square")
    total = reduced(call, squares, core.Pool.sum, over, keepdim)
    return call.unary(total, "affine", 1.0 / degrees)


@op("logsumexp")
def _logsumexp(call: Call, input: Any, dim: Any, keepdim: bool = False) -> Slot:
    """top + log of the sum of exp(x - top)."""
    x = call.view(input)
    top = reduced(call, x, core.Pool.max_even, dim, True)
    below = call.unary(_wide(call, x).binary("sub", x, top), "exp")
    rest = call.unary(reduced(call, below, core.Pool.sum, dim, keepdim), "log")
    return call.binary(
        "add", rest, top if keepdim else reduced(call, top, core.Pool.sum, dim, False)
    )
