"""Optimisers and schedules as descriptions: what `train` is told, and nothing that has a state.

Defaults are torch.optim's forms and, but for the learning rate, which is always given, torch's
numbers. Where a paper's form differs it is an option (``from_zero``, ``eps_inside``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..arrays import Array
from ..engines.contract import Rule
from ..errors import InvalidArgument

# (a1, a2, q1) of the second-order family: a1 + a2 = 1, a2 q1 = 1/2
TABLEAUX = {
    "midpoint": (0.0, 1.0, 0.5),
    "heun": (0.5, 0.5, 1.0),
    "ralston": (1 / 3, 2 / 3, 3 / 4),
    "ralston_min_error": (1 / 4, 3 / 4, 2 / 3),
}


@dataclass(frozen=True)
class _Optimiser:
    """What all of them share."""

    lr: float

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(type(self).__name__, field.name, getattr(self, field.name))
        if getattr(self, "nesterov", False) and (
            getattr(self, "momentum", 0.0) <= 0 or getattr(self, "dampening", 0.0) != 0
        ):
            raise InvalidArgument(
                f"{type(self).__name__}: nesterov expected momentum > 0 and dampening 0, got "
                f"{getattr(self, 'momentum', 0.0)!r} and {getattr(self, 'dampening', 0.0)!r}"
            )

    def rule(self, clip: float | None = None) -> Rule:
        """The description that engines take."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "lr"}
        return Rule(type(self).__name__.lower(), clip=clip, **given)


@dataclass(frozen=True)
class SGD(_Optimiser):
    """theta -= lr g, with momentum b = momentum b + (1 - dampening) g in the place of g.

    ``nesterov``: g + momentum b instead. ``from_zero``: the first b is dampened too, as in an
    exponential mean E = (1 - a) g + a E from 0 (with dampening = momentum = a); torch begins with
    b = g. ``decoupled``: weight decay shrinks theta instead of being added to g.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False
    from_zero: bool = False


@dataclass(frozen=True)
class Adagrad(_Optimiser):
    """theta -= lr g / (sqrt(sum of g^2) + eps) (Duchi et al. 2011).

    ``eps_inside``: sqrt(sum + eps).
    """

    lr_decay: float = 0.0
    weight_decay: float = 0.0
    eps: float = 1e-10
    decoupled: bool = False
    eps_inside: bool = False


@dataclass(frozen=True)
class RMSprop(_Optimiser):
    """theta -= lr g / (sqrt(E[g^2]) + eps), E with the factor alpha (Hinton 2012).

    ``eps_inside``: sqrt(E[g^2] + eps).
    """

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    decoupled: bool = False
    eps_inside: bool = False


@dataclass(frozen=True)
class Adadelta(_Optimiser):
    """theta -= lr g sqrt(E[X^2] + eps) / sqrt(E[g^2] + eps), E with factor rho (Zeiler 2012)."""

    lr: float = 1.0
    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: float = 0.0
    decoupled: bool = False


@dataclass(frozen=True)
class Adam(_Optimiser):
    """theta -= lr m / (sqrt(v) + eps), bias-corrected moments m and v (Kingma and Ba 2015).

    ``eps_inside``: sqrt(v + eps) before the correction. ``decoupled``: as AdamW.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    eps_inside: bool = False


@dataclass(frozen=True)
class AdamW(_Optimiser):
    """Adam whose weight decay shrinks theta by 1 - lr weight_decay (Loshchilov, Hutter 2019)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    eps_inside: bool = False


@dataclass(frozen=True)
class RungeKutta:
    """A second-order Runge-Kutta step on top of another optimiser.

    Its gradient is a1 g(theta) + a2 g(theta - q1 lr g(theta)), both of the same mini-batch; then
    ``base`` makes one step with it. One step costs two gradients.

    ``method``: "midpoint" (0, 1, 1/2), "heun" (1/2, 1/2, 1), "ralston" (1/3, 2/3, 3/4) or
    "ralston_min_error" (1/4, 3/4, 2/3): (a1, a2, q1).
    """

    base: Any
    method: str = "midpoint"

    def __post_init__(self) -> None:
        tableau(self.method)
        if not isinstance(self.base, _Optimiser):
            raise InvalidArgument(
                f"base: expected an optimiser such as SGD(lr=0.1), got {self.base!r}"
            )

    @property
    def lr(self) -> float:
        """The base's learning rate."""
        return float(self.base.lr)

    def rule(self, clip: float | None = None) -> Rule:
        """The description that engines take."""
        from dataclasses import replace

        return replace(self.base.rule(clip), runge_kutta=TABLEAUX[self.method])


