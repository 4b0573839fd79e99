"""The CUDA engine against float64 on the CPU: on a GPU where one is, by emulation everywhere."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from cuda_support import Backend, backend  # noqa: F401
from emulation_support import SHARED_LIMIT, device_of, emulated_ops, scheduled
from torch import Tensor, nn

import pylandscape as pl

DTYPES = (torch.float32, torch.float64)
NO_ROOM = 64  # bytes of shared memory: nothing fits, torch multiplies
LIMITS = (pytest.param(SHARED_LIMIT, id="resident"), pytest.param(NO_ROOM, id="wide"))


class Branches(nn.Module):
    """Every op that is neither a linear layer nor an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 3)
        self.shift = nn.Parameter(torch.randn(5))
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        left = torch.softmax(left * 2 - self.shift, dim=1) / torch.sigmoid(left)
        h = torch.cat([left, self.right(x.flip(1))], dim=1)
        h = self.norm(h) + torch.cat([h[:, 3:], h[:, :3]], dim=1)
        return torch.log_softmax(self.out(h), dim=1)


class Tokens(nn.Module):
    """Linear layers, norms and softmax over several groups of a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 9), nn.Linear(9, 3)
        self.norm = nn.LayerNorm(9, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:  # (N, 5, 4) -> (N, 3, 5)
        h = torch.relu(self.first(x))
        return torch.softmax(self.second(self.norm(h)).transpose(1, 2), dim=1)


def mlp(*dims: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(dims):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def classes(samples: int, features: int, count: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(samples)
    return (
        torch.randn(samples, features, generator=g),
        torch.randint(0, count, (samples,), generator=g),
    )


def landscapes(model: nn.Module, loss: Any, data: tuple[Tensor, Tensor], dtype: torch.dtype) -> Any:
    """The landscape of the model in dtype, and the same numbers in float64."""
    x, y = data
    land = pl.Landscape(model.to(dtype), loss, (x.to(dtype), y))
    if dtype == torch.float64:
        return land, land
    wide = copy.deepcopy(model).double()
    return land, pl.Landscape(wide, loss, (x.to(dtype).double(), y))


def spread(land: pl.Landscape, k: int, only: slice = slice(None)) -> Tensor:
    g = torch.Generator().manual_seed(k)
    d = torch.zeros(k, land.n_params, dtype=land.dtype)
    d[:, only] = torch.randn(d[:, only].shape, generator=g, dtype=land.dtype)
    return d * 0.3


def tolerance(dtype: torch.dtype) -> float:
    """Weights and every layer round once or twice; a loss is a mean of such terms."""
    return 200 * torch.finfo(dtype).eps


def agree(got: np.ndarray, want: np.ndarray, dtype: torch.dtype) -> None:
    np.testing.assert_allclose(got, want, rtol=tolerance(dtype), atol=tolerance(dtype))


def check(
    backend: Backend,  # noqa: F811
    model: nn.Module,
    loss: Any,
    data: tuple[Tensor, Tensor],
    dtype: torch.dtype = torch.float32,
    limit: int = SHARED_LIMIT,
    k: int = 2,
    only: slice = slice(None),
    points: int = 5,
) -> None:
    """Losses along directions and at free points, and outputs, against float64."""
    land, exact = landscapes(model, loss, data, dtype)
    assert land.engine == "native", land.engine_report()
    engine = backend.engine(model, land, shared_limit=limit)
    d = spread(land, k, only)
    c = np.random.default_rng(0).normal(size=(points, k))
    found = engine.ask(land.theta, d)
    assert bool(found.reason) == (limit == NO_ROOM and found.about["arena_rows"] > 0), found.reason
    got = (found.sums(c).cpu().numpy() / engine.denominator)[0]
    want = exact.losses(c.astype(np.float32) if dtype == torch.float32 else c, d.double())
    agree(got, want, dtype)
    thetas = land.theta + torch.as_tensor(c, dtype=dtype) @ d
    free = engine.prepare_points(("loss",))(thetas)["loss"]
    agree(free, exact.losses(points=thetas.double()), dtype)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("samples", [1, 3, 4, 31, 32, 33, 64, 65, 255, 256, 257, 300])
def test_losses_match_float64_around_warps_and_blocks(
    backend: Backend,  # noqa: F811
    samples: int,
    limit: int,
) -> None:
    check(backend, mlp(7, 6, 5, 3), "cross_entropy", classes(samples, 7, 3), limit=limit)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17])
@pytest.mark.parametrize("samples", [4, 70])
def test_layers_match_float64_around_panels(
    backend: Backend,  # noqa: F811
    width: int,
    samples: int,
) -> None:
    data = classes(samples, 5, 2)
    check(backend, mlp(5, width, width, 2), "cross_entropy", data, torch.float64)
    check(backend, mlp(5, width, width, 2), "cross_entropy", data, torch.float32)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU,
        nn.Hardtanh, lambda: nn.GELU(approximate="tanh"),
    ],
)  # fmt: skip
def test_activations_match_float64(
    backend: Backend,  # noqa: F811
    activation: Any,
    dtype: torch.dtype,
    limit: int,
) -> None:
    model = mlp(4, 8, 8, 3, activation=activation)
    check(backend, model, "cross_entropy", classes(40, 4, 3), dtype, limit, points=3)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_other_ops_match_float64(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
    limit: int,
) -> None:
    check(backend, Branches(), "nll", classes(70, 6, 4), dtype, limit)
    check(backend, Branches(), "nll", classes(5, 6, 4), dtype, limit)
    x, y = torch.randn(37, 5, 4), torch.randn(37, 3, 5)
    check(backend, Tokens(), "mse", (x, y), dtype, limit)
    y = torch.randint(0, 3, (37, 5))
    check(backend, Tokens(), "cross_entropy", (x, y), dtype, limit)


LOSSES = {
    "weights": nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.25])),
    "smoothing": nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([0.5, 2.0, 1.25])),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "soft": nn.CrossEntropyLoss(label_smoothing=0.2),
    "mse": nn.MSELoss(),
    "bce": nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 2.0, 3.0])),
    "weighted bce": nn.BCEWithLogitsLoss(weight=torch.tensor([0.5, 2.0, 3.0])),
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("samples", [5, 45])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_accuracy_is_the_cpus(
    backend: Backend,  # noqa: F811
    name: str,
    samples: int,
    limit: int,
) -> None:
    x, y = classes(samples, 4, 3)
    if name == "soft":
        y = torch.softmax(torch.randn(samples, 3), 1)
    elif name == "mse":
        y = torch.randn(samples, 3)
    elif "bce" in name:
        y = torch.randint(0, 2, (samples, 3)).float()
    model = mlp(4, 6, 3)
    check(backend, model, LOSSES[name], (x, y), limit=limit)
    if name == "mse":
        return
    land = pl.Landscape(model, LOSSES[name], (x, y))
    d, c = spread(land, 2), np.random.default_rng(1).normal(size=(6, 2))
    metrics = ("loss", "accuracy")
    got = backend.engine(model, land, shared_limit=limit).prepare(land.theta, d, metrics)(c)
    np.testing.assert_array_equal(got["accuracy"], land.evaluate(c, d, metrics=metrics)["accuracy"])


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_any_number_of_directions_moves_any_part(
    backend: Backend,  # noqa: F811
    k: int,
    limit: int,
) -> None:
    model, data = mlp(9, 6, 5, 3), classes(50, 9, 3)
    n = sum(p.numel() for p in model.parameters())
    for only in (slice(None), slice(0, 54), slice(54, 60), slice(60, n), slice(n - 3, n), slice(0)):
        check(backend, model, "cross_entropy", data, limit=limit, k=k, only=only, points=3)


def test_what_no_point_changes_is_computed_once(backend: Backend) -> None:  # noqa: F811
    model = mlp(30, 8, 5, 3)
    land = pl.Landscape(model, "cross_entropy", classes(64, 30, 3))
    engine, d = backend.engine(model, land), spread(land, 2)
    assert engine.ask(land.theta, d).about["external_rows"] == 3 * 8  # the first layer is combined
    assert engine.ask(land.theta, d).about["weights"] == 8 + 5 * 8 + 8 + 3 * 5 + 1 + 4
    d[:, : 30 * 8 + 8] = 0  # it stays: the second is combined
    assert engine.ask(land.theta, d).about["external_rows"] == 3 * 5
    assert engine.ask(land.theta, torch.zeros_like(d)).about["steps"] == 0


def test_a_wide_layer_is_divided_among_groups_of_threads(backend: Backend) -> None:  # noqa: F811
    model, data = mlp(5, 300, 20, 3), classes(90, 5, 3)
    land = pl.Landscape(model, "cross_entropy", data)
    about = backend.engine(model, land).ask(land.theta, spread(land, 2)).about
    assert about["groups"] > 1
    assert about["points"] == 1
    check(backend, model, "cross_entropy", data)
    check(backend, model, "cross_entropy", data, torch.float64)


def test_few_samples_share_a_block_with_other_points(backend: Backend) -> None:  # noqa: F811
    model = mlp(2, 2, 1, activation=nn.Sigmoid)
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    y = torch.tensor([[0.0], [1], [1], [0]])
    land = pl.Landscape(model, "mse", (x, y))
    assert backend.engine(model, land).ask(land.theta, spread(land, 2)).about["points"] == 64
    for points in (1, 63, 64, 65, 200):
        check(backend, model, "mse", (x, y), points=points)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("case", ["few samples", "a tile", "groups"])
def test_bits_depend_on_no_order_and_no_chunk(case: str, limit: int) -> None:
    on_cpu = Backend(emulated_ops(), torch.device("cpu"))
    dims, samples = {
        "few samples": ((3, 4, 2), 5),
        "a tile": ((6, 5, 9, 3), 300),
        "groups": ((5, 300, 20, 3), 70),
    }[case]
    model = mlp(*dims)
    land = pl.Landscape(model, "cross_entropy", classes(samples, dims[0], dims[-1]))
    d, c = spread(land, 2), torch.randn(90 if samples < 64 else 7, 2)
    engine = on_cpu.engine(model, land, shared_limit=limit)
    question, free = engine.ask(land.theta, d), engine.ask(None, None)
    thetas = land.theta + c @ d
    want, want_free = question.sums(c, hits=True), free.sums(thetas, hits=True)
    for order in ("reversed", "shuffled"):
        for blocks in (1, 3, 10_000):
            with scheduled(order, order, seed=blocks), device_of(blocks):
                assert torch.equal(question.sums(c, hits=True), want)
                assert torch.equal(free.sums(thetas, hits=True), want_free)
    if limit == SHARED_LIMIT:  # torch's products may differ with their sizes
        for size in (1, 2, 50):
            parts = [question.sums(part, hits=True) for part in c.split(size)]
            assert torch.equal(torch.cat(parts, 1), want)


@pytest.mark.parametrize("limit", LIMITS)
def test_metrics_see_the_modules_outputs(backend: Backend, limit: int) -> None:  # noqa: F811
    def spread_of(outputs: Tensor, target: Tensor) -> float:
        assert outputs.shape == (37, 3, 5)
        assert outputs.device == target.device
        return float(outputs.double().var() + target.double().sum())

    x, y = torch.randn(37, 5, 4), torch.randn(37, 3, 5)
    model = Tokens()
    land = pl.Landscape(model, "mse", (x, y))
    d, c = spread(land, 2), np.random.default_rng(1).normal(size=(3, 2))
    engine = backend.engine(model, land, shared_limit=limit)
    got = engine.prepare(land.theta, d, (spread_of,))(c)["spread_of"]
    agree(got, land.evaluate(c, d, metrics=(spread_of,))["spread_of"], torch.float32)


@pytest.mark.parametrize("limit", LIMITS)
def test_values_that_are_not_finite_stay_so(backend: Backend, limit: int) -> None:  # noqa: F811
    model = mlp(4, 5, 3, activation=nn.ReLU)
    land = pl.Landscape(model, "cross_entropy", classes(40, 4, 3))
    engine, d = backend.engine(model, land, shared_limit=limit), spread(land, 2)
    c = np.array([[np.nan, 0], [0, np.nan], [1e30, 0], [0.1, 0.1]])
    got = engine.prepare(land.theta, d, ("loss",))(c)["loss"]
    assert np.isnan(got[:2]).all()
    assert not np.isfinite(got[2])
    assert np.isfinite(got[3])


@pytest.mark.parametrize("limit", LIMITS)
def test_no_points_give_no_losses(backend: Backend, limit: int) -> None:  # noqa: F811
    model = mlp(4, 5, 3)
    land = pl.Landscape(model, "cross_entropy", classes(40, 4, 3))
    engine = backend.engine(model, land, shared_limit=limit)
    assert (
        engine.prepare(land.theta, spread(land, 2), ("loss",))(np.empty((0, 2)))["loss"].size == 0
    )


def test_a_network_with_other_ops_runs_by_torchs_calls(backend: Backend) -> None:  # noqa: F811
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    x, y = torch.randn(8, 1, 8, 8), torch.randint(0, 2, (8,))
    land = pl.Landscape(model, "cross_entropy", (x, y))
    question = backend.engine(model, land).ask(land.theta, spread(land, 2))
    assert question.reason == "it has ops without a resident kernel"


def test_tensors_that_do_not_fit_the_plan_are_refused(backend: Backend) -> None:  # noqa: F811
    model = mlp(4, 5, 3)
    land = pl.Landscape(model, "cross_entropy", classes(40, 4, 3))
    question = backend.engine(model, land).ask(land.theta, spread(land, 2))
    plan, *rest = question._resident()
    c = torch.zeros(3, 2, device=backend.device)
    call = backend.ops.resident_losses
    for wrong in range(len(rest)):
        if rest[wrong].numel() == 0:
            continue
        short = [t.reshape(-1)[:-1] if i == wrong else t for i, t in enumerate(rest)]
        with pytest.raises((RuntimeError, ValueError), match="expected"):
            call(plan, *short, c, False)
    with pytest.raises((RuntimeError, ValueError), match="coordinates: expected shape"):
        call(plan, *rest, c[:, :1].contiguous(), False)
    with pytest.raises((RuntimeError, ValueError), match="bytes of a plan"):
        call(plan[1:].clone(), *rest, c, False)
