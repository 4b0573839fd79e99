"""Independent pieces of work, such as walks, probes or runs of training, shared among ranks.

Each rank draws some of the items that are left, computes them alone and records what it finished in
a file of its own beside the result; at the end all ranks have all items. An item does not depend on
which others are computed with it, so that bits are those of one process.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import progress_bar
from ..errors import InvalidArgument
from ..ranks import Call, by_itself, current, in_step
from .checkpoint import BEAT, SECONDS, Arrays, Checkpoint

RANK = ".rank"  # of the name of a rank's record beside a result, before its number
OFTEN, SHARE = 1.0, 50.0  # seconds between two records at least; and so often the time of one
ITEMS = "items"  # name of the array that says which items the others of a record are of

Work = Callable[[np.ndarray, Callable[[], None]], Mapping[str, np.ndarray]]


def by_ranks(
    label: str,
    request: Mapping[str, Any],
    count: int,
    work: Work,
    *,
    kept: Checkpoint | None = None,
    most: int | None = None,
    unit: str = "item",
    progress: bool = True,
) -> Arrays | None:
    """{name: (count, ...)}: what `work` gives for all items, or None where this process is alone.

    Also None where the ranks share out the samples (``shard="data"``), and where one process left
    a checkpoint: all ranks go on from that together. And not None where one process finds what
    ranks have recorded: it does the rest.

    Args:
        label: of the work, in errors and on the bar.
        request: what is asked, for the ranks to compare.
        work: (indices of items (m,), a function to call now and then as a sign of life) to
            {name: (m, ...)}, numbers only.
        kept: of the result's file, if there is one.
        most: items at once.

    Raises:
        RankFailed: another rank stopped.
        What `work` raises: items that were finished are kept.
    """
    ranks = current()
    beside = None if kept is None else kept.beside
    if (kept is not None and kept.resumes) or (ranks is not None and in_step(request)):
        return None
    if ranks is None and not (beside is not None and of_ranks(beside)):
        return None
    with nullcontext() if ranks is None else ranks.call(label, request) as call:
        record = _Record(beside, request if kept is None else kept.request, call)
        share = _Share(count, record, call, most)
        with progress_bar(count, label, unit, progress, count - len(share.left)) as bar:
            with by_itself(), record.saved():
                while (at := share.next()).size:
                    record.add(at, work(at, share.beat))
                    bar.update(count - len(share.left) + share.drawn - bar.n)
            return share.gathered()


@contextmanager
def compared(label: str, request: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """A block of several pieces of work; ranks first compare what they ask for as a whole.

    Raises InvalidArgument where they differ, RankFailed where another rank failed.
    """
    ranks = current()
    if ranks is None:
        yield
        return
    with ranks.call(label, request()):
        yield


class _Share:
    """Which items this rank computes."""

    def __init__(self, count: int, record: _Record, call: Call | None, most: int | None) -> None:
        self.count, self.record, self.call = count, record, call
        self.drawn = 0
        self._last = time.monotonic()
        parts = record.read()
        self.known = [parts] if call is None else [named(*f) for f in call.exchange(flat(parts))]
        done = np.zeros(count, dtype=bool)
        for part in self.known:
            done[part[ITEMS]] = True
        self.left = np.flatnonzero(~done)
        self._ends = _ends(len(self.left), 1 if call is None else call.size, most or count)
        self._next = 0

    def next(self) -> np.ndarray:
        """Items that nobody else gets; none at the end."""
        self.beat(True)
        number = self._next if self.call is None else self.call.draw(1)
        self._next = number + 1
        if number >= len(self._ends):
            return self.left[:0]
        begin = self._ends[number - 1] if number else 0
        self.drawn = self._ends[number]
        return self.left[begin : self.drawn]

    def beat(self, now: bool = False) -> None:
        """A sign of life, not too often."""
        if self.call is not None and (now or time.monotonic() - self._last > BEAT):
            self._last = time.monotonic()
            self.call.beat()
            self.record.hear()

    def gathered(self) -> Arrays:
        if self.call is None:
            parts = [*self.known, self.record.part()]
        else:
            self.call.meet("the end of the items", self.record.hear)
            self.record.hear()
            own = flat(self.record.part())
            parts = [*self.known, *(named(*found) for found in self.call.exchange(own))]
        parts = [part for part in parts if part[ITEMS].size]
        found = {}
        for name, array in parts[0].items():
            if name != ITEMS:
                whole = np.empty((self.count, *array.shape[1:]), dtype=array.dtype)
                for part in parts:
                    whole[part[ITEMS]] = part[name]
                found[name] = whole
        return found


def _ends(count: int, size: int, most: int) -> list[int]:
    """Where the pieces end that `size` ranks draw `count` items in.

    Each gets a piece of half of what is left, and so on: equal ranks have equally much, and of
    unequal ones the fast ones draw more of the last pieces, which are small.
    """
    least = -(-count // (12 * size))  # items that are computed together cost less
    ends: list[int] = []
    while (left := count - (ends[-1] if ends else 0)) > 0:
        share = -(-left // size)  # of each rank, if these were the last pieces
        piece = share if size == 1 else max(-(-left // (2 * size)), min(least, share))
        for _ in range(size):
            if ends and ends[-1] == count:
                break
            ends.append(min(count, (ends[-1] if ends else 0) + min(piece, most)))
    return ends


class _Record:
    """What this rank has finished, in its file where there is one; rank 0 also has what ranks
    without a file send it."""

    def __init__(self, beside: Path | None, request: Mapping[str, Any], call: Call | None) -> None:
        self.beside, self.request, self.call = beside, request, call
        self.rank = 0 if call is None else call.rank
        self._parts: list[Arrays] = []  # of this run
        self._before: list[Arrays] = []  # from files of earlier ones, and of others
        self._sends = False
        self._saved, self._cost = time.monotonic(), 0.0

    @property
    def path(self) -> Path | None:
        if self.beside is None:
            return None
        return self.beside.with_name(f"{self.beside.name}{RANK}{self.rank}")

    def read(self) -> Arrays:
        """What the files hold that this rank sees: rank 0 looks for all."""
        if self.beside is None:
            return _joined([])
        paths = of_ranks(self.beside) if self.rank == 0 else [self.path]
        for path in paths:
            found = None
            if path is not None:
                with suppress(PermissionError):
                    found = Checkpoint(path, self.request).load()
            if found is not None:
                self._before.append(found)
        return _joined(self._before)

    def add(self, at: np.ndarray, found: Mapping[str, np.ndarray]) -> None:
        part = {ITEMS: np.asarray(at, dtype=np.int64), **found}
        self._parts.append(part)
        if self._sends and self.call is not None:
            self.call.send(*flat(part))
        elif time.monotonic() - self._saved > min(SECONDS, max(OFTEN, SHARE * self._cost)):
            self._save()

    def part(self) -> Arrays:
        """What this run of this rank has finished."""
        return _joined(self._parts)

    def hear(self) -> None:
        """Rank 0: take what others send, and keep it."""
        if self.call is not None and self.call.first and self.beside is not None:
            heard = [named(*found) for found in self.call.received()]
            self._before += heard
            if heard:
                self._save()

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Keeps what there is when the block ends, however it does."""
        try:
            yield
        finally:
            if self._parts and not self._sends:
                self._save()

    def _save(self) -> None:
        path = self.path
        if path is None:
            return
        begun = time.monotonic()
        try:
            Checkpoint(path, self.request).save(_joined([*self._before, *self._parts]))
        except (OSError, InvalidArgument):
            if self.call is None or self.call.first:
                raise
            self._sends = True  # rank 0 keeps them
            self.call.send(*flat(self.part()))
        self._saved = time.monotonic()
        self._cost = self._saved - begun


def of_ranks(beside: Path) -> list[Path]:
    """The records of ranks beside a result."""
    pattern = re.compile(re.escape(beside.name + RANK) + r"\d+")
    with suppress(OSError), os.scandir(beside.parent) as found:
        return sorted(Path(entry.path) for entry in found if pattern.fullmatch(entry.name))
    return []


def _joined(parts: Sequence[Arrays]) -> Arrays:
    parts = [part for part in parts if part[ITEMS].size]
    if not parts:
        return {ITEMS: np.empty(0, dtype=np.int64)}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def flat(part: Arrays) -> list[np.ndarray]:
    """Named arrays as arrays alone, to be exchanged: the names come first."""
    names = json.dumps(list(part)).encode()
    return [np.frombuffer(names, dtype=np.uint8), *part.values()]


def named(names: np.ndarray, *arrays: np.ndarray) -> Arrays:
    """What `flat` was made of."""
    return dict(zip(json.loads(names.tobytes()), arrays, strict=True))
