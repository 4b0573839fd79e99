"""The Lanczos driver: its relation, orthogonality, and every way in which it can end."""

from __future__ import annotations

import gc
import os
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_support import hilbert, loss_of_orthogonality, process, rows, with_spectrum

from pylandscape._native import core
from pylandscape.curvature.lanczos import Lanczos, random_starts
from pylandscape.curvature.operators import as_operator
from pylandscape.curvature.symmetric_operator import SymmetricOperator
from pylandscape.errors import InvalidArgument

ORTHOGONAL = 50  # eps, methods.md 10
WIDE = np.logspace(-12, 0, 200)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 90), steps=st.integers(1, 100), starts=st.integers(1, 4),
       single=st.booleans(), seed=st.integers(0, 1000))  # fmt: skip
def test_the_lanczos_relation_holds(
    n: int, steps: int, starts: int, single: bool, seed: int
) -> None:
    dtype = torch.float32 if single else torch.float64
    a = np.random.default_rng(seed).standard_normal((n, n))
    a = a + a.T
    lanczos = process(a, steps, starts=starts, seed=seed, dtype=dtype)
    eps = torch.finfo(dtype).eps
    for i in range(starts):
        q, (t, beta) = rows(lanczos, i), lanczos.tridiagonal(i)
        m = len(t)
        assert m == min(steps, n)
        residual = q @ a - t @ q  # beta e_m q_{m+1}
        scale = np.linalg.norm(a, 2)
        assert np.linalg.norm(residual[:-1]) <= 20 * eps * scale * np.sqrt(m)
        assert abs(np.linalg.norm(residual[-1]) - beta) <= 20 * eps * scale
        assert loss_of_orthogonality(lanczos, i) <= ORTHOGONAL


def test_full_orthogonality_where_the_plain_recurrence_loses_all_of_it() -> None:
    for matrix in (hilbert(12), with_spectrum(WIDE)):
        n = len(matrix)
        full, none = process(matrix, n), process(matrix, n, reorthogonalize="none")
        assert full.outcome() == "exhausted"
        assert full.steps() == n
        assert loss_of_orthogonality(full) <= ORTHOGONAL
        assert loss_of_orthogonality(none) > 1e12
        exact = np.linalg.eigvalsh(matrix)
        assert np.abs(full.ritz()[0] - exact).max() <= 50 * np.finfo(float).eps * exact[-1]


def test_partial_keeps_semi_orthogonality_with_fewer_passes() -> None:
    a = np.random.default_rng(0).standard_normal((300, 300))
    a = a + a.T
    full, partial = process(a, 300), process(a, 300, reorthogonalize="partial")
    limit = 10 * np.sqrt(np.finfo(float).eps) / np.finfo(float).eps  # semi-orthogonality
    assert loss_of_orthogonality(partial) <= limit
    assert partial.passes < full.passes / 4
    exact = np.linalg.eigvalsh(a)
    assert np.abs(partial.ritz()[0] - exact).max() <= 1e-10 * np.abs(exact).max()


def test_the_basis_is_streamed_twice_a_step() -> None:
    a = with_spectrum(np.random.default_rng(0).uniform(-1, 1, 2000))
    for dtype in (torch.float32, torch.float64):
        lanczos = process(a, 60, dtype=dtype)
        assert 2 * 60 <= lanczos.passes <= 2 * 60 + 2


def test_a_multiple_of_the_identity_breaks_down_at_once() -> None:
    for c in (3.0, 0.0, -1e-6, 1e12):
        lanczos = process(c * np.eye(30), 12, starts=3)
        for i in range(3):
            assert lanczos.outcome(i) == "breakdown"
            assert lanczos.steps(i) == 1
            assert lanczos.ritz(i)[0] == pytest.approx([c])
            assert lanczos.ritz(i)[2].tolist() == [0.0]


def test_a_breakdown_with_a_fresh_start_goes_on_to_the_whole_space() -> None:
    for matrix in (3.0 * np.eye(9), np.zeros((9, 9)), np.diag([1.0] * 5 + [-1.0] * 4)):
        lanczos = process(matrix, 9, fresh=True)
        assert lanczos.outcome() == "exhausted"
        assert loss_of_orthogonality(lanczos) <= ORTHOGONAL
        np.testing.assert_allclose(lanczos.ritz()[0], np.linalg.eigvalsh(matrix), atol=1e-14)


def test_hilbert_thirty_stays_orthogonal_through_its_breakdowns() -> None:
    lanczos = process(hilbert(30), 30, fresh=True)
    assert lanczos.steps() == 30
    assert loss_of_orthogonality(lanczos) <= ORTHOGONAL


def test_more_steps_than_dimensions_stop_at_n() -> None:
    lanczos = process(with_spectrum(np.arange(7.0)), 50)
    assert lanczos.steps() == 7
    assert lanczos.outcome() == "exhausted"
    one = process(np.array([[4.0]]), 5)
    assert one.ritz()[0].tolist() == [4.0]


