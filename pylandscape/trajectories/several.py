"""`Runs`: the trajectories of several training runs that were recorded together, in one file.

The records are those of `records.py` and `log.py`, P for each recorded moment, in the order of the
runs; the header says how many.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ..arrays import Array
from ..errors import FileFormatError, InvalidArgument
from ..files.store import target_of
from ..results.base import Pictured, draw
from ..theta.layout import ParameterLayout
from . import log, records, store
from .base import Trajectory
from .reading import trajectory

EXPLODED = 100.0  # times the loss at the start


class Runs(Pictured, Sequence[Trajectory]):
    """P training runs of one model, side by side; ``runs[p]`` is the `Trajectory` of run p.

    Attributes:
        layout: which parameter lies where in theta (n,).
        steps: (T,) int64: optimiser steps at which the runs were recorded, 0 first.
        metrics: name -> (P, T) float64: "loss" and "accuracy" over the landscape's data, where they
            were asked for; "batch_loss", the mean loss of the mini-batches since the record before
            (NaN at step 0); "lr", the learning rate of the step that led there.
        engine: "native" or "torch": what trained them;  reason: why not native, or None.
        diverged: the runs whose last point or loss is not finite.
        info: JSON-able provenance; ``info["request"]`` is what was asked.

    Numbers of runs in a file stay there (they are mapped). ``pl.mds(runs)``, ``pl.train(land, runs,
    ...)`` (from their ends) and whatever takes several trajectories take it.
    """

    def __init__(self, header: log.Header, columns: Mapping[str, Any], path: Any = None) -> None:
        count = int(header.about.get("runs", 1))
        whole = len(columns["step"]) // count * count  # a killed run may lack the last few
        if whole == 0:
            raise InvalidArgument(f"runs: expected at least one recorded moment in {path}")
        self.header, self._path = header, path
        self._columns = {name: column[:whole] for name, column in columns.items()}
        self._count = count
        self._runs: dict[int, Trajectory] = {}
        self.layout: ParameterLayout = store.layout_of_header(header)
        self.steps = np.array(self._columns["step"][::count], dtype=np.int64)
        found = np.array(self._columns["metrics"], dtype=np.float64)
        found = found.reshape(len(self.steps), count, len(header.metrics))
        self.metrics: dict[str, Array] = {
            name: np.ascontiguousarray(found[:, :, i].T) for i, name in enumerate(header.metrics)
        }
        self.info: dict[str, Any] = dict(header.about.get("info") or {})
        self.engine = str(self.info.get("engine", ""))
        self.reason: str | None = self.info.get("reason")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Runs:
        """The runs in a file of `pylandscape.train`, finished or not.

        Raises:
            InvalidArgument: no such file.
            FileFormatError: damaged, or another result.
        """
        name = os.fspath(path)
        if os.path.isfile(name + log.SUFFIX):
            name += log.SUFFIX
        if not os.path.isfile(name):
            raise InvalidArgument(f"path: no file {name!r}")
        if log.is_log(name):
            header, columns = store.records_of_log(name)
        else:
            header, columns, _ = store.records_of_file(name)
        return cls(header, columns, name)

    @property
    def columns(self) -> Mapping[str, Any]:
        """The records' columns (T P, ...): step, metrics, values, crc."""
        return self._columns

    @property
    def n(self) -> int:
        """The number of parameters."""
        return self.layout.n

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Trajectory: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trajectory]: ...
    def __getitem__(self, index: int | slice) -> Trajectory | list[Trajectory]:
        if isinstance(index, slice):
            return [self[p] for p in range(*index.indices(len(self)))]
        p = range(len(self))[index]
        if p not in self._runs:
            own = {name: column[p :: self._count] for name, column in self._columns.items()}
            self._runs[p] = store.trajectory_of(self.header, own, self._path)
        return self._runs[p]

    @property
    def diverged(self) -> list[int]:
        """The runs whose last point or last mini-batches' loss is not finite."""
        bad = []
        last = self._columns["values"][-self._count :]
        for p in range(self._count):
            values = np.asarray(last[p][: self.n])
            loss = self.metrics["batch_loss"][p, -1] if "batch_loss" in self.metrics else 0.0
            if not np.isfinite(values).all() or (len(self.steps) > 1 and not np.isfinite(loss)):
                bad.append(p)
        return bad

    @property
    def exploded(self) -> list[int]:
        """The runs that diverged, and those whose loss ends at more than 100 times its start."""
        name = next((k for k in ("loss", "batch_loss") if k in self.metrics), None)
        if name is None:
            return self.diverged
        found = self.metrics[name]
        start = found[:, 0 if name == "loss" else min(1, found.shape[1] - 1)]
        high = found[:, -1] > EXPLODED * np.abs(start)
        return sorted({*self.diverged, *map(int, np.flatnonzero(high))})

    def ends(self) -> Tensor:
        """(P, n) float64: where the runs ended."""
        last = np.array(self._columns["values"][-self._count :, : self.n], dtype=np.float64)
        return torch.from_numpy(last)

    def distances(self, point: Any = 0) -> Array:
        """(P, T) ‖theta_t - theta‖, as `Trajectory.distances` of each run; default from its
        start."""
        return np.stack([run.distances(point) for run in self])

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Learning curves: a metric against steps, a line for each run; returns the Axes.

        Options:
            metric: one of `metrics`; default the loss over the data, else of mini-batches.
            labels: P names; default their numbers.
            log: a logarithmic axis; default where a run explodes (`exploded`).
            title: above the picture.
            figsize: (width, height) of a figure of its own, in inches.
        """
        return draw(self, ax, **options)

    def table_columns(self) -> dict[str, Any]:
        run, at = (k.ravel() for k in np.indices((len(self), len(self.steps))))
        metrics = {name: values.ravel() for name, values in self.metrics.items()}
        return {"run": run, "step": self.steps[at], **metrics}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file, atomically; `Runs.open` reads it back bit for bit."""
        write(target_of(path), self.header, self._columns)

    def __repr__(self) -> str:
        loss = next((k for k in ("loss", "batch_loss") if k in self.metrics), None)
        said = "" if loss is None else f", {loss.replace('_', ' ')} {_span(self.metrics[loss])}"
        bad = self.diverged
        more = f", diverged: {', '.join(map(str, bad))}" if bad else ""
        return (
            f"Runs({len(self)} of {self.n} parameters, {len(self.steps)} points, steps "
            f"{self.steps[0]} to {self.steps[-1]}{said}, {self.engine} engine{more})"
        )


