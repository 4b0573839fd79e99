"""Training in the compiled core: its steps are torch.optim's, whatever runs beside a run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.engines.contract import Rule, RunState
from pylandscape.engines.training import build
from pylandscape.errors import InvalidArgument, NotLowered

STEPS = 50


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))


def _deep() -> nn.Module:  # more than 512 parameters: not point lanes
    return nn.Sequential(
        nn.Linear(5, 37), nn.GELU(), nn.Linear(37, 19), nn.ReLU(), nn.Linear(19, 3)
    )


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "small": (_mlp, (5,)),
    "mlp": (_deep, (5,)),
    "conv": (_conv, (2, 6, 6)),
}
RULES: dict[str, tuple[Rule, Any]] = {
    "sgd": (Rule("sgd"), lambda p: torch.optim.SGD(p)),
    "momentum": (
        Rule("sgd", momentum=0.9, dampening=0.3, weight_decay=1e-2),
        lambda p: torch.optim.SGD(p, momentum=0.9, dampening=0.3, weight_decay=1e-2),
    ),
    "nesterov": (
        Rule("sgd", momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, momentum=0.8, nesterov=True),
    ),
    "adagrad": (
        Rule("adagrad", lr_decay=0.01, weight_decay=1e-2, eps=1e-10),
        lambda p: torch.optim.Adagrad(p, lr_decay=0.01, weight_decay=1e-2),
    ),
    "rmsprop": (
        Rule("rmsprop", weight_decay=1e-2),
        lambda p: torch.optim.RMSprop(p, weight_decay=1e-2),
    ),
    "rmsprop momentum": (
        Rule("rmsprop", momentum=0.5, alpha=0.9, eps=1e-3),
        lambda p: torch.optim.RMSprop(p, momentum=0.5, alpha=0.9, eps=1e-3),
    ),
    "adadelta": (
        Rule("adadelta", weight_decay=1e-2, eps=1e-6),
        lambda p: torch.optim.Adadelta(p, weight_decay=1e-2),
    ),
    "adam": (
        Rule("adam", betas=(0.8, 0.95), weight_decay=1e-2),
        lambda p: torch.optim.Adam(p, betas=(0.8, 0.95), weight_decay=1e-2),
    ),
    "adamw": (
        Rule("adamw", weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, weight_decay=0.1),
    ),
}


def _landscape(
    name: str = "mlp", dtype: torch.dtype = torch.float64, samples: int = 45, **options: Any
) -> pl.Landscape:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    x, y = torch.randn(samples, *shape, dtype=dtype), torch.randint(0, 3, (samples,))
    y[::7] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.5]), ignore_index=-100)
    return pl.Landscape(make().to(dtype), loss, (x, y), **options)


def _batches(samples: int, size: int, steps: int, seed: int = 3) -> list[Tensor]:
    """Epochs of mini-batches whose last is smaller."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    while len(found) < steps:
        found += torch.randperm(samples, generator=generator).split(size)
    return found[:steps]


def _state(rule: Rule, starts: Tensor) -> RunState:
    moments = [torch.zeros_like(starts) for _ in rule.slots]
    empty = torch.empty(len(starts), 0, dtype=starts.dtype)
    return RunState(starts.clone(), moments, empty, 0, torch.arange(len(starts)))


