"""Trajectories in files: the log that a recorder appends to, and HDF5, written row by row.

    /pylandscape     attributes format, content ("trajectory"); datasets
      values         (T, n + s) in the recorded dtype: parameters, then running statistics
      steps          (T,) int64;  metrics (T, m) float64
      crc            (T,) uint32 of step, metrics and values, as in the log
      about          JSON as bytes: the log's header

``values`` is stored in one piece, so that it can be mapped: no question reads it whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import FileFormatError, InvalidArgument
from ..files.atomic import replacing
from ..files.hdf5 import as_path, member, open_hdf5
from ..files.store import FORMAT, GROUP, target_of
from ..theta.layout import ParameterEntry, ParameterLayout
from . import log
from .sources import ArraySource
from .trajectory import Trajectory

CONTENT = "trajectory"


def of_log(path: str | os.PathLike[str]) -> Trajectory:
    """The trajectory in a log; its numbers stay in the file."""
    header, records = log.read(path)
    return _trajectory(header, records["values"], records, path)


def of_file(path: str | os.PathLike[str]) -> Trajectory:
    """The trajectory in an HDF5 file; its numbers stay in the file.

    Raises:
        FileFormatError: damaged, or another result.
    """
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
    return _trajectory(header, mapped, records, source)


def save(trajectory: Trajectory, path: str | os.PathLike[str], dtype: str | None = None) -> None:
    """Writes an HDF5 file, atomically, one point at a time.

    Args:
        dtype: "float64", "float32" or "float16"; default that of the parameters.
    """
    target = target_of(path)
    header = header_of(trajectory, dtype)
    names = header.metrics
    rows = (
        (
            int(trajectory.steps[i]),
            np.array([trajectory.metrics[name][i] for name in names]),
            flat(header, trajectory[i]),
        )
        for i in range(len(trajectory))
    )
    write(target, header, rows, len(trajectory))


def write(
    target: Path,
    header: log.Header,
    rows: Iterable[tuple[int, NDArray[np.float64], NDArray[Any]]],
    count: int,
) -> None:
    """The HDF5 file of ``count`` rows (step, metrics, values)."""
    kind = header.record()
    with replacing(target) as temporary, h5py.File(temporary, "w", locking=False) as file:
        file.attrs[GROUP] = FORMAT
        group = file.create_group(GROUP)
        group.attrs["format"], group.attrs["content"] = FORMAT, CONTENT
        group["about"] = np.frombuffer(header.text(), dtype=np.uint8)
        steps, crc = np.empty(count, np.int64), np.empty(count, np.uint32)
        metrics = np.empty((count, len(header.metrics)))
        values = group.create_dataset("values", (count, header.size), kind["values"].base)
        for i, (step, found, row) in enumerate(rows):
            record = np.zeros((), kind)
            record["step"], record["metrics"], record["values"] = step, found, row
            values[i], steps[i], metrics[i] = record["values"], step, found
            crc[i] = log.crc_of(record)
        group["steps"], group["metrics"], group["crc"] = steps, metrics, crc


def header_of(trajectory: Trajectory, dtype: str | None = None) -> log.Header:
    """The header of a file of this trajectory: its parameters, then its running statistics."""
    layout, first = trajectory.layout, trajectory[0]
    widest = max((e.dtype for e in layout.entries), key=lambda d: torch.finfo(d).bits)
    named = dtype or ("float64" if widest == torch.float64 else "float32")
    statistics = {k: v for k, v in first.items() if k not in layout.aliases and is_statistic(k, v)}
    return make_header(
        layout, statistics, named, tuple(trajectory.metrics), {"info": trajectory.info}
    )


def is_statistic(name: str, value: torch.Tensor) -> bool:
    return value.is_floating_point() and name.rpartition(".")[2] in ("running_mean", "running_var")


def make_header(
    layout: ParameterLayout,
    statistics: dict[str, torch.Tensor],
    dtype: str,
    metrics: tuple[str, ...],
    about: dict[str, Any],
) -> log.Header:
    if dtype not in log.DTYPES:
        raise InvalidArgument(f"dtype: expected one of {', '.join(log.DTYPES)}, got {dtype!r}")
    tensors = [log.Stored(e.name, e.shape, True) for e in layout.entries]
    tensors += [log.Stored(k, tuple(v.shape), False) for k, v in statistics.items()]
    own = {
        "kinds": {e.name: e.kind for e in layout.entries},
        "dtypes": {e.name: str(e.dtype).removeprefix("torch.") for e in layout.entries},
        "aliases": dict(layout.aliases),
    }
    return log.Header(tuple(tensors), dtype, metrics, {**own, **about})


def flat(header: log.Header, state: Any) -> NDArray[Any]:
    """All tensors of a record in one array of the record's dtype."""
    dtype = getattr(torch, header.dtype)
    parts = [state[t.name].detach().reshape(-1).to("cpu", dtype) for t in header.tensors]
    return torch.cat(parts).numpy()


def _trajectory(header: log.Header, values: Any, records: Any, path: Any) -> Trajectory:
    steps, metrics = np.array(records["step"]), np.array(records["metrics"])
    if len(steps) == 0:
        raise InvalidArgument(f"trajectory: expected at least one recorded point in {path}")
    layout = _layout(header)
    places, first = [], 0
    for t in header.tensors:
        if not t.parameter:
            places.append((t.name, t.shape, first, first + t.numel))
            first += t.numel
    source = ArraySource(values[:, : layout.n], layout, values[:, layout.n :], places)
    named = {name: metrics[:, i].copy() for i, name in enumerate(header.metrics)}
    return Trajectory(source, layout, steps=steps, metrics=named, info=header.about.get("info"))


def _layout(header: log.Header) -> ParameterLayout:
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
