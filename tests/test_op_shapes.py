"""Ops that gather, sum and normalise over dimensions: values, gradients and Hessians of the
compiled engine against float64 torch, on the CPU and through the CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from cuda_support import Backend, backend, one_thread  # noqa: F401
from derivative_support import EPS_FACTOR, error
from test_op_families import agrees
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import pylandscape as pl
from pylandscape.lowering import conv_sums, resample

Make = Callable[[], nn.Module]


class Between(nn.Module):
    """A layer, the body (a module or a function), everything in a row, a linear layer."""

    def __init__(self, first: nn.Module, body: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.body = first, body
        with torch.no_grad():
            width = self.body(self.first(torch.randn(2, *shape))).flatten(1).shape[1]
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.body(self.first(x)).flatten(1))
        return out


def of_images(body: Any, shape: tuple[int, ...] = (2, 4, 3)) -> tuple[nn.Module, Tensor, Tensor]:
    convolution = {2: nn.Conv1d, 3: nn.Conv2d}[len(shape)]
    model = Between(convolution(shape[0], 4, 1), body, shape)
    return model, torch.randn(7, *shape), torch.randn(7, 2)


def of_rows(body: Any, shape: tuple[int, ...] = (4, 3)) -> tuple[nn.Module, Tensor, Tensor]:
    model = Between(nn.Linear(shape[-1], 4), body, shape)
    return model, torch.randn(7, *shape), torch.randn(7, 2)


def resized(**options: Any) -> Callable[[Tensor], Tensor]:
    return partial(F.interpolate, **options)


IMAGES: dict[str, Make] = {
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear, corners": lambda: nn.Upsample(size=(5, 7), mode="bilinear", align_corners=True),
    "bicubic": lambda: resized(size=(6, 5), mode="bicubic"),
    "smaller, antialiased": lambda: resized(size=(2, 2), mode="bilinear", antialias=True),
    "area": lambda: resized(size=(3, 2), mode="area"),
    "local response norm": lambda: nn.LocalResponseNorm(3, alpha=0.5),
    "transposed, kernel as stride": lambda: nn.ConvTranspose2d(4, 2, 2, stride=2),
    "transposed": lambda: nn.ConvTranspose2d(
        4, 3, (3, 2), stride=(2, 1), padding=(1, 0), output_padding=(1, 0), dilation=(1, 2)
    ),
    "transposed in groups": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2, bias=False),
    "unfold": lambda: nn.Unfold(2, padding=1, stride=2),
    "pixel shuffle": lambda: nn.Sequential(nn.PixelShuffle(2), nn.PReLU(), nn.Upsample((3, 4))),
    "volume": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, 2, padding=(1, 0, 1), stride=(1, 2, 1)), nn.Tanh()
    ),
    "volume in groups": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)),
        nn.Conv3d(2, 4, (1, 3, 2), dilation=(1, 1, 2), groups=2, bias=False),
    ),
    "rms norm of images": lambda: nn.RMSNorm((4, 3)),
    "unit channels": lambda: F.normalize,
}


@pytest.mark.parametrize("name", IMAGES)
def test_ops_of_images_have_torchs_values_gradient_and_hessian(name: str) -> None:
    torch.manual_seed(len(name))
    agrees(*of_images(IMAGES[name]()), factor=3.0)


def test_transposed_convolution_and_interpolation_of_signals_are_torchs() -> None:
    torch.manual_seed(1)
    body = nn.Sequential(
        nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1),
        nn.Upsample(scale_factor=1.5, mode="linear"),
    )
    agrees(*of_images(body, (3, 5)), factor=3.0)


class RmsByHand(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * gain, as in Llama."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


class Rotary(nn.Module):
    """Rotary position embeddings (Su et al. 2021), halves as in Llama, in attention over keys of
    fewer heads."""

    def __init__(self, length: int = 4, size: int = 2) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(length).float(), 0.3 ** torch.arange(0, size, 2).float())
        self.register_buffer("angles", torch.cat([angles, angles], -1))

    def turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
        angles = self.angles[: x.shape[-2]]
        return x * angles.cos() + turned * angles.sin()

    def forward(self, h: Tensor) -> Tensor:
        heads = h.unflatten(-1, (2, 2)).transpose(1, 2)
        query, key = self.turned(heads), self.turned(heads[:, :1])
        return F.scaled_dot_product_attention(query, key, key * 0.7, enable_gqa=True)


class Alternating(nn.Module):
    """Rotary embeddings of neighbouring pairs, with angles that the forward pass computes."""

    def forward(self, h: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(h.shape[1]).float(), torch.tensor([1.0, 0.1]))
        even, odd = h[..., ::2], h[..., 1::2]
        return torch.stack(
            [even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()], -1
        ).flatten(-2)


class LowRank(nn.Module):
    """einsum of a value and two parameters, and of three values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 3))
        self.register_buffer("mix", torch.randn(4, 4))

    def forward(self, h: Tensor) -> Tensor:
        low = torch.einsum("nld,dr,rk->nlk", h, self.a, self.b)
        return torch.einsum("n...k,nmk,...m->n...", low, low.tanh(), self.mix)


