"""Pictures of points and their distances: ultrametricity, fitness against distance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .options import picture
from .paths import INK, two_axes
from .style import LINE_COLOURS, legend_above, new_axes, own_style

if TYPE_CHECKING:
    from ..results.fitness import FitnessDistance
    from ..results.ultrametric import Ultrametricity


@picture
def plot_ultrametricity(
    found: Ultrametricity,
    axes: Any = None,
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Any:
    """Left the triangles' histogram with the Gaussian clouds' range, right the tree of single
    linkage. In an ultrametric space all triangles are in the bar at 0. Returns the two Axes."""
    with own_style(axes is None):
        left, right = two_axes(axes, height=0.75, figsize=figsize)
        borders = np.linspace(0.0, 1.0, len(found.shares) + 1)
        middle = (borders[1:] + borders[:-1]) / 2
        left.bar(
            middle, found.shares, width=0.9 / len(middle), color=LINE_COLOURS[5],
            label=f"points: $s$ = {found.s:.3f} ± {found.errors[0]:.3f}",
        )  # fmt: skip
        if len(found.null):
            low, high = found.null_shares.min(axis=0), found.null_shares.max(axis=0)
            mean, own = found.null_shares.mean(axis=0), found.null[:, 0]
            reach = np.stack([mean - low, high - mean]).clip(min=0.0)
            left.errorbar(
                middle, mean, reach, fmt="x", color=INK, markersize=3, elinewidth=0.7,
                label=f"{len(own)} Gaussian clouds: {own.mean():.3f} ± {own.std():.3f}",
            )  # fmt: skip
        left.set_xlabel(r"$(d_{\max} - d_{\mathrm{mid}})\,/\,(d_{\max} - d_{\min})$")
        left.set_ylabel("share of the triangles")
        left.set_ylim(bottom=0.0)
        legend_above(left, left.get_legend_handles_labels()[0], columns=1)
        _tree(right, found.distances)
        if title is not None:
            right.set_title(title)
    return left, right


def _tree(axes: Any, distances: Any) -> None:
    """The dendrogram of single linkage: heights are the ultrametric distances below the points'."""
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    joined = linkage(squareform(distances, checks=False), "single")
    found = dendrogram(joined, no_plot=True)
    for x, y in zip(found["icoord"], found["dcoord"], strict=True):
        axes.plot(x, y, color=LINE_COLOURS[0], linewidth=0.8)
    axes.set_xticks([])
    top, least = float(joined[:, 2].max()), float(joined[:, 2].min())
    axes.set_ylim(max(0.0, least - 0.15 * max(top - least, 0.05 * top)), 1.04 * top or 1.0)
    axes.set_xlabel(f"{len(distances)} points, joined by single linkage")
    axes.set_ylabel("distance")


@picture
def plot_fitness(
    found: FitnessDistance,
    ax: Any = None,
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Any:
    """Losses against distances, one dot a point; hollow dots against the distance to the nearest
    image where there is a group. Returns the Axes."""
    with own_style(ax is None):
        axes: Any = new_axes(height=0.8, figsize=figsize) if ax is None else ax
        small = max(2.0, 60.0 / np.sqrt(len(found.losses)))
        if found.nearest is not None:
            axes.scatter(
                found.nearest, found.losses, s=small, facecolors="none", linewidths=0.5,
                edgecolors=LINE_COLOURS[1], label=f"to the nearest image, r {found.r_nearest:.2f}",
            )  # fmt: skip
        axes.scatter(
            found.distances, found.losses, s=small, color=LINE_COLOURS[0], linewidths=0,
            alpha=0.7, label=rf"to $\theta^*$, r {found.r:.2f}",
        )  # fmt: skip
        axes.set_xlabel(r"distance to the optimum $\theta^*$")
        axes.set_ylabel("loss")
        axes.set_xlim(left=0.0)
        legend_above(axes, axes.get_legend_handles_labels()[0], columns=2)
        if title is not None:
            axes.set_title(title, pad=17)
    return axes
