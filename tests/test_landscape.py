"""The Landscape as a user meets it: values, derivatives, data, errors, and what stays untouched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pylandscape as pl

ENGINES = ["native", "torch"]


def mlp(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, classes))


def samples(n: int = 30, classes: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=g), torch.randint(0, classes, (n,), generator=g)


class Quadratic(nn.Module):
    """L(theta) = 1/2 theta^T A theta as an objective."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(-1, 1, len(a), dtype=a.dtype))
        self.register_buffer("a", a)

    def forward(self) -> Tensor:
        return 0.5 * self.theta @ self.a @ self.theta


def quadratic() -> tuple[pl.Landscape, Tensor]:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=g, dtype=torch.float64)
    a = root + root.T
    model = Quadratic(a)
    land = pl.Landscape(model, objective=lambda m, batch: m(), data=[torch.zeros(1)])
    return land, a


def test_a_quadratic_is_exact_in_value_gradient_and_hessian() -> None:
    land, a = quadratic()
    theta, d = land.theta, torch.randn(2, 6, dtype=torch.float64)
    c = np.random.default_rng(0).normal(size=(9, 2))
    points = theta + torch.as_tensor(c) @ d
    want = 0.5 * torch.einsum("pi,ij,pj->p", points, a, points)
    np.testing.assert_allclose(land.losses(c, d), want, rtol=1e-12)
    torch.testing.assert_close(land.gradient(), a @ theta)
    torch.testing.assert_close(land.hessian(), a)
    v = torch.randn(6, dtype=torch.float64)
    np.testing.assert_allclose(land.linear_operator() @ v.numpy(), a @ v, rtol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_and_hvp_match_autograd_in_float64(engine: str) -> None:
    model, (x, y) = mlp().double(), samples()
    land = pl.Landscape(model, "cross_entropy", (x.double(), y), engine=engine)

    def loss(theta: Tensor) -> Tensor:
        state = land.layout.unflatten(theta)
        return F.cross_entropy(torch.func.functional_call(model.eval(), state, (x.double(),)), y)

    gradient = torch.autograd.functional.jacobian(loss, land.theta)
    hessian = torch.autograd.functional.hessian(loss, land.theta)
    torch.testing.assert_close(land.gradient(), gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(land.hessian(), hessian, rtol=1e-11, atol=1e-13)
    v = torch.randn(land.n_params, dtype=torch.float64)
    torch.testing.assert_close(land.hvp(v), hessian @ v, rtol=1e-11, atol=1e-13)
    moved = land.theta + 0.1
    torch.testing.assert_close(
        land.gradient(moved),
        torch.autograd.functional.jacobian(loss, moved),
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]), label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=1),
        nn.CrossEntropyLoss(reduction="sum"),
    ],
    ids=["plain", "weighted", "ignore", "sum"],
)
def test_ragged_batches_give_the_loss_of_the_concatenated_data(
    engine: str, loss: nn.Module
) -> None:
    model, (x, y) = mlp(), samples(30)
    batches = [(x[:17], y[:17]), (x[17:19], y[17:19]), (x[19:], y[19:])]
    land = pl.Landscape(model, loss, batches, engine=engine)
    want = loss(model.eval()(x), y).item()
    assert land.loss() == pytest.approx(want, rel=1e-6)
    assert land.model_loss() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_accuracy_and_callable_metrics_come_from_the_same_pass(engine: str) -> None:
    model, (x, y) = mlp().eval(), samples()

    def worst(outputs: Tensor, target: Tensor) -> float:
        return F.cross_entropy(outputs, target, reduction="none").max().item()

    land = pl.Landscape(model, "cross_entropy", [(x[:20], y[:20]), (x[20:], y[20:])], engine=engine)
    d = torch.randn(1, land.n_params)
    values = land.evaluate([[0.0], [0.5]], d, metrics=("accuracy", "loss", worst))
    outputs = model(x)
    assert list(values) == ["accuracy", "loss", "worst"]
    assert values["accuracy"][0] == pytest.approx((outputs.argmax(1) == y).double().mean().item())
    assert values["worst"][0] == pytest.approx(worst(outputs, y), rel=1e-5)
    np.testing.assert_allclose(values["loss"], land.losses([[0.0], [0.5]], d), rtol=0)


