"""Training: parity with torch.optim, Runge-Kutta orders, bits, records, bad input."""

import copy
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.cli.app import main
from pylandscape.engines import eager_training

mpl.use("agg")
DOUBLE = torch.float64


def data(count=40, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 5, generator=generator, dtype=dtype)
    return x, x[:, :3].argmax(1)


def network(norm=False, dropout=False, dtype=DOUBLE, momentum=0.1):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(6, momentum=momentum))
    if dropout:
        layers.insert(-1, nn.Dropout(0.4))
    return nn.Sequential(*layers).to(dtype)


def landscape(**options):
    return pl.Landscape(network(**options), "cross_entropy", data(), engine="torch")


def quadratic(curvatures, start):
    """L = sum of curvature_i theta_i^2 / 2, as a landscape."""

    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.tensor(start, dtype=DOUBLE))

    h = torch.tensor(curvatures, dtype=DOUBLE)
    one = torch.zeros(1, 1, dtype=DOUBLE)
    return pl.Landscape(
        Point(), data=(one, one), objective=lambda model, batch: (h * model.theta**2).sum() / 2
    )


def ask(land, starts, optimiser, **options):
    return pl.train(land, starts, optimiser, progress=False, **options)


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def batches_of(land, seed, batch_size, steps):
    """The mini-batches that train draws, seen from outside: by a model that notes its rows."""
    seen = []
    rows = torch.arange(land.dataset.size, dtype=DOUBLE)[:, None]

    class Noting(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, 1, dtype=DOUBLE))

        def forward(self, x):
            if self.training:
                seen.append(x[:, 0].long())
            return x @ self.w

    own = pl.Landscape(Noting(), "mse", (rows, rows), engine="torch")
    ask(own, own.theta, pl.SGD(lr=0.0), steps=steps, batch_size=batch_size, seed=seed, metrics=())
    return seen


