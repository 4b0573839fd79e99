"""Optimisers for a training loop of one's own, with torch.optim's interface."""

from .second_order import RungeKutta as RungeKutta
