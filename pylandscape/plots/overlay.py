"""Paths of training on a surface: whatever is given as ``trajectory=``, drawn, with a legend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import numbers
from ..errors import InvalidArgument
from .paths import OFF_MAP, draw_path
from .scale import Array
from .style import LINE_COLOURS, LINE_DASHES

if TYPE_CHECKING:
    from ..results.surface import Surface

PLAIN = "#D55E00"  # of one path of which only its coordinates are known
SAME_PLANE = 1e-3  # relative difference of two norms that are one direction's
MOST_IN_LEGEND = 12
LINE_HEIGHT = 0.15  # inches, of a line of the legend


@dataclass(frozen=True)
class Run:
    """points (T, 2) in the surface's coordinates; off: (T,) shares off the plane, or None."""

    points: Array
    off: Array | None = None
    steps: Any = None
    label: str | None = None


def runs_of(surface: Surface, given: Any) -> list[Run]:
    """The runs that ``trajectory=`` of `plot_surface` stands for, without empty ones.

    Raises:
        InvalidArgument: neither a trajectory, a projection nor numbers (T, 2); a projection on
            other directions; a trajectory where the surface has no frame.
    """
    if isinstance(given, Mapping):
        runs = [_run(surface, each, f"trajectory[{k!r}]", str(k)) for k, each in given.items()]
    elif _is_several(given):
        runs = [_run(surface, each, f"trajectory[{k}]", f"run {k}") for k, each in enumerate(given)]
    else:
        runs = [_run(surface, given, "trajectory", None)]
    return [run for run in runs if len(run.points)]


def room_for(runs: Sequence[Run]) -> float:
    """The height of their legend, in inches."""
    lines = len(runs) + any(r.off is not None for r in runs) if len(runs) <= MOST_IN_LEGEND else 1
    return LINE_HEIGHT * lines


def draw_runs(
    ax: Any,
    runs: Sequence[Run],
    place: Callable[[Array], Array],
    height_at: Callable[[Array], Array | None],
) -> list[Any]:
    """Draws runs; gives the handles of their legend.

    Args:
        place: from the surface's coordinates to drawn ones.
        height_at: z of points in 3-D, else None.
    """
    worst = max((_worst(r.off) for r in runs if r.off is not None), default=0.0)
    handles: list[Any] = []
    for k, run in enumerate(runs):
        colour: str = PLAIN
        dash: Any = "-"
        if len(runs) > 1:
            colour = LINE_COLOURS[k % len(LINE_COLOURS)]
            dash = LINE_DASHES[k // len(LINE_COLOURS) % len(LINE_DASHES)]
        steps = run.steps if len(runs) == 1 else None
        draw_path(
            ax, place(run.points), run.off, colour=colour, dash=dash, steps=steps, most=worst,
            z=height_at(run.points),
        )  # fmt: skip
        if len(runs) > 1 or run.label is not None:
            handles.append(_line(colour, dash, run))
        elif run.off is not None and len(run.points) > 1:
            handles.append(_steps(run))
    if runs and all(r.off is None for r in runs):
        return handles if len(handles) <= MOST_IN_LEGEND else []
    if len(handles) > MOST_IN_LEGEND:
        handles = []
    if runs:
        handles.append(_dots(worst))
    return handles


def _run(surface: Surface, given: Any, name: str, label: str | None) -> Run:
    found = surface.project(given) if hasattr(given, "project") else given
    if hasattr(found, "off_share"):
        if found is given:
            _check_norms(surface, found, name)
        return Run(found.coordinates, found.off_share, np.asarray(found.steps), label)
    array = as_points(found, name, "a Trajectory, a Projection or numbers (T, 2)")
    return Run(array, label=label if array.size else None)


def as_points(points: Any, name: str, expected: str = "numbers of shape (T, 2)") -> Array:
    """Coordinates (T, 2) in float64, of none (0, 2). InvalidArgument names the argument."""
    array: Array = numbers(points, name, expected)
    if array.size == 0:
        return np.empty((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise InvalidArgument(f"{name}: expected shape (T, 2), got {array.shape}")
    return array


def _is_several(given: Any) -> bool:
    """Whether a list is one of paths, not of points."""
    return isinstance(given, Sequence) and any(
        hasattr(each, "project") or hasattr(each, "off_share") or np.ndim(each) == 2
        for each in given
    )


def _check_norms(surface: Surface, found: Any, name: str) -> None:
    """Refuses a projection on directions of other lengths than the surface's."""
    known = surface.info.get("direction_norms") or []
    if len(known) == 2 and not np.allclose(known, found.norms, rtol=SAME_PLANE, atol=0.0):
        norms = ", ".join(f"{n:.4g}" for n in known)
        raise InvalidArgument(
            f"{name}: expected a projection on the surface's directions, of norms {norms}, got one "
            f"on directions of {found.norms[0]:.4g}, {found.norms[1]:.4g}"
        )


def _worst(off: Array) -> float:
    return float(np.nanmax(off)) if np.isfinite(off).any() else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"


def _line(colour: str, dash: Any, run: Run) -> Any:
    from matplotlib.lines import Line2D

    off = "" if run.off is None else f" ({_percent(_worst(run.off))} off)"
    return Line2D([], [], color=colour, linestyle=dash, linewidth=1.2, label=f"{run.label}{off}")


def _steps(run: Run) -> Any:
    """The key of a path from light to dark."""
    from matplotlib.lines import Line2D

    first, last = int(run.steps[0]), int(run.steps[-1])
    return Line2D(
        [], [], color="0.45", linewidth=1.4, label=f"steps {first} to {last}: light to dark"
    )


def _dots(worst: float) -> Any:
    """The key of the dots' colours."""
    import matplotlib as mpl
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], linestyle="none", marker="o", markersize=3.5, markeredgecolor="0.2",
        markeredgewidth=0.4, markerfacecolor=mpl.colormaps[OFF_MAP](1.0),
        label=f"at most {_percent(worst)} off the plane",
    )  # fmt: skip
