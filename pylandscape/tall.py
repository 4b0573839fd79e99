"""Products of tall matrices: a few rows of n numbers each.

On the CPU by the core's kernels (csrc/lanczos/basis.h), whose sums have an order of their own: no
bit depends on the number of threads, as it does with BLAS. On a GPU by torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import random_source
from ._native import core

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_ORTHOGONAL = 4 * torch.finfo(torch.float64).eps  # of what is left, relative: rounding
_MOST_PASSES = 6


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
    return torch.cat([inner(a[None], b[None])[0] for a, b in zip(x, y, strict=True)])


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
    assert found.is_contiguous() and found.dtype == rows.dtype
    addresses = (c.data_ptr(), len(c), found.data_ptr())
    _core("combine", rows)(rows.data_ptr(), len(rows), rows.shape[1], *addresses)
    return found


def orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Q (k, n) with orthonormal rows and R (k, k), upper triangular: rows_j = sum_i R[i, j] Q_i.

    Float64, k <= n. Where the rows are dependent, R has a diagonal of rounding, and Q some rows
    orthogonal to the others.
    """
    if rows.device.type != "cpu":
        q, r = torch.linalg.qr(rows.double().T)
        return q.T, r
    q = rows.double().contiguous()
    q = q.clone() if q.data_ptr() == rows.data_ptr() else q
    r = torch.zeros(len(q), len(q), dtype=torch.float64)
    if not bool(torch.isfinite(q).all()):
        return q.fill_(float("nan")), r.fill_(float("nan"))
    for j, row in enumerate(q):
        r[j, j] = _orthogonalized(q, j, r[:j, j])
        if r[j, j] == 0:  # any vector will do
            random_source.fill(row, 0, random_source.COMPLEMENT, j)
            _orthogonalized(q, j, torch.zeros(j, dtype=torch.float64))
        for _ in range(2):  # scaling up what was left of a long vector scales its rounding too
            row.div_(norms(row[None])[0])
            _orthogonalized(q, j, torch.zeros(j, dtype=torch.float64))
        row.div_(norms(row[None])[0])
    return q, r


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b of small float64 matrices (k, l) and (l, m)."""
    return inner(a, b.T)


def _orthogonalized(q: Tensor, j: int, coefficients: Tensor) -> float:
    """Row j minus its parts along the rows before it, which `coefficients` (j,) gains; its length."""
    length, left = 0.0, 1.0
    removed = torch.empty(j, dtype=torch.float64)
    for _ in range(_MOST_PASSES):
        length, left = core.orthogonalize_f64(
            q.data_ptr(), j, q.shape[1], q[j].data_ptr(), removed.data_ptr()
        )
        coefficients += removed
        if left <= _ORTHOGONAL:
            break
    return float(length)


def _core(name: str, x: Tensor) -> Callable[..., None]:
    found: Callable[..., None] = getattr(core, f"{name}_{_SUFFIX[x.dtype]}")
    return found
