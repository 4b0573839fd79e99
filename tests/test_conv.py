"""Convolutions and batch norm in the compiled engine: torch's values and derivatives."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl

CLASSES = 5
CASES = {  # Conv2d's arguments, image
    "3x3": ({"kernel_size": 3, "padding": 1}, (9, 7)),
    "stride": ({"kernel_size": 3, "stride": 2, "padding": 1}, (9, 8)),
    "stride without padding": ({"kernel_size": 2, "stride": 3}, (8, 9)),
    "dilation": ({"kernel_size": 3, "dilation": (2, 3), "padding": 2}, (8, 9)),
    "dilation and stride": ({"kernel_size": 3, "dilation": 2, "stride": 2, "padding": 3}, (7, 9)),
    "stride of 4, dilation": (
        {"kernel_size": 4, "dilation": 2, "stride": 4, "padding": 3},
        (9, 11),
    ),
    "groups": ({"kernel_size": 3, "groups": 3, "padding": 1}, (5, 6)),
    "groups and dilation": ({"kernel_size": 3, "groups": 2, "dilation": 2, "padding": 2}, (6, 5)),
    "depthwise": ({"kernel_size": 5, "groups": 6, "padding": 2, "bias": False}, (7, 5)),
    "1x1": ({"kernel_size": 1}, (5, 4)),
    "a 1x1 image": ({"kernel_size": 3, "padding": 1}, (1, 1)),
    "uneven": ({"kernel_size": (1, 4), "stride": (2, 1), "padding": (0, 2)}, (5, 6)),
    "same": ({"kernel_size": 3, "padding": "same", "dilation": 2}, (6, 7)),
    "same, even": ({"kernel_size": (4, 2), "padding": "same"}, (6, 7)),
    "kernel larger than the image": ({"kernel_size": 7, "padding": 3}, (2, 3)),
    "reflected": ({"kernel_size": 3, "padding": 2, "padding_mode": "reflect"}, (5, 6)),
    "circular": ({"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (5, 6)),
}


def data(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(*shape, dtype=dtype), torch.randint(0, CLASSES, (shape[0],))


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """In eval mode, with statistics of the data and parameters that are no round numbers."""
    model.train()
    with torch.no_grad():
        model(x)
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def agree(model: nn.Module, x: Tensor, y: Tensor, factor: float = 100) -> pl.Landscape:
    """Native loss and all derivatives equal the torch engine's in float64."""
    # torch's batch norm gives a wrong gradient for some single samples: the same sample twice.
    more = 2 if len(x) == 1 else 1
    twice = torch.cat([x.double()] * more), torch.cat([y] * more)
    exact = pl.Landscape(copy.deepcopy(model).double(), "cross_entropy", twice, engine="torch")
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    eps = torch.finfo(x.dtype).eps * factor
    v = torch.randn(3, land.n_params, dtype=x.dtype)

    def close(got: Tensor, want: Tensor) -> None:
        assert float((got.double() - want.double()).abs().max()) <= eps * float(want.abs().max())

    assert abs(land.loss() - exact.loss()) <= eps * exact.loss()
    close(land.gradient(), exact.gradient())
    close(land.hvp(v), exact.hvp(v))
    close(land.gauss_newton_product(v), exact.gauss_newton_product(v))
    if len(x) > 1:  # which torch takes one by one
        close(land.covariance_product(v), exact.covariance_product(v))
        close(land.per_sample_gradients(), exact.per_sample_gradients())
    return land


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_values_and_derivatives_are_torchs(case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    arguments, image = CASES[case]
    x, y = data(19, 6, *image, dtype=dtype)
    layers = nn.Sequential(nn.Conv2d(6, 12, **arguments), nn.Tanh())
    features = layers(x.float()).flatten(1).shape[1]
    model = nn.Sequential(layers, nn.Flatten(), nn.Linear(features, CLASSES)).to(dtype)
    agree(model, x, y)


@pytest.mark.parametrize(("channels", "rows"), list(itertools.product([1, 3, 17], [1, 13, 25])))
def test_any_number_of_channels(channels: int, rows: int) -> None:
    torch.manual_seed(0)
    x, y = data(5, channels, 5, 6)
    convs = nn.Sequential(nn.Conv2d(channels, rows, 3, 2, 1), nn.ReLU(), nn.Conv2d(rows, 4, 3))
    agree(nn.Sequential(convs, nn.Flatten(), nn.Linear(4, CLASSES)).double(), x, y)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_the_gradient_of_few_channels_is_taken_patch_by_patch(case: str) -> None:
    torch.manual_seed(0)
    arguments, image = CASES[case]
    groups = arguments.get("groups", 1)
    twins = [nn.Conv2d(3 * groups, 5 * groups, **arguments) for _ in range(2)]
    other = nn.Conv2d(3 * groups, 5 * groups, 1)  # the same input, by pixels

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = *twins, other

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x).tanh() * self.b(x).tanh()).mean((2, 3)) + self.c(x).mean((2, 3))

    x, y = data(37, 3 * groups, *image)
    land = pl.Landscape(Model().double(), "cross_entropy", (x, y), engine="native")
    exact = pl.Landscape(land.model, "cross_entropy", (x, y), engine="torch")
    v = torch.randn(land.n_params, dtype=torch.float64)
    for got, want in (
        (land.gradient(), exact.gradient()),
        (land.hvp(v), exact.hvp(v)),
    ):
        assert float((got - want).abs().max()) <= 1e-13 * float(want.abs().max())


