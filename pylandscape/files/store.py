"""Result files: HDF5 through h5py, written as a whole or not at all. Knows no result class.

    /pylandscape     attributes format, content (the registered name), digest (sha256 of all of the
                     following); about: JSON of what is no array ("fields"), the names of the arrays
                     and the texts of those that hold texts; one dataset for each array
    /                what other programs read, if the result has it (see `results/surface.py`)

Arrays are float64, float32 ones stay so; texts are stored as their index in about["texts"]. A class
takes part by `register` or `by_fields`: it says how it comes apart into arrays and facts, and how
it is put together again. Files of older versions are read too: those of surfaces and curves have no
content, those of eigenpairs and spectra have their facts in `about` itself.

Loading executes nothing and follows no link out of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from ..arrays import digest, text_digest, to_json
from ..errors import FileFormatError, InvalidArgument
from .atomic import check_replaceable
from .hdf5 import array, as_path, member, not_matching, replacing_hdf5

GROUP = "pylandscape"
FORMAT = 1

Arrays = dict[str, np.ndarray]
Facts = dict[str, Any]
Class = TypeVar("Class", bound=type[Any])


@dataclass(frozen=True)
class Content:
    """How results of one class are stored.

    Attributes:
        name: in the files.
        apart: a result to its arrays and facts.
        together: arrays and facts to the result; may raise InvalidArgument, KeyError, TypeError.
        beside: a result to further datasets in the root of the file, for other programs.
    """

    name: str
    apart: Callable[[Any], tuple[Arrays, Facts]]
    together: Callable[[Arrays, Facts], Any]
    beside: Callable[[Any], Mapping[str, np.ndarray]] | None = None


_BY_CLASS: dict[type, Content] = {}
_BY_NAME: dict[str, Content] = {}


def register(kind: type, content: Content) -> None:
    """Make results of a class storable."""
    _BY_CLASS[kind] = _BY_NAME[content.name] = content


def by_fields(kind: Class) -> Class:
    """Class decorator that registers a dataclass.

    Its CONTENT is the name, its ARRAYS name the fields that are arrays or None; the other fields
    are JSON-able facts.
    """

    def apart(result: Any) -> tuple[Arrays, Facts]:
        arrays = {name: getattr(result, name) for name in result.ARRAYS}
        rest = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in arrays}
        return {name: found for name, found in arrays.items() if found is not None}, rest

    register(kind, Content(kind.CONTENT, apart, lambda arrays, facts: kind(**arrays, **facts)))
    return kind


PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")  # suffixes that are no data files


def save(result: Any, path: str | os.PathLike[str]) -> None:
    """Write a result to `path`, atomically. See `Curve.save`."""
    target = target_of(path)
    if target.suffix.lower() in PICTURES:
        raise InvalidArgument(
            f"path: expected a data file such as result.h5, got {os.fspath(path)!r}; a picture "
            f"is result.plot().figure.savefig({os.fspath(path)!r})"
        )
    content = next(_BY_CLASS[cls] for cls in type(result).__mro__ if cls in _BY_CLASS)
    arrays, facts = content.apart(result)
    stored, texts = _numbers(arrays)
    about = {"fields": facts, "arrays": list(stored), "texts": texts}
    stored["about"] = np.frombuffer(to_json(about, "info").encode(), dtype=np.uint8)
    with replacing_hdf5(target) as file:
        file.attrs[GROUP] = FORMAT
        group = file.create_group(GROUP)
        group.attrs["format"] = FORMAT
        group.attrs["content"] = content.name
        group.attrs["digest"] = np.bytes_(_digest(stored))
        for name, each in stored.items():
            group[name] = each
        for name, each in (content.beside(result) if content.beside else {}).items():
            file[name] = each


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file to write: links followed, so that a link stays one."""
    target = Path(os.path.realpath(as_path(path, "path")))
    if target.is_dir() or not target.name:
        raise InvalidArgument(f"path: expected a file, got the folder {target}")
    check_replaceable(target)
    if not target.parent.is_dir():
        raise InvalidArgument(f"path: expected an existing folder, got {target.parent}")
    return target


