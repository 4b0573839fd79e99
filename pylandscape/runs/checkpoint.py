"""What a long Lanczos run has so far, in a file beside its result's, and taking it up again."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..arrays import to_json
from ..errors import FileFormatError, ResumeMismatch
from ..files.atomic import remove_leftovers
from ..files.hdf5 import member, open_hdf5, replacing_hdf5
from .request import differences, listing

SUFFIX = ".lanczos"
SECONDS = 60.0  # between two checkpoints
BEAT = 0.5  # seconds between two signs of life to other ranks

log = logging.getLogger("pylandscape")

Arrays = dict[str, np.ndarray]


class Checkpoint:
    """The arrays of one unfinished run, as a context; without a path it keeps nothing.

    Leaving the block by an exception says in the log where what is kept lies.
    """

    def __init__(self, path: Path | None, request: Mapping[str, Any]) -> None:
        """Find what an earlier run of the same request left.

        Raises:
            ResumeMismatch: it is another request's.
            FileFormatError: the file is damaged.
        """
        self.path, self.request = path, dict(request)
        self.beside = path  # where ranks keep items beside it, also those that have no path here
        self.given: Arrays | None = None  # to all ranks, what rank 0 has read
        self.resumes = path is not None and path.exists()
        self.alive: Callable[[], None] | None = None  # a sign of life to other ranks
        self._last = self._beaten = time.monotonic()
        if path is not None:
            remove_leftovers(path)
            self._read(arrays=False)

    def load(self) -> Arrays | None:
        """What an earlier run of the same request left, or None; raises as the constructor."""
        if self.given is not None:
            given, self.given = self.given, None
            return given
        return None if self.path is None else self._read(arrays=True)

    @property
    def due(self) -> bool:
        """Whether it is time to save. Asked after every step: other ranks hear of it, too.

        Raises RankFailed where another rank failed.
        """
        if self.alive is not None and time.monotonic() - self._beaten > BEAT:
            self._beaten = time.monotonic()
            self.alive()
        return self.path is not None and time.monotonic() - self._last > SECONDS

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace what is there, atomically."""
        if self.path is None:
            return
        with replacing_hdf5(self.path) as file:
            text = to_json(self.request, "request").encode()
            file["request"] = np.frombuffer(text, dtype=np.uint8)  # attributes end at 64 KiB
            for name, each in arrays.items():
                file[f"arrays/{name}"] = each
        self._last = time.monotonic()

    def sync(self) -> None:
        """Nothing to wait for: `save` does."""

    def remove(self) -> None:
        """Delete the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, FileFormatError | ResumeMismatch):
            return
        if self.path is not None and self.path.exists():
            log.warning(
                "stopped by %s: what is done is kept in %s; the same call continues there",
                kind.__name__, self.path,
            )  # fmt: skip

    def _read(self, arrays: bool) -> Arrays | None:
        if self.path is None or not self.path.exists():
            return None
        with open_hdf5(self.path, "path") as file:
            if "request" in file.attrs:  # of an older version, whose requests are others
                about, group = json.loads(str(file.attrs["request"])), file
            else:
                text = member(file, "request", h5py.Dataset)[()]
                about, group = json.loads(text.tobytes()), member(file, "arrays", h5py.Group)
            rows = differences(about, self.request)
            if rows:
                raise ResumeMismatch(
                    f"path: {self.path} holds the unfinished run of another request; remove it or "
                    f"use another path. What differs:{listing(rows)}"
                )
            if not arrays:
                return None
            return {name: np.asarray(member(group, name, h5py.Dataset)[()]) for name in group}
