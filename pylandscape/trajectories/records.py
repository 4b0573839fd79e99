"""What a record of a run holds, and the HDF5 file of many, written one point at a time.

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
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidArgument
from ..files.atomic import replacing
from ..files.store import FORMAT, GROUP, target_of
from ..theta.layout import ParameterLayout
from . import log

if TYPE_CHECKING:
    from .sources import Points

CONTENT = "trajectory"


def save(trajectory: Points, path: str | os.PathLike[str], dtype: str | None = None) -> None:
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
            flat(header, trajectory.state(i)),
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


def header_of(trajectory: Points, dtype: str | None = None) -> log.Header:
    """The header of a file of this trajectory: its parameters, then its running statistics."""
    layout, first = trajectory.layout, trajectory.state(0)
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
