"""Trace, Frobenius norm and diagonal: exact where they can be, unbiased, with honest errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grid_support import classifier
from scipy.sparse.linalg import aslinearoperator

from pylandscape.curvature.operators import as_operator
from pylandscape.curvature.symmetric_operator import SymmetricOperator
from pylandscape.curvature.traces import Estimate, diagonal, frobenius_norm, trace
from pylandscape.errors import InvalidArgument

EPS = torch.finfo(torch.float64).eps
METHODS = ("xtrace", "hutch++", "hutchinson")
DECAYING = 0.8 ** np.arange(60.0)
SLOW = 1 / (1 + np.arange(60.0))


def symmetric(eigenvalues, seed=0) -> torch.Tensor:
    """Q diag(eigenvalues) Q^T with a random orthogonal Q."""
    gen = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=gen, dtype=torch.float64))
    return (q * torch.as_tensor(np.asarray(eigenvalues))) @ q.T


def low_rank(n, rank, seed=0) -> torch.Tensor:
    values = np.zeros(n)
    values[:rank] = np.linspace(-2.0, 5.0, rank)
    return symmetric(values, seed)


def frobenius(a):
    return float(torch.linalg.matrix_norm(a))


@pytest.mark.parametrize("method", ["xtrace", "hutch++"])
@pytest.mark.parametrize("rank", [1, 4, 7])
def test_low_rank_matrices_are_exact(method, rank):
    a = low_rank(80, rank)
    # the basis has to span the range, with one vector left out for XTrace
    products = 2 * (rank + 1) if method == "xtrace" else max(3 * rank, 4)
    tolerance = 200 * 80 * EPS * 5
    for more in (0, 3, 20):
        found = trace(a, products + more, method)
        assert abs(found.value - float(a.trace())) <= tolerance
        assert found.standard_error <= 10 * tolerance
        norm = frobenius_norm(a, products + more, method)
        assert norm.value == pytest.approx(frobenius(a), rel=1e-10)


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_the_diagonal_of_a_low_rank_matrix_is_exact(rank):
    a = low_rank(80, rank)
    found = diagonal(a, products=3 * (rank + 1))
    assert np.abs(found.value - a.diagonal().numpy()).max() <= 1e-11
    assert found.standard_error.max() <= 1e-11


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", [DECAYING, SLOW, np.linspace(-1, 1, 60) ** 3 + 0.1])
def test_the_trace_is_unbiased(method, spectrum):
    a = symmetric(spectrum)
    found = np.array([trace(a, 18, method, seed).value for seed in range(300)])
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean() - spectrum.sum()) <= 4 * error + 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_the_squared_frobenius_norm_is_unbiased(method):
    a = symmetric(SLOW)
    found = np.array([frobenius_norm(a, 18, method, seed).value ** 2 for seed in range(300)])
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean() - (SLOW**2).sum()) <= 4 * error


@pytest.mark.parametrize("method", ["xdiag", "hutchinson"])
def test_the_diagonal_is_unbiased(method):
    a = symmetric(SLOW)
    found = np.array([diagonal(a, 18, method, seed).value for seed in range(300)])
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    away = np.abs(found.mean(axis=0) - a.diagonal().numpy()) / error
    assert away.max() <= 5  # the worst of 60


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", [DECAYING, SLOW])
def test_error_bars_of_the_trace_are_honest(method, spectrum):
    a = symmetric(spectrum)
    found = [trace(a, 40, method, seed) for seed in range(200)]
    covered = [abs(e.value - spectrum.sum()) <= 2 * e.standard_error for e in found]
    assert 0.85 <= np.mean(covered) <= 1.0
    spread = np.std([e.value for e in found], ddof=1)
    claimed = np.sqrt(np.mean([e.standard_error**2 for e in found]))
    assert 0.9 * spread <= claimed <= 1.4 * spread  # and neither are they padded


@pytest.mark.parametrize("method", METHODS)
def test_error_bars_of_the_norm_are_honest(method):
    a = symmetric(SLOW)
    found = [frobenius_norm(a, 40, method, seed) for seed in range(200)]
    covered = [abs(e.value - frobenius(a)) <= 2 * e.standard_error for e in found]
    assert 0.85 <= np.mean(covered) <= 1.0


@pytest.mark.parametrize("method", ["xdiag", "hutchinson"])
@pytest.mark.parametrize("spectrum", [DECAYING, SLOW])
def test_error_bars_of_the_diagonal_are_honest(method, spectrum):
    a = symmetric(spectrum)
    exact = a.diagonal().numpy()
    found = [diagonal(a, 40, method, seed) for seed in range(50)]
    covered = [np.abs(e.value - exact) <= 2 * e.standard_error for e in found]
    assert 0.85 <= np.mean(covered) <= 1.0


def test_a_decaying_spectrum_is_where_xtrace_and_hutch_plus_plus_win():
    a = symmetric(DECAYING)
    spread = {
        method: np.std([trace(a, 36, method, seed).value for seed in range(50)])
        for method in METHODS
    }
    assert spread["xtrace"] < spread["hutch++"] / 2 < spread["hutchinson"] / 8


@pytest.mark.parametrize("method", METHODS)
def test_the_zero_operator_has_trace_and_norm_zero(method):
    zero = torch.zeros(50, 50, dtype=torch.float64)
    for found in (trace(zero, 12, method), frobenius_norm(zero, 12, method)):
        assert (found.value, found.standard_error) == (0.0, 0.0)


@pytest.mark.parametrize("method", ["xdiag", "hutchinson"])
def test_the_zero_operator_has_a_zero_diagonal(method):
    found = diagonal(torch.zeros(50, 50), 12, method)
    assert not found.value.any()
    assert not found.standard_error.any()


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e100])
@pytest.mark.parametrize("method", METHODS)
def test_the_estimate_scales_with_the_matrix(method, scale):
    a = symmetric(SLOW)
    found, one = trace(scale * a, 20, method), trace(a, 20, method)
    assert found.value == pytest.approx(scale * one.value, rel=1e-9)
    assert found.standard_error == pytest.approx(scale * one.standard_error, rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 17, 40])
@pytest.mark.parametrize("method", METHODS)
def test_with_n_products_everything_is_exact(n, method):
    a = symmetric(np.linspace(-1, 3, n))
    op = as_operator(a)
    found = trace(op, max(n, 2), method)
    assert found.value == pytest.approx(float(a.trace()), abs=n * EPS * 4)
    assert (found.standard_error, found.products, op.products) == (0.0, n, n)
    assert found.method == "exact"
    assert frobenius_norm(a, max(n, 2), method).value == pytest.approx(frobenius(a))
    of = diagonal(a, n + 100)
    assert np.abs(of.value - a.diagonal().numpy()).max() <= 4 * EPS
    assert of.products == n


@pytest.mark.parametrize("products", [4, 5, 39])
@pytest.mark.parametrize("method", METHODS)
def test_no_more_products_are_used_than_allowed_in_blocks_of_at_most_16(method, products):
    a, blocks = symmetric(DECAYING), []

    def product(v):
        blocks.append(len(v))
        return v @ a

    found = trace(SymmetricOperator(60, product), products, method)
    assert found.products == sum(blocks) <= products
    assert max(blocks) <= 16
    assert np.isfinite([found.value, found.standard_error]).all()


def test_the_seed_fixes_the_bits():
    a = symmetric(SLOW)
    for f in (trace, frobenius_norm):
        for method in METHODS:
            values = [f(a, 20, method, seed).value for seed in (0, 0, 1)]
            assert values[0] == values[1] != values[2]
    values = [diagonal(a, 20, seed=seed).value for seed in (0, 0, 1)]
    assert (values[0] == values[1]).all()
    assert (values[0] != values[2]).any()


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    trace(symmetric(SLOW), 20)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_operators_of_scipy_and_of_float32_will_do():
    a = symmetric(SLOW)
    assert trace(aslinearoperator(a.numpy()), 20).value == pytest.approx(trace(a, 20).value)
    found = trace(a.float(), 20)
    assert found.value == pytest.approx(trace(a, 20).value, rel=1e-4)


def test_products_that_are_not_finite_give_nan():
    a = symmetric(SLOW)
    a[3, 3] = torch.nan
    for method in METHODS:
        assert np.isnan(trace(a, 20, method).value)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_the_hessian_of_a_small_mlp(engine):
    land = classifier(engine=engine)
    exact = land.hessian()
    tolerance = 1e-4 * frobenius(exact)  # float32 products
    assert trace(land, land.n_params).value == pytest.approx(float(exact.trace()), abs=tolerance)
    for method in METHODS:
        found = trace(land, 40, method)
        assert abs(found.value - float(exact.trace())) <= 4 * found.standard_error
        norm = frobenius_norm(land, 40, method)
        assert abs(norm.value - frobenius(exact)) <= 4 * norm.standard_error
    every = diagonal(land, land.n_params).value
    assert np.abs(every - exact.diagonal().numpy()).max() <= tolerance


def test_a_block_of_the_hessian_and_another_point():
    land = classifier()
    theta = 0.5 * land.theta
    size = land.layout["0.weight"].numel
    found = trace(land, 1000, theta=theta, params=["0.weight"])
    exact = land.hessian(theta)[:size, :size].trace()
    assert found.products == size
    assert found.value == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"products": 1}, "products: expected at least 2 .*, got 1"),
        ({"products": 0}, "products: expected at least 2 .*, got 0"),
        ({"products": -5}, "got -5"),
        ({"products": 3}, "products: expected at least 4 for 'xtrace' and n = 60, got 3"),
        ({"products": 3, "method": "hutch++"}, "at least 4 for 'hutch"),
        ({"products": 2.5}, "products: expected an integer, got 2.5"),
        ({"method": "girard"}, "method: expected one of 'xtrace', .*, got 'girard'"),
        ({"seed": "x"}, "seed: expected a 64-bit integer, got 'x'"),
        ({"seed": 2**70}, "seed: expected a 64-bit integer"),
        ({"matrix": "gauss_newton"}, "expected only with a Landscape"),
    ],
)
@pytest.mark.parametrize("f", [trace, frobenius_norm])
def test_wrong_arguments_are_named(f, options, said):
    if options.get("products") in (0, -5, 1):
        options = {**options, "method": "hutchinson"}
    with pytest.raises(InvalidArgument, match=said):
        f(symmetric(SLOW), **options)


def test_wrong_operators_and_methods_of_the_diagonal_are_named():
    with pytest.raises(InvalidArgument, match="square matrix"):
        trace(np.ones((2, 3)))
    with pytest.raises(InvalidArgument, match="method: expected one of 'xdiag', 'hutchinson'"):
        diagonal(np.eye(3), method="xtrace")
    with pytest.raises(InvalidArgument, match="products: expected at least 2"):
        trace(np.eye(1), products=1)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (12.345, 0.42, "12.3 +- 0.4 (100 products, xtrace)"),
        (-1234.5, 20.0, "-1.23e+03 +- 2e+01 (100 products, xtrace)"),
        (0.0012345, 1e-6, "0.001234 +- 1e-06 (100 products, xtrace)"),
        (0.1, 3.0, "0.1 +- 3 (100 products, xtrace)"),
        (0.0, 0.5, "0 +- 0.5 (100 products, xtrace)"),
        (6.0, 0.0, "6 +- 0 (100 products, xtrace)"),
        (np.nan, np.nan, "nan +- nan (100 products, xtrace)"),
    ],
)
def test_an_estimate_shows_the_digits_that_it_knows(value, error, said):
    estimate = Estimate(value, error, 100, "xtrace")
    assert repr(estimate) == said
    assert float(estimate) == pytest.approx(value, nan_ok=True)


def test_an_estimated_diagonal_is_no_number():
    found = diagonal(np.eye(2))
    assert repr(found) == "2 values +- at most 0 (2 products, exact)"
    with pytest.raises(TypeError, match="expected one number, got 2"):
        float(found)


@pytest.mark.parametrize("size", [1e-200, 1e-165, 1e200])
@pytest.mark.parametrize("products", [20, 100])
def test_the_size_of_a_matrix_does_not_matter(size: float, products: int) -> None:
    a = np.diag(np.linspace(1, 3, 60))
    for function in (trace, frobenius_norm, diagonal):
        plain, scaled = function(a, products), function(a * size, products)
        np.testing.assert_allclose(scaled.value / size, plain.value, rtol=1e-12)
        np.testing.assert_allclose(scaled.standard_error / size, plain.standard_error, rtol=1e-6)
