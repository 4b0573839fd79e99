"""Several results of one kind in one picture, on one scale."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidArgument
from ..results.cloud import Cloud
from ..results.curve import Curve
from ..results.spectra import Spectrum
from ..results.surface import Surface
from . import surface_strokes
from .cloud_strokes import grid
from .clouds import PAGE_WIDTH, plot_clouds
from .lines import plot_lines
from .options import picture
from .scale import Array, Scale
from .spectra import plot_spectra
from .style import STYLE, Panels, metric_label, own_style
from .surface import plot_surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TICKS = 11  # of the colour bar
FLAT_KINDS = ("contour", "filled", "heat")
# What makes two results answers to different questions: keys of info["request"], and their names.
ASKED = {"layout": "parameters", "loss": "loss", "data": "data", "bn": "batch norm"}


def compare(
    results: Any, *others: Any, labels: Sequence[str] | None = None, **options: Any
) -> Panels:
    """Draw surfaces, curves, spectra or clouds together, so that they can be compared by eye:
    ``compare([a, b])`` or ``compare(a, b)``.

    Surfaces get a panel each, with one range of values, the same contour levels, the same axes and
    one colour bar; clouds a panel each (`plot_clouds`); curves and spectra share one picture. Where
    the results are of different parameters, losses, data or batch norm modes, a line below the
    panels says so.

    Args:
        results: at least two, all of one kind.
        labels: one text per result.
        options: for surfaces kind ("filled", "contour" or "heat"), metric, log, offset, levels,
            vmin, vmax, cmap, columns, title and figsize; otherwise those of `plot_lines`,
            `plot_spectra` and `plot_clouds`.

    Returns:
        The Axes in a tuple: one for each surface or cloud, a single one for curves and spectra;
        ``.figure`` is their figure.

    Raises:
        InvalidArgument: fewer than two results, results of different kinds, labels of another
            length, or an option's value.
    """
    several = isinstance(results, Sequence) and not isinstance(results, str)
    results = [*results] if several and not others else [results, *others]
    if len(results) < 2:
        raise InvalidArgument(f"results: expected at least two, got {len(results)}")
    kinds = sorted({_kind(r) for r in results})
    if len(kinds) > 1 or not isinstance(results[0], Surface | Curve | Spectrum | Cloud):
        raise InvalidArgument(
            "results: expected surfaces, curves, spectra or clouds, all of one kind, got "
            f"{', '.join(kinds)}"
        )
    if isinstance(results[0], Surface):
        found = compare_surfaces(results, labels=labels, **options)
    elif isinstance(results[0], Cloud):
        found = [*plot_clouds(results, labels=labels, **options)]
    else:
        together: Any = plot_lines if isinstance(results[0], Curve) else plot_spectra
        found = [together(results, labels=labels, **options)]
    differing = unlike(results)
    if differing and options.get("ax") is None:
        # xlabel of a figure: the layout keeps room for it
        found[0].figure.supxlabel(f"not the same {', '.join(differing)}", fontsize=7, color="0.35")
    return Panels(found)


def _kind(result: Any) -> str:
    """Class, and what its axes are."""
    name = type(result).__name__
    return f"{name} ({result.kind})" if isinstance(result, Surface | Curve) else name


def unlike(results: Sequence[Any]) -> list[str]:
    """What differs between the requests; what a result does not record counts as the same."""
    requests = [(getattr(r, "info", None) or {}).get("request") or {} for r in results]
    found = []
    for key, name in ASKED.items():
        known = [r[key] for r in requests if key in r]
        if any(value != known[0] for value in known):
            found.append(name)
    return found


@picture
def compare_surfaces(
    surfaces: Sequence[Surface],
    *,
    labels: Sequence[str] | None = None,
    kind: str | None = None,
    metric: str = "loss",
    log: bool = False,
    offset: float | None = None,
    levels: int | Sequence[float] | Array | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "viridis",
    columns: int | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> list[Axes]:
    """A panel for each surface, on one scale; see `compare`."""
    if labels is not None and len(labels) != len(surfaces):
        raise InvalidArgument(f"labels: expected {len(surfaces)}, got {len(labels)}")
    kind = kind or "filled"
    if kind not in FLAT_KINDS:
        raise InvalidArgument(f"kind: expected one of {', '.join(FLAT_KINDS)}, got {kind!r}")
    for surface in surfaces:
        if metric not in surface.metrics:
            raise InvalidArgument(
                f"metric: expected one of {sorted(surface.metrics)}, got {metric!r}"
            )
    if columns is not None and columns < 1:
        raise InvalidArgument(f"columns: expected at least 1, got {columns!r}")
    every = np.concatenate([s.metrics[metric].ravel() for s in surfaces])
    scale = Scale.of(every, log=log, offset=offset, vmin=vmin, vmax=vmax)
    chosen = scale.levels(every, levels)
    wide = min(len(surfaces), columns or (2 if len(surfaces) in (2, 4) else 3))
    with own_style(True):
        figure, panels = grid(
            -(-len(surfaces) // wide), wide, False, len(surfaces), True, PAGE_WIDTH, figsize
        )
        for k, (axes, surface) in enumerate(zip(panels, surfaces, strict=True)):
            with warnings.catch_warnings():  # a level of the others that this one does not reach
                warnings.filterwarnings("ignore", message="levels: ")
                plot_surface(
                    surface, kind, axes, metric=metric, log=log,
                    offset=scale.offset if log else None, vmin=scale.vmin, vmax=scale.vmax,
                    levels=None if kind == "heat" else chosen, cmap=cmap, colorbar=False,
                    title="" if labels is None else labels[k],
                )  # fmt: skip
        x, y = (np.concatenate([getattr(s, n) for s in surfaces]) for n in "xy")
        if surfaces[0].kind == "plane":
            panels[0].set(xlim=(x.min(), x.max()), ylim=(y.min(), y.max()))
        for axes in panels:
            axes.label_outer()
        bar = _bar(figure, panels, scale, chosen, kind, cmap)
        bar.set_label(scale.label(metric_label(metric, surfaces[0].metrics)))
        bar.outline.set_linewidth(0.5)
        if title is not None:
            figure.suptitle(title, fontsize=STYLE["axes.titlesize"])
    return list(panels)


def _bar(
    figure: Any, panels: Sequence[Any], scale: Scale, levels: Array, kind: str, cmap: str
) -> Any:
    """The one colour bar: of the panels' own colours, for contours those of the first panel."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.contour import ContourSet

    where: dict[str, Any] = {"ax": list(panels), "pad": 0.01, "aspect": 30}
    if kind == "heat":
        artist: Any = ScalarMappable(Normalize(*scale.z_range), cmap)
        bar = figure.colorbar(artist, extend=scale.extend, **where)
    else:
        artist = next(c for c in panels[0].collections if isinstance(c, ContourSet))
        bar = figure.colorbar(artist, spacing="uniform", **where)
    at = scale.forward(levels)
    shown = None if kind == "heat" and not scale.log else at
    surface_strokes.set_bar_ticks(bar, kind, scale, shown, MOST_TICKS)
    return bar
