"""Loss on the line between two models before and after their units are put in one order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from .style import LINE_COLOURS, LINE_DASHES, legend_above, new_axes, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.model_alignment import ModelAlignment


def plot_alignment(
    found: ModelAlignment,
    ax: Axes | None = None,
    *,
    log: bool = False,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw L on the lines from a to b and from a to the permuted b; returns the Axes.

    Raises:
        InvalidArgument: a result without lines.
    """
    if found.alpha is None:
        raise InvalidArgument(
            "alignment: expected one with the losses on the lines from a to b, got none: "
            + ("; ".join(found.info.get("notes", [])) or "align(points=0) asked for none")
        )
    lines: tuple[tuple[Any, float, str], ...] = (
        (found.line_before, found.barrier_before, "before"),
        (found.line, found.barrier, "after"),
    )
    with own_style(ax is None):
        axes: Any = new_axes(height=0.72, figsize=figsize) if ax is None else ax
        for k, (values, barrier, name) in enumerate(lines):
            axes.plot(
                found.alpha, values, color=LINE_COLOURS[1 - k], linestyle=LINE_DASHES[1 - k],
                label=f"{name}, barrier {barrier:.2g}",
            )  # fmt: skip
        if log:
            axes.set_yscale("log")
        axes.set_xlabel(r"$\alpha$   (0: a,  1: b)")
        axes.set_ylabel("loss")
        axes.margins(x=0.02)
        legend_above(axes, axes.get_legend_handles_labels()[0])
        if title is not None:
            axes.set_title(title, pad=17)
    return axes
