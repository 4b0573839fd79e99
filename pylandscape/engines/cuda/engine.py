"""The native engine on a GPU: the compiled program of a model whose parameters are there.

The model is captured, lowered and checked on the CPU, from a copy of it. Its program then runs on
the device: where the network of a point fits a block's shared memory as one kernel
(csrc/cuda/resident.cu), else by torch's matrix products and convolutions over many points
(program.py), recorded as a CUDA graph where chunks of points repeat (replays.py).
Derivatives are those of derivatives.py, of an op that it does not know the torch engine's.

Results of a network in shared memory have the same bits in any chunk. By torch's products and
convolutions, the same points in chunks of the same sizes give the same bits on one device with one
version of its libraries, and other chunks agree to rounding: the algorithms of cuBLAS and cuDNN
depend on sizes. They are float32 throughout, and none is chosen by timing (precision.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..._native import core, cuda_problem, ops
from ...errors import NotLowered
from ...lowering.build import Data
from ...lowering.capture import check_traceable
from ...lowering.loss import loss_tensors
from ...theta import sampling
from ...theta.checks import as_coefficients
from ...theta.losses import metric_name
from ...theta.snapshot import Snapshot
from .. import native as engine_native
from ..capture_check import check_batches, check_outputs
from ..native import NativeEngine
from .derivatives import AtTheta
from .op import Source
from .parameters import Moved, Parameters, Where
from .precision import exact_float32
from .program import TorchProgram, most_alive, most_extra
from .replays import GraphRecorder, Recorder, Replays

if TYPE_CHECKING:
    from ...theta.data import Dataset
    from ...theta.layout import ParameterLayout
    from ...theta.losses import KnownLoss
    from ..contract import Evaluate, EvaluatePoints

_PARTS_BYTES = 64 << 20  # partial sums of the points of one launch
_WIDE_BYTES = 512 << 20  # weights and values of the points that torch multiplies at once
Moves = list[list[int]] | None


class CudaEngine:
    """Answers questions about L from a compiled program, on ``device``.

    ``kernels`` holds the ops of csrc/binding/program_ops.h and layer_ops.h; ``shared_limit`` is how
    many bytes of shared memory a block may have; ``recorder`` makes what records chunks of points.
    """

    name = "native"

    def __init__(
        self,
        native: NativeEngine,
        loss: KnownLoss,
        data: Data,
        device: torch.device,
        *,
        kernels: Any = ops,
        shared_limit: int,
        instruction_set: str,
        memory: int,
        recorder: Callable[[], Recorder | None] = lambda: None,
    ) -> None:
        self.how, self.ops, self.instruction_set = native.how, native.ops, instruction_set
        self.program, self.dtype, self.device = native.program, data.dtype, device
        self.loss = loss
        self.kernels, self.shared_limit, self.recorder = kernels, shared_limit, recorder
        self.wide_bytes = _WIDE_BYTES
        self.mixes: bool = self.program.mixes  # whether samples depend on their batch
        self.no_derivatives = native.no_derivatives
        self.output = native.output
        self.torch_program = TorchProgram(self.program, kernels, device)
        self.data_targets = data.targets.to(device)
        self.denominator, self.counted = native.denominator, native.counted
        self.slope_denominator = native.slope_denominator
        self.x = data.inputs.to(device, data.dtype).reshape(1, self.program.samples, -1)
        values = self.program.constant_values()
        self.constants = torch.tensor(values, dtype=data.dtype, device=device)
        found = loss_tensors(loss, data.targets, native.output, self.program.samples)
        classes = found.index.numel() > 0
        targets = found.index.to(torch.int32) if classes else found.dense
        self.targets = targets.T.contiguous().to(device)  # (rows, samples)
        weights = [*found.weight, *found.pos_weight]
        self.loss_weights = torch.tensor(weights, dtype=torch.float64, device=device)
        plan = self.program.resident_plan(0, None, shared_limit)[1]
        self.loss_plan = torch.frombuffer(bytearray(plan), dtype=torch.uint8)
        self.derivatives = AtTheta(self, memory)

    def prepare(
        self, theta: Tensor, directions: Tensor, metrics: Sequence[Any], between: bool = False
    ) -> Evaluate:
        """A function of coefficients (g, k) to {metric: (g,)} along directions (k, n).

        The samples' own losses are torch's, of the program's outputs, point by point.
        """
        k = len(directions)
        against = sampling.references(k, between)
        evaluate = self._evaluator(self.ask(theta, directions), metrics, against)

        def at(coefficients: np.ndarray) -> dict[str, np.ndarray]:
            c = as_coefficients(coefficients, k)
            return evaluate(c, sampling.mixture(c, between))

        return at

    def prepare_points(self, metrics: Sequence[Any]) -> EvaluatePoints:
        """The same for arbitrary points (p, n)."""
        return self._evaluator(self.ask(None, None), metrics)

    def outputs_at(self, points: Tensor) -> list[Tensor]:
        """The outputs as the module gives them, at each of the points (p, n)."""
        question = self.ask(None, None)
        return [self.output.as_module(question.outputs(p[None])[0]) for p in points]

    def ask(self, theta: Tensor | None, directions: Tensor | None) -> Question:
        """Theta (n,) and directions (k, n), or free points without them."""
        if theta is not None and directions is not None:
            theta = theta.detach().to(self.device, self.dtype).contiguous()
            directions = directions.detach().to(self.device, self.dtype).contiguous()
        return Question(self, theta, directions)

    def gradient(self, theta: Tensor) -> Tensor:
        """(n,) float64 on the device, summed in double; an op without a derivative: NotLowered."""
        return self.derivatives(theta).total[0] / self.slope_denominator

    def product(self, matrix: str, theta: Tensor, vectors: Tensor) -> Tensor:
        """(k, n) float64 of vectors (k, n), on the device; values at theta are kept for the next
        call. With the theta of the last call, nothing waits for the device."""
        derivatives = self.derivatives(theta)
        v = vectors.detach().to(self.device, self.dtype)
        return derivatives.products(matrix, v, self.product_scale(matrix))

    def derivatives_refused(self) -> str | None:
        """Why derivatives are torch's; None where they are compiled."""
        try:
            self.derivatives.structure()
        except NotLowered as refusal:
            return refusal.reason
        return None

    def products_at(self, matrix: str, theta: Tensor) -> None:
        """None: callers that own memory own the CPU's."""
        return

    def product_scale(self, matrix: str) -> float:
        """What turns sums over samples into L's matrix, as `NativeEngine.product_scale`."""
        if matrix == "covariance":
            return float(self.program.samples / self.slope_denominator**2)
        return 1.0 / self.slope_denominator

    def per_sample_gradients(self, theta: Tensor) -> Tensor:
        """(samples, n) of the program's dtype, on the device; their mean is the gradient."""
        derivatives = self.derivatives(theta)
        result = self.x.new_zeros(self.program.samples, self.program.n)
        derivatives.sample_gradients(result)
        return result.mul_(self.program.samples / self.slope_denominator)

    def _evaluator(self, question: Question, metrics: Sequence[Any], references: Any = None) -> Any:
        wants_accuracy = "accuracy" in metrics
        callables = [metric for metric in metrics if callable(metric)]
        errors = sampling.asked(metrics)
        count = self.program.samples
        shares = np.empty(0)
        if errors:
            shares = self.loss.sample_shares(self.data_targets, count).cpu().numpy()

        def own_losses(outputs: Tensor) -> np.ndarray:
            found = self.loss.sample_totals(outputs, self.data_targets, count)
            return np.asarray(found.cpu().numpy())

        def outputs_at(coordinates: Any) -> Tensor:
            return self.output.as_module(question.outputs(coordinates)[0])

        against = None
        if sampling.DIFFERENCE in errors:
            against = np.stack([own_losses(outputs_at(c[None])) for c in references])

        def evaluate(coordinates: Any, weights: Any = None) -> dict[str, np.ndarray]:
            sums = question.sums(coordinates, hits=wants_accuracy).cpu().numpy()
            with np.errstate(divide="ignore", invalid="ignore"):
                values = {"loss": sums[0] / self.denominator}
                if wants_accuracy:
                    values["accuracy"] = sums[1] / self.counted
            for metric in (*callables, *errors):
                values[metric_name(metric)] = np.empty(len(coordinates))
            for i in range(len(coordinates) if callables or errors else 0):
                outputs = outputs_at(coordinates[i : i + 1])
                for metric in callables:
                    values[metric_name(metric)][i] = float(metric(outputs, self.data_targets))
                own = own_losses(outputs) if errors else np.empty(0)
                for name in errors:
                    apart = own
                    if against is not None and name == sampling.DIFFERENCE:
                        apart = own - weights[i] @ against
                    values[name][i] = sampling.squares_of(apart, shares)
            for name in errors:
                values[name] = sampling.errors(values[name], count, self.denominator)
            return {metric_name(m): values[metric_name(m)] for m in metrics}

        return evaluate


