"""gpu_check's rows of curvature: kernels against float64, their floors and torch's calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Run = Callable[[int], Any]
# name, milliseconds, floor, share, torch's milliseconds, error: gpu_check.Row
Values = tuple[str, float, float, float, float | None, float]
ALLOWED: dict[str, float] = {}  # error by name, filled as rows are measured
CHUNK = 1 << 20  # columns at a time, where float64 copies are made


def measure(bandwidth: float, median_ms: Callable[[Run, int], float]) -> Iterator[Values]:
    """Rows; bandwidth in bytes per millisecond."""
    for dtype in (torch.float32, torch.float64):
        for rows, n in ((64, 10_000_000), (64, 9_999_999), (200, 2_000_000), (600, 500_000)):
            yield _orthogonalize(rows, n, dtype, bandwidth, median_ms)
    for count, n in (
        (100_000, 10),
        (20_000, 32),
        (10_000, 33),
        (5_000, 64),
        (2_000, 105),
        (500, 200),
    ):
        yield _eigenvalues(count, n, bandwidth, median_ms)
    yield from _hessian_products(bandwidth, median_ms)


def _hessian_products(bandwidth: float, median_ms: Callable[[Run, int], float]) -> Iterator[Values]:
    import gpu_products
    from gpu_check import engine_of

    for values in gpu_products.measure(engine_of, bandwidth, median_ms):
        ALLOWED[values[0]] = gpu_products.ALLOWED
        yield values


def _orthogonalize(
    rows: int, n: int, dtype: torch.dtype, bandwidth: float, median_ms: Callable[[Run, int], float]
) -> Values:
    """w <- w - Q^T(Q w) and what is left of Q w: two streams of Q; torch's: twice w -= Q^T(Q w)."""
    from pylandscape._native import ops

    q = _orthonormal(rows, n, dtype)
    span = torch.randn(rows, dtype=dtype, device="cuda") * (n / rows) ** 0.5
    start = torch.randn(n, dtype=dtype, device="cuda") + span @ q
    w, none = torch.empty_like(start), torch.empty(0, dtype=torch.float64, device="cuda")

    def mine(_: int) -> Tensor:
        h = ops.basis_pass_(q, start, none, start)
        return ops.basis_pass_(q, start, h[:-1], w)

    def plain(_: int) -> Tensor:
        other = torch.addmv(start, q.T, q @ start, alpha=-1)
        return other.addmv_(q.T, q @ other, alpha=-1)

    measured, eps = mine(0).clone(), torch.finfo(dtype).eps
    h, pieces = _products(q, start), []
    for part, piece in zip(q.split(CHUNK, 1), start.split(CHUNK), strict=True):
        pieces.append(piece.double() - h @ part.double())
    exact = torch.cat(pieces)
    error = float((w.double() - exact).abs().max() / exact.abs().max())
    left = _products(q, w)  # measured on w as it is: its error counts as much as w's
    norm = float(w.double().norm())
    error = max(error, float((measured[:-1] - left).abs().max()) / norm)
    error = max(error, abs(float(measured[-1]) / norm - 1))
    took = median_ms(mine, 1)
    size = q.element_size()
    floor = (2 * rows * n + 3 * n) * size / bandwidth
    name = f"reorth {rows} x {n:,} {str(dtype).removeprefix('torch.')}"
    ALLOWED[name] = 8 * eps
    return name, took, floor, floor / took, median_ms(plain, 1), error


def _eigenvalues(
    count: int, n: int, bandwidth: float, median_ms: Callable[[Run, int], float]
) -> Values:
    """Matrices (count, n, n) read and values written; torch's eigvalsh."""
    from pylandscape._native import ops

    a = torch.randn(count, n, n, dtype=torch.float64, device="cuda")
    a = a + a.mT
    want = torch.linalg.eigvalsh(a[:200].cpu())
    got = ops.small_eigenvalues(a)[:200].cpu()
    error = float(((got - want).abs().amax(1) / want.abs().amax(1)).max())
    took = median_ms(lambda _: ops.small_eigenvalues(a), 1)
    floor = (a.nbytes + count * n * 8) / bandwidth
    name = f"eigenvalues {count:,} of order {n}"
    ALLOWED[name] = (10 + 3 * n**0.5) * torch.finfo(torch.float64).eps
    plain = median_ms(lambda _: torch.linalg.eigvalsh(a), 1)
    return name, took, floor, floor / took, plain, error


def _orthonormal(rows: int, n: int, dtype: torch.dtype) -> Tensor:
    """Random rows, orthonormal up to rounding: Cholesky QR of a Gaussian."""
    q = torch.randn(rows, n, dtype=dtype, device="cuda")
    gram = torch.zeros(rows, rows, dtype=torch.float64, device="cuda")
    for part in q.split(CHUNK, 1):
        gram.addmm_(part.double(), part.double().T)
    factor = torch.linalg.cholesky(gram)
    for part in q.split(CHUNK, 1):
        part.copy_(torch.linalg.solve_triangular(factor, part.double(), upper=False))
    return q


def _products(q: Tensor, w: Tensor) -> Tensor:
    """Q w in float64."""
    out = torch.zeros(len(q), dtype=torch.float64, device="cuda")
    for part, piece in zip(q.split(CHUNK, 1), w.split(CHUNK), strict=True):
        out.addmv_(part.double(), piece.double())
    return out
