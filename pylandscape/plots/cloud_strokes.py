"""The strokes of a cloud's picture: dots, frames, windows, insets, colour bars, legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument
from ..results.cloud import Cloud, Range
from .cloud_look import CLASS_STYLES, LABELS, Look, dot_size
from .scale import format_levels, symlog_ticks

INSET = 0.4  # of the axes' width and height
MARGIN = 0.04  # of the range, on each side
BOX = "0.1"
NEAR, CORNER = 0.03, 0.1  # of a 3-D axis, without ticks at its ends: they would meet the next one's
TICK_SPACE = 0.07  # of a colour bar, between its ticks
AXES = ("x", "y", "z")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Of a 3-D figure: its labels lie outside the box that a layout knows.
PANEL_HEIGHT, SOLID_HEIGHT = 0.8, 0.72  # of a panel, as shares of its width
TOP, BOTTOM = 0.46, 0.3  # inches for legends, and for the labels below a 3-D panel
RARE = 1.6  # how much larger than the others the dots of a rare class are, at most
LETTER_PLACES = ((14, 6), (6, 16), (-14, 8), (16, -8), (-6, 18), (20, 2))  # points from a window


@dataclass(frozen=True)
class Frame:
    """What is drawn of a cloud: coordinates, scales, ranges, size of dots.

    In 3-D, matplotlib's axes are linear and logarithms are taken here.
    """

    names: tuple[str, ...]  # of the coordinates
    log: str
    ranges: tuple[Range, ...]  # in the units of the data
    limits: Mapping[str, Range]  # those that were asked for
    size: float

    @classmethod
    def of(
        cls,
        clouds: Sequence[Cloud],
        log: str,
        limits: Mapping[str, Range],
        size: float | None,
    ) -> Frame:
        """One frame around all of them."""
        height = clouds[0].height
        names = ("loss", "gradient_norm", *([] if height is None else [height]))
        if "z" in limits and height is None:
            raise InvalidArgument("zlim: expected None for a flat cloud, got a range")
        ranges = []
        for axis, name in zip(AXES, names, strict=False):
            values = np.concatenate([c.values(name) for c in clouds])
            ranges.append(limits.get(axis) or _range(values, axis in log))
        most = max(len(c) for c in clouds)
        return cls(names, log, tuple(ranges), limits, dot_size(most) if size is None else size)

    @property
    def solid(self) -> bool:
        return len(self.names) == 3

    def places(self, cloud: Cloud) -> tuple[list[Array], np.ndarray, int, int]:
        """Coordinates as drawn, which dots are shown; how many are not finite, how many are lost
        to a logarithm."""
        values = [cloud.values(name).astype(np.float64) for name in self.names]
        finite = np.isfinite(values).all(axis=0)
        positive = finite.copy()
        shown = finite.copy()
        for axis, value, (low, high) in zip(AXES, values, self.ranges, strict=False):
            if axis in self.log:
                positive &= value > 0.0
            if self.solid:  # matplotlib does not clip in 3-D
                shown &= (value >= low) & (value <= high)
        return (
            [self.place(a, v) for a, v in zip(AXES, values, strict=False)],
            shown & positive, int((~finite).sum()), int((finite & ~positive).sum()),
        )  # fmt: skip

    def place(self, axis: str, values: Any) -> Array:
        """Where values are in matplotlib's coordinates."""
        given = np.asarray(values, dtype=np.float64)
        if not (self.solid and axis in self.log):
            return given
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(given)


