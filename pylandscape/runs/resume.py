"""Runs that go on where they stopped: the one protocol of result, unfinished record and request."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..arrays import jsonable
from ..errors import FileFormatError, PylandscapeError, ResumeMismatch
from ..files import store
from ..files.atomic import remove_leftovers
from ..results.loading import load
from .checkpoint import SUFFIX, Checkpoint
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
) -> Result:
    """As `answered`, with checkpoints; `run` gets one that keeps nothing where there is no path."""
    request = jsonable(request, "request")
    if path is None:
        return run(Checkpoint(None, request))
    return answered(path, request, SUFFIX, lambda beside: Checkpoint(beside, request), run)


def answered(
    path: str | os.PathLike[str],
    request: Mapping[str, Any],
    suffix: str,
    record: Callable[[Path], Kept],
    run: Callable[[Kept], Result],
) -> Result:
    """The result of `run`, which is in the file `path` at the end; or that file's, if it is there.

    Args:
        suffix: of the file beside the result that holds the unfinished run.
        record: opens that file.
        run: takes up what the record holds, and gives the result.

    Raises:
        ResumeMismatch: the file, or the unfinished run beside it, is another request's.
        FileFormatError: the file is something else.
        OSError: the result cannot be written.
        What `run` raises: what it recorded is kept, and the same call goes on from there.
    """
    target = store.target_of(path)
    beside = target.with_name(target.name + suffix)
    remove_leftovers(target)
    there: Result | None = finished(target, request)
    if there is not None:
        if beside.exists():  # of a process killed between the two steps; or another's, which stays
            with suppress(PylandscapeError, OSError), record(beside) as stale:
                stale.remove()
        return there
    with record(beside) as kept:
        there = finished(target, request)  # another process may have finished it just now
        if there is None:
            there = run(kept)
            _save(there, target, kept)
        kept.remove()
    return there


def finished(target: Path, request: Mapping[str, Any]) -> Any:
    """The finished result of the same request at `target`; None if there is no file.

    Raises:
        ResumeMismatch: it is the result of another request.
        FileFormatError: it is something else, which is not ours to overwrite.
    """
    if not target.exists():
        return None
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
