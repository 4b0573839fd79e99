"""From a model on a CUDA device to every kind of result: nothing is on the wrong device, and the
numbers are the CPU's. (On a GPU that is there: tests/test_cuda*.py.)"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pretended_gpu import OnDevice, pretended_gpu
from torch import Tensor, nn

import pylandscape as pl

QUIET = {"progress": False}


def numbers(found: Any) -> np.ndarray:
    return np.asarray(found.cpu() if isinstance(found, Tensor) else found, dtype=np.float64)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(30, 4, generator=g, dtype=torch.float64), torch.arange(30) % 3


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    with pretended_gpu() as device:
        yield device


def test_a_pretended_gpu_keeps_devices_apart(gpu: torch.device) -> None:
    there, here = torch.ones(3, device=gpu), torch.ones(3)
    assert isinstance(there, OnDevice)
    assert there.device == gpu
    assert (there.to("cpu") + here).device.type == here.to(gpu).cpu().device.type == "cpu"
    assert (here.to(there) * 2).device == torch.zeros_like(there).device == gpu
    with pytest.raises(RuntimeError, match="add"):
        there + here
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(TypeError, match="cuda:0"):
        np.asarray(there)
    with pytest.raises(TypeError, match="data_ptr"):
        there.data_ptr()
    layer = nn.Linear(3, 2).to(gpu)
    layer(there).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.device == gpu


def start(land: pl.Landscape) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, land.n_params)) * 0.3


def ones(land: pl.Landscape) -> Tensor:
    return torch.ones(land.n_params, dtype=land.dtype, device=land.device)


def along(land: pl.Landscape) -> Tensor:
    return torch.stack([d.vector for d in pl.random_directions(land, 2, seed=1)])


QUESTIONS: dict[str, Callable[[pl.Landscape], Any]] = {
    "losses": lambda land: land.losses(np.ones((3, 2)), along(land)),
    "losses of points": lambda land: land.losses(points=start(land)),
    "accuracy": lambda land: land.evaluate(
        np.ones((3, 2)), along(land), metrics=("loss", "accuracy")
    )["accuracy"],
    "errors from the data": lambda land: [
        *land.evaluate(
            [[0, 0], [1, 1], [-1, 2]],
            along(land),
            metrics=("standard_error", "difference_standard_error"),
        ).values()
    ],
    "directions": along,
    "line": lambda land: pl.line(land, along(land)[0], (-1, 1, 5), **QUIET).values,
    "plane": lambda land: pl.plane(land, *along(land), (-1, 1, 3), (-1, 1, 4), **QUIET).values,
    "gradient": lambda land: land.gradient(),
    "hvp": lambda land: land.hvp(ones(land)),
    "spectrum": lambda land: pl.spectrum(land, starts=start(land), steps=6, **QUIET).trace[0],
    "eigenpairs": lambda land: pl.eigenpairs(land, 2, **QUIET).values,
    "trace": lambda land: pl.trace(land, products=land.n_params, **QUIET).value,
    "Hessians": lambda land: pl.hessians(land, start(land)).matrices,
    "eigenvalues": lambda land: pl.classify(land, start(land), keep=True, **QUIET).eigenvalues,
    "classes": lambda land: pl.classify(land, start(land), method="lanczos", **QUIET).losses,
    "walks": lambda land: pl.gradient_walk(land, 3, 4, **QUIET).points,
    "clouds": lambda land: pl.loss_gradient_cloud(land, start(land), **QUIET).gradient_norms,
    "search": lambda land: pl.find_critical_points(land, start(land), max_iter=20, **QUIET).points,
}


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("name", QUESTIONS)
def test_a_cuda_model_gives_the_cpus_numbers(
    name: str, engine: str, data: tuple[Tensor, Tensor]
) -> None:
    own = model()
    ask = QUESTIONS[name]
    here = numbers(ask(pl.Landscape(copy.deepcopy(own), "cross_entropy", data, engine=engine)))
    with pretended_gpu() as device:
        there = pl.Landscape(own.to(device), "cross_entropy", [t.to(device) for t in data],
                             engine=engine)  # fmt: skip
        assert there.device == device
        assert there.engine == engine, there.engine_report()
        found = numbers(ask(there))
    np.testing.assert_allclose(found, here, rtol=1e-9, atol=1e-9)


def test_a_model_and_data_on_two_devices_are_refused_by_name(
    gpu: torch.device, data: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(pl.InvalidArgument, match="data: expected tensors on cuda:0"):
        pl.Landscape(model().to(gpu), "cross_entropy", data)
    land = pl.Landscape(model(), "cross_entropy", data, device=gpu)
    assert land.device == gpu
    assert land.engine == "native"


@pytest.mark.parametrize(
    ("device", "match"),
    [("gpu", "expected .cpu. or .cuda., got 'gpu'"), ("meta", "got meta"), ("cuda:3", "of 1 CUDA")],
)
def test_a_device_that_cannot_be_used_is_refused_by_name(
    device: str, match: str, gpu: torch.device, data: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(pl.InvalidArgument, match=f"device: .*{match}"):
        pl.Landscape(model(), "cross_entropy", data, device=device)
