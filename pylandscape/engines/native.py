"""The native engine: a model, a known loss and its data as one compiled program.

Where addresses of tensors cross into the core, every tensor is checked for dtype, layout and
device, and is kept alive for the length of the call. The way goes on in csrc/question (values of
many points) and csrc/derivatives (gradients and products at one theta); how a model becomes a
program, in lowering/.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .._native import core, cpu_capability
from ..arrays import all_finite
from ..errors import NotLowered, UnknownOp
from ..lowering import (  # noqa: F401
    attention,
    conv,
    dense,
    elementwise,
    group_norm,
    matmul,
    pool,
    sequence,
    shapes,
)
from ..lowering.build import PROGRAMS, Data, Lowered, check_tensors, example_of
from ..lowering.capture import (
    Final,
    check_example,
    check_traceable,
    refused,
    trace,
)
from ..lowering.loss import Output, counted_targets, set_loss
from ..lowering.of_data import Needed
from ..theta import sampling
from ..theta.checks import as_coefficients
from ..theta.losses import metric_name
from .capture_check import MIXED, check_capture, checked_part, seen_of

if TYPE_CHECKING:
    from ..lowering.several import Form
    from ..theta.data import Dataset
    from ..theta.layout import ParameterLayout
    from ..theta.losses import KnownLoss
    from .contract import CoreProducts, Evaluate, EvaluatePoints


SEVERAL = "several targets per sample where samples depend on their batch"

# Elements of a computed parameter times samples, each of which computes them anew.
_MOST_COMPUTED_ANEW = 1 << 18


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
        self.program = program
        self._dtype = dtype
        self._question = PROGRAMS[dtype][1]
        self._targets = targets
        self.output = output
        self._memory = memory  # bytes that derivatives may keep at one theta
        self._kept: tuple[Tensor, Any] | None = None  # derivatives at the last theta,
        self._lock = threading.Lock()  # which calls use after it, as they wait for each other
        self.how = how
        self.ops = tuple(ops)
        outputs_shape = output.module_shape(program.samples)
        mean = loss.reduction != "sum"
        self.mixes: bool = program.mixes  # whether samples depend on their batch
        self.no_derivatives: str | None = None  # why there are none
        self.form: Form | None = None  # of the data, where they got more rows
        self.denominator = loss.denominator(targets, outputs_shape) if mean else 1.0
        self.slope_denominator = loss.slope_denominator([targets], self.denominator)
        self.counted = counted_targets(loss, targets, outputs_shape)
        self._shares_of = lambda: loss.sample_shares(targets, program.samples)
        self._shares: np.ndarray | None = None

    def prepare(
        self, theta: Tensor, directions: Tensor, metrics: Sequence[Any], between: bool = False
    ) -> Evaluate:
        """A function of coefficients (g, k) to {metric: (g,)} along directions (k, n)."""
        theta = theta.detach().to("cpu", self._dtype).contiguous()
        directions = directions.detach().to("cpu", self._dtype).contiguous()
        count = directions.shape[0]
        question = self._question(self.program, theta.data_ptr(), directions.data_ptr(), count)
        evaluate = self._evaluator(question, metrics, count, sampling.references(count, between))

        def at(coefficients: np.ndarray) -> dict[str, np.ndarray]:
            c = as_coefficients(coefficients, count)
            return evaluate(c, sampling.mixture(c, between))

        return at

    def prepare_points(self, metrics: Sequence[Any]) -> EvaluatePoints:
        """The same for arbitrary points (p, n)."""
        return self.points_evaluator(metrics, None)

    def points_evaluator(self, metrics: Sequence[Any], references: Tensor | None) -> Any:
        """A function of points (p, n), and of weights (p, v) where differences are asked for, to
        {metric: (p,)}; differences are to the weighted losses at the references (v, n)."""
        return self._evaluator(self._question(self.program), metrics, self.program.n, references)

    def collector(self, theta: Tensor | None, directions: Tensor | None) -> Callable[..., Tensor]:
        """A function of coefficients (g, k), or without theta of points (g, n), to points (g, n)
        in which the running statistics that the program keeps are those of the data there."""
        parts = []
        if theta is not None and directions is not None:
            parts = [t.detach().to("cpu", self._dtype).contiguous() for t in (theta, directions)]
        where = (*(t.data_ptr() for t in parts), len(parts[1])) if parts else ()
        question = self._question(self.program, *where)
        width = len(parts[1]) if parts else self.program.n

        def collect(coordinates: Any) -> Tensor:
            c = _rows(coordinates, width, self._dtype)
            points = torch.empty(len(c), self.program.n, dtype=self._dtype)
            question.collect(len(c), c.data_ptr(), points.data_ptr())
            return points

        return collect

    def outputs_at(self, points: Tensor) -> list[Tensor]:
        """The outputs as the module gives them, at each of the points (p, n)."""
        question = self._question(self.program)
        return [self.outputs(question, p) for p in _rows(points, self.program.n, self._dtype)]

    def gradient(self, theta: Tensor) -> Tensor:
        """(n,) float64, summed in double."""
        result = torch.empty(self.program.n, dtype=torch.float64)
        self._derivatives_at(theta).gradient(result.data_ptr())
        return result / self.slope_denominator

    def product(self, matrix: str, theta: Tensor, vectors: Tensor) -> Tensor:
        """(k, n) float64 of vectors (k, n); values at theta are kept for the next call."""
        derivatives = self._derivatives_at(theta, of_samples=matrix == "covariance")
        v = vectors.detach().to("cpu", self._dtype).contiguous()
        result = torch.empty(v.shape, dtype=torch.float64)
        which = getattr(core.Matrix, matrix)
        scale = self.product_scale(matrix)
        derivatives.products(which, v.shape[0], v.data_ptr(), result.data_ptr(), scale)
        return result

    def products_at(self, matrix: str, theta: Tensor) -> CoreProducts | None:
        """A function to (the core's derivatives at theta, the matrix, the scale of its products),
        for callers in the core, which keep the derivatives while they use them; None where they are
        not compiled."""
        if self._refusal(matrix == "covariance") is not None:
            return None
        which, scale = getattr(core.Matrix, matrix), self.product_scale(matrix)
        return lambda: (self._derivatives_at(theta), which, scale)

    def derivatives_refused(self) -> str | None:
        """Why derivatives are torch's; None where they are compiled."""
        return self.no_derivatives

    def sums(self) -> tuple[Any, float]:
        """The program, whose losses are sums over the samples, and what L divides them by; for
        derivatives. Raises NotLowered where they are not compiled."""
        refused = self._refusal(True)
        if refused is not None:
            raise NotLowered(refused)
        if self.denominator == 0:
            raise NotLowered("no target counts")
        return self.program, self.denominator

    def product_scale(self, matrix: str) -> float:
        """What turns the program's sums over samples into L's matrix."""
        if matrix == "covariance":  # (1/N) sum_i g_i g_i^T with g_i = (N/D) grad l_i
            return _ratio(self.program.samples, self.slope_denominator**2)
        return _ratio(1.0, self.slope_denominator)

    def per_sample_gradients(self, theta: Tensor) -> Tensor:
        """(samples, n) of the program's dtype; their mean is the gradient."""
        derivatives = self._derivatives_at(theta, of_samples=True)
        result = torch.empty(self.program.samples, self.program.n, dtype=self._dtype)
        derivatives.sample_gradients(result.data_ptr())
        return result.mul_(_ratio(self.program.samples, self.slope_denominator))

    def _refusal(self, of_samples: bool) -> str | None:
        """Why there are no derivatives, or none of the samples' own losses."""
        return self.no_derivatives or (MIXED if of_samples and self.mixes else None)

    def _derivatives_at(self, theta: Tensor, of_samples: bool = False) -> Any:
        refused = self._refusal(of_samples)
        if refused is not None:
            raise NotLowered(refused)
        point = theta.detach().to("cpu", self._dtype).contiguous()
        with self._lock:  # threads at different points make their own, one after the other
            if self._kept is None or not torch.equal(self._kept[0], point):
                heir = None if self._kept is None else self._kept[1].heir()
                self._kept = None  # the heir gets its memory, unless someone else uses it still
                kind = PROGRAMS[self._dtype][2]
                derivatives = kind(self.program, point.data_ptr(), self._memory, heir)
                self._kept = (point.clone(), derivatives)
            return self._kept[1]

    def _evaluator(
        self, question: Any, metrics: Sequence[Any], width: int, references: Any = None
    ) -> Any:
        wants_accuracy = "accuracy" in metrics
        callables = [metric for metric in metrics if callable(metric)]
        errors = sampling.asked(metrics)
        against: np.ndarray | None = None  # (v, samples): losses that differences are to
        if sampling.DIFFERENCE in errors:
            against = self._losses_of_samples(question, _rows(references, width, self._dtype))

        def evaluate(coordinates: Any, weights: Any = None) -> dict[str, np.ndarray]:
            c = _rows(coordinates, width, self._dtype)
            g = c.shape[0]
            total, correct = np.empty(g), np.empty(g)
            to = total.ctypes.data, correct.ctypes.data if wants_accuracy else 0
            if errors:
                found = self._run_samples(question, c, to, against, weights)
            else:
                question.run(g, c.data_ptr(), *to, 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                values = {"loss": total / self.denominator}
                if wants_accuracy:
                    values["accuracy"] = correct / self.counted
            for name in errors:
                count = self.program.samples
                values[name] = sampling.errors(found[name], count, self.denominator)
            if callables:
                values |= self._call_metrics(question, c, callables)
            return {metric_name(m): values[metric_name(m)] for m in metrics}

        return evaluate

    def _run_samples(
        self, question: Any, c: Tensor, to: tuple[int, int], against: Any, weights: Any
    ) -> dict[str, np.ndarray]:
        """Runs the question, also for {metric: (g,)} the sums that `sampling.errors` takes."""
        g, shares = len(c), self._shares_at()
        squares, differences = np.empty(g), np.empty(g)
        compared = against is not None
        w = np.ascontiguousarray(weights, dtype=np.float64) if compared else np.empty(0)
        question.run_samples(
            g, c.data_ptr(), *to, shares, len(against) if compared else 0,
            against.ctypes.data if compared else 0, w.ctypes.data, squares.ctypes.data,
            differences.ctypes.data, 0,
        )  # fmt: skip
        return {sampling.STANDARD: squares, sampling.DIFFERENCE: differences}

    def _losses_of_samples(self, question: Any, c: Tensor) -> np.ndarray:
        """(g, samples): each sample's sum of loss terms at coordinates (g, width)."""
        g, shares = len(c), self._shares_at()
        total, squares, own = np.empty(g), np.empty(g), np.empty((g, self.program.samples))
        question.run_samples(
            g, c.data_ptr(), total.ctypes.data, 0, shares, 0, 0, 0,
            squares.ctypes.data, 0, own.ctypes.data,
        )  # fmt: skip
        return own

    def _shares_at(self) -> int:
        """The address of what each sample adds to the denominator; 0 where all add the same."""
        if self._shares is None:
            found = np.ascontiguousarray(self._shares_of().cpu().numpy())
            self._shares = found if np.ptp(found) else np.empty(0)
        return self._shares.ctypes.data if self._shares.size else 0

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
        outputs = torch.empty((self.program.samples, *self.output.rows()), dtype=self._dtype)
        unused = np.empty(1)
        point = coordinates.contiguous()
        question.run(1, point.data_ptr(), unused.ctypes.data, 0, outputs.data_ptr())
        return self.output.as_module(outputs)


def _rows(coordinates: Any, width: int, dtype: torch.dtype) -> Tensor:
    """(g, width), in the program's dtype, contiguous, on the CPU."""
    c = torch.as_tensor(coordinates).detach().to("cpu", dtype).contiguous()
    if c.dim() != 2 or c.shape[1] != width:
        raise ValueError(f"coordinates: expected (g, {width}), got {tuple(c.shape)}")
    return c


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
    seen: Mapping[int, Tensor] | None = None,
) -> NativeEngine:
    """Captures, lowers and checks the model; raises NotLowered with the reason where it cannot.

    The model must be in eval mode, on the CPU; with bn="batch", its batch norm in train mode. Its
    forward pass runs a few times on a few samples. ``seen``: by batch, what it gave for the first
    samples at theta, where that is known.
    """
    data = Data.of(dataset, dtype)
    check_tensors(model, dtype)
    check_traceable(model)
    reasons: list[str] = []
    for how in ("fx",) if bn == "batch" else ("fx", "export"):
        own = data.module(model)
        try:
            with refused(how):
                return _captured(model, loss, data, layout, theta, how, memory, bn, seen or {})
        except Final:
            raise
        except UnknownOp as refusal:
            if not reasons:
                raise  # the other tracer would find the same call
            reasons.append(refusal.reason)
        except NotLowered as refusal:
            reasons.append(refusal.reason)
            if how == "fx":
                check_example(own, example_of(own, data))
    raise NotLowered("the forward pass could not be captured: " + "; ".join(reasons))


def _captured(
    model: nn.Module,
    loss: KnownLoss,
    data: Data,
    layout: ParameterLayout,
    theta: Tensor,
    how: str,
    memory: int,
    bn: str,
    seen: Mapping[int, Tensor],
) -> NativeEngine:
    """The model as ``how`` captures it, compared with the module."""
    own, example, graph = _traced(model, data, how)
    while True:
        few = checked_part(data)
        made: list[Lowered] = []

        def engine_of(
            of: Data,
            loss: KnownLoss,
            own: nn.Module = own,
            example: Tensor = example,
            graph: torch.fx.GraphModule = graph,
            made: list[Lowered] = made,
        ) -> NativeEngine:
            engine = lower(graph, example, own, loss, layout, of, how, memory, made=made)
            if engine.mixes and len(of.targets) != len(of.inputs):
                raise NotLowered(SEVERAL)
            return engine

        try:
            engine = engine_of(few, loss)
            break
        except Needed as need:
            if how != "fx":  # whose graph has the sizes of what it was traced with
                need.samples = len(example)
            packed = data.form is not None
            data = data.with_rows(need)
            if packed:
                example = example_of(own, data)
            else:
                own, example, graph = _traced(model, data, how)
    known = seen_of(seen, data, few)
    problem = check_capture(engine, engine_of, own, loss, layout, theta, few, bn, known)
    if few.sizes != data.sizes:
        engine = engine_of(data, loss)
    if data.form is not None and data.form.rows:  # what a mask hides must not be infinite
        engine.form = data.form
        if not all(map(all_finite, engine.outputs_at(theta[None]))):
            at = next((rows.infinite for rows in data.form.rows if rows.infinite), None)
            why = "a model whose data have masks" if at is None else f"values of the data: {at}"
            raise Final(f"outputs that are not finite, of {why}")
    engine.no_derivatives = problem
    return engine


def _traced(
    model: nn.Module, data: Data, how: str
) -> tuple[nn.Module, Tensor, torch.fx.GraphModule]:
    own = data.module(model)
    example = example_of(own, data)
    wide = example
    if how != "fx" and data.form is not None:  # so that rows behind the inputs are not read as one
        wide = torch.cat([example, example.new_zeros(len(example), 1)], dim=1)
    return own, example, trace(own, wide, how, data.sizes)


def lower_few(
    model: nn.Module,
    loss: KnownLoss,
    layout: ParameterLayout,
    data: Data,
    how: str,
    memory: int,
) -> tuple[NativeEngine, Data]:
    """A captured model over a few samples of a few batches, to be compared with the module."""
    example = example_of(model, data)
    few = checked_part(data)
    with torch.no_grad():
        graph = trace(model, example, how, data.sizes)
        return lower(graph, example, model, loss, layout, few, how, memory), few


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
    trains: bool = False,
    made: list[Lowered] | None = None,
) -> NativeEngine:
    """The graph as a program over the data; with ``collect``, one that finds the running
    statistics of its batch norm and keeps them where the layout has them; with ``trains``, one that
    may be trained as the model would be in train mode, and moves them there. ``made``: what earlier
    calls for the same graph, example and model made of it; gets what this one makes."""
    dtype = data.dtype
    made = [] if made is None else made
    lowered = next((each for each in made if each.serves(data)), None)
    if lowered is None:
        lowered = Lowered(graph, example, model, layout, data, collect, trains)
        made.append(lowered)
    program = lowered.program(dtype)
    if lowered.computed * len(data.inputs) > _MOST_COMPUTED_ANEW:
        raise NotLowered(
            f"{lowered.computed} elements of a parameter that the forward pass computes, for "
            f"{len(data.inputs)} samples: torch, which computes them once for all, is faster"
        )
    if program.mixes:
        program.set_batches(list(data.sizes))
    values = data.inputs.to(dtype)  # of integers, those that an embedding may read are exact
    program.set_data(len(values), values.data_ptr())
    shown = lowered.output
    set_loss(program, loss, data.targets, shown)
    return NativeEngine(program, dtype, loss, data.targets, shown, how, lowered.names, memory)


def _ratio(a: float, denominator: float) -> float:
    """a / denominator; NaN where no target has a weight, as torch's mean."""
    return float(a / denominator) if denominator else float("nan")
