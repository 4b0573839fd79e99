"""Lowers a captured graph to the compiled program.

The graph is run once on a few samples; beside each concrete value stands its lowered form: a
``Slot`` of the program, a ``Fixed`` tensor of the model, a tuple of them, or a plain Python value.
``OPS`` holds one handler per torch call, under the call's name (function, method and ATen overload
alike), with torch's own argument names; the other files of this package fill it.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from .._native import core
from ..errors import NotLowered, UnknownOp
from .capture import call_name
from .of_data import NOT_OF_SAMPLES, TAKE_DATA, DataRows, Needed, calls_before, how_computed
from .recorded import Recorded
from .values import (
    TAKE_KNOWN,
    Computed,
    Fixed,
    Handler,
    Known,
    Merged,
    OfData,
    Packed,
    Shape,
    Slot,
    Unread,
    counting,
    is_repeated,
)


class Lowering(torch.fx.Interpreter):
    """Runs the graph and builds the program beside it; ``result`` is the network's result."""

    def __init__(
        self,
        graph: torch.fx.GraphModule,
        program: Recorded,
        sources: Mapping[int, int],
        collect: bool = False,
        trains: bool = False,
        rows: Sequence[DataRows] = (),
        whole: Sequence[int] = (),
    ) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.graph_module = graph
        self.data_rows = rows  # values of the data behind the inputs
        self.whole = whole  # rows of packed inputs that are whole numbers
        self.input = -1  # the slot of both
        self.data_nodes: set[torch.fx.Node] = set()  # whose values the inputs alone decide
        self.program = program
        self.collect = collect  # batch norm computes its running statistics
        self.trains = trains  # as in train mode: it moves them, and dropout drops
        self.dropouts = 0  # so far
        self.sources = sources  # id(tensor) -> source
        self.lowered: dict[torch.fx.Node, Any] = {}
        self.samples = 0
        self.computed = 0  # elements of the largest parameter that the forward pass computes
        self.trace_dtype = torch.float32
        self.inputs = 0
        self.ids: int | None = None  # the input's slot where that holds integers
        self.id_rows: set[int] | None = None  # which of its rows do; None: all
        self.parts: dict[int, list[tuple[int, int, int]]] = {}  # of joined slots: slot, row, rows
        self.result: Slot | None = None
        self.merged = False  # whether the traced result is that of a Merged
        self.names: list[str] = []
        self._covering: dict[int, tuple[Tensor, bool]] = {}
        self._how: dict[torch.fx.Node, str] = {}
        self._refused: dict[torch.fx.Node, str] = {}  # why a value of the data is torch's

    def run_node(self, n: torch.fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value = getattr(self, n.op)(n.target, args, kwargs)
        self.lowered[n] = self._lower(n, value)
        return value

    def _lower(self, node: torch.fx.Node, value: Any) -> Any:
        if node.op == "placeholder":
            return self._lower_input(node, value)
        if node.op == "get_attr":
            if not isinstance(value, Tensor):
                raise NotLowered(f"attribute {node.target!r} is not a tensor")
            if id(value) not in self.sources:
                return Known(value)
            return Fixed(self.sources[id(value)], tuple(value.shape), value.numel())
        name = call_name(node)
        of_data = node.op in ("call_function", "call_method") and self._is_of_data(node, name)
        given = self.lowered.__getitem__ if of_data or name == "embedding" else self._given
        args: Any = torch.fx.node.map_arg(node.args, given)
        kwargs: Any = torch.fx.node.map_arg(node.kwargs, given)
        if node.op == "output":
            self.result = self._output(args[0])
            return self.result
        tensors = [v for v in _flat(value) if v is not None]
        if not tensors or not all(isinstance(v, Tensor) for v in tensors):
            if of_data and name in _NUMBERS:
                raise NotLowered(f"op {name!r} makes Python numbers of the data")
            return value  # sizes and other Python values; checked by the comparison with the module
        if of_data:
            self.data_nodes.add(node)
            if any(isinstance(a, OfData) for a in _flat((args, kwargs))):
                return OfData(node, value)
        if name == "getitem" and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        function: Any = node.target
        if node.op == "call_module":
            function = self.fetch_attr(str(node.target))
            name = type(function).__name__
        elif node.op == "call_method":
            function = partial(_call_method, str(node.target))
        for a in _flat((args, kwargs)):
            if isinstance(a, Unread):
                raise NotLowered(f"op {name!r} reads {a.what}")
        handler = OPS.get(name)
        if handler not in TAKE_DATA:
            args, kwargs = torch.fx.node.map_aggregate((args, kwargs), partial(self._rows, name))
        known = node.op != "call_module" and self._is_known((args, kwargs))
        if known and (handler is None or any(isinstance(a, Known) for a in _flat((args, kwargs)))):
            return Known(value.clone() if isinstance(value, Tensor) else value)
        if handler is None:
            refusal = UnknownOp(f"op {name!r} is not in the native engine")
            if not of_data:
                raise refusal
            self._refused[node] = refusal.reason
            return OfData(node, value)
        if handler not in TAKE_KNOWN:
            args, kwargs = torch.fx.node.map_aggregate((args, kwargs), self._constants)
        try:
            return self._handled(node, handler, name, value, function, args, kwargs)
        except Needed:
            raise
        except NotLowered as refusal:
            if not of_data:
                raise
            self._refused[node] = refusal.reason
            return OfData(node, value)

    def _handled(
        self,
        node: torch.fx.Node,
        handler: Handler,
        name: str,
        value: Any,
        function: Any,
        args: Any,
        kwargs: Any,
    ) -> Any:
        """The handler's result, checked; an in-place op's is every earlier name's."""
        known = node.op != "call_module" and self._is_known((args, kwargs))
        try:
            lower: Any = partial(_merged, handler) if _has_merged((args, kwargs), name) else handler
            result = lower(Call(self, name, value, function), *args, **kwargs)
        except Needed:
            raise
        except NotLowered:
            if known:  # not a view of a buffer
                return Known(value)
            if name not in _COMPUTABLE or not _of_parameters((args, kwargs)):
                raise
            result = self._computed(handler, Call(self, name, value, function), args, kwargs)
        except TypeError as error:  # an argument that the handler does not take
            raise NotLowered(f"op {name!r}: unsupported arguments ({error})") from error
        if self.ids is not None and name != "embedding":
            given = any(map(self._holds_ids, _flat((args, kwargs))))
            if given and not all(isinstance(r, Slot) and r.id == self.ids for r in _flat(result)):
                raise NotLowered(f"op {name!r} reads the integer input, as only embedding may")
        self._check(name, value, result)
        self.names.append(name)
        in_place = _in_place(node, name) or (self.trains and _drops_in_place(node, name))
        return self._rebind(node, result) if in_place else result

    def _is_of_data(self, node: torch.fx.Node, name: str) -> bool:
        """Whether the inputs alone decide the node's value."""
        before = node.all_input_nodes
        return (
            name not in _OF_SEQUENCES
            and any(n in self.data_nodes for n in before)
            and all(n in self.data_nodes or self._is_known(self.lowered[n]) for n in before)
        )

    def _given(self, node: torch.fx.Node) -> Any:
        """The node's value for a call with others: whole numbers of the data are taken as such."""
        lowered, value = self.lowered[node], self.env[node]
        whole = isinstance(value, Tensor) and not value.is_floating_point()
        if node in self.data_nodes and isinstance(lowered, Slot) and whole:
            return OfData(node, value)
        return lowered

    def _rows(self, name: str, x: Any) -> Any:
        """The rows of a value of the data, for a call that takes no others."""
        if not isinstance(x, OfData):
            return x
        slot = self.data_slot(x)
        if name == "embedding" and not x.value.is_floating_point():
            self.hold_ids(slot)
        return slot

    def data_slot(self, x: OfData, form: str = "value", number: float = 0.0) -> Slot:
        """The rows of x in a form that of_data.py has. Raises Needed where they are not there."""
        if not isinstance(x.value, Tensor):
            raise NotLowered("several values of the data at once")
        if x.node not in self._how:
            self._how[x.node] = how_computed(x.node)
        key = self._how[x.node], form, float(number)
        for rows in self.data_rows:
            if rows.key == key:
                return rows.slot(self.input)
        axes = [d for d, n in enumerate(x.value.shape) if n == self.samples]
        if not axes:
            without = (n for n in calls_before(x.node) if self._has_no_samples(n))
            raise NotLowered(f"{self._not_lowered(next(without, x.node))}: {NOT_OF_SAMPLES}")
        raise Needed(x.node, key, axes, self.graph_module, self._not_lowered)

    def _has_no_samples(self, node: torch.fx.Node) -> bool:
        value = self.env.get(node) if node in self.data_nodes else None
        return isinstance(value, Tensor) and self.samples not in value.shape

    def _not_lowered(self, node: torch.fx.Node) -> str:
        """A call of the data alone, and why it is none of the program."""
        return self._refused.get(node, f"op {call_name(node)!r}")

    def hold_ids(self, x: Slot) -> None:
        """Notes that x is of rows of the input that hold integers."""
        self.ids = x.id
        self.id_rows = (self.id_rows or set()) | set(self.rows(x).reshape(-1).tolist())

    def _holds_ids(self, x: Any) -> bool:
        if not isinstance(x, Slot) or x.id != self.ids:
            return False
        return self.id_rows is None or not self.id_rows.isdisjoint(self.rows(x).flatten().tolist())

    def all_ids(self, x: Slot) -> bool:
        """Whether all of x are integers of the model's input."""
        if x.id != self.ids:
            return False
        return self.id_rows is None or self.id_rows.issuperset(self.rows(x).flatten().tolist())

    def _is_known(self, args: Any) -> bool:
        """Whether these are the same at every point, and so is a call with them as arguments."""
        return all(
            not isinstance(a, Slot | Merged | Unread | OfData | Packed)
            and not (isinstance(a, Fixed) and a.source >= 0)
            for a in _flat(args)
        )

    def _constants(self, x: Any) -> Any:
        """Numbers that an op may compute with, as constants of the program."""
        known = isinstance(x, Known) and x.value.is_floating_point() and x.value.dim() > 0
        return self.constant(x) if known else x

    def constant(self, known: Known) -> Fixed:
        values = known.value.detach().double().contiguous()
        source = self.program.constants(values.numel(), values)
        return Fixed(source, tuple(values.shape), values.numel())

    def _computed(self, handler: Handler, call: Call, args: Any, kwargs: Any) -> Computed:
        """A call with parameters alone, lowered as if each of the samples had its own."""
        if call.value.numel() > _MOST_COMPUTED:
            raise call.refuse(f"{call.value.numel()} elements of a computed parameter")
        self.computed = max(self.computed, call.value.numel())
        rank = call.value.dim() if call.name in _OF_ELEMENTS else None

        def with_samples(x: Any) -> Any:
            if not isinstance(x, Fixed):
                return x
            if not isinstance(x, Computed):
                index = x.elements()
                found = self.program.expand(x.source, x.size, index.reshape(-1).tolist())
                x = Computed(found, x.shape, index.numel())
            return x.slot(rank)

        if call.name in _OVER_DIMS:
            args, kwargs = _dims_behind_the_batch(handler, call, args, kwargs)
        args, kwargs = torch.fx.node.map_aggregate((args, kwargs), with_samples)
        value = torch.empty(self.samples, *call.value.shape, device="meta")
        result = handler(Call(self, call.name, value, call.function), *args, **kwargs)
        if not isinstance(result, Slot) or result.axis != 0:
            raise call.refuse("a parameter that is computed so")
        return Computed(result.id, result.shape, self.program.features(result.id), result.index)

    def _lower_input(self, node: torch.fx.Node, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value  # an argument left at its default
        self.inputs += 1
        if self.inputs > 1:
            raise NotLowered("the model takes more than one input")
        if value.dim() < 1:
            raise NotLowered("the input has no batch dimension")
        self.samples = value.shape[0]
        shape = tuple(value.shape[1:])
        x = Slot(self.program.input(prod(shape)), shape)
        self.input = x.id
        self.data_nodes.add(node)
        if value.is_floating_point():
            self.trace_dtype = value.dtype
        else:
            self.ids = x.id
        if self.whole:
            self.ids, self.id_rows = x.id, set(self.whole)
        return x

    def _output(self, result: Any) -> Slot:
        if isinstance(result, Merged):
            self.merged, result = True, result.slot
        if not isinstance(result, Slot) or result.axis != 0:
            raise NotLowered("the model does not return one tensor with a row per sample")
        return result if self.order(result) is not None else self.in_order(result)

    def _check(self, name: str, value: Any, result: Any) -> None:
        """The lowered result must have the traced one's shape, with the batch where it says."""
        if isinstance(result, list | tuple):
            if len(result) != len(value):
                raise NotLowered(f"op {name!r} gives {len(value)} results")
            for v, r in zip(value, result, strict=True):
                self._check(name, v, r)
        elif isinstance(result, Fixed):
            if tuple(value.shape) != result.shape:
                raise NotLowered(f"op {name!r} gives shape {tuple(value.shape)}")
        elif isinstance(result, Merged):
            if len(value) % self.samples:
                raise NotLowered(f"op {name!r} gives shape {tuple(value.shape)}")
            self._check(name, value.unflatten(0, (self.samples, -1)), result.slot)
        elif isinstance(result, Slot):
            shape = (*result.shape[: result.axis], self.samples, *result.shape[result.axis :])
            if tuple(value.shape) != shape:
                raise NotLowered(
                    f"op {name!r} gives shape {tuple(value.shape)}: it mixes samples, or has no "
                    "batch dimension"
                )
            integer = result.id == self.ids and not value.is_floating_point()
            if value.dtype != self.trace_dtype and not integer:
                raise NotLowered(
                    f"op {name!r} gives {value.dtype} where the input is {self.trace_dtype}"
                )

    def _rebind(self, node: torch.fx.Node, result: Slot) -> Slot:
        """After an in-place op every earlier name of the same memory means the new value."""
        target: Any = node.args[0]
        before = self.lowered[target]
        if isinstance(before, Known):
            return self._rebind_known(target, result)
        if not isinstance(before, Slot) or not self.covers(before):
            raise NotLowered("an in-place op on a part of a tensor")
        result = self.reordered(result, before)
        memory = self.env[target].untyped_storage().data_ptr()
        for other, value in self.env.items():
            known = self.lowered.get(other)
            if (
                isinstance(value, Tensor)
                and isinstance(known, Slot)
                and value.untyped_storage().data_ptr() == memory
            ):
                if known.id != before.id:
                    raise NotLowered("an in-place op on memory that several values share")
                self.lowered[other] = Slot(result.id, known.shape, known.axis, known.index)
        return result

    def _rebind_known(self, target: torch.fx.Node, result: Slot) -> Slot:
        """The same where a constant is written to, such as new zeros."""
        memory = self.env[target].untyped_storage().data_ptr()
        for other, value in self.env.items():
            if not isinstance(value, Tensor) or value.untyped_storage().data_ptr() != memory:
                continue
            if other not in self.lowered:  # the call itself
                continue
            same = (
                value.shape == self.env[target].shape
                and value.stride() == self.env[target].stride()
            )
            if not same or not isinstance(self.lowered[other], Known):
                raise NotLowered("an in-place op on memory that several values share")
            self.lowered[other] = result
        return result

    # Rows and elements

    def rows(self, x: Slot) -> Tensor:
        """The row of each element, of ``shape``."""
        return counting(prod(x.shape)).view(x.shape) if x.index is None else x.index

    def covers(self, x: Slot) -> bool:
        """Whether x shows every row of its slot exactly once."""
        size = self.program.features(x.id)
        if prod(x.shape) != size or x.index is None:
            return prod(x.shape) == size
        known = self._covering.get(id(x.index))
        if known is None:  # the index is kept, so that its id stays its own
            known = self._covering[id(x.index)] = (x.index, _are_all(x.index, size))
        return known[1]

    def order(self, x: Slot) -> Shape | None:
        """The order of x's dimensions in which its elements stand in rows 0, 1, ...; or None."""
        if x.index is None:
            return tuple(range(len(x.shape)))
        steps = [
            int((x.index.select(d, 1) - x.index.select(d, 0)).reshape(-1)[0]) if n > 1 else 0
            for d, n in enumerate(x.shape)
        ]
        order = tuple(sorted(range(len(steps)), key=lambda d: -steps[d]))
        rows = x.index.permute(order).reshape(-1)
        whole = torch.equal(rows, counting(self.program.features(x.id)))
        return order if whole else None

    def ordered(self, id: int, shape: Shape, axis: int, order: Sequence[int]) -> Slot:
        """All of slot `id`, whose rows run through the dimensions in `order`, the last fastest."""
        index = counting(prod(shape)).view([shape[d] for d in order])
        back = [order.index(d) for d in range(len(order))]
        plain = list(order) == sorted(order)
        return Slot(id, shape, axis, None if plain else index.permute(back))

    def in_dims(self, x: Slot, order: Sequence[int]) -> Slot:
        """x with its elements in rows 0, 1, ..., its dimensions taken in `order`."""
        like = self.ordered(x.id, x.shape, x.axis, order)
        return self.gathered(x, self.rows(x).permute(*order).reshape(-1), like.index)

    def same_rows(self, x: Slot, y: Slot) -> bool:
        """Whether equal elements of x and y stand in equal rows."""
        if x.index is None and y.index is None:
            return x.shape == y.shape
        return torch.equal(self.rows(x), self.rows(y))

    def in_order(self, x: Slot) -> Slot:
        """x with its elements in rows 0, 1, ... of its slot."""
        return self.gathered(x, self.rows(x).reshape(-1), None)

    def block(self, x: Slot) -> tuple[int, int]:
        """A slot and its first row from which on x's elements stand in order; copied if need be."""
        rows = self.rows(x).reshape(-1)
        first = int(rows[0]) if rows.numel() else 0
        if not torch.equal(rows, counting(rows.numel()) + first):
            return self.in_order(x).id, 0
        for id, row, count in self.parts.get(x.id, []):
            if first + rows.numel() <= count:
                return id, row + first
            if first < count:
                break  # in several parts
            first -= count
        return x.id, int(rows[0]) if rows.numel() else 0

    def rows_from(self, id: int, first: int, count: int) -> Slot:
        """Some rows of a slot, as a vector per sample."""
        whole = count == self.program.features(id)
        return Slot(id, (count,), 0, None if whole else counting(count) + first)

    def join(self, parts: Sequence[tuple[int, int, int]], shape: Shape, axis: int) -> Slot:
        """Rows of slots (slot, first row, how many), one after the other."""
        found = self.program.join([p[0] for p in parts], [p[1:] for p in parts])
        self.parts[found] = list(parts)
        return Slot(found, shape, axis)

    def reordered(self, x: Slot, like: Slot) -> Slot:
        """x with each element in the row where `like`, which covers its slot, has it."""
        if self.same_rows(x, like) and self.covers(x):
            return x
        order = torch.argsort(self.rows(like).reshape(-1))
        return self.gathered(x, self.rows(x).reshape(-1)[order], like.index)

    def gathered(self, x: Slot, rows: Tensor, index: Tensor | None, fill: float = 0.0) -> Slot:
        """A slot whose row r is row rows[r] of x's, shown by ``index``; x's own if it is that."""
        if torch.equal(rows, counting(self.program.features(x.id))):
            return Slot(x.id, x.shape, x.axis, index)
        rows = rows.contiguous()
        found = self.program.gather(x.id, rows.numel(), rows, float(fill))
        return Slot(found, x.shape, x.axis, index)

    def full(self, x: Slot | Merged) -> Tensor:
        """Row + sample * features of every element of the traced tensor."""
        if isinstance(x, Merged):
            return self.full(x.slot).flatten(0, 1)
        size = self.program.features(x.id)
        return torch.stack([self.rows(x) + s * size for s in range(self.samples)], dim=x.axis)

    def from_full(self, x: Slot, full: Tensor, fill: float = 0.0) -> Slot:
        """The view of x that `full` describes; FILL stands for the constant."""
        size = self.program.features(x.id)
        whole = not full.numel() or int(full.min()) >= 0  # without constants
        for axis in range(full.dim()):
            if full.shape[axis] != self.samples:
                continue
            first, *rest = full.unbind(axis)
            if bool((first < size).all()) and all(
                torch.equal(torch.where(r >= 0, own, r) if not whole else own, first)
                for s, r in enumerate(rest)
                for own in (r - (s + 1) * size,)
            ):
                shape = tuple(first.shape)
                if not bool((first >= 0).all()):
                    where = Slot(x.id, shape, axis)
                    return self.gathered(where, first.reshape(-1), None, fill)
                plain = first.numel() == size and torch.equal(first.reshape(-1), counting(size))
                return Slot(x.id, shape, axis, None if plain else first)
        raise NotLowered("a view that mixes samples")

    def shown(self, x: Slot | Merged, full: Tensor, fill: float = 0.0) -> Slot | Merged:
        """The same, where the samples may have been merged with a dimension after them."""
        slot = x.slot if isinstance(x, Merged) else x
        try:
            return self.from_full(slot, full, fill)
        except NotLowered:
            if full.dim() == 0 or len(full) == 0 or len(full) % self.samples:
                raise
            found = self.from_full(slot, full.unflatten(0, (self.samples, -1)), fill)
            if found.axis != 0:
                raise
            return Merged(found)


@dataclass(frozen=True)
class Call:
    """What a handler may use: the lowering, the op's name, the traced value, what was called."""

    lowering: Lowering
    name: str
    value: Any
    function: Any

    @property
    def program(self) -> Recorded:
        return self.lowering.program

    def refuse(self, why: str) -> NotLowered:
        return NotLowered(f"op {self.name!r}: {why}")

    def rows(self, x: Any) -> Any:
        """x, but for a value of the data the rows that it has in the program's input."""
        return self.lowering.data_slot(x) if isinstance(x, OfData) else x

    def view(self, x: Any) -> Slot:
        """x as it stands: perhaps a view, perhaps with its rows in another order."""
        if not isinstance(x, Slot):
            raise self.refuse("an operand that is not computed from the input")
        return x

    def slot(self, x: Any) -> Slot:
        """x with its elements in the order of its rows."""
        return self.lowering.in_order(self.view(x))

    def fixed(self, x: Any) -> Fixed:
        """A parameter or buffer whose elements are all there in order."""
        if not isinstance(x, Fixed) or isinstance(x, Computed) or x.index is not None:
            raise self.refuse("weights that are computed, not parameters")
        return x

    def source(self, x: Any) -> int | None:
        """Where a parameter or buffer is; None stays None."""
        return None if x is None else self.fixed(x).source

    def dim(self, x: Slot, d: Any) -> int:
        """Dimension d of the traced tensor as one of x.shape."""
        found = x.dim(d) if isinstance(d, int) else None
        if found is None:
            raise self.refuse("over the batch dimension, or no dim given")
        return found

    def unary(self, x: Any, f: str, a: float = 0.0, b: float = 0.0) -> Slot:
        x = self.view(x)
        if not self.lowering.covers(x):
            x = self.slot(x)
        found = self.program.unary(x.id, getattr(core.Unary, f), float(a), float(b))
        return Slot(found, x.shape, x.axis, x.index)

    def binary(self, f: str, x: Any, y: Any) -> Slot:
        """x op y, broadcast to the traced shape; at least one of them a slot."""
        a, b = self.pair(x, y)
        found = self.program.binary(getattr(core.Binary, f), a.id, b.id)
        return Slot(found, a.shape, a.axis, a.index)

    def pair(self, x: Any, y: Any) -> tuple[Slot, Slot]:
        """Both broadcast to the traced shape, with equal elements in equal rows."""
        x, y = self._broadcast(x), self._broadcast(y)
        like = next((s for s in (x, y) if isinstance(s, Slot) and self.lowering.covers(s)), None)
        if like is None:
            like = self.slot(x if isinstance(x, Slot) else y)
        return self.placed(x, like), self.placed(y, like)

    def _broadcast(self, x: Any) -> Slot | Fixed:
        shape = self.value.shape
        if isinstance(x, Slot):
            if len(x.shape) + 1 == len(shape) and (
                shape[x.axis] == self.lowering.samples
                and tuple(shape[: x.axis]) + tuple(shape[x.axis + 1 :]) == x.shape
            ):
                return x
            return self.lowering.from_full(x, self.lowering.full(x).broadcast_to(shape))
        if isinstance(x, Known):
            x = self.lowering.constant(Known(_without_repeats(x.value)))
        if isinstance(x, Fixed):
            return x.view(x.elements().broadcast_to(shape))
        raise self.refuse("an operand that is no tensor")

    def placed(self, x: Slot | Fixed, like: Slot) -> Slot:
        """x with every element in the row where `like` has it."""
        if isinstance(x, Slot):
            if x.axis != like.axis:
                raise self.refuse("operands with their batches in different dimensions")
            return self.lowering.reordered(x, like)
        first, *rest = x.elements().unbind(like.axis)
        if not all(torch.equal(first, r) for r in rest):
            raise self.refuse("a fixed operand with a batch dimension")
        if isinstance(x, Computed):
            return self.lowering.reordered(
                Slot(x.source, tuple(first.shape), like.axis, first), like
            )
        order = torch.argsort(self.lowering.rows(like).reshape(-1))
        index = first.reshape(-1)[order].tolist()
        found = self.program.expand(x.source, x.size, index)
        return Slot(found, like.shape, like.axis, like.index)


def _without_repeats(x: Tensor) -> Tensor:
    """x with size 1 in the dimensions along which it is the same, which the batch may be."""
    for d in range(x.dim()):
        if is_repeated(x, d):
            x = x.narrow(d, 0, 1)
    return x


def _flat(value: Any) -> Iterator[Any]:
    """The leaves of nested lists, tuples and dictionaries."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


def _are_all(index: Tensor, size: int) -> bool:
    """Whether its ``size`` numbers are 0 to size - 1, in any order."""
    numbers = index.reshape(-1)
    if size and (int(numbers.min()) < 0 or int(numbers.max()) >= size):
        return False
    there = torch.zeros(size, dtype=torch.bool)
    there[numbers] = True
    return bool(there.all())


def _of_parameters(values: Any) -> bool:
    """Whether of tensors there are parameters alone."""
    leaves = list(_flat(values))
    return any(isinstance(v, Fixed) for v in leaves) and not any(
        isinstance(v, Slot | Merged | Unread) for v in leaves
    )


def _dims_behind_the_batch(handler: Handler, call: Call, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments with each dimension, all where none is given, as of tensors with a batch."""
    bound = inspect.signature(handler).bind(call, *args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    rank = next(len(v.shape) for v in _flat((args, kwargs)) if isinstance(v, Fixed))
    dim = given["dim"] if given.get("axis") is None else given["axis"]
    over = range(rank) if dim is None else (dim,) if isinstance(dim, int) else dim
    behind = tuple(d % rank + 1 for d in over)
    given["dim"] = behind[0] if isinstance(dim, int) else behind
    if "axis" in given:
        given["axis"] = None
    return bound.args[1:], bound.kwargs


def _has_merged(values: Any, name: str) -> bool:
    found = any(isinstance(v, Merged) for v in _flat(values))
    if found and name not in _OF_ROWS | _VIEWS:
        raise NotLowered(f"op {name!r} on samples that are merged with another dimension")
    return found and name in _OF_ROWS


def _merged(handler: Handler, call: Call, *args: Any, **kwargs: Any) -> Merged:
    """The handler's result for the tensors as they were with samples and rows apart."""
    value = call.value.unflatten(0, (call.lowering.samples, -1))
    if call.name in _OF_A_DIM:
        dim = kwargs.pop("dim") if "dim" in kwargs else args[1]
        dim %= call.value.dim()
        if dim == 0:
            raise call.refuse("over the batch dimension")
        args = (args[0], dim + 1, *args[2:])
    if any(isinstance(a, Slot) for a in _flat((args, kwargs))):
        raise call.refuse("samples that are merged with another dimension, and ones that are not")
    args, kwargs = torch.fx.node.map_aggregate(
        (args, kwargs), lambda a: a.slot if isinstance(a, Merged) else a
    )
    result = handler(Call(call.lowering, call.name, value, call.function), *args, **kwargs)
    if not isinstance(result, Slot) or result.axis != 0:
        raise call.refuse("samples that are merged with another dimension")
    return Merged(result)


def _call_method(name: str, x: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(x, name)(*args, **kwargs)


# Calls that treat the rows of the last dimension (or that of `dim`) alone.
_OF_A_DIM = {"softmax", "_softmax", "log_softmax", "_log_softmax"}
_OF_ROWS = _OF_A_DIM | {
    "linear", "layer_norm", "dropout", "relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu",
    "softplus", "elu", "selu", "add", "sub", "mul", "div", "truediv", "to", "contiguous", "clone",
    "hardswish", "hardsigmoid", "hardtanh", "relu6", "mish", "softsign", "logsigmoid", "celu",
    "threshold", "square", "pow", "abs", "exp", "log", "log1p", "sqrt", "rsqrt", "reciprocal",
    "sin", "cos", "erf", "neg", "clamp", "rms_norm",
}  # fmt: skip
# Calls that parameters alone may go through, elementwise or over `dim`, and what may come out.
_OF_ELEMENTS = {
    "relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "softplus", "elu", "selu", "hardswish",
    "hardsigmoid", "hardtanh", "relu6", "mish", "softsign", "logsigmoid", "celu", "threshold",
    "square", "pow", "abs", "exp", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "sin", "cos",
    "erf", "neg", "clamp", "add", "sub", "mul", "div", "truediv", "radd", "rsub",
}  # fmt: skip
_OVER_DIMS = {
    "mean", "sum", "var", "std", "softmax", "log_softmax", "normalize", "norm",
    "linalg_vector_norm",
}  # fmt: skip
_COMPUTABLE = _OF_ELEMENTS | _OVER_DIMS | {"matmul", "mm", "__matmul__"}
_MOST_COMPUTED = 1 << 16  # elements: each tile of samples computes them anew
_VIEWS = {"view", "reshape", "unflatten", "_unsafe_view"}
# Calls that make Python numbers of a tensor, and those that take values of the data as they stand.
_NUMBERS = {"item", "tolist", "numpy"}
_OF_SEQUENCES = {"pack_padded_sequence", "pad_packed_sequence"}
_IN_PLACE_OPERATORS = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def _in_place(node: torch.fx.Node, name: str) -> bool:
    return (
        name.endswith("_") or bool(node.kwargs.get("inplace")) or node.target in _IN_PLACE_OPERATORS
    )


def _drops_in_place(node: torch.fx.Node, name: str) -> bool:
    return name.startswith("dropout") and len(node.args) > 3 and bool(node.args[3])


OPS: dict[str, Handler] = {}


def op(*names: str) -> Callable[[Handler], Handler]:
    """Registers a handler of the calls with these names."""

    def register(handler: Handler) -> Handler:
        for name in names:
            OPS[name] = handler
        return handler

    return register
