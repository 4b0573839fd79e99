"""Surface files of Li et al.'s loss-landscape (github.com/tomgoldstein/loss-landscape).

A surface file holds xcoordinates (nx,), ycoordinates (ny,) (2-D only), train_loss and train_acc
(percent), maybe test_loss, test_acc, min_eig, max_eig, and dir_file, a name. Points never computed
hold -1 (min_eig: +1). Its program allocates (nx, ny) but fills it in the order of a [y, x] mesh, so
that a grid with nx != ny is scrambled until its numbers are read in that order again.

Such a file may come from anywhere: only numbers stored in the file itself are read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..arrays import Array
from ..errors import FileFormatError
from ..files.hdf5 import array, member, open_hdf5
from .curve import Curve
from .surface import Surface

UNFILLED = -1.0
UNFILLED_MIN_EIG = 1.0
METRICS = {
    "train_loss": "loss",
    "train_acc": "accuracy",
    "test_loss": "test_loss",
    "test_acc": "test_accuracy",
    "min_eig": "min_eig",
    "max_eig": "max_eig",
}
PERCENT = ("train_acc", "test_acc")


def read(file: h5py.File) -> Curve | Surface:
    """The surface or curve in a loss-landscape file; see `files.load`."""
    found = sorted(file)
    if "xcoordinates" not in found or "train_loss" not in found:
        raise FileFormatError(
            f"{file.filename}: expected a surface file with 'xcoordinates' and 'train_loss', got "
            f"{_what(found)}"
        )
    axes = [_axis(file, name) for name in ("xcoordinates", "ycoordinates") if name in found]
    shape = tuple(axis.size for axis, _ in axes)
    info: dict[str, Any] = {"format": "loss-landscape", "notes": []}
    metrics = {}
    for dataset, name in METRICS.items():
        if dataset in found:
            values = _oriented(file, dataset, shape, info["notes"])
            if dataset in PERCENT:
                values = np.where(values == UNFILLED, np.nan, values) / 100.0
            metrics[name] = values
    _blank_unfilled(metrics, info)
    increasing = np.ix_(*(order for _, order in axes))
    metrics = {name: values[increasing] for name, values in metrics.items()}
    info["nonfinite"] = int((~np.isfinite(metrics["loss"])).sum())
    if "dir_file" in found:
        info["dir_file"] = text(file, "dir_file")
    if len(axes) == 1:
        return Curve(axes[0][0], metrics=metrics, info=info)
    return Surface(axes[0][0], axes[1][0], metrics=metrics, info=info)


def describe_directions(info: dict[str, Any], surface: Path, given: Path | None) -> None:
    """Add lengths and cosine of the directions, if their file is given or beside the surface."""
    beside = surface.parent / re.split(r"[/\\]", info.get("dir_file", ""))[-1]
    if given is None and ("dir_file" not in info or not beside.is_file() or beside.is_symlink()):
        return
    try:
        with open_hdf5(beside if given is None else given, "dir_file") as file:
            info |= _directions(file)
    except FileFormatError as error:
        if given is not None:
            raise
        info["notes"].append(f"the direction file beside it was not used: {error}")


def _axis(file: h5py.File, name: str) -> tuple[Array, Any]:
    """The axis in increasing order, and the order."""
    axis = array(file, name)
    order = np.argsort(axis.ravel())
    if axis.ndim != 1 or not axis.size or not (np.diff(axis[order]) > 0).all():
        raise FileFormatError(
            f"{file.filename}: expected different finite numbers (n,) in {name!r}, got {axis}"
        )
    return axis[order], order


def _oriented(file: h5py.File, name: str, shape: tuple[int, ...], notes: list[str]) -> Array:
    """What the file holds, in our order: `shape` is (nx,) or (nx, ny)."""
    values = array(file, name)
    if values.shape == shape[::-1]:
        return values.T
    if values.shape == shape:
        notes.append(f"{name}: put in order, as loss-landscape scrambles grids with nx != ny")
        return values.reshape(shape[::-1]).T
    raise FileFormatError(
        f"{file.filename}: expected {name!r} of shape {shape[::-1]}, as its axes say, got "
        f"{values.shape}"
    )


def _blank_unfilled(metrics: dict[str, Array], info: dict[str, Any]) -> None:
    """Points never computed become NaN; a loss of -1 beside an accuracy is a loss."""
    for name, partner in (("loss", "accuracy"), ("test_loss", "test_accuracy")):
        if name in metrics:
            unfilled = metrics[name] == UNFILLED
            if partner in metrics:
                unfilled &= np.isnan(metrics[partner])
            metrics[name] = np.where(unfilled, np.nan, metrics[name])
            if name == "loss":
                info["unfilled"] = int(unfilled.sum())
    if "min_eig" in metrics and "max_eig" in metrics:
        unfilled = metrics["min_eig"] == UNFILLED_MIN_EIG
        unfilled &= metrics["max_eig"] == UNFILLED
        for name in ("min_eig", "max_eig"):
            metrics[name] = np.where(unfilled, np.nan, metrics[name])


def text(file: h5py.File, name: str) -> str:
    """A dataset that holds one text."""
    dataset = member(file, name, h5py.Dataset)
    if h5py.check_string_dtype(dataset.dtype) is None or dataset.shape != ():
        raise FileFormatError(f"{file.filename}: expected a text {name!r}, got {dataset.dtype}")
    value = dataset[()]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _directions(file: h5py.File) -> dict[str, Any]:
    names = [name for name in ("xdirection", "ydirection") if name in file]
    if not names:
        raise FileFormatError(
            f"{file.filename}: expected a direction file with 'xdirection', got "
            f"{_what(sorted(file))}"
        )
    groups = [member(file, name, h5py.Group) for name in names]
    squares, dot = [0.0] * len(groups), 0.0
    for key in groups[0]:
        parts = [array(group, key).ravel() for group in groups]
        if len({part.size for part in parts}) > 1:
            raise FileFormatError(
                f"{file.filename}: expected directions of one layout, got "
                f"{[part.size for part in parts]} numbers in {key!r}"
            )
        squares = [square + float(part @ part) for square, part in zip(squares, parts, strict=True)]
        dot += float(parts[0] @ parts[-1])
    norms = [float(np.sqrt(square)) for square in squares]
    cosine = dot / (norms[0] * norms[1]) if len(norms) == 2 and all(norms) else None
    return {"direction_norms": norms, "direction_cosine": cosine}


def _what(names: list[str]) -> str:
    """What a file is, by its root names."""
    known = {
        "xdirection": "a direction file",
        "proj_xcoord": "a projection file",
        "explained_variance_ratio_": "a direction file",
    }
    for name, what in known.items():
        if name in names:
            return what
    return f"{', '.join(map(repr, names[:8])) or 'an empty file'}"
