"""Evaluating many points in chunks, with a progress bar, a journal and an ear for Ctrl-C.

Chunks aim at a fifth of a second, so that an interrupt is heard and a kill costs little; the
engine's values do not depend on how the points are cut into chunks. `prepare` is of the caller's:
for a surface `Landscape.prepare`, which is the engine's (engines/native.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..arrays import Array, progress_bar
from ..errors import ResumeMismatch

CHUNK_SECONDS = 0.2
MAX_GROWTH = 16  # of one chunk over the one before: the first points of a run are slow to evaluate

log = logging.getLogger("pylandscape")

Evaluate = Callable[[Array], dict[str, Array]]


class Recorded(Protocol):
    """What `evaluate_in_chunks` needs of a journal: values (G, m) where done (G,), and `append`."""

    path: Path
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
        exact: the engine repeats its bits; if not (a GPU), a recorded loss may differ by 0.1 %.

    Returns:
        (G, m) float64.

    Raises:
        KeyboardInterrupt, or what evaluating raises: the journal keeps what is done, and the log
        says so.
        ResumeMismatch: the first point that the journal holds comes out differently now.
        OSError: the journal cannot be written.
    """
    total = len(coefficients)
    values = journal.values if journal is not None else np.full((total, len(names)), np.nan)
    done = journal.done if journal is not None else np.zeros(total, dtype=bool)
    kept = int(done.sum())
    if kept == total:
        return values
    held = coefficients.nbytes + values.nbytes
    with progress_bar(total, label, "pt", progress, kept, memory=held, guess=guess) as bar:
        evaluate = prepare()
        if journal is not None and kept:
            _recheck(journal, coefficients, evaluate, exact)
        size = 1
        try:
            for begin, end in missing(done):
                while begin < end:
                    stop = min(begin + size, end)
                    started = time.perf_counter()
                    found = evaluate(coefficients[begin:stop])
                    seconds = time.perf_counter() - started
                    block = np.stack([found[name] for name in names], axis=1)
                    if journal is not None:
                        journal.append(begin, block)
                    else:
                        values[begin:stop] = block
                    bar.update(stop - begin)
                    size = next_size(stop - begin, seconds)
                    begin = stop
        except BaseException as error:
            if journal is not None and journal.done.any():
                log.warning(
                    "stopped by %s: %d of %d points are kept in %s; the same call continues there",
                    type(error).__name__, int(journal.done.sum()), total, journal.path,
                )  # fmt: skip
            raise
    return values


def next_size(size: int, seconds: float) -> int:
    """How many points the next chunk takes, after `size` points took `seconds`."""
    aim = size * CHUNK_SECONDS / max(seconds, 1e-9)
    return max(1, int(min(aim, size * MAX_GROWTH)))


def missing(done: np.ndarray) -> Iterator[tuple[int, int]]:
    """The runs [begin, end) of points that are not done."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], done, [True]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


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