def _starts(land: pl.Landscape, runs: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(runs, land.n_params, generator=generator, dtype=land.dtype)
    return land.theta + 0.1 * noise


def _trained(
    land: pl.Landscape,
    start: Tensor,
    optimiser: Any,
    batches: list[Tensor],
    rates: Tensor,
    rule: Rule | None = None,
) -> tuple[Tensor, Tensor]:
    """torch's own training of the module: theta at the end, and the losses."""
    model = copy.deepcopy(land.model).train()
    nn.utils.vector_to_parameters(start, model.parameters())
    steps = optimiser(list(model.parameters()))
    x, y = land.dataset.tensors()
    loss_fn = land.loss_spec
    losses = []

    def gradient(rows: Tensor) -> float:
        steps.zero_grad()
        out = model(x[rows])
        loss = loss_fn.total(out, y[rows]) / loss_fn.denominator(y[rows], tuple(out.shape))
        loss.backward()
        return float(loss.detach())

    for rows, rate in zip(batches, rates, strict=True):
        for group in steps.param_groups:
            group["lr"] = float(rate)
        losses.append(gradient(rows))
        if rule is not None and rule.runge_kutta is not None:
            a1, a2, q1 = rule.runge_kutta
            first = [p.grad.clone() for p in model.parameters()]
            with torch.no_grad():
                kept = [p.clone() for p in model.parameters()]
                for p, g in zip(model.parameters(), first, strict=True):
                    p -= q1 * float(rate) * g
            gradient(rows)
            with torch.no_grad():
                for p, k, g in zip(model.parameters(), kept, first, strict=True):
                    p.copy_(k)
                    p.grad.mul_(a2).add_(g, alpha=a1)
        if rule is not None and rule.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), rule.clip)
        steps.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach(), torch.tensor(
        losses, dtype=torch.float64
    )


def _close(got: Tensor, want: Tensor, rtol: float = 1e-10) -> None:
    gap = torch.linalg.vector_norm((got - want).double())
    assert float(gap) <= rtol * float(torch.linalg.vector_norm(want.double()))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RULES)
def test_every_optimiser_agrees_with_torch(model: str, name: str) -> None:
    land = _landscape(model)
    rule, optimiser = RULES[name]
    rates = torch.linspace(0.02, 0.005, STEPS, dtype=torch.float64)
    batches = _batches(45, 13, STEPS)
    starts = _starts(land, 2)
    state = _state(rule, starts)
    stepper = build(land, rule)
    losses = stepper.advance(state, batches, rates)
    assert state.steps == STEPS
    for run in range(2):
        want, want_losses = _trained(land, starts[run], optimiser, batches, rates)
        _close(state.theta[run], want)
        _close(losses[run], want_losses)
    assert not torch.equal(state.theta, starts)


