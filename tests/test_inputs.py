"""Data in the forms that people have them: each is read as what it means, or refused with what to
write instead."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pylandscape as pl

N = 12


def net(inputs: int = 4, outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs))


X, Y = torch.randn(N, 4, generator=torch.Generator().manual_seed(1)), torch.arange(N) % 3
EDGES = torch.tensor([[0, 1, 2, 5, 7, 3, 4], [1, 2, 3, 4, 5, 6, 11]])


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net(8)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.net(torch.cat([a, b], 1))
        return out


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        out: Tensor = self.net(torch.zeros_like(x).index_add(0, edges[0], x[edges[1]]))
        return out


class OwnLoss(nn.Module):
    """As models of transformers: keywords in, a loss of its own out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixels)
        found = {"logits": logits}
        return found if labels is None else found | {"loss": F.cross_entropy(logits, labels)}


class Keyword(OwnLoss):
    def forward(self, pixels: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.net(pixels)
        return out


def residual(model: nn.Module, x: Tensor) -> Tensor:
    """Of u_t + u u_x = 0, as a physics-informed network has it."""
    x = x.requires_grad_(True)
    u = model(x)
    du = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    return (du[:, 0] + u[:, 0] * du[:, 1]).square().mean()


Case = Callable[[], tuple[pl.Landscape, float]]

READ: dict[str, Case] = {
    "a tensor alone is its own target": lambda: (
        pl.Landscape(net(4, 4), "mse", X), F.mse_loss(net(4, 4)(X), X).item()),
    "so are the tensors of a loader": lambda: (
        pl.Landscape(net(4, 4), "mse", DataLoader(TensorDataset(X), 5)),
        F.mse_loss(net(4, 4)(X), X).item()),
    "and an array": lambda: (
        pl.Landscape(net(4, 4), nn.HuberLoss(), X.numpy()),
        F.huber_loss(net(4, 4)(X), X).item()),
    "inputs by keyword and targets": lambda: (
        pl.Landscape(Keyword(), "cross_entropy", ({"pixels": X}, Y)),
        F.cross_entropy(Keyword()(X), Y).item()),
    "two inputs and targets": lambda: (
        pl.Landscape(Two(), "cross_entropy", ((X, X + 1), Y)),
        F.cross_entropy(Two()(X, X + 1), Y).item()),
    "the same to an objective": lambda: (
        pl.Landscape(Two(), objective=lambda m, b: F.cross_entropy(m(*b[0]), b[1]) ** 2,
                     data=((X, X + 1), Y)),
        F.cross_entropy(Two()(X, X + 1), Y).item() ** 2),
    "a graph's nodes and edges, and targets": lambda: (
        pl.Landscape(Graph(), "cross_entropy", ((X, EDGES), Y)),
        F.cross_entropy(Graph()(X, EDGES), Y).item()),
    "three tensors to an objective": lambda: (
        pl.Landscape(Two(), objective=lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]),
                     data=(X, X + 1, Y)),
        F.cross_entropy(Two()(X, X + 1), Y).item()),
    "points of a physics-informed network": lambda: (
        pl.Landscape(net(2, 1), objective=residual, data=X[:, :2]),
        residual(net(2, 1), X[:, :2].clone()).item()),
    "its points in a dict": lambda: (
        pl.Landscape(net(2, 1), data={"inside": X[:, :2], "border": X[:3, 2:]}, objective=lambda
                     m, b: residual(m, b["inside"]) + m(b["border"]).square().mean()),
        (residual(net(2, 1), X[:, :2].clone()) + net(2, 1)(X[:3, 2:]).square().mean()).item()),
    "an objective without data": lambda: (
        pl.Landscape(net(), objective=lambda m, b: m(X).square().mean()),
        net()(X).square().mean().item()),
    "one dict for a model with its own loss": lambda: (
        pl.Landscape(OwnLoss(), data={"pixels": X, "labels": Y}),
        F.cross_entropy(OwnLoss().net(X), Y).item()),
    "batches that are dicts of another class": lambda: (
        pl.Landscape(OwnLoss(), data=[UserDict(pixels=X, labels=Y)]),
        F.cross_entropy(OwnLoss().net(X), Y).item()),
    "classes of 32 bits": lambda: (
        pl.Landscape(net(), "cross_entropy", (X, Y.int())), F.cross_entropy(net()(X), Y).item()),
    "one sample and its shares of classes": lambda: (
        pl.Landscape(net(), "cross_entropy", (X[0], torch.tensor([0.2, 0.3, 0.5]))),
        F.cross_entropy(net()(X[0]), torch.tensor([0.2, 0.3, 0.5])).item()),
    "one sample and its values": lambda: (
        pl.Landscape(net(), "mse", (X[0], X[1, :3])), F.mse_loss(net()(X[0]), X[1, :3]).item()),
}  # fmt: skip


