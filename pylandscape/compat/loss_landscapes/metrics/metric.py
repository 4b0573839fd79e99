"""The base of all metrics, and several of them as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any


class Metric(ABC):
    """A quantity of a model: called with its ModelWrapper at every point."""

    @abstractmethod
    def __call__(self, model_wrapper: Any) -> Any:
        """The quantity at the wrapper's parameters."""


class MetricPipeline(Metric):
    """Several metrics at the same points, as a tuple."""

    def __init__(self, metrics: Sequence[Any]) -> None:
        super().__init__()
        self.metrics = metrics

    def __call__(self, model_wrapper: Any) -> tuple[Any, ...]:
        return tuple(metric(model_wrapper) for metric in self.metrics)
