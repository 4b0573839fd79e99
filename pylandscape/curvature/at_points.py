"""Loss, gradient and exact Hessian of many points of a small model, and their eigenvalues.

Everything here is float64, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..arguments import check_landscape, numbers
from ..arrays import digest
from ..engines.points.evaluator import block_size, eigenvalues
from ..errors import InvalidArgument
from ..ranks import current
from ..runs.items import by_ranks
from ..runs.request import build
from ..theta import running_statistics
from ..theta.checkpoints import MODELS

if TYPE_CHECKING:
    from ..landscape import Landscape


SHARED = 256  # points whose gradients several ranks share; of fewer each computes all
MEMORY = 1 << 30  # bytes of Hessians that one call returns unless it is told more


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


def gradients(land: Landscape, points: Any) -> PointGradients:
    """L and its gradient at every point.

    Args:
        points: (P, n), tensor or array; a point that is not finite gives NaN for itself alone.

    Returns:
        losses (P,) in units of L, gradients (P, n) in L per unit of parameter, float64.

    Raises:
        InvalidArgument: points of another shape.
    """
    check_landscape(land, "gradients")
    p = as_points(land, points)
    ask = land.point_evaluator().gradients
    if len(p) >= SHARED:
        shared = _by_ranks(land, p, "gradients", ask, len(p))
        if shared is not None:
            return PointGradients(*shared)
    return PointGradients(*ask(p))


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
    shared = _by_ranks(land, p, "hessians", evaluator.hessians, block_size(land.n_params))
    return PointHessians(*(evaluator.hessians(p) if shared is None else shared))


def _by_ranks(
    land: Landscape, p: np.ndarray, kind: str, ask: Callable[[np.ndarray], Sequence[np.ndarray]],
    most: int,
) -> list[np.ndarray] | None:  # fmt: skip
    """What `ask` gives at the points, of which each rank takes some; None where there is one."""
    if current() is None or len(p) < 2:
        return None
    names = ("losses", "gradients", "matrices")

    def work(at: np.ndarray, beat: Callable[[], None]) -> dict[str, np.ndarray]:
        return dict(zip(names, ask(p[at]), strict=False))

    request = build(land, kind, points=digest(p))
    found = by_ranks(kind, request, len(p), work, most=most, unit="pt", progress=False)
    return None if found is None else [found[name] for name in names if name in found]


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


def as_points(land: Landscape, points: Any) -> np.ndarray:
    """Points as a contiguous float64 array (P, n); a module, state dict or
    checkpoint's path, whose buffers must be the landscape's (``Landscape.at``), as one point."""
    check_landscape(land, "gradients and hessians")
    if isinstance(points, MODELS):
        points = running_statistics.point(land, points, "points")[None, : land.n_params]
    p = points.detach().cpu() if isinstance(points, Tensor) else points
    found = np.ascontiguousarray(numbers(p, "points", f"numbers (P, {land.n_params})"))
    if found.ndim != 2 or found.shape[1] != land.n_params:
        raise InvalidArgument(f"points: expected shape (P, {land.n_params}), got {found.shape}")
    return found


def check_memory(count: int, n: int, memory: int | None) -> None:
    """Raises InvalidArgument where ``count`` Hessians take more than ``memory`` bytes."""
    need, allowed = count * n * n * 8, MEMORY if memory is None else memory
    if need > allowed:
        raise InvalidArgument(
            f"points: {count} Hessians of order {n} need {need / 2**30:.3g} GiB, and "
            f"{allowed / 2**30:.3g} GiB are allowed: pass memory= (bytes), take blocks from "
            "iterate_hessians(), or let classify() answer from Lanczos (method='lanczos')"
        )
