"""Pictures of patterns: what was asked for beside the loss that came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidArgument
from .options import picture
from .style import COLUMN_WIDTH, STYLE, own_style

if TYPE_CHECKING:
    from ..results.patterns import ConstructedPattern, Pattern


@picture
def plot_pattern(
    found: Pattern,
    axes: Any = None,
    *,
    metric: str | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Any:
    """The mask, and the loss or accuracy in its cells, on the data and held out.

    Args:
        axes: as many as there are panels (2, or 3 with held-out data; for a mask in three
            dimensions that many rows, one for each slice along its last axis).
        metric: "loss" or "accuracy"; default the accuracy where there is one.

    Returns the Axes, (panels,) or (slices, panels).
    """
    chosen = metric or ("loss" if found.accuracy is None else "accuracy")
    if chosen not in ("loss", "accuracy") or (chosen == "accuracy" and found.accuracy is None):
        raise InvalidArgument(f"metric: expected loss, or accuracy if there is one, got {metric!r}")
    own = found.losses if chosen == "loss" else found.accuracy
    held = found.held_losses if chosen == "loss" else found.held_accuracy
    panels = {"mask": found.mask, f"{chosen}, data": own}
    if held is not None:
        panels[f"{chosen}, held out"] = held
    values = [np.asarray(panel) for name, panel in panels.items() if name != "mask"]
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    if chosen == "accuracy":
        low, high = 0.0, 1.0
    return _rows(
        panels,
        axes,
        low,
        high,
        "cividis" if chosen == "accuracy" else "viridis",
        title,
        figsize=figsize,
    )


@picture
def plot_constructed(
    found: ConstructedPattern,
    axes: Any = None,
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Any:
    """The heights asked for, the loss there, and the loss on held-out data; of three dimensions the
    middle slice. Returns the Axes."""
    panels = {"asked for": found.target, "loss, data": found.values}
    if found.held is not None:
        panels["loss, held out"] = found.held
    if found.target.ndim == 3:
        middle = found.target.shape[2] // 2
        panels = {name: panel[:, :, middle] for name, panel in panels.items()}
    low = min(panel.min() for panel in panels.values())
    high = max(panel.max() for panel in panels.values())
    return _rows(panels, axes, low, high, "viridis", title, figsize=figsize)


def _rows(
    panels: dict[str, Any], given: Any, low: float, high: float, cmap: str, title: str | None,
    figsize: tuple[float, float] | None = None,
) -> Any:  # fmt: skip
    first = next(iter(panels.values()))
    slices = [None] if first.ndim == 2 else list(range(first.shape[2]))
    with own_style(given is None):
        grid = _axes(given, len(slices), len(panels), figsize)
        image = None
        for row, k in zip(grid, slices, strict=True):
            for axes, (name, values) in zip(row, panels.items(), strict=True):
                shown = np.asarray(values if k is None else values[:, :, k]).T
                if name == "mask":
                    axes.imshow(shown, cmap="Greys_r", vmin=-0.4, vmax=1.2, origin="lower")
                else:
                    image = axes.imshow(shown, cmap=cmap, vmin=low, vmax=high, origin="lower")
                axes.set_xticks([])
                axes.set_yticks([])
                if k is None or k == 0:
                    axes.set_title(name)
            if k is not None:
                row[0].set_ylabel(f"slice {k + 1}", fontsize=STYLE["axes.labelsize"])
        if image is not None:
            bar = grid[0, 0].figure.colorbar(image, ax=list(grid.ravel()), fraction=0.04, pad=0.02)
            bar.ax.tick_params(labelsize=STYLE["ytick.labelsize"], width=0.6, length=2.5)
        if title is not None:
            grid[0, 0].figure.suptitle(title, fontsize=STYLE["axes.titlesize"])
    return grid[0] if len(slices) == 1 else grid


def _axes(given: Any, rows: int, columns: int, figsize: tuple[float, float] | None) -> Any:
    if given is not None:
        found = np.asarray(given, dtype=object).ravel()
        if found.size != rows * columns:
            raise InvalidArgument(f"axes: expected {rows * columns} Axes, got {found.size}")
        return found.reshape(rows, columns)
    import matplotlib.pyplot as plt

    side = 0.62 * COLUMN_WIDTH if rows == 1 else 0.4 * COLUMN_WIDTH
    size = (columns * side + 0.5, rows * side + 0.2)
    _, axes = plt.subplots(
        rows, columns, squeeze=False, layout="constrained",
        figsize=figsize or size,
    )  # fmt: skip
    return axes
