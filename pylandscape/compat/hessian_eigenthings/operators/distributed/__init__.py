"""Operators over several processes."""

from .ddp import DDPHessianOperator

__all__ = ["DDPHessianOperator"]
