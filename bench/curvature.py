"""What the benchmarks of curvature share: the problem, checks against float64, the arms of a table.

A peer that is not installed, and a part of ours that this build does not have, is a row that says
so; the others are measured all the same.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape

from .harness import Arm, Row, Run, absent, fastest, interleave, rows
from .workloads import digits, mlp

Products = Callable[[Tensor], Tensor]  # rows v (k, n) to the rows H v (k, n)
Check = Callable[[Arm, Any], None]  # raises AssertionError if the answer is wrong


@dataclass(frozen=True)
class Problem:
    """The Hessian (n, n) of the mean cross-entropy of ``model`` (eval mode) over (x, y)."""

    model: nn.Module
    x: Tensor
    y: Tensor

    @cached_property
    def n(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def theta(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.model).eval()

    def double(self) -> Problem:
        x = self.x.double() if self.x.is_floating_point() else self.x
        return Problem(self.copy().double(), x, self.y)

    def loss(self, model: nn.Module) -> Tensor:
        return F.cross_entropy(model(self.x), self.y)


def w(quick: bool) -> Problem:
    """784-20-10 (n = 15,910), untrained, over the 1,797 digits; over 180 of them with quick."""
    torch.manual_seed(0)
    x, y = digits()
    model = mlp(784, 20, 10)
    return Problem(model, x[::10], y[::10]) if quick else Problem(model, x, y)


def ours(name: str) -> Any:
    """``pylandscape.<name>``, or None where the build does not have it."""
    return getattr(pylandscape, name, None)


def check_rows(arm: Arm, got: Tensor, want: Tensor, rtol: float) -> None:
    """Raises AssertionError unless each row of ``got`` is that of ``want`` to rtol of its norm."""
    got, want = got.double(), want.double()
    assert got.shape == want.shape, (arm.name, got.shape, want.shape)
    error = float(((got - want).norm(dim=-1) / want.norm(dim=-1)).max())
    assert error <= rtol, f"{arm.name}: relative error {error:.1e}, expected at most {rtol:.0e}"
    arm.error = error


@dataclass
class Field:
    """The arms of one table: ours (or None: no ratios), the others, those that could not run.

    ``once``: for work that takes minutes, the run that is checked is the one that is timed.
    """

    workload: str
    unit: str
    once: bool = False
    mine: Arm | None = None
    others: list[Arm] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)

    def miss(self, arm: str, reason: str) -> None:
        self.missing.append(absent(self.workload, arm, reason))

    def add_ours(self, arm: Arm, check: Check) -> None:
        self.mine = arm
        self._check(arm, check)

    def add(
        self,
        name: str,
        forms: Mapping[str, Callable[[], Run]],
        check: Check,
        *,
        units: float = 1.0,
        target: float | None = None,
        note: str = "",
    ) -> None:
        """Adds the fastest of the forms (each makes a run), checked; or why there is none."""
        try:
            if len(forms) == 1:
                ((form, make),) = forms.items()
                run = make()
            else:
                seconds: dict[str, float] = {}
                run, form = fastest(forms, seconds=seconds)
                form += f", the best of {_compared(forms, seconds, form)}"
            if not self.once:
                run()
        except ImportError as error:
            self.miss(name, f"not installed: {error.name}")
            return
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            self.miss(name, f"{type(error).__name__}: {reason}")
            return
        arm = Arm(name, run, units, target, note="; ".join(filter(None, (note, form))))
        self._check(arm, check)
        self.others.append(arm)

    def _check(self, arm: Arm, check: Check) -> None:
        start = time.perf_counter()
        answer = arm.run()
        if self.once:
            arm.seconds.append(time.perf_counter() - start)
        check(arm, answer)

    def measure(self, repetitions: int, *more: Arm) -> None:
        """Times all arms, and more that are not of this table."""
        mine = [] if self.mine is None else [self.mine]
        interleave([*mine, *self.others, *more], repetitions)

    def rows(self) -> list[Row]:
        if self.mine is not None:
            return rows(self.workload, self.mine, self.others, self.unit) + self.missing
        alone = [replace(arm, target=None) for arm in self.others]
        table = [row for arm in alone for row in rows(self.workload, arm, [], self.unit)]
        return table + self.missing


def _compared(forms: Iterable[str], seconds: Mapping[str, float], best: str) -> str:
    """Every form with its time over the best one's."""
    times = {name: f"{seconds[name] / seconds[best]:.2f}" for name in seconds}
    return ", ".join(f"{name} ({times.get(name, 'failed')})" for name in forms)
