"""What vouches for a critical point: Newton-Kantorovich numbers, eigenvalues, Newton's decrement.

Kantorovich's theorem (Ortega 1968): with beta >= ‖H^-1‖, eta >= ‖H^-1 g‖, and H Lipschitz with
constant K around theta, h = beta eta K <= 1/2 means that g has exactly one zero near theta, at most
2 eta / (1 + sqrt(1 - 2h)) away. K is estimated here from samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..arrays import Array
from ..curvature.at_points import gradients, hessians
from ..results.curvature_classes import classes_of

if TYPE_CHECKING:
    from ..landscape import Landscape

EPS = float(np.finfo(np.float64).eps)
AROUND = 1e-3  # least distance of the samples of H, times 1 + ‖theta‖


@dataclass(frozen=True, eq=False)
class Certificate:
    """Per point (K,); see `CriticalSet` for the names."""

    losses: Array
    gradient_norms: Array
    kinds: NDArray[np.str_]
    index: NDArray[np.int64]
    nullity: NDArray[np.int64]
    eigenvalues: Array | None
    extremes: Array
    decrements: Array
    beta: Array
    eta: Array
    lipschitz: Array
    radius: Array
    certificates: NDArray[np.str_]


def certify(
    land: Landscape, points: Array, *, rtol: float | None = None, samples: int = 8, seed: int = 0
) -> Certificate:
    """Certificates of points (K, n) from exact Hessians.

    Args:
        rtol: eigenvalues up to rtol max|lambda| are zero; default n eps.
        samples: Hessians around every point for K; 0 leaves it NaN, and the certificates "none".
    """
    rtol = points.shape[1] * EPS if rtol is None else rtol
    found = hessians(land, points, memory=1 << 62)
    assert found.matrices is not None
    values, vectors = np.linalg.eigh(found.matrices)  # torch's bits depend on its threads
    sizes, c = np.abs(values), np.einsum("pij,pi->pj", vectors, found.gradients)
    largest = sizes.max(axis=1, initial=0.0)
    zero = sizes <= rtol * largest[:, None]
    eta = np.linalg.norm(_over(c, values, ~zero), axis=1)
    lipschitz = _lipschitz(land, points, found.matrices, eta, samples, seed)
    # What the point's own distance from the critical point can move an eigenvalue by.
    tau = np.maximum(rtol * largest, np.nan_to_num(lipschitz * eta))
    zero = sizes <= tau[:, None]
    eta = np.linalg.norm(_over(c, values, ~zero), axis=1)
    least = np.where(zero, np.inf, sizes).min(axis=1, initial=np.inf)
    with np.errstate(divide="ignore"):
        beta = np.where(np.isfinite(least), 1.0 / least, np.inf)
    nullity = zero.sum(axis=1)
    with np.errstate(invalid="ignore"):
        h = beta * eta * lipschitz
        radius = np.where(
            h <= 0.5, 2.0 * eta / (1.0 + np.sqrt(np.maximum(0.0, 1.0 - 2.0 * h))), np.nan
        )
    names = np.where(np.isfinite(radius), np.where(nullity == 0, "isolated", "range"), "none")
    kinds = classes_of(np.where(zero, 0.0, values), 0.0)
    return Certificate(
        found.losses, found.norms, kinds, (values < -tau[:, None]).sum(axis=1), nullity,
        values, values[:, [0, -1]],
        np.sqrt((_over(c**2, sizes, ~zero)).sum(axis=1)), beta, eta, lipschitz, radius, names,
    )  # fmt: skip


def certify_by_products(land: Landscape, points: Array, seed: int = 0) -> Certificate:
    """What is known without Hessians: extreme eigenvalues with residuals, Newton's step."""
    from ..curvature.eigen import eigenpairs
    from .search import newton_step

    count = len(points)
    found = gradients(land, points)
    extremes, eta, decrements = np.full((count, 2), np.nan), np.zeros(count), np.zeros(count)
    kinds = np.full(count, "undecided", dtype="<U9")
    for k, point in enumerate(points):
        pairs = eigenpairs(
            land, 2, "BE", tol=1e-3, theta=torch.as_tensor(point), seed=seed, progress=False
        )
        extremes[k] = pairs.values[::-1]
        known = np.abs(pairs.values) > pairs.residuals
        if known.all() and pairs.values[0] > 0.0 > pairs.values[1]:
            kinds[k] = "saddle"
        g = found.gradients[k]
        step = newton_step(land.linear_operator(torch.as_tensor(point)), g, 1e-6)
        eta[k], decrements[k] = np.linalg.norm(step), np.sqrt(abs(float(g @ step)))
    unknown = np.full(count, np.nan)
    return Certificate(
        found.losses, found.norms, kinds, np.full(count, -1), np.full(count, -1), None, extremes,
        decrements, unknown, eta, unknown.copy(), unknown.copy(), np.full(count, "none"),
    )  # fmt: skip


def _lipschitz(
    land: Landscape, points: Array, matrices: Array, eta: Array, samples: int, seed: int
) -> Array:
    """(K,): the largest ‖H(theta + d) - H(theta)‖_F / ‖d‖ of random d; NaN without samples."""
    found = np.full(len(points), np.nan)
    rng = np.random.default_rng(seed)
    distance = np.maximum(2.0 * eta, AROUND * (1.0 + np.linalg.norm(points, axis=1)))
    for _ in range(samples):
        d = rng.standard_normal(points.shape)
        d *= (distance / np.maximum(np.linalg.norm(d, axis=1), 1e-300))[:, None]
        there = hessians(land, points + d, memory=1 << 62).matrices
        assert there is not None
        change = np.linalg.norm(there - matrices, axis=(1, 2)) / distance
        found = np.fmax(found, change)
    return found


def _over(top: Array, bottom: Array, where: NDArray[np.bool_]) -> Array:
    return np.divide(top, bottom, out=np.zeros_like(top), where=where)
