"""The Hessian of a loss over a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ....curvature.symmetric_operator import SymmetricOperator
from ....errors import InvalidArgument
from ....landscape import Landscape
from ..batching import assert_microbatch_safe
from ..loss_fns.standard import SupervisedLoss
from ..param_utils import ParamFilter
from .base import LandscapeOperator, sizes_differ

LossFn = Callable[[nn.Module, Any], Tensor]
HvpMethod = Literal["autograd", "finite_difference"]

STEPS = {torch.float64: 6e-6, torch.float32: 5e-3}  # of finite differences, as the original's
OTHER_STEP = 1e-3


class HessianOperator(LandscapeOperator):
    """The Hessian of ``loss_fn(model, batch)``, of the mean over all samples of the loader.

    Args:
        model, dataloader, loss_fn: `supervised_loss(criterion)` of a known loss is compiled.
        param_filter: which parameters; the others stay fixed.
        full_dataset: False: the first batch alone.
        num_batches: so many batches of the loader.
        microbatch_size, microbatch_unsafe: checked as in the original; nothing is cut.
        method, fd_eps: finite differences only with `compat`.
        backend: None or SingleDeviceBackend.
        compat: "1.0.0a5": the mean over batches, and the rest of the original's arithmetic.
    """

    def __init__(
        self,
        model: nn.Module,
        dataloader: Iterable[Any],
        loss_fn: LossFn,
        *,
        param_filter: ParamFilter | None = None,
        full_dataset: bool = True,
        num_batches: int | None = None,
        microbatch_size: int | None = None,
        microbatch_unsafe: bool = False,
        method: HvpMethod = "autograd",
        fd_eps: float | None = None,
        backend: Any = None,
        compat: str | None = None,
    ) -> None:
        if method not in ("autograd", "finite_difference"):
            raise InvalidArgument(
                f"method: expected 'autograd' or 'finite_difference', got {method!r}"
            )
        if microbatch_size is not None and not microbatch_unsafe:
            assert_microbatch_safe(model)
        super().__init__(
            model, dataloader, param_filter, full_dataset, num_batches, backend, compat
        )
        self.loss_fn, self.method = loss_fn, method
        self.microbatch_size = microbatch_size
        self.fd_eps = STEPS.get(self.dtype, OTHER_STEP) if fd_eps is None else fd_eps
        self._next = cycle([None])
        if self.compat and not full_dataset:
            self._next = cycle(dataloader)

    def symmetric_operator(self) -> SymmetricOperator:
        if self.compat and not self.full_dataset:
            return self._rowwise(self._next_product)
        if self.compat and self.method == "finite_difference":
            return self._rowwise(self._difference)
        return super().symmetric_operator()

    def _rowwise(self, product: Callable[[Tensor], Tensor]) -> SymmetricOperator:
        wide = self.landscape.dtype
        return SymmetricOperator(
            self.size, lambda v: torch.stack([product(row) for row in v]), dtype=wide,
            device=self.device,
        )  # fmt: skip

    def _difference(self, v: Tensor) -> Tensor:
        land, step = self.landscape, self.fd_eps * v
        ahead, behind = land.gradient(land.theta + step), land.gradient(land.theta - step)
        return (ahead - behind) / (2 * self.fd_eps)

    def _next_product(self, v: Tensor) -> Tensor:
        return self._build([next(self._next)]).hvp(v)

    def _build(self, batches: list[Any]) -> Landscape:
        options: dict[str, Any] = {"params": self._chosen, "bn": norm_mode(self.model)}
        if isinstance(self.loss_fn, SupervisedLoss) and not (self.compat and sizes_differ(batches)):
            return Landscape(
                self.model, self.loss_fn.criterion, batches, device=self.device, **options
            )
        weight = [1.0] * len(batches) if self.compat else None
        return Landscape(
            self.model, objective=self.loss_fn, data=batches, weight=weight, device=self.device,
            **options,
        )  # fmt: skip


def norm_mode(model: nn.Module) -> str:
    """Batch norm as the model would run now: each batch's statistics in train mode."""
    training = any(isinstance(m, _BatchNorm) and m.training for m in model.modules())
    return "batch" if training else "eval"
