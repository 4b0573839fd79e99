"""training: one step of many runs, on the same mini-batches.

Answers are the parameters after all steps, against torch's own loop in float64.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import pylandscape as pl
from pylandscape.engines.contract import Rule, RunState
from pylandscape.engines.training import build
from pylandscape.theta.running_statistics import with_statistics

from . import products
from .curvature import Field, Problem, check_rows
from .harness import Arm, Row, Run
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

    def compiled(self, channels_last: bool) -> Callable[[], Tensor]:
        """torch.compile of the loss and its gradient of one run."""
        torch.compiler.reset()  # it compiles one function for so many models only
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model: Any = copy.deepcopy(self.model).train()
        model = model.to(memory_format=layout)
        x, like = self.x.to(memory_format=layout), list(model.parameters())
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
            return torch.cat([p.detach().reshape(-1) for p in like])[None]  # also channels last

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
    """One run of networks with batch norm in training mode; derivatives of such a loss."""
    return [
        *_norm_rows(_images(quick, "DCNN", 100), (2.5, 1.5), quick, repetitions),
        *_norm_rows(_images(quick, "ResNet-20", 128), (1.5, 1.2), quick, repetitions),
        *_norm_derivatives(quick, repetitions),
    ]


EXACT, KEPT = 100, 8 << 30  # images of the comparison with float64; bytes of values at theta
NOISE, DRAWS = 10, 2  # times float32's rounding; float64 answers with such noise


@dataclass(frozen=True)
class InTraining(Problem):
    """The same in train mode, all of the data in one batch."""

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.model).train()

    def of(self, layout: torch.memory_format) -> InTraining:
        moved = self.copy().to(memory_format=layout)  # type: ignore[call-overload]
        return InTraining(moved, self.x.contiguous(memory_format=layout), self.y)

    def gradient(self) -> Run:
        model = self.copy()
        parameters = list(model.parameters())

        def run() -> Tensor:
            found = torch.autograd.grad(self.loss(model), parameters)
            return torch.cat([part.flatten() for part in found])[None]

        return run


class _Relus(TorchFunctionMode):
    """Sees what every ReLU is given, and may add noise to it: its rms, one after the other."""

    def __init__(self, noise: Sequence[float] = (), seed: int = 0) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self._noise, self._seed = noise, seed

    def __enter__(self) -> _Relus:
        self._drawn = torch.Generator().manual_seed(self._seed)
        self._rms = iter(self._noise)
        super().__enter__()
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in (torch.relu, nn.functional.relu):
            return func(*args, **(kwargs or {}))
        (z,) = args
        if not self._noise:
            self.inputs.append(z.detach())
            return func(z)
        noise = torch.randn(z.shape, generator=self._drawn, dtype=z.dtype)
        return func(z + next(self._rms) * noise)


def _rounding(single: InTraining, double: InTraining) -> list[float]:
    """The rms of float32's error in what each ReLU is given."""
    seen = []
    for problem in (single, double):
        with torch.no_grad(), _Relus() as relus:
            problem.loss(problem.copy())
        seen.append(relus.inputs)
    pairs = zip(*seen, strict=True)
    return [float((a - b).square().mean().sqrt()) for a, b in pairs]


def _undecided(
    theirs: Callable[[InTraining], Run], exact: InTraining, want: Tensor, noise: Sequence[float]
) -> float:
    """How far float32 may leave an answer's direction, over its norm.

    A derivative jumps where a ReLU's input changes its sign. Among 19 million inputs of 100 images
    some lie nearer to 0 than their rounding: three are on the other side in eager float32, which
    moves the gradient of ResNet-20 by 1.5e-3 of its norm (channels last: others, by 2.8e-3), and
    layers behind the last of them are right to 1e-6. No float32 arithmetic decides these. So the
    float64 answer is computed again with noise in what the ReLUs are given, of `NOISE` times
    float32's rounding there. The number of changed signs goes with the noise and their effects
    are orthogonal, so this is sqrt(NOISE) = 3 times the rms of what rounding does to an answer.
    """
    squares = []
    for seed in range(DRAWS):
        with _Relus(noise, seed):
            got = theirs(exact)()
        squares.append(float((got - want).norm() / want.norm()) ** 2)
    return float(np.sqrt(np.mean(squares)))


def _norm_derivatives(quick: bool, repetitions: int) -> list[Row]:
    """Gradient and Hessian product of ResNet-20, through the statistics of one batch.

    Every answer is compared with float64 over the first images, which is what memory has room for,
    and over all of them with autograd's of the same dtype.
    """
    torch.manual_seed(0)
    count = 6 if quick else 500
    model = ResNet(8, 4) if quick else ResNet()
    problem = InTraining(model, *_random_images(count))
    few = InTraining(model, problem.x[:EXACT], problem.y[:EXACT])
    double = InTraining(few.copy().double(), few.x.double(), few.y)
    noise = [NOISE * rms for rms in _rounding(few, double)]
    v = torch.randn(1, problem.n)

    def landscape(of: Problem) -> pl.Landscape:
        return pl.Landscape(
            model, "cross_entropy", (of.x, of.y), bn="batch", engine="native", memory=KEPT
        )

    def gradient(land: pl.Landscape) -> Run:
        points = itertools.cycle([land.theta, land.theta * (1 + 1e-6)])  # values at one are kept
        return lambda: land.gradient(next(points))[None]

    def product(land: pl.Landscape) -> Run:
        land.native.product("hessian", land.theta, v)  # land.hvp would quietly be torch's
        return lambda: land.hvp(v)

    def autograd_product(of: Problem) -> Run:
        return partial(products.retained(of), v.to(of.x.dtype))

    table: list[Row] = []
    for what, ours, theirs, target in (
        ("gradient", gradient, InTraining.gradient, 2.0),
        ("Hessian product", product, autograd_product, 1.5),
    ):
        exact = theirs(double)()
        allowed = _undecided(theirs, double, exact, noise)
        for name, run in (("ours", ours(landscape(few))), ("autograd", theirs(few))):
            check_rows(Arm(name, run), run(), exact, allowed)
        # More images have more undecided signs, each of which weighs less; two answers err.
        check = partial(_agrees, theirs(problem)(), 2**0.5 * allowed)
        field = Field(f'{what}, bn="batch", {type(model).__name__}, {count} images', "call")
        field.add_ours(Arm("pylandscape", ours(landscape(problem)), note="all of the call"), check)
        layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
        forms = {
            name: lambda layout=layout, theirs=theirs: theirs(problem.of(layout))
            for name, layout in layouts.items()
        }
        note = "" if what == "gradient" else "graph of the gradient kept, not timed"
        field.add("torch autograd", forms, check, target=target, note=note)
        field.measure(repetitions)
        table += field.rows()
    return table


def _agrees(want: Tensor, rtol: float, arm: Arm, got: Tensor) -> None:
    check_rows(arm, got, want, rtol)


def _random_images(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))


def _images(quick: bool, name: str, batch: int) -> Case:
    torch.manual_seed(0)
    if name == "DCNN":
        model: nn.Module = dcnn((12, 6, 6, 6, 6)) if quick else dcnn()
    else:
        model = ResNet(8, 4) if quick else ResNet()
    batch = 6 if quick else batch
    x, y = _random_images(2 * batch)
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
        forms = {form: partial(case.compiled, last) for form, last in layouts.items()}
        field.add("torch.compile of the loss", forms, check, units=steps, target=targets[1])
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
