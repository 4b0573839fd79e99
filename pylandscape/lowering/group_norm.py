"""Lowering of group norm and instance norm, channels last."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn

from .conv import _batch_norm, _source
from .interpreter import Call, op
from .values import Slot


@op("group_norm")
def _group_norm(
    call: Call,
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Slot:
    return _normed(call, input, num_groups, weight, bias, eps)


@op("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")
def _instance_norm_module(call: Call, input: Any) -> Slot:
    m: nn.modules.instancenorm._InstanceNorm = call.function
    x = call.view(input)
    if len(x.shape) != int(call.name[-2]) + 1:
        raise call.refuse("an image without a batch dimension")
    if m.track_running_stats and m.training and call.lowering.trains:
        raise call.refuse("running statistics that change")
    if m.track_running_stats:
        return _batch_norm(call, x, m.weight, m.bias, m.running_mean, m.running_var, m.eps)
    return _normed(call, x, x.shape[0], m.weight, m.bias, m.eps)


@op("instance_norm")
def _instance_norm_function(call: Call, input: Any, *args: Any, **kwargs: Any) -> Slot:
    names = ["running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"]
    if isinstance(call.function, torch._ops.OpOverload):
        names = [*names[2:4], *names[:2], *names[4:], "cudnn_enabled"]
    given = dict(zip(names, args, strict=False)) | kwargs
    x, eps = call.view(input), given.get("eps", 1e-5)
    weight, bias = given.get("weight"), given.get("bias")
    mean, variance = given.get("running_mean"), given.get("running_var")
    if not given.get("use_input_stats", True):
        return _batch_norm(call, x, weight, bias, mean, variance, eps)
    if mean is not None or variance is not None:
        raise call.refuse("running statistics that change")
    return _normed(call, x, x.shape[0], weight, bias, eps)


def _normed(call: Call, input: Any, groups: int, weight: Any, bias: Any, eps: float) -> Slot:
    x = call.view(input)
    if x.axis != 0 or not x.shape or 0 in x.shape:
        raise call.refuse("an image without a leading batch dimension, or an empty one")
    order = call.lowering.order(x)
    if order is None or order[-1] != 0:
        order = (*range(1, len(x.shape)), 0)
    channels, pixels = x.shape[0], prod(x.shape[1:])
    x = call.lowering.in_dims(x, order)
    found = call.program.group_norm(
        x.id, groups, pixels, channels, float(eps), _source(call, weight), _source(call, bias)
    )
    return call.lowering.ordered(found, x.shape, x.axis, order)