def test_more_panels_of_rows_than_meet_a_strip_at_once() -> None:
    torch.manual_seed(0)
    x, y = data(3, 18, 2, 3)
    convs = nn.Sequential(nn.Conv2d(18, 1610, (1, 2)), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(convs, nn.Flatten(), nn.Linear(1610, CLASSES)).double()
    got = pl.Landscape(model, "cross_entropy", (x, y), engine="native").gradient()
    want = pl.Landscape(model, "cross_entropy", (x, y), engine="torch").gradient()
    assert float((got - want).abs().max()) <= 1e-13 * float(want.abs().max())


def test_images_deeper_than_what_is_summed_in_float() -> None:
    torch.manual_seed(0)
    x, y = data(33, 2, 48, 40, dtype=torch.float32)
    convs = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3), nn.ReLU())
    model = nn.Sequential(convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES))
    got = pl.Landscape(model, "cross_entropy", (x, y), engine="native").gradient()
    exact = pl.Landscape(copy.deepcopy(model).double(), "cross_entropy", (x.double(), y))
    want = exact.gradient()
    assert float((got - want).abs().max()) <= 1e-6 * float(want.abs().max())


def test_one_dimension() -> None:
    torch.manual_seed(0)
    x, y = data(21, 3, 17)
    model = nn.Sequential(
        nn.Conv1d(3, 8, 5, stride=2, padding=2), nn.BatchNorm1d(8), nn.Tanh(),
        nn.Conv1d(8, 4, 3, dilation=2, groups=2), nn.Flatten(), nn.Linear(20, CLASSES),
    )  # fmt: skip
    agree(settled(model.double(), x), x, y)


