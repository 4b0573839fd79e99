"""Pictures of spectra: log densities, one or several, and eigenvalues with their residuals.

Densities are drawn on a logarithmic axis that ends a little below the peak of one eigenvalue among
n. On a symlog axis a bulk and its outliers fit into one picture: linear near 0, logarithmic beyond
`linthresh`; the density stays one per unit of the eigenvalue. The kernel is that of
spectral_axis.py, series of spectra are drawn in spectra_evolution.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InvalidArgument
from ..results.eigen_pairs import EigenPairs
from ..results.spectra import Density, Spectrum
from . import spectra_evolution as evolution
from .options import picture
from .scale import Array
from .spectral_axis import HEADROOM, Axis
from .style import LINE_COLOURS, LINE_DASHES, legend_above, new_axes, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("lines", "evolution", "ridges", "top")
POINTS, COLUMNS, BINS = 4_000, 800, 80  # of a line, a heat map, a histogram
LISTED, MARKS = 4, 12  # outliers in the legend, and with a mark
MAX_LINES = 7  # more spectra than that become a heat map
HISTOGRAM, MARKED = "#c4c4c4", "#D55E00"
XLABEL = r"eigenvalue $\lambda$"


@picture
def plot_spectrum(
    spectrum: Spectrum,
    exact: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    width: float | None = None,
    sigma2: float | None = None,
    outliers: bool = True,
    band: bool = True,
    bins: int = BINS,
    xscale: str | None = None,
    linthresh: float | None = None,
    xlim: tuple[float, float] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw the log density of a spectrum, and the exact one if its eigenvalues are given.

    Args:
        exact: (n,) all eigenvalues: drawn as their histogram (grey) and as their density under the
            same kernel (black, thin).
        width: of the kernel, its standard deviation as a share of the picture's width; default
            0.5 %. On the logarithmic part of a symlog axis it is thus relative to the eigenvalue.
        sigma2: variance of the kernel in units of the eigenvalues instead. A sigma2 (or
            relative_sigma2) that the spectrum was computed with is taken without this.
        outliers: mark the 12 largest of `spectrum.outliers()` on the lower edge, and list some.
        band: shade one standard error over probes.
        bins: of the histogram.
        xscale: "linear" or "symlog"; default symlog where the ends are more than 30 times farther
            out than 90 % of the spectrum.
        linthresh: end of the linear part of a symlog axis; default: half of the spectrum is in it.
        xlim: drawn eigenvalues; default all.
        vmin, vmax: drawn densities.
        figsize: (width, height) of a figure of its own, in inches.

    Eigenvalues of `spectrum.pairs` are marked on the lower edge.

    Raises:
        InvalidArgument: names the argument.
    """
    if exact is not None and bins < 1:
        raise InvalidArgument(f"bins: expected at least 1, got {bins!r}")
    axis = Axis.of([spectrum], xscale, linthresh, xlim, sigma2, exact, width=width)
    grid = axis.points(POINTS)
    density = axis.density(spectrum, grid, sigma2)
    low, high = axis.limits([spectrum], [density], sigma2, vmin, vmax)
    with own_style(ax is None):
        axes = new_axes(height=0.72, figsize=figsize) if ax is None else ax
        handles = [_line(axes, density, _probes(spectrum), 0, band)]
        if exact is not None:
            smooth = axis.density(spectrum, grid, sigma2, exact=exact)
            tallest, more = _exact(axes, np.asarray(exact), smooth, axis.points(bins + 1), low)
            handles += more
            high = max(high, HEADROOM * tallest) if vmax is None else high
        if spectrum.pairs is not None:
            handles += _marks(axes, spectrum.pairs, axis, low)
        if outliers:
            handles += _outliers(axes, spectrum, axis, low)
        _finish(axes, axis, (low, high), handles, title)
    return axes