def dots(ax: Any, cloud: Cloud, look: Look, frame: Frame) -> tuple[Any, list[Any]]:
    """Draw the dots. Returns what a colour bar needs (None for classes) and notes for a legend."""
    from matplotlib.lines import Line2D

    places, shown, lost, zero = frame.places(cloud)
    texts = [f"not finite: {lost:,}"] * bool(lost) + [f"0, no logarithm: {zero:,}"] * bool(zero)
    notes = [Line2D([], [], linestyle="none", label=text) for text in texts]
    style: dict[str, Any] = {"rasterized": True, "gid": "dots"}
    if frame.solid:
        style["depthshade"] = False
    if look.name == "kind":
        kinds = cloud.values("kind")
        for layer, kind in enumerate(look.kinds):  # the rarer, the larger and the further in front
            rows = shown & (kinds == kind)
            colour, marker = CLASS_STYLES[kind]
            few = dot_size(int(rows.sum()))
            area = max(frame.size, min(few, RARE * frame.size))
            ax.scatter(
                *(p[rows] for p in places), s=area, c=colour, marker=marker,
                linewidths=0.5 if marker in "x+" else 0.0, zorder=2 + 0.01 * layer, **style,
            )  # fmt: skip
        return None, notes
    values = cloud.values(look.name).astype(np.float64)
    known = shown & np.isfinite(values)
    order = np.random.default_rng(0).permutation(np.flatnonzero(known))  # no step hides another
    artist = ax.scatter(
        *(p[order] for p in places), s=frame.size, c=values[order], cmap=look.cmap, norm=look.norm,
        linewidths=0.0, marker="o", **style,
    )  # fmt: skip
    return artist, notes


def finish(ax: Any, frame: Frame, view: tuple[float, float]) -> None:
    """Scales, ranges, labels, view."""
    for axis, name, span in zip(AXES, frame.names, frame.ranges, strict=False):
        if axis in frame.log and not frame.solid:
            getattr(ax, f"set_{axis}scale")("log")
        getattr(ax, f"set_{axis}lim")(*frame.place(axis, span))
        getattr(ax, f"set_{axis}label")(LABELS[name])
        if axis in frame.log and frame.solid:
            at = _log_ticks(*span)
            getattr(ax, f"set_{axis}ticks")(np.log10(at), _log_texts(at))
    if not frame.solid:
        return
    ax.view_init(elev=view[0], azim=view[1])
    ax.set_box_aspect((1, 1, 0.8), zoom=0.96)
    ax.patch.set_visible(False)  # of a panel, it would lie over its neighbour's labels
    for letter, axis in zip(AXES, (ax.xaxis, ax.yaxis, ax.zaxis), strict=True):
        if letter not in frame.log:  # no tick at an end, where two axes meet
            low, high = axis.get_view_interval()
            axis.set_ticks(_inner_ticks(low, high, last=letter == "z"))
        axis.set_tick_params(pad=-3 if letter != "z" else -1)
        axis.labelpad = -5 if letter in frame.log else -7
        axis.pane.set_facecolor("white")
        axis.pane.set_edgecolor("0.8")
        axis._axinfo["grid"].update(color="0.9", linewidth=0.4)
    ax.zaxis.set_rotate_label(False)
    ax.zaxis.label.set_rotation(90)
    ax.zaxis.labelpad = -5


