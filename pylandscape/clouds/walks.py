"""Walks through parameter space: progressive gradient walks and their random baselines.

A progressive gradient walk samples where descent would go, whatever its speed: every component
moves against the sign of its partial derivative, by a random length,

    theta_{t+1,j} = theta_{t,j} - sgn(g_j) u_j,    u_j ~ U[0, s],    s = fraction * 2 bound

(Bosman, Engelbrecht, Helbig 2018, Progressive gradient walk; the mask they print moves along +g,
their code descends). Points, losses and gradients are float64. Walk i has its own streams of random
numbers: its points do not change with the number of walks or, as far as they go, of steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import check_landscape, integer
from ..arrays import Array, digest, progress_bar
from ..errors import InvalidArgument
from ..results.walks import Walks, as_points
from ..runs.checkpoint import Arrays, Checkpoint
from ..runs.items import by_ranks
from ..runs.request import build
from ..runs.resume import resumable
from .walk_steps import TIES, Advance, Rule

if TYPE_CHECKING:
    from ..landscape import Landscape

MICRO: dict[str, Any] = {"steps": 1000, "fraction": 0.01}
MACRO: dict[str, Any] = {"steps": 100, "fraction": 0.1}

Path = str | os.PathLike[str]


def gradient_walk(
    land: Landscape,
    walks: int = 100,
    steps: int = 100,
    bound: float = 1.0,
    fraction: float = 0.1,
    *,
    bounded: bool = False,
    tie: str = "plus",
    seed: int = 0,
    starts: Any = None,
    path: Path | None = None,
    progress: bool = True,
) -> Walks:
    """Progressive gradient walks, all advanced together.

    Args:
        land: the landscape; evaluated in float64 whatever its dtype.
        walks, steps: W and T; T counts the points of a walk, the start among them.
        bound: b > 0, in units of a parameter: starts are uniform on [-b, b]^n.
        fraction: longest step of a component, as a share of 2 b. `**MICRO` (1,000 steps, 0.01) and
            `**MACRO` (100 steps, 0.1; the default) are the published settings.
        bounded: a component that would leave [-b, b] has its step negated; needs fraction <= 0.5.
        tie: where g_j = 0 exactly (the weights of a dead ReLU): "plus" moves upward, as the
            published code does, "random" either way, "stay" not at all.
        seed: of starts and steps, 64-bit.
        starts: (W, n) instead of random ones; `walks` is not used then.
        path: HDF5 file for the result; a run that was stopped goes on from what lies beside it.
        progress: show a bar on stderr.

    Returns:
        Walks. A component whose derivative is NaN is NaN from the next point of its walk on.

    Raises:
        InvalidArgument: names the argument.
        ResumeMismatch: `path` belongs to another request.

    Example:
        >>> walks = gradient_walk(land, 10, **MICRO, bound=10.0)
        >>> walks.points.shape
        (10, 1000, 9)
    """
    if tie not in TIES:
        raise InvalidArgument(f"tie: expected one of {', '.join(TIES)}, got {tie!r}")
    sampler = _Sampler(
        land, "gradient", walks, steps, bound, fraction, bounded, seed, starts, tie=tie
    )
    return sampler.walk(path, progress)


def random_walk(
    land: Landscape,
    walks: int = 100,
    steps: int = 100,
    bound: float = 1.0,
    fraction: float = 0.1,
    *,
    bounded: bool = True,
    seed: int = 0,
    starts: Any = None,
    path: Path | None = None,
    progress: bool = True,
) -> Walks:
    """Random walks: theta_{t+1} = theta_t + u, u_j ~ U[-s, s]. The rest as in `gradient_walk`."""
    sampler = _Sampler(land, "random", walks, steps, bound, fraction, bounded, seed, starts)
    return sampler.walk(path, progress)


def progressive_random_walk(
    land: Landscape,
    walks: int = 100,
    steps: int = 100,
    bound: float = 1.0,
    fraction: float = 0.1,
    *,
    bounded: bool = True,
    seed: int = 0,
    starts: Any = None,
    path: Path | None = None,
    progress: bool = True,
) -> Walks:
    """Random walks that keep their direction: u_j ~ U[0, s] times a random sign of its own.

    The sign of a component is fixed until it meets a bound, where it turns (Malan, Engelbrecht
    2014). The rest as in `gradient_walk`.
    """
    sampler = _Sampler(
        land, "progressive random", walks, steps, bound, fraction, bounded, seed, starts
    )
    return sampler.walk(path, progress)


class _Sampler:
    """One checked request for walks."""

    def __init__(
        self,
        land: Landscape,
        kind: str,
        walks: int,
        steps: int,
        bound: float,
        fraction: float,
        bounded: bool,
        seed: int,
        starts: Any,
        tie: str | None = None,
    ) -> None:
        check_landscape(land, f"{kind.replace(' ', '_')}_walk")
        self.land = land
        self.rule = Rule(
            kind, _positive(bound, "bound"), _positive(fraction, "fraction"), bool(bounded), tie,
            integer(seed, "seed", 0),
        )  # fmt: skip
        if self.rule.seed >= 1 << 64:
            raise InvalidArgument(f"seed: expected a 64-bit integer, got {seed}")
        if bounded and fraction > 0.5:
            raise InvalidArgument(
                "fraction: expected at most 0.5 for a bounded walk (a longer step, negated, can "
                f"leave on the other side), got {fraction!r}"
            )
        self.steps = integer(steps, "steps", 1)
        self.starts = None if starts is None else self._checked(starts)
        self.walks = integer(walks, "walks", 1) if self.starts is None else len(self.starts)

    def walk(self, path: Path | None, progress: bool) -> Walks:
        rule = {name: value for name, value in vars(self.rule).items() if name != "kind"}
        request = build(
            self.land, f"{self.rule.kind} walk", **rule, walks=self.walks, steps=self.steps,
            starts=None if self.starts is None else digest(self.starts),
        )  # fmt: skip
        return resumable(path, request, lambda kept: self._run(kept, progress))

    def _checked(self, starts: Any) -> Array:
        given = as_points(starts, self.land.n_params, "starts")
        if not np.isfinite(given).all():
            raise InvalidArgument("starts: expected finite numbers, got some that are not")
        bound = self.rule.bound
        if self.rule.bounded and np.abs(given).max() > bound:
            raise InvalidArgument(
                f"starts: expected numbers in [-{bound:g}, {bound:g}] for a bounded walk, got "
                f"{np.abs(given).max():g}"
            )
        return given

    def _run(self, kept: Checkpoint, progress: bool) -> Walks:
        started = time.perf_counter()
        shared = by_ranks(
            f"{self.rule.kind} walk", kept.request, self.walks, self._some, kept=kept,
            unit="walk", progress=progress,
        )  # fmt: skip
        if shared is not None:
            points, losses, norms = (shared[name] for name in Walks.ARRAYS)
            found = Walks(points, losses, norms, self.rule.kind)
            found.info.update(request=kept.request, seconds=time.perf_counter() - started)
            return found
        found = self._empty(self.walks)
        advance = Advance(self.rule, found, self.land.point_evaluator(), self.starts)
        before = kept.load()
        if before is not None:
            advance.take_up(before)
        try:
            with progress_bar(
                self.steps, f"{self.rule.kind} walk", "step", progress, advance.done
            ) as bar:
                for done in advance:
                    bar.update(done - bar.n)
                    if kept.due:
                        kept.save(advance.arrays())
        except BaseException:
            if advance.done:
                kept.save(advance.arrays())
            raise
        found.info.update(request=kept.request, seconds=time.perf_counter() - started)
        return found

    def _some(self, at: np.ndarray, beat: Callable[[], None]) -> Arrays:
        """The walks of these numbers."""
        found = self._empty(len(at))
        starts = None if self.starts is None else self.starts[at]
        for _ in Advance(self.rule, found, self.land.point_evaluator(), starts, at):
            beat()
        return {name: getattr(found, name) for name in Walks.ARRAYS}

    def _empty(self, walks: int) -> Walks:
        shape = (walks, self.steps)
        return Walks(
            np.full((*shape, self.land.n_params), np.nan), np.full(shape, np.nan),
            np.full(shape, np.nan), self.rule.kind,
        )  # fmt: skip


def _positive(value: Any, name: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not (np.isfinite(found) and found > 0.0):
        raise InvalidArgument(f"{name}: expected a positive number, got {value!r}")
    return found
