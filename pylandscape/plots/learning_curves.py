"""Learning curves of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidArgument
from .options import picture
from .paths import INK
from .style import LINE_COLOURS, legend_above, new_axes, own_style, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADE = 10.0  # between the values of a logarithmic axis
NAMED = 8  # runs that have a line in the legend each


@picture
def plot_runs(
    runs: Any,
    ax: Axes | None = None,
    *,
    metric: str | None = None,
    labels: Sequence[str] | None = None,
    log: bool | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """A metric of each run against the step; returns the Axes.

    Args:
        runs: a `Runs`.
        metric: one of its ``metrics``; default the loss over the data, else of mini-batches.
        labels: P names; default their numbers.
        log: a logarithmic axis; default where a run explodes (`Runs.exploded`) and the values span
            a decade.
        figsize: (width, height) of a figure of its own, in inches.

    A run that is not finite from a point on ends there with a cross.

    Raises:
        InvalidArgument: an unknown metric, another number of labels.
    """
    name = metric or ("loss" if "loss" in runs.metrics else "batch_loss")
    if name not in runs.metrics:
        raise InvalidArgument(f"metric: expected one of {', '.join(runs.metrics)}, got {name!r}")
    values = runs.metrics[name]
    if labels is not None and len(labels) != len(values):
        raise InvalidArgument(f"labels: expected {len(values)}, got {len(labels)}")
    many = len(values) > NAMED and labels is None
    if log is None:
        finite = values[np.isfinite(values)]
        log = bool(runs.exploded and finite.size and finite.max() > DECADE * finite.min() > 0.0)
    marked = min(runs.diverged, default=-1)
    with own_style(ax is None):
        axes: Any = new_axes(height=0.75, figsize=figsize) if ax is None else ax
        for p, row in enumerate(values):
            good = np.isfinite(row)
            colour = LINE_COLOURS[0] if many else LINE_COLOURS[p % len(LINE_COLOURS)]
            axes.plot(
                runs.steps[good], row[good], color=colour, linewidth=0.6 if many else 1.0,
                alpha=0.35 if many else 1.0, label=_name(p, labels, many, len(values)),
            )  # fmt: skip
            if good.any() and not good[-1]:
                last = np.flatnonzero(good)[-1]
                axes.plot(
                    runs.steps[last], row[last], "x", color=colour, markersize=5,
                    label="last finite loss" if p == marked else "_",
                )  # fmt: skip
        if many:
            there = np.isfinite(values).any(axis=0)  # some run has not diverged
            shown = np.where(np.isfinite(values), values, np.nan)[:, there]
            axes.plot(
                runs.steps[there],
                np.nanmedian(shown, axis=0),
                color=INK,
                linewidth=1.2,
                label="median",
            )
        if log:
            axes.set_yscale("log")
        whole_ticks(axes)
        axes.set_xlabel("training step")
        axes.set_ylabel(
            {"batch_loss": "loss of mini-batches", "lr": "learning rate"}.get(name, name)
        )
        handles, _ = axes.get_legend_handles_labels()
        handles.sort(key=lambda handle: handle.get_linestyle() == "None")  # runs, then the cross
        if len(handles) > 1:
            legend_above(axes, handles, columns=min(4, len(handles)))
        if title is not None:
            axes.set_title(title, pad=17)
    return axes


def _name(p: int, labels: Sequence[str] | None, many: bool, count: int) -> str:
    if labels is not None:
        return labels[p]
    if many:
        return f"{count} runs" if p == 0 else "_"
    return f"run {p}"
