"""How a program's outputs stand for the module's, and the loss over them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._native import core
from ..arrays import all_finite
from ..errors import NotLowered

if TYPE_CHECKING:
    from ..theta.losses import KnownLoss


@dataclass(frozen=True)
class Output:
    """How the program's outputs stand for the module's.

    Of a sample they have ``shape``; their rows run through its dimensions in ``order``. If merged,
    the module gives the samples and the first of these dimensions as one.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    merged: bool

    def rows(self) -> tuple[int, ...]:
        return tuple(self.shape[d] for d in self.order)

    def module_shape(self, samples: int) -> tuple[int, ...]:
        if self.merged:
            return (samples * self.shape[0], *self.shape[1:])
        return (samples, *self.shape)

    def as_module(self, outputs: Tensor) -> Tensor:
        """The module's outputs from the program's (samples, *rows)."""
        back = [1 + self.order.index(d) for d in range(len(self.order))]
        outputs = outputs.permute(0, *back)
        return (outputs.flatten(0, 1) if self.merged else outputs).contiguous()

    def as_rows(self, target: Tensor, samples: int, without: int | None = None) -> Tensor:
        """The module's targets, one per output (per class if ``without``), in the rows' order."""
        if self.merged:
            target = target.unflatten(0, (samples, -1))
        order = [d for d in self.order if d != without]
        moved = [1 + d - (without is not None and d > without) for d in order]
        return target.permute(0, *moved).reshape(samples, -1).contiguous()


@dataclass(frozen=True)
class LossTensors:
    """A known loss over rows (outer, classes, inner): ``index`` (samples, outer * inner) with -1
    where a target does not count, or ``dense`` (samples, rows); the other is empty."""

    kind: str
    classes: int
    inner: int
    outer: int
    label_smoothing: float
    weight: list[float]
    pos_weight: list[float]
    index: Tensor
    dense: Tensor
    numbers: tuple[float, float]  # of csrc/cpu/kernels.h


def loss_tensors(loss: KnownLoss, targets: Tensor, output: Output, samples: int) -> LossTensors:
    """Raises NotLowered for targets that do not fit the outputs."""
    shape = output.shape
    expected = output.module_shape(samples)
    classes, inner, outer = prod(shape), 1, 1
    weight: list[float] = []
    pos_weight: list[float] = []
    index, dense = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    if loss.kind in ("cross_entropy", "nll"):
        own = int(output.merged)  # the classes' dimension: the module's second one
        if len(shape) <= own:
            raise NotLowered(f"{loss.kind} of outputs without a class dimension")
        rows, at = output.rows(), output.order.index(own)
        classes, outer, inner = shape[own], prod(rows[:at]), prod(rows[at + 1 :])
        weight = [] if loss.weight is None else loss.weight.double().tolist()
        if targets.is_floating_point():
            if tuple(targets.shape) != expected or loss.kind == "nll":
                raise NotLowered(f"{loss.kind} targets of shape {tuple(targets.shape)}")
            dense = output.as_rows(targets.double(), samples)
        else:
            if tuple(targets.shape) != (expected[0], *expected[2:]):
                raise NotLowered(f"{loss.kind} targets of shape {tuple(targets.shape)}")
            index = output.as_rows(targets.long(), samples, without=own)
            index = torch.where(index == loss.ignore_index, -1, index).contiguous()
            if (
                int(index.max()) >= classes
                or int(index.min()) < -1
                or (loss.ignore_index != -1 and bool((targets == -1).any()))
            ):
                raise NotLowered(f"a class index outside 0 .. {classes - 1}")
    else:
        if tuple(targets.shape) != expected:
            raise NotLowered(
                f"{loss.kind} targets of shape {tuple(targets.shape)} for outputs {expected}"
            )
        dense = output.as_rows(_dense(loss, targets.double()), samples)
        weight = _per_feature(loss.weight, output, f"{loss.kind} weight")
        pos_weight = _per_feature(loss.pos_weight, output, "pos_weight")
    smoothing = float(loss.label_smoothing)
    kind, numbers = _kind(loss)
    return LossTensors(
        kind, classes, inner, outer, smoothing, weight, pos_weight, index, dense, numbers
    )


def _kind(loss: KnownLoss) -> tuple[str, tuple[float, float]]:
    """The core's name of a loss, and its numbers."""
    if loss.kind in ("huber", "smooth_l1"):
        if loss.delta < 0 or (loss.delta == 0 and loss.kind == "huber"):
            raise NotLowered(f"{loss.kind} with delta={loss.delta}, which torch refuses")
        return loss.kind, (loss.delta, 0.0)
    if loss.kind == "l1":
        return "smooth_l1", (0.0, 0.0)
    if loss.kind == "poisson_nll":
        return "poisson_log" if loss.log_input else "poisson", (loss.eps, float(loss.full))
    return loss.kind, (0.0, 0.0)


def _dense(loss: KnownLoss, targets: Tensor) -> Tensor:
    if loss.kind != "kl_div" or not loss.log_target:
        return targets
    if not all_finite(targets):
        raise NotLowered("kl_div of log-probabilities that are not finite")
    return targets.exp()


def set_loss(program: Any, loss: KnownLoss, targets: Tensor, output: Output) -> None:
    found = loss_tensors(loss, targets, output, program.samples)
    program.set_loss(
        getattr(core.Loss, found.kind),
        found.classes,
        found.inner,
        found.label_smoothing,
        found.weight,
        found.pos_weight,
        found.index.data_ptr() if found.index.numel() else 0,
        found.dense.data_ptr() if found.dense.numel() else 0,
        outer=found.outer,
        a=found.numbers[0],
        b=found.numbers[1],
    )


def _per_feature(weight: Tensor | None, output: Output, name: str) -> list[float]:
    if weight is None:
        return []
    if weight.dim() > len(output.shape) - output.merged:
        raise NotLowered(f"{name} of shape {tuple(weight.shape)}: one weight per sample")
    return weight.double().expand(output.shape).permute(output.order).reshape(-1).tolist()


def counted_targets(loss: KnownLoss, targets: Tensor, outputs_shape: tuple[int, ...]) -> float:
    """How many targets accuracy is the share of."""
    if loss.kind in ("cross_entropy", "nll"):
        if targets.is_floating_point():
            return float(targets.numel() // outputs_shape[1])
        return float((targets != loss.ignore_index).sum())
    return float(targets.numel())
