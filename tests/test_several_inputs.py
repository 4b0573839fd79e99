"""Models of several inputs and of keywords are compiled; what else their data may be is torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from derivative_support import assert_same_answers, assert_trained_alike
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.errors import NotLowered
from pylandscape.lowering.several import pack
from pylandscape.theta.data import Batch


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(x)) * torch.sigmoid(self.b(z)))


class Conditional(nn.Module):
    """A kind and a value by keyword, given in another order than the arguments'."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds, self.a, self.head = nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, *, kind: Tensor, value: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(value + self.kinds(kind))))


class ImageWithFacts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.a, self.head = nn.Linear(3, 6), nn.Linear(14, 2)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        seen = torch.relu(self.norm(self.conv(image))).flatten(1)
        return self.head(torch.cat([seen, torch.relu(self.a(facts))], 1))


class TokensOfSegments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.segments = nn.Embedding(5, 4), nn.Embedding(3, 4)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: Tensor, segment: Tensor) -> Tensor:
        return self.head(torch.cat([self.tokens(tokens).mean(1), self.segments(segment)], 1))


class NumbersOfTokens(TokensOfSegments):
    """The integers are numbers too."""

    def forward(self, tokens: Tensor, segment: Tensor) -> Tensor:
        return super().forward(tokens, segment) * (1 + segment[:, None])


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.a(adjacency @ x)


def _ids(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(0, high, shape, dtype=dtype)


CASES: dict[str, tuple[type[nn.Module], Any, str]] = {
    "gated": (Gated, lambda n: (torch.randn(n, 4), torch.randn(n, 3)), "native"),
    "keywords": (
        Conditional, lambda n: {"value": torch.randn(n, 4), "kind": _ids(5, n)}, "native",
    ),
    "image": (ImageWithFacts, lambda n: (torch.randn(n, 1, 4, 4), torch.randn(n, 3)), "native"),
    "tokens": (
        TokensOfSegments, lambda n: [_ids(5, n, 6), _ids(3, n, dtype=torch.int32)], "native",
    ),
    "numbers of tokens": (NumbersOfTokens, lambda n: (_ids(5, n, 6), _ids(3, n)), "native"),
    "rows that mix": (Mixed, lambda n: (torch.randn(n, 4), torch.rand(n, n)), "torch"),
}  # fmt: skip


# What torch answers is traced twice first, which takes seconds.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.ci] * (CASES[name][2] == "torch")) for name in CASES],
)
def test_several_inputs_have_torchs_numbers(name: str) -> None:
    torch.manual_seed(0)
    kind, inputs, engine = CASES[name]
    model = kind()
    sizes = (3, 3) if name == "rows that mix" else (5, 9)
    data = [(inputs(n), torch.randn(n, 2)) for n in sizes]
    land, torchs = (pl.Landscape(model, "mse", data, engine=e) for e in ("auto", "torch"))
    assert land.engine == engine
    assert_same_answers(land, torchs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["keywords", "image"])
def test_models_of_several_inputs_are_trained_by_the_core(name: str) -> None:
    torch.manual_seed(0)
    kind, inputs, _ = CASES[name]
    land = pl.Landscape(kind().double(), "mse", _double([(inputs(12), torch.randn(12, 2))]))
    assert_trained_alike(land)


def _double(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.double() if item.is_floating_point() else item
    if isinstance(item, dict):
        return {key: _double(value) for key, value in item.items()}
    return type(item)(_double(value) for value in item)


def test_the_users_module_keeps_its_class_and_forward() -> None:
    model = Gated()
    land = pl.Landscape(model, "mse", [((torch.randn(6, 4), torch.randn(6, 3)), torch.randn(6, 2))])
    assert land.engine == "native"
    assert type(model) is type(land.model) is Gated
    assert "_packed_form" not in {**vars(model), **vars(land.model)}
    assert "_packed_form" not in str(land.describe())


def test_whole_numbers_that_the_program_cannot_hold_are_refused() -> None:
    batch = Batch(None, (torch.tensor([1, 2**24 + 1]), torch.randn(2, 3)), None, 2)
    with pytest.raises(NotLowered, match="whole numbers"):
        pack([batch], torch.float32)
    packed, form = pack([batch], torch.float64)
    assert torch.equal(form.pieces[0].of(packed), batch.inputs[0])
    assert torch.equal(form.pieces[1].of(packed).float(), batch.inputs[1])
