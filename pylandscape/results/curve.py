"""A metric along a line."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument
from .base import _check_metrics, _Result, check_axis, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


BASIN_SHARE = 0.1  # eps of the basin width, as a share of L(theta0) - L(theta1)


@dataclass(eq=False, repr=False)
class Curve(_Result):
    """A metric along a line: values[i] = L(x[i]).

    Attributes:
        x: (n,) float64, increasing. "line": steps along the direction; "interpolation": alpha, with
            theta(alpha) = (1 - alpha) theta0 + alpha theta1, theta0 the initial and theta1 the
            final point.
        values: (n,) float64, the loss; the same array as metrics["loss"].
        metrics: name -> (n,) float64. Accuracies are fractions.
        info: provenance (see the module).
        kind: "line" | "interpolation".

    Raises:
        InvalidArgument: an axis that does not increase, metrics of another shape, no loss.
    """

    x: Array
    values: Array = None  # type: ignore[assignment]
    metrics: dict[str, Array] = None  # type: ignore[assignment]
    info: dict[str, Any] = None  # type: ignore[assignment]
    kind: str = "line"

    def __post_init__(self) -> None:
        self.x = check_axis(self.x, "x")
        self.metrics = _check_metrics(self.values, self.metrics, (self.x.size,))
        self.values = self.metrics["loss"]
        self.info = {} if self.info is None else dict(self.info)

    def plot(self, kind: str | None = None, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw it and return the Axes; ``ax.figure.savefig("c.pdf")`` writes the picture.

        Args:
            kind: "line", the only one.
            ax: where; default a figure of its own.

        Options:
            labels: [text] for a legend.
            metric: on the left axis; default "loss".
            second: a metric on a right axis, dashed; default "accuracy" where it is there, None
                for none.
            log: a logarithmic left axis, of value + offset.
            offset: default 0 if all values are positive, else -min + 1e-3 (median - min).
            vmin, vmax: limits of the left axis.
            band: shade 2 standard errors from the data to both sides, or that many.
            distance: the x axis is the distance in parameter space, of an interpolation.
            xlabel, title: texts.
            figsize: (width, height) of a figure of its own, in inches.
        """
        axes: Axes = draw(self, kind, ax, **options)
        return axes

    def table_columns(self) -> dict[str, Any]:
        return {"x": self.x, **self.metrics}

    @property
    def distance(self) -> Array:
        """(n,) absolute distance ‖theta(alpha) - theta1‖ = (1 - alpha) ‖theta0 - theta1‖ from the
        final point, negative beyond it (the axis of an absolute-distance profile)."""
        return (1.0 - self.x) * self._length()

    @property
    def barrier(self) -> float:
        """max over alpha in [0, 1] of L(theta(alpha)) - (1 - alpha) L(theta0) - alpha L(theta1).

        In units of the loss; never negative, 0 for a convex L, NaN if the loss is NaN on the way.
        """
        first, last = self._ends()
        inside = (self.x >= 0.0) & (self.x <= 1.0)
        alpha = self.x[inside]
        excess = self.values[inside] - ((1.0 - alpha) * first + alpha * last)
        return float(np.max(np.concatenate([[0.0], excess])))

    def basin_width(self, eps: float | None = None) -> float:
        """Length, in parameter space, of the interval around theta1 where L <= L(theta1) + eps.

        The interval is the connected one along the line; its ends are interpolated linearly between
        the sampled points. Where it reaches an end of the axis, that end counts and a UserWarning
        says that the width is a lower bound. A non-finite loss ends the interval.

        Args:
            eps: in units of the loss, >= 0; default 0.1 (L(theta0) - L(theta1)).

        Raises:
            InvalidArgument: not an interpolation between two solutions; an axis without alpha = 1;
                eps negative, or not given where L(theta0) <= L(theta1).
        """
        first, last = self._ends()
        if not self.x[0] <= 1.0 <= self.x[-1]:
            raise InvalidArgument(
                f"x: expected an axis that contains alpha = 1, got {self.x[0]:g} to {self.x[-1]:g}"
            )
        if eps is None:
            eps = BASIN_SHARE * (first - last)
            if not eps > 0.0:
                raise InvalidArgument(
                    "eps: expected a number, because the default 0.1 (L(theta0) - L(theta1)) needs "
                    f"L(theta0) > L(theta1), got {first:g} and {last:g}"
                )
        elif not (np.isfinite(eps) and eps >= 0.0):
            raise InvalidArgument(f"eps: expected a finite number >= 0, got {eps!r}")
        at = int(np.searchsorted(self.x, 1.0))
        x, height = self.x, self.values - (last + eps)
        if x[at] != 1.0:
            x, height = np.insert(x, at, 1.0), np.insert(height, at, -eps)
        left, cut_left = _crossing(x[at::-1], height[at::-1])
        right, cut_right = _crossing(x[at:], height[at:])
        if cut_left or cut_right:
            where = " and ".join(
                f"{e:g}" for e, cut in ((left, cut_left), (right, cut_right)) if cut
            )
            warnings.warn(
                f"the basin reaches the end of the axis at alpha = {where}: its width is a lower "
                "bound",
                stacklevel=2,
            )
        return (right - left) * self._length()

    def _ends(self) -> tuple[float, float]:
        """L(theta0), L(theta1)."""
        if self.kind != "interpolation":
            raise InvalidArgument(
                f"kind: expected a curve of kind 'interpolation', got {self.kind!r}"
            )
        losses = []
        for k in (0, 1):
            found = np.flatnonzero(self.x == k)
            if found.size:
                losses.append(float(self.values[found[0]]))
            elif "vertex_losses" in self.info:
                losses.append(float(self.info["vertex_losses"][k]))
            else:
                raise InvalidArgument(
                    f"x: expected an axis that contains alpha = {k}, or info['vertex_losses']"
                )
        return losses[0], losses[1]

    def _length(self) -> float:
        """‖theta0 - theta1‖."""
        if self.kind != "interpolation":
            raise InvalidArgument(
                f"kind: expected a curve of kind 'interpolation', got {self.kind!r}"
            )
        distances = self.info.get("vertex_distances")
        if distances is None:
            raise InvalidArgument("info: expected 'vertex_distances', which interpolate() records")
        return float(distances[0][1])


def _crossing(x: Array, height: Array) -> tuple[float, bool]:
    """Where `height`, <= 0 at x[0], first rises above 0 along x; (x[-1], True) if it never does."""
    above = np.flatnonzero(~(height <= 0.0))
    if not above.size:
        return float(x[-1]), True
    k = int(above[0])
    if not np.isfinite(height[k - 1 : k + 1]).all():
        return float(x[k - 1]), False
    share = height[k - 1] / (height[k - 1] - height[k])
    return float(x[k - 1] + share * (x[k] - x[k - 1])), False