class Chosen(nn.Module):
    """Columns by constant indices, some of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor([2, 0, 2]))

    def forward(self, h: Tensor) -> Tensor:
        return h[:, :3, self.columns] * h.index_select(1, self.columns)[..., 1:]


ROWS: dict[str, Make] = {
    "rms norm": lambda: nn.RMSNorm(4),
    "rms norm without gain": lambda: nn.RMSNorm((4, 4), eps=0.1, elementwise_affine=False),
    "rms norm by hand": lambda: RmsByHand(4),
    "rotary": Rotary,
    "rotary, alternating": Alternating,
    "unit vectors": lambda: partial(F.normalize, dim=-1),
    "variance": lambda: lambda h: torch.cat([h.var(1), h.var(-1, unbiased=False)], 1),
    "layer norm by hand": lambda: (
        lambda h: (
            (h - h.mean(-1, keepdim=True))
            / torch.sqrt(h.var(-1, keepdim=True, correction=0) + 1e-5)
        )
    ),
    "deviation": lambda: (
        lambda h: h / (h.std(-1, keepdim=True) + 0.1) + h.norm(dim=1, keepdim=True)
    ),
    "logsumexp": lambda: lambda h: torch.cat([h.logsumexp(1), h.logsumexp(2)], 1),
    "running sums": lambda: lambda h: h.cumsum(1) + h.cumsum(-1),
    "softmin": lambda: nn.Softmin(-1),
    "larger and smaller": lambda: (
        lambda h: (
            torch.maximum(h, h.flip(1)) * h.amin(1, keepdim=True)
            - torch.minimum(h, h[:, :1].tanh())
            + h.min(2, keepdim=True).values
        )
    ),
    "chosen columns": Chosen,
    "einsum of a pair of parameters": LowRank,
    "einsum with an ellipsis": lambda: lambda h: torch.einsum("...ij,...kj->...ik", h, h.tanh()),
    "einsum of one": lambda: (
        lambda h: torch.einsum("nij->nj", h) + torch.einsum("nij->nji", h)[:, 0]
    ),
    "einsum of three": lambda: lambda h: torch.einsum("nij,nkj,nk->ni", h, h, h[..., 0]),
    "einsum with a sum of one": lambda: lambda h: torch.einsum("nij,nkl->nil", h, h),
}


@pytest.mark.parametrize("name", ROWS)
def test_ops_of_rows_have_torchs_values_gradient_and_hessian(name: str) -> None:
    torch.manual_seed(len(name))
    with sdpa_kernel(SDPBackend.MATH):  # the one with a second derivative
        agrees(*of_rows(ROWS[name]()), factor=4.0)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.filterwarnings("ignore:second derivatives")
def test_recurrence_in_both_directions_has_torchs_values_and_derivatives(kind: Any) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = kind(4, 3, 2, batch_first=True, bidirectional=True)

        def forward(self, h: Tensor) -> Tensor:
            out, state = self.inner(h)
            state = state[0] if kind is nn.LSTM else state
            return torch.cat([out, state.transpose(0, 1).flatten(1).unflatten(1, (2, 6))], 1)

    torch.manual_seed(2)
    model, x, y = of_rows(Both())
    model, x, y = model.double(), x.double(), y.double()
    native = pl.Landscape(model, "mse", (x, y), engine="native")
    exact = pl.Landscape(model, "mse", (x, y), engine="torch")
    v = torch.randn(2, native.n_params).double()
    assert error(native.gradient(), exact.gradient(), torch.float64) <= EPS_FACTOR
    assert error(native.hvp(v), exact.hvp(v), torch.float64) <= EPS_FACTOR


@pytest.mark.parametrize(
    "function",
    [F.normalize, lambda h: h.norm(dim=1, keepdim=True)],
    ids=["normalize", "norm"],
)
def test_zeros_have_a_length_of_zero_and_no_slope(
    function: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), Between(nn.Identity(), function, (2,)))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)  # every sample's vector is zero
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    land = pl.Landscape(model.double(), "mse", (x, y), engine="native")
    exact = pl.Landscape(model, "mse", (x, y), engine="torch")
    np.testing.assert_allclose(land.gradient(), exact.gradient(), rtol=1e-12)
    np.testing.assert_allclose(land.hessian(), exact.hessian(), rtol=1e-12)


@pytest.mark.parametrize("name", ["bilinear", "transposed"])
def test_what_would_take_too_long_a_list_goes_to_torch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resample, "_MOST_TAPS", 30)
    monkeypatch.setattr(conv_sums, "_MOST_TAPS", 30)
    model, x, y = of_images(IMAGES[name]())
    assert "too many elements" in str(pl.Landscape(model, "mse", (x, y)).engine_report().reason)


CUDA = ("bilinear", "local response norm", "transposed", "volume", "rms norm of images")


@pytest.mark.ci
@pytest.mark.parametrize("name", CUDA)
def test_the_cuda_engine_has_the_same_values_and_derivatives(
    backend: Backend,  # noqa: F811
    one_thread: None,  # noqa: F811
    name: str,
) -> None:
    torch.manual_seed(4)
    model, x, y = of_images(IMAGES[name]())
    model, x, y = model.double(), x.double(), y.double()
    land = pl.Landscape(model, "mse", (x, y), engine="native")
    engine = backend.engine(model, land)
    theta = land.theta
    points = theta + 0.1 * torch.randn(3, len(theta)).double()
    got = engine.prepare_points(("loss",))(points.to(backend.device))["loss"]
    np.testing.assert_allclose(got, land.losses(points=points), rtol=1e-11)
    v, there = torch.randn(2, len(theta)).double(), theta.to(backend.device)
    assert error(engine.gradient(there).cpu(), land.gradient(), torch.float64) <= EPS_FACTOR
    found = engine.product("hessian", there, v.to(backend.device)).cpu()
    assert error(found, land.hvp(v), torch.float64) <= EPS_FACTOR
