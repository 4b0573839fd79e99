"""Solvers of g(theta) = ∇L(theta) = 0 from many starts.

The merit of a point is phi = ‖g‖^2 / 2 with gradient H g: saddles attract as minima do. Steps damp
Newton's, s = -(H^2 + mu^2)^-1 H g, which descends phi whatever the signs of H's eigenvalues:

    newton          mu = ‖g‖, then backtracking. Quadratic also where H is singular along a
                    manifold of critical points (Yamashita, Fukushima 2001; Fan, Yuan 2005), in
                    parameters of order 1.
    gradient_norm   Gauss-Newton on phi with mu^2 by the gain ratio (Levenberg-Marquardt; the
                    update is Nielsen's, 1999).

For large n: newton's s from MINRES on products H v with backtracking on phi (Newton-MR: Roosta,
Liu, Xu, Mahoney 2018), gradient_norm's from LSMR with damping mu.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, lsmr, minres

from ..arrays import Array
from ..curvature.at_points import gradients, hessians
from ..results.critical_set import OUTCOMES

if TYPE_CHECKING:
    from ..landscape import Landscape

EPS = float(np.finfo(np.float64).eps)
ATTEMPTS = 12  # shorter steps, or more damping, before a start counts as stalled
ARMIJO = 0.1  # of the predicted decrease of phi; less lets steps zigzag where H g = 0
LONG_STEP = 0.5  # longest step, times 1 + ‖theta‖
POLISHES = 3  # further steps once the gradient is below tol
FLAT_STEP = 1e-3  # Newton's step below tol that is no longer that of a critical point, same units
STALLED_SLOPE = 1e-10  # ‖H g‖ / (‖g‖ max|lambda|) at which phi has no descent left
KRYLOV = 200  # products of one step
RUNNING, CONVERGED, FLAT, STALLED, EXHAUSTED, FAR, NOT_FINITE = range(len(OUTCOMES))
STATE = ("points", "losses", "norms", "damping", "growth", "iterations", "polished", "codes")

_RTOL = "rtol" if "rtol" in inspect.signature(minres).parameters else "tol"  # scipy < 1.12


class Search:
    """The state of all starts (P, n): where they are, how they stand."""

    def __init__(
        self, land: Landscape, starts: Array, method: str, tol: float, max_iter: int, bound: float
    ) -> None:
        self.land, self.newton = land, method == "newton"
        self.tol, self.max_iter, self.bound = tol, max_iter, bound
        count = len(starts)
        self.points = starts.copy()
        self.losses, self.norms = np.full(count, np.nan), np.full(count, np.nan)
        self.damping, self.growth = np.full(count, np.nan), np.full(count, 2.0)
        self.iterations, self.polished = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.codes = np.full(count, RUNNING, dtype=np.int64)
        self.codes[~np.isfinite(starts).all(axis=1)] = NOT_FINITE

    @property
    def running(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.codes == RUNNING)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in STATE}

    def take_up(self, kept: dict[str, np.ndarray]) -> None:
        for name in STATE:
            setattr(self, name, kept[name])

    def advance(self, at: NDArray[np.intp]) -> None:
        """One iteration of the starts `at`."""
        raise NotImplementedError

    def _close(self, at: NDArray[np.intp], finite: NDArray[np.bool_]) -> None:
        """Ends the starts whose loss is not finite, that left the bound, that used all steps."""
        self.codes[at[~finite]] = NOT_FINITE
        left = at[finite & (np.abs(self.points[at]).max(axis=1, initial=0.0) > self.bound)]
        self.codes[left] = FAR
        spent = at[self.iterations[at] >= self.max_iter]
        open_ones = spent[self.codes[spent] == RUNNING]
        done = self.polished[open_ones] > 0
        self.codes[open_ones[done]], self.codes[open_ones[~done]] = CONVERGED, EXHAUSTED

    def _move(
        self,
        at: NDArray[np.intp],
        steps: Array,
        slopes: Array,
        norms: Array,
        redo: Callable[[NDArray[np.intp]], tuple[Array, Array]] | None,
    ) -> None:
        """Points at += steps (p, n) as far as ‖g‖ falls enough.

        slopes: (p,) -phi' along the step over 2 phi, in [0, 1]. redo: gives steps and slopes of the
        positions it is handed, with more damping; None halves the steps.
        """
        t = _shortening(steps, self.points[at])
        left = np.arange(len(at))
        for attempt in range(ATTEMPTS):
            trial = self.points[at[left]] + t[left, None] * steps[left]
            found = gradients(self.land, trial)
            reached = found.norms
            with np.errstate(invalid="ignore"):
                wanted = 1.0 - 2.0 * ARMIJO * t[left] * slopes[left]
                good = reached**2 <= wanted * norms[left] ** 2
            good &= np.isfinite(found.losses) & (reached < norms[left])
            self.points[at[left[good]]] = trial[good]
            if redo is not None and attempt == 0:
                gain = (1.0 - (reached / norms[left]) ** 2) / np.maximum(
                    t[left] * slopes[left], EPS
                )
                self._trust(at[left[good]], gain[good])
            left = left[~good]
            if not left.size:
                return
            if redo is None:
                t[left] *= 0.5
            else:
                self.damping[at[left]] *= self.growth[at[left]]
                self.growth[at[left]] *= 2.0
                steps[left], slopes[left] = redo(left)
                t[left] = _shortening(steps[left], self.points[at[left]])
        done = self.polished[at[left]] > 0
        self.codes[at[left[done]]], self.codes[at[left[~done]]] = CONVERGED, STALLED

    def _trust(self, at: NDArray[np.intp], gain: Array) -> None:
        """Nielsen's update of mu^2 after a step that was taken at once."""
        with np.errstate(over="ignore", invalid="ignore"):
            factor = np.maximum(1.0 / 3.0, 1.0 - (2.0 * np.minimum(gain, 2.0) - 1.0) ** 3)
        self.damping[at] = np.maximum(self.damping[at] * factor, np.finfo(np.float64).tiny)
        self.growth[at] = 2.0

    def _below(self, at: NDArray[np.intp], newton_steps: Array, curvatures: Array) -> None:
        """Starts whose gradient is below tol: flat, or to be polished, or converged.

        newton_steps: (p,) lengths of Newton's steps; curvatures: (p,) max |lambda|.
        """
        first = self.polished[at] == 0
        longest = FLAT_STEP * (1.0 + np.linalg.norm(self.points[at], axis=1))
        flat = first & ((newton_steps > longest) | (curvatures <= self.tol))
        self.codes[at[flat]] = FLAT
        self.polished[at[~flat]] += 1
        self.codes[at[self.polished[at] > POLISHES]] = CONVERGED


