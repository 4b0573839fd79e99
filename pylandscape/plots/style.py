"""What every picture shares: size, fonts, colours, axis labels, hatches, saving.

matplotlib is imported when a picture is asked for, not with the package.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMN_WIDTH = 3.35  # inches: one column of a two-column paper
# Of a 3-D Axes in its figure: its labels lie outside the box that a layout knows.
SOLID_POSITION = (0.0, 0.05, 0.92, 1.02)
STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "hatch.linewidth": 0.5,
    "grid.linewidth": 0.4,
    "grid.color": "0.85",
    "figure.dpi": 150,
}
SAVE: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}
# Okabe and Ito's colours, told apart by colour-blind readers; dashes by those of a grey print.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SMALLEST = 5.5  # points, of a label that has to fit
LINE_DASHES = ("-", "--", "-.", ":")
NONFINITE_FACE = "#d9d9d9"
NONFINITE_EDGE = "#7f7f7f"
HATCH = "//////"

UNITS = {
    "filter": "units: filter norm",
    "layer": "units: norm of each tensor",
    "model": r"units: $\Vert\theta\Vert$",
    "weight": "units: weight",
    "dfilter": "units: unit-norm filters",
    "dlayer": "units: unit-norm tensors",
}
CONVEXITY_LABELS = {
    "lambda_min": r"$\lambda_{\min}$",
    "lambda_max": r"$\lambda_{\max}$",
    "ratio": r"$|\lambda_{\min} / \lambda_{\max}|$",
}


class Panels(tuple[Any, ...]):
    """The Axes of one picture, in order: it unpacks, and has a `figure` as one Axes has."""

    @property
    def figure(self) -> Any:
        return self[0].figure


@contextmanager
def own_style(own: bool) -> Iterator[None]:
    """The package's style for its own figures, which do not stay open where drawing fails; a
    caller's Axes keep the caller's."""
    if not own:
        yield
        return
    import matplotlib
    import matplotlib.pyplot as plt

    before = set(plt.get_fignums())
    with matplotlib.rc_context(STYLE):
        try:
            yield
        except BaseException:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
            raise


def new_axes(
    *, projection: str | None = None, height: float = 0.8,
    figsize: tuple[float, float] | None = None,
) -> Axes:  # fmt: skip
    """Axes of a fresh figure: column-wide, `height` as a share of the width, or of `figsize`."""
    import matplotlib.pyplot as plt

    # "compressed" gives colour bars the height of axes of a fixed aspect; it does not know 3-D.
    layout = "compressed" if projection is None else None
    size = (COLUMN_WIDTH, COLUMN_WIDTH * height) if figsize is None else figsize
    figure = plt.figure(figsize=size, layout=layout)
    axes = figure.add_subplot(projection=projection)
    if projection is None:
        layout_engine: Any = figure.get_layout_engine()
        layout_engine.set(w_pad=0.03, h_pad=0.03)
    else:
        axes.set_position(SOLID_POSITION)
    # Ticks are made late, after the style has gone: keep it on the axes.
    axes.tick_params(labelsize=STYLE["xtick.labelsize"], width=0.6, length=2.5)
    axes.locator_params(nbins=5)
    return axes


def whole_locator() -> Any:
    """Ticks at whole numbers alone, of steps and counts."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, integer=True, min_n_ticks=1)


def whole_ticks(axes: Any) -> None:
    """An x axis of steps: there is none between two."""
    axes.xaxis.set_major_locator(whole_locator())


def check_figsize(figsize: Any) -> tuple[float, float]:
    """Two positive numbers, inches, or InvalidArgument."""
    try:
        width, height = (float(v) for v in figsize)
    except (TypeError, ValueError):
        width = height = 0.0
    if not (0.0 < width < np.inf and 0.0 < height < np.inf):
        raise InvalidArgument(f"figsize: expected (width, height) in inches, got {figsize!r}")
    return width, height


def save(axes: Axes, path: str | Path, *, dpi: int = 300) -> Path:
    """Write the figure of `axes`: PNG at `dpi`, PDF, PS and SVG with text as text (fonttype 42).

    Raises:
        InvalidArgument: a suffix that matplotlib cannot write.
    """
    import matplotlib

    target = Path(path)
    check_suffix(target)
    with matplotlib.rc_context(SAVE):
        axes.figure.savefig(target, dpi=dpi)  # type: ignore[union-attr]
    return target


