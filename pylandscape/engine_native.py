"""The native engine: a model, a known loss and its data as one compiled program.

Addresses of tensors cross into the core here and nowhere else: every tensor is checked for dtype,
layout and device, and is kept alive for the length of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import (  # noqa: F401
    lowering_attention,
    lowering_conv,
    lowering_dense,
    lowering_elementwise,
    lowering_group_norm,
    lowering_matmul,
    lowering_pool,
    lowering_sequence,
    lowering_shapes,
)
from ._native import core, cpu_capability
from .capture import check_traceable, restored_attributes, trace
from .data import Batch
from .engine_torch import TorchEngine
from .errors import NotLowered, UnknownOp
from .losses import metric_name
from .lowering import Lowering
from .native_loss import Output, counted_targets, set_loss
from .statistics import is_variance

if TYPE_CHECKING:
    from .data import Dataset
    from .layout import ParameterLayout
    from .losses import KnownLoss

_PROGRAMS = {
    torch.float32: (core.ProgramF32, core.QuestionF32, core.DerivativesF32),
    torch.float64: (core.ProgramF64, core.QuestionF64, core.DerivativesF64),
}
_TRACED_SAMPLES = 3  # fewer coincidences with feature sizes than 1 or 2
_CHECKED_SAMPLES = 256
_CHECKED_BATCHES = 2  # where samples depend on their batch
_CHECK_STEP = 0.1  # of each parameter tensor's spread

Evaluate = Callable[[np.ndarray], dict[str, np.ndarray]]


class NativeEngine:
    """Answers questions about L from a compiled program (csrc/program)."""

    name = "native"

    @property
    def instruction_set(self) -> str:
        return cpu_capability()

    def __init__(
        self,
        program: Any,
        dtype: torch.dtype,
        loss: KnownLoss,
        targets: Tensor,
        output: Output,
        how: str,
        ops: Sequence[str],
        memory: int,
    ) -> None:
        self._program = program
        self._dtype = dtype
        self._question = _PROGRAMS[dtype][1]
        self._targets = targets
        self._output = output
        self._memory = memory  # bytes that derivatives may keep at one theta
        self._kept: tuple[Tensor, Any] | None = None  # derivatives at the last theta
        self.how = how
        self.ops = tuple(ops)
        outputs_shape = output.module_shape(program.samples)
        mean = loss.reduction == "mean"
        self.mixes: bool = program.mixes  # whether samples depend on their batch
        self._denominator = loss.denominator(targets, outputs_shape) if mean else 1.0
        self._counted = counted_targets(loss, targets, outputs_shape)

    def prepare(self, theta: Tensor, directions: Tensor, metrics: Sequence[Any]) -> Evaluate:
        """A function of coefficients (g, k) to {metric: (g,)} along directions (k, n)."""
        theta = theta.detach().to("cpu", self._dtype).contiguous()
        directions = directions.detach().to("cpu", self._dtype).contiguous()
        count = directions.shape[0]
        question = self._question(self._program, theta.data_ptr(), directions.data_ptr(), count)
        return self._evaluator(question, metrics, count)

    def prepare_points(self, metrics: Sequence[Any]) -> Callable[[Tensor], dict[str, np.ndarray]]:
        """The same for arbitrary points (p, n)."""
        return self._evaluator(self._question(self._program), metrics, self._program.n)

    def collector(self, theta: Tensor | None, directions: Tensor | None) -> Callable[..., Tensor]:
        """A function of coefficients (g, k), or without theta of points (g, n), to points (g, n)
        in which the running statistics that the program keeps are those of the data there."""
        parts = []
        if theta is not None and directions is not None:
            parts = [t.detach().to("cpu", self._dtype).contiguous() for t in (theta, directions)]
        where = (*(t.data_ptr() for t in parts), len(parts[1])) if parts else ()
        question = self._question(self._program, *where)
        width = len(parts[1]) if parts else self._program.n

        def collect(coordinates: Any) -> Tensor:
            c = _rows(coordinates, width, self._dtype)
            points = torch.empty(len(c), self._program.n, dtype=self._dtype)
            question.collect(len(c), c.data_ptr(), points.data_ptr())
            return points

        return collect

    def outputs_at(self, points: Tensor) -> list[Tensor]:
        """The outputs as the module gives them, at each of the points (p, n)."""
        question = self._question(self._program)
        return [self.outputs(question, p) for p in _rows(points, self._program.n, self._dtype)]

    def gradient(self, theta: Tensor) -> Tensor:
        """(n,) float64, summed in double."""
        result = torch.empty(self._program.n, dtype=torch.float64)
        self._derivatives_at(theta).gradient(result.data_ptr())
        return result / self._denominator

    def product(self, matrix: str, theta: Tensor, vectors: Tensor) -> Tensor:
        """(k, n) float64 of vectors (k, n); values at theta are kept for the next call."""
        derivatives = self._derivatives_at(theta)
        v = vectors.detach().to("cpu", self._dtype).contiguous()
        result = torch.empty(v.shape, dtype=torch.float64)
        which = getattr(core.Matrix, matrix)
        scale = self.product_scale(matrix)
        derivatives.products(which, v.shape[0], v.data_ptr(), result.data_ptr(), scale)
        return result

    def product_into(self, matrix: str, theta: Tensor) -> Callable[[int, int, int], None] | None:
        """(k, address of (k, n) vectors, address of (k, n) float64 products), without copies."""
        if self.mixes:
            return None
        which, scale = getattr(core.Matrix, matrix), self.product_scale(matrix)

        def into(count: int, vectors: int, products: int) -> None:
            derivatives = self._derivatives_at(theta)
            derivatives.products(which, count, vectors, products, scale)

        return into

    def sums(self) -> tuple[Any, float]:
        """The program, whose losses are sums over the samples, and what L divides them by."""
        return self._program, self._denominator

    def product_scale(self, matrix: str) -> float:
        """What turns the program's sums over samples into L's matrix."""
        if matrix == "covariance":  # (1/N) sum_i g_i g_i^T with g_i = (N/D) grad l_i
            return float(self._program.samples / self._denominator**2)
        return 1.0 / self._denominator

    def per_sample_gradients(self, theta: Tensor) -> Tensor:
        """(samples, n) of the program's dtype; their mean is the gradient."""
        derivatives = self._derivatives_at(theta)
        result = torch.empty(self._program.samples, self._program.n, dtype=self._dtype)
        derivatives.sample_gradients(result.data_ptr())
        return result.mul_(self._program.samples / self._denominator)

    def _derivatives_at(self, theta: Tensor) -> Any:
        if self.mixes:
            raise NotLowered("derivatives of a batch's own statistics")
        point = theta.detach().to("cpu", self._dtype).contiguous()
        if self._kept is None or not torch.equal(self._kept[0], point):
            self._kept = None  # before the next one takes its memory
            kind = _PROGRAMS[self._dtype][2]
            derivatives = kind(self._program, point.data_ptr(), self._memory)
            self._kept = (point.clone(), derivatives)
        return self._kept[1]

    def _evaluator(self, question: Any, metrics: Sequence[Any], width: int) -> Any:
        wants_accuracy = "accuracy" in metrics
        callables = [metric for metric in metrics if callable(metric)]

        def evaluate(coordinates: Any) -> dict[str, np.ndarray]:
            c = _rows(coordinates, width, self._dtype)
            g = c.shape[0]
            total, correct = np.empty(g), np.empty(g)
            question.run(
                g,
                c.data_ptr(),
                total.ctypes.data,
                correct.ctypes.data if wants_accuracy else 0,
                0,
            )
            with np.errstate(divide="ignore", invalid="ignore"):
                values = {"loss": total / self._denominator}
                if wants_accuracy:
                    values["accuracy"] = correct / self._counted
            if callables:
                values |= self._call_metrics(question, c, callables)
            return {metric_name(m): values[metric_name(m)] for m in metrics}

        return evaluate

    def _call_metrics(
        self, question: Any, coordinates: Tensor, metrics: Sequence[Callable[..., Any]]
    ) -> dict[str, np.ndarray]:
        values = {metric_name(m): np.empty(len(coordinates)) for m in metrics}
        for i in range(len(coordinates)):
            outputs = self.outputs(question, coordinates[i])
            for metric in metrics:
                values[metric_name(metric)][i] = float(metric(outputs, self._targets))
        return values

    def outputs(self, question: Any, coordinates: Tensor) -> Tensor:
        """The network's outputs as the module gives them, at one point."""
        outputs = torch.empty((self._program.samples, *self._output.rows()), dtype=self._dtype)
        unused = np.empty(1)
        point = coordinates.contiguous()
        question.run(1, point.data_ptr(), unused.ctypes.data, 0, outputs.data_ptr())
        return self._output.as_module(outputs)


