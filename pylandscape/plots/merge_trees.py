"""Merge trees, barcodes and persistence diagrams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidArgument
from .options import picture
from .style import LINE_COLOURS, new_axes, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.merge_trees import Topology

MOST = 60  # features in a picture


@picture
def plot_topology(
    found: Topology,
    kind: str = "tree",
    ax: Axes | None = None,
    *,
    of: str = "minima",
    most: int = MOST,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw features above the noise; those that touch the border are hollow (dashed as bars).

    Args:
        kind: "tree": a branch for each extremum, from its value to the saddle where it joins an
            elder one; "barcode": the same as bars; "diagram": deaths over births.
        of: "minima" or "maxima".
        most: only so many, the longest.
        figsize: (width, height) of a figure of its own, in inches.

    Raises:
        InvalidArgument: names the argument.
    """
    if kind not in ("tree", "barcode", "diagram"):
        raise InvalidArgument(f"kind: expected 'tree', 'barcode' or 'diagram', got {kind!r}")
    if most < 1:
        raise InvalidArgument(f"most: expected at least 1, got {most}")
    tree, flat = found.tree(of), found.values.ravel()
    finite = flat[np.isfinite(flat)]
    low, high = float(finite.min()), float(finite.max())
    end = high if of == "minima" else low  # where those end that never die
    births = flat[tree.extrema]
    deaths = np.where(tree.deaths < 0, end, flat[tree.deaths])
    length = np.abs(deaths - births)
    length[tree.deaths < 0] = np.inf
    order = np.argsort(-length, kind="stable")
    kept = order[length[order] > found.noise][:most]
    hollow = tree.borders.astype(bool)
    with own_style(ax is None):
        axes: Any = new_axes(height=0.8, figsize=figsize) if ax is None else ax
        name = found.info.get("metric", "loss")
        colour = LINE_COLOURS[0 if of == "minima" else 1]
        dots: dict[str, Any] = {"s": 14, "edgecolors": colour, "linewidths": 0.9, "zorder": 3}
        faces = np.where(hollow[kept], "white", colour)
        if kind == "diagram":
            axes.plot([low, high], [low, high], color="0.6", linewidth=0.8)
            never = tree.deaths[kept] < 0
            axes.scatter(births[kept][~never], deaths[kept][~never], c=faces[~never], **dots)
            axes.scatter(
                births[kept][never], deaths[kept][never], c=faces[never], marker="^", **dots
            )
            axes.set_xlabel(f"{name} at birth")
            axes.set_ylabel(f"{name} at death (triangle: never)")
        elif kind == "barcode":
            for row, k in enumerate(kept):
                axes.plot(
                    [births[k], deaths[k]], [row, row], color=colour,
                    linestyle=(0, (3, 1)) if hollow[k] else "-",
                )  # fmt: skip
            axes.set_xlabel(name)
            axes.set_ylabel(f"{of} (dashed: at the border)")
            axes.set_yticks([])
            axes.invert_yaxis()
        else:
            places = _places(kept, tree.elders(), deaths if of == "minima" else -deaths)
            for k, at in places.items():
                axes.plot([at, at], [births[k], deaths[k]], color=colour, linewidth=1.0)
                elder = int(tree.elders()[k]) if tree.deaths[k] >= 0 else -1
                if elder >= 0:
                    axes.plot(
                        [places[elder], at], [deaths[k], deaths[k]], color=colour, linewidth=1.0
                    )
            axes.scatter([places[int(k)] for k in kept], births[kept], c=faces, **dots)
            axes.set_ylabel(name)
            axes.set_xlabel(f"{of} (hollow: at the border)")
            axes.set_xticks([])
        if title is not None:
            axes.set_title(title)
    return axes


def _places(kept: Any, elders: Any, deaths: Any) -> dict[int, int]:
    """A place along x for every branch, so that none is crossed: right of its elder, after those
    that join the elder below it."""
    joins: dict[int, list[int]] = {}
    for k in sorted((int(k) for k in kept), key=lambda k: (-deaths[k], k)):
        joins.setdefault(int(elders[k]), []).append(k)
    places: dict[int, int] = {}
    stack = list(joins.get(-1, []))[::-1]
    while stack:
        k = stack.pop()
        places[k] = len(places)
        stack += joins.get(k, [])
    return places
