"""The curvature class of a symmetric matrix, from its eigenvalues or from intervals of them.

In this order, with tau = rtol max |lambda|: singular if any |lambda| <= tau, convex if all lambda >
tau, concave if all lambda < -tau, otherwise a saddle. The zero matrix is singular.

Where only bounds are known, a class is given if every spectrum within them has it. The bounds are
`bounds` (P, 3, 2): lowest and highest value that lambda_min, lambda_max and min |lambda| can have;
for exact eigenvalues the two are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument

CLASSES = ("convex", "concave", "saddle", "singular")
KINDS = (*CLASSES, "undecided", "invalid")


def classes_of(eigenvalues: Any, rtol: float) -> np.ndarray:
    """The class of every spectrum: "convex", "concave", "saddle", "singular" or "invalid".

    Args:
        eigenvalues: (..., n), in any order; a row that is not finite is invalid.
        rtol: in [0, 1): |lambda| <= rtol max |lambda| is a zero.

    Returns:
        (...) array of str.

    Raises:
        InvalidArgument: no numbers, n = 0, rtol out of its range.

    Example:
        >>> classes_of([[1.0, 2.0], [1.0, -1.0], [1.0, 0.0]], 1e-6).tolist()
        ['convex', 'saddle', 'singular']
    """
    values = _eigenvalues(eigenvalues)
    tau = checked_rtol(rtol) * np.abs(values).max(axis=-1)
    return _chosen(
        [
            ~np.isfinite(values).all(axis=-1),
            (np.abs(values) <= tau[..., None]).any(axis=-1),
            (values > 0.0).all(axis=-1),
            (values < 0.0).all(axis=-1),
        ],
        ["invalid", "singular", "convex", "concave"],
        "saddle",
    )


def inertia_of(eigenvalues: Any, rtol: float) -> tuple[np.ndarray, np.ndarray]:
    """Index (eigenvalues < -tau) and nullity (|lambda| <= tau) of every spectrum; -1 if invalid."""
    values = _eigenvalues(eigenvalues)
    tau = checked_rtol(rtol) * np.abs(values).max(axis=-1, keepdims=True)
    bad = ~np.isfinite(values).all(axis=-1)
    index, nullity = (values < -tau).sum(axis=-1), (np.abs(values) <= tau).sum(axis=-1)
    return np.where(bad, -1, index), np.where(bad, -1, nullity)


def exact_bounds(eigenvalues: Array) -> Array:
    """bounds (P, 3, 2) of exact eigenvalues (P, n)."""
    ends = [eigenvalues.min(axis=1), eigenvalues.max(axis=1), np.abs(eigenvalues).min(axis=1)]
    return np.repeat(np.stack(ends, axis=1)[:, :, None], 2, axis=2)


def kinds_within(bounds: Array, rtol: float) -> np.ndarray:
    """(P,) classes of spectra within bounds (P, 3, 2): also "undecided", and "invalid" for NaN."""
    singular, regular = _settled(bounds, checked_rtol(rtol))
    (low, low_most), (high_least, high) = bounds[:, 0].T, bounds[:, 1].T
    return _chosen(
        [
            np.isnan(bounds).any(axis=(1, 2)),
            singular,
            regular & (low > 0.0),
            regular & (high < 0.0),
            regular & (low_most < 0.0) & (high_least > 0.0),
        ],
        ["invalid", "singular", "convex", "concave", "saddle"],
        "undecided",
    )


def flip_points(bounds: Array, rtol: float) -> Array:
    """(P,) the rtol at which the class that it has at `rtol` is lost; NaN where it has none.

    For exact eigenvalues that is min |lambda| / max |lambda|: a point is singular from there on.
    """
    kinds = kinds_within(bounds, rtol)
    least, most = _scales(bounds)
    near = bounds[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        singular = np.where(near[:, 1] == 0.0, 0.0, near[:, 1] / least)
        regular = near[:, 0] / most
    found = np.where(kinds == "singular", singular, regular)
    return np.where(np.isin(kinds, CLASSES), found, np.nan)


def margins(bounds: Array, rtol: float) -> Array:
    """(P,) >= 1: the factor by which rtol must move, up or down, for a point to lose its class.

    Infinite where no factor does it, NaN where there is no class.
    """
    flips = flip_points(bounds, rtol)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(flips <= rtol, rtol / flips, flips / rtol)
    factor = np.where((flips == 0.0) | (rtol == 0.0), np.inf, factor)
    return np.where(np.isnan(flips), np.nan, factor)


def checked_rtol(rtol: Any) -> float:
    number = isinstance(rtol, int | float | np.number) and not isinstance(rtol, bool)
    if not (number and 0.0 <= rtol < 1.0):
        raise InvalidArgument(f"rtol: expected a number in [0, 1), got {rtol!r}")
    return float(rtol)


def _settled(bounds: Array, rtol: float) -> tuple[np.ndarray, np.ndarray]:
    """Where a zero is certain, and where it is certain that there is none."""
    least, most = _scales(bounds)
    with np.errstate(invalid="ignore"):
        return bounds[:, 2, 1] <= rtol * least, bounds[:, 2, 0] > rtol * most


def _scales(bounds: Array) -> tuple[Array, Array]:
    """The least and the largest value (P,) that max |lambda| can have."""
    ends = bounds[:, :2]
    around = (ends[:, :, 0] <= 0.0) & (ends[:, :, 1] >= 0.0)
    least = np.where(around, 0.0, np.abs(ends).min(axis=2)).max(axis=1)
    return np.maximum(least, bounds[:, 2, 0]), np.abs(ends).max(axis=(1, 2))


def _chosen(conditions: Sequence[Any], names: Sequence[str], otherwise: str) -> np.ndarray:
    return np.select(conditions, [np.array(name) for name in names], np.array(otherwise))


def _eigenvalues(given: Any) -> Array:
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"eigenvalues: expected numbers (..., n): {error}") from error
    if values.ndim < 1 or values.shape[-1] == 0:
        raise InvalidArgument(f"eigenvalues: expected shape (..., n), n > 0, got {values.shape}")
    return values
