"""Top eigenvalues of the Hessian along training, beside the stability threshold of the optimiser.

On a quadratic, gradient descent of rate eta diverges along eigenvectors whose eigenvalue exceeds
2 / eta; full-batch training climbs to that threshold and stays near it (Cohen et al. 2021,
"Gradient descent on neural networks typically occurs at the edge of stability").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import check_landscape
from ..arrays import Array, digest, progress_bar
from ..curvature.eigen import eigenpairs
from ..curvature.operators import as_operator
from ..curvature.symmetric_operator import SymmetricOperator
from ..errors import InvalidArgument
from ..ranks import owns_files
from ..results.tracks import Track
from ..runs.checkpoint import Checkpoint
from ..runs.items import by_ranks
from ..runs.request import build
from ..runs.resume import resumable
from ..theta.directions import gaussian
from .base import Trajectory
from .sources import check_points

if TYPE_CHECKING:
    from ..landscape import Landscape

RULES = ("sgd", "nesterov", "rk2", "adam")
CHAIN = 8  # points in a row, of which each search starts from the one before; ranks draw chains
_FRESH = 0.1  # of a start: a random part, which sees an eigenvector that is about to cross


def stability_threshold(
    rule: str = "sgd",
    *,
    lr: Any,
    momentum: float = 0.0,
    dampening: float = 0.0,
    beta1: float = 0.9,
) -> Any:
    """The curvature beyond which an optimiser diverges on a quadratic.

    Args:
        rule: "sgd": 2 / lr, with momentum 2 (1 + m) / lr, dampened 2 (1 + m) / ((1 - d) lr);
            "nesterov": 2 (1 + m) / ((1 + 2 m) lr); "rk2": 2 / lr; "adam": of the preconditioned
            matrix with P held still, 2 (1 + beta1) / ((1 - beta1) lr).
        lr: learning rate, or an array of them.

    Returns:
        float or array, in loss per squared unit of the parameters.

    Raises:
        InvalidArgument: an unknown rule, a rate that is not positive.
    """
    rate = np.asarray(lr, dtype=np.float64)
    if rule not in RULES:
        raise InvalidArgument(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
    if not (rate > 0).all() or not np.isfinite(rate).all():
        raise InvalidArgument(f"lr: expected positive rates, got {lr!r}")
    factor = 2.0
    if rule == "sgd":
        factor = 2.0 * (1.0 + momentum) / (1.0 - dampening)
    elif rule == "nesterov":
        factor = 2.0 * (1.0 + momentum) / (1.0 + 2.0 * momentum)
    elif rule == "adam":
        factor = 2.0 * (1.0 + beta1) / (1.0 - beta1)
    found = factor / rate
    return float(found) if found.ndim == 0 else found


def track(
    trajectory: Trajectory,
    land: Landscape,
    k: int = 3,
    *,
    which: str = "LA",
    every: int = 1,
    tol: float = 1e-3,
    lr: Any = None,
    rule: str = "sgd",
    momentum: float = 0.0,
    dampening: float = 0.0,
    beta1: float = 0.9,
    preconditioner: Callable[[int], Any] | None = None,
    seed: int = 0,
    path: str | Path | None = None,
    progress: bool = True,
) -> Track:
    """The k largest eigenvalues of the Hessian at the points of a trajectory.

    Each search starts from the eigenvectors of the point before, with a random part that sees an
    eigenvector that is about to become one of the largest. That saves a third of the products where
    points are close; where eigenvectors turn from point to point (a cosine of 0.3 between epochs of
    a small classifier) it saves nothing over `eigenpairs`, which starts from the gradient; so does
    every eighth point, so that several processes can share the chains of eight.

    Args:
        trajectory: of the landscape's parameters (and running statistics, where the model has
            batch norm with bn="eval").
        k, which, tol: as in `eigenpairs`.
        every: look at each ``every``-th point, the first one included.
        lr, rule, momentum, dampening, beta1: of the optimiser, for the threshold
            (`stability_threshold`); lr may be one for each point looked at.
        preconditioner: for adaptive optimisers: index of the point -> the diagonal of P (n,) > 0,
            sqrt(v) + eps of Adam; the eigenvalues are then those of P^-1/2 H P^-1/2. The threshold
            of rule="adam" is theirs.
        seed: of the random parts.
        path: HDF5 file for the result; a run that was stopped goes on from what lies beside it.
        progress: show a bar on stderr.

    Raises:
        InvalidArgument: another model's trajectory; what `eigenpairs` and `stability_threshold`
            raise.
        ResumeMismatch: ``path`` belongs to another request.
    """
    check_points(trajectory, "track")
    check_landscape(land, "track")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InvalidArgument(f"every: expected an integer >= 1, got {every!r}")
    points = trajectory[::every]
    if points.layout.digest != land.layout.digest:
        raise InvalidArgument(
            "trajectory: expected one of this landscape's parameters, got another layout; read it "
            "with trajectory(..., like=land)"
        )
    if rule == "adam" and lr is not None and preconditioner is None:
        raise InvalidArgument(
            "preconditioner: expected the diagonal of P at each point, got none; the threshold of "
            "rule='adam' is of the preconditioned Hessian's eigenvalues"
        )
    count = len(points)
    limit = None
    words = "" if lr is None else f"stability threshold ({rule})"
    if lr is not None:
        found = np.asarray(
            stability_threshold(rule, lr=lr, momentum=momentum, dampening=dampening, beta1=beta1),
            dtype=np.float64,
        )
        if found.shape not in ((), (count,)):
            raise InvalidArgument(f"lr: expected one rate or {count}, got shape {found.shape}")
        limit = np.broadcast_to(found, (count,)).copy()
    request = build(
        land, "track", trajectory=points.digest(), k=k, which=which, tol=tol, seed=seed,
        preconditioner=None if preconditioner is None else _diagonals(preconditioner, count, every),
    )  # fmt: skip

    def search(i: int, before: Array | None) -> tuple[Array, Array]:
        diagonal = None if preconditioner is None else preconditioner(i * every)
        pairs = eigenpairs(
            _operator(land, points[i], diagonal), k, which, tol=tol, seed=seed + i,
            start=_start(before if i % CHAIN else None, land.n_params, seed, i), progress=False,
        )  # fmt: skip
        row = np.array([*pairs.values, *pairs.residuals, *pairs.converged, pairs.matvecs])
        return row, np.asarray(pairs.vectors, dtype=np.float64).reshape(k, -1)

    def run(kept: Checkpoint) -> Track:
        rows = _searched(search, count, 3 * k + 1, kept, progress)
        return Track(
            points.steps, rows[:, :k], rows[:, k : 2 * k], rows[:, 2 * k : 3 * k] > 0,
            rows[:, 3 * k], limit, words, preconditioner is not None, {"request": request},
        )  # fmt: skip

    result = resumable(path, request, run)
    if result.rule != words or not np.array_equal(_numbers(result.threshold), _numbers(limit)):
        result.threshold, result.rule = limit, words  # of another rate than the file's
        if path is not None and owns_files():
            result.save(path)
    return result


def _searched(
    search: Callable[[int, Array | None], tuple[Array, Array]], count: int, width: int,
    kept: Checkpoint, progress: bool,
) -> Array:  # fmt: skip
    """Rows (count, width), one a point; ranks share the chains.

    search(i, vectors): the row of point i and its eigenvectors (k, n), from those of the point
    before.
    """

    def chains(at: np.ndarray, beat: Callable[[], None]) -> dict[str, Array]:
        found = np.full((len(at), CHAIN, width), np.nan)
        for own, chain in zip(found, at * CHAIN, strict=True):
            vectors: Array | None = None
            for i in range(chain, min(chain + CHAIN, count)):
                own[i - chain], vectors = search(i, vectors)
                beat()
        return {"rows": found}

    shared = by_ranks(
        "track", kept.request, -(-count // CHAIN), chains, kept=kept, most=1, unit=f"{CHAIN} pt",
        progress=progress,
    )  # fmt: skip
    if shared is not None:
        return np.asarray(shared["rows"]).reshape(-1, width)[:count]
    rows, vectors, done = np.full((count, width), np.nan), None, 0
    if (before := kept.load()) is not None:
        rows, vectors, done = before["rows"], before["vectors"], int(before["done"])

    def save() -> None:
        if vectors is not None:
            kept.save({"rows": rows, "vectors": vectors, "done": np.array(done)})

    with progress_bar(count, "track", "pt", progress, done) as bar:
        try:
            for i in range(done, count):
                rows[i], vectors = search(i, vectors)
                bar.update()
                done = i + 1
                if kept.due:
                    save()
        except BaseException:
            save()
            raise
    return rows


def _operator(land: Landscape, state: Any, diagonal: Any) -> SymmetricOperator:
    op = as_operator(land, "hessian", state, None)
    if diagonal is None:
        return op
    p = torch.as_tensor(diagonal, dtype=torch.float64).reshape(-1)
    if p.shape != (land.n_params,) or not bool((p > 0).all()):
        raise InvalidArgument(
            f"preconditioner: expected {land.n_params} positive numbers, got shape {tuple(p.shape)}"
        )
    scale = p.rsqrt()

    def product(v: Tensor) -> Tensor:
        return scale * land.hvp(scale * v.double(), state)

    return SymmetricOperator(land.n_params, product)


def _numbers(limit: Array | None) -> Array:
    return np.empty(0) if limit is None else limit


def _start(vectors: Array | None, n: int, seed: int, index: int) -> Tensor | None:
    """The eigenvectors of the point before, together, and a random part."""
    if vectors is None:
        return None
    fresh = gaussian(seed, index, 0, n).double()
    along = torch.from_numpy(vectors).sum(dim=0)
    return along / along.norm() + _FRESH * fresh / fresh.norm()


def _diagonals(preconditioner: Callable[[int], Any], count: int, every: int) -> Sequence[str]:
    return [digest(torch.as_tensor(preconditioner(i * every))) for i in range(count)]
