"""Wherever a model stands as a point, a checkpoint's path does too."""

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl


def network(seed=0, norm=True):
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)]
    model = nn.Sequential(*(layers if norm else [layers[0], *layers[2:]])).double()
    if norm:
        model[1].running_mean += seed
    return model.eval()


@pytest.fixture(scope="module")
def data():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x, (x[:, 0] > 0).long()


@pytest.fixture(params=["plain", "lightning", "compiled", "nested"])
def stored(request, tmp_path):
    """A path and the model that is in it."""
    model = network(3)
    prefix = {"plain": "", "lightning": "model.", "compiled": "module._orig_mod."}
    state = {prefix.get(request.param, "model._orig_mod.") + k: v
             for k, v in model.state_dict().items()}  # fmt: skip
    torch.save({"state_dict": state, "epoch": 7}, tmp_path / "a.pt")
    return tmp_path / "a.pt", model


def test_a_path_is_the_model_in_it_as_theta_with_its_running_statistics(stored, data):
    path, model = stored
    land = pl.Landscape(network(), "cross_entropy", data)
    for way in (path, str(path), torch.load(path)):
        assert land.loss(way) == land.loss(model)
    assert land.loss(path) == pytest.approx(
        nn.functional.cross_entropy(model(data[0]), data[1]).item()
    )
    d = pl.random_directions(land, 1)[0]
    curves = [pl.line(land, d, (-1, 1, 3), theta=t, progress=False) for t in (path, model)]
    assert np.array_equal(curves[0].values, curves[1].values)
    assert curves[0].info["model_loss"] == curves[1].info["model_loss"] is not None


def test_paths_are_vertices_targets_and_models_beside_each_other(stored, data):
    path, model = stored
    land = pl.Landscape(network(), "cross_entropy", data, bn="interpolate")
    between = [pl.interpolate(land, [land.model, m], (0, 1, 3), progress=False).values
               for m in (path, model)]  # fmt: skip
    assert np.array_equal(*between)
    ways = [pl.target_direction(land, m) for m in (path, model)]
    assert torch.equal(ways[0].vector, ways[1].vector)
    own = pl.Landscape(network(), "cross_entropy", data)
    assert pl.functional_distance(own, path, model).distance == 0.0
    found = pl.agreement(own, [path, own.model])
    assert found.accuracy[0] == pl.agreement(own, [model]).accuracy[0]
    with pytest.raises(pl.InvalidArgument, match="several"):
        pl.agreement(own, path)


def test_a_checkpoint_in_memory_stands_for_the_model_as_its_path_does(stored, data):
    path, model = stored
    land = pl.Landscape(network(), "cross_entropy", data, bn="interpolate")
    held = torch.load(path)
    between = [pl.interpolate(land, [land.model, m], (0, 1, 3), progress=False).values
               for m in (held, model)]  # fmt: skip
    assert np.array_equal(*between)
    assert pl.functional_distance(land, held, model).distance == 0.0
    points = [pl.trajectory([land.model, m], land)[1] for m in (held, path, model)]
    for name, value in points[2].items():
        assert torch.equal(points[0][name], value)
        assert torch.equal(points[1][name], value)


def test_a_path_is_no_direction(stored, data):
    land = pl.Landscape(network(), "cross_entropy", data)
    with pytest.raises(pl.InvalidArgument, match="target_direction"):
        pl.line(land, stored[0], progress=False)


def test_another_models_checkpoint_names_what_is_missing_and_what_is_left(tmp_path, data):
    land = pl.Landscape(network(norm=False), "cross_entropy", data)
    other = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
    torch.save({"0.weight": torch.zeros(3, 4), "head.weight": torch.zeros(2)}, tmp_path / "o.pt")
    with pytest.raises(
        pl.LayoutMismatch, match=r"theta: expected the parameter '0.bias' and 2 more.*"
        r"left over: head.weight",
    ):  # fmt: skip
        land.loss(tmp_path / "o.pt")
    torch.save(other.state_dict(), tmp_path / "s.pt")
    with pytest.raises(pl.LayoutMismatch, match="shape"):
        land.loss(str(tmp_path / "s.pt"))
    with pytest.raises(pl.InvalidArgument, match="theta: no file"):
        land.loss(tmp_path / "none.pt")
