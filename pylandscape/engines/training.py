"""Training by the compiled core: P runs advance by T steps over mini-batches of a landscape's data.

Where train mode computes what eval mode does, the program is the landscape's own. Else the model is
captured again in train mode (a copy): batch norm takes the mini-batch's statistics and moves its
running ones, dropout draws by counter (engines/dropout.py). Either way `_check_train_mode` runs the
module in train mode on a few samples and compares loss, gradient and running statistics; a model
that draws other random numbers there or changes other buffers is refused. The way goes on in
csrc/training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._native import core
from ..errors import InvalidArgument, NotLowered, out_of_memory
from ..lowering.build import Data, check_tensors, example_of
from ..lowering.capture import check_traceable, first_line, refused, restored_attributes, trace
from ..theta.data import untouched_random_state
from ..theta.losses import KnownLoss, why_free
from ..theta.running_statistics import KIND, with_statistics
from ..theta.snapshot import Snapshot
from .capture_check import checked_points
from .contract import RunState
from .dropout import CountedDropout
from .native import SEVERAL, NativeEngine, lower

if TYPE_CHECKING:
    from ..theta.layout import ParameterLayout
    from .contract import Answered, Rule, Stepper

_CHECKED_SAMPLES = 8  # of one mini-batch in train mode
_LANES = 512  # parameters up to which runs in float64 are the lanes of a vector

# The core's name of each hyperparameter that a rule has.
_NAMES: dict[str, dict[str, str]] = {
    "sgd": {"momentum": "momentum", "dampening": "dampening", "nesterov": "nesterov"},
    "adagrad": {"lr_decay": "rate_decay"},
    "rmsprop": {"alpha": "decay", "momentum": "momentum"},
    "adadelta": {"rho": "decay"},
    "adam": {},
    "adamw": {},
}


def build(land: Answered, rule: Rule) -> Stepper:
    """The compiled stepper of a landscape's model, loss and data.

    Raises:
        NotLowered: with the reason, where torch must train.
        InvalidArgument: a rule that is not one of torch's.
    """
    kind, values = _core_rule(rule)
    _check_compiled(land)
    data = Data.of(land.dataset, land.dtype)
    if isinstance(land.native, NativeEngine):
        data = data.like(land.native.form)
    model, layout = _in_train_mode(land)
    model = data.module(model)
    few, rows = _few(land, data)
    points = checked_points(layout, layout.flatten(_tensors(model), land.dtype, land.device))[1:]
    first = _reference(model, land, layout, few, points[0])
    changes = land.has_batchnorm or first.dropouts
    engine = _captured(model, land, layout, data) if changes else _as_evaluated(land)
    statistics = layout.n - land.n_params if changes else 0
    check = _CoreStepper(land, engine, data, "sgd", {"momentum": 0.5}, statistics)
    _compare_step(check, land, first, points[0], rows, len(engine.ops))
    if changes:
        second = _reference(model, land, layout, few, points[1])
        _compare_step(check, land, second, points[1], rows, len(engine.ops))
    return _CoreStepper(land, engine, data, kind, values, statistics)


class CurveSlopes:
    """Losses and gradients along a curve between two points of parameter space, over all data.

    Raises NotLowered, with the reason, where torch must answer.
    """

    def __init__(self, land: Answered, ends: Tensor) -> None:
        """ends: (2, n) float64."""
        _check_compiled(land)
        assert isinstance(land.loss_spec, KnownLoss)
        engine = _as_evaluated(land)
        data = Data.of(land.dataset, land.dtype)
        counts = _counts(land.loss_spec, data.targets, engine)
        kinds = {torch.float32: core.CurveGradientF32, torch.float64: core.CurveGradientF64}
        address = 0 if counts is None else counts.data_ptr()
        self._core = kinds[land.dtype](engine.program, address, ends.contiguous().data_ptr())

    def __call__(self, weights: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """At the points sum_k w_k vertex_k of weights (points, bends + 2), which sum to 1: their
        losses (points,), and the sum over them of w_k times the gradient of L, (bends, n).

        free: the vertices between the ends, (bends, n) float64.
        """
        points, bends = len(weights), len(free)
        losses = torch.empty(points, dtype=torch.float64)
        slopes = torch.empty(free.shape, dtype=torch.float64)
        weights, free = weights.contiguous(), free.contiguous()
        self._core.run(
            points, bends, weights.data_ptr(), free.data_ptr(), losses.data_ptr(),
            slopes.data_ptr(),
        )  # fmt: skip
        return losses, slopes


def _check_compiled(land: Answered) -> None:
    if land.device.type != "cpu":
        raise NotLowered(f"the landscape is on {land.device}: torch trains there")
    if not isinstance(land.loss_spec, KnownLoss):
        raise NotLowered(why_free(land.loss_spec))
    if land.native is None:
        raise NotLowered(land.engine_report().reason or "the values are not compiled")
    refusal = land.native.derivatives_refused()
    if refusal is not None:
        raise NotLowered(refusal)


def _as_evaluated(land: Answered) -> NativeEngine:
    """The landscape's own program. Raises NotLowered where its derivatives are not compiled."""
    engine = land.native
    if not isinstance(engine, NativeEngine):
        raise NotLowered("running statistics that are found anew at every point")
    if engine.mixes:
        raise NotLowered("samples that depend on their batch")
    return engine


