"""Losses of a network at many points by plain torch: as users write it, and in its best forms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from . import peers
from .peers import Case, Losses
from .workloads import split

Pair = tuple[str, str]  # names of a convolution and of the batch norm that follows it


def user_loop(case: Case) -> Losses:
    """What users run, after Li et al.'s code: parameters set one by one, model in NCHW, no_grad."""
    model = copy.deepcopy(case.model).eval()
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    moves = [split(d, start) for d in case.directions]

    def losses() -> np.ndarray:
        out = np.empty(len(case.coefficients))
        with torch.no_grad():
            for i, step in enumerate(case.coefficients.tolist()):
                for p, w, *ds in zip(parameters, start, *moves, strict=True):
                    p.data = w + sum(alpha * d for alpha, d in zip(step, ds, strict=True))
                out[i] = case.loss(model(case.x), case.y).item()
        return out

    return losses


def torch_forms(case: Case, compiled: bool) -> dict[str, Callable[[], Losses]]:
    """The forms that may be torch's best for this network, by name."""
    forms: dict[str, Callable[[], Losses]] = {
        "foreach": partial(peers.foreach_loop, case),
        "flat, inference mode": partial(peers.flat_loop, case),
    }
    if compiled:
        forms["compiled"] = partial(peers.foreach_loop, case, compiled=True)
    if not any(isinstance(m, nn.Conv2d) for m in case.model.modules()):
        return forms
    forms["channels_last"] = partial(moved_loop, case)
    if compiled:
        forms["channels_last, compiled"] = partial(moved_loop, case, compiled=True)
    if any(isinstance(m, nn.BatchNorm2d) for m in case.model.modules()):
        forms["channels_last, BN folded"] = partial(moved_loop, case, folded=True)
        if compiled:
            both = partial(moved_loop, case, folded=True, compiled=True)
            forms["channels_last, BN folded, compiled"] = both
    return forms


def moved_loop(case: Case, folded: bool = False, compiled: bool = False) -> Losses:
    """Loop of foreach updates of a model in channels_last, inference mode.

    With ``folded``, every batch norm is folded, at each point, into the convolution before it.
    """
    last = torch.channels_last
    model = copy.deepcopy(case.model).eval().requires_grad_(False)
    model = model.to(memory_format=last)  # type: ignore[call-overload]
    x = case.x.contiguous(memory_format=last)
    parameters: list[Tensor] = list(model.parameters())
    start = [p.clone() for p in parameters]
    moves = [_like(split(d, start), start) for d in case.directions]
    runner, fold = model, _nothing
    if folded:
        runner, fold = _folded(model)

    def forward() -> Tensor:
        return case.loss(runner(x), case.y)

    evaluate = torch.compile(forward, dynamic=False) if compiled else forward

    def losses() -> np.ndarray:
        out = np.empty(len(case.coefficients))
        with torch.no_grad() if compiled else torch.inference_mode():
            for i, step in enumerate(case.coefficients.tolist()):
                torch._foreach_copy_(parameters, start)
                for alpha, move in zip(step, moves, strict=True):
                    torch._foreach_add_(parameters, move, alpha=alpha)
                fold()
                out[i] = evaluate().item()
        return out

    return losses


def _nothing() -> None:
    pass


def _like(parts: list[Tensor], models: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(m).copy_(p) for p, m in zip(parts, models, strict=True)]


def _folded(model: nn.Module) -> tuple[nn.Module, Callable[[], None]]:
    """A copy of the model without the foldable batch norms, and what brings it up to date."""
    graph = torch.fx.symbolic_trace(model)  # shares the model's modules and parameters
    pairs = _pairs(graph)
    work = copy.deepcopy(graph)
    for conv_name, norm_name in pairs:
        conv = work.get_submodule(conv_name)
        assert isinstance(conv, nn.Conv2d)
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels), requires_grad=False)
        parent, _, name = norm_name.rpartition(".")
        setattr(work.get_submodule(parent), name, nn.Identity())
    norms = {norm for _, norm in pairs}
    own, theirs = dict(graph.named_parameters()), dict(work.named_parameters())
    rest = [(theirs[k], p) for k, p in own.items() if k.rpartition(".")[0] not in norms]

    def update() -> None:
        for copied, parameter in rest:
            copied.copy_(parameter)
        for conv_name, norm_name in pairs:
            conv, norm = graph.get_submodule(conv_name), graph.get_submodule(norm_name)
            into = work.get_submodule(conv_name)
            scale = torch.rsqrt(norm.running_var + norm.eps)
            scale = scale if norm.weight is None else scale * norm.weight
            torch.mul(conv.weight, scale[:, None, None, None], out=into.weight)
            bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
            torch.mul(bias, scale, out=into.bias)
            if norm.bias is not None:
                into.bias.add_(norm.bias)

    return work, update


def _pairs(graph: torch.fx.GraphModule) -> list[Pair]:
    """Convolutions whose only reader is a batch norm, with that norm."""
    modules = dict(graph.named_modules())
    found = []
    for node in graph.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        (before,) = node.all_input_nodes
        is_conv = before.op == "call_module" and isinstance(modules[before.target], nn.Conv2d)
        if is_conv and len(before.users) == 1:
            found.append((str(before.target), str(node.target)))
    return found
