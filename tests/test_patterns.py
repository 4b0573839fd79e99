"""Patterns in loss surfaces: carved by optimisation, constructed over bias directions."""

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.experiments import carve_pattern, construct_pattern
from pylandscape.experiments.patterns import orthogonal

CROSS = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
QUIET = {"progress": False}


def digits():
    sklearn = pytest.importorskip("sklearn.datasets")
    found = sklearn.load_digits()
    x, y = torch.tensor(found.data / 16.0, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return (x[order[:1200]], y[order[:1200]]), (x[order[1200:]], y[order[1200:]])


def landscapes(width=64, activation=nn.ReLU):
    torch.manual_seed(0)
    train, test = digits()
    model = nn.Sequential(nn.Linear(64, width), activation(), nn.Linear(width, 10))
    return tuple(pl.Landscape(model, "cross_entropy", part) for part in (train, test))


def blobs(count=60, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = torch.tensor(rng.integers(0, classes, count))
    x = torch.tensor(rng.standard_normal((count, 4))) + 2.0 * y[:, None]
    return x, y


def small(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return pl.Landscape(model, "cross_entropy", blobs(), **options)


def test_a_mask_is_carved_into_the_loss_and_transfers_to_held_out_data():
    land, held = landscapes(16)
    found = carve_pattern(
        land, CROSS, steps=200, lr=1e-2, batch_size=64, ceiling=2.5, held_out=held, **QUIET
    )
    assert found.gap() > 0.5
    assert found.gap(held_out=True) > 0.4
    up, right = found.directions
    assert abs(up @ right) < 1e-12 * np.linalg.norm(up) * np.linalg.norm(right)
    assert found.history[-10:].mean() < found.history[:10].mean()


@pytest.mark.ci
def test_at_the_published_settings_good_cells_are_trained_and_bad_ones_are_not():
    land, held = landscapes()
    found = carve_pattern(land, CROSS, steps=800, held_out=held, **QUIET)
    good, bad = found.means()
    assert good > 0.95
    assert bad < 0.4
    assert found.gap(held_out=True) > 0.4


def test_the_cells_are_points_of_the_frame():
    land = small()
    found = carve_pattern(land, CROSS[:3], steps=3, **QUIET)
    at = found.origin + (2 - 1.0) * found.directions[0] + (1 - 1.5) * found.directions[1]
    assert found.losses[2, 1] == pytest.approx(land.loss(torch.tensor(at)), rel=1e-12)
    assert found.losses.shape == found.accuracy.shape == (3, 4)


def test_a_pattern_in_three_dimensions():
    mask = np.random.default_rng(0).integers(0, 2, (2, 2, 3))
    found = carve_pattern(small(), mask, steps=150, lr=2e-2, ceiling=2.0, **QUIET)
    good, bad = found.means(metric="loss")
    assert bad - good > 0.8
    products = found.directions @ found.directions.T
    assert np.abs(products - np.diag(np.diag(products))).max() < 1e-10 * products.max()
    assert found.plot().shape == (3, 2)


def test_one_step_is_adam_on_the_objective_by_autograd():
    land = small(engine="torch")
    own = carve_pattern(small(), CROSS, steps=1, clip=1e9, batch_size=None, **QUIET)
    other = carve_pattern(land, CROSS, steps=1, clip=1e9, batch_size=None, **QUIET)
    assert own.history == pytest.approx(other.history, rel=1e-12)
    drawn = np.random.default_rng([0, 0]).standard_normal((2, land.n_params))
    length = float(land.theta.norm())
    rows = torch.tensor(drawn * length / np.linalg.norm(drawn, axis=1, keepdims=True))
    gamma = torch.tensor([0.1], dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (land.theta, *rows, gamma)]
    o, u, v, gamma = leaves
    axes, (x, y) = orthogonal(torch.stack([u, v])), blobs()
    losses = []
    for i, j in np.ndindex(4, 4):
        theta = o + gamma * ((i - 1.5) * axes[0] + (j - 1.5) * axes[1])
        out = torch.func.functional_call(land.model, land.layout.unflatten(theta), (x,))
        losses.append(nn.functional.cross_entropy(out, y))
    good = torch.tensor(CROSS.ravel() > 0)
    values = torch.stack(losses)
    objective = values[good].mean() - values[~good].clamp(max=3.0).mean()
    assert own.history[0] == pytest.approx(objective.item(), rel=1e-9)
    optimiser = torch.optim.Adam(leaves, lr=1e-3)
    objective.backward()
    optimiser.step()
    assert own.origin == pytest.approx(o.detach().numpy(), rel=1e-9)
    want = (gamma * orthogonal(torch.stack([u, v]))).detach().numpy()
    assert own.directions == pytest.approx(want, rel=1e-9, abs=1e-12)


def test_a_stopped_carving_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    options = {"steps": 12, "cells": 7, "batch_size": 20, **QUIET}
    whole = carve_pattern(small(), CROSS, **options)
    from pylandscape.experiments import patterns

    step, calls = patterns._Carving._step, []

    def stopped(self, *arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(patterns._Carving, "_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        carve_pattern(small(), CROSS, path=tmp_path / "p.h5", **options)
    monkeypatch.setattr(patterns._Carving, "_step", step)
    found = carve_pattern(small(), CROSS, path=tmp_path / "p.h5", **options)
    for name in ("origin", "directions", "losses", "history"):
        assert (getattr(found, name) == getattr(whole, name)).all()
    again = carve_pattern(small(), CROSS, path=tmp_path / "p.h5", **options)
    assert (again.mask == CROSS).all()
    with pytest.raises(pl.ResumeMismatch):
        carve_pattern(small(), 1 - CROSS, path=tmp_path / "p.h5", **options)


@pytest.mark.parametrize(
    ("mask", "options", "named"),
    [
        (np.ones((3, 3)), {}, "mask"),
        (np.ones(3), {}, "mask"),
        (np.full((2, 2), 0.5), {}, "mask"),
        (CROSS, {"cells": 1}, "cells"),
        (CROSS, {"lr": 0.0}, "lr"),
        (CROSS, {"steps": 0}, "steps"),
    ],
)
def test_what_is_no_pattern_is_refused_by_name(mask, options, named):
    with pytest.raises(pl.InvalidArgument, match=named):
        carve_pattern(small(), mask, progress=False, **options)


# --------------------------------------------------------------------------------- constructed


def waves(count, level=3.0):
    q = np.linspace(-1.0, 1.0, count)
    a, b = np.meshgrid(q, q, indexing="ij")
    return level + 0.25 * np.sin(3 * a) * np.cos(3 * b) + 0.3 * a * b


@pytest.fixture(scope="module")
def constructed():
    return construct_pattern(
        waves(7, 2.0), blobs(), hidden=(4, 32, 32), steps=400, held_out=blobs(seed=1), **QUIET
    )


def test_the_surface_over_bias_directions_has_the_heights_asked_for(constructed):
    assert constructed[1].error < 0.05


@pytest.mark.ci
def test_a_surface_of_digits_has_the_heights_asked_for_on_the_published_grid():
    train, _ = digits()
    _, found = construct_pattern(waves(21), train, **QUIET)
    assert found.error < 0.05
    assert found.entropy == pytest.approx(2.302, abs=1e-3)


def test_other_inputs_of_the_same_labels_leave_its_bits(constructed):
    model, found = constructed
    x, y = blobs()
    q = found.axis
    c = np.stack(np.meshgrid(q, q, indexing="ij"), axis=-1).reshape(-1, 2)
    noise = torch.randn(x.shape, dtype=torch.float64)
    for inputs in (x, noise):
        land = pl.Landscape(model, "cross_entropy", (inputs, y))
        values = land.losses(c, torch.from_numpy(found.directions))
        assert (values.reshape(7, 7) == found.values).all()


def test_held_out_data_differ_by_the_frequencies_of_labels_alone(constructed):
    model, found = constructed
    weights = [torch.bincount(blobs(seed=s)[1], minlength=3).double() / 60 for s in (0, 1)]
    q = found.axis
    h = np.stack(np.meshgrid(q, q, indexing="ij"), axis=-1).reshape(-1, 2)
    biases = torch.nn.functional.pad(torch.from_numpy(h), (0, 2))
    logs = model[1:](biases).log_softmax(dim=1).detach()
    for values, p in zip((found.values, found.held), weights, strict=True):
        assert values.ravel() == pytest.approx((-logs @ p).numpy(), rel=1e-12)
    assert not np.array_equal(found.values, found.held)


def test_a_constructed_pattern_is_kept_and_drawn(constructed, tmp_path):
    _, found = constructed
    found.save(tmp_path / "c.h5")
    again = pl.load(tmp_path / "c.h5")
    assert (again.values == found.values).all()
    assert again.entropy == found.entropy
    assert len(found.plot()) == 3


@pytest.mark.parametrize(
    ("heights", "options", "named"),
    [
        (np.zeros((4, 4)), {}, "entropy"),
        (np.full((4, 3), 2.0), {}, "heights"),
        (np.full((4, 4), np.inf), {}, "heights"),
        (np.full((4, 4), 2.0), {"hidden": (1, 8)}, "hidden"),
    ],
)
def test_heights_that_cannot_be_are_refused_by_name(heights, options, named):
    with pytest.raises(pl.InvalidArgument, match=named):
        construct_pattern(heights, blobs(), progress=False, **options)
