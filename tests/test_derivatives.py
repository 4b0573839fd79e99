"""Compiled gradients, products and per-sample gradients against float64 double backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from derivative_support import EPS_FACTOR, LOSSES, Everything, error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.curvature.operators import as_operator
from pylandscape.errors import InvalidArgument
from pylandscape.theta.losses import KnownLoss, resolve_loss


class Exact:
    """Dense float64 references of a landscape, by autograd."""

    def __init__(self, model: nn.Module, loss: Any, x: Tensor, y: Tensor) -> None:
        exact = copy.deepcopy(model).double()
        x, y = x.double(), y.double() if y.is_floating_point() else y
        named = dict(exact.named_parameters())
        known = resolve_loss(loss)
        assert isinstance(known, KnownLoss)

        def outputs(theta: Tensor) -> Tensor:
            parts = theta.split([p.numel() for p in named.values()])
            state = {k: v.view(p.shape) for (k, p), v in zip(named.items(), parts, strict=True)}
            found: Tensor = torch.func.functional_call(exact, state, (x,))
            return found

        self.theta = torch.cat([p.detach().flatten() for p in named.values()])
        self.n = self.theta.numel()
        shape = outputs(self.theta).shape
        denominator = known.denominator(y, tuple(shape))

        def loss_of(out: Tensor, rows: slice = slice(None)) -> Tensor:
            return known.total(out.view(shape)[rows], y[rows]) / denominator

        jacobian = partial(torch.autograd.functional.jacobian, vectorize=True)
        hessian = partial(torch.autograd.functional.hessian, vectorize=True)
        self.gradient = jacobian(lambda t: loss_of(outputs(t)), self.theta)
        self.hessian = hessian(lambda t: loss_of(outputs(t)), self.theta)
        j = jacobian(outputs, self.theta).reshape(-1, self.n)
        inner = hessian(loss_of, outputs(self.theta).flatten())
        self.gauss_newton = j.T @ inner @ j
        count = len(x)

        def each(theta: Tensor) -> Tensor:
            out = outputs(theta)
            return torch.stack([count * loss_of(out, slice(i, i + 1)) for i in range(count)])

        self.sample_gradients = jacobian(each, self.theta)
        self.covariance = self.sample_gradients.T @ self.sample_gradients / count


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_all_products_match_double_backward(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(len(name))
    model = Everything()
    make_loss, targets = LOSSES[name]
    loss, x, y = make_loss(), torch.randn(37, 7), targets(37)
    exact = Exact(model, loss, x, y)
    model.to(dtype)
    land = pl.Landscape(
        model, loss, (x.to(dtype), y.to(dtype) if y.is_floating_point() else y), engine="native"
    )
    identity = torch.eye(land.n_params, dtype=dtype)
    for got, want in (
        (land.gradient(), exact.gradient),
        (land.hvp(identity), exact.hessian),
        (land.gauss_newton_product(identity), exact.gauss_newton),
        (land.covariance_product(identity), exact.covariance),
        (land.per_sample_gradients(), exact.sample_gradients),
    ):
        assert error(got, want, dtype) <= EPS_FACTOR


def test_log_softmax_and_nll_have_the_cross_entropy_hessian() -> None:
    torch.manual_seed(3)
    model, x, y = Everything().double(), torch.randn(40, 7).double(), torch.randint(0, 5, (40,))
    one = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    other = pl.Landscape(nn.Sequential(model, nn.LogSoftmax(1)), "nll", (x, y), engine="native")
    want = one.hessian()
    assert error(other.hessian(), want, torch.float64) <= EPS_FACTOR


@pytest.mark.parametrize("activation", [
    nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.LeakyReLU, nn.ReLU, nn.Hardtanh,
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_activation_has_its_second_derivative(
    activation: type[nn.Module], dtype: torch.dtype
) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 9), activation(), nn.Linear(9, 8), activation(),
                          nn.Linear(8, 3))  # fmt: skip
    x, y = torch.randn(50, 6), torch.randint(0, 3, (50,))
    exact = Exact(model, "cross_entropy", x, y)
    land = pl.Landscape(model.to(dtype), "cross_entropy", (x.to(dtype), y), engine="native")
    assert error(land.hessian(), exact.hessian, dtype) <= EPS_FACTOR


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    samples=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
def test_random_networks_match(sizes: list[int], samples: int, seed: int) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1], bias=seed % 3 > 0), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], 2)).double()
    x, y = torch.randn(samples, sizes[0]).double(), torch.randint(0, 2, (samples,))
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    torch_land = pl.Landscape(model, "cross_entropy", (x, y), engine="torch")
    v = torch.randn(3, land.n_params, dtype=torch.float64)
    assert error(land.hvp(v), torch_land.hvp(v), torch.float64) <= EPS_FACTOR * samples


def test_blocks_threads_and_memory_do_not_change_the_bits() -> None:
    torch.manual_seed(0)
    model, x, y = Everything(), torch.randn(900, 7), torch.randint(0, 5, (900,))
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    v = torch.randn(21, land.n_params)
    want = land.hvp(v)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(land.hvp(v), want)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.stack([land.hvp(row) for row in v]), want)
    small = pl.Landscape(model, "cross_entropy", (x, y), engine="native", memory=0)
    assert torch.equal(small.hvp(v), want)
    assert torch.equal(small.per_sample_gradients(), land.per_sample_gradients())
    assert torch.equal(small.gradient(), land.gradient())


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Linear(37, 1000), nn.Tanh(), nn.Linear(1000, 35), nn.ReLU(), nn.Linear(35, 3)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_wide_weights_are_right_and_have_one_order(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # More samples than are summed at once, and an incomplete tile at the end.
    x, y = torch.randn(2101, 37, dtype=dtype), torch.randint(0, 3, (2101,))
    model = wide().to(dtype)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    want = land.gradient()
    exact = pl.Landscape(copy.deepcopy(model).double(), "cross_entropy", (x.double(), y),
                         engine="torch")  # fmt: skip
    assert error(want, exact.gradient(), dtype) <= EPS_FACTOR
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for memory in (None, 0):
                other = pl.Landscape(model, "cross_entropy", (x, y), engine="native", memory=memory)
                assert torch.equal(other.gradient(), want)
    finally:
        torch.set_num_threads(threads)
    # At a second theta the data's columns are taken over from the first.
    moved = want.to(dtype)
    assert error(land.gradient(moved), exact.gradient(moved.double()), dtype) <= EPS_FACTOR
    v = torch.randn(2, land.n_params, dtype=dtype)
    got = land.hvp(v, theta=moved)
    assert error(got, exact.hvp(v.double(), theta=moved.double()), dtype) <= EPS_FACTOR


@pytest.mark.parametrize("make", [Everything, wide])
@pytest.mark.parametrize("count", [1, 3])
def test_as_many_tiles_are_kept_as_memory_holds(make: Callable[[], nn.Module], count: int) -> None:
    torch.manual_seed(0)
    model = make()
    samples, inputs = (2101, 7) if make is Everything else (401, 37)
    x, y = torch.randn(samples, inputs), torch.randint(0, 3, (samples,))
    kept, found = [], []
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        for memory in (0, 1 << 21, 1 << 22, 1 << 30):
            land = pl.Landscape(model, "cross_entropy", (x, y), engine="native", memory=memory)
            torch.manual_seed(1)
            v, moved = torch.randn(11, land.n_params), land.theta * 1.01
            found.append([land.gradient(), land.hvp(v), land.hvp(v[0]), land.hvp(v[1], theta=moved),
                          land.gradient(moved), land.per_sample_gradients()[:9]])  # fmt: skip
            kept.append(land.native._derivatives_at(land.theta).kept)
    finally:
        torch.set_num_threads(threads)
    assert kept[0] == 0 < kept[1] < kept[2] < kept[3]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_frozen_parameters_are_constants_of_the_products() -> None:
    torch.manual_seed(2)
    model, x, y = Everything().double(), torch.randn(30, 7).double(), torch.randint(0, 5, (30,))
    whole = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    part = pl.Landscape(
        model, "cross_entropy", (x, y), engine="native", params=["b.*", "c.bias", "scale"]
    )
    at = torch.cat([
        torch.arange(whole.layout[e.name].offset, whole.layout[e.name].offset + e.numel)
        for e in part.layout.entries
    ])  # fmt: skip
    assert error(part.hessian(), whole.hessian()[at][:, at], torch.float64) <= EPS_FACTOR


def test_a_wrong_shape_is_named() -> None:
    model = nn.Linear(3, 2)
    land = pl.Landscape(model, "mse", (torch.randn(4, 3), torch.randn(4, 2)))
    with pytest.raises(InvalidArgument, match=r"v: expected shape \(8,\)"):
        land.gauss_newton_product(torch.zeros(7))


class Reader(nn.Module):
    """Embedding, LSTM, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(7, 5), nn.LSTM(5, 6, batch_first=True)
        self.linear = nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.linear(self.lstm(self.embedding(ids))[0][:, -1])


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.SiLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip


