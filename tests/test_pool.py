"""Pooling, and sums, means and maxima over dimensions, against float64 torch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from core_support import PROGRAM, outputs_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_support import Image, Op, Raw, assert_close, check, landscapes
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape._native import core

DTYPES = [torch.float32, torch.float64]


def _windows(windows: list[list[int]]) -> tuple[Tensor, Tensor]:
    bounds = [0, *itertools.accumulate(len(w) for w in windows)]
    return torch.tensor(bounds), torch.tensor([i for w in windows for i in w])


def _pool(
    x: Tensor, mode: Any, channels: int, windows: list[list[int]], factor: Tensor | None = None
) -> Tensor:
    bounds, index = _windows(windows)
    return outputs_of(
        x.shape[1],
        x,
        lambda p, s: p.pool(
            s, mode, channels, len(windows), bounds.data_ptr(), len(index), index.data_ptr(),
            0 if factor is None else factor.data_ptr(),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("samples", [1, 17, 130])
def test_windows_of_any_length_give_their_maximum_and_sum(
    dtype: torch.dtype, channels: int, samples: int
) -> None:
    windows = [[3], [0, 1, 2, 3, 4, 5, 6], [6, 6, 1], [2, 0]]
    x = torch.randn(samples, 7 * channels, generator=torch.Generator().manual_seed(0)).to(dtype)
    pixels = x.view(samples, 7, channels)
    want = torch.stack([pixels[:, w].amax(1) for w in windows], 1).flatten(1)
    for mode in (core.Pool.max, core.Pool.max_even):
        assert torch.equal(_pool(x, mode, channels, windows), want)
    factor = torch.tensor([1.0, 0.25, -3.0, 0.1], dtype=torch.float64)
    sums = torch.stack([pixels[:, w].double().sum(1) for w in windows], 1)
    got = _pool(x, core.Pool.sum, channels, windows, factor)
    want = (sums * factor[:, None]).flatten(1)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_a_long_sum_does_not_collect_rounding_errors() -> None:
    x = torch.rand(3, 4000, generator=torch.Generator().manual_seed(0)) + 1
    got = _pool(x, core.Pool.sum, 1, [list(range(4000))])
    relative = (got.double() / x.double().sum(1, keepdim=True) - 1).abs().max()
    assert relative <= 20 * torch.finfo(torch.float32).eps


def test_a_sum_over_no_pixels_is_zero() -> None:
    got = _pool(torch.randn(5, 6), core.Pool.sum, 2, [[0, 2], []])
    assert torch.equal(got[:, 2:], torch.zeros(5, 2))


def test_building_rejects_what_does_not_fit() -> None:
    def build(mode: Any, channels: int, windows: list[list[int]], factor: Any = None) -> None:
        program = PROGRAM[torch.float32](0, 0, 0)
        bounds, index = _windows(windows)
        slot = program.input(6)
        program.pool(
            slot, mode, channels, len(windows), bounds.data_ptr(), len(index), index.data_ptr(),
            0 if factor is None else factor.data_ptr(),
        )  # fmt: skip

    with pytest.raises(ValueError, match="pixels \\* channels"):
        build(core.Pool.sum, 4, [[0]])
    with pytest.raises(ValueError, match="out of range"):
        build(core.Pool.sum, 2, [[3]])
    with pytest.raises(ValueError, match="empty window"):
        build(core.Pool.max, 2, [[1], []])
    with pytest.raises(ValueError, match="factors"):
        build(core.Pool.max, 2, [[1]], torch.ones(1).double())


# name: op, shape of an image without the batch
POOLS: dict[str, tuple[Op, tuple[int, ...]]] = {
    "max 2x2": (nn.MaxPool2d(2), (3, 6, 4)),
    "max 3x3/2 padded": (nn.MaxPool2d(3, 2, 1), (5, 7, 9)),
    "max overlapping": (nn.MaxPool2d(3, 1), (2, 5, 4)),
    "max uneven": (nn.MaxPool2d((3, 2), (1, 2), (1, 0)), (3, 5, 7)),
    "max dilated": (nn.MaxPool2d(2, 1, dilation=(2, 3)), (2, 5, 6)),
    "max dilated padded": (nn.MaxPool2d(3, 2, 1, dilation=2), (2, 7, 6)),
    "max ceil": (nn.MaxPool2d(2, 2, ceil_mode=True), (3, 5, 7)),
    "max ceil padded": (nn.MaxPool2d(3, 3, 1, ceil_mode=True), (2, 6, 8)),
    "max gaps": (nn.MaxPool2d(1, 3), (2, 7, 5)),
    "max of 1x1 images": (nn.MaxPool2d(3, 1, 1), (4, 1, 1)),
    "max of a column": (nn.MaxPool2d((3, 1), 2, (1, 0)), (2, 5, 1)),
    "max 1d": (nn.MaxPool1d(3, 2, 1), (4, 9)),
    "max 1d dilated ceil": (nn.MaxPool1d(2, 2, 1, 2, ceil_mode=True), (3, 8)),
    "max 3d": (nn.MaxPool3d(2, ceil_mode=True), (2, 3, 4, 5)),
    "max keyword": (lambda x: F.max_pool2d(x, kernel_size=2, stride=1), (2, 3, 3)),
    "max with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], (3, 4, 4)),
    "avg 2x2": (nn.AvgPool2d(2), (3, 6, 4)),
    "avg padded": (nn.AvgPool2d(3, 2, 1), (5, 7, 9)),
    "avg padded, not counted": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 7, 6)),
    "avg ceil padded": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 6, 8)),
    "avg ceil, not counted": (
        nn.AvgPool2d((2, 3), 2, (1, 0), ceil_mode=True, count_include_pad=False), (3, 4, 6),
    ),
    "avg own divisor": (nn.AvgPool2d(2, 2, 1, divisor_override=7), (2, 5, 5)),
    "avg 1d": (nn.AvgPool1d(4, 3, 2, ceil_mode=True), (3, 10)),
    "avg 1d, not counted": (nn.AvgPool1d(3, 2, 1, count_include_pad=False), (3, 8)),
    "avg 3d": (nn.AvgPool3d((1, 2, 3), 2, (0, 1, 1)), (2, 3, 4, 5)),
    "adaptive avg": (nn.AdaptiveAvgPool2d((3, 2)), (3, 7, 5)),
    "adaptive avg larger": (nn.AdaptiveAvgPool2d(5), (2, 3, 4)),
    "adaptive avg kept": (nn.AdaptiveAvgPool2d((None, 2)), (2, 3, 5)),
    "adaptive avg 1d": (nn.AdaptiveAvgPool1d(3), (4, 7)),
    "adaptive max": (nn.AdaptiveMaxPool2d((2, 3)), (3, 7, 5)),
    "adaptive max 1d": (nn.AdaptiveMaxPool1d(4), (2, 9)),
    "adaptive max with indices": (
        lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[0], (2, 5, 5),
    ),
    "global": (nn.AdaptiveAvgPool2d(1), (5, 6, 7)),
    "mean of the image": (lambda x: x.mean((2, 3)), (5, 6, 7)),
    "mean kept": (lambda x: x.mean((-1, -2), keepdim=True), (4, 3, 5)),
    "mean of the channels": (lambda x: x.mean(dim=1), (5, 3, 4)),
    "mean of columns": (lambda x: torch.mean(x, -1), (3, 4, 5)),
    "mean of rows kept": (lambda x: x.mean(2, True), (3, 4, 5)),
    "mean by axis": (lambda x: x.mean(axis=(1, 3)), (3, 4, 5)),
    "mean of everything": (lambda x: x.mean((1, 2, 3)).unsqueeze(1), (3, 2, 5)),
    "mean of tokens": (lambda x: x.flatten(2).transpose(1, 2).mean(1), (6, 3, 4)),
    "mean of a slice": (lambda x: x.flatten(2).transpose(1, 2)[:, 1:].mean(1), (6, 3, 4)),
    "mean of some rows": (lambda x: x[:, 1:, ::2].mean(2), (4, 5, 3)),
    "sum": (lambda x: x.sum(1), (3, 4, 5)),
    "sum kept": (lambda x: torch.sum(x, (1, 2), keepdim=True), (3, 4, 5)),
    "amax": (lambda x: x.amax((2, 3)), (5, 4, 3)),
    "amax kept": (lambda x: x.amax(dim=1, keepdim=True), (5, 4, 3)),
    "max over a dimension": (lambda x: x.max(2)[0], (3, 4, 5)),
    "max by name": (lambda x: torch.max(x, dim=-1, keepdim=True).values, (3, 4, 5)),
    "several": (
        lambda x: F.avg_pool2d(torch.tanh(F.max_pool2d(x, 2)), 2, 1).mean((2, 3)), (3, 8, 7),
    ),
    "without channels": (nn.MaxPool2d(2), (5, 6)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POOLS)
def test_losses_and_derivatives_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(len(name))
    op, shape = POOLS[name]
    check(Image(op, shape), torch.randn(19, 5), dtype)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("samples", [1, 300])
def test_images_as_data_are_pooled_right(name: str, samples: int) -> None:
    torch.manual_seed(len(name))
    op, shape = POOLS[name]
    x, y = torch.randn(samples, *shape), torch.arange(samples) % 3
    native, exact = landscapes(Raw(op, shape), x, y, torch.float32)
    eps = torch.finfo(torch.float32).eps
    assert_close(torch.tensor(native.loss()), torch.tensor(exact.loss()), eps)
    assert_close(native.gradient(), exact.gradient(), eps)


@pytest.mark.parametrize("name", ["max ceil padded", "avg ceil padded", "adaptive max", "amax"])
def test_an_exported_graph_gives_the_same(name: str) -> None:
    torch.manual_seed(0)
    op, shape = POOLS[name]

    class Aliased(Image):
        def forward(self, x: Tensor) -> Tensor:
            h = self.make(x)
            kept = h
            h += 1  # lost by fx: export takes over
            return self.read(self.op((h + kept).view(-1, *self.shape)).flatten(1))

    model, x = Aliased(op, shape), torch.randn(19, 5)
    check(model, x, torch.float64)
    native = pl.Landscape(model, "cross_entropy", (x.double(), torch.arange(19) % 3))
    assert native.engine_report().capture == "export"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    share=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ceil=st.booleans(),
    counted=st.booleans(),
    kind=st.sampled_from(["max", "avg"]),
)
def test_random_windows_match(
    sizes: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    share: tuple[int, int],
    ceil: bool,
    counted: bool,
    kind: str,
) -> None:
    pad = (share[0] * kernel[0] // 4, share[1] * kernel[1] // 4)
    op: Op
    if kind == "max":
        op = nn.MaxPool2d(kernel, stride, pad, dilation, ceil_mode=ceil)
    else:
        op = nn.AvgPool2d(kernel, stride, pad, ceil, counted)
    torch.manual_seed(0)
    x, y = torch.randn(5, 3, *sizes), torch.arange(5) % 3
    try:
        model = Raw(op, (3, *sizes))
    except RuntimeError:  # a kernel larger than the image
        return
    report = pl.Landscape(model, "cross_entropy", (x, y)).engine_report()
    if report.engine == "torch":
        assert "in the padding" in report.reason
        assert kind == "max"
        assert max(dilation) > 1
        return
    native, exact = landscapes(model, x, y, torch.float64)
    assert_close(native.gradient(), exact.gradient(), torch.finfo(torch.float64).eps)


class Twins(nn.Module):
    """All pixels of the image are equal: every window is a tie."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op
        self.make, self.read = nn.Linear(5, 2 * 16), nn.Linear(2 * 4, 3)
        with torch.no_grad():
            self.make.weight.view(2, 16, 5).copy_(self.make.weight.view(2, 16, 5)[:, :1])
            self.make.bias.view(2, 16).copy_(self.make.bias.view(2, 16)[:, :1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.read(self.op(self.make(x).view(-1, 2, 4, 4)).flatten(1))
        return out


@pytest.mark.parametrize(
    "op",
    [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), lambda x: x.amax(2), lambda x: x.max(3)[0]],
    ids=["disjoint", "overlapping", "amax", "max"],
)
def test_ties_send_the_gradient_where_torch_does(op: Op) -> None:
    torch.manual_seed(0)
    check(Twins(op), torch.randn(19, 5), torch.float64)


INFINITE = {
    name: POOLS[name]
    for name in [
        "max 2x2", "max 3x3/2 padded", "avg padded", "adaptive avg", "adaptive max",
        "mean of the image", "sum", "amax", "max over a dimension",
    ]
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:L is (nan|inf) at the model's own parameters:UserWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", INFINITE)
def test_nan_and_infinities_come_out_where_torch_has_them(name: str, value: float) -> None:
    op, shape = INFINITE[name]
    torch.manual_seed(0)
    x = torch.randn(33, *shape)  # data are finite: what is not arises in the model
    x[torch.rand(x.shape) < 0.1] = x[0] = -3e38 if value < 0 else 3e38

    class Only(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = 2 * x
            return op(x + 0 * x if math.isnan(value) else x).flatten(1)

    seen: dict[str, Tensor] = {}

    def outputs(values: Tensor, targets: Tensor) -> float:
        seen["values"] = values.clone()
        return 0.0

    with torch.no_grad():
        want = Only()(x)
    model = nn.Sequential(Only(), nn.Identity(), Scale())
    land = pl.Landscape(model, "mse", (x, torch.zeros_like(want)), engine="native")
    land.evaluate([[0.0]], torch.zeros(1, 1), metrics=[outputs])
    torch.testing.assert_close(seen["values"], want, equal_nan=True)


class Scale(nn.Module):
    """A parameter that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.one


def _peculiar(*names: str) -> list[Any]:
    return [pytest.param(*PECULIAR[name], id=name) for name in names or PECULIAR]


PECULIAR: dict[str, tuple[Op, str]] = {  # and what the reason of those that run on torch says
    "lp": (nn.LPPool2d(2, 2), "op 'lp_pool2d'"),
    "fractional": (nn.FractionalMaxPool2d(2, output_size=2), "op 'fractional_max_pool2d'"),
    "mean of the batch": (lambda x: x + x.mean(0), "op 'mean': over the batch dimension"),
    "mean of all": (lambda x: x - x.mean(), "op 'mean': over the batch dimension"),
    "max of the batch": (lambda x: x * x.max(0)[0], "op 'max': over the batch dimension"),
    "dtype": (lambda x: x.sum(1, dtype=torch.float64).to(x.dtype), "op 'sum': a dtype"),
    "batch pooled": (
        lambda x: F.max_pool2d(x.transpose(0, 3), (1, 3), 1, (0, 1)).transpose(0, 3),
        "op 'max_pool2d': over the batch dimension",
    ),
    "beside the image": (
        lambda x: F.max_pool2d(x, 2, padding=1, dilation=(1, 4)),
        "op 'max_pool2d': a window that lies in the padding",
    ),
    "unpool": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        "op 'max_unpool2d'",
    ),
}  # fmt: skip
DECIDED_BY_A_SAMPLE = ("lp", "dtype", "unpool")  # which torch computes once, of data alone


def _peculiar_model(kind: type[Image | Raw], op: Op) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    shape = (3, 4, 3 if op is PECULIAR["beside the image"][0] else 4)
    return kind(op, shape), torch.randn(8, *(shape if kind is Raw else (5,)))


@pytest.mark.filterwarnings("ignore:L is nan at the model's own parameters:UserWarning")
@pytest.mark.parametrize(("op", "reason"), _peculiar())
def test_what_is_not_honoured_exactly_runs_on_torch_and_says_why(op: Op, reason: str) -> None:
    model, x = _peculiar_model(Image, op)
    report = pl.Landscape(model, "cross_entropy", (x, torch.arange(8) % 3)).engine_report()
    assert report.engine == "torch"
    assert reason in report.reason


@pytest.mark.filterwarnings("ignore:L is nan at the model's own parameters:UserWarning")
@pytest.mark.parametrize(
    ("op", "reason"), _peculiar(*[n for n in PECULIAR if n not in DECIDED_BY_A_SAMPLE])
)
def test_of_the_data_alone_it_says_why_as_well(op: Op, reason: str) -> None:
    model, x = _peculiar_model(Raw, op)
    before = torch.get_rng_state()
    report = pl.Landscape(model, "cross_entropy", (x, torch.arange(8) % 3)).engine_report()
    assert report.engine == "torch"
    assert reason in report.reason
    if "fractional" in reason:
        assert "random numbers" in report.reason
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "_"), _peculiar(*DECIDED_BY_A_SAMPLE))
def test_of_the_data_alone_what_a_sample_decides_has_torchs_numbers(
    op: Op, _: str, dtype: torch.dtype
) -> None:
    model, x = _peculiar_model(Raw, op)
    check(model, x, dtype)  # by the native engine


def test_threads_do_not_change_the_bits() -> None:
    torch.manual_seed(0)
    model = Image(nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)), (3, 9, 9))
    x, y = torch.randn(600, 5), torch.arange(600) % 3
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    v = torch.randn(3, land.n_params)
    want = land.hvp(v), land.losses([[0.1, 0.2]], v[:2])
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(land.hvp(v), want[0])
            assert land.losses([[0.1, 0.2]], v[:2]) == want[1]
    finally:
        torch.set_num_threads(threads)


def test_nothing_is_copied_between_pools() -> None:
    model = Raw(nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(1)),
                (3, 8, 8))  # fmt: skip
    x, y = torch.randn(9, 3, 8, 8), torch.arange(9) % 3
    native, _ = landscapes(model, x, y, torch.float32)
    program = native.native.program  # one gather of the data, three pools, one linear layer
    assert program.ops == 5
