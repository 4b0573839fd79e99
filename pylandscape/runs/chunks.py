"""Evaluating many points in chunks, with a progress bar, a journal and an ear for Ctrl-C.

Chunks aim at a fifth of a second, so that an interrupt is heard and a kill costs little; the
engine's values do not depend on how the points are cut into chunks. `prepare` is of the caller's:
for a surface `Landscape.prepare`, which is the engine's (engines/native.py). Of several ranks
(ranks.py) each evaluates the chunks that it draws, and all get all values.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..arrays import Array, progress_bar
from ..errors import ResumeMismatch
from ..ranks import Call, by_itself, current, in_step

CHUNK_SECONDS = 0.2
MAX_GROWTH = 16  # of one chunk over the one before: the first points of a run are slow to evaluate

log = logging.getLogger("pylandscape")

Evaluate = Callable[[Array], dict[str, Array]]


class Recorded(Protocol):
    """What `evaluate_in_chunks` needs of a journal: values (G, m) where done (G,), and `append`.

    Without a path, on ranks whose folder cannot be written, it keeps them in memory.
    """

    path: Any
    values: Array
    done: np.ndarray

    def append(self, start: int, block: Array, /) -> None: ...


def evaluate_in_chunks(
    coefficients: Array,
    names: Sequence[str],
    prepare: Callable[[], Evaluate],
    *,
    journal: Recorded | None = None,
    progress: bool = True,
    label: str = "",
    exact: bool = True,
    guess: float = 0.0,
    request: Mapping[str, Any] | None = None,
) -> Array:
    """Metrics at every row of the coefficients.

    Args:
        coefficients: (G, k) float64.
        names: the m metrics' keys.
        prepare: gives the function (g, k) -> {name: (g,)}; called only if there is something to
            compute.
        journal: supplies the points that it holds and gets the others as they come.
        progress: show a bar on stderr.
        label: the bar's text.
        guess: seconds that a point may take, known before any was evaluated; 0: not known.
        request: what is asked, by which ranks (ranks.py) know that they ask the same; without one
            each computes all points.
        exact: the engine repeats its bits; if not (a GPU), a recorded loss may differ by 0.1 %.

    Returns:
        (G, m) float64.

    Raises:
        KeyboardInterrupt, or what evaluating raises: the journal keeps what is done, and the log
        says so.
        ResumeMismatch: the first point that the journal holds comes out differently now.
        OSError: the journal cannot be written.
        RankFailed: another rank stopped.
    """
    total = len(coefficients)
    values = journal.values if journal is not None else np.full((total, len(names)), np.nan)
    done = journal.done if journal is not None else np.zeros(total, dtype=bool)
    kept = int(done.sum())
    if kept == total:
        return values
    held = coefficients.nbytes + values.nbytes

    def work(share: _Share) -> None:
        with progress_bar(total, label, "pt", progress, kept, memory=held, guess=guess) as bar:
            evaluate = prepare()
            if journal is not None and kept:
                _recheck(journal, coefficients, evaluate, exact)
            size = 1
            try:
                while part := share.take(size):
                    for begin, stop in part:
                        started = time.perf_counter()
                        found = evaluate(coefficients[begin:stop])
                        seconds = time.perf_counter() - started
                        block = np.stack([found[name] for name in names], axis=1)
                        if journal is not None:
                            journal.append(begin, block)
                        else:
                            values[begin:stop] = block
                        share.give(begin, block)
                        bar.update(kept + share.taken - bar.n)
                        size = next_size(stop - begin, seconds)
            except BaseException as error:
                if journal is not None and journal.done.any() and journal.path is not None:
                    log.warning(
                        "stopped by %s: %d of %d points are kept in %s; the same call continues "
                        "there", type(error).__name__, int(journal.done.sum()), total, journal.path,
                    )  # fmt: skip
                raise

    ranks = current() if request is not None else None
    if ranks is None or request is None:
        work(_Share(done))
        return values
    with ranks.call(label, request) as call:
        if in_step(request):
            work(_Together(done, call))
            return values
        shares = _Shares(done, call, journal)
        with by_itself():
            work(shares)
        for begins, counts, block in shares.gathered():
            ends = np.cumsum(counts)
            for begin, count, end in zip(begins, counts, ends, strict=True):
                values[begin : begin + count] = block[end - count : end]
        done[:] = True
    return values


class _Share:
    """The points that are left, in their order."""

    def __init__(self, done: np.ndarray) -> None:
        self.left = np.flatnonzero(~done)
        self.taken = 0

    def take(self, size: int) -> list[tuple[int, int]]:
        """The next `size` points, as runs [begin, end); none where nothing is left."""
        return self._runs(self.taken, size)

    def give(self, begin: int, block: Array) -> None:
        """What they gave."""

    def _runs(self, at: int, size: int) -> list[tuple[int, int]]:
        points = self.left[at : at + size]
        self.taken = min(at + size, len(self.left))
        cuts = np.flatnonzero(np.diff(points) > 1) + 1
        return [(int(run[0]), int(run[-1]) + 1) for run in np.split(points, cuts) if run.size]


class _Together(_Share):
    """All points on all ranks, in step: each point is asked of all ranks, which share out the
    samples. Rank 0 decides how many are asked at once."""

    def __init__(self, done: np.ndarray, call: Call) -> None:
        super().__init__(done)
        self.call = call

    def take(self, size: int) -> list[tuple[int, int]]:
        return super().take(int(self.call.from_first([np.array(size)])[0]))


class _Shares(_Share):
    """The same, of several ranks: which of the points one of them gets decides the group's counter,
    so that fast and slow ones end together."""

    def __init__(self, done: np.ndarray, call: Call, journal: Recorded | None) -> None:
        super().__init__(done)
        self.call, self.journal = call, journal
        self.mine: list[tuple[int, Array]] = []

    def take(self, size: int) -> list[tuple[int, int]]:
        self.call.beat()
        self._hear()
        rest = len(self.left) - self.taken
        size = max(1, min(size, -(-rest // (2 * self.call.size))))  # the last ones are small
        return self._runs(self.call.draw(size), size)

    def give(self, begin: int, block: Array) -> None:
        self.mine.append((begin, block))
        journal = self.journal
        if journal is not None and journal.path is None:  # no file here: rank 0 keeps them
            self.call.send(np.array([begin]), block)

    def gathered(self) -> list[list[np.ndarray]]:
        """Of each rank: begins, counts and values of its runs."""
        self.call.meet("the end of the points", self._hear)
        self._hear()
        begins = np.array([begin for begin, _ in self.mine], dtype=np.int64)
        counts = np.array([len(block) for _, block in self.mine], dtype=np.int64)
        blocks = [block for _, block in self.mine] or [np.empty((0, 0))]
        return self.call.exchange([begins, counts, np.concatenate(blocks)])

    def _hear(self) -> None:
        if self.call.first and self.journal is not None:
            for begin, block in self.call.received():
                self.journal.append(int(begin[0]), block)


def next_size(size: int, seconds: float) -> int:
    """How many points the next chunk takes, after `size` points took `seconds`."""
    aim = size * CHUNK_SECONDS / max(seconds, 1e-9)
    return max(1, int(min(aim, size * MAX_GROWTH)))


def _recheck(journal: Recorded, coefficients: Array, evaluate: Evaluate, exact: bool) -> None:
    """Evaluate one recorded point again: a request cannot tell of everything, code for example."""
    k = int(np.argmax(journal.done))
    recorded = float(journal.values[k, 0])
    now = float(evaluate(coefficients[k : k + 1])["loss"][0])
    if not np.isclose(recorded, now, rtol=0.0 if exact else 1e-3, atol=0.0, equal_nan=True):
        raise ResumeMismatch(
            f"path: {journal.path} records a loss of {recorded!r} at coefficients "
            f"{coefficients[k].tolist()}, where it is {now!r} now: the model's code, the data or "
            "the machine's arithmetic changed, or the loss is random; remove the file to restart"
        )
