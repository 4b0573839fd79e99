"""training: one step of many runs, on the same mini-batches.

Answers are the parameters after all steps, against torch's own loop in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.engines.contract import Rule, RunState
from pylandscape.engines.training import build
from pylandscape.theta.running_statistics import with_statistics

from .curvature import Field
from .harness import Arm, Row
from .networks import ResNet, dcnn
from .workloads import digits, mlp, split


@dataclass
class Case:
    """P runs of SGD, started at rows of ``starts`` (P, n)."""

    name: str
    model: nn.Module
    loss: str
    x: Tensor
    y: Tensor
    starts: Tensor
    batches: list[Tensor]
    rate: float
    momentum: float
    rtol: float

    def __post_init__(self) -> None:
        self.fn = getattr(nn.functional, self.loss + ("_loss" if self.loss == "mse" else ""))
        rule = Rule("sgd", momentum=self.momentum)
        self.land = pl.Landscape(self.model, self.loss, (self.x, self.y))
        self.stepper = build(self.land, rule)
        self.rates = torch.full((len(self.batches),), self.rate, dtype=torch.float64)

    def ours(self) -> Tensor:
        moments = [torch.zeros_like(self.starts)] * (self.momentum != 0)
        named = dict(self.model.named_buffers())
        layout = with_statistics(self.land.layout, self.land.model)
        own = [named[e.name].reshape(-1) for e in layout.entries if e.name in named]
        statistics = torch.cat([self.starts[0, :0], *own]).repeat(len(self.starts), 1)
        seeds = torch.zeros(len(self.starts), dtype=torch.int64)
        state = RunState(self.starts.clone(), moments, statistics, 0, seeds)
        self.stepper.advance(state, self.batches, self.rates)
        return state.theta

    def loop(self, runs: int, double: bool = False, channels_last: bool = False) -> Tensor:
        """torch's loop, one run after the other; theta (runs, n)."""
        ends, x, y = [], self.x, self.y
        if double:
            x, y = x.double(), y.double() if y.is_floating_point() else y
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        for start in self.starts[:runs]:
            model: Any = copy.deepcopy(self.model).train()
            if double:
                model, start = model.double(), start.double()
            if channels_last:
                model = model.to(memory_format=torch.channels_last)
            nn.utils.vector_to_parameters(start.clone(), model.parameters())
            steps = torch.optim.SGD(model.parameters(), lr=self.rate, momentum=self.momentum)
            for rows in self.batches:
                steps.zero_grad()
                self.fn(model(x[rows]), y[rows]).backward()
                steps.step()
            ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
        return torch.stack(ends)

    def compiled(self) -> Callable[[], Tensor]:
        """torch.compile of the loss and its gradient of one run, channels last."""
        model: Any = copy.deepcopy(self.model).train()
        model = model.to(memory_format=torch.channels_last)
        x, like = self.x.to(memory_format=torch.channels_last), list(model.parameters())
        before = copy.deepcopy(model.state_dict())
        loss = torch.compile(lambda x, y: self.fn(model(x), y))

        def run() -> Tensor:
            model.load_state_dict(before)
            with torch.no_grad():
                for p, part in zip(like, split(self.starts[0], like), strict=True):
                    p.copy_(part)
            steps = torch.optim.SGD(model.parameters(), lr=self.rate, momentum=self.momentum)
            for rows in self.batches:
                steps.zero_grad()
                loss(x[rows], self.y[rows]).backward()
                steps.step()
            return nn.utils.parameters_to_vector(model.parameters()).detach()[None]

        return run

    def vmap(self, chunk: int | None = None, compiled: bool = False) -> Callable[[], Tensor]:
        """torch.func.vmap over the runs, and a foreach update of all of them."""
        names = [name for name, _ in self.model.named_parameters()]
        like = list(self.model.parameters())

        def loss(parameters: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            state = dict(zip(names, parameters, strict=True))
            return self.fn(torch.func.functional_call(self.model, state, (x,)), y)

        gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None), chunk_size=chunk)

        def step(parameters: list[Tensor], momenta: list[Tensor], x: Tensor, y: Tensor) -> None:
            slopes = gradient(parameters, x, y)
            if self.momentum:
                torch._foreach_mul_(momenta, self.momentum)
                torch._foreach_add_(momenta, slopes)
                slopes = momenta
            torch._foreach_add_(parameters, slopes, alpha=-self.rate)

        taken = torch.compile(step) if compiled else step

        def run() -> Tensor:
            with torch.no_grad():
                parts = [split(start, like) for start in self.starts]
                parameters = [torch.stack([p[i] for p in parts]) for i in range(len(like))]
                momenta = [torch.zeros_like(p) for p in parameters]
                for rows in self.batches:
                    taken(parameters, momenta, self.x[rows], self.y[rows])
                return torch.cat([p.flatten(1) for p in parameters], 1)

        return run


def training(quick: bool, repetitions: int) -> list[Row]:
    return [
        *_rows(_digits(quick), (None,), 8, (6, 4, 4), quick, repetitions),
        *_rows(_xor(quick), (None,) if quick else (None, 250), 2, (0, 15, 0), quick, repetitions),
    ]


