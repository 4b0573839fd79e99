"""Paths of training: in a plane, and along their principal components."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import Array
from ..theta.directions import Direction
from .base import Pictured, draw

DOT = 0.01  # share of the path's reach, in space, below which its picture is a dot


@dataclass(eq=False)
class Projection(Pictured):
    """A path in the plane theta + a d1 + b d2.

    Attributes:
        coordinates: (T, 2) float64, (a, b) of every point: the coordinates of a `plane` over the
            same directions and theta.
        off_plane: (T,) ‖r_t‖, distance of the point from the plane, in parameter space.
        distances: (T,) ‖x_t - theta‖.
        steps: (T,) int64.
        norms: ‖d1‖, ‖d2‖.
        reach: max_t ‖x_t - x_0‖, or NaN where it is not known.
    """

    coordinates: Array
    off_plane: Array
    distances: Array
    steps: Any
    norms: tuple[float, float] = (1.0, 1.0)
    reach: float = float("nan")
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def off_share(self) -> Array:
        """(T,) off_plane / distances: 0 in the plane, 1 where the plane shows nothing; 0 at theta
        itself."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.distances > 0, self.off_plane / self.distances, 0.0)

    @property
    def worst(self) -> float:
        """The largest share off the plane; NaN where no point is finite."""
        shares = self.off_share
        return float(np.nanmax(shares)) if np.isfinite(shares).any() else float("nan")

    @property
    def is_dot(self) -> bool:
        """Whether the path shrinks to a dot: its extent in the plane is below 1 % of its reach."""
        extent = np.ptp(self.coordinates * np.array(self.norms), axis=0)
        return bool(self.reach > 0 and float(np.hypot(*extent)) < DOT * self.reach)

    def axes(
        self, points: int = 51, margin: float = 0.2
    ) -> tuple[tuple[float, float, int], tuple[float, float, int]]:
        """x=, y= of a `plane` that shows the whole path, ``margin`` of its extent around it."""
        found = []
        for a in self.coordinates[np.isfinite(self.coordinates).all(axis=1)].T:
            low, high = float(a.min()), float(a.max())
            room = margin * (high - low) or 1.0
            found.append((low - room, high + room, points))
        return found[0], found[1]

    def plot(self, axes: Any = None, **options: Any) -> Any:
        """The path, dots coloured by their distance off the plane, and that distance by step;
        returns the two Axes, a tuple with their ``.figure``. Options: title; figsize (width,
        height) of a figure of its own, in inches."""
        return draw(self, axes, **options)

    def table_columns(self) -> dict[str, Any]:
        x, y = self.coordinates.T
        return {
            "step": self.steps, "x": x, "y": y, "off_plane": self.off_plane,
            "distance": self.distances,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"Projection({len(self.coordinates)} points, at most {self.worst:.1%} off the plane)"


@dataclass(eq=False)
class PrincipalComponents(Pictured):
    """The main directions of a path.

    Attributes:
        directions: K directions of norm 1, orthogonal, largest first.
        ratios: (K,) explained variance: each component's share of the squared distances from the
            centre.
        null: (K,) the same shares of a long high-dimensional random walk about this centre: a first
            component as large as this one says nothing.
        coordinates: (T, K) of the points, from the centre.
        loadings: {parameter: (K,) its share of the squared direction}; the shares of a component
            add to 1.
        singular_values: (K,) of the centred points (T, n).
        steps: (T,) int64.
        centre: "mean", or the index of the point that the path is seen from.
    """

    directions: list[Direction]
    ratios: Array
    null: Array
    coordinates: Array
    loadings: dict[str, Array]
    singular_values: Array
    steps: Any
    centre: str | int
    info: dict[str, Any] = field(default_factory=dict)

    def plot(self, axes: Any = None, **options: Any) -> Any:
        """The path along the first two components, and the scree with the random walk's shares;
        returns the two Axes, a tuple with their ``.figure``. Options: cmap of the steps; title;
        figsize (width, height) of a figure of its own, in inches."""
        return draw(self, axes, **options)

    def table_columns(self) -> dict[str, Any]:
        columns = {f"component {k + 1}": c for k, c in enumerate(self.coordinates.T)}
        return {"step": self.steps, **columns}

    def __repr__(self) -> str:
        shares = ", ".join(f"{r:.1%}" for r in self.ratios[:4])
        walks = ", ".join(f"{r:.1%}" for r in self.null[:4])
        return f"PrincipalComponents({shares} of the variance; a random walk has {walks})"
