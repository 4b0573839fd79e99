"""Pictures of results: lines, contours, filled contours, heat maps and 3-D surfaces.

`plot` draws one result, `plot_lines` several curves in one picture; both return the Axes and never
call `show`. Without `ax=` they make a figure that fits one column of a two-column paper; `save`
writes it with fonts that publishers accept. Non-finite values are hatched (grey in 3-D) and
counted in the legend.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import callers_level
from ..errors import InvalidArgument
from ..theta.sampling import STANDARD
from . import surface_strokes as draw
from .lines import band_text, band_width, plot_lines, slices
from .options import picture
from .overlay import as_points, draw_runs, room_for, runs_of
from .paths import animate, remove_path
from .scale import Array, Scale
from .style import (
    COLUMN_WIDTH,
    check_suffix,
    close,
    keep_inside,
    legend_above,
    legend_on_top,
    metric_label,
    new_axes,
    nonfinite_handle,
    nonfinite_text,
    own_style,
    save,
    words_handle,
)
from .view import View, view_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.curve import Curve
    from ..results.surface import Surface

__all__ = ["check_suffix", "close", "plot", "plot_lines", "plot_surface", "save"]

SURFACE_KINDS = ("contour", "filled", "heat", "surface")
KINDS = (*SURFACE_KINDS, "line")


def plot(
    result: Curve | Surface, kind: str | None = None, ax: Axes | None = None, **options: Any
) -> Axes:
    """Draw a Curve (kind "line") or a Surface ("contour" by default, or "line": its axis slices).

    Options are those of `plot_lines` and `plot_surface`.

    Raises:
        InvalidArgument: a kind that this result does not have, or an option's value.
    """
    from ..results.surface import Surface

    if kind is not None and not isinstance(kind, str):
        raise InvalidArgument(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if not isinstance(result, Surface):
        if kind not in (None, "line"):
            raise InvalidArgument(f"kind: expected 'line' for a curve, got {kind!r}")
        return plot_lines([result], ax, **options)
    if kind == "line":
        curves, defaults = slices(result)
        return plot_lines(curves, ax, **{**defaults, **options})
    return plot_surface(result, "contour" if kind is None else kind, ax, **options)


@picture
def plot_surface(
    surface: Surface,
    kind: str = "contour",
    ax: Any = None,
    *,
    metric: str = "loss",
    log: bool = False,
    offset: float | None = None,
    levels: int | Sequence[float] | Array | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    clip: bool = True,
    cmap: str = "viridis",
    colorbar: bool | None = None,
    labels: bool = True,
    band: bool | float = False,
    trajectory: Any = None,
    vertices: Any = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str | None = None,
    elevation: float = 32.0,
    azimuth: float = -58.0,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw a surface as contour lines, filled contours, a heat map or in 3-D.

    Barycentric surfaces are drawn in the triangle of their vertices, laid out with the true
    distances. The metric "ratio" of a convexity map has its points with lambda_max <= 0 crossed.

    Args:
        kind: "contour", "filled", "heat" or "surface" (3-D; `ax` must then be a 3-D Axes).
        metric: which of `surface.metrics`.
        log: draw log10(value + offset). Ticks and labels stay in the metric's units.
        offset: default 0 if all finite values are positive, otherwise -min + 1e-3 (median - min).
        levels: contour levels: how many, or increasing values; default about ten round numbers,
            closer together where most of the values are.
        vmin, vmax: drawn range, in the metric's units. Default: that of the values, but a linear
            one ends at the 95 % quantile if a steep rim would take it all (the colour bar then has
            an arrow).
        clip: draw values beyond the range at the limit; False leaves them out.
        cmap: a colour-blind-safe map by default; "cividis" is another.
        colorbar: default True for "filled" and "heat"; the others carry numbers on lines or on the
            z axis.
        labels: numbers on contour lines and names of the vertices.
        band: of kind "contour": shade where each line may lie, 2 standard errors from the data to
            both sides, or that many; the surface must have the metric "standard_error".
        trajectory: a path: a `Trajectory` (of a surface computed here, which knows its frame), a
            `Projection`, or numbers (T, 2) in the surface's coordinates; several as a list, as
            `Runs` or as {label: path}; default those that the surface brings along
            (`connection_plane`). First point hollow, last a star; dots are the redder, the more of
            a point's distance is off the plane, and the legend says how much at most. One path
            goes from light to dark with the steps, several have a colour each.
        vertices: (V, 2) points to mark; interpolations mark their own, [] for none.
        elevation, azimuth: of the 3-D view, in degrees.
        figsize: (width, height) of a figure of its own, in inches; default one column of a paper
            wide.

    Levels that lie outside of the values are a UserWarning, and the legend says so where none is
    inside.

    Raises:
        InvalidArgument: names the argument; also fewer than 2 x 2 points for contours and 3-D.
    """
    # Twenty options, as one picture has them: they are checked first, then drawn from the values at
    # the bottom to the title at the top. What each takes is in surface_strokes.py.
    values = _metric(surface, metric)
    _check(kind, values, ax)
    count = band_width(band, [surface.metrics], metric)
    if count and kind != "contour":
        raise InvalidArgument(f"band: expected with kind 'contour', got kind {kind!r}")
    noise = count * surface.metrics[STANDARD] if count else None
    own_paths = surface.info.get("paths") if trajectory is None else trajectory
    runs = () if own_paths is None else runs_of(surface, own_paths)
    view = view_of(surface)
    marks = view.vertices if vertices is None else as_points(vertices, "vertices")
    names = view.names if vertices is None and labels else ()
    scale = Scale.of(values, log=log, offset=offset, vmin=vmin, vmax=vmax)
    solid = kind == "surface"
    bar = kind in ("filled", "heat") if colorbar is None else colorbar

    def height_at(points: Array) -> Array | None:
        return draw.heights(view, values, scale, clip, points) if solid else None

    beyond = _levels_outside(kind, values, scale, levels, vmin, vmax)
    own = ax is None
    with own_style(own):
        if own:
            height = 0.85 if solid else view.height(bar)
            height += room_for(runs) / COLUMN_WIDTH
            ax = new_axes(projection="3d" if solid else None, height=height, figsize=figsize)
        at = draw.ticks(scale, values)
        if solid:
            artist = draw.draw_sheet(ax, view, values, scale, clip, cmap)
            ax.view_init(elev=elevation, azim=azimuth)
        elif kind == "heat":
            artist = draw.draw_heat(ax, view, values, scale, clip, cmap)
        else:
            artist, at = draw.draw_contours(
                ax, kind, view, values, scale, levels, clip, cmap, labels, noise
            )
        if own and view.equal:
            draw.few_ticks(ax, view)
        if not solid:
            draw.finish_flat(ax, kind, view, values)
        keys = draw_runs(ax, runs, view.place, height_at)
        if len(marks):
            draw.draw_marks(ax, view, marks, height_at(marks), names)
        ax.set_xlabel(view.xlabel if xlabel is None else xlabel)
        ax.set_ylabel(view.ylabel if ylabel is None else ylabel)
        name = metric_label(metric, surface.metrics)
        if solid:
            draw.finish_sheet(ax, scale, name, at)
        if bar:
            draw.draw_colorbar(ax, artist, kind, scale, name, at)
        notes = _notes(ax, view, surface, metric, flat=not solid, paths=keys, own=own, more=beyond)
        if title is not None and not (own and solid):
            ax.set_title(title, pad=6 + 11 * notes)
        elif kind == "contour" and not bar:
            shown = scale.label(name) + (f", {band_text(count)}" if count else "")
            ax.set_title(shown, loc="left", fontsize="medium", pad=3 + 11 * notes)
        if own:
            keep_inside(ax, title if solid else None, fixed=figsize is not None)
    return ax


