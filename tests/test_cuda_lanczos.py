"""Lanczos with everything on the device: on a GPU where one is, by emulation everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from cuda_support import BACKENDS, Backend, PlainOps, backend  # noqa: F401
from pretended_gpu import OnDevice, pretended_gpu
from spectral_support import hilbert, process, with_spectrum
from torch import Tensor

import pylandscape as pl
from pylandscape._native import ops
from pylandscape.curvature import device_passes
from pylandscape.curvature.device_passes import DevicePasses
from pylandscape.curvature.lanczos import Lanczos, random_starts
from pylandscape.curvature.symmetric_operator import SymmetricOperator
from pylandscape.errors import InvalidArgument

ORTHOGONAL = 50  # eps, methods.md 10
CPU = torch.device("cpu")
FETCH = DevicePasses._fetch


@dataclass(frozen=True)
class There:
    """The device under test."""

    backend: Backend

    @property
    def device(self) -> torch.device:
        return self.backend.device

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Its tensors are taken for a GPU's."""
        own = device_passes.device_kernels
        with pytest.MonkeyPatch.context() as patch:
            if not self.backend.is_gpu:
                patch.setattr(device_passes, "device_kernels", lambda _: self.backend.ops)
            yield
        assert device_passes.device_kernels is own

    def operator(self, matrix: np.ndarray, dtype: torch.dtype = torch.float64) -> SymmetricOperator:
        """Of a dense matrix; products in float64 of vectors in dtype."""
        a = torch.as_tensor(matrix, device=self.device)
        return SymmetricOperator(len(a), lambda v: v.double() @ a, dtype=dtype, device=self.device)

    def lanczos(
        self,
        matrix: np.ndarray,
        steps: int,
        *,
        starts: int = 1,
        dtype: torch.dtype = torch.float64,
        **options: Any,
    ) -> Lanczos:
        """As `spectral_support.process`, from the same starts."""
        given = random_starts(len(matrix), starts, 0, dtype)
        with self.in_use():
            lanczos = Lanczos(self.operator(matrix, dtype), given, steps, **options)
            lanczos.run()
        assert lanczos._passes is not None
        return lanczos


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Vectors are short."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def there(backend: Backend) -> There:  # noqa: F811
    """With the kernels themselves, of which an emulated launch takes milliseconds."""
    return There(backend)


@pytest.fixture(params=[pytest.param("plain", id="plain"), BACKENDS[1]])
def above(request: Any) -> There:
    """With ops that are as fast as torch."""
    on_gpu = request.param == "cuda"
    return There(Backend(ops if on_gpu else PlainOps, torch.device("cuda") if on_gpu else CPU))


def lost(lanczos: Lanczos, start: int = 0) -> float:
    """||Q Q^T - I|| in eps of the basis' dtype."""
    q = lanczos.basis[start, : lanczos.steps(start)].double().cpu().numpy()
    return float(np.linalg.norm(q @ q.T - np.eye(len(q)), 2)) / torch.finfo(lanczos.dtype).eps


MATRICES = {
    "random": lambda: (lambda a: a + a.T)(np.random.default_rng(1).standard_normal((24, 24))),
    "hilbert": lambda: hilbert(12),
    "decaying": lambda: with_spectrum(np.logspace(-12, 0, 20)),
    "one": lambda: np.array([[4.0]]),
}


