"""Group norm and instance norm against float64 torch."""

from __future__ import annotations

import pytest
import torch
from core_support import outputs_of
from pool_support import Image, Op, Raw, assert_close, check, landscapes
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "pixels", "channels"), [(1, 1, 3), (3, 7, 6), (5, 50, 5)])
@pytest.mark.parametrize("samples", [1, 17, 130])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_group_norm_matches_float64(
    dtype: torch.dtype, groups: int, pixels: int, channels: int, samples: int, offset: float
) -> None:
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(samples, pixels * channels, generator=g, dtype=torch.float64) + offset
    x = wide.to(dtype)
    got = outputs_of(
        x.shape[1], x, lambda p, s: p.group_norm(s, groups, pixels, channels, 1e-5, None, None)
    )
    image = (x.double() - offset).view(samples, pixels, channels).transpose(1, 2)  # exact
    want = F.group_norm(image, groups, eps=1e-5).transpose(1, 2).reshape(x.shape)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want, rtol=0, atol=20 * eps)


def test_a_constant_group_has_no_spread_but_eps() -> None:
    x = torch.full((3, 8), 7.0)
    got = outputs_of(8, x, lambda p, s: p.group_norm(s, 2, 2, 4, 1e-5, None, None))
    assert torch.equal(got, torch.zeros(3, 8))


def test_building_rejects_groups_of_unequal_size() -> None:
    with pytest.raises(ValueError, match="groups of one size"):
        outputs_of(6, torch.randn(3, 6), lambda p, s: p.group_norm(s, 2, 2, 3, 1e-5, None, None))
    with pytest.raises(ValueError, match="pixels \\* channels"):
        outputs_of(6, torch.randn(3, 6), lambda p, s: p.group_norm(s, 2, 2, 4, 1e-5, None, None))


def _drawn(module: nn.Module) -> nn.Module:
    """The module with random gains, shifts and statistics."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_()
        if "var" in name:
            tensor.data.abs_().add_(0.1)
    return module.eval()


# name: how to make the op, shape of an image without the batch
NORMS: dict[str, tuple[Op, tuple[int, ...]]] = {
    "groups": (lambda: nn.GroupNorm(3, 6), (6, 3, 4)),
    "one group": (lambda: nn.GroupNorm(1, 5), (5, 3, 3)),
    "a group for each channel": (lambda: nn.GroupNorm(4, 4), (4, 5, 3)),
    "groups of 1x1 images": (lambda: nn.GroupNorm(2, 6), (6, 1, 1)),
    "groups without an image": (lambda: nn.GroupNorm(2, 6), (6,)),
    "groups 1d": (lambda: nn.GroupNorm(2, 4), (4, 7)),
    "groups without affine": (lambda: nn.GroupNorm(2, 4, affine=False), (4, 3, 3)),
    "groups, relu": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU()), (4, 3, 3)),
    "groups, pool, groups": (
        lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.MaxPool2d(2), nn.GroupNorm(1, 4)), (4, 5, 4),
    ),
    "large eps": (lambda: nn.GroupNorm(2, 4, eps=0.5), (4, 3, 3)),
    "instance": (lambda: nn.InstanceNorm2d(3), (3, 4, 5)),
    "instance, affine": (lambda: nn.InstanceNorm2d(3, affine=True), (3, 4, 5)),
    "instance 1d": (lambda: nn.InstanceNorm1d(3, affine=True), (3, 6)),
    "instance 3d": (lambda: nn.InstanceNorm3d(2), (2, 3, 2, 2)),
    "instance, given statistics": (
        lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (3, 4, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NORMS)
def test_losses_and_derivatives_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(len(name))
    make, shape = NORMS[name]
    check(Image(_drawn(make()), shape).eval(), torch.randn(19, 5), dtype)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("samples", [1, 70])
def test_images_as_data_are_normalised_right(name: str, samples: int) -> None:
    torch.manual_seed(len(name))
    make, shape = NORMS[name]
    x, y = torch.randn(samples, *shape), torch.arange(samples) % 3
    native, exact = landscapes(Raw(_drawn(make()), shape).eval(), x, y, torch.float32)
    eps = torch.finfo(torch.float32).eps
    assert_close(torch.tensor(native.loss()), torch.tensor(exact.loss()), eps)
    assert_close(native.gradient(), exact.gradient(), eps)
    assert_close(native.per_sample_gradients(), exact.per_sample_gradients(), eps)


@pytest.mark.parametrize("name", ["groups", "instance, affine", "instance, given statistics"])
def test_an_exported_graph_gives_the_same(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NORMS[name]

    class Aliased(Image):
        def forward(self, x: Tensor) -> Tensor:
            h = self.make(x)
            kept = h
            h += 1  # lost by fx: export takes over
            return self.read(self.op((h * kept).view(-1, *self.shape)).flatten(1))

    model, x = Aliased(_drawn(make()), shape).eval(), torch.randn(19, 5)
    check(model, x, torch.float64)
    native = pl.Landscape(model, "cross_entropy", (x.double(), torch.arange(19) % 3))
    assert native.engine_report().capture == "export"


def test_functional_calls_are_the_same_ops() -> None:
    torch.manual_seed(0)
    check(Image(F.instance_norm, (3, 4, 5)), torch.randn(19, 5), torch.float64)
    check(Image(lambda x: F.group_norm(x, 2), (4, 3, 3)), torch.randn(19, 5), torch.float64)


def test_nothing_is_copied_between_pools_and_norms() -> None:
    op = nn.Sequential(nn.MaxPool2d(2), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    x, y = torch.randn(9, 4, 8, 8), torch.arange(9) % 3
    native, _ = landscapes(Raw(op, (4, 8, 8)), x, y, torch.float32)
    assert native.native.program.ops == 5  # one gather of the data; relu is part of the norm
