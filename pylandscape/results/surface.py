"""Results: values of L on a line, a plane or between solutions, with their provenance.

A `Curve` holds L(x[i]), a `Surface` L(x[i], y[j]); both are plain data, in float64, and know how to
save, plot and check themselves. `info` is JSON-able: what was asked (`info["request"]`) and what
was found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument
from ..files import store
from .base import _check_metrics, _Result, check_axis, draw
from .curve import Curve
from .mixtures import barycentric_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from ..theta.layout import ParameterLayout
    from .paths import Projection


@dataclass(frozen=True, eq=False)
class Frame:
    """Where a plane lies in parameter space.

    Attributes:
        theta: (n,) its origin.
        directions: (2, n).
        layout: which parameter lies where.
    """

    theta: Tensor
    directions: Tensor
    layout: ParameterLayout


@dataclass(eq=False, repr=False)
class Surface(_Result):
    """A metric on a grid: values[i, j] = L(x[i], y[j]).

    Attributes:
        x: (nx,) float64, increasing: steps along the first direction, or alpha.
        y: (ny,) float64, increasing: steps along the second direction, or beta.
        values: (nx, ny) float64, the loss; the same array as metrics["loss"].
        metrics: name -> (nx, ny) float64. Accuracies are fractions.
        info: provenance (see the module).
        kind: "plane" | "barycentric" | "bilinear".
        frame: origin and directions of a plane that was computed in this process (`Frame`), which
            trajectories are projected on; None for other kinds. No file keeps it.

    Raises:
        InvalidArgument: an axis that does not increase, metrics of another shape, no loss.
    """

    x: Array
    y: Array
    values: Array = None  # type: ignore[assignment]
    metrics: dict[str, Array] = None  # type: ignore[assignment]
    info: dict[str, Any] = None  # type: ignore[assignment]
    kind: str = "plane"
    frame: Frame | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.x = check_axis(self.x, "x")
        self.y = check_axis(self.y, "y")
        self.metrics = _check_metrics(self.values, self.metrics, (self.x.size, self.y.size))
        self.values = self.metrics["loss"]
        self.info = {} if self.info is None else dict(self.info)

    def plot(self, kind: str | None = None, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw it and return the Axes; ``ax.figure.savefig("s.pdf")`` writes the picture.

        Args:
            kind: "contour" (default), "filled", "heat", "surface" (3-D) or "line": the slices
                along its axes, with the options of `Curve.plot`.
            ax: where (of 3-D for "surface"); default a figure of its own.

        Options:
            metric: which of `metrics`; default "loss".
            log: a logarithmic scale, of value + offset; ticks stay in the metric's units.
            offset: default 0 if all values are positive, else -min + 1e-3 (median - min).
            levels: contour levels, how many or which; default about ten round numbers.
            vmin, vmax: the drawn range; a linear one ends at the 95 % quantile where a steep rim
                would take it all.
            clip: draw values beyond the range at its limit (default), or leave them out.
            cmap: a colour map of matplotlib's; default "viridis".
            colorbar: default for "filled" and "heat".
            labels: numbers on contour lines and names of vertices; default True.
            trajectory: one path or several: a `Trajectory`, a `Projection` or numbers (T, 2).
            vertices: (V, 2) points to mark; default those of an interpolation.
            band: of "contour": shade where each line may lie, 2 standard errors from the data to
                both sides, or that many.
            xlabel, ylabel, title: texts.
            elevation, azimuth: of the 3-D view, in degrees.
            figsize: (width, height) of a figure of its own, in inches.
        """
        axes: Axes = draw(self, kind, ax, **options)
        return axes

    def table_columns(self) -> dict[str, Any]:
        x, y = np.meshgrid(self.x, self.y, indexing="ij")
        more = {name: values.ravel() for name, values in self.metrics.items()}
        return {"x": x.ravel(), "y": y.ravel(), **more}

    def project(self, trajectory: Any) -> Projection:
        """A `Trajectory` in the coordinates of this plane, with its distances off it.

        A plane that was read from a file finds its frame again where it is one over the
        trajectory's own components (`pca_directions`) around one of its points.

        Raises:
            InvalidArgument: a surface without a frame; a trajectory of other parameters.
        """
        frame = self.frame
        if frame is None and self.kind == "plane" and hasattr(trajectory, "frame_of"):
            frame = trajectory.frame_of(self.info)
        if frame is None:
            where = "one read from a file" if self.kind == "plane" else f"one of kind {self.kind!r}"
            raise InvalidArgument(
                "trajectory: expected a projection (trajectory.project(d1, d2, theta=theta)) or "
                f"coordinates (T, 2), as this surface, {where}, does not know the directions that "
                "it was made with"
            )
        layout = trajectory.layout
        if set(layout.aliases.values()) != set(frame.layout.aliases.values()):
            raise InvalidArgument(
                f"trajectory: expected one of the surface's {frame.layout.n} parameters, got one "
                f"of {layout.n}; read it with trajectory(..., like=land)"
            )
        d1, d2, theta = (
            frame.layout.unflatten(v) for v in (*frame.directions, frame.theta)
        )  # by name: the order of the parameters may be another
        found: Projection = trajectory.project(d1, d2, theta=theta)
        return found

    def triangle(self, metric: str = "loss") -> tuple[Array, Array]:
        """A barycentric surface in the triangle of its three solutions.

        theta = theta0 + alpha (beta (theta1 - theta0) + (1 - beta)(theta2 - theta0)); the whole
        edge alpha = 0 is theta0 and appears once.

        Returns:
            points (m, 2), in a layout of the plane that keeps the distances of parameter space
            (`info["vertex_positions"]`), and values (m,) of the metric.

        Raises:
            InvalidArgument: another kind of surface, an unknown metric.
        """
        if self.kind != "barycentric":
            raise InvalidArgument(
                f"kind: expected a surface of kind 'barycentric', got {self.kind!r}"
            )
        if metric not in self.metrics:
            raise InvalidArgument(f"metric: expected one of {sorted(self.metrics)}, got {metric!r}")
        positions = np.asarray(self.info["vertex_positions"], dtype=np.float64)
        alpha, beta = (a.ravel() for a in np.meshgrid(self.x, self.y, indexing="ij"))
        weights = barycentric_weights(alpha, beta)
        keep = alpha != 0.0
        keep[np.flatnonzero(~keep)[:1]] = True
        return (weights @ positions)[keep], self.metrics[metric].ravel()[keep]