def _levels_outside(
    kind: str, values: Array, scale: Scale, levels: Any, vmin: float | None, vmax: float | None
) -> list[str]:
    """What the legend says where no given level is among the drawn values; any that is outside of
    them, or of a range that was asked for (that of several pictures), is a warning."""
    if kind not in ("contour", "filled") or levels is None or np.ndim(levels) == 0:
        return []
    given = scale.levels(values, levels)
    finite = values[np.isfinite(values)]
    low, high = (scale.vmin if vmin is None else vmin), (scale.vmax if vmax is None else vmax)
    if vmax is None:  # not the end of the colours
        high = float(finite.max())
    outside = given[(given < low) | (given > high)]
    if not outside.size:
        return []
    few = ", ".join(f"{v:g}" for v in outside[:4]) + (", ..." if outside.size > 4 else "")
    warnings.warn(
        f"levels: {outside.size} of {given.size} lie outside of the drawn values, {low:.4g} to "
        f"{high:.4g}: {few}",
        stacklevel=callers_level(),
    )
    span = f"{low:.3g} to {high:.3g}"
    return [f"no level within the values, {span}"] if outside.size == given.size else []


def film(
    surface: Surface, trajectory: Any, path: str | os.PathLike[str], kind: str = "contour", *,
    frames: int, fps: int, **options: Any,
) -> Path:  # fmt: skip
    """See `Trajectory.animate`; ``trajectory`` may be a `Projection` too."""
    found = surface.project(trajectory) if hasattr(trajectory, "project") else trajectory
    if kind not in SURFACE_KINDS:
        raise InvalidArgument(f"kind: expected one of {', '.join(SURFACE_KINDS)}, got {kind!r}")
    ax = plot_surface(surface, kind, **{"trajectory": found, **options})
    try:
        if "trajectory" not in options:  # whose legend stays, and which grows from now on
            remove_path(ax)
        view, z = view_of(surface), None
        if kind == "surface":
            values = _metric(surface, options.get("metric", "loss"))
            chosen: dict[str, Any] = {k: options.get(k) for k in ("offset", "vmin", "vmax")}
            scale = Scale.of(values, log=options.get("log", False), **chosen)
            clip = options.get("clip", True)
            z = draw.heights(view, values, scale, clip, found.coordinates)
        return animate(
            view.place(found.coordinates), os.fspath(path), ax, found.off_share,
            steps=found.steps, z=z, frames=frames, fps=fps,
        )  # fmt: skip
    finally:
        close(ax)


