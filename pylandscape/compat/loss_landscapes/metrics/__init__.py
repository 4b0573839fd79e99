"""What is computed at every point; see `metric.Metric`."""

from .metric import Metric, MetricPipeline
from .rl_metrics import ExpectedReturnMetric
from .sl_metrics import Loss, LossGradient, LossPerturbations

__all__ = [
    "ExpectedReturnMetric",
    "Loss",
    "LossGradient",
    "LossPerturbations",
    "Metric",
    "MetricPipeline",
]
