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


class Adapts(nn.Module):
    """Its norm keeps to the batch's own statistics, and its dropout samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.norm, self.drop = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.0)
        self.out = nn.Linear(4, 2)

    def train(self, mode: bool = True) -> Adapts:
        super().train(mode)
        self.norm.training = self.drop.training = True
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.drop(self.norm(self.fc(x))))


def test_what_its_own_eval_leaves_in_train_mode_stays_there_and_is_said() -> None:
    model, x, y = Adapts(), 3 * torch.randn(9, 3), torch.randint(0, 2, (9,))
    land = pl.Landscape(model, "cross_entropy", (x, y))
    with torch.no_grad():
        want = float(nn.functional.cross_entropy(Adapts().eval()(x), y))
    assert land.losses(points=land.theta.expand(2, -1)) == pytest.approx([want] * 2, rel=1e-6)
    assert "eval mode but for norm, drop, which its own code puts into train mode" in land.computed
    assert "batch norm by each batch's own statistics" in land.computed


def test_what_an_objective_puts_into_train_mode_is_said() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    x, y = torch.randn(9, 3), torch.randint(0, 2, (9,))

    def objective(m: nn.Module, b: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        m.train()
        return nn.functional.cross_entropy(m(b[0]), b[1])

    said = pl.Landscape(model, objective=objective, data=[(x, y), (x, y)]).computed
    assert said.startswith("train mode, which its own code turns on, dropout on; the same random")
    assert "the values of 2 batches averaged" in said
    assert "dropout off" in pl.Landscape(model, "cross_entropy", (x, y)).computed
