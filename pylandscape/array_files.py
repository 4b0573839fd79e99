"""Files of results that are named arrays and a few facts: walks, clouds.

    /pylandscape     attributes format, content (the class's CONTENT), digest (sha256 of everything
                     below); about: JSON of what is not an array; one dataset for each of the
                     class's ARRAYS that is not None, numbers as float64, texts as their index in
                     about["texts"]

A class takes part by being a dataclass with CONTENT and ARRAYS whose other fields are JSON-able.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any, TypeVar

import h5py
import numpy as np

from .errors import FileFormatError, InvalidArgument
from .hdf5 import array, not_matching
from .request import digest, to_json

Kind = TypeVar("Kind")


def write(group: h5py.Group, result: Any) -> None:
    """Fill the empty group `pylandscape` of a new file."""
    arrays: dict[str, np.ndarray] = {}
    texts: dict[str, list[str]] = {}
    for name in result.ARRAYS:
        found = getattr(result, name)
        if found is None:
            continue
        if found.dtype.kind == "U":
            names, index = np.unique(found, return_inverse=True)
            texts[name], found = names.tolist(), index.reshape(found.shape)
        arrays[name] = np.ascontiguousarray(found, dtype=np.float64)
    rest = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in result.ARRAYS}
    about = {"fields": rest, "arrays": list(arrays), "texts": texts}
    arrays["about"] = np.frombuffer(to_json(about, "info").encode(), dtype=np.uint8)
    for name, each in arrays.items():
        group[name] = each
    group.attrs["content"] = result.CONTENT
    group.attrs["digest"] = _digest(arrays)


def read(group: h5py.Group, kind: type[Kind]) -> Kind:
    """The result in the group `pylandscape` of an open file whose format has been checked."""
    where = group.file.filename
    text = array(group, "about").astype(np.uint8)
    about = json.loads(text.tobytes())
    arrays = {name: array(group, name) for name in about["arrays"]}
    if group.attrs["digest"] != _digest({**arrays, "about": text}):
        raise not_matching(where)
    for name, names in about["texts"].items():
        arrays[name] = np.array(names)[arrays[name].astype(np.intp)]
    try:
        return kind(**arrays, **about["fields"])
    except (TypeError, InvalidArgument) as error:
        raise FileFormatError(f"{where}: expected a result of pylandscape, got {error}") from error


def _digest(arrays: dict[str, np.ndarray]) -> np.bytes_:
    whole = "".join(f"{name} {digest(arrays[name])} " for name in sorted(arrays))
    return np.bytes_(hashlib.sha256(whole.encode()).hexdigest())
