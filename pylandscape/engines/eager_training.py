"""Training steps by torch: the `Stepper` for every model, one run after the other.

The model is a copy of the landscape's, in train mode: batch norm normalises by the mini-batch and
moves its running statistics as torch does, dropout draws by counter as in the compiled core
(engines/dropout.py), other random numbers come from generators that are seeded for each (run's
seed, step), the same in both stages of Runge-Kutta. What else the copy keeps between calls
starts anew at every step; a buffer that changes and is no running statistic is refused, since a run
does not carry it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import all_finite
from ..errors import InvalidArgument, PylandscapeError, out_of_memory
from ..theta.data import Batch
from ..theta.losses import KnownLoss, Objective, as_scalar
from ..theta.running_statistics import KIND, with_statistics
from ..theta.samples import Samples
from ..theta.space import Problem
from .contract import Rule, RunState
from .dropout import CountedDropout
from .eager import TorchEngine
from .eager_derivatives import check_reached, explained
from .forward_pass import call_model, failed
from .update_rules import apply

_COUNTER = "num_batches_tracked"


class Trained(Problem, Protocol):
    """A landscape that has torch's engine."""

    @property
    def eager(self) -> TorchEngine:
        """torch's engine of it."""


class TorchStepper:
    """Satisfies `contract.Stepper` for any model, on any device.

    Args:
        land: whose model, loss and data; none of them is changed.
        rule: the optimiser.

    Raises:
        InvalidArgument: data that cannot be cut into mini-batches.
    """

    def __init__(self, land: Trained, rule: Rule) -> None:
        self._rule = rule
        self._layout = with_statistics(land.layout, land.model)
        self._engine = TorchEngine(
            land.model, land.loss_spec, land.eager.batches, self._layout,
            dtype=None, device=land.device, bn="eval", needs_grad=True,
            autocast=land.eager.autocast,
        )  # fmt: skip
        self._samples = Samples(land.eager.batches)
        self._n = land.layout.n
        self._model = self._engine.model
        self._counters = [
            m.num_batches_tracked
            for m in self._model.modules()
            if isinstance(m, nn.modules.batchnorm._NormBase)
            and m.momentum is None
            and m.num_batches_tracked is not None
        ]
        self._calls: list[int] | None = None  # of them, in a pass
        self._engine.train()
        self._checked = False

    def advance(self, state: RunState, batches: Sequence[Tensor], rates: Tensor) -> Tensor:
        """As `contract.Stepper`.

        Raises:
            InvalidArgument: the forward pass changes a buffer that is no running statistic.
        """
        count = len(state.theta)
        losses = torch.empty(count, len(batches), dtype=torch.float64)
        with self._session():
            for p in range(count):
                own = [moment[p] for moment in state.moments]
                for t, rows in enumerate(batches):
                    batch = self._samples.take(rows if rows.dim() == 1 else rows[p])
                    step, lr = state.steps + t, float(rates[t])
                    losses[p, t], g = self._gradient(state, p, batch, step, lr)
                    apply(self._rule, state.theta[p], g, own, step + 1, lr)
        state.steps += len(batches)
        return losses

    @contextmanager
    def _session(self) -> Iterator[None]:
        with self._engine.session(), torch.no_grad():
            yield

    def _gradient(
        self, state: RunState, p: int, batch: Batch, step: int, lr: float
    ) -> tuple[float, Tensor]:
        """The mini-batch's loss at theta_p, and the gradient of the step; moves statistics."""
        theta, stages = state.theta[p], self._rule.runge_kutta
        passes = 1 if stages is None else 2
        loss, g = self._pass(state, p, theta, batch, step, step * passes)
        if stages is None:
            return loss, g
        a1, a2, q1 = stages
        _, second = self._pass(
            state, p, theta.add(g, alpha=-q1 * lr), batch, step, step * passes + 1
        )
        return loss, g.mul_(a1).add_(second, alpha=a2)

    def _pass(
        self, state: RunState, p: int, theta: Tensor, batch: Batch, step: int, before: int
    ) -> tuple[float, Tensor]:
        """Loss and gradient (n,) of the mini-batch at theta (n,); ``before``: passes of the run."""
        engine = self._engine
        point, seed = torch.cat([theta, state.buffers[p].to(theta)]), int(state.seeds[p])
        if self._counters and self._calls is None:
            engine.move(point)
            self._calls = self._counted(batch, seed, step)
        engine.move(point)
        for counter, calls in zip(self._counters, self._calls or (), strict=True):
            counter.fill_(before * calls)
        start = _seed(seed, step, engine.device)
        kept = None if self._checked else self._other_buffers()
        loss: Tensor | None = None
        parts: Sequence[Tensor | None] = [None] * len(engine.leaves)  # where autograd finds no way
        try:
            with torch.enable_grad(), CountedDropout(seed, step, start):
                loss = self._loss(batch)
                if loss.requires_grad:
                    parts = torch.autograd.grad(loss, engine.leaves, allow_unused=True)
        except PylandscapeError:
            raise
        except Exception as error:
            if out_of_memory(error) or all_finite(theta):
                ours = failed(error) if loss is None else explained(error, "train")
                raise ours from error
            return float("nan"), torch.full_like(theta, torch.nan)  # code that dislikes NaN
        if kept is not None:
            self._check(kept)
        state.buffers[p] = engine.parameters.placed()[self._n :].to(state.buffers)
        if kept is not None:
            check_reached(engine, any(part is not None for part in parts), "train")
        zero = theta.new_zeros(())
        flat = [
            zero.expand(leaf.numel()) if part is None else part.detach().reshape(-1).to(theta)
            for part, leaf in zip(parts, engine.leaves, strict=True)
        ]
        return float(loss.detach()), torch.cat(flat)

    def _counted(self, batch: Batch, seed: int, step: int) -> list[int]:
        """How often a pass runs each of the norms that average over all of their batches."""
        for counter in self._counters:
            counter.zero_()
        with CountedDropout(seed, step, _seed(seed, step, self._engine.device)):
            self._loss(batch)
        return [int(counter) for counter in self._counters]

    def _loss(self, batch: Batch) -> Tensor:
        """The mini-batch's loss by its own denominator, a scalar."""
        spec = self._engine.loss
        if isinstance(spec, Objective):
            return as_scalar(spec.fn(self._model, batch.raw), "objective")
        output = call_model(self._model, batch.inputs)
        if isinstance(spec, KnownLoss):
            return spec.total(output, batch.target) / spec.denominator(
                batch.target, tuple(output.shape)
            )
        return as_scalar(spec.fn(output, batch.target), "loss")

    def _other_buffers(self) -> dict[str, Tensor]:
        known = {e.name for e in self._layout.entries if e.kind == KIND}
        known |= {k for k, own in self._layout.aliases.items() if own in known}
        return {
            name: buffer.detach().clone()
            for name, buffer in self._model.named_buffers()
            if name not in known and name.rpartition(".")[2] != _COUNTER
        }

    def _check(self, kept: dict[str, Tensor]) -> None:
        now = dict(self._model.named_buffers())
        for name, before in kept.items():
            if name not in now or not torch.equal(
                torch.nan_to_num(now[name]), torch.nan_to_num(before)
            ):
                raise InvalidArgument(
                    f"model: in train mode its forward pass changes the buffer {name!r}, which is "
                    "no running mean or variance of a norm layer; a run does not carry it. Train "
                    "such a model in a loop of your own with pl.Recorder"
                )
        self._checked = True


def _seed(seed: int, step: int, device: torch.device) -> int:
    """All global generators, for one pass of a run; their states are put back by the session.
    Gives the seed of torch's."""
    mixed = _mixed(seed, step)
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002
    return mixed


def _mixed(seed: int, step: int) -> int:
    """A seed below 2^63 that differs in all bits between neighbours (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + step + 0x632BE59BD9B4E019) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> shift)) * factor % 2**64
    return (z ^ (z >> 31)) >> 1
