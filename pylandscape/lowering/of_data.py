"""What the forward pass computes of its inputs alone: masks, lengths, counts, positions.

No point moves such a value, so torch computes it once for every sample, by the module's own calls,
and the program reads it as more rows of its input. A handler gets an `OfData` for it; ``TAKE_DATA``
lists those that want it as it stands, all others get its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import NotLowered
from .capture import Final, Graph, refused
from .values import Handler, Slot, counting, is_repeated

_MOST_ROWS = 1 << 22  # numbers of the data in all, beside the inputs
Key = tuple[str, str, float]  # how it is computed, a form of its value, a number that this takes

NOT_OF_SAMPLES = "values of the data that are not one for each sample"


class _Mixes(Final):
    """A value of the data that a sample alone does not decide."""


TAKE_DATA: set[Handler] = set()


def _seen(x: Tensor, _: float) -> Tensor:
    return _all_see(torch.zeros(x.shape).masked_fill(~x, float("-inf")))


def _added(x: Tensor, _: float) -> Tensor:
    return _all_see(x)


def _all_see(scores: Tensor) -> Tensor:
    if bool(torch.isneginf(scores).all(-1).any()):
        raise Final("a mask of the data leaves a query without any key")
    return scores


def _steps(x: Tensor, steps: float) -> Tensor:
    if bool(((x < 1) | (x > steps)).any()):
        raise Final(f"lengths that are not 1 to {steps:g}")
    return counting(int(steps)) < x[:, None]


# What the rows hold of a value x, and a number v.
_FORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "value": lambda x, _: x,
    "not": lambda x, _: ~x.bool(),
    "number": lambda x, v: torch.zeros(x.shape).masked_fill(x.bool(), v),  # v where x is true
    "other": lambda x, v: torch.zeros(x.shape).masked_fill(~x.bool(), v),  # where it is false
    "seen": _seen,  # added to scores: -inf where x is false
    "hidden": lambda x, v: _seen(~x, v),  # the same where it is true
    "added": _added,  # scores themselves
    "steps": _steps,  # (N, v): whether step t comes before the length x
    "over": lambda x, steps: ~_steps(x, steps),
}


class Needed(NotLowered):
    """Rows that the program's input does not hold yet; whoever lowers adds them and begins anew."""

    def __init__(
        self,
        node: torch.fx.Node,
        key: Key,
        axes: Sequence[int],
        graph: torch.fx.GraphModule,
        not_lowered: Callable[[torch.fx.Node], str],
    ) -> None:
        super().__init__(f"values of the data alone ({node.name}), which are not prepared here")
        self.node, self.key, self.graph = node, key, graph
        self.axes = axes  # where the batch may be
        self.not_lowered = not_lowered  # names a call, and says why it is none of the program
        self.samples: int | None = None  # that the graph takes at once; None: any number


@dataclass(frozen=True)
class DataRows:
    """One value's rows behind those of the inputs, and the graph that computes them."""

    key: Key
    graph: torch.fx.GraphModule
    samples: int | None  # that it takes at once
    axis: int  # of the batch
    first: int
    shape: tuple[int, ...]  # of a sample
    stored: tuple[int, ...]  # the same, but 1 where it is one number repeated
    infinite: str | None  # the first call with values that are not finite

    @property
    def count(self) -> int:
        return prod(self.stored)

    def slot(self, input: int) -> Slot:
        index = (counting(self.count) + self.first).view(self.stored).expand(self.shape)
        return Slot(input, self.shape, self.axis, index)

    def of(self, inputs: Tensor) -> Tensor:
        """(N, count) for the packed inputs (N, rows) of a batch."""
        found = _formed(self.key, self.graph, self.samples, self.axis, inputs)
        if found.shape[1:] != self.shape:
            raise Final("values of the data whose shape depends on the data")
        return _first_of(found, self.stored)


def rows_of(need: Needed, batches: Iterable[Tensor], first: int) -> tuple[DataRows, Tensor]:
    """The rows that are needed, for all samples (N, count), each batch computed as the module does.

    Raises NotLowered for values that depend on more than a sample or on chance, and for more than
    fits.
    """
    graph = _part(need.graph, need.node)
    with torch.random.fork_rng(devices=[]):
        return _rows_of(need, graph, batches, first)


