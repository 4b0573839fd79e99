"""hessians: exact Hessians with eigenvalues of many points.

The networks of the critical-point tables: as wide as their input, relu, one-hot or scalar targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.engines.points.evaluator import PointEvaluator

from .curvature import Field
from .harness import Arm, Row
from .workloads import mlp, split

RTOL = 1e-12  # of a point's largest eigenvalue


@dataclass
class Case:
    """A network, its data, and how many points each arm takes."""

    name: str
    dims: tuple[int, ...]
    x: Tensor
    y: Tensor
    points: int
    others: int
    chunks: tuple[int, ...]
    target: float

    def __post_init__(self) -> None:
        self.model = mlp(*self.dims).double()
        land = pl.Landscape(self.model, "mse", (self.x, self.y), engine="native")
        self.evaluator, self.n = PointEvaluator(land), land.n_params
        generator = torch.Generator().manual_seed(1)
        shape = (max(self.points, self.others), self.n)
        self.at = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1

    def loss(self, theta: Tensor) -> Tensor:
        """L at theta (n,), for torch.func."""
        named = dict(self.model.named_parameters())
        parts = split(theta, list(named.values()))
        state = dict(zip(named, parts, strict=True))
        out = torch.func.functional_call(self.model, state, (self.x,))
        return nn.functional.mse_loss(out, self.y)


def hessians(quick: bool, repetitions: int) -> list[Row]:
    return [row for case in _cases(quick) for row in _spectra(case, quick, repetitions)]


def _cases(quick: bool) -> list[Case]:
    from sklearn.datasets import load_diabetes, load_iris

    torch.manual_seed(0)
    corners = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    parity = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    iris, diabetes = load_iris(), load_diabetes()
    flowers = nn.functional.one_hot(torch.as_tensor(iris.target)).double()
    levels = _standard(diabetes.target[:, None])
    deep = (10, 10, 10, 10, 10, 1)
    cases = [
        Case("XOR, 2 hidden layers", (2, 2, 2, 1), corners, parity, 10_000, 2_000, (200, 1000), 50),
        Case(
            "Iris, 2 hidden layers", (4, 4, 4, 3), _standard(iris.data), flowers, 2_000, 64,
            (16, 64), 15,
        ),
        Case(
            "Diabetes, 4 hidden layers", deep, _standard(diabetes.data), levels, 32, 2, (1, 2), 30,
        ),
    ]  # fmt: skip
    if not quick:
        return cases
    few = [Case(c.name, c.dims, c.x[:20], c.y[:20], 16, 2, (2,), c.target) for c in cases[:2]]
    return [
        *few,
        Case("Diabetes", (10, 2, 1), levels[:9].expand(-1, 10), levels[:9], 9, 2, (2,), 30),
    ]


def _standard(data: np.ndarray) -> Tensor:
    x = torch.as_tensor(data, dtype=torch.float64)
    return (x - x.mean(0)) / x.std(0, correction=0)


def _spectra(case: Case, quick: bool, repetitions: int) -> list[Row]:
    ours = case.at[: case.points].numpy()
    few = case.at[: case.others]
    hessian = torch.func.hessian(case.loss)

    def batched(chunk: int) -> np.ndarray:
        matrices = torch.func.vmap(hessian, chunk_size=chunk)(few)
        return torch.linalg.eigvalsh(matrices).numpy()

    want = batched(case.chunks[0])

    def check(arm: Arm, got: np.ndarray) -> None:
        size = min(len(got), len(want))
        scale = np.maximum(np.abs(want[:size]).max(axis=1, keepdims=True), 1e-9)
        arm.error = float((np.abs(got[:size] - want[:size]) / scale).max())
        assert arm.error <= RTOL, (arm.name, arm.error)

    field = Field(f"Hessians, {case.name}, n = {case.n}", "point")
    mine = Arm("pylandscape, with eigenvalues", lambda: case.evaluator.spectra(ours)[2], len(ours))
    field.add_ours(mine, check)
    chunks = {f"chunks of {c}": partial(partial, batched, c) for c in case.chunks}
    add = partial(field.add, check=check)
    add("torch vmap(hessian) + eigvalsh", chunks, units=len(few), target=case.target)
    if "XOR" in case.name:
        one = few[: 2 if quick else 8]

        def loop() -> np.ndarray:
            values = [torch.linalg.eigvalsh(_hessian(case.loss, p)) for p in one]
            return torch.stack(values).numpy()

        make: Callable[[], Callable[[], np.ndarray]] = lambda: loop  # noqa: E731
        add("torch, point by point", {"": make}, units=len(one), target=3000)
    field.measure(repetitions)
    return field.rows()


def _hessian(loss: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(loss, point)
