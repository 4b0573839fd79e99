"""Stochastic Lanczos quadrature against the identities that it must satisfy (methods: 10)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from spectral_support import hilbert, with_spectrum
from torch import nn

import pylandscape as pl
from pylandscape.curvature.spectra import layer_spectra, spectrum
from pylandscape.curvature.symmetric_operator import SymmetricOperator
from pylandscape.errors import InvalidArgument, ResumeMismatch


def landscape(seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> pl.Landscape:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 4)).to(dtype)
    x, y = torch.randn(60, 8).to(dtype), torch.randint(0, 4, (60,))
    return pl.Landscape(model, "cross_entropy", (x, y), **options)


def test_all_steps_give_the_eigenvalues_and_squared_components() -> None:
    a = with_spectrum(np.sort(np.random.default_rng(0).standard_normal(40)))
    exact, q = np.linalg.eigh(a)
    found = spectrum(a, 3, 40, starts=np.random.default_rng(1).standard_normal((3, 40)),
                     progress=False)  # fmt: skip
    starts = np.random.default_rng(1).standard_normal((3, 40))
    starts /= np.linalg.norm(starts, axis=1, keepdims=True)
    assert found.outcomes == ("exhausted",) * 3
    np.testing.assert_allclose(found.nodes, np.tile(exact, (3, 1)), atol=1e-13)
    np.testing.assert_allclose(found.weights, (starts @ q) ** 2, atol=1e-12)


def test_unit_starts_give_equal_mean_weights() -> None:
    a = with_spectrum(np.linspace(-1, 3, 30))
    found = spectrum(a, 30, 30, starts=np.eye(30), progress=False)
    np.testing.assert_allclose(found.weights.mean(axis=0), 1 / 30, atol=1e-14)
    np.testing.assert_allclose(found.trace[0], np.trace(a), rtol=1e-12)


def test_moments_are_exact_to_degree_two_m_minus_one_and_no_further() -> None:
    a = with_spectrum(np.linspace(-1, 1, 60))
    v = np.random.default_rng(0).standard_normal(60)
    v /= np.linalg.norm(v)
    m = 6
    found = spectrum(a, 1, m, starts=v[None], progress=False)
    power = v.copy()
    for p in range(2 * m + 1):
        moment = float(found.weights[0] @ found.nodes[0] ** p)
        error = abs(moment - float(v @ power))
        assert error <= 1e-14 if p < 2 * m else error > 1e-6
        power = a @ power


def test_a_multiple_of_the_identity_is_one_node_after_one_step() -> None:
    found = spectrum(2.5 * np.eye(20), 4, 10, progress=False)
    assert found.outcomes == ("breakdown",) * 4
    np.testing.assert_array_equal(found.nodes[:, 0], 2.5)
    np.testing.assert_array_equal(found.weights[:, 0], 1.0)
    assert np.isnan(found.nodes[:, 1:]).all()


@pytest.mark.parametrize("matrix", [hilbert(12), with_spectrum(np.logspace(-12, 0, 200))])
def test_steep_spectra_are_completed_at_m_equal_n(matrix: np.ndarray) -> None:
    n = len(matrix)
    found = spectrum(matrix, 2, n, progress=False)
    assert found.outcomes == ("exhausted",) * 2
    exact = np.linalg.eigvalsh(matrix)
    assert np.abs(found.nodes - exact).max() <= 50 * np.finfo(float).eps * exact[-1]


def test_a_tiny_hessian_keeps_its_relative_accuracy() -> None:
    big, small = (spectrum(c * with_spectrum(np.linspace(0.1, 1, 50)), 2, 50, progress=False)
                  for c in (1.0, 1e-6))  # fmt: skip
    np.testing.assert_allclose(small.nodes, 1e-6 * big.nodes, rtol=1e-10)


def test_the_structural_null_space_of_a_softmax_network() -> None:
    # h + 1 null directions of the softmax, and M (d + 1 - rank [X, 1]) of the first layer.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(200, 12, dtype=torch.float64)
    x[:, 9:] = x[:, :3] - x[:, 3:6]  # rank 9 of 12
    y = torch.randint(0, 3, (200,))
    land = pl.Landscape(model, "cross_entropy", (x, y))
    values = torch.linalg.eigvalsh(land.hessian()).abs()
    null = int((values <= land.n_params * 2.3e-16 * values.max()).sum())
    assert null == (5 + 1) + 5 * 3
    found = spectrum(land, 20, land.n_params, progress=False)
    share = found.mean(lambda t: np.abs(t) <= 1e-10)
    assert abs(share[0] - null / land.n_params) <= 4 * share[1]


def test_estimates_are_within_their_error_bars() -> None:
    land = landscape()
    h = land.hessian()
    found = spectrum(land, 30, 40, progress=False)
    value, error = found.trace
    assert abs(value - float(h.trace())) <= 4 * error
    squares = found.mean(np.square)
    assert abs(squares[0] - float((h**2).sum()) / land.n_params) <= 4 * squares[1]
    density = found.density()
    assert density.mass == pytest.approx(1.0, abs=1e-3)
    assert (density.values >= 0).all()
    low, high = found.extremes
    exact = torch.linalg.eigvalsh(h)
    assert low == pytest.approx(float(exact[0]), abs=1e-6)
    assert high == pytest.approx(float(exact[-1]), abs=1e-6)


def test_eigenpairs_come_from_the_same_run() -> None:
    land = landscape()
    found = spectrum(land, 3, 60, vectors=4, progress=False)
    assert found.pairs is not None
    exact = torch.linalg.eigvalsh(land.hessian()).numpy()[::-1][:4]
    np.testing.assert_allclose(found.pairs.values, exact, rtol=1e-8)
    x = found.pairs.vectors
    residual = land.hvp(x) - torch.as_tensor(found.pairs.values)[:, None] * x
    assert float(residual.norm()) <= 2 * np.linalg.norm(found.pairs.residuals) + 1e-12


def test_every_layer_in_one_call() -> None:
    land = landscape()
    h = land.hessian().numpy()
    found = layer_spectra(land, 2, 200, progress=False)
    assert list(found) == ["0", "2"]
    for name, at in (("0", slice(0, 90)), ("2", slice(90, 134))):
        exact = np.linalg.eigvalsh(h[at, at])
        assert found[name].n == len(exact)
        assert found[name].extremes == pytest.approx((exact[0], exact[-1]), abs=1e-10)
    only = layer_spectra(land, 1, 5, params=["2.*"], progress=False)
    assert list(only) == ["2"]


@pytest.mark.parametrize("matrix", ["gauss_newton", "covariance"])
def test_other_matrices(matrix: str) -> None:
    land = landscape()
    product = {"gauss_newton": land.gauss_newton_product, "covariance": land.covariance_product}
    dense = product[matrix](torch.eye(land.n_params, dtype=torch.float64)).numpy()
    exact = np.linalg.eigvalsh((dense + dense.T) / 2)
    found = spectrum(land, 2, 134, matrix=matrix, progress=False)
    assert found.extremes[1] == pytest.approx(exact[-1], rel=1e-8)
    assert found.extremes[0] == pytest.approx(exact[0], abs=1e-10)


def test_a_seed_fixes_the_bits_and_probes_do_not_depend_on_their_number() -> None:
    land = landscape()
    three = spectrum(land, 3, 12, seed=5, progress=False)
    again = spectrum(land, 3, 12, seed=5, progress=False)
    one = spectrum(land, 1, 12, seed=5, progress=False)
    other = spectrum(land, 1, 12, seed=6, progress=False)
    np.testing.assert_array_equal(three.nodes, again.nodes)
    np.testing.assert_array_equal(three.nodes[0], one.nodes[0])
    assert not np.array_equal(one.nodes, other.nodes)


def test_float32_and_float64_bases_agree_to_their_rounding() -> None:
    land = landscape(dtype=torch.float32)
    single = spectrum(land, 2, 30, progress=False)
    double = spectrum(land, 2, 30, dtype=torch.float64, progress=False)
    top = double.extremes[1]
    assert single.extremes[1] == pytest.approx(top, rel=1e-5)
    assert single.trace[0] == pytest.approx(double.trace[0], abs=1e-4 * top * land.n_params)


def test_a_product_that_is_not_finite_ends_its_probe_and_says_where() -> None:
    a = torch.as_tensor(with_spectrum(np.linspace(0, 1, 50)))
    calls = 0

    def product(v: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        out = v @ a
        if calls == 4:
            out[1] = float("inf")
        return out

    with pytest.warns(UserWarning, match="probe 1: the product of step 4 is not finite"):
        found = spectrum(SymmetricOperator(50, product), 3, 10, progress=False)
    assert found.outcomes == ("complete", "not finite", "complete")
    assert np.isfinite(found.nodes[1, :3]).all()
    assert np.isnan(found.nodes[1, 3:]).all()
    with pytest.raises(InvalidArgument, match="expected finite products"), pytest.warns():
        spectrum(np.full((4, 4), np.nan), progress=False)


def test_an_interrupted_run_goes_on_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pylandscape.curvature.spectra.TOGETHER", 2)  # groups of two probes
    a = torch.as_tensor(with_spectrum(np.linspace(0, 1, 70)))
    calls, stop = 0, 30

    def product(v: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return torch.stack([a @ row for row in v])

    path = tmp_path / "s.h5"

    def ask(path: Path | None, **options: Any) -> pl.Spectrum:
        op = SymmetricOperator(70, product, about={"matrix": "the test's"})  # whatever `stop` is
        return spectrum(op, 5, 20, vectors=2, seed=3, path=path, progress=False, **options)

    with pytest.raises(KeyboardInterrupt):
        ask(path)
    assert (tmp_path / "s.h5.lanczos").exists()
    stop = -1
    resumed = ask(path)
    assert calls < 29 + 35
    calls = 0
    whole = ask(None)
    for name in ("nodes", "weights", "bounds"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    assert resumed.pairs is not None
    assert whole.pairs is not None
    assert torch.equal(resumed.pairs.vectors, whole.pairs.vectors)
    assert resumed.info["products"] == whole.info["products"]
    assert not (tmp_path / "s.h5.lanczos").exists()
    calls = 0
    loaded = ask(path)
    assert calls == 0
    np.testing.assert_array_equal(loaded.nodes, whole.nodes)
    with pytest.raises(ResumeMismatch, match="sigma2"):
        ask(path, sigma2=1e-3)


def test_a_basis_that_does_not_fit_goes_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    land = landscape()
    want = spectrum(land, 2, 15, progress=False)
    monkeypatch.setattr("pylandscape.curvature.spectra.MEMORY_SHARE", 0.0)
    np.testing.assert_array_equal(spectrum(land, 2, 15, progress=False).nodes, want.nodes)


@pytest.mark.parametrize(("options", "message"), [
    ({"probes": 0}, "probes: expected at least 1, got 0"),
    ({"steps": 0}, "steps: expected at least 1, got 0"),
    ({"steps": 2.5}, "steps: expected an integer, got 2.5"),
    ({"vectors": 9}, r"vectors: expected at most 5 \(the steps\), got 9"),
    ({"sigma2": -1.0}, "sigma2"),
    ({"reorthogonalize": "twice"}, "reorthogonalize: expected one of full, partial, none"),
    ({"starts": np.ones((2, 4))}, r"starts: expected shape \(k, 5\), got \(2, 4\)"),
    ({"starts": np.zeros((2, 5))}, "starts: expected rows that are finite and not zero"),
    ({"dtype": torch.float16}, "dtype: expected torch.float32 or torch.float64"),
])  # fmt: skip
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        spectrum(np.eye(5), progress=False, **options)


@pytest.mark.slow
def test_the_density_of_the_784_20_10_network_is_within_the_headline_error() -> None:
    """Ten minutes and 4 GB: the exact spectrum of 15,910 parameters against k = 10, m = 90."""
    from bench.headline import headline

    ours = headline(quick=False)[0]
    assert ours["met"]
    assert max(ours["l1"]) < 0.005


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"starts": np.eye(9)[:2]}, {"starts": np.eye(9)[2:4]}),
        ({"a": csr_array(np.diag(np.arange(9.0)))}, {"a": csr_array(np.eye(9))}),
    ],
)
def test_a_file_of_other_starts_or_another_sparse_matrix_is_refused(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    options = {"a": np.diag(np.arange(9.0)), "probes": 2, "steps": 3, "progress": False}
    options["path"] = tmp_path / "s.h5"
    pl.spectrum(**{**options, **first})
    with pytest.raises(pl.ResumeMismatch, match=r"starts|digest"):
        pl.spectrum(**{**options, **second})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma2": -1.0}, "sigma2: expected a positive variance"),
        ({"sigma2": "x"}, "sigma2: expected a positive variance"),
        ({"dtype": "float32"}, "dtype: expected torch.float32 or torch.float64"),
        ({"starts": [["a"]]}, "starts: expected numbers"),
    ],
)
def test_bad_options_are_refused_before_the_first_product(
    options: dict[str, Any], message: str
) -> None:
    op = pl.SymmetricOperator(5, lambda v: v)
    with pytest.raises(pl.InvalidArgument, match=message):
        pl.spectrum(op, 2, 3, progress=False, **options)
    assert op.products == 0


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (np.eye(3) * 1j, "real numbers"),
        (csr_array(np.eye(3) * 1j), "real numbers"),
        ([["a", "b"], ["c", "d"]], "real numbers"),
        ([[1.0, 2.0], [3.0]], "real numbers"),
        (pl.SymmetricOperator(3, lambda v: v.numpy()), "products as a tensor, got ndarray"),
    ],
)
def test_matrices_that_are_not_real_numbers_are_refused(a: Any, message: str) -> None:
    with pytest.raises(pl.InvalidArgument, match=message):
        pl.spectrum(a, 2, 2, progress=False)


def test_an_unfinished_run_that_cannot_be_read_is_not_called_continuable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "s.h5.lanczos").write_text("no HDF5")
    with pytest.raises(pl.FileFormatError):
        pl.spectrum(np.eye(5), 2, 3, path=tmp_path / "s.h5", progress=False)
    assert "continues" not in caplog.text


@pytest.mark.parametrize("size", [1e-200, 1e-160, 1e200])
def test_the_size_of_a_matrix_does_not_matter(size: float) -> None:
    a = np.diag(np.linspace(-1, 3, 60))
    plain, scaled = (pl.spectrum(a * f, 2, 20, vectors=2, progress=False) for f in (1.0, size))
    np.testing.assert_allclose(scaled.nodes / size, plain.nodes, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scaled.weights, plain.weights, rtol=1e-6, atol=1e-12)
    assert scaled.pairs is not None
    assert plain.pairs is not None
    np.testing.assert_allclose(scaled.pairs.values / size, plain.pairs.values, rtol=1e-9)
