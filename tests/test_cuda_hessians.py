"""Small Hessians by the CUDA kernels against the CPU's: on a GPU where one is, and by emulation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cuda_support import Backend, backend, on_gpu  # noqa: F401
from emulation_support import SHARED_LIMIT, emulated_ops, scheduled
from pretended_gpu import pretended_gpu
from test_hessians import LANES, LOSSES, landscape, points_of
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.engines.points import cuda
from pylandscape.engines.points import evaluator as front
from pylandscape.engines.points.cuda import PointsCuda
from pylandscape.engines.points.eager import TorchPoints
from pylandscape.engines.points.evaluator import PointEvaluator
from pylandscape.engines.points.native import NativePoints, float64_engine
from pylandscape.errors import NotLowered
from pylandscape.lowering.build import Data

TOLERANCE = 2000 * np.finfo(np.float64).eps  # of the largest element, as on the CPU; 10 are typical
Results = tuple[np.ndarray, ...]


def kernels_of(
    backend: Backend,  # noqa: F811
    land: pl.Landscape,
    limit: int = SHARED_LIMIT,
) -> PointsCuda:
    data = Data.of(land.dataset, torch.float64)
    engine = float64_engine(land)
    return PointsCuda(
        engine, land.loss_spec, data, backend.device, kernels=backend.ops, shared_limit=limit
    )


def emulated() -> Backend:
    return Backend(emulated_ops(), torch.device("cpu"))


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max(initial=1e-9))


def assert_same_bits(got: Results, want: Results) -> None:
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def check(
    backend: Backend,  # noqa: F811
    land: pl.Landscape,
    count: int = 3,
    limit: int = SHARED_LIMIT,
    spectra: bool = False,
) -> PointsCuda:
    """All answers against those of the CPU's kernels."""
    found, points = kernels_of(backend, land, limit), points_of(land, count)
    got, want = found.hessians(points), NativePoints(land).hessians(points)
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        assert_close(one, other)
    assert np.array_equal(got[2], got[2].transpose(0, 2, 1))
    losses, gradients = found.gradients(points)
    assert np.array_equal(losses, got[0])
    assert np.array_equal(gradients, got[1])
    if spectra:
        values = found.spectra(points)
        assert values is not None
        assert_close(values[2], np.linalg.eigvalsh(got[2]))
    return found


