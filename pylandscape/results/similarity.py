"""How alike models are: as points of parameter space, and as functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import Array
from .base import Pictured, draw


@dataclass(eq=False)
class Embedding(Pictured):
    """P models as points of the plane.

    Attributes:
        points: (P, 2) float64; the largest coordinate of each axis is positive.
        distances: (P, P) what they stand for.
        strain: ‖B - Y Y^T‖_F / ‖B‖_F: 0 where the plane holds all of the distances.
        eigenvalues: (P,) of B, descending.
        run: (P,) int: which of the given trajectories a point is of.
        steps: (P,) int64.
        distance: "cosine" | "angular" | "euclidean";  layer: the parameters looked at.
    """

    points: Array
    distances: Array
    strain: float
    eigenvalues: Array
    run: Any
    steps: Any
    distance: str
    layer: tuple[str, ...]
    info: dict[str, Any] = field(default_factory=dict)

    def plot(self, ax: Any = None, *, labels: Any = None, **options: Any) -> Any:
        """Draw the runs, one colour each; returns the Axes.

        Options:
            labels: (P,) written beside the points (training errors in the paper's figures).
            names: of the runs, for the legend.
            title: above the picture.
            figsize: (width, height) of a figure of its own, in inches.
        """
        return draw(self, ax, labels=labels, **options)

    def table_columns(self) -> dict[str, Any]:
        return {"run": self.run, "step": self.steps, "x": self.points[:, 0], "y": self.points[:, 1]}

    def __repr__(self) -> str:
        return (
            f"Embedding({len(self.points)} models by {self.distance} distance, "
            f"strain {self.strain:.3g})"
        )


@dataclass(frozen=True)
class FunctionalDistance:
    """How far two models are apart as functions, over the landscape's data.

    Attributes:
        distance: sqrt(mean_i ‖F(x_i, a) - F(x_i, b)‖^2), F the class probabilities (for a loss
            without classes: the outputs).
        square: its square, which some of the literature calls the distance: with one-hot outputs
            that differ on a share p of the samples it is 2 p.
        disagreement: share of samples with another most probable class; NaN without classes.
    """

    distance: float
    square: float
    disagreement: float


@dataclass(eq=False)
class Agreement(Pictured):
    """P models beside each other.

    Attributes:
        right: (P, P) A_ij = P(j right | i right);  wrong: (P, P) B_ij = P(j wrong | i wrong); NaN
            where model i has no such sample.
        accuracy: (P,) share of samples that are right.
        confusion: (P, C, C) counts, [model, target, answer].
    """

    right: Array
    wrong: Array
    accuracy: Array
    confusion: Any
    info: dict[str, Any] = field(default_factory=dict)

    def plot(self, axes: Any = None, **options: Any) -> Any:
        """Both matrices with their numbers; returns the two Axes, a tuple with their ``.figure``.
        Options: names (P) of the models; cmap; title; figsize (width, height) of a figure of its
        own, in inches."""
        return draw(self, axes, **options)

    def table_columns(self) -> dict[str, Any]:
        i, j = (k.ravel() for k in np.indices(self.right.shape))
        return {"i": i, "j": j, "right": self.right.ravel(), "wrong": self.wrong.ravel()}

    def __repr__(self) -> str:
        return f"Agreement({len(self.accuracy)} models, accuracies {self.accuracy.round(3)})"
