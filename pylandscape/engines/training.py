"""Training by the compiled core: P runs advance by T steps over mini-batches of a landscape's data.

The program is the landscape's own, captured in eval mode. So a model is trained here only where
train mode computes the same: `_check_train_mode` runs the module in train mode on a few samples and
compares loss and gradient; a model that draws random numbers or changes its buffers there is
refused. The way goes on in csrc/training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._native import core
from ..errors import InvalidArgument, NotLowered, out_of_memory
from ..lowering.build import Data
from ..lowering.capture import first_line, restored_attributes
from ..theta.data import untouched_random_state
from ..theta.losses import KnownLoss, why_free
from ..theta.snapshot import Snapshot
from .capture_check import checked_points
from .contract import RunState
from .native import NativeEngine

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
    if land.device.type != "cpu":
        raise NotLowered(f"the landscape is on {land.device}: torch trains there")
    if not isinstance(land.loss_spec, KnownLoss):
        raise NotLowered(why_free(land.loss_spec))
    if land.has_batchnorm:
        raise NotLowered("batch norm trains by the statistics of each mini-batch")
    engine = land.native
    if not isinstance(engine, NativeEngine):
        raise NotLowered(land.engine_report().reason or "the values are not compiled")
    refused = engine.derivatives_refused()
    if refused is not None:
        raise NotLowered(refused)
    data = Data.of(land.dataset, land.dtype)
    _check_train_mode(land, engine, data)
    return _CoreStepper(land, engine, data, kind, values)


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
    ) -> None:
        assert isinstance(land.loss_spec, KnownLoss)
        self._dtype, self._n = land.dtype, land.n_params
        self._samples = len(data.inputs)
        program, _ = engine.sums()
        counts = _counts(land.loss_spec, data.targets, engine)
        address = 0 if counts is None else counts.data_ptr()
        arguments = (program, kind, dict(values), address)
        self._core: Any = None
        self.lanes = False  # whether runs are the lanes of a vector
        if self._dtype == torch.float64 and self._n <= _LANES:
            try:
                self._core = core.LaneTraining(*arguments)
                self.lanes = True
            except ValueError:  # convolutions, embeddings, parameters that several ops read ...
                pass
        if self._core is None:
            kinds = {torch.float32: core.TrainingF32, torch.float64: core.TrainingF64}
            self._core = kinds[self._dtype](*arguments)

        self._slots: int = self._core.slots

    def advance(self, state: RunState, batches: Sequence[Tensor], rates: Tensor) -> Tensor:
        runs = len(state.theta)
        kept = [state.theta, *state.moments]
        for tensor in kept:
            if tensor.dtype != self._dtype or tensor.device.type != "cpu":
                raise InvalidArgument(
                    f"state: expected {self._dtype} on the CPU, got {tensor.dtype} on "
                    f"{tensor.device}"
                )
            if tuple(tensor.shape) != (runs, self._n) or not tensor.is_contiguous():
                raise InvalidArgument(
                    f"state: expected contiguous ({runs}, {self._n}), got {tuple(tensor.shape)}"
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


def _check_train_mode(land: Answered, engine: NativeEngine, data: Data) -> None:
    """Train mode must compute what the program does; raises NotLowered where it does not."""
    assert isinstance(land.loss_spec, KnownLoss)
    counts = _counts(land.loss_spec, data.targets, engine)
    rows = torch.arange(len(data.inputs))
    if counts is not None and bool((counts > 0).any()):
        rows = rows[counts > 0]  # a mini-batch without a target that counts has no loss
    rows = rows[:_CHECKED_SAMPLES]
    targets = data.targets.unflatten(0, (len(data.inputs), -1))[rows].flatten(0, 1)
    few = Data(data.inputs[rows], targets, (len(rows),), data.dtype)
    floating = {t.dtype for t in land.model.parameters() if t.is_floating_point()}
    model = Snapshot(land.model, None if floating == {land.dtype} else land.dtype).model
    model.train()
    point = checked_points(land.layout, land.theta.detach().to("cpu", land.dtype))[1]
    with untouched_random_state(), restored_attributes(model):
        try:
            loss, gradient, why = _train_step(model, land, few, point)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise NotLowered(f"train mode fails: {first_line(error)}") from error
    if why is not None:
        raise NotLowered(why)
    stepper = _CoreStepper(land, engine, data, "sgd", {"momentum": 0.5})
    own_loss, own = _step_of(stepper, point, rows)
    eps = torch.finfo(land.dtype).eps
    _compare("loss", own_loss, loss, 500 * eps * (2 + len(engine.ops)))
    _compare("gradient", own, gradient, 30 * eps**0.5)


def _step_of(stepper: _CoreStepper, point: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A mini-batch's loss and gradient: the momentum after a first step."""
    theta, momentum = point[None].clone(), torch.zeros(1, len(point), dtype=point.dtype)
    seeds = torch.zeros(1, dtype=torch.int64)
    state = RunState(theta, [momentum], theta[:, :0], 0, seeds)
    losses = stepper.advance(state, [rows], torch.ones(1, dtype=torch.float64))
    return losses[0, 0], momentum[0]


def _train_step(
    model: nn.Module, land: Answered, few: Data, point: Tensor
) -> tuple[Tensor, Tensor, str | None]:
    """Loss and gradient of a mini-batch in train mode, or why train mode differs from eval."""
    assert isinstance(land.loss_spec, KnownLoss)
    layout: ParameterLayout = land.layout
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    theta = point.clone().requires_grad_()
    state = {
        **{name: p.detach() for name, p in model.named_parameters()},
        **{name: b.clone() for name, b in buffers.items()},
        **layout.unflatten(theta),
    }
    before = torch.get_rng_state()
    with torch.enable_grad():
        outputs = torch.func.functional_call(model, state, (few.inputs,), tie_weights=True)
        if not isinstance(outputs, Tensor):
            return theta, theta, f"train mode gives {type(outputs).__name__} instead of a tensor"
        if not torch.equal(before, torch.get_rng_state()):
            return theta, theta, "train mode draws random numbers (dropout)"
        for name, old in buffers.items():
            if not torch.equal(state[name], old):
                return theta, theta, f"train mode changes the buffer {name!r}"
        denominator = land.loss_spec.denominator(few.targets, tuple(outputs.shape))
        loss = land.loss_spec.total(outputs, few.targets) / (denominator or 1.0)
    (gradient,) = torch.autograd.grad(loss, theta)
    return loss.detach(), gradient, None


def _compare(what: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    got, want = got.double(), want.double()
    finite = torch.isfinite(want)
    scale = float(want[finite].abs().max()) if bool(finite.any()) else 0.0
    gap = float((got - want)[finite].abs().max()) if bool(finite.any()) else 0.0
    if not gap <= tolerance * scale or not bool((torch.isfinite(got) == finite).all()):
        raise NotLowered(
            f"train mode computes something else than eval mode: its {what} differ by {gap:.3g} "
            f"(scale {scale:.3g})"
        )