@pytest.mark.parametrize("form", READ)
def test_data_are_read_as_what_they_mean(form: str) -> None:
    land, expected = READ[form]()
    assert land.loss() == pytest.approx(expected, rel=1e-5)


REFUSED: dict[str, Callable[[], Any]] = {
    r"this loss needs targets: pass \(x, y\)": lambda: pl.Landscape(net(), "cross_entropy", X),
    r"got a tuple of 3; .*\(\(x1, x2\), y\) for x1, x2, y in data": lambda: pl.Landscape(
        Two(), "cross_entropy", [(X, X, Y)]
    ),
    r"leave loss= out .*\[\(b\['pixels'\], b\['labels'\]\) for b in data\]": (
        lambda: pl.Landscape(OwnLoss(), "cross_entropy", [{"pixels": X, "labels": Y}])
    ),
    r"one of its loaders": lambda: pl.Landscape(
        net(), "cross_entropy", type("Module", (), {"val_dataloader": None})()
    ),
    r"targets .* got a list; pass torch.tensor": lambda: pl.Landscape(
        net(), "cross_entropy", (X, [0] * N)
    ),
    r"\(12, 1\), got \(12,\); target.reshape\(-1, 1\)": lambda: pl.Landscape(
        net(4, 1), "mse", (X, X[:, 0])
    ),
    r"inputs are float64 and the parameters float32: convert": lambda: pl.Landscape(
        net(), "cross_entropy", (X.numpy().astype(np.float64), Y)
    ),
    r"target.squeeze\(1\) has classes": lambda: pl.Landscape(
        net(), "cross_entropy", (X, Y[:, None])
    ),
    r"target.squeeze\(1\).long\(\) has": lambda: pl.Landscape(
        net(), "cross_entropy", (X, Y[:, None].float())
    ),
    r"target.argmax\(1\) has the classes": lambda: pl.Landscape(
        net(), "cross_entropy", (X, F.one_hot(Y, 3))
    ),
    r"inputs are int64 and the parameters float32: convert the inputs, x.to": (
        lambda: pl.Landscape(net(), "cross_entropy", (X.long(), Y))
    ),
    r"objective: expected a scalar, got a tuple of 2; return the loss alone": lambda: pl.Landscape(
        net(), objective=lambda m, b: (m(b[0]).mean(), {}), data=(X, Y)
    ),
    r"objective: expected a scalar, got None": lambda: pl.Landscape(
        net(), objective=lambda m, b: None, data=(X, Y)
    ),
    r"model: expected parameters that have values, but '0.weight' is on the meta": (
        lambda: pl.Landscape(net().to("meta"), "cross_entropy", (X, Y))
    ),
    r"got the class Linear": lambda: pl.Landscape(nn.Linear, "mse", X),  # type: ignore
    r"v: expected a tensor or array .* got a list": lambda: pl.Landscape(
        net(), "cross_entropy", (X, Y)
    ).hvp(list(net().parameters())),
    r"operator: .* got the module Sequential; make one with": lambda: pl.eigenpairs(net(), 1),
    r"target.long\(\) has classes": lambda: pl.Landscape(net(), "nll", (X, Y.float())),
    r"got them the other way round": lambda: pl.Landscape(net(), (X, Y), "cross_entropy"),
    r"got str; load the parameters": lambda: pl.Landscape("a.pt", "mse", X),  # type: ignore
    r"got str; read the file first": lambda: pl.Landscape(net(), "mse", "data.pt"),
    r"max_batches: expected at least 1, got 0": lambda: pl.Landscape(
        net(), "cross_entropy", (X, Y), max_batches=0
    ),
    r"objective gets None": lambda: pl.Landscape(net(), objective=lambda m, b: m(b).mean()),
    r"written \[\(\(x1, x2\), \(y1, y2\)\)\]": lambda: pl.Landscape(
        Two(), lambda out, y: F.cross_entropy(out, y[0]), ((X, X), (Y, Y))
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused_says_what_to_write(message: str) -> None:
    with pytest.raises(pl.InvalidArgument, match=message):
        REFUSED[message]()


@pytest.mark.filterwarnings("ignore")
def test_quantized_weights_are_named() -> None:
    quantized = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(pl.InvalidArgument, match="weights of 0, 2 are quantized integers"):
        pl.Landscape(quantized, "cross_entropy", (X, Y))


def test_the_first_batches_alone_are_read_and_that_is_said() -> None:
    def endless() -> Any:
        while True:
            yield X[:4], Y[:4]

    land = pl.Landscape(net(), "cross_entropy", endless(), max_batches=3)
    assert land.dataset.size == 12
    loader = DataLoader(TensorDataset(X, Y), 4)
    land = pl.Landscape(net(), "cross_entropy", loader, max_batches=2)
    assert land.loss() == pytest.approx(F.cross_entropy(net()(X[:8]), Y[:8]).item(), rel=1e-6)
    assert "the first 2 of 3 batches" in repr(land)
    assert "the first" not in repr(pl.Landscape(net(), "cross_entropy", loader))


def test_it_says_what_is_computed() -> None:
    model = nn.Sequential(net(), nn.Dropout(0.5), nn.BatchNorm1d(3))
    model[0][0].requires_grad_(False)
    loader = DataLoader(TensorDataset(X, Y), 5, shuffle=True, drop_last=True)
    land = pl.Landscape(model, "cross_entropy", loader, params=("0.*",))
    for said in (repr(land), str(land.engine_report())):
        assert "eval mode, dropout off, batch norm by its running statistics" in said
        assert "30 of 51 parameters frozen but moving; 6 parameters stay as they are" in said
        assert "the loader shuffles and was read once" in said
        assert "drop_last left 2 samples out" in said
    plain = pl.Landscape(net(), "cross_entropy", DataLoader(TensorDataset(X, Y), 5))
    assert plain.computed == "eval mode"


def test_an_objective_that_is_a_known_loss_is_told_how_to_be_compiled() -> None:
    def of(objective: Any, data: Any) -> str:
        model = net(4, 4)
        before = torch.get_rng_state()
        said = str(pl.Landscape(model, objective=objective, data=data).engine_report())
        assert torch.equal(before, torch.get_rng_state())
        assert all(map(torch.equal, model.parameters(), net(4, 4).parameters()))
        return said

    pair, dicts = [(X, Y)], [{"label": Y, "image": X}]
    said = of(lambda m, b: F.cross_entropy(m(b[0]), b[1]), pair)
    assert (
        "on the samples tried: pass that as loss= and data of pairs (x, y) instead of obj" in said
    )
    said = of(lambda m, b: F.cross_entropy(m(b["image"]), b["label"]), dicts)
    assert "of pairs (batch['image'], batch['label'])" in said
    said = of(lambda m, b: ((m(b) - b) ** 2).mean(), X)
    assert "of loss='mse' on the samples tried: pass that as loss= and data as they are" in said
    said = of(lambda m, b: ((m(b) - b) ** 2).sum(), X)
    assert "the torch.nn loss of 'mse' with reduction='sum'" in said
    for other in (
        lambda m, b: F.cross_entropy(m(b[0]), b[1], label_smoothing=0.1),
        lambda m, b: F.cross_entropy(m(b[0]), b[1]) + 1e-3 * sum(p.norm() for p in m.parameters()),
    ):
        assert "is Python code of your own" in of(other, pair)
    free = pl.Landscape(net(), lambda out, y: F.cross_entropy(out, y), (X, Y))
    assert "has the numbers of loss='cross_entropy' on the samples tried" in str(
        free.engine_report()
    )
