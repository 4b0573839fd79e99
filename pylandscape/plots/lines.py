"""Line plots: one or several curves, accuracy on a second axis, non-finite runs hatched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import edges
from ..errors import InvalidArgument
from ..theta.sampling import STANDARD
from .options import picture
from .scale import Array, Scale
from .style import (
    HATCH,
    LINE_COLOURS,
    LINE_DASHES,
    NONFINITE_EDGE,
    NONFINITE_FACE,
    legend_above,
    metric_label,
    new_axes,
    own_style,
    step_label,
)
from .view import view_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.curve import Curve
    from ..results.surface import Surface

SECOND_COLOUR = "#D55E00"
MARKER_LIMIT = 15  # so few points are marked one by one


@dataclass(frozen=True)
class Slice:
    """One line of a surface: what `plot_lines` needs of a Curve."""

    x: Array
    metrics: dict[str, Array]
    info: dict[str, Any] = field(default_factory=dict)
    kind: str = "line"


def slices(surface: Surface) -> tuple[list[Any], dict[str, Any]]:
    """The lines through the grid point nearest to the origin, one for each axis with two points.

    Returns the lines and the options of `plot_lines` that describe them.
    """
    view = view_of(surface)
    short = [t.split(" (")[0].removeprefix("step along ") for t in (view.xlabel, view.ylabel)]
    if surface.kind == "barycentric":
        short = [r"$\alpha$", r"$\beta$"]
    i, j = int(np.argmin(np.abs(surface.x))), int(np.argmin(np.abs(surface.y)))
    found: list[Any] = []
    labels = []
    if len(surface.x) > 1:
        found.append(Slice(surface.x, {m: v[:, j] for m, v in surface.metrics.items()}))
        labels.append(f"along {short[0]} ({short[1]} = {surface.y[j]:.3g})")
    if len(surface.y) > 1 or not found:
        found.append(Slice(surface.y, {m: v[i, :] for m, v in surface.metrics.items()}))
        labels.append(f"along {short[1]} ({short[0]} = {surface.x[i]:.3g})")
    units = {t.partition(" (")[2].rstrip(")") for t in (view.xlabel, view.ylabel)}
    unit = units.pop() if len(units) == 1 and surface.kind == "plane" else ""
    return found, {
        "labels": labels,
        "xlabel": f"step ({unit})" if unit else "step",
        "second": None,
    }


@picture
def plot_lines(
    curves: Sequence[Curve],
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
    metric: str = "loss",
    second: str | None = "accuracy",
    log: bool = False,
    offset: float | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    distance: bool = False,
    band: bool | float = False,
    xlabel: str | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw curves over a shared axis.

    Args:
        labels: one text per curve, for the legend.
        metric: drawn on the left axis.
        second: drawn on a right axis (dashed) if every curve has it; None for none. The right Axes
            is the last of `ax.figure.axes`.
        log: logarithmic left axis, of value + offset.
        offset: default 0 if all finite values are positive, otherwise -min + 1e-3 (median - min).
        vmin, vmax: limits of the left axis, in the metric's units.
        distance: x is `curve.distance`, the absolute distance of an interpolation.
        band: shade 2 standard errors from the data to both sides of each curve, or that many; the
            curves must have the metric "standard_error".
        xlabel, title: texts, instead of the default and of none.
        figsize: (width, height) of a figure of its own, in inches.

    Returns:
        The left Axes.

    Raises:
        InvalidArgument: no curve, an unknown metric, labels of another length.
    """
    curves = list(curves)
    if not curves:
        raise InvalidArgument("curves: expected at least one, got none")
    if labels is not None and len(labels) != len(curves):
        raise InvalidArgument(f"labels: expected {len(curves)}, got {len(labels)}")
    for curve in curves:
        if metric not in curve.metrics:
            raise InvalidArgument(
                f"metric: expected one of {sorted(curve.metrics)}, got {metric!r}"
            )
    values = [np.asarray(c.metrics[metric], dtype=np.float64) for c in curves]
    scale = Scale.of(
        np.concatenate(values), log=log, offset=offset, vmin=vmin, vmax=vmax, robust=False
    )
    count = band_width(band, [c.metrics for c in curves], metric)
    xs = [np.asarray(c.distance if distance else c.x, dtype=np.float64) for c in curves]
    own = ax is None
    with own_style(own):
        axes = new_axes(height=0.72, figsize=figsize) if ax is None else ax
        handles: list[Any] = []
        for k, (x, v) in enumerate(zip(xs, values, strict=True)):
            shown = np.where(np.isfinite(v), v + scale.offset, np.nan)
            (line,) = axes.plot(x, shown, **_style(k, x.size))
            if labels is not None:
                line.set_label(labels[k])
                handles.append(line)
            if count:
                noise = count * np.asarray(curves[k].metrics[STANDARD], dtype=np.float64)
                shade = axes.fill_between(
                    x, shown - noise, shown + noise, color=line.get_color(), alpha=0.25,
                    linewidth=0, gid="band", label=band_text(count),
                )  # fmt: skip
                if k == 0:
                    shades = [shade]
        if count:
            handles += shades
        if log:
            axes.set_yscale("log")
        if vmin is not None:
            axes.set_ylim(bottom=vmin + scale.offset)
        if vmax is not None:
            axes.set_ylim(top=vmax + scale.offset)
        name = metric_label(metric)
        axes.set_ylabel(f"{name} + {scale.offset:.2g}" if scale.offset else name)
        axes.set_xlabel(xlabel if xlabel is not None else _xlabel(curves[0], distance))
        axes.margins(x=0.02)
        handles += _mark_nonfinite(axes, xs, values)
        if second is not None and second != metric and all(second in c.metrics for c in curves):
            _second_axis(axes, xs, curves, second)
        if handles:
            legend_above(axes, handles)
        if title is not None:
            axes.set_title(title, pad=(16 if len(handles) < 3 else 28) if handles else 6)
    return axes


