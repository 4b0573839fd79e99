"""Files of eigenpairs and spectra: the HDF5 files of `files.py` with other arrays.

    /pylandscape     attributes format, content ("eigenpairs" | "spectrum"), digest (sha256 of
                     everything below); about: JSON of what is not an array; the arrays
                     values, vectors, residuals, converged of eigenpairs, and
                     nodes, weights, bounds of a spectrum

Vectors are stored in their own dtype, all else as float64.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

import h5py
import numpy as np

from .errors import FileFormatError, InvalidArgument
from .hdf5 import array, member, not_matching
from .request import digest, to_json
from .spectral_results import EigenPairs, Spectrum, StoredRows

CONTENTS: dict[str, type[EigenPairs] | type[Spectrum]] = {
    "eigenpairs": EigenPairs,
    "spectrum": Spectrum,
}
PAIR_ARRAYS = ("values", "residuals", "converged", "vectors")
SPECTRUM_ARRAYS = ("nodes", "weights", "bounds")


def write(group: h5py.Group, result: EigenPairs | Spectrum) -> None:
    """Fill the empty group `pylandscape` of a new file."""
    arrays, about = _taken_apart(result)
    arrays["about"] = np.frombuffer(to_json(about, "info").encode(), dtype=np.uint8)
    for name, each in arrays.items():
        group[name] = each
    group.attrs["content"] = "spectrum" if isinstance(result, Spectrum) else "eigenpairs"
    group.attrs["digest"] = np.bytes_(_digest(arrays))


def read(group: h5py.Group) -> EigenPairs | Spectrum:
    """The result in the group `pylandscape` of an open file whose format has been checked."""
    where = group.file.filename
    content = str(group.attrs["content"])
    if content not in CONTENTS:
        raise FileFormatError(
            f"{where}: expected one of {', '.join(CONTENTS)}, got the content {content!r}"
        )
    arrays = {"about": array(group, "about").astype(np.uint8)}
    about = json.loads(arrays["about"].tobytes())
    names: tuple[str, ...] = SPECTRUM_ARRAYS if content == "spectrum" else ()
    if content == "eigenpairs" or about["pairs"] is not None:
        names += PAIR_ARRAYS
    for name in names:
        single = member(group, name, h5py.Dataset).dtype == np.float32
        arrays[name] = array(group, name).astype(np.float32 if single else np.float64, copy=False)
    if group.attrs["digest"] != _digest(arrays):
        raise not_matching(where)
    try:
        return _put_together(content, arrays, about)
    except InvalidArgument as error:
        raise FileFormatError(f"{where}: expected a result of pylandscape, got {error}") from error


def _taken_apart(
    result: EigenPairs | Spectrum,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, and the rest as what JSON can hold."""
    pairs = result.pairs if isinstance(result, Spectrum) else result
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {}
    if isinstance(result, Spectrum):
        arrays |= {name: getattr(result, name) for name in SPECTRUM_ARRAYS}
        about = _rest(result, (*SPECTRUM_ARRAYS, "pairs"))
        about["pairs"] = None if pairs is None else _rest(pairs, PAIR_ARRAYS)
    elif pairs is not None:
        about = _rest(pairs, PAIR_ARRAYS)
    if pairs is not None:
        converged = pairs.converged.astype(np.float64)
        arrays |= {"values": pairs.values, "residuals": pairs.residuals, "converged": converged}
        arrays["vectors"] = pairs.vectors.numpy()
    return arrays, about


def _rest(result: EigenPairs | Spectrum, arrays: tuple[str, ...]) -> dict[str, Any]:
    return {f.name: getattr(result, f.name) for f in fields(result) if f.name not in arrays}


def _put_together(
    content: str, arrays: dict[str, np.ndarray], about: dict[str, Any]
) -> EigenPairs | Spectrum:
    pairs = None
    rest = about if content == "eigenpairs" else about["pairs"]
    if rest is not None:
        pairs = EigenPairs(
            arrays["values"], StoredRows(arrays["vectors"]),  # type: ignore[arg-type]
            arrays["residuals"], arrays["converged"] != 0.0, **rest,
        )  # fmt: skip
    if content == "eigenpairs":
        assert pairs is not None
        return pairs
    shown = {name: arrays[name] for name in SPECTRUM_ARRAYS}
    return Spectrum(**{**about, **shown, "pairs": pairs})


def _digest(arrays: dict[str, np.ndarray]) -> bytes:
    whole = "".join(f"{name} {digest(arrays[name])} " for name in sorted(arrays))
    return hashlib.sha256(whole.encode()).hexdigest().encode()
