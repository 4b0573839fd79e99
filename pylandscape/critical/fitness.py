"""Fitness-distance correlation: does the loss tell how far the optimum is?

r = cov(D, E) / (sigma_D sigma_E) over sampled points, D the distance to a known optimum, E the loss
(T. Jones, S. Forrest, "Fitness distance correlation as a measure of problem difficulty for genetic
algorithms", ICGA 1995; of networks: M. Gallagher, PhD thesis, University of Queensland 2000). The
optimum is known where a network of the same shape made the targets ("student and teacher").
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import check_landscape, integer
from ..arrays import Array, digest
from ..errors import InvalidArgument
from ..files.hdf5 import JOURNAL_SUFFIX
from ..results.fitness import FitnessDistance
from ..runs.chunks import Evaluate, evaluate_in_chunks
from ..runs.journal import Journal
from ..runs.request import build
from ..runs.resume import answered
from ..theta import running_statistics
from .symmetry import EquioutputGroup

if TYPE_CHECKING:
    from ..landscape import Landscape

DRAWS = ("radial", "ball", "box")


def fitness_distance(
    land: Landscape,
    optimum: Any = None,
    points: Any = 1000,
    *,
    radius: float | None = None,
    draw: str = "radial",
    group: EquioutputGroup | None = None,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FitnessDistance:
    """Losses at sampled points, and the points' distances to a known optimum.

    Args:
        optimum: theta*: a vector, module or state dict; default the landscape's model, as a teacher
            that made the targets.
        points: (P, n), or how many to draw (at least 3).
        radius: of what is drawn; default ‖theta*‖, or 1 where that is 0.
        draw: "radial": a uniform direction from theta* and a distance uniform in [0, radius];
            "ball": uniform in the ball of this radius around theta*, nearly all of which lies near
            its surface in high dimension; "box": uniform in [-radius, radius]^n around 0.
        group: of the network's symmetries: D to the nearest image of theta* is found as well.
        seed: of the draws.
        path: HDF5 file for the result; a run that was stopped goes on from what lies beside it.
        progress: show a bar on stderr.

    Raises:
        InvalidArgument: arguments that do not fit.
        ResumeMismatch: ``path`` belongs to another call.
    """
    check_landscape(land, "fitness_distance")
    if draw not in DRAWS:
        raise InvalidArgument(f"draw: expected one of {', '.join(DRAWS)}, got {draw!r}")
    if group is not None and group.n != land.n_params:
        raise InvalidArgument(f"group: expected one of {land.n_params} parameters, got {group.n}")
    best = np.asarray(running_statistics.parameters(land, optimum, "optimum").cpu(), np.float64) \
        if optimum is not None else np.asarray(land.theta.cpu(), np.float64)  # fmt: skip
    if hasattr(points, "ndim") and points.ndim > 0:
        thetas, asked = np.asarray(points, dtype=np.float64), None
        if thetas.ndim != 2 or thetas.shape[1] != land.n_params or len(thetas) < 3:
            raise InvalidArgument(
                f"points: expected shape (P >= 3, {land.n_params}), got {thetas.shape}"
            )
        if not np.isfinite(thetas).all():
            raise InvalidArgument("points: expected finite numbers")
    else:
        asked = integer(points, "points", 3)
        size = float(np.linalg.norm(best)) or 1.0 if radius is None else float(radius)
        if not 0.0 < size < np.inf:
            raise InvalidArgument(f"radius: expected a positive number, got {radius!r}")
        thetas = drawn(best, asked, size, draw, seed)
    request = build(
        land, "fitness_distance", path is not None, optimum=digest(best), points=digest(thetas),
        group=None if group is None else repr(group),
    )  # fmt: skip

    def run(journal: Journal | None) -> FitnessDistance:
        losses = evaluate_in_chunks(
            thetas, ("loss",), lambda: _losses(land), journal=journal, progress=progress,
            label="fitness", exact=land.device.type == "cpu",
            request=request,
        )[:, 0]  # fmt: skip
        nearest = None
        if group is not None:
            nearest = np.array([group.distance(best, theta) for theta in thetas])
        info = {"request": request, "draw": draw if asked else None, "seed": seed}
        return FitnessDistance(np.linalg.norm(thetas - best, axis=1), losses, nearest, info)

    if path is None:
        return run(None)
    return answered(
        path, request, JOURNAL_SUFFIX,
        lambda beside: Journal(beside, request, ("loss",), len(thetas)), run,
    )  # fmt: skip


def drawn(centre: Array, count: int, radius: float, draw: str, seed: int) -> Array:
    """(count, n) points as `fitness_distance` draws them."""
    rng, n = np.random.default_rng(seed), len(centre)
    if draw == "box":
        return rng.uniform(-radius, radius, (count, n))
    direction = rng.standard_normal((count, n))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    share = rng.uniform(size=(count, 1))
    return centre + direction * radius * (share ** (1.0 / n) if draw == "ball" else share)


def _losses(land: Landscape) -> Evaluate:
    return lambda thetas: {"loss": land.losses(points=thetas)}