def _in_train_mode(land: Answered) -> tuple[nn.Module, ParameterLayout]:
    """A copy of the model, and its parameters followed by its running statistics."""
    floating = {t.dtype for t in land.model.parameters() if t.is_floating_point()}
    model = Snapshot(land.model, None if floating == {land.dtype} else land.dtype).model
    model.train()
    return model, with_statistics(land.layout, model)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _captured(
    model: nn.Module, land: Answered, layout: ParameterLayout, data: Data
) -> NativeEngine:
    """The model as it computes in train mode. Raises NotLowered."""
    assert isinstance(land.loss_spec, KnownLoss)
    check_tensors(model, land.dtype)
    check_traceable(model)
    example = example_of(model, data)
    kept = {name: b.detach().clone() for name, b in model.named_buffers()}
    with untouched_random_state(), refused("train mode"):
        graph = trace(model, example, "fx")
        engine = lower(
            graph, example, model, land.loss_spec, layout, data, "fx", memory=0, trains=True
        )
    with torch.no_grad():  # what the trace moved
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
    if engine.mixes and len(data.targets) != len(data.inputs):
        raise NotLowered(SEVERAL)
    return engine


def _core_rule(rule: Rule) -> tuple[str, dict[str, float]]:
    """The core's name of the rule and its numbers. Raises InvalidArgument."""
    if rule.name not in _NAMES:
        raise InvalidArgument(f"rule: expected one of {', '.join(_NAMES)}, got {rule.name!r}")
    values = {to: float(getattr(rule, name)) for name, to in _NAMES[rule.name].items()}
    values["weight_decay"] = float(rule.weight_decay)
    values["decoupled"] = float(rule.decoupled or rule.name == "adamw")
    if rule.name == "sgd":
        values["from_zero"] = float(rule.from_zero)
    else:
        inside = rule.eps_inside or rule.name == "adadelta"
        values["inside" if inside else "eps"] = float(rule.eps)
    if rule.name in ("adam", "adamw"):
        values["beta1"], values["beta2"] = (float(b) for b in rule.betas)
    if rule.runge_kutta is not None:
        values["a1"], values["a2"], values["q1"] = (float(v) for v in rule.runge_kutta)
    if rule.clip is not None:
        if not rule.clip >= 0:
            raise InvalidArgument(f"rule.clip: expected a norm of at least 0, got {rule.clip!r}")
        values["clip"] = float(rule.clip)
    return "adam" if rule.name == "adamw" else rule.name, values


