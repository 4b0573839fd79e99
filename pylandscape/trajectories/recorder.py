"""Recording a run as it trains, in any loop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidArgument, PylandscapeError
from ..files.store import target_of
from ..theta.layout import ParameterLayout
from . import log, records, store
from .base import Trajectory

SYNC_RECORDS = 16  # records between two waits for the disk; a killed process loses none


class Recorder:
    """Writes a model's parameters to a file, a record for each ``step()``::

        with pl.Recorder(model, "run.h5", every=10, metrics=("loss",)) as recorder:
            for x, y in loader:
                ...                              # forward, backward, optimiser
                recorder.step(loss=loss.item())  # records steps 0, 10, 20, ...
        path = pl.trajectory("run.h5")

    Args:
        model: what is trained. It is read, never changed; nothing of it is kept but itself.
        path: the HDF5 file that `close` writes. Until then, records are appended to
            ``path + ".recording"``, of which a process that is killed loses none; the same call
            continues it, and `pylandscape.trajectory` reads it meanwhile.
        every: record each ``every``-th call of `step`, the first one included.
        params: name patterns of the parameters to record; default all.
        dtype: "float32" (default), "float16" or "float64": of the recorded numbers; default
            float64 for models in it.
        metrics: names of numbers given to `step`.
        statistics: record the running statistics of batch norm as well.

    The step of a record is the number of calls before it, also across a resume: a continued
    recording goes on after its last record.

    Raises:
        InvalidArgument: no module, a folder that does not exist, an unknown dtype or pattern.
        ResumeMismatch: what is at ``path`` is the recording of another model.
        PylandscapeError: another process records there.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str | os.PathLike[str],
        *,
        every: int = 1,
        params: Sequence[str] | None = None,
        dtype: str | None = None,
        metrics: Sequence[str] = ("loss",),
        statistics: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidArgument(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InvalidArgument(f"every: expected an integer >= 1, got {every!r}")
        self.model, self.every = model, every
        self.path: Path = target_of(path)
        layout = ParameterLayout.of(model, params)
        wide = all(e.dtype == torch.float64 for e in layout.entries)
        buffers = dict(model.named_buffers()) if statistics else {}
        kept = {k: v for k, v in buffers.items() if records.is_statistic(k, v)}
        names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        self._header = records.make_header(
            layout, kept, dtype or ("float64" if wide else "float32"), names, {}
        )
        beside = self.path.with_name(self.path.name + log.SUFFIX)
        self._continue_finished(beside)
        self._log: log.Writer | None = log.Writer(beside, self._header)
        self._calls = self._log.steps[-1] + every if self._log.steps else 0

    def step(self, **metrics: float) -> bool:
        """Record the parameters now, if it is their turn. Gives whether it was.

        ``metrics``: numbers under the names given to the recorder; one left out is NaN.

        Raises:
            InvalidArgument: an unknown metric, a model whose parameters are others now.
            OSError: a full disk; what was recorded before is safe.
        """
        if self._log is None:
            raise PylandscapeError("recorder: it is closed")
        unknown = metrics.keys() - set(self._header.metrics)
        if unknown:
            raise InvalidArgument(
                f"step: expected metrics among {list(self._header.metrics)}, got "
                f"{sorted(unknown)}; name them in Recorder(metrics=...)"
            )
        due = self._calls % self.every == 0
        if due:
            found = np.array([number(metrics.get(k, np.nan)) for k in self._header.metrics])
            self._log.append(self._calls, found, self._values())
            if len(self._log.steps) % SYNC_RECORDS == 0:
                self._log.sync()
        self._calls += 1
        return due

    @property
    def steps(self) -> list[int]:
        """The steps that are recorded."""
        return [] if self._log is None else list(self._log.steps)

    def trajectory(self) -> Trajectory:
        """What is recorded so far."""
        if self._log is None:
            return store.of_file(self.path)
        return store.of_log(self._log.path)

    def close(self) -> None:
        """Write the HDF5 file and remove the recording beside it. Nothing recorded: no file."""
        if self._log is None:
            return
        writer, self._log = self._log, None
        try:
            if writer.steps:
                writer.sync()
                header, found = log.read(writer.path)
                rows = ((int(r["step"]), r["metrics"], r["values"]) for r in found)
                records.write(self.path, header, rows, len(found))
            writer.path.unlink(missing_ok=True)
        finally:
            writer.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _values(self) -> Any:
        state: dict[str, Tensor] = {**dict(self.model.named_parameters())}
        state |= dict(self.model.named_buffers())
        try:
            for t in self._header.tensors:
                if tuple(state[t.name].shape) != t.shape:
                    raise InvalidArgument(
                        f"model: {t.name!r} has the shape {tuple(state[t.name].shape)} now, "
                        f"{t.shape} when recording began"
                    )
            return records.flat(self._header, state)
        except KeyError as error:
            raise InvalidArgument(
                f"model: it has no {error.args[0]!r} any more, which it had when recording began"
            ) from error

    def _continue_finished(self, beside: Path) -> None:
        """Turns a finished file of the same model into a recording again, to be appended to."""
        if not self.path.exists() or beside.exists():
            return
        done = store.of_file(self.path)
        found = records.header_of(done, self._header.dtype)
        header = log.Header(
            found.tensors, self._header.dtype, tuple(done.metrics), self._header.about
        )
        if header.text() != self._header.text():
            from ..errors import ResumeMismatch

            raise ResumeMismatch(
                f"path: {self.path} is the recording of another run; remove it or use another path"
            )
        begun = beside.with_name(beside.name + ".tmp")  # whole, or not there: it goes on alone
        begun.unlink(missing_ok=True)
        writer = log.Writer(begun, header)
        for i in range(len(done)):
            row = np.array([done.metrics[name][i] for name in header.metrics])
            writer.append(int(done.steps[i]), row, records.flat(header, done[i]))
        writer.sync()
        writer.close()
        begun.replace(beside)


def number(value: Any) -> float:
    """A metric as a float, from a tensor too."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
