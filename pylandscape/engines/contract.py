"""What every engine answers, and what each of its answers is.

`Engine`: one landscape's L at any theta. Satisfied by `eager.TorchEngine` and by all compiled ones.
`CompiledEngine`: what a captured model can say besides. Satisfied by `native.NativeEngine`,
    `recompute.RecomputeEngine` and `cuda.engine.CudaEngine`.
`PointEngine`: L and its derivatives at many points of a small network at once. Satisfied by
    `points.native.NativePoints`, `points.cuda.PointsCuda`, `points.eager.TorchPoints`, and by
    `points.evaluator.PointEvaluator`, which chooses among them.

`choose.py` makes the compiled engine of a landscape. Type checkers hold the classes to these
contracts where they are returned as such, and tests/test_engine_contract.py the shapes.

`Stepper`: advances training runs by steps of an optimiser, whose description is a `Rule`.

Shapes: n counts what the landscape's ``moved`` layout holds, running statistics among it where
these move; N samples; k directions or vectors; g coefficients; p points. Arguments may be of any
floating dtype and on any device; an engine converts them to its own. No call changes an argument,
the model or the data.

Errors: `NotLowered`, with the reason, where an engine has no such answer and torch's must be asked;
`InvalidArgument` where torch has none either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..theta.space import Problem

if TYPE_CHECKING:
    from ..theta.data import Dataset
    from ..theta.layout import ParameterLayout
    from ..theta.losses import KnownLoss
    from .eager_switches import Autocast

Values = dict[str, np.ndarray]  # {metric: (g,) float64}; a callable under its __name__
Evaluate = Callable[[np.ndarray], Values]  # of coefficients (g, k) float64
EvaluatePoints = Callable[[Tensor], Values]  # of points (p, n)
Losses = np.ndarray  # (p,) float64
# (the core's derivatives at theta, which of its matrices, what its sums are multiplied by)
CoreProducts = Callable[[], tuple[Any, Any, float]]


class Engine(Protocol):
    """Answers questions about L = the loss of the concatenated data, at any theta."""

    @property
    def name(self) -> str:
        """ "native" or "torch", as `Landscape.engine` shows it."""

    def prepare(
        self, theta: Tensor, directions: Tensor, metrics: Sequence[Any], between: bool = False
    ) -> Evaluate:
        """A function of coefficients C (g, k) to the metrics at theta + C D.

        theta (n,), directions D (k, n). ``metrics``: "loss", "accuracy", "standard_error",
        "difference_standard_error" (theta/sampling.py; ``between``: to a mixture of the losses at
        theta + D instead of that at theta), or callables of the whole
        data's outputs and targets, giving one number. What is the same at all points is computed
        here, once; how coefficients are cut into calls changes no value. The function raises
        InvalidArgument for coefficients of another shape.
        """

    def prepare_points(self, metrics: Sequence[Any]) -> EvaluatePoints:
        """The same for points (p, n), which have no differences."""

    def gradient(self, theta: Tensor) -> Tensor:
        """dL/dtheta (n,) float64 at theta (n,). Raises NotLowered."""

    def product(self, matrix: str, theta: Tensor, vectors: Tensor) -> Tensor:
        """A v_i (k, n) float64 for the rows of vectors (k, n).

        ``matrix``: "hessian", "gauss_newton" or "covariance" at theta (n,). Values at theta are
        kept for the next call. No product mixes vectors: a row's result does not depend on the
        others. Raises NotLowered, InvalidArgument.
        """

    def per_sample_gradients(self, theta: Tensor) -> Tensor:
        """The samples' own gradients (N, n) of the engine's dtype, whose mean is `gradient`.

        Raises NotLowered, InvalidArgument.
        """


class CompiledEngine(Engine, Protocol):
    """An engine that a capture of the model became (csrc/program)."""

    no_derivatives: str | None  # why a capture has values alone; None: gradients agreed too

    @property
    def mixes(self) -> bool:
        """Whether a sample's output depends on its batch (bn="batch", norms that track no
        statistics): there are no compiled derivatives of each sample then, nor their covariance."""

    @property
    def how(self) -> str:
        """What captured the model: "fx" or "export"."""

    @property
    def ops(self) -> tuple[str, ...]:
        """The ops of the program, in order."""

    @property
    def instruction_set(self) -> str:
        """What the kernels were compiled for, or the GPU's name."""

    def outputs_at(self, points: Tensor) -> list[Tensor]:
        """The outputs as the module gives them, of all samples, at each of the points (p, n)."""

    def derivatives_refused(self) -> str | None:
        """Why `gradient`, `product` and `per_sample_gradients` raise NotLowered; None where they
        answer (where it `mixes`, those that are of each sample do not)."""

    def products_at(self, matrix: str, theta: Tensor) -> CoreProducts | None:
        """What multiplies with a matrix (as in `product`) at theta (n,) from within the core.

        None where the core has no such products, or not on the CPU. Who calls the function keeps
        what it gives for as long as the core uses it.
        """


