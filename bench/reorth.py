"""reorth: one step of reorthogonalisation against the bandwidth, and against torch's."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from pylandscape._native import core

from .curvature import Field, check_rows
from .harness import Arm, Row, rows

ROWS = 64
SHARE = 0.8  # of the measured bandwidth, to reach
EPS = torch.finfo(torch.float32).eps
CHUNK = 1 << 16  # columns at a time, where float64 copies are made


def reorth(quick: bool, repetitions: int) -> list[Row]:
    torch.manual_seed(0)
    n = 100_000 if quick else 10_000_000
    name = f"reorth {ROWS} x {n:,} float32"
    q = orthonormal_rows(ROWS, n)
    span = torch.randn(ROWS) * (n / ROWS) ** 0.5
    start = torch.randn(n).addmv_(q.T, span)  # half of its square lies in the rows' span
    w, coefficients = torch.empty_like(start), torch.zeros(ROWS, dtype=torch.float64)
    want, inner = _exact(q, start)
    bound = 4 * EPS * float(start.double().norm())
    reported = [0.0, 0.0]  # |w|, and the largest of |Q w| over it

    def orthogonalize() -> Tensor:
        w.copy_(start)
        addresses = w.data_ptr(), coefficients.data_ptr()
        reported[:] = core.orthogonalize_f32(q.data_ptr(), ROWS, n, *addresses)
        return w

    def by_products(in_place: bool) -> Tensor:
        w.copy_(start)
        for _ in range(2):
            h = q @ w
            if in_place:
                w.addmv_(q.T, h, alpha=-1)
            else:
                w.sub_(h @ q)
        return w

    def check(arm: Arm, got: Tensor) -> None:
        check_rows(arm, got[None], want[None], 16 * EPS)
        left = float(_products(q, got).norm())
        assert left <= bound, f"{arm.name}: |Q w| = {left:.1e}, expected at most {bound:.1e}"

    field = Field(name, "step")
    mine = "pylandscape core.orthogonalize_f32"
    if hasattr(core, "orthogonalize_f32"):
        field.mine = Arm(mine, orthogonalize, note="w <- w - Q^T(Q w), verified; w renewed")
        check(field.mine, orthogonalize())
        torch.testing.assert_close(coefficients, inner, rtol=1e-5, atol=bound)
        norm = float(want.norm())
        true = [norm, float(_products(q, w).abs().max()) / norm]
        assert np.allclose(reported, true, rtol=16 * EPS, atol=EPS), (reported, true)
    else:
        field.miss(mine, "not in this build: pylandscape._native.core.orthogonalize_f32")
    forms = {"addmv_": True, "h @ Q": False}
    makes = {form: partial(partial, by_products, in_place) for form, in_place in forms.items()}
    field.add("torch CGS2", makes, check, target=1.8, note="w renewed")
    reads = _reads(q, start)
    field.measure(repetitions, *reads)
    return field.rows() + _shares(name, field.mine, reads, q)


def orthonormal_rows(count: int, n: int) -> Tensor:
    """Random (count, n) float32 with orthonormal rows: Cholesky QR of a Gaussian, twice."""
    q = torch.randn(count, n)
    for _ in range(2):
        factor = torch.linalg.cholesky(_gram(q))
        for part in q.split(CHUNK, dim=1):
            part.copy_(torch.linalg.solve_triangular(factor, part.double(), upper=False))
    return q


def _gram(q: Tensor) -> Tensor:
    """Q Q^T in float64."""
    gram = torch.zeros(len(q), len(q), dtype=torch.float64)
    for part in q.split(CHUNK, dim=1):
        gram.addmm_(part.double(), part.double().T)
    return gram


def _products(q: Tensor, w: Tensor) -> Tensor:
    """Q w in float64."""
    out = torch.zeros(len(q), dtype=torch.float64)
    for part, piece in zip(q.split(CHUNK, dim=1), w.split(CHUNK), strict=True):
        out.addmv_(part.double(), piece.double())
    return out


def _exact(q: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """(I - Q^T G^-1 Q) w and G^-1 Q w in float64, G = Q Q^T: the rows are rounded to float32."""
    inner = torch.linalg.solve(_gram(q), _products(q, w))
    parts = zip(q.split(CHUNK, dim=1), w.split(CHUNK), strict=True)
    return torch.cat([p.double() - part.double().T @ inner for part, p in parts]), inner


def _reads(q: Tensor, w: Tensor) -> list[Arm]:
    """Ways to read the basis once; the fastest gives the bandwidth."""
    n = q.shape[1]
    forms = {"sum": q.sum, "Q w": partial(torch.mv, q, w), "max": q.max}
    bytes_read = {"sum": q.nbytes, "Q w": q.nbytes + w.nbytes, "max": q.nbytes}
    arms = [Arm(f"read: torch {form}", run, bytes_read[form]) for form, run in forms.items()]
    assert np.isfinite([float(q.sum()), float(q.max())]).all(), n
    return arms


def _shares(name: str, mine: Arm | None, reads: list[Arm], q: Tensor) -> list[Row]:
    """Rows of the reads; the ratio is our share of each one's bandwidth in two passes over Q."""
    best = min(reads, key=lambda arm: float(np.median(arm.per_unit)))
    table = []
    for arm in reads:
        (row,) = rows(name, arm, [], "pass")
        per_pass = arm.per_unit * q.nbytes
        row |= {"median_us": row["median_us"] * q.nbytes, "iqr_us": row["iqr_us"] * q.nbytes}
        row["note"] = f"{1e-9 / np.median(arm.per_unit):.3g} GB/s"
        if mine is not None:
            share = np.percentile(2 * per_pass / mine.per_unit, [25, 50, 75])
            row |= {
                "share": True,
                "ratio": float(share[1]),
                "ratio_quartiles": [float(share[0]), float(share[2])],
            }
            if arm is best:
                row |= {"target": SHARE, "met": bool(share[1] >= SHARE)}
                row["note"] += ", the bandwidth"
        table.append(row)
    return table
