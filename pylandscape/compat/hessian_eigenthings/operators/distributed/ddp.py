"""The Hessian of the loss over the loaders of all ranks of torch.distributed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .....curvature.symmetric_operator import SymmetricOperator
from ...param_utils import ParamFilter
from ..hessian import HessianOperator, HvpMethod, LossFn


class DDPHessianOperator(HessianOperator):
    """`HessianOperator` whose products are averaged over the ranks, by their samples.

    All ranks must ask for the same products. The model may be wrapped in
    DistributedDataParallel. Without an initialised process group it is a `HessianOperator`.
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
        method: HvpMethod = "autograd",
        fd_eps: float | None = None,
        backend: Any = None,
        process_group: Any = None,
        compat: str | None = None,
    ) -> None:
        module = getattr(model, "module", model) if _is_wrapped(model) else model
        super().__init__(
            module, dataloader, loss_fn, param_filter=param_filter, full_dataset=full_dataset,
            num_batches=num_batches, method=method, fd_eps=fd_eps, backend=backend, compat=compat,
        )  # fmt: skip
        self.process_group = process_group

    def symmetric_operator(self) -> SymmetricOperator:
        own = super().symmetric_operator()
        if not (dist.is_available() and dist.is_initialized()):
            return own
        samples = 1.0 if self.compat else float(self.landscape.dataset.size)
        where = self.device

        def product(v: Tensor) -> Tensor:
            share = own(v).to(where) * samples
            total = torch.tensor(samples, dtype=torch.float64, device=where)
            for part in (share, total):
                dist.all_reduce(part, group=self.process_group)
            return share / total

        return SymmetricOperator(self.size, product, dtype=own.dtype, device=where)


def _is_wrapped(model: nn.Module) -> bool:
    return isinstance(model, nn.parallel.DistributedDataParallel)