def _rows_of(
    need: Needed, graph: torch.fx.GraphModule, batches: Iterable[Tensor], first: int
) -> tuple[DataRows, Tensor]:
    found: list[Tensor] = []
    axis, infinite = need.axes[0], None
    for batch in batches:
        try:
            whole, axis = _of_a_batch(need, graph, axis, batch, not found)
        except _Mixes as refusal:
            at = _first_that_mixes(graph, need, batch)
            if at is None:
                raise
            raise Final(f"{need.not_lowered(at)}: {refusal.reason}") from refusal
        if infinite is None and not bool(torch.isfinite(whole).all()):
            infinite = _first_infinite(graph, need, batch)
        found.append(whole)
    repeated = [all(is_repeated(part, d) for part in found) for d in range(1, found[0].dim())]
    shape = tuple(found[0].shape[1:])
    stored = tuple(1 if again else n for n, again in zip(shape, repeated, strict=True))
    if any(part.shape[1:] != shape for part in found):
        raise Final("values of the data whose shape depends on the data")
    total = sum(len(part) for part in found)
    if prod(stored) * total > _MOST_ROWS:
        raise Final(f"{prod(stored) * total:,} numbers that depend on the data alone")
    values = torch.cat([_first_of(part, stored) for part in found])
    return DataRows(need.key, graph, need.samples, axis, first, shape, stored, infinite), values


def _of_a_batch(
    need: Needed, graph: torch.fx.GraphModule, axis: int, batch: Tensor, first: bool
) -> tuple[Tensor, int]:
    """The value for a batch, the same as for parts of it, and the axis, which the first decides."""
    if first:
        few = _filled(torch.arange(min(2, len(batch))), need.samples)
        at = _values_of_all(graph, need, batch[few])[1]
        if at is not None:
            raise Final(f"{need.not_lowered(at)}: values of the data that draw random numbers")
    if first and len(need.axes) > 1 and need.samples is None:
        few = batch[: len(batch) - 1 or 1]
        shapes = [(len(x), _values(graph, x).shape) for x in (batch, few)]
        axes = [d for d in need.axes if all(len(s) > d and s[d] == n for n, s in shapes)]
        axis = axes[0] if axes else axis
    whole = _formed(need.key, graph, need.samples, axis, batch)
    for rows in _parts(batch):
        alone = _formed(need.key, graph, need.samples, axis, batch[rows])
        if alone.shape[1:] != whole.shape[1:]:
            raise _Mixes("values of the data whose shape depends on the batch")
        if not torch.equal(alone.nan_to_num(), whole[rows].nan_to_num()):
            raise _Mixes("values of the data that depend on the rest of their batch")
    return whole, axis


