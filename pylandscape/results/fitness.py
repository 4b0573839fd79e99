"""Losses against the distance to a known optimum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..arrays import Array
from ..files.store import by_fields, save
from .base import Pictured, draw

RESAMPLES = 400  # of the bootstrap


@by_fields
@dataclass(eq=False, repr=False)
class FitnessDistance(Pictured):
    """L at P points, and how far they are from an optimum theta*.

    Attributes:
        distances: (P,) ‖theta - theta*‖.
        losses: (P,) float64 L(theta).
        nearest: (P,) distance to the nearest image of theta* under the network's symmetries, or
            None.
        info: provenance.
    """

    CONTENT: ClassVar[str] = "fitness_distance"
    ARRAYS: ClassVar[tuple[str, ...]] = ("distances", "losses", "nearest")

    distances: Array
    losses: Array
    nearest: Array | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def r(self) -> float:
        """cov(D, E) / (sigma_D sigma_E): 1 where the loss tells the distance, NaN where one of them
        is constant or a loss is not finite."""
        return correlation(self.distances, self.losses)

    @property
    def r_nearest(self) -> float:
        """The same with the distance to the nearest image; NaN without a group."""
        return float("nan") if self.nearest is None else correlation(self.nearest, self.losses)

    @property
    def standard_error(self) -> float:
        """Of r, by the bootstrap over the points."""
        return _spread(self.distances, self.losses)

    @property
    def standard_error_nearest(self) -> float:
        """Of r_nearest."""
        return float("nan") if self.nearest is None else _spread(self.nearest, self.losses)

    def table_columns(self) -> dict[str, Any]:
        found: dict[str, Any] = {"distance": self.distances, "loss": self.losses}
        return found if self.nearest is None else found | {"nearest": self.nearest}

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Losses against distances, a dot for each point; returns the Axes.

        Options: title;
        figsize (width, height) of a figure of its own, in inches.
        """
        return draw(self, ax, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def __repr__(self) -> str:
        own = f"r {self.r:.3f} +- {self.standard_error:.3f}"
        other = "" if self.nearest is None else f", {self.r_nearest:.3f} to the nearest image"
        return f"FitnessDistance({len(self.losses)} points, {own}{other})"


def correlation(d: Array, e: Array) -> float:
    """Pearson's, NaN where one of them is constant up to rounding or not finite."""
    if len(d) < 2 or not (np.isfinite(d).all() and np.isfinite(e).all()):
        return float("nan")
    a, b = d - d.mean(), e - e.mean()
    rounding = 8.0 * np.finfo(np.float64).eps
    if np.abs(a).max() <= rounding * np.abs(d).max() or np.abs(b).max() <= rounding * abs(e).max():
        return float("nan")
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # squares of small numbers do not vanish
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _spread(d: Array, e: Array) -> float:
    if not np.isfinite(correlation(d, e)):
        return float("nan")
    rng = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, len(d), len(d))
        found.append(correlation(d[rows], e[rows]))
    return float(np.nanstd(found))
