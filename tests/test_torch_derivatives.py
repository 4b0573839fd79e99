"""Derivatives of the torch engine against dense float64 references, and what they leave behind."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pylandscape as pl

MATRICES = ("hessian", "gauss_newton", "covariance")
SPLITS = (7, 1, 4)  # ragged batches of 12 samples
Terms = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> (N,) summed terms of a sample


def mlp(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)).double()


def inputs(n: int = 12) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def classes(n: int = 12, count: int = 3) -> Tensor:
    return torch.randint(0, count, (n,), generator=torch.Generator().manual_seed(2))


def batched(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(SPLITS), y.split(SPLITS), strict=True))


def rows(land: pl.Landscape, k: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.randn(k, land.n_params, generator=g, dtype=torch.float64).to(land.dtype)


def call(land: pl.Landscape, theta: Tensor, x: Tensor, model: nn.Module | None = None) -> Tensor:
    state = land.layout.unflatten(theta)
    return torch.func.functional_call(model or land.model, state, (x,), tie_weights=True)


def close(got: Tensor, want: Tensor) -> None:
    """Equal to within 1e4 eps of float64, relative to the largest element."""
    scale = float(want.abs().max())
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e4 * 2.3e-16 * max(scale, 1e-8))


def product(land: pl.Landscape, matrix: str, v: Tensor, theta: Tensor | None = None) -> Tensor:
    ask = {
        "hessian": land.hvp,
        "gauss_newton": land.gauss_newton_product,
        "covariance": land.covariance_product,
    }
    return ask[matrix](v, theta)


WEIGHT = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
PER_OUTPUT = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)


def smooth_terms(o: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(o, y, weight=WEIGHT, label_smoothing=0.1, reduction="none")


def bce_terms(o: Tensor, y: Tensor) -> Tensor:
    terms = F.binary_cross_entropy_with_logits(
        o, y, weight=WEIGHT, pos_weight=PER_OUTPUT, reduction="none"
    )
    return terms.sum(1)


# name: (loss, targets, the summed terms of each sample, denominator)
LOSSES: dict[str, tuple[nn.Module, Tensor, Terms, float]] = {
    "plain": (
        nn.CrossEntropyLoss(),
        classes(),
        lambda o, y: F.cross_entropy(o, y, reduction="none"),
        12,
    ),
    "weighted": (
        nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1),
        classes(),
        smooth_terms,
        float(WEIGHT[classes()].sum()),
    ),
    "ignore": (
        nn.CrossEntropyLoss(ignore_index=1),
        classes(),
        lambda o, y: F.cross_entropy(o, y, ignore_index=1, reduction="none"),
        float((classes() != 1).sum()),
    ),
    "sum": (
        nn.CrossEntropyLoss(reduction="sum"),
        classes(),
        lambda o, y: F.cross_entropy(o, y, reduction="none"),
        1,
    ),
    "mse": (nn.MSELoss(), inputs()[:, :3], lambda o, y: ((o - y) ** 2).sum(1), 36),
    "bce": (
        nn.BCEWithLogitsLoss(weight=WEIGHT, pos_weight=PER_OUTPUT),
        (inputs()[:, :3] > 0).double(),
        bce_terms,
        36,
    ),
}


def dense(
    land: pl.Landscape, x: Tensor, y: Tensor, terms: Terms, denominator: float, theta: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(per-sample gradients (N, n), gradient (n,), the matrices) from their definitions."""
    n = len(x)
    outputs = call(land, theta, x).detach()
    jacobian = torch.func.jacrev(lambda t: call(land, t, x))(theta).reshape(-1, theta.numel())

    def of_outputs(o: Tensor) -> Tensor:
        return terms(o.view_as(outputs), y).sum() / denominator

    samples = torch.func.jacrev(lambda t: terms(call(land, t, x), y))(theta) * (n / denominator)
    curvature = torch.func.hessian(of_outputs)(outputs.reshape(-1))
    matrices = {
        "hessian": torch.func.hessian(lambda t: of_outputs(call(land, t, x)))(theta),
        "gauss_newton": jacobian.T @ curvature @ jacobian,
        "covariance": samples.T @ samples / n,
    }
    return samples, samples.mean(0), matrices


@pytest.mark.parametrize("name", LOSSES)
def test_every_derivative_of_a_known_loss_is_that_of_the_concatenated_data(name: str) -> None:
    loss, y, terms, denominator = LOSSES[name]
    x, model = inputs(), mlp()
    land = pl.Landscape(model, loss, batched(x, y), engine="torch")
    theta, v = land.theta + 0.1, rows(land)
    samples, gradient, matrices = dense(land, x, y, terms, denominator, theta)
    close(land.gradient(theta), gradient)
    close(land.per_sample_gradients(theta), samples)
    for matrix in MATRICES:
        for _ in range(2):  # built, then kept
            close(product(land, matrix, v, theta), v @ matrices[matrix])
        assert product(land, matrix, v, theta).dtype == torch.float64


