"""Writing HDF5 files in the original's layout, each change whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from ...errors import InvalidArgument
from ...files import atomic


@contextmanager
def replacing(path: Path, fresh: bool = False) -> Iterator[h5py.File]:
    """A copy of the file to write to (if ``fresh`` an empty one), which takes its place at the end.

    No locks: readers see the old file or the new one.

    Raises:
        InvalidArgument: there is no such folder. Whatever is raised inside leaves the old file.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise InvalidArgument(f"{path}: expected an existing folder, got {target.parent}")
    with atomic.replacing(target) as temporary:
        if not fresh:
            shutil.copyfile(target, temporary)
        with h5py.File(temporary, "w" if fresh else "r+", locking=False) as file:
            yield file
