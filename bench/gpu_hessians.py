"""gpu_check's rows of small Hessians: the networks of the critical-point tables on a GPU.

Against float64 on the CPU, the floor (bytes that must move, or multiply-adds at the device's
float64 peak, whichever takes longer) and torch: vmap of torch.func.hessian at its best chunk, and
torch.linalg.eigvalsh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .workloads import mlp

ALLOWED: dict[str, float] = {}  # error by name, filled as rows are measured
TOLERANCE = 2000 * torch.finfo(torch.float64).eps  # of the largest, as in tests/test_hessians.py
CHECKED = 16  # points
# name, milliseconds, floor, share, torch's milliseconds, error: gpu_check.Row
Values = tuple[str, float, float, float, float | None, float]


@dataclass
class Case:
    """A relu network, its data (samples, features, outputs), and how many points each arm takes."""

    name: str
    dims: tuple[int, ...]
    samples: int
    points: int
    others: int
    chunks: tuple[int, ...]

    @property
    def n(self) -> int:
        return sum((a + 1) * b for a, b in pairwise(self.dims))

    def multiply_adds(self, hessian: bool) -> float:
        """Of one point: values, adjoints and gradients; tangents and half of the pairs."""
        products = sum(a * b for a, b in pairwise(self.dims))
        first = 3 * products + self.n
        rows = sum(self.dims[1:])
        second = 2 * rows * products + self.n**2 / 2 if hessian else 0
        return self.samples * (first + second)

    def bytes(self, results: int) -> int:
        """Of one point and so many numbers of results that are written."""
        return 8 * (self.n + results)

    def model(self) -> nn.Sequential:
        return mlp(*self.dims)


CASES = (
    Case("XOR", (2, 2, 2, 1), 4, 100_000, 20_000, (1000, 5000, 20_000)),
    Case("Iris", (4, 4, 4, 3), 150, 10_000, 512, (32, 128, 512)),
    Case("Diabetes", (10, 10, 10, 10, 10, 1), 442, 256, 16, (2, 8, 16)),
)


class Question:
    """A case's points, its kernels on a device, and the same numbers on the CPU."""

    def __init__(self, case: Case, device: torch.device, kernels: Any, shared_limit: int) -> None:
        import pylandscape as pl
        from pylandscape.engines.points.cuda import PointsCuda
        from pylandscape.engines.points.native import NativePoints, float64_engine
        from pylandscape.lowering.build import Data

        torch.manual_seed(0)
        self.case, self.model = case, case.model().double()
        shape = case.samples, case.dims[0], case.dims[-1]
        self.x, self.y = (torch.randn(shape[0], k, dtype=torch.float64) for k in shape[1:])
        land = pl.Landscape(self.model, "mse", (self.x, self.y))
        data = Data.of(land.dataset, torch.float64)
        engine = float64_engine(land)
        self.native = NativePoints(land)
        self.kernels = PointsCuda(
            engine, land.loss_spec, data, device, kernels=kernels, shared_limit=shared_limit
        )
        self.at = torch.rand(case.points, case.n, dtype=torch.float64) * 2 - 1
        self.there = self.at.to(device)

    def gradients(self) -> tuple[Tensor, ...]:
        return self.kernels._run(self.there, second=False)

    def hessians(self) -> tuple[Tensor, ...]:
        return self.kernels._run(self.there, second=True)

    def spectra(self) -> tuple[Tensor, ...]:
        return self.kernels._eigenvalues(self.hessians())

    def error(self) -> float:
        """The largest difference to the CPU's, of the point's largest number, over all answers."""
        some = np.linspace(0, len(self.at) - 1, min(CHECKED, len(self.at))).astype(int)
        losses, gradients, matrices = self.native.hessians(self.at[some].numpy())
        wanted = (losses, gradients, matrices, np.linalg.eigvalsh(matrices))
        found = [t[some].cpu().numpy() for t in (*self.hessians(), self.spectra()[2])]
        found += [t[some].cpu().numpy() for t in self.gradients()[:2]]
        worst = 0.0
        for got, want in zip(found, (*wanted, *wanted[:2]), strict=True):
            size = np.abs(want).reshape(len(some), -1).max(axis=1)
            apart = np.abs(got - want).reshape(len(some), -1).max(axis=1)
            worst = max(worst, float((apart / np.maximum(size, 1e-9)).max()))
        return worst

    def loss(self, theta: Tensor) -> Tensor:
        """L at theta (n,), for torch.func."""
        state, at = {}, 0
        for name, p in self.model.named_parameters():
            state[name] = theta[at : at + p.numel()].view(p.shape)
            at += p.numel()
        return nn.functional.mse_loss(
            torch.func.functional_call(self.model, state, (self.x,)), self.y
        )

    def to(self, device: torch.device) -> None:
        """Moves what torch's arm reads."""
        self.model, self.x, self.y = self.model.to(device), self.x.to(device), self.y.to(device)


def measure(
    bandwidth: float, peak: float | None, median_ms: Callable[..., float]
) -> Iterator[Values]:
    """Rows; bandwidth in bytes and peak in float64 multiply-adds per millisecond."""
    from pylandscape._native import ops

    device = torch.device("cuda", torch.cuda.current_device())
    limit = int(ops.cuda_shared_limit(device.index))
    for case in CASES:
        question = Question(case, device, ops, limit)
        error = question.error()
        question.to(device)
        n, points = case.n, case.points

        def row(
            what: str,
            run: Callable[[], Any],
            numbers: int,
            work: float,
            other: float | None,
            case: Case = case,
            error: float = error,
        ) -> Values:
            name = f"{what} {case.name}, {case.points:,}"
            ALLOWED[name] = TOLERANCE
            took = median_ms(lambda _: run(), 1, 9)
            least = case.bytes(numbers) / bandwidth, work / peak if peak else 0.0
            floor = case.points * max(least)
            return name, took, floor, floor / took, other, error

        second = case.multiply_adds(True)
        yield row("gradients", question.gradients, 1 + n, case.multiply_adds(False), None)
        plain = _best(question, median_ms, eigenvalues=False) * points / case.others
        yield row("Hessians", question.hessians, 1 + n + n**2, second, plain)
        plain = _best(question, median_ms, eigenvalues=True) * points / case.others
        work = second + 2 / 3 * n**3 + 9 * n**2
        yield row("spectra", question.spectra, 1 + 2 * n + 2 * n**2, work, plain)


def _best(question: Question, median_ms: Callable[..., float], *, eigenvalues: bool) -> float:
    """Milliseconds of torch for ``others`` points at its best chunk."""
    some, hessian = question.there[: question.case.others], torch.func.hessian(question.loss)
    times = []
    for chunk in question.case.chunks:

        def run(_: int, chunk: int = chunk) -> Tensor:
            matrices: Tensor = torch.func.vmap(hessian, chunk_size=chunk)(some)
            return torch.linalg.eigvalsh(matrices) if eigenvalues else matrices

        try:
            times.append(median_ms(run, 1, 3))
        except RuntimeError as error:  # no memory, or a library that refuses the size
            print(f"vmap, chunk {chunk}: {str(error).splitlines()[0]}")
            torch.cuda.empty_cache()
    return min(times, default=float("nan"))
