"""Pictures of trajectories: paths and scree, off-plane distances, embeddings, agreement, tracks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidArgument
from ..files.atomic import write_bytes
from .options import picture
from .style import (
    COLUMN_WIDTH,
    LINE_COLOURS,
    LINE_DASHES,
    STYLE,
    Panels,
    legend_above,
    new_axes,
    own_style,
    whole_locator,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.paths import PrincipalComponents, Projection
    from ..results.similarity import Agreement, Embedding
    from ..results.tracks import Track

INK = "#1a1a1a"
OFF_MAP = "Reds"  # white in the plane, dark far from it
FRAMES = 120  # of an animation, at most
FRAMES_A_SECOND = 20
FILM_DPI = 120
MANY = 80  # points of a path beyond which its dots are small
PATH = ("trajectory", "steps", "dots", "end")  # the names (gid) of what `draw_path` draws
FAR = 10.0  # times the largest eigenvalue: where a threshold makes a linear axis useless
PIECES, SHADES = 32, 8  # of a line from light to dark; of dots in 3-D
_SCREE = 8  # components drawn


def two_axes(
    ax: Any, *, height: float, ratios: tuple[float, float] = (1.0, 1.0),
    figsize: tuple[float, float] | None = None,
) -> Any:  # fmt: skip
    """Two Axes side by side, two columns wide, or the caller's pair."""
    if ax is not None:
        pair = Panels(np.ravel(np.asarray(ax, dtype=object)))
        if len(pair) != 2:
            raise InvalidArgument(f"axes: expected two Axes, got {len(pair)}")
        return pair
    import matplotlib.pyplot as plt

    size = (2 * COLUMN_WIDTH, COLUMN_WIDTH * height) if figsize is None else figsize
    _, pair = plt.subplots(
        1, 2, figsize=size, layout="compressed",
        gridspec_kw={"width_ratios": ratios},
    )  # fmt: skip
    for axes in pair:
        axes.tick_params(labelsize=STYLE["xtick.labelsize"], width=0.6, length=2.5)
    return Panels(pair)


@picture
def plot_components(
    found: PrincipalComponents, axes: Any = None, *, cmap: str = "viridis",
    title: str | None = None, figsize: tuple[float, float] | None = None,
) -> Any:  # fmt: skip
    """The path along the first two components, coloured by step, and the scree.

    The scree has each component's share of the variance beside that of a high-dimensional random
    walk about the same centre: where the bars follow the crosses, the plane says nothing about the
    run. Returns the two Axes.
    """
    if len(found.directions) < 2:
        raise InvalidArgument("components: expected at least 2 to draw, got 1")
    with own_style(axes is None):
        left, right = two_axes(axes, height=0.8, ratios=(1.25, 1.0), figsize=figsize)
        _steps_as_colour(left, found.coordinates[:, :2], found.steps, cmap)
        shares = [f"{100 * r:.1f} %" for r in found.ratios[:2]]
        left.set_xlabel(f"component 1 ({shares[0]} of the variance)")
        left.set_ylabel(f"component 2 ({shares[1]})")
        k = np.arange(1, min(_SCREE, len(found.ratios)) + 1)
        right.bar(k, found.ratios[: len(k)], color=LINE_COLOURS[5], width=0.7, label="this path")
        right.plot(k, found.null[: len(k)], "x", color=INK, markersize=4, label="random walk")
        right.set_yscale("log")
        least = min(found.ratios[: len(k)].min(), found.null[: len(k)].min())
        right.set_ylim(bottom=0.5 * max(least, 1e-12))  # no bar ends at the axis
        right.set_xticks(k)
        right.set_xlabel("component")
        right.set_ylabel("share of the variance")
        right.legend(frameon=False)
        if title is not None:
            left.set_title(title)
    return Panels((left, right))


