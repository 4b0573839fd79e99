"""Loss, gradient and Hessian of many points: the kernels of the device, or torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ...errors import InvalidArgument, NotLowered
from . import cuda
from .eager import TorchPoints
from .native import NativePoints, float64_engine
from .native import eigenvalues as native_eigenvalues

if TYPE_CHECKING:
    from ..contract import Answered, Losses, PointEngine


_BLOCK_BYTES = 64 << 20  # of the Hessians of one block


class PointEvaluator:
    """Loss, gradient and Hessian at blocks of points, for loops that ask many times.

    Made once: the model and its data are compiled in float64, for the CPU or for the GPU that they
    are on, or, where the core cannot, copied for torch (``reason`` says why). Calls take contiguous
    float64 arrays (p, n) and check nothing. ``engine`` answers: `NativePoints`, `PointsCuda` or
    `TorchPoints`; the last also for points with a finite loss whose derivatives are not finite in
    the others (of an infinite slope behind a zero one, autograd takes some as zero).
    """

    def __init__(self, land: Answered) -> None:
        self.n = land.n_params
        self.reason: str | None = None
        self.engine: PointEngine
        self._land = land
        self._torch: TorchPoints | None = None
        try:
            self.engine = compiled_points(land)
        except NotLowered as refusal:
            self.reason = refusal.reason
            self.engine = TorchPoints(land)

    def gradients(self, points: np.ndarray) -> tuple[Losses, np.ndarray]:
        """Losses (p,) and gradients (p, n)."""
        found = self.engine.gradients(points)
        for rows, asked in self._not_finite(points, found):
            found[1][rows] = asked.gradients(points[rows])[1]
        return found

    @property
    def walker(self) -> NativePoints | None:
        """Who takes whole steps of gradient walks, if anybody does."""
        engine = self.engine
        return engine if isinstance(engine, NativePoints) and engine.walks else None

    def hessians(self, points: np.ndarray) -> tuple[Losses, np.ndarray, np.ndarray]:
        """Losses (p,), gradients (p, n) and Hessians (p, n, n)."""
        found = self.engine.hessians(points)
        for rows, asked in self._not_finite(points, found):
            _, found[1][rows], found[2][rows] = asked.hessians(points[rows])
        return found

    def spectra(self, points: np.ndarray) -> tuple[Losses, np.ndarray, np.ndarray]:
        """Losses (p,), gradients (p, n) and the Hessians' eigenvalues (p, n), ascending.

        Holds few Hessians at a time.
        """
        found = self.engine.spectra(points)
        if found is not None:
            for rows, asked in self._not_finite(points, found):
                for row in rows:  # one Hessian at a time
                    own = slice(row, row + 1)
                    _, found[1][own], matrices = asked.hessians(points[own])
                    found[2][own] = eigenvalues(matrices)
            return found
        size = block_size(self.n)
        parts = []
        for first in range(0, max(len(points), 1), size):
            losses, gradients, matrices = self.hessians(points[first : first + size])
            parts.append((losses, gradients, eigenvalues(matrices)))
        losses, gradients, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        return losses, gradients, values

    def _not_finite(
        self, points: np.ndarray, found: tuple[np.ndarray, ...]
    ) -> Iterator[tuple[np.ndarray, TorchPoints]]:
        """The points that torch is asked for, in parts, and whom to ask."""
        if isinstance(self.engine, TorchPoints):
            return
        losses, derivatives = found[0], found[1:]
        with np.errstate(all="ignore"):  # a finite sum has finite terms alone
            if all(np.isfinite(d.sum()) for d in derivatives):
                return
        good = np.isfinite(losses) & np.isfinite(points).all(axis=1)
        whole = [np.isfinite(d).all(axis=tuple(range(1, d.ndim))) for d in derivatives]
        rows = np.flatnonzero(good & ~np.logical_and.reduce(whole))
        size = block_size(self.n)
        for first in range(0, len(rows), size):
            if self._torch is None:
                self._torch = TorchPoints(self._land)
            yield rows[first : first + size], self._torch


def eigenvalues(matrices: Any) -> np.ndarray:
    """Eigenvalues (P, n), ascending, of symmetric matrices (P, n, n); float64.

    Only the lower triangles are read. A matrix that is not finite has NaN.
    """
    a = matrices.detach().cpu() if isinstance(matrices, Tensor) else matrices
    a = np.ascontiguousarray(a, dtype=np.float64)
    if a.ndim != 3 or a.shape[1] != a.shape[2]:
        raise InvalidArgument(f"matrices: expected shape (P, n, n), got {a.shape}")
    return native_eigenvalues(a)


def block_size(n: int) -> int:
    """How many Hessians of order n one block holds."""
    return max(1, _BLOCK_BYTES // (8 * n**2))


def compiled_points(land: Answered) -> PointEngine:
    """The kernels of the landscape's device; raises NotLowered where they cannot."""
    if land.device.type == "cuda":
        return cuda.build(land, float64_engine(land))
    if land.device.type != "cpu":
        raise NotLowered(f"no kernels on {land.device.type}")
    return NativePoints(land)