def _rows(coordinates: Any, width: int, dtype: torch.dtype) -> Tensor:
    """(g, width), in the program's dtype, contiguous, on the CPU."""
    c = torch.as_tensor(coordinates).detach().to("cpu", dtype).contiguous()
    if c.dim() != 2 or c.shape[1] != width:
        raise ValueError(f"coordinates: expected (g, {width}), got {tuple(c.shape)}")
    return c


@dataclass(frozen=True)
class Data:
    """All inputs (N, ...) and targets, on the CPU, and how many samples each batch has.

    The inputs are of ``dtype``, the program's, or integers.
    """

    inputs: Tensor
    targets: Tensor
    sizes: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, dataset: Dataset, dtype: torch.dtype) -> Data:
        """Raises NotLowered for data that are more than one input and one target tensor."""
        tensors = dataset.tensors()
        if tensors is None:
            raise NotLowered(
                "the data are not (input tensor, target tensor) batches of equal shape"
            )
        inputs, targets = tensors
        if dtype not in _PROGRAMS:
            raise NotLowered(f"{dtype} is not a dtype of the native engine")
        sizes = tuple(batch.size for batch in dataset.batches)
        inputs, targets = inputs.detach().cpu().contiguous(), targets.cpu()
        if inputs.dtype in (torch.int64, torch.int32):
            return cls(inputs, targets, sizes, dtype)
        if not inputs.is_floating_point():
            raise NotLowered(f"the inputs are {inputs.dtype}, neither floating point nor int64")
        if torch.finfo(inputs.dtype).eps < torch.finfo(dtype).eps:
            raise NotLowered(f"the inputs are {inputs.dtype}, wider than the {dtype} asked for")
        return cls(inputs.to(dtype), targets, sizes, dtype)

    def first(self, batches: int, samples: int) -> Data:
        """At most so many batches, of at most so many of their samples."""
        if len(self.targets) != len(self.inputs):
            raise NotLowered("several targets per sample where samples depend on their batch")
        starts = [sum(self.sizes[:b]) for b in range(min(batches, len(self.sizes)))]
        sizes = tuple(min(samples, self.sizes[b]) for b in range(len(starts)))
        rows = torch.cat([torch.arange(a, a + n) for a, n in zip(starts, sizes, strict=True)])
        return Data(self.inputs[rows], self.targets[rows], sizes, self.dtype)


