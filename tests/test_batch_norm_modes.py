"""Batch norm with statistics of the data: bn="recompute" and "batch", in both engines."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_support import PROGRAM, QUESTION
from torch import Tensor, nn

import pylandscape as pl
from pylandscape._native import core
from pylandscape.errors import InvalidArgument

MODES = ("eval", "recompute", "batch", "interpolate")


class Residual(nn.Module):
    """Convolutions with shortcuts; six batch norms, one of them used twice."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d, **options: Any) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(2, 5, 3, padding=1, bias=False), norm(5, **options)
        self.conv1, self.norm1 = nn.Conv2d(5, 5, 3, padding=1, bias=False), norm(5, **options)
        self.conv2, self.norm2 = nn.Conv2d(5, 7, 3, stride=2, padding=1), norm(7, **options)
        self.short, self.norm3 = nn.Conv2d(5, 7, 1, stride=2), norm(7, **options)
        self.out = nn.Linear(7 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm0(self.stem(x)))
        h = F.relu(self.norm1(self.conv1(h)) + h)
        h = F.relu(self.norm1(h))
        h = F.relu(self.norm2(self.conv2(h)) + self.norm3(self.short(h)))
        return self.out(torch.tanh(h).flatten(1))


def dense() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm1d(5), nn.Linear(5, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 3),
        nn.BatchNorm1d(3, affine=False),
    )  # fmt: skip


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6, momentum=None), nn.GELU(), nn.Flatten(),
        nn.Linear(30, 3),
    )  # fmt: skip


def partly() -> nn.Module:
    """One norm that tracks its statistics between two that never do."""
    own = {"track_running_stats": False}
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8, **own), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6),
        nn.ReLU(), nn.Linear(6, 3), nn.BatchNorm1d(3, **own, affine=False),
    )  # fmt: skip


NETWORKS = {
    "residual": (Residual, (2, 6, 6)),
    "no-affine": (lambda: Residual(affine=False, eps=1e-3), (2, 6, 6)),
    "untracked": (lambda: Residual(track_running_stats=False), (2, 6, 6)),
    "dense": (dense, (5,)),
    "sequence": (sequence, (2, 7)),
    "partly": (partly, (5,)),
}
BATCHES = {"ragged": (37, 37, 11), "one": (50,), "large": (600, 3)}


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model = build().to(dtype)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if getattr(module, "weight", None) is not None and "Norm" in type(module).__name__:
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval(), shape


def batches(shape: tuple[int, ...], sizes: tuple[int, ...], dtype: torch.dtype) -> list[Any]:
    g = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, *shape, generator=g).to(dtype) * 2 + 1,
            torch.randint(0, 3, (n,), generator=g),
        )
        for n in sizes
    ]


def both(
    name: str, bn: str, sizes: tuple[int, ...] = (37, 37, 11), dtype: torch.dtype = torch.float64
) -> tuple[pl.Landscape, pl.Landscape]:
    model, shape = make(name, dtype)
    data = batches(shape, sizes, dtype)
    native, torchs = (
        pl.Landscape(model, "cross_entropy", data, bn=bn, engine=e) for e in ("native", "torch")
    )
    return native, torchs


def steps(land: pl.Landscape, count: int = 2, scale: float = 0.2) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return scale * torch.randn(count, land.n_params, generator=g).to(land.theta)


def close(got: Any, want: Any, eps: float, factor: float = 500) -> None:
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= factor * eps * (np.abs(want).max() + 0.01)


def by_hand(model: nn.Module, data: list[Any], bn: str) -> float:
    """The loss of the module itself, with its statistics found by torch.optim.swa_utils."""
    model = copy.deepcopy(model)
    if bn == "recompute":
        torch.optim.swa_utils.update_bn([x for x, _ in data], model)
    model.train(bn == "batch")
    with torch.no_grad():
        total = sum(F.cross_entropy(model(x), y, reduction="sum").item() for x, y in data)
    return total / sum(len(y) for _, y in data)