class _CoreStepper:
    """`Stepper` of csrc/training."""

    def __init__(
        self,
        land: Answered,
        engine: NativeEngine,
        data: Data,
        kind: str,
        values: Mapping[str, float],
        statistics: int = 0,
    ) -> None:
        assert isinstance(land.loss_spec, KnownLoss)
        self._dtype, self._n, self._statistics = land.dtype, land.n_params, statistics
        self._samples = len(data.inputs)
        program = engine.program
        self._least = _least_batch(program)
        counts = _counts(land.loss_spec, data.targets, engine)
        address = 0 if counts is None else counts.data_ptr()
        arguments = (program, kind, dict(values), address)
        self._core: Any = None
        self.lanes = False  # whether runs are the lanes of a vector
        alone = not (statistics or program.mixes or program.draws)
        if self._dtype == torch.float64 and self._n <= _LANES and alone:
            try:
                self._core = core.LaneTraining(*arguments)
                self.lanes = True
            except ValueError:  # convolutions, embeddings, parameters that several ops read ...
                pass
        if self._core is None:
            kinds = {torch.float32: core.TrainingF32, torch.float64: core.TrainingF64}
            self._core = kinds[self._dtype](*arguments, statistics)
        self._slots: int = self._core.slots

    def advance(self, state: RunState, batches: Sequence[Tensor], rates: Tensor) -> Tensor:
        runs = len(state.theta)
        kept = [state.theta, *state.moments]
        if self._statistics:
            kept.append(state.buffers)
        for tensor in kept:
            if tensor.dtype != self._dtype or tensor.device.type != "cpu":
                raise InvalidArgument(
                    f"state: expected {self._dtype} on the CPU, got {tensor.dtype} on "
                    f"{tensor.device}"
                )
            width = self._statistics if tensor is state.buffers else self._n
            if tuple(tensor.shape) != (runs, width) or not tensor.is_contiguous():
                raise InvalidArgument(
                    f"state: expected contiguous ({runs}, {width}), got {tuple(tensor.shape)}"
                )
        steps = [self._indices(batch, runs, t) for t, batch in enumerate(batches)]
        rates = rates.detach().to("cpu", torch.float64).contiguous()
        if tuple(rates.shape) != (len(steps),):
            raise InvalidArgument(
                f"rates: expected ({len(steps)},), one per mini-batch, got {tuple(rates.shape)}"
            )
        if len(state.moments) != self._slots:
            raise InvalidArgument(
                f"state.moments: expected {self._slots} of this rule, got {len(state.moments)}"
            )
        seeds = state.seeds.detach().to("cpu", torch.int64).contiguous()
        if tuple(seeds.shape) != (runs,):
            raise InvalidArgument(f"state.seeds: expected ({runs},), got {tuple(seeds.shape)}")
        losses = torch.empty(runs, len(steps), dtype=torch.float64)
        before = [tensor.clone() for tensor in kept]
        try:
            self._core.advance(
                runs,
                state.theta.data_ptr(),
                [moment.data_ptr() for moment in state.moments],
                state.steps,
                [(b.shape[-1], b.data_ptr(), b.dim() == 2) for b in steps],
                rates.data_ptr(),
                losses.data_ptr(),
                state.buffers.data_ptr() if self._statistics else 0,
                seeds.data_ptr(),
            )
        except BaseException:  # Ctrl-C: some runs are further than others
            for tensor, old in zip(kept, before, strict=True):
                tensor.copy_(old)
            raise
        state.steps += len(steps)
        return losses

    def _indices(self, batch: Tensor, runs: int, step: int) -> Tensor:
        fits = batch.dim() == 1 or (batch.dim() == 2 and len(batch) == runs)
        if batch.dtype != torch.int64 or not fits or batch.shape[-1] == 0:
            raise InvalidArgument(
                f"batches[{step}]: expected int64 (B,) or ({runs}, B), got {batch.dtype} "
                f"{tuple(batch.shape)}"
            )
        low, high = (int(v) for v in torch.aminmax(batch))
        if low < 0 or high >= self._samples:
            raise InvalidArgument(
                f"batches[{step}]: expected samples 0 .. {self._samples - 1}, got {low} .. {high}"
            )
        if batch.shape[-1] < self._least:
            raise InvalidArgument(
                f"batches[{step}]: expected at least {self._least} samples, as batch norm in train "
                f"mode needs more than one value in each channel, got {batch.shape[-1]}; "
                "drop_last=True leaves an epoch's last, smaller batch out"
            )
        return batch.detach().cpu().contiguous()


def _counts(loss: KnownLoss, targets: Tensor, engine: NativeEngine) -> Tensor | None:
    """(N,) float64: what each sample adds to its mini-batch's denominator; None where that is 1."""
    if loss.reduction == "sum":
        return None
    samples = engine.program.samples
    if loss.kind in ("cross_entropy", "nll") and not targets.is_floating_point():
        counted = targets != loss.ignore_index
        own = counted.double()
        if loss.weight is not None:
            own = loss.weight.double().cpu()[targets.where(counted, 0)] * own
        return own.reshape(samples, -1).sum(1).contiguous()
    return torch.full((samples,), engine.denominator / samples, dtype=torch.float64)


def _least_batch(program: Any) -> int:
    norms = [op for op in program.op_list(False) if op["norm"] is not None and op["norm"]["own"]]
    return 2 if any(op["outer"] == 1 for op in norms) else 1


