"""The data of studies: embedded by default, or read from files without executing anything.

Images: scikit-learn's digits; IDX files (MNIST's format, gzipped or not); CIFAR-10's binary files.
Text: generated sentences, or any text file.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FileFormatError, InvalidArgument, PylandscapeError

DEBIAN = "/usr/share/datasets/fashion-mnist"  # where the package dataset-fashion-mnist puts them
IDX_TYPES = {8: ("uint8", 1), 9: ("int8", 1), 11: (">i2", 2), 12: (">i4", 4), 13: (">f4", 4),
             14: (">f8", 8)}  # fmt: skip
CIFAR_RECORD = 1 + 3 * 32 * 32
DIGITS_TRAIN = 1200  # of 1,797
IMAGES = ("digits", "fashion-mnist", "cifar10")
WORDS = {
    "D": "the a this every", "A": "small red old quiet bright cold heavy", "P": "near under behind",
    "N": "cat river house teacher engine forest letter painter storm garden",
    "V": "sees follows paints leaves finds crosses remembers", "R": "slowly often never again",
}  # fmt: skip


class _Split:
    """Pairs (x, y) for training, and those that are held out."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        return self.x_test, self.y_test


@dataclass(frozen=True)
class Images(_Split):
    """Images and their classes.

    Attributes:
        name: of the data;  x (N, C, H, W) float32, standardised by the training images' mean and
            deviation; y (N,) int64;  x_test, y_test: held out.
    """

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def channels(self) -> int:
        return int(self.x.shape[1])

    @property
    def side(self) -> int:
        return int(self.x.shape[2])

    @property
    def classes(self) -> int:
        return int(max(self.y.max(), self.y_test.max())) + 1

    def __str__(self) -> str:
        size = f"{self.channels} x {self.side} x {self.side}"
        held = f"{len(self.x_test):,} held out"
        return f"{self.name}, {len(self.x):,} images for training and {held}, {size}"


@dataclass(frozen=True)
class Text(_Split):
    """Windows of a text: x (N, T) int64 word numbers, y (N, T) the word that follows each."""

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    words: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.name}, {len(self.words)} different words, {self.x.numel():,} for training and "
            f"{self.x_test.numel():,} held out"
        )


def images(data: str = "digits", side: int | None = None, train: int | None = None,
           test: int | None = None) -> Images:  # fmt: skip
    """Images by the name that ``--data`` takes.

    Args:
        data: "digits", "fashion-mnist[:FOLDER]" (any folder of IDX files) or "cifar10:FOLDER".
        side: resize to side x side (bilinear); default as they are (digits: 28).
        train, test: at most so many, drawn once and for all.

    Raises:
        InvalidArgument: another name, no such folder or file.
        FileFormatError: a file that is not what it should be.
        PylandscapeError: digits without scikit-learn.
    """
    kind, _, folder = data.partition(":")
    if kind == "digits" and not folder:
        x, y, x_test, y_test = _digits()
        side = side or 28
    elif kind == "fashion-mnist":
        x, y, x_test, y_test = idx_folder(folder or DEBIAN)
    elif kind == "cifar10" and folder:
        x, y, x_test, y_test = cifar10(folder)
    else:
        raise InvalidArgument(
            "data: expected digits, fashion-mnist[:FOLDER], cifar10:FOLDER or text:FILE, got "
            f"{data!r}"
        )
    (x, y), (x_test, y_test) = _drawn(x, y, train), _drawn(x_test, y_test, test)
    classes = [torch.from_numpy(np.array(each, dtype=np.int64)) for each in (y, y_test)]
    parts = [_floats(x, side), _floats(x_test, side)]
    mean = parts[0].mean((0, 2, 3), keepdim=True)
    deviation = parts[0].std((0, 2, 3), keepdim=True).clamp_min(1e-12)
    first, second = ((part - mean) / deviation for part in parts)
    return Images(kind, first.float(), classes[0], second.float(), classes[1])


