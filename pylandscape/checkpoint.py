"""What a long Lanczos run has so far, in a file beside its result's, and taking it up again."""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from . import files
from .errors import FileFormatError, ResumeMismatch
from .hdf5 import member, open_hdf5
from .request import differences, jsonable, listing, to_json

SUFFIX = ".lanczos"
SECONDS = 60.0  # between two checkpoints

log = logging.getLogger("pylandscape")

Arrays = dict[str, np.ndarray]
Result = TypeVar("Result")


class Checkpoint:
    """The arrays of one unfinished run; without a path it keeps nothing."""

    def __init__(self, path: Path | None, request: Mapping[str, Any]) -> None:
        self.path, self.request = path, dict(request)
        self._last = time.monotonic()

    def load(self) -> Arrays | None:
        """What an earlier run of the same request left, or None.

        Raises:
            ResumeMismatch: it is another request's.
            FileFormatError: the file is damaged.
        """
        if self.path is None or not self.path.exists():
            return None
        with open_hdf5(self.path, "path") as file:
            about = json.loads(str(file.attrs["request"]))
            rows = differences(about, self.request)
            if rows:
                raise ResumeMismatch(
                    f"path: {self.path} holds the unfinished run of another request; remove it or "
                    f"use another path. What differs:{listing(rows)}"
                )
            return {name: np.asarray(member(file, name, h5py.Dataset)[()]) for name in file}

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.path is not None and time.monotonic() - self._last > SECONDS

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace what is there, atomically."""
        if self.path is None:
            return
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with h5py.File(temporary, "w") as file:
                file.attrs["request"] = to_json(self.request, "request")
                for name, each in arrays.items():
                    file[name] = each
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self._last = time.monotonic()

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def resumable(
    path: str | os.PathLike[str] | None,
    request: Mapping[str, Any],
    run: Callable[[Checkpoint], Result],
) -> Result:
    """The result of `run`, which is in the file `path` at the end; or that file's, if it is there.

    Raises:
        ResumeMismatch: the file, or the unfinished run beside it, is another request's.
        FileFormatError: the file is something else.
        What `run` raises: what it saved is kept, and the same call goes on from there.
    """
    request = jsonable(request, "request")
    if path is None:
        return run(Checkpoint(None, request))
    target = files.target_of(path)
    there: Result | None = files.finished(target, request)
    checkpoint = Checkpoint(target.with_name(target.name + SUFFIX), request)
    if there is None:
        try:
            there = run(checkpoint)
        except (FileFormatError, ResumeMismatch):  # of what is kept: it cannot be continued
            raise
        except BaseException as error:
            kept = checkpoint.path is not None and checkpoint.path.exists()
            if kept:
                log.warning(
                    "stopped by %s: what is done is kept in %s; the same call continues there",
                    type(error).__name__, checkpoint.path,
                )  # fmt: skip
            raise
        files.save(there, target)  # type: ignore[arg-type]
    checkpoint.remove()
    return there