class Build(Protocol):
    """What makes a compiled engine: ``native.build``, ``recompute.build``, ``cuda.engine.build``.

    It captures, lowers and compares with the module. ``model`` is in eval mode, with bn="batch" its
    batch norm in train mode; ``layout`` and ``theta`` (n,) are the landscape's ``moved`` and
    ``origin``; ``memory`` bytes may be kept by derivatives. Raises NotLowered with the reason.
    """

    def __call__(
        self,
        model: nn.Module,
        loss: KnownLoss,
        dataset: Dataset,
        layout: ParameterLayout,
        theta: Tensor,
        *,
        dtype: torch.dtype,
        memory: int,
        bn: str,
    ) -> CompiledEngine:
        """The engine of that model, loss and data."""


class PointEngine(Protocol):
    """L and its derivatives at many points of a small network, in float64.

    Points are contiguous float64 arrays (p, n), n the number of parameters, on the CPU, and so are
    results. A point that is not finite, or whose L is not, has NaN for itself alone.
    """

    @property
    def n(self) -> int:
        """The number of parameters."""

    @property
    def reason(self) -> str | None:
        """Why the fast way is not taken; None where it is."""

    def gradients(self, points: np.ndarray) -> tuple[Losses, np.ndarray]:
        """Losses (p,) and gradients (p, n)."""

    def hessians(self, points: np.ndarray) -> tuple[Losses, np.ndarray, np.ndarray]:
        """Losses (p,), gradients (p, n) and Hessians (p, n, n), exactly symmetric."""

    def spectra(self, points: np.ndarray) -> tuple[Losses, np.ndarray, np.ndarray] | None:
        """Losses (p,), gradients (p, n) and the Hessians' eigenvalues (p, n), ascending; None where
        the Hessians must be asked for instead."""


class Answered(Problem, Protocol):
    """A problem with the engines that were built for it; a Landscape is one."""

    autocast: Autocast  # inside of which its model runs

    @property
    def native(self) -> CompiledEngine | None:
        """The compiled engine, if there is one."""

    def engine_report(self) -> Any:
        """Which engine answers, and why."""


@dataclass(frozen=True)
class Rule:
    """An optimiser: what a step does with the gradient g of a mini-batch (methods: torch.optim).

    ``name``: "sgd", "adagrad", "rmsprop", "adadelta", "adam" or "adamw"; the other fields have
    torch's names and hold where that optimiser has them. A step first shortens g to the norm
    ``clip``, where one is given, then adds ``weight_decay`` times theta (adamw, and any rule where
    it is ``decoupled``: theta shrinks by 1 - lr weight_decay instead), then moves theta.

    ``runge_kutta`` (a1, a2, q1): g is a1 g(theta) + a2 g(theta - q1 lr g(theta)), both of the same
    mini-batch with the same dropout masks; running statistics move in both passes.
    ``from_zero``: the momentum of sgd is dampened at its first step too. ``eps_inside``: the root
    of adagrad, rmsprop, adam and adamw is sqrt(v + eps), not sqrt(v) + eps.
    """

    name: str
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False
    lr_decay: float = 0.0
    alpha: float = 0.99
    rho: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    runge_kutta: tuple[float, float, float] | None = None
    clip: float | None = None
    from_zero: bool = False
    eps_inside: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        """What `RunState.moments` holds, in order."""
        if self.name == "sgd":
            return ("momentum",) if self.momentum else ()
        if self.name == "adagrad":
            return ("sum",)
        if self.name == "rmsprop":
            return ("square", "momentum") if self.momentum else ("square",)
        if self.name == "adadelta":
            return ("square", "update")
        return ("mean", "square")


@dataclass
class RunState:
    """P runs, changed in place by `Stepper.advance`."""

    theta: Tensor  # (P, n) the landscape's dtype, contiguous
    moments: list[Tensor]  # the rule's slots, (P, n) each, zeros at the start
    buffers: Tensor  # (P, m) running statistics, as `running_statistics.with_statistics` has them
    steps: int  # optimiser steps done
    seeds: Tensor  # (P,) int64, of dropout masks


class Stepper(Protocol):
    """What advances training runs; P runs together have the bits of each alone."""

    def advance(self, state: RunState, batches: Sequence[Tensor], rates: Tensor) -> Tensor:
        """T steps: batches[t] (B_t,) int64 sample indices, or (P, B_t) where runs have their own
        order; rates (T,) float64 learning rates. Gives the losses (P, T) float64 of each
        mini-batch before its step. A run that diverges goes on with what it has."""
