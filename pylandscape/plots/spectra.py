"""Pictures of spectra: log densities, one or several, and eigenvalues with their residuals.

Densities are drawn on a logarithmic axis that ends a little below the peak of one eigenvalue among
n. With `xscale="symlog"` a bulk and its outliers fit into one picture: linear near 0, logarithmic
beyond `linthresh`; the density stays one per unit of the eigenvalue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import edges
from ..errors import InvalidArgument
from ..results.eigen_pairs import EigenPairs
from ..results.spectra import Density, Spectrum
from .scale import Array, symlog_ticks
from .style import LINE_COLOURS, LINE_DASHES, legend_above, new_axes, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCALES = ("linear", "symlog")
KINDS = ("lines", "evolution")
POINTS, COLUMNS, BINS = 10_000, 800, 80  # of a line, a heat map, a histogram
FLOOR = 0.1  # the axis ends at this share of the peak of one eigenvalue among n
HEADROOM = 2.0  # and at this multiple of the highest value
DECADES = 8.0  # of a heat map's colours, at most
LINEAR_SHARE = 0.5  # of the spectrum lies in the linear part of a symlog axis
LINEAR_SIGMAS = 10.0  # and the linear part reaches at least this far
MARGIN = 0.02  # of the picture's width, beyond the outermost kernels
TICK_SPACE = 0.11  # of the picture's width, between the ticks of a symlog axis
MAX_LINES = 7  # more spectra than that become a heat map
HISTOGRAM, MARKED = "#c4c4c4", "#D55E00"
XLABEL = r"eigenvalue $\lambda$"


def plot_spectrum(
    spectrum: Spectrum,
    exact: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    sigma2: float | None = None,
    band: bool = True,
    bins: int = BINS,
    xscale: str = "linear",
    linthresh: float | None = None,
    xlim: tuple[float, float] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the log density of a spectrum, and the exact one if its eigenvalues are given.

    Args:
        exact: (n,) all eigenvalues: drawn as their histogram (grey) and as their density under the
            same kernel (black, thin).
        sigma2: variance of the kernel, instead of the spectrum's.
        band: shade one standard error over probes.
        bins: of the histogram.
        xscale: "linear" or "symlog".
        linthresh: end of the linear part of a symlog axis; default: half of the spectrum is in it.
        xlim: drawn eigenvalues; default all.
        vmin, vmax: drawn densities.

    Eigenvalues of `spectrum.pairs` are marked on the lower edge.

    Raises:
        InvalidArgument: names the argument.
    """
    if exact is not None and (not isinstance(bins, int) or bins < 1):
        raise InvalidArgument(f"bins: expected at least 1, got {bins!r}")
    axis = _Axis.of([spectrum], xscale, linthresh, xlim, sigma2, exact)
    grid = axis.points(POINTS)
    density = spectrum.density(grid, sigma2)
    low, high = _limits([spectrum], [density], sigma2, vmin, vmax)
    with own_style(ax is None):
        axes = new_axes(height=0.72) if ax is None else ax
        handles = [_line(axes, density, _probes(spectrum), 0, band)]
        if exact is not None:
            smooth = spectrum.exact_density(exact, grid, sigma2)
            tallest, more = _exact(axes, np.asarray(exact), smooth, axis.points(bins + 1), low)
            handles += more
            high = max(high, HEADROOM * tallest) if vmax is None else high
        if spectrum.pairs is not None and spectrum.pairs.values.size:
            handles.append(_marks(axes, spectrum.pairs, low))
        _finish(axes, axis, (low, high), handles, title)
    return axes