def tableau(method: Any) -> tuple[float, float, float]:
    """(a1, a2, q1) of a method's name."""
    if method not in TABLEAUX:
        raise InvalidArgument(f"method: expected one of {', '.join(TABLEAUX)}, got {method!r}")
    return TABLEAUX[method]


def check_optimiser(value: Any) -> None:
    """Raises InvalidArgument for what is none of these."""
    if not isinstance(value, _Optimiser | RungeKutta):
        raise InvalidArgument(
            "optimizer: expected SGD, Adagrad, RMSprop, Adadelta, Adam, AdamW or RungeKutta of "
            f"pylandscape, such as Adam(lr=1e-3), got {value!r}"
        )


@dataclass(frozen=True)
class StepDecay:
    """The rate times ``factor`` from each of the ``milestones`` (in steps) on."""

    milestones: Sequence[int]
    factor: float = 0.1

    def factors(self, count: int) -> Array:
        """(count,) of the steps 0 .. count - 1."""
        passed = (np.arange(count)[:, None] >= np.asarray(self.milestones)[None]).sum(1)
        return np.asarray(self.factor**passed, dtype=np.float64)


@dataclass(frozen=True)
class Cosine:
    """From the rate down to ``final`` times it along half a cosine (Loshchilov, Hutter 2017)."""

    final: float = 0.0

    def factors(self, count: int) -> Array:
        """(count,) of the steps 0 .. count - 1."""
        wave = np.array([math.cos(math.pi * t / count) for t in range(count)])
        return self.final + (1.0 - self.final) * (1.0 + wave) / 2.0


@dataclass(frozen=True)
class WarmUp:
    """A rate that rises linearly over the first ``steps``, then follows ``then`` (None: stays)."""

    steps: int
    then: Any = None

    def factors(self, count: int) -> Array:
        """(count,) of the steps 0 .. count - 1."""
        first = min(self.steps, count)
        rise = (np.arange(first) + 1.0) / self.steps
        return np.concatenate([rise, schedule_factors(self.then, count - first)])


def schedule_factors(schedule: Any, count: int) -> Array:
    """(count,) by which the rate is multiplied at each step: of one of these, a function of the
    step, an array, or None (constant).

    Raises:
        InvalidArgument: something else, negative or non-finite factors, another number of them.
    """
    if schedule is None:
        return np.ones(count)
    given: Callable[[int], Any] | None = getattr(schedule, "factors", None)
    try:
        if given is not None:
            found = np.asarray(given(count), dtype=np.float64)
        elif callable(schedule):
            found = np.array([float(schedule(t)) for t in range(count)])
        else:
            found = np.asarray(schedule, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            "schedule: expected StepDecay, Cosine, WarmUp, a function of the step or an array, got "
            f"{schedule!r} ({error})"
        ) from error
    if found.shape != (count,):
        raise InvalidArgument(
            f"schedule: expected ({count},) factors, one for each step, got shape {found.shape}"
        )
    if not np.isfinite(found).all() or (found < 0).any():
        raise InvalidArgument("schedule: expected finite factors >= 0, got others")
    return found


def _check(of: str, name: str, value: Any) -> None:
    if name in ("nesterov", "decoupled", "from_zero", "eps_inside"):
        if not isinstance(value, bool):
            raise InvalidArgument(f"{of}: {name} expected True or False, got {value!r}")
        return
    numbers = value if name == "betas" else (value,)
    if name == "betas" and (not isinstance(value, tuple | list) or len(value) != 2):
        raise InvalidArgument(f"{of}: betas expected two numbers, got {value!r}")
    for number in numbers:
        real = isinstance(number, int | float | np.floating) and not isinstance(number, bool)
        if not real or not math.isfinite(number) or number < 0:
            raise InvalidArgument(f"{of}: {name} expected a finite number >= 0, got {value!r}")
        if name in ("betas", "alpha", "rho") and number >= 1:
            raise InvalidArgument(f"{of}: {name} expected numbers below 1, got {value!r}")
