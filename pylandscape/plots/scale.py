"""From the values of a metric to what is drawn: range, logarithm, contour levels.

Everything a caller gives or reads (vmin, vmax, levels, tick labels) is in the metric's own units;
the drawn coordinate is z = v, or z = log10(v + offset) on a logarithmic scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgument

Array = NDArray[np.float64]

DEFAULT_LEVELS, MOST_LEVELS = 10, 1000
COARSE_LEVELS, FINER_LEVELS = 5, 4  # where most values are in one interval, and within that one
CROWDED = 0.4  # share of the values in one interval, from which it is divided once more
FINER = 2  # times
SLIVER = 0.03  # share of the range between a level and an end, at least
NEAR_END = 0.06  # of a colour bar: ticks nearer to its ends give way to the end values
# Linear colours and levels stop at the 95 % quantile where the rest would take more than this many
# times the range of the lower 90 %: otherwise the centre, which the plot is about, is one flat
# colour.
TAIL_RATIO = 5.0
# Without positive values only: how far below the median the smallest value is put on a log scale.
OFFSET_SHARE = 1e-3
LOG_STEPS: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0),
)


@dataclass(frozen=True)
class Scale:
    """Drawn range [vmin, vmax] in metric units; cut_low, cut_high: finite values lie outside."""

    log: bool
    offset: float
    vmin: float
    vmax: float
    cut_low: bool
    cut_high: bool

    @classmethod
    def of(
        cls,
        values: Array,
        *,
        log: bool = False,
        offset: float | None = None,
        vmin: float | None = None,
        vmax: float | None = None,
        robust: bool = True,
    ) -> Scale:
        """Choose the range of `values` (any shape; non-finite ones do not count).

        Default offset: 0 where every finite value is positive, otherwise
        -min + 1e-3 (median - min). Default vmax: the maximum, or (linear, `robust`) the 95 %
        quantile when the tail would take the range.

        Raises:
            InvalidArgument: nothing finite, vmin >= vmax, or v + offset <= 0 for the smallest v.
        """
        finite = values[np.isfinite(values)]
        if finite.size == 0:
            raise InvalidArgument(
                f"values: expected at least one finite value to draw, got none in {values.size}"
            )
        low, high = float(finite.min()), float(finite.max())
        if log:
            if offset is None:
                offset = 0.0 if low > 0 else -low + OFFSET_SHARE * _spread(finite, low, high)
            lowest = low if vmin is None else vmin
            if not lowest + offset > 0:
                raise InvalidArgument(
                    f"offset: expected value + offset > 0 for log10, got {lowest:g} + {offset:g}"
                )
        elif offset is not None:
            raise InvalidArgument(
                f"offset: expected log=True with it, got offset={offset:g}, log=False"
            )
        bottom = low if vmin is None else float(vmin)
        top = high if vmax is None else float(vmax)
        if vmax is None and robust and not log:
            q90, q95 = (float(q) for q in np.quantile(finite, (0.90, 0.95)))
            if q90 > bottom and top - bottom > TAIL_RATIO * (q90 - bottom):
                top = q95
        if vmin is None and vmax is None and not top > bottom:  # a constant: any range around it
            pad = max(abs(bottom) * 1e-3, 1e-12)
            bottom, top = (bottom, bottom + pad) if log else (bottom - pad, bottom + pad)
        if not (math.isfinite(bottom) and math.isfinite(top) and bottom < top):
            raise InvalidArgument(f"vmin, vmax: expected vmin < vmax, got {bottom:g}, {top:g}")
        return cls(log, float(offset or 0.0), bottom, top, low < bottom, high > top)

    def forward(self, values: Any) -> Array:
        """z of metric values; non-finite ones stay non-finite."""
        v = np.asarray(values, dtype=np.float64)
        if not self.log:
            return v
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log10(v + self.offset)

    def inverse(self, z: Any) -> Array:
        """Metric values of z."""
        z = np.asarray(z, dtype=np.float64)
        return np.power(10.0, z) - self.offset if self.log else z

    @property
    def z_range(self) -> tuple[float, float]:
        return float(self.forward(self.vmin)), float(self.forward(self.vmax))

    @property
    def extend(self) -> str:
        """matplotlib's word for "values go on beyond the colour bar"."""
        return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[
            (int(self.cut_low), int(self.cut_high))
        ]

    def cut(self, values: Array, clip: bool) -> Array:
        """z with everything beyond the range put at the limit (`clip`) or made NaN."""
        low, high = self.z_range
        with np.errstate(invalid="ignore"):
            z = (
                np.where(values + self.offset > 0, self.forward(values), low)
                if self.log
                else values
            )
            z = np.where(np.isfinite(values), z, np.nan)
            if clip:
                return np.clip(z, low, high)
            return np.where((z < low) | (z > high), np.nan, z)

    def label(self, name: str) -> str:
        """'loss', 'loss (log scale)' or 'loss (log scale, offset 1e-03)'."""
        if not self.log:
            return name
        return (
            f"{name} (log scale)"
            if self.offset == 0
            else f"{name} (log scale, offset {self.offset:.2g})"
        )

    def levels(self, values: Array, levels: int | Sequence[float] | Array | None) -> Array:
        """Increasing contour levels in metric units, strictly inside the drawn range.

        None: about ten round numbers. Linear ones are evenly spaced; where more than 40 % of the
        values lie between two, that interval is divided once more, by round numbers too. int: that
        many (less where rounding makes two equal), half-way between even ones and quantiles on a
        linear scale, so that a steep rim does not take them all. Array: as given, and what lies
        outside the values draws nothing.
        """
        if levels is not None and not isinstance(levels, (int, np.integer)):
            try:
                given = np.asarray(levels, dtype=np.float64)
            except (TypeError, ValueError):
                given = np.empty(0)
            if given.ndim != 1 or not given.size or not np.isfinite(given).all():
                raise InvalidArgument(f"levels: expected an int or finite numbers, got {levels!r}")
            if (np.diff(given) <= 0).any():
                raise InvalidArgument(f"levels: expected increasing numbers, got {given.tolist()}")
            if self.log and (given + self.offset <= 0).any():
                raise InvalidArgument(f"levels: expected level + offset > 0, got {given.tolist()}")
            return given
        count = DEFAULT_LEVELS if levels is None else int(levels)
        if count < 1:
            raise InvalidArgument(f"levels: expected at least 1, got {count}")
        if count > MOST_LEVELS:
            raise InvalidArgument(f"levels: expected at most {MOST_LEVELS}, got {count}")
        if self.log and levels is None and self.offset == 0:
            return _log_levels(self.vmin, self.vmax)
        z = self.cut(values, clip=True)
        z = z[np.isfinite(z)]
        low, high = self.z_range
        if levels is None and not self.log:
            return nested_steps(low, high, z)
        share = np.arange(1, count + 1) / (count + 1)
        even = low + share * (high - low)
        chosen = even if self.log else 0.5 * (even + np.quantile(z, share))
        return distinct_rounding(self.inverse(chosen), self.vmin, self.vmax)


