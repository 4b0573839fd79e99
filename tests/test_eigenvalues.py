"""The core's eigenvalues of many small symmetric matrices, against LAPACK and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pylandscape._native import core

EPS = float(np.finfo(np.float64).eps)
RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.standard_normal((19, 20, 20)))[0]


def eigenvalues(matrices: np.ndarray) -> np.ndarray:
    matrices = np.ascontiguousarray(matrices, dtype=np.float64)
    count, n, _ = matrices.shape
    values = np.empty((count, n))
    core.eigenvalues(count, n, matrices.ctypes.data, values.ctypes.data)
    return values


def symmetric(count: int, n: int) -> np.ndarray:
    a = RNG.standard_normal((count, n, n))
    return a + a.transpose(0, 2, 1)


def assert_as_lapack(matrices: np.ndarray) -> None:
    """Both are backward stable: each is within n eps of the norm."""
    got, want = eigenvalues(matrices), np.linalg.eigvalsh(matrices)
    norm = np.abs(want).max(axis=1, keepdims=True)
    n = matrices.shape[1]
    assert (np.abs(got - want) <= 2 * max(n, 5) * EPS * norm).all()
    assert (np.diff(got) >= 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 55, 130])
def test_random_matrices(n: int) -> None:
    assert_as_lapack(symmetric(11, n))


@pytest.mark.parametrize(
    "spectrum",
    [
        10.0 ** -np.arange(20),
        10.0 ** np.arange(20),
        np.r_[np.ones(10), 1 + 1e-14 * np.arange(5), np.full(5, -2.0)],
        np.r_[1.0, np.zeros(19)],
        np.r_[np.zeros(10), np.full(10, -3.0)],
        np.abs(np.arange(20) - 9.5),
        1e-300 * np.arange(20),
        1e-307 * 2.0 ** -np.arange(20),
        1e306 * np.arange(-10, 10),
    ],
    ids=["graded", "rising", "clustered", "rank 1", "half", "pairs", "tiny", "subnormal", "huge"],
)
def test_spectra_that_are_hard(spectrum: np.ndarray) -> None:
    assert_as_lapack((Q * spectrum) @ Q.transpose(0, 2, 1))


def test_closed_forms() -> None:
    n = 24
    second_difference = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    want = 2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1))
    np.testing.assert_allclose(eigenvalues(second_difference[None])[0], want, atol=n * EPS)
    np.testing.assert_array_equal(eigenvalues(np.zeros((3, 7, 7))), 0)
    np.testing.assert_array_equal(eigenvalues(np.stack([np.eye(9)] * 9)), 1)
    reversal = np.fliplr(np.eye(12))[None]
    np.testing.assert_allclose(eigenvalues(reversal)[0], np.repeat([-1, 1], 6), atol=12 * EPS)
    np.testing.assert_allclose(eigenvalues(np.ones((1, 30, 30)))[0, -1], 30, rtol=30 * EPS)
    diagonal = RNG.permutation(15) - 7.0
    np.testing.assert_array_equal(eigenvalues(np.diag(diagonal)[None])[0], np.sort(diagonal))


def test_wilkinsons_close_pair() -> None:
    w = np.diag(np.abs(np.arange(21) - 10.0)) + np.eye(21, k=1) + np.eye(21, k=-1)
    got = eigenvalues(w[None])[0]
    np.testing.assert_allclose(got[-2:], [10.746194182903322, 10.746194182903393], rtol=21 * EPS)


def test_a_matrix_that_is_not_finite_has_nan_and_its_neighbours_their_values() -> None:
    a = symmetric(10, 6)
    want = eigenvalues(a)
    a[3, 2, 2], a[5, 4, 1], a[8, 0, 0] = np.nan, np.inf, -np.inf
    got = eigenvalues(a)
    bad = [3, 5, 8]
    assert np.isnan(got[bad]).all()
    rest = np.setdiff1d(np.arange(10), bad)
    np.testing.assert_array_equal(got[rest], want[rest])


def test_values_do_not_depend_on_place_company_or_threads() -> None:
    a = symmetric(37, 13)
    want = eigenvalues(a)
    order = RNG.permutation(37)
    np.testing.assert_array_equal(eigenvalues(a[order]), want[order])
    np.testing.assert_array_equal(np.concatenate([eigenvalues(m[None]) for m in a]), want)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        np.testing.assert_array_equal(eigenvalues(a), want)
    finally:
        torch.set_num_threads(threads)


def test_only_the_lower_triangle_is_read() -> None:
    a = symmetric(4, 9)
    want = eigenvalues(a)
    rows, columns = np.triu_indices(9, 1)
    a[:, rows, columns] = np.nan
    np.testing.assert_array_equal(eigenvalues(a), want)


def test_scaling_by_a_power_of_two_scales_the_values_exactly() -> None:
    a = symmetric(5, 10)
    np.testing.assert_array_equal(eigenvalues(a * 2.0**-600), eigenvalues(a) * 2.0**-600)
