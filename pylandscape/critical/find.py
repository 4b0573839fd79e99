"""Finding critical points: g(theta) = 0 from many starts, certified and de-duplicated."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import integer
from ..arrays import Array, digest, progress_bar
from ..curvature.at_points import as_points
from ..errors import InvalidArgument
from ..results.critical_set import OUTCOMES, CriticalSet
from ..runs.checkpoint import Arrays, Checkpoint
from ..runs.items import by_ranks
from ..runs.request import build
from ..runs.resume import resumable
from .certificates import Certificate, certify, certify_by_products
from .search import CONVERGED, EXHAUSTED, RUNNING, DenseSearch, ProductSearch, Search
from .symmetry import EquioutputGroup

if TYPE_CHECKING:
    from ..landscape import Landscape

METHODS = ("newton", "gradient_norm")
SOLVERS = ("auto", "exact", "products")
EXACT_N = 500  # largest n for which "auto" takes exact Hessians
BLOCK_BYTES = 64 << 20  # of the Hessians of the starts that advance together
MERGE = 1e-5  # distance of one and the same point, times 1 + ‖theta‖


def find_critical_points(
    land: Landscape,
    starts: Any,
    method: str = "newton",
    *,
    tol: float = 1e-10,
    max_iter: int = 200,
    bound: float | None = None,
    dedupe: bool | str | EquioutputGroup = True,
    merge: float = MERGE,
    rtol: float | None = None,
    samples: int = 8,
    solver: str = "auto",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> CriticalSet:
    """Critical points of L, of any index, reached from given starts.

    Args:
        land: the landscape. Losses, gradients and exact Hessians are float64 whatever its dtype;
            products H v are of its dtype.
        starts: (P, n) or (n,). A start that is not finite, or leads there, is reported in
            `outcomes`.
        method: "newton", damped, or "gradient_norm", Gauss-Newton (Levenberg-Marquardt) on
            ‖g‖^2 / 2, slower and steadier. Both can stall where H g = 0 but g is not: minima of
            the gradient's norm that are not critical. See `search.py`.
        tol: ‖g‖ of a critical point, in loss per unit of parameter. Points are then polished by
            three more steps.
        max_iter: steps from each start.
        bound: starts that leave |theta_j| <= bound end as "far"; default none. Networks that
            saturate have gradients below any tol far out; without a bound these end as "flat",
            unless they underflow to exactly 0.
        dedupe: True merges points that coincide. "symmetry" merges images under the network's
            equioutput group (MLPs; tanh, ReLU, ...), an `EquioutputGroup` those of that group.
            False keeps one point per start. With two or more hidden layers and a large group,
            images can be missed (see `alignment.align`) and stay as points of their own.
        merge: distance below which points are one, times 1 + ‖theta‖.
        rtol: eigenvalues up to rtol max|lambda| count as zero; default n eps.
        samples: Hessians around each point, for the certificate's Lipschitz estimate; 0 for none.
        solver: "exact" (Hessians and all eigenvalues, all starts together), "products"
            (Krylov methods on H v, start by start; no index, no certificate), "auto" (exact up to
            n = 500).
        seed: of the samples.
        path: HDF5 file for the result; a run that was stopped goes on from what lies beside it.
        progress: show a bar on stderr.

    Returns:
        CriticalSet. Which critical points are found depends on the starts; none is a list of all.

    Raises:
        InvalidArgument: names the argument.
        ResumeMismatch: `path` belongs to another request.

    Example:
        >>> starts = np.random.default_rng(0).normal(size=(100, land.n_params))
        >>> found = find_critical_points(land, starts, dedupe="symmetry")
        >>> print(found, found.table(), sep="\\n")
    """
    points = as_points(land, [starts] if np.ndim(starts) == 1 else starts)
    _check_choices(method, solver, tol, max_iter, bound, merge, rtol, samples)
    group = _group_of(land, dedupe)
    exact = solver == "exact" or (solver == "auto" and land.n_params <= EXACT_N)
    request = build(
        land, "critical set", starts=digest(points), method=method, tol=tol, max_iter=max_iter,
        bound=bound, dedupe=repr(group) if group else bool(dedupe), merge=merge, rtol=rtol,
        samples=samples, exact=exact, seed=seed,
    )  # fmt: skip

    def run(kept: Checkpoint) -> CriticalSet:
        begun = time.perf_counter()
        reach = math.inf if bound is None else float(bound)
        kind = DenseSearch if exact else ProductSearch
        search = kind(land, points, method, float(tol), int(max_iter), reach)
        shared = by_ranks(
            "critical points", kept.request, len(points),
            lambda at, beat: _some(kind(land, points[at], method, float(tol), int(max_iter), reach),
                                   beat),
            kept=kept, unit="start", progress=progress,
        )  # fmt: skip
        if shared is None:
            _advance(search, kept, progress)
        else:
            search.take_up(shared)
        ended = np.flatnonzero(search.codes == CONVERGED)
        certificate = _certified(land, search.points[ended], exact, rtol, samples, seed)
        found = _collected(search, ended, certificate, dedupe is not False, group, merge)
        seconds = time.perf_counter() - begun
        found.info = {"request": kept.request, "seconds": seconds, "method": method, "tol": tol}
        return found

    return resumable(path, request, run)


def _some(search: Search, beat: Callable[[], None]) -> Arrays:
    """The starts of this search, at their ends."""
    _advance(search, Checkpoint(None, {}), False, beat)
    return search.arrays()


def _advance(
    search: Search, kept: Checkpoint, progress: bool, beat: Callable[[], None] | None = None
) -> None:
    """All starts to their ends, block by block; what there is, is kept when something stops it."""
    before = kept.load()
    if before is not None:
        search.take_up(before)
    count, n = search.points.shape
    dense = isinstance(search, DenseSearch)
    size = max(1, BLOCK_BYTES // (8 * n * n)) if dense else 1
    with progress_bar(count, "critical points", "start", progress) as bar:
        try:
            for first in range(0, count, size):
                block = np.arange(first, min(first + size, count))
                while (at := block[search.codes[block] == RUNNING]).size:
                    search.advance(at)
                    if beat is not None:
                        beat()
                    bar.update(int((search.codes != RUNNING).sum()) - bar.n)
                    if kept.due:
                        kept.save(search.arrays())
        except BaseException:
            kept.save(search.arrays())
            raise
    search.codes[search.running] = EXHAUSTED


def _certified(
    land: Landscape, points: Array, exact: bool, rtol: float | None, samples: int, seed: int
) -> Certificate:
    if not exact:
        return certify_by_products(land, points, seed)
    size = max(1, BLOCK_BYTES // (8 * land.n_params**2))
    parts = [
        certify(land, points[i : i + size], rtol=rtol, samples=samples, seed=seed)
        for i in range(0, max(1, len(points)), size)
    ]
    return Certificate(
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0])}
    )


def _collected(
    search: Search,
    ended: NDArray[np.intp],
    c: Certificate,
    merging: bool,
    group: EquioutputGroup | None,
    merge: float,
) -> CriticalSet:
    """One row per different point, by loss, then index."""
    order = np.lexsort((c.index, np.round(c.losses, 12)))
    points = search.points[ended]
    same = _same(points[order], c, order, group, merge) if merging else np.arange(len(order))
    firsts = np.unique(same)
    rows = order[firsts]
    starts = np.full(len(search.codes), -1)
    starts[ended[order]] = np.searchsorted(firsts, same)
    per_point: dict[str, Any] = {
        name: None if value is None else value[rows] for name, value in vars(c).items()
    }
    return CriticalSet(
        points=points[rows], **per_point,
        multiplicity=np.bincount(np.searchsorted(firsts, same), minlength=len(rows)),
        starts=starts, outcomes=np.array(OUTCOMES)[search.codes], final_losses=search.losses,
        final_norms=search.norms, iterations=search.iterations,
    )  # fmt: skip


def _same(
    points: Array,
    c: Certificate,
    order: NDArray[np.intp],
    group: EquioutputGroup | None,
    merge: float,
) -> NDArray[np.intp]:
    """(P,): of each point the first one that it coincides with, itself if there is none before."""
    losses, forms = c.losses[order], points if group is None else group.canonical(points)
    lengths = np.linalg.norm(points, axis=1)
    radius = merge * (1.0 + lengths)
    same = np.arange(len(points))
    firsts = np.zeros(0, dtype=np.intp)
    for p in range(len(points)):
        near = firsts[
            (np.abs(lengths[firsts] - lengths[p]) <= radius[p])  # elements are isometries
            & (np.abs(losses[firsts] - losses[p]) <= radius[p])
        ]
        hits = near[np.linalg.norm(forms[near] - forms[p], axis=1) <= radius[p]]
        if hits.size:
            same[p] = hits[0]
            continue
        if group is not None:
            for q in near:
                if group.distance(points[p], points[q]) <= radius[p]:
                    same[p] = q
                    break
        if same[p] == p:
            firsts = np.append(firsts, p)
    return same


def _group_of(land: Landscape, dedupe: Any) -> EquioutputGroup | None:
    if isinstance(dedupe, bool):
        return None
    if isinstance(dedupe, str) and dedupe == "symmetry":
        return EquioutputGroup(land)
    if isinstance(dedupe, EquioutputGroup):
        if dedupe.n != land.n_params:
            raise InvalidArgument(
                f"dedupe: expected the group of a network with {land.n_params} parameters, got "
                f"one with {dedupe.n}"
            )
        return dedupe
    raise InvalidArgument(
        f"dedupe: expected True, False, 'symmetry' or an EquioutputGroup, got {dedupe!r}"
    )


def _check_choices(
    method: Any, solver: Any, tol: Any, max_iter: Any, bound: Any, merge: Any, rtol: Any,
    samples: Any,
) -> None:  # fmt: skip
    if method not in METHODS:
        raise InvalidArgument(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if solver not in SOLVERS:
        raise InvalidArgument(f"solver: expected one of {', '.join(SOLVERS)}, got {solver!r}")
    integer(max_iter, "max_iter", 1)
    integer(samples, "samples", 0)
    for name, value, optional in (
        ("tol", tol, False), ("bound", bound, True), ("merge", merge, False), ("rtol", rtol, True),
    ):  # fmt: skip
        if value is None and optional:
            continue
        if not isinstance(value, int | float) or not (math.isfinite(value) and value > 0.0):
            raise InvalidArgument(f"{name}: expected a positive number, got {value!r}")