@picture
def plot_spectra(
    spectra: Sequence[Spectrum] | Mapping[str, Spectrum],
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
    kind: str | None = None,
    at: ArrayLike | None = None,
    divide: ArrayLike | None = None,
    width: float | None = None,
    sigma2: float | None = None,
    outliers: bool = True,
    most: int = evolution.TOP,
    band: bool = False,
    xscale: str | None = None,
    linthresh: float | None = None,
    xlim: tuple[float, float] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "viridis",
    ylabel: str = "checkpoint",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw several spectra: of layers, of models, or along training.

    Args:
        spectra: in order; of a mapping (`layer_spectra`) the keys are the labels.
        labels: one text per spectrum.
        kind: "lines"; "evolution": a heat map of the log density over eigenvalue and checkpoint;
            "ridges": densities one above the other; "top": the largest eigenvalues, and the
            smallest where it is negative, against the checkpoint; default: lines for up to 7,
            else evolution.
        at: (number of spectra,) increasing positions on the axis of checkpoints (steps of
            training), where no labels are given; default 0, 1, ...
        divide: a positive number for each spectrum, such as its tenth eigenvalue: eigenvalues are
            drawn in units of it.
        outliers: mark them on an evolution, where one eigenvalue among n is hard to see.
        most: how many eigenvalues of each spectrum, of "top".
        band: shade one standard error around lines.
        cmap: of an evolution and of ridges.
        ylabel: what the checkpoints are counted by ("step").

    The other arguments are those of `plot_spectrum`.

    Raises:
        InvalidArgument: names the argument.
    """
    if isinstance(spectra, Mapping):
        labels = [str(name) for name in spectra] if labels is None else labels
        spectra = list(spectra.values())
    spectra = list(spectra)
    if not spectra or not all(isinstance(s, Spectrum) for s in spectra):
        raise InvalidArgument(f"spectra: expected at least one Spectrum, got {spectra!r}")
    if labels is not None and len(labels) != len(spectra):
        raise InvalidArgument(f"labels: expected {len(spectra)}, got {len(labels)}")
    if kind not in (None, *KINDS):
        raise InvalidArgument(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    kind = kind or ("lines" if len(spectra) <= MAX_LINES else "evolution")
    units = _per_spectrum(np.ones(len(spectra)) if divide is None else divide, len(spectra))
    rows = _rows(at if labels is None else None, len(spectra))
    with own_style(ax is None):
        if kind == "top":
            axes = new_axes(height=0.72, figsize=figsize) if ax is None else ax
            handles = evolution.tops(axes, spectra, units, rows, most, labels, ylabel)
            _headed(axes, handles, title)
            return axes
        axis = Axis.of(spectra, xscale, linthresh, xlim, sigma2, units=units, width=width)
        grid = axis.points(COLUMNS if kind == "evolution" else POINTS)
        densities = [
            axis.density(s, grid, sigma2, float(u)) for s, u in zip(spectra, units, strict=True)
        ]
        limits = axis.limits(spectra, densities, sigma2, vmin, vmax, units)
        height = 1.0 if kind == "ridges" and len(spectra) > MAX_LINES else 0.72
        axes = new_axes(height=height, figsize=figsize) if ax is None else ax
        handles = []
        if kind == "lines":
            for i, density in enumerate(densities):
                handles.append(_line(axes, density, labels[i] if labels else None, i, band))
        elif kind == "evolution":
            evolution.heat(axes, densities, limits, vmin, rows, cmap)
            if outliers:
                evolution.marks(axes, spectra, units, rows, axis)
        else:
            evolution.ridges(axes, densities, limits, rows, cmap)
        if kind != "lines":
            evolution.row_names(axes, labels, rows, ylabel)
        shown = handles if labels and kind == "lines" else []
        _finish(axes, axis, limits if kind == "lines" else None, shown, title)
        if divide is not None:
            axes.set_xlabel(r"eigenvalue $\lambda$ / unit")
    return axes


@picture
def plot_pairs(
    pairs: EigenPairs,
    ax: Axes | None = None,
    *,
    log: bool = False,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw eigenvalues in order, with bars of their residuals: an eigenvalue lies within them.

    Args:
        log: symlog axis, linear up to a thousandth of the largest magnitude.
        figsize: (width, height) of a figure of its own, in inches.

    Values that did not converge are hollow and counted in the legend.

    Raises:
        InvalidArgument: no eigenvalue.
    """
    if not pairs.values.size:
        raise InvalidArgument("pairs: expected at least one eigenvalue, got none")
    index = np.arange(1, pairs.values.size + 1)
    with own_style(ax is None):
        axes = new_axes(height=0.72, figsize=figsize) if ax is None else ax
        from matplotlib.ticker import MaxNLocator

        handles = []
        for good, colour, face in ((True, LINE_COLOURS[0], None), (False, MARKED, "white")):
            rows = pairs.converged == good
            if not rows.any():
                continue
            name = "converged" if good else "not converged"
            bars = axes.errorbar(
                index[rows], pairs.values[rows], yerr=pairs.residuals[rows], fmt="o",
                color=colour, markerfacecolor=face, markersize=3.5, elinewidth=0.9, capsize=2,
                label=f"{name} ({int(rows.sum())})",
            )  # fmt: skip
            handles.append(bars)
        if log:
            size = np.abs(pairs.values).max()
            axes.set_yscale("symlog", linthresh=1e-3 * size if size > 0 else 1.0)
        axes.axhline(0.0, color="0.7", linewidth=0.6, zorder=0)
        axes.set_xlabel("index")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.set_xlim(0.5, index[-1] + 0.5)
        axes.set_ylabel(XLABEL)
        many = not pairs.converged.all()
        if many:
            legend_above(axes, handles)
        if title is not None:
            axes.set_title(title, pad=16 if many else 6)
    return axes


def _per_spectrum(numbers: ArrayLike, count: int) -> Array:
    found = np.asarray(numbers, dtype=np.float64)
    if found.shape != (count,) or not (np.isfinite(found) & (found > 0)).all():
        raise InvalidArgument(f"divide: expected {count} positive numbers, got {numbers!r}")
    return found


def _rows(at: ArrayLike | None, count: int) -> Array:
    rows = np.arange(count, dtype=np.float64) if at is None else np.asarray(at, dtype=np.float64)
    if rows.shape != (count,) or not (np.diff(rows) > 0).all():
        raise InvalidArgument(f"at: expected {count} increasing numbers, got {rows.tolist()}")
    return rows


def _positive(values: Array) -> Array:
    """For a logarithmic axis: far below it instead of 0, so that lines go down and do not end."""
    return np.maximum(values, 1e-300)


def _line(axes: Any, density: Density, label: str | None, k: int, band: bool) -> Any:
    colour = LINE_COLOURS[k % len(LINE_COLOURS)]
    dashes = LINE_DASHES[k // len(LINE_COLOURS) % len(LINE_DASHES)]
    error = density.standard_error
    if band and np.isfinite(error).all():
        low, high = _positive(density.values - error), _positive(density.values + error)
        axes.fill_between(
            density.grid, low, high, color=colour, alpha=0.3, linewidth=0, gid="band", zorder=2
        )
    (line,) = axes.plot(
        density.grid, _positive(density.values), color=colour, linestyle=dashes, linewidth=1.1,
        label=label, zorder=2.5, gid="density",
    )  # fmt: skip
    return line


def _exact(
    axes: Any, exact: Array, smooth: Density, borders: Array, bottom: float
) -> tuple[float, list[Any]]:
    """The density of the exact eigenvalues and their histogram; the tallest, and the handles."""
    heights = np.histogram(exact, borders)[0] / (exact.size * np.diff(borders))
    (line,) = axes.plot(
        smooth.grid, _positive(smooth.values), color="black", linewidth=0.4, zorder=3,
        label="exact, same kernel", gid="exact",
    )  # fmt: skip
    bars = axes.stairs(
        heights, borders, baseline=bottom, fill=True, color=HISTOGRAM, zorder=1,
        label=f"exact, {heights.size} bins", gid="histogram",
    )  # fmt: skip
    return float(max(heights.max(), smooth.values.max())), [line, bars]


def _marks(axes: Any, pairs: EigenPairs, axis: Axis, bottom: float) -> list[Any]:
    values = axis.inside(pairs.values)
    if not values.size:
        return []
    return list(
        axes.plot(
            values, np.full(values.size, bottom), linestyle="none", marker="^", markersize=4,
            color=MARKED, clip_on=False, zorder=4, label="eigenpairs", gid="pairs",
        )
    )  # fmt: skip


def _outliers(axes: Any, spectrum: Spectrum, axis: Axis, bottom: float) -> list[Any]:
    """Marks at the largest outliers, some of them listed; [] where there are none."""
    values = axis.inside(spectrum.outliers()[0])
    if not values.size:
        return []
    values = values[np.argsort(-np.abs(values), kind="stable")]
    more = f" + {values.size - LISTED} more" if values.size > LISTED else ""
    some = ", ".join(f"{v:.3g}" for v in np.sort(values[:LISTED])[::-1]) + more
    name = f"outlier{'s' * (values.size > 1)}: {some}"
    values = values[:MARKS]
    return list(
        axes.plot(
            values, np.full(values.size, bottom), linestyle="none", marker="^", markersize=5.5,
            markerfacecolor="none", markeredgecolor="black", markeredgewidth=0.7, clip_on=False,
            zorder=4.5, label=name, gid="outliers",
        )
    )  # fmt: skip


def _probes(spectrum: Spectrum) -> str:
    count = sum(1 for _ in spectrum._probes())
    return f"{count} probe{'s' if count > 1 else ''} of {spectrum.nodes.shape[1]} steps"


def _finish(
    axes: Any,
    axis: Axis,
    limits: tuple[float, float] | None,
    handles: Sequence[Any],
    title: str | None,
) -> None:
    if np.isfinite(axis.linthresh):
        axes.set_xscale("symlog", linthresh=axis.linthresh)
        axes.set_xticks(*axis.ticks())
        axes.set_xticks(axis.minor_ticks(), minor=True)
    axes.set_xlim(axis.low, axis.high)
    axes.set_xlabel(XLABEL)
    if limits is not None:
        axes.set_yscale("log")
        axes.set_ylim(*limits)
        axes.set_ylabel("density")
    _headed(axes, handles, title)


def _headed(axes: Any, handles: Sequence[Any], title: str | None) -> None:
    """Legend and title above the axes."""
    if handles:
        legend_above(axes, list(handles), columns=2 if _short(handles) else 1)
    if title is not None:
        lines = 0 if not handles else -(-len(handles) // (2 if _short(handles) else 1))
        axes.set_title(title, pad=6 + 11 * lines)


def _short(handles: Sequence[Any]) -> bool:
    """Whether the texts of a legend fit beside each other in a column-wide picture."""
    return max(len(h.get_label()) for h in handles) <= 26
