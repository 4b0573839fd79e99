"""Pictures of clouds: flat and 3-D dots, several panels on shared axes, zoom windows.

Dots are drawn as pixels also in PDF and SVG files (there are thousands of them), all else as lines
and text. Dots that are not finite, or 0 on a logarithmic axis, are counted in a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from ..results.cloud import Cloud, Range, as_boxes, checked_box
from . import cloud_strokes as draw
from .cloud_look import Look, class_handle
from .options import picture
from .style import COLUMN_WIDTH, STYLE, legend_above, new_axes, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE_WIDTH = 7.0  # inches: both columns of a paper
ZOOMS = ("inset", "panels", "outline")


@picture
def plot_cloud(
    cloud: Cloud,
    ax: Axes | None = None,
    *,
    color: str | None = None,
    log: str = "",
    xlim: Range | None = None,
    ylim: Range | None = None,
    zlim: Range | None = None,
    boxes: Any = None,
    zoom: str | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: Any = None,
    size: float | None = None,
    title: str | None = None,
    elevation: float = 22.0,
    azimuth: float = -58.0,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw one cloud: flat, or in 3-D if it has a height.

    Args:
        ax: where; a 3-D Axes for a cloud with a height. Default: a figure of its own.
        color: "kind" (markers tell the classes apart too, the legend counts them), "step",
            "bumpiness", "ruggedness" or "negative"; default the cloud's own.
        log: the logarithmic axes: "x", "xy", "xyz", ...
        xlim, ylim, zlim: drawn ranges; default all.
        boxes: windows to zoom into, such as ((0, 0.1), (0, 0.5)): ranges of x, y and, in 3-D, z;
            or several of them.
        zoom: "inset" (default for one window of a flat cloud), "panels" beside the picture, or
            "outline" only.
        vmin, vmax, cmap: of colours that stand for numbers.
        size: of a dot in points^2; default by how many there are.
        elevation, azimuth: of the 3-D view, in degrees.
        figsize: (width, height) of a figure of its own, in inches.

    Returns:
        The main Axes; insets are its children, panels its figure's other Axes.

    Raises:
        InvalidArgument: names the argument.
    """
    solid = cloud.height is not None
    look = Look.of([cloud], color or cloud.color, vmin, vmax, cmap)
    limits = checked_box(xlim, ylim, zlim, suffix="lim")
    windows = as_boxes(boxes)
    chosen = _zoom(zoom, solid, len(windows), ax)
    frame = draw.Frame.of([cloud], checked_log(log, solid), limits, size)
    view = (elevation, azimuth)
    if ax is not None and solid != (ax.name == "3d"):
        raise InvalidArgument(
            f"ax: expected {'a 3-D' if solid else 'a flat'} Axes for this cloud, got {ax.name!r}"
        )
    with own_style(ax is None):
        if chosen == "panels":
            return _with_panels(cloud, look, frame, windows, view, title, figsize)
        axes: Any = ax
        if axes is None:
            axes = new_axes(
                projection="3d" if solid else None, height=0.85 if solid else 0.78, figsize=figsize
            )
        artist, notes = draw.dots(axes, cloud, look, frame)
        draw.finish(axes, frame, view)
        for k, window in enumerate(windows):
            draw.outline(axes, window, frame, k if len(windows) > 1 else None)
        if chosen == "inset" and windows:
            draw.inset(axes, cloud, look, frame, windows[0])
        handles = _handles(look, [cloud]) + notes
        if artist is not None:
            draw.colour_bar(axes, artist, look)
            if solid and ax is None:
                axes.set_position((0.0, 0.01, 0.94, 0.96))
        if solid and handles:
            draw.legend_top(axes.figure, handles)
        elif handles:
            legend_above(axes, handles)
        if title is not None:
            axes.set_title(title, pad=6 + 11 * (0 if solid else -(-len(handles) // 2)))
    return axes


@picture
def plot_clouds(
    clouds: Mapping[str, Cloud] | Sequence[Cloud],
    *,
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    share: bool = True,
    color: str | None = None,
    log: str = "",
    xlim: Range | None = None,
    ylim: Range | None = None,
    zlim: Range | None = None,
    boxes: Any = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: Any = None,
    size: float | None = None,
    title: str | None = None,
    elevation: float = 22.0,
    azimuth: float = -58.0,
    figsize: tuple[float, float] | None = None,
) -> list[Axes]:
    """Draw clouds side by side, with the same axes and the same colours.

    Args:
        clouds: one for each panel; the keys of a mapping are its labels.
        labels: texts above the panels; under them each panel's own class counts.
        columns: panels in a row; default 2, or 3 flat ones where they fill the rows.
        share: the same ranges for all panels, without which they cannot be compared by eye.
        boxes: windows to outline in every panel.

    The other arguments are those of `plot_cloud`.

    Returns:
        One Axes for each cloud, in order.

    Raises:
        InvalidArgument: no cloud, flat and 3-D ones together, or names the argument.
    """

    if isinstance(clouds, Mapping):
        labels = [str(name) for name in clouds] if labels is None else labels
        clouds = list(clouds.values())
    clouds = list(clouds)
    if not clouds or not all(isinstance(c, Cloud) for c in clouds):
        raise InvalidArgument(f"clouds: expected at least one Cloud, got {clouds!r}")
    if labels is not None and len(labels) != len(clouds):
        raise InvalidArgument(f"labels: expected {len(clouds)}, got {len(labels)}")
    if len({c.height for c in clouds}) > 1:
        heights = ", ".join(sorted({str(c.height) for c in clouds}))
        raise InvalidArgument(f"clouds: expected one kind of height, got {heights}")
    solid = clouds[0].height is not None
    look = Look.of(clouds, color or clouds[0].color, vmin, vmax, cmap)
    limits, windows = checked_box(xlim, ylim, zlim, suffix="lim"), as_boxes(boxes)
    logged = checked_log(log, solid)
    wide = (2 if solid or len(clouds) % 3 else 3) if columns is None else columns
    if wide < 1:
        raise InvalidArgument(f"columns: expected at least 1, got {columns!r}")
    wide = min(wide, len(clouds))
    rows = -(-len(clouds) // wide)
    whole = draw.Frame.of(clouds, logged, limits, size)
    with own_style(True):
        figure, panels = draw.grid(rows, wide, solid, len(clouds), share, PAGE_WIDTH, figsize)
        artist, handles = None, _handles(look, clouds)
        for k, (axes, cloud) in enumerate(zip(panels, clouds, strict=True)):
            frame = whole if share else draw.Frame.of([cloud], logged, limits, size)
            drawn, notes = draw.dots(axes, cloud, look, frame)
            artist = drawn if artist is None else artist
            draw.finish(axes, frame, (elevation, azimuth))
            for window in windows:
                draw.outline(axes, window, frame)
            draw.caption(axes, "" if labels is None else labels[k], cloud, look, notes, solid)
        if share and not solid:
            for axes in panels:
                axes.label_outer()
        if artist is not None:
            draw.shared_bar(figure, panels, artist, look, solid)
        if handles:
            draw.legend_top(figure, handles)
        if title is not None:
            figure.suptitle(title, fontsize=STYLE["axes.titlesize"])
    return panels


def checked_log(log: str, solid: bool) -> str:
    """The letters of the logarithmic axes."""
    known = "xyz" if solid else "xy"
    if not isinstance(log, str) or any(c not in known for c in log):
        raise InvalidArgument(f"log: expected some of the letters {known}, got {log!r}")
    return log


def _with_panels(
    cloud: Cloud,
    look: Look,
    frame: draw.Frame,
    windows: list[dict[str, Range]],
    view: tuple[float, float],
    title: str | None,
    figsize: tuple[float, float] | None,
) -> Axes:
    """The cloud, and beside it a panel for each window."""
    solid, count = cloud.height is not None, 1 + len(windows)
    wide = count if count <= (2 if solid else 3) else 2
    rows = -(-count // wide)
    width = COLUMN_WIDTH if wide == 1 else PAGE_WIDTH
    figure, panels = draw.grid(rows, wide, solid, count, False, width, figsize)
    artist, notes = draw.dots(panels[0], cloud, look, frame)
    draw.finish(panels[0], frame, view)
    for k, window in enumerate(windows):
        draw.outline(panels[0], window, frame, k)
        shown = draw.Frame.of([cloud], frame.log, {**frame.limits, **window}, frame.size)
        draw.dots(panels[k + 1], cloud.select(cloud.inside(**window)), look, shown)
        draw.finish(panels[k + 1], shown, view)
        inside = int(cloud.inside(**window).sum())
        panels[k + 1].set_title(
            f"{draw.LETTERS[k]}: {inside:,} of {len(cloud):,} dots", y=0.96 if solid else None
        )
    if title is not None:
        panels[0].set_title(title, y=0.96 if solid else None)
    handles = _handles(look, [cloud]) + notes
    if artist is not None:
        draw.shared_bar(figure, panels, artist, look, solid)
    if handles:
        draw.legend_top(figure, handles)
    return panels[0]


def _zoom(zoom: str | None, solid: bool, windows: int, ax: Any) -> str:
    if zoom not in (None, *ZOOMS):
        raise InvalidArgument(f"zoom: expected one of {', '.join(ZOOMS)}, got {zoom!r}")
    if not windows:
        return "outline"
    if zoom is None:
        if ax is not None and (solid or windows > 1):
            return "outline"
        return "inset" if windows == 1 and not solid else "panels"
    if zoom == "inset" and (solid or windows > 1):
        raise InvalidArgument(
            "zoom: expected 'panels' or 'outline' for several windows and in 3-D, got 'inset'"
        )
    if zoom == "panels" and ax is not None:
        raise InvalidArgument("zoom: expected 'inset' or 'outline' with ax, got 'panels'")
    return zoom


def _handles(look: Look, clouds: Sequence[Cloud]) -> list[Any]:
    counts = [c.counts() for c in clouds] if look.name == "kind" else []
    return [class_handle(k, sum(each.get(k, 0) for each in counts)) for k in look.kinds]