def outline(ax: Any, window: Mapping[str, Range], frame: Frame, number: int | None = None) -> None:
    """A window's edges: a rectangle, in 3-D a box; with a letter where there are several."""
    from matplotlib import patheffects

    spans = [
        frame.place(axis, np.clip(window.get(axis, span), *span))
        for axis, span in zip(AXES, frame.ranges, strict=False)
    ]
    style: dict[str, Any] = {"color": BOX, "linewidth": 0.8, "zorder": 5, "gid": "window"}
    if not frame.solid:
        (x0, x1), (y0, y1) = spans
        ax.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], **style)
        if number is not None:
            ax.annotate(
                LETTERS[number], (x1, y1), LETTER_PLACES[number % len(LETTER_PLACES)],
                textcoords="offset points", fontsize="small", fontweight="bold", zorder=6,
                arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": BOX, "shrinkA": 0,
                            "shrinkB": 0},
                path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
        return
    corners = np.array(
        [[s[b] for s, b in zip(spans, bits, strict=True)] for bits in np.ndindex(2, 2, 2)]
    )
    for a in range(8):
        for bit in (1, 2, 4):
            if not a & bit:
                ax.plot(*zip(corners[a], corners[a | bit], strict=True), **style)
    if number is not None:
        ax.text(
            *corners[7], f"  {LETTERS[number]}", fontsize="small", fontweight="bold", zorder=6,
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def inset(ax: Any, cloud: Cloud, look: Look, frame: Frame, window: Mapping[str, Range]) -> Any:
    """The window's content, in the corner where the fewest dots are."""
    from matplotlib import patheffects

    inner = ax.inset_axes(_corner(ax, cloud, frame), gid="inset")
    shown = Frame.of([cloud], frame.log, {**frame.limits, **window}, 1.5 * frame.size)
    dots(inner, cloud.select(cloud.inside(**window)), look, shown)
    for axis, (low, high) in zip(AXES, shown.ranges, strict=False):
        if axis in frame.log:
            getattr(inner, f"set_{axis}scale")("log")
        getattr(inner, f"set_{axis}lim")(low, high)
    inner.tick_params(labelsize=5.5, width=0.4, length=1.5, pad=1)
    if not frame.log:
        inner.locator_params(nbins=3)
    rim = [patheffects.withStroke(linewidth=1.5, foreground="white")]
    for text in (*inner.get_xticklabels(), *inner.get_yticklabels()):
        text.set_path_effects(rim)
    ax.indicate_inset_zoom(inner, edgecolor="0.45", linewidth=0.5, alpha=1.0)
    return inner


def colour_bar(ax: Any, artist: Any, look: Look) -> Any:
    """Beside a flat picture, above a 3-D one."""
    if ax.name == "3d":
        where = ax.figure.add_axes((0.22, 0.95, 0.56, 0.025))
        bar = ax.figure.colorbar(artist, cax=where, orientation="horizontal", extend=look.extend)
        return _finish_bar(bar, look, ax)
    bar = ax.figure.colorbar(artist, ax=ax, pad=0.02, aspect=25, extend=look.extend)
    return _finish_bar(bar, look, ax)


def shared_bar(figure: Any, panels: Sequence[Any], artist: Any, look: Look, solid: bool) -> Any:
    """One for all panels."""
    if not solid:
        bar = figure.colorbar(artist, ax=list(panels), pad=0.01, aspect=30, extend=look.extend)
        return _finish_bar(bar, look, panels[0])
    height = figure.get_size_inches()[1]
    where = figure.add_axes((0.32, 1.0 - 0.1 / height, 0.36, 0.06 / height))
    bar = figure.colorbar(artist, cax=where, orientation="horizontal", extend=look.extend)
    return _finish_bar(bar, look, panels[0])


def legend_top(figure: Any, handles: Sequence[Any]) -> Any:
    """Above all panels."""
    flat = figure.get_layout_engine() is not None
    return figure.legend(
        handles=list(handles), loc="outside upper center" if flat else "upper center",
        frameon=False, ncols=min(len(handles), 5), handlelength=1.2, columnspacing=1.2,
        borderaxespad=0.1,
    )  # fmt: skip


def caption(
    ax: Any, label: str, cloud: Cloud, look: Look, notes: Sequence[Any], solid: bool
) -> None:
    """The panel's label and, of classes, its counts."""
    counts = cloud.counts() if look.name == "kind" else {}
    said = [f"{counts[k]:,} {k}" for k in look.kinds if k in counts]
    said += [note.get_label() for note in notes]
    lines = ([label] if label else []) + ([", ".join(said)] if said else [])
    if lines:
        ax.set_title("\n".join(lines), fontsize="medium", pad=3, **({"y": 0.96} if solid else {}))


def grid(
    rows: int,
    columns: int,
    solid: bool,
    count: int,
    share: bool,
    width: float,
    figsize: tuple[float, float] | None = None,
) -> tuple[Any, list[Any]]:
    """A figure with `count` panels, `width` inches wide or of `figsize`."""
    import matplotlib.pyplot as plt

    width = width if figsize is None else figsize[0]
    each = width / columns
    if not solid:
        size = (width, rows * each * PANEL_HEIGHT + 0.25)
        figure = plt.figure(figsize=figsize or size, layout="constrained")
        panels = figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False).ravel()
        for spare in panels[count:]:
            spare.remove()
        found = list(panels[:count])
    else:
        tall = each * SOLID_HEIGHT + BOTTOM if figsize is None else (figsize[1] - TOP) / rows
        height = rows * tall + TOP
        figure = plt.figure(figsize=(width, height))
        found = []
        for k in range(count):
            row, column = divmod(k, columns)
            bottom = height - TOP - (row + 1) * tall + 0.4 * BOTTOM
            place = (column / columns, bottom / height, 0.97 / columns, tall / height)
            found.append(figure.add_axes(place, projection="3d"))
    for axes in found:
        axes.tick_params(labelsize=7, width=0.6, length=2.5)
        axes.locator_params(nbins=4 if solid else 5)
    return figure, found