@pytest.mark.parametrize("bn", MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_both_engines_give_the_modules_own_numbers(name: str, bn: str) -> None:
    native, torchs = both(name, bn)
    eps = torch.finfo(torch.float64).eps
    model, shape = make(name)
    want = by_hand(model, batches(shape, (37, 37, 11), torch.float64), bn)
    close(native.loss(), want, eps)
    d, c = steps(native), np.array([[0.0, 0.0], [1.0, 0.3], [-2.0, 1.0], [0.1, -3.0], [5.0, 5.0]])
    got = native.evaluate(c, d, metrics=["loss", "accuracy", spread])
    reference = torchs.evaluate(c, d, metrics=["loss", "accuracy", spread])
    for metric in got:
        close(got[metric], reference[metric], eps)
    assert len({round(v, 9) for v in got["loss"]}) == len(c)
    points = native.theta + torch.as_tensor(c) @ d
    close(native.losses(points=points), reference["loss"], eps)


def spread(outputs: Tensor, target: Tensor) -> float:
    return float(outputs.std())


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("bn", ["recompute", "batch"])
def test_batches_of_any_size_in_single_precision(bn: str, sizes: tuple[int, ...]) -> None:
    native, torchs = both("residual", bn, sizes, torch.float32)
    d, c = steps(native), np.random.default_rng(0).normal(size=(6, 2))
    close(native.losses(c, d), torchs.losses(c, d), torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("bn", ["recompute", "batch"])
def test_how_samples_are_batched_matters_and_is_the_users(bn: str) -> None:
    values = [both("dense", bn, sizes)[0].loss() for sizes in ((30, 30), (20, 40), (60,))]
    assert len({round(v, 10) for v in values}) == 3


def test_recomputed_statistics_average_the_batches_whatever_their_size() -> None:
    norm = nn.Sequential(nn.BatchNorm1d(2, affine=False, eps=1e-30)).double()
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0], [7.0, 3.0], [1.0, 1.0], [4.0, 2.0]]).double()
    data = [(x[:2], torch.zeros(2, 2).double()), (x[2:], torch.zeros(3, 2).double())]

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.norm = nn.Linear(2, 2, bias=False), norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.scale(x))

    model = Scaled().double()
    model.scale.weight.data = torch.eye(2).double()
    land = pl.Landscape(model, "mse", data, bn="recompute", engine="native")
    mean = torch.stack([x[:2].mean(0), x[2:].mean(0)]).mean(0)
    variance = torch.stack([x[:2].var(0), x[2:].var(0)]).mean(0)  # unbiased
    want = (((x - mean) ** 2 / variance).sum() / 10).item()
    assert land.loss() == pytest.approx(want, rel=1e-14)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("bn", ["recompute", "batch"])
@pytest.mark.parametrize("name", ["residual", "partly"])
def test_threads_and_chunks_do_not_change_a_bit(name: str, bn: str) -> None:
    native, _ = both(name, bn, (300, 300, 17), torch.float32)
    d, c = steps(native), np.random.default_rng(0).normal(size=(7, 2))
    torch.set_num_threads(1)
    want = native.losses(c, d)
    torch.set_num_threads(3)
    assert np.array_equal(native.losses(c, d), want)
    ask = native.prepare(d)  # single points: the threads share a batch's tiles
    assert np.array_equal(np.concatenate([ask(c[i : i + 1])["loss"] for i in range(7)]), want)


def test_frozen_layers_before_the_first_norm_are_computed_once_and_right() -> None:
    model, shape = make("residual")
    data = batches(shape, (37, 11), torch.float64)
    for params in (("conv2.*", "out.*"), ("out.weight",), ("norm1.*",)):
        for bn in ("recompute", "batch"):
            native, torchs = (
                pl.Landscape(model, "cross_entropy", data, bn=bn, engine=e, params=params)
                for e in ("native", "torch")
            )
            d, c = steps(native), np.random.default_rng(0).normal(size=(4, 2))
            close(native.losses(c, d), torchs.losses(c, d), torch.finfo(torch.float64).eps)


def test_derivatives_with_recomputed_statistics_hold_them() -> None:
    native, torchs = both("residual", "recompute")
    eps = torch.finfo(torch.float64).eps
    v, theta = steps(native), native.theta + steps(native, 1)[0]
    assert native.engine == "native"
    close(native.gradient(theta), torchs.gradient(theta), eps, 1e4)
    close(native.hvp(v, theta), torchs.hvp(v, theta), eps, 1e4)
    close(native.per_sample_gradients(theta), torchs.per_sample_gradients(theta), eps, 1e4)
    close(native.covariance_product(v), torchs.covariance_product(v), eps, 1e4)
    pairs = [pl.eigenpairs(land, 1, progress=False, tol=1e-8).values for land in (native, torchs)]
    close(pairs[0], pairs[1], eps, 1e8)


