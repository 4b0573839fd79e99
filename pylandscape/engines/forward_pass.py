"""How a model is called, and what it and its loss give for a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InvalidArgument, PylandscapeError, out_of_memory, wrapping
from ..lowering.capture import restored_attributes
from ..theta.data import Batch
from ..theta.eval_mode import into_eval
from ..theta.losses import FreeLoss, KnownLoss, Objective, as_scalar
from ..theta.snapshot import Snapshot


def call_model(model: nn.Module, inputs: Any) -> Any:
    """model(x), model(*inputs) for a tuple or list, model(**inputs) for a mapping."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


@contextmanager
def eval_mode(model: nn.Module, train_norms: bool = False) -> Iterator[None]:
    """Eval mode, undone for every module afterwards.

    With ``train_norms``, batch-norm layers use the batch's statistics and track none.
    """
    with restored_attributes(model):
        into_eval(model)
        for module in model.modules():
            if train_norms and isinstance(module, _BatchNorm):
                module.training = True
                module.track_running_stats = False
        yield


@dataclass(frozen=True)
class Pass:
    """What a model and its loss give for a batch."""

    model: nn.Module
    loss: KnownLoss | FreeLoss | Objective

    def outputs(self, batch: Batch) -> Any:
        """The model's outputs, or the objective's value."""
        if isinstance(self.loss, Objective):
            return self.loss.fn(self.model, batch.raw)
        return call_model(self.model, batch.inputs)

    def weighed(self, output: Any, batch: Batch, index: int) -> tuple[Tensor, float]:
        """The batch's shares of numerator (float64) and denominator, from its outputs."""
        if isinstance(self.loss, KnownLoss):
            if not isinstance(output, Tensor):
                raise InvalidArgument(
                    f"data: {self.loss.kind} expected a model whose output is one tensor, got "
                    f"{type(output).__name__}; pass objective=f(model, batch), for example "
                    f"lambda model, b: {_example(output)}"
                )
            if self.loss.reduction == "sum":
                return self.loss.total(output, batch.target), float(index == 0)
            weight = self.loss.denominator(batch.target, tuple(output.shape))
            return self.loss.total(output, batch.target), weight
        if isinstance(self.loss, Objective):
            weight = self.loss.weights[index]
            return as_scalar(output, "objective").double() * weight, weight
        value = as_scalar(self.loss.fn(output, batch.target), "loss")
        return value.double() * batch.size, float(batch.size)


def roots(model: nn.Module, loss: KnownLoss | FreeLoss | Objective) -> list[Any]:
    """All code of the user's that computes L."""
    return [model] if isinstance(loss, KnownLoss) else [model, loss.fn]


def _example(output: Any) -> str:
    """How an objective takes the loss from such an output of the model."""
    if isinstance(output, Mapping):
        key = "logits" if "logits" in output else next(iter(output), "logits")
        return f"loss(model(b[0])[{key!r}], b[1])"
    if isinstance(output, tuple | list):
        return "loss(model(b[0])[0], b[1])"
    return "loss(model(b[0]).logits, b[1])"


def rebound(
    snapshot: Snapshot, loss: KnownLoss | FreeLoss | Objective
) -> KnownLoss | FreeLoss | Objective:
    """The loss with the snapshot's model wherever it holds the original."""
    return loss if isinstance(loss, KnownLoss) else replace(loss, fn=snapshot.rebound(loss.fn))


def failed(error: Exception) -> PylandscapeError:
    """The error of ours for what the user's code raised at a point."""
    said = f"{type(error).__name__}: {error}"
    if out_of_memory(error):
        return wrapping(
            error, f"data: not enough memory to run one batch; pass smaller batches ({said})"
        )
    return wrapping(
        error,
        f"model: it ran at its own parameters, but at a point asked for it, its loss or a metric "
        f"raised {said}",
    )
