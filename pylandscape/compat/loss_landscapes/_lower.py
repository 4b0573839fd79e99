"""Metrics that the compiled engine can compute: `Loss` of a model that can be lowered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import InvalidArgument, NotLowered
from ...landscape import Landscape
from ...theta.data import untouched_random_state
from ...theta.losses import KnownLoss, resolve_loss
from .metrics.metric import MetricPipeline
from .metrics.sl_metrics import Loss
from .model_interface.model_wrapper import SimpleModelWrapper

WORTHWHILE = 8  # points: capturing a model costs about as many forward passes


class _AsModule(nn.Module):
    """A wrapper's forward as that of a module which holds the wrapper's modules."""

    def __init__(self, wrapper: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleList(wrapper.modules)
        self.run = wrapper.forward
        self.training = any(part.training for part in self.parts)

    def forward(self, x: Any) -> Any:
        return self.run(x)


def lower(wrapper: Any, metric: Any, points: int, stepwise: bool) -> Landscape:
    """A landscape on the native engine whose loss is the metric and whose theta is the wrapper's.

    Args:
        points: how many are asked for.
        stepwise: the original's path, on which batch norm in train mode leaves its traces.

    Raises:
        NotLowered: says why there is none.
    """
    if not is_a(metric, Loss):
        raise NotLowered("a metric that is Python code")
    if points < WORTHWHILE:
        raise NotLowered(f"fewer than {WORTHWHILE} points")
    if not (isinstance(metric.inputs, Tensor) and isinstance(metric.target, Tensor)):
        raise NotLowered("inputs and target are not both tensors")
    module = wrapper.modules[0] if is_a(wrapper, SimpleModelWrapper) else _AsModule(wrapper)
    try:
        spec = resolve_loss(metric.loss_fn)
        if not isinstance(spec, KnownLoss):
            raise NotLowered(f"the loss {spec.name!r} is Python code")
        return _checked(module, wrapper, metric, spec, stepwise)
    except InvalidArgument as error:
        raise NotLowered(str(error)) from error


def is_a(thing: Any, kind: type) -> bool:
    """An object whose behaviour is the class's own: of ours, or of the original's same class."""
    found = type(thing)
    if isinstance(thing, kind):
        called = "forward" if kind is SimpleModelWrapper else "__call__"
        return getattr(found, called) is getattr(kind, called)
    return found.__module__.startswith("loss_landscapes.") and found.__name__ == kind.__name__


def is_pipeline(metric: Any) -> bool:
    """Several metrics, of which some may be lowered."""
    return is_a(metric, MetricPipeline)


def _checked(
    module: nn.Module, wrapper: Any, metric: Any, spec: KnownLoss, stepwise: bool
) -> Landscape:
    order: Sequence[int] = [id(p) for p in module.parameters()]
    if order != [id(p) for p in wrapper.get_module_parameters().parameters]:
        raise NotLowered("the wrapper orders its parameters otherwise than its modules")
    active = [m for m in module.modules() if m.training]
    batch = any(isinstance(m, _BatchNorm) for m in active)
    if batch and stepwise:
        raise NotLowered("compat, and batch norm in train mode")
    data = (metric.inputs, metric.target)
    land = Landscape(module, spec, data, bn="batch" if batch else "eval")
    if land.engine != "native":
        raise NotLowered(land.engine_report().reason or "the torch engine")
    if active and not _agrees(land, metric, wrapper):
        raise NotLowered("the model is in train mode, where it does something else")
    return land


def _agrees(land: Landscape, metric: Any, wrapper: Any) -> bool:
    """Whether the loss is the metric's own in the mode in which the model is."""
    with untouched_random_state():
        want = float(metric(wrapper))
    got = land.loss()
    if not math.isfinite(want):
        return False
    return abs(got - want) <= math.sqrt(torch.finfo(land.dtype).eps) * abs(want)