def test_token_losses_count_positions_and_sum_them_within_a_sample() -> None:
    torch.manual_seed(0)
    model = nn.Conv1d(2, 3, 3, padding=1).double()
    x = inputs(12).reshape(6, 2, 4)
    y = classes(24).reshape(6, 4)
    loss = nn.CrossEntropyLoss(ignore_index=2)
    land = pl.Landscape(model, loss, [(x[:4], y[:4]), (x[4:], y[4:])], engine="torch")

    def terms(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(o, y, ignore_index=2, reduction="none").sum(1)

    samples, gradient, matrices = dense(land, x, y, terms, float((y != 2).sum()), land.theta)
    close(land.per_sample_gradients(), samples)
    close(land.gradient(), gradient)
    for matrix in MATRICES:
        close(product(land, matrix, rows(land)), rows(land) @ matrices[matrix])


def test_a_free_mean_over_samples_has_all_matrices() -> None:
    def free(o: Tensor, target: dict[str, Tensor]) -> Tensor:
        return ((o - target["y"]) ** 4).sum(1).mean()

    x, y = inputs(), inputs()[:, 1:]
    batches = [(a, {"y": b}) for a, b in batched(x, y)]
    land = pl.Landscape(mlp(), free, batches)
    samples, gradient, matrices = dense(
        land, x, y, lambda o, t: ((o - t) ** 4).sum(1), 12, land.theta
    )
    close(land.gradient(), gradient)
    close(land.per_sample_gradients(), samples)
    for matrix in MATRICES:
        close(product(land, matrix, rows(land)), rows(land) @ matrices[matrix])


def test_a_free_loss_that_writes_into_the_outputs_has_the_same_gauss_newton_matrix() -> None:
    x, y = inputs(), inputs()[:, 1:]
    plain = pl.Landscape(mlp(), lambda o, t: ((2 * o - t) ** 4).mean(), batched(x, y))
    writes = pl.Landscape(mlp(), lambda o, t: ((o.mul_(2) - t) ** 4).mean(), batched(x, y))
    for matrix in ("hessian", "gauss_newton"):
        close(product(writes, matrix, rows(plain)), product(plain, matrix, rows(plain)))


def test_an_objective_averages_hessians_by_weight() -> None:
    model, batches = mlp(), batched(inputs(), classes())
    land = pl.Landscape(
        model, objective=lambda m, b: F.cross_entropy(m(b[0]), b[1]) ** 2, data=batches,
        weight=[1, 3, 0.5],
    )  # fmt: skip

    def loss(theta: Tensor) -> Tensor:
        parts = [F.cross_entropy(call(land, theta, x), y) ** 2 for x, y in batches]
        return (parts[0] + 3 * parts[1] + 0.5 * parts[2]) / 4.5

    close(land.gradient(), torch.func.grad(loss)(land.theta))
    close(land.hvp(rows(land)), rows(land) @ torch.func.hessian(loss)(land.theta))


class Tied(nn.Module):
    """Weights used twice, a parameter not used, an empty one, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.unused, self.empty = nn.Parameter(torch.randn(2)), nn.Parameter(torch.empty(0, 3))
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("params", [None, ("b.*", "scale"), ("unused", "empty")])
def test_tied_unused_and_left_out_parameters_have_their_place(params: tuple[str] | None) -> None:
    torch.manual_seed(0)
    model, x, y = Tied().double(), inputs(), classes(count=4)
    land = pl.Landscape(model, "cross_entropy", batched(x, y), params=params, engine="torch")

    def terms(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(o, y, reduction="none")

    samples, gradient, matrices = dense(land, x, y, terms, 12, land.theta)
    close(land.gradient(), gradient)
    close(land.per_sample_gradients(), samples)
    for matrix in MATRICES:
        close(product(land, matrix, rows(land)), rows(land) @ matrices[matrix])


@pytest.mark.parametrize("bn", ["eval", "recompute", "batch"])
def test_batch_norm_statistics_are_held_fixed_or_the_batches_own(bn: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    model[1].running_mean.normal_()
    x, y = inputs(), classes()
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    land = pl.Landscape(model, "cross_entropy", batches, bn=bn)
    theta, v = land.theta + 0.1, rows(land)
    fixed = pl.Landscape(model, "cross_entropy", batches).model  # a module of its own below
    assert fixed is model
    reference = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=bn != "batch"), nn.Tanh(),
        nn.Linear(6, 3),
    ).double()  # fmt: skip
    reference.load_state_dict(model.state_dict(), strict=False)
    reference.load_state_dict(land.layout.unflatten(theta), strict=False)
    if bn == "recompute":
        torch.optim.swa_utils.update_bn([a for a, _ in batches], reference)
    reference.eval()

    def loss(t: Tensor) -> Tensor:
        parts = [F.cross_entropy(call(land, t, a, reference), b, reduction="sum") for a, b in batches]
        return sum(parts) / 12

    before = land.describe()
    close(land.gradient(theta), torch.func.grad(loss)(theta))
    close(land.hvp(v, theta), v @ torch.func.hessian(loss)(theta))
    assert land.describe() == before
    if bn != "batch":
        close(land.per_sample_gradients(theta).mean(0), land.gradient(theta))
        close(
            land.covariance_product(v, theta),
            v @ land.per_sample_gradients(theta).T @ land.per_sample_gradients(theta) / 12,
        )


class Counted(nn.Module):
    """Counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.passes = mlp(), [0]

    def forward(self, x: Tensor) -> Tensor:
        self.passes[0] += 1
        return self.inner(x)


@pytest.mark.parametrize("matrix", MATRICES)
def test_kept_graphs_do_no_forward_pass_and_give_the_numbers_of_rebuilt_ones(matrix: str) -> None:
    model, data = Counted(), batched(inputs(), classes())
    land = pl.Landscape(model, "cross_entropy", data, engine="torch")
    small = pl.Landscape(model, "cross_entropy", data, engine="torch", memory=100)
    none = pl.Landscape(model, "cross_entropy", data, engine="torch", memory=0)
    v = rows(land)

    def passes(ask: pl.Landscape, theta: Tensor | None = None) -> int:
        model.passes[0] = 0
        product(ask, matrix, v, theta)
        return model.passes[0]

    assert [passes(land), passes(land)] == [3, 0]
    assert [passes(land, land.theta + 1), passes(land, land.theta + 1)] == [3, 0]
    assert [passes(small), passes(small), passes(none), passes(none)] == [3, 3, 3, 3]
    want = product(land, matrix, v)
    assert torch.equal(product(land, matrix, v), want)
    assert torch.equal(product(small, matrix, v), want)
    assert torch.equal(product(none, matrix, v), want)
    one_by_one = torch.cat([product(land, matrix, row[None]) for row in v])
    assert torch.equal(one_by_one, want)


def test_graphs_of_several_matrices_are_kept_while_they_fit_together() -> None:
    model, data = Counted(), batched(inputs(), classes())
    land = pl.Landscape(model, "cross_entropy", data, engine="torch")
    for matrix in MATRICES * 2:
        product(land, matrix, rows(land))
    kept = land._torch._derivatives._kept
    assert list(kept) == list(MATRICES)
    room = max(kept["hessian"].bytes, kept["gauss_newton"].bytes)
    tight = pl.Landscape(model, "cross_entropy", data, engine="torch", memory=room)
    for matrix in ("hessian", "gauss_newton"):
        product(tight, matrix, rows(land))
        assert list(tight._torch._derivatives._kept) == [matrix]


class Saves(torch.autograd.Function):
    """The identity; its graph keeps a tensor of 1000 bytes, and the same one again."""

    @staticmethod
    def forward(ctx: object, x: Tensor, alive: list[weakref.ref]) -> Tensor:
        extra = torch.zeros(125, dtype=torch.float64)
        alive.append(weakref.ref(extra.untyped_storage()))
        ctx.save_for_backward(extra, extra[:5])
        return x.clone()

    @staticmethod
    def backward(ctx: object, g: Tensor) -> tuple[Tensor, None]:
        return g.clone(), None


def test_bytes_count_each_storage_once_and_neither_parameters_nor_data() -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return Saves.apply(x @ self.w, [])

    def bytes_of(model: nn.Module) -> int:
        land = pl.Landscape(model, lambda o, y: o.sum(), [(inputs(), inputs())])
        land.gauss_newton_product(rows(land))
        return land._torch._derivatives._kept["gauss_newton"].bytes

    assert bytes_of(Line()) == 1000


def test_graphs_die_with_their_theta_and_with_too_little_memory() -> None:
    alive: list[weakref.ref] = []

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return Saves.apply(torch.tanh(x @ self.w), alive)

    def living() -> int:
        return sum(ref() is not None for ref in alive)

    gc.disable()
    try:
        land = pl.Landscape(Line(), "mse", batched(inputs(), inputs()[:, 1:]), engine="torch")
        v = rows(land)
        land.hvp(v)
        assert living() == 3
        land.hvp(v, land.theta + 1)
        assert living() == 3
        land.hvp(v)
        small = pl.Landscape(Line(), "mse", batched(inputs(), inputs()[:, 1:]), memory=1500)
        small.hvp(v)
        assert living() == 3
    finally:
        gc.enable()