OPTIMISERS = {
    "sgd": (pl.SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (
        pl.SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "dampening": (
        pl.SGD(lr=0.1, momentum=0.8, dampening=0.5),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.5),
    ),
    "nesterov": (
        pl.SGD(lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "adagrad": (
        pl.Adagrad(lr=0.1, lr_decay=0.1, weight_decay=0.01),
        lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1, weight_decay=0.01),
    ),
    "rmsprop": (pl.RMSprop(lr=0.01), lambda p: torch.optim.RMSprop(p, lr=0.01)),
    "rmsprop momentum": (
        pl.RMSprop(lr=0.01, momentum=0.5, weight_decay=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, weight_decay=0.01),
    ),
    "adadelta": (pl.Adadelta(), lambda p: torch.optim.Adadelta(p)),
    "adam": (
        pl.Adam(lr=0.01, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    ),
    "adamw": (pl.AdamW(lr=0.01), lambda p: torch.optim.AdamW(p, lr=0.01)),
    "heun": (
        pl.RungeKutta(pl.Adam(lr=0.01), "heun"),
        lambda p: pl.optim.RungeKutta(p, torch.optim.Adam, method="heun", lr=0.01),
    ),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("norm", [False, True])
def test_every_optimiser_is_torchs_after_50_steps_in_float64(name, norm):
    described, make = OPTIMISERS[name]
    land = landscape(norm=norm)
    runs = ask(land, land.theta, described, steps=50, batch_size=16, seed=3)
    model = network(norm=norm).train()
    optimiser = make(model.parameters())
    x, y = data()
    losses = []
    for rows in batches_of(land, 3, 16, 50):

        def closure(rows=rows):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            return loss

        losses.append(optimiser.step(closure).item())
    want = flat(model)
    assert torch.linalg.vector_norm(runs.ends()[0] - want) <= 1e-10 * want.norm()
    assert runs.metrics["batch_loss"][0, -1] == pytest.approx(np.mean(losses[48:]), rel=1e-10)
    if norm:
        state = runs[0][-1]
        assert torch.allclose(state["1.running_mean"], model[1].running_mean, rtol=1e-10)
        assert torch.allclose(state["1.running_var"], model[1].running_var, rtol=1e-10)
        model.eval()
        whole = nn.functional.cross_entropy(model(x), y)
        assert runs.metrics["loss"][0, -1] == pytest.approx(whole.item(), rel=1e-9)


def test_cumulative_statistics_are_torchs_too():
    land = landscape(norm=True, momentum=None)
    runs = ask(land, land.theta, pl.SGD(lr=0.1), steps=7, batch_size=16, metrics=())
    model = network(norm=True, momentum=None).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data()
    for rows in batches_of(land, 0, 16, 7):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    assert torch.allclose(runs[0][-1]["1.running_var"], model[1].running_var, rtol=1e-10)


def test_an_epoch_sees_every_sample_once_and_the_next_in_another_order():
    seen = batches_of(landscape(), 0, 16, 6)
    assert [len(rows) for rows in seen] == [16, 16, 8, 16, 16, 8]
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40))
    assert first.tolist() != second.tolist()
    assert torch.equal(torch.cat(batches_of(landscape(), 0, 16, 3)), first)
    assert not torch.equal(torch.cat(batches_of(landscape(), 1, 16, 3)), first)


# Quadratics and flows


@pytest.mark.parametrize("method", ["midpoint", "heun", "ralston", "ralston_min_error"])
def test_on_a_quadratic_every_method_has_the_factor_of_second_order(method):
    h, steps, curvatures = 0.3, 12, [1.0, 2.5, 4.0]
    land = quadratic(curvatures, [1.0, -2.0, 0.5])
    end = ask(land, land.theta, pl.RungeKutta(pl.SGD(lr=h), method), steps=steps).ends()[0]
    s = h * torch.tensor(curvatures, dtype=DOUBLE)
    want = land.theta * (1 - s + s**2 / 2) ** steps
    assert torch.allclose(end, want, rtol=1e-12, atol=0)


def test_a_quadratic_follows_the_power_of_gradient_descent():
    land = quadratic([1.0, 3.0], [1.0, 1.0])
    runs = ask(land, land.theta, pl.SGD(lr=0.5), steps=9, record=1)
    rate = 1 - 0.5 * torch.tensor([1.0, 3.0], dtype=DOUBLE)
    for t in range(10):
        assert torch.allclose(runs[0].vector(t), rate**t, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("wrap", "factor"), [(lambda o: o, 2.0), (pl.RungeKutta, 4.0)])
def test_halving_the_step_divides_the_error_of_the_flow_by_two_or_four(wrap, factor):
    land = landscape()

    def end(h):
        return ask(land, land.theta, wrap(pl.SGD(lr=h)), steps=round(2 / h), metrics=()).ends()[0]

    exact = ask(land, land.theta, pl.RungeKutta(pl.SGD(lr=0.005)), steps=400, metrics=()).ends()[0]
    errors = [float((end(h) - exact).norm()) for h in (0.2, 0.1)]
    assert errors[0] / errors[1] == pytest.approx(factor, rel=0.12)


def test_the_papers_forms_are_options():
    land = quadratic([1.0], [1.0])
    damped = pl.SGD(lr=0.1, momentum=0.9, dampening=0.9, from_zero=True)
    assert float(ask(land, land.theta, damped, steps=1).ends()) == pytest.approx(1 - 0.1 * 0.1)
    inside = pl.Adagrad(lr=0.1, eps=3.0, eps_inside=True)
    assert float(ask(land, land.theta, inside, steps=1).ends()) == pytest.approx(1 - 0.1 / 2)


def test_full_batch_descent_settles_near_the_stability_threshold():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=generator, dtype=DOUBLE)
    y = torch.sin(3 * x[:, :1]) * x[:, 1:]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    land = pl.Landscape(model, "mse", (x, y))
    lr = 0.4
    runs = ask(land, model, pl.SGD(lr=lr), steps=3000, record=[2900, 2950])
    tops = [pl.eigenpairs(land, 1, theta=state, progress=False).values[0] for state in runs[0][1:]]
    assert np.mean(tops) == pytest.approx(2 / lr, rel=0.1)


def test_weight_decay_shortening_and_schedules():
    land = quadratic([0.0, 0.0], [1.0, 2.0])
    for optimiser in (pl.AdamW(lr=0.1, weight_decay=0.5), pl.SGD(lr=0.1, weight_decay=0.5)):
        end = ask(land, land.theta, optimiser, steps=3).ends()[0]
        assert torch.allclose(end, land.theta * 0.95**3, rtol=1e-9)
    steep = quadratic([100.0, 0.0], [1.0, 0.0])
    end = ask(steep, steep.theta, pl.SGD(lr=0.1), steps=1, clip=2.0).ends()[0]
    assert float(end[0]) == pytest.approx(1 - 0.2, rel=1e-6)
    runs = ask(
        land, land.theta, pl.SGD(lr=2.0), steps=6, record=1,
        schedule=pl.WarmUp(2, pl.StepDecay([2], 0.1)),
    )  # fmt: skip
    assert runs.metrics["lr"][0, 1:] == pytest.approx([1.0, 2.0, 2.0, 2.0, 0.2, 0.2])
    cosine = ask(land, land.theta, pl.SGD(lr=2.0), steps=4, record=1, schedule=pl.Cosine())
    assert cosine.metrics["lr"][0, 1:] == pytest.approx(1 + np.cos(np.pi * np.arange(4) / 4))


# Bits


def test_runs_together_have_the_bits_of_each_alone():
    land = landscape(norm=True, dropout=True)
    starts = torch.stack([land.theta, land.theta * 1.1, land.theta * 0.9])
    options = {"epochs": 2, "batch_size": 16, "own_order": True}
    together = ask(land, starts, pl.Adam(lr=0.01), seed=[5, 6, 7], **options)
    for p in range(3):
        alone = ask(land, starts[p], pl.Adam(lr=0.01), seed=5 + p, **options)
        for a, b in zip(alone[0], together[p], strict=True):
            assert all(torch.equal(a[k], b[k]) for k in a)
        assert np.array_equal(
            alone.metrics["batch_loss"][0], together.metrics["batch_loss"][p], equal_nan=True
        )


def test_branches_without_noise_coincide_bit_for_bit():
    land = landscape()
    main = ask(land, land.theta, pl.SGD(lr=0.1), steps=20, record=10)
    branch = ask(land, [main[0][1]] * 2, pl.SGD(lr=0.1), steps=10)
    assert torch.equal(branch.ends()[0], main.ends()[0])
    assert torch.equal(branch.ends()[1], main.ends()[0])


def test_dropout_differs_from_run_to_run_and_moves_no_generator():
    land = landscape(dropout=True)
    state = torch.get_rng_state()
    runs = ask(land, torch.stack([land.theta] * 2), pl.SGD(lr=0.1), steps=3, batch_size=16)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(*runs.ends())


def test_the_users_model_stays_as_it_is():
    model = network(norm=True, dropout=True).train()
    before = copy.deepcopy(model.state_dict())
    land = pl.Landscape(model, "cross_entropy", data())
    loss = land.loss()
    ask(land, 2, pl.Adam(lr=0.1), steps=5, batch_size=16)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert land.loss() == loss
    assert not any(m.training for m in land.model.modules())


def test_initialisations_are_the_modules_own_and_follow_the_seed():
    land = landscape(norm=True)
    state = torch.get_rng_state()
    runs = ask(land, 3, pl.SGD(lr=0.0), steps=1, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    fresh = network(norm=True)
    torch.manual_seed(5)
    for module in fresh:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(runs[1].vector(0), flat(fresh))
    assert torch.equal(ask(land, 1, pl.SGD(lr=0.0), steps=1, seed=6).ends()[0], runs.ends()[2])


def test_other_optimisers_go_on_from_the_ends_of_runs(tmp_path):
    land = landscape(norm=True)
    first = ask(land, 2, pl.SGD(lr=0.1), epochs=2, batch_size=16, path=tmp_path / "a.h5")
    second = ask(land, first, pl.Adam(lr=0.01), epochs=2, batch_size=16)
    assert torch.equal(second[1].vector(0), first.ends()[1])
    assert torch.equal(second[1][0]["1.running_var"], first[1][-1]["1.running_var"])
    assert (second.metrics["loss"][:, -1] < first.metrics["loss"][:, -1]).all()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_sequence_models_learn_with_every_optimiser(name):
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 8)
            self.lstm = nn.LSTM(8, 8, batch_first=True)
            self.out = nn.Linear(8, 7)

        def forward(self, x):
            return self.out(self.lstm(self.embed(x))[0]).flatten(0, 1)

    torch.manual_seed(0)
    x = (torch.arange(8)[:, None] + torch.arange(6)) % 7
    land = pl.Landscape(Language(), "cross_entropy", (x, ((x + 1) % 7).flatten()), engine="torch")
    runs = ask(land, land.theta, OPTIMISERS[name][0], steps=10, batch_size=4)
    assert runs.metrics["loss"][0, -1] < runs.metrics["loss"][0, 0]


# Records


def test_runs_are_trajectories_and_read_back_bit_for_bit(tmp_path):
    land = landscape(norm=True)
    path = tmp_path / "runs.h5"
    runs = ask(land, 2, pl.Adam(lr=0.01), epochs=3, batch_size=16, path=path)
    assert sorted(os.listdir(tmp_path)) == ["runs.h5"]
    memory = ask(land, 2, pl.Adam(lr=0.01), epochs=3, batch_size=16)
    again = pl.Runs.open(path)
    assert list(runs.steps) == [0, 3, 6, 9]
    assert (runs.engine, runs.reason is None) == ("torch", False)
    for other in (again, memory):
        assert torch.equal(other.ends(), runs.ends())
        for name in ("loss", "accuracy", "batch_loss", "lr"):
            assert np.array_equal(other.metrics[name], runs.metrics[name], equal_nan=True)
    memory.save(tmp_path / "copy.h5")
    assert torch.equal(pl.Runs.open(tmp_path / "copy.h5").ends(), runs.ends())
    assert np.isclose(land.at(runs[1][-1]).loss(runs[1][-1]), runs.metrics["loss"][1, -1])
    assert pl.pca(runs[0]).ratios[0] > 0.5
    assert pl.mds(runs, distance="angular").points.shape == (8, 2)
    assert runs.distances().shape == (2, 4)
    with pytest.raises(pl.InvalidArgument, match="holds 2 runs"):
        pl.trajectory(path)
    one = ask(land, 1, pl.SGD(lr=0.1), steps=2, path=tmp_path / "one.h5", dtype="float16")
    assert len(pl.trajectory(tmp_path / "one.h5")) == len(one[0]) == 3


def test_a_finished_file_answers_the_same_call_and_refuses_another(tmp_path, monkeypatch):
    land, path = landscape(), tmp_path / "runs.h5"
    first = ask(land, 2, pl.SGD(lr=0.1), epochs=2, batch_size=16, path=path)
    monkeypatch.setattr(eager_training.TorchStepper, "advance", None)
    again = ask(land, 2, pl.SGD(lr=0.1), epochs=2, batch_size=16, path=path)
    assert torch.equal(again.ends(), first.ends())
    with pytest.raises(pl.ResumeMismatch, match="another request"):
        ask(land, 2, pl.SGD(lr=0.2), epochs=2, batch_size=16, path=path)


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_stopped_run_goes_on_with_the_bits_of_an_uninterrupted_one(tmp_path, monkeypatch, after):
    land, path = landscape(norm=True, dropout=True), tmp_path / "runs.h5"
    options = {"epochs": 4, "batch_size": 16, "record": 2}
    want = ask(land, 2, pl.Adam(lr=0.01), **options)
    own, calls = eager_training.TorchStepper.advance, []

    def stopping(self, state, batches, rates):
        calls.append(len(batches))
        if sum(calls) > after:
            own(self, state, batches[:1], rates)  # in the middle of a chunk
            raise KeyboardInterrupt
        return own(self, state, batches, rates)

    monkeypatch.setattr(eager_training.TorchStepper, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        ask(land, 2, pl.Adam(lr=0.01), path=path, **options)
    assert pl.Runs.open(path).steps[0] == 0
    monkeypatch.setattr(eager_training.TorchStepper, "advance", own)
    with pytest.raises(pl.ResumeMismatch):
        ask(land, 2, pl.Adam(lr=0.02), path=path, **options)
    found = ask(land, 2, pl.Adam(lr=0.01), path=path, **options)
    assert torch.equal(found.ends(), want.ends())
    assert np.array_equal(found.metrics["batch_loss"], want.metrics["batch_loss"], equal_nan=True)
    assert os.listdir(tmp_path) == ["runs.h5"]


def test_a_killed_run_goes_on_with_the_same_bits(tmp_path):
    code = """
        import os, torch, pylandscape as pl
        from pylandscape.engines.eager_training import TorchStepper
        from test_training import ask, landscape
        own, calls = TorchStepper.advance, []
        def dying(self, state, batches, rates):
            calls.append(1)
            if len(calls) > 5:
                os._exit(9)
            return own(self, state, batches, rates)
        TorchStepper.advance = dying
        ask(landscape(), 2, pl.SGD(lr=0.1), steps=20, batch_size=16, record=1, path="runs.h5")
    """
    folders = os.path.dirname(__file__), os.path.dirname(os.path.dirname(pl.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 9
    options = {"steps": 20, "batch_size": 16, "record": 1}
    found = ask(landscape(), 2, pl.SGD(lr=0.1), path=tmp_path / "runs.h5", **options)
    want = ask(landscape(), 2, pl.SGD(lr=0.1), **options)
    for a, b in zip(found[1], want[1], strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_that_diverges_is_recorded_and_the_others_go_on():
    land = quadratic([3.0, 1.0], [1.0, 1.0])
    starts = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=DOUBLE)
    with pytest.warns(UserWarning, match=r"1 of 2 runs diverged.*: 1"):
        runs = ask(land, starts, pl.SGD(lr=0.9), steps=3000, record=1000)
    assert runs.diverged == [1]
    assert len(runs[1]) == 4
    assert not torch.isfinite(runs.ends()[1]).all()
    assert float(runs.ends()[0].norm()) < 1e-9
    assert "diverged: 1" in repr(runs)
    runs.plot()


def test_learning_curves_have_a_line_for_each_run():
    land = landscape()
    runs = ask(land, 3, pl.SGD(lr=0.5), epochs=3, batch_size=16)
    axes = runs.plot(labels=["a", "b", "c"])
    assert [line.get_label() for line in axes.lines] == ["a", "b", "c"]
    assert np.array_equal(axes.lines[1].get_ydata(), runs.metrics["loss"][1])
    assert runs.plot(metric="accuracy").get_ylabel() == "accuracy"
    many = ask(land, 10, pl.SGD(lr=0.5), steps=2)
    assert len(many.plot(log=True).lines) == 11
    with pytest.raises(pl.InvalidArgument, match="metric"):
        runs.plot(metric="speed")


# torch.optim's interface


def test_the_torch_optimiser_needs_a_closure_and_a_known_method():
    model = network()
    optimiser = pl.optim.RungeKutta(model.parameters(), torch.optim.SGD, method="heun", lr=0.1)
    with pytest.raises(pl.InvalidArgument, match="closure"):
        optimiser.step()
    with pytest.raises(pl.InvalidArgument, match="method"):
        pl.optim.RungeKutta(model.parameters(), torch.optim.SGD, method="euler", lr=0.1)
    with pytest.raises(pl.InvalidArgument, match="base"):
        pl.optim.RungeKutta(model.parameters(), lambda p: 3)


def test_the_torch_optimiser_follows_schedulers_and_restores_its_state():
    def make():
        model = network()
        return model, pl.optim.RungeKutta(
            model.parameters(), torch.optim.SGD, method="ralston", lr=0.1, momentum=0.9
        )

    x, y = data()

    def steps(model, optimiser, count):
        for _ in range(count):

            def closure():
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimiser.step(closure)

    model, optimiser = make()
    steps(model, optimiser, 3)
    other, second = make()
    other.load_state_dict(model.state_dict())
    second.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    steps(model, optimiser, 3)
    steps(other, second, 3)
    assert torch.equal(flat(model), flat(other))
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=0.5)
    steps(model, optimiser, 1)
    scheduler.step()
    assert optimiser.base.param_groups[0]["lr"] == 0.05


# Bad input


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(5, 3).double()
        self.register_buffer("seen", torch.zeros((), dtype=DOUBLE))

    def forward(self, x):
        if self.training:
            self.seen += 1
        return self.w(x)


def test_each_bad_argument_is_one_clear_error():
    land = landscape()
    sgd = pl.SGD(lr=0.1)
    n = land.n_params
    cases = [
        ({"starts": torch.zeros(2, n + 1)}, "starts.*expected shape"),
        ({"starts": nn.Linear(2, 2)}, "starts"),
        ({"starts": 0}, "starts: expected at least one"),
        ({"starts": [torch.full((n,), torch.nan)]}, "finite"),
        ({"starts": None}, "starts: expected points"),
        ({"batch_size": 41}, "batch_size: expected at most the 40"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": None}, "epochs, steps"),
        ({"steps": 3}, "epochs, steps"),
        ({"record": "day"}, "record"),
        ({"record": [9]}, "record"),
        ({"seed": [1, 2, 3]}, "seed: expected one or 2"),
        ({"schedule": [1.0]}, "schedule"),
        ({"schedule": "cosine"}, "schedule"),
        ({"clip": -1.0}, "clip"),
        ({"optimizer": torch.optim.SGD}, "optimizer"),
        ({"engine": "gpu"}, "engine"),
        ({"dtype": "int8"}, "dtype"),
        ({"metrics": ("speed",)}, "metric"),
        ({"land": network()}, "Landscape"),
    ]
    for changes, message in cases:
        given = {
            "land": land,
            "starts": 2,
            "optimizer": sgd,
            "epochs": 1,
            "batch_size": 16,
        } | changes
        with pytest.raises(pl.PylandscapeError, match=message):
            pl.train(**given, progress=False)


def zero_one(outputs, target):
    return (outputs.argmax(1) != target).double().mean()


def a_number(outputs, target):
    return torch.tensor(nn.functional.cross_entropy(outputs, target).item())


def without_grad(outputs, target):
    with torch.no_grad():
        return nn.functional.cross_entropy(outputs, target)


@pytest.mark.parametrize("loss", [zero_one, a_number, without_grad])
@pytest.mark.parametrize("rule", [pl.SGD(lr=0.1), pl.RungeKutta(pl.SGD(lr=0.1))])
def test_a_loss_without_a_derivative_is_refused_in_the_words_of_gradients(loss, rule):
    x = torch.randn(12, 4, dtype=DOUBLE)
    land = pl.Landscape(nn.Linear(4, 3).double(), loss, (x, torch.arange(12) % 3))
    with pytest.raises(pl.NotDifferentiable, match=r"train: expected a loss with a derivative"):
        pl.train(land, 2, rule, epochs=1, batch_size=6, progress=False)


def test_an_objective_that_reads_no_parameter_moves_none():
    x, y = torch.randn(12, 4, dtype=DOUBLE), torch.zeros(12, 3, dtype=DOUBLE)
    model = nn.Linear(4, 3).double()
    land = pl.Landscape(model, objective=lambda model, batch: batch[0].sum(), data=[(x, y)])
    runs = pl.train(land, [land.theta], pl.SGD(lr=0.1), steps=2, metrics=(), progress=False)
    assert torch.equal(runs.ends()[0], land.theta)


def test_a_native_engine_that_is_not_there_is_refused_with_the_reason():
    with pytest.raises(pl.NotLowered, match="engine='native'"):
        ask(landscape(), 1, pl.SGD(lr=0.1), steps=1, engine="native")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pl.SGD(lr=-1.0), "lr"),
        (lambda: pl.SGD(lr=0.1, nesterov=True), "nesterov"),
        (lambda: pl.Adam(lr=0.1, betas=(1.0, 0.9)), "betas"),
        (lambda: pl.Adam(lr=0.1, betas=0.9), "betas"),
        (lambda: pl.RMSprop(lr=0.1, alpha=float("nan")), "alpha"),
        (lambda: pl.RungeKutta(pl.SGD(lr=0.1), "euler"), "method"),
        (lambda: pl.RungeKutta(0.1), "base"),
    ],
)
def test_a_bad_optimiser_is_refused_where_it_is_made(make, message):
    with pytest.raises(pl.InvalidArgument, match=message):
        make()


def test_a_model_whose_state_no_run_carries_is_refused():
    land = pl.Landscape(Counting(), "cross_entropy", data())
    with pytest.raises(pl.InvalidArgument, match="buffer 'seen'"):
        ask(land, land.theta, pl.SGD(lr=0.1), steps=1, engine="torch")


def test_modules_that_cannot_be_drawn_anew_are_refused():
    land = quadratic([1.0], [1.0])
    with pytest.raises(pl.InvalidArgument, match="reset_parameters"):
        ask(land, 2, pl.SGD(lr=0.1), steps=1)


def test_ragged_data_are_refused():
    batches = [(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, dtype=torch.long)),
               (torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, dtype=torch.long))]  # fmt: skip

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding(3, 2)

        def forward(self, x):
            return self.e(x).mean(1)

    land = pl.Landscape(Mean(), "cross_entropy", batches, engine="torch")
    with pytest.raises(pl.InvalidArgument, match="one row for each sample"):
        ask(land, 1, pl.SGD(lr=0.1), steps=1)


