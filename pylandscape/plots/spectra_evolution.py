"""Several spectra along training: a heat map, ridges, or the largest eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import edges
from ..errors import InvalidArgument
from ..results.spectra import Density, Spectrum
from .scale import Array
from .spectral_axis import HEADROOM, Axis
from .style import LINE_COLOURS

HEAT_DECADES = 8.0  # of a heat map's colours, at most
RIDGE = 2.2  # height of a ridge, in distances between two
COLOUR_RANGE = (0.0, 0.85)  # of the colour map: its bright end does not show on white
MARK_DOTS = 4.0  # points^2, of outliers on a heat map
TOP = 5  # eigenvalues of each spectrum


def heat(
    axes: Any,
    densities: Sequence[Density],
    limits: tuple[float, float],
    vmin: float | None,
    rows: Array,
    cmap: str,
) -> None:
    """Rows of log density; what is below the colours has the lowest one."""
    from matplotlib.colors import LogNorm

    values = np.stack([d.values for d in densities])
    high = limits[1] / HEADROOM
    low = limits[0] if vmin is not None else max(limits[0], high * 10.0**-HEAT_DECADES)
    drawn = axes.pcolormesh(
        edges(densities[0].grid), edges(rows), np.maximum(values, low), cmap=cmap,
        norm=LogNorm(low, high), rasterized=True, gid="evolution",
    )  # fmt: skip
    bar = axes.figure.colorbar(drawn, ax=axes, pad=0.02, aspect=25, extend="min")
    bar.set_label("density", size=axes.xaxis.label.get_fontsize())
    bar.ax.tick_params(labelsize=axes.yaxis.get_ticklabels()[0].get_fontsize(), width=0.6, length=2)
    bar.outline.set_linewidth(0.5)


def marks(axes: Any, spectra: Sequence[Spectrum], units: Array, rows: Array, axis: Axis) -> None:
    """A dot for each outlier: on a heat map one eigenvalue among n is hard to see."""
    for spectrum, unit, row in zip(spectra, units, rows, strict=True):
        values = axis.inside(spectrum.outliers()[0] / unit)
        axes.scatter(
            values, np.full(values.size, row), s=MARK_DOTS, color="white", edgecolors="black",
            linewidths=0.4, zorder=3, gid="outliers",
        )  # fmt: skip


def ridges(
    axes: Any,
    densities: Sequence[Density],
    limits: tuple[float, float],
    rows: Array,
    cmap: str,
) -> None:
    """A log density for each spectrum, each on a base line of its own, the first in front."""
    import matplotlib as mpl

    low, high = np.log10(limits[0]), np.log10(limits[1])
    gap = float(np.diff(rows).min()) if rows.size > 1 else 1.0
    colours = mpl.colormaps.get_cmap(cmap)(np.linspace(*COLOUR_RANGE, rows.size))
    for k in reversed(range(rows.size)):
        density = densities[k]
        height = (np.log10(np.maximum(density.values, limits[0])) - low) / (high - low)
        top = rows[k] + RIDGE * gap * height
        axes.fill_between(
            density.grid, rows[k], top, color=colours[k], alpha=0.35, linewidth=0,
            zorder=2 + 0.01 * (rows.size - k),
        )  # fmt: skip
        axes.plot(
            density.grid, top, color=colours[k], linewidth=0.8, gid="ridge",
            zorder=2.005 + 0.01 * (rows.size - k),
        )  # fmt: skip
    axes.set_ylim(rows[0] - 0.3 * gap, rows[-1] + (RIDGE + 0.1) * gap)


def row_names(axes: Any, labels: Sequence[str] | None, rows: Array, ylabel: str) -> None:
    from matplotlib.ticker import MaxNLocator

    if labels is not None:
        axes.set_yticks(rows, labels)
    elif (rows == np.arange(rows.size)).all():
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_ylabel("" if labels is not None and ylabel == "checkpoint" else ylabel)


def tops(
    axes: Any,
    spectra: Sequence[Spectrum],
    units: Array,
    rows: Array,
    most: int,
    labels: Sequence[str] | None,
    xlabel: str,
) -> list[Any]:
    """The largest eigenvalues that the probes resolved against the position, and the smallest one
    where it is negative; bars are their bounds. Returns the handles of a legend."""
    if most < 1:
        raise InvalidArgument(f"most: expected at least 1, got {most}")
    values = np.full((most + 1, rows.size), np.nan)
    bounds = np.full_like(values, np.nan)
    for k, (spectrum, unit) in enumerate(zip(spectra, units, strict=True)):
        found, error = (each / unit for each in spectrum.resolved())
        count = min(most, int((found > 0).sum()))
        values[:count, k], bounds[:count, k] = found[:count], error[:count]
        if found.size and found[-1] < 0:
            values[-1, k], bounds[-1, k] = found[-1], error[-1]
    if not np.isfinite(values).any():
        raise InvalidArgument("spectra: expected an eigenvalue that the probes resolved, got none")
    handles = []
    names = [f"largest {most}" if most > 1 else "largest", "smallest"]
    for i in range(most + 1):
        if not np.isfinite(values[i]).any():
            continue
        least = i == most
        style = {"color": LINE_COLOURS[1 if least else 0], "alpha": 1.0 if least else 1 - 0.6 * i /
                 most, "linestyle": "--" if least else "-"}  # fmt: skip
        bars = axes.errorbar(
            rows, values[i], yerr=bounds[i], marker="o", markersize=2.5, linewidth=1.0,
            elinewidth=0.7, label=names[least], **style,
        )  # fmt: skip
        bars.lines[0].set_gid("top")
        if i in (0, most):
            handles.append(bars)
    sizes = np.abs(values[np.isfinite(values)])
    if sizes.min() > 0 and sizes.max() > 30.0 * sizes.min():
        if (values[np.isfinite(values)] > 0).all():
            axes.set_yscale("log")
        else:
            axes.set_yscale("symlog", linthresh=float(sizes.min()))
    if labels is not None:
        axes.set_xticks(rows, labels)
    axes.set_xlabel("" if labels is not None and xlabel == "checkpoint" else xlabel)
    axes.set_ylabel(r"eigenvalue $\lambda$")
    return handles
