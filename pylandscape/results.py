"""Results: values of L on a line, a plane or between solutions, with their provenance.

A `Curve` holds L(x[i]), a `Surface` L(x[i], y[j]); both are plain data, in float64, and know how to
save, plot and check themselves. `info` is JSON-able: what was asked (`info["request"]`) and what
was found.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from . import store
from .arrays import Array
from .errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .sanity import Verdict

BASIN_SHARE = 0.1  # eps of the basin width, as a share of L(theta0) - L(theta1)


class _Result:
    """What curves and surfaces share."""

    kind: str
    values: Array
    metrics: dict[str, Array]
    info: dict[str, Any]

    @property
    def nonfinite(self) -> int:
        """Number of points where the loss is NaN or infinite."""
        return int((~np.isfinite(self.values)).sum())

    def plot(self, kind: str | None = None, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw it and return the Axes; `pylandscape.plotting.plot` lists the kinds and options."""
        from .plotting import plot

        return plot(self, kind, ax, **options)  # type: ignore[arg-type]

    def check(self) -> Verdict:
        """Answer "is my plot right?": a verdict with one line per check (`pylandscape.sanity`)."""
        from .sanity import check

        return check(self)  # type: ignore[arg-type]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file, atomically; one that is there is replaced. `pylandscape.load` reads
        it back bit for bit, and loss-landscape's tools read its root datasets.

        Raises:
            OSError: the file cannot be written (what was there before is untouched).
        """
        store.save(self, path)

    def __repr__(self) -> str:
        finite = self.values[np.isfinite(self.values)]
        span = f"loss {finite.min():.4g} to {finite.max():.4g}" if finite.size else "no finite loss"
        bad = f", {self.nonfinite} not finite" if self.nonfinite else ""
        others = [name for name in self.metrics if name != "loss"]
        more = f", also {', '.join(others)}" if others else ""
        size = " x ".join(str(n) for n in self.values.shape)
        return f"{type(self).__name__}({self.kind}, {size}, {span}{bad}{more})"


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

    Raises:
        InvalidArgument: an axis that does not increase, metrics of another shape, no loss.
    """

    x: Array
    y: Array
    values: Array = None  # type: ignore[assignment]
    metrics: dict[str, Array] = None  # type: ignore[assignment]
    info: dict[str, Any] = None  # type: ignore[assignment]
    kind: str = "plane"

    def __post_init__(self) -> None:
        self.x = check_axis(self.x, "x")
        self.y = check_axis(self.y, "y")
        self.metrics = _check_metrics(self.values, self.metrics, (self.x.size, self.y.size))
        self.values = self.metrics["loss"]
        self.info = {} if self.info is None else dict(self.info)

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


def barycentric_weights(alpha: Array, beta: Array) -> Array:
    """(m, 3) weights (1 - alpha, alpha beta, alpha (1 - beta)) of theta0, theta1, theta2 (their sum
    is 1)."""
    return np.stack([1.0 - alpha, alpha * beta, alpha * (1.0 - beta)], axis=1)


def bilinear_weights(alpha: Array, beta: Array) -> Array:
    """(m, 4) weights of theta0..theta3, which sit at (alpha, beta) = (1,1), (0,1), (1,0), (0,0)."""
    return np.stack(
        [alpha * beta, (1.0 - alpha) * beta, alpha * (1.0 - beta), (1.0 - alpha) * (1.0 - beta)],
        axis=1,
    )


def triangle_layout(distances: Array) -> Array:
    """(3, 2) points of the plane with the pairwise distances (3, 3): p0 at 0, p1 on the first
    axis."""
    d01, d02, d12 = float(distances[0, 1]), float(distances[0, 2]), float(distances[1, 2])
    # |p2|^2 = d02^2 and |p2 - p1|^2 = d12^2; with p0 = p1 the first axis is free: p2 goes on the
    # second.
    along = (d02**2 - d12**2 + d01**2) / (2.0 * d01) if d01 > 0.0 else 0.0
    return np.array([[0.0, 0.0], [d01, 0.0], [along, np.sqrt(max(d02**2 - along**2, 0.0))]])


def check_axis(axis: ArrayLike, name: str) -> Array:
    """A copy of the axis, (n,) float64, n >= 1, finite and increasing, or InvalidArgument."""
    expected = "expected an increasing 1-D array of finite numbers"
    try:
        found = np.asarray(axis)
        numbers = found.astype(np.float64) if found.dtype.kind in "fiu" else None
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(f"{name}: {expected}, got {axis!r}") from error
    if numbers is None or numbers.ndim != 1 or numbers.size == 0:
        raise InvalidArgument(
            f"{name}: {expected}, got shape {found.shape} and dtype {found.dtype}"
        )
    if not np.isfinite(numbers).all():
        raise InvalidArgument(
            f"{name}: {expected}, got {(~np.isfinite(numbers)).sum()} that are not"
        )
    falls = np.flatnonzero(~(np.diff(numbers) > 0))
    if falls.size:
        i = int(falls[0])
        raise InvalidArgument(
            f"{name}: {expected}, got {numbers[i]!r} before {numbers[i + 1]!r} (index {i})"
        )
    return numbers


def _check_metrics(
    values: ArrayLike | None, metrics: Mapping[str, ArrayLike] | None, shape: tuple[int, ...]
) -> dict[str, Array]:
    """Metrics as float64 arrays of the given shape, "loss" first; `values` stands for the loss."""
    given = dict(metrics or {})
    twice = values is not None and "loss" in given
    if values is not None:
        given.setdefault("loss", values)
    if "loss" not in given:
        raise InvalidArgument(f"metrics: expected 'loss' among them, got {sorted(given)}")
    found = {}
    for name in ("loss", *(name for name in given if name != "loss")):
        numbers = np.asarray(given[name])
        if numbers.shape != shape or numbers.dtype.kind not in "fiub":
            raise InvalidArgument(
                f"metrics[{name!r}]: expected numbers of shape {shape}, got shape {numbers.shape} "
                f"and dtype {numbers.dtype}"
            )
        found[name] = numbers.astype(np.float64)
    if twice and not np.array_equal(found["loss"], np.asarray(values), equal_nan=True):
        raise InvalidArgument("values: expected the same numbers as metrics['loss'], got others")
    return found


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
