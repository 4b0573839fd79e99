"""What every engine answers, and what each of its answers is.

`Engine` is the contract of those that know one landscape's L: the compiled one on the CPU, with
batch statistics estimated anew, on a GPU, and torch's own. `CompiledEngine` is what the compiled
ones say besides. `PointEngine` is the smaller contract of those that take many points of a small
network at once. Nothing else is asked of an engine from outside of its package.

Shapes: n counts what the landscape's ``moved`` layout holds, running statistics among it where
these move; N samples; k directions or vectors; g coefficients; p points. Arguments may be of any
floating dtype and on any device; an engine converts them to its own. No call changes an argument,
the model or the data.

Errors: `NotLowered`, with the reason, where an engine has no such answer and torch's must be asked;
`InvalidArgument` where torch has none either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..theta.space import Problem

Values = dict[str, np.ndarray]  # {metric: (g,) float64}; a callable under its __name__
Evaluate = Callable[[np.ndarray], Values]  # of coefficients (g, k) float64
EvaluatePoints = Callable[[Tensor], Values]  # of points (p, n)
Losses = np.ndarray  # (p,) float64


class Engine(Protocol):
    """Answers questions about L = the loss of the concatenated data, at any theta."""

    @property
    def name(self) -> str:
        """ "native" or "torch", as `Landscape.engine` shows it."""

    def prepare(self, theta: Tensor, directions: Tensor, metrics: Sequence[Any]) -> Evaluate:
        """A function of coefficients C (g, k) to the metrics at theta + C D.

        theta (n,), directions D (k, n). ``metrics``: "loss", "accuracy", or callables of the whole
        data's outputs and targets, giving one number. What no point changes is computed here, once;
        how coefficients are cut into calls changes no value.
        """

    def prepare_points(self, metrics: Sequence[Any]) -> EvaluatePoints:
        """The same for points (p, n)."""

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


class PointEngine(Protocol):
    """L and its derivatives at many points of a small network, in float64.

    Points are contiguous float64 arrays (p, n), n the number of parameters, on the CPU, and so are
    results. A point that is not finite, or whose L is not, has NaN for itself alone.
    """

    n: int
    reason: str | None  # why the fast way is not taken, if it is not

    def gradients(self, points: np.ndarray) -> tuple[Losses, np.ndarray]:
        """Losses (p,) and gradients (p, n)."""

    def hessians(self, points: np.ndarray) -> tuple[Losses, np.ndarray, np.ndarray]:
        """Losses (p,), gradients (p, n) and Hessians (p, n, n), exactly symmetric."""

    def spectra(self, points: np.ndarray) -> tuple[Losses, np.ndarray, np.ndarray] | None:
        """Losses (p,), gradients (p, n) and the Hessians' eigenvalues (p, n), ascending; None where
        the Hessians must be asked for instead."""


class Answered(Problem, Protocol):
    """A problem with the engines that were built for it; a Landscape is one."""

    native: Any  # CompiledEngine | None
    eager: Any  # Engine

    def engine_report(self) -> Any:
        """Which engine answers, and why."""