class DenseSearch(Search):
    """Exact Hessians of all starts together, and their eigenvectors."""

    def advance(self, at: NDArray[np.intp]) -> None:
        found = hessians(self.land, self.points[at], memory=1 << 62)
        assert found.matrices is not None
        self.losses[at], self.norms[at] = found.losses, found.norms
        finite = np.isfinite(found.losses) & np.isfinite(found.matrices).all(axis=(1, 2))
        finite &= np.isfinite(found.norms)
        self._close(at, finite)
        keep = self.codes[at] == RUNNING
        at, g = at[keep], found.gradients[keep]
        if not at.size:
            return
        values, vectors = np.linalg.eigh(found.matrices[keep])  # torch's bits depend on its threads
        c = np.einsum("pij,pi->pj", vectors, g)
        size, norms = np.abs(values).max(axis=1), self.norms[at]
        below = norms <= self.tol
        turned = np.linalg.norm(values * c, axis=1) <= STALLED_SLOPE * size * norms
        self.codes[at[turned & ~below & (size > 0.0)]] = STALLED
        damping = np.maximum(norms, 100.0 * EPS * size)
        least = _damped(values, c, damping**2)
        self._below(at[below], np.linalg.norm(least[below], axis=1), size[below])
        start = np.isnan(self.damping[at])
        self.damping[at[start]] = 1e-3 * size[start] ** 2

        def steps_of(rows: NDArray[np.intp]) -> tuple[Array, Array]:
            mu2 = damping[rows] ** 2
            if not self.newton:  # once below tol, the polishing steps are Newton's
                mu2 = np.where(below[rows], mu2, self.damping[at[rows]])
            along = _damped(values[rows], c[rows], mu2)
            slopes = -(values[rows] * along * c[rows]).sum(axis=1) / norms[rows] ** 2
            return np.einsum("pij,pj->pi", vectors[rows], along), slopes

        rows = np.flatnonzero((self.codes[at] == RUNNING) & (norms > 0.0))
        self.codes[at[(self.codes[at] == RUNNING) & (norms == 0.0)]] = CONVERGED
        self.iterations[at[rows]] += 1
        steps, slopes = steps_of(rows)
        again = None if self.newton else (lambda left: steps_of(rows[left]))
        self._move(at[rows], steps, slopes, norms[rows], again)


