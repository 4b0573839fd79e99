"""Losses that are not quite those of torch.nn: partials, hooks, a forward of their own."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.errors import InvalidArgument

X, Y = torch.randn(12, 4), torch.randn(12, 3)
CLASSES = torch.arange(12) % 3


def test_a_partial_of_a_known_loss_has_its_denominator_over_all_batches() -> None:
    model, weight = nn.Linear(4, 3), torch.tensor([0.1, 1.0, 3.0])
    loss = partial(F.cross_entropy, weight=weight, label_smoothing=0.1)
    land = pl.Landscape(model, loss, [(X[:5], CLASSES[:5]), (X[5:], CLASSES[5:])])
    assert land.engine == "native"
    assert land.loss() == pytest.approx(loss(model(X), CLASSES).item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["hook", "pre-hook", "forward"])
def test_what_is_hung_on_a_known_loss_counts(kind: str) -> None:
    model, loss = nn.Linear(4, 3), nn.MSELoss()
    if kind == "hook":
        loss.register_forward_hook(lambda module, inputs, value: 3 * value)
    elif kind == "pre-hook":
        loss.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1, inputs[1]))
    else:
        loss.forward = lambda o, t: (o - t).abs().mean()  # type: ignore[method-assign]
    land = pl.Landscape(model, loss, (X, Y))
    assert land.loss() == pytest.approx(loss(model(X), Y).item(), rel=1e-6)
    assert land.engine == "torch"


def test_a_list_of_two_tensors_that_could_be_two_batches_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"pass the tuple \(x, y\)"):
        pl.Landscape(nn.Linear(4, 4), "mse", [X, X + 1])
    pair = pl.Landscape(nn.Linear(4, 4), "mse", (X, X + 1))
    batches = pl.Landscape(nn.Linear(4, 4), "mse", [(X, X), (X, X)])
    assert (pair.dataset.size, batches.dataset.size) == (12, 24)
    assert pl.Landscape(nn.Linear(4, 3), "mse", [X, Y]).dataset.size == 12