def _range(values: Array, log: bool) -> Range:
    """All finite values, with room around them; for a logarithm the positive ones."""
    kept = values[np.isfinite(values) & ((values > 0.0) if log else True)]
    if not kept.size:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = float(kept.min()), float(kept.max())
    if log:
        room = max(high / low, 1.1) ** MARGIN
        return low / room, high * room
    room = MARGIN * ((high - low) or abs(high) or 1.0)
    return low - room, high + room


def _inner_ticks(low: float, high: float, last: bool) -> Array:
    """Round numbers away from the ends of a range: more so from the upper end, where the next axis
    begins, unless it is the last one."""
    from matplotlib.ticker import MaxNLocator

    room, above = NEAR * (high - low), (NEAR if last else CORNER) * (high - low)
    found = np.asarray(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    return found[(found > low + room) & (found < high - above)]


def _log_texts(levels: Array) -> list[str]:
    """As a flat logarithmic axis writes them, where all are powers of ten."""
    powers = np.log10(levels)
    if not np.allclose(powers, np.round(powers)):
        return format_levels(levels)
    return [rf"$10^{{{round(p)}}}$" for p in powers]


def _log_ticks(low: float, high: float) -> Array:
    """Up to five ticks of a logarithmic range: powers of ten, or round numbers of a short one."""
    first, last = int(np.ceil(np.log10(low))), int(np.floor(np.log10(high)))
    if last - first >= 1:
        every = np.arange(first, last + 1, max(1, -(-(last - first) // 4)))
        return np.asarray(10.0 ** every.astype(np.float64))
    powers = 10.0 ** np.arange(first - 1, last + 2, dtype=np.float64)
    found = np.outer(powers, [1.0, 2.0, 5.0]).ravel()
    inside = found[(found >= low) & (found <= high)]
    return inside if inside.size else np.array([low, high])


def _corner(ax: Any, cloud: Cloud, frame: Frame) -> tuple[float, float, float, float]:
    """Of the axes: the place of an inset in the emptiest corner."""
    places, shown, _, _ = frame.places(cloud)
    data = np.stack([p[shown] for p in places], axis=1)
    at = ax.transAxes.inverted().transform(ax.transData.transform(data))
    best = None
    for x, y in (
        (0.97 - INSET, 0.97 - INSET),
        (0.1, 0.97 - INSET),
        (0.97 - INSET, 0.1),
        (0.1, 0.1),
    ):
        low = np.array([x, y]) - 0.08
        inside = int(((at > low) & (at < low + INSET + 0.1)).all(axis=1).sum())
        if best is None or inside < best[0]:
            best = (inside, (x, y, INSET, INSET))
    assert best is not None
    return best[1]


def _finish_bar(bar: Any, look: Look, ax: Any) -> Any:
    bar.set_label(look.label(), size=ax.xaxis.label.get_fontsize(), labelpad=2)
    bar.ax.tick_params(labelsize=7, width=0.6, length=2, pad=1.5)
    bar.outline.set_linewidth(0.5)
    if hasattr(bar.norm, "linthresh"):
        norm = bar.norm
        smallest = int(np.floor(np.log10(norm.linthresh)))
        at = symlog_ticks(norm.vmin, norm.vmax, smallest, lambda v: float(norm(v)), TICK_SPACE)
        bar.set_ticks(list(at), labels=list(at.values()))
        bar.minorticks_off()
    return bar
