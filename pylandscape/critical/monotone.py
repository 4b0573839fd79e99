"""Non-ascending paths: how far down one gets from a point without ever going up.

The regional minimum of a point w (Hamey 1998) is the least loss that paths from w reach along which
the loss never rises. Where it is 0 for every w, no local minimum, however flat, traps all paths.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..arguments import check_landscape, integer
from ..arrays import Array
from ..curvature.at_points import gradients, hessians
from ..errors import InvalidArgument
from .mlp_structure import numbers

if TYPE_CHECKING:
    from ..landscape import Landscape

SAMPLES = 32  # losses along each segment that is tried
CHECKED = 512  # losses along a segment before it is taken
CHECKS = 20  # segments that are looked at so closely before a try is given up
REACHES = (0.02, 0.2, 1.0)  # lengths of these segments, times that of the direction
RANDOM = 12  # random directions of each kind in a try
WANDER = 20  # random moves before the descent of each further try, times its number
SLOW = 1e-4  # relative decrease of a move below which a random one is taken for its length


@dataclass(frozen=True, eq=False, repr=False)
class MonotonePath:
    """A path of straight segments along which no sampled loss is above the one before.

    Attributes:
        points: (T, n) float64, the corners; points[0] is the start.
        losses: (T,) float64.
        moves: (T - 1,) str: "newton", "gradient", "curvature" (along a negative eigenvalue),
            "random".
        target: the loss to reach.
        samples: losses that were compared along every segment.
    """

    points: Array
    losses: Array
    moves: tuple[str, ...]
    target: float
    samples: int

    @property
    def reached(self) -> bool:
        """Whether the last loss is at most the target."""
        return bool(self.losses[-1] <= self.target)

    def __repr__(self) -> str:
        moves = ", ".join(f"{count} {name}" for name, count in Counter(self.moves).most_common())
        end = "reached" if self.reached else "NOT REACHED"
        return (
            f"MonotonePath(loss {self.losses[0]:.6g} to {self.losses[-1]:.6g}, target "
            f"{self.target:.3g} {end}; moves: {moves or 'none'})"
        )


def is_non_ascending(
    path: Any, atol: float = 0.0, *, land: Landscape | None = None, between: int = 31
) -> bool:
    """Whether the loss never rises along a path by more than atol, from one sample to the next.

    Args:
        path: losses (T,), or with `land` the corners (T, n) of a path of straight segments.
        atol: in units of the loss; a rise of exactly atol is none.
        land: the landscape; losses in float64.
        between: samples inside every segment. What happens between samples is not seen.

    Returns:
        False also where a loss is not finite.

    Raises:
        InvalidArgument: another shape, an atol that is negative.
    """
    if not (isinstance(atol, int | float) and 0.0 <= atol < float("inf")):
        raise InvalidArgument(f"atol: expected a number of 0 or more, got {atol!r}")
    values = numbers(path, "path")
    if land is not None:
        if values.ndim != 2 or values.shape[1] != land.n_params or not len(values):
            raise InvalidArgument(f"path: expected shape (T, {land.n_params}), got {values.shape}")
        integer(between, "between", 0)
        t = np.arange(between + 1) / (between + 1)
        inner = values[:-1, None] + t[:, None] * np.diff(values, axis=0)[:, None]
        values = _losses(land, np.concatenate([inner.reshape(-1, values.shape[1]), values[-1:]]))
    elif values.ndim != 1 or not values.size:
        raise InvalidArgument(f"path: expected losses (T,), got shape {values.shape}")
    return bool(np.isfinite(values).all() and (np.diff(values) <= atol).all())


def monotone_path(
    land: Landscape,
    start: Any,
    target: float,
    *,
    max_moves: int = 200,
    tries: int = 12,
    bound: float = 50.0,
    seed: int = 0,
) -> MonotonePath:
    """Goes down from a start until the loss is at most target, never up.

    A move follows, of several straight directions, the one along which the loss falls farthest
    before it rises: Newton's with |H| for H, the negative gradient, the eigenvectors of negative
    eigenvalues, and random ones. Where all of these fall by little, a long random move that does
    not rise is taken instead, which is how plateaus are crossed.

    Args:
        land: with few parameters: every move takes an exact Hessian.
        start: (n,).
        target: a loss.
        max_moves: gives up after so many.
        tries: then begins anew, with ever more random moves before the descent, which greed led
            onto a plateau; the lowest path is returned. From the hardest of XOR's starts a try
            succeeds in one case of four, a further one in every second. That none reached the
            target proves nothing: a path may exist.
        bound: |theta_j| stay below it, or below the start's own: far out, networks that saturate
            are constant up to rounding.
        seed: of the random directions.

    Returns:
        MonotonePath; `is_non_ascending(path.points, atol, land=land)` holds with an atol of a few
        eps times the loss.

    Raises:
        InvalidArgument: another length, a start or its loss that are not finite.
    """
    check_landscape(land, "monotone_path")
    point = numbers(start, "start")
    if point.shape != (land.n_params,) or not np.isfinite(point).all():
        raise InvalidArgument(
            f"start: expected finite numbers ({land.n_params},), got shape {point.shape}"
        )
    integer(max_moves, "max_moves", 0)
    integer(tries, "tries", 1)
    first = float(_losses(land, point[None])[0])
    if not np.isfinite(first):
        raise InvalidArgument(f"start: expected a finite loss, got {first}")
    reach = max(float(bound), float(np.abs(point).max()))
    found: list[MonotonePath] = []
    for number in range(tries):
        rng = np.random.default_rng([seed, number])
        wander = WANDER * number
        found.append(_walked(land, point, first, float(target), max_moves, reach, wander, rng))
        if found[-1].reached:
            break
    return min(found, key=lambda path: float(path.losses[-1]))


def _walked(
    land: Landscape,
    point: Array,
    loss: float,
    target: float,
    max_moves: int,
    bound: float,
    wander: int,
    rng: np.random.Generator,
) -> MonotonePath:
    points, losses = [point], [loss]
    moves: list[str] = []
    for _ in range(max_moves):
        if losses[-1] <= target:
            break
        random = len(moves) < wander
        taken = _move(land, points[-1], losses[-1], bound, random, rng)
        if taken is not None:
            name, point, loss = taken
            moves.append(name)
            points.append(point)
            losses.append(loss)
    return MonotonePath(np.stack(points), np.array(losses), tuple(moves), target, CHECKED)


def _move(
    land: Landscape,
    point: Array,
    loss: float,
    bound: float,
    wander: bool,
    rng: np.random.Generator,
) -> tuple[str, Array, float] | None:
    """A move from a point: its name, where it ends, the loss there. None: none was found."""
    names, directions = _directions(land, point, rng)
    steps = np.concatenate([reach * directions for reach in REACHES])
    kinds = np.tile(np.array(names), len(REACHES))
    far, ends = _falling(land, point, loss, steps, SAMPLES, bound)
    rows = np.flatnonzero(far > 0.0)
    rows = rows[np.argsort(ends[rows], kind="stable")]
    if rows.size and (wander or loss - ends[rows[0]] < SLOW * loss):
        moving = np.linalg.norm(steps[rows], axis=1) > 0.0
        random = rows[(kinds[rows] == "random") & moving]
        if random.size:
            length = far[random] * np.linalg.norm(steps[random], axis=1)
            rows = rng.choice(random, random.size, replace=False, p=length / length.sum())
    for row in rows[:CHECKS]:
        step = steps[row] * far[row]
        share, end = _falling(land, point, loss, step[None], CHECKED, bound)
        if share[0] > 0.0:
            return str(kinds[row]), point + share[0] * step, float(end[0])
    return None


def _falling(
    land: Landscape, point: Array, loss: float, steps: Array, samples: int, bound: float
) -> tuple[Array, Array]:
    """How far along each of steps (k, n) the loss does not rise, in [0, 1], and the loss there."""
    t = np.arange(1, samples + 1) / samples
    trial = point + t[:, None] * steps[:, None]
    found = _losses(land, trial.reshape(-1, point.size)).reshape(len(steps), samples)
    found[np.abs(trial).max(axis=2) > bound] = np.inf
    before = np.c_[np.full(len(steps), loss), found[:, :-1]]
    rises = ~(found <= before)
    count = np.where(rises.any(axis=1), np.argmax(rises, axis=1), samples)
    at = np.maximum(count, 1) - 1
    return np.r_[0.0, t][count], np.where(count > 0, found[np.arange(len(steps)), at], loss)


def _directions(land: Landscape, point: Array, rng: np.random.Generator) -> tuple[list[str], Array]:
    """Names and directions (k, n), of the length that a move may have."""
    found = hessians(land, point[None])
    assert found.matrices is not None
    g, size = found.gradients[0], 1.0 + float(np.linalg.norm(point))
    names, rows = [], []
    if np.isfinite(found.matrices).all() and np.isfinite(g).all() and g.any():
        values, vectors = (v.numpy() for v in torch.linalg.eigh(torch.as_tensor(found.matrices[0])))
        c = vectors.T @ g
        damping = max(float(np.linalg.norm(g)), 1e-12 * float(np.abs(values).max()))
        newton = -vectors @ (c / (np.abs(values) + 0.1 * damping))
        rows += [newton, -g / float(np.linalg.norm(g)) * size]
        names += ["newton", "gradient"]
        for j in np.flatnonzero(values < 0.0)[:3]:
            side = -1.0 if c[j] > 0.0 else 1.0
            rows += [side * size * vectors[:, j], -side * size * vectors[:, j]]
            names += ["curvature", "curvature"]
    gauss = rng.standard_normal((RANDOM, point.size))
    rows += list(size * gauss / np.linalg.norm(gauss, axis=1, keepdims=True))
    single = np.zeros((RANDOM, point.size))
    single[np.arange(RANDOM), rng.integers(0, point.size, RANDOM)] = size
    rows += list(single * rng.choice([-1.0, 1.0], (RANDOM, 1)))
    sparse = gauss * (rng.random(gauss.shape) < 0.3)
    rows += list(size * sparse / np.maximum(np.linalg.norm(sparse, axis=1, keepdims=True), 1e-9))
    names += ["random"] * (len(rows) - len(names))
    return names, np.stack(rows)


def _losses(land: Landscape, points: Array) -> Array:
    """L in float64: by the landscape's engine where it computes in float64."""
    if land.dtype == torch.float64:
        return land.losses(points=torch.as_tensor(points))
    return gradients(land, points).losses
