"""The notice about kinks: which functions, and the share of samples near one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pylandscape.critical import kinks
from pylandscape.critical.classification import classify
from pylandscape.landscape import Landscape

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(50, 3, generator=GENERATOR), torch.randn(50, 4, generator=GENERATOR)


def land_of(activation, batches=1) -> Landscape:
    model = nn.Sequential(nn.Linear(3, 4), activation)
    data = list(zip(X.chunk(batches), Y.chunk(batches), strict=True))
    return Landscape(model, nn.MSELoss(), data)


def points(land, count=5):
    return np.random.default_rng(0).normal(size=(count, land.n_params))


@pytest.mark.parametrize("batches", [1, 3])
def test_the_share_is_that_of_samples_with_a_unit_near_zero(batches):
    land = land_of(nn.ReLU(), batches)
    given = points(land)
    found = kinks.notice(land, given, distance=0.1)
    near = []
    for theta in torch.as_tensor(given, dtype=torch.float32):
        z = X @ theta[:12].view(4, 3).T + theta[12:]
        near.append((z.abs() <= 0.1).any(1).double().mean())
    assert found["functions"] == ["relu"]
    assert found["share"] == pytest.approx(float(np.mean(near)), abs=1e-12)
    assert found["points"] == 5


@pytest.mark.parametrize("unit", [nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus])
def test_smooth_networks_get_no_notice(unit):
    land = land_of(unit())
    assert kinks.notice(land, points(land)) is None
    assert classify(land, points(land), progress=False).notes == []


@pytest.mark.parametrize(
    ("unit", "places"),
    [
        (nn.LeakyReLU(), [0.0]),
        (nn.PReLU(), [0.0]),
        (nn.ReLU6(), [0.0, 6.0]),
        (nn.Hardtanh(-2.0, 0.5), [-2.0, 0.5]),
        (nn.Hardswish(), [-3.0, 3.0]),
        (nn.Hardsigmoid(), [-3.0, 3.0]),
        (nn.Threshold(0.7, 0.0), [0.7]),
        (nn.Softshrink(0.3), [-0.3, 0.3]),
        (nn.Hardshrink(0.4), [-0.4, 0.4]),
    ],
)
def test_every_known_function_is_watched_at_its_kinks(unit, places):
    for place in places:
        with kinks._Watch(3, 1e-3) as watch:
            unit(torch.tensor([[place], [place + 0.01], [place + 0.0005]]))
        assert watch.names
        assert watch.near.tolist() == [True, False, True]


@pytest.mark.parametrize(
    "function", [torch.relu, F.relu, torch.Tensor.relu, torch.abs, lambda x: x.clamp(min=0.0)]
)
def test_functions_are_seen_as_well_as_modules(function):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            return function(self.layer(x))

    land = Landscape(Functional(), nn.MSELoss(), (X, Y))
    assert kinks.notice(land, points(land))["share"] is not None


def test_max_pooling_has_kinks_whose_distance_is_not_known():
    model = nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.MaxPool1d(2, 1), nn.Flatten(), nn.Linear(2, 4)
    )
    land = Landscape(model, nn.MSELoss(), (X, Y))
    found = kinks.notice(land, points(land))
    assert found["share"] is None
    assert "not known" in kinks.sentence(found)


def test_a_classification_carries_the_notice_and_looks_at_some_points_only():
    land = land_of(nn.ReLU())
    found = classify(land, points(land, 200), progress=False)
    assert found.info["kinks"]["points"] <= kinks.POINTS
    assert "relu has kinks" in found.notes[0]
    assert not any(t.isnan().any() for t in land.model.parameters())  # theta is back in place
    assert torch.equal(nn.utils.parameters_to_vector(land.model.parameters()).detach(), land.theta)


def test_points_that_are_not_finite_are_not_looked_at():
    land = land_of(nn.ReLU())
    assert kinks.notice(land, np.full((2, land.n_params), np.nan)) is None
