"""Where a walk stands still: how often its loss stays on a plateau, and for how long.

The metrics of Bosman, Engelbrecht, Helbig (2018), n_stag and l_stag. They publish no window and no
shortest run; the constants below are those of their code as far as it is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..arrays import Array
from ..errors import InvalidArgument

WINDOWS = tuple(range(20, 5, -2))  # w: 20, 18, ..., 6
SHORTEST = 5  # a run is a stretch of more below-threshold values than this
FLAT = 1e-8  # a threshold below it: the whole walk stands still


@dataclass(frozen=True, eq=False, repr=False)
class Stagnation:
    """Plateaus of W walks.

    Attributes:
        counts: (W,) number of plateaus of each walk, n_stag.
        lengths: (W,) their mean length in steps, l_stag; 0 where there is none.
        windows: (W,) the w that found them.

    All NaN for a walk whose losses are not all finite.
    """

    counts: Array
    lengths: Array
    windows: Array

    @property
    def mean_count(self) -> float:
        """n_stag: the mean over the walks with finite losses; NaN if there is none."""
        return _mean(self.counts)

    @property
    def mean_length(self) -> float:
        """l_stag: the same mean of the lengths."""
        return _mean(self.lengths)

    def __repr__(self) -> str:
        lost = int(np.isnan(self.counts).sum())
        bad = f", {lost} not finite" if lost else ""
        return (
            f"Stagnation({self.counts.size} walks{bad}: n_stag = {self.mean_count:.3g}, "
            f"l_stag = {self.mean_length:.3g} steps)"
        )


def stagnation(losses: Any) -> Stagnation:
    """Count the stretches of each walk where its loss hardly changes.

    Per walk, with the losses scaled to [0, 1], for every window w: smooth them exponentially with
    alpha = 2 / (w + 1), starting at the first loss; take the standard deviation in a moving window
    of w; count the runs of more than five values below that series' own standard deviation. The w
    whose runs are the longest on average is kept, the smallest one of several.

    Args:
        losses: (W, T) or (T,), T >= 7: one row per walk. A row that is constant (all thresholds
            below 1e-8) is one plateau of T steps.

    Raises:
        InvalidArgument: another shape, no numbers.
    """
    try:
        rows = np.atleast_2d(np.asarray(losses, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"losses: expected numbers of shape (W, T): {error}") from error
    if rows.ndim != 2 or not rows.size or rows.shape[1] <= min(WINDOWS):
        raise InvalidArgument(
            f"losses: expected shape (W, T) with T > {min(WINDOWS)}, got {np.shape(losses)}"
        )
    finite = np.isfinite(rows).all(axis=1)
    found = np.full((3, len(rows)), np.nan)
    if finite.any():
        found[:, finite] = _longest(_scaled(rows[finite]))
    return Stagnation(*found)


def _longest(scaled: Array) -> Array:
    """(3, W): count, mean length and window of the longest runs."""
    from scipy.signal import lfilter

    best = np.zeros((3, len(scaled)))
    still = np.ones(len(scaled), dtype=bool)
    for w in WINDOWS:
        if w >= scaled.shape[1]:
            continue
        alpha = 2.0 / (w + 1.0)
        start = (1.0 - alpha) * scaled[:, :1]  # the filter's state that makes its first value x_0
        smooth, _ = lfilter([alpha], [1.0, alpha - 1.0], scaled, axis=1, zi=start)
        moving = sliding_window_view(smooth, w, axis=1).std(axis=2)
        threshold = moving.std(axis=1, keepdims=True)
        still &= threshold[:, 0] < FLAT
        counts, lengths = _runs(moving < threshold)
        better = lengths >= best[1]
        best[:, better] = np.stack([counts, lengths, np.full(len(scaled), float(w))])[:, better]
    best[:, still] = [[1.0], [scaled.shape[1]], [min(WINDOWS)]]
    return best


def _runs(below: np.ndarray) -> tuple[Array, Array]:
    """Of each row of (W, T'): how many runs of True are longer than SHORTEST; their mean length."""
    edges = np.diff(np.pad(below, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, first = np.nonzero(edges == 1)
    _, last = np.nonzero(edges == -1)
    length = last - first
    row, length = row[length > SHORTEST], length[length > SHORTEST]
    counts = np.bincount(row, minlength=len(below)).astype(np.float64)
    total = np.bincount(row, weights=length, minlength=len(below))
    return counts, total / np.maximum(counts, 1.0)


def _scaled(rows: Array) -> Array:
    """Each row to [0, 1]; a constant one to 0."""
    low = rows.min(axis=1, keepdims=True)
    span = rows.max(axis=1, keepdims=True) - low
    return (rows - low) / np.where(span > 0.0, span, 1.0)


def _mean(values: Array) -> float:
    finite = values[~np.isnan(values)]
    return float(finite.mean()) if finite.size else float("nan")
