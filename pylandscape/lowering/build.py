"""What a program is built from: data, the parameters' sources, samples to trace with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._native import core
from ..errors import NotLowered
from ..theta.data import chosen_batches
from . import (  # noqa: F401
    attention,
    conv,
    conv_sums,
    dense,
    elementwise,
    group_norm,
    matmul,
    pool,
    resample,
    scatter,
    sequence,
    shapes,
    statistics,
)
from .capture import restored_attributes
from .interpreter import Lowering
from .loss import Output
from .of_data import Needed
from .recorded import Recorded
from .several import Form, pack, pack_one

if TYPE_CHECKING:
    from ..theta.data import Dataset
    from ..theta.layout import ParameterLayout


PROGRAMS = {
    torch.float32: (core.ProgramF32, core.QuestionF32, core.DerivativesF32),
    torch.float64: (core.ProgramF64, core.QuestionF64, core.DerivativesF64),
}
_TRACED_SAMPLES = 3  # fewer coincidences with feature sizes than 1 or 2


def _form(dataset: Dataset) -> str:
    """What the batches are instead of pairs of tensors of one shape."""
    for batch in dataset.batches:
        for part, name in ((batch.inputs, "inputs"), (batch.target, "targets")):
            if isinstance(part, tuple | list):
                return f"the model takes {len(part)} {name}"
            if isinstance(part, Mapping):
                return f"the {name} are a dict with {', '.join(map(str, part))}"
            if not isinstance(part, Tensor):
                return f"the {name} are of type {type(part).__name__}"
    return "batches differ in the shape or type of a sample"


@dataclass(frozen=True)
class Data:
    """All inputs (N, ...) and targets, on the CPU, and how many samples each batch has.

    The inputs are of ``dtype``, the program's, or integers. Several are packed into one, as
    ``form`` says.
    """

    inputs: Tensor
    targets: Tensor
    sizes: tuple[int, ...]
    dtype: torch.dtype
    form: Form | None = None

    @classmethod
    def of(cls, dataset: Dataset, dtype: torch.dtype) -> Data:
        """Raises NotLowered for data that are no inputs and targets with a row for each sample."""
        tensors, form = dataset.tensors(), None
        if tensors is None:
            tensors, form = _several(dataset, dtype)
        inputs, targets = tensors
        if inputs.layout != torch.strided or targets.layout != torch.strided:
            raise NotLowered("the data are sparse")
        if dtype not in PROGRAMS:
            raise NotLowered(f"{dtype} is not a dtype of the native engine")
        sizes = tuple(batch.size for batch in dataset.batches)
        inputs, targets = inputs.detach().cpu().contiguous(), targets.cpu()
        if inputs.dtype in (torch.int64, torch.int32):
            return cls(inputs, targets, sizes, dtype)
        if not inputs.is_floating_point():
            raise NotLowered(f"the inputs are {inputs.dtype}, neither floating point nor int64")
        if torch.finfo(inputs.dtype).eps < torch.finfo(dtype).eps:
            raise NotLowered(f"the inputs are {inputs.dtype}, wider than the {dtype} asked for")
        return cls(inputs.to(dtype), targets, sizes, dtype, form)

    def with_rows(self, need: Needed) -> Data:
        """The same with rows of what the inputs alone decide; packed, if they were not."""
        inputs, form = self.inputs, self.form
        if form is None:
            inputs, form = pack_one(inputs, self.dtype)
        else:
            form, inputs = form.with_rows(need, inputs, self.sizes)
        return replace(self, inputs=inputs, form=form)

    def like(self, form: Form | None) -> Data:
        """The same in this form, which another's data got."""
        if form is None or form is self.form:
            return self
        inputs = self.inputs if self.form is not None else pack_one(self.inputs, self.dtype)[0]
        return replace(self, inputs=form.again(inputs, self.sizes), form=form)

    def module(self, model: nn.Module) -> nn.Module:
        """The model as one of `inputs`."""
        return model if self.form is None else self.form.module(model)

    def first(self, batches: int, samples: int) -> tuple[Data, Tensor]:
        """At most so many batches, of at most so many of their samples, and which these are.

        The largest batch is among them: the trace has few samples, as a small batch may.
        """
        chosen = chosen_batches(self.sizes, batches)
        starts = [sum(self.sizes[:b]) for b in chosen]
        sizes = tuple(min(samples, self.sizes[b]) for b in chosen)
        rows = torch.cat([torch.arange(a, a + n) for a, n in zip(starts, sizes, strict=True)])
        if len(self.targets) % len(self.inputs):
            raise NotLowered("another number of targets per input in every batch")
        targets = self.targets.unflatten(0, (len(self.inputs), -1))[rows].flatten(0, 1)
        return replace(self, inputs=self.inputs[rows], targets=targets, sizes=sizes), rows

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches' inputs and targets."""
        each = len(self.targets) // len(self.inputs)
        targets = self.targets.split([each * size for size in self.sizes])
        return zip(self.inputs.split(self.sizes), targets, strict=True)

    def in_dtype(self, dtype: torch.dtype, targets: Tensor) -> Data:
        """The same inputs, for a program of another dtype, with other targets."""
        inputs = self.inputs.to(dtype) if self.inputs.is_floating_point() else self.inputs
        if self.form is not None and self.form.rows:
            inputs = self.form.again(inputs, self.sizes)
        return replace(self, inputs=inputs, targets=targets, dtype=dtype)

    def with_lone_samples_twice(self) -> Data:
        """The same batches, but those of one sample hold it twice."""
        times = torch.tensor([2 if size == 1 else 1 for size in self.sizes])
        if int(times.max()) == 1:
            return self
        rows = torch.arange(len(self.inputs)).repeat_interleave(
            times.repeat_interleave(torch.tensor(self.sizes))
        )
        targets = self.targets.unflatten(0, (len(self.inputs), -1))[rows].flatten(0, 1)
        sizes = tuple(max(2, size) if size else 0 for size in self.sizes)
        return replace(self, inputs=self.inputs[rows], targets=targets, sizes=sizes)


