"""Loss and accuracy of a network on a loader's data, at the weights that it has now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...engine_torch import eval_mode
from ...errors import InvalidArgument
from ...losses import FreeLoss, KnownLoss, as_scalar, resolve_loss
from .._report import report


def eval_loss(
    net: nn.Module, criterion: Any, loader: Iterable[Any], use_cuda: bool = False
) -> tuple[float, Tensor]:
    """The loss of the loader's data as a whole, and the accuracy in percent.

    Args:
        net: evaluated in eval mode, and left in its own.
        criterion: of torch.nn, or any function of (outputs, targets). `MSELoss` with class numbers
            as targets compares softmax(outputs) with one-hot targets.
        loader: batches (inputs, targets).
        use_cuda: move ``net``, for good, and every batch to the current CUDA device.

    Returns:
        The loss, and a 0-d tensor: the accuracy, NaN where targets are no classes.

    Raises:
        InvalidArgument: no data, or ``use_cuda`` without CUDA.

    Numerics: known losses are summed in float64.
    """
    if use_cuda and not torch.cuda.is_available():
        raise InvalidArgument("use_cuda: expected a torch that sees a CUDA device, got none")
    if use_cuda:
        net.cuda()
    spec = resolve_loss(criterion)
    total = denominator = hits = counted = 0.0
    with eval_mode(net), torch.no_grad():
        for inputs, target in loader:
            if use_cuda:
                inputs, target = inputs.cuda(), target.cuda()
            outputs = net(inputs)
            if isinstance(spec, KnownLoss) and spec.kind == "mse" and is_classes(target):
                outputs, target = F.softmax(outputs, dim=1), one_hot(target, outputs.shape[1])
            added, share = _batch_loss(spec, outputs, target)
            total, denominator = total + added, denominator + share
            found, of = correct(spec, outputs, target)
            hits, counted = hits + found, counted + of
    if denominator == 0:
        raise InvalidArgument("loader: expected at least one sample, got none")
    report.add("loss_landscape.eval_loss", "torch", 1, "one point at a time")
    if isinstance(spec, KnownLoss) and spec.reduction == "sum":
        denominator = 1.0
    percent = 100.0 * hits / counted if counted else float("nan")
    return total / denominator, torch.tensor(percent)


def accuracy(outputs: Tensor, target: Tensor) -> float:
    """The share of rows whose largest output is the target's: of class numbers or one-hot rows."""
    found, of = correct(FreeLoss(F.mse_loss), outputs, target)
    return found / of if of else float("nan")


def correct(spec: KnownLoss | FreeLoss, outputs: Any, target: Any) -> tuple[float, float]:
    """How many targets the outputs hit, and of how many; (0, 0) where these are no classes."""
    if isinstance(spec, KnownLoss) and spec.kind != "mse":
        hit, of = spec.correct(outputs, target)
        return float(hit), float(of)
    rows = isinstance(outputs, Tensor) and isinstance(target, Tensor) and outputs.dim() == 2
    if rows and is_classes(target) and target.numel() == len(outputs):
        return float((outputs.argmax(1) == target.reshape(-1)).sum()), float(len(outputs))
    if rows and target.shape == outputs.shape and outputs.shape[1] > 1 and _is_one_hot(target):
        return float((outputs.argmax(1) == target.argmax(1)).sum()), float(len(outputs))
    return 0.0, 0.0


def is_classes(target: Any) -> bool:
    """Whether targets are numbers of classes, one per sample."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype == torch.bool:
        return False
    return target.dim() == 1 or (target.dim() == 2 and target.shape[1] == 1)


def one_hot(target: Tensor, classes: int) -> Tensor:
    """(n, classes) float32 rows."""
    return F.one_hot(target.reshape(-1).long(), classes).float()


def _is_one_hot(target: Tensor) -> bool:
    ones = (target == 1).sum(1) == 1
    return bool(ones.all()) and bool(((target == 0).sum(1) == target.shape[1] - 1).all())


def _batch_loss(spec: KnownLoss | FreeLoss, outputs: Any, target: Any) -> tuple[float, float]:
    if isinstance(spec, KnownLoss):
        return float(spec.total(outputs, target)), spec.denominator(target, tuple(outputs.shape))
    size = len(target)
    return size * float(as_scalar(spec.fn(outputs, target), "criterion")), float(size)
