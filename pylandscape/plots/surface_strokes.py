"""The strokes of a surface picture: contours, heat, the 3-D sheet, colour bar, paths and marks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import edges
from .scale import Array, Scale, bar_ticks, format_levels, round_steps
from .style import NONFINITE_FACE, mark_cells, nonfinite_text
from .view import View

LINE_MAP_RANGE = (0.0, 0.85)  # of the colour map: its bright end does not show as a line on white
SHEET_POINTS = 151  # along each axis of a 3-D sheet: more polygons cannot be told apart
LIGHT = np.array([-0.36, -0.48, 0.8])  # unit vector to the light, in the box of the 3-D sheet
SHADE = 0.35  # how much darker than its colour a cell can get
MAX_TICKS = 7
LABEL_PAD = 6.0  # points, between the ticks and the labels of a 3-D picture seen from above
LINE_SPACE = 1.25  # of a colour bar's texts, in font sizes
BAND_ALPHA = 0.3
BAND_REACH = 1e3  # bands from the line at most, as contours interpolate between the points
CROWDED = 50  # points (1/72 inch) between two marks whose names would meet
NARROW = 0.45  # of the longer side: a side that has room for three ticks
# Of the axes' range: contour labels nearer to the frame, or to each other, are left out.
LABEL_BORDER, LABEL_SPACE = 0.025, 0.075
LABEL_ORDER = 7.5  # of drawing: over the line and the dots of a path, under its ends


def draw_contours(
    ax: Any,
    kind: str,
    view: View,
    values: Array,
    scale: Scale,
    levels: int | Sequence[float] | Array | None,
    clip: bool,
    cmap: str,
    labels: bool,
    band: Array | None = None,
) -> tuple[Any, Array]:
    """Contour lines or filled contours; returns the ContourSet and its levels as z.

    band: (nx, ny) how far the values may be off, in the metric's units: each line gets the band
    where it may lie.
    """
    import matplotlib as mpl
    from matplotlib.colors import BoundaryNorm

    px, py = view.grid()
    z = np.ma.masked_invalid(scale.cut(values, clip))
    chosen = scale.levels(values, levels)
    at = scale.forward(chosen)
    seen = (at >= z.min()) & (at <= z.max())
    texts = dict(zip(at.tolist(), format_levels(chosen), strict=True))
    if kind == "filled":
        low, high = scale.z_range
        bands = np.unique(np.concatenate([[min(low, at[0])], at, [max(high, at[-1])]]))
        norm = BoundaryNorm(bands, 256)
        drawn = ax.contourf(px, py, z, levels=bands, cmap=cmap, norm=norm, corner_mask=False)
        drawn.set_edgecolor("face")  # no white seams between bands in PDF viewers
        drawn.set_linewidth(0.2)
        if seen.any():
            ax.contour(
                px, py, z, levels=at[seen], colors="white", linewidths=0.35, alpha=0.7,
                linestyles="solid", corner_mask=False,
            )  # fmt: skip
        return drawn, at
    colours = mpl.colormaps.get_cmap(cmap)(np.linspace(*LINE_MAP_RANGE, at.size))
    if band is not None:
        _draw_bands(ax, (px, py), values, chosen, band, colours)
    with warnings.catch_warnings():  # plot_surface says it
        warnings.filterwarnings("ignore", message="No contour levels were found")
        drawn = ax.contour(
            px, py, z, levels=at, colors=colours, linewidths=1.0, linestyles="solid",
            corner_mask=False,
        )  # fmt: skip
    if labels:
        _label_levels(ax, drawn, texts, (px, py))
    return drawn, at


def _draw_bands(
    ax: Any, at: tuple[Array, Array], values: Array, levels: Array, band: Array, colours: Array
) -> None:
    """Where |value - level| <= band, for each level in its colour."""
    known = np.isfinite(values) & np.isfinite(band)
    width = np.maximum(band, np.finfo(np.float64).tiny)
    for level, colour in zip(levels, colours, strict=True):
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.clip((values - level) / width, -BAND_REACH, BAND_REACH)
        shown = ax.contourf(
            *at, np.ma.masked_where(~known, off), levels=[-1.0, 1.0], colors=[colour],
            alpha=BAND_ALPHA, corner_mask=False,
        )  # fmt: skip
        shown.set_gid("band")


def _label_levels(ax: Any, drawn: Any, texts: dict[float, str], span: tuple[Array, Array]) -> None:
    """Numbers on contour lines, none across the frame or over another one."""
    from matplotlib import patheffects

    style: dict[str, Any] = {"fmt": texts, "fontsize": 0.85 * tick_size(ax), "colors": "0.1"}
    low, size = (np.array([f(p) for p in span]) for f in (np.min, np.ptp))
    rim = patheffects.withStroke(linewidth=1.5, foreground="white")  # over a path, legible
    kept: list[Array] = []
    for text in ax.clabel(drawn, inline=False, **style):
        at = (np.array(text.get_position()) - low) / size
        text.remove()
        if np.minimum(at, 1 - at).min() > LABEL_BORDER and all(
            np.hypot(*(at - other)) > LABEL_SPACE for other in kept
        ):
            kept.append(at)
    drawn.labelTexts.clear()
    places = [tuple(low + at * size) for at in kept]
    for text in ax.clabel(drawn, inline=True, inline_spacing=2, manual=places, **style):
        text.set_gid("level")
        text.set(zorder=LABEL_ORDER, path_effects=[rim])


def draw_heat(ax: Any, view: View, values: Array, scale: Scale, clip: bool, cmap: str) -> Any:
    """One flat cell per point (plane) or per mesh cell (triangle, mean of its corners)."""
    low, high = scale.z_range
    z = np.ma.masked_invalid(scale.cut(values, clip))
    style: dict[str, Any] = {"cmap": cmap, "vmin": low, "vmax": high, "rasterized": True}
    if view.corners is None:
        return ax.pcolormesh(edges(view.x), edges(view.y), z.T, **style)
    px, py = view.grid()
    return ax.pcolormesh(px, py, _cell_means(z), **style)


def finish_flat(ax: Any, kind: str, view: View, values: Array) -> None:
    """Hatch what is not finite; set the aspect."""
    bad = ~np.isfinite(values)
    if bad.any():
        around = kind == "heat" and view.corners is None
        mark_cells(ax, view.cells(bad, around), nonfinite_text(values))
    if view.equal:
        ax.set_aspect("equal")
    if view.corners is not None:
        closed = np.concatenate([view.corners, view.corners[:1]])
        ax.plot(closed[:, 0], closed[:, 1], color="black", linewidth=0.6, zorder=5, gid="outline")
        left, right, bottom, top = view.frame()
        ax.set(xlim=(left, right), ylim=(bottom, top))
        ax.spines[["top", "right"]].set_visible(False)


def draw_sheet(ax: Any, view: View, values: Array, scale: Scale, clip: bool, cmap: str) -> Any:
    """The 3-D sheet; a cell with a non-finite corner is grey, that corner at the top."""
    import matplotlib as mpl
    from matplotlib.colors import Normalize, to_rgba

    low, high = scale.z_range
    bad = ~np.isfinite(values)
    z = scale.cut(values, clip)
    z[bad] = high
    px, py = view.grid()
    spoilt = bad[1:, 1:] | bad[1:, :-1] | bad[:-1, 1:] | bad[:-1, :-1]
    rows, columns = (_thinned(n) for n in z.shape)
    # A drawn cell is spoilt if any of the cells it stands for is.
    spoilt = np.logical_or.reduceat(spoilt, rows[:-1], axis=0)
    spoilt = np.logical_or.reduceat(spoilt, columns[:-1], axis=1)
    px, py, z = (v[np.ix_(rows, columns)] for v in (px, py, z))
    norm = Normalize(low, high)
    faces = mpl.colormaps.get_cmap(cmap)(norm(_cell_means(z)))
    faces[spoilt] = to_rgba(NONFINITE_FACE)
    faces[..., :3] *= _shade(px, py, (z - low) / (high - low))[..., None]
    sheet = ax.plot_surface(
        px, py, z, facecolors=faces, rcount=z.shape[0], ccount=z.shape[1],
        linewidth=0, antialiased=False, shade=False,
    )  # fmt: skip
    sheet.set_gid("sheet")
    ax.set_zlim(low, high)
    span = np.array([np.ptp(px), np.ptp(py)])
    ax.set_box_aspect((*(span / span.max() if view.equal else (1, 1)), 0.7), zoom=0.95)
    return mpl.cm.ScalarMappable(norm, cmap)


def few_ticks(ax: Any, view: View) -> None:
    """Fewer ticks along the short side of an elongated picture."""
    left, right, bottom, top = view.frame()
    for axis, share in (
        ("x", (right - left) / (top - bottom)),
        ("y", (top - bottom) / (right - left)),
    ):
        if share < NARROW:
            ax.locator_params(axis=axis, nbins=3)


def finish_sheet(ax: Any, scale: Scale, name: str, at: Array | None) -> None:
    """The labels of a 3-D picture: close to the box, units on a line of their own.

    at: ticks of the height as z, None for matplotlib's own.
    """
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_tick_params(pad=-2)
        axis.labelpad = -4
    for axis in (ax.xaxis, ax.yaxis):
        text = axis.get_label_text().replace(" in parameter space", "")
        axis.set_label_text(text.replace(" (", "\n("))
        axis.labelpad = LABEL_PAD * abs(np.sin(np.radians(ax.elev)))  # from above, ticks lie in it
    ax.zaxis.set_rotate_label(False)
    ax.set_zlabel(scale.label(name), rotation=90)
    if at is not None:
        ax.set_zticks(at, format_levels(scale.inverse(at)))


def _thinned(n: int) -> NDArray[np.intp]:
    """Indices of at most SHEET_POINTS of n points, both ends among them."""
    return np.unique(np.linspace(0, n - 1, min(n, SHEET_POINTS)).round().astype(np.intp))


def _cell_means(z: Array) -> Array:
    return 0.25 * (z[1:, 1:] + z[1:, :-1] + z[:-1, 1:] + z[:-1, :-1])


def _shade(px: Array, py: Array, height: Array) -> Array:
    """Light per cell in [1 - SHADE, 1]: Lambert's cosine on the sheet scaled to the unit box."""
    span = max(float(np.ptp(px)), float(np.ptp(py)))
    x, y = px / span, py / span
    # The cell's diagonals; their cross product is its normal.
    a = np.stack([v[1:, 1:] - v[:-1, :-1] for v in (x, y, height)], axis=-1)
    b = np.stack([v[:-1, 1:] - v[1:, :-1] for v in (x, y, height)], axis=-1)
    normal = np.cross(a, b)
    length = np.linalg.norm(normal, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.abs(normal @ LIGHT) / length
    return 1 - SHADE + SHADE * np.where(length > 0, cosine, 1.0)


def draw_colorbar(
    ax: Any, artist: Any, kind: str, scale: Scale, name: str, at: Array | None
) -> None:
    """A labelled colour bar with its end values; `at`: ticks between them as z."""
    options: dict[str, Any] = {"pad": 0.02, "aspect": 25}
    if kind in ("contour", "filled"):
        options |= {"spacing": "uniform"}
    else:
        options["extend"] = scale.extend
    if kind == "surface":
        options |= {"shrink": 0.6, "pad": 0.1}
    bar = ax.figure.colorbar(artist, ax=ax, **options)
    height = ax.get_window_extent().height * 72 / ax.figure.dpi
    set_bar_ticks(bar, kind, scale, at, int(height * options.get("shrink", 1.0) / tick_size(ax)
                                            / LINE_SPACE))  # fmt: skip
    bar.set_label(scale.label(name), size=ax.xaxis.label.get_fontsize())
    bar.ax.tick_params(labelsize=tick_size(ax), width=0.6, length=2)
    bar.outline.set_linewidth(0.5)


def set_bar_ticks(bar: Any, kind: str, scale: Scale, at: Array | None, most: int) -> None:
    """At most `most` ticks; of contour lines the levels, of colours also the end values."""
    if kind == "contour":
        assert at is not None
        shown = at[:: max(1, -(-at.size // max(most, 1)))]
        texts = format_levels(scale.inverse(shown))
    elif kind == "filled":
        bands = np.asarray(bar.mappable.levels, dtype=np.float64)
        ends = float(bands[0]), float(bands[-1])
        shown, texts = bar_ticks(scale, bands[1:-1], ends, most, even=True)
    else:
        ends = scale.z_range
        inner = round_steps(*ends, MAX_TICKS - 2) if at is None else at
        shown, texts = bar_ticks(scale, inner, ends, min(most, MAX_TICKS), even=False)
    bar.ax.set_yticks(shown, texts)
    bar.ax.minorticks_off()


def ticks(scale: Scale, values: Array) -> Array | None:
    """Drawn positions of ticks for a logarithmic axis, None where matplotlib's linear ones do."""
    if not scale.log:
        return None
    chosen = scale.levels(values, None)
    return scale.forward(chosen[:: -(-chosen.size // MAX_TICKS)])


def heights(view: View, values: Array, scale: Scale, clip: bool, points: Array) -> Array:
    """z (T,) of the sheet at points (T, 2) in the surface's coordinates, bilinear; NaN outside."""
    z = scale.cut(values, clip)
    result = np.full(len(points), np.nan)
    i = np.clip(np.searchsorted(view.x, points[:, 0], side="right") - 1, 0, view.x.size - 2)
    j = np.clip(np.searchsorted(view.y, points[:, 1], side="right") - 1, 0, view.y.size - 2)
    s = (points[:, 0] - view.x[i]) / (view.x[i + 1] - view.x[i])
    t = (points[:, 1] - view.y[j]) / (view.y[j + 1] - view.y[j])
    inside = (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
    at = (
        z[i, j] * (1 - s) * (1 - t)
        + z[i + 1, j] * s * (1 - t)
        + z[i, j + 1] * (1 - s) * t
        + z[i + 1, j + 1] * s * t
    )
    result[inside] = at[inside]
    return result


def draw_marks(ax: Any, view: View, points: Array, z: Array | None, names: Sequence[str]) -> None:
    """Dots, with names: outside a triangle; inside a square, whose tick labels are outside; of
    two that lie near each other away from the other one."""
    from matplotlib import patheffects

    placed = view.place(points)
    coordinates = (placed[:, 0], placed[:, 1]) if z is None else (placed[:, 0], placed[:, 1], z)
    ax.plot(
        *coordinates, linestyle="none", marker="o", markersize=4, markerfacecolor="white",
        markeredgecolor="black", markeredgewidth=0.8, zorder=7, clip_on=False, gid="vertices",
    )  # fmt: skip
    rim = [patheffects.withStroke(linewidth=2, foreground="white")]
    centre = placed.mean(axis=0)
    points_per_pixel = 72 / ax.figure.dpi
    for k, name in enumerate(names):
        outward, away = placed[k] - centre, 9 if view.corners is not None else -11
        if z is None and view.corners is None and len(placed) > 1:
            others = ax.transData.transform(placed[k]) - np.delete(
                ax.transData.transform(placed), k, axis=0
            )
            nearest = others[np.argmin((others**2).sum(axis=1))]
            if np.hypot(*nearest) * points_per_pixel < CROWDED:
                outward, away = nearest, 11
        length = float(np.hypot(*outward)) or 1.0
        dx, dy = outward / length
        where: dict[str, Any] = {
            "ha": "center", "va": "center", "zorder": 8, "path_effects": rim,
        }  # fmt: skip
        if z is None:
            ax.annotate(
                name, placed[k], (away * dx, away * dy), textcoords="offset points", **where
            )
        else:
            ax.text(placed[k, 0], placed[k, 1], z[k], f"{name}\n", **where)


def draw_flags(ax: Any, view: View, flagged: NDArray[np.bool_], text: str) -> list[Any]:
    """Crosses on the flagged points (nx, ny), counted in the legend: its handles."""
    if not flagged.any():
        return []
    from matplotlib import patheffects

    px, py = view.grid()
    return ax.plot(
        px[flagged], py[flagged], linestyle="none", marker="x", markersize=2.5, color="black",
        markeredgewidth=0.7, zorder=5, gid="flags", label=f"{text} ({int(flagged.sum())} points)",
        path_effects=[patheffects.withStroke(linewidth=1.4, foreground="white")],
    )  # fmt: skip


def tick_size(ax: Any) -> float:
    from matplotlib.font_manager import FontProperties

    labels = ax.xaxis.get_ticklabels()
    return labels[0].get_fontsize() if labels else FontProperties().get_size_in_points()
