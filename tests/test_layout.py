"""The flat vector: order, kinds, ties, patterns; data sets and losses beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.theta.data import Dataset
from pylandscape.theta.losses import FreeLoss, KnownLoss, resolve_loss

CPU = torch.device("cpu")


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def test_entries_follow_named_parameters_with_kinds_and_offsets() -> None:
    layout = pl.ParameterLayout.of(model())
    assert [(e.name, e.kind, e.offset) for e in layout.entries] == [
        ("0.weight", "weight", 0),
        ("0.bias", "bias", 18),
        ("1.weight", "norm", 20),
        ("1.bias", "norm", 22),
        ("3.weight", "weight", 24),
        ("3.bias", "bias", 48),
    ]
    assert layout.n == 51


def test_flatten_and_unflatten_are_inverse_and_views() -> None:
    net = model()
    layout = pl.ParameterLayout.of(net)
    theta = layout.flatten(dict(net.named_parameters()), torch.float32, CPU)
    parts = layout.unflatten(theta)
    for name, parameter in net.named_parameters():
        assert torch.equal(parts[name], parameter)
    parts["3.bias"].fill_(7)
    assert torch.equal(theta[-3:], torch.full((3,), 7.0))
    assert torch.equal(layout.vector(net, "net", torch.float32, CPU)[:18], theta[:18])
    assert torch.equal(layout.vector(net.state_dict(), "s", torch.float32, CPU)[:48], theta[:48])


def test_digest_tells_layouts_apart() -> None:
    a, b = pl.ParameterLayout.of(model()), pl.ParameterLayout.of(model())
    assert a.digest == b.digest
    assert a.digest != pl.ParameterLayout.of(model(), ("3.*",)).digest


def test_state_dicts_that_do_not_fit_are_named() -> None:
    layout = pl.ParameterLayout.of(model())
    state = model().state_dict()
    state.pop("3.bias")
    with pytest.raises(pl.LayoutMismatch, match=r"ckpt: expected the parameter '3\.bias'"):
        layout.vector(state, "ckpt", torch.float32, CPU)
    state["3.bias"] = torch.zeros(4)
    with pytest.raises(pl.LayoutMismatch, match=r"shape \(3,\) for '3\.bias', got \(4,\)"):
        layout.vector(state, "ckpt", torch.float32, CPU)
    with pytest.raises(pl.InvalidArgument, match=r"ckpt: no file 'file\.pt'"):
        layout.vector("file.pt", "ckpt", torch.float32, CPU)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(pl.InvalidArgument, match="at least one parameter"):
        pl.ParameterLayout.of(nn.ReLU())


def test_data_keep_order_size_and_digest() -> None:
    x, y = np.arange(6.0).reshape(3, 2), np.array([0, 1, 0])
    one = Dataset((x, y), targets="values", device=CPU, move=False)
    two = Dataset([(x[:2], y[:2]), (x[2:], y[2:])], targets="values", device=CPU, move=False)
    assert one.size == two.size == 3
    joined = two.tensors()
    assert joined is not None
    assert torch.equal(joined[0], torch.as_tensor(x))
    assert one.digest != two.digest  # batches matter to batch norm
    y[0] = 1
    assert Dataset((x, y), targets="values", device=CPU, move=False).digest != one.digest


def test_a_mapping_is_not_a_data_set() -> None:
    with pytest.raises(pl.InvalidArgument, match=r"data: .*a pair.*got a dict with 'x'"):
        Dataset({"x": 1}, targets="values", device=CPU, move=False)
    with pytest.raises(pl.InvalidArgument, match="use objective"):
        Dataset([torch.zeros(3)], targets="classes", device=CPU, move=False)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (nn.CrossEntropyLoss(), "cross_entropy"),
        (F.cross_entropy, "cross_entropy"),
        ("mse", "mse"),
        (nn.MSELoss(), "mse"),
        (nn.NLLLoss(), "nll"),
        (F.binary_cross_entropy_with_logits, "bce_with_logits"),
    ],
)
def test_losses_are_recognised(given: object, kind: str) -> None:
    known = resolve_loss(given)
    assert isinstance(known, KnownLoss)
    assert known.kind == kind


def test_a_subclass_of_a_loss_is_free_code() -> None:
    class Mine(nn.CrossEntropyLoss):
        def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return super().forward(input, target) * 2

    assert isinstance(resolve_loss(Mine()), FreeLoss)
    x, y = torch.randn(5, 8), torch.randint(0, 3, (5,))
    land = pl.Landscape(nn.Linear(8, 3), Mine(), (x, y))
    assert land.loss() == pytest.approx(land.model_loss())
    assert "Mine" in str(land.engine_report())


def test_mse_of_other_shapes_is_an_error_not_a_broadcast() -> None:
    with pytest.raises(pl.InvalidArgument, match=r"mse expected targets.*\(5, 1\), got \(5,\)"):
        pl.Landscape(nn.Linear(8, 1), "mse", (torch.randn(5, 8), torch.randn(5)))


def test_repeated_questions_do_not_leak() -> None:
    x, y = torch.randn(2000, 40), torch.randint(0, 3, (2000,))
    net = nn.Sequential(nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 3))

    def resident() -> int:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    def ask() -> None:
        land = pl.Landscape(net, "cross_entropy", (x, y), engine="native")
        d = torch.stack([v.vector for v in pl.random_directions(land, 2)])
        land.losses(np.zeros((3, 2)), d)
        land.hvp(d)

    for _ in range(5):
        ask()
    before = resident()
    for _ in range(60):
        ask()
    # One question holds over 2 MiB: a leak of each would be 120 MiB.
    assert resident() - before < 30 * 2**20