def mlp(*dims: int, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(dims):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def regression(model: nn.Module, samples: int, features: int, outputs: int) -> pl.Landscape:
    g = torch.Generator().manual_seed(samples)
    x, y = (torch.randn(samples, size, generator=g) for size in (features, outputs))
    return pl.Landscape(model, "mse", (x, y))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", LANES)
def test_every_op_that_points_know_gives_the_cpus_hessians(
    backend: Backend,  # noqa: F811
    name: str,
    loss: str,
) -> None:
    check(backend, landscape(LANES[name], loss))


class Curves(nn.Module):
    """Functions of one element that are no module, and a mean over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = torch.abs(h) + torch.exp(-(h**2)) * self.b(h)
        return torch.stack([h[:, :2].mean(1), h[:, 1:].sum(1)], 1)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.2), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU, "gelu tanh": lambda: nn.GELU(approximate="tanh"), "silu": nn.SiLU,
    "softplus": lambda: nn.Softplus(2.0, 1.0), "elu": lambda: nn.ELU(0.7), "clamp": nn.Hardtanh,
}  # fmt: skip


@pytest.mark.parametrize("name", [*ACTIVATIONS, "curves"])
def test_every_activation_bends_as_on_the_cpu(
    backend: Backend,  # noqa: F811
    name: str,
) -> None:
    torch.manual_seed(0)
    model = Curves() if name == "curves" else mlp(3, 4, 2, activation=ACTIVATIONS[name])
    check(backend, regression(model, 7, 3, 2), count=2)


WEIGHT = torch.tensor([0.5, 2.0, 1.25])
EVERY_LOSS: dict[str, Any] = {
    "weights": nn.CrossEntropyLoss(weight=WEIGHT),
    "smoothing": nn.CrossEntropyLoss(label_smoothing=0.1, weight=WEIGHT),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "soft": nn.CrossEntropyLoss(label_smoothing=0.2),
    "nll": nn.NLLLoss(weight=WEIGHT),
    "bce": nn.BCEWithLogitsLoss(weight=WEIGHT, pos_weight=torch.tensor([0.5, 2.0, 3.0])),
}


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_every_loss_bends_as_on_the_cpu(
    backend: Backend,  # noqa: F811
    name: str,
) -> None:
    torch.manual_seed(0)
    model, x = mlp(4, 3, 3), torch.randn(6, 4)
    y = torch.randint(0, 3, (6,))
    if name == "soft":
        y = torch.softmax(torch.randn(6, 3), 1)
    elif name == "bce":
        y = torch.rand(6, 3)
    elif name == "nll":
        model.append(nn.LogSoftmax(1))
    check(backend, pl.Landscape(model, EVERY_LOSS[name], (x, y)), count=2)


def test_several_targets_of_a_sample_are_summed(
    backend: Backend,  # noqa: F811
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))  # every weight five times
    x, y = torch.randn(6, 5, 2), torch.randint(0, 3, (6, 5))

    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).transpose(1, 2)

    check(backend, pl.Landscape(Classes(), "cross_entropy", (x, y)), count=2)


@pytest.mark.parametrize("samples", [1, 4, 31, 32, 33, 65, 70])
def test_any_number_of_samples_is_summed_completely(
    backend: Backend,  # noqa: F811
    samples: int,
) -> None:
    torch.manual_seed(0)
    check(backend, regression(mlp(2, 2, 2, 1), samples, 2, 1), count=2)


SIZES = {
    1: lambda: nn.Linear(1, 1, bias=False),
    15: lambda: mlp(2, 2, 2, 1, activation=nn.ReLU),
    31: lambda: mlp(4, 5, 1),
    32: lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1, bias=False)),
    33: lambda: mlp(2, 8, 1),
    65: lambda: mlp(2, 16, 1),
    133: lambda: mlp(3, 10, 7, 2),
}


@pytest.mark.parametrize("samples", [3, 34])
@pytest.mark.parametrize("n", SIZES)
def test_any_number_of_parameters_around_warps(
    backend: Backend,  # noqa: F811
    n: int,
    samples: int,
) -> None:
    torch.manual_seed(0)
    model = SIZES[n]()
    shapes = [p.shape for p in model.parameters()]
    land = regression(model, samples, shapes[0][1], shapes[-1][0])
    assert land.n_params == n
    check(backend, land, count=2, spectra=samples == 3 and n < 100)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
def test_points_share_a_block_or_not(
    backend: Backend,  # noqa: F811
    count: int,
) -> None:
    torch.manual_seed(0)
    found = check(
        backend, regression(mlp(2, 2, 2, 1, activation=nn.ReLU), 4, 2, 1), count, spectra=True
    )
    assert found.about[True]["points"] == 8
    assert found.about[True]["threads"] == 32


def test_networks_of_the_critical_point_tables(
    backend: Backend,  # noqa: F811
) -> None:
    torch.manual_seed(0)
    iris = regression(mlp(4, 4, 4, 3, activation=nn.ReLU), 150, 4, 3)
    assert check(backend, iris, 1, spectra=True).about[True]["batches"] == 1
    deep = regression(mlp(10, 10, 10, 1, activation=nn.ReLU), 33, 10, 1)
    assert check(backend, deep, 1).about[True]["batches"] > 1


def test_frozen_parameters_are_constants(
    backend: Backend,  # noqa: F811
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    data = torch.randn(7, 3), torch.randn(7, 2)
    for patterns in (["0.bias", "1.*", "3.weight"], ["3.*"], ["0.weight", "3.bias"]):
        check(backend, pl.Landscape(model, "mse", data, params=patterns))


def test_neither_shared_memory_nor_batches_change_a_bit(
    backend: Backend,  # noqa: F811
) -> None:
    torch.manual_seed(0)
    land = regression(mlp(4, 4, 4, 3), 40, 4, 3)
    points = points_of(land, 3)
    want = kernels_of(backend, land)
    for limit in (30 << 10, 40 << 10, 60 << 10):
        found = kernels_of(backend, land, limit)
        assert found.about[True]["shared"] <= limit
        assert_same_bits(found.hessians(points), want.hessians(points))
        assert_same_bits(found.gradients(points), want.gradients(points))
    assert kernels_of(backend, land, 30 << 10).about[True]["batches"] > 3


@pytest.mark.parametrize("name", ["xor", "attention", "batches"])
def test_no_order_of_threads_or_blocks_changes_a_bit(name: str) -> None:
    torch.manual_seed(0)
    land = regression(mlp(2, 2, 2, 1), 4, 2, 1) if name == "xor" else landscape(LANES["mlp"], "mse")
    if name == "attention":
        land = landscape(LANES["attention"], "cross_entropy")
    found = kernels_of(emulated(), land, SHARED_LIMIT if name != "batches" else 12 << 10)
    points = points_of(land, 9 if name == "xor" else 2)
    want = (*found.hessians(points), *found.gradients(points))
    for order in ("reversed", "shuffled"):
        with scheduled(order, order, seed=3):
            assert_same_bits((*found.hessians(points), *found.gradients(points)), want)


def test_a_point_has_the_same_bits_in_any_chunk(
    backend: Backend,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    for land in (regression(mlp(2, 2, 2, 1), 4, 2, 1), regression(mlp(3, 5, 2), 35, 3, 2)):
        found, points = kernels_of(backend, land), points_of(land, 6)

        def ask(p: np.ndarray, found: PointsCuda = found) -> Results:
            spectra = found.spectra(p)
            assert spectra is not None
            return (*found.hessians(p), *spectra, *found.gradients(p))

        want = ask(points)
        parts = [ask(p) for p in (points[:1], points[1:3], points[3:])]
        assert_same_bits(tuple(np.concatenate(c) for c in zip(*parts, strict=True)), want)
        with monkeypatch.context() as few:
            few.setattr(cuda, "_BYTES", 3 * 16 * found.n**2)
            assert_same_bits(ask(points), want)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_point_that_is_not_finite_spoils_itself_alone(
    backend: Backend,  # noqa: F811
    bad: float,
) -> None:
    torch.manual_seed(0)
    for land in (regression(mlp(2, 2, 2, 1), 4, 2, 1), regression(mlp(3, 5, 2), 35, 3, 2)):
        found, points = kernels_of(backend, land), points_of(land, 6)
        points[3] = 1e200  # the loss overflows
        points[4, 2] = bad
        clean = found.hessians(points[[0, 5]])
        losses, gradients, matrices = found.hessians(points)
        assert_same_bits((losses[[0, 5]], gradients[[0, 5]], matrices[[0, 5]]), clean)
        assert not np.isfinite(losses[3])
        assert np.isnan(losses[4]) == np.isnan(bad)  # tanh bounds an infinite weight
        spectra = found.spectra(points)
        assert spectra is not None
        for result in (gradients, matrices, spectra[2]):
            assert np.isnan(result[3:5]).all()
            assert np.isfinite(np.delete(result, [3, 4], 0)).all()


def test_no_points_have_no_results(
    backend: Backend,  # noqa: F811
) -> None:
    found = kernels_of(backend, landscape(LANES["mlp"], "mse"))
    none = np.empty((0, 39))
    assert [r.shape for r in found.hessians(none)] == [(0,), (0, 39), (0, 39, 39)]
    assert [r.shape for r in found.gradients(none)] == [(0,), (0, 39)]
    spectra = found.spectra(none)
    assert spectra is not None
    assert spectra[2].shape == (0, 39)


class Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x)
        return out


class Largest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool1d(self.a(x), 2)


def test_what_does_not_run_there_says_why(
    backend: Backend,  # noqa: F811
) -> None:
    torch.manual_seed(0)
    cases: list[tuple[nn.Module, int, str]] = [
        (mlp(3, 4, 2), 1000, r"a point takes \d+ bytes of shared memory, of 1000"),
        (mlp(3, 300, 2), SHARED_LIMIT, r"a point takes \d+ bytes of shared memory"),
        (Spare(), SHARED_LIMIT, "parameters that do not reach the loss"),
        (Largest(), SHARED_LIMIT, "maxima over several rows"),
        (mlp(3, *[2] * 40), SHARED_LIMIT, "more than 30 steps"),
    ]
    for model, limit, reason in cases:
        with pytest.raises(NotLowered, match=reason):
            kernels_of(backend, regression(model, 9, 3, 2), limit)


def test_what_emulated_kernels_refuse_torch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    land, emulation = regression(Largest(), 5, 3, 2), emulated()
    monkeypatch.setattr(front, "compiled_points", lambda land: kernels_of(emulation, land))
    evaluator, points = PointEvaluator(land), points_of(land, 2)
    assert evaluator.reason is not None
    assert "maxima" in evaluator.reason
    want = TorchPoints(land).hessians(points)
    for one, other in zip(evaluator.hessians(points), want, strict=True):
        assert_close(one, other)


def test_the_op_refuses_what_does_not_fit_its_plan(
    backend: Backend,  # noqa: F811
) -> None:
    found = kernels_of(backend, landscape(LANES["mlp"], "mse"))
    points = torch.zeros(2, 39, dtype=torch.float64, device=backend.device)
    losses, gradients = points.new_empty(2), torch.empty_like(points)
    matrices = points.new_empty(2, 39, 39)
    wrong: list[tuple[tuple[Tensor, ...], str]] = [
        ((points[:, 1:], losses, gradients, matrices), r"points: expected contiguous float64"),
        ((points.float(), losses, gradients, matrices), r"points: expected contiguous float64"),
        ((points, losses[1:], gradients, matrices), r"losses: expected 2 contiguous"),
        ((points, losses, gradients, matrices[1:]), r"hessians: expected 3042 contiguous"),
    ]
    for (p, *results), message in wrong:
        with pytest.raises((RuntimeError, ValueError), match=message):
            backend.ops.point_hessians_(*found._plan[True], p, 1.0, *results)
    broken = (found._plan[True][0].clone(), *found._plan[True][1:])
    broken[0][0] += 1
    with pytest.raises((RuntimeError, ValueError), match="program: expected a plan"):
        backend.ops.point_hessians_(*broken, points, 1.0, losses, gradients, matrices)


def test_where_an_iteration_fails_lapack_answers(
    backend: Backend,  # noqa: F811
) -> None:
    found = kernels_of(backend, landscape(LANES["mlp"], "mse"))
    points = points_of(landscape(LANES["mlp"], "mse"), 3)
    want = np.linalg.eigvalsh(found.hessians(points)[2])

    def failing(matrices: Tensor) -> Tensor:
        values: Tensor = backend.ops.small_eigenvalues(matrices)
        values[1] = torch.nan
        return values

    own = backend.ops.point_hessians_
    found._kernels = SimpleNamespace(small_eigenvalues=failing, point_hessians_=own)
    spectra = found.spectra(points)
    assert spectra is not None
    assert_close(spectra[2], want)


def answers(land: pl.Landscape) -> dict[str, np.ndarray]:
    """By every public question that asks for many points."""
    points = points_of(land, 5)
    whole = pl.hessians(land, points)
    assert whole.matrices is not None
    blocks = [found.matrices for _, found in pl.iterate_hessians(land, points, block=2)]
    found = pl.classify(land, points, keep=True)
    walk = pl.gradient_walk(land, walks=3, steps=4, fraction=0.1, bound=1.0, seed=1)
    return {
        "losses": whole.losses,
        "gradients": pl.gradients(land, points).gradients,
        "matrices": whole.matrices,
        "blocks": np.concatenate([b for b in blocks if b is not None]),
        "eigenvalues": found.eigenvalues,
        "index": found.index,
        "walk": walk.losses,
    }


def test_every_question_about_many_points_is_answered_by_emulated_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    land, emulation = regression(mlp(2, 3, 1), 9, 2, 1), emulated()
    want = answers(land)
    monkeypatch.setattr(front, "compiled_points", lambda land: kernels_of(emulation, land))
    again = pl.Landscape(land.model, "mse", land.dataset.tensors())
    assert isinstance(PointEvaluator(again).engine, PointsCuda)
    for name, got in answers(again).items():
        assert_close(got, want[name])


def check_on(device: torch.device, land: pl.Landscape) -> None:
    want = answers(land)
    x, y = (t.to(device) for t in land.dataset.tensors() or ())
    there = pl.Landscape(copy.deepcopy(land.model).to(device), "mse", (x, y))
    evaluator = PointEvaluator(there)
    assert isinstance(evaluator.engine, PointsCuda), evaluator.reason
    for name, got in answers(there).items():
        assert_close(got, want[name])


def test_a_model_on_a_pretended_gpu_has_the_cpus_answers_emulated() -> None:
    torch.manual_seed(0)
    land = regression(mlp(2, 3, 1), 9, 2, 1)
    with pretended_gpu() as device:
        check_on(device, land)


@on_gpu
def test_a_model_on_a_gpu_has_the_cpus_answers() -> None:
    torch.manual_seed(0)
    check_on(torch.device("cuda"), regression(mlp(2, 3, 1), 9, 2, 1))
