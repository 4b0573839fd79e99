"""Loss along a trained curve between two models, beside the straight line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .options import picture
from .style import LINE_COLOURS, LINE_DASHES, legend_above, new_axes, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.mode_connection import ModeConnection


@picture
def plot_connection(
    found: ModeConnection,
    ax: Axes | None = None,
    *,
    log: bool = False,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw L along the curve and along the line over t; returns the Axes."""
    lines = (
        (found.values, found.barrier, "curve", 0),
        (found.line, found.line_barrier, "line", 1),
    )
    return draw_barriers("t", found.t, lines, ax, log=log, title=title, figsize=figsize)


def draw_barriers(
    symbol: str,
    x: Any,
    lines: Sequence[tuple[Any, float, str, int]],
    ax: Axes | None,
    *,
    log: bool,
    title: str | None,
    figsize: tuple[float, float] | None,
) -> Axes:
    """Draw losses over the way x from a (0) to b (1): of each line the values, the barrier, the
    name and the number of its colour."""
    with own_style(ax is None):
        axes: Any = new_axes(height=0.72, figsize=figsize) if ax is None else ax
        for values, barrier, name, colour in lines:
            axes.plot(
                x, values, color=LINE_COLOURS[colour], linestyle=LINE_DASHES[colour],
                label=f"{name}, barrier {barrier:.2g}",
            )  # fmt: skip
        if log:
            axes.set_yscale("log")
        axes.set_xlabel(f"${symbol}$   (0: a,  1: b)")
        axes.set_ylabel("loss")
        axes.margins(x=0.02)
        legend_above(axes, axes.get_legend_handles_labels()[0])
        if title is not None:
            axes.set_title(title, pad=17)
    return axes