def test_a_checkpoint_of_another_model_says_which_names_are_missing(tmp_path):
    torch.save(nn.Linear(5, 3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(pl.LayoutMismatch, match=r"0\.weight.*left over"):
        ask(landscape(), str(tmp_path / "other.pt"), pl.SGD(lr=0.1), steps=1)


def test_a_file_of_several_runs_is_drawn_described_and_reported(tmp_path: Path, capsys) -> None:
    path, page = tmp_path / "runs.h5", tmp_path / "r.html"
    pl.train(landscape(), 2, pl.Adam(lr=0.01), epochs=1, batch_size=16, path=path, progress=False)
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "Runs(2 of" in said
    assert "run 1" in said
    assert main(["plot", str(path), "--out", str(tmp_path / "runs.png")]) == 0
    assert main(["report", str(path), "--out", str(page), "--static"]) == 0
    assert "Runs" in page.read_text()
    assert (tmp_path / "runs.png").stat().st_size > 5_000


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("width", [6, 200])  # runs as vector lanes, and one by one
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.filterwarnings("ignore:.*diverged")
def test_a_mini_batch_whose_loss_is_0_over_0_moves_theta_as_torch(engine, width, weighted):
    """Class weights of 0 make the gradient NaN, targets that are ignored leave it 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).to(DOUBLE)
    x, y = data()[0], torch.full((40,), 0 if weighted else -100)
    y[7] = 1  # which the first mini-batch, of one sample, does not draw
    weight = torch.tensor([0.0, 1.0, 1.0], dtype=DOUBLE) if weighted else None
    loss = nn.CrossEntropyLoss(weight=weight)
    runs = ask(pl.Landscape(model, loss, (x, y)), [model], pl.SGD(lr=0.1), steps=1, batch_size=1,
               metrics=(), engine=engine)  # fmt: skip
    loss(model(x[:1]), y[:1]).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    want = flat(model)
    assert bool(want.isnan().all() if weighted else want.isfinite().all())
    torch.testing.assert_close(runs.ends()[0], want, equal_nan=True, rtol=0, atol=0)
