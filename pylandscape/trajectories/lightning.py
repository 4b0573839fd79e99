"""A recorder for Lightning: ``Trainer(callbacks=[Recorder("run.h5", every=10)])``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from . import recorder


class Recorder(Callback):
    """Records the parameters of a LightningModule after training batches.

    Args:
        path, **options: as for `pylandscape.Recorder`. The loss is what `training_step` returns.

    The file is finished when training ends or fails. Only the process of rank 0 records.
    """

    def __init__(self, path: Any, **options: Any) -> None:
        super().__init__()
        self._path, self._options = path, options
        self._recorder: recorder.Recorder | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._recorder = recorder.Recorder(pl_module, self._path, **self._options)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._recorder is not None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self._recorder.step(**({} if loss is None else {"loss": recorder.number(loss)}))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
