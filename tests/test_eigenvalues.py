"""Batched symmetric eigenvalues against LAPACK and known spectra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pylandscape._native import core
from pylandscape.engines.points.evaluator import eigenvalues
from pylandscape.errors import InvalidArgument

EPS = np.finfo(np.float64).eps
ORDERS = (1, 2, 3, 5, 8, 15, 21, 55, 80, 130, 201)  # lanes of matrices, and from 114 on one by one


def symmetric(values: np.ndarray, seed: int) -> np.ndarray:
    """Q diag(values) Q^T with a random orthogonal Q."""
    n = len(values)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    a = (q * values) @ q.T
    found: np.ndarray = (a + a.T) / 2
    return found


def assert_spectrum(got: np.ndarray, want: np.ndarray, n: int) -> None:
    """Backward stable: off by a few eps of the largest, times a slow function of n."""
    tolerance = EPS * (10 + 3 * np.sqrt(n)) * np.abs(want).max()
    np.testing.assert_allclose(got, np.sort(want), rtol=0, atol=tolerance)


@pytest.mark.parametrize("n", ORDERS)
def test_random_matrices_have_the_spectrum_of_lapack(n: int) -> None:
    a = np.random.default_rng(n).normal(size=(11, n, n))
    a = a + a.transpose(0, 2, 1)
    for got, matrix in zip(eigenvalues(a), a, strict=True):
        assert_spectrum(got, np.linalg.eigvalsh(matrix), n)


@pytest.mark.parametrize("n", [15, 55, 130])
@pytest.mark.parametrize("descending", [False, True])
def test_graded_matrices(n: int, descending: bool) -> None:
    scale = np.logspace(0, -16, n)
    if descending:
        scale = scale[::-1]
    rng = np.random.default_rng(0)
    b = rng.normal(size=(3, n, n))
    a = (b + b.transpose(0, 2, 1)) * np.minimum(scale[:, None], scale)
    for got, matrix in zip(eigenvalues(a), a, strict=True):
        assert_spectrum(got, np.linalg.eigvalsh(matrix), n)


@pytest.mark.parametrize("n", [15, 55, 130])
def test_clustered_and_rank_deficient_spectra(n: int) -> None:
    few = np.zeros(n)
    few[:3] = (-2, 1, 5)
    clusters = np.repeat([1.0, 1.0 + 1e-12, -3.0], n)[:n]
    wide = np.logspace(-30, 0, n) * np.where(np.arange(n) % 2, 1, -1)
    for seed, values in enumerate((few, clusters, wide, np.ones(n))):
        got = eigenvalues(symmetric(values, seed)[None])[0]
        assert_spectrum(got, values, 4 * n)  # the matrix itself was rounded


@pytest.mark.parametrize("n", [15, 130])
@pytest.mark.parametrize("size", [1e-60, 1e-140, 1e-155, 1e-161, 1e-162, 1e-170, 1e-320])
def test_rows_whose_squares_underflow_are_zero_rows(n: int, size: float) -> None:
    """Reflections leave such rows of a matrix of low rank: rounding of rounding of rounding."""
    a = size * np.random.default_rng(0).normal(size=(9, n, n))
    a = a + a.transpose(0, 2, 1)
    a[:, n - 2 :, :] = a[:, :, n - 2 :] = 0
    a[:, n - 1, n - 1], a[:, n - 2, n - 1], a[:, n - 1, n - 2] = 1, 0.5, 0.5
    found = np.empty((9, n))
    core.eigenvalues(9, n, a.ctypes.data, found.ctypes.data)  # LAPACK takes over nothing
    for got, matrix in zip(found, a, strict=True):
        assert_spectrum(got, np.linalg.eigvalsh(matrix), n)


@pytest.mark.parametrize("n", [4, 15, 130])
def test_zero_identity_and_diagonal_matrices_are_exact(n: int) -> None:
    diagonal = np.arange(n, dtype=np.float64)[::-1]
    a = np.stack([np.zeros((n, n)), np.eye(n), -3 * np.eye(n), np.diag(diagonal)])
    want = np.stack([np.zeros(n), np.ones(n), np.full(n, -3.0), np.sort(diagonal)])
    assert np.array_equal(eigenvalues(a), want)


def test_the_second_difference_has_its_known_spectrum() -> None:
    n = 63
    a = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    want = 4 * np.sin(np.pi * np.arange(1, n + 1) / (2 * (n + 1))) ** 2
    assert_spectrum(eigenvalues(a[None])[0], want, n)


@pytest.mark.parametrize("n", [15, 130])
@pytest.mark.parametrize("power", [-1000, -600, 500, 1000])
def test_scaling_by_a_power_of_two_scales_the_eigenvalues_exactly(n: int, power: int) -> None:
    a = np.random.default_rng(0).normal(size=(2, n, n))
    a = a + a.transpose(0, 2, 1)
    assert np.array_equal(eigenvalues(np.ldexp(a, power)), np.ldexp(eigenvalues(a), power))


@pytest.mark.parametrize("n", [2, 15, 40, 130])
def test_a_matrix_has_the_same_bits_alone_and_beside_others(n: int) -> None:
    """They end after different numbers of sweeps, at different rows."""
    rng = np.random.default_rng(n)
    dense = rng.normal(size=(9, n, n))
    halves = rng.normal(size=(9, n, n))
    halves[:, n // 2 :, : n // 2] = 0
    low_rank = np.einsum("pi,pj->pij", rng.normal(size=(9, n)), np.ones((9, n)))
    kinds = [dense, halves, low_rank, np.zeros((3, n, n)), np.eye(n)[None], 1e-9 * dense]
    a = rng.permutation(np.concatenate(kinds))
    together = eigenvalues(a)
    alone = np.concatenate([eigenvalues(matrix[None]) for matrix in a])
    assert np.array_equal(together, alone)
    for got, matrix in zip(together, a, strict=True):
        assert_spectrum(got, np.linalg.eigvalsh(matrix), n)


@pytest.mark.parametrize("n", [15, 130])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_matrix_that_is_not_finite_has_nan_for_itself_alone(n: int, bad: float) -> None:
    a = np.random.default_rng(0).normal(size=(9, n, n))
    a = a + a.transpose(0, 2, 1)
    clean = eigenvalues(a)
    a[3, n - 1, 2] = bad
    found = eigenvalues(a)
    assert np.isnan(found[3]).all()
    others = np.arange(9) != 3
    assert np.array_equal(found[others], clean[others])


@pytest.mark.parametrize("n", [15, 130])
def test_only_lower_triangles_are_read_and_nothing_is_written(n: int) -> None:
    a = np.random.default_rng(0).normal(size=(9, n, n))
    before = a.copy()
    lower = np.tril(a) + np.tril(a, -1).transpose(0, 2, 1)
    assert np.array_equal(eigenvalues(a), eigenvalues(torch.from_numpy(lower)))
    assert np.array_equal(a, before)


def test_empty_batches_and_orders() -> None:
    assert eigenvalues(np.empty((0, 4, 4))).shape == (0, 4)
    assert eigenvalues(np.empty((3, 0, 0))).shape == (3, 0)


def test_anything_but_square_matrices_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"expected shape \(P, n, n\), got \(2, 3\)"):
        eigenvalues(np.zeros((2, 3)))