def example_of(model: nn.Module, data: Data) -> Tensor:
    """A few samples to trace the model with, in its own dtype; integers as zeros."""
    few = data.inputs[torch.arange(_TRACED_SAMPLES) % len(data.inputs)]
    if not few.is_floating_point():
        return torch.zeros_like(few)
    return few.to(next((t.dtype for t in model.parameters() if t.is_floating_point()), few.dtype))


def build(
    model: nn.Module,
    loss: KnownLoss,
    dataset: Dataset,
    layout: ParameterLayout,
    theta: Tensor,
    *,
    dtype: torch.dtype,
    memory: int,
    bn: str = "eval",
) -> NativeEngine:
    """Captures, lowers and checks the model; raises NotLowered with the reason where it cannot.

    The model must be in eval mode, on the CPU; with bn="batch", its batch norm in train mode. Its
    forward pass runs a few times on a few samples.
    """
    data = Data.of(dataset, dtype)
    check_tensors(model, dtype)
    check_traceable(model)
    example = example_of(model, data)
    reasons: list[str] = []
    for how in ("fx",) if bn == "batch" else ("fx", "export"):
        try:
            with torch.no_grad():
                graph = trace(model, example, how)
                engine = lower(graph, example, model, loss, layout, data, how, memory)
                if engine.mixes:
                    few = _few(data)
                    other = lower(graph, example, model, loss, layout, few, how, memory)
                    check_batches(other, model, loss, layout, theta, few, bn)
                else:
                    check_outputs(engine, model, layout, theta, data)
            return engine
        except UnknownOp as refusal:
            if not reasons:
                raise  # the other tracer would find the same call
            reasons.append(refusal.reason)
        except NotLowered as refusal:
            reasons.append(refusal.reason)
    raise NotLowered("the forward pass could not be captured: " + "; ".join(reasons))


def lower_few(
    model: nn.Module,
    loss: KnownLoss,
    layout: ParameterLayout,
    data: Data,
    how: str,
    memory: int,
) -> tuple[NativeEngine, Data]:
    """A captured model over a few samples of a few batches, to be compared with the module."""
    example, few = example_of(model, data), _few(data)
    with torch.no_grad():
        graph = trace(model, example, how)
        return lower(graph, example, model, loss, layout, few, how, memory), few


