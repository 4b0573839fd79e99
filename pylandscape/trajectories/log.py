"""The log of a run: an append-only file of fixed-size, checksummed records.

    header:  magic (8) | length of text (u32) | crc32 of text (u32) | text, filled up with blanks
             to a multiple of 64 bytes
    record:  step (i64) | metrics (m f64) | tensors in the order of the text (their dtype) | crc32
             of all that (u32), filled up with zeros to a multiple of 8 bytes

The text is JSON: the tensors (name, shape, whether a parameter), their dtype, the metrics' names.
All numbers are little-endian. Records are only appended, so a process that is killed at any moment
leaves whole records and at most one torn tail, which the next writer cuts off and a reader passes
over. One writer at a time: the file is locked (flock) while it is open for writing.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError, PylandscapeError, ResumeMismatch

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

MAGIC = b"PYLSTRJ1"
SUFFIX = ".recording"  # beside the HDF5 file that it becomes
DTYPES = ("float64", "float32", "float16")
_PREFIX = struct.Struct("<8sII")
_ALIGN = 64
_CHECKED = ("step", "metrics", "values")


@dataclass(frozen=True)
class Stored:
    """One tensor of a record: its name, shape, and whether it is a parameter (else a statistic)."""

    name: str
    shape: tuple[int, ...]
    parameter: bool

    @property
    def numel(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Header:
    """What every record of a log holds. ``dtype``: "float64", "float32" or "float16"."""

    tensors: tuple[Stored, ...]
    dtype: str
    metrics: tuple[str, ...]
    about: dict[str, Any]

    def record(self) -> np.dtype[Any]:
        """The record as a structured dtype: step, metrics, values (all tensors), crc, filling."""
        value = np.dtype(self.dtype).newbyteorder("<")
        fields: list[Any] = [("step", "<i8"), ("metrics", "<f8", (len(self.metrics),))]
        fields += [("values", value, (self.size,)), ("crc", "<u4")]
        used = np.dtype(fields).itemsize
        return np.dtype([*fields, ("filling", "u1", (-used % 8,))])

    @property
    def size(self) -> int:
        """How many numbers a record's tensors have together."""
        return sum(t.numel for t in self.tensors)

    @classmethod
    def from_text(cls, text: bytes) -> Header:
        found = json.loads(text)
        tensors = tuple(Stored(n, tuple(shape), bool(p)) for n, shape, p in found["tensors"])
        return cls(tensors, found["dtype"], tuple(found["metrics"]), found["about"])

    def text(self) -> bytes:
        tensors = [[t.name, list(t.shape), t.parameter] for t in self.tensors]
        about = {"tensors": tensors, "dtype": self.dtype, "metrics": list(self.metrics)}
        return json.dumps({**about, "about": self.about}).encode()

    def bytes(self) -> bytes:
        text = self.text()
        text += b" " * (-(_PREFIX.size + len(text)) % _ALIGN)
        return _PREFIX.pack(MAGIC, len(text), zlib.crc32(text)) + text


