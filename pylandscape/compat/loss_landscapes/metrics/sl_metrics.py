"""Metrics of supervised learning: the loss, its gradient, how it changes nearby."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..._options import version_of
from ..model_interface.model_parameters import ModelParameters, rand_n_like, rand_u_like
from .metric import Metric

LossFunction = Callable[[Any, Any], torch.Tensor]


class _OfPairs(Metric):
    """loss_fn(model(inputs), target)."""

    def __init__(self, loss_fn: LossFunction, inputs: Any, target: Any) -> None:
        super().__init__()
        self.loss_fn = loss_fn
        self.inputs = inputs
        self.target = target

    def _loss(self, model_wrapper: Any) -> torch.Tensor:
        return self.loss_fn(model_wrapper.forward(self.inputs), self.target)


class Loss(_OfPairs):
    """The loss. Along lines and planes the compiled engine computes it where it can."""

    def __call__(self, model_wrapper: Any) -> float:
        return self._loss(model_wrapper).item()


class LossGradient(_OfPairs):
    """The gradient of the loss in the parameters, flat (n,), of the parameters' dtype."""

    def __call__(self, model_wrapper: Any) -> np.ndarray:
        parameters = model_wrapper.get_module_parameters().parameters
        required = [p.requires_grad for p in parameters]
        try:
            for p in parameters:
                p.requires_grad_(True)
            with torch.enable_grad():
                loss = self._loss(model_wrapper)
                parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        finally:
            for p, flag in zip(parameters, required, strict=True):
                p.requires_grad_(flag)
        filled = [
            torch.zeros_like(p) if part is None else part
            for p, part in zip(parameters, parts, strict=True)
        ]
        return ModelParameters(filled).as_numpy()


class LossPerturbations(_OfPairs):
    """L(theta + alpha u) - L(theta) for random unit vectors u, (n_directions,).

    Schuurmans et al. (2018), arXiv:1811.11214. With ``compat="3.0.6"``: along vectors uniform on
    [0, 1)^n, without alpha.
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        inputs: Any,
        target: Any,
        n_directions: int,
        alpha: float,
        *,
        compat: str | None = None,
    ) -> None:
        super().__init__(loss_fn, inputs, target)
        self.n_directions = n_directions
        self.alpha = alpha
        self.compat = version_of("loss_landscapes", compat, ("3.0.6",))

    def __call__(self, model_wrapper: Any) -> np.ndarray:
        live = model_wrapper.get_module_parameters().parameters
        start = [p.detach().clone() for p in live]
        centre = self._loss(model_wrapper).item()
        values = []
        try:
            for _ in range(self.n_directions):
                with torch.no_grad():
                    torch._foreach_add_(live, self._step(ModelParameters(start)))
                values.append(self._loss(model_wrapper).item() - centre)
                _set(live, start)
        finally:
            _set(live, start)
        return np.array(values)

    def _step(self, start: ModelParameters) -> list[torch.Tensor]:
        if self.compat is not None:
            return rand_u_like(start).parameters
        step = rand_n_like(start)
        step.mul_(self.alpha / step.model_norm())
        return step.parameters


@torch.no_grad()
def _set(live: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    torch._foreach_copy_(live, values)
