"""Second-order Runge-Kutta steps on top of any optimiser of torch.optim."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..training.optimisers import tableau


class RungeKutta(torch.optim.Optimizer):
    """A torch optimiser that gives its base the gradient of a second-order Runge-Kutta step::

        optimiser = pl.optim.RungeKutta(model.parameters(), torch.optim.SGD, method="heun", lr=0.1)

        def closure():
            optimiser.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            return loss

        optimiser.step(closure)

    The closure runs twice, at theta and at theta - q1 lr g(theta), on the same mini-batch; the base
    then makes one step from theta with a1 g(theta) + a2 g(theta - q1 lr g(theta)). Learning rates,
    schedules and states are the base's (``optimiser.base``), and this optimiser shares its
    ``param_groups`` and ``state``.

    Args:
        params: what is trained, as for torch.optim.
        base: an optimiser class of torch.optim, or a function of the parameters that makes one.
        method: "midpoint", "heun", "ralston" or "ralston_min_error".
        options: of the base: lr=..., momentum=...

    Raises:
        InvalidArgument: an unknown method, a base that makes no optimiser.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        method: str = "midpoint",
        **options: Any,
    ) -> None:
        self.method, (self._a1, self._a2, self._q1) = method, tableau(method)
        if not callable(base):
            raise InvalidArgument(f"base: expected a class such as torch.optim.SGD, got {base!r}")
        made = base(params, **options)
        if not isinstance(made, torch.optim.Optimizer):
            raise InvalidArgument(
                f"base: expected a torch.optim.Optimizer, got {type(made).__name__}"
            )
        super().__init__(made.param_groups, made.defaults)
        self.base = made
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; gives the closure's loss at theta.

        ``closure`` clears the gradients, computes the loss, and calls its ``backward``.

        Raises:
            InvalidArgument: no closure.
        """
        if closure is None:
            raise InvalidArgument(
                "closure: expected a function that clears the gradients, computes the loss and "
                "calls backward(), got None; a Runge-Kutta step takes two gradients"
            )
        with torch.enable_grad():
            loss = closure()
        kept: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for group in self.param_groups:
            for p in group["params"]:
                g = None if p.grad is None else p.grad.detach().clone()
                kept.append((p, p.detach().clone(), g))
                if g is not None:
                    p.add_(g, alpha=-self._q1 * float(group["lr"]))
        try:
            with torch.enable_grad():
                closure()
        finally:
            for p, value, _ in kept:
                p.copy_(value)
        for p, _, first in kept:
            if first is not None:
                second = torch.zeros_like(p) if p.grad is None else p.grad
                p.grad = first.mul_(self._a1).add_(second, alpha=self._a2)
        self.base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The base's."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The base's."""
        self.base.load_state_dict(state_dict)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """To the base, once there is one."""
        if hasattr(self, "base"):
            self.base.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state
