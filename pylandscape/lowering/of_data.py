"""What the forward pass computes of its inputs alone: masks, lengths, counts, positions.

No point moves such a value, so torch computes it once for every sample, by the module's own calls,
and the program reads it as more rows of its input. A handler gets an `OfData` for it; ``TAKE_DATA``
lists those that want it as it stands, all others get its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..errors import NotLowered
from .capture import Final, Graph, refused
from .values import Handler, Slot, counting

_MOST_ROWS = 1 << 22  # numbers of the data in all, beside the inputs
Key = tuple[str, str, float]  # how it is computed, a form of its value, a number that this takes

NOT_OF_SAMPLES = "values of the data that are not one for each sample"

TAKE_DATA: set[Handler] = set()


def _seen(x: Tensor, _: float) -> Tensor:
    return _all_see(torch.zeros(x.shape).masked_fill(~x, float("-inf")))


def _hidden(x: Tensor, _: float) -> Tensor:
    return _all_see(torch.zeros(x.shape).masked_fill(x, float("-inf")))


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


def _chosen(x: Tensor, count: float) -> Tensor:
    if bool(((x < -count) | (x >= count)).any()):
        raise Final(f"an index of the data outside of {count:g} elements")
    return torch.nn.functional.one_hot(x % int(count), int(count))


# What the rows hold of a value x, and a number v.
_FORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "value": lambda x, _: x,
    "not": lambda x, _: ~x.bool(),
    "number": lambda x, v: torch.zeros(x.shape).masked_fill(x.bool(), v),  # v where x is true
    "other": lambda x, v: torch.zeros(x.shape).masked_fill(~x.bool(), v),  # where it is false
    "seen": _seen,  # added to scores: -inf where x is false
    "hidden": _hidden,  # the same where it is true
    "added": _added,  # scores themselves
    "steps": _steps,  # (N, v): whether step t comes before the length x
    "over": lambda x, steps: ~_steps(x, steps),
    "chosen": _chosen,  # (N, v): whether x is element t
}


class Needed(NotLowered):
    """Rows that the program's input does not hold yet; whoever lowers adds them and begins anew."""

    def __init__(
        self, node: torch.fx.Node, key: Key, axes: Sequence[int], graph: torch.fx.GraphModule
    ) -> None:
        super().__init__(f"values of the data alone ({node.name}), which are not prepared here")
        self.node, self.key, self.graph = node, key, graph
        self.axes = axes  # where the batch may be
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
        kept = [slice(None)] + [slice(0, n) for n in self.stored]
        return found[tuple(kept)].reshape(len(inputs), -1)


def rows_of(need: Needed, batches: Iterable[Tensor], first: int) -> tuple[DataRows, Tensor]:
    """The rows that are needed, for all samples (N, count), each batch computed as the module does.

    Raises NotLowered for values that depend on more than a sample, and for more than fits.
    """
    found: list[Tensor] = []
    graph, axis = _part(need.graph, need.node), need.axes[0]
    for batch in batches:
        if not found and len(need.axes) > 1 and need.samples is None:
            few = batch[: len(batch) - 1 or 1]
            shapes = [(len(x), _values(graph, x).shape) for x in (batch, few)]
            axes = [d for d in need.axes if all(len(s) > d and s[d] == n for n, s in shapes)]
            axis = axes[0] if axes else axis
        whole = _formed(need.key, graph, need.samples, axis, batch)
        turned = torch.arange(len(batch)).roll(1)
        for rows in turned.split(max(1, len(batch) // 2)):
            alone = _formed(need.key, graph, need.samples, axis, batch[rows])
            if alone.shape[1:] != whole.shape[1:]:
                raise Final("values of the data whose shape depends on the batch")
            if not torch.equal(alone.nan_to_num(), whole[rows].nan_to_num()):
                raise Final("values of the data that depend on the rest of their batch")
        found.append(whole)
    repeated = [all(_is_repeated(part, d) for part in found) for d in range(1, found[0].dim())]
    shape = tuple(found[0].shape[1:])
    stored = tuple(1 if again else n for n, again in zip(shape, repeated, strict=True))
    if any(part.shape[1:] != shape for part in found):
        raise Final("values of the data whose shape depends on the data")
    total = sum(len(part) for part in found)
    if prod(stored) * total > _MOST_ROWS:
        raise Final(f"{prod(stored) * total:,} numbers that depend on the data alone")
    kept = [slice(None)] + [slice(0, n) for n in stored]
    values = torch.cat([part[tuple(kept)].reshape(len(part), -1) for part in found])
    return DataRows(need.key, graph, need.samples, axis, first, shape, stored), values


def _is_repeated(x: Tensor, d: int) -> bool:
    return x.shape[d] > 1 and torch.equal(x, x.narrow(d, 0, 1).expand_as(x))


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
            raise Final(NOT_OF_SAMPLES)
        found.append(value.movedim(axis, 0))
    return _FORMS[key[1]](torch.cat(found)[:count], key[2]).to(inputs.dtype)


def how_computed(last: torch.fx.Node) -> str:
    """The calls that compute a node, as text."""
    return "\n".join(f"{n.name} {n.op} {n.target} {n.args} {n.kwargs}" for n in _before(last))


def _before(last: torch.fx.Node) -> list[torch.fx.Node]:
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
    for node in _before(last):
        copied[node] = graph.node_copy(node, lambda n: copied[n])
    graph.output(copied[last])
    return Graph(whole, graph)
