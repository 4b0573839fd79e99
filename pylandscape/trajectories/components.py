"""Principal components of a trajectory (Gallagher and Downs 2003; Li et al. 2018, section 7.2).

From the Gram matrix of the centred points, accumulated in double over blocks of parameters: one
pass over the path for the components' sizes, one for their vectors, never (T, n) in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import InvalidArgument
from ..results.paths import PrincipalComponents
from ..theta.directions import Direction
from .sources import Array, check_points

if TYPE_CHECKING:
    from .sources import Points

_ACCURATE = 1e-6  # relative error of a component above which the Gram matrix does not do
_ZERO = 1e-14  # of the largest squared size: what is below it is rounding


def pca(
    trajectory: Points,
    components: int = 2,
    *,
    centre: str | int = -1,
    params: Sequence[str] | None = None,
) -> PrincipalComponents:
    """Principal components of a path.

    Args:
        trajectory: T points of n parameters.
        components: K; at most what the path spans.
        centre: where the path is seen from: -1 its end, as in Li et al.'s pictures, another index,
            or "mean" (what statisticians call PCA).
        params: name patterns of the parameters to look at; default all. The directions are 0 in
            the others.

    Raises:
        InvalidArgument: fewer than two points, a path that does not move, more components than it
            spans, a pattern that matches nothing.

    Numerics: sums in double; their order, and with it the last bits, may depend on the threads of
    NumPy's BLAS. The relative error of a component grows as eps (s_1 / s_k)^2; where that exceeds
    1e-6, a QR decomposition of the blocks takes the Gram matrix' place (one pass more).
    """
    check_points(trajectory, "pca")
    count = len(trajectory)
    if count < 2:
        raise InvalidArgument(f"trajectory: expected at least two points, got {count}")
    if isinstance(components, bool) or not isinstance(components, int):
        raise InvalidArgument(f"components: expected an integer, got {components!r}")
    names = _chosen(trajectory, params)
    row = None if centre == "mean" else _row(centre, count)

    def blocks() -> Iterator[tuple[int, int, Array]]:
        for first, last, block in trajectory.blocks(names, reuse=True):
            block -= block.mean(axis=0) if row is None else block[row].copy()
            yield first, last, block

    gram = np.zeros((count, count))
    for _, _, block in blocks():
        gram += block @ block.T
    bad = np.flatnonzero(~np.isfinite(np.diag(gram)))
    if bad.size:
        raise InvalidArgument(
            f"trajectory: expected finite numbers, got others at {bad.size} of {count} points, "
            f"point {bad[0]} (step {trajectory.steps[bad[0]]}) the first; trajectory[:{bad[0]}] is "
            "the path before it"
        )
    squares, u = np.linalg.eigh(gram)
    squares, u = squares[::-1].clip(min=0.0), u[:, ::-1]
    if not squares[0] > 0:
        raise InvalidArgument("trajectory: expected a path that moves, got equal points")
    rank = int((squares > _ZERO * squares[0]).sum())
    if not 1 <= components <= rank:
        raise InvalidArgument(
            f"components: expected 1 to {rank}, the dimensions of the path, got {components}"
        )
    if np.finfo(float).eps * squares[0] > _ACCURATE * squares[components - 1]:
        squares, u = _by_qr(blocks(), count)
    sizes, u = np.sqrt(squares[:components]), u[:, :components]
    largest = u[np.abs(u).argmax(axis=0), np.arange(components)]
    u = u * np.where(largest < 0, -1.0, 1.0)  # signs: the point furthest out is positive
    vectors = np.zeros((components, trajectory.layout.n))
    for first, last, block in blocks():
        vectors[:, first:last] = (u / sizes).T @ block
    return _result(trajectory, vectors, squares, u, "mean" if row is None else int(row))


def pca_directions(
    trajectory: Points, count: int = 2, *, centre: str | int = -1,
    params: Sequence[str] | None = None,
) -> list[Direction]:  # fmt: skip
    """The first principal components of a path as directions of norm 1, for `plane` and `line`.

    Arguments and errors as in `pca`, which also gives their shares of the variance. For a surface
    with the path on it: ``plane(land, *pca_directions(t), theta=t[-1])``.
    """
    check_points(trajectory, "pca_directions")
    return pca(trajectory, count, centre=centre, params=params).directions


def random_walk_shares(count: int, centre: str | int) -> Array:
    """(count,) explained variance of a long, high-dimensional random walk (Antognini and
    Sohl-Dickstein 2018): 6 / (pi k)^2 about its mean, 8 / (pi (2k - 1))^2 about an end.

    Seen from a point between, the walk is two walks from there, orthogonal to each other, of the
    lengths f and 1 - f: their shares go as f^2 and (1 - f)^2.
    """
    k = np.arange(1, count + 1, dtype=np.float64)
    if centre == "mean":
        return np.asarray(6.0 / (np.pi * k) ** 2, dtype=np.float64)
    share = (int(centre) % count) / max(count - 1, 1)
    one = 8.0 / (np.pi * (2 * k - 1)) ** 2
    both = np.concatenate([share**2 * one, (1.0 - share) ** 2 * one])
    found = np.sort(both)[::-1][:count] / (share**2 + (1.0 - share) ** 2)
    return np.asarray(found, dtype=np.float64)


def _result(
    trajectory: Points, vectors: Array, squares: Array, u: Array, centre: str | int
) -> PrincipalComponents:
    count, sizes = len(vectors), np.sqrt(squares[: len(vectors)])
    ratios = squares[:count] / squares.sum()
    entries = trajectory.layout.entries
    loadings = {
        e.name: np.array([row @ row for row in vectors[:, e.offset : e.offset + e.numel]])
        for e in entries
    }
    widest = max((e.dtype for e in entries), key=lambda d: torch.finfo(d).bits)
    dtype = widest if torch.finfo(widest).bits >= 32 else torch.float32
    directions = [
        Direction(
            torch.from_numpy(vector).to(dtype),
            {
                "kind": "pca", "index": k, "explained": float(ratios[k]), "centre": centre,
                "layout": trajectory.layout.digest, "norm": 1.0,
            },
        )
        for k, vector in enumerate(vectors)
    ]  # fmt: skip
    null = random_walk_shares(len(trajectory), centre)[:count]
    return PrincipalComponents(
        directions, ratios, null, u * sizes, loadings, sizes, trajectory.steps, centre
    )


def _by_qr(blocks: Iterator[tuple[int, int, Array]], count: int) -> tuple[Array, Array]:
    """Squared sizes and left vectors (T, .) from X^T = Q R, R accumulated over the blocks."""
    r: Array = np.zeros((0, count))
    for _, _, block in blocks:
        r = np.asarray(np.linalg.qr(np.vstack([r, block.T]), mode="r"))
    _, sizes, right = np.linalg.svd(r)
    squares = np.zeros(count)
    squares[: len(sizes)] = sizes**2
    return squares, right.T


def _row(centre: str | int, count: int) -> int:
    if isinstance(centre, bool) or not isinstance(centre, int | np.integer):
        raise InvalidArgument(f"centre: expected 'mean' or an index, got {centre!r}")
    if not -count <= centre < count:
        raise InvalidArgument(f"centre: expected an index of one of {count} points, got {centre}")
    return int(centre) % count


def _chosen(trajectory: Points, params: Sequence[str] | None) -> list[str] | None:
    if params is None:
        return None
    return [e.name for e in trajectory.layout.select(params).entries]
