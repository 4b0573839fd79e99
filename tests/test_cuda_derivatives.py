"""Derivatives of the CUDA engine against float64 double backward: on a GPU where one is, by
emulation everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_support import Backend, backend  # noqa: F401
from test_derivatives import EPS_FACTOR, LOSSES, Everything, Exact, error
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import cuda_derivatives
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
    exact = Exact(model, loss, x.to(dtype), y.to(dtype) if y.is_floating_point() else y)
    model.to(dtype)
    y = y.to(dtype) if y.is_floating_point() else y
    engine = lowered(backend, model, loss, x.to(dtype), y)
    theta = theta_of(model, backend)
    v = vectors(k, len(theta), dtype)
    pairs = {"gradient": (engine.gradient(theta), exact.gradient)}
    for matrix in matrices:
        want = v.double() @ getattr(exact, matrix)
        pairs[matrix] = (engine.product(matrix, theta, v.to(backend.device)), want)
    pairs["samples"] = (engine.per_sample_gradients(theta), exact.sample_gradients)
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
