"""Runs that go on where they stopped: the one protocol of result, unfinished record and request."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from ..arrays import jsonable
from ..errors import FileFormatError, InvalidArgument, PylandscapeError, ResumeMismatch
from ..files import store
from ..files.atomic import remove_leftovers
from ..ranks import Call, Ranks, current
from .checkpoint import SUFFIX, Checkpoint
from .items import RANK, flat, named, of_ranks
from .journal import Journal
from .request import differences, listing

Result = TypeVar("Result")


class Record(AbstractContextManager[Any], Protocol):
    """What an unfinished run has so far: a `Journal` or a `Checkpoint`.

    Opening one raises ResumeMismatch where it is another request's.
    """

    path: Any

    def sync(self) -> None:
        """Wait until what it holds is on the disk."""

    def remove(self) -> None:
        """Delete it."""


Kept = TypeVar("Kept", bound=Record)


def resumable(
    path: str | os.PathLike[str] | None,
    request: Mapping[str, Any],
    run: Callable[[Checkpoint], Result],
    compared: Mapping[str, Any] | None = None,
) -> Result:
    """As `answered`, with checkpoints; `run` gets one that keeps nothing where there is no path.

    Ranks compare what they ask, with or without a path; without one `compared`, if it is given.
    """
    request = jsonable(request, "request")
    if path is None:
        kept, ranks = Checkpoint(None, request), current()
        if ranks is None:
            return run(kept)
        asked = jsonable(compared or request, "request")
        with ranks.call(request.get("kind", "result"), asked) as call:
            kept.alive = call.beat
            return run(kept)

    def record(beside: Path | None) -> Checkpoint:
        return Checkpoint(beside, request)

    return answered(path, request, SUFFIX, record, run)


def answered(
    path: str | os.PathLike[str],
    request: Mapping[str, Any],
    suffix: str,
    record: Callable[[Path | None], Kept],
    run: Callable[[Kept], Result],
) -> Result:
    """The result of `run`, which is in the file `path` at the end; or that file's, if it is there.

    Of several ranks, the first owns the file and a checkpoint; each has a journal of its own beside
    it, which the next run merges under any number of ranks.

    Args:
        suffix: of the file beside the result that holds the unfinished run.
        record: opens that file; of None, it keeps what it gets in memory.
        run: takes up what the record holds, and gives the result.

    Raises:
        ResumeMismatch: the file, or the unfinished run beside it, is another request's.
        FileFormatError: the file is something else.
        OSError: the result cannot be written.
        What `run` raises: what it recorded is kept, and the same call goes on from there.
    """
    ranks = current()
    if ranks is not None:
        return _answered_by(ranks, path, request, suffix, record, run)
    target = store.target_of(path)
    beside = target.with_name(target.name + suffix)
    remove_leftovers(target)
    there: Result | None = finished(target, request)
    if there is not None:
        _remove_stale(beside, record)
        return there
    with record(beside) as kept:
        there = finished(target, request)  # another process may have finished it just now
        if there is None:
            _merge(kept, beside, record)
            there = run(kept)
            _save(there, target, kept)
        kept.remove()
        _remove_items(beside)
    return there


def _answered_by(
    ranks: Ranks,
    path: str | os.PathLike[str],
    request: Mapping[str, Any],
    suffix: str,
    record: Callable[[Path | None], Kept],
    run: Callable[[Kept], Result],
) -> Result:
    """As `answered`, by one of several ranks."""
    with ranks.call(f"{request.get('kind', 'result')} in a file", request) as call:
        target = store.target_of(path) if call.first else Path(os.path.realpath(path))
        beside = target.with_name(target.name + suffix)
        with ExitStack() as stack:
            there: Result | None = None
            if call.first:
                remove_leftovers(target)
                there = finished(target, request)
                if there is not None:
                    _remove_stale(beside, record)
                else:
                    kept = stack.enter_context(record(beside))
                    _merge(kept, beside, record)
            content = b"" if there is None else target.read_bytes()
            found = call.from_first([np.frombuffer(content, dtype=np.uint8)])[0].tobytes()
            if found:
                return there if there is not None else _read(found)
            if not call.first:
                kept = stack.enter_context(_own(record, beside, call.rank))
            _unite(call, kept)
            if isinstance(kept, Checkpoint):
                kept.alive = call.beat
            there = run(kept)
            call.meet("the end of the work")
            if call.first:
                _save(there, target, kept)
            call.meet("the file")  # what is recorded goes when the result is on the disk
            kept.remove()
            if call.first:
                _remove_items(beside)
            call.meet("the end")
    return there


def _own(record: Callable[[Path | None], Kept], beside: Path, rank: int) -> Kept:
    """The record of another rank than the first: a journal of its own where that can be written; in
    memory elsewhere, from where points go to rank 0."""
    kept = record(None)
    if isinstance(kept, Checkpoint):
        kept.beside = beside
    if not isinstance(kept, Journal):
        return kept
    try:
        return record(beside.with_name(f"{beside.name}{RANK}{rank}"))
    except (InvalidArgument, OSError):
        return kept


def _unite(call: Call, kept: Record) -> None:
    """All ranks know what any of them has recorded."""
    if isinstance(kept, Journal):
        own = np.flatnonzero(kept.done)
        for at, values in call.exchange([own, kept.values[own]]):
            kept.values[at], kept.done[at] = values, True
    elif isinstance(kept, Checkpoint):
        arrays = kept.load() if call.first else None
        found = call.from_first([] if arrays is None else flat(arrays))
        kept.resumes = bool(found)
        kept.given = named(*found) if found else None


def _merge(kept: Record, beside: Path, record: Callable[[Path | None], Record]) -> None:
    """Take over the journals that other ranks of an earlier run left."""
    for path in of_ranks(beside):
        with record(path) as other:
            if isinstance(kept, Journal) and isinstance(other, Journal):
                kept.absorb(other)
                other.remove()


def _remove_stale(beside: Path, record: Callable[[Path | None], Record]) -> None:
    """Remove what a process killed at the very end left; what is another's stays."""
    for path in (beside, *of_ranks(beside)):
        if path.exists():
            with suppress(PylandscapeError, OSError), record(path) as stale:
                stale.remove()


