"""The curvature class of one point of a large model, from products with its Hessian.

What is known is kept as bounds (see `curvature_classes`):
- Ritz values lie inside the spectrum, so the outermost ones bound lambda_min from above and
  lambda_max from below; with their residuals they bound the other side too, as far as Lanczos from
  random starts does not miss an end.
- For any unit vector v there is an eigenvalue with |lambda| <= ||H v||: Ritz values near 0 with
  their residuals, coordinates whose row of H is zero (dead units), and shifts of all biases of a
  layer (the outputs of softmax cross-entropy) are tried.
- All distinct eigenvalues are known where a Krylov space is exhausted.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..arrays import Array
from ..curvature.eigen import ROUNDING
from ..curvature.ends import both_ends
from ..curvature.operators import as_operator
from ..curvature.spectra import spectrum
from ..curvature.symmetric_operator import SymmetricOperator
from ..errors import InvalidArgument
from ..results.curvature_classes import kinds_within
from ..theta import random_source

if TYPE_CHECKING:
    from ..landscape import Landscape
    from ..results.spectra import Spectrum

CANDIDATES = 16  # vectors tried as null vectors, beside Ritz vectors
TOLERANCES = (1e-4, 1e-7, 1e-10)  # of the ends, one after the other, where the density's are open


class LanczosClassifier:
    """Called with a point (n,), gives its row of `classify`'s columns (12,).

    Args:
        land: the landscape; products are of its dtype.
        rtol: |lambda| <= rtol max |lambda| counts as zero.
        probes, steps, seed: of the spectral density.
    """

    def __init__(self, land: Landscape, rtol: float, probes: int, steps: int, seed: int) -> None:
        self.land, self.rtol = land, rtol
        self.probes, self.steps, self.seed = probes, steps, seed
        self.eps = float(torch.finfo(land.dtype).eps)

    def __call__(self, point: Array) -> Array:
        row = np.full(12, np.nan)
        if not np.isfinite(point).all():
            return row
        theta = torch.as_tensor(point)
        row[0] = self.land.loss(theta)
        row[1] = float(torch.linalg.vector_norm(self.land.gradient(theta)))
        if not np.isfinite(row[:2]).all():
            return row
        op = as_operator(self.land, theta=theta)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of products that are not finite
                found = spectrum(op, self.probes, self.steps, seed=self.seed, progress=False)
        except InvalidArgument:  # not one finite product
            return row
        if "not finite" in found.outcomes:
            return row
        bounds = self._bounds(op, found)
        row[2:8] = bounds.reshape(6)
        row[8:] = op.n * _inertia_shares(found, self.rtol * float(np.abs(bounds[:2]).max()))
        return row

    def _bounds(self, op: SymmetricOperator, found: Spectrum) -> Array:
        """(3, 2) of lambda_min, lambda_max and min |lambda|."""
        there = ~np.isnan(found.nodes)
        nodes = found.nodes[there]
        slack = ROUNDING * self.eps * float(np.abs(nodes).max(initial=0.0))
        reach = found.bounds[there] + slack
        i, j = int(np.argmin(nodes)), int(np.argmax(nodes))
        low, high = (nodes[i] - reach[i], nodes[i] + slack), (nodes[j] - slack, nodes[j] + reach[j])
        nearest = min(float((np.abs(nodes) + reach).min()), null_residual(op, self.seed) + slack)
        whole = any(o in ("breakdown", "exhausted") for o in found.outcomes)
        least = max(0.0, float((np.abs(nodes) - reach).min())) if whole else 0.0
        bounds = self._together(low, high, (least, nearest))
        for tol in TOLERANCES:
            if not self._ends_are_open(bounds) or tol < self.eps:
                break
            ends = both_ends(op, tol, seed=self.seed)
            if np.isnan(ends.low):
                break
            below, above = ends.residuals[0] + slack, ends.residuals[1] + slack
            low = (ends.low - below, min(low[1], ends.low + slack))
            high = (max(high[0], ends.high - slack), ends.high + above)
            nearest = min(nearest, abs(ends.low) + below, abs(ends.high) + above)
            bounds = self._together(low, high, (least, nearest))
        return bounds

    @staticmethod
    def _together(
        low: tuple[float, float], high: tuple[float, float], near: tuple[float, float]
    ) -> Array:
        """The bounds; a definite matrix has its smallest |lambda| at an end."""
        least = max(near[0], low[0], -high[1], 0.0)
        return np.array([low, high, (min(least, near[1]), near[1])])

    def _ends_are_open(self, bounds: Array) -> bool:
        """Whether sharper ends can settle a point: not where both are clearly away from 0."""
        if kinds_within(bounds[None], self.rtol)[0] != "undecided":
            return False
        tau = self.rtol * float(np.abs(bounds[:2]).max())
        return not (bounds[0, 1] < -tau and bounds[1, 0] > tau)


def _inertia_shares(found: Spectrum, tau: float) -> Array:
    """(4,) shares of eigenvalues below -tau and within tau, and how far off these can be.

    The weight of nodes whose bounds reach across a border counts half, and its other half goes to
    the error, beside the standard error over the probes (NaN for one).
    """
    low, high = found.nodes - found.bounds, found.nodes + found.bounds  # NaN where there is none
    sure = (high < -tau, (low >= -tau) & (high <= tau))
    possible = (low < -tau, (low <= tau) & (high >= -tau))
    shares, errors = [], []
    for certain, maybe in zip(sure, possible, strict=True):
        least, most = ((found.weights * inside).sum(axis=1) for inside in (certain, maybe))
        middle = (least + most) / 2.0
        scatter = middle.std(ddof=1) / len(middle) ** 0.5 if len(middle) > 1 else np.nan
        shares.append(middle.mean())
        errors.append(scatter + float((most - least).mean()) / 2.0)
    return np.array([*shares, *errors])


def null_residual(op: SymmetricOperator, seed: int = 0) -> float:
    """The smallest ||H v|| of a few unit vectors v that are null vectors of many networks."""
    random = random_source.normals(1, op.n, seed, random_source.SINGLE, torch.float64, op.device)
    zero = torch.nonzero(op(random)[0] == 0.0).flatten()
    rows: list[Tensor] = []
    for at in zero[: CANDIDATES // 2]:
        rows.append(torch.zeros(op.n, dtype=torch.float64, device=op.device))
        rows[-1][at] = 1.0
    entries = op.layout.entries if op.layout is not None else ()
    vectors = [e for e in entries if len(e.shape) == 1 and e.numel]
    for entry in vectors[-(CANDIDATES - len(rows)) :]:
        rows.append(torch.zeros(op.n, dtype=torch.float64, device=op.device))
        rows[-1][entry.offset : entry.offset + entry.numel] = entry.numel**-0.5
    if not rows:
        return float("inf")
    norms = torch.linalg.vector_norm(op(torch.stack(rows)), dim=1)
    return float(norms[torch.isfinite(norms)].min()) if bool(norms.isfinite().any()) else np.inf