class ProductSearch(Search):
    """Krylov steps from Hessian-vector products, one start after another."""

    def advance(self, at: NDArray[np.intp]) -> None:
        for start in at:
            self._one(np.array([start]))

    def _one(self, at: NDArray[np.intp]) -> None:
        found = gradients(self.land, self.points[at])
        self.losses[at], self.norms[at] = found.losses, found.norms
        self._close(at, np.isfinite(found.losses) & np.isfinite(found.norms))
        if self.codes[at[0]] != RUNNING:
            return
        g, norm = found.gradients[0], float(found.norms[0])
        if norm == 0.0:
            self.codes[at] = CONVERGED
            return
        point = torch.as_tensor(self.points[at[0]])
        operator = self.land.linear_operator(point)
        below = norm <= self.tol
        if below or self.newton:
            step = newton_step(operator, g, min(0.1, norm**0.5))
        if below:
            bend = operator.matvec(g / norm)
            self._below(at, np.array([np.linalg.norm(step)]), np.array([np.linalg.norm(bend)]))
            if self.codes[at[0]] != RUNNING:
                return
        if np.isnan(self.damping[at[0]]):
            self.damping[at] = 1e-3 * np.linalg.norm(operator.matvec(g / norm)) ** 2
        again = None
        if not self.newton and not below:

            def again(left: NDArray[np.intp]) -> tuple[Array, Array]:
                mu = float(self.damping[at[0]]) ** 0.5
                s = lsmr(operator, -g, damp=mu, atol=1e-8, btol=1e-8, maxiter=KRYLOV)[0]
                return s[None], _slope(operator, s, g)

            step = again(np.zeros(1, dtype=np.intp))[0][0]
        self.iterations[at] += 1
        self._move(at, step[None].copy(), _slope(operator, step, g), np.array([norm]), again)


def newton_step(operator: LinearOperator, g: Array, rtol: float) -> Array:
    """-H^+ g by MINRES; a direction in which ‖g‖ falls wherever it stops."""
    step, _ = minres(operator, -g, maxiter=KRYLOV, **{_RTOL: rtol})
    found: Array = step
    return found


def _slope(operator: LinearOperator, step: Array, g: Array) -> Array:
    """(1,): -g^T H s / ‖g‖^2, at least 0."""
    return np.array([max(0.0, -float(g @ operator.matvec(step)) / float(g @ g))])


def _damped(values: Array, c: Array, mu2: Array) -> Array:
    """-lambda c / (lambda^2 + mu^2) for values, c (p, n) and mu^2 (p,); 0 where lambda is."""
    bottom = values**2 + mu2[:, None]
    return np.divide(-values * c, bottom, out=np.zeros_like(c), where=bottom > 0.0)


def _shortening(steps: Array, points: Array) -> Array:
    """(p,) in (0, 1]: what keeps steps no longer than LONG_STEP (1 + ‖theta‖)."""
    length = np.linalg.norm(steps, axis=1)
    longest = LONG_STEP * (1.0 + np.linalg.norm(points, axis=1))
    return np.minimum(1.0, longest / np.maximum(length, np.finfo(np.float64).tiny))
