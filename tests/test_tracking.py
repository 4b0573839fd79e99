"""Eigenvalues along training, and the thresholds of stability beside them."""

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl


def quadratic(curvatures):
    """L = sum_i c_i theta_i^2 / 2 as a landscape of the model theta."""
    scale = torch.diag(torch.tensor(curvatures, dtype=torch.float64).sqrt())
    n = len(curvatures)
    model = nn.Linear(n, 1, bias=False, dtype=torch.float64)
    half = 0.5 * n  # of the mean over n rows
    return pl.Landscape(
        model, lambda o, y: half * ((o - y) ** 2).mean(), (scale, torch.zeros(n, 1).double())
    )


def trained(steps=12, rate=0.3, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2]
    states = []
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimiser.step()
        states.append({k: v.clone() for k, v in model.state_dict().items()})
    land = pl.Landscape(model, "mse", (x, y))
    return land, pl.trajectory(states, land)


def test_values_are_those_of_the_exact_hessians():
    land, path = trained()
    found = pl.track(path, land, 2, every=3, tol=1e-8, progress=False)
    exact = [torch.linalg.eigvalsh(land.hessian(path[i])).flip(0)[:2] for i in range(0, 12, 3)]
    assert found.values == pytest.approx(torch.stack(exact).numpy(), rel=1e-6)
    assert found.steps.tolist() == [0, 3, 6, 9]
    assert found.converged.all()


def test_warm_starts_take_fewer_products_than_cold_ones():
    land, path = trained(20, rate=0.05)
    found = pl.track(path, land, 1, tol=1e-3, progress=False)
    cold = [
        pl.eigenpairs(land, 1, tol=1e-3, theta=state, seed=5, progress=False).matvecs
        for state in path
    ]
    assert found.products[1:].mean() <= 0.85 * np.mean(cold[1:])


def test_a_preconditioned_track_is_that_of_the_scaled_matrix():
    land = quadratic([1.0, 2.0, 3.0])
    p = np.array([0.5, 4.0, 1.0])
    path = pl.trajectory(np.zeros((2, 3)), land)
    found = pl.track(path, land, 3, tol=1e-8, preconditioner=lambda i: p * (i + 1), progress=False)
    want = np.sort([1.0 / 0.5, 2.0 / 4.0, 3.0])[::-1]
    assert found.values == pytest.approx(np.stack([want, want / 2]), rel=1e-6)
    assert found.preconditioned


@pytest.mark.parametrize(
    ("rule", "options", "factor"),
    [
        ("sgd", {}, 2.0),
        ("sgd", {"momentum": 0.9}, 3.8),
        ("sgd", {"momentum": 0.9, "dampening": 0.9}, 38.0),
        ("nesterov", {"momentum": 0.9}, 3.8 / 2.8),
        ("rk2", {}, 2.0),
        ("adam", {}, 38.0),
    ],
)
def test_thresholds_are_those_of_the_quadratic(rule, options, factor):
    assert pl.stability_threshold(rule, lr=0.1, **options) == pytest.approx(factor / 0.1)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}])
def test_torch_diverges_just_beyond_the_threshold_and_not_below(options):
    rule = "nesterov" if options.get("nesterov") else "sgd"
    rate = 0.1
    limit = pl.stability_threshold(rule, lr=rate, momentum=options.get("momentum", 0.0))
    for curvature, grows in ((0.97 * limit, False), (1.03 * limit, True)):
        theta = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimiser = torch.optim.SGD([theta], lr=rate, **options)
        for _ in range(400):
            optimiser.zero_grad()
            (0.5 * curvature * theta**2).sum().backward()
            optimiser.step()
        assert (abs(float(theta.detach())) > 1.0) == grows


def test_full_batch_descent_settles_near_two_over_the_rate():
    land, path = trained(1500, rate=0.35)
    found = pl.track(path[-60:], land, 1, every=20, lr=0.35, tol=1e-4, progress=False)
    assert found.values[:, 0] == pytest.approx(found.threshold, rel=0.1)


def test_a_stopped_run_goes_on_with_the_bits_of_one_that_was_not(tmp_path, monkeypatch):
    land, path = trained()
    whole = pl.track(path, land, 2, every=2, progress=False)
    file = tmp_path / "track.h5"
    calls = []

    def stop_at_the_fourth(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return pl.eigenpairs(*args, **options)

    monkeypatch.setattr("pylandscape.trajectories.tracking.eigenpairs", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        pl.track(path, land, 2, every=2, path=file, progress=False)
    monkeypatch.undo()
    resumed = pl.track(path, land, 2, every=2, path=file, progress=False)
    assert np.array_equal(resumed.values, whole.values)
    again = pl.load(file)
    assert np.array_equal(again.values, whole.values)
    assert again.steps.tolist() == whole.steps.tolist()
    with pytest.raises(pl.ResumeMismatch):
        pl.track(path[1:], land, 2, every=2, path=file, progress=False)


def test_bad_input_is_named():
    land, path = trained(3)
    other = pl.trajectory(np.zeros((2, 3)), quadratic([1.0, 2.0, 3.0]))
    with pytest.raises(pl.InvalidArgument, match="another layout"):
        pl.track(other, land)
    with pytest.raises(pl.InvalidArgument, match="rule"):
        pl.stability_threshold("lion", lr=0.1)
    with pytest.raises(pl.InvalidArgument, match="lr"):
        pl.stability_threshold("sgd", lr=0.0)
    with pytest.raises(pl.InvalidArgument, match="every"):
        pl.track(path, land, every=0)
    with pytest.raises(pl.InvalidArgument, match="preconditioner: expected the diagonal of P"):
        pl.track(path, land, lr=0.1, rule="adam")  # whose threshold is of another matrix
    with pytest.raises(pl.InvalidArgument, match="preconditioner"):
        pl.track(path, land, 1, preconditioner=lambda i: np.zeros(3), progress=False)
