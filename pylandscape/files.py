"""Result files: HDF5 through h5py, written atomically, readable by loss-landscape's tools.

    /                xcoordinates (nx,), ycoordinates (ny,) for surfaces, train_loss (ny, nx) or
    (nx,),
                     train_acc in percent if there is an accuracy: what loss-landscape reads ([y,
                     x])
    /pylandscape     what `load` reads: x, y, metrics (m, nx[, ny]) in the order of names, info
    (JSON);
                     attributes format, kind, names (JSON), digest (sha256 of all of these);
                     of eigenpairs and spectra: see `spectral_files.py`; of walks and
                     critical points: `array_files.py`

A file is built in memory, written beside its target, synced and renamed over it: the target is the
old file or the whole new one. Loading executes nothing and follows no link out of the file. Files
without the group `pylandscape` are read by `foreign.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from . import array_files, foreign, spectral_files
from .cloud_results import Cloud
from .critical_results import CriticalPoints
from .critical_set import CriticalSet
from .errors import FileFormatError, InvalidArgument, ResumeMismatch
from .hdf5 import array, as_path, member, not_matching, open_hdf5
from .request import FORMAT, differences, listing, to_json
from .results import Curve, Surface
from .spectral_results import EigenPairs, Spectrum
from .walk_results import Walks

GROUP = "pylandscape"

ARRAY_RESULTS: dict[str, type[Any]] = {
    kind.CONTENT: kind for kind in (Walks, CriticalPoints, CriticalSet, Cloud)
}

Result = Curve | Surface | EigenPairs | Spectrum | Walks | CriticalPoints | CriticalSet | Cloud


def save(result: Result, path: str | os.PathLike[str]) -> None:
    """Write a result to `path`, atomically. See `Curve.save`."""
    target = target_of(path)
    image = _image(result)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def load(path: str | os.PathLike[str], dir_file: str | os.PathLike[str] | None = None) -> Result:
    """Read a result: one of ours, bit for bit, or a surface file of Li et al.'s loss-landscape.

    Of a loss-landscape file, values that were never computed (-1) come back as NaN and are counted
    in `info["unfilled"]`, accuracies become fractions, and `info["dir_file"]` is the direction
    file's name. It is opened, for the directions' lengths and their cosine, only if it is given
    here or lies in the same folder.

    Args:
        path: HDF5 file.
        dir_file: direction file of a loss-landscape surface.

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: truncated, damaged, no surface, or links that lead out of the file.
    """
    source = as_path(path, "path")
    other = None if dir_file is None else as_path(dir_file, "dir_file")
    with open_hdf5(source, "path") as file:
        ours = GROUP in file or GROUP in file.attrs
        result = _read(file) if ours else foreign.read(file)
    if not ours:
        foreign.describe_directions(result.info, source, other)
    elif other is not None:
        raise InvalidArgument(
            f"dir_file: expected none for a file of pylandscape's own, got {str(other)!r}"
        )
    return result


def finished(target: Path, request: Mapping[str, Any]) -> Any:
    """The finished result of the same request at `target`; None if there is no file.

    Raises:
        ResumeMismatch: it is the result of another request.
        FileFormatError: it is something else, which is not ours to overwrite.
    """
    if not target.exists():
        return None
    try:
        result = load(target)
    except FileFormatError as error:
        raise FileFormatError(
            f"path: expected no file, or a result of pylandscape, at {target}; it is left alone. "
            f"{error}"
        ) from error
    found = result.info.get("request")
    if found is None:
        raise ResumeMismatch(
            f"path: {target} is a result of unknown origin, not of this request; remove it or use "
            "another "
            "path"
        )
    rows = differences(found, request)
    if rows:
        raise ResumeMismatch(
            f"path: {target} is the result of another request; remove it or use another path. What "
            f"differs:{listing(rows)}"
        )
    return result


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file to write: links followed, so that a link stays one."""
    target = Path(os.path.realpath(as_path(path, "path")))
    if target.is_dir() or not target.name:
        raise InvalidArgument(f"path: expected a file, got the folder {target}")
    if not target.parent.is_dir():
        raise InvalidArgument(f"path: expected an existing folder, got {target.parent}")
    return target


def _image(result: Result) -> bytes:
    """The bytes of the HDF5 file."""
    with h5py.File("result.h5", "w", driver="core", backing_store=False) as file:
        file.attrs[GROUP] = FORMAT
        group = file.create_group(GROUP)
        group.attrs["format"] = FORMAT
        if isinstance(result, EigenPairs | Spectrum):
            spectral_files.write(group, result)
        elif isinstance(result, Curve | Surface):
            _write(file, group, result)
        else:
            array_files.write(group, result)
        file.flush()
        return bytes(file.id.get_file_image())


def _write(file: h5py.File, group: h5py.Group, result: Curve | Surface) -> None:
    axes = {"x": result.x} | ({"y": result.y} if isinstance(result, Surface) else {})
    metrics = np.stack(list(result.metrics.values()))
    about = {"kind": result.kind, "names": list(result.metrics), "info": result.info}
    text = np.frombuffer(to_json(about, "info").encode(), dtype=np.uint8)
    for name, axis in axes.items():
        file[f"{name}coordinates"] = axis
    file["train_loss"] = result.values.T
    if "accuracy" in result.metrics:
        file["train_acc"] = 100.0 * result.metrics["accuracy"].T
    for name, axis in axes.items():
        group[name] = axis
    group["metrics"] = metrics
    group["about"] = text
    group.attrs["digest"] = np.bytes_(_digest([*axes.values(), metrics, text]))


def _read(file: h5py.File) -> Result:
    where = file.filename
    group = member(file, GROUP, h5py.Group)
    version = group.attrs.get("format")
    if not np.array_equal(version, FORMAT):
        raise FileFormatError(
            f"{where}: expected a file of format {FORMAT}, got format {version}; read it with the "
            "pylandscape that wrote it"
        )
    if (content := str(group.attrs.get("content"))) in ARRAY_RESULTS:
        return array_files.read(group, ARRAY_RESULTS[content])
    if "content" in group.attrs:
        return spectral_files.read(group)
    axes = [array(group, name) for name in ("x", "y") if name in group]
    metrics, text = array(group, "metrics"), array(group, "about").astype(np.uint8)
    if group.attrs["digest"] != _digest([*axes, metrics, text]):
        raise not_matching(where)
    about = json.loads(text.tobytes())
    values = dict(zip(about["names"], metrics, strict=True))
    if len(axes) == 1:
        return Curve(axes[0], metrics=values, info=about["info"], kind=about["kind"])
    return Surface(axes[0], axes[1], metrics=values, info=about["info"], kind=about["kind"])


def _digest(arrays: list[np.ndarray]) -> bytes:
    state = hashlib.sha256()
    for each in arrays:
        state.update(f"{each.dtype.str} {each.shape} ".encode())
        state.update(np.ascontiguousarray(each).tobytes())
    return state.hexdigest().encode()


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where folders can be synced."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
