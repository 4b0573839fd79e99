"""The axis of eigenvalues, and densities under the kernel that belongs to it.

Unless a variance is chosen, the kernel is equally wide everywhere in the picture: a share of the
drawn range on a linear axis, relative to the eigenvalue on the logarithmic part of a symlog axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InvalidArgument
from ..results.spectra import BULK_SHARE, SIGMA2, Density, Spectrum, check_sigma2
from .scale import Array, symlog_ticks

SCALES = ("linear", "symlog")
WIDTH = 0.005  # of the kernel, as a share of the drawn range
REACH = 5.0  # kernel widths beyond the outermost eigenvalues
SPREAD = 30.0  # ends over the size of 90 % of the spectrum, from which an axis is symlog
LINEAR_SHARE = 0.5  # of the spectrum lies in the linear part of a symlog axis
LINEAR_SIGMAS = 10.0  # and the linear part reaches at least this far
DECADES = 6.0  # of the logarithmic part, at most
MARGIN = 0.02  # of the picture's width, beyond the outermost kernels
TICK_SPACE = 0.11  # of the picture's width, between the ticks of a symlog axis
FLOOR = 0.1  # densities end at this share of the peak of one eigenvalue among n
HEADROOM = 2.0  # and at this multiple of the highest value


@dataclass(frozen=True)
class Axis:
    """The eigenvalue axis: drawn range, how far it is linear (inf: everywhere), and the kernel.

    width: of the kernel in units of `forward`, where no variance was chosen.
    """

    low: float
    high: float
    linthresh: float
    width: float

    @classmethod
    def of(
        cls,
        spectra: Sequence[Spectrum],
        xscale: str | None,
        linthresh: float | None,
        xlim: tuple[float, float] | None,
        sigma2: float | None,
        exact: ArrayLike | None = None,
        units: Array | None = None,
        width: float | None = None,
    ) -> Axis:
        units = np.ones(len(spectra)) if units is None else units
        if xscale not in (None, *SCALES):
            raise InvalidArgument(f"xscale: expected one of {', '.join(SCALES)}, got {xscale!r}")
        if linthresh is not None and not (xscale != "linear" and linthresh > 0):
            raise InvalidArgument(
                f"linthresh: expected a positive number with xscale='symlog', got {linthresh!r} "
                f"with {xscale!r}"
            )
        if width is not None and sigma2 is not None:
            raise InvalidArgument(f"width: expected none beside sigma2={sigma2!r}, got {width!r}")
        share = WIDTH if width is None else width
        if not 0.0 < share < 1.0:
            raise InvalidArgument(f"width: expected a share between 0 and 1, got {width!r}")
        kernels = [chosen_sigma2(s, sigma2) for s in spectra]
        ends = [
            (np.array(s.extremes) if k is None else s.grid(2, k)) / u
            for s, k, u in zip(spectra, kernels, units, strict=True)
        ]
        if exact is not None:
            ends.append(np.asarray(exact, dtype=np.float64).ravel())
        every = np.concatenate(ends)
        low, high = (every.min(), every.max()) if xlim is None else map(float, xlim)
        if xlim is None and low == high:  # one eigenvalue
            low, high = low - 0.05 * abs(low) - (low == 0), high + 0.05 * abs(high) + (high == 0)
        if not (np.isfinite([low, high]).all() and low < high):
            raise InvalidArgument(f"xlim: expected two increasing numbers, got {xlim!r}")
        farthest = max(abs(low), abs(high))
        if xscale is None and linthresh is None:
            body = max(s.size(BULK_SHARE) / u for s, u in zip(spectra, units, strict=True))
            xscale = "symlog" if farthest > SPREAD * body else "linear"
        if linthresh is None and xscale == "symlog":
            least = max(
                max(s.size(LINEAR_SHARE), 0.0 if k is None else LINEAR_SIGMAS *
                    s.kernel_width(k)) / u
                for s, k, u in zip(spectra, kernels, units, strict=True)
            )  # fmt: skip
            linthresh = max(least, farthest * 10.0**-DECADES)
        bare = cls(float(low), float(high), np.inf if linthresh is None else float(linthresh), 0.0)
        first, last = (float(v) for v in bare.forward([low, high]))
        room = MARGIN
        if None in kernels:
            room += REACH * share
        if xlim is None:
            first, last = first - room * (last - first), last + room * (last - first)
            low, high = bare.inverse([first, last])
        return cls(float(low), float(high), bare.linthresh, share * (last - first))

    def density(
        self,
        spectrum: Spectrum,
        grid: Array,
        sigma2: float | None = None,
        unit: float = 1.0,
        exact: ArrayLike | None = None,
    ) -> Density:
        """The density of lambda / unit at `grid`, or that of the exact eigenvalues."""
        kernel, at = chosen_sigma2(spectrum, sigma2), grid * unit
        if kernel is None:
            found = spectrum.picture_density(
                at, self.width, lambda v: self.forward(np.asarray(v) / unit), exact
            )
        elif exact is None:
            found = spectrum.density(at, kernel)
        else:
            found = spectrum.exact_density(exact, at, kernel)
        return Density(grid, found.values * unit, found.standard_error * unit)

    def limits(
        self,
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
            peaks = []
            for s, d, u in zip(spectra, densities, units, strict=True):
                kernel = chosen_sigma2(s, sigma2)
                if kernel is None:  # where the kernel is widest
                    step = np.diff(self.forward(d.grid)).min()
                    wide = self.width / step * float(np.diff(d.grid).max())
                else:
                    wide = s.kernel_width(kernel) / u
                peaks.append(1.0 / (s.n * max(np.sqrt(2 * np.pi) * wide, float(d.widths.max()))))
            low = FLOOR * min(peaks)
        if not (high > 0.0):
            raise InvalidArgument("xlim: expected a range with eigenvalues in it, got an empty one")
        if not 0.0 < low < high:
            raise InvalidArgument(f"vmin, vmax: expected 0 < vmin < vmax, got {low:g}, {high:g}")
        return float(low), float(high)

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

    def inside(self, values: Array) -> Array:
        """Those of the values that are drawn."""
        return values[(values >= self.low) & (values <= self.high)]

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


def chosen_sigma2(spectrum: Spectrum, sigma2: float | None) -> float | None:
    """The variance that was asked for, now or when the spectrum was computed, or None."""
    if sigma2 is not None:
        return check_sigma2(sigma2)
    own = spectrum.sigma2 != SIGMA2 or spectrum.relative_sigma2
    return spectrum.sigma2 if own else None