def test_a_product_that_is_not_finite_ends_one_start_and_keeps_its_steps() -> None:
    a = with_spectrum(np.arange(1.0, 41.0))
    calls = []

    def product(v: torch.Tensor) -> torch.Tensor:
        calls.append(len(v))
        out = v @ torch.as_tensor(a)
        if len(calls) == 6:
            out[1, 3] = np.nan
        return out

    starts = random_starts(40, 3, 0, torch.float64)
    lanczos = Lanczos(SymmetricOperator(40, product), starts, 12)
    lanczos.run()
    assert [lanczos.outcome(i) for i in range(3)] == ["complete", "not finite", "complete"]
    assert [lanczos.steps(i) for i in range(3)] == [12, 5, 12]
    assert calls == [3] * 6 + [2] * 6
    want = process(a, 12, starts=3)
    for i in (0, 2):
        np.testing.assert_allclose(lanczos.ritz(i)[0], want.ritz(i)[0], rtol=1e-12)


def test_an_exception_of_the_product_comes_through_and_the_run_goes_on_from_there() -> None:
    a = with_spectrum(np.arange(1.0, 41.0))
    fail = [True]

    def product(v: torch.Tensor) -> torch.Tensor:
        if fail[0] and lanczos.steps() == 5:
            raise KeyboardInterrupt
        return v @ torch.as_tensor(a)

    lanczos = Lanczos(SymmetricOperator(40, product), random_starts(40, 1, 0, torch.float64), 12)
    with pytest.raises(KeyboardInterrupt):
        lanczos.run()
    assert lanczos.steps() == 5
    fail[0] = False
    lanczos.run()
    np.testing.assert_allclose(lanczos.ritz()[0], process(a, 12).ritz()[0], rtol=1e-12)


def test_ctrl_c_stops_a_run_of_native_products() -> None:
    import pylandscape as pl

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(200, 60), torch.nn.Tanh(), torch.nn.Linear(60, 5))
    data = torch.randn(4000, 200), torch.randint(0, 5, (4000,))
    land = pl.Landscape(model, "cross_entropy", data, engine="native")
    op = as_operator(land)
    lanczos = Lanczos(op, random_starts(op.n, 4, 0, op.dtype), 300)
    lanczos.run(2)  # the values at theta are there
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        lanczos.run()
    assert 2 <= lanczos.steps() < 300
    assert loss_of_orthogonality(lanczos) <= ORTHOGONAL


def test_starts_alone_and_together_and_any_threads_give_the_same_bits() -> None:
    a = with_spectrum(np.random.default_rng(1).uniform(-1, 1, 400))
    whole = process(a, 30, starts=3)
    starts = random_starts(400, 3, 0, torch.float64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for i in range(3):
            # A product of one row may round as it likes in BLAS; here it must not.
            op = SymmetricOperator(400, lambda v: torch.stack([torch.as_tensor(a) @ r for r in v]))
            alone = Lanczos(op, starts[i : i + 1], 30)
            alone.run()
            together = Lanczos(op, starts, 30)
            together.run()
            assert torch.equal(alone.basis[0, :30], together.basis[i, :30])
            np.testing.assert_allclose(alone.ritz()[0], whole.ritz(i)[0], rtol=1e-10, atol=1e-12)
    finally:
        torch.set_num_threads(threads)


def test_a_basis_in_a_file_gives_the_same_bits(tmp_path: Path) -> None:
    a = with_spectrum(np.arange(1.0, 101.0))
    starts = random_starts(100, 2, 0, torch.float64)
    here = Lanczos(as_operator(a), starts, 20)
    there = Lanczos(as_operator(a), starts, 20, workspace=tmp_path / "basis")
    here.run()
    there.run()
    assert torch.equal(here.basis, there.basis)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows_", "n"), [(1, 1), (3, 7), (9, 64), (17, 1000), (64, 70001)])
def test_orthogonalize_removes_what_gram_schmidt_removes(
    dtype: torch.dtype, rows_: int, n: int
) -> None:
    generator = torch.Generator().manual_seed(n)
    rows_ = min(rows_, n)
    q = torch.linalg.qr(torch.randn(n, rows_, generator=generator, dtype=torch.float64)).Q.T
    q = q.contiguous().to(dtype)
    w = torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)
    want = w.double() - q.double().T @ (q.double() @ w.double())
    c = np.empty(rows_)
    name = "orthogonalize_f32" if dtype == torch.float32 else "orthogonalize_f64"
    got = w.clone()
    norm, left = getattr(core, name)(q.data_ptr(), rows_, n, got.data_ptr(), c.ctypes.data)
    eps = torch.finfo(dtype).eps
    scale = float(w.double().norm())
    assert float((got.double() - want).norm()) <= 4 * eps * scale
    np.testing.assert_allclose(c, (q.double() @ w.double()).numpy(), atol=4 * eps * scale)
    assert norm == pytest.approx(float(want.norm()), rel=1e-5, abs=4 * eps * scale)
    if rows_ < n:
        assert left <= 4 * eps


