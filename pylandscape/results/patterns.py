"""Low-dimensional patterns in a loss surface: carved by optimisation, or constructed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..arrays import Array
from ..files.store import by_fields, save
from .base import Pictured, draw


@by_fields
@dataclass(eq=False, repr=False)
class Pattern(Pictured):
    """A binary mask carved into L: low loss where the mask is 1, high where it is 0.

    The cell (i, j) of a mask is theta = origin + sum_k (i_k - c_k) directions[k], c the middle.

    Attributes:
        mask: (a, b) or (a, b, c) of 0 and 1.
        losses: the same shape, L over all data;  accuracy: likewise, or None for a loss without.
        held_losses, held_accuracy: over held-out data, or None.
        origin: (n,);  directions: (2 or 3, n), orthogonal, one cell long each.
        history: (steps,) the objective of each step.
        info: provenance.
    """

    CONTENT: ClassVar[str] = "pattern"
    ARRAYS: ClassVar[tuple[str, ...]] = (
        "mask", "losses", "accuracy", "held_losses", "held_accuracy", "origin", "directions",
        "history",
    )  # fmt: skip

    mask: Array
    losses: Array
    origin: Array
    directions: Array
    history: Array
    accuracy: Array | None = None
    held_losses: Array | None = None
    held_accuracy: Array | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def means(self, held_out: bool = False, metric: str = "accuracy") -> tuple[float, float]:
        """The mean of "accuracy" or "loss" over the cells that should be low, and over the others;
        NaN where there are none."""
        name = ("held_" if held_out else "") + ("accuracy" if metric == "accuracy" else "losses")
        values = getattr(self, name)
        if values is None:
            return float("nan"), float("nan")
        good = self.mask > 0.5
        return float(values[good].mean()), float(values[~good].mean())

    def gap(self, held_out: bool = False) -> float:
        """Mean accuracy of the cells that should be low, less that of the others."""
        good, bad = self.means(held_out)
        return good - bad

    def plot(self, axes: Any = None, **options: Any) -> Any:
        """The mask beside the loss or accuracy, on the data and held out; returns the Axes.

        Options: metric ("loss" or "accuracy"), title;
        figsize (width, height) of a figure of its own, in inches.
        """
        return draw(self, axes, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def __repr__(self) -> str:
        good, bad = self.means(metric="loss")
        size = " x ".join(map(str, self.mask.shape))
        return f"Pattern({size}, mean loss {good:.3g} where it should be low, {bad:.3g} elsewhere)"


@by_fields
@dataclass(eq=False, repr=False)
class ConstructedPattern(Pictured):
    """A surface over bias directions that has the heights asked for.

    Attributes:
        target: (q,) * d heights T;  values: L there, on the data;  held: on held-out data, or None.
        axis: (q,) coordinates along each of the d directions.
        theta: (n,) of the network;  directions: (d, n): the first biases of its first layer.
        history: (steps,) mean squared error of the fit.
        entropy: of the labels, below which no height can lie.
        info: provenance; "sizes" are the widths of the layers, inputs first.
    """

    CONTENT: ClassVar[str] = "constructed_pattern"
    ARRAYS: ClassVar[tuple[str, ...]] = (
        "target", "values", "held", "axis", "theta", "directions", "history",
    )  # fmt: skip

    target: Array
    values: Array
    axis: Array
    theta: Array
    directions: Array
    history: Array
    entropy: float
    held: Array | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """max |L - T| over the grid."""
        return float(np.abs(self.values - self.target).max())

    def plot(self, axes: Any = None, **options: Any) -> Any:
        """The heights asked for beside the loss (of three dimensions the middle slice); returns
        the Axes.

        Options: title;
        figsize (width, height) of a figure of its own, in inches.
        """
        return draw(self, axes, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.target.shape))
        return f"ConstructedPattern({size}, largest error {self.error:.3g})"
