"""A metric on a grid of any dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import integer
from ..arrays import Array
from ..errors import InvalidArgument
from ..files import store
from .base import _check_metrics, _Result, check_axis, draw
from .curve import Curve
from .surface import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(eq=False, repr=False)
class Grid(_Result):
    """A metric on a grid: values[i1, ..., id] = L(theta + sum_k axes[k][i_k] d_k).

    Attributes:
        axes: d arrays (n_k,) float64, increasing: steps along each direction.
        values: (n_1, ..., n_d) float64, the loss; the same array as metrics["loss"].
        metrics: name -> (n_1, ..., n_d) float64. Accuracies are fractions.
        info: provenance, as that of a Surface.
        kind: "grid".

    Raises:
        InvalidArgument: no axis, one that does not increase, metrics of another shape, no loss.
    """

    axes: list[Array]
    values: Array = None  # type: ignore[assignment]
    metrics: dict[str, Array] = None  # type: ignore[assignment]
    info: dict[str, Any] = None  # type: ignore[assignment]
    kind: str = "grid"

    def __post_init__(self) -> None:
        self.axes = [check_axis(a, f"axes[{k}]") for k, a in enumerate(self.axes)]
        if not self.axes:
            raise InvalidArgument("axes: expected at least one, got none")
        shape = tuple(axis.size for axis in self.axes)
        self.metrics = _check_metrics(self.values, self.metrics, shape)
        self.values = self.metrics["loss"]
        self.info = {} if self.info is None else dict(self.info)

    def plot(self, kind: str | None = None, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw a grid of up to three dimensions and return the (first) Axes.

        Args:
            kind: that of `Surface.plot`; of a volume "filled" slices by default, or "isosurface":
                surfaces of equal loss (extra ``volume``: scikit-image).
            ax: not for slices; default a figure of its own.

        Options:
            axis: which one the slices of a volume cross; default the last.
            indices: of the slices along it; default five, evenly spaced.
            levels, elev, azim: of isosurfaces, their values (or how many) and the view in degrees.
            metric, log, vmin, vmax, figsize: as of `Surface.plot`, as all others.
        """
        axes: Axes = draw(self, kind, ax, **options)
        return axes

    def table_columns(self) -> dict[str, Any]:
        meshes = np.meshgrid(*self.axes, indexing="ij")
        names = "xyz" if len(meshes) < 4 else [f"x{k}" for k in range(len(meshes))]
        places = {name: mesh.ravel() for name, mesh in zip(names, meshes, strict=False)}
        return places | {name: values.ravel() for name, values in self.metrics.items()}

    def slice(self, axis: int, index: int) -> Grid | Surface | Curve:
        """All metrics where one coordinate stays: axes[axis][index].

        Returns:
            A Grid of one dimension less; where two are left a Surface of kind "plane", where one
            is left a Curve of kind "line". ``info["slice"]`` says where it lies; facts of the
            centre and of the directions' lengths are those of the axes that are left.

        Raises:
            InvalidArgument: an axis or index that is not there (negative ones count from the end),
                or a grid of one dimension.
        """
        count = len(self.axes)
        if count == 1:
            raise InvalidArgument("axis: expected a grid of at least two dimensions, got one")
        axis = integer(axis, "axis", -count, count - 1) % count
        size = self.axes[axis].size
        index = integer(index, "index", -size, size - 1) % size
        rest = [a for k, a in enumerate(self.axes) if k != axis]
        at = float(self.axes[axis][index])
        before = self.info.get("slice", [])
        info = {k: v for k, v in self.info.items() if at == 0.0 or k not in CENTRE}
        if at != 0.0 and self.info.get("center_loss") is not None:
            info["difference_to"] = self.info["center_loss"]  # what differences' errors are of
        info["slice"] = [*before, {"axis": axis, "index": index, "at": at}]
        for name in ("direction_norms", "directions"):
            if isinstance(info.get(name), list):
                info[name] = [v for k, v in enumerate(info[name]) if k != axis]
        request = dict(info.get("request") or {})
        if isinstance(request.get("directions"), list):
            request["directions"] = [v for k, v in enumerate(request["directions"]) if k != axis]
            info["request"] = request
        more: dict[str, Any] = {
            "metrics": {k: np.take(v, index, axis=axis) for k, v in self.metrics.items()},
            "info": info,
        }
        if len(rest) == 1:
            return Curve(rest[0], **more)
        return Surface(rest[0], rest[1], **more) if len(rest) == 2 else Grid(rest, **more)

    def flat(self) -> Surface | Curve:
        """A grid of one or two dimensions as a Curve of kind "line" or a Surface of kind "plane".

        Raises:
            InvalidArgument: a grid of more dimensions.
        """
        if len(self.axes) > 2:
            raise InvalidArgument(
                f"grid: expected one or two dimensions, got {len(self.axes)}; take slice(axis, "
                "index)"
            )
        more: dict[str, Any] = {"metrics": self.metrics, "info": self.info}
        if len(self.axes) == 1:
            return Curve(self.axes[0], **more)
        return Surface(self.axes[0], self.axes[1], **more)


CENTRE = ("model_loss", "center_loss")  # facts of the grid's centre, which other slices lack


def _apart(grid: Grid) -> tuple[store.Arrays, store.Facts]:
    arrays = {f"axis{k}": np.asarray(axis) for k, axis in enumerate(grid.axes)}
    arrays["metrics"] = np.stack(list(grid.metrics.values()))
    return arrays, {"kind": grid.kind, "names": list(grid.metrics), "info": grid.info}


def _together(arrays: store.Arrays, facts: store.Facts) -> Grid:
    axes = [arrays[f"axis{k}"] for k in range(len(arrays) - 1)]
    metrics = dict(zip(facts["names"], arrays["metrics"], strict=True))
    return Grid(axes, metrics=metrics, info=facts["info"], kind=facts["kind"])


store.register(Grid, store.Content("grid", _apart, _together))
