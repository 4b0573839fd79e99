"""A spectrum smoothed by a Gaussian: masses in the cells of a grid.

The kernel N(t; lambda, sigma^2) is integrated over each cell (a difference of normal distribution
functions), never sampled: a peak narrower than a cell keeps its whole mass.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..arrays import Array

REACH = 39.0  # in sigmas: beyond it the normal distribution function is 0 in double
NEAR = 10.0  # in sigmas: a kernel's mass beyond it is 2e-23
STEPS = 3  # cells per sigma of a fine grid
ROUNDING = 2.0**-50  # relative: a kernel narrower than its position's rounding still has a cell
PAIRS = 1 << 20  # (point, cell) pairs worked on at a time: bounds the memory
CELLS = 1 << 18  # cells of a fine grid worked on at a time


def masses(points: Array, weights: Array, sigma: float, edges: Array) -> Array:
    """(q,) sum_j weights_j * integral over the cell of N(t; points_j, sigma^2).

    Args:
        points, weights: (p,).
        edges: (q + 1,) increasing borders of the cells.
    """
    from scipy.special import ndtr

    q = edges.size - 1
    first = np.maximum(np.searchsorted(edges, points - REACH * sigma, side="right") - 1, 0)
    last = np.minimum(np.searchsorted(edges, points + REACH * sigma, side="left"), q)
    counts = np.maximum(last - first, 0)
    total = np.zeros(q)
    ends = np.cumsum(counts)
    start = 0
    while start < points.size:
        # As many whole points as PAIRS allows, at least one (at most q pairs).
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + PAIRS, side="right")), start + 1)
        some = slice(start, stop)
        which = np.repeat(np.arange(start, stop), counts[some])
        cell = np.arange(which.size) - (ends - counts - done - first)[which]
        low, high = ((edges[c] - points[which]) / sigma for c in (cell, cell + 1))
        # Tails from the small side: Phi(b) - Phi(a) = Phi(-a) - Phi(-b).
        flip = low > 0.0
        low, high = np.where(flip, -high, low), np.where(flip, -low, high)
        share = weights[which] * (ndtr(high) - ndtr(low))
        total += np.bincount(cell, share, minlength=q)
        start = stop
    return total


def fine_edges(points: Array, sigma: float) -> Iterator[Array]:
    """Borders of cells of width <= sigma / 3 wherever a kernel around one of `points` has mass,
    piece by piece; a stretch without mass is one cell.

    The last border of a piece is the first of the next one.
    """
    points = np.sort(points)
    gaps = np.flatnonzero(np.diff(points) > 2.0 * NEAR * sigma)
    pad = np.maximum(NEAR * sigma, ROUNDING * np.abs(points))
    low, high = (points - pad)[np.r_[0, gaps + 1]], (points + pad)[np.r_[gaps, points.size - 1]]
    cells = np.ceil((high - low) / (sigma / STEPS)).astype(np.int64)
    # Stretch c has the borders first[c] .. first[c] + cells[c].
    first = np.cumsum(cells + 1) - (cells + 1)
    total = int(first[-1] + cells[-1])
    for start in range(0, total, CELLS):
        border = np.arange(start, min(start + CELLS, total) + 1)
        c = np.searchsorted(first, border, side="right") - 1
        yield low[c] + (high - low)[c] * ((border - first[c]) / cells[c])
