"""Barriers between all pairs of models, beside how far apart the models are as functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument
from ..files.store import by_fields, save
from .base import Pictured, draw
from .curve import Curve

MOST_COLUMNS = 10  # models whose matrix is printed


@by_fields
@dataclass(eq=False, repr=False)
class Barriers(Pictured):
    """L on the straight lines between P models.

    Attributes:
        alpha: (q,) float64 from 0 to 1.
        values: (P, P, q) float64: values[i, j, k] = L((1 - alpha_k) theta_i + alpha_k theta_j).
        functional: (P, P) functional distance (`functional_distance`), NaN without outputs.
        disagreement: (P, P) share of samples with another most probable class, NaN without
            classes.
        labels: P names, for pictures.
        info: provenance; "notes" says which models are equal.
    """

    CONTENT: ClassVar[str] = "barriers"
    ARRAYS: ClassVar[tuple[str, ...]] = ("alpha", "values", "functional", "disagreement")

    alpha: Array
    values: Array
    functional: Array
    disagreement: Array
    labels: list[str]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def losses(self) -> Array:
        """(P,) L of the models themselves."""
        return np.diagonal(self.values[:, :, 0]).copy()

    @property
    def barrier(self) -> Array:
        """(P, P) max over alpha of L(theta(alpha)) - (1 - alpha) L_i - alpha L_j, in units of the
        loss: never negative, 0 for a convex L, NaN where the loss is NaN on the way."""
        losses = self.losses
        return barrier_of(self.alpha, self.values, losses[:, None], losses[None, :])

    def curve(self, i: int, j: int) -> Curve:
        """L on the line from model i (alpha = 0) to model j (alpha = 1)."""
        count = len(self.labels)
        for name, k in (("i", i), ("j", j)):
            if not -count <= k < count:
                raise InvalidArgument(f"{name}: expected a model of {count}, got {k}")
        return Curve(self.alpha, values=self.values[i, j], kind="interpolation")

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """The matrix of barriers with its numbers; returns the Axes.

        Options:
            what: "barrier" (default), "functional" or "disagreement".
            labels: P names; default those of the result.
            cmap: a colour map of matplotlib's; default "cividis".
            vmax: end of the colours.
            title: above the picture.
            figsize: (width, height) of a figure of its own, in inches.
        """
        return draw(self, ax, **options)

    def table_columns(self) -> dict[str, Any]:
        i, j = np.nonzero(~np.eye(len(self.labels), dtype=bool))
        names = np.array(self.labels, dtype=object)
        columns = {k: getattr(self, k)[i, j] for k in ("barrier", "functional", "disagreement")}
        return {"a": names[i], "b": names[j], **columns}

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def table(self, what: str = "barrier") -> str:
        """One of the matrices ("barrier", "functional", "disagreement") as text, beside the losses;
        of more than 10 models the least and the largest of each row."""
        if what not in ("barrier", "functional", "disagreement"):
            raise InvalidArgument(
                f"what: expected barrier, functional or disagreement, got {what!r}"
            )
        matrix, count = getattr(self, what), len(self.labels)
        wide = max(len(what), *map(len, self.labels))
        columns = [*self.labels]
        if count > MOST_COLUMNS:
            others = matrix[~np.eye(count, dtype=bool)].reshape(count, count - 1)
            matrix = np.stack([others.min(axis=1), others.max(axis=1)], axis=1)
            columns = ["least", "largest"]
        widths = [max(11, len(name) + 2) for name in columns]
        heads = "".join(f"{name:>{w}}" for name, w in zip(columns, widths, strict=True))
        lines = [f"{what:<{wide}}{'loss':>12}  |{heads}"]
        for name, loss, row in zip(self.labels, self.losses, matrix, strict=True):
            numbers = "".join(f"{v:>{w}.4g}" for v, w in zip(row, widths, strict=True))
            lines.append(f"{name:<{wide}}{loss:>12.6g}  |{numbers}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self!r}\n{self.table()}"

    def __repr__(self) -> str:
        count = len(self.labels)
        others = self.barrier[~np.eye(count, dtype=bool)]
        return (
            f"Barriers({count} models, {others.min():.3g} to {others.max():.3g}, losses "
            f"{self.losses.min():.4g} to {self.losses.max():.4g})"
        )


def barrier_of(t: Array, values: Array, first: Any, last: Any) -> Array:
    """max over t of values (..., q) - (1 - t) first - t last: never negative; what is rounding is
    0, NaN where a value is NaN."""
    line = (1 - t) * np.asarray(first)[..., None] + t * np.asarray(last)[..., None]
    excess = values - line
    rounding = 4 * np.finfo(np.float64).eps * np.abs(line)
    return np.maximum(np.where(excess <= rounding, 0.0, excess).max(axis=-1), 0.0)
