"""A recorder for transformers' Trainer: ``Trainer(callbacks=[Recorder("run.h5", every=10)])``."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from . import recorder


class Recorder(TrainerCallback):
    """Records the parameters of the trained model after optimiser steps.

    Args:
        path, **options: as for `pylandscape.Recorder`. The loss is the last one that was logged.

    The file is finished when training ends. Only the process of rank 0 records.
    """

    def __init__(self, path: Any, **options: Any) -> None:
        self._path, self._options = path, options
        self._recorder: recorder.Recorder | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.is_world_process_zero:
            self._recorder = recorder.Recorder(more["model"], self._path, **self._options)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._recorder is not None:
            logged = [entry["loss"] for entry in state.log_history if "loss" in entry]
            self._recorder.step(**({"loss": recorder.number(logged[-1])} if logged else {}))

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
