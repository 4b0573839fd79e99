"""The empirical Fisher matrix: the uncentred covariance of the samples' gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ....curvature.symmetric_operator import SymmetricOperator
from ....engines.forward_pass import eval_mode
from ....landscape import Landscape
from ....theta.data import untouched_random_state
from ....theta.losses import KnownLoss, resolve_loss
from ..batching import move_batch_to_device
from ..loss_fns.standard import SupervisedSampleLoss
from ..param_utils import ParamFilter
from .base import LandscapeOperator, sizes_differ

PerSampleLossFn = Callable[[Any, Any], Tensor]


class EmpiricalFisherOperator(LandscapeOperator):
    """(1/N) sum_i g_i g_i^T, g_i the gradient of ``per_sample_loss_fn(model, sample)``.

    The other arguments are those of `HessianOperator`. `supervised_per_sample_loss` of a known
    loss is compiled; other functions go through torch.func.vmap over `sample_dim`, with all
    gradients of the loader kept (N n numbers) for a state of the model.
    """

    matrix = "covariance"

    def __init__(
        self,
        model: nn.Module,
        dataloader: Iterable[Any],
        per_sample_loss_fn: PerSampleLossFn,
        *,
        param_filter: ParamFilter | None = None,
        full_dataset: bool = True,
        num_batches: int | None = None,
        sample_dim: int = 0,
        backend: Any = None,
        compat: str | None = None,
    ) -> None:
        super().__init__(
            model, dataloader, param_filter, full_dataset, num_batches, backend, compat
        )
        self.per_sample_loss_fn, self.sample_dim = per_sample_loss_fn, sample_dim
        self._gradients: tuple[Landscape, list[Tensor]] | None = None
        self._compiled = False

    def symmetric_operator(self) -> SymmetricOperator:
        land = self.landscape  # decides whether it is compiled
        if self._compiled:
            return super().symmetric_operator()
        if self._gradients is None or self._gradients[0] is not land:
            self._gradients = (land, [self._of(batch) for batch in self._read])
        rows = self._gradients[1]
        total = sum(len(g) for g in rows)

        def product(v: Tensor) -> Tensor:
            shares = [len(g) * len(rows) if self.compat else total for g in rows]
            return sum(((v @ g.T) @ g).double() / s for g, s in zip(rows, shares, strict=True))  # type: ignore[return-value]

        return SymmetricOperator(
            self.size, product, dtype=land.dtype, device=self.device, name="covariance"
        )

    def _build(self, batches: list[Any]) -> Landscape:
        self._read = batches
        loss = self.per_sample_loss_fn
        known = self._known(batches)
        self._compiled = known is not None and not (self.compat and sizes_differ(batches))
        if self._compiled:
            return Landscape(self.model, known, batches, params=self._chosen, device=self.device)
        # Holds theta; its value is never asked for.
        return Landscape(
            self.model, objective=_nothing(loss), data=batches, params=self._chosen,
            device=self.device,
        )  # fmt: skip

    def _known(self, batches: list[Any]) -> KnownLoss | None:
        """The loss whose samples' gradients a landscape has as this function defines them."""
        if not isinstance(self.per_sample_loss_fn, SupervisedSampleLoss) or self.sample_dim:
            return None
        spec = resolve_loss(self.per_sample_loss_fn.criterion)
        if not isinstance(spec, KnownLoss) or spec.reduction != "mean":
            return None
        if spec.weight is not None or spec.pos_weight is not None:
            return None
        if spec.kind not in ("cross_entropy", "nll"):
            return spec
        one_each = all(
            isinstance(b, list | tuple) and len(b) == 2 and isinstance(b[1], Tensor)
            and b[1].dim() == 1 and not bool((b[1] == spec.ignore_index).any())
            for b in batches
        )  # fmt: skip
        return spec if one_each else None

    def _of(self, batch: Any) -> Tensor:
        """(samples, n)."""
        batch = move_batch_to_device(batch, self.device)
        named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        fixed = {k: t.detach() for k, t in named.items() if k not in self._names}
        theta = {name: named[name].detach() for name in self._names}

        def loss(theta: dict[str, Tensor], sample: Any) -> Tensor:
            return self.per_sample_loss_fn(_Called(self.model, {**fixed, **theta}), sample)

        dims = _axes(batch, self.sample_dim)
        with eval_mode(self.model), untouched_random_state(self.device):
            found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, dims))(theta, batch)
        return torch.cat([found[name].flatten(1) for name in self._names], dim=1).detach()


class _Called:
    """The model with other tensors, as something to call."""

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        self._model, self._tensors = model, tensors

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self._model, self._tensors, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _nothing(loss: Any) -> Callable[[nn.Module, Any], Tensor]:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        return torch.zeros(())

    objective.__name__ = getattr(loss, "__name__", type(loss).__name__)
    return objective


def _axes(batch: Any, axis: int) -> Any:
    """The axis of the samples in every tensor of the batch; None for what is none."""
    if isinstance(batch, Tensor):
        return axis
    if isinstance(batch, dict):
        return {key: _axes(value, axis) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_axes(value, axis) for value in batch)
    return None
