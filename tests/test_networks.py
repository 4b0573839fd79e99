"""The families that landscapes are drawn of lower completely, with float64 torch's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from network_support import (
    CLASSES,
    FAMILIES,
    FAR,
    grid,
    landscape,
    losses_at,
    member,
    networks,
    plane,
    worst_error,
)
from torch import Tensor, nn

import pylandscape as pl

# Of the torch engine, the reference: its fused attention and recurrence have no second derivative.
pytestmark = pytest.mark.filterwarnings("ignore:second derivatives")
DTYPES = [torch.float32, torch.float64]
SMALL = [name for name in FAMILIES if "56" not in name]  # whose double backward takes no seconds


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_lowers_completely_and_has_the_exact_losses_over_a_plane(
    name: str, trained: bool, dtype: torch.dtype
) -> None:
    model, x, y = member(name, trained, dtype)
    land = landscape(model, x, y)
    assert land.engine_report().engine == "native"
    d = plane(land)
    c = grid(land, x, y, d)
    want = losses_at(land, x, y, c, d)
    assert want.max() >= FAR
    depth = FAMILIES[name].depth
    assert worst_error(land.losses(c, d), want, depth, dtype) <= 1
    points = (land.theta.double() + c @ d.double()).to(dtype)
    assert worst_error(land.losses(points=points), want, depth, dtype) <= 1


@pytest.mark.parametrize("name", SMALL)
def test_a_family_has_torchs_gradient_and_hessian_products(name: str) -> None:
    model, x, y = member(name, True, torch.float64)
    native = _compiled_derivatives(landscape(model, x, y))
    exact = landscape(model, x, y, "torch")
    theta = native.theta + 0.1 * plane(native)[0]  # nothing is special about it
    v = plane(native)
    depth = FAMILIES[name].depth
    _close(native.gradient(theta), exact.gradient(theta), depth)
    _close(native.hvp(v, theta), exact.hvp(v, theta), depth)
    _close(native.gauss_newton_product(v, theta), exact.gauss_newton_product(v, theta), depth)


@pytest.mark.parametrize("name", ["LeNet with BN and dropout", "ResNet-20, option A", "ViT"])
def test_a_family_has_torchs_gradients_of_every_sample(name: str) -> None:
    model, x, y = member(name, False, torch.float64)
    native = _compiled_derivatives(landscape(model, x, y))
    exact = landscape(model, x, y, "torch")
    depth = FAMILIES[name].depth
    _close(native.per_sample_gradients(), exact.per_sample_gradients(), depth)
    v = plane(native)
    _close(native.covariance_product(v), exact.covariance_product(v), depth)


def test_the_families_have_the_published_numbers_of_parameters() -> None:
    expected = {
        networks.lenet: 61_706,
        networks.nin: 966_986,
        networks.dcnn: 188_810,
        networks.ResNet: 269_722,
        networks.wide_resnet: 2_748_890,
        networks.densenet_bc: 769_162,
        networks.ViT: 207_946,
    }
    for make, count in expected.items():
        model: nn.Module = make()  # type: ignore[operator]
        assert sum(p.numel() for p in model.parameters()) == count, make
    deep = networks.ResNet(56)
    assert sum(p.numel() for p in deep.parameters()) == 853_018


@st.composite
def convolutional(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...], int]:
    """A random stack on odd image sizes, some of one pixel, and the number of samples."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    channels = draw(st.integers(1, 9))
    size = (draw(st.integers(1, 11)), draw(st.integers(1, 11)))
    shape = (channels, *size)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "depthwise", "grouped", "pool", "norm"]))
        if kind in ("pool", "norm"):
            layer = draw(_pools(size)) if kind == "pool" else draw(_norms(channels, size))
        else:
            layer = draw(_convolutions(kind, channels, size))
        layers += [layer, draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.Identity]))()]
        with torch.no_grad():
            _, channels, *left = nn.Sequential(*layers).eval()(torch.zeros(2, *shape)).shape
        size = (left[0], left[1])
    head = [nn.Flatten(), nn.Linear(channels * size[0] * size[1], CLASSES)]
    return nn.Sequential(*layers, *head), shape, draw(st.sampled_from([1, 2, 7, 17, 33]))