MEMORY_OF = {
    "linear": (lambda: nn.Sequential(nn.Linear(37, 5), nn.Tanh(), nn.Linear(5, 3)), (37,)),
    "convolutional": (_convolutional, (1, 4, 4)),
    "recurrent": (Reader, None),
}


@pytest.mark.parametrize("kind", MEMORY_OF)
@pytest.mark.parametrize("memory", [None, 0])
def test_nothing_of_an_earlier_theta_is_left_in_the_memory_that_it_leaves(
    kind: str, memory: int | None
) -> None:
    torch.manual_seed(3)
    make, shape = MEMORY_OF[kind]
    model = make().eval()
    x = torch.randint(0, 7, (301, 4)) if shape is None else torch.randn(301, *shape)
    data = x, torch.randint(0, 3, (301,))

    def landscape() -> pl.Landscape:
        return pl.Landscape(model, "cross_entropy", data, engine="native", memory=memory)

    land, fresh = landscape(), landscape()
    v = torch.randn(3, land.n_params)
    broken = torch.full_like(land.theta, torch.nan)
    core = land.native
    assert not torch.isfinite(core.gradient(broken)).any()
    core.product("hessian", broken, v)
    assert torch.equal(core.gradient(land.theta), fresh.native.gradient(land.theta))
    for matrix in ("hessian", "gauss_newton", "covariance"):
        got, want = (e.product(matrix, land.theta, v) for e in (core, fresh.native))
        assert torch.isfinite(want).all()
        assert torch.equal(got, want)


