"""The generalised Gauss-Newton matrix J^T H_out J."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ....landscape import Landscape
from ..loss_fns.standard import SupervisedLossOfOutput, supervised_forward
from ..param_utils import ParamFilter
from .base import LandscapeOperator, sizes_differ, sizes_of
from .hessian import norm_mode

ForwardFn = Callable[[Any, Any], Tensor]
LossOfOutputFn = Callable[[Tensor, Any], Tensor]


class GGNOperator(LandscapeOperator):
    """J^T H_out J of ``loss_of_output_fn(forward_fn(model, batch), batch)``.

    The other arguments are those of `HessianOperator`. `supervised_forward` with
    `supervised_loss_of_output` of a known loss is compiled.
    """

    matrix = "gauss_newton"

    def __init__(
        self,
        model: nn.Module,
        dataloader: Iterable[Any],
        forward_fn: ForwardFn,
        loss_of_output_fn: LossOfOutputFn,
        *,
        param_filter: ParamFilter | None = None,
        full_dataset: bool = True,
        num_batches: int | None = None,
        backend: Any = None,
        compat: str | None = None,
    ) -> None:
        super().__init__(
            model, dataloader, param_filter, full_dataset, num_batches, backend, compat
        )
        self.forward_fn, self.loss_of_output_fn = forward_fn, loss_of_output_fn

    def _build(self, batches: list[Any]) -> Landscape:
        chosen, bn = self._chosen, norm_mode(self.model)
        loss: Any = self.loss_of_output_fn
        if (
            self.forward_fn is supervised_forward
            and isinstance(loss, SupervisedLossOfOutput)
            and not (self.compat and sizes_differ(batches))
        ):
            return Landscape(
                self.model, loss.criterion, batches, params=chosen, bn=bn, device=self.device
            )
        whole = _Forward(self.model, self.forward_fn)
        if chosen is not None:
            chosen = [f"model.{name}" for name in chosen]
        if self.compat:
            loss = _by_batch(loss, sizes_of(batches))
        pairs = [({"batch": batch}, batch) for batch in batches]
        return Landscape(whole, loss, pairs, params=chosen, bn=bn, device=self.device)


class _Forward(nn.Module):
    """batch -> forward_fn(model, batch)."""

    def __init__(self, model: nn.Module, forward_fn: ForwardFn) -> None:
        super().__init__()
        self.model, self.forward_fn = model, forward_fn

    def forward(self, batch: Any) -> Tensor:
        return self.forward_fn(self.model, batch)


def _by_batch(loss: LossOfOutputFn, sizes: list[int]) -> LossOfOutputFn:
    """The loss whose mean by samples is the mean over batches of the given one."""
    mean = sum(sizes) / len(sizes)
    return lambda output, batch: loss(output, batch) * (mean / sizes_of([batch])[0])