class Residual(nn.Module):
    """Convolutions whose epilogue takes in batch norm, a sum and relu, in several orders."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(8, affine=False)
        self.short = nn.Conv2d(8, 6, 1, stride=2)
        self.third = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.third_norm = nn.BatchNorm2d(6)
        self.read = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)))
        h = F.relu(h + self.second_norm(self.second(h)))
        g = self.third_norm(F.relu(self.third(h)))  # nothing to take in after the relu
        g += self.short(h)
        return self.read(torch.tanh(g).flatten(2).transpose(1, 2)[:, 1])


@pytest.mark.parametrize("samples", [1, 3, 40])
def test_residual_blocks_with_batch_norm(samples: int) -> None:
    torch.manual_seed(0)
    x, y = data(samples, 3, 5, 6)
    agree(settled(Residual().double(), data(9, 3, 5, 6)[0]), x, y)


def test_a_last_batch_of_one_sample_does_not_lead_to_torchs_wrong_gradient() -> None:
    torch.manual_seed(0)
    x, y = data(9, 3, 5, 6)
    model = settled(Residual().double(), x)
    land = pl.Landscape(model, "cross_entropy", [(x[:8], y[:8]), (x[8:], y[8:])])
    assert land.engine == "native"
    exact = pl.Landscape(model, "cross_entropy", (x, y), engine="torch")
    assert float((land.gradient() - exact.gradient()).abs().max()) < 1e-13


def test_batch_norm_of_features_and_before_a_convolution() -> None:
    torch.manual_seed(0)
    x, y = data(23, 4, 5, 5)
    model = nn.Sequential(
        nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.Flatten(), nn.Linear(96, 7),
        nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, CLASSES),
    )  # fmt: skip
    agree(settled(model.double(), x), x, y)


def test_frozen_layers_and_single_parameters() -> None:
    torch.manual_seed(0)
    x, y = data(12, 3, 5, 6)
    model = settled(Residual().double(), x)
    names = [name for name, _ in model.named_parameters()]
    for chosen in (["norm.weight"], ["norm.bias", "third.bias"], ["third.weight"], names[-2:]):
        lands = [
            pl.Landscape(model, "cross_entropy", (x, y), params=chosen, engine=engine)
            for engine in ("native", "torch")
        ]
        v = torch.randn(2, lands[0].n_params, dtype=torch.float64)
        torch.testing.assert_close(lands[0].hvp(v), lands[1].hvp(v))
        torch.testing.assert_close(lands[0].gradient(), lands[1].gradient())
        c = torch.randn(4, 1, dtype=torch.float64)
        d = pl.random_directions(lands[0], 1, seed=2)
        got, want = (land.losses(c, d) for land in lands)
        torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(want))


def test_a_plane_is_the_torch_engines() -> None:
    torch.manual_seed(0)
    x, y = data(33, 3, 5, 6)
    model = settled(Residual().double(), x)
    values = []
    for engine in ("native", "torch"):
        land = pl.Landscape(model, "cross_entropy", (x, y), engine=engine)
        directions = pl.random_directions(land, 2, seed=3)
        grid = {"x": (-2, 2, 5), "y": (-2, 2, 3), "progress": False}
        values.append(torch.as_tensor(pl.plane(land, *directions, **grid).values))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_threads_or_company(threads: int) -> None:
    torch.manual_seed(0)
    x, y = data(70, 3, 5, 6, dtype=torch.float32)
    model = settled(Residual(), x)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    points = land.theta + 0.1 * torch.randn(6, land.n_params)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = land.losses(points=points)
        hvp = land.hvp(points)
        torch.set_num_threads(threads)
        for i, point in enumerate(points):
            assert float(land.losses(points=point[None])[0]) == float(together[i])
        assert torch.equal(land.hvp(points[3:4]), hvp[3:4])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.LPPool2d(2, 2)), "lp_pool2d"),
        (nn.Conv3d(1, 2, 3, padding="same"), "conv3d"),
    ],
)
def test_what_is_not_there_runs_on_torch_with_the_reason(model: nn.Module, reason: str) -> None:
    shape = (6, 1, 3, 4, 4) if isinstance(model, nn.Conv3d) else (6, 3, 4, 4)
    x, y = data(*shape, dtype=torch.float32)
    whole = nn.Sequential(model, nn.Flatten(), nn.LazyLinear(CLASSES))
    whole(x)
    land = pl.Landscape(whole.eval(), "cross_entropy", (x, y))
    report = land.engine_report()
    assert report.engine == "torch"
    assert reason in str(report)