def is_log(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a log of a run."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: str | os.PathLike[str]) -> tuple[Header, NDArray[Any]]:
    """The header, and the whole records as a read-only structured array mapped from the file.

    Raises:
        FileFormatError: no log, or a damaged header. `check` compares the records.
    """
    header, start = _read_header(Path(path))
    kind = header.record()
    count = (os.path.getsize(path) - start) // kind.itemsize
    if count == 0:
        return header, np.empty(0, kind)
    records: NDArray[Any] = np.memmap(path, dtype=kind, mode="r", offset=start, shape=(count,))
    if not _whole(records[-1]):  # the torn tail of a power cut
        records = records[:-1]
    return header, records


def check(records: Mapping[str, Any], path: Any) -> None:
    """Reads every record: columns step, metrics, values and crc.

    Raises FileFormatError for the first that does not match its checksum.
    """
    for k, crc in enumerate(records["crc"]):
        if crc_of({name: records[name][k] for name in _CHECKED}) != int(crc):
            raise FileFormatError(
                f"path: point {k} of {path} does not match its checksum: the file is damaged; "
                "restore it from a copy"
            )


class Writer:
    """Appends records to a log, new or one of an equal header.

    Raises:
        ResumeMismatch: the file is the log of other tensors, dtype or metrics.
        FileFormatError: the file is something else, which is left alone.
        PylandscapeError: another process has it open for writing.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header) -> None:
        self.path, self.header = Path(path), header
        self._kind = header.record()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock()
            size = os.fstat(self._fd).st_size
            begun = os.pread(self._fd, size, 0) if size < len(header.bytes()) else None
            if begun is not None and header.bytes().startswith(begun):  # killed in the header
                os.ftruncate(self._fd, 0)
                self._append(header.bytes())
            else:
                self._continue(size)
        except BaseException:
            self.close()
            raise

    def append(self, step: int, metrics: NDArray[np.float64], values: NDArray[Any]) -> None:
        """One record: values (all tensors, flat, in the header's order). Raises OSError."""
        record = np.zeros((), self._kind)
        record["step"], record["metrics"], record["values"] = step, metrics, values
        record["crc"] = crc_of(record)
        self._append(record.tobytes())
        self.steps.append(step)

    def sync(self) -> None:
        """Wait until everything recorded is on the disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lock(self) -> None:
        self.steps: list[int] = []
        if fcntl is None:  # pragma: no cover - not on Windows
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PylandscapeError(
                f"path: another process is recording into {self.path}"
            ) from error

    def _continue(self, size: int) -> None:
        found, start = _read_header(self.path)
        if found.text() != self.header.text():
            raise ResumeMismatch(
                f"path: {self.path} is the recording of another run: "
                f"{_difference(found, self.header)}; remove it or use another path"
            )
        end = start + (size - start) // self._kind.itemsize * self._kind.itemsize
        if end > start:
            _, records = read(self.path)
            end = start + len(records) * self._kind.itemsize
            self.steps = [int(s) for s in records["step"]]
        os.ftruncate(self._fd, end)

    def _append(self, data: bytes) -> None:
        end = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            os.ftruncate(self._fd, end)
            raise OSError(
                error.errno,
                f"{error.strerror}: the record was not written; the {len(self.steps)} before it "
                "are safe. Make room and go on",
                str(self.path),
            ) from error


def _read_header(path: Path) -> tuple[Header, int]:
    with open(path, "rb") as file:
        head = file.read(_PREFIX.size)
        if len(head) < _PREFIX.size or not head.startswith(MAGIC):
            raise FileFormatError(
                f"path: expected the recording of a run, got another file: {path}"
            )
        _, length, crc = _PREFIX.unpack(head)
        text = file.read(length)
    if len(text) < length or zlib.crc32(text) != crc:
        raise FileFormatError(f"path: the header of {path} is damaged; restore it from a copy")
    return Header.from_text(text), _PREFIX.size + length


def _difference(found: Header, asked: Header) -> str:
    if found.tensors != asked.tensors:
        other = {t.name for t in found.tensors} ^ {t.name for t in asked.tensors}
        names = ", ".join(sorted(other)[:5])
        return f"it holds other tensors ({names})" if names else "its tensors have other shapes"
    if found.dtype != asked.dtype:
        return f"its numbers are {found.dtype}, asked for {asked.dtype}"
    if found.metrics != asked.metrics:
        return f"its metrics are {list(found.metrics)}, asked for {list(asked.metrics)}"
    return "it says other things about itself"


def crc_of(record: Any) -> int:
    """The checksum of a record's step, metrics and values."""
    crc = 0
    for name in _CHECKED:
        crc = zlib.crc32(np.ascontiguousarray(record[name]).tobytes(), crc)
    return crc


def _whole(record: Any) -> bool:
    return crc_of(record) == int(record["crc"])
