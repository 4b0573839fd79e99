"""The matrix of barriers between models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidArgument
from .options import picture
from .style import STYLE, new_axes, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.barrier_matrix import Barriers

WORDS = {
    "barrier": "barrier (loss)",
    "functional": "functional distance",
    "disagreement": "label disagreement",
}


@picture
def plot_barriers(
    found: Barriers,
    ax: Axes | None = None,
    *,
    what: str = "barrier",
    labels: Sequence[str] | None = None,
    cmap: str = "cividis",
    vmax: float | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw one of the matrices with its numbers; returns the Axes.

    Args:
        what: "barrier", "functional" or "disagreement".
        labels: P names; default those of the result.
        cmap: a colour map of matplotlib's.
        vmax: end of the colours, for pictures side by side.
        figsize: (width, height) of a figure of its own, in inches.

    Raises:
        InvalidArgument: an unknown matrix, another number of labels.
    """
    if what not in WORDS:
        raise InvalidArgument(f"what: expected one of {', '.join(WORDS)}, got {what!r}")
    table = np.asarray(getattr(found, what))
    names = found.labels if labels is None else list(labels)
    if len(names) != len(table):
        raise InvalidArgument(f"labels: expected {len(table)}, got {len(names)}")
    top = float(np.nanmax(table)) if vmax is None and np.isfinite(table).any() else vmax
    with own_style(ax is None):
        axes: Any = new_axes(height=0.85, figsize=figsize) if ax is None else ax
        image = axes.imshow(table, cmap=cmap, vmin=0.0, vmax=max(top or 0.0, 1e-12))
        size = min(7.0, 60.0 / len(table))
        for (i, j), value in np.ndenumerate(table):
            text = "-" if np.isnan(value) else f"{value:.2g}"
            dark = np.isnan(value) or image.norm(value) > 0.55
            axes.text(
                j, i, text, ha="center", va="center", fontsize=size,
                color="black" if dark else "white",
            )  # fmt: skip
        turned: dict[str, Any] = {}
        if max(map(len, names)) > 3:
            turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names)), names, **turned)
        axes.set_yticks(range(len(names)), names)
        bar = axes.figure.colorbar(image, ax=axes, pad=0.03, fraction=0.05)
        bar.set_label(WORDS[what], fontsize=STYLE["axes.labelsize"])
        bar.ax.tick_params(labelsize=STYLE["ytick.labelsize"], width=0.6, length=2.5)
        if title is not None:
            axes.set_title(title)
    return axes
