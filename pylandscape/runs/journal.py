"""The journal: an append-only, checksummed record of a running computation, beside its target file.

    header:  magic (8) | length of text (u32) | crc32 of text (u32) | crc32 of these 16 bytes (u32)
        | text
    record:  start (u64) | count (u64) | crc32 of payload (u32) | crc32 of these 20 bytes (u32) |
        payload
    payload: float64 (count, metrics), row-major; everything little-endian

The text is JSON: the request, the metrics' names and the total number of points. A record holds the
points start .. start + count. Records are only ever appended, so a process killed at any moment
leaves whole records and at most one torn tail, which the next one cuts off. A record whose payload
fails its checksum is skipped, and its points are computed again.

One process at a time: the file is locked (flock) while it is open, where the system can. Of several
ranks each has a journal of its own (runs/resume.py).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError, InvalidArgument, PylandscapeError, ResumeMismatch
from ..files.hdf5 import JOURNAL_MAGIC as MAGIC
from .request import differences, listing

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

SYNC_SECONDS = (
    2.0  # appended records reach the disk at least this often; a killed process loses none
)

_PREFIX = struct.Struct("<8sII")
_HEAD = struct.Struct("<QQI")
_CRC = struct.Struct("<I")


class Journal:
    """An open, locked journal.

    Attributes:
        path: of the journal itself; None: it keeps the points in memory.
        values: (total, metrics) float64: what is recorded, NaN elsewhere.
        done: (total,) bool: which points are recorded.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        request: Mapping[str, Any],
        names: Sequence[str],
        total: int,
    ) -> None:
        """Open or create the journal of a request, and read what it holds.

        Raises:
            ResumeMismatch: it belongs to another request.
            FileFormatError: it is damaged beyond its records, or no journal.
            PylandscapeError: another live process has it open.
            InvalidArgument: its folder does not exist or cannot be written.
            OSError: the disk is full.
        """
        self.path: Any = None
        self.values: NDArray[np.float64] = np.full((total, len(names)), np.nan)
        self.done: NDArray[np.bool_] = np.zeros(total, dtype=bool)
        self._fd = -1
        self._synced = time.monotonic()
        if path is None:
            return
        self.path = Path(path)
        self._fd = _open_locked(self.path)
        try:
            text = json.dumps({"request": request, "metrics": list(names), "total": total}).encode()
            content = _read_all(self._fd)
            start = _end_of_header(content, self.path)
            if start is None or start == len(content):  # no points in it, whoever began it
                os.ftruncate(self._fd, 0)
                prefix = _PREFIX.pack(MAGIC, len(text), zlib.crc32(text))
                self._write(0, prefix + _CRC.pack(zlib.crc32(prefix)) + text)
            else:
                self._compare(
                    json.loads(content[_PREFIX.size + _CRC.size : start]), json.loads(text)
                )
                end = self._read_records(content, start)
                os.ftruncate(self._fd, end)
        except BaseException:
            self.close()
            raise

    def append(self, start: int, block: NDArray[np.float64]) -> None:
        """Record `block` (count, metrics) as the points from `start`.

        Raises:
            OSError: it could not be written (a full disk); what was recorded before is safe.
        """
        if self.path is not None:
            payload = np.ascontiguousarray(block, dtype="<f8").tobytes()
            head = _HEAD.pack(start, len(block), zlib.crc32(payload))
            end = os.lseek(self._fd, 0, os.SEEK_END)
            self._write(end, head + _CRC.pack(zlib.crc32(head)) + payload)
        self.values[start : start + len(block)] = block
        self.done[start : start + len(block)] = True
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def absorb(self, other: Journal) -> None:
        """Record the points of another journal that are not here, and wait for the disk."""
        for begin, end in missing(self.done | ~other.done):
            self.append(begin, other.values[begin:end])
        self.sync()

    def sync(self) -> None:
        """Wait until everything recorded is on the disk."""
        if self._fd < 0:
            return
        try:
            os.fsync(self._fd)
        except OSError as error:  # network file systems report a full disk here
            raise self._failed(error) from error
        self._synced = time.monotonic()

    def close(self) -> None:
        """Unlock and close; an empty one, which nobody can use, is removed."""
        if self._fd < 0:
            return
        if not self.done.any() and self._is_header_only():
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1

    def remove(self) -> None:
        """Delete the file and close."""
        if self._fd < 0:
            return
        self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, at: int, data: bytes) -> None:
        """Write all of `data` at offset `at`, the end of the file, or nothing of it."""
        try:
            os.lseek(self._fd, at, os.SEEK_SET)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a torn record is cut off by the next reader anyway
                os.ftruncate(self._fd, at)
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> OSError:
        return OSError(
            error.errno,
            f"{error.strerror}: could not write the journal; its {int(self.done.sum())} of "
            f"{self.done.size} points are kept. Make room and repeat the same call to continue",
            str(self.path),
        )

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        rows = differences(found.pop("request"), wanted.pop("request")) + differences(found, wanted)
        if rows:
            raise ResumeMismatch(
                f"path: {self.path} holds the unfinished run of another request; repeat that one, "
                "remove "
                f"the file to drop it, or use another path. What differs:{listing(rows)}"
            )

    def _read_records(self, content: bytes, at: int) -> int:
        """Read the records from offset `at` on; returns where the last whole one ends."""
        total, metrics = self.values.shape
        while len(content) - at >= _HEAD.size + _CRC.size:
            head = content[at : at + _HEAD.size]
            start, count, crc = _HEAD.unpack(head)
            begin = at + _HEAD.size + _CRC.size
            end = begin + count * metrics * 8
            if _CRC.unpack_from(content, at + _HEAD.size)[0] != zlib.crc32(head) or end > len(
                content
            ):
                break
            payload = content[begin:end]
            if zlib.crc32(payload) == crc and start + count <= total:
                block = np.frombuffer(payload, dtype="<f8").reshape(count, metrics)
                self.values[start : start + count] = block
                self.done[start : start + count] = True
            at = end
        return at

    def _is_header_only(self) -> bool:
        content = _read_all(self._fd)
        try:
            end = _end_of_header(content, self.path)
        except FileFormatError:
            return False
        return end is None or end == len(content)


