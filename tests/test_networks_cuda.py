"""Networks of every family on the CUDA engine: on a GPU where one is, by emulation everywhere.

By torch's convolutions and products over many points, against the CPU's engine, whose numbers
tests/test_networks.py compares with float64 torch.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cuda_support import Backend, backend, one_thread  # noqa: F401
from network_support import FAMILIES, member, plane
from pretended_gpu import pretended_gpu
from test_conv import CASES, Residual, data, settled
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.engines.cuda.conv import (
    GROUPED,
    LOOPED,
    PRODUCTS,
    STACKED,
    WAYS,
    Conv,
    convolve,
    way_of,
)
from pylandscape.engines.forward_pass import eval_mode
from pylandscape.errors import NotLowered

DTYPES = (torch.float32, torch.float64)
pytestmark = pytest.mark.usefixtures("one_thread")


PLAIN = ("LeNet", "NIN", "VGG")  # also there with batch norm


def assert_close(got: Any, want: Any, dtype: torch.dtype, depth: int = 10) -> None:
    allowed = 20 * depth * torch.finfo(dtype).eps
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=allowed, atol=allowed)


def agree(
    backend: Backend,  # noqa: F811
    land: pl.Landscape,
    d: Tensor,
    *,
    bn: str = "eval",
    depth: int = 10,
    wide_bytes: int | None = None,
    way: str | None = None,
    points: int = 3,
) -> Any:
    """Losses along directions d and at free points are those of the landscape on the CPU."""
    assert land.engine == "native", land.engine_report()
    with eval_mode(land.model, bn == "batch"):
        engine = backend.engine(land.model, land, bn=bn)
    if wide_bytes is not None:
        engine.wide_bytes = wide_bytes
    if way is not None:
        engine.torch_program.way = lambda conv, samples, same: usable(way, conv, same)
    c = np.random.default_rng(0).normal(size=(points, len(d))) * 0.3
    want = land.native.prepare(land.origin, d, ("loss",))(c)["loss"]
    question = engine.ask(land.origin, d)
    assert question.reason
    assert_close(question.sums(c).cpu()[0] / engine.denominator, want, land.dtype, depth)
    thetas = land.origin + torch.as_tensor(c, dtype=land.dtype) @ d
    free = engine.prepare_points(("loss",))(thetas)["loss"]
    assert_close(free, land.native.prepare_points(("loss",))(thetas)["loss"], land.dtype, depth)
    return question


def usable(way: str, conv: Conv, same_input: bool) -> str:
    if way == STACKED and (conv.groups > 1 or not same_input):
        return LOOPED
    return LOOPED if way == PRODUCTS and conv.groups > 1 else way


# Of each kind one or two: the others are deeper, or lack something that these have.
KINDS = [
    name
    for name in FAMILIES
    if not any(part in name for part in ("56", "no shortcuts", "DCNN")) and name not in PLAIN
]


@pytest.mark.parametrize("name", KINDS)
def test_a_family_has_the_cpus_losses_along_directions_and_at_points(
    backend: Backend,  # noqa: F811
    name: str,
) -> None:
    model, x, y = member(name, False, torch.float64)
    land = pl.Landscape(model, "cross_entropy", (x[:6], y[:6]))
    agree(backend, land, plane(land), depth=FAMILIES[name].depth, points=2)


@pytest.mark.parametrize("name", ["LeNet with BN and dropout", "ViT", "LSTM language model"])
def test_a_family_in_single_precision(backend: Backend, name: str) -> None:  # noqa: F811
    model, x, y = member(name, False, torch.float32)
    land = pl.Landscape(model, "cross_entropy", (x, y))
    agree(backend, land, plane(land), depth=FAMILIES[name].depth)


def shape_of(layer: nn.Conv2d, image: tuple[int, int], result: tuple[int, int]) -> Conv:
    a, b = layer.padding
    return Conv(
        layer.groups, layer.in_channels // layer.groups, layer.out_channels // layer.groups,
        image, result, layer.kernel_size, layer.stride, (int(a), int(b)), layer.dilation,
    )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith(("same", "refl", "circ"))])
def test_every_way_of_a_convolution_is_torchs_of_each_point(
    backend: Backend,  # noqa: F811
    case: str,
    way: str,
) -> None:
    arguments, image = CASES[case]
    layer = nn.Conv2d(6, 12, **{**arguments, "bias": False}).double().to(backend.device)
    g, samples = 3, 4
    x = torch.randn(g, samples, 6, *image, dtype=torch.float64, device=backend.device)
    weights = torch.randn(g, *layer.weight.shape, dtype=torch.float64, device=backend.device)
    calls: list[int] = []

    def finish(result: Tensor, first: int, to: Tensor) -> None:
        calls.append(first)
        to.copy_(result + 1 + torch.arange(first, first + len(to), device=to.device)[:, None, None])

    for moves_x, moves_w in ((True, True), (False, True), (True, False)):
        some_x, some_w = x if moves_x else x[:1], weights if moves_w else weights[:1]
        want = []
        for i in range(g):
            layer.weight.data = some_w[i if moves_w else 0]
            want.append(layer(some_x[i if moves_x else 0]) + 1 + (i if moves_w or moves_x else 0))
        result = want[0].shape[-2:]
        conv = shape_of(layer, image, (result[0], result[1]))
        found = convolve(
            conv,
            some_x.permute(0, 1, 3, 4, 2).flatten(2),
            some_w.flatten(3).transpose(2, 3).contiguous(),
            usable(way, conv, not moves_x),
            finish,
        )
        images = torch.stack(want).permute(0, 1, 3, 4, 2).flatten(2)
        torch.testing.assert_close(found, images.detach())
    assert calls[-1] == 0  # weights of all points: one call


def test_how_convolutions_run_is_decided_from_shapes() -> None:
    def way(samples: int, same: bool = False, **given: Any) -> str:
        plain = {
            "groups": 1, "channels": 16, "rows": 16, "image": (32, 32), "result": (32, 32),
            "kernel": (3, 3), "stride": (1, 1), "pad": (1, 1), "dilation": (1, 1),
        }  # fmt: skip
        return way_of(Conv(**{**plain, **given}), samples, same)

    assert way(1000) == LOOPED  # fills the device
    assert way(1000, same=True) == LOOPED
    assert way(10, same=True) == STACKED
    assert way(10) == PRODUCTS
    assert way(10, channels=4096) == LOOPED  # its columns would take too much
    assert way(1000, kernel=(1, 1), pad=(0, 0)) == PRODUCTS
    assert way(1000, groups=16, channels=1, rows=1) == GROUPED
    assert way(1000, groups=4, channels=16) == LOOPED
    assert way(10, groups=4, channels=16) == GROUPED


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_epilogues_of_any_way_take_in_norm_sum_and_relu(
    backend: Backend,  # noqa: F811
    way: str,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    x, y = data(11, 3, 5, 6, dtype=dtype)
    land = pl.Landscape(settled(Residual().to(dtype), x), "cross_entropy", (x, y))
    agree(backend, land, plane(land), way=way, points=4)


@pytest.mark.parametrize("samples", [1, 33, 65])
def test_tiles_and_chunks_that_do_not_divide(backend: Backend, samples: int) -> None:  # noqa: F811
    torch.manual_seed(0)
    x, y = data(samples, 3, 5, 6)
    land = pl.Landscape(settled(Residual().double(), data(9, 3, 5, 6)[0]), "cross_entropy", (x, y))
    d = plane(land)
    sizes = set()
    for wide_bytes in (1, 2_000_000, 5_000_000):
        question = agree(backend, land, d, wide_bytes=wide_bytes, points=7)
        sizes.add(question._tile_and_step())
    assert {tile for tile, _ in sizes} == {samples, min(samples, 32)}
    assert any(1 < step < 7 for _, step in sizes) or samples == 1


def test_what_stays_is_not_computed_for_every_point(backend: Backend) -> None:  # noqa: F811
    torch.manual_seed(0)
    x, y = data(9, 3, 5, 6)
    model = settled(Residual().double(), x)
    names = [name for name, _ in model.named_parameters()]
    for chosen in (
        ["norm.weight"], ["norm.bias", "third.bias"], ["third.weight"], names[-2:], names[:1],
    ):  # fmt: skip
        land = pl.Landscape(model, "cross_entropy", (x, y), params=chosen)
        d = torch.randn(2, land.n_params, dtype=torch.float64)
        question = agree(backend, land, d)
        fixed = question.about["fixed"]
        assert sum(fixed) == {names[0]: 1, names[-2]: len(fixed) - 1}.get(chosen[0], sum(fixed))
    land = pl.Landscape(model, "cross_entropy", (x, y))
    still = torch.zeros(2, land.n_params, dtype=torch.float64)
    assert all(agree(backend, land, still).about["fixed"])


class Mixed(nn.Module):
    """Pools, norms and products that the families lack, with constants between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.group, self.instance = nn.GroupNorm(3, 6), nn.InstanceNorm2d(6, affine=True)
        self.deep = nn.Conv2d(6, 6, 3, groups=6, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.shift = nn.Parameter(torch.randn(6, 1, 1))
        self.rows = nn.Linear(6, 4)
        self.gru = nn.GRU(4, 5, batch_first=True)
        self.out = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.group(self.first(x)))
        h = F.max_pool2d(h, 3, 2, padding=1) + self.shift
        h = self.norm(torch.tanh(self.deep(self.instance(h))))
        tokens = self.rows(F.adaptive_avg_pool2d(h, (3, 2)).flatten(2).transpose(1, 2))
        mixed = torch.softmax(tokens @ tokens.transpose(1, 2) / 2, dim=2) @ tokens
        return self.out(self.gru(mixed)[0][:, -1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_pools_norms_products_and_cells(backend: Backend, dtype: torch.dtype) -> None:  # noqa: F811
    torch.manual_seed(0)
    x, y = data(7, 2, 9, 7, dtype=dtype)
    land = pl.Landscape(settled(Mixed().to(dtype), x), "cross_entropy", (x, y))
    agree(backend, land, plane(land), depth=30)


def test_looked_up_products_of_embeddings(backend: Backend) -> None:  # noqa: F811
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.first, self.out = (
                nn.Embedding(5, 3),
                nn.Linear(3, 16),
                nn.Linear(16, 4),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.first(self.table(x))).mean(1))

    torch.manual_seed(0)
    x, y = torch.randint(0, 5, (40, 6)), torch.randint(0, 4, (40,))
    model = Bag().double()
    for chosen in (None, ["table.weight"], ["first.bias"], ["out.weight"]):
        land = pl.Landscape(model, "cross_entropy", (x, y), params=chosen)
        d = 0.3 * torch.randn(2, land.n_params, dtype=torch.float64)
        question = agree(backend, land, d)
    assert "lookup" in {op.kind for op in question._e.torch_program.ops}


def test_batch_norm_of_each_batch(backend: Backend) -> None:  # noqa: F811
    torch.manual_seed(0)
    x, y = data(41, 3, 5, 6)
    model = settled(Residual().double(), x)
    batches = [(x[a:b], y[a:b]) for a, b in itertools.pairwise((0, 13, 30, 41))]
    land = pl.Landscape(model, "cross_entropy", batches, bn="batch")
    agree(backend, land, plane(land), bn="batch")
    land = pl.Landscape(model, "cross_entropy", batches, bn="recompute")
    with pytest.raises(NotLowered, match='bn="recompute" runs on the CPU'):
        backend.engine(model, land, bn="recompute")


def test_interpolated_statistics_move_with_the_point(backend: Backend) -> None:  # noqa: F811
    torch.manual_seed(0)
    x, y = data(12, 3, 5, 6)
    land = pl.Landscape(settled(Residual().double(), x), "cross_entropy", (x, y), bn="interpolate")
    d = 0.01 * torch.randn(2, len(land.origin), dtype=torch.float64)
    agree(backend, land, d, bn="interpolate")


MOVED: dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor]]] = {
    "residual": lambda: (Residual(), *data(40, 3, 5, 6)),
    "mixed": lambda: (Mixed(), *data(7, 2, 9, 7)),
    "ViT": lambda: member("ViT", False, torch.float64),
    "LSTM": lambda: member("LSTM language model", False, torch.float64),
}


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN")
def test_nothing_is_on_the_wrong_device(name: str) -> None:
    model, x, y = MOVED[name]()
    model = settled(model.double(), x) if x.is_floating_point() else model
    modes = ("eval", "batch", "interpolate") if name in ("residual", "mixed") else ("eval",)
    for bn in modes:
        here = pl.Landscape(model, "cross_entropy", (x, y), bn=bn)
        d = 0.01 * torch.randn(2, len(here.origin), dtype=torch.float64)
        c = np.random.default_rng(0).normal(size=(3, 2))
        directions = d if bn != "interpolate" else pl.random_directions(here, 2, seed=1)
        want = here.losses(c, directions)
        with pretended_gpu() as device:
            there = pl.Landscape(
                copy.deepcopy(model).to(device), "cross_entropy", (x.to(device), y.to(device)),
                bn=bn, engine="native",
            )  # fmt: skip
            if bn == "interpolate":
                directions = pl.random_directions(there, 2, seed=1)
            found = there.losses(c, directions)
            evaluate = there.native.prepare(there.origin, d.to(device), ("loss", "accuracy"))
            for _ in range(3):  # the second time, recording is tried, and not there
                again = evaluate(c)["loss"]
        if bn != "interpolate":
            assert_close(again, want, torch.float64, 30)
        assert_close(found, want, torch.float64, 30)


def test_equal_questions_have_equal_bits(backend: Backend) -> None:  # noqa: F811
    torch.manual_seed(0)
    x, y = data(40, 3, 5, 6, dtype=torch.float32)
    land = pl.Landscape(settled(Residual(), x), "cross_entropy", (x, y))
    engine, d, c = backend.engine(land.model, land), plane(land), torch.randn(6, 2)
    want = engine.ask(land.theta, d).sums(c, hits=True)
    assert torch.equal(engine.ask(land.theta, d).sums(c, hits=True), want)
    # Where points run one by one, they do in every chunk alike.
    engine.torch_program.way = lambda conv, samples, same: LOOPED
    together, apart = engine.ask(land.theta, d), engine.ask(land.theta, d)
    alone = torch.cat([apart.sums(part) for part in c.split(3)], 1)
    torch.testing.assert_close(alone, together.sums(c), rtol=1e-5, atol=0)