def is_ours(file: h5py.File) -> bool:
    """Whether an open file has a result of this package."""
    return GROUP in file or GROUP in file.attrs


def content_of(path: str | os.PathLike[str]) -> str | None:
    """The name of what an HDF5 file of ours holds; None for other files, a log among them."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            group = file.get(GROUP)
            return None if group is None else str(group.attrs.get("content"))
    except OSError:  # missing or damaged: who reads it says so
        return None


def read(file: h5py.File) -> Any:
    """The result in an open file of ours.

    Raises:
        FileFormatError: of another version, damaged, of an unknown kind.
    """
    where = file.filename
    group = member(file, GROUP, h5py.Group)
    version = group.attrs.get("format")
    if not np.array_equal(version, FORMAT):
        raise FileFormatError(
            f"{where}: expected a file of format {FORMAT}, got format {version}; read it with the "
            "pylandscape that wrote it"
        )
    if group.attrs.get("content") == "trajectory":  # which is mapped, not read
        raise FileFormatError(
            f"{where}: expected one of {', '.join(_BY_NAME)}, got a trajectory; "
            "pylandscape.trajectory reads it"
        )
    content, arrays, facts = _content(group)
    if content not in _BY_NAME:
        raise FileFormatError(
            f"{where}: expected one of {', '.join(_BY_NAME)}, got the content {content!r}"
        )
    try:
        return _BY_NAME[content].together(arrays, facts)
    except (TypeError, KeyError, InvalidArgument) as error:
        raise FileFormatError(f"{where}: expected a result of pylandscape, got {error}") from error


def _content(group: h5py.Group) -> tuple[str, Arrays, Facts]:
    where = group.file.filename
    text = array(group, "about").astype(np.uint8)
    about = json.loads(text.tobytes())
    old = "fields" not in about
    names = [name for name in group if name != "about"] if old else about["arrays"]
    arrays = {name: _same_width(group, name) for name in names}
    if "content" in group.attrs:
        content, found = str(group.attrs["content"]), _digest({**arrays, "about": text})
    else:
        content = "surface" if "y" in arrays else "curve"
        found = _digest_of_surfaces([arrays[n] for n in ("x", "y") if n in arrays], arrays, text)
    if group.attrs["digest"] != found.encode():
        raise not_matching(where)
    for name, texts in about.get("texts", {}).items():
        arrays[name] = np.array(texts)[arrays[name].astype(np.intp)]
    return content, arrays, about if old else about["fields"]


def _numbers(arrays: Arrays) -> tuple[Arrays, dict[str, list[str]]]:
    """The arrays as they are stored, and the texts that they index."""
    stored: Arrays = {}
    texts: dict[str, list[str]] = {}
    for name, found in arrays.items():
        if found.dtype.kind == "U":
            names, index = np.unique(found, return_inverse=True)
            texts[name], found = names.tolist(), index.reshape(found.shape)
        width = np.float32 if found.dtype == np.float32 else np.float64
        stored[name] = np.ascontiguousarray(found, dtype=width)
    return stored, texts


def _same_width(group: h5py.Group, name: str) -> np.ndarray:
    single = member(group, name, h5py.Dataset).dtype == np.float32
    return array(group, name).astype(np.float32 if single else np.float64, copy=False)


def _digest(arrays: Arrays) -> str:
    return text_digest("".join(f"{name} {digest(arrays[name])} " for name in sorted(arrays)))


def _digest_of_surfaces(axes: list[np.ndarray], arrays: Arrays, text: np.ndarray) -> str:
    """The digest in older files of surfaces and curves."""

    state = hashlib.sha256()
    for each in [*axes, arrays["metrics"], text]:
        state.update(f"{each.dtype.str} {each.shape} ".encode())
        state.update(np.ascontiguousarray(each).tobytes())
    return state.hexdigest()
