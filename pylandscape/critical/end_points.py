"""Whether the end points of training are arranged like the leaves of a tree.

A metric is ultrametric where d(x, z) <= max(d(x, y), d(y, z)): every triangle is isosceles with a
small base. M. Gallagher ("Multi-layer perceptron error surfaces", PhD thesis, University of
Queensland 2000) asked this of the end points of many runs. Points in general position are not far
from it in high dimension, so the indices of Gaussian clouds come beside those of the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..arguments import integer
from ..arrays import Array, digest, progress_bar
from ..errors import InvalidArgument
from ..results.ultrametric import Ultrametricity
from ..trajectories.base import Trajectory
from ..trajectories.reading import trajectory
from ..trajectories.several import Runs
from .symmetry import EquioutputGroup

METRICS = ("euclidean", "canonical", "quotient", "precomputed")
BINS = 20
EPS = float(np.finfo(np.float64).eps)


def ultrametricity(
    models: Any,
    *,
    metric: str = "euclidean",
    group: EquioutputGroup | None = None,
    clouds: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> Ultrametricity:
    """Indices of ultrametricity of P points, with matched Gaussian clouds beside them.

    ```python
    runs = pl.train(land, 30, pl.Adam(lr=1e-2), epochs=200)
    pl.ultrametricity(runs, metric="quotient", group=pl.EquioutputGroup(model)).plot()
    ```

    Args:
        models: points (P, n), `Runs` (their ends), a sequence of trajectories (their ends), a
            Trajectory or what `trajectory` takes (modules, state dicts, checkpoints); with
            metric="precomputed" distances (P, P). At least 3.
        metric: "euclidean"; "canonical": Euclidean between the representatives
            ``group.canonical``; "quotient": the distance of the nearest images, ``group.distance``
            (an upper bound of it for several hidden layers); "precomputed".
        group: the symmetries, for "canonical" and "quotient".
        clouds: how many Gaussian clouds; each has P points with the mean and covariance of the
            given ones, and goes through the same metric. Of precomputed distances: with the
            covariance of the points that classical scaling makes of them.
        seed: of the clouds.
        progress: show a bar on stderr.

    All P (P - 1) (P - 2) / 6 triangles are looked at. Where P <= n, a cloud has at most P - 1
    dimensions: compare s, which hardly depends on the dimension (about 0.42 in 2, 0.48 from 10 on);
    the other indices do depend on it.

    Raises:
        InvalidArgument: fewer than 3 points, points that are not finite, a metric without its
            group, distances that are none (negative, not symmetric, a diagonal that is not zero).
    """
    if metric not in METRICS:
        raise InvalidArgument(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    clouds = integer(clouds, "clouds", 0)
    needs = metric in ("canonical", "quotient")
    if needs != (group is not None):
        expected = "an EquioutputGroup" if needs else "none"
        raise InvalidArgument(f"group: expected {expected} with metric={metric!r}, got {group!r}")
    if metric == "precomputed":
        given = d = _checked_distances(models)
        root, mean = _scaled(d), np.zeros(1)
    else:
        points = points_of(models)
        given, mean = points, points.mean(axis=0)
        root = points - mean
    measure = _measure(metric, group)
    if metric != "precomputed":
        d = measure(points)
    if len(d) < 3:
        raise InvalidArgument(f"models: expected at least 3 points, got {len(d)}")
    indices, errors, shares = indices_of(d, errors=True)
    rng = np.random.default_rng(seed)
    null, null_shares = np.zeros((clouds, 4)), np.zeros((clouds, BINS))
    with progress_bar(clouds, "ultrametricity", "cloud", progress) as bar:
        for k in range(clouds):
            # rows z root / sqrt(P - 1): Gaussian with the sample covariance root^T root / (P - 1)
            z = rng.standard_normal((len(d), len(root))) / math.sqrt(len(root) - 1)
            null[k], _, null_shares[k] = indices_of(measure(mean + z @ root))
            bar.update()
    info = {"points": digest(given), "seed": seed, "clouds": clouds}
    return Ultrametricity(d, indices, errors, null, shares, null_shares, metric, info)


def points_of(models: Any) -> Array:
    """(P, n) float64: the ends of runs, or the models themselves."""
    if isinstance(models, Runs):
        found = models.ends().numpy()
    elif hasattr(models, "ndim") and models.ndim == 2:
        found = np.asarray(models, dtype=np.float64)
    elif isinstance(models, Sequence) and models and isinstance(models[0], Trajectory):
        found = np.stack([np.asarray(run.vector(-1), dtype=np.float64) for run in models])
    else:
        run = trajectory(models)
        found = np.concatenate([columns for _, _, columns in run.blocks()], axis=1)
    if not np.isfinite(found).all():
        bad = int(np.argmin(np.isfinite(found).all(axis=1)))
        raise InvalidArgument(f"models: expected finite numbers, got others in model {bad}")
    return found


def indices_of(d: Array, errors: bool = False) -> tuple[Array, Array, Array]:
    """The four indices (4,) of distances (P, P), their jackknife errors (4,), NaN unless asked for,
    and the histogram of the triangles (BINS,)."""
    count = len(d)
    gap_below = _gap_below(d)
    sums = np.zeros(8)  # of 1, s, gap, a, b, a^2, b^2, a b over the triangles
    by_point = np.zeros((count, 8))  # the same over the triangles of each point
    bins = np.zeros(BINS)
    centre = float(d.mean())  # moments about it cancel less
    for i in range(count - 2):
        j, k = np.triu_indices(count - i - 1, 1)
        j, k = j + i + 1, k + i + 1
        sides = np.sort(np.stack([d[i, j], d[i, k], d[j, k]]), axis=0)
        small, mid, long = sides
        spread = long - small
        flat = spread <= 8 * EPS * long  # equilateral up to rounding
        ratio = np.where(flat, 0.0, (long - mid) / np.where(flat, 1.0, spread))
        gap = np.where(long > 0, (long - mid) / np.where(long > 0, long, 1.0), 0.0)
        a, b = long - centre, mid - centre
        terms = np.stack([np.ones_like(a), ratio, gap, a, b, a * a, b * b, a * b])
        sums += terms.sum(axis=1)
        by_point[i] += terms.sum(axis=1)
        for column, term in enumerate(terms):
            by_point[:, column] += np.bincount(j, term, count) + np.bincount(k, term, count)
        bins += np.histogram(ratio, BINS, (0.0, 1.0))[0]
    found = np.append(_means(sums), gap_below)
    spread_of = np.full(4, np.nan)
    if errors and count > 3:
        left = np.stack([_means(sums - own) for own in by_point])
        rest = [_gap_below(np.delete(np.delete(d, i, 0), i, 1)) for i in range(count)]
        left = np.column_stack([left, rest])
        around = left - left.mean(axis=0)
        spread_of = np.sqrt((count - 1) / count * (around**2).sum(axis=0))
    return found, spread_of, bins / bins.sum()


def _means(sums: Array) -> Array:
    """s, gap and correlation from the sums of 1, s, gap, a, b, a^2, b^2, a b."""
    count, s, gap, a, b, aa, bb, ab = sums
    va, vb = aa / count - (a / count) ** 2, bb / count - (b / count) ** 2
    scale = 64 * EPS * (aa + bb) / count
    constant = va <= scale or vb <= scale
    r = math.nan if constant else (ab / count - a * b / count**2) / math.sqrt(va * vb)
    return np.array([s / count, gap / count, r])


def _gap_below(d: Array) -> float:
    """sum(D - u) / sum(D), u the distances at which single linkage joins the points."""
    from scipy.cluster.hierarchy import cophenet, linkage
    from scipy.spatial.distance import squareform

    flat = squareform(d, checks=False)
    total = float(flat.sum())
    below = float((flat - cophenet(linkage(flat, "single"))).sum())
    return max(0.0, below) / total if total > 0 else 0.0


def _measure(metric: str, group: EquioutputGroup | None) -> Callable[[Array], Array]:
    """Points (P, n) to distances (P, P)."""
    if metric == "canonical" and group is not None:
        return lambda points: _euclidean(group.canonical(points))
    if metric == "quotient" and group is not None:
        return lambda points: _quotient(group, points)
    return _euclidean


def _euclidean(points: Array) -> Array:
    from scipy.spatial.distance import pdist, squareform

    found: Array = squareform(pdist(points))
    return found


def _quotient(group: EquioutputGroup, points: Array) -> Array:
    found = np.zeros((len(points), len(points)))
    for i, a in enumerate(points):
        for j in range(i):
            found[i, j] = found[j, i] = group.distance(a, points[j])
    return found


def _scaled(d: Array) -> Array:
    """Points (P, P) whose distances are d as far as those of points can be (classical scaling)."""
    b = -0.5 * d**2
    b = b - b.mean(axis=0) - b.mean(axis=1)[:, None] + b.mean()
    values, vectors = np.linalg.eigh((b + b.T) / 2)
    points: Array = vectors * np.sqrt(values.clip(min=0.0))
    return points


def _checked_distances(given: Any) -> Array:
    d = np.asarray(given, dtype=np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1]:
        raise InvalidArgument(f"models: expected distances (P, P), got shape {d.shape}")
    if not np.isfinite(d).all() or (d < 0).any() or np.diag(d).any():
        raise InvalidArgument(
            "models: expected finite distances that are not negative, 0 on the diagonal"
        )
    if not np.allclose(d, d.T, rtol=1e-12, atol=0.0):
        raise InvalidArgument("models: expected symmetric distances")
    return (d + d.T) / 2
