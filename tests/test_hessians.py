"""Loss, gradient, Hessian and spectrum of many points against float64 double backward."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.curvature.at_points import gradients, hessians, iterate_hessians
from pylandscape.engines.points.eager import TorchPoints
from pylandscape.engines.points.evaluator import PointEvaluator
from pylandscape.errors import InvalidArgument

TOLERANCE = 2000 * np.finfo(np.float64).eps  # of the largest element; 1 to 400 are typical
WIDTH, POINTS = 3, 11
CHECKED = [0, 7, 8, 10]  # of them, by double backward


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        h = h + torch.tanh(self.b(h))
        out: Tensor = self.c(h / (1 + h * h))
        return out


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.cat([x, torch.softmax(self.norm(self.a(x)), 1)], 1))
        return out


class Gated(nn.Module):
    """A parameter of its own that multiplies, and one that is subtracted."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.gain, self.shift = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(nn.functional.gelu(self.a(x) * self.gain) - self.shift)
        return out


class Attention(nn.Module):
    """Every weight serves two tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.unflatten(1, (1, 3)).expand(-1, 2, 3) * torch.tensor([[1.0], [0.5]])
        out: Tensor = self.o(torch.softmax(self.q(h) @ self.k(h).transpose(1, 2), -1) @ h)
        return out.mean(1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))
        return out


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(1, 2, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(x[:, None])).flatten(1))
        return out


def normed() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.normal_(model[1].running_mean)  # type: ignore[arg-type]
    nn.init.uniform_(model[1].running_var, 0.5, 2)  # type: ignore[arg-type]
    return model


def wide() -> nn.Module:
    layers = (nn.Linear(3, 9), nn.SiLU(), nn.Linear(9, 6, bias=False), nn.Softplus())
    return nn.Sequential(*layers, nn.Linear(6, 5), nn.ELU(), nn.Linear(5, 2), nn.LogSoftmax(1))


LANES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)
    ),
    "residual": Residual,
    "joined": Joined,
    "gated": Gated,
    "attention": Attention,
    "batch norm": normed,
    "group norm": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.ReLU(), nn.Linear(4, 2)
    ),
    "wide": wide,
}
ONE_BY_ONE: dict[str, Callable[[], nn.Module]] = {"tied": Tied, "convolution": Convolution}
LOSSES = ("mse", "cross_entropy", "bce_with_logits")


def landscape(make: Callable[[], nn.Module], loss: str, samples: int = 9) -> pl.Landscape:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(samples, WIDTH)
    y = torch.randn(samples, 2)
    if loss == "cross_entropy":
        y = torch.randint(0, 2, (samples,))
    elif loss == "bce_with_logits":
        y = torch.rand(samples, 2)
    return pl.Landscape(model, loss, (x, y))


def points_of(land: pl.Landscape, count: int = POINTS) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, land.n_params))


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", [*LANES, *ONE_BY_ONE])
def test_every_supported_op_gives_the_hessian_of_double_backward(name: str, loss: str) -> None:
    land = landscape((LANES | ONE_BY_ONE)[name], loss)
    evaluator = PointEvaluator(land)
    points = points_of(land)
    losses, slopes, matrices = evaluator.hessians(points)
    reference = TorchPoints(land)
    reference.vectorised = False  # torch.func misses terms of layer norm
    want = reference.hessians(points[CHECKED])
    assert evaluator.reason is None
    assert (evaluator.engine.reason is None) == (name in LANES)
    for got, expected in zip((losses, slopes, matrices), want, strict=True):
        assert_close(got[CHECKED], expected)
    assert np.array_equal(matrices, matrices.transpose(0, 2, 1))
    assert np.array_equal(losses, evaluator.gradients(points)[0])
    spectra = evaluator.spectra(points)[2]
    assert_close(spectra, np.linalg.eigvalsh(matrices))


@pytest.mark.parametrize("samples", [1, 4, 333])
def test_any_number_of_samples_is_summed_completely(samples: int) -> None:
    land = landscape(LANES["mlp"], "mse", samples)
    points = points_of(land, 3)
    found = hessians(land, points)
    want = TorchPoints(land).hessians(points)
    for got, expected in zip((found.losses, found.gradients, found.matrices), want, strict=True):
        assert got is not None
        assert_close(got, expected)


def test_hessians_of_hundreds_of_parameters_are_those_of_torch() -> None:
    land = landscape(
        lambda: nn.Sequential(nn.Linear(3, 13), nn.Tanh(), nn.Linear(13, 12), nn.ReLU(),
                              nn.Linear(12, 2)),
        "cross_entropy", 30,
    )  # fmt: skip
    points = points_of(land, 2)
    losses, _, matrices = PointEvaluator(land).hessians(points)
    want = TorchPoints(land).hessians(points)
    assert_close(losses, want[0])
    assert_close(matrices, want[2])
    assert_close(PointEvaluator(land).spectra(points)[2], np.linalg.eigvalsh(matrices))


@pytest.mark.parametrize("name", ["mlp", "tied"])
def test_a_point_has_the_same_bits_in_any_chunk_and_on_any_number_of_threads(
    name: str, two_threads: None
) -> None:
    land = landscape((LANES | ONE_BY_ONE)[name], "mse", 40)
    points = points_of(land, 45)
    evaluator = PointEvaluator(land)
    whole = (*evaluator.hessians(points), *evaluator.spectra(points), *evaluator.gradients(points))
    torch.set_num_threads(1)
    parts = [
        (*evaluator.hessians(p), *evaluator.spectra(p), *evaluator.gradients(p))
        for p in (points[:1], points[1:14], points[14:])
    ]
    for column, got in enumerate(whole):
        assert np.array_equal(got, np.concatenate([part[column] for part in parts]))


@pytest.mark.parametrize("name", ["mlp", "tied", "free"])
def test_a_point_that_is_not_finite_spoils_itself_alone(name: str) -> None:
    make = (LANES | ONE_BY_ONE).get(name, LANES["mlp"])
    land = landscape(make, "mse")
    if name == "free":
        free = lambda out, y: ((out - y) ** 4).mean()  # noqa: E731
        land = pl.Landscape(land.model, free, (torch.randn(5, 3), torch.randn(5, 2)))
    points = points_of(land)
    clean = hessians(land, points)
    points[4, 2] = np.nan
    found = hessians(land, points)
    values = land_spectra(land, points)
    assert clean.matrices is not None
    assert found.matrices is not None
    others = np.arange(len(points)) != 4
    for got, want in (
        (found.losses, clean.losses),
        (found.gradients, clean.gradients),
        (found.matrices, clean.matrices),
    ):
        assert np.isnan(got[4]).all()
        assert_close(got[others], want[others])
    assert np.isnan(values[4]).all()
    assert np.isfinite(values[others]).all()


def land_spectra(land: pl.Landscape, points: np.ndarray) -> np.ndarray:
    return PointEvaluator(land).spectra(points)[2]


def test_frozen_parameters_are_no_coordinates() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    data = torch.randn(7, 3), torch.randn(7, 2)
    patterns = ["0.bias", "1.*", "3.weight"]
    land = pl.Landscape(model, "mse", data, params=patterns)
    points = points_of(land, 3)
    reference = TorchPoints(land)
    reference.vectorised = False
    want = reference.hessians(points)[2]
    found = hessians(land, points).matrices
    assert found is not None
    assert PointEvaluator(land).reason is None
    assert_close(found, want)


def test_a_model_that_the_core_does_not_know_is_answered_by_torch() -> None:
    def quartic(out: Tensor, y: Tensor) -> Tensor:
        return ((out - y) ** 4).mean()

    model = LANES["mlp"]()
    land = pl.Landscape(model, quartic, (torch.randn(5, 3), torch.randn(5, 2)))
    evaluator = PointEvaluator(land)
    assert evaluator.reason is not None
    points = points_of(land, 3)
    losses, slopes, matrices = evaluator.hessians(points)
    reference = TorchPoints(land)
    reference.vectorised = False
    want = reference.hessians(points)
    for got, expected in zip((losses, slopes, matrices), want, strict=True):
        assert_close(got, expected)


def test_blocks_are_the_whole() -> None:
    land = landscape(LANES["mlp"], "mse")
    points = points_of(land)
    whole = hessians(land, points)
    assert whole.matrices is not None
    for part, found in iterate_hessians(land, points, block=4):
        assert found.matrices is not None
        assert np.array_equal(found.matrices, whole.matrices[part])
        assert np.array_equal(found.losses, whole.losses[part])
    assert hessians(land, points, matrices=False).matrices is None
    assert hessians(land, points[:0]).gradients.shape == (0, land.n_params)
    assert gradients(land, points[:0]).norms.shape == (0,)


def test_points_of_another_shape_are_refused() -> None:
    land = landscape(LANES["mlp"], "mse")
    with pytest.raises(InvalidArgument, match=r"points: expected shape \(P, 39\), got \(2, 7\)"):
        gradients(land, torch.zeros(2, 7))
    with pytest.raises(InvalidArgument, match="points: no file 'theta'"):
        hessians(land, "theta")


def test_too_many_hessians_say_how_much_memory_they_need() -> None:
    land = landscape(LANES["mlp"], "mse")
    points = np.zeros((1000, land.n_params))
    with pytest.raises(InvalidArgument, match=r"1000 Hessians of order 39 need 0.0113 GiB"):
        hessians(land, points, memory=1 << 20)


INTERRUPTED = """
import os, signal, threading, time
import numpy as np, torch
import pylandscape as pl
from pylandscape.engines.points.evaluator import PointEvaluator
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
evaluator = PointEvaluator(pl.Landscape(model, "mse", (torch.randn(500, 8), torch.randn(500, 8))))
points = np.random.default_rng(0).normal(size=(40_000, 144))
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    evaluator.spectra(points)
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_stops_the_work() -> None:
    root = os.path.dirname(os.path.dirname(pl.__file__))
    environment = {**os.environ, "PYTHONPATH": root}
    found = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert found.stdout.strip() == "stopped", found.stderr
