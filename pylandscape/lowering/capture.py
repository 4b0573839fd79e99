"""Captures a module's forward pass as a graph of plain torch calls.

``torch.fx`` traces through every submodule (milliseconds); where it cannot (control flow on values,
custom Python) or where its graph is not the module (``h += 1`` under an alias), ``torch.export`` is
tried (up to seconds the first time). Nothing here is trusted: the lowered program is compared with
the module itself before it is used (engines/capture_check.py). Whatever goes wrong in the module's
own code meanwhile is a reason for the torch engine, not an error.
"""

from __future__ import annotations

import dis
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, rnn

from ..errors import NotLowered, out_of_memory
from ..theta.outside import Outside

# Modules whose own Python code fx cannot trace; they stand in the graph as one call.
_WHOLE = (
    nn.modules.batchnorm._NormBase,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
# The same, but a subclass may have a forward of its own.
_WHOLE_THEMSELVES = (nn.TransformerEncoderLayer, nn.TransformerEncoder)


# Of a tensor, what the shape alone decides.
_OF_SHAPE = (
    "shape", "ndim", "dtype", "device", "is_cuda", "size", "dim", "ndimension", "numel", "nelement",
    "is_floating_point", "is_complex", "element_size",
)  # fmt: skip


_MOST_SIZES = 8  # of batches, for each of which a model is exported
# Calls whose numbers, and those whose lists of numbers, are the shape of what they give.
_SHAPED = {
    "view", "reshape", "_unsafe_view", "view_copy", "expand", "broadcast_to", "repeat", "unflatten",
    "zeros", "ones", "empty", "new_zeros", "new_ones", "new_empty",
}  # fmt: skip
_FILLED = {"full", "new_full"}
# Of a tensor, what tells how many samples there are.
_OF_SIZE = ("shape", "size", "numel", "nelement", "nbytes", "stride", "storage_offset", "__len__")

Given = tuple[str, list[Any]]  # a call's name, and its arguments beside tensors and shapes


class Final(NotLowered):
    """No other way of capturing can help."""


class Graph(torch.fx.GraphModule):
    """A graph to be interpreted: no Python code is made of it."""

    def recompile(self) -> Any:
        return None


# Functions that look into their arguments; they stand in the graph as one call.
_WHOLE_FUNCTIONS = (rnn.pack_padded_sequence, rnn.pad_packed_sequence)


_UNPACK, _MORE = dis.opmap["UNPACK_SEQUENCE"], dis.EXTENDED_ARG


class _Unpacked:
    """Of a proxy: ``a, b = x`` without a look at all instructions of the code around it."""

    def __iter__(self: Any) -> Iterator[Any]:
        frame = sys._getframe(1)
        code, at = frame.f_code.co_code, frame.f_lasti
        if code[at] != _UNPACK:
            found: Iterator[Any] = self.tracer.iter(self)
            return found
        count, shift = code[at + 1], 0
        while at >= 2 and code[at - 2] == _MORE:
            at, shift = at - 2, shift + 8
            count |= code[at + 1] << shift
        return (self[i] for i in range(count))

    def __getattr__(self: Any, k: str) -> Any:
        return _Attribute(self, k)


class _Proxy(_Unpacked, torch.fx.Proxy):
    pass


class _Attribute(_Unpacked, torch.fx.proxy.Attribute):
    pass


class _Tracer(torch.fx.Tracer):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(autowrap_functions=_WHOLE_FUNCTIONS)
        kinds = {kind for m in model.modules() for kind in type(m).__mro__}
        names = {kind.__module__ for kind in kinds}
        # torch's own modules have none of these functions but where they are made.
        names = {n for n in names if n.partition(".")[0] not in ("torch", "builtins")}
        self._autowrap_search += [
            sys.modules[name]
            for name in sorted({"torch.nn.utils.rnn", *names})
            if name in sys.modules
        ]
        self._names = {id(p): (name, p) for name, p in reversed([*model.named_parameters()])}

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As torch's, which goes through all parameters of the model at every use of one."""
        name, of = self._names.get(id(attr_val), ("", None))
        if of is None or of is not attr_val:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _WHOLE) or type(m) in _WHOLE_THEMSELVES

    def to_bool(self, obj: torch.fx.Proxy) -> bool:
        if _reads_values(obj.node):
            raise Final(
                "the forward pass could not be captured: it decides on the values of its tensors, "
                "or on whether they require a gradient"
            )
        return super().to_bool(obj)


def _reads_values(node: torch.fx.Node) -> bool:
    """Whether the node's value depends on more than the shapes of tensors."""
    if node.op in ("placeholder", "get_attr", "call_module"):
        return True
    name = call_name(node)
    if name in _OF_SHAPE or (name == "getattr" and node.args[1] in _OF_SHAPE):
        return False
    return any(map(_reads_values, node.all_input_nodes))


@contextmanager
def refused(how: str) -> Iterator[None]:
    """Turns whatever the module's code or its lowering raises into NotLowered, with its first line;
    out of memory and Ctrl-C pass. Ends transforms of torch.func that a failure left at work."""
    try:
        with _transforms_undone():
            yield
    except NotLowered:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise NotLowered(f"{how}: {first_line(error)}") from error


