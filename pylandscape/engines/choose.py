"""Who answers for a landscape, and why: the compiled engine of its device, or torch's.

The way goes on in engines/native.py (CPU), engines/recompute.py (CPU, statistics of the data found
anew at every point) and engines/cuda/engine.py; what they all answer is in engines/contract.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..errors import InvalidArgument, NotLowered
from ..lowering.capture import refused
from ..theta.losses import KnownLoss, why_free
from . import equal_loss, native, recompute
from .capture_check import MIXED
from .eager import TorchEngine
from .forward_pass import eval_mode

if TYPE_CHECKING:
    from ..theta.layout import ParameterLayout
    from ..theta.space import Problem
    from .contract import Build, CompiledEngine


@dataclass(frozen=True)
class EngineReport:
    """Which engine answers, and why: ``reason`` is None for the native engine.

    ``seconds``: what capture, lowering and the comparison with the module took. ``derivatives``: of
    the native engine, why gradients and products run in torch nevertheless; None where they are
    compiled too. ``samples``: why the samples' own gradients and their covariance do, where the
    others are compiled. ``arithmetic``: how a model of half precision is computed. ``note``: where
    derivatives are not the slope of the losses (`Landscape.slope_mismatch`). ``data``: which
    subset of the data is taken; None for all. ``computed``: what numbers they are: mode, frozen
    parameters that move, how the data were read (`Landscape.repr`).
    """

    engine: str
    reason: str | None
    seconds: float
    capture: str | None = None
    ops: tuple[str, ...] = ()
    instruction_set: str | None = None
    derivatives: str | None = None
    arithmetic: str | None = None
    note: str | None = None
    data: str | None = None
    computed: str | None = None
    samples: str | None = None

    def __str__(self) -> str:
        more = "" if self.arithmetic is None else f"; {self.arithmetic}"
        parts = (self.data, self.computed, self.note)
        end = "".join(f"; {each}" for each in parts if each is not None)
        if self.reason is not None:
            return f"torch ({self.reason}{more}){end}"
        ops = ", ".join(dict.fromkeys(self.ops))
        about = (
            f"{self.instruction_set}; captured by {self.capture} in {self.seconds * 1e3:.0f} ms; "
            f"ops: {ops}{more}"
        )
        if self.derivatives is not None:
            return f"values native ({about}), derivatives torch ({self.derivatives}){end}"
        if self.samples is not None:
            return f"native ({about}), the samples' own derivatives torch ({self.samples}){end}"
        return f"native ({about}){end}"


def choose(
    problem: Problem, eager: TorchEngine, *, bn: str, dtype: torch.dtype | None, engine: str
) -> tuple[CompiledEngine | None, EngineReport]:
    """The compiled engine of a problem, or None where torch's must answer, and the report.

    Args:
        eager: torch's engine of the same problem.
        bn: the batch-norm mode in effect: "eval" for a model without batch norm.
        dtype: what the caller asked for; None is the model's own.
        engine: "auto", "native" or "torch".

    Raises:
        InvalidArgument: ``engine`` is "native" and the model cannot be compiled.
    """
    start = time.perf_counter()
    arithmetic = _half(problem.layout, dtype)
    if engine == "torch":
        return None, EngineReport("torch", "asked for", 0.0, arithmetic=arithmetic)
    try:
        obstacle = eager.obstacle()
        if obstacle is not None:
            raise NotLowered(obstacle)
        compiled = _compiled(problem, eager, bn)
        eager.check_state(compiled)
    except NotLowered as refusal:
        if engine == "native":
            raise InvalidArgument(
                f"engine: expected a model that the native engine can run, but {refusal.reason}"
            ) from refusal
        seconds = time.perf_counter() - start
        return None, EngineReport("torch", refusal.reason, seconds, arithmetic=arithmetic)
    why = compiled.derivatives_refused()
    # With bn="batch" nobody has derivatives of a sample, torch neither.
    of_samples = MIXED if why is None and compiled.mixes and bn != "batch" else None
    return compiled, EngineReport(
        "native",
        None,
        time.perf_counter() - start,
        compiled.how,
        compiled.ops,
        compiled.instruction_set,
        why,
        arithmetic,
        samples=of_samples,
    )


def _compiled(problem: Problem, eager: TorchEngine, bn: str) -> CompiledEngine:
    """The engine of the device and the batch-norm mode. Raises NotLowered."""
    if not isinstance(problem.loss_spec, KnownLoss):
        raise NotLowered(equal_loss.hint(eager) or why_free(problem.loss_spec))
    build: Build = recompute.build if bn == "recompute" else partial(native.build, seen=eager.seen)
    if problem.device.type == "cuda":
        from .cuda.engine import build  # loads nothing of it elsewhere
    elif problem.device.type != "cpu":
        raise NotLowered(f"the landscape is on {problem.device}")
    with eager.session(), eval_mode(problem.model, bn == "batch"), refused("capture"):
        return build(
            problem.model,
            problem.loss_spec,
            problem.dataset,
            problem.moved,
            problem.origin,
            dtype=problem.dtype,
            memory=problem.memory,
            bn=bn,
        )


def _half(layout: ParameterLayout, dtype: torch.dtype | None) -> str | None:
    """How a model of half precision is computed; None for others."""
    names = layout.half
    if names is None:
        return None
    if dtype is not None:
        return f"a {names} model, converted to {dtype}".replace("torch.", "")
    return (
        f"a {names} model: theta is float32 and rounded to {names} at every point, the forward "
        f"pass runs in {names}; dtype=torch.float32 computes it in float32"
    )