def band_width(band: bool | float, metrics: Sequence[dict[str, Array]], metric: str) -> float:
    """How many standard errors a band is to each side; 0 for none.

    Raises:
        InvalidArgument: what is no such number, another metric than the loss, no standard errors.
    """
    if band is False or band is None:
        return 0.0
    count = 2.0 if band is True else band
    if not isinstance(count, int | float) or not (np.isfinite(count) and count > 0):
        raise InvalidArgument(f"band: expected True or a positive number, got {band!r}")
    if metric != "loss":
        raise InvalidArgument(f"band: expected with metric 'loss', got {metric!r}")
    if not all(STANDARD in each for each in metrics):
        raise InvalidArgument(
            f"band: expected {STANDARD!r} among the metrics; compute it with "
            f"metrics=({STANDARD!r},)"
        )
    return float(count)


def band_text(count: float) -> str:
    return f"$\\pm${count:g} standard errors"


def _style(k: int, points: int) -> dict[str, Any]:
    style: dict[str, Any] = {
        "color": LINE_COLOURS[k % len(LINE_COLOURS)],
        "linestyle": LINE_DASHES[k // len(LINE_COLOURS) % len(LINE_DASHES)],
    }
    if points <= MARKER_LIMIT:
        style |= {"marker": "o", "markersize": 3}
    return style


def _xlabel(curve: Any, distance: bool) -> str:
    if distance:
        return r"distance from $\theta_1$ in parameter space"
    if curve.kind == "interpolation":
        return r"$\alpha$   (0: $\theta_0$,  1: $\theta_1$)"
    return step_label(curve.info or {}, 0)


def _second_axis(axes: Axes, xs: list[Array], curves: Sequence[Any], second: str) -> None:
    right = axes.twinx()
    right.tick_params(labelsize=axes.yaxis.get_ticklabels()[0].get_fontsize())
    single = len(curves) == 1
    for k, (x, curve) in enumerate(zip(xs, curves, strict=True)):
        style = _style(k, x.size) | {"linestyle": "--", "linewidth": 1.0}
        if single:
            style["color"] = SECOND_COLOUR
        right.plot(x, np.asarray(curve.metrics[second], dtype=np.float64), **style)
    right.set_ylabel(metric_label(second) + ("" if single else " (dashed)"))
    if second == "accuracy":
        right.set_ylim(-0.02, 1.02)
    if single:  # each axis in the colour of its line
        for one, colour in ((axes, LINE_COLOURS[0]), (right, SECOND_COLOUR)):
            one.yaxis.label.set_color(colour)
            one.tick_params(axis="y", colors=colour)


def _mark_nonfinite(axes: Axes, xs: list[Array], values: list[Array]) -> list[Any]:
    """Hatch the x-ranges where any curve is not finite; the legend entry counts the points."""
    handles: list[Any] = []
    count = sum(int((~np.isfinite(v)).sum()) for v in values)
    total = sum(v.size for v in values)
    for x, v in zip(xs, values, strict=True):
        order = np.argsort(x)
        bad = ~np.isfinite(v[order])
        border = edges(x[order])
        starts = np.flatnonzero(bad & ~np.r_[False, bad[:-1]])
        ends = np.flatnonzero(bad & ~np.r_[bad[1:], False])
        for a, b in zip(starts, ends, strict=True):
            span = axes.axvspan(
                border[a], border[b + 1], facecolor=NONFINITE_FACE, edgecolor=NONFINITE_EDGE,
                hatch=HATCH, linewidth=0, zorder=0, gid="nonfinite",
                label=f"not finite ({count} of {total} points)",
            )  # fmt: skip
            if not handles:
                handles.append(span)
    return handles
