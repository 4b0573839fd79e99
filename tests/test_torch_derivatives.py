"""Derivatives of the torch engine against dense float64 references, and what they leave behind."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import ClassVar

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
    atol = 1e4 * torch.finfo(torch.float64).eps * max(float(want.detach().abs().max()), 1e-8)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)


def product(land: pl.Landscape, matrix: str, v: Tensor, theta: Tensor | None = None) -> Tensor:
    ask = {
        "hessian": land.hvp,
        "gauss_newton": land.gauss_newton_product,
        "covariance": land.covariance_product,
    }
    return ask[matrix](v, theta)


def hessian_of(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    # Not jacrev(jacrev(f)): in torch 2.13 the vmap inside is wrong for batch norm's own statistics.
    return lambda t: torch.autograd.functional.hessian(f, t)


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
    curvature = hessian_of(of_outputs)(outputs.reshape(-1))
    matrices = {
        "hessian": hessian_of(lambda t: of_outputs(call(land, t, x)))(theta),
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
    close(land.hvp(rows(land)), rows(land) @ hessian_of(loss)(land.theta))


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
        outputs = [call(land, t, a, reference) for a, _ in batches]
        return F.cross_entropy(torch.cat(outputs), y)

    before = land.describe()
    close(land.gradient(theta), torch.func.grad(loss)(theta))
    close(land.hvp(v, theta), v @ hessian_of(loss)(theta))
    assert land.describe() == before
    if bn != "batch":
        close(land.per_sample_gradients(theta).mean(0), land.gradient(theta))
        close(
            land.covariance_product(v, theta),
            v @ land.per_sample_gradients(theta).T @ land.per_sample_gradients(theta) / 12,
        )


class Counted(nn.Module):
    """Counts the forward passes of all its copies."""

    passes: ClassVar[list[int]] = [0]

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

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
    kept = land.eager._derivatives._kept
    assert list(kept) == list(MATRICES)
    room = max(kept["hessian"].bytes, kept["gauss_newton"].bytes)
    tight = pl.Landscape(model, "cross_entropy", data, engine="torch", memory=room)
    for matrix in ("hessian", "gauss_newton"):
        product(tight, matrix, rows(land))
        assert list(tight.eager._derivatives._kept) == [matrix]


class Saves(torch.autograd.Function):
    """The identity; its graph keeps a tensor of 1000 bytes, and the same one again."""

    @staticmethod
    def forward(ctx: object, x: Tensor, alive: threading.Semaphore) -> Tensor:
        extra = torch.zeros(125, dtype=torch.float64)
        alive.release()  # a count that no one sets back
        weakref.finalize(extra.untyped_storage(), alive.acquire, False)
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
            return Saves.apply(x @ self.w, threading.Semaphore(0))

    def bytes_of(model: nn.Module) -> int:
        land = pl.Landscape(model, lambda o, y: o.sum(), [(inputs(), inputs())])
        land.gauss_newton_product(rows(land))
        return land.eager._derivatives._kept["gauss_newton"].bytes

    assert bytes_of(Line()) == 1000


def test_graphs_die_with_their_theta_and_with_too_little_memory() -> None:
    alive = threading.Semaphore(0)

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(living())
            return Saves.apply(torch.tanh(x @ self.w), alive)

    seen: list[int] = []

    def living() -> int:
        return alive._value

    gc.disable()
    try:
        land = pl.Landscape(Line(), "mse", batched(inputs(), inputs()[:, 1:]), engine="torch")
        v = rows(land)
        land.hvp(v)
        assert living() == 3
        land.hvp(v, land.theta + 1)
        assert living() == 3
        land.hvp(v)
        kept = land.eager._derivatives._kept["hessian"].bytes
        data = batched(inputs(), inputs()[:, 1:])
        small = pl.Landscape(Line(), "mse", data, engine="torch", memory=kept - 1)
        for most in (2, 0):  # three are too many, and later none is kept
            seen.clear()
            small.hvp(v)
            assert max(seen) == 3 + most
            assert living() == 3
    finally:
        gc.enable()


def test_tensors_overwritten_after_they_were_saved_are_an_error_not_a_wrong_number() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            h = torch.sigmoid(self.inner(x))
            h.add_(1)  # the derivative of the sigmoid needs what h was
            return h

    land = pl.Landscape(Overwrites(), "mse", (inputs(), inputs()[:, 1:]), engine="torch")
    for ask in (land.gradient, lambda: land.hvp(rows(land))):
        with pytest.raises(RuntimeError, match=r"modified by an in-?place operation"):
            ask()


class Attention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.out = kind, nn.Linear(4, 2)
        self.mix = nn.Linear(4, 12)
        if kind == "layer":
            self.mix = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        elif kind == "module":
            self.mix = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "layer":
            h = self.mix(x)
        elif self.kind == "module":
            h = self.mix(x, x, x, need_weights=False)[0]
        else:
            q, k, v = self.mix(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
            h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(h.mean(1))


def attention(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    model = Attention(kind).to(dtype)
    if kind == "layer":
        model.mix.activation = F.gelu  # smooth: finite differences see no kinks
    x = torch.randn(8, 5, 4, dtype=dtype)
    return model, [(x[:5], classes(8, 2)[:5]), (x[5:], classes(8, 2)[5:])]


MATH = r"scaled_dot_product_attention runs on its math backend.*the numbers are the same"


@pytest.mark.parametrize("kind", ["plain", "module", "layer"])
def test_attention_has_second_derivatives_and_says_once_how(kind: str) -> None:
    model, data = attention(kind)
    land = pl.Landscape(model, "cross_entropy", data, engine="torch")
    before = backends()
    with pytest.warns(UserWarning, match=MATH) as record:
        hv = land.hvp(rows(land))
    assert [w.filename for w in record] == [__file__]
    h, v = 1e-5, rows(land)
    steps = [(8, 1), (-8, -1), (-1, 2), (1, -2)]  # fourth order: error h^4
    want = torch.stack(
        [sum(c * land.gradient(land.theta + s * h * u) for c, s in steps) / (12 * h) for u in v]
    )
    torch.testing.assert_close(hv, want, rtol=0, atol=1e-9 * float(want.abs().max()))
    land.hvp(v, land.theta + 1)  # warnings are errors: none any more
    land.gauss_newton_product(v)
    land.covariance_product(v)
    assert backends() == before
    g = land.per_sample_gradients()
    close(g.mean(0), land.gradient())
    close(land.covariance_product(v), v @ g.T @ g / 8)
    other = pl.Landscape(model, "cross_entropy", data, engine="torch")
    other.gradient()  # needs no second derivative
    with pytest.warns(UserWarning, match=MATH):
        other.gauss_newton_product(v)


def backends() -> list[bool]:
    cuda = torch.backends.cuda
    return [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()]


class Cut(nn.Module):
    """Does part of its forward pass anew on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        def part(x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x)))

        return checkpoint(part, x, use_reentrant=False)


