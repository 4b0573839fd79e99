"""Products of tall matrices: a few rows of n numbers each.

On the CPU by the core's kernels (csrc/lanczos/basis.h), whose sums have an order of their own: no
bit depends on the number of threads, as it does with BLAS. On a GPU by torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._native import core
from ..arrays import all_finite

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def inner(x: Tensor, y: Tensor) -> Tensor:
    """(k, l) float64: x_i . y_j for rows x (k, n) and y (l, n) of one dtype."""
    if x.device.type != "cpu":
        return x.double() @ y.double().T
    x, y = x.contiguous(), y.contiguous()
    found = torch.empty(len(x), len(y), dtype=torch.float64)
    _core("inner", x)(x.data_ptr(), len(x), y.data_ptr(), len(y), x.shape[1], found.data_ptr())
    return found


def dots(x: Tensor, y: Tensor) -> Tensor:
    """(k,) float64: x_i . y_i for rows x, y (k, n)."""
    if x.device.type != "cpu":
        return (x * y).sum(1, dtype=torch.float64)
    x, y = x.contiguous(), y.double().contiguous()
    found = torch.empty(len(x), dtype=torch.float64)
    _core("dots", x)(x.data_ptr(), y.data_ptr(), len(x), x.shape[1], found.data_ptr())
    return found


def norms(x: Tensor) -> Tensor:
    """(k,) float64: the lengths of rows x (k, n), also where their squares leave the range."""
    wide = x.double()
    largest = wide.abs().amax(1, keepdim=True)
    scale = torch.where((largest > 0) & largest.isfinite(), torch.frexp(largest).exponent, 0)
    wide = torch.ldexp(wide, -scale) if bool(scale.any()) else wide
    return torch.ldexp(dots(wide, wide).sqrt(), scale[:, 0])


def combine(coefficients: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """C Q for C (k, m) float64 and rows Q (m, n): (k, n) of Q's dtype, summed in double and rounded
    once. `out`: where, if given; it may be Q's first k rows."""
    if rows.device.type != "cpu":
        found = (coefficients.to(rows.device) @ rows.double()).to(rows.dtype)
        return found if out is None else out.copy_(found)
    rows, c = rows.contiguous(), coefficients.double().contiguous()
    found = torch.empty(len(c), rows.shape[1], dtype=rows.dtype) if out is None else out
    assert found.is_contiguous()
    assert found.dtype == rows.dtype
    addresses = (c.data_ptr(), len(c), found.data_ptr())
    _core("combine", rows)(rows.data_ptr(), len(rows), rows.shape[1], *addresses)
    return found


def orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Q (k, n) with orthonormal rows and R (k, k), upper triangular: rows_j = sum_i R[i, j] Q_i.

    Float64, k <= n; NaN where a row is not finite. Where the rows are dependent, R has a diagonal
    of rounding, and Q some rows orthogonal to the others.
    """
    if rows.device.type != "cpu":
        q, r = torch.linalg.qr(rows.double().T)
        return q.T, r
    q = rows.double().contiguous()
    q = q.clone() if q.data_ptr() == rows.data_ptr() else q
    r = torch.zeros(len(q), len(q), dtype=torch.float64)
    if not all_finite(q):
        return q.fill_(float("nan")), r.fill_(float("nan"))
    core.orthonormal_f64(q.data_ptr(), len(q), q.shape[1], r.data_ptr())
    return q, r


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b of small float64 matrices (k, l) and (l, m)."""
    return inner(a, b.T)


def _core(name: str, x: Tensor) -> Callable[..., None]:
    found: Callable[..., None] = getattr(core, f"{name}_{_SUFFIX[x.dtype]}")
    return found
