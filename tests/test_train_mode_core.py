"""Batch norm and dropout in the compiled core's training: torch's numbers, masks by counter."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pylandscape as pl
from pylandscape.engines.contract import Rule, RunState
from pylandscape.engines.dropout import CountedDropout
from pylandscape.engines.eager_training import TorchStepper
from pylandscape.engines.training import CurveSlopes, _CoreStepper, build
from pylandscape.errors import InvalidArgument, NotLowered
from pylandscape.theta.running_statistics import with_statistics

STEPS = 50
DOUBLE = torch.float64


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm1d(5), nn.Linear(5, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 7),
        nn.BatchNorm1d(7, momentum=None, affine=False), nn.ReLU(), nn.Linear(7, 3),
        nn.BatchNorm1d(3, track_running_stats=False),
    )  # fmt: skip


def _dcnn() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((2, 6), (6, 4), (4, 4)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(
        *layers[:3], nn.MaxPool2d(2), *layers[3:], nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


class _Residual(nn.Module):
    """Shortcuts, and a norm that runs twice."""

    def __init__(self, momentum: float | None = 0.2) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv1 = nn.Conv2d(5, 5, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(5, momentum=momentum)
        self.conv2, self.norm2 = nn.Conv2d(5, 7, 3, stride=2, padding=1), nn.BatchNorm2d(7)
        self.short, self.norm3 = nn.Conv2d(5, 7, 1, stride=2), nn.BatchNorm2d(7)
        self.out = nn.Linear(7 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm0(self.stem(x)))
        h = F.relu(self.norm1(self.conv1(h)) + h)
        h = F.relu(self.norm1(h))
        h = F.relu(self.norm2(self.conv2(h)) + self.norm3(self.short(h)))
        return self.out(h.flatten(1))


def _dropped() -> nn.Module:
    return nn.Sequential(
        nn.Dropout(0.2), nn.Linear(5, 9), nn.Dropout(0.3), nn.Tanh(), nn.Linear(9, 7),
        nn.BatchNorm1d(7), nn.Dropout(0.5, inplace=True), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip


def _channels() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.Dropout2d(0.3), nn.ReLU(), nn.Dropout(0.1),
        nn.Flatten(2), nn.Dropout1d(0.2), nn.Flatten(), nn.Linear(384, 3),
    )  # fmt: skip


IMAGE = (2, 8, 8)
NORMS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (_mlp, (5,)),
    "dcnn": (_dcnn, IMAGE),
    "resnet": (_Residual, IMAGE),
    "resnet, cumulative": (lambda: _Residual(None), IMAGE),
}
DROPOUTS = {"elements": (_dropped, (5,)), "channels": (_channels, IMAGE)}


def _landscape(
    make: Any,
    shape: tuple[int, ...],
    samples: int = 60,
    dtype: torch.dtype = DOUBLE,
    **options: Any,
) -> pl.Landscape:
    torch.manual_seed(0)
    x, y = 2 * torch.randn(samples, *shape, dtype=dtype) + 1, torch.randint(0, 3, (samples,))
    model = make().to(dtype)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    return pl.Landscape(model, "cross_entropy", (x, y), **options)


def _state(land: pl.Landscape, rule: Rule, runs: int = 1) -> RunState:
    layout = with_statistics(land.layout, land.model)
    named = {**dict(land.model.named_parameters()), **dict(land.model.named_buffers())}
    point, n = layout.flatten(named, land.dtype, land.device), land.n_params
    scale = 1 + 0.1 * torch.arange(runs, dtype=land.dtype)[:, None]
    theta = (scale * point[:n]).contiguous()
    moments = [torch.zeros_like(theta) for _ in rule.slots]
    return RunState(theta, moments, point[n:].repeat(runs, 1), 0, 7 + torch.arange(runs))


def _batches(samples: int, size: int, steps: int, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    while len(found) < steps:
        found += torch.randperm(samples, generator=generator).split(size)
    return found[:steps]


def _rates(steps: int, rate: float = 0.02) -> Tensor:
    return torch.full((steps,), rate, dtype=DOUBLE)


def _close(got: Tensor, want: Tensor, rtol: float = 1e-10) -> None:
    gap = torch.linalg.vector_norm((got - want).double())
    assert float(gap) <= rtol * float(torch.linalg.vector_norm(want.double()))


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_trains_as_torch_does(name: str) -> None:
    land = _landscape(*NORMS[name])
    rule = Rule("sgd", momentum=0.9, weight_decay=1e-3)
    batches, state = _batches(60, 26, STEPS), _state(land, rule)
    losses = build(land, rule).advance(state, batches, _rates(STEPS))
    model, (x, y) = copy.deepcopy(land.model).train(), land.dataset.tensors()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.track_running_stats:
            module.num_batches_tracked.zero_()
    steps = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    for t, rows in enumerate(batches):
        steps.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        steps.step()
        assert float(losses[0, t]) == pytest.approx(float(loss.detach()), rel=1e-10)
    _close(state.theta[0], nn.utils.parameters_to_vector(model.parameters()).detach())
    own = [b.reshape(-1) for k, b in model.named_buffers() if "running" in k]
    _close(state.buffers[0], torch.cat(own))


@pytest.mark.parametrize("name", ["dcnn", "resnet, cumulative", *DROPOUTS])
def test_both_engines_train_alike(name: str) -> None:
    land = _landscape(*(NORMS | DROPOUTS)[name])
    rule = Rule("adam", runge_kutta=(0.5, 0.5, 1.0), clip=0.5)  # two passes a step
    batches, rates = _batches(60, 26, 8), _rates(8, 1e-3)
    native, torchs = _state(land, rule, 2), _state(land, rule, 2)
    losses = build(land, rule).advance(native, batches, rates)
    want = TorchStepper(land, rule).advance(torchs, batches, rates)
    _close(losses, want)
    _close(native.theta, torchs.theta)
    if name != "channels":
        _close(native.buffers, torchs.buffers)


@pytest.mark.ci
def test_float32_follows_torch_to_rounding() -> None:
    for name, (make, shape) in (NORMS | DROPOUTS).items():
        land = _landscape(make, shape, dtype=torch.float32)
        rule, batches = Rule("sgd"), _batches(60, 26, 6)
        native, torchs = _state(land, rule), _state(land, rule)
        build(land, rule).advance(native, batches, _rates(6))
        TorchStepper(land, rule).advance(torchs, batches, _rates(6))
        assert torch.allclose(native.theta, torchs.theta, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("name", ["mlp", "resnet", "elements"])
def test_runs_together_have_the_bits_of_each_alone(name: str) -> None:
    land = _landscape(*(NORMS | DROPOUTS)[name], samples=150, dtype=torch.float32)
    rule, runs = Rule("adam"), 3
    shared = _batches(150, 110, 3)  # several tiles
    own = torch.stack([_batches(150, 70, 1, seed)[0] for seed in range(runs)])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = _state(land, rule, runs)
        losses = build(land, rule).advance(together, [*shared, own], _rates(4))
        torch.set_num_threads(1)
        stepper, all_of = build(land, rule), _state(land, rule, runs)
        for run in range(runs):
            alone = RunState(
                all_of.theta[run : run + 1].clone(),
                [m[run : run + 1].clone() for m in all_of.moments],
                all_of.buffers[run : run + 1].clone(), 0, all_of.seeds[run : run + 1],
            )  # fmt: skip
            if run == 2:
                torch.set_num_threads(3)  # more threads than runs: the tiles are divided
            first = stepper.advance(alone, shared, _rates(3))
            last = stepper.advance(alone, [own[run]], _rates(1))
            assert torch.equal(alone.theta[0], together.theta[run])
            assert torch.equal(alone.buffers[0], together.buffers[run])
            assert torch.equal(torch.cat([first, last], 1)[0], losses[run])
    finally:
        torch.set_num_threads(threads)


def _masks(seed: int = 0, step: int = 0, count: int = 1, rate: float = 0.3) -> list[Tensor]:
    """What the first dropouts of a pass let through of (200, 50) elements."""
    with torch.random.fork_rng(), CountedDropout(seed, step, 11):
        torch.manual_seed(11)
        return [F.dropout(torch.ones(200, 50), rate) for _ in range(count)]


def test_masks_have_their_rate_and_are_independent() -> None:
    a, b = _masks(count=2)
    others = [a, b, *_masks(seed=1), *_masks(step=1)]
    error = 4 * (0.3 * 0.7 / a.numel()) ** 0.5
    for mask in others:
        assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
        assert abs(float((mask == 0).float().mean()) - 0.3) < error
    zeros = torch.stack([(m == 0).double().reshape(-1) for m in others])
    correlation = torch.corrcoef(zeros) - torch.eye(len(others))
    assert float(correlation.abs().max()) < 4 / a.numel() ** 0.5
    neighbours = (a[1:] == 0).double().reshape(-1), (a[:-1] == 0).double().reshape(-1)
    assert abs(float(torch.corrcoef(torch.stack(neighbours))[0, 1])) < 4 / a.numel() ** 0.5
    assert torch.equal(a, _masks()[0])


def test_channels_are_dropped_as_a_whole() -> None:
    with torch.random.fork_rng(), CountedDropout(0, 0, 5):
        torch.manual_seed(5)
        mask = F.dropout2d(torch.ones(40, 6, 3, 3), 0.5)
    per_channel = mask.flatten(2)
    assert torch.equal(per_channel.amin(2), per_channel.amax(2))
    assert 0.3 < float((per_channel[:, :, 0] == 0).float().mean()) < 0.7


def test_a_rate_of_zero_is_no_dropout_and_of_one_drops_all() -> None:
    def network(rate: float | None) -> Any:
        drop = [] if rate is None else [nn.Dropout(rate)]
        return lambda: nn.Sequential(nn.Linear(5, 40), nn.Tanh(), *drop, nn.Linear(40, 3))

    ends, rule = {}, Rule("sgd")
    for rate in (None, 0.0, 1.0):
        land = _landscape(network(rate), (5,), dtype=torch.float32)
        state = _state(land, rule)
        build(land, rule).advance(state, _batches(60, 20, 5), _rates(5))
        ends[rate] = (state.theta[0], land.theta)
    assert torch.equal(ends[None][0], ends[0.0][0])
    moved = ends[1.0][0] != ends[1.0][1]
    assert moved[-3:].all()  # the last bias alone is left
    assert not moved[:-3].any()


def test_eval_is_without_dropout_and_stays_so() -> None:
    land = _landscape(*DROPOUTS["elements"])
    before = land.loss()
    pl.train(land, 2, pl.SGD(lr=0.1), steps=3, batch_size=20, progress=False)
    assert land.loss() == before
    assert not any(m.training for m in land.model.modules())
    x, y = land.dataset.tensors()
    with torch.no_grad():
        want = float(F.cross_entropy(land.model(x), y))
    assert land.loss() == pytest.approx(want, rel=1e-12)


def test_train_takes_the_core_and_resumes_with_the_same_bits(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    land = _landscape(*DROPOUTS["elements"])
    options = {"steps": 12, "batch_size": 20, "record": 3, "progress": False}
    whole = pl.train(land, 2, pl.Adam(lr=0.01), **options)
    assert whole.info["engine"] == "native"
    calls, own = [], _CoreStepper.advance

    def stopping(self: Any, *args: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return own(self, *args)

    path = tmp_path / "runs.h5"
    monkeypatch.setattr(_CoreStepper, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        pl.train(land, 2, pl.Adam(lr=0.01), path=path, **options)
    monkeypatch.undo()
    resumed = pl.train(land, 2, pl.Adam(lr=0.01), path=path, **options)
    assert torch.equal(resumed.ends(), whole.ends())
    assert np.array_equal(
        resumed.metrics["batch_loss"], whole.metrics["batch_loss"], equal_nan=True
    )


class _Checkpointed(nn.Module):
    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.first, self.last, self.recompute = nn.Linear(5, 30), nn.Linear(30, 3), recompute

    def part(self, x: Tensor) -> Tensor:
        return F.dropout(torch.tanh(self.first(F.dropout(x, 0.2))), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and self.training:
            return self.last(checkpoint(self.part, x, use_reentrant=False))
        return self.last(self.part(x) if self.training else torch.tanh(self.first(x)))


def test_activation_checkpoints_meet_the_same_masks() -> None:
    ends, rule = [], Rule("sgd")
    for recompute in (False, True):
        land = _landscape(lambda r=recompute: _Checkpointed(r), (5,), engine="torch")
        state = _state(land, rule)
        TorchStepper(land, rule).advance(state, _batches(60, 20, 4), _rates(4, 0.5))
        ends.append(state.theta)
    assert torch.equal(*ends)


class _Frozen(nn.Sequential):
    """Its norm stays in eval mode, as in fine-tuning."""

    def train(self, mode: bool = True) -> _Frozen:
        super().train(mode)
        self[1].eval()
        return self


def test_a_norm_that_stays_in_eval_mode_keeps_its_statistics() -> None:
    def make() -> nn.Module:
        return _Frozen(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 4), nn.BatchNorm1d(4))

    land, rule = _landscape(make, (5,)), Rule("sgd")
    native, torchs = _state(land, rule), _state(land, rule)
    kept = native.buffers.clone()
    build(land, rule).advance(native, _batches(60, 20, 5), _rates(5))
    TorchStepper(land, rule).advance(torchs, _batches(60, 20, 5), _rates(5))
    _close(native.theta, torchs.theta)
    assert torch.equal(native.buffers[:, :12], kept[:, :12])
    assert (native.buffers[:, 12:] != kept[:, 12:]).all()


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x) if self.training else x


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (_Noise(), "random numbers"),
        (nn.AlphaDropout(0.2), "random numbers"),
        (nn.Sequential(nn.Dropout(0.5), _Noise()), "random numbers"),
        (nn.Sequential(nn.BatchNorm1d(9), nn.Unflatten(1, (3, 3)),
                       nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten()),
         "running statistics"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_carry_is_left_to_torch(layer: nn.Module, reason: str) -> None:
    land = _landscape(lambda: nn.Sequential(nn.Linear(5, 9), layer, nn.Linear(9, 3)), (5,))
    random = torch.get_rng_state()
    before = copy.deepcopy(land.model.state_dict())
    with pytest.raises(NotLowered, match=reason):
        build(land, Rule("sgd"))
    assert torch.equal(random, torch.get_rng_state())
    for name, value in land.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_batch_of_one_sample_is_refused_as_torch_does() -> None:
    land, rule = _landscape(*NORMS["mlp"]), Rule("sgd")
    with pytest.raises(InvalidArgument, match=r"batches\[1\]: expected at least 2 samples"):
        build(land, rule).advance(
            _state(land, rule), [torch.arange(5), torch.tensor([3])], _rates(2)
        )


def test_curves_take_the_slopes_of_the_landscape_itself() -> None:
    land = _landscape(*DROPOUTS["elements"])
    at = land.theta.double()[None]
    slopes = CurveSlopes(land, at.expand(2, -1))
    losses, slope = slopes(torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), at)
    assert float(losses[0]) == pytest.approx(land.loss(), rel=1e-12)
    _close(slope[0], land.gradient(), 1e-12)