def check_suffix(path: str | Path) -> None:
    """Raise InvalidArgument for a file name that `save` cannot write."""
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix.lstrip(".").lower() not in formats:
        raise InvalidArgument(
            f"path: expected a picture suffix (.{', .'.join(sorted(formats))}), "
            f"got {Path(path).name!r}"
        )


def direction_infos(info: dict[str, Any]) -> list[dict[str, Any]]:
    """The provenance of the axes' directions, [] where a file does not have it."""
    request = info.get("request") or {}
    found = request.get("directions") or info.get("directions") or []
    return [d if isinstance(d, dict) else {} for d in found]


def step_label(info: dict[str, Any], axis: int) -> str:
    """'step along d_1 (units: filter norm)' and its kin, from the provenance of the result."""
    infos = direction_infos(info)
    direction = infos[axis] if axis < len(infos) else {}
    name = f"$d_{axis + 1}$"
    unit = UNITS.get(str(direction.get("normalize")))
    if unit is None and direction.get("kind") == "target":
        unit = f"1: target {axis + 1}" if len(infos) > 1 else "1: target"
    if unit is None:
        norms = info.get("direction_norms") or []
        if axis < len(norms) and norms[axis] is not None:
            unit = rf"absolute, $\Vert d_{axis + 1}\Vert$ = {norms[axis]:.3g}"
    return f"step along {name} ({unit})" if unit else f"step along {name}"


def metric_label(metric: str, beside: Collection[str] = ()) -> str:
    """The words for a metric; symbols for those of a convexity map, known by what is beside it."""
    words = metric.replace("_", " ")
    return CONVEXITY_LABELS.get(metric, words) if "lambda_max" in beside else words


def mark_cells(axes: Axes, cells: NDArray[np.float64], text: str) -> None:
    """Hatch polygons (m, corners, 2) of non-finite values; `text` is the patch's legend label."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    closed = np.concatenate([cells, cells[:, :1]], axis=1)
    one = [Outline.MOVETO] + [Outline.LINETO] * (cells.shape[1] - 1) + [Outline.CLOSEPOLY]
    outline = Outline(closed.reshape(-1, 2), one * len(cells))
    patch = PathPatch(outline, label=text, gid="nonfinite", antialiased=False, **_mark_style())
    axes.add_patch(patch)


def nonfinite_handle(text: str) -> Any:
    """The legend's patch for non-finite values."""
    from matplotlib.patches import Patch

    return Patch(label=text, **{**_mark_style(), "linewidth": 0.4})


