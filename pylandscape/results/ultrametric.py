"""How ultrametric the distances between points are, beside Gaussian clouds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..arrays import Array
from ..files.store import by_fields, save
from .base import Pictured, draw

INDICES = ("s", "gap", "correlation", "rammal")


@by_fields
@dataclass(eq=False, repr=False)
class Ultrametricity(Pictured):
    """P points' distances as those of a tree. A triangle has the sides d_min <= d_mid <= d_max.

    Attributes:
        distances: (P, P) float64.
        indices: (4,) float64, in the order of `INDICES`:
            s: mean of (d_max - d_mid) / (d_max - d_min) over all triangles, 0 for equilateral ones.
            gap: mean of (d_max - d_mid) / d_max.
            correlation: of d_max and d_mid over the triangles; NaN where one of them is constant.
            rammal: sum(D - u) / sum(D), u the largest ultrametric below D (single linkage).
            In an ultrametric space they are 0, 0, 1, 0.
        errors: (4,) standard errors over the choice of the points, by the jackknife.
        null: (K, 4) the indices of K Gaussian clouds with the points' mean and covariance.
        shares: (20,) share of the triangles with (d_max - d_mid) / (d_max - d_min) in each
            twentieth of [0, 1];  null_shares: (K, 20) of the clouds.
        metric: "euclidean", "canonical", "quotient" or "precomputed".
        info: provenance.
    """

    CONTENT: ClassVar[str] = "ultrametricity"
    ARRAYS: ClassVar[tuple[str, ...]] = (
        "distances", "indices", "errors", "null", "shares", "null_shares",
    )  # fmt: skip

    distances: Array
    indices: Array
    errors: Array
    null: Array
    shares: Array
    null_shares: Array
    metric: str
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def s(self) -> float:
        """The primary index: 0 where all triangles are isosceles with a small base."""
        return float(self.indices[0])

    @property
    def gap(self) -> float:
        return float(self.indices[1])

    @property
    def correlation(self) -> float:
        return float(self.indices[2])

    @property
    def rammal(self) -> float:
        return float(self.indices[3])

    @property
    def score(self) -> float:
        """s less the clouds' mean s, in standard deviations of the clouds' s: below about -2, the
        points are more ultrametric than a Gaussian cloud. NaN with fewer than two clouds."""
        if len(self.null) < 2:
            return float("nan")
        own = self.null[:, 0]
        return float((self.s - own.mean()) / own.std(ddof=1))

    def plot(self, axes: Any = None, **options: Any) -> Any:
        """The triangles' histogram beside the clouds', and the tree of single linkage; returns the
        two Axes.

        Options: title;
        figsize (width, height) of a figure of its own, in inches.
        """
        return draw(self, axes, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def __repr__(self) -> str:
        clouds = ""
        if len(self.null):
            own = self.null[:, 0]
            clouds = f"; {len(own)} Gaussian clouds {own.mean():.3f} +- {np.std(own):.3f}"
        return (
            f"Ultrametricity({len(self.distances)} points, s {self.s:.3f} +- {self.errors[0]:.3f}"
            f"{clouds})"
        )
