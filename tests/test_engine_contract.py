"""Every engine has the contract's methods, with its arguments under its names, and its answers have
the shapes and dtypes that it says."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.engines.contract import CompiledEngine, Engine, PointEngine
from pylandscape.engines.cuda.engine import CudaEngine
from pylandscape.engines.eager import TorchEngine
from pylandscape.engines.native import NativeEngine
from pylandscape.engines.points.cuda import PointsCuda
from pylandscape.engines.points.eager import TorchPoints
from pylandscape.engines.points.evaluator import PointEvaluator
from pylandscape.engines.points.native import NativePoints
from pylandscape.engines.recompute import RecomputeEngine

COMPILED = [NativeEngine, RecomputeEngine, CudaEngine]
PAIRS = [
    *((Engine, c) for c in [*COMPILED, TorchEngine]),
    *((CompiledEngine, c) for c in COMPILED),
    *((PointEngine, c) for c in [NativePoints, PointsCuda, TorchPoints, PointEvaluator]),
]


def methods(contract: type) -> dict[str, list[str]]:
    """{method: its arguments' names}."""
    return {
        name: list(inspect.signature(f).parameters)
        for base in contract.__mro__
        for name, f in vars(base).items()
        if inspect.isfunction(f) and not name.startswith("_")
    }


@pytest.mark.parametrize(("contract", "engine"), PAIRS)
def test_an_engine_has_the_methods_of_its_contract_with_the_same_arguments(contract, engine):
    for name, wanted in methods(contract).items():
        found = getattr(engine, name, None)
        assert found is not None, f"{engine.__name__} has no {name}"
        assert list(inspect.signature(found).parameters) == wanted, f"{engine.__name__}.{name}"


def network(bn: bool) -> nn.Module:
    torch.manual_seed(3)
    norm = [nn.BatchNorm1d(4)] if bn else []
    return nn.Sequential(nn.Linear(3, 4), *norm, nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.mark.parametrize(
    ("engine", "bn"), [("native", "eval"), ("native", "recompute"), ("torch", "eval")]
)
def test_answers_have_the_shapes_and_dtypes_of_the_contract(engine, bn):
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    land = pl.Landscape(network(bn != "eval"), "cross_entropy", (x, y), engine=engine, bn=bn)
    one: Engine = land.native if engine == "native" else land.eager
    n = land.moved.n
    theta, rows = land.origin, torch.randn(2, n, dtype=torch.float64)
    c = np.array([[0.0, 0.1], [0.2, 0.0], [0.0, 0.0]])
    found = one.prepare(theta, rows, ("loss", "accuracy"))(c)
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == dict.fromkeys(
        ("loss", "accuracy"), ((3,), np.dtype("float64"))
    )
    at = one.prepare_points(("loss",))(torch.stack([theta, theta + rows[0]]))
    assert at["loss"].shape == (2,)
    assert one.gradient(theta).shape == (n,)
    assert one.gradient(theta).dtype == torch.float64
    for matrix in ("hessian", "gauss_newton", "covariance"):
        product = one.product(matrix, theta, rows)
        assert (product.shape, product.dtype) == ((2, n), torch.float64)
        alone = one.product(matrix, theta, rows[:1])
        torch.testing.assert_close(product[:1], alone, rtol=1e-12, atol=1e-14)
    own = one.per_sample_gradients(theta)
    assert own.shape == (6, n)
    torch.testing.assert_close(own.mean(0).double(), one.gradient(theta))
    if engine == "native":
        assert isinstance(one.ops, tuple)
        assert [tuple(o.shape) for o in one.outputs_at(theta[None])] == [(6, 2)]