def words_handle(text: str) -> Any:
    """The legend's entry for words alone."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", label=text)


def nonfinite_text(values: NDArray[np.float64]) -> str:
    count = int((~np.isfinite(values)).sum())
    return f"not finite ({count} of {values.size} points)"


def legend_above(axes: Axes, handles: list[Any], columns: int = 2) -> None:
    """A frameless legend above the axes, where it hides no data."""
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2,
        borderpad=0.2,
        frameon=False,
        handlelength=1.6,
        ncols=columns,
        columnspacing=1.0,
    )


def legend_on_top(axes: Any, handles: list[Any]) -> None:
    """A frameless legend along the top of a figure of our own, above titles."""
    loose = axes.name == "3d"  # no layout gives it room
    axes.figure.legend(
        handles=handles, loc="upper left" if loose else "outside upper left", frameon=False,
        handlelength=1.6, ncols=1, borderaxespad=0.2, borderpad=0.2, labelspacing=0.3,
    )  # fmt: skip


def keep_inside(axes: Any, title: str | None = None, *, fixed: bool = False) -> None:
    """Bring every label of a figure of our own inside it: a layout knows the room that labels
    take beside the axes, but not that they can be longer than the axes.

    Long labels are broken before their units, then set smaller, down to 5.5 points; at last the
    figure grows, unless its size is `fixed`. The box of a 3-D picture is made smaller and moved,
    below its title.
    """
    hidden = [a for a in axes.collections if a.get_visible()]
    for artist in hidden:  # what is slow to draw has no words
        artist.set_visible(False)
    try:
        if title is not None:
            _title_on_top(axes, title)
        for remedy in (_broken, _smaller, _smaller, *([] if fixed else [_taller])):
            over = _labels_outside(axes)
            for label, share in over:
                remedy(label, share)
            if not over:
                break
        if axes.name == "3d":
            _fit_solid(axes)
    finally:
        for artist in hidden:
            artist.set_visible(True)


def _labels_outside(axes: Any) -> list[tuple[Any, float]]:
    """The labels that leave the figure along their text, and their length over the room for it."""
    figure = axes.figure
    for _ in range(2):  # a layout of a fixed aspect settles at the second
        figure.draw_without_rendering()
    width, height = figure.bbox.size
    below = min([height, *(legend.get_window_extent().y0 for legend in figure.legends)])
    solid = axes.name == "3d"
    every = [a for a in figure.axes if a is not axes] if solid else figure.axes  # colour bars too
    labels = [axis.label for each in every for axis in (each.xaxis, each.yaxis)]
    labels += [axes.title] if solid else [axes.title, axes._left_title]
    labels += [text for legend in figure.legends for text in legend.get_texts()]
    found = []
    for label in labels:
        box = label.get_window_extent()
        if not label.get_text():
            continue
        upright = label.get_rotation() == 90
        low, high, length = (box.y0, box.y1, below) if upright else (box.x0, box.x1, width)
        if low < -1 or high > length + 1:
            room = min(high, length) - max(low, 0.0)
            if label.get_horizontalalignment() == "center":
                room = 2 * min((low + high) / 2, length - (low + high) / 2)
            found.append((label, (high - low) / max(room, 1.0)))
    return found


def _broken(label: Any, over: float) -> None:
    if "\n" not in label.get_text():
        label.set_text(label.get_text().replace(" (", "\n(", 1))


def _smaller(label: Any, over: float) -> None:
    label.set_fontsize(max(SMALLEST, label.get_fontsize() / (1.03 * over)))


def _taller(label: Any, over: float) -> None:
    grown = np.array(label.figure.get_size_inches())
    grown[1 if label.get_rotation() == 90 else 0] *= 1.03 * over
    label.figure.set_size_inches(*grown)


def _title_on_top(axes: Any, title: str) -> None:
    """The title of a 3-D picture along the top of the figure, below a legend."""
    figure = axes.figure
    figure.draw_without_rendering()
    top = min([1.0, *(legend.get_window_extent().y0 / figure.bbox.height for legend in
                      figure.legends)])  # fmt: skip
    axes.set_title(title)
    axes.title.set_transform(figure.transFigure)
    axes.title.set_verticalalignment("top")
    axes._autotitlepos = False
    axes.title.set_position((0.5, top - 0.01))


def _fit_solid(axes: Any) -> None:
    """Shrink and move a 3-D Axes until all that it draws is in the figure, below title and
    legend."""
    figure = axes.figure
    figure.draw_without_rendering()
    size = figure.bbox.size
    above = [legend.get_window_extent().y0 for legend in figure.legends]
    above += [axes.title.get_window_extent().y0] if axes.title.get_text() else []
    pad = 0.01
    top = min([1.0, *(y / size[1] for y in above)]) - pad
    bars = [a.get_tightbbox().x0 / size[0] for a in figure.axes if a is not axes]
    right = min([1.0, *bars]) - pad
    axes.title.set_visible(False)  # it stays where it is
    try:
        for _ in range(4):
            figure.draw_without_rendering()
            box = axes.get_tightbbox(figure.canvas.get_renderer())
            low, high = (np.array(corner) / size for corner in (box.min, box.max))
            if (low >= 0).all() and high[0] <= right + pad and high[1] <= top + pad:
                break
            x0, y0, w, h = axes.get_position().bounds
            room = np.array([right - pad, top - pad])
            share = min(1.0, *(room / (high - low)))
            corner = np.array([x0, y0])
            low, high = corner + (low - corner) * share, corner + (high - corner) * share
            corner += (low < pad) * (pad - low)
            limit = np.array([right, top])
            corner -= (high > limit) * (high - limit)
            axes.set_position((*corner, w * share, h * share))
    finally:
        axes.title.set_visible(True)


def _mark_style() -> dict[str, Any]:
    return {
        "facecolor": NONFINITE_FACE,
        "edgecolor": NONFINITE_EDGE,
        "hatch": HATCH,
        "linewidth": 0.0,
    }


def close(axes: Axes) -> None:
    """Forget the figure of `axes`: pyplot keeps every figure until it is closed."""
    import matplotlib.pyplot as plt

    plt.close(axes.figure)  # type: ignore[arg-type]
