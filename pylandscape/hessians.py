"""Loss, gradient and exact Hessian of many points of a small model, and their eigenvalues.

Everything here is float64, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import points_cuda, statistics
from .arguments import check_landscape
from .errors import InvalidArgument, NotLowered
from .point_reference import TorchPoints
from .points_cuda import PointsCuda
from .points_native import NativePoints, float64_engine
from .points_native import eigenvalues as native_eigenvalues

if TYPE_CHECKING:
    from .landscape import Landscape

MEMORY = 1 << 30  # bytes of Hessians that one call returns unless it is told more
_BLOCK_BYTES = 64 << 20  # of the Hessians of one block


@dataclass(frozen=True)
class PointGradients:
    """losses (P,) and gradients (P, n), float64; NaN where a point or its loss is."""

    losses: np.ndarray
    gradients: np.ndarray

    @property
    def norms(self) -> np.ndarray:
        """The Euclidean norms of the gradients (P,)."""
        return np.linalg.norm(self.gradients, axis=1)


@dataclass(frozen=True)
class PointHessians(PointGradients):
    """The same with Hessians (P, n, n), exactly symmetric; None with ``matrices=False``."""

    matrices: np.ndarray | None

    def eigenvalues(self) -> np.ndarray:
        """(P, n) ascending, as `eigenvalues`."""
        if self.matrices is None:
            raise InvalidArgument("matrices: expected Hessians, got matrices=False")
        return eigenvalues(self.matrices)


class PointEvaluator:
    """Loss, gradient and Hessian at blocks of points, for loops that ask many times.

    Made once: the model and its data are compiled in float64, for the CPU or for the GPU that they
    are on, or, where the core cannot, copied for torch (``reason`` says why). Calls take contiguous
    float64 arrays (p, n) and check nothing.
    """

    def __init__(self, land: Landscape) -> None:
        self.n = land.n_params
        self.reason: str | None = None
        self._native: NativePoints | PointsCuda | None = None
        self._torch: TorchPoints | None = None
        try:
            self._native = _native_points(land)
        except NotLowered as refusal:
            self.reason = refusal.reason
            self._torch = TorchPoints(land)

    def gradients(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses (p,) and gradients (p, n)."""
        if self._native is not None:
            return self._native.gradients(points)
        losses, gradients = self._by_torch(points, "gradients")
        return losses, gradients

    def hessians(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Losses (p,), gradients (p, n) and Hessians (p, n, n)."""
        if self._native is not None:
            return self._native.hessians(points)
        losses, gradients, matrices = self._by_torch(points, "hessians")
        return losses, gradients, matrices

    def spectra(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Losses (p,), gradients (p, n) and the Hessians' eigenvalues (p, n), ascending.

        Holds few Hessians at a time.
        """
        if self._native is not None:
            found = self._native.spectra(points)
            if found is not None:
                return found
        size = block_size(self.n)
        parts = []
        for first in range(0, max(len(points), 1), size):
            losses, gradients, matrices = self.hessians(points[first : first + size])
            parts.append((losses, gradients, eigenvalues(matrices)))
        losses, gradients, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        return losses, gradients, values

    def _by_torch(self, points: np.ndarray, what: str) -> list[np.ndarray]:
        assert self._torch is not None
        found = [t.numpy() for t in getattr(self._torch, what)(torch.from_numpy(points))]
        bad = ~(np.isfinite(points).all(axis=1) & np.isfinite(found[0]))
        found[0][np.isnan(points).any(axis=1)] = np.nan
        for result in found[1:]:
            result[bad] = np.nan
        return found


def gradients(land: Landscape, points: Any) -> PointGradients:
    """L and its gradient at every point.

    Args:
        points: (P, n), tensor or array; a point that is not finite gives NaN for itself alone.

    Returns:
        losses (P,) in units of L, gradients (P, n) in L per unit of parameter, float64.

    Raises:
        InvalidArgument: points of another shape.
    """
    return PointGradients(*land.point_evaluator().gradients(as_points(land, points)))


def hessians(
    land: Landscape, points: Any, *, matrices: bool = True, memory: int | None = None
) -> PointHessians:
    """L, its gradient and its exact Hessian at every point.

    Args:
        points: (P, n), tensor or array; a point that is not finite gives NaN for itself alone.
        matrices: False leaves the Hessians out.
        memory: bytes that the Hessians may take together; default 1 GiB.

    Returns:
        losses (P,), gradients (P, n) and matrices (P, n, n), float64. The matrices are exactly
        symmetric. At kinks (relu and its like) derivatives are those almost everywhere.

    Raises:
        InvalidArgument: points of another shape, or more than ``memory``.
    """
    p = as_points(land, points)
    evaluator = land.point_evaluator()
    if not matrices:
        return PointHessians(*evaluator.gradients(p), None)
    check_memory(len(p), land.n_params, memory)
    return PointHessians(*evaluator.hessians(p))


def iterate_hessians(
    land: Landscape, points: Any, *, block: int | None = None
) -> Iterator[tuple[slice, PointHessians]]:
    """`hessians` block by block: (which points, their answers), memory bounded whatever P.

    ``block``: points of one; default as many as take 64 MiB.
    """
    p = as_points(land, points)
    evaluator = land.point_evaluator()
    size = block or block_size(land.n_params)
    for first in range(0, len(p), size):
        part = slice(first, min(first + size, len(p)))
        yield part, PointHessians(*evaluator.hessians(p[part]))


def eigenvalues(matrices: Any) -> np.ndarray:
    """Eigenvalues (P, n), ascending, of symmetric matrices (P, n, n); float64.

    Only the lower triangles are read. A matrix that is not finite has NaN.
    """
    a = matrices.detach().cpu() if isinstance(matrices, Tensor) else matrices
    a = np.ascontiguousarray(a, dtype=np.float64)
    if a.ndim != 3 or a.shape[1] != a.shape[2]:
        raise InvalidArgument(f"matrices: expected shape (P, n, n), got {a.shape}")
    return native_eigenvalues(a)


def as_points(land: Landscape, points: Any) -> np.ndarray:
    """Points as a contiguous float64 array (P, n); a module or state dict, whose buffers must be
    the landscape's (``Landscape.at``), as one point."""
    check_landscape(land, "gradients and hessians")
    if isinstance(points, nn.Module | Mapping):
        points = statistics.point(land, points, "points")[None, : land.n_params]
    p = points.detach().cpu() if isinstance(points, Tensor) else points
    try:
        found = np.ascontiguousarray(p, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"points: expected numbers (P, {land.n_params}), got {type(points).__name__}: {error}"
        ) from error
    if found.ndim != 2 or found.shape[1] != land.n_params:
        raise InvalidArgument(f"points: expected shape (P, {land.n_params}), got {found.shape}")
    return found


def block_size(n: int) -> int:
    """How many Hessians of order n one block holds."""
    return max(1, _BLOCK_BYTES // (8 * n**2))


def check_memory(count: int, n: int, memory: int | None) -> None:
    """Raises InvalidArgument where ``count`` Hessians take more than ``memory`` bytes."""
    need, allowed = count * n * n * 8, MEMORY if memory is None else memory
    if need > allowed:
        raise InvalidArgument(
            f"points: {count} Hessians of order {n} need {need / 2**30:.3g} GiB, and "
            f"{allowed / 2**30:.3g} GiB are allowed: pass memory= (bytes), take blocks from "
            "iterate_hessians(), or let classify() answer from Lanczos (method='lanczos')"
        )


def _native_points(land: Landscape) -> NativePoints | PointsCuda:
    """The kernels of the landscape's device; raises NotLowered where they cannot."""
    if land.device.type == "cuda":
        return points_cuda.build(land, float64_engine(land))
    if land.device.type != "cpu":
        raise NotLowered(f"no kernels on {land.device.type}")
    return NativePoints(land)
