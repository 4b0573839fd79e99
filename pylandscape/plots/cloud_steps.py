"""How curvature changes along walks: its middle over walks at every step, with a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument
from ..results.cloud import Cloud
from .cloud_look import CLASS_STYLES, LABELS
from .options import picture
from .style import LINE_COLOURS, LINE_DASHES, legend_above, new_axes, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUARTILES = (0.25, 0.5, 0.75)


@picture
def plot_steps(
    clouds: Cloud | Mapping[str, Cloud] | Sequence[Cloud],
    quantity: str = "negative",
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
    band: bool = True,
    log: bool = False,
    title: str | None = None,
) -> Axes:
    """Draw a quantity of clouds against the step of their walks.

    The line is the median over walks and the band ends at the quartiles; of the share of negative
    eigenvalues, which has few different values, mean and one standard error.

    Args:
        clouds: one, or several for comparison; the keys of a mapping are its labels.
        quantity: "negative" (share of negative eigenvalues: 0 is convex), "bumpiness",
            "ruggedness", "loss", "gradient_norm"; or "kind": the share of each class, of one cloud.
        band: shade the band.
        log: logarithmic y axis.

    Raises:
        InvalidArgument: no cloud of walks, a quantity that it does not have.
    """
    if isinstance(clouds, Mapping):
        labels = [str(name) for name in clouds] if labels is None else labels
        clouds = list(clouds.values())
    every = [clouds] if isinstance(clouds, Cloud) else list(clouds)
    if not every or not all(isinstance(c, Cloud) and c.steps is not None for c in every):
        raise InvalidArgument("clouds: expected clouds of walks, got none or one without steps")
    if labels is not None and len(labels) != len(every):
        raise InvalidArgument(f"labels: expected {len(every)}, got {len(labels)}")
    if quantity == "kind" and len(every) > 1:
        raise InvalidArgument(f"clouds: expected one for 'kind', got {len(every)}")
    with own_style(ax is None):
        axes: Any = new_axes(height=0.72) if ax is None else ax
        if quantity == "kind":
            handles = _shares(axes, every[0])
        else:
            handles = [
                _line(axes, cloud, quantity, k, None if labels is None else labels[k], band)
                for k, cloud in enumerate(every)
            ]
            handles = handles if labels is not None else []
            axes.set_ylabel(LABELS.get(quantity, quantity))
        if log:
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.margins(x=0.01)
        if handles:
            legend_above(axes, handles)
        if title is not None:
            axes.set_title(title, pad=6 + 11 * -(-len(handles) // 2))
    return axes


def _line(axes: Any, cloud: Cloud, quantity: str, k: int, label: str | None, band: bool) -> Any:
    values = cloud.values(quantity, "quantity").astype(np.float64)
    steps, low, middle, high = _middle(cloud, values, mean=quantity == "negative")
    colour = LINE_COLOURS[k % len(LINE_COLOURS)]
    dashes = LINE_DASHES[k // len(LINE_COLOURS) % len(LINE_DASHES)]
    if band:
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, gid="band")
    (line,) = axes.plot(steps, middle, color=colour, linestyle=dashes, label=label, gid="middle")
    return line


def _shares(axes: Any, cloud: Cloud) -> list[Any]:
    """Stacked shares of the classes at every step."""
    kinds, steps = cloud.values("kind", "quantity"), cloud.values("step")
    at = np.unique(steps)
    names = list(cloud.counts())
    shares = np.array([[(kinds[steps == s] == name).mean() for s in at] for name in names])
    drawn = axes.stackplot(
        at, shares, colors=[CLASS_STYLES[n][0] for n in names], labels=names, linewidth=0.3,
        edgecolor="white",
    )  # fmt: skip
    axes.set_ylim(0.0, 1.0)
    axes.set_ylabel("share of the points")
    return list(drawn)


def _middle(cloud: Cloud, values: Array, mean: bool) -> tuple[Array, Array, Array, Array]:
    """Steps (T,); lower end, middle and upper end of what is finite there (NaN if nothing is)."""
    steps = cloud.values("step")
    at = np.unique(steps)
    found = np.full((3, at.size), np.nan)
    for k, step in enumerate(at):
        here = values[(steps == step) & np.isfinite(values)]
        if mean and here.size:
            error = here.std(ddof=1) / np.sqrt(here.size) if here.size > 1 else 0.0
            found[:, k] = here.mean() + error * np.array([-1.0, 0.0, 1.0])
        elif here.size:
            found[:, k] = np.quantile(here, QUARTILES)
    return at, found[0], found[1], found[2]
