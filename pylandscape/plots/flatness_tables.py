"""Flatness measures of one model or of several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidArgument
from .options import picture
from .style import LINE_COLOURS, legend_above, new_axes, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.flatness_table import Flatness, FlatnessRow

ROW = 0.062  # of the figure's width, for each row of the picture
WHITE = "white"


@picture
def plot_flatness(
    found: Flatness,
    ax: Axes | None = None,
    *,
    beside: Sequence[Flatness] = (),
    labels: Sequence[str] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw the values with their standard errors, one row each, on a logarithmic axis.

    sigma is of each weight's noise (average case), rho of the whole step (worst case); for element
    and filter in units of the weight and of the filter's norm.

    A triangle is a lower bound, a hollow mark stands for minus its value, and what is exactly 0 or
    not known is written at the left.

    Args:
        beside: tables of other models; a measure that one of them lacks has no mark there.
        labels: a name for each table; default their numbers.

    Raises:
        InvalidArgument: another number of labels.
    """
    tables = [found, *beside]
    names = [str(k) for k in range(len(tables))] if labels is None else list(labels)
    if len(names) != len(tables):
        raise InvalidArgument(f"labels: expected {len(tables)}, got {len(names)}")
    keys = list(dict.fromkeys((r.name, r.rho) for table in tables for r in table))
    with own_style(ax is None):
        height = 0.22 + ROW * len(keys) * max(1.0, 0.6 * len(tables))
        axes: Any = new_axes(height=height, figsize=figsize) if ax is None else ax
        axes.set_xscale("log")
        drawn = False
        for k, table in enumerate(tables):
            rows = {(r.name, r.rho): r for r in table}
            for i, key in enumerate(keys):
                if key in rows:
                    at = i + 0.6 * ((k + 0.5) / len(tables) - 0.5)
                    drawn |= _mark(axes, rows[key], at, LINE_COLOURS[k % len(LINE_COLOURS)])
        if not drawn:  # zeros alone: any decade will do
            axes.set_xlim(0.1, 10.0)
        axes.set_yticks(range(len(keys)), [_name(*key) for key in keys])
        axes.set_ylim(len(keys) - 0.5, -0.5)
        axes.set_xlabel("value")
        axes.grid(axis="x", which="major")
        axes.set_axisbelow(True)
        if len(tables) > 1:
            legend_above(axes, _legend(names), columns=min(4, len(names)))
        if title is not None:
            axes.set_title(title, pad=17 if len(tables) > 1 else 6)
    return axes


def _mark(axes: Any, row: FlatnessRow, at: float, colour: str) -> bool:
    """Draw one value; whether it has a place on the axis."""
    size = abs(row.value)
    if not (np.isfinite(size) and size > 0):
        text = "0" if size == 0 else f"{row.value:g}"
        axes.annotate(
            text, (0.0, at), xycoords=("axes fraction", "data"), xytext=(3, 0), color=colour,
            textcoords="offset points", va="center", fontsize=6,
        )  # fmt: skip
        return False
    error = row.standard_error if row.standard_error > 0 else 0.0
    reach = [[min(error, 0.9 * size)], [error]]  # a logarithmic axis has no 0
    axes.errorbar(
        [size], [at], xerr=reach if error else None, fmt=">" if row.bound else "o", color=colour,
        markersize=4, markerfacecolor=colour if row.value > 0 else WHITE, markeredgewidth=0.8,
        elinewidth=0.8, capsize=1.5,
    )  # fmt: skip
    return True


def _legend(names: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], marker="o", linestyle="", markersize=4, label=name,
               color=LINE_COLOURS[k % len(LINE_COLOURS)])
        for k, name in enumerate(names)
    ]  # fmt: skip


def _name(name: str, rho: float | None) -> str:
    words = name.replace("_", " ").replace("worst", "worst case").replace("average", "average case")
    if rho is None:
        return words
    what = r"$\sigma$" if name.startswith("average") else r"$\rho$"
    return f"{words}, {what} = {rho:g}"