def _kernels(size: int, padding: int, dilation: int) -> st.SearchStrategy[int]:
    return st.integers(1, max(1, min(5, 1 + (size + 2 * padding - 1) // dilation)))


@st.composite
def _convolutions(draw: st.DrawFn, kind: str, channels: int, size: tuple[int, int]) -> nn.Module:
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    kernel = [draw(_kernels(*a)) for a in zip(size, padding, dilation, strict=True)]
    groups = {"conv": 1, "depthwise": channels, "grouped": 2 - channels % 2}[kind]
    return nn.Conv2d(
        channels,
        groups * draw(st.integers(1, 6)),
        (kernel[0], kernel[1]),
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )


@st.composite
def _pools(draw: st.DrawFn, size: tuple[int, int]) -> nn.Module:
    kernel = (draw(st.integers(1, min(3, size[0]))), draw(st.integers(1, min(3, size[1]))))
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    kind = draw(st.sampled_from(["max", "mean", "adaptive"]))
    if kind == "adaptive":
        return nn.AdaptiveAvgPool2d((draw(st.integers(1, size[0])), draw(st.integers(1, size[1]))))
    pool = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
    return pool(kernel, stride, padding)


@st.composite
def _norms(draw: st.DrawFn, channels: int, size: tuple[int, int]) -> nn.Module:
    pixels = size[0] * size[1]  # one of one sample has no spread
    kind = draw(st.sampled_from(["batch", "group", "instance"] if pixels > 1 else ["batch"]))
    if kind == "group":
        return (
            nn.GroupNorm(channels, channels) if draw(st.booleans()) else nn.GroupNorm(1, channels)
        )
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=draw(st.booleans()))
    norm = nn.BatchNorm2d(channels, affine=draw(st.booleans()))
    norm.running_mean = torch.randn(channels)
    norm.running_var = torch.rand(channels) + 0.2
    return norm


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(convolutional(), st.sampled_from(DTYPES))
def test_random_convolutional_networks_match_float64_torch(
    network: tuple[nn.Module, tuple[int, ...], int], dtype: torch.dtype
) -> None:
    model, shape, samples = network
    model = model.to(dtype).eval()
    x, y = torch.randn(samples, *shape, dtype=dtype), torch.randint(0, CLASSES, (samples,))
    land = landscape(model, x, y)
    d = plane(land)
    c = torch.tensor([[0.0, 0], [1, 0], [-0.5, 1]], dtype=torch.float64)
    want = losses_at(land, x, y, c, d)
    # A norm over a few pixels divides by their spread, which may be nearly nothing.
    depth = 2 * len(model) * _cancellation(model, x)
    assert worst_error(land.losses(c, d), want, depth, dtype) <= 1


def _cancellation(model: nn.Module, x: Tensor) -> int:
    norms = (nn.GroupNorm, nn.InstanceNorm2d)
    return 30 if any(isinstance(m, norms) for m in model.modules()) else 1


def _compiled_derivatives(land: pl.Landscape) -> pl.Landscape:
    """The landscape, whose derivatives must be compiled: they would quietly be torch's else."""
    if land.native is not None:
        land.native.gradient(land.theta)  # raises NotLowered
        land.native.product("hessian", land.theta, land.theta[None])
    return land


def _close(got: Tensor, want: Tensor, depth: int) -> None:
    """To 20 eps depth of the largest element: derivatives are as deep again as the loss."""
    assert got.shape == want.shape
    error = float((got - want).abs().max() / want.abs().max())
    assert np.isfinite(error)
    assert error <= 20 * torch.finfo(torch.float64).eps * 2 * depth
