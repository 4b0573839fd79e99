"""Derivatives of the CUDA engine against float64 double backward: on a GPU where one is, by
emulation everywhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cuda_support import Backend, backend  # noqa: F401
from test_derivatives import EPS_FACTOR, LOSSES, Everything, error
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.engine_cuda import CudaEngine

DTYPES = (torch.float32, torch.float64)
MATRICES = ("hessian", "gauss_newton", "covariance")


def lowered(
    backend: Backend,  # noqa: F811
    model: nn.Module,
    loss: Any,
    x: Tensor,
    y: Tensor,
    **how: Any,
) -> CudaEngine:
    land = pl.Landscape(model, loss, (x, y))
    return backend.engine(model, land, **how)


def theta_of(model: nn.Module, on: Backend) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).to(on.device)


def vectors(k: int, n: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(k, n, generator=torch.Generator().manual_seed(k), dtype=dtype)


def wide(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def exact_of(model: nn.Module, loss: Any, x: Tensor, y: Tensor) -> pl.Landscape:
    """The same numbers in float64, by torch's double backward."""
    return pl.Landscape(
        copy.deepcopy(model).double(), loss, (wide(x), wide(y)), engine="torch", dtype=torch.float64
    )


def check(
    backend: Backend,  # noqa: F811
    model: nn.Module,
    loss: Any,
    x: Tensor,
    y: Tensor,
    dtype: torch.dtype,
    matrices: tuple[str, ...] = MATRICES,
    k: int = 3,
) -> None:
    """Gradient, products with random vectors and per-sample gradients, in dtype."""
    x, y = (t.to(dtype) if t.is_floating_point() else t for t in (x, y))
    exact = exact_of(model.to(dtype), loss, x, y)
    engine = lowered(backend, model, loss, x, y)
    theta, v = theta_of(model, backend), vectors(k, exact.n_params, dtype)
    pairs = {"gradient": (engine.gradient(theta), exact.gradient())}
    for matrix in matrices:
        found = engine.product(matrix, theta, v.to(backend.device))
        pairs[matrix] = (found, exact._product(matrix, v, None))
    pairs["samples"] = (engine.per_sample_gradients(theta), exact.per_sample_gradients())
    for name, (got, want) in pairs.items():
        assert got.device == theta.device
        assert got.dtype == (dtype if name == "samples" else torch.float64)
        assert error(got.cpu(), want, dtype) <= EPS_FACTOR, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_all_products_match_double_backward(
    backend: Backend,  # noqa: F811
    name: str,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(len(name))
    make_loss, targets = LOSSES[name]
    check(backend, Everything(), make_loss(), torch.randn(37, 7), targets(37), dtype)


class Images(nn.Module):
    """Convolutions of every kind, batch and group norm, pools; (N, 2, 9, 8) to (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, stride=2, groups=3, dilation=(1, 2), padding=(2, 1))
        self.group, self.point = nn.GroupNorm(2, 6), nn.Conv2d(6, 4, 1)
        self.out = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.one(x)))
        h = nn.functional.max_pool2d(h, 3, stride=2, padding=1) + 0.5 * nn.functional.avg_pool2d(
            h, 3, stride=2, padding=1
        )
        h = self.group(torch.tanh(self.deep(h)))
        out: Tensor = self.out(torch.amax(torch.relu(self.point(h)), (2, 3)))
        return out


class Attention(nn.Module):
    """An embedding with a padding token, attention, a mean: (N, 6) tokens to (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 8, padding_idx=2)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        h = h + nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(h.mean(1))
        return out


def images() -> tuple[nn.Module, Tensor, Tensor]:
    model = Images()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    return model.eval(), torch.randn(7, 2, 9, 8), torch.randint(0, 5, (7,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_convolutions_norms_and_pools_match_double_backward(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(1)
    model, x, y = images()
    check(backend, model, "cross_entropy", x, y, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_and_attention_match_double_backward(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(2)
    x, y = torch.randint(0, 7, (9, 6)), torch.randint(0, 5, (9,))
    check(backend, Attention(), "cross_entropy", x, y, dtype)
