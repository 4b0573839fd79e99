"""HDF5 files: reading those that may come from anywhere, and replacing our own as a whole.

Of what is read, only groups and datasets of numbers that lie in the file itself are touched: soft
and external links, external and virtual storage are refused, sizes are bounded. What the HDF5
library cannot read is a FileFormatError that names the path.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..arrays import Array
from ..errors import FileFormatError, InvalidArgument, PylandscapeError, wrapping
from .atomic import replacing

JOURNAL_MAGIC = b"PYLSJRN1"  # what a journal begins with, and its name ends with
JOURNAL_SUFFIX = ".journal"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_NUMBERS = 1 << 28  # of one dataset: 2 GiB as float64


def as_path(path: str | os.PathLike[str], name: str) -> Path:
    """The argument as a Path, or InvalidArgument."""
    try:
        return Path(path)
    except TypeError as error:
        raise InvalidArgument(f"{name}: expected a path, got {path!r}") from error


@contextmanager
def open_hdf5(path: Path, name: str) -> Iterator[h5py.File]:
    """Open for reading, without locks; what HDF5 cannot read becomes a FileFormatError."""
    if not path.exists():
        journal = path.with_name(path.name + JOURNAL_SUFFIX)
        more = f"; {journal} holds an unfinished run: repeat its call" if journal.exists() else ""
        missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        raise wrapping(
            missing,
            f"{name}: expected a file, got {path}, which does not exist{more}",
            FileFormatError,
        )
    if path.is_dir():
        raise FileFormatError(f"{name}: expected a file, got the folder {path}")
    with open(path, "rb") as raw:
        first = raw.read(8)
    if first == JOURNAL_MAGIC:
        raise FileFormatError(
            f"{name}: {path} is the journal of an unfinished run; repeat the call that wrote it"
        )
    if not first:
        raise FileFormatError(f"{name}: expected an HDF5 file, got an empty one: {path}")
    try:
        file = h5py.File(path, "r", locking=False)
    except Exception as error:
        if first != HDF5_SIGNATURE:
            raise FileFormatError(
                f"{name}: expected an HDF5 file, got another format: {path}"
            ) from error
        raise _damaged(path, name, error) from error
    try:
        yield file
    except (PylandscapeError, MemoryError):
        raise
    except Exception as error:  # h5py has no type of its own for what it cannot read
        raise _damaged(path, name, error) from error
    finally:
        file.close()


@contextmanager
def replacing_hdf5(target: Path) -> Iterator[h5py.File]:
    """A new file to be filled in the block, which takes the place of `target` at its end.

    Raises:
        OSError: it cannot be written; `target` is as it was.
    """
    try:
        with (
            replacing(target) as temporary,
            h5py.File(temporary, "w", locking=False) as file,
        ):
            yield file
    except OSError as error:  # whose text is HDF5's, of a page
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(target)) from error


def not_matching(where: str) -> FileFormatError:
    return FileFormatError(
        f"{where}: its contents do not match their checksum; restore it from a copy, or remove it "
        "and compute it again"
    )


def _damaged(path: Path, name: str, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{name}: {path} is truncated or damaged ({error}); restore it from a copy, or remove it "
        "and compute it again"
    )


def member(group: h5py.Group, name: str, kind: type) -> Any:
    """A group or dataset stored in the file itself, under a plain (hard) link."""
    where = group.file.filename
    link = group.get(name, getlink=True)
    if link is None:
        raise FileFormatError(f"{where}: expected {name!r} in {group.name}, found none")
    if not isinstance(link, h5py.HardLink):
        raise FileFormatError(f"{where}: expected no links to other places, got {name!r}")
    found = group[name]
    if not isinstance(found, kind):
        raise FileFormatError(
            f"{where}: expected a {kind.__name__} {name!r}, got a {type(found).__name__}"
        )
    if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
        raise FileFormatError(
            f"{where}: expected numbers stored in the file, got {name!r} stored elsewhere"
        )
    return found


def array(group: h5py.Group, name: str) -> Array:
    """A dataset of numbers, as float64; a large one only if the file holds all of its bytes."""
    where = group.file.filename
    dataset = member(group, name, h5py.Dataset)
    if dataset.dtype.kind not in "fiu" or dataset.shape is None:
        raise FileFormatError(f"{where}: expected numbers in {name!r}, got {dataset.dtype}")
    plain = dataset.chunks is None and dataset.nbytes <= os.path.getsize(where)
    if dataset.size > MAX_NUMBERS and not plain:
        raise FileFormatError(
            f"{where}: expected at most {MAX_NUMBERS} numbers in {name!r}, got {dataset.size}"
        )
    return np.asarray(dataset[()], dtype=np.float64)