def test_checkpoints_recompute_at_theta_not_at_the_models_parameters() -> None:
    cut, x, y = Cut().double(), inputs(), classes()
    plain = nn.Sequential(cut.first, nn.Tanh(), cut.last)
    lands = [pl.Landscape(m, "cross_entropy", (x, y), engine="torch") for m in (cut, plain)]
    theta, v = lands[0].theta + 0.3, rows(lands[0])
    close(lands[0].gradient(theta), lands[1].gradient(theta))
    close(lands[0].per_sample_gradients(theta), lands[1].per_sample_gradients(theta))
    for matrix in MATRICES:
        for _ in range(2):
            close(product(lands[0], matrix, v, theta), product(lands[1], matrix, v, theta))


class Mixed(nn.Module):
    """Samples of a batch depend on each other, or must be at least two."""

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.inner, self.strict = mlp(), strict

    def forward(self, x: Tensor) -> Tensor:
        if self.strict and len(x) < 2:
            raise ValueError("expected at least two samples")
        return self.inner(x if self.strict else x - x.mean(0))


@pytest.mark.parametrize("strict", [False, True])
def test_per_sample_gradients_are_those_within_the_batch(strict: bool) -> None:
    model, x, y = Mixed(strict), inputs(), classes()
    land = pl.Landscape(model, "cross_entropy", [(x[:8], y[:8]), (x[8:], y[8:])], engine="torch")

    def terms(t: Tensor) -> Tensor:
        outputs = torch.cat([call(land, t, x[:8]), call(land, t, x[8:])])
        return F.cross_entropy(outputs, y, reduction="none")

    want = torch.autograd.functional.jacobian(terms, land.theta)
    close(land.per_sample_gradients(), want)
    close(land.covariance_product(rows(land)), rows(land) @ want.T @ want / 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_gives_the_same_matrices_to_its_rounding(dtype: torch.dtype) -> None:
    x, y = inputs(), classes()
    exact = pl.Landscape(mlp(), "cross_entropy", batched(x, y), engine="torch")
    land = pl.Landscape(mlp().to(dtype), "cross_entropy", batched(x.to(dtype), y), engine="torch")
    assert land.per_sample_gradients().dtype == land.dtype == torch.float32
    for matrix in MATRICES:
        got, want = (product(a, matrix, rows(exact)) for a in (land, exact))
        scale = 30 * torch.finfo(dtype).eps * float(want.abs().max())
        torch.testing.assert_close(got, want, rtol=0, atol=scale)


def test_sparse_embeddings_and_inference_mode_have_derivatives() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3)).double()
    tokens, y = torch.randint(0, 10, (12, 3)), classes()
    land = pl.Landscape(model, "cross_entropy", (tokens, y))
    want = hessian_of(lambda t: F.cross_entropy(call(land, t, tokens), y))
    land.model[0].sparse = False  # for the reference
    dense_hessian = want(land.theta)
    land.model[0].sparse = True
    with torch.inference_mode():
        close(land.hvp(rows(land)), rows(land) @ dense_hessian)
        close(land.per_sample_gradients().mean(0), land.gradient())
    assert model[0].sparse
    assert land.model[0].sparse


