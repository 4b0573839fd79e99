"""Filling the points of a surface file: in the original's layout, chunk by chunk, resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...arrays import Array
from ...errors import ResumeMismatch
from ...files.hdf5 import array, as_path, open_hdf5
from ...results import foreign
from ...runs.request import differences, listing
from ._files import replacing

UNFILLED = foreign.UNFILLED
REQUEST = "request"  # attribute of a dataset that we filled: what its numbers were asked with; a
# long one goes on in "request 2", ..., as an attribute has at most 64 KiB
PIECE = 60_000
SAVE_SECONDS = 2.0  # between two writes of a file


def setup_surface_file(args: Any, surf_file: str, dir_file: str) -> str:
    """Write a surface file with its axes, or check the one that is there; returns its path.

    Raises:
        ResumeMismatch: it has other axes or another direction file than asked for.
        FileFormatError: it is something else (it is left alone).
    """
    axes = {"xcoordinates": _axis(args, "x")}
    if args.y:
        axes["ycoordinates"] = _axis(args, "y")
    path = as_path(surf_file, "surf_file")
    if path.exists():
        with open_hdf5(path, "surf_file") as f:
            _check(f, axes, dir_file)
        print(f"{surf_file} is already set up")
        return surf_file
    with replacing(path, fresh=True) as f:
        f["dir_file"] = dir_file
        for name, axis in axes.items():
            f[name] = axis
    return surf_file


def _axis(args: Any, name: str) -> Array:
    low, high, count = (getattr(args, name + part) for part in ("min", "max", "num"))
    return np.linspace(low, high, num=int(count))


def _check(f: h5py.File, axes: Mapping[str, Array], dir_file: str) -> None:
    for name in ("xcoordinates", "ycoordinates"):
        found = array(f, name) if name in f else None
        wanted = axes.get(name)
        both = found is not None and wanted is not None
        same = np.array_equal(found, wanted) if both else found is wanted  # type: ignore[arg-type]
        if not same:
            raise ResumeMismatch(
                f"surf_file: {f.filename} has other {name} than asked for: "
                f"{_span(found)}, not {_span(wanted)}; use another surf_file, or its own axes"
            )
    recorded = foreign.text(f, "dir_file") if "dir_file" in f else None
    if recorded is not None and Path(recorded).name != Path(dir_file).name:
        raise ResumeMismatch(
            f"surf_file: {f.filename} is of the directions in {recorded}, not in {dir_file}; use "
            "another surf_file or its own dir_file"
        )


def _span(axis: Array | None) -> str:
    return "none" if axis is None else f"{axis[0]:g}:{axis[-1]:g}:{axis.size}"


class Record:
    """The values of one surface in a file; stands for a journal in `evaluate_in_chunks`.

    Attributes:
        path: of the file.
        points: C (G, k), k = 1 or 2: the coordinates, in the order of values, x fastest.
        values: (G, 2): loss and accuracy (a fraction); NaN where not computed.
        done: (G,): which are computed. A value of -1 is not if its accuracy is -1 or NaN too.
        exact: the values there are of this very request: they repeat to the bit.

    Raises:
        ResumeMismatch: the file holds values of another request.
    """

    def __init__(self, path: str, keys: Sequence[str], request: Mapping[str, Any]) -> None:
        self.path = as_path(path, "surf_file")
        self._keys, self._request = tuple(keys), dict(request)
        with open_hdf5(self.path, "surf_file") as f:
            names = [n for n in ("xcoordinates", "ycoordinates") if n in f]
            axes = [array(f, name).ravel() for name in names]
            self._shape = tuple(axis.size for axis in reversed(axes))  # [y, x]
            columns = [self._column(f, key) for key in self._keys]
            recorded = _recorded(f, keys[0])
        mesh = np.meshgrid(*axes)  # [y, x]
        self.points = np.stack([m.ravel() for m in mesh], axis=1)
        loss, accuracy = columns
        self.done = ~((loss == UNFILLED) & ((accuracy == UNFILLED) | np.isnan(accuracy)))
        self.values = np.stack([loss, accuracy / 100.0], axis=1)
        self.values[~self.done] = np.nan
        self.exact = recorded is not None
        self._own = self.exact or not self.done.any()
        self._saved = time.monotonic()
        rows = differences(json.loads(str(recorded)), self._request) if self.exact else []
        if rows and self.done.any():
            raise ResumeMismatch(
                f"surf_file: {self.path} holds {self._keys[0]} of another request; remove it or "
                f"use another surf_file. What differs:{listing(rows)}"
            )

    def _column(self, f: h5py.File, key: str) -> Array:
        size = int(np.prod(self._shape))
        if key not in f:
            return np.full(size, UNFILLED)
        found = array(f, key)
        # Its program fills (nx, ny) in the order of [y, x]: raveled, that is our order.
        if found.shape not in (self._shape, self._shape[::-1]):
            raise ResumeMismatch(
                f"surf_file: expected {key!r} of shape {self._shape} in {self.path}, got "
                f"{found.shape}"
            )
        return found.ravel()

    def append(self, begin: int, block: Array) -> None:
        """Take the values of points begin, begin + 1, ...; now and then write them."""
        self.values[begin : begin + len(block)] = block
        self.done[begin : begin + len(block)] = True
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Put the values into the file; those not computed are -1, accuracies are in percent."""
        columns = np.where(self.done[:, None], self.values * [1.0, 100.0], UNFILLED).T
        with replacing(self.path) as f:
            for key, column in zip(self._keys, columns, strict=True):
                if key in f and f[key].shape != self._shape:  # as the original allocates them
                    del f[key]
                if key not in f:
                    f[key] = np.empty(self._shape)
                f[key][...] = column.reshape(self._shape)
                if self._own:
                    _record(f, key, self._request)
        self._saved = time.monotonic()


def _recorded(f: h5py.File, key: str) -> str | None:
    if key not in f or REQUEST not in f[key].attrs:
        return None
    kept, pieces = f[key].attrs, [REQUEST]
    while (name := f"{REQUEST} {len(pieces) + 1}") in kept:
        pieces.append(name)
    return "".join(str(kept[name]) for name in pieces)


def _record(f: h5py.File, key: str, request: Mapping[str, Any]) -> None:
    kept, text = f[key].attrs, json.dumps(request)
    for name in [name for name in kept if name.startswith(REQUEST)]:
        del kept[name]
    for i in range(0, len(text), PIECE):
        name = REQUEST if i == 0 else f"{REQUEST} {i // PIECE + 1}"
        kept[name] = text[i : i + PIECE]