def test_free_losses_and_objectives_average_batches_by_size_or_weight() -> None:
    model, (x, y) = mlp().eval(), samples()
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]

    def free(outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(outputs, target) ** 2

    parts = [free(model(a), b).item() for a, b in batches]
    land = pl.Landscape(model, free, batches)
    assert "free" in str(land.engine_report())
    assert land.loss() == pytest.approx((20 * parts[0] + 10 * parts[1]) / 30)
    dicts = [{"x": a, "y": b} for a, b in batches]
    by_size = pl.Landscape(model, objective=lambda m, b: free(m(b["x"]), b["y"]), data=dicts)
    assert by_size.loss() == pytest.approx((20 * parts[0] + 10 * parts[1]) / 30)
    weighted = pl.Landscape(
        model, objective=lambda m, b: free(m(b["x"]), b["y"]), data=dicts, weight=[1, 3]
    )
    assert weighted.loss() == pytest.approx((parts[0] + 3 * parts[1]) / 4)


def test_a_shuffled_loader_is_read_once_and_leaves_the_random_state() -> None:
    model, (x, y) = mlp(), samples()
    loader = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True)
    state = torch.get_rng_state()
    land = pl.Landscape(model, "cross_entropy", loader)
    assert land.loss() == land.loss() == pytest.approx(land.model_loss(), rel=1e-6)
    assert torch.equal(state, torch.get_rng_state())
    assert land.dataset.size == 30


