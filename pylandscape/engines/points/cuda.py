"""Loss, gradient, Hessian and eigenvalues of many points on a GPU (csrc/cuda/hessians.cu), float64.

The model is compiled on the CPU, from a copy of it; a plan from shapes says how a point runs in a
block's shared memory. What does not fit, or has no kernel, is refused with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..._native import core, cuda_problem, ops
from ...errors import NotLowered
from ...lowering.build import Data
from ...lowering.loss import loss_tensors
from ...theta.losses import KnownLoss
from ..native import NativeEngine

if TYPE_CHECKING:
    from ..contract import Answered

_BYTES = 1 << 30  # of results, and of what eigenvalues work on, of the points of one launch


class PointsCuda:
    """As `native.NativePoints`, on ``device``.

    ``engine`` is the landscape's program in float64, ``kernels`` holds the ops; ``shared_limit`` is
    how many bytes of shared memory a block may have. Raises NotLowered where a plan does not fit.
    Points go to the device, and results come back, once for each chunk of points.
    """

    reason: str | None = None

    def __init__(
        self,
        engine: NativeEngine,
        loss: KnownLoss,
        data: Data,
        device: torch.device,
        *,
        kernels: Any,
        shared_limit: int,
    ) -> None:
        program, self._denominator = engine.sums()
        self.n: int = program.n
        self._device, self._kernels = device, kernels
        try:
            points = core.Points(program)
        except ValueError as refusal:
            raise NotLowered(str(refusal)) from refusal
        targets = loss_tensors(loss, data.targets, engine.output, program.samples)
        dense = targets.dense if targets.index.numel() == 0 else targets.index.to(torch.int32)
        weights = torch.tensor([*targets.weight, *targets.pos_weight], dtype=torch.float64)
        x = data.inputs.to(torch.float64).reshape(program.samples, -1)
        about = [t.T.contiguous().to(device) for t in (x, dense)] + [weights.to(device)]
        self._plan: dict[bool, tuple[Tensor, ...]] = {}
        self.about: dict[bool, dict[str, Any]] = {}
        for second in (True, False):
            reason, plan, entries, constants, self.about[second] = points.hessian_plan(
                second, shared_limit
            )
            if reason:
                raise NotLowered(f"{reason}: no Hessians in shared memory")
            self._plan[second] = (
                _tensor(plan, torch.uint8),
                _tensor(entries, torch.int32).to(device),
                _tensor(constants, torch.float64).to(device),
                *about,
            )

    def gradients(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses (p,) and gradients (p, n) of contiguous float64 points (p, n)."""
        losses, gradients = self._each(points, False, 8 * self.n, lambda results: results[:2])
        return losses, gradients

    def hessians(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same, and Hessians (p, n, n), exactly symmetric."""
        size = 8 * self.n * (self.n + 1)
        losses, gradients, matrices = self._each(points, True, size, lambda results: results)
        return losses, gradients, matrices

    def spectra(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """The same with eigenvalues (p, n) in place of the Hessians; None where it cannot."""
        if self.n > core.MOST_ORDER:
            return None
        size = 16 * self.n * (self.n + 1)
        losses, gradients, values = self._each(points, True, size, self._eigenvalues)
        good = np.isfinite(losses) & np.isfinite(gradients).all(axis=1)
        lost = np.flatnonzero(good & ~np.isfinite(values).all(axis=1))
        if lost.size:  # the iteration did not end
            matrices = self.hessians(np.ascontiguousarray(points[lost]))[2]
            fine = np.isfinite(matrices).all(axis=(1, 2))
            values[lost[fine]] = np.linalg.eigvalsh(matrices[fine])
        return losses, gradients, values

    def _eigenvalues(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return *results[:2], torch.as_tensor(self._kernels.small_eigenvalues(results[2]))

    def _each(self, points: np.ndarray, second: bool, size: int, after: Any) -> list[np.ndarray]:
        """Results of chunks of points, a point of which takes ``size`` bytes, concatenated."""
        step = max(1, _BYTES // max(size, 1))
        parts = []
        for first in range(0, max(len(points), 1), step):
            own = torch.from_numpy(points[first : first + step]).to(self._device)
            found = after(self._run(own, second))
            shapes = [t.shape for t in found]
            flat = torch.cat([t.reshape(-1) for t in found]).cpu()
            pieces = flat.split([shape.numel() for shape in shapes])
            parts.append([p.view(s).numpy() for p, s in zip(pieces, shapes, strict=True)])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _run(self, points: Tensor, second: bool) -> tuple[Tensor, ...]:
        """Losses (p,), gradients (p, n) and, if asked for, Hessians, of points (p, n) there."""
        p, n = points.shape
        losses, gradients = points.new_empty(p), points.new_empty(p, n)
        matrices = points.new_empty(p if second else 0, n, n)
        self._kernels.point_hessians_(
            *self._plan[second], points, self._denominator, losses, gradients, matrices
        )
        return losses, gradients, matrices


def _tensor(data: bytes, dtype: torch.dtype) -> Tensor:
    if not data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).clone()


def build(land: Answered, engine: NativeEngine) -> PointsCuda:
    """For a landscape on a GPU, of its program in float64; raises NotLowered with the reason."""
    problem = cuda_problem()
    if problem is not None:
        raise NotLowered(problem)
    assert isinstance(land.loss_spec, KnownLoss)
    data = Data.of(land.dataset, torch.float64).like(engine.form)
    index = land.device.index
    device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
    limit = int(ops.cuda_shared_limit(device.index))
    return PointsCuda(engine, land.loss_spec, data, device, kernels=ops, shared_limit=limit)
