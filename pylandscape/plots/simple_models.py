"""Pictures of global searches, volume laws and spectra at interpolators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .options import picture
from .paths import INK
from .style import LINE_COLOURS, LINE_DASHES, legend_above, new_axes, own_style

if TYPE_CHECKING:
    from ..results.searches import GlobalSearch
    from ..results.simple_models import Interpolator, VolumeLaw

DEEPEST = 1e-8  # share of the highest loss below which a search has arrived
SHOWN = 1e-17  # share of the largest eigenvalue below which nothing is told


@picture
def plot_search(
    found: GlobalSearch,
    ax: Any = None,
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Any:
    """The best loss so far against the evaluations: medians, and the range of all runs. Returns the
    Axes."""
    with own_style(ax is None):
        axes: Any = new_axes(height=0.75, figsize=figsize) if ax is None else ax
        for m, name in enumerate(found.methods):
            best = np.where(np.isfinite(found.best[m]), found.best[m], np.nan)
            there = ~np.isnan(best).any(axis=0)
            x, best = found.evaluations[there], best[:, there]
            colour = LINE_COLOURS[m % len(LINE_COLOURS)]
            axes.fill_between(x, best.min(axis=0), best.max(axis=0), color=colour, alpha=0.2, lw=0)
            axes.plot(
                x, np.median(best, axis=0), color=colour, label=name,
                linestyle=LINE_DASHES[m % len(LINE_DASHES)],
            )  # fmt: skip
        axes.set_xscale("log")
        top, least = np.nanmax(found.best), np.nanmin(found.best)
        if least > 0:
            axes.set_yscale("log")
            if least < DEEPEST * top:
                axes.set_ylim(DEEPEST * top, 3 * top)
        axes.set_xlabel("evaluations of the loss")
        axes.set_ylabel("lowest loss so far")
        legend_above(axes, axes.get_legend_handles_labels()[0], columns=3)
        if title is not None:
            axes.set_title(title, pad=17)
    return axes


@picture
def plot_volumes(
    found: VolumeLaw,
    ax: Any = None,
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Any:
    """Shares of the ball below a level (dots) and the law of a quadratic (lines), one colour for
    each number of parameters. Returns the Axes."""
    with own_style(ax is None):
        axes: Any = new_axes(height=0.8, figsize=figsize) if ax is None else ax
        fine = np.linspace(0.0, 1.0, 201)
        for row, n in enumerate(found.dimensions):
            colour = LINE_COLOURS[row % len(LINE_COLOURS)]
            axes.plot(fine, fine ** (n / 2), color=colour, linewidth=0.8)
            axes.errorbar(
                found.levels, found.shares[row], 2 * found.errors[row], fmt="o", color=colour,
                markersize=3, elinewidth=0.7, label=f"n = {n}",
            )  # fmt: skip
        axes.set_xlabel(r"level $\ell / \ell_0$")
        axes.set_ylabel(r"share of the volume with $L \leq \ell$")
        axes.legend(frameon=False, loc="upper left")
        if title is not None:
            axes.set_title(title)
    return axes


@picture
def plot_interpolator(
    found: Interpolator,
    ax: Any = None,
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Any:
    """|eigenvalues| as shares of the largest, descending; what is zero is hollow, and a line stands
    after as many as there are equations. Returns the Axes."""
    with own_style(ax is None):
        axes: Any = new_axes(height=0.75, figsize=figsize) if ax is None else ax
        sizes = np.sort(np.abs(found.eigenvalues))[::-1]
        top = sizes[0] or 1.0
        k = np.arange(1, len(sizes) + 1)
        zero = sizes <= found.tolerance
        shares = np.maximum(sizes / top, SHOWN)
        axes.plot(k[~zero], shares[~zero], "o", color=LINE_COLOURS[0], markersize=3,
                  label=f"{int((~zero).sum())} not zero")  # fmt: skip
        axes.plot(k[zero], shares[zero], "o", color=LINE_COLOURS[1], markersize=3,
                  markerfacecolor="none", label=f"{int(zero.sum())} zero")  # fmt: skip
        axes.axvline(found.equations + 0.5, color=INK, linewidth=0.8, linestyle="--")
        axes.set_yscale("log")
        axes.set_xlabel(f"eigenvalue (dashed: after {found.equations} equations)")
        axes.set_ylabel(r"$|\lambda| / \lambda_{\max}$")
        legend_above(axes, axes.get_legend_handles_labels()[0], columns=2)
        if title is not None:
            axes.set_title(title, pad=17)
    return axes
