"""Surfaces of equal loss in a grid of three dimensions, by scikit-image's marching cubes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import callers_level
from ..errors import InvalidArgument, PylandscapeError
from .options import picture
from .scale import Array, Scale, distinct_rounding, format_levels
from .style import (
    COLUMN_WIDTH,
    legend_above,
    new_axes,
    nonfinite_handle,
    nonfinite_text,
    own_style,
)  # fmt: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.grid_values import Grid

SHARES = (0.04, 0.15, 0.4)  # of the points that the default isosurfaces enclose
INNERMOST, OUTERMOST = 0.9, 0.25  # opacity: the outer ones are seen through
HEIGHT = 0.86  # of the figure, as a share of its width


@picture
def plot_isosurfaces(
    grid: Grid, ax: Any = None, *, metric: str = "loss", log: bool = False,
    levels: int | Sequence[float] | None = None, offset: float | None = None,
    vmin: float | None = None, vmax: float | None = None, cmap: str = "viridis",
    colorbar: bool = True, title: str | None = None, elev: float = 22.0, azim: float = -60.0,
    figsize: tuple[float, float] | None = None,
) -> Axes:  # fmt: skip
    """Draw the surfaces of a volume on which the metric has the same value.

    Args:
        ax: a 3-D Axes; default a figure of its own.
        levels: increasing values in the metric's units, or how many; default three round ones,
            which enclose about 4, 15 and 40 % of the points.
        elev, azim: the view, in degrees.
        The others are those of `plot_surface`. No surface is drawn through a cell with a corner
        that is not finite.

    Raises:
        InvalidArgument: not three axes of at least two points, no level within the values.
        PylandscapeError: scikit-image is not installed.
    """
    values = np.asarray(grid.metrics[metric], dtype=np.float64)
    if values.ndim != 3 or min(values.shape) < 2:
        raise InvalidArgument(
            "grid: expected three axes of at least two points for isosurfaces, got shape "
            f"{values.shape}"
        )
    if ax is not None and ax.name != "3d":
        raise InvalidArgument(f"ax: expected a 3-D Axes for isosurfaces, got {ax.name!r}")
    scale = Scale.of(values, log=log, offset=offset, vmin=vmin, vmax=vmax)
    finite = np.isfinite(values)
    if levels is None:
        enclosing = np.quantile(values[finite], SHARES)
        chosen = distinct_rounding(enclosing, scale.vmin, scale.vmax)
    else:
        chosen = scale.levels(values, levels)
    low, high = float(values[finite].min()), float(values[finite].max())
    inside = chosen[(chosen > low) & (chosen < high)]
    if not inside.size:
        raise InvalidArgument(
            f"levels: expected some between {low:.4g} and {high:.4g}, the values' ends, got "
            f"{chosen.tolist()}"
        )
    if inside.size < chosen.size:
        warnings.warn(
            f"levels: {chosen.size - inside.size} of {chosen.size} lie outside of the values, "
            f"{low:.4g} to {high:.4g}",
            stacklevel=callers_level(),
        )
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    meshes = [(level, isosurface(scale.forward(values), grid.axes, finite, z))
              for level, z in zip(inside, scale.forward(inside), strict=True)]  # fmt: skip
    count = len(meshes)
    colours = mpl.colormaps.get_cmap(cmap)(np.linspace(0.0, 0.85, count))
    own = ax is None
    with own_style(own):
        if own:
            width = COLUMN_WIDTH * 1.15
            ax = new_axes(projection="3d", figsize=figsize or (width, width * HEIGHT))
        ax.computed_zorder = False
        for k, (level, (corners, faces)) in enumerate(meshes):
            if not len(faces):
                continue
            sheet = ax.plot_trisurf(
                corners[:, 0], corners[:, 1], corners[:, 2], triangles=faces, color=colours[k],
                alpha=float(np.geomspace(INNERMOST, OUTERMOST, count)[k]) if count > 1 else 0.7,
                linewidth=0, antialiased=True,
            )  # fmt: skip
            sheet.set(zorder=2 + count - k, gid=f"isosurface {level:g}")  # inner ones in front
        for k, name in enumerate("xyz"):
            getattr(ax, f"set_{name}lim")(grid.axes[k][0], grid.axes[k][-1])
            getattr(ax, f"set_{name}label")(f"step along $d_{k + 1}$")
            axis = getattr(ax, f"{name}axis")
            axis.set_tick_params(pad=-2)
            axis.labelpad = -3
            ax.locator_params(axis=name, nbins=4, prune="lower" if name == "y" else None)
        spans = np.array([np.ptp(a) for a in grid.axes])
        ax.set_box_aspect(spans / spans.max() if spans.min() > 0.25 * spans.max() else None,
                          zoom=0.88)  # fmt: skip
        ax.view_init(elev=elev, azim=azim)
        if title is not None:
            ax.set_title(title)
        if colorbar:
            bands = np.arange(count + 1) - 0.5
            shown = ScalarMappable(BoundaryNorm(bands, count), ListedColormap(colours))
            bar = ax.figure.colorbar(shown, ax=ax, shrink=0.6, pad=0.12, aspect=20)
            bar.set_ticks(list(range(count)), labels=format_levels(inside))
            bar.minorticks_off()
            bar.set_label(scale.label(metric))
        if not finite.all():
            legend_above(ax, [nonfinite_handle(nonfinite_text(values))], columns=1)
    drawn: Axes = ax
    return drawn


def isosurface(z: Array, axes: Sequence[Array], finite: Any, level: float) -> tuple[Array, Any]:
    """Corners (m, 3) along the axes and triangles (k, 3) of the surface z = level."""
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise PylandscapeError(
            'isosurfaces need scikit-image: pip install "pylandscape[volume]"'
        ) from error
    filled = np.where(finite, z, z[finite].max())
    try:
        corners, faces, _, _ = marching_cubes(filled, float(level), mask=finite)
    except (RuntimeError, ValueError):  # the level crosses only cells that are left out
        return np.empty((0, 3)), np.empty((0, 3), dtype=np.intp)
    placed = [np.interp(corners[:, k], np.arange(a.size), a) for k, a in enumerate(axes)]
    return np.stack(placed, axis=1), faces