class Odd(nn.Module):
    """0-dim, empty and non-contiguous parameters, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.weight = nn.Parameter(torch.randn(4, 3).T)
        self.unused = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(x, self.weight)


def test_odd_parameters_keep_their_place() -> None:
    model, (x, y) = Odd(), samples()
    assert not model.weight.is_contiguous()
    land = pl.Landscape(model, "cross_entropy", (x, y))
    assert land.n_params == 1 + 0 + 12 + 2
    assert land.loss() == pytest.approx(land.model_loss(), rel=1e-6)
    d = land.layout.flatten(dict(model.named_parameters()), torch.float32, "cpu")
    # theta + 1 theta doubles scale and weight: four times the outputs.
    want = F.cross_entropy(4 * model(x), y).item()
    assert land.losses([[1.0]], d)[0] == pytest.approx(want, rel=1e-6)
    gradient = land.gradient()
    assert torch.equal(gradient[-2:], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_run_with_a_float32_theta(dtype: torch.dtype) -> None:
    model, (x, y) = mlp().to(dtype), samples()
    land = pl.Landscape(model, "cross_entropy", (x.to(dtype), y))
    assert land.theta.dtype == torch.float32
    assert land.engine == "torch"
    assert land.loss() == pytest.approx(land.model_loss(), rel=1e-6)


def test_integer_inputs_and_several_inputs_run() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(10, 4), nn.Linear(4, 3)

        def forward(self, tokens: Tensor, gain: Tensor) -> Tensor:
            return self.out(self.table(tokens).mean(1) * gain)

    tokens, gain = torch.randint(0, 10, (8, 5)), torch.rand(8, 1)
    y = torch.randint(0, 3, (8,))
    model = Two()
    as_tuple = pl.Landscape(model, "cross_entropy", [((tokens, gain), y)])
    as_dict = pl.Landscape(model, "cross_entropy", [({"tokens": tokens, "gain": gain}, y)])
    want = F.cross_entropy(model(tokens, gain), y).item()
    assert as_tuple.loss() == as_dict.loss() == pytest.approx(want, rel=1e-6)


def _bn_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    model[1].running_mean.normal_()
    return model


def test_batch_norm_modes_match_a_loop_by_hand() -> None:
    model, (x, y) = _bn_model().eval(), samples()
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]
    lands = {
        bn: pl.Landscape(model, "cross_entropy", batches, bn=bn)
        for bn in ("eval", "recompute", "batch")
    }
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert lands["eval"].loss() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-6)
    recomputed = _bn_model()
    torch.optim.swa_utils.update_bn([a for a, _ in batches], recomputed)
    want = F.cross_entropy(recomputed.eval()(x), y).item()
    assert lands["recompute"].loss() == pytest.approx(want, rel=1e-6)
    own = _bn_model().train()
    parts = [F.cross_entropy(own(a), b).item() for a, b in batches]
    assert lands["batch"].loss() == pytest.approx((20 * parts[0] + 10 * parts[1]) / 30, rel=1e-6)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def _state(model: nn.Module) -> list[object]:
    return [
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [p.grad for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        torch.get_rng_state(),
    ]


def _same(a: list[object], b: list[object]) -> bool:
    return (
        all(torch.equal(a[0][k], b[0][k]) for k in a[0])
        and a[1:4] == b[1:4]
        and torch.equal(a[4], b[4])
    )


@pytest.mark.parametrize("failure", [None, ValueError("boom"), KeyboardInterrupt()])
def test_the_model_and_the_random_state_are_untouched(failure: BaseException | None) -> None:
    model, (x, y) = _bn_model().train(), samples()
    model[0].eval()  # a mode of its own
    armed = [False]

    def objective(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        torch.rand(3)
        if failure is not None and armed[0]:
            raise failure
        return F.cross_entropy(m(batch[0]), batch[1])

    before = _state(model)
    for bn in ("eval", "batch", "recompute"):
        armed[0] = False
        land = pl.Landscape(model, objective=objective, data=[(x, y)], bn=bn)
        armed[0] = True
        d = torch.randn(1, land.n_params, generator=torch.Generator().manual_seed(0))
        if failure is None:
            land.losses(np.zeros((5, 1)), d)
            land.gradient()
            land.hvp(d)
        else:
            with pytest.raises(type(failure)):
                land.losses(np.zeros((5, 1)), d)
            with pytest.raises(type(failure)):
                land.gradient()
        assert _same(before, _state(model))


def test_later_training_does_not_move_the_landscape() -> None:
    model, (x, y) = _bn_model().eval(), samples()
    land = pl.Landscape(model, "cross_entropy", (x, y))
    before = land.loss()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
        model[1].running_mean.add_(3.0)
    assert land.loss() == before


BAD = {
    "model: expected a torch.nn.Module": lambda x, y: pl.Landscape("m", "mse", (x, y)),
    "loss, objective: expected exactly one": lambda x, y: pl.Landscape(mlp(), data=(x, y)),
    "loss: expected one of cross_entropy": lambda x, y: pl.Landscape(mlp(), "hinge", (x, y)),
    "loss: expected reduction": lambda x, y: pl.Landscape(
        mlp(), nn.CrossEntropyLoss(reduction="none"), (x, y)
    ),
    "loss: expected a scalar, got shape": lambda x, y: pl.Landscape(
        mlp(), lambda a, b: a.sum(1), (x, y)
    ),
    "data: expected at least one batch": lambda x, y: pl.Landscape(mlp(), "mse", []),
    "data: expected at least one sample": lambda x, y: pl.Landscape(mlp(), "mse", (x[:0], y[:0])),
    "data: batch 0 has 30 inputs but 29": lambda x, y: pl.Landscape(
        mlp(), "cross_entropy", (x, y[:29])
    ),
    "data: the model and its loss could not be run.*mat1": lambda x, y: pl.Landscape(
        mlp(), "cross_entropy", (x[:, :3], y)
    ),
    "bn: expected one of eval, recompute, batch, interpolate, got 'own'": lambda x, y: pl.Landscape(
        mlp(), "cross_entropy", (x, y), bn="own"
    ),
    "engine: expected one of": lambda x, y: pl.Landscape(
        mlp(), "cross_entropy", (x, y), engine="jax"
    ),
    "dtype: expected torch.float32 or": lambda x, y: pl.Landscape(
        mlp(), "cross_entropy", (x, y), dtype=torch.float16
    ),
    "params: 'head.*' matches no parameter": lambda x, y: pl.Landscape(
        mlp(), "cross_entropy", (x, y), params=("head.*",)
    ),
    "weight: expected only together": lambda x, y: pl.Landscape(
        mlp(), "cross_entropy", (x, y), weight=[1]
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message: str) -> None:
    x, y = samples()
    with pytest.raises(pl.InvalidArgument, match=message):
        BAD[message](x, y)


def test_non_finite_parameters_are_named() -> None:
    model, (x, y) = mlp(), samples()
    with torch.no_grad():
        model[3].bias[1] = torch.nan
    with pytest.raises(pl.InvalidArgument, match=r"'3.bias' has 1 that are not"):
        pl.Landscape(model, "cross_entropy", (x, y))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_says_so() -> None:
    x, y = samples()
    with pytest.raises(pl.InvalidArgument, match="sees no CUDA device"):
        pl.Landscape(mlp(), "cross_entropy", (x, y), device="cuda")


def test_data_on_another_device_is_named() -> None:
    x, y = samples()
    with pytest.raises(pl.InvalidArgument, match=r"data: expected tensors on cpu.*got meta"):
        pl.Landscape(mlp(), "cross_entropy", (x.to("meta"), y.to("meta")))


@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_shapes_are_named(engine: str) -> None:
    x, y = samples()
    land = pl.Landscape(mlp(), "cross_entropy", (x, y), engine=engine)
    n = land.n_params
    d = torch.randn(2, n)
    with pytest.raises(pl.LayoutMismatch, match=rf"directions.*\(k, {n}\).*got \(2, {n - 1}\)"):
        land.losses(np.zeros((1, 2)), d[:, 1:])
    with pytest.raises(pl.InvalidArgument, match=r"coefficients: expected shape \(G, 2\)"):
        land.losses(np.zeros((1, 3)), d)
    with pytest.raises(pl.InvalidArgument, match=rf"points: expected shape \(P, {n}\)"):
        land.losses(points=torch.zeros(3, n + 1))
    with pytest.raises(pl.InvalidArgument, match="either points or coefficients"):
        land.losses(np.zeros((1, 2)), d, points=torch.zeros(3, n))
    with pytest.raises(pl.InvalidArgument, match=r"directions.*finite"):
        land.losses(np.zeros((1, 2)), d * torch.nan)
    with pytest.raises(pl.LayoutMismatch, match="theta: expected"):
        land.loss(torch.zeros(n + 2))
    with pytest.raises(pl.InvalidArgument, match="v: expected shape"):
        land.hvp(torch.zeros(n + 2))
    with pytest.raises(pl.InvalidArgument, match="metrics: expected 'loss'"):
        land.evaluate(np.zeros((1, 2)), d, metrics=("f1",))


def test_accuracy_of_a_regression_is_refused() -> None:
    x, _ = samples()
    land = pl.Landscape(mlp(), "mse", (x, torch.randn(30, 3)))
    with pytest.raises(pl.InvalidArgument, match="'accuracy' needs one of"):
        land.evaluate(np.zeros((1, 1)), torch.zeros(1, land.n_params), metrics=("accuracy",))


def test_its_text_says_what_it_is():
    model = torch.nn.Linear(3, 2)
    data = torch.randn(5, 3), torch.randint(0, 2, (5,))
    text = repr(pl.Landscape(model, "cross_entropy", data))
    expected = "Landscape of Linear: 8 parameters, cross_entropy over 5 samples, float32 on cpu"
    assert expected in text
    own = pl.Landscape(model, objective=lambda m, b: m(b[0]).square().mean(), data=[data])
    assert "8 parameters" in repr(own)


class NextToken(nn.Module):
    """A model that computes its own loss, as those of transformers do."""

    def __init__(self, shifts: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out, self.shifts = nn.Embedding(7, 5), nn.Linear(5, 7), shifts

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        logits = self.out(torch.tanh(self.embed(input_ids)))
        if labels is None:
            return {"loss": None, "logits": logits}
        x, y = (logits[:, :-1], labels[:, 1:]) if self.shifts else (logits, labels)
        loss = nn.functional.cross_entropy(x.reshape(-1, 7), y.reshape(-1))
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("shifts", [True, False])
@pytest.mark.parametrize("padded", [0, 2])
def test_a_models_own_loss_is_that_of_all_tokens_that_count(shifts: bool, padded: int) -> None:
    g = torch.Generator().manual_seed(1)
    batches = []
    for n, t in ((4, 6), (2, 9)):
        ids = torch.randint(0, 7, (n, t), generator=g)
        labels = ids.clone()
        labels[0, t - padded :] = -100
        batches.append({"input_ids": ids, "labels": labels})
    model = NextToken(shifts)
    land = pl.Landscape(model, data=batches)
    total = count = 0.0
    for batch in batches:
        tokens = (batch["labels"][:, int(shifts) :] != -100).sum().item()
        total += model(**batch)["loss"].item() * tokens
        count += tokens
    assert land.loss() == pytest.approx(total / count, rel=1e-5)
    assert land.gradient().isfinite().all()
    with pytest.raises(pl.InvalidArgument, match="its loss is None: the batch has no labels"):
        pl.Landscape(model, data=[{"input_ids": batches[0]["input_ids"]}])


def test_a_dataset_is_read_sample_by_sample_in_its_order() -> None:
    class Pairs(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return 1003

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            if i >= 1003:
                raise IndexError(i)
            return torch.tensor([i / 1003, 1.0]), torch.tensor([float(i % 3)])

    data, model = Pairs(), nn.Linear(2, 1)
    before = torch.get_rng_state()
    land = pl.Landscape(model, "mse", data)
    assert torch.equal(torch.get_rng_state(), before)
    x, y = (torch.stack(parts) for parts in zip(*(data[i] for i in range(1003)), strict=True))
    assert land.loss() == pytest.approx(nn.functional.mse_loss(model(x), y).item(), rel=1e-6)
    assert land.dataset.size == 1003