def write(target: Any, header: log.Header, columns: Mapping[str, Any]) -> None:
    """The HDF5 file of these records."""
    rows = (
        (int(step), metrics, values)
        for step, metrics, values in zip(
            columns["step"], columns["metrics"], columns["values"], strict=True
        )
    )
    records.write(target, header, rows, len(columns["step"]))


def recorded(path: str | os.PathLike[str]) -> Trajectory | Runs:
    """What a recording holds: the Runs of `train` where there are several, else one Trajectory."""
    try:
        found = Runs.open(path)
    except FileFormatError:  # not of `train`, or damaged, which `trajectory` says
        return trajectory(path)
    return found if len(found) > 1 else found[0]


def check_is_runs(header: log.Header, path: Any) -> None:
    """Raises FileFormatError for the recording of something else than `train`."""
    if "runs" not in header.about:
        raise FileFormatError(f"path: expected the runs of train(), got another recording: {path}")


def _span(found: Array) -> str:
    first = found[:, 0] if np.isfinite(found[:, 0]).any() else found[:, min(1, found.shape[1] - 1)]
    return f"{_mean(first)} to {_mean(found[:, -1])}"


def _mean(values: Array) -> str:
    return "nan" if np.isnan(values).all() else f"{np.nanmean(values):.4g}"
