"""Derivatives of the CUDA engine against float64 double backward: on a GPU where one is, by
emulation everywhere."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cuda_support import Backend, backend, on_gpu  # noqa: F401
from derivative_support import EPS_FACTOR, LOSSES, Everything, error
from test_cuda_program import mlp
from torch import Tensor, nn

import pylandscape as pl
from pylandscape._native import ops
from pylandscape.engines.cuda import derivatives, sweep
from pylandscape.engines.cuda.engine import CudaEngine
from pylandscape.errors import NotLowered

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
        pairs[matrix] = (found, exact.product_at(matrix, v.to(exact.theta), exact.origin))
    pairs["samples"] = (engine.per_sample_gradients(theta), exact.per_sample_gradients())
    for name, (got, want) in pairs.items():
        assert got.device == theta.device
        assert got.dtype == (dtype if name == "samples" else torch.float64)
        assert error(got.cpu(), want, dtype) <= EPS_FACTOR, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_products_match_double_backward(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(27, 7), torch.randint(0, 5, (27,))
    check(backend, Everything(), "cross_entropy", x, y, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_its_derivatives(
    backend: Backend,  # noqa: F811
    name: str,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(len(name))
    make_loss, targets = LOSSES[name]
    check(backend, mlp(3, 4, 5), make_loss(), torch.randn(35, 3), targets(35), dtype, k=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_over_tokens_and_pixels_have_their_derivatives(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(9, 4, 3), torch.rand(5) + 0.1
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=2, label_smoothing=0.2)

    class Last(nn.Module):  # (N, 4, 3) -> (N, 5, 4): classes before tokens
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(3, 4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).transpose(1, 2)

    check(backend, Last(), loss, x, torch.randint(0, 5, (9, 4)), dtype)


ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.Hardtanh,
    lambda: nn.GELU(approximate="tanh"),
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_activation_has_its_second_derivative(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    for number, activation in enumerate(ACTIVATIONS):
        torch.manual_seed(number)
        model = mlp(4, 5, 5, 3, activation=activation)
        x, y = 2 * torch.randn(20, 4), torch.randint(0, 3, (20,))
        check(backend, model, "cross_entropy", x, y, dtype, ("hessian",), k=2)


class Curves(nn.Module):
    """Functions that no module stands for, and every way to combine two values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shift = nn.Linear(3, 4), nn.Linear(3, 4), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        h = a * b + a / (2 + b.square()) - b.abs() * self.shift
        h = torch.exp(-h.square()) + (a.flip(1) - 1.5) * torch.relu(a + b)
        h = h / 3 - torch.log_softmax(h[:, [0, 0, 2, 1, 2]], 1)[:, :4]
        return torch.cat([h, 1 - a[:, 1:3]], 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arithmetic_of_values_matches_double_backward(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(4)
    check(backend, Curves(), "mse", torch.randn(33, 3), torch.randn(33, 6), dtype)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("samples", [1, 31, 33, 70])
def test_any_number_of_vectors_and_samples(
    backend: Backend,  # noqa: F811
    samples: int,
    k: int,
) -> None:
    torch.manual_seed(k)
    x, y = torch.randn(samples, 17), torch.randint(0, 3, (samples,))
    check(backend, mlp(17, 33, 9, 3), "cross_entropy", x, y, torch.float32, ("hessian",), k)


@pytest.mark.parametrize("large", [0, 1 << 40])
def test_large_matrices_go_to_torch_with_the_same_result(
    backend: Backend,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    large: int,
) -> None:
    monkeypatch.setattr(sweep, "LARGE", large)
    monkeypatch.setattr(sweep, "SUM_ROWS", 24)
    torch.manual_seed(5)
    x, y = torch.randn(37, 7), torch.randint(0, 5, (37,))
    model = nn.Sequential(mlp(7, 6, 6, 7, activation=nn.ReLU), mlp(7, 8, 5))
    check(backend, model, "cross_entropy", x, y, torch.float32)


N_LARGE = 155


def large_model() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(6)
    return mlp(9, 8, 6, 3), torch.randn(200, 9), torch.randint(0, 3, (200,))


def test_tiles_that_do_not_divide_give_the_same_products(
    backend: Backend,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, y = large_model()
    theta, v = theta_of(model, backend), vectors(3, N_LARGE, torch.float32).to(backend.device)
    want = lowered(backend, model, "cross_entropy", x, y).product("hessian", theta, v)
    monkeypatch.setattr(derivatives, "TILE_BYTES", 1)
    engine = lowered(backend, model, "cross_entropy", x, y)
    assert len(engine.derivatives(theta).starts) == 4
    # Runs of 64 rows are the same; what is added in double is not in the same order.
    assert error(engine.product("hessian", theta, v), want, torch.float64) <= 10
    assert error(engine.gradient(theta).cpu(), exact_of(model, "cross_entropy", x, y).gradient(),
                 torch.float32) <= EPS_FACTOR  # fmt: skip


@pytest.mark.parametrize("large", [0, 1 << 40])
def test_bits_depend_neither_on_the_block_nor_on_memory(
    backend: Backend,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    large: int,
) -> None:
    monkeypatch.setattr(sweep, "LARGE", large)
    monkeypatch.setattr(derivatives, "TILE_BYTES", 128 * 400)
    model, x, y = large_model()
    theta, v = theta_of(model, backend), vectors(8, N_LARGE, torch.float32).to(backend.device)
    engine = lowered(backend, model, "cross_entropy", x, y)
    small = lowered(backend, model, "cross_entropy", x, y, memory=0)
    assert engine.derivatives(theta).kept
    assert not small.derivatives(theta).kept
    for matrix in MATRICES:
        want = engine.product(matrix, theta, v)
        alone = torch.cat([engine.product(matrix, theta, row[None]) for row in v])
        assert torch.equal(alone, want)
        assert torch.equal(engine.product(matrix, theta, v.flip(0)).flip(0), want)
        assert torch.equal(small.product(matrix, theta, v), want)
    assert torch.equal(small.gradient(theta), engine.gradient(theta))
    assert torch.equal(small.per_sample_gradients(theta), engine.per_sample_gradients(theta))
    monkeypatch.setattr(derivatives, "MOST_VECTORS", 3)
    assert torch.equal(engine.product("covariance", theta, v), want)


def test_the_hessian_is_symmetric(backend: Backend) -> None:  # noqa: F811
    model, x, y = large_model()
    engine = lowered(backend, model.double(), "cross_entropy", x.double(), y)
    theta, v = theta_of(model, backend), vectors(6, N_LARGE, torch.float64).to(backend.device)
    for matrix in MATRICES:
        products = v @ engine.product(matrix, theta, v).T
        assert error(products, products.T, torch.float64) <= 20


def test_a_linear_model_has_the_hessian_of_its_data(backend: Backend) -> None:  # noqa: F811
    torch.manual_seed(8)
    model, x, y = nn.Linear(6, 3), torch.randn(100, 6).double(), torch.randn(100, 3).double()
    engine = lowered(backend, model.double(), "mse", x, y)
    theta = theta_of(model, backend)
    found = engine.product("hessian", theta, torch.eye(21, dtype=torch.float64).to(theta)).cpu()
    wide = torch.cat([x, torch.ones(100, 1)], 1)  # weights (3, 6) by rows, then biases
    order = torch.cat([torch.arange(18).view(3, 6), torch.arange(18, 21)[:, None]], 1).flatten()
    want = torch.kron(torch.eye(3), 2 * wide.T @ wide / 300)
    assert error(found[order][:, order], want, torch.float64) <= 20
    torch.testing.assert_close(engine.product("gauss_newton", theta, theta[None])[0].cpu(),
                               found @ theta.cpu())  # fmt: skip


def test_frozen_parameters_are_constants_of_the_products(
    backend: Backend,  # noqa: F811
) -> None:
    torch.manual_seed(2)
    model, x, y = Everything().double(), torch.randn(20, 7).double(), torch.randint(0, 5, (20,))
    for params in (["b.*", "c.bias", "scale"], ["c.weight"], ["a.bias"], ["norm.bias", "c.*"]):
        land = pl.Landscape(model, "cross_entropy", (x, y), params=params)
        engine = backend.engine(model, land)
        v = vectors(3, land.n_params, torch.float64)
        want = pl.Landscape(model, "cross_entropy", (x, y), params=params, engine="torch")
        theta = land.theta.to(backend.device)
        for matrix in MATRICES:
            got = engine.product(matrix, theta, v.to(backend.device)).cpu()
            assert (
                error(got, want.product_at(matrix, v.to(want.theta), want.origin), torch.float64)
                <= EPS_FACTOR
            )


class Images(nn.Module):
    """Convolutions of every kind, batch and group norm, pools; (N, 2, 6, 5) to (N, 5)."""

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
    return model.eval(), torch.randn(5, 2, 6, 5), torch.randint(0, 5, (5,))


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_dimensional_and_plain_networks_of_images(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(3, 2, 2), nn.Flatten(),
        nn.Linear(6, 3),
    )  # fmt: skip
    x, y = torch.randn(6, 2, 10), torch.randint(0, 3, (6,))
    check(backend, model, "cross_entropy", x, y, dtype, ("hessian",))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.cell(x)[0][:, -1])
        return found


def with_engine(backend: Backend, land: pl.Landscape, **how: Any) -> pl.Landscape:  # noqa: F811
    """The landscape, answered by the CUDA engine wherever that runs."""
    land.native = backend.engine(land.model, land, **how)
    return land


def test_an_op_without_a_derivative_is_named_and_torch_answers(
    backend: Backend,  # noqa: F811
) -> None:
    torch.manual_seed(0)
    model, x, y = Recurrent(), torch.randn(5, 4, 3), torch.randint(0, 2, (5,))
    land = with_engine(backend, pl.Landscape(model, "cross_entropy", (x, y)))
    with pytest.raises(NotLowered, match="cell has no derivative on CUDA"):
        land.native.gradient(land.theta)
    assert land.native.products_at("hessian", land.theta) is None
    want = pl.Landscape(model, "cross_entropy", (x, y), engine="torch")
    v = vectors(2, land.n_params, torch.float32)
    assert torch.equal(land.gradient(), want.gradient())
    assert torch.equal(land.hvp(v), want.hvp(v))
    assert torch.equal(land.per_sample_gradients(), want.per_sample_gradients())
    assert land.engine_report().engine == "native"


def test_the_products_of_a_landscape_are_the_engines(backend: Backend) -> None:  # noqa: F811
    torch.manual_seed(7)
    model, x, y = mlp(3, 4, 3).double(), torch.randn(30, 3).double(), torch.randint(0, 3, (30,))
    land = with_engine(backend, pl.Landscape(model, "cross_entropy", (x, y)))
    want = pl.Landscape(model, "cross_entropy", (x, y))
    torch.testing.assert_close(land.hessian().cpu(), want.hessian())
    found, expected = (pl.eigenpairs(of, k=2, progress=False).values for of in (land, want))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    v = np.random.default_rng(0).normal(size=(land.n_params, 2))
    np.testing.assert_allclose(land.linear_operator() @ v, want.linear_operator() @ v, atol=1e-12)


def test_values_are_kept_until_theta_changes(backend: Backend) -> None:  # noqa: F811
    model, x, y = large_model()
    engine, theta = lowered(backend, model, "cross_entropy", x, y), theta_of(model, backend)
    first = engine.derivatives(theta)
    assert engine.derivatives(theta) is first
    assert engine.derivatives(theta.clone()) is first
    assert engine.derivatives(theta.double()) is first
    before = engine.gradient(theta)
    theta += 0.1
    assert not torch.equal(engine.gradient(theta), before)
    theta -= 0.1
    assert error(engine.gradient(theta), before, torch.float32) <= 100
    with torch.inference_mode():
        assert error(engine.gradient(theta.clone()), before, torch.float32) <= 100


class Repeats:
    """A recorder whose recordings run again what they recorded."""

    def __init__(self) -> None:
        self.recorded = 0

    def ready(self) -> bool:
        return True

    def record(self, run: Any) -> Any:
        self.recorded += 1
        found, nothing = run(), lambda: None
        replay = lambda: found.copy_(run())  # noqa: E731
        return SimpleNamespace(result=found, replay=replay, wait=nothing, release=nothing)


def test_products_of_one_shape_are_recorded_and_replayed(
    backend: Backend,  # noqa: F811
) -> None:
    model, x, y = large_model()
    recorder = Repeats()
    engine = lowered(backend, model, "cross_entropy", x, y)
    engine.recorder = lambda: recorder
    theta, v = theta_of(model, backend), vectors(4, N_LARGE, torch.float32).to(backend.device)
    want = [engine.product("hessian", theta, part) for part in (v[:2], v[2:])]
    assert recorder.recorded == 1
    again = [engine.product("hessian", theta, part) for part in (v[:2], v[2:])]
    assert recorder.recorded == 1
    assert all(torch.equal(a, b) for a, b in zip(again, want, strict=True))
    assert not torch.equal(want[0], want[1])


@on_gpu
def test_a_product_waits_for_nothing_and_can_be_captured() -> None:
    on = Backend(ops, torch.device("cuda"))
    model, x, y = large_model()
    engine, theta = lowered(on, model, "cross_entropy", x, y), theta_of(model, on)
    v = vectors(4, N_LARGE, torch.float32).to(on.device)
    want = engine.product("hessian", theta, v)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert engine.product("hessian", theta, v).shape == want.shape
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = engine.product("hessian", theta, v)
    graph.replay()
    assert torch.equal(found, want)