def _remove_items(beside: Path) -> None:
    """Remove what ranks kept of items (items.py); journals have been merged before."""
    for path in of_ranks(beside):
        path.unlink(missing_ok=True)


def _read(content: bytes) -> Any:
    """The result that a file of rank 0's holds."""
    from ..results.loading import load  # every kind of result

    with tempfile.TemporaryDirectory(prefix="pylandscape-") as folder:
        copied = Path(folder) / "result.h5"
        copied.write_bytes(content)
        return load(copied)


def finished(target: Path, request: Mapping[str, Any]) -> Any:
    """The finished result of the same request at `target`; None if there is no file.

    Raises:
        ResumeMismatch: it is the result of another request.
        FileFormatError: it is something else, which is not ours to overwrite.
    """
    if not target.exists():
        return None
    from ..results.loading import load

    try:
        result = load(target)
    except FileFormatError as error:
        raise FileFormatError(
            f"path: expected no file, or a result of pylandscape, at {target}; it is left alone. "
            f"{error}"
        ) from error
    found = result.info.get("request")
    if found is None:
        raise ResumeMismatch(
            f"path: {target} is a result of unknown origin, not of this request; remove it or use "
            "another "
            "path"
        )
    rows = differences(found, request)
    if rows:
        raise ResumeMismatch(
            f"path: {target} is the result of another request; remove it or use another path. What "
            f"differs:{listing(rows)}"
        )
    return result


def _save(result: Any, target: Path, kept: Record) -> None:
    try:
        kept.sync()
        store.save(result, target)
    except OSError as error:
        where = f"; all of its points are kept in {kept.path}" if kept.path.exists() else ""
        raise OSError(
            error.errno,
            f"{error.strerror or error}: could not write the finished result{where}. Make room and "
            "repeat the same call",
            str(target),
        ) from error
