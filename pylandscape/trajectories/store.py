"""Trajectories read from files: a recorder's log, or HDF5. Their numbers stay in the file."""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np
import torch

from ..errors import FileFormatError, InvalidArgument
from ..files.hdf5 import as_path, member, open_hdf5
from ..files.store import GROUP
from ..theta.layout import ParameterEntry, ParameterLayout
from . import log
from .base import Trajectory
from .records import CONTENT
from .sources import VERIFIED, ArraySource


def of_log(path: str | os.PathLike[str], run: int | None = None) -> Trajectory:
    """The trajectory in a log, or one of its runs; its numbers stay in the file."""
    header, records = records_of_log(path)
    return trajectory_of(header, _of_run(header, records, run, path), path)


def of_file(path: str | os.PathLike[str], run: int | None = None) -> Trajectory:
    """The trajectory in an HDF5 file, or one of its runs; its numbers stay in the file.

    Raises:
        FileFormatError: damaged (of a large file only its shape is looked at, the rest by
            `Trajectory.verify`), or another result.
    """
    header, records, source = records_of_file(path)
    return trajectory_of(header, _of_run(header, records, run, source), source)


def records_of_log(path: str | os.PathLike[str]) -> tuple[log.Header, dict[str, Any]]:
    """The header of a log, and its records by columns, mapped."""
    header, records = log.read(path)
    return header, {name: records[name] for name in ("step", "metrics", "values", "crc")}


def records_of_file(path: str | os.PathLike[str]) -> tuple[log.Header, dict[str, Any], Any]:
    """The header of an HDF5 file, its records by columns, mapped, and its path; raises as
    `of_file`."""
    source = as_path(path, "path")
    with open_hdf5(source, "path") as file:
        group = member(file, GROUP, h5py.Group)
        if str(group.attrs.get("content")) != CONTENT:
            raise FileFormatError(f"{source}: expected a trajectory, got another result")
        header = log.Header.from_text(member(group, "about", h5py.Dataset)[()].tobytes())
        facts = {k: member(group, k, h5py.Dataset)[()] for k in ("steps", "metrics", "crc")}
        values = member(group, "values", h5py.Dataset)
        (count, width), offset = values.shape, values.id.get_offset()
        if count != len(facts["steps"]) or width != header.size or (count and offset is None):
            raise FileFormatError(f"{source}: its parts do not fit each other")
        kind = values.dtype
    mapped = np.memmap(source, dtype=kind, mode="r", offset=offset, shape=(count, width))
    records = {"step": facts["steps"], "metrics": facts["metrics"], "crc": facts["crc"]}
    return header, {**records, "values": mapped}, source


def _of_run(
    header: log.Header, records: dict[str, Any], run: int | None, path: Any
) -> dict[str, Any]:
    """The records of one run among those of several, which lie in turns."""
    count = int(header.about.get("runs", 1))
    if run is None and count > 1:
        raise InvalidArgument(
            f"run: expected 0 to {count - 1}, got none: {path} holds {count} runs, and run=K is "
            "the trajectory of one; Runs.open(path) has all of them"
        )
    chosen = 0 if run is None else run
    if isinstance(chosen, bool) or not isinstance(chosen, int) or not -count <= chosen < count:
        raise InvalidArgument(f"run: expected 0 to {count - 1}, a run of {path}, got {run!r}")
    whole = len(records["step"]) // count * count  # a killed run may lack the last few
    return {k: column[:whole][chosen % count :: count] for k, column in records.items()}


def trajectory_of(header: log.Header, records: dict[str, Any], path: Any) -> Trajectory:
    """One run's. ``records``: columns step (T,), metrics (T, m), values (T, n + s), crc (T,)."""
    values = records["values"]
    steps, metrics = np.array(records["step"]), np.array(records["metrics"])
    if len(steps) == 0:
        raise InvalidArgument(f"trajectory: expected at least one recorded point in {path}")
    layout = layout_of_header(header)
    places, first = [], 0
    for t in header.tensors:
        if not t.parameter:
            places.append((t.name, t.shape, first, first + t.numel))
            first += t.numel
    source = ArraySource(
        values[:, : layout.n], layout, values[:, layout.n :], places,
        lambda: log.check(records, path),
    )  # fmt: skip
    if values.nbytes <= VERIFIED:
        source.verify()
    named = {name: metrics[:, i].copy() for i, name in enumerate(header.metrics)}
    return Trajectory(source, layout, steps=steps, metrics=named, info=header.about.get("info"))


def layout_of_header(header: log.Header) -> ParameterLayout:
    """Of the parameters that its records hold."""
    entries: list[ParameterEntry] = []
    offset = 0
    for t in header.tensors:
        if t.parameter:
            kind, dtype = header.about["kinds"][t.name], header.about["dtypes"][t.name]
            entries.append(
                ParameterEntry(t.name, t.shape, offset, t.numel, getattr(torch, dtype), kind)
            )
            offset += t.numel
    return ParameterLayout(tuple(entries), dict(header.about["aliases"]))
