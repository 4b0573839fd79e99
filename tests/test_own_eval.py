"""Modules whose eval() does more than set flags."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.errors import InvalidArgument


class Switched(nn.Module):
    """Whose train() and eval() do more than set flags."""

    def __init__(self, folds: bool) -> None:
        super().__init__()
        self.fc, self.folds, self.fast = nn.Linear(3, 2), folds, False

    def train(self, mode: bool = True) -> Switched:
        if self.folds and self.fast == mode:
            self.fc.weight.data.mul_(0.5 if mode else 2.0)
        self.fast = not mode
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * (1.0 if self.folds or not self.fast else 3.0)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_eval_mode_is_the_models_own(engine: str) -> None:
    torch.manual_seed(0)
    model, x, y = Switched(folds=False).train(), torch.randn(9, 3), torch.randint(0, 2, (9,))
    land = pl.Landscape(model, "cross_entropy", (x, y), engine=engine)
    found = land.losses([[0.0]], land.theta[None])[0]
    assert model.training
    assert not model.fast
    with torch.no_grad():
        want = float(nn.functional.cross_entropy(model.eval()(x), y))
    assert found == pytest.approx(want, rel=1e-6)


def test_an_eval_that_changes_parameters_is_refused_and_undone() -> None:
    torch.manual_seed(0)
    model, x, y = Switched(folds=True).train(), torch.randn(9, 3), torch.randint(0, 2, (9,))
    before = model.fc.weight.detach().clone()
    with pytest.raises(
        InvalidArgument, match=r"its own eval\(\) changes the parameter 'fc.weight'"
    ):
        pl.Landscape(model, "cross_entropy", (x, y))
    assert torch.equal(model.fc.weight, before)
    assert not model.fast
    pl.Landscape(model.eval(), "cross_entropy", (x, y))