@picture
def plot_projection(
    found: Projection, axes: Any = None, *, title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Any:  # fmt: skip
    """The path in its plane, dots coloured by their distance off it, and that distance by step.

    Returns the two Axes.
    """
    with own_style(axes is None):
        left, right = two_axes(axes, height=0.8, ratios=(1.25, 1.0), figsize=figsize)
        draw_path(left, found.coordinates, found.off_share, bar=True)
        left.set_xlabel("step along $d_1$")
        left.set_ylabel("step along $d_2$")
        right.plot(found.steps, found.distances, color=LINE_COLOURS[0], label="from the origin")
        right.plot(
            found.steps, found.off_plane, color=LINE_COLOURS[1], linestyle="--",
            label="off the plane",
        )  # fmt: skip
        whole_ticks(right)
        right.set_xlabel("training step")
        right.set_ylabel("distance in parameter space")
        right.set_ylim(bottom=0.0)
        right.legend(frameon=False)
        if title is not None:
            left.set_title(title)
    return Panels((left, right))


def draw_path(
    ax: Any, points: Any, off: Any = None, *, colour: str = INK, dash: Any = "-",
    steps: Any = None, most: float | None = None, bar: bool = False, z: Any = None,
) -> Any:  # fmt: skip
    """A path with a white rim: hollow start, star at the end.

    Args:
        off: (T,) shares off the plane, which colour the dots from white to red.
        steps: (T,) by which the line goes from light to dark, instead of ``colour``.
        most: the share that is darkest; default the largest of ``off``.
        bar: a colour bar for the shares.
        z: (T,) heights in 3-D.

    Returns the dots, None in 3-D.
    """
    from matplotlib import patheffects

    rim = [patheffects.withStroke(linewidth=2.6, foreground="white")]
    columns = (points[:, 0], points[:, 1]) if z is None else (points[:, 0], points[:, 1], z)
    if off is None or steps is None or len(points) < 2:
        ax.plot(
            *columns, color=colour, linestyle=dash, linewidth=1.1, path_effects=rim, zorder=6,
            gid="trajectory",
        )  # fmt: skip
    else:
        colour = INK
        _shaded_line(ax, columns, steps)
    options: dict[str, Any] = {"c": colour, "s": 2.6}
    if off is not None:
        darkest = float(np.nanmax(off)) if most is None and np.isfinite(off).any() else most or 0.0
        options = {
            "c": off, "cmap": OFF_MAP, "vmin": 0.0, "vmax": max(darkest, 1e-9),
            "s": 9 if len(points) <= MANY else 4,
        }  # fmt: skip
    dots = None
    if z is None:
        dots = ax.scatter(
            *columns, edgecolors=colour, linewidths=0.4, zorder=7, gid="dots", **options
        )
    else:
        _dots_over(ax, columns, colour, options)
    for k, marker, face, size in ((0, "o", "white", 5.0), (-1, "*", colour, 9.0)):
        end = [c[k : k + 1 or None] for c in columns]
        ax.plot(
            *end, linestyle="none", marker=marker, markersize=size, markerfacecolor=face,
            markeredgecolor=colour if k == 0 else "white", markeredgewidth=0.8, zorder=8,
            gid="end",
        )  # fmt: skip
    if bar and off is not None:
        made = ax.figure.colorbar(dots, ax=ax, pad=0.02, fraction=0.05)
        made.set_label("share off the plane", fontsize=STYLE["axes.labelsize"])
        made.ax.tick_params(labelsize=STYLE["ytick.labelsize"], width=0.6, length=2.5)
    return dots


def remove_path(ax: Any) -> None:
    """Takes off the Axes what `draw_path` drew there."""
    for artist in ax.get_children():
        if artist.get_gid() in PATH:
            artist.remove()


def _shaded_line(ax: Any, columns: Any, steps: Any) -> None:
    """From light to dark by the steps, on one white rim. In pieces: 3-D Axes draw lines over
    their surface, collections in it."""
    ax.plot(*columns, color="white", linewidth=2.6, zorder=5.9, gid="trajectory")
    count = len(columns[0])
    span = max(float(steps[-1] - steps[0]), 1.0)
    for piece in np.array_split(np.arange(count - 1), min(PIECES, count - 1)):
        grey = 0.78 * (1.0 - float(steps[piece[-1] + 1] - steps[0]) / span)
        part = slice(piece[0], piece[-1] + 2)
        ax.plot(*(c[part] for c in columns), color=str(grey), linewidth=1.2, zorder=6, gid="steps")


def _dots_over(ax: Any, columns: Any, colour: str, options: dict[str, Any]) -> None:
    """The dots of a path in 3-D, as markers of lines, in a few colours."""
    import matplotlib as mpl

    style: dict[str, Any] = {
        "linestyle": "none", "marker": "o", "markersize": np.sqrt(options["s"]), "zorder": 7,
        "markeredgecolor": colour, "markeredgewidth": 0.4, "gid": "dots",
    }  # fmt: skip
    if "cmap" not in options:
        ax.plot(*columns, markerfacecolor=colour, **style)
        return
    share = np.nan_to_num(np.asarray(options["c"]) / options["vmax"])
    bins = np.clip((share * SHADES).round(), 0, SHADES)
    for each in np.unique(bins):
        chosen = [c[bins == each] for c in columns]
        face = mpl.colormaps.get_cmap(options["cmap"])(each / SHADES)
        ax.plot(*chosen, markerfacecolor=face, **style)


@picture
def plot_embedding(
    found: Embedding, ax: Axes | None = None, *, labels: Any = None,
    names: Sequence[str] | None = None, title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:  # fmt: skip
    """Models as points of the plane, runs as lines of one colour each; returns the Axes.

    Args:
        labels: (P,) numbers or texts to write beside the points, where one has room: the ends of
            runs come first.
        names: of the runs, for the legend.
    """
    runs = np.unique(found.run)
    if labels is not None and len(labels) != len(found.points):
        raise InvalidArgument(f"labels: expected {len(found.points)}, got {len(labels)}")
    if names is not None and len(names) != len(runs):
        raise InvalidArgument(f"names: expected {len(runs)}, got {len(names)}")
    with own_style(ax is None):
        axes: Any = new_axes(height=0.85, figsize=figsize) if ax is None else ax
        handles = []
        for k, run in enumerate(runs):
            points = found.points[found.run == run]
            colour = LINE_COLOURS[k % len(LINE_COLOURS)]
            dash = LINE_DASHES[k // len(LINE_COLOURS) % len(LINE_DASHES)]
            name = f"run {run}" if names is None else names[k]
            handles += axes.plot(*points.T, color=colour, linestyle=dash, linewidth=0.7, label=name)
            axes.plot(*points.T, "o", color=colour, markersize=2.2)
            axes.plot(*points[0], "o", color="white", markeredgecolor=colour, markersize=4)
            axes.plot(*points[-1], "*", color=colour, markersize=7, markeredgecolor="white")
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel(f"MDS axis 1 ({found.distance} distances, strain {found.strain:.2g})")
        axes.set_ylabel("MDS axis 2")
        if 1 < len(runs) <= 12:
            legend_above(axes, handles, columns=min(4, len(runs)))
        if title is not None:
            axes.set_title(title, pad=6 + 11 * (1 < len(runs) <= 12))
        if labels is not None:
            _write_beside(axes, found.points, labels, _ends_first(found.run))
    return axes


def _ends_first(run: Any) -> list[int]:
    """The numbers of all points, those of the runs' ends and starts before the others."""
    of = [np.flatnonzero(run == each) for each in np.unique(run)]
    return list(
        dict.fromkeys(int(i) for k in (-1, 0, ...) for each in of for i in np.ravel(each[k]))
    )


def _write_beside(axes: Any, points: Any, labels: Any, order: Sequence[int]) -> None:
    """Labels beside points, each where it does not lie over one before it."""
    from matplotlib.transforms import Bbox

    texts = [x if isinstance(x, str) else f"{x:.3g}" for x in labels]
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 5}
    made = [axes.annotate(texts[i], points[i], (2, 2), **style) for i in order]
    axes.figure.draw_without_rendering()
    kept: list[Bbox] = []
    for text in made:
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in kept):
            text.remove()
        else:
            kept.append(box)


@picture
def plot_agreement(
    found: Agreement, axes: Any = None, *, names: Sequence[str] | None = None,
    cmap: str = "cividis", title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Any:  # fmt: skip
    """P(j right | i right) and P(j wrong | i wrong) as two tables; returns the two Axes."""
    count = len(found.accuracy)
    shown = [str(i) for i in range(count)] if names is None else list(names)
    if len(shown) != count:
        raise InvalidArgument(f"names: expected {count}, got {len(shown)}")
    with own_style(axes is None):
        pair = two_axes(axes, height=0.95, figsize=figsize)
        for ax, table, word in zip(
            pair, (found.right, found.wrong), ("right", "wrong"), strict=True
        ):
            ax.imshow(table, vmin=0.0, vmax=1.0, cmap=cmap)
            for i in range(count):
                for j in range(count):
                    value = table[i, j]
                    text = "-" if np.isnan(value) else f"{value:.2f}"
                    dark = np.isnan(value) or value > 0.55
                    ax.text(
                        j, i, text, ha="center", va="center", fontsize=min(7, 40 / count),
                        color="black" if dark else "white",
                    )  # fmt: skip
            ax.set_xticks(range(count), shown)
            ax.set_yticks(range(count), shown)
            ax.set_xlabel("model $j$")
            ax.set_ylabel("model $i$")
            ax.set_title(f"P($j$ {word} | $i$ {word})")
        if title is not None:
            pair[0].figure.suptitle(title)
    return pair


@picture
def plot_track(
    found: Track, ax: Axes | None = None, *, title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:  # fmt: skip
    """Top eigenvalues against the training step, with the stability threshold of the rule; on a
    logarithmic axis where that is far above them.

    Returns the Axes.
    """
    with own_style(ax is None):
        axes: Any = new_axes(height=0.75, figsize=figsize) if ax is None else ax
        for k in range(found.values.shape[1]):
            axes.plot(
                found.steps, found.values[:, k], marker="o", markersize=2,
                color=LINE_COLOURS[k % len(LINE_COLOURS)], label=rf"$\lambda_{{{k + 1}}}$",
            )  # fmt: skip
        if found.threshold is not None:
            axes.plot(
                found.steps, found.threshold, color=INK, linestyle="--", linewidth=0.9,
                label=found.rule,
            )  # fmt: skip
            if (found.values > 0).all() and found.threshold.min() > FAR * found.values.max():
                axes.set_yscale("log")  # on a linear axis the eigenvalues would lie on its border
        whole_ticks(axes)
        axes.set_xlabel("training step")
        axes.set_ylabel("eigenvalue" + (" (preconditioned)" if found.preconditioned else ""))
        handles, _ = axes.get_legend_handles_labels()
        legend_above(axes, handles, columns=min(4, len(handles)))
        if title is not None:
            axes.set_title(title, pad=17)
    return axes


def animate(
    points: Any, path: str | Path, axes: Any, off: Any = None, *, steps: Any = None, z: Any = None,
    frames: int = FRAMES, fps: int = FRAMES_A_SECOND,
) -> Path:  # fmt: skip
    """A film of a path that grows over a drawn surface: .gif, or .mp4 where ffmpeg is.

    Args:
        points, off, steps, z: as in `draw_path`.
        frames: at most so many pictures;  fps: in a second.

    Raises:
        InvalidArgument: another suffix, or .mp4 without ffmpeg.
    """
    from matplotlib import animation

    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise InvalidArgument(f"path: expected a name ending in .gif or .mp4, got {target.name!r}")
    if not target.absolute().parent.is_dir():
        raise InvalidArgument(f"path: expected an existing folder, got {target.parent}")
    for name, value in (("frames", frames), ("fps", fps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidArgument(f"{name}: expected an integer >= 1, got {value!r}")
    if suffix == ".mp4" and not animation.writers.is_available("ffmpeg"):
        raise InvalidArgument(
            "path: .mp4 needs the program ffmpeg, which is not installed; write a .gif"
        )
    count = len(points)
    shown = np.unique(np.linspace(1, count, min(frames, count)).astype(int))
    most = None if off is None or not np.isfinite(off).any() else float(np.nanmax(off))

    def grown(last: int) -> list[Any]:
        """The artists of the path up to a point."""
        before = set(axes.get_children())
        off_now, steps_now, z_now = (None if a is None else a[:last] for a in (off, steps, z))
        draw_path(axes, points[:last], off_now, steps=steps_now, most=most, z=z_now)
        new = [a for a in axes.get_children() if a not in before]
        return sorted(new, key=lambda a: a.get_zorder())

    figure = axes.figure
    figure.canvas.draw()
    figure.set_layout_engine("none")  # the frame must not move from picture to picture
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / f"film{suffix}"
        if suffix == ".gif":
            _write_gif(film, axes, [partial(grown, int(last)) for last in shown], fps)
        else:
            writer = animation.FFMpegWriter(fps)
            with writer.saving(figure, str(film), dpi=FILM_DPI):
                for last in shown:
                    new = grown(last)
                    writer.grab_frame()
                    for artist in new:
                        artist.remove()
        write_bytes(target, film.read_bytes())
    return target


def _write_gif(film: Path, axes: Any, made: Sequence[Callable[[], list[Any]]], fps: int) -> None:
    """Pictures of what each of ``made`` draws over the Axes, whose surface is drawn once, and what
    lies over a path (numbers of levels) again."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure = axes.figure
    before, figure.dpi = figure.dpi, FILM_DPI
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    behind = canvas.copy_from_bbox(figure.bbox)
    pictures = []
    for draw in made:
        canvas.restore_region(behind)
        new = draw()
        over: list[Any] = []
        if axes.name != "3d":  # there, depth decides
            lowest = min(a.get_zorder() for a in new)
            over = [a for a in axes.get_children() if a not in new and a.get_zorder() > lowest]
        for artist in sorted([*new, *over], key=lambda a: a.get_zorder()):
            axes.draw_artist(artist)
        for artist in new:
            artist.remove()
        pictures.append(Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB"))
    figure.dpi = before
    pictures[0].save(
        film, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0
    )


def _steps_as_colour(ax: Any, points: Any, steps: Any, cmap: str) -> None:
    ax.plot(*points.T, color="0.7", linewidth=0.7, zorder=1)
    dots = ax.scatter(*points.T, c=steps, s=8, cmap=cmap, zorder=2)
    ax.plot(*points[0], "o", markerfacecolor="none", markeredgecolor=INK, markersize=6)
    ax.plot(*points[-1], "*", color=INK, markersize=8, markeredgecolor="white", zorder=3)
    made = ax.figure.colorbar(dots, ax=ax, pad=0.02, fraction=0.05)
    made.locator = whole_locator()
    made.update_ticks()
    made.set_label("training step", fontsize=STYLE["axes.labelsize"])
    made.ax.tick_params(labelsize=STYLE["ytick.labelsize"], width=0.6, length=2.5)