def plot_spectra(
    spectra: Sequence[Spectrum] | Mapping[str, Spectrum],
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
    kind: str | None = None,
    at: ArrayLike | None = None,
    divide: ArrayLike | None = None,
    sigma2: float | None = None,
    band: bool = False,
    xscale: str = "linear",
    linthresh: float | None = None,
    xlim: tuple[float, float] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "viridis",
    ylabel: str = "checkpoint",
    title: str | None = None,
) -> Axes:
    """Draw several spectra: of layers, of models, or along training.

    Args:
        spectra: in order; of a mapping (`layer_spectra`) the keys are the labels.
        labels: one text per spectrum.
        kind: "lines", or "evolution": a heat map of the log density over eigenvalue and
            checkpoint; default: lines for up to 7.
        at: (number of spectra,) increasing positions on the y axis of an evolution (steps of
            training), where no labels are given; default 0, 1, ...
        divide: a positive number for each spectrum, such as its tenth eigenvalue: eigenvalues are
            drawn in units of it.
        band: shade one standard error around lines.
        cmap, ylabel: of an evolution.

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
    axis = _Axis.of(spectra, xscale, linthresh, xlim, sigma2, units=units)
    grid = axis.points(POINTS if kind == "lines" else COLUMNS)
    densities = [_divided(s, grid, u, sigma2) for s, u in zip(spectra, units, strict=True)]
    limits = _limits(spectra, densities, sigma2, vmin, vmax, units)
    with own_style(ax is None):
        axes = new_axes(height=0.72) if ax is None else ax
        handles = []
        if kind == "lines":
            for i, density in enumerate(densities):
                handles.append(_line(axes, density, labels[i] if labels else None, i, band))
        else:
            _evolution(axes, densities, limits, vmin, labels, rows, cmap, ylabel)
        shown = handles if labels and kind == "lines" else []
        _finish(axes, axis, limits if kind == "lines" else None, shown, title)
        if divide is not None:
            axes.set_xlabel(r"eigenvalue $\lambda$ / unit")
    return axes


def plot_pairs(
    pairs: EigenPairs, ax: Axes | None = None, *, log: bool = False, title: str | None = None
) -> Axes:
    """Draw eigenvalues in order, with bars of their residuals: an eigenvalue lies within them.

    Args:
        log: symlog axis, linear up to a thousandth of the largest magnitude.

    Values that did not converge are hollow and counted in the legend.

    Raises:
        InvalidArgument: no eigenvalue.
    """
    if not pairs.values.size:
        raise InvalidArgument("pairs: expected at least one eigenvalue, got none")
    index = np.arange(1, pairs.values.size + 1)
    with own_style(ax is None):
        axes = new_axes(height=0.72) if ax is None else ax
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


@dataclass(frozen=True)
class _Axis:
    """The eigenvalue axis: drawn range, and how far it is linear (inf: everywhere)."""

    low: float
    high: float
    linthresh: float

    @classmethod
    def of(
        cls,
        spectra: Sequence[Spectrum],
        xscale: str,
        linthresh: float | None,
        xlim: tuple[float, float] | None,
        sigma2: float | None,
        exact: ArrayLike | None = None,
        units: Array | None = None,
    ) -> _Axis:
        units = np.ones(len(spectra)) if units is None else units
        if xscale not in SCALES:
            raise InvalidArgument(f"xscale: expected one of {', '.join(SCALES)}, got {xscale!r}")
        if linthresh is not None and not (xscale == "symlog" and linthresh > 0):
            raise InvalidArgument(
                f"linthresh: expected a positive number with xscale='symlog', got {linthresh!r} "
                f"with {xscale!r}"
            )
        ends = [s.grid(2, sigma2) / u for s, u in zip(spectra, units, strict=True)]
        if exact is not None:
            ends.append(np.asarray(exact, dtype=np.float64))
        every = np.concatenate(ends)
        low, high = (every.min(), every.max()) if xlim is None else map(float, xlim)
        if not (np.isfinite([low, high]).all() and low < high):
            raise InvalidArgument(f"xlim: expected two increasing numbers, got {xlim!r}")
        if linthresh is None and xscale == "symlog":
            linthresh = max(
                max(_middle(s), LINEAR_SIGMAS * s.kernel_width(sigma2)) / u
                for s, u in zip(spectra, units, strict=True)
            )
        found = cls(float(low), float(high), np.inf if linthresh is None else float(linthresh))
        if xlim is not None:
            return found
        first, last = found.forward([low, high])
        room = MARGIN * (last - first)
        low, high = found.inverse([first - room, last + room])
        return cls(float(low), float(high), found.linthresh)

    def forward(self, values: ArrayLike) -> Array:
        """Places in the picture, up to a shift and a factor."""
        given = np.asarray(values, dtype=np.float64)
        return given if np.isinf(self.linthresh) else self._transform().transform(given)

    def inverse(self, places: ArrayLike) -> Array:
        given = np.asarray(places, dtype=np.float64)
        return given if np.isinf(self.linthresh) else self._transform().inverted().transform(given)

    def _transform(self) -> Any:
        from matplotlib.scale import SymmetricalLogTransform

        return SymmetricalLogTransform(10.0, self.linthresh, 1.0)

    def points(self, count: int) -> Array:
        """(count,) eigenvalues, evenly spaced in the picture."""
        first, last = self.forward([self.low, self.high])
        return self.inverse(np.linspace(first, last, count))

    def ticks(self) -> tuple[list[float], list[str]]:
        """0 and powers of ten that leave room for their texts, and the texts."""
        first, last = self.forward([self.low, self.high])
        smallest = int(np.ceil(np.log10(self.linthresh)))
        found = symlog_ticks(
            self.low, self.high, smallest, lambda v: float(self.forward([v])[0]),
            TICK_SPACE * float(last - first),
        )  # fmt: skip
        return list(found), list(found.values())

    def minor_ticks(self) -> Array:
        """Multiples of powers of ten beyond the linear part."""
        powers = np.arange(
            np.floor(np.log10(self.linthresh)), np.ceil(np.log10(max(-self.low, self.high)))
        )
        sizes = np.outer(10.0**powers, np.arange(1, 10)).ravel()
        every = np.concatenate([-sizes, sizes])
        inside = (every > self.low) & (every < self.high) & (np.abs(every) >= self.linthresh)
        return every[inside]


def _middle(spectrum: Spectrum) -> float:
    """|lambda| below which LINEAR_SHARE of the spectrum lies."""
    probes = list(spectrum._probes())
    sizes = np.abs(np.concatenate([nodes for nodes, _ in probes]))
    order = np.argsort(sizes)
    share = np.cumsum(np.concatenate([weights for _, weights in probes])[order]) / len(probes)
    return float(sizes[order][min(np.searchsorted(share, LINEAR_SHARE), sizes.size - 1)])


def _divided(spectrum: Spectrum, grid: Array, unit: float, sigma2: float | None) -> Density:
    """The density of lambda / unit."""
    found = spectrum.density(grid * unit, sigma2)
    return Density(grid, found.values * unit, found.standard_error * unit)


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


def _limits(
    spectra: Sequence[Spectrum],
    densities: Sequence[Density],
    sigma2: float | None,
    vmin: float | None,
    vmax: float | None,
    units: Array | None = None,
) -> tuple[float, float]:
    """Drawn densities: from below the peak of one eigenvalue to above the highest value."""
    units = np.ones(len(spectra)) if units is None else units
    high = HEADROOM * max(float(d.values.max()) for d in densities) if vmax is None else vmax
    low = vmin
    if low is None:
        peaks = [
            1.0
            / (s.n * max(np.sqrt(2 * np.pi) * s.kernel_width(sigma2) / u, float(d.widths.max())))
            for s, d, u in zip(spectra, densities, units, strict=True)
        ]
        low = FLOOR * min(peaks)
    if not (high > 0.0):
        raise InvalidArgument("xlim: expected a range with eigenvalues in it, got an empty one")
    if not 0.0 < low < high:
        raise InvalidArgument(f"vmin, vmax: expected 0 < vmin < vmax, got {low:g}, {high:g}")
    return float(low), float(high)


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


def _marks(axes: Any, pairs: EigenPairs, bottom: float) -> Any:
    (marks,) = axes.plot(
        pairs.values, np.full(pairs.values.size, bottom), linestyle="none", marker="^",
        markersize=4, color=MARKED, clip_on=False, zorder=4, label="eigenpairs", gid="pairs",
    )  # fmt: skip
    return marks


def _probes(spectrum: Spectrum) -> str:
    count = sum(1 for _ in spectrum._probes())
    return f"{count} probe{'s' if count > 1 else ''} of {spectrum.nodes.shape[1]} steps"


def _evolution(
    axes: Any,
    densities: Sequence[Density],
    limits: tuple[float, float],
    vmin: float | None,
    labels: Sequence[str] | None,
    rows: Array,
    cmap: str,
    ylabel: str,
) -> None:
    """Rows of log density; what is below the colours has the lowest one."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    values = np.stack([d.values for d in densities])
    high = limits[1] / HEADROOM
    low = limits[0] if vmin is not None else max(limits[0], high * 10.0**-DECADES)
    drawn = axes.pcolormesh(
        edges(densities[0].grid), edges(rows), np.maximum(values, low), cmap=cmap,
        norm=LogNorm(low, high), rasterized=True, gid="evolution",
    )  # fmt: skip
    bar = axes.figure.colorbar(drawn, ax=axes, pad=0.02, aspect=25, extend="min")
    bar.set_label("density", size=axes.xaxis.label.get_fontsize())
    bar.ax.tick_params(labelsize=axes.yaxis.get_ticklabels()[0].get_fontsize(), width=0.6, length=2)
    bar.outline.set_linewidth(0.5)
    if labels is not None:
        axes.set_yticks(rows, labels)
    elif (rows == np.arange(rows.size)).all():
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_ylabel("" if labels is not None and ylabel == "checkpoint" else ylabel)


def _finish(
    axes: Any,
    axis: _Axis,
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
    if handles:
        legend_above(axes, list(handles))
    if title is not None:
        axes.set_title(title, pad=(16 if len(handles) < 3 else 28) if handles else 6)