def test_repeated_runs_do_not_leak() -> None:
    values = torch.arange(1.0, 20_001.0, 10.0, dtype=torch.float64)
    op = SymmetricOperator(2000, lambda v: v * values)
    starts = random_starts(2000, 2, 0, torch.float64)

    def once() -> None:
        Lanczos(op, starts, 40).run()

    for _ in range(5):
        once()
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(60):
        once()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 20 * 2 * 41 * 2000 * 8 / 1024  # a leak of one in three bases would show


def test_bad_starts_are_named() -> None:
    op = as_operator(np.eye(4))
    for bad in (torch.zeros(1, 4), torch.full((1, 4), float("nan"))):
        with pytest.raises(InvalidArgument, match="starts: expected rows that are finite"):
            Lanczos(op, bad, 3)
    with pytest.raises(InvalidArgument, match=r"starts: expected shape \(s, 4\), got \(1, 5\)"):
        Lanczos(op, torch.ones(1, 5), 3)
    with pytest.raises(InvalidArgument, match="steps: expected at least 1, got 0"):
        Lanczos(op, torch.ones(1, 4), 0)
    with pytest.raises(InvalidArgument, match="reorthogonalize: expected one of"):
        Lanczos(op, torch.ones(1, 4), 3, reorthogonalize="some")
    wrong = SymmetricOperator(4, lambda v: v[:, :3])
    with pytest.raises(InvalidArgument, match="operator: expected products of shape"):
        Lanczos(wrong, torch.ones(1, 4), 3).run()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton", "covariance"])
def test_native_products_cross_once_and_have_the_bits_of_those_through_python(
    dtype: torch.dtype, matrix: str
) -> None:
    import pylandscape as pl

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    data = torch.randn(50, 6), torch.randint(0, 3, (50,))
    land = pl.Landscape(model, "cross_entropy", data, engine="native", dtype=dtype)
    direct, through = as_operator(land, matrix), as_operator(land, matrix)
    through.native = None
    called = []
    multiply = direct.multiply
    direct.multiply = lambda v: (called.append(len(v)), multiply(v))[1]  # type: ignore[method-assign]
    runs = [Lanczos(op, random_starts(op.n, 2, 0, dtype), 12) for op in (direct, through)]
    for run in runs:
        run.run()
    assert called == [2]  # the first step's, which decides the scale
    assert direct.products == through.products == 24
    for i in range(2):
        for mine, theirs in zip(runs[0].state(i)[:2], runs[1].state(i)[:2], strict=True):
            assert mine.tobytes() == theirs.tobytes()
    assert torch.equal(runs[0].basis[:, :12], runs[1].basis[:, :12])


@pytest.mark.parametrize("size", [1e-250, 1e250])
def test_tiny_and_huge_matrices_have_their_own_units(size: float) -> None:
    a = with_spectrum(np.linspace(-1, 3, 30))
    plain, scaled = process(a, 10), process(a * size, 10)
    for mine, theirs in zip(scaled.ritz(), plain.ritz(), strict=True):
        scale = 1.0 if mine.ndim == 2 else size
        np.testing.assert_allclose(abs(mine) / scale, abs(theirs), rtol=1e-7, atol=1e-10)
    alpha, beta, spikes, _ = scaled.state()
    again = Lanczos(as_operator(a * size), random_starts(30, 1, 0, torch.float64), 14)
    again.basis[0, :11] = scaled.basis[0, :11]
    again.load(0, alpha, beta, spikes)
    again.recheck(0, alpha, 3, 1e-9)
    again.run()
    np.testing.assert_allclose(again.ritz()[0] / size, process(a, 14).ritz()[0], rtol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-250, 1e250])
def test_ritz_values_weights_and_bounds_of_a_second_difference_are_the_known_ones(
    scale: float,
) -> None:
    """Values 2 - 2 cos(j pi / (m + 1)), vectors sqrt(2 / (m + 1)) sin(i j pi / (m + 1))."""
    m = 40
    lanczos = process(scale * np.diag(np.arange(1.0, m + 2)), m)
    alpha, beta = np.full(m, 2 * scale), np.full(m, scale)
    lanczos.load(0, alpha, beta)
    turns = np.arange(1, m + 1) * np.pi / (m + 1)
    values, first, bounds = lanczos.nodes()
    np.testing.assert_allclose(values, (2 - 2 * np.cos(turns)) * scale, atol=4e-15 * scale, rtol=0)
    want = np.sqrt(2 / (m + 1)) * np.sin(turns)
    np.testing.assert_allclose(np.abs(first), want, atol=1e-14)
    np.testing.assert_allclose(bounds, want * scale, atol=1e-14 * scale, rtol=0)
    again, vectors, same = lanczos.ritz()
    assert again.tolist() == values.tolist()
    assert same.tolist() == bounds.tolist()
    assert np.abs(vectors.T @ vectors - np.eye(m)).max() < 1e-13
    assert np.abs(vectors[0]).tolist() == np.abs(first).tolist()