def training_norms(quick: bool, repetitions: int) -> list[Row]:
    """One run of networks with batch norm in training mode."""
    return [
        *_norm_rows(_images(quick, "DCNN", 100), (2.5, 1.5), quick, repetitions),
        *_norm_rows(_images(quick, "ResNet-20", 128), (1.5, 1.2), quick, repetitions),
    ]


def _images(quick: bool, name: str, batch: int) -> Case:
    torch.manual_seed(0)
    if name == "DCNN":
        model: nn.Module = dcnn((12, 6, 6, 6, 6)) if quick else dcnn()
    else:
        model = ResNet(8, 4) if quick else ResNet()
    batch = 6 if quick else batch
    x, y = torch.randn(2 * batch, 3, 32, 32), torch.randint(0, 10, (2 * batch,))
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    return Case(
        f"one run of {name} ({len(start):,} parameters), batch norm of the batch, batch {batch}",
        model, "cross_entropy", x, y, start[None],
        list(torch.randperm(2 * batch).split(batch)), 0.05, 0.9, 1e-3,
    )  # fmt: skip


def _norm_rows(
    case: Case, targets: tuple[float, float], quick: bool, repetitions: int
) -> list[Row]:
    want = case.loop(1, double=True).numpy()

    def check(arm: Arm, got: Tensor) -> None:
        gap = np.linalg.norm(got.double().numpy() - want) / np.linalg.norm(want)
        arm.error = float(gap)
        assert arm.error <= case.rtol, (arm.name, arm.error)

    steps = len(case.batches)
    field = Field(case.name, "step")
    field.add_ours(Arm("pylandscape", case.ours, steps), check)
    layouts = {"contiguous": False, "channels last": True}
    loops = {
        form: lambda last=last: partial(case.loop, 1, channels_last=last)
        for form, last in layouts.items()
    }
    field.add("torch loop", loops, check, units=steps, target=targets[0])
    if not quick:
        form = {"channels last": case.compiled}
        field.add("torch.compile of the loss", form, check, units=steps, target=targets[1])
    field.measure(repetitions)
    return field.rows()


def _digits(quick: bool) -> Case:
    torch.manual_seed(0)
    x, y = digits()
    runs, steps = (3, 4) if quick else (8, 50)
    model = mlp(784, 20, 10)
    order = torch.cat([torch.randperm(len(x)) for _ in range(steps * 128 // len(x) + 1)])
    return Case(
        f"{runs} runs of 784-20-10, batch 128, SGD with momentum",
        model, "cross_entropy", x, y,
        torch.stack([_start(model, seed) for seed in range(runs)]),
        list(order.split(128)[:steps]), 0.05, 0.9, 1e-3,
    )  # fmt: skip


def _xor(quick: bool) -> Case:
    x = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    runs, steps = (9, 4) if quick else (1000, 50)
    model = mlp(2, 2, 1, activation=nn.Sigmoid).double()
    return Case(
        f"{runs} runs of XOR 2-2-1, full batch, float64",
        model, "mse", x, y,
        torch.stack([_start(model, seed) for seed in range(runs)]),
        [torch.arange(4)] * steps, 0.5, 0.0, 1e-10,
    )  # fmt: skip


def _start(model: nn.Module, seed: int) -> Tensor:
    torch.manual_seed(seed)
    fresh = copy.deepcopy(model)
    for layer in fresh.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return nn.utils.parameters_to_vector(fresh.parameters()).detach()


def _rows(
    case: Case,
    chunks: tuple[int | None, ...],
    loops: int,
    targets: tuple[float, float, float],
    quick: bool,
    repetitions: int,
) -> list[Row]:
    """targets: of the eager loop, of vmap, of the compiled step; 0 is none."""
    want = case.loop(loops, double=True).numpy()

    def check(arm: Arm, got: Tensor) -> None:
        found = got[: len(want)].double().numpy()
        size = min(len(found), len(want))
        gap = np.linalg.norm(found[:size] - want[:size]) / np.linalg.norm(want[:size])
        arm.error = float(gap)
        assert arm.error <= case.rtol, (arm.name, arm.error)

    steps, runs = len(case.batches), len(case.starts)
    field = Field(case.name, "step")
    field.add_ours(Arm("pylandscape", case.ours, steps), check)
    loop, vmapped, compiled = (target or None for target in targets)
    share = min(loops, runs) / runs  # of the runs that the loop makes
    field.add(
        "torch loop",
        {"": lambda: partial(case.loop, loops)},
        check,
        units=steps * share,
        target=loop,
    )
    forms = {f"chunks of {c or runs}": partial(case.vmap, c) for c in chunks}
    field.add("torch.func.vmap + foreach", forms, check, units=steps, target=vmapped)
    if not quick:
        make = partial(case.vmap, None, True)
        field.add("torch.compile of that step", {"": make}, check, units=steps, target=compiled)
    field.measure(repetitions)
    return field.rows()
