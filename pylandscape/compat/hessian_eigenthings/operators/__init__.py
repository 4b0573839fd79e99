"""Curvature matrices of a model's loss over a loader."""

from .base import CurvatureOperator, LambdaOperator
from .distributed import DDPHessianOperator
from .fisher import EmpiricalFisherOperator, PerSampleLossFn
from .ggn import ForwardFn, GGNOperator, LossOfOutputFn
from .hessian import HessianOperator, HvpMethod, LossFn

__all__ = [
    "CurvatureOperator",
    "DDPHessianOperator",
    "EmpiricalFisherOperator",
    "ForwardFn",
    "GGNOperator",
    "HessianOperator",
    "HvpMethod",
    "LambdaOperator",
    "LossFn",
    "LossOfOutputFn",
    "PerSampleLossFn",
]