def _few(land: Answered, data: Data) -> tuple[Data, Tensor]:
    """The mini-batch of the comparison, and which samples it has."""
    assert isinstance(land.loss_spec, KnownLoss)
    rows = torch.arange(len(data.inputs))
    targets = data.targets.unflatten(0, (len(data.inputs), -1))
    loss = land.loss_spec
    if loss.kind in ("cross_entropy", "nll") and not targets.is_floating_point():
        counted = (targets != loss.ignore_index).flatten(1).any(1)
        # A mini-batch without a target that counts has no loss.
        rows = rows[counted] if bool(counted.any()) else rows
    rows = rows[:_CHECKED_SAMPLES]
    chosen = targets[rows].flatten(0, 1)
    return replace(data, inputs=data.inputs[rows], targets=chosen, sizes=(len(rows),)), rows


def _counts_batches(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


@dataclass(frozen=True)
class _Reference:
    """What a mini-batch gives in train mode at a point (n + m,)."""

    loss: Tensor
    gradient: Tensor  # (n,)
    statistics: Tensor  # (m,) after it
    dropouts: int


def _reference(
    model: nn.Module, land: Answered, layout: ParameterLayout, few: Data, point: Tensor
) -> _Reference:
    """The module's own; raises NotLowered where train mode is more than a run can carry."""
    assert isinstance(land.loss_spec, KnownLoss)
    n = land.n_params
    buffers = {
        name: torch.zeros_like(b) if _counts_batches(name) else b.detach().clone()
        for name, b in model.named_buffers()
    }
    theta = point[:n].clone().requires_grad_()
    own = layout.unflatten(torch.cat([theta.detach(), point[n:]]))
    state = {
        **{name: p.detach() for name, p in model.named_parameters()},
        **buffers,
        **{name: value.clone() for name, value in own.items()},
        **land.layout.unflatten(theta),
    }
    with untouched_random_state(), restored_attributes(model):
        torch.manual_seed(0)
        drop = CountedDropout(0, 0, 0)
        try:
            with torch.enable_grad(), drop:
                outputs = torch.func.functional_call(model, state, (few.inputs,), tie_weights=True)
                if not isinstance(outputs, Tensor):
                    raise NotLowered(
                        f"train mode gives {type(outputs).__name__} instead of a tensor"
                    )
                denominator = land.loss_spec.denominator(few.targets, tuple(outputs.shape))
                loss = land.loss_spec.total(outputs, few.targets) / (denominator or 1.0)
                (gradient,) = torch.autograd.grad(loss, theta)
        except NotLowered:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            raise NotLowered(f"train mode fails: {first_line(error)}") from error
        dropouts = drop.count
        expected = torch.Generator().manual_seed(dropouts)
        if not torch.equal(torch.get_rng_state(), expected.get_state()):
            raise NotLowered("train mode draws random numbers other than dropout's")
    known = {e.name for e in layout.entries if e.kind == KIND}
    known |= {k for k, name in layout.aliases.items() if name in known}
    for name, old in dict(model.named_buffers()).items():
        if name in known or _counts_batches(name):
            continue
        if not torch.equal(state[name], old):
            raise NotLowered(f"train mode changes the buffer {name!r}")
    moved = layout.flatten({e.name: state[e.name] for e in layout.entries}, land.dtype, land.device)
    return _Reference(loss.detach(), gradient, moved[n:], dropouts)


def _compare_step(
    stepper: _CoreStepper,
    land: Answered,
    want: _Reference,
    point: Tensor,
    rows: Tensor,
    ops: int,
) -> None:
    """A step's loss, gradient (the momentum after it) and statistics must be the module's."""
    n = land.n_params
    theta = point[None, :n].clone()
    momentum, buffers = torch.zeros_like(theta), point[None, n:].clone()
    state = RunState(theta, [momentum], buffers, 0, torch.zeros(1, dtype=torch.int64))
    losses = stepper.advance(state, [rows], torch.ones(1, dtype=torch.float64))
    eps = torch.finfo(land.dtype).eps
    _compare("loss", losses[0, 0], want.loss, 500 * eps * (2 + ops))
    _compare("gradient", momentum[0], want.gradient, 30 * eps**0.5)
    if len(want.statistics):
        _compare("running statistics", buffers[0], want.statistics, 500 * eps * (2 + ops))


def _compare(what: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    got, want = got.double(), want.double()
    finite = torch.isfinite(want)
    scale = float(want[finite].abs().max()) if bool(finite.any()) else 0.0
    gap = float((got - want)[finite].abs().max()) if bool(finite.any()) else 0.0
    if not gap <= tolerance * scale or not bool((torch.isfinite(got) == finite).all()):
        raise NotLowered(
            f"train mode computes something else than the program: its {what} differ by {gap:.3g} "
            f"(scale {scale:.3g})"
        )
