"""Losses of (input, target) batches, which keep the criterion: the compiled engine may know it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Criterion = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class SupervisedLoss:
    """(model, batch) -> criterion(model(x), y)."""

    criterion: Criterion

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return self.criterion(model(x), y)


@dataclass(frozen=True, eq=False)
class SupervisedLossOfOutput:
    """(output, batch) -> criterion(output, y)."""

    criterion: Criterion

    def __call__(self, output: Tensor, batch: Any) -> Tensor:
        _, y = batch
        return self.criterion(output, y)


@dataclass(frozen=True, eq=False)
class SupervisedSampleLoss:
    """(model, (x, y)) -> criterion(model(x), y) of one sample without a batch axis."""

    criterion: Criterion

    def __call__(self, model: nn.Module, sample: Any) -> Tensor:
        x, y = sample
        return self.criterion(model(x.unsqueeze(0)).squeeze(0), y)


def supervised_loss(criterion: Criterion) -> SupervisedLoss:
    """`loss_fn` of `HessianOperator`."""
    return SupervisedLoss(criterion)


def supervised_forward(model: nn.Module, batch: Any) -> Tensor:
    """`forward_fn` of `GGNOperator`: model(x)."""
    x, _ = batch
    output: Tensor = model(x)
    return output


def supervised_loss_of_output(criterion: Criterion) -> SupervisedLossOfOutput:
    """`loss_of_output_fn` of `GGNOperator`."""
    return SupervisedLossOfOutput(criterion)


def supervised_per_sample_loss(criterion: Criterion) -> SupervisedSampleLoss:
    """`per_sample_loss_fn` of `EmpiricalFisherOperator`."""
    return SupervisedSampleLoss(criterion)