def _few(data: Data) -> Data:
    return data.first(_CHECKED_BATCHES, _CHECKED_SAMPLES // _CHECKED_BATCHES)


def lower(
    graph: torch.fx.GraphModule,
    example: Tensor,
    model: nn.Module,
    loss: KnownLoss,
    layout: ParameterLayout,
    data: Data,
    how: str,
    memory: int,
    collect: bool = False,
) -> NativeEngine:
    """The graph as a program over the data; with ``collect``, one that finds the running
    statistics of its batch norm and keeps them where the layout has them."""
    dtype = data.dtype
    constants, sources = _sources(model, layout, dtype)
    program = _PROGRAMS[dtype][0](layout.n, constants.data_ptr(), constants.numel())
    lowering = Lowering(graph, program, sources, collect)
    with restored_attributes(model):
        lowering.run(example)
    output = lowering.result
    if output is None:
        raise NotLowered("the model returns nothing")
    program.finish(output.id)
    if program.mixes:
        program.set_batches(list(data.sizes))
    values = data.inputs.to(dtype)  # of integers, those that an embedding may read are exact
    program.set_data(len(values), values.data_ptr())
    order = lowering.order(output)
    assert order is not None
    shown = Output(output.shape, order, lowering.merged)
    set_loss(program, loss, data.targets, shown)
    return NativeEngine(program, dtype, loss, data.targets, shown, how, lowering.names, memory)


def check_tensors(model: nn.Module, dtype: torch.dtype) -> None:
    """Raises NotLowered for parameters and buffers that the program could not hold as they are."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise NotLowered(f"{name!r} is on {tensor.device}: the native engine runs on the CPU")
        if tensor.is_floating_point() and tensor.dtype not in _PROGRAMS:
            raise NotLowered(f"{name!r} is {tensor.dtype}")
        if tensor.is_floating_point() and torch.finfo(tensor.dtype).eps < torch.finfo(dtype).eps:
            raise NotLowered(f"{name!r} is {tensor.dtype}, wider than the {dtype} asked for")


def _sources(
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


def check_outputs(
    engine: Any, model: nn.Module, layout: ParameterLayout, theta: Tensor, data: Data
) -> None:
    """The engine's outputs must be the module's, at theta and at two perturbed thetas."""
    rows = data.inputs[:_CHECKED_SAMPLES]
    fixed = {
        name: t.detach().to(data.dtype) if t.is_floating_point() else t.detach().clone()
        for name, t in (*model.named_parameters(), *model.named_buffers())
    }
    for point in _checked_points(layout, theta.detach().to("cpu", data.dtype)):
        got = engine.outputs_at(point[None])[0]
        with torch.no_grad(), restored_attributes(model):
            state = {**fixed, **layout.unflatten(point)}
            expected = torch.func.functional_call(model, state, (rows,), tie_weights=True)
        few = len(got) * len(rows) // len(data.inputs)
        _compare(got[:few].cpu(), expected, len(engine.ops))


def check_batches(
    engine: Any,
    model: nn.Module,
    loss: KnownLoss,
    layout: ParameterLayout,
    theta: Tensor,
    data: Data,
    bn: str,
) -> None:
    """The same where samples depend on their batch, against the torch engine over all ``data``."""
    dtype = data.dtype
    pairs = zip(data.inputs.split(data.sizes), data.targets.split(data.sizes), strict=True)
    batches = [Batch((x, y), x, y, len(x)) for x, y in pairs]
    expected: list[Any] = []

    def outputs(found: Tensor, target: Any) -> float:
        expected.append(found)
        return 0.0

    reference = TorchEngine(
        model, loss, batches, layout, dtype=dtype, device=torch.device("cpu"), bn=bn
    )
    points = torch.stack(_checked_points(layout, theta.detach().to("cpu", dtype)))
    reference.prepare_points((outputs,))(points)
    for got, want in zip(engine.outputs_at(points), expected, strict=True):
        _compare(got.cpu(), want, len(engine.ops))


def _checked_points(layout: ParameterLayout, theta: Tensor) -> list[Tensor]:
    """theta, and two points not far from it."""
    generator = torch.Generator().manual_seed(0)
    points = [theta]
    for _ in range(2):
        point = theta.clone()
        for entry in layout.entries:
            part = point[entry.offset : entry.offset + entry.numel]
            spread = part.std() if part.numel() > 1 else part.abs().sum()
            step = _CHECK_STEP * (float(spread) + 1e-3)
            part += step * torch.randn(part.shape, generator=generator, dtype=point.dtype)
            if is_variance(entry):
                part.abs_()
        points.append(point)
    return points


def _compare(got: Tensor, expected: Any, ops: int) -> None:
    """Raises NotLowered where the program's outputs are not the module's."""
    if not isinstance(expected, Tensor) or expected.shape != got.shape:
        raise NotLowered("the program's outputs have another shape than the module's")
    tolerance = torch.finfo(got.dtype).eps * 500 * (2 + ops)
    finite = torch.isfinite(expected)
    scale = float(expected[finite].abs().max()) if bool(finite.any()) else 0.0
    error = float((got - expected)[finite].abs().max()) if bool(finite.any()) else 0.0
    if not error <= tolerance * scale or not bool((torch.isfinite(got) == finite).all()):
        raise NotLowered(
            f"the program's outputs differ from the module's by {error:.3g} "
            f"(scale {scale:.3g}): the captured graph does not describe the module"
        )
