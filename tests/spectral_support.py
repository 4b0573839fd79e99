"""Symmetric matrices with known spectra."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch

from pylandscape.curvature.lanczos import Lanczos, random_starts
from pylandscape.curvature.operators import as_operator


def with_spectrum(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A dense symmetric matrix with these eigenvalues and random eigenvectors."""
    n = len(values)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    a = (q * values) @ q.T
    return (a + a.T) / 2


def hilbert(n: int) -> np.ndarray:
    found: np.ndarray = scipy.linalg.hilbert(n)
    return found


def process(
    matrix: np.ndarray,
    steps: int,
    *,
    starts: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    reorthogonalize: str = "full",
    fresh: bool = False,
) -> Lanczos:
    """A finished Lanczos run over the matrix."""
    lanczos = Lanczos(
        as_operator(matrix), random_starts(len(matrix), starts, seed, dtype), steps, dtype=dtype,
        reorthogonalize=reorthogonalize, fresh=fresh,
    )  # fmt: skip
    lanczos.run()
    return lanczos


def rows(lanczos: Lanczos, start: int = 0) -> np.ndarray:
    """Q (m, n) in float64."""
    found: np.ndarray = lanczos.basis[start, : lanczos.steps(start)].double().numpy()
    return found


def loss_of_orthogonality(lanczos: Lanczos, start: int = 0) -> float:
    """||Q Q^T - I|| in eps of the basis' dtype."""
    q = rows(lanczos, start)
    eps = torch.finfo(lanczos.dtype).eps
    return float(np.linalg.norm(q @ q.T - np.eye(len(q)), 2)) / eps
