"""Grids of one to three dimensions; three as slices side by side with one range of colours, or as
isosurfaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import integer
from ..errors import InvalidArgument
from .isosurfaces import plot_isosurfaces
from .options import picture
from .scale import Scale
from .style import COLUMN_WIDTH, own_style
from .surface import plot, plot_surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.grid_values import Grid

PANELS = 5


@picture
def plot_grid(
    grid: Grid,
    kind: str | None = None,
    ax: Any = None,
    *,
    axis: int = 2,
    indices: Sequence[int] | None = None,
    metric: str = "loss",
    log: bool = False,
    vmin: float | None = None,
    vmax: float | None = None,
    figsize: tuple[float, float] | None = None,
    **options: Any,
) -> Axes:
    """Draw a grid: a line, a surface, or slices of a volume.

    Args:
        kind: that of a `Surface`; of three dimensions "filled" slices by default, or
            "isosurface" (see `plot_isosurfaces`, whose options it takes).
        ax: of one or two dimensions only.
        axis: which one the slices cross.
        indices: of the slices along it; default five, evenly spaced, with both ends.
        figsize: (width, height) of the figure, in inches.
        The others are those of `plot_surface`.

    Returns:
        The Axes; of slices the first one.

    Raises:
        InvalidArgument: more than three dimensions (take `Grid.slice` first), an axis or index that
            is not there.
    """
    if metric not in grid.metrics:
        raise InvalidArgument(f"metric: expected one of {sorted(grid.metrics)}, got {metric!r}")
    shown: dict[str, Any] = {"metric": metric, "log": log, "vmin": vmin, "vmax": vmax, **options}
    count = len(grid.axes)
    if kind == "isosurface":
        return plot_isosurfaces(grid, ax, figsize=figsize, **shown)
    if count < 3:
        return plot(grid.flat(), kind, ax, figsize=figsize, **shown)
    if count > 3:
        raise InvalidArgument(
            f"grid: expected at most three dimensions to draw, got {count}; draw a slice(axis, "
            "index)"
        )
    if ax is not None:
        raise InvalidArgument("ax: expected None for a grid of three dimensions, which has several")
    if kind == "surface":
        raise InvalidArgument("kind: expected a flat one for slices, got 'surface'")
    axis = integer(axis, "axis", 0, 2)
    steps = grid.axes[axis]
    if indices is None:
        indices = np.unique(np.linspace(0, steps.size - 1, PANELS).round().astype(int)).tolist()
    slices = [grid.slice(axis, i) for i in indices]
    if not slices:
        raise InvalidArgument("indices: expected at least one, got none")
    values = np.stack([s.metrics[metric] for s in slices])
    scale = Scale.of(values, log=log, offset=options.get("offset"), vmin=vmin, vmax=vmax)
    shown |= {"offset": scale.offset} if log else {}
    finite = values[np.isfinite(values)]
    if finite.size:
        low = float(finite.min()) if vmin is None else vmin
        high = float(np.quantile(finite, 0.95)) if vmax is None else vmax
        shown |= {"vmin": low, "vmax": high} if low < high else {}
        if low < high and not log and kind != "heat":  # the same lines in all slices
            common = Scale.of(values, vmin=low, vmax=high)
            shown.setdefault("levels", common.levels(values, None))
    import matplotlib.pyplot as plt

    with own_style(True):
        size = (COLUMN_WIDTH * 0.62 * len(slices), COLUMN_WIDTH * 0.72)
        size = figsize or size
        _, panels = plt.subplots(
            1, len(slices), figsize=size, squeeze=False, sharey=True, layout="compressed"
        )
        names = [f"step along $d_{k + 1}$" for k in range(3) if k != axis]
        for panel, i, each in zip(panels[0], indices, slices, strict=True):
            last = panel is panels[0, -1]
            plot_surface(
                each, kind or "filled", panel,  # type: ignore[arg-type]
                **{"colorbar": last, "xlabel": names[0], "ylabel": names[1], **shown},
            )  # fmt: skip
            panel.set_title(f"step along $d_{axis + 1}$: {steps[i]:.3g}")
            if panel is not panels[0, 0]:
                panel.set_ylabel("")
            panel.locator_params(nbins=5)
    first: Axes = panels[0, 0]
    return first
