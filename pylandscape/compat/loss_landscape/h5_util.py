"""Directions in HDF5: group -> datasets "0" .. "n-1", one per tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import h5py
import numpy as np
import torch

from ...errors import FileFormatError
from ...files.hdf5 import MAX_NUMBERS, member


def write_list(f: h5py.Group, name: str, direction: Iterable[Any]) -> None:
    """Write tensors or arrays as the group ``name``, each with its own shape and dtype."""
    group = f.create_group(name)
    for i, part in enumerate(direction):
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().numpy()
        group.create_dataset(str(i), data=part)


def read_list(f: h5py.Group, name: str) -> list[np.ndarray]:
    """The arrays of the group ``name``, read (the original leaves them in the open file).

    Raises:
        FileFormatError: no such group, a number missing, or what is no array of numbers.
    """
    group = member(f, name, h5py.Group)
    return [_numbers(group, str(i)) for i in range(len(group))]


def _numbers(group: h5py.Group, key: str) -> np.ndarray:
    dataset = member(group, key, h5py.Dataset)
    if dataset.dtype.kind not in "fiu" or dataset.shape is None or dataset.size > MAX_NUMBERS:
        raise FileFormatError(
            f"{group.file.filename}: expected at most {MAX_NUMBERS} numbers in "
            f"{group.name}/{key}, got {dataset.shape} of {dataset.dtype}"
        )
    return np.asarray(dataset[()])