PRODUCTS = ("hessian", "gauss_newton")
SIZES = [(37, 37, 11), (90,), (9, 5, 7, 2, 30, 12)]
NORMED = ["residual", "no-affine", "dense", "sequence", "partly"]


@pytest.mark.parametrize("sizes", [(37, 11), (9, 5, 7, 2, 30, 12)])
@pytest.mark.parametrize("name", NORMED)
def test_products_through_a_batchs_statistics_are_autograds(
    name: str, sizes: tuple[int, ...]
) -> None:
    native, torchs = both(name, "batch", sizes)
    theta, eps = native.theta + steps(native, 1)[0], torch.finfo(torch.float64).eps
    v = steps(native, 3)
    for matrix in PRODUCTS:
        got = native.native.product(matrix, theta, v)
        want = torchs.product_at(matrix, v, theta)
        close(got, want, eps, 1e5)
        assert torch.equal(native.product_at(matrix, v, theta), got)
    assert str(native.engine_report()).startswith("native")


def test_products_through_a_batchs_statistics_of_a_norm_that_never_tracks() -> None:
    """With bn="recompute" the other norms hold theirs; a norm without any has the batch's own."""
    for name, bn in (("partly", "recompute"), ("untracked", "eval")):
        native, torchs = both(name, bn)
        v, eps = steps(native), torch.finfo(torch.float64).eps
        assert native.engine == "native"
        close(native.native.product("hessian", native.theta, v), torchs.hvp(v), eps, 1e5)
        close(native.per_sample_gradients(), torchs.per_sample_gradients(), eps, 1e4)
        close(native.covariance_product(v), torchs.covariance_product(v), eps, 1e4)


@pytest.mark.parametrize("sizes", SIZES)
def test_products_through_a_batchs_statistics_have_the_same_bits_however_they_are_had(
    sizes: tuple[int, ...],
) -> None:
    """One by one or in a block, by any number of threads, values kept at theta or had anew."""
    model, shape = make("residual", torch.float32)
    data = batches(shape, sizes, torch.float32)
    kept, part, anew = (
        pl.Landscape(model, "cross_entropy", data, bn="batch", memory=m)
        for m in (1 << 30, 1 << 20, 0)
    )
    v, threads = steps(kept, 11), torch.get_num_threads()
    for matrix in PRODUCTS:
        want = kept.native.product(matrix, kept.theta, v)
        try:
            torch.set_num_threads(3)
            again = [kept, part, anew]
            found = [land.native.product(matrix, land.theta, v) for land in again]
        finally:
            torch.set_num_threads(threads)
        one = torch.cat([anew.native.product(matrix, anew.theta, u[None]) for u in v[:2]])
        assert all(torch.equal(each, want) for each in found)
        assert torch.equal(one, want[:2])


@pytest.mark.parametrize("bn", ["batch", "eval"])
def test_derivatives_elsewhere_take_the_memory_of_those_before_and_leave_what_is_in_use(
    bn: str,
) -> None:
    model, shape = make("sequence", torch.float32)
    data = batches(shape, (37, 11), torch.float32)
    land, fresh = (pl.Landscape(model, "cross_entropy", data, bn=bn) for _ in range(2))
    v, theta = steps(land), land.theta + steps(land, 1)[0]
    want = [fresh.native.product("hessian", theta, v), fresh.native.gradient(theta)]
    used = land.native.products_at("hessian", land.theta)()
    before = torch.empty(v.shape, dtype=torch.float64)
    used[0].products(used[1], len(v), v.data_ptr(), before.data_ptr(), used[2])
    for _ in range(3):  # the first while the others are in use
        assert torch.equal(land.native.product("hessian", theta, v), want[0])
        assert torch.equal(land.native.gradient(theta), want[1])
        after = torch.empty_like(before)
        used[0].products(used[1], len(v), v.data_ptr(), after.data_ptr(), used[2])
        assert torch.equal(after, before)
        assert not torch.equal(land.native.product("hessian", land.theta, v), want[0])


