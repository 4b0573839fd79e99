"""CUDA: what an installation without a GPU says, and the kernels of directions against the CPU's.

They run on a GPU where one is, and by emulation everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cuda_support import PROBLEM, Backend, backend, on_gpu  # noqa: F401
from emulation_support import emulated_ops, scheduled
from test_directions import DTYPES, MODES, landscape, random_segments, reference, segments_of
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import _native
from pylandscape._native import has_cuda_kernels, ops
from pylandscape.errors import CudaUnavailable, InvalidArgument
from pylandscape.theta.directions import NORMALIZATIONS

HELD = (960, 961, 962, 8128, 8129, 8130)  # lengths around what a warp and a block hold


def rtol(dtype: torch.dtype) -> float:
    """A factor and a product round once each; in float64 the sums of squares round too."""
    return (3 if dtype == torch.float32 else 24) * torch.finfo(dtype).eps


@pytest.mark.skipif(not has_cuda_kernels, reason="built without CUDA kernels")
def test_the_cuda_library_loads_beside_this_torch_and_knows_it() -> None:
    torch_can, error, count = ops.cuda_status()
    assert torch_can == (torch.version.cuda is not None)
    if torch_can:
        assert (count if error == 0 else 0) == torch.cuda.device_count()


@pytest.mark.skipif(PROBLEM is None, reason="CUDA can be used here")
def test_asking_for_cuda_without_it_says_what_is_missing() -> None:
    with pytest.raises(CudaUnavailable, match=r"CUDA kernels|no CUDA support|no usable GPU"):
        pl.gaussian(0, 0, 0, 4, device="cuda")


def test_a_build_without_cuda_kernels_says_how_to_get_them(monkeypatch: Any) -> None:
    monkeypatch.setattr(_native, "has_cuda_kernels", False)
    with pytest.raises(CudaUnavailable, match=r"install nvcc and build again.*PYLANDSCAPE_CUDA=ON"):
        pl.gaussian(0, 0, 0, 4, device="cuda")


@pytest.mark.parametrize("first", [0, 1, 63, 64, 1000, 2**36 - 100])
def test_raw_draws_have_the_cpus_bits(backend: Backend, first: int) -> None:  # noqa: F811
    for count in (0, 1, 63, 64, 65, 1000, 4095, 4096, 4097, 100_003):
        out = torch.empty(count, device=backend.device)
        got = backend.ops.gaussian(7, 3, first, out=out)
        assert torch.equal(got.cpu(), pl.gaussian(7, 3, first, count))


def test_many_raw_draws_have_the_cpus_bits(backend: Backend) -> None:  # noqa: F811
    count = 1 << (24 if backend.is_gpu else 19)
    out = torch.empty(count, device=backend.device)
    got = backend.ops.gaussian(-1, 2**40, 5, out=out).cpu()
    assert torch.equal(got, pl.gaussian(-1, 2**40, 5, count))


def _cases() -> list[tuple[int, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    cases = [random_segments(generator) for _ in range(3)]
    for gap in (0, 7):
        edges, at = [], 0
        for size in (*HELD, 1, 0, 70, 100_001):
            at += gap
            edges.append((at, at + size))
            at += size
        cases.append((at + gap, segments_of(*edges)))
    return [*cases, (0, segments_of()), (100, segments_of())]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_directions_agree_with_the_cpus_to_a_few_eps(
    backend: Backend,  # noqa: F811
    mode: str,
    dtype: torch.dtype,
) -> None:
    on, there = backend.ops, backend.device
    for n, segments in _cases():
        theta, d = torch.randn(n, dtype=dtype), torch.randn(n, dtype=dtype)
        drawn = on.random_direction(theta.to(there), segments, mode, 5, 1).cpu()
        want = ops.random_direction(theta, segments, mode, 5, 1)
        torch.testing.assert_close(drawn, want, rtol=rtol(dtype), atol=0)
        given = on.normalize_direction(d.to(there), theta.to(there), segments, mode).cpu()
        want = ops.normalize_direction(d, theta, segments, mode)
        torch.testing.assert_close(given, want, rtol=rtol(dtype), atol=0)
        exact = reference(d, theta, segments, mode)
        torch.testing.assert_close(given.double(), exact, rtol=rtol(dtype), atol=1e-300)


def test_every_element_is_written_and_no_other(backend: Backend) -> None:  # noqa: F811
    for n, segments in _cases():
        space = torch.full((n + 64,), torch.nan, device=backend.device)
        theta = torch.randn(n, device=backend.device)
        backend.ops.random_direction(theta, segments, "filter", 0, 0, out=space[32 : n + 32])
        assert space[32 : n + 32].isfinite().all()
        assert space[:32].isnan().all()
        assert space[n + 32 :].isnan().all()


@on_gpu
@pytest.mark.parametrize("mode", MODES)
def test_every_run_gives_the_same_bits(mode: str) -> None:
    n, segments = random_segments(torch.Generator().manual_seed(4))
    theta = torch.randn(n, device="cuda")
    first = ops.random_direction(theta, segments, mode, 1, 1)
    for _ in range(5):
        assert torch.equal(ops.random_direction(theta, segments, mode, 1, 1), first)


@pytest.mark.parametrize("mode", MODES)
def test_no_order_of_threads_and_blocks_changes_a_bit(mode: str) -> None:
    on = emulated_ops()
    n, segments = _cases()[-3]
    theta, d = torch.randn(n), torch.randn(n)
    drawn = on.random_direction(theta, segments, mode, 1, 1)
    given = on.normalize_direction(d, theta, segments, mode)
    c = torch.randn(3, 2, dtype=torch.float64)
    moved = on.perturb(theta, c, torch.stack([d, drawn]))
    for order in ("reversed", "shuffled"):
        with scheduled(order, order, seed=3):
            assert torch.equal(on.random_direction(theta, segments, mode, 1, 1), drawn)
            assert torch.equal(on.normalize_direction(d, theta, segments, mode), given)
            assert torch.equal(on.perturb(theta, c, torch.stack([d, drawn])), moved)


@pytest.mark.parametrize("mode", MODES)
def test_zero_filters_and_zero_draws_give_zero_never_nan(
    backend: Backend,  # noqa: F811
    mode: str,
) -> None:
    segments = segments_of((0, 3), (3, 6), (6, 9))
    theta = torch.tensor([0.0, 0, 0, 1, 2, 3, 1, 1, 1], device=backend.device)
    d = torch.tensor([1.0, 2, 3, 0, 0, 0, 1, 0, 0], device=backend.device)
    out = backend.ops.normalize_direction(d, theta, segments, mode)
    assert out.isfinite().all()
    assert not out[3:6].any()
    assert not backend.ops.normalize_direction(torch.zeros_like(d), theta, segments, mode).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_perturb_has_the_cpus_bits(backend: Backend, dtype: torch.dtype) -> None:  # noqa: F811
    on, there = backend.ops, backend.device
    cases = [(1, 1, 7), (33, 2, 1028), (70, 3, 515), (5, 6, 4096), (3, 0, 10), (0, 2, 9)]
    for g, k, n in (*cases, (2, 2, 255), (2, 1, 256), (31, 2, 257), (32, 2, 1023), (3, 2, 1024)):
        theta, d = torch.randn(n, dtype=dtype), torch.randn(k, n, dtype=dtype)
        c = torch.randn(g, k, dtype=torch.float64)
        got = on.perturb(theta.to(there), c, d.to(there)).cpu()
        assert torch.equal(got, ops.perturb(theta, c, d))
        shifted = torch.randn(n + 1, dtype=dtype, device=there)[1:]  # not 16-byte aligned
        got = on.perturb(shifted, c, d.to(there))
        assert torch.equal(got.cpu(), ops.perturb(shifted.cpu(), c, d))


@on_gpu
def test_kernels_run_on_torchs_current_stream() -> None:
    n, segments = 1 << 22, segments_of((0, 1 << 22))
    theta = torch.empty(n, device="cuda")
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        for _ in range(50):
            theta.normal_()  # still under way when the kernels are launched
        theta.fill_(2.0)
        d = ops.random_direction(theta, segments, "layer", 0, 0)
        c = torch.ones(1, 1, dtype=torch.float64)
        moved = ops.perturb(theta, c, d[None])[0]
    side.synchronize()
    norm = d.double().norm().item()
    assert norm == pytest.approx(2.0 * n**0.5, rel=1e-6)
    assert torch.equal(moved, theta + d)


def test_inputs_may_be_views_and_out_may_be_the_input(backend: Backend) -> None:  # noqa: F811
    segments, on = segments_of((0, 40), (50, 100)), backend.ops
    theta, d = (torch.randn(100, 2, device=backend.device)[:, 0] for _ in range(2))
    want = on.normalize_direction(d.contiguous(), theta.contiguous(), segments, "filter")
    assert torch.equal(on.normalize_direction(d, theta, segments, "filter"), want)
    own = d.contiguous()
    on.normalize_direction(own, theta, segments, "filter", out=own)
    assert torch.equal(own, want)


@on_gpu
def test_tensors_on_other_devices_are_refused() -> None:
    theta, segments = torch.ones(9), segments_of((0, 9))
    c, d = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 9)
    for call in (
        lambda: ops.normalize_direction(theta, theta.cuda(), segments, "filter"),
        lambda: ops.normalize_direction(theta.cuda(), theta, segments, "filter"),
        lambda: ops.random_direction(theta.cuda(), segments.cuda(), "filter", 0, 0),
        lambda: ops.random_direction(theta.cuda(), segments, "filter", 0, 0, out=theta.clone()),
        lambda: ops.perturb(theta.cuda(), c, d),
        lambda: ops.perturb(theta, c.cuda(), d),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            call()


@on_gpu
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_random_directions_of_a_landscape_on_cuda_are_the_cpus(normalize: str | None) -> None:
    land = landscape()
    there = pl.Landscape(
        land.model, torch.nn.CrossEntropyLoss(), land.dataset.tensors(), device="cuda"
    )
    for a, b in zip(
        pl.random_directions(land, 2, normalize=normalize, seed=3),
        pl.random_directions(there, 2, normalize=normalize, seed=3),
        strict=True,
    ):
        assert b.vector.is_cuda
        torch.testing.assert_close(b.vector.cpu(), a.vector, rtol=rtol(torch.float32), atol=0)


def _mlp() -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Linear(20, 7), nn.Tanh(), nn.Linear(7, 3))
    return model, torch.randn(90, 20), torch.randint(0, 3, (90,))


@on_gpu
def test_a_landscape_on_cuda_runs_the_compiled_program() -> None:
    model, x, y = _mlp()
    land = pl.Landscape(model, "cross_entropy", (x, y))
    there = pl.Landscape(model, "cross_entropy", (x, y), device="cuda")
    assert there.engine == "native", there.engine_report()
    assert "cuda sm_" in str(there.engine_report())
    d = pl.random_directions(land, 2)
    c, metrics = np.random.default_rng(0).normal(size=(50, 2)), ("loss", "accuracy")
    got = there.evaluate(c, [v.vector for v in d], metrics=metrics)
    want = land.evaluate(c, d, metrics=metrics)
    np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-5)
    np.testing.assert_array_equal(got["accuracy"], want["accuracy"])
    torch.testing.assert_close(there.gradient().cpu(), land.gradient(), rtol=1e-3, atol=1e-6)
    v = torch.randn(land.n_params)
    torch.testing.assert_close(there.hvp(v).cpu(), land.hvp(v), rtol=1e-3, atol=1e-5)


@on_gpu
def test_what_has_no_cuda_kernels_runs_on_torch_and_says_why() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).cuda()
    data = (torch.randn(8, 4, device="cuda"), torch.randint(0, 3, (8,), device="cuda"))
    report = pl.Landscape(model, "cross_entropy", data, bn="recompute").engine_report()
    assert report.engine == "torch"
    assert 'bn="recompute"' in str(report.reason)


@on_gpu
def test_a_model_and_data_on_two_devices_say_so() -> None:
    model, x, y = _mlp()
    with pytest.raises(
        InvalidArgument, match=r"data: expected tensors on cuda:0.*got cpu.*device="
    ):
        pl.Landscape(model.cuda(), "cross_entropy", (x, y))
    with pytest.raises(InvalidArgument, match=r"data: expected tensors on cpu.*got cuda:0"):
        pl.Landscape(model.cpu(), "cross_entropy", (x.cuda(), y.cuda()))


@on_gpu
@pytest.mark.parametrize("wide", [False, True])
def test_questions_wait_for_nothing_and_can_be_captured(wide: bool) -> None:
    model, x, y = _mlp()
    land = pl.Landscape(model, "cross_entropy", (x, y))
    engine = Backend(ops, torch.device("cuda")).engine(
        model, land, shared_limit=64 if wide else 160 << 10
    )
    thetas = torch.randn(6, land.n_params, device="cuda")
    question = engine.ask(None, None)
    want = question.sums(thetas, hits=True)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        question.sums(thetas, hits=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        question.sums(thetas, hits=True)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        got = question.sums(thetas, hits=True)
    thetas += 0.0
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(got, want)


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_questions_run_on_the_device_of_their_tensors() -> None:
    model, x, y = _mlp()
    land = pl.Landscape(model, "cross_entropy", (x, y))
    there = pl.Landscape(model, "cross_entropy", (x, y), device="cuda:1")
    assert there.engine == "native"
    assert there.loss() == pytest.approx(land.loss(), rel=1e-5)
    assert torch.cuda.current_device() == 0
