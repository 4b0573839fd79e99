"""Loss to both sides of a point, along several directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .options import picture
from .style import LINE_COLOURS, legend_above, new_axes, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.asymmetry_profiles import Asymmetry


@picture
def plot_asymmetry(
    found: Asymmetry,
    ax: Axes | None = None,
    *,
    log: bool = False,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw phi along every direction, the test losses dashed; returns the Axes.

    The axis is s where all lines are equally long, else s / r.
    """
    alike = bool(np.ptp(found.r) <= 1e-9 * found.r.max())
    places = found.s if alike else np.broadcast_to(found.share, found.values.shape)
    with own_style(ax is None):
        axes: Any = new_axes(height=0.75, figsize=figsize) if ax is None else ax
        axes.axvline(0.0, color="0.75", linewidth=0.6, zorder=0)
        for k, name in enumerate(found.labels):
            colour = LINE_COLOURS[k % len(LINE_COLOURS)]
            label = f"{name}, $c^*$ = {found.ratio[k]:.2g}"
            axes.plot(places[k], found.values[k], color=colour, label=label)
            if found.test is not None:
                axes.plot(places[k], found.test[k], color=colour, linestyle="--", linewidth=1.0)
        for name, (k, s) in found.marks.items():
            at = s if alike else s / found.r[k]
            height = np.interp(at, places[k], found.values[k])
            colour = LINE_COLOURS[k % len(LINE_COLOURS)]
            axes.plot([at], [height], "o", color=colour, markersize=4)
            axes.annotate(
                name, (at, height), xytext=(0, 5), textcoords="offset points", ha="center",
                fontsize=6,
            )  # fmt: skip
        if log:
            axes.set_yscale("log")
        axes.set_xlabel(r"$s$ (distance in parameter space)" if alike else r"$s\,/\,r$")
        axes.set_ylabel("loss" if found.test is None else "loss (test: dashed)")
        axes.margins(x=0.02)
        handles = axes.get_legend_handles_labels()[0]
        legend_above(axes, handles)
        if title is not None:
            axes.set_title(title, pad=6 + 11 * ((len(handles) + 1) // 2))
    return axes