def test_products_through_a_batchs_statistics_in_single_precision() -> None:
    """Means far from zero: what is left of a channel after them has few digits in float32."""
    model, shape = make("dense", torch.float64)
    data = [(x + 20, y) for x, y in batches(shape, (300, 21), torch.float64)]
    single = [(x.float(), y) for x, y in data]
    double = pl.Landscape(model, "cross_entropy", data, bn="batch", engine="torch")
    native = pl.Landscape(copy.deepcopy(model).float(), "cross_entropy", single, bn="batch")
    v = steps(double, 4)
    want = double.hvp(v)
    got = native.native.product("hessian", native.theta, v.float())
    assert float((got - want).norm(dim=1).max() / want.norm(dim=1).max()) < 2e-5


def test_eigenpairs_through_a_batchs_statistics_and_what_is_of_samples_alone() -> None:
    native, torchs = both("dense", "batch")
    assert native.native.products_at("hessian", native.theta) is not None
    assert native.native.products_at("covariance", native.theta) is None
    pairs = [pl.eigenpairs(land, 1, progress=False, tol=1e-8).values for land in (native, torchs)]
    close(pairs[0], pairs[1], torch.finfo(torch.float64).eps, 1e8)
    for land in (native, torchs):
        for ask in (land.per_sample_gradients, lambda of=land: of.covariance_product(steps(of))):
            with pytest.raises(InvalidArgument, match="got bn='batch'"):
                ask()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", NORMED)
def test_gradients_through_a_batchs_statistics_are_autograds(
    name: str, sizes: tuple[int, ...]
) -> None:
    native, torchs = both(name, "batch", sizes)
    assert native.native.derivatives_refused() is None
    theta, eps = native.theta + steps(native, 1)[0], torch.finfo(torch.float64).eps
    got = native.native.gradient(theta)
    close(got, torchs.gradient(theta), eps, 1e4)
    assert torch.equal(native.gradient(theta), got)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = native.native.gradient(native.theta), native.native.gradient(theta)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again[1], got)


def test_dropout_stays_off_and_the_module_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model.train()
    before = copy.deepcopy(model.state_dict())
    data = batches((5,), (20, 9), torch.float32)
    for bn in MODES:
        native, torchs = (
            pl.Landscape(model, "cross_entropy", data, bn=bn, engine=e) for e in ("native", "torch")
        )
        d, c = steps(native), np.random.default_rng(0).normal(size=(3, 2))
        close(native.losses(c, d), torchs.losses(c, d), torch.finfo(torch.float32).eps)
    assert all(torch.equal(value, before[k]) for k, value in model.state_dict().items())
    assert all(m.training for m in model.modules())


class Functional(nn.Module):
    """Batch norm by F.batch_norm, always with the batch's statistics."""

    def __init__(self, track: bool) -> None:
        super().__init__()
        self.first, self.track = nn.Linear(5, 3), track
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        kept = (self.mean, self.var) if self.track else (None, None)
        return F.batch_norm(self.first(x), *kept, training=True)


def test_functional_batch_norm_of_the_batch_runs_and_one_that_tracks_is_refused() -> None:
    data = batches((5,), (20, 9), torch.float32)
    native, torchs = (
        pl.Landscape(Functional(False), "cross_entropy", data, engine=e)
        for e in ("native", "torch")
    )
    native_model = native.model
    torchs = pl.Landscape(native_model, "cross_entropy", data, engine="torch")
    close(native.loss(), torchs.loss(), torch.finfo(torch.float32).eps)
    refused = pl.Landscape(Functional(True), "cross_entropy", data)
    assert refused.engine == "torch"
    assert "the forward pass changes tensors that it keeps" in refused.engine_report().reason