@pytest.mark.parametrize("mode", ["full", "partial", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MATRICES)
def test_alpha_and_beta_are_the_cpu_drivers(
    there: There, name: str, dtype: torch.dtype, mode: str
) -> None:
    """To rounding for as many steps as rounding does not grow, then by what T is for."""
    matrix = MATRICES[name]()
    options: dict[str, Any] = {"starts": 2, "dtype": dtype, "reorthogonalize": mode}
    want = process(matrix, len(matrix), **options)
    got = there.lanczos(matrix, len(matrix), **options)
    eps, scale = torch.finfo(dtype).eps, np.linalg.norm(matrix, 2)
    for i in range(2):
        assert got.outcome(i) == want.outcome(i)
        for mine, other in zip(got.state(i)[:2], want.state(i)[:2], strict=True):
            np.testing.assert_allclose(mine[:4], other[:4], atol=20 * eps * scale)
        if mode == "full":
            assert lost(got, i) <= ORTHOGONAL
        if mode == "full" and got.outcome(i) == "exhausted":
            exact = np.linalg.eigvalsh(matrix)
            assert np.abs(got.ritz(i)[0] - exact).max() <= 50 * eps * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_whole_process_with_a_gap_is_the_cpu_drivers_to_a_few_eps(
    there: There, dtype: torch.dtype
) -> None:
    a = with_spectrum(np.random.default_rng(0).uniform(-1, 1, 300))
    want, got = process(a, 20, starts=2, dtype=dtype), there.lanczos(a, 20, starts=2, dtype=dtype)
    for i in range(2):
        for mine, other in zip(got.state(i)[:2], want.state(i)[:2], strict=True):
            np.testing.assert_allclose(mine, other, atol=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_basis_is_streamed_twice_and_the_device_waited_for_once_a_step(
    above: There, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, steps = [0], 40
    fetch = DevicePasses._fetch

    def counted(self: DevicePasses, blocks: list[Any]) -> Any:
        waits[0] += 1
        return fetch(self, blocks)

    monkeypatch.setattr(DevicePasses, "_fetch", counted)
    a = with_spectrum(np.random.default_rng(0).uniform(-1, 1, 500))
    lanczos = above.lanczos(a, steps, starts=5, dtype=dtype)
    assert 2 * steps <= lanczos.passes <= 2 * steps + 2
    assert waits[0] == 1 + steps + lanczos.passes - 2 * steps  # the first: norms of the starts


def test_nothing_is_waited_for_but_the_numbers_of_a_step(
    there: There, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the GPU: torch raises where anything waits outside `_fetch`."""
    if not there.backend.is_gpu:
        pytest.skip("torch can only tell on a GPU")
    fetch = DevicePasses._fetch

    def allowed(self: DevicePasses, blocks: list[Any]) -> Any:
        torch.cuda.set_sync_debug_mode(0)
        try:
            return fetch(self, blocks)
        finally:
            torch.cuda.set_sync_debug_mode(2)

    a = with_spectrum(np.random.default_rng(0).uniform(-1, 1, 500))
    given = random_starts(500, 3, 0, torch.float32)
    with there.in_use():
        lanczos = Lanczos(there.operator(a, torch.float32), given, 20)
        monkeypatch.setattr(DevicePasses, "_fetch", allowed)
        try:
            torch.cuda.set_sync_debug_mode(2)
            lanczos.run()
        finally:
            torch.cuda.set_sync_debug_mode(0)
    assert lanczos.outcome() == "complete"


def test_partial_keeps_semi_orthogonality_with_fewer_passes(above: There) -> None:
    a = np.random.default_rng(0).standard_normal((150, 150))
    a = a + a.T
    partial = above.lanczos(a, 150, reorthogonalize="partial")
    assert partial.passes < 150
    assert lost(partial) <= 10 * np.finfo(float).eps ** -0.5
    exact = np.linalg.eigvalsh(a)
    assert np.abs(partial.ritz()[0] - exact).max() <= 1e-10 * np.abs(exact).max()


def test_breakdowns_end_or_go_on_with_a_fresh_vector(there: There) -> None:
    ended = there.lanczos(3.0 * np.eye(30), 12, starts=3)
    for i in range(3):
        assert (ended.outcome(i), ended.steps(i)) == ("breakdown", 1)
        assert ended.ritz(i)[0] == pytest.approx([3.0])
    for matrix in (3.0 * np.eye(9), np.zeros((9, 9)), np.diag([1.0] * 5 + [-1.0] * 4)):
        for dtype in (torch.float32, torch.float64):
            fresh = there.lanczos(matrix, 9, starts=2, dtype=dtype, fresh=True)
            for i in range(2):
                assert fresh.outcome(i) == "exhausted"
                assert lost(fresh, i) <= ORTHOGONAL
                eps = torch.finfo(dtype).eps
                exact = np.linalg.eigvalsh(matrix)
                np.testing.assert_allclose(fresh.ritz(i)[0], exact, atol=20 * eps)


def test_a_product_that_is_not_finite_ends_one_start_and_the_others_go_on(there: There) -> None:
    a = with_spectrum(np.arange(1.0, 41.0))
    dense, calls = torch.as_tensor(a, device=there.device), []

    def product(v: torch.Tensor) -> torch.Tensor:
        calls.append(len(v))
        out = v @ dense
        if len(calls) == 6:
            out[1, 3] = torch.nan
        return out

    given = random_starts(40, 4, 0, torch.float64)
    with there.in_use():
        lanczos = Lanczos(SymmetricOperator(40, product, device=there.device), given, 12)
        lanczos.run()
    assert [lanczos.outcome(i) for i in range(4)] == [
        "complete", "not finite", "complete", "complete",
    ]  # fmt: skip
    assert [lanczos.steps(i) for i in range(4)] == [12, 5, 12, 12]
    assert calls == [4] * 6 + [3] * 6
    want = process(a, 12, starts=4)
    for i in (0, 2, 3):
        np.testing.assert_allclose(lanczos.ritz(i)[0], want.ritz(i)[0], rtol=1e-12)


@pytest.mark.parametrize("where", ["multiply", "advance", "orthogonalize", "remove", "normalize"])
def test_what_is_raised_anywhere_in_a_step_leaves_the_steps_before_it(
    above: There, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a matrix whose steps need further removals and, by halves, partial reorthogonalisation."""
    a = with_spectrum(np.logspace(-9, 0, 40))
    mode = "partial" if where == "orthogonalize" else "full"
    run, stop = getattr(DevicePasses, where), [False]

    def interrupted(self: DevicePasses, *given: Any) -> Any:
        found = run(self, *given)
        if stop[0] and lanczos.steps() >= 6:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(DevicePasses, where, interrupted)
    given = random_starts(40, 2, 0, torch.float64)
    with above.in_use():
        lanczos = Lanczos(above.operator(a), given, 40, reorthogonalize=mode, fresh=True)
        stop[0] = True
        with pytest.raises(KeyboardInterrupt):
            lanczos.run()
        stop[0] = False
        for i in range(2):
            alpha, beta, _, _ = lanczos.state(i)
            assert len(alpha) == len(beta)
            assert lanczos.running(i)
        lanczos.run()
        whole = Lanczos(above.operator(a), given, 40, reorthogonalize=mode, fresh=True)
        whole.run()
    for i in range(2):
        for mine, other in zip(lanczos.state(i)[:2], whole.state(i)[:2], strict=True):
            assert np.array_equal(mine, other)
        assert torch.equal(lanczos.basis[i, : lanczos.steps(i)], whole.basis[i, : whole.steps(i)])


def test_starts_alone_and_together_give_the_same_bits(there: There) -> None:
    a = torch.as_tensor(with_spectrum(np.random.default_rng(1).uniform(-1, 1, 40)))
    a = a.to(there.device)
    op = SymmetricOperator(40, lambda v: torch.stack([a @ r for r in v]), device=there.device)
    starts = random_starts(40, 66, 0, torch.float64)  # more than one launch takes
    with there.in_use():
        together = Lanczos(op, starts, 3)
        together.run()
        for i in (0, 1, 64, 65):
            alone = Lanczos(op, starts[i : i + 1], 3)
            alone.run()
            assert torch.equal(alone.basis[0, :3], together.basis[i, :3])
            assert np.array_equal(alone.state()[0], together.state(i)[0])


def test_starts_with_different_numbers_of_rows_go_on_together(above: There) -> None:
    a = with_spectrum(np.random.default_rng(1).uniform(-1, 1, 120))
    given = random_starts(120, 4, 0, torch.float64)
    with above.in_use():
        whole = Lanczos(above.operator(a), given, 20)
        whole.run()
        part = Lanczos(above.operator(a), given, 20)
        part.basis[:] = whole.basis
        for i, m in enumerate((3, 3, 7, 0)):
            alpha, beta, _, _ = whole.state(i)
            part.load(i, alpha[:m], beta[:m])
        part.run()
    for i in range(4):
        for mine, other in zip(part.state(i)[:2], whole.state(i)[:2], strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-11)


def test_the_products_may_come_in_any_form(above: There) -> None:
    """Not contiguous, of the basis' dtype or float64, or the vector itself."""
    a = with_spectrum(np.arange(1.0, 31.0))
    dense = torch.as_tensor(a, device=above.device)
    want, given = process(a, 10, dtype=torch.float32), random_starts(30, 1, 0, torch.float32)
    forms = (
        lambda v: (dense.float() @ v.T).T,
        lambda v: v.double() @ dense,
        lambda v: v.mul_(1.0) @ dense.float(),
        lambda v: v @ dense.float(),
    )
    for form in forms:
        op = SymmetricOperator(30, form, dtype=torch.float32, device=above.device)
        with above.in_use():
            lanczos = Lanczos(op, given, 10)
            lanczos.run()
        np.testing.assert_allclose(lanczos.ritz()[0], want.ritz()[0], rtol=1e-4)
    same = SymmetricOperator(30, lambda v: v, dtype=torch.float32, device=above.device)
    wrong = SymmetricOperator(30, lambda v: v[:, :3], device=above.device)
    with above.in_use():
        lanczos = Lanczos(same, random_starts(30, 1, 0, torch.float32), 10)
        lanczos.run()
        assert lanczos.ritz()[0] == pytest.approx([1.0])
        with pytest.raises(InvalidArgument, match="operator: expected products of shape"):
            Lanczos(wrong, random_starts(30, 1, 0, torch.float64), 3).run()
        with pytest.raises(InvalidArgument, match="starts: expected rows that are finite"):
            Lanczos(same, torch.zeros(1, 30), 3)


def test_a_workspace_keeps_the_basis_on_the_host(above: There, tmp_path: Path) -> None:
    a = with_spectrum(np.arange(1.0, 31.0))
    given = random_starts(30, 2, 0, torch.float64)
    with above.in_use():
        lanczos = Lanczos(above.operator(a), given, 10, workspace=tmp_path / "basis")
        lanczos.run()
    assert lanczos.basis.device == CPU
    np.testing.assert_allclose(lanczos.ritz()[0], process(a, 10, starts=2).ritz()[0], rtol=1e-12)


def test_random_starts_are_normal_and_each_ones_own(there: There) -> None:
    with there.in_use():
        found = random_starts(20_000, 3, 5, torch.float64, there.device).cpu()
        again = random_starts(20_000, 2, 5, torch.float64, there.device).cpu()
        narrow = random_starts(20_000, 2, 5, torch.float32, there.device).cpu()
    assert torch.equal(found[:2], again)
    assert torch.equal(narrow.double(), again)
    assert found.mean(1).abs().max() < 5 / 20_000**0.5
    assert (found.var(1) - 1).abs().max() < 5 * (2 / 20_000) ** 0.5
    assert (found @ found.T).fill_diagonal_(0).abs().max() < 5 * 20_000**0.5


# --- what is built on it -----------------------------------------------------------------------


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_eigenpairs_restart_and_converge(above: There, which: str) -> None:
    a = with_spectrum(np.r_[np.linspace(-1, 1, 196), -5.0, 6.0, 7.0, 9.0])
    want = pl.eigenpairs(a, 4, which, basis=20, progress=False)
    with above.in_use():
        for measure in (False, True):
            got = pl.eigenpairs(
                above.operator(a), 4, which, basis=20, measure=measure, progress=False
            )
            assert got.converged.all()
            assert got.info["restarts"] > 0 or which == "LM"
            assert got.vectors.device == CPU
            np.testing.assert_allclose(got.values, want.values, rtol=1e-9, atol=1e-9)
            left = got.vectors.numpy() @ a - got.values[:, None] * got.vectors.numpy()
            norms = np.linalg.norm(left, axis=1)
            assert (norms <= 2 * got.residuals + 1e-12).all()


def test_a_restart_keeps_float32_rows_orthonormal(above: There) -> None:
    a = with_spectrum(np.random.default_rng(3).uniform(-1, 1, 150))
    with above.in_use():
        op = above.operator(a, torch.float32)
        lanczos = Lanczos(op, random_starts(150, 1, 0, torch.float32), 30)
        lanczos.run()
        values, turn, _ = lanczos.ritz()
        lanczos.rotate(turn[:, 10:])
        lanczos.basis[0, 20] = lanczos.basis[0, 30]
        beta = lanczos.tridiagonal()[1]
        lanczos.load(0, values[10:], np.zeros(20), beta * turn[-1, 10:])
        lanczos.run()
    assert lost(lanczos) <= ORTHOGONAL
    q, (t, _) = lanczos.basis[0, :30].double().numpy(), lanczos.tridiagonal()
    eps = torch.finfo(torch.float32).eps
    assert np.linalg.norm((q @ a - t @ q)[:-1]) <= 40 * eps


class Stop(Exception):
    pass


def test_a_spectrum_stopped_on_the_device_goes_on_from_its_file(
    above: There, tmp_path: Path
) -> None:
    a = with_spectrum(np.random.default_rng(1).uniform(-1, 1, 150))
    dense, left = torch.as_tensor(a, device=above.device), [8]

    def product(v: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return v @ dense

    def ask(path: Path | None) -> pl.Spectrum:
        op = SymmetricOperator(150, product, device=above.device, about={"a": 1})
        return pl.spectrum(op, 3, 15, vectors=2, path=path, progress=False)

    with above.in_use():
        with pytest.raises(Stop):
            ask(tmp_path / "s.h5")
        left[0] = 1000
        whole, resumed = ask(None), ask(tmp_path / "s.h5")
    assert left[0] > 1000 - 15 - 9 - 5
    np.testing.assert_allclose(resumed.nodes, whole.nodes, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(resumed.weights, whole.weights, rtol=1e-9, atol=1e-12)
    assert resumed.pairs is not None
    assert resumed.pairs.vectors.device == CPU


def test_eigenpairs_stopped_on_the_device_go_on_from_their_file(
    above: There, tmp_path: Path
) -> None:
    a = with_spectrum(np.r_[np.linspace(-1, 1, 147), 1.2, 1.3, 1.4])
    dense, left = torch.as_tensor(a, device=above.device), [25]

    def product(v: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return v @ dense

    op = SymmetricOperator(150, product, device=above.device, about={"a": 1})
    options: dict[str, Any] = {"basis": 20, "path": tmp_path / "e.h5", "progress": False}
    with above.in_use():
        with pytest.raises(Stop):
            pl.eigenpairs(op, 3, **options)
        left[0] = 1000
        pairs = pl.eigenpairs(op, 3, **options)
    assert pairs.converged.all()
    assert pairs.products > 25
    np.testing.assert_allclose(pairs.values, [1.4, 1.3, 1.2], rtol=1e-9)


@pytest.mark.parametrize("method", ["xtrace", "hutch++", "hutchinson"])
def test_traces_are_estimated_on_the_device(above: There, method: str) -> None:
    a = with_spectrum(np.linspace(0, 1, 300) ** 8)
    with above.in_use():
        op = above.operator(a)
        found = pl.trace(op, 60, method)
        norm = pl.frobenius_norm(op, 60, method)
        exact = pl.trace(op, 300)
    assert abs(found.value - np.trace(a)) <= 5 * found.standard_error
    assert abs(norm.value - np.linalg.norm(a)) <= 5 * norm.standard_error + 0.05 * norm.value
    assert exact.value == pytest.approx(np.trace(a), rel=1e-12)


@pytest.mark.parametrize("method", ["xdiag", "hutchinson"])
def test_diagonals_are_estimated_on_the_device(above: There, method: str) -> None:
    a = with_spectrum(np.linspace(0, 1, 200) ** 8)
    with above.in_use():
        found = pl.diagonal(above.operator(a), 80, method)
        exact = pl.diagonal(above.operator(a), 200)
    assert isinstance(found.value, np.ndarray)
    away = np.abs(found.value - np.diag(a)) / found.standard_error
    assert np.mean(away < 3) > 0.9
    np.testing.assert_allclose(exact.value, np.diag(a), rtol=1e-12, atol=1e-14)


def landscape(device: torch.device) -> pl.Landscape:
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    data = torch.randn(50, 6).to(device), torch.randint(0, 3, (50,)).to(device)
    model = torch.nn.Sequential(*layers).to(device)
    return pl.Landscape(model, "cross_entropy", data, dtype=torch.float64, engine="torch")


def test_every_question_of_a_landscape_answers_there(above: There) -> None:
    land = landscape(above.device)
    h = land.hessian().cpu().numpy()
    exact = np.linalg.eigvalsh(h)
    with above.in_use():
        top = pl.eigenpairs(land, 3, progress=False)
        spectrum = pl.spectrum(land, 3, 40, vectors=1, progress=False)
        layers = pl.layer_spectra(land, 2, 20, progress=False)
        report = pl.outliers(land, 3, progress=False)
        sharp = pl.hidden_curvature(land, pl.random_directions(land, 2, seed=1), progress=False)
        found = pl.classify(land, land.theta[None], method="lanczos", progress=False)
        low, high = spectrum.extremes
    np.testing.assert_allclose(top.values, exact[::-1][:3], rtol=1e-8)
    assert exact[0] - 1e-10 <= low <= high <= exact[-1] + 1e-10
    assert high == pytest.approx(exact[-1], rel=1e-9)
    assert set(layers) == {"0", "2"}
    np.testing.assert_allclose(report.values, exact[::-1][:3], rtol=1e-8)
    assert 0 <= report.covariance_overlap <= 1 + 1e-12
    assert 0 <= report.gradient_concentration <= 1
    assert report.lambda_min == pytest.approx(exact[0], abs=2e-3 * exact[-1])
    assert exact[0] - 1e-6 <= sharp.across_min <= sharp.across_max <= exact[-1] + 1e-6
    assert found.gradient_norms[0] == pytest.approx(float(land.gradient().norm()))
    assert found.kinds[0] in ("singular", "saddle", "undecided", "convex")


def test_no_estimate_mixes_devices_and_no_vector_comes_to_the_host() -> None:
    """On a pretended GPU, where both are errors; probes are its own, so within their errors."""
    h = landscape(CPU).hessian().numpy()
    exact, trace = np.linalg.eigvalsh(h), float(np.trace(h))
    with pretended_gpu() as device, mock.patch.object(DevicePasses, "_fetch", _small_fetch):
        there = landscape(device)
        for method in ("xtrace", "hutch++", "hutchinson"):
            found = pl.trace(there, 40, method)
            assert abs(found.value - trace) <= 6 * found.standard_error
            assert pl.frobenius_norm(there, 40, method).value > 0
        for method in ("xdiag", "hutchinson"):
            assert np.isfinite(pl.diagonal(there, 40, method).standard_error).all()
        spectrum = pl.spectrum(there, 3, 40, vectors=1, progress=False)
        assert spectrum.extremes[1] == pytest.approx(exact[-1], rel=1e-9)
        for which in ("LA", "BE"):
            top = pl.eigenpairs(there, 4, which, basis=20, measure=True, progress=False)
            assert top.values[0] == pytest.approx(exact[-1], rel=1e-8)
            assert not isinstance(top.vectors, OnDevice)
        report = pl.outliers(there, 3, progress=False)
        np.testing.assert_allclose(report.values, exact[::-1][:3], rtol=1e-8)
        sharp = pl.hidden_curvature(there, pl.random_directions(there, 2, seed=1), progress=False)
        assert sharp.across_max <= exact[-1] + 1e-6
        assert set(pl.layer_spectra(there, 2, 20, progress=False)) == {"0", "2"}
        op = pl.as_operator(there)
        lanczos = Lanczos(op, random_starts(op.n, 2, 0, op.dtype, op.device), 10)
        lanczos.run()
        assert isinstance(lanczos.basis, OnDevice)
        assert isinstance(lanczos.vectors(lanczos.ritz()[1]), OnDevice)


def _small_fetch(self: DevicePasses, blocks: list[Tensor]) -> list[list[float]]:
    assert sum(block.numel() for block in blocks) <= 4 * 3 * 42
    return FETCH(self, blocks)