FORMS_OF = MEMORY_OF | {
    "everything": (Everything, (7,)),
    "wide": (wide, (37,)),
    "attention": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True), nn.Flatten(),
            nn.Linear(24, 3),
        ),
        (3, 8),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:second derivatives")  # of torch's attention
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", FORMS_OF)
def test_quadratic_forms_are_those_of_products(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    make, shape = FORMS_OF[kind]
    model = make().eval().to(dtype)
    x = torch.randint(0, 7, (301, 4)) if shape is None else torch.randn(301, *shape, dtype=dtype)
    y = torch.randint(0, 3, (301,))
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    other = pl.Landscape(model, "cross_entropy", (x, y), engine="native", memory=0)
    exact = pl.Landscape(
        copy.deepcopy(model).double(), "cross_entropy",
        (x.double() if x.is_floating_point() else x, y), engine="torch",
    )  # fmt: skip
    v = torch.randn(11, land.n_params, dtype=dtype)
    for matrix in ("hessian", "gauss_newton", "covariance"):
        op = as_operator(land, matrix)
        got = op.forms(v)
        want = as_operator(exact, matrix)(v.double()) * v.double()
        # Of the terms' size: positive and negative ones may cancel.
        off = (got - want.sum(1)).abs() / want.norm(dim=1)
        assert float(off.max()) <= EPS_FACTOR * torch.finfo(dtype).eps * land.n_params**0.5
        assert op.products == 11
        assert torch.equal(torch.cat([op.forms(row[None]) for row in v]), got)
        assert torch.equal(as_operator(other, matrix).forms(v), got)


def test_quadratic_forms_make_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model, x, y = Everything(), torch.randn(40, 7), torch.randint(0, 5, (40,))
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    other = pl.Landscape(model, "cross_entropy", (x, y), engine="torch")
    want = pl.trace(other, 8, method="hutchinson")

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("a product")

    monkeypatch.setattr(land, "product_at", refuse)
    got = pl.trace(land, 8, method="hutchinson")
    assert (got.products, want.products) == (8, 8)
    assert got.value == pytest.approx(want.value, rel=EPS_FACTOR * torch.finfo(torch.float32).eps)


class Halves(nn.Module):
    """Multiplies parts of the data by weights of both orientations, and all of it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(17, 6), nn.Parameter(torch.randn(20, 6) / 5)
        self.one, self.two = nn.Linear(37, 6), nn.Linear(37, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        halves = self.left(x[:, :17]) + x[:, 17:] @ self.right
        return self.last(torch.tanh(halves) + torch.tanh(self.one(x)) * self.two(x))


def dense(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(37, width), nn.Tanh(), nn.Linear(width, 3))


# 5 and 140: below and above the width up to which the data are taken as they stand.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [partial(dense, 5), partial(dense, 140), Halves])
def test_a_product_alone_has_the_bits_that_it_has_in_a_block(
    dtype: torch.dtype, make: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    model = make().to(dtype)
    x, y = torch.randn(301, 37, dtype=dtype), torch.randint(0, 3, (301,))
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    v = torch.randn(7, land.n_params, dtype=dtype)
    for product in (land.hvp, land.gauss_newton_product, land.covariance_product):
        block = product(v)
        assert all(torch.equal(product(row), of) for row, of in zip(v, block, strict=True))
    wide = copy.deepcopy(model).double()
    exact = pl.Landscape(wide, "cross_entropy", (x.double(), y), engine="torch")
    assert error(land.gradient(), exact.gradient(), dtype) <= EPS_FACTOR
    assert error(land.hvp(v), exact.hvp(v.double()), dtype) <= EPS_FACTOR