@pytest.mark.parametrize("model", ["small", "mlp"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_two_stages_and_clipping_agree_with_torch(model: str, name: str) -> None:
    land = _landscape(model)
    for options in ({"runge_kutta": (0.5, 0.5, 1.0)}, {"clip": 0.05}, {"clip": 1e6}):
        rule, optimiser = Rule(name, **options), RULES[name][1]
        if name == "adam":
            optimiser = torch.optim.Adam
        rates = torch.full((STEPS,), 0.02, dtype=torch.float64)
        batches = _batches(45, 16, STEPS)
        starts = _starts(land, 2)
        state = _state(rule, starts)
        build(land, rule).advance(state, batches, rates)
        want, _ = _trained(land, starts[1], optimiser, batches, rates, rule)
        _close(state.theta[1], want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", MODELS)
def test_runs_together_have_the_bits_of_each_alone(model: str, dtype: torch.dtype) -> None:
    land = _landscape(model, dtype, samples=301)
    rule = Rule("adam", runge_kutta=(0.0, 1.0, 0.5), clip=0.3)
    runs, rates = 11, torch.full((9,), 1e-2, dtype=torch.float64)
    shared = _batches(301, 130, 4)  # several tiles of the convolutions
    own = [torch.stack([_batches(301, 70, 5, seed)[t] for seed in range(runs)]) for t in range(5)]
    starts = _starts(land, runs)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = _state(rule, starts)
        losses = build(land, rule).advance(together, [*shared, *own], rates)
        torch.set_num_threads(1)
        stepper = build(land, rule)
        for run in (0, 7, 10):
            alone = _state(rule, starts[run : run + 1])
            first = stepper.advance(alone, [*shared, own[0][run]], rates[:5])
            last = stepper.advance(alone, [b[run : run + 1] for b in own[1:]], rates[5:])
            assert torch.equal(alone.theta[0], together.theta[run])
            assert torch.equal(torch.cat([first, last], 1)[0], losses[run])
            for got, want in zip(alone.moments, together.moments, strict=True):
                assert torch.equal(got[0], want[run])
        torch.set_num_threads(4)  # more threads than runs: the tiles of a step are divided
        alone = _state(rule, starts[7:8])
        stepper.advance(alone, [*shared, *(b[7] for b in own)], rates)
        assert torch.equal(alone.theta[0], together.theta[7])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("model", ["small", "mlp"])
def test_the_papers_forms_of_the_rules(model: str) -> None:
    # With slopes g1, g2 of two steps: momentum dampened from zero, and eps inside the root.
    land, rates = _landscape(model), torch.full((1,), 0.1, dtype=torch.float64)
    plain, batch = Rule("sgd"), [torch.arange(1, 6)]
    state = _state(plain, land.theta[None])
    build(land, plain).advance(state, batch, torch.ones(1, dtype=torch.float64))
    g = land.theta - state.theta[0]
    eps = 1e-2
    moves = {
        Rule("sgd", momentum=0.9, dampening=0.9, from_zero=True): 0.1 * g,
        Rule("adagrad", eps=eps, eps_inside=True): g / (g**2 + eps).sqrt(),
        Rule("rmsprop", alpha=0.9, eps=eps, eps_inside=True): g / (0.1 * g**2 + eps).sqrt(),
        Rule("adam", eps=eps, eps_inside=True): g / ((0.001 * g**2 + eps).sqrt() / 0.001**0.5),
    }
    for rule, move in moves.items():
        state = _state(rule, land.theta[None])
        build(land, rule).advance(state, batch, rates)
        _close(land.theta - state.theta[0], 0.1 * move, 1e-11)


def test_float32_follows_torch_to_rounding() -> None:
    land = _landscape("mlp", torch.float32)
    rule, optimiser = RULES["momentum"]
    rates, batches = torch.full((20,), 0.02, dtype=torch.float64), _batches(45, 16, 20)
    state = _state(rule, _starts(land, 1))
    start = state.theta[0].clone()
    build(land, rule).advance(state, batches, rates)
    _close(state.theta[0], _trained(land, start, optimiser, batches, rates)[0], 1e-5)


def test_frozen_parameters_stay_and_tied_ones_move_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.inner(torch.tanh(self.inner(x)))))

    torch.manual_seed(1)
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    land = pl.Landscape(Tied().double(), "mse", (x, y), params=["inner.*"])
    rule = Rule("sgd")
    state = _state(rule, land.theta[None])
    batches, rates = _batches(20, 6, STEPS), torch.full((STEPS,), 0.05, dtype=torch.float64)
    build(land, rule).advance(state, batches, rates)
    model = copy.deepcopy(land.model)
    model.last.requires_grad_(False)
    steps = torch.optim.SGD(model.inner.parameters(), lr=0.05)
    for rows in batches:
        steps.zero_grad()
        F.mse_loss(model(x[rows]), y[rows]).backward()
        steps.step()
    _close(state.theta[0], nn.utils.parameters_to_vector(model.inner.parameters()).detach())


def test_descent_on_a_quadratic_follows_its_law() -> None:
    # L = 1/2 * sum over samples of (w x)^2 / N has curvature E[x^2]: w_t = (1 - lr c)^t w_0.
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    land = pl.Landscape(nn.Linear(1, 1, bias=False).double(), "mse", (x, torch.zeros_like(x)))
    curvature, rate, steps = 2 * float((x**2).mean()), 0.07, 12
    rule = Rule("sgd")
    state = _state(rule, torch.tensor([[1.0], [-2.0]], dtype=torch.float64))
    rates = torch.full((steps,), rate, dtype=torch.float64)
    build(land, rule).advance(state, [torch.arange(3)] * steps, rates)
    want = (1 - rate * curvature) ** steps * torch.tensor([1.0, -2.0], dtype=torch.float64)
    _close(state.theta[:, 0], want, 1e-13)
    heun = Rule("sgd", runge_kutta=(0.5, 0.5, 1.0))
    state = _state(heun, torch.tensor([[1.0], [-2.0]], dtype=torch.float64))
    build(land, heun).advance(state, [torch.arange(3)] * steps, rates)
    step = rate * curvature
    want = (1 - step + step**2 / 2) ** steps * torch.tensor([1.0, -2.0], dtype=torch.float64)
    _close(state.theta[:, 0], want, 1e-13)


def test_a_batch_without_a_counted_target_moves_nothing() -> None:
    land = _landscape("mlp")
    rule = Rule("sgd")
    state = _state(rule, land.theta[None])
    rates = torch.ones(1, dtype=torch.float64)
    losses = build(land, rule).advance(state, [torch.tensor([0, 7, 14])], rates)
    assert torch.isnan(losses).all()
    assert torch.equal(state.theta[0], land.theta)


def test_data_that_begin_with_ignored_targets_are_trained() -> None:
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.randint(0, 3, (30,))
    y[:20] = -100
    build(pl.Landscape(_mlp().double(), "cross_entropy", (x, y)), Rule("sgd"))


def test_a_run_that_diverges_leaves_the_others_alone() -> None:
    for name in ("small", "mlp"):
        land = _landscape(name)
        rule = Rule("sgd")
        starts = _starts(land, 3)
        starts[1] *= 1e200
        state, clean = _state(rule, starts), _state(rule, starts[2:])
        rates, batches = torch.full((6,), 0.1, dtype=torch.float64), _batches(45, 9, 6)
        stepper = build(land, rule)
        stepper.advance(state, batches, rates)
        stepper.advance(clean, batches, rates)
        assert not torch.isfinite(state.theta[1]).all()
        assert torch.equal(state.theta[2], clean.theta[0])


class _Switch(nn.Module):
    """Another function in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.1 if self.training else x


class _Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return x


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * torch.randn_like(x) if self.training else x


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (_Noise(), "random numbers"),
        (_Counter(), "buffer '1.seen'"),
        (_Switch(), "something else than the program"),
    ],
)
def test_models_that_train_differently_are_refused(layer: nn.Module, reason: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), layer, nn.Linear(9, 3)).double()
    data = (torch.randn(30, 5, dtype=torch.float64), torch.randint(0, 3, (30,)))
    land = pl.Landscape(model, "cross_entropy", data)
    before = copy.deepcopy(land.model.state_dict())
    random = torch.get_rng_state()
    with pytest.raises(NotLowered, match=reason):
        build(land, Rule("sgd"))
    assert torch.equal(random, torch.get_rng_state())
    assert not land.model.training
    for name, value in land.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_dropout_that_is_off_is_no_obstacle() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.Dropout(0.0), nn.Linear(9, 3)).double()
    data = (torch.randn(30, 5, dtype=torch.float64), torch.randint(0, 3, (30,)))
    build(pl.Landscape(model, "cross_entropy", data), Rule("sgd"))


def test_refusals_and_bad_input_are_named() -> None:
    land = _landscape("mlp")
    with pytest.raises(InvalidArgument, match=r"rule: expected one of sgd"):
        build(land, Rule("lbfgs"))
    with pytest.raises(NotLowered, match="asked for"):
        build(_landscape("mlp", engine="torch"), Rule("sgd"))
    stepper, rates = build(land, Rule("adam")), torch.ones(1, dtype=torch.float64)
    state = _state(Rule("adam"), land.theta[None])
    for batch in (torch.tensor([45]), torch.tensor([-1]), torch.tensor([0.0]), torch.tensor([])):
        with pytest.raises(InvalidArgument, match=r"batches\[0\]"):
            stepper.advance(state, [batch], rates)
    with pytest.raises(InvalidArgument, match="moments"):
        stepper.advance(_state(Rule("sgd"), land.theta[None]), [torch.arange(3)], rates)
    with pytest.raises(InvalidArgument, match="rates"):
        stepper.advance(state, [torch.arange(3)] * 2, rates)
    assert state.steps == 0
    assert torch.equal(state.theta[0], land.theta)