def _parts(batch: Tensor) -> Sequence[Tensor]:
    """Samples to compute apart from the rest of their batch."""
    return torch.arange(len(batch)).roll(1).split(max(1, len(batch) // 2))


def _filled(rows: Tensor, samples: int | None) -> Tensor:
    """As many rows as a graph takes at once, the last one again to fill up."""
    return rows if samples is None else rows[torch.arange(samples).clamp(max=len(rows) - 1)]


class _Noting(torch.fx.Interpreter):
    """Keeps all values, and the first call that draws random numbers."""

    drew: torch.fx.Node | None = None

    def run_node(self, n: torch.fx.Node) -> Any:
        before = torch.get_rng_state()
        value = super().run_node(n)
        if self.drew is None and not torch.equal(before, torch.get_rng_state()):
            self.drew = n
        return value


def _values_of_all(
    graph: torch.fx.GraphModule, need: Needed, inputs: Tensor
) -> tuple[list[tuple[torch.fx.Node, Any]], torch.fx.Node | None]:
    """The calls that compute the value, with theirs, and the first that draws random numbers."""
    noting = _Noting(graph, garbage_collect_values=False)
    with torch.no_grad(), refused("values of the data"):
        noting.run(inputs)
    pairs = list(
        zip(graph.graph.nodes, calls_before(need.node), strict=False)
    )  # the former: an output
    drew = next((node for copy, node in pairs if copy is noting.drew), None)
    return [(node, noting.env.get(copy)) for copy, node in pairs], drew


def _first_that_mixes(
    graph: torch.fx.GraphModule, need: Needed, batch: Tensor
) -> torch.fx.Node | None:
    """The first call that gives samples other values in other company."""
    a = _filled(torch.arange(len(batch))[: need.samples], need.samples)
    whole = dict(_values_of_all(graph, need, batch[a])[0])
    moved: set[torch.fx.Node] = set()  # by the inputs
    for part in _parts(batch):
        b = _filled(part, need.samples)
        places = [(int((a == i).nonzero()[0]), j) for j, i in enumerate(b) if bool((a == i).any())]
        if not places:
            continue
        for node, value in _values_of_all(graph, need, batch[b])[0]:
            if node.op != "placeholder" and moved.isdisjoint(node.all_input_nodes):
                continue
            moved.add(node)
            for x, y in zip(_tensors(whole[node]), _tensors(value), strict=False):
                if not _same_samples(x, y, len(a), len(b), torch.tensor(places)):
                    return node
    return None


def _same_samples(x: Tensor, y: Tensor, n: int, m: int, places: Tensor) -> bool:
    """Whether x (n samples) and y (m) have the same values at the pairs of places (N, 2), along
    some dimension."""
    return x.dim() == y.dim() and any(
        torch.equal(
            x.index_select(d, places[:, 0]).nan_to_num(),
            y.index_select(d, places[:, 1]).nan_to_num(),
        )
        for d in range(x.dim())
        if x.shape[d] == n and y.shape[d] == m
    )


def _first_infinite(graph: torch.fx.GraphModule, need: Needed, batch: Tensor) -> str | None:
    rows = torch.arange(len(batch))
    for part in rows.split(need.samples or max(1, len(batch))):
        for node, value in _values_of_all(graph, need, batch[_filled(part, need.samples)])[0]:
            if not all(bool(torch.isfinite(x).all()) for x in _tensors(value)):
                return need.not_lowered(node)
    return None


def _tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, tuple | list) else [value]
    return [x for x in values if isinstance(x, Tensor)]


def _first_of(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(N, numbers): the first so many elements of every dimension of a sample."""
    first = (slice(None), *(slice(0, n) for n in shape))
    return x[first].reshape(len(x), -1)


def _values(graph: torch.fx.GraphModule, inputs: Tensor) -> Tensor:
    with torch.no_grad(), refused("values of the data"):
        value: Tensor = torch.fx.Interpreter(graph).run(inputs)
    return value


def _formed(
    key: Key, graph: torch.fx.GraphModule, samples: int | None, axis: int, inputs: Tensor
) -> Tensor:
    """The value for these inputs in the form asked for, its batch in front."""
    count = len(inputs)
    if samples is not None:  # so many at a time, the last ones again to fill up
        inputs = inputs[torch.arange(-(-count // samples) * samples).clamp(max=count - 1)]
    found = []
    for part in inputs.split(samples or max(1, count)):
        value = _values(graph, part)
        if value.dim() <= axis or value.shape[axis] != len(part):
            raise _Mixes(NOT_OF_SAMPLES)
        found.append(value.movedim(axis, 0))
    return _FORMS[key[1]](torch.cat(found)[:count], key[2]).to(inputs.dtype)


def how_computed(last: torch.fx.Node) -> str:
    """The calls that compute a node, as text."""
    return "\n".join(f"{n.name} {n.op} {n.target} {n.args} {n.kwargs}" for n in calls_before(last))


def calls_before(last: torch.fx.Node) -> list[torch.fx.Node]:
    """The node and all that it is computed from, in their order."""
    wanted, todo = {last}, [last]
    while todo:
        before = [n for n in todo.pop().all_input_nodes if n not in wanted]
        wanted.update(before)
        todo += before
    return [node for node in last.graph.nodes if node in wanted]


def _part(whole: torch.fx.GraphModule, last: torch.fx.Node) -> torch.fx.GraphModule:
    """The graph that computes a node from the first input."""
    graph, copied = torch.fx.Graph(), dict[torch.fx.Node, torch.fx.Node]()
    for node in calls_before(last):
        copied[node] = graph.node_copy(node, lambda n: copied[n])
    graph.output(copied[last])
    return Graph(whole, graph)
