"""Alignment: planted permutations are found in every kind of network, and nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.connectivity.aligning import _state
from pylandscape.connectivity.symmetries import find_symmetries

IMAGES, SEQUENCES, TOKENS = (6, 3, 8, 8), (6, 5, 3), (6, 4)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3 * 64, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5)
    )


def flat_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), mlp())


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 5),
    )  # fmt: skip


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3, groups=8), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(6),
        nn.Linear(6, 5),
    )  # fmt: skip


class ResNet(nn.Module):
    """Two stages; the shortcut of the second pads channels, as ResNets for CIFAR do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.a1 = nn.Conv2d(8, 8, 3, padding=1)
        self.n1 = nn.BatchNorm2d(8)
        self.b1 = nn.Conv2d(8, 8, 3, padding=1)
        self.a2 = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.n2 = nn.BatchNorm2d(16)
        self.b2 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.b1(F.relu(self.n1(self.a1(x)))))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(self.b2(F.relu(self.n2(self.a2(x)))) + short)
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 12)
        self.place = nn.Parameter(torch.randn(4, 12))
        layer = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.table(x) + self.place).mean(1))


class PackedAttention(nn.Module):
    """Queries, keys and values of one projection, taken apart after the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(3, 12), nn.LayerNorm(12)
        self.qkv, self.mix, self.out = nn.Linear(12, 36), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, length, width = x.shape
        packed = self.qkv(self.norm(x)).reshape(batch, length, 3, 3, 4)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
        x = x + self.mix((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return self.out(x.mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.cell = kind(3, 7, batch_first=True, **options)
        self.out = nn.LazyLinear(5)
        self(torch.zeros(1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mid, self.out = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.mid(self.table(x).sum(1))))


NETWORKS = {
    "mlp": (flat_mlp, IMAGES),
    "vgg": (vgg, IMAGES),
    "grouped": (grouped, IMAGES),
    "resnet": (ResNet, IMAGES),
    "encoder": (Encoder, TOKENS),
    "packed attention": (PackedAttention, SEQUENCES),
    "lstm": (Recurrent, SEQUENCES),
    "lstm, two layers, both ways": (
        lambda: Recurrent(num_layers=2, bidirectional=True), SEQUENCES
    ),
    "gru": (lambda: Recurrent(nn.GRU), SEQUENCES),
    "tied": (Tied, TOKENS),
}  # fmt: skip


def data(shape: tuple[int, ...], samples: int = 40) -> tuple[Tensor, Tensor]:
    shape = (samples, *shape[1:])
    x = torch.randint(0, 11, shape) if len(shape) == 2 else torch.randn(shape).double()
    return x, torch.randint(0, 5, (samples,))


def landscape(name: str, seed: int = 0) -> tuple[pl.Landscape, nn.Module]:
    make, shape = NETWORKS[name]
    torch.manual_seed(seed)
    model = make().double().eval()
    for module in model.modules():  # norms that are not alike in all units
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return pl.Landscape(model, "cross_entropy", data(shape), engine="torch"), model


def planted(land: pl.Landscape, model: nn.Module, seed: int = 3) -> nn.Module:
    """The model with all of its units at random places."""
    symmetries = find_symmetries(land, land.origin)
    state = symmetries.apply(symmetries.random(seed), _state(land, land.origin))
    other = copy.deepcopy(model)
    missing = other.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    return other


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_planted_permutation_is_found_exactly(name: str, method: str) -> None:
    land, model = landscape(name)
    other = planted(land, model)
    x = land.dataset.batches[0].inputs
    before = copy.deepcopy(other.state_dict())
    m = pl.align(land, model, other, method=method)
    assert m.distance[0] > 1.0
    assert m.distance[1] == 0.0
    assert m.model is not None
    torch.testing.assert_close(m.model(x), other(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(m.model(x), model(x), rtol=0, atol=1e-12)
    own = model.state_dict()
    assert all(torch.equal(own[n], t) for n, t in m.model.state_dict().items())
    assert m.loss[0] == pytest.approx(m.loss[1], abs=1e-12)
    assert all(torch.equal(before[n], t) for n, t in other.state_dict().items())


def test_the_classes_are_those_of_the_architecture() -> None:
    found = {}
    for name in NETWORKS:
        land, _ = landscape(name)
        classes = find_symmetries(land, land.origin).classes
        found[name] = [(c.atom.size, *(a.size for a in c.inner.values())) for c in classes]
    assert found["mlp"] == [(12,), (9,)]
    assert found["vgg"] == [(8,), (10,), (16,)]
    assert found["resnet"] == [(8,), (8,), (16,), (4,), (4,)]  # the padded ones are apart
    assert sorted(found["encoder"]) == [(3, 4, 4), (3, 4, 4), (12,), (16,), (16,)]
    assert sorted(found["packed attention"]) == [(3, 4, 4), (12,)]
    assert found["lstm"] == found["gru"] == [(7,)]
    assert found["lstm, two layers, both ways"] == [(7,)] * 4
    assert found["tied"] == [(8,)]  # the output's units are the table's


def two_networks(make: Any, steps: int = 60) -> tuple[pl.Landscape, list[nn.Module]]:
    """Trained from two seeds on noisy bumps of 4 classes."""
    torch.manual_seed(0)
    centres = torch.randn(4, 1, 8, 8)
    y = torch.arange(160) % 4
    x = centres[y] + 0.5 * torch.randn(160, 1, 8, 8)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        models.append(model.eval())
    return pl.Landscape(models[0], "cross_entropy", (x, y)), models


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_barrier_between_trained_networks_does_not_grow(kind: str, method: str) -> None:
    def perceptron() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))

    def convolutional() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip

    land, (a, b) = two_networks(perceptron if kind == "mlp" else convolutional)
    m = pl.align(land, a, b, method=method)
    before = pl.barriers(land, [a, b], progress=False).barrier[0, 1]
    after = pl.barriers(land, [a, m.model], progress=False).barrier[0, 1]
    assert before > 0.0
    assert after <= before
    assert (m.barrier_before, m.barrier) == pytest.approx((before, after), rel=1e-5)
    if method == "weights":
        assert m.distance[1] < m.distance[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_weight_matching_never_lengthens_the_distance_and_is_repeatable(name: str) -> None:
    land, model = landscape(name)
    _, other = landscape(name, seed=1)
    m, again = (pl.align(land, model, other, seed=4) for _ in range(2))
    assert m.distance[1] <= m.distance[0]
    assert m.moved > 0
    np.testing.assert_array_equal(m.theta, again.theta)
    x = land.dataset.batches[0].inputs
    torch.testing.assert_close(m.model(x), other(x), rtol=0, atol=1e-12)


def test_one_hidden_layer_is_exact_as_the_equioutput_group_says() -> None:
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double() for _ in range(2))
    land = pl.Landscape(a, "mse", (torch.randn(9, 3).double(), torch.randn(9, 2).double()))
    group = pl.EquioutputGroup(land)
    theta = [torch.nn.utils.parameters_to_vector(x.parameters()).detach().numpy() for x in (b, a)]
    assert pl.align(land, a, b).distance[1] == pytest.approx(group.distance(*theta), rel=1e-12)


def test_state_dicts_paths_and_vectors_are_models_too(tmp_path: Path) -> None:
    land, model = landscape("mlp")
    other = planted(land, model)
    path = tmp_path / "b.pt"
    torch.save(other.state_dict(), path)
    vector = torch.nn.utils.parameters_to_vector(other.parameters()).detach()
    for b in (other.state_dict(), path, vector):
        assert pl.align(land, model.state_dict(), b).distance[1] == 0.0


def test_a_result_is_saved_without_its_module(tmp_path: Path) -> None:
    land, model = landscape("encoder")
    m = pl.align(land, model, planted(land, model))
    m.save(tmp_path / "m.h5")
    again = pl.load(tmp_path / "m.h5")
    assert isinstance(again, pl.ModelAlignment)
    assert repr(again) == repr(m)
    np.testing.assert_array_equal(again.theta, m.theta)
    assert again.permutations.keys() == m.permutations.keys()
    for key, p in m.permutations.items():
        np.testing.assert_array_equal(again.permutations[key], p)
    assert again.fixed == m.fixed
    with pytest.raises(pl.InvalidArgument, match="no module"):
        again.state_dict()


def test_models_of_another_layout_are_refused_by_name() -> None:
    land, model = landscape("mlp")
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 12))
    with pytest.raises(pl.LayoutMismatch, match=r"^b: .*'1\.0\.weight'"):
        pl.align(land, model, other)
    with pytest.raises(pl.InvalidArgument, match=r"^method: expected one of weights, activations"):
        pl.align(land, model, model, method="both")
    with pytest.raises(pl.InvalidArgument, match=r"align\(\) expected a Landscape"):
        pl.align(model, model, model)


def test_the_same_model_twice_is_said() -> None:
    land, model = landscape("mlp")
    with pytest.warns(UserWarning, match="equal: their distance is 0"):
        m = pl.align(land, model, model)
    assert m.distance == (0.0, 0.0)
    assert m.moved == 0


def test_a_model_without_symmetry_is_refused() -> None:
    model = nn.Linear(3, 2)
    land = pl.Landscape(model, "mse", (torch.randn(5, 3), torch.randn(5, 2)))
    with pytest.raises(pl.InvalidArgument, match="units that may change places"):
        pl.align(land, model, nn.Linear(3, 2))


class Sorted(nn.Module):
    """Units behind an operation that orders them."""

    def __init__(self, f: Any) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Linear(3, 6), nn.Linear(6, 2), f

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.f(self.a(x)))


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda x: x.cumsum(-1), "an order in op 'cumsum'"),
        (lambda x: torch.linalg.qr(x.unsqueeze(-1))[0].squeeze(-1), "no rule"),
        (lambda x: x * torch.arange(6), "a constant"),
        (lambda x: torch.roll(x, 1, -1), "an order in op 'roll'"),
    ],
)
def test_an_operation_that_breaks_the_symmetry_is_named(f: Any, why: str) -> None:
    model = Sorted(f)
    land = pl.Landscape(model, "mse", (torch.randn(5, 3), torch.randn(5, 2)), engine="torch")
    with pytest.raises(pl.InvalidArgument, match=why):
        pl.align(land, model, Sorted(f))


def test_parameters_outside_theta_do_not_move() -> None:
    torch.manual_seed(0)
    model = mlp()
    land = pl.Landscape(model, "mse", (torch.randn(9, 192), torch.randn(9, 5)), params=["0.*"])
    with pytest.raises(pl.InvalidArgument, match="a parameter outside theta"):
        pl.align(land, model, land.theta + 1)


def test_a_search_that_reads_a_symmetry_wrongly_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pylandscape.connectivity import axis_rules

    monkeypatch.setitem(axis_rules.RULES, "cumsum", axis_rules.same)  # which it is not
    model = Sorted(lambda x: x.cumsum(-1))
    land = pl.Landscape(model, "mse", (torch.randn(5, 3), torch.randn(5, 2)), engine="torch")
    with pytest.raises(pl.InvalidArgument, match="a permutation of it changes the outputs"):
        pl.align(land, model, Sorted(lambda x: x.cumsum(-1)))


def test_float32_models_and_their_running_statistics() -> None:
    torch.manual_seed(0)
    a, b = vgg(), vgg()
    for model in (a, b):
        model(torch.randn(20, 3, 8, 8))
        model.eval()
    x, y = torch.randn(30, 3, 8, 8), torch.randint(0, 5, (30,))
    for bn in ("eval", "interpolate", "recompute"):
        land = pl.Landscape(a, "cross_entropy", [(x[:20], y[:20]), (x[20:], y[20:])], bn=bn)
        for method in ("weights", "activations"):
            m = pl.align(land, a, b, method=method)
            torch.testing.assert_close(m.model(x), b(x), rtol=1e-4, atol=1e-5)
            assert len(m.theta) == land.moved.n
            assert m.info["rounding"] < 1e-10


def test_a_finished_file_answers_with_lines_and_model(tmp_path: Path) -> None:
    land, model = landscape("mlp")
    a, b = model, landscape("mlp", seed=1)[1]
    path = tmp_path / "m.h5"
    found = pl.align(land, a, b, points=5, path=path, progress=False)
    line = pl.interpolate(land, [a, found.model], x=(0, 1, 5), progress=False)
    assert found.line == pytest.approx(line.values, rel=1e-9)
    again = pl.align(land, a, b, points=5, path=path, progress=False)
    assert np.array_equal(again.line, found.line)
    for name, tensor in found.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    with pytest.raises(pl.ResumeMismatch):
        pl.align(land, a, b, points=7, path=path, progress=False)
    bare = pl.align(land, a, b, points=0, progress=False)
    assert np.isnan(bare.barrier)
    with pytest.raises(pl.InvalidArgument, match="points=0"):
        bare.plot()
    with pytest.raises(pl.InvalidArgument, match="points: expected 0 or at least 3"):
        pl.align(land, a, b, points=2)


def test_other_running_statistics_leave_no_line_and_a_note_that_says_so() -> None:
    land, model = landscape("vgg")
    found = pl.align(land, model, planted(land, model), points=3, progress=False)
    assert np.isnan(found.barrier)
    assert "recompute" in found.info["notes"][0]
    assert land.at(found.model).loss() == pytest.approx(found.loss[1], rel=1e-9)