def _check(kind: str, values: Array, ax: Any) -> None:
    """Raises InvalidArgument for an unknown kind, one that needs more points, another Axes."""
    if kind not in SURFACE_KINDS:
        raise InvalidArgument(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if kind != "heat" and min(values.shape) < 2:
        raise InvalidArgument(
            f"kind: expected 'heat' or 'line' for {values.shape[0]} x {values.shape[1]} points, "
            f"got {kind!r}, which needs 2 x 2"
        )
    solid = kind == "surface"
    if ax is not None and solid != (ax.name == "3d"):
        raise InvalidArgument(
            f"ax: expected {'a 3-D' if solid else 'a flat'} Axes for kind {kind!r}, got {ax.name!r}"
        )


def _notes(
    ax: Any, view: View, surface: Surface, metric: str, *, flat: bool, paths: Sequence[Any],
    own: bool, more: Sequence[str] = (),
) -> int:  # fmt: skip
    """The legend above the picture: paths, points that are not finite, points without a ratio. How
    many lines it has."""
    values = np.asarray(surface.metrics[metric], dtype=np.float64)
    notes = [words_handle(text) for text in more]
    if not np.isfinite(values).all():
        notes.append(nonfinite_handle(nonfinite_text(values)))
    if metric == "ratio" and "lambda_max" in surface.metrics and flat:
        notes += draw.draw_flags(
            ax, view, surface.metrics["lambda_max"] <= 0.0, r"$\lambda_{\max} \leq 0$"
        )
    if paths and own:
        legend_on_top(ax, [*notes, *paths])
        return 0
    notes += paths
    if notes:
        legend_above(ax, notes, columns=1)
    return len(notes)


def _metric(surface: Surface, metric: str) -> Array:
    if metric not in surface.metrics:
        raise InvalidArgument(f"metric: expected one of {sorted(surface.metrics)}, got {metric!r}")
    values = np.asarray(surface.metrics[metric], dtype=np.float64)
    expected = (len(surface.x), len(surface.y))
    if values.shape != expected:
        raise InvalidArgument(f"metrics[{metric!r}]: expected shape {expected}, got {values.shape}")
    return values