def own_norm(
    x: Tensor, theta: Tensor, sizes: list[int], pixels: int, eps: float
) -> tuple[Tensor, Tensor]:
    """The op alone on x (N, pixels * channels), theta its gain, shift, kept mean and variance:
    outputs, and theta with what it keeps."""
    channels = len(theta) // 4
    program = PROGRAM[x.dtype](4 * channels, 0, 0)
    at = [i * channels for i in range(4)]
    slot = program.input(pixels * channels)
    program.finish(program.batch_norm_own(slot, pixels, channels, eps, *at))
    assert program.mixes
    program.set_batches(sizes)
    program.set_data(len(x), x.data_ptr())
    target = torch.zeros(x.shape, dtype=torch.float64)
    program.set_loss(core.Loss.mse, x.shape[1], 1, 0.0, [], [], 0, target.data_ptr())
    question, loss, outputs = QUESTION[x.dtype](program), np.empty(1), torch.empty_like(x)
    question.run(1, theta.data_ptr(), loss.ctypes.data, 0, outputs.data_ptr())
    kept = torch.empty_like(theta)
    question.collect(1, theta.data_ptr(), kept.data_ptr())
    return outputs, kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("channels", "pixels"), [(1, 1), (3, 1), (5, 7), (16, 4)])
def test_the_op_against_float64(dtype: torch.dtype, channels: int, pixels: int) -> None:
    """Rows (pixel, channel); batches of odd sizes, the first over several tiles."""
    sizes = [521, 2, 35]
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(sum(sizes), pixels * channels, generator=g) * 3 + 2).to(dtype).contiguous()
    theta = torch.randn(4 * channels, generator=g).to(dtype)
    outputs, kept = own_norm(x, theta, sizes, pixels, 1e-3)

    gain, shift, *_ = theta.double().view(4, channels)
    parts = [b.view(-1, pixels, channels).movedim(2, 1) for b in x.double().split(sizes)]
    want = [
        F.batch_norm(b, None, None, gain, shift, training=True, eps=1e-3).movedim(1, 2).flatten(1)
        for b in parts
    ]
    eps = torch.finfo(dtype).eps
    scale = float(torch.cat(want).abs().max())
    assert float((outputs.double() - torch.cat(want)).abs().max()) <= 20 * eps * scale
    mean = torch.stack([b.mean((0, 2)) for b in parts]).mean(0)
    variance = torch.stack([b.movedim(1, 2).reshape(-1, channels).var(0) for b in parts]).mean(0)
    assert torch.equal(kept[: 2 * channels], theta[: 2 * channels])
    for got, known in zip(kept.double().view(4, channels)[2:], (mean, variance), strict=True):
        assert float((got - known).abs().max()) <= 4 * eps * float(known.abs().max())


def test_a_variance_keeps_its_digits_far_from_zero() -> None:
    """E x^2 - (E x)^2 would leave two digits of it."""
    x = torch.randn(700, 3, generator=torch.Generator().manual_seed(0)).double()
    far = (x + 2.0**23).contiguous()  # exact in float64 but for the last bits
    theta = torch.ones(12).double()
    _, kept = own_norm(far, theta, [700], 1, 1e-5)
    want = (far - 2.0**23).var(0)  # exact difference
    assert torch.allclose(kept[9:], want, rtol=1e-8, atol=0)  # eps * mean / deviation


def test_a_program_refuses_batches_that_are_not_its_data() -> None:
    program = PROGRAM[torch.float32](1, 0, 0)
    program.finish(program.batch_norm_own(program.input(2), 1, 2, 1e-5, None, None, None, None))
    program.set_batches([3, 4])
    x = torch.zeros(8, 2)
    with pytest.raises(ValueError, match="batches are not all samples"):
        program.set_data(8, x.data_ptr())
    with pytest.raises(ValueError, match="an empty batch"):
        program.set_batches([0])
    plain = PROGRAM[torch.float32](1, 0, 0)
    plain.finish(plain.unary(plain.input(2), core.Unary.relu, 0.0, 0.0))
    plain.set_data(8, x.data_ptr())
    points = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="no statistics of a batch to collect"):
        QUESTION[torch.float32](plain).collect(1, points.data_ptr(), points.data_ptr())
    other = PROGRAM[torch.float32](1, 0, 0)
    slot = other.input(2)
    with pytest.raises(ValueError, match="kept statistics outside theta"):
        other.batch_norm_own(slot, 1, 2, 1e-5, None, None, 0, 0)
    with pytest.raises(ValueError, match="keep both or neither"):
        other.batch_norm_own(slot, 1, 2, 1e-5, None, None, 0, None)
