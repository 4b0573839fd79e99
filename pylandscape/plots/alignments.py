"""Loss on the line between two models before and after their units are put in one order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from .mode_connection import draw_barriers
from .options import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..results.model_alignment import ModelAlignment


@picture
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
    lines: tuple[tuple[Any, float, str, int], ...] = (
        (found.line_before, found.barrier_before, "before", 1),
        (found.line, found.barrier, "after", 0),
    )
    return draw_barriers(r"\alpha", found.alpha, lines, ax, log=log, title=title, figsize=figsize)
