"""Replacing a file as a whole: whoever reads sees the old one or the new one, also after a crash.

What is being written lies beside the target under `.NAME.XXXXXXXX.tmp` and is locked (flock) as
long as its process lives. What killed processes left there is removed by the next writer.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InvalidArgument

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

LONGEST = 240  # bytes of a name to which ".XXXXXXXX.tmp" can be added
OLD = 86_400.0  # seconds without a change, where locks cannot tell whether the writer lives


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """An empty file beside `target`, to be written in the block, which takes its place at the end.

    Its bytes are on the disk before the rename, and the rename is before the block ends. An
    exception leaves the old file.

    Raises:
        OSError: it cannot be written.
        InvalidArgument: `target` is a device or a pipe, in whose place nobody wants a file.
    """
    check_replaceable(target)
    with scratch(target) as temporary:
        yield temporary
        with open(temporary, "rb") as done:
            os.fsync(done.fileno())
        os.replace(temporary, target)
    _sync_folder(target.parent)


def check_replaceable(target: Path) -> None:
    """Refuse a device or a pipe: /dev/null would be a file from then on, for everybody."""
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise InvalidArgument(f"path: expected a file, got {target}, a device or a pipe")


def write_bytes(target: Path, content: bytes) -> None:
    """Replace `target` by a file with this content."""
    with replacing(target) as temporary:
        temporary.write_bytes(content)


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """An empty file beside `target` that is gone after the block, also if the process is killed:
    then the next writer of the same target removes it."""
    remove_leftovers(target)
    temporary, fd = _create(target)
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(fd)


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left beside `target`; what a living one writes stays."""
    pattern = re.compile(re.escape(f".{_stem(target)}.") + r"[0-9a-f]{8}\.tmp")
    with suppress(OSError), os.scandir(target.parent) as found:
        for entry in found:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                _remove_if_dead(Path(entry.path))


def _remove_if_dead(path: Path) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR)
        try:
            locked = _lock(fd)
            if locked is None:
                locked = time.time() - os.fstat(fd).st_mtime > OLD
            if locked:
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)


def _create(target: Path) -> tuple[Path, int]:
    while True:
        path = target.with_name(f".{_stem(target)}.{secrets.token_hex(4)}.tmp")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        taken = _lock(fd) is False  # by a process that looks whether it can be removed
        if not taken and os.path.exists(path):
            return path, fd
        os.close(fd)
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _lock(fd: int) -> bool | None:
    """Whether the file could be locked; None where there are no locks."""
    if fcntl is None:  # pragma: no cover - not on Windows
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _stem(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) <= LONGEST:
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where folders can be synced."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