@pytest.mark.parametrize("failure", [ValueError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [*MATRICES, "gradient", "per_sample_gradients"])
def test_failures_and_interrupts_leave_everything_as_it_was(
    call: str, failure: BaseException
) -> None:
    left = threading.Semaphore(0)  # passes until it fails, which no one sets back
    fails = threading.Event()

    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
            self.attention = attention("plain")[0]

        def forward(self, x: Tensor) -> Tensor:
            if fails.is_set() and not left.acquire(blocking=False):
                raise failure
            torch.rand(2)
            return self.net(x) + self.attention(x[:, None].double()).sum(1, keepdim=True)

    model, x, y = Failing().train(), inputs(), classes()
    model.double()
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    land = pl.Landscape(model, "cross_entropy", batches, bn="recompute", engine="torch")

    def ask(theta: Tensor | None = None) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if call in MATRICES:
                return product(land, call, rows(land), theta)
            return getattr(land, call)(theta)

    def snapshot() -> list[object]:
        return [
            [m.training for m in (*model.modules(), *land.model.modules())],
            [p.grad for p in (*model.parameters(), *land.model.parameters())],
            [p.requires_grad for p in model.parameters()],
            [id(t) for t in (*model.parameters(), *model.buffers())],
            [t.tolist() for m in (model, land.model) for t in m.state_dict().values()],
            torch.get_rng_state().tolist(),
            backends(),
            torch.is_grad_enabled(),
        ]

    before = snapshot()
    want = ask()
    assert snapshot() == before
    for count in (0, 1, 2, 3):  # statistics, then the pass itself
        fails.set()
        if count:
            left.release(count)
        with pytest.raises(type(failure)):
            ask(land.theta + 1)
        assert snapshot() == before
    fails.clear()
    assert torch.equal(ask(), want)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), x


def test_what_a_matrix_needs_is_named_where_it_is_missing() -> None:
    data = batched(inputs(), classes())
    objective = pl.Landscape(
        mlp(), objective=lambda m, b: F.cross_entropy(m(b[0]), b[1]), data=data
    )
    v = rows(objective)
    with pytest.raises(pl.InvalidArgument, match=r"'gauss_newton'.*an objective, which has no out"):
        objective.gauss_newton_product(v)
    with pytest.raises(pl.InvalidArgument, match=r"covariance: expected a loss.*got an objective"):
        objective.covariance_product(v)
    with pytest.raises(pl.InvalidArgument, match=r"per_sample_gradients: .*got an objective"):
        objective.per_sample_gradients()

    torch.manual_seed(0)
    norm = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    batch = pl.Landscape(
        norm, "cross_entropy", [(inputs()[:8], classes()[:8])], bn="batch", engine="torch"
    )
    for ask in (batch.per_sample_gradients, lambda: batch.covariance_product(rows(batch))):
        with pytest.raises(pl.InvalidArgument, match="bn='batch', where a sample's loss depends"):
            ask()
    assert batch.gauss_newton_product(rows(batch)).shape == rows(batch).shape

    square = pl.Landscape(mlp(), lambda o, y: F.cross_entropy(o, y) ** 2, data)
    square.gauss_newton_product(v)
    with pytest.raises(pl.InvalidArgument, match=r"loss: per-sample.*the mean of its samples'"):
        square.covariance_product(v)

    pair = pl.Landscape(TwoOutputs(), lambda o, y: F.cross_entropy(o[0], y), data)
    pair.hvp(v)
    with pytest.raises(pl.InvalidArgument, match=r"gauss_newton: .*one tensor, got tuple"):
        pair.gauss_newton_product(v)

    flat = pl.Landscape(mlp().append(nn.Flatten(0)), lambda o, y: (o**2).mean(), data)
    with pytest.raises(pl.InvalidArgument, match=r"one row of outputs.* 7 samples.*shape \(21,\)"):
        flat.per_sample_gradients()


@pytest.mark.parametrize("memory", [-1, 1.5, True, "1G"])
def test_memory_is_a_number_of_bytes(memory: object) -> None:
    with pytest.raises(pl.InvalidArgument, match="memory: expected a number of bytes"):
        pl.Landscape(mlp(), "cross_entropy", (inputs(), classes()), memory=memory)
    land = pl.Landscape(mlp(), "cross_entropy", (inputs(), classes()))
    assert land.memory == 2 << 30
