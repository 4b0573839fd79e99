"""Eigenvalues of many small matrices against LAPACK: on a GPU, and by emulation everywhere."""

from __future__ import annotations

import pytest
import torch
from cuda_support import Backend, backend  # noqa: F401
from emulation_support import emulated_ops, scheduled
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
# Around a warp's lanes, what a warp takes (32), and what fits into shared memory (105).
ORDERS = (1, 2, 3, 5, 15, 31, 32, 33, 63, 64, 65, 105, 106)


def symmetric(count: int, n: int) -> Tensor:
    g = torch.Generator().manual_seed(n)
    a = torch.randn(count, n, n, generator=g, dtype=torch.float64)
    return a + a.mT


def with_spectrum(values: Tensor, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    a = (q * values) @ q.T
    return (a + a.T) / 2


def assert_spectrum(got: Tensor, want: Tensor, n: int) -> None:
    """Backward stable: off by a few eps of the largest, times a slow function of n."""
    tolerance = EPS * (10 + 3 * n**0.5) * float(want.abs().max())
    torch.testing.assert_close(got, want.sort(dim=-1)[0], rtol=0, atol=tolerance)


def solve(on: Backend, a: Tensor) -> Tensor:
    found: Tensor = on.ops.small_eigenvalues(a.to(on.device)).cpu()
    return found


@pytest.mark.parametrize("n", ORDERS)
def test_random_matrices_have_the_spectrum_of_lapack(
    backend: Backend,  # noqa: F811
    n: int,
) -> None:
    for count in (1, 9, 66) if n < 16 else (9,) if n <= 33 else (2,):
        a = symmetric(count, n)
        for got, want in zip(solve(backend, a), torch.linalg.eigvalsh(a), strict=True):
            assert_spectrum(got, want, n)


@pytest.mark.parametrize("n", [15, 55, 110])
def test_clustered_graded_and_rank_deficient_spectra(
    backend: Backend,  # noqa: F811
    n: int,
) -> None:
    few = torch.zeros(n, dtype=torch.float64)
    few[:3] = torch.tensor([-2.0, 1, 5])
    clusters = torch.tensor([1.0, 1.0 + 1e-12, -3.0], dtype=torch.float64).repeat(n)[:n]
    signs = (-1.0) ** torch.arange(n)
    wide = torch.logspace(-30, 0, n, dtype=torch.float64) * signs
    for seed, values in enumerate((few, clusters, wide, torch.ones_like(few))):
        got = solve(backend, with_spectrum(values, seed)[None])[0]
        assert_spectrum(got, values, 4 * n)  # the matrix itself was rounded
    scale = torch.logspace(0, -16, n, dtype=torch.float64)
    for s in (scale, scale.flip(0)):
        a = symmetric(1, n) * torch.minimum(s[:, None], s)
        assert_spectrum(solve(backend, a)[0], torch.linalg.eigvalsh(a[0]), n)


@pytest.mark.parametrize("n", [4, 33, 107])
def test_zero_identity_and_diagonal_matrices_are_exact(
    backend: Backend,  # noqa: F811
    n: int,
) -> None:
    diagonal = torch.arange(n, dtype=torch.float64).flip(0)
    one = torch.eye(n, dtype=torch.float64)
    a = torch.stack([0 * one, one, -3 * one, diagonal.diag()])
    want = torch.stack([0 * diagonal, one.sum(0), -3 * one.sum(0), diagonal.flip(0)])
    assert torch.equal(solve(backend, a), want)


def test_matrices_of_any_scale_keep_their_relative_accuracy(
    backend: Backend,  # noqa: F811
) -> None:
    a = symmetric(1, 12)[0]
    want = torch.linalg.eigvalsh(a)
    for exponent in (-1000, -300, 300, 1000):
        got = solve(backend, torch.ldexp(a, torch.tensor(exponent))[None])[0]
        assert_spectrum(torch.ldexp(got, torch.tensor(-exponent)), want, 12)


@pytest.mark.parametrize("n", [7, 40, 108])
def test_a_matrix_that_is_not_finite_gives_nan_and_leaves_its_neighbours(
    backend: Backend,  # noqa: F811
    n: int,
) -> None:
    a = symmetric(4, n)
    want = solve(backend, a)
    for bad in (torch.nan, torch.inf, -torch.inf):
        spoilt = a.clone()
        spoilt[1, n - 1, 0] = spoilt[2, n // 2, n // 2] = bad
        got = solve(backend, spoilt)
        assert got[1:3].isnan().all()
        assert torch.equal(got[[0, 3]], want[[0, 3]])


def test_only_lower_triangles_are_read_and_views_are_taken(
    backend: Backend,  # noqa: F811
) -> None:
    for n in (6, 35, 107):
        a = symmetric(3, n)
        want, lower = solve(backend, a), a.clone()
        above, right = torch.triu_indices(n, n, 1)
        lower[:, above, right] = torch.nan
        assert torch.equal(solve(backend, lower), want)
        inside = torch.full((3, n + 1, n + 2), torch.nan, dtype=torch.float64)
        inside[:, 1:, 2:] = a
        assert torch.equal(solve(backend, inside[:, 1:, 2:]), want)


@pytest.mark.parametrize("n", [5, 32, 40, 106])
def test_no_order_of_threads_and_no_neighbour_changes_a_bit(n: int) -> None:
    on, a = emulated_ops(), symmetric(9 if n <= 32 else 2, n)
    want = on.small_eigenvalues(a)
    assert torch.equal(on.small_eigenvalues(a[1:2])[0], want[1])
    for order in ("reversed", "shuffled"):
        with scheduled(order, order, seed=n):
            assert torch.equal(on.small_eigenvalues(a), want)


def test_no_matrices_give_none_and_other_shapes_are_refused(
    backend: Backend,  # noqa: F811
) -> None:
    assert solve(backend, torch.empty(0, 4, 4, dtype=torch.float64)).shape == (0, 4)
    assert solve(backend, torch.empty(3, 0, 0, dtype=torch.float64)).shape == (3, 0)
    for a in (torch.zeros(4, 4), torch.zeros(2, 3, 4), torch.zeros(1, 1001, 1001)):
        with pytest.raises((RuntimeError, ValueError), match=r"matrices: expected shape"):
            solve(backend, a.double())
    with pytest.raises((RuntimeError, ValueError), match="matrices: expected float64"):
        solve(backend, torch.zeros(1, 2, 2))
