"""CUDA: what an installation without a GPU says, and the kernels against the CPU's where one is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_directions import DTYPES, MODES, landscape, random_segments, segments_of
from torch import Tensor

import pylandscape as pl
from pylandscape import _native
from pylandscape._native import cuda_problem, has_cuda_kernels, ops
from pylandscape.errors import CudaUnavailable

PROBLEM = cuda_problem()
on_gpu = pytest.mark.skipif(PROBLEM is not None, reason=PROBLEM or "")
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


@on_gpu
@pytest.mark.parametrize("first", [0, 1, 63, 64, 1000, 2**36 - 100])
def test_raw_draws_have_the_cpus_bits(first: int) -> None:
    for count in (0, 1, 63, 64, 65, 1000, 100_003):
        on_cpu = pl.gaussian(7, 3, first, count)
        assert torch.equal(pl.gaussian(7, 3, first, count, device="cuda").cpu(), on_cpu)


@on_gpu
def test_many_raw_draws_have_the_cpus_bits() -> None:
    count = 1 << 24
    on_gpu_ = pl.gaussian(-1, 2**40, 5, count, device="cuda").cpu()
    assert torch.equal(on_gpu_, pl.gaussian(-1, 2**40, 5, count))


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


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_directions_agree_with_the_cpus_to_a_few_eps(mode: str, dtype: torch.dtype) -> None:
    for n, segments in _cases():
        theta, d = torch.randn(n, dtype=dtype), torch.randn(n, dtype=dtype)
        for got, want in (
            (
                ops.random_direction(theta.cuda(), segments, mode, 5, 1),
                ops.random_direction(theta, segments, mode, 5, 1),
            ),
            (
                ops.normalize_direction(d.cuda(), theta.cuda(), segments, mode),
                ops.normalize_direction(d, theta, segments, mode),
            ),
        ):
            torch.testing.assert_close(got.cpu(), want, rtol=rtol(dtype), atol=0)


@on_gpu
def test_every_element_is_written_and_no_other() -> None:
    for n, segments in _cases():
        space = torch.full((n + 64,), torch.nan, device="cuda")
        theta = torch.randn(n, device="cuda")
        ops.random_direction(theta, segments, "filter", 0, 0, out=space[32 : n + 32])
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


@on_gpu
@pytest.mark.parametrize("mode", MODES)
def test_zero_filters_and_zero_draws_give_zero_never_nan(mode: str) -> None:
    segments = segments_of((0, 3), (3, 6), (6, 9))
    theta = torch.tensor([0.0, 0, 0, 1, 2, 3, 1, 1, 1], device="cuda")
    d = torch.tensor([1.0, 2, 3, 0, 0, 0, 1, 0, 0], device="cuda")
    out = ops.normalize_direction(d, theta, segments, mode)
    assert out.isfinite().all()
    assert not out[3:6].any()
    assert not ops.normalize_direction(torch.zeros_like(d), theta, segments, mode).any()


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_perturb_has_the_cpus_bits(dtype: torch.dtype) -> None:
    for g, k, n in ((1, 1, 7), (33, 2, 1028), (70, 3, 515), (5, 6, 4096), (3, 0, 10), (0, 2, 9)):
        theta, d = torch.randn(n, dtype=dtype), torch.randn(k, n, dtype=dtype)
        c = torch.randn(g, k, dtype=torch.float64)
        assert torch.equal(ops.perturb(theta.cuda(), c, d.cuda()).cpu(), ops.perturb(theta, c, d))
        shifted = torch.randn(n + 1, dtype=dtype, device="cuda")[1:]  # not 16-byte aligned
        got = ops.perturb(shifted, c, d.cuda())
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


@on_gpu
def test_inputs_may_be_views_and_out_may_be_the_input() -> None:
    segments = segments_of((0, 40), (50, 100))
    theta, d = torch.randn(100, 2, device="cuda")[:, 0], torch.randn(100, 2, device="cuda")[:, 1]
    want = ops.normalize_direction(d.contiguous(), theta.contiguous(), segments, "filter")
    assert torch.equal(ops.normalize_direction(d, theta, segments, "filter"), want)
    own = d.contiguous()
    ops.normalize_direction(own, theta, segments, "filter", out=own)
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
        lambda: ops.perturb(theta.cuda(), c.cuda(), d.cuda()),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            call()


@on_gpu
@pytest.mark.parametrize("normalize", pl.directions.NORMALIZATIONS)
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