def _spread(finite: Array, low: float, high: float) -> float:
    """median - min, or whatever positive length there is."""
    for length in (float(np.median(finite)) - low, high - low, abs(low)):
        if length > 0:
            return length
    return 1.0


def _log_levels(vmin: float, vmax: float) -> Array:
    """Round numbers between vmin and vmax (> 0): the set of mantissas nearest to ten levels."""
    first, last = math.floor(math.log10(vmin)), math.ceil(math.log10(vmax))
    best = np.empty(0)
    if last - first > 16:
        step = math.ceil((last - first) / 12)
        return np.array([10.0**e for e in range(first, last + 1, step) if vmin < 10.0**e < vmax])
    for steps in LOG_STEPS:
        all_levels = np.array([m * 10.0**e for e in range(first, last + 1) for m in steps])
        inside = all_levels[(all_levels > vmin) & (all_levels < vmax)]
        if abs(inside.size - DEFAULT_LEVELS) < abs(best.size - DEFAULT_LEVELS):
            best = inside
    if best.size < DEFAULT_LEVELS // 3:  # well below a decade
        best = distinct_rounding(np.geomspace(vmin, vmax, DEFAULT_LEVELS + 2)[1:-1], vmin, vmax)
    return best


def round_steps(low: float, high: float, count: int = DEFAULT_LEVELS) -> Array:
    """Multiples of 1, 2, 2.5 or 5 x 10^k strictly between low and high, about `count` of them."""
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(count + 1, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return np.array([float(f"{v:.12g}") for v in found if low < v < high])


def _within(levels: Array, low: float, high: float) -> Array:
    """Without those so near to an end of the range that their band would be a sliver."""
    room = SLIVER * (high - low)
    kept = levels[(levels > low + room) & (levels < high - room)]
    return kept if kept.size else levels


def nested_steps(low: float, high: float, values: Array) -> Array:
    """Round numbers strictly between low and high, closer together where most of the values are:
    an interval with more than 40 % of them is divided by round numbers, twice at most."""
    even = _within(round_steps(low, high), low, high)
    if _fullest(low, high, even, values)[2] <= CROWDED:
        return even
    found = round_steps(low, high, COARSE_LEVELS)
    for _ in range(FINER):
        first, last, share = _fullest(low, high, found, values)
        if share <= CROWDED:
            break
        found = np.union1d(found, round_steps(first, last, FINER_LEVELS))
    return _within(found, low, high)


def _fullest(low: float, high: float, inner: Array, values: Array) -> tuple[float, float, float]:
    """The interval with the largest share of the values, and the share: 0 for equal values."""
    borders = np.unique(np.concatenate([[low], inner, [high]]))
    counts, _ = np.histogram(values, borders)
    k = int(np.argmax(counts))
    first, last = float(borders[k]), float(borders[k + 1])
    within = values[(values >= first) & (values <= last)]
    if not within.size or np.ptp(np.quantile(within, (0.1, 0.9))) <= 1e-3 * (last - first):
        return first, last, 0.0
    return first, last, float(counts[k] / values.size)


def bar_ticks(
    scale: Scale, inner: Array, ends: tuple[float, float], most: int, *, even: bool
) -> tuple[Array, list[str]]:
    """Ticks of a colour bar, in z, and their texts: its ends, and some of the inner ones.

    Args:
        inner: (k,) wanted, in z.
        most: so many at most.
        even: all intervals have one height (bands), so that no two ticks are near each other.
    """
    low, high = ends
    room = 0.0 if even else NEAR_END * (high - low)
    kept = inner[(inner > low + room) & (inner < high - room)]
    kept = kept[:: max(1, -(-kept.size // max(most - 2, 1)))]
    first, last = (_plain(f"{float(scale.inverse(v)):.3g}") for v in ends)
    if even:  # bands have no arrow
        first = f"$\\leq$ {first}" if scale.cut_low else first
        last = f"$\\geq$ {last}" if scale.cut_high else last
    texts = format_levels(scale.inverse(kept)) if kept.size else []
    return np.array([low, *kept, high]), [first, *texts, last]


def symlog_ticks(
    low: float, high: float, smallest: int, place: Callable[[float], float], room: float
) -> dict[float, str]:
    """Ticks of an axis that is linear near 0 and logarithmic beyond, with their texts, ascending.

    Args:
        low, high: the axis' range.
        smallest: the least power of ten that gets a tick.
        place: from a value to its place in the picture.
        room: the least distance of two places. 0 and the large powers come first.
    """
    kept = {0.0: "0"} if low <= 0.0 <= high else {}
    for power in range(int(np.floor(np.log10(max(-low, high)))), smallest - 1, -1):
        for sign, text in ((1.0, ""), (-1.0, "-")):
            value = sign * 10.0**power
            near = min((abs(place(value) - place(other)) for other in kept), default=np.inf)
            if low <= value <= high and near > room:
                kept[value] = f"${text}10^{{{power}}}$"
    return dict(sorted(kept.items()))


def distinct_rounding(numbers: Array, low: float, high: float) -> Array:
    """`numbers` rounded to the fewest significant digits (>= 2) that keep all of them distinct.

    Numbers that rounding would push out of (low, high) are dropped.
    """
    numbers = np.unique(numbers)
    for digits in range(2, 15):
        rounded = np.array([float(f"{v:.{digits - 1}e}") for v in numbers])
        if np.unique(rounded).size == numbers.size:
            break
    rounded = np.unique(rounded)
    inside = rounded[(rounded > low) & (rounded < high)]
    return inside if inside.size else numbers[:1]


def format_levels(levels: Array) -> list[str]:
    """Short texts for levels: common notation, as many digits as tell them apart."""
    for digits in range(2, 16):
        texts = [f"{v:.{digits}g}" for v in levels]
        if len(set(texts)) == len(texts):
            break
    return [_plain(t) for t in texts]


def _plain(text: str) -> str:
    """'1e+03' -> '1e3', '1e-05' -> '1e-5', '1.5e+02' -> '150'."""
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    power = int(exponent)
    if 0 <= power < 4:
        return f"{float(text):.0f}"
    return f"{mantissa}e{power}"