def check_example(model: nn.Module, example: Tensor) -> None:
    """Raises Final for a model that does not take so few samples as are traced."""
    with restored_attributes(model), torch.no_grad():
        try:
            model(example)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise Final(
                f"the forward pass does not run on another number of samples ({len(example)}) "
                f"than in a batch of the data: {first_line(error)}"
            ) from error


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
        if isinstance(table, dict)  # which a compiled module (TorchScript) has not
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


def trace(
    model: nn.Module, example: Tensor, how: str, sizes: Sequence[int] = ()
) -> torch.fx.GraphModule:
    """The graph of ``model(example)`` in eval mode, by "fx" or by "export".

    The graph's parameters and buffers are the model's own tensors. What its code notes of tracers
    outside of it goes. ``sizes``: of the batches that the model will see; how many samples a batch
    has may decide shapes, no values.

    Raises:
        NotLowered: the tracer fails, or values depend on the size of a batch.
        Final: no other tracer can succeed.
    """
    notes = Outside([model]).undone()
    with restored_attributes(model), notes, refused(how), torch.no_grad():
        if how == "fx":
            graph = _Tracer(model).trace(model)
            if any(node.target == "register_hook" for node in graph.nodes):
                raise Final("the forward pass hooks gradients")
            found = Graph(model, graph)
            if any(map(_reads_sizes, graph.nodes)):
                one_more = torch.cat([example, example[:1]])
                _compare_calls(_Calls(found).of(example), _Calls(found).of(one_more))
            return found
        different = sorted({*sizes} - {len(example)})
        if len(different) > _MOST_SIZES:
            raise NotLowered(f"batches of {len(different)} sizes, at most {_MOST_SIZES} are tried")
        with _silent():
            program = torch.export.export(model, (example,), strict=False)
            others = [_exported(model, example, size) for size in different]
        for other in others:
            _compare_calls(_calls_in(program.graph), _calls_in(other.graph))
        return _with_own_tensors(program, model)


def _exported(model: nn.Module, example: Tensor, size: int) -> Any:
    """For so many samples, of which nothing is read."""
    samples = example.new_empty(size, *example.shape[1:])
    return torch.export.export(model, (samples,), strict=False)


def _reads_sizes(node: torch.fx.Node) -> bool:
    name = call_name(node)
    return name in _OF_SIZE or (name == "getattr" and node.args[1] in _OF_SIZE)


class _Calls(torch.fx.Interpreter):
    """What the calls of a graph that give tensors are given beside tensors and shapes."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: list[Given] = []

    def of(self, example: Tensor) -> list[Given]:
        self.run(example)
        return self.found

    def run_node(self, n: torch.fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value = getattr(self, n.op)(n.target, args, kwargs)
        if n.op != "output" and not _is_shape(value):
            self.found.append(_given(n, args, kwargs))
        return value


def _is_shape(value: Any) -> bool:
    """Whether it is a number or numbers: no tensor is among it."""
    if isinstance(value, tuple | list):
        return all(map(_is_shape, value))
    return isinstance(value, int | float)


def _calls_in(graph: torch.fx.Graph) -> list[Given]:
    """The same of a graph that has all numbers in it."""
    return [_given(n, n.args, n.kwargs) for n in graph.nodes if n.op != "output"]


def _given(node: torch.fx.Node, args: Any, kwargs: Any) -> Given:
    name = call_name(node)
    found: list[Any] = []

    def take(value: Any) -> None:
        if isinstance(value, slice):
            value = (value.start, value.stop, value.step)
        if isinstance(value, tuple | list):
            for each in value:
                take(each)
        elif isinstance(value, int | float | str):
            found.append(value)

    for value in () if name in _SHAPED else (*args, *kwargs.values()):
        if name not in _FILLED or not isinstance(value, tuple | list):
            take(value)
    return name, found


def _compare_calls(one: list[Given], other: list[Given]) -> None:
    """Of the same graph, or the same model, for two numbers of samples."""
    if one == other:
        return
    where = "the code takes another way"
    if [name for name, _ in one] == [name for name, _ in other]:
        where = next(a[0] for a, b in zip(one, other, strict=True) if a != b)
    raise NotLowered(f"values that depend on how many samples a batch has: {where}")


def call_name(node: torch.fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1]
    return getattr(node.target, "__name__", str(node.target))


@contextmanager
def _transforms_undone() -> Iterator[None]:
    """Ends the transforms of torch.func that a graph began and left at work when it failed."""
    functorch: Any = getattr(torch._C, "_functorch", None)

    def depth() -> int:
        return len(functorch.get_interpreter_stack() or ())

    before = depth() if functorch is not None else 0
    try:
        yield
    finally:
        while functorch is not None and depth() > before:
            functorch.pop_dynamic_layer_stack()


@contextmanager
def _silent() -> Iterator[None]:
    """Without what export writes about code that it cannot follow: warnings, logs, stderr."""
    said = logging.getLogger("torch")
    level, disabled = said.level, []
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        if name.startswith("torch.") and not logger.disabled:
            logger.disabled = True
            disabled.append(logger)
    said.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        said.setLevel(level)
        for logger in disabled:
            logger.disabled = False


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
    return Graph(model, graph)


def first_line(error: BaseException) -> str:
    """Its type and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