def missing(done: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """The runs [begin, end) of points that are not done."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], done, [True]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _end_of_header(content: bytes, path: Any) -> int | None:
    """Offset of the first record; None where the header was never completed (so nothing follows
    it)."""
    size = _PREFIX.size + _CRC.size
    if content[: len(MAGIC)] != MAGIC[: len(content)]:
        raise FileFormatError(
            f"path: expected a journal of this version at {path}, got another file; move it away"
        )
    if len(content) < size:
        return None
    _, length, crc = _PREFIX.unpack_from(content)
    damaged = FileFormatError(
        f"path: the header of {path} is damaged, so its points cannot be trusted; remove the file "
        "to "
        "start again"
    )
    if _CRC.unpack_from(content, _PREFIX.size)[0] != zlib.crc32(content[: _PREFIX.size]):
        raise damaged
    if len(content) < size + length:
        return None
    if zlib.crc32(content[size : size + length]) != crc:
        raise damaged
    return size + length


def _open_locked(path: Path) -> int:
    """A descriptor of the journal, locked; creates the file."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise InvalidArgument(
                f"path: expected a place where files can be written, got {error.strerror}: {path}"
            ) from error
        try:
            _lock(fd, path)
            if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # another process finished and removed it between open and lock


def _lock(fd: int, path: Path) -> None:
    if fcntl is None:  # pragma: no cover - not on Windows
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PylandscapeError(
            f"path: {path} is in use by another running process; wait for it or use another path"
        ) from error
    except OSError:  # a file system without locks
        return


def _read_all(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    parts = []
    while part := os.read(fd, 1 << 24):
        parts.append(part)
    return b"".join(parts)
