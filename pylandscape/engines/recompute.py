"""The native engine with bn="recompute": running statistics found anew at every point.

Two programs of the same model. The first runs every batch with its own statistics, as
torch.optim.swa_utils.update_bn does with momentum None, and gives each point's averages. The second
takes them as parameters of the point (as bn="interpolate" does) and answers the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..lowering.build import Data, Lowered, check_tensors, example_of
from ..lowering.capture import check_traceable, refused, trace
from ..theta import sampling
from ..theta.checks import as_coefficients
from ..theta.running_statistics import with_statistics
from .capture_check import check_capture, checked_part
from .native import build as build_plain
from .native import lower

if TYPE_CHECKING:
    from ..theta.data import Dataset
    from ..theta.layout import ParameterLayout
    from ..theta.losses import KnownLoss
    from .contract import Evaluate, EvaluatePoints
    from .native import NativeEngine

_POINTS_BYTES = 64 << 20  # points between the two programs


class RecomputeEngine:
    """Answers questions about L; derivatives hold the statistics at theta, as torch's engine."""

    name = "native"

    def __init__(self, collector: NativeEngine, fixed: NativeEngine, n: int, extended: int) -> None:
        self._collector, self._fixed = collector, fixed
        self._n, self._more = n, extended - n
        self.how, self.ops, self.instruction_set = fixed.how, fixed.ops, fixed.instruction_set

    @property
    def mixes(self) -> bool:
        """As `NativeEngine`: of norms that track no statistics. The others' are held."""
        return self._fixed.mixes

    @property
    def no_derivatives(self) -> str | None:
        """Why there are none, as `NativeEngine`."""
        return self._fixed.no_derivatives

    @no_derivatives.setter
    def no_derivatives(self, reason: str | None) -> None:
        self._fixed.no_derivatives = reason

    def derivatives_refused(self) -> str | None:
        """As `NativeEngine`."""
        return self.no_derivatives

    def prepare(
        self, theta: Tensor, directions: Tensor, metrics: Sequence[Any], between: bool = False
    ) -> Evaluate:
        """A function of coefficients (g, k) to {metric: (g,)} along directions (k, n)."""
        collect = self._collector.collector(self._padded(theta), self._padded(directions))
        k = len(directions)
        against = sampling.references(k, between)
        evaluate = self._evaluator(collect, metrics, against)

        def at(coefficients: np.ndarray) -> dict[str, np.ndarray]:
            c = as_coefficients(coefficients, k)
            return evaluate(c, sampling.mixture(c, between))

        return at

    def prepare_points(self, metrics: Sequence[Any]) -> EvaluatePoints:
        """The same for arbitrary points (p, n)."""
        collect = self._collector.collector(None, None)
        return self._evaluator(lambda points: collect(self._padded(points)), metrics)

    def gradient(self, theta: Tensor) -> Tensor:
        """(n,) float64."""
        return self._fixed.gradient(self._point(theta))[: self._n]

    def product(self, matrix: str, theta: Tensor, vectors: Tensor) -> Tensor:
        """(k, n) float64 of vectors (k, n)."""
        result = self._fixed.product(matrix, self._point(theta), self._padded(vectors))
        return result[:, : self._n]

    def products_at(self, matrix: str, theta: Tensor) -> None:
        """Not there: vectors need room for the statistics."""
        return

    def per_sample_gradients(self, theta: Tensor) -> Tensor:
        """(samples, n) of the program's dtype."""
        return self._fixed.per_sample_gradients(self._point(theta))[:, : self._n]

    def outputs_at(self, points: Tensor) -> list[Tensor]:
        """The outputs (samples, ...) at each of the points (p, n)."""
        return self._fixed.outputs_at(self._collector.collector(None, None)(self._padded(points)))

    def _point(self, theta: Tensor) -> Tensor:
        collected: Tensor = self._collector.collector(None, None)(self._padded(theta[None]))
        return collected[0]

    def _padded(self, vectors: Tensor) -> Tensor:
        return torch.nn.functional.pad(torch.as_tensor(vectors), (0, self._more))

    def _evaluator(
        self, collect: Callable[[Any], Tensor], metrics: Sequence[Any], references: Any = None
    ) -> Any:
        compared = sampling.DIFFERENCE in metrics
        answer = self._fixed.points_evaluator(metrics, collect(references) if compared else None)
        size = (self._n + self._more) * torch.finfo(torch.float64).bits // 8
        most = max(1, _POINTS_BYTES // size)

        def evaluate(coordinates: Any, weights: Any = None) -> dict[str, np.ndarray]:
            starts = range(0, max(1, len(coordinates)), most)
            parts = [
                answer(
                    collect(coordinates[i : i + most]),
                    weights[i : i + most] if compared else None,
                )
                for i in starts
            ]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        return evaluate


def build(
    model: nn.Module,
    loss: KnownLoss,
    dataset: Dataset,
    layout: ParameterLayout,
    theta: Tensor,
    *,
    dtype: torch.dtype,
    memory: int,
    bn: str = "recompute",
) -> RecomputeEngine | NativeEngine:
    """Captures, lowers and checks the model; raises NotLowered with the reason where it cannot."""
    extended = with_statistics(layout, model, types=_BatchNorm)
    if extended is layout:  # no layer tracks any
        return build_plain(model, loss, dataset, layout, theta, dtype=dtype, memory=memory)
    data = Data.of(dataset, dtype)
    model = data.module(model)
    check_tensors(model, dtype)
    check_traceable(model)
    example = example_of(model, data)

    made: dict[bool, list[Lowered]] = {True: [], False: []}

    def engine(of: Data, loss: KnownLoss) -> RecomputeEngine:
        collector, fixed = (
            lower(graph, example, model, loss, extended, of, "fx", memory, collect, made=each)
            for collect, each in made.items()
        )
        return RecomputeEngine(collector, fixed, layout.n, extended.n)

    with refused("fx"):
        graph = trace(model, example, "fx")
        few = checked_part(data)
        small = engine(few, loss)
        problem = check_capture(small, engine, model, loss, layout, theta, few, bn)
        found = engine(data, loss)
        found.no_derivatives = problem
        return found