def text(data: str = "generated", length: int = 12, train: int = 256, test: int = 64,
         vocabulary: int = 2000) -> Text:  # fmt: skip
    """Windows of words by the name that ``--data`` takes: "generated" or "text:FILE" (UTF-8).

    Words are lower-case runs of letters or single other signs; the most frequent ones have numbers
    of their own, the others share "<unk>". The held-out windows are the last ones.

    Raises:
        InvalidArgument: another name, no such file, a text that is too short.
    """
    kind, _, file = data.partition(":")
    needed = (train + test) * length + 1
    if kind == "generated" and not file:
        found = _sentences(needed)
    elif kind == "text" and file:
        if not os.path.isfile(file):
            raise InvalidArgument(f"data: no file {file!r}")
        raw = Path(file).read_text(encoding="utf-8", errors="replace").lower()
        found = re.findall(r"[^\W\d_]+|\d+|[^\w\s]", raw)
    else:
        raise InvalidArgument(f"data: expected text:FILE for a text, got {data!r}")
    if len(found) < needed:
        raise InvalidArgument(f"data: expected at least {needed:,} words, got {len(found):,}")
    found = found[:needed]
    common = [word for word, _ in Counter(found).most_common(vocabulary - 1)]
    number = {word: k for k, word in enumerate(["<unk>", *sorted(common)])}
    ids = torch.tensor([number.get(word, 0) for word in found])
    x, y = (part.reshape(-1, length) for part in (ids[:-1], ids[1:]))
    return Text(kind, x[:train], y[:train], x[train:], y[train:], tuple(number))


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, gzipped or not.

    Raises:
        InvalidArgument: no such file.
        FileFormatError: not an IDX file, or one with too few or too many bytes.
    """
    file = Path(path)
    if not file.is_file():
        raise InvalidArgument(f"path: no file {str(file)!r}")
    with open(file, "rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        source: Any = gzip.GzipFile(fileobj=plain) if zipped else plain
        try:
            magic = source.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES:
                raise FileFormatError(f"path: {file} is not an IDX file (begins with {magic!r})")
            dtype, width = IDX_TYPES[magic[2]]
            head = source.read(4 * magic[3])
            if len(head) < 4 * magic[3]:
                raise FileFormatError(f"path: {file} ends within its header")
            shape = tuple(int(n) for n in np.frombuffer(head, ">u4"))
            size = int(np.prod(shape, dtype=object)) * width if shape else width
            if not zipped and size > file.stat().st_size:
                raise FileFormatError(f"path: {file} ends before its {size:,} bytes of numbers")
            content = _read(source, size + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FileFormatError(f"path: {file} is damaged: {error}") from error
    if len(content) != size:
        more = "more than" if len(content) > size else f"only {len(content):,} of"
        raise FileFormatError(f"path: {file} has {more} the {size:,} bytes that its header tells")
    return np.frombuffer(content, dtype).reshape(shape)


def idx_folder(folder: str | os.PathLike[str]) -> tuple[np.ndarray, ...]:
    """(N, H, W) images and (N,) classes for training, then those held out: the four files of MNIST.

    Raises:
        As `read_idx`; FileFormatError where images and classes do not fit.
    """
    found = []
    for stem in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        kind = "idx3" if stem.endswith("images") else "idx1"
        names = [f"{stem}{dash}{kind}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
        there = [Path(folder) / name for name in names if (Path(folder) / name).is_file()]
        if not there:
            hint = " (Debian: apt install dataset-fashion-mnist)" if folder == DEBIAN else ""
            raise InvalidArgument(f"data: no {names[0]}[.gz] in {str(folder)!r}{hint}")
        found.append(read_idx(there[0]))
    for x, y in (found[:2], found[2:]):
        if x.ndim != 3 or y.shape != x.shape[:1] or x.dtype != np.uint8:
            raise FileFormatError(
                f"data: expected images (N, H, W) of bytes and N classes in {folder}, got "
                f"{x.shape} and {y.shape}"
            )
    return tuple(found)


def cifar10(folder: str | os.PathLike[str]) -> tuple[np.ndarray, ...]:
    """(N, 3, 32, 32) images and (N,) classes for training, then those held out: CIFAR-10's binary
    files data_batch_1.bin .. data_batch_5.bin (those that are there) and test_batch.bin.

    Raises:
        InvalidArgument: files are missing.
        FileFormatError: a file of another size, or with a class above 9.
    """
    where = Path(folder)
    batches = [where / f"data_batch_{k}.bin" for k in range(1, 6)]
    there = [path for path in batches if path.is_file()]
    if not there or not (where / "test_batch.bin").is_file():
        raise InvalidArgument(f"data: no data_batch_1.bin and test_batch.bin in {str(folder)!r}")
    parts = []
    for paths in (there, [where / "test_batch.bin"]):
        for path in paths:
            if path.stat().st_size % CIFAR_RECORD or not path.stat().st_size:
                raise FileFormatError(f"data: {path} is not a file of {CIFAR_RECORD}-byte records")
        records = np.concatenate(
            [np.fromfile(path, np.uint8).reshape(-1, CIFAR_RECORD) for path in paths]
        )
        if records[:, 0].max() > 9:
            raise FileFormatError(f"data: {paths[0]} has the class {records[:, 0].max()}, above 9")
        parts += [records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]]
    return tuple(parts)


def _read(source: Any, size: int) -> bytes:
    """Up to ``size`` bytes, never more, whatever a compressed file expands to."""
    parts, left = [], size
    while left and (part := source.read(min(left, 1 << 24))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _digits() -> tuple[np.ndarray, ...]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise PylandscapeError(
            'the digits come with scikit-learn: pip install "scikit-learn>=1.4", or, in the '
            'checkout, pip install ".[demo]"'
        ) from error
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    x = np.round(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[order]
    y = np.asarray(bunch.target)[order]
    return x[:DIGITS_TRAIN], y[:DIGITS_TRAIN], x[DIGITS_TRAIN:], y[DIGITS_TRAIN:]


def _drawn(x: np.ndarray, y: np.ndarray, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    if count is None or count >= len(x):
        return x, y
    chosen = np.sort(np.random.default_rng(1).permutation(len(x))[:count])
    return x[chosen], y[chosen]


def _floats(x: np.ndarray, side: int | None) -> Tensor:
    """(N, C, H, W) float64 in [0, 1], resized."""
    whole = torch.from_numpy(np.array(x, dtype=np.float64)) / 255
    whole = whole[:, None] if whole.ndim == 3 else whole
    if side is None or tuple(whole.shape[2:]) == (side, side):
        return whole
    return F.interpolate(whole, (side, side), mode="bilinear", antialias=side < whole.shape[2])


def _sentences(count: int) -> list[str]:
    """Words of sentences of a small grammar: what follows a word depends on it, and not only."""
    draw = np.random.default_rng(2)
    pick = {kind: words.split() for kind, words in WORDS.items()}
    found: list[str] = []
    while len(found) < count:

        def noun() -> str:
            return "DAN" if draw.random() < 0.5 else "DN"

        kinds = noun() + "V" + noun() + (f"P{noun()}" if draw.random() < 0.4 else "")
        kinds += "R" if draw.random() < 0.3 else ""
        found += [str(draw.choice(pick[kind])) for kind in kinds] + ["."]
    return found
