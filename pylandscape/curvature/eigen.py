"""Extreme eigenpairs by thick-restart Lanczos (Wu and Simon 2000), with measured residuals."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import integer
from ..arrays import Path, all_finite, digest
from ..errors import InvalidArgument
from ..results.eigen_pairs import WHICH, EigenPairs
from ..runs.checkpoint import Arrays, Checkpoint
from ..runs.request import build
from ..runs.resume import resumable
from ..theta.random_source import SOURCE
from .lanczos import RECHECK, Array, Lanczos, outcome_of, random_starts, watched
from .operators import Balanced, as_operator
from .symmetric_operator import SymmetricOperator
from .tall import combine, inner, norms, orthonormal

BASIS_BYTES = 1 << 30  # that the default basis takes at most
LEAST_ROWS, ROWS_PER_PAIR = 60, 4  # of the default basis
CHECKED_STEPS = 64  # steps up to which the Ritz values are looked at after each one
CHECK_EVERY = 5  # steps between two looks beyond CHECKED_STEPS
ROUNDING = 10  # residuals of ROUNDING eps ||A|| are as small as the dtype allows
INVARIANT = 100  # eps ||A||: products round by as much, and beta is then noise
CLEAR = 1e-3  # residual, relative to ||A||, at which a Ritz value is known roughly
SURE = 1000  # the iteration goes on until residuals are so many times below a loose tolerance
TIGHT = 1e-6  # tolerance that is not loose


def eigenpairs(
    a: Any,
    k: int = 1,
    which: str = "LA",
    *,
    tol: float = 1e-6,
    matrix: str = "hessian",
    theta: Any = None,
    params: Sequence[str] | None = None,
    basis: int | None = None,
    max_products: int | None = None,
    seed: int = 0,
    start: Any = None,
    measure: bool = False,
    path: Path | None = None,
    progress: bool = True,
) -> EigenPairs:
    """k extreme eigenvalues of a landscape's Hessian (or any symmetric matrix), with vectors.

    Args:
        a: a Landscape, SymmetricOperator, scipy LinearOperator or sparse matrix, dense array.
        k: how many, 1 .. n.
        which: "LA" largest, "SA" smallest (most negative), "LM" largest magnitude, "BE" both ends
            (the larger half of k from the top).
        tol: a pair has converged when ||A x - value x|| <= tol |value|, or, where the dtype allows
            no better, <= 10 eps ||A||. The iteration stops at eps ||A||, or at tol |value| for a
            tol up to 1e-6, 1e-6 |value| for one up to 1e-3, tol / 1000 |value| beyond: a residual
            says that some eigenvalue is near, not that none beyond it is.
        matrix, theta, params: see `as_operator`.
        basis: rows of the Lanczos basis before a restart; default 4 k, at least 60, while it takes
            at most 1 GiB. Memory: basis n numbers.
        max_products: at most so many, those that measure residuals among them; default 10 n, at
            least 1,000. Where k steps, or the n after which the basis spans the whole space, leave
            none for that, residuals are Lanczos' own bounds.
        seed: of the random start (the same on a CPU and a GPU), to which the gradient is added for
            large eigenvalues of a landscape; `start` (n,) replaces both.
        measure: measure every residual with k further products, and improve the pairs by
            Rayleigh-Ritz. Otherwise one product of a random combination of the vectors measures
            what rounding added to Lanczos' own bounds, for all pairs together.
        path: HDF5 file for the result; a run that was stopped goes on from what lies beside it.
        progress: show a bar on stderr.

    Returns:
        EigenPairs, sorted as `which` says; `converged` goes by the residuals. A matrix that has an
        eigenvalue several times may show it fewer times: one start sees one vector of each
        eigenspace until its Krylov space is exhausted; a random one goes on from there.

    Raises:
        InvalidArgument: k, which, tol, basis or start do not fit; the first product is not finite.
        ResumeMismatch: `path` belongs to another request.

    Source: K. Wu, H. Simon, "Thick-restart Lanczos method for large symmetric eigenvalue
    problems", SIAM J. Matrix Anal. Appl. 22 (2000).
    """
    op = as_operator(a, matrix, theta, params)
    k, rows, most = _checked(op.n, op, k, which, tol, basis, max_products)
    first = _first(op, start, seed, which)
    request = build(
        op, "eigenpairs", path is not None, k=k, which=which, tol=tol, basis=rows,
        max_products=most, start=digest(first), measure=measure,
        random=SOURCE,  # of the start and of fresh rows
    )  # fmt: skip

    def run(checkpoint: Checkpoint) -> EigenPairs:
        iteration = _Iteration(
            op, k, which, tol, rows, most, first, seed, measure, checkpoint, start is None
        )
        return iteration.run(progress)

    # What follows from the seed and the gradient may differ in its last bits on GPUs.
    compared = request if start is not None else {**request, "start": None}
    return resumable(path, request, run, compared)


def rough_norm(
    op: SymmetricOperator, tol: float, start: Tensor | None, seed: int, progress: bool
) -> float:
    """|value| of the first Ritz pair of largest magnitude whose residual is tol |value|, which need
    not be near the largest eigenvalue. Raises as `eigenpairs`."""
    k, rows, most = _checked(op.n, op, 1, "LM", tol, None, None)
    first = _first(op, start, seed, "LM")
    nowhere = Checkpoint(None, {})
    iteration = _Iteration(op, k, "LM", tol, rows, most, first, seed, False, nowhere, start is None)
    iteration.stop = tol
    return abs(float(iteration.run(progress).values[0]))


class _Iteration:
    """Lanczos to `rows` rows, a restart with the best Ritz vectors, until the wanted converge."""

    def __init__(
        self,
        op: SymmetricOperator,
        k: int,
        which: str,
        tol: float,
        rows: int,
        most: int,
        first: Tensor,
        seed: int,
        measure: bool,
        checkpoint: Checkpoint,
        random: bool,
    ) -> None:
        self.measure = measure
        found = checkpoint.load()
        op = Balanced(op, None if found is None else found["exponent"])
        self.op, self.k, self.which, self.tol, self.most = op, k, which, tol, most
        self.stop = stopping_tolerance(tol)
        self.checkpoint = checkpoint
        self.before, self.restarts = op.products, 0
        self.broken = False  # whether the space was invariant before the last restart
        self.random = random  # the start is
        self.lanczos = Lanczos(op, first[None], rows, fresh=True, seed=seed)
        if found is not None:
            self._take_up(found)

    @property
    def products(self) -> int:
        return self.op.products - self.before

    @property
    def measuring(self) -> int:
        """Products that residuals take."""
        return self.k if self.measure else 1

    def run(self, progress: bool) -> EigenPairs:
        started = time.perf_counter()
        lanczos = self.lanczos
        whole = lanczos.most_steps >= self.op.n  # n steps give every eigenpair
        least = self.op.n if whole else self.k
        last = min(self.most, max(least, self.most - self.measuring))  # product of the iteration
        total = min(last, lanczos.most_steps)
        with watched(total, "eigenpairs", progress) as show:
            try:
                while True:
                    step = 1 if lanczos.steps() < CHECKED_STEPS else CHECK_EVERY
                    step = min(step, max(1, last - self.products))
                    lanczos.run(min(lanczos.steps() + step, lanczos.most_steps))
                    show(self.products)
                    if not lanczos.running() and lanczos.outcome() != "complete":
                        break
                    if self._settled() or self.products >= last:
                        break
                    if lanczos.steps() == lanczos.most_steps:
                        self._restart()
                    if self.checkpoint.due:
                        self.checkpoint.save(self._arrays())
            except BaseException:
                if self.checkpoint.path is not None:
                    self.checkpoint.save(self._arrays())
                raise
            return self._result(time.perf_counter() - started)

    def _settled(self) -> bool:
        if self.lanczos.steps() < self.k:
            return False
        values, _, bounds = self.lanczos.nodes()
        found = wanted(values, self.k, self.which)
        small = bounds[found] <= allowed(self.op, self.stop, values, found, 1.0)
        return bool(small.all()) and self._complete(values)

    def _breaks(self) -> np.ndarray:
        """Rows of T after which its Krylov space was invariant, up to rounding."""
        alpha, beta, spikes, _ = self.lanczos.state()
        scale = max(float(np.abs(part).max(initial=0.0)) for part in (alpha, beta, spikes))
        tiny = beta[len(spikes) :] <= INVARIANT * torch.finfo(self.op.dtype).eps * scale
        return len(spikes) + np.flatnonzero(tiny)

    def _complete(self, values: Array) -> bool:
        """Whether no wanted value is orthogonal to all rows so far, as far as can be told.

        Where the space was invariant, a random vector went on, and bounds of 0 say nothing about
        what it finds. The wanted are complete once such a vector's own space, whole, has nothing
        better than the last of them; or has its best value converged or clearly worse.
        """
        breaks = self._breaks()
        if not len(breaks) and not self.broken:
            return True
        t, beta = self.lanczos.tridiagonal()
        spikes = self.lanczos.state()[2]
        first = np.r_[0, breaks + 1]  # row of each block
        rounding = ROUNDING * torch.finfo(self.op.dtype).eps * float(np.abs(values).max())
        newest = np.arange(first[-1], len(t))
        if not len(breaks):  # of the kept rows those that are not invariant on their own
            newest = newest[np.r_[np.abs(spikes) > rounding, np.ones(len(t) - len(spikes), bool)]]
        whole = np.arange(first[-2], first[-1]) if len(breaks) else newest[:0]
        if len(breaks) == 1 and not self.broken and not self.random:
            whole = whole[:0]  # of a start that may have been chosen inside it
        for size, count in _ends(self.which, self.k):
            least = np.sort(size(values))[-count]
            if len(whole):
                best = size(np.linalg.eigvalsh(t[np.ix_(whole, whole)])).max()
                if best <= least + rounding:
                    continue
            if not len(newest):
                return False
            own, turn = np.linalg.eigh(t[np.ix_(newest, newest)])
            at = int(np.argmax(size(own)))
            bound, value = beta * abs(turn[-1, at]), size(own)[at]
            known = bound <= max(self.tol * abs(own[at]), rounding)
            scale = float(np.abs(values).max())
            if not known and not (bound <= CLEAR * scale and value + bound < least):
                return False
        return True

    def _restart(self) -> None:
        """Rows 0 .. l-1 become the best Ritz vectors, row l the residual's direction."""
        lanczos = self.lanczos
        broken = self.broken or len(self._breaks()) > 0
        values, vectors, _ = lanczos.ritz()
        beta = lanczos.tridiagonal()[1]
        m = len(values)
        count = min(self.k + (m - self.k) // 2, m - 2)
        kept = np.sort(wanted(values, max(1, count), self.which))
        lanczos.rotate(vectors[:, kept])
        lanczos.basis[0, len(kept)] = lanczos.basis[0, m]
        lanczos.load(0, values[kept], np.zeros(len(kept)), beta * vectors[-1, kept])
        self.broken = broken
        self.restarts += 1

    def _result(self, seconds: float) -> EigenPairs:
        lanczos = self.lanczos
        info: dict[str, Any] = {
            "request": self.checkpoint.request, "outcome": lanczos.outcome(), "seconds": seconds,
            "restarts": self.restarts, "notes": [],
        }  # fmt: skip
        if lanczos.outcome() == "not finite":
            step = lanczos.steps() + 1
            if step == 1:
                raise InvalidArgument("operator: expected finite products, the first one is not")
            info["notes"].append(f"stopped: the product of step {step} is not finite")
            warnings.warn(
                f"Lanczos stopped: the product of step {step} is not finite; the pairs are those "
                "found before",
                stacklevel=4,
            )
        room = self.products + self.measuring <= self.most
        if self.measure and not room:
            info["notes"].append("max_products left none to measure residuals: they are bounds")
        pairs = pairs_of(
            lanczos, self.k, self.which, self.tol, self.measure and room, rounding=room
        )
        info["notes"] += self.op.notes()
        pairs.products, pairs.info = self.products, info
        return pairs

    def _arrays(self) -> Arrays:
        alpha, beta, spikes, outcome = self.lanczos.state()
        rows = self.lanczos.rows(len(alpha) + 1)[0]
        counts = np.array([self.products, self.restarts, int(outcome), int(self.broken)])
        return {
            "alpha": alpha, "beta": beta, "spikes": spikes, "basis": rows, "counts": counts,
            "exponent": self.op.known(),
        }  # fmt: skip

    def _take_up(self, found: Arrays) -> None:
        products, self.restarts, outcome, broken = (int(c) for c in found["counts"])
        self.broken = bool(broken)
        rows = torch.as_tensor(found["basis"])
        self.lanczos.basis[0, : len(rows)] = rows
        if len(found["alpha"]):
            self.lanczos.recheck(0, found["alpha"], len(found["spikes"]), RECHECK)
        state = (found["alpha"], found["beta"], found["spikes"])
        self.lanczos.load(0, *state, outcome=outcome_of(outcome))
        self.before = self.op.products - products


def stopping_tolerance(tol: float) -> float:
    """Where an iteration that is asked for `tol` stops.

    A Ritz pair of residual r may be a mixture of an eigenvector with the wanted one beside it,
    whose part in it is up to r / gap: the start was that poor in it. For a random start this has
    the probability 2/pi atan(r / gap), whatever the matrix. The wanted one is missed by more than
    tol only if gap > tol, so that a residual of tol / SURE leaves 0.06 % for the worst gap.
    """
    return min(tol, max(tol / SURE, TIGHT))


def pairs_of(
    lanczos: Lanczos,
    k: int,
    which: str,
    tol: float,
    measure: bool = False,
    rounding: bool = True,
) -> EigenPairs:
    """The k wanted Ritz pairs of the first start, with their residuals; the operator is `Balanced`.

    Args:
        measure: by k products, with Rayleigh-Ritz.
        rounding: else by one product, which shows what rounding added to the bounds; False for the
            bounds alone.
    """
    values, turn, bounds = lanczos.ritz()
    op = lanczos.operator
    before = op.products
    chosen = wanted(values, min(k, len(values)), which)
    x = lanczos.vectors(turn[:, chosen]).double()
    x = x / norms(x)[:, None]
    limit = allowed(op, tol, values, chosen, ROUNDING)
    if measure:
        found, x, residuals = _rayleigh_ritz(op, x, which)
    else:
        found = values[chosen]
        signs = np.sign(turn[-1, chosen]) if len(turn) else np.empty(0)
        residuals = bounds[chosen]
        if rounding:
            residuals = _with_rounding(lanczos, found, x, residuals, signs)
    return EigenPairs(
        op.restored(found), x.to(lanczos.dtype), op.restored(residuals), residuals <= limit,
        op.products - before, which, tol,
    )  # fmt: skip


def allowed(
    op: SymmetricOperator, tol: float, values: Array, chosen: np.ndarray, rounding: float
) -> Array:
    """Residuals that count as converged, of the chosen ones of all Ritz values."""
    scale = float(np.abs(values).max(initial=0.0))
    return np.maximum(tol * np.abs(values[chosen]), rounding * torch.finfo(op.dtype).eps * scale)


def _with_rounding(
    lanczos: Lanczos, values: Array, x: Tensor, bounds: Array, signs: Array
) -> Array:
    """Residual norms from Lanczos' bounds and one product.

    Exactly, r_i = A x_i - value_i x_i = sign_i bound_i q for the next vector q of the basis. What
    the sum of r_i with random signs s_i has beyond that is rounding: E ||sum s_i e_i||^2 =
    sum ||e_i||^2, shared out evenly.
    """
    s = np.random.default_rng(0).choice([-1.0, 1.0], len(values))
    both = combine(torch.as_tensor(np.stack([s, s * values])).to(x.device), x)
    error = lanczos.operator(both[:1].to(lanczos.operator.dtype))[0] - both[1]
    if lanczos.outcome() in ("complete", "not finite"):
        q = lanczos.basis[0, lanczos.steps()].double()
        error = error - float((s * signs * bounds).sum()) * q.to(error.device)
    rounding = float(norms(error[None])[0]) ** 2 / max(1, len(values))
    found: Array = np.sqrt(bounds**2 + rounding)
    return found


def _rayleigh_ritz(op: SymmetricOperator, x: Tensor, which: str) -> tuple[Array, Tensor, Array]:
    """Values, vectors and measured residuals of A within the span of x (k, n)."""
    x = orthonormal(x)[0]
    ax = op(x.to(op.dtype))
    projected = inner(x, ax)
    found, rotation = np.linalg.eigh(((projected + projected.T) / 2).cpu().numpy())
    order = wanted(found, len(found), which)
    c = torch.as_tensor(rotation[:, order].T.copy()).to(x.device)
    x, ax, found = combine(c, x), combine(c, ax), found[order]
    scaled = torch.as_tensor(found).to(x.device)[:, None] * x
    return found, x, norms(ax - scaled).cpu().numpy()


def wanted(values: Array, k: int, which: str) -> np.ndarray:
    """Indices of the k wanted of ascending values, in the order of the results."""
    n = len(values)
    if which == "LA":
        return np.arange(n)[::-1][:k]
    if which == "SA":
        return np.arange(k)
    if which == "LM":
        return np.argsort(-np.abs(values), kind="stable")[:k]
    top, low = (k + 1) // 2, k // 2
    return np.concatenate([np.arange(n)[::-1][:top], np.arange(low)[::-1]])


def _ends(which: str, k: int) -> list[tuple[Callable[[Array], Array], int]]:
    """What is large where it is wanted, and how many: of each end of the spectrum."""
    if which == "BE":
        both = [(np.positive, (k + 1) // 2), (np.negative, k // 2)]
        return [(size, count) for size, count in both if count]
    return [({"LA": np.positive, "SA": np.negative, "LM": np.abs}[which], k)]


def _checked(
    n: int,
    op: SymmetricOperator,
    k: Any,
    which: str,
    tol: float,
    basis: Any,
    max_products: Any,
) -> tuple[int, int, int]:
    """k, rows of the basis, most products."""
    k = integer(k, "k")
    if not 1 <= k <= n:
        raise InvalidArgument(f"k: expected 1 .. {n} (the order of the matrix), got {k}")
    if which not in WHICH:
        raise InvalidArgument(f"which: expected one of {', '.join(WHICH)}, got {which!r}")
    if not (isinstance(tol, int | float) and 0 <= tol < 1):
        raise InvalidArgument(f"tol: expected a number in [0, 1), got {tol!r}")
    if basis is None:
        fit = BASIS_BYTES // (n * torch.finfo(op.dtype).bits // 8)
        rows = min(max(ROWS_PER_PAIR * k, LEAST_ROWS), max(fit, 2 * k + 10))
    else:
        rows = integer(basis, "basis")
        if rows < k + 3 and rows < n:
            raise InvalidArgument(f"basis: expected at least k + 3 = {k + 3} rows, got {rows}")
    most = max(10 * n, 1000) if max_products is None else integer(max_products, "max_products", 1)
    return k, min(rows, n), most


def _first(op: SymmetricOperator, start: Any, seed: Any, which: str) -> Tensor:
    """The start (n,), where the operator is: as given, or random, plus the hint in equal parts
    where that helps."""
    if start is None:
        drawn = random_starts(op.n, 1, integer(seed, "seed"), op.dtype, op.device)[0]
        hint = op.hint().to(op.device, torch.float64) if op.hint and which != "SA" else None
        length = 0.0 if hint is None else float(norms(hint[None])[0])
        if hint is None or not 0.0 < length < float("inf"):
            return drawn
        noise = drawn.double() / norms(drawn[None])[0]
        return (hint / length + noise).to(op.dtype)
    first = torch.as_tensor(getattr(start, "vector", start)).detach().to(op.device, op.dtype)
    if first.shape != (op.n,):
        raise InvalidArgument(f"start: expected shape ({op.n},), got {tuple(first.shape)}")
    if not all_finite(first) or not bool(first.any()):
        raise InvalidArgument("start: expected a finite vector that is not zero")
    return first