def _several(dataset: Dataset, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], Form]:
    """All inputs in one tensor, and the targets."""
    targets = [batch.target for batch in dataset.batches]
    try:
        if dtype not in PROGRAMS:
            raise NotLowered(f"{dtype} is not a dtype of the native engine")
        if not all(isinstance(t, Tensor) and t.dim() > 0 for t in targets):
            raise NotLowered("targets that are no tensor")
        if len({(t.shape[1:], t.dtype, t.layout) for t in targets}) > 1:
            raise NotLowered("targets that are not alike in all batches")
        inputs, form = pack(dataset.batches, dtype)
    except NotLowered as refusal:
        raise NotLowered(
            f"the data are not (input tensor, target tensor): {_form(dataset)} ({refusal.reason})"
        ) from refusal
    return (inputs, torch.cat(targets)), form


def example_of(model: nn.Module, data: Data) -> Tensor:
    """A few samples to trace the model with, in its own dtype; one input of integers as zeros."""
    few = data.inputs[torch.arange(_TRACED_SAMPLES) % len(data.inputs)]
    if not few.is_floating_point():
        return torch.zeros_like(few)
    if data.form is not None:
        few = data.form.example(data.inputs, _TRACED_SAMPLES)
    return few.to(next((t.dtype for t in model.parameters() if t.is_floating_point()), few.dtype))


def check_tensors(model: nn.Module, dtype: torch.dtype) -> None:
    """Raises NotLowered for parameters and buffers that the program could not hold as they are."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise NotLowered(f"{name!r} is on {tensor.device}: the native engine runs on the CPU")
        if tensor.is_floating_point() and tensor.dtype not in PROGRAMS:
            raise NotLowered(f"{name!r} is {tensor.dtype}")
        if tensor.is_floating_point() and torch.finfo(tensor.dtype).eps < torch.finfo(dtype).eps:
            raise NotLowered(f"{name!r} is {tensor.dtype}, wider than the {dtype} asked for")


def sources_of(
    model: nn.Module, layout: ParameterLayout, dtype: torch.dtype
) -> tuple[Tensor, dict[int, int]]:
    """Where the program finds each tensor: an offset in theta, or -1 - offset in the constants."""
    offsets = {entry.name: entry.offset for entry in layout.entries}
    constants: list[Tensor] = [torch.empty(0, dtype=dtype)]
    size = 0
    sources: dict[int, int] = {}
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    for name, parameter in named:
        if name in offsets or layout.aliases.get(name) in offsets:
            sources[id(parameter)] = offsets[layout.aliases.get(name, name)]
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in sources and tensor.is_floating_point():
            sources[id(tensor)] = -1 - size
            constants.append(tensor.detach().reshape(-1).to(dtype))
            size += tensor.numel()
    return torch.cat(constants), sources


class Lowered:
    """What a captured graph becomes over data of one form: programs, and what they give.

    Args:
        collect, trains: as of `Lowering`.

    Raises NotLowered for what the program has no ops for.
    """

    def __init__(
        self,
        graph: torch.fx.GraphModule,
        example: Tensor,
        model: nn.Module,
        layout: ParameterLayout,
        data: Data,
        collect: bool = False,
        trains: bool = False,
    ) -> None:
        self._model, self._layout, self._form = model, layout, data.form
        self._dtype = data.dtype
        self._first, sources = self._empty(data.dtype)
        self._made = Recorded(self._first)
        rows = () if data.form is None else (data.form.rows, data.form.whole)
        lowering = Lowering(graph, self._made, sources, collect, trains, *rows)
        with restored_attributes(model), torch.no_grad():
            lowering.run(example)
        if lowering.result is None:
            raise NotLowered("the model returns nothing")
        order = lowering.order(lowering.result)
        assert order is not None
        self._result = lowering.result.id
        self.output = Output(lowering.result.shape, order, lowering.merged)
        self.names = lowering.names
        self.computed = lowering.computed

    def serves(self, data: Data) -> bool:
        """Whether its programs are those of the same graph over these data."""
        same = data.dtype == self._dtype or not self._made.of_dtype
        return same and data.form is self._form

    def program(self, dtype: torch.dtype) -> Any:
        """A program of its own, without data."""
        program, self._first = self._first, None
        if program is None or dtype != self._dtype:
            program, _ = self._empty(dtype)
            self._made.again(program)
        program.finish(self._result)
        return program

    def _empty(self, dtype: torch.dtype) -> tuple[Any, dict[int, int]]:
        constants, sources = sources_of(self._model, self._layout, dtype)
        made = PROGRAMS[dtype][0](self._layout.n, constants.data_ptr(), constants.numel())
        return made, sources
