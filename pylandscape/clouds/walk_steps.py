"""How walks advance: the rules of a step, the streams of random numbers, what a stop keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import Array
from ..errors import ResumeMismatch
from ..results.walks import Walks

if TYPE_CHECKING:
    from ..engines.points.evaluator import PointEvaluator
    from ..engines.points.native import NativePoints

TIES = ("plus", "random", "stay")
HELD = 1 << 22  # random numbers at once
COUNTER = 4  # numbers that one value of Philox's counter gives
RECHECK = 1e-3  # relative difference of a recomputed loss that is taken for the same landscape
BLOCK_SECONDS = 0.1  # of steps that the core takes between two looks at the clock


@dataclass(frozen=True)
class Rule:
    """What determines the steps; see `walks.gradient_walk`."""

    kind: str  # "gradient" | "random" | "progressive random"
    bound: float  # b
    fraction: float
    bounded: bool
    tie: str | None
    seed: int

    @property
    def longest(self) -> float:
        """s, the longest step of a component."""
        return self.fraction * 2.0 * self.bound

    def start(self, uniform: Array) -> Array:
        """theta_0 ~ U[-b, b]^n from uniform numbers in [0, 1)."""
        return self.bound * (2.0 * uniform - 1.0)

    def step(
        self, theta: Array, uniform: Array, gradients: Array | None, signs: Array, heads: Any
    ) -> Array:
        """theta_{t+1} - theta_t, (W, n).

        Args:
            theta: (W, n), the points.
            uniform: (W, n) in [0, 1).
            gradients: (W, n) at theta, of a gradient walk.
            signs: (W, n), 1 or -1, of a progressive random walk; those that meet a bound turn.
            heads: (W, n) bool, or None: the tossed coins of tie="random".
        """
        if gradients is not None:
            step = self._downhill(self.longest * uniform, gradients, heads)
        elif self.kind == "random":
            step = self.longest * (2.0 * uniform - 1.0)
        else:
            step = self.longest * uniform * signs
        if self.bounded:
            beyond = np.abs(theta + step) > self.bound
            step[beyond] *= -1.0
            signs[beyond] *= -1.0
        return step

    def _downhill(self, length: Array, gradients: Array, heads: Any) -> Array:
        step = np.where(gradients > 0.0, -length, length)  # ties: upward
        if self.tie == "stay":
            step[gradients == 0.0] = 0.0
        elif self.tie == "random":
            step[(gradients == 0.0) & heads] *= -1.0
        unknown = np.isnan(gradients)
        if unknown.any():
            step[unknown] = np.nan
        return step


class Streams:
    """Uniform numbers in [0, 1): walk i draws rows of n from stream i of the seed.

    Philox4x64 with the key (seed, i). Row r begins at the counter r ceil(n / 4), so that a run can
    go on anywhere. `walks`: their numbers i. `second`: streams independent of the first ones.
    `done`: rows already used.
    """

    def __init__(
        self, seed: int, walks: Sequence[int] | np.ndarray, n: int, done: int = 0,
        second: bool = False,
    ) -> None:  # fmt: skip
        self.walks, self.n, self.done = walks, n, done
        self.counters = -(-n // COUNTER)  # of a row
        self.bits = np.random.Philox(0)
        self.state: Any = self.bits.state
        self.state["state"]["key"][:] = seed, 0
        self.state["state"]["counter"][:] = 0, 0, 0, int(second)
        self.state["buffer_pos"] = COUNTER  # nothing is left of the counter before

    def next(self, rows: int) -> Array:
        """(rows, W, n), a view."""
        found = np.empty((len(self.walks), rows, COUNTER * self.counters))
        generator = np.random.Generator(self.bits)
        self.state["state"]["counter"][0] = self.done * self.counters
        for row, walk in zip(found, self.walks, strict=True):
            self.state["state"]["key"][1] = walk
            self.bits.state = self.state
            generator.random(out=row)
        self.done += rows
        return found[:, :, : self.n].transpose(1, 0, 2)


class Advance:
    """Walks under way: iterating advances all of them and gives the number of points that each has.

    Args:
        found: filled as the walks go; NaN elsewhere.
        evaluator: who knows losses and gradients, and may take whole steps.
        starts: (W, n), or None for random ones.
        which: the numbers of the walks (W,); default 0 .. W - 1.
    """

    def __init__(
        self, rule: Rule, found: Walks, evaluator: PointEvaluator, starts: Array | None,
        which: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.rule, self.found, self.evaluator, self.starts = rule, found, evaluator, starts
        self.walks, self.steps, self.n = found.points.shape
        self.which = np.arange(self.walks) if which is None else which
        self.done = 0  # points of each walk that are there, with all that belongs to them
        self.signs = np.ones((self.walks, self.n))
        if rule.kind == "progressive random":
            coins = Streams(rule.seed, self.which, self.n, second=True).next(1)[0]
            self.signs = np.where(coins < 0.5, -1.0, 1.0)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a later run needs to go on."""
        shown = {name: getattr(self.found, name)[:, : self.done] for name in Walks.ARRAYS}
        return {**shown, "signs": self.signs}

    def take_up(self, before: Mapping[str, np.ndarray]) -> None:
        """Go on from `arrays` of an earlier run."""
        self.done = before["losses"].shape[1]
        self.signs = before["signs"]
        for name in Walks.ARRAYS:
            getattr(self.found, name)[:, : self.done] = before[name]

    def __iter__(self) -> Iterator[int]:
        downhill = self.rule.kind == "gradient"
        if downhill and self.evaluator.walker is not None:
            yield from self._compiled(self.evaluator.walker)  # to the end, as a rule
            if self.done == self.steps:
                return
        streams = Streams(self.rule.seed, self.which, self.n, self.done)
        coins = None
        if self.rule.tie == "random":
            coins = Streams(self.rule.seed, self.which, self.n, self.done, second=True)
        points = self.found.points
        # Points of one step, contiguous; in `points` each lies on a page of its own.
        theta = np.ascontiguousarray(points[:, max(self.done - 1, 0)])
        gradients = self._again(theta) if downhill and self.done else None
        block = max(1, HELD // (self.walks * self.n))
        while self.done < self.steps:
            first, size = self.done, min(block, self.steps - self.done)
            uniform = streams.next(size)
            heads = [None] * size if coins is None else coins.next(size) < 0.5
            signs = self.signs.copy()  # a stop in the middle leaves those of `done`
            for t in range(first, first + size):
                u = uniform[t - first]
                if t == 0:
                    theta = self.rule.start(u) if self.starts is None else self.starts
                else:
                    theta = theta + self.rule.step(theta, u, gradients, signs, heads[t - first])
                points[:, t] = theta
                if downhill:
                    gradients = self._evaluate(theta, slice(t, t + 1))
                    self.done = t + 1
                    yield self.done
            if not downhill:
                at = slice(first, first + size)
                self._evaluate(np.ascontiguousarray(points[:, at]).reshape(-1, self.n), at)
                self.signs, self.done = signs, first + size
                yield self.done

    def _compiled(self, walker: NativePoints) -> Iterator[int]:
        """Blocks of steps by the core; less than all where torch is to be asked for a gradient."""
        rule, found = self.rule, self.found
        bound = rule.bound if rule.bounded else np.inf
        how = (rule.longest, bound, TIES.index(rule.tie or TIES[0]), rule.seed)
        numbers = np.asarray(self.which, np.uint64)
        arrays = (found.points, found.losses, found.gradient_norms)
        gradients = np.empty((self.walks, self.n))
        known, size = False, 1
        if self.done == 0:
            uniform = Streams(rule.seed, self.which, self.n).next(1)[0]
            found.points[:, 0] = rule.start(uniform) if self.starts is None else self.starts
        while self.done < self.steps:
            started = time.perf_counter()
            last, end = max(self.done - 1, 0), min(self.done + size, self.steps)
            before = found.losses[:, last].copy()
            if not walker.walk(how, numbers, arrays, gradients, last, end, known):
                found.losses[:, last] = before
                return
            if self.done and not known:
                self._compare(before, found.losses[:, last])
            known, self.done = True, end
            yield end
            seconds = time.perf_counter() - started
            if seconds < BLOCK_SECONDS / 2:
                size *= 2
            elif seconds > 2 * BLOCK_SECONDS:
                size = max(1, size // 2)

    def _evaluate(self, block: Array, at: slice) -> Array:
        """Losses and gradient norms of points[:, at], walk after walk in `block`; the gradients."""
        losses, g = self.evaluator.gradients(np.ascontiguousarray(block))
        norms = np.sqrt(np.einsum("pj,pj->p", g, g))
        self.found.losses[:, at] = losses.reshape(self.walks, -1)
        self.found.gradient_norms[:, at] = norms.reshape(self.walks, -1)
        return g

    def _again(self, theta: Array) -> Array:
        """The gradients at the last points, which are not kept; a check of the landscape too."""
        last = slice(self.done - 1, self.done)
        before = self.found.losses[:, last].copy()
        gradients = self._evaluate(theta, last)
        self._compare(before, self.found.losses[:, last])
        return gradients

    def _compare(self, before: Array, now: Array) -> None:
        """What a run that goes on finds at its last points, with what was recorded there."""
        if not np.allclose(now, before, rtol=RECHECK, atol=0.0, equal_nan=True):
            raise ResumeMismatch(
                "path: the losses that the unfinished run recorded come out differently now: the "
                "model's or the loss's code has changed; remove the file beside the path"
            )
