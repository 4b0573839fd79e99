"""Runs of training that several ranks share, streamed to files.

Each set of runs that a rank draws has a log of its own beside the result, so that no rank holds the
records of a run in memory; the first rank reads them all when it writes the result. The place of a
run: (rank, first run of the set, position in the set, runs in the set).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FileFormatError
from ..ranks import Call
from ..runs.items import RANK, of_ranks
from ..trajectories import log

SUFFIX = ".training.logs"  # of what ranks keep of finished runs: their places


class SharedRuns:
    """The logs beside the file ``target`` of runs of ``moments`` records each."""

    def __init__(self, target: Path, header: log.Header, moments: int, rank: int) -> None:
        self._target, self._header, self._rank = target, header, rank
        self._moments = moments
        self.record = target.with_name(target.name + SUFFIX)

    @property
    def begun(self) -> bool:
        """Whether there are finished runs of this kind."""
        return bool(of_ranks(self.record))

    def writable(self, call: Call) -> bool:
        """Whether all ranks write files that the first one sees."""
        own = self._path(call.rank, "trial")
        with suppress(OSError):
            own.touch()
        call.meet("the folder of the runs")
        seen = call.first and all(self._path(r, "trial").exists() for r in range(call.size))
        found = bool(call.from_first([np.array(seen)])[0])
        with suppress(OSError):
            own.unlink(missing_ok=True)
        return found

    def writer(self, at: np.ndarray) -> log.Writer:
        """A new log for the runs ``at``."""
        path = self._path(self._rank, str(at[0]))
        path.unlink(missing_ok=True)  # of a killed rank, without a place
        return log.Writer(path, self._header)

    def places(self, at: np.ndarray) -> np.ndarray:
        """(m, 4) int64 of the runs ``at`` in the log that `writer` gave."""
        return np.array([[self._rank, at[0], k, len(at)] for k in range(len(at))], dtype=np.int64)

    def rows(self, places: np.ndarray) -> Iterator[tuple[int, Any, Any]]:
        """(step, metrics, values) of all records, moment by moment, from places (P, 4)."""
        logs: dict[tuple[int, int], Any] = {}
        for rank, first, _, size in places.tolist():
            if (rank, first) not in logs:
                logs[rank, first] = self._read(self._path(rank, str(first)), size)
        for moment in range(self._moments):
            for rank, first, position, size in places.tolist():
                found = logs[rank, first][moment * size + position]
                yield int(found["step"]), found["metrics"], found["values"]

    def remove(self) -> None:
        """Delete logs and places."""
        beside = self._target.with_name(self._target.name + log.SUFFIX)
        with suppress(OSError):
            for path in [*self._target.parent.iterdir()]:
                if path.name.startswith(beside.name + RANK):
                    path.unlink(missing_ok=True)
            for path in of_ranks(self.record):
                path.unlink(missing_ok=True)

    def _path(self, rank: int, what: str) -> Path:
        return self._target.with_name(f"{self._target.name}{log.SUFFIX}{RANK}{rank}.{what}")

    def _read(self, path: Path, size: int) -> Any:
        there = path.exists()
        found = log.read(path)[1] if there else np.empty(0)
        if len(found) != size * self._moments:
            what = f"holds {len(found)} records" if there else "is not there any more"
            raise FileFormatError(
                f"path: {path}, with {size * self._moments} records of finished runs, {what}; "
                f"remove {self.record.name}{RANK}* to train them again"
            )
        return found
