"""Classes among targets, and how many of them a network's outputs hit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...theta.losses import FreeLoss, KnownLoss


def accuracy(outputs: Tensor, target: Tensor) -> float:
    """The share of rows whose largest output is the target's: of class numbers or one-hot rows."""
    found, of = correct(FreeLoss(F.mse_loss), outputs, target)
    return found / of if of else float("nan")


def correct(spec: KnownLoss | FreeLoss, outputs: Any, target: Any) -> tuple[float, float]:
    """How many targets the outputs hit, and of how many; (0, 0) where these are no classes."""
    if isinstance(spec, KnownLoss) and spec.classifies:
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