class Question:
    """One theta with its directions, or free points. What is the same at all points is computed
    here, once; then `sums` and `outputs` put their work on torch's current stream and wait for
    nothing."""

    def __init__(self, engine: CudaEngine, theta: Tensor | None, directions: Tensor | None) -> None:
        with exact_float32():
            self._prepare(engine, theta, directions)

    def _prepare(self, engine: CudaEngine, theta: Tensor | None, directions: Tensor | None) -> None:
        self._e, self._theta, self._d = engine, theta, directions
        self._replays = Replays(engine.recorder())
        self._sizes: tuple[Any, tuple[int, int]] | None = None
        moves = self._moves()
        k = 0 if directions is None else len(directions)
        reason, plan, entries, external, about = engine.program.resident_plan(
            k, moves, engine.shared_limit
        )
        self.reason: str = reason  # why the network does not fit a block, or ""
        self.about: dict[str, Any] = about
        self._plan = torch.frombuffer(bytearray(plan), dtype=torch.uint8)
        self._todo = [i for i, fixed in enumerate(about["fixed"]) if not fixed]
        self._at_origin = self._origin_parameters()
        fixed = self._fixed_values([i for i, f in enumerate(about["fixed"]) if f])
        terms = {
            op: (engine.torch_program.products(
                engine.torch_program.ops[op], fixed[slot], self._at_origin,
                [self._along(j) for j in moved], bias,
            ), moved, bias)
            for slot, op, bias, moved in external
            if op >= 0
        }  # fmt: skip
        if reason:
            self._prepare_wide(fixed, terms, moves)
            return
        rows = [
            fixed[slot][0].T if op < 0 else terms[op][0].permute(0, 2, 1).flatten(0, 1)
            for slot, op, _, _ in external
        ]
        none = engine.x.new_empty(0, engine.program.samples)
        self._external = torch.cat([none, *rows]).contiguous()
        where = torch.frombuffer(bytearray(entries), dtype=torch.int32) if entries else None
        listed = torch.empty(0, dtype=torch.int32) if where is None else where
        self._list = listed.to(engine.device)
        packed = listed[: about["weights"]].long().to(engine.device)
        self._base = self._pack(packed, theta, engine.constants)
        zeros = torch.zeros_like(engine.constants)
        parts = [self._pack(packed, d, zeros) for d in (() if directions is None else directions)]
        self._directions = torch.stack(parts) if parts else engine.x.new_empty(0)

    def sums(self, coordinates: Any, hits: bool = False) -> Tensor:
        """(2, g) float64 on the device: the sums of the loss terms and, if asked for, of hits, at
        coefficients (g, k) or points (g, n)."""
        c = self._coordinates(coordinates)
        step = max(1, _PARTS_BYTES // (16 * -(-self._e.program.samples // core.WARP)))
        if len(c) == 0:
            return torch.zeros(2, 0, dtype=torch.float64, device=self._e.device)
        ask = self._wide_sums if self.reason else self._resident_sums
        with exact_float32():
            found = [ask(part, hits) for part in c.split(step)]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def outputs(self, coordinates: Any) -> Tensor:
        """(g, samples, *rows): the program's outputs."""
        c = self._coordinates(coordinates)
        shape = (len(c), self._e.program.samples, *self._e.output.rows())
        if self.reason:
            with exact_float32():
                return self._wide_outputs(c).reshape(shape)
        found = self._e.kernels.resident_outputs(*self._resident(), c)
        return torch.as_tensor(found).view(shape)

    def _coordinates(self, coordinates: Any) -> Tensor:
        width = self._e.program.n if self._d is None else len(self._d)
        c = torch.as_tensor(coordinates).detach().to(self._e.device, self._e.dtype).contiguous()
        if c.dim() != 2 or c.shape[1] != width:
            raise ValueError(f"coordinates: expected (g, {width}), got {tuple(c.shape)}")
        return c

    def _moves(self) -> Moves:
        """By use, the directions that move it; None for free points."""
        if self._d is None:
            return None
        uses = self._e.program.uses()
        none = torch.zeros(len(self._d), dtype=torch.bool, device=self._e.device)
        moved = [(self._d[:, at : at + size] != 0).any(1) if at >= 0 else none for at, size in uses]
        table = torch.stack(moved).cpu().tolist() if moved else []
        return [[j for j, moves in enumerate(row) if moves] for row in table]

    def _fixed_values(self, todo: list[int]) -> dict[int, Tensor]:
        """By slot (1, samples, features), all that no point changes."""
        values = {0: self._e.x}
        for i in todo:  # one by one: every value is kept
            found = dict(values)
            self._e.torch_program.run([i], found, self._at_origin)
            op = self._e.torch_program.ops[i]
            values[op.output] = found[op.output].expand(1, self._e.program.samples, -1)
        return values

    def _origin_parameters(self) -> Parameters:
        """Of what is the same at all points."""
        e = self._e
        theta = e.constants.new_zeros(e.program.n) if self._theta is None else self._theta
        none = theta.new_empty(0, e.program.n)
        where = Where(e.kernels, theta, none, e.constants, frozenset(), None)
        return Parameters(where, theta.new_empty(1, 0))

    def _along(self, j: int) -> Callable[[tuple[int, int]], Tensor]:
        def parameters(use: tuple[int, int]) -> Tensor:
            assert self._d is not None
            return self._d[j : j + 1, use[0] : use[0] + use[1]]

        return parameters

    def _pack(self, where: Tensor, theta: Tensor | None, constants: Tensor) -> Tensor:
        """The packed weights of theta (n,), in the order of the plan; without it, zeros."""
        own = constants.new_zeros(self._e.program.n) if theta is None else theta
        source = torch.cat([own, constants, constants.new_zeros(1)])
        n = self._e.program.n
        place = torch.where(where >= 0, where, n - 1 - where)
        return source[torch.where(where == core.RESIDENT_FILL, len(source) - 1, place)]

    def _resident(self) -> tuple[Tensor, ...]:
        e = self._e
        return (self._plan, self._external, self._list, e.targets, e.loss_weights, self._base,
                self._directions)  # fmt: skip

    def _resident_sums(self, c: Tensor, hits: bool) -> Tensor:
        return torch.as_tensor(self._e.kernels.resident_losses(*self._resident(), c, hits))

    def _prepare_wide(self, fixed: dict[int, Tensor], terms: dict[int, Any], moves: Moves) -> None:
        e, device = self._e, self._e.device
        ops = e.torch_program.ops
        self._fixed = fixed
        self._terms = {
            i: (term, torch.tensor(moved, dtype=torch.int64, device=device), bias)
            for i, (term, moved, bias) in terms.items()
        }
        none = e.constants.new_empty(0, e.program.n)
        if self._theta is None or self._d is None or moves is None:
            self._where = Where(e.kernels, None, none, e.constants, None, None)
            return
        moved = frozenset(
            use for use, directions in zip(e.program.uses(), moves, strict=True) if directions
        )
        read: list[Source] = []
        for i in self._todo:
            own: list[Source | None] = [ops[i].bias] if i in terms else [*ops[i].uses()]
            if not ops[i].folded():
                read += [use for use in own if use is not None and use in moved]
        together = Moved(self._theta, self._d, read)
        self._where = Where(e.kernels, self._theta, self._d, e.constants, moved, together)

    def _wide_sums(self, c: Tensor, hits: bool) -> Tensor:
        _, step = self._tile_and_step()
        sums = [self._replays(self._chunk_sums, own, hits, chunk=step) for own in c.split(step)]
        return sums[0] if len(sums) == 1 else torch.cat(sums, 1)

    def _tile_and_step(self) -> tuple[int, int]:
        """Samples of a tile and points of a chunk, for the memory that they may take."""
        e = self._e
        for_what = (e.wide_bytes, e.torch_program.way)
        if self._sizes is None or self._sizes[0] != for_what:
            self._sizes = (for_what, self._plan_wide())
        return self._sizes[1]

    def _plan_wide(self) -> tuple[int, int]:
        e = self._e
        size = e.x.element_size()
        todo = [i for i in self._todo if i not in self._terms]
        each = most_alive(e.torch_program, self._todo, e.program.features)
        tile = e.program.samples
        if e.program.mixes:
            tile = max(e.program.batches)
        else:
            tile = min(tile, max(core.WARP, e.wide_bytes // (size * each) // core.WARP * core.WARP))
        point = each * tile + most_extra(e.torch_program, todo, tile) + 2 * e.program.n
        return tile, min(65535, max(1, e.wide_bytes // (size * point)))

    def _chunk_sums(self, c: Tensor, hits: bool) -> Tensor:
        """(2, g). The same launches for all c of one shape, and no wait: it may be recorded."""
        e, samples = self._e, self._e.program.samples
        parameters = Parameters(self._where, c)
        shape = (len(c), -(-samples // core.WARP), 2)
        parts = torch.empty(shape, dtype=torch.float64, device=e.device)

        def add(outputs: Tensor, first: int) -> None:
            e.kernels.output_losses_(
                self._plan, outputs.contiguous(), first, e.targets, e.loss_weights, parts, hits
            )

        if e.program.mixes:  # whose batches begin anywhere
            add(self._by_parts(c, parameters), 0)
        else:
            tile, _ = self._tile_and_step()
            for first in range(0, samples, tile):
                add(self._run_wide(c, parameters, first, min(tile, samples - first)), first)
        return torch.as_tensor(e.kernels.sum_parts(parts))

    def _wide_outputs(self, c: Tensor) -> Tensor:
        """(g, samples, rows), in chunks of points and samples."""
        _, step = self._tile_and_step()
        found = [self._by_parts(own, Parameters(self._where, own)) for own in c.split(step)]
        return torch.cat(found)

    def _by_parts(self, c: Tensor, parameters: Parameters) -> Tensor:
        """(g, samples, rows), batch by batch where samples depend on theirs, else tile by tile."""
        e, tile = self._e, self._tile_and_step()[0]
        sizes = e.program.batches if e.program.mixes else [
            min(tile, e.program.samples - first) for first in range(0, e.program.samples, tile)
        ]  # fmt: skip
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        parts = zip(starts, sizes, strict=True)
        return torch.cat([self._run_wide(c, parameters, *part) for part in parts], 1)

    def _run_wide(self, c: Tensor, parameters: Parameters, first: int, count: int) -> Tensor:
        """The outputs (g, count, features) of some samples."""
        program = self._e.torch_program
        last = first + count
        values = {slot: value[:, first:last] for slot, value in self._fixed.items()}
        todo = []
        for i in self._todo:
            if i not in self._terms:
                todo.append(i)
                continue
            terms, moved, bias = self._terms[i]
            op = program.ops[i]
            own = None
            if op.bias is not None and not bias:
                own = parameters(op.bias).expand(len(c), -1)
            some = c if len(moved) == c.shape[1] else c.index_select(1, moved)
            values[op.output] = program.combine(op, terms[:, first:last].contiguous(), some, own)
        program.run(todo, values, parameters)
        return values[program.output].expand(len(c), count, -1)


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
) -> CudaEngine:
    """Captures, lowers and checks the model; raises NotLowered with the reason where it cannot."""
    problem = cuda_problem()
    if problem is not None:
        raise NotLowered(problem)
    device = theta.device
    properties = torch.cuda.get_device_properties(device)
    return lower(
        model,
        loss,
        dataset,
        layout,
        theta,
        dtype=dtype,
        memory=memory,
        bn=bn,
        device=device,
        kernels=ops,
        shared_limit=int(ops.cuda_shared_limit(device.index)),
        instruction_set=f"cuda sm_{properties.major}{properties.minor}",
        recorder=lambda: GraphRecorder(device),
    )


def lower(
    model: nn.Module,
    loss: KnownLoss,
    dataset: Dataset,
    layout: ParameterLayout,
    theta: Tensor,
    *,
    dtype: torch.dtype,
    memory: int,
    bn: str,
    device: torch.device,
    kernels: Any,
    shared_limit: int,
    instruction_set: str,
    recorder: Callable[[], Recorder | None] = lambda: None,
) -> CudaEngine:
    """`build` for given kernels."""
    if bn == "recompute":  # every point would run all batches twice, and keep statistics between
        raise NotLowered('bn="recompute" runs on the CPU\'s native engine only')
    check_traceable(model)
    try:
        own = Snapshot(model, device=torch.device("cpu")).model
    except Exception as error:
        raise NotLowered(
            f"the model could not be copied to the CPU: {type(error).__name__}: {error}"
        ) from error
    native = engine_native.build(
        own, loss, dataset, layout, theta.cpu(), dtype=dtype, memory=memory, bn=bn
    )
    data = Data.of(dataset, dtype).like(native.form)
    own = data.module(own)

    def engine_of(lowered: NativeEngine, some: Data) -> CudaEngine:
        return CudaEngine(
            lowered,
            loss,
            some,
            device,
            kernels=kernels,
            shared_limit=shared_limit,
            instruction_set=instruction_set,
            memory=memory,
            recorder=recorder,
        )

    engine = engine_of(native, data)
    if engine.mixes:
        small, few = engine_native.lower_few(own, loss, layout, data, native.how, memory)
        check_batches(engine_of(small, few), own, loss, layout, theta, few, bn)
    else:
        check_outputs(engine, own, layout, theta, data)
    return engine
