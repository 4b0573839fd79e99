"""Loss and accuracy of a network on a loader's data, at the weights that it has now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...engines.forward_pass import eval_mode
from ...errors import InvalidArgument
from ...theta.losses import FreeLoss, KnownLoss, as_scalar, resolve_loss
from .._report import report
from ._accuracy import correct, is_classes, one_hot
from ._kept import compiled


def eval_loss(
    net: nn.Module, criterion: Any, loader: Iterable[Any], use_cuda: bool = False
) -> tuple[float, Tensor]:
    """The loss of the loader's data as a whole, and the accuracy in percent.

    From the third call on with the same network and unchanged data in memory (a list of batches,
    or a DataLoader of a TensorDataset that does not shuffle), on the compiled engine.

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

    Numerics: known losses are summed in float64. Engines agree to rounding.
    """
    if use_cuda and not torch.cuda.is_available():
        raise InvalidArgument("use_cuda: expected a torch that sees a CUDA device, got none")
    if use_cuda:
        net.cuda()
    ask, reason = compiled(net, criterion, loader)
    if ask is not None:
        theta = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
        point = ask(theta[None])
        report.add("loss_landscape.eval_loss", "native", 1)
        return float(point["loss"][0]), torch.tensor(100.0 * float(point["accuracy"][0]))
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
    report.add("loss_landscape.eval_loss", "torch", 1, reason)
    if isinstance(spec, KnownLoss) and spec.reduction == "sum":
        denominator = 1.0
    percent = 100.0 * hits / counted if counted else float("nan")
    return total / denominator, torch.tensor(percent)


def _batch_loss(spec: KnownLoss | FreeLoss, outputs: Any, target: Any) -> tuple[float, float]:
    if isinstance(spec, KnownLoss):
        return float(spec.total(outputs, target)), spec.denominator(target, tuple(outputs.shape))
    size = len(target)
    return size * float(as_scalar(spec.fn(outputs, target), "criterion")), float(size)
