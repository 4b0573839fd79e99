"""Captures a module's forward pass as a graph of plain torch calls.

``torch.fx`` traces through every submodule (milliseconds); where it cannot (control flow on values,
custom Python) or where its graph is not the module (``h += 1`` under an alias), ``torch.export`` is
tried (up to seconds the first time). Nothing here is trusted: the lowered program is compared with
the module itself before it is used (engine_native.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .errors import NotLowered

# Modules whose own Python code fx cannot trace; they stand in the graph as one call.
_WHOLE = (
    nn.modules.batchnorm._NormBase,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
# The same, but a subclass may have a forward of its own.
_WHOLE_THEMSELVES = (nn.TransformerEncoderLayer, nn.TransformerEncoder)


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _WHOLE) or type(m) in _WHOLE_THEMSELVES


def check_traceable(model: nn.Module) -> None:
    """Raises NotLowered where a call does more than its forward: hooks, parametrisations."""
    for name, module in model.named_modules():
        where = f"module {name or type(module).__name__!r}"
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotLowered(f"{where} has forward hooks")
        if module._backward_hooks or module._backward_pre_hooks:
            raise NotLowered(f"{where} has backward hooks")
        if parametrize.is_parametrized(module):
            raise NotLowered(f"{where} is parametrised")


@contextmanager
def restored_attributes(model: nn.Module) -> Iterator[None]:
    """Undoes whatever happens to the attributes, parameters and buffers of the module's tree.

    That is: what a forward pass assigns, modes, and tensors that ``functional_call`` swapped in and
    could not swap back. Restoring is repeated if Ctrl-C interrupts it.
    """
    kept = [
        (table, dict(table))
        for module in model.modules()
        for table in (module.__dict__, module._parameters, module._buffers, module._modules)
    ]
    try:
        yield
    finally:
        interrupt: KeyboardInterrupt | None = None
        restored = False
        while not restored:
            try:
                for table, before in kept:
                    _restore(table, before)
                restored = True
            except KeyboardInterrupt as late:
                interrupt = late
        if interrupt is not None:
            raise interrupt


def _restore(table: dict[str, Any], before: dict[str, Any]) -> None:
    for name in table.keys() - before.keys():
        table.pop(name, None)
    table.update(before)


def trace(model: nn.Module, example: Tensor, how: str) -> torch.fx.GraphModule:
    """The graph of ``model(example)`` in eval mode, by "fx" or by "export".

    The graph's parameters and buffers are the model's own tensors. Raises NotLowered when the
    tracer fails.
    """
    with restored_attributes(model):
        try:
            if how == "fx":
                return torch.fx.GraphModule(model, _Tracer().trace(model))
            with warnings.catch_warnings():  # of the attributes that are restored here
                warnings.simplefilter("ignore", UserWarning)
                program = torch.export.export(model, (example,), strict=False)
            return _with_own_tensors(program, model)
        except NotLowered:
            raise
        except Exception as error:
            raise NotLowered(f"{how}: {_first_line(error)}") from error


def _with_own_tensors(program: Any, model: nn.Module) -> torch.fx.GraphModule:
    """The exported graph with its lifted inputs turned back into attributes of the model."""
    graph = torch.fx.Graph()
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    if signature.buffers_to_mutate or signature.inputs_to_lifted_tensor_constants:
        raise NotLowered("the forward pass changes buffers or holds tensor constants")
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            if node.users:  # a BN's count of batches has none
                copied[node] = graph.get_attr(names[node.name])
        elif node.op == "output":
            (result,) = node.args[0]
            graph.output(copied[result])
        else:
            copied[node] = graph.node_copy(node, lambda n: copied[n])
    return torch.fx.GraphModule(model, graph)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