def _apart(result: Curve | Surface) -> tuple[store.Arrays, store.Facts]:
    arrays = _axes(result) | {"metrics": np.stack(list(result.metrics.values()))}
    return arrays, {"kind": result.kind, "names": list(result.metrics), "info": result.info}


def _together(arrays: store.Arrays, facts: store.Facts) -> Curve | Surface:
    metrics = dict(zip(facts["names"], arrays["metrics"], strict=True))
    more: dict[str, Any] = {"metrics": metrics, "info": facts["info"], "kind": facts["kind"]}
    if "y" in arrays:
        return Surface(arrays["x"], arrays["y"], **more)
    return Curve(arrays["x"], **more)


def _for_loss_landscape(result: Curve | Surface) -> dict[str, np.ndarray]:
    """What the tools of Li et al.'s loss-landscape read: values [y, x], accuracies in percent."""
    found = {f"{name}coordinates": axis for name, axis in _axes(result).items()}
    found["train_loss"] = result.values.T
    if "accuracy" in result.metrics:
        found["train_acc"] = 100.0 * result.metrics["accuracy"].T
    return found


def _axes(result: Curve | Surface) -> dict[str, np.ndarray]:
    return {"x": result.x} | ({"y": result.y} if isinstance(result, Surface) else {})


store.register(Curve, store.Content("curve", _apart, _together, _for_loss_landscape))
store.register(Surface, store.Content("surface", _apart, _together, _for_loss_landscape))


def triangle_layout(distances: Array) -> Array:
    """(3, 2) points of the plane with the pairwise distances (3, 3): p0 at 0, p1 on the first
    axis."""
    d01, d02, d12 = float(distances[0, 1]), float(distances[0, 2]), float(distances[1, 2])
    # |p2|^2 = d02^2 and |p2 - p1|^2 = d12^2; with p0 = p1 the first axis is free: p2 goes on the
    # second.
    along = (d02**2 - d12**2 + d01**2) / (2.0 * d01) if d01 > 0.0 else 0.0
    return np.array([[0.0, 0.0], [d01, 0.0], [along, np.sqrt(max(d02**2 - along**2, 0.0))]])
