"""The torch engine answers for the module as it is, whatever its forward pass does."""

from __future__ import annotations

import copy
import functools
import itertools
import random
import threading
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.results.sanity import check

X = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
Y = torch.randn(8, 1, generator=torch.Generator().manual_seed(2))
CLASSES = torch.randint(0, 2, (8,), generator=torch.Generator().manual_seed(3))


def torch_land(model: nn.Module, loss: Any = None, data: Any = None, **how: Any) -> pl.Landscape:
    if loss is None and "objective" not in how:
        loss = nn.MSELoss()
    return pl.Landscape(model, loss, (X, Y) if data is None else data, engine="torch", **how)


def reference(
    model: nn.Module, theta: Tensor, f: Callable[[nn.Module], Tensor], v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and Hessian product at theta of a fresh copy moved in place."""
    # A deep copy's functions still hold the original.
    own = Net(model.how) if getattr(model, "how", "") == "closure" else copy.deepcopy(model)
    own.eval()
    params = list(own.parameters())
    with torch.no_grad():
        nn.utils.vector_to_parameters(theta, params)
    value = f(own)
    grads = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
    g = torch.cat(
        [
            (torch.zeros_like(p) if a is None else a).reshape(-1)
            for p, a in zip(params, grads, strict=True)
        ]
    )
    h = torch.zeros_like(g)
    if g.requires_grad:
        rows = torch.autograd.grad(g @ v, params, allow_unused=True)
        h = torch.cat(
            [
                (torch.zeros_like(p) if a is None else a).reshape(-1)
                for p, a in zip(params, rows, strict=True)
            ]
        )
    return value.detach(), g.detach(), h


def agree(
    land: pl.Landscape, model: nn.Module, f: Callable[[nn.Module], Tensor] | None = None
) -> None:
    """The landscape has the numbers of the plain loop at a moved point, also asked again."""
    f = f or (lambda m: F.mse_loss(m(X.clone()), Y))
    g = torch.Generator().manual_seed(4)
    v = torch.randn(land.n_params, generator=g)
    points = [land.theta + 0.3 * torch.randn(land.n_params, generator=g) for _ in range(2)]
    for theta in (points[0], points[1], points[0]):
        value, gradient, product = reference(model, theta, f, v)
        assert land.loss(theta) == pytest.approx(float(value), rel=1e-5, abs=1e-6)
        torch.testing.assert_close(land.gradient(theta).float(), gradient, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(land.hvp(v, theta).float(), product, rtol=1e-4, atol=1e-5)


class Net(nn.Module):
    def __init__(self, how: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.out, self.how = nn.Linear(2, 3), nn.Linear(3, 1), how
        self.h, self.seen = torch.zeros(8, 3), []
        self.register_buffer("b", torch.zeros(8, 3))
        self.register_buffer("low", torch.empty(0))
        self.ws = [self.fc.weight]
        self.scale = lambda x: x * self.out.weight.sum()
        if how == "hook":
            self.fc.register_forward_hook(self.hooked)

    def hooked(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + self.ws[0].sum()

    def forward(self, x: Tensor) -> Tensor:
        how = self.how
        if how == "writes into its input":
            x -= 1.0
        elif how == "activates its input":
            x = F.leaky_relu_(x, 0.1)
        elif how == "writes its input's data":
            x.data.mul_(0.5)
        h = torch.tanh(self.fc(x))
        if how == "attribute":
            self.h = torch.tanh(h + self.h).detach()
            h = h + self.h
        elif how == "buffer in place":
            self.b.mul_(0.5).add_(h.detach())
            h = h + self.b
        elif how == "tensor in place":
            self.h.mul_(0.5).add_(h.detach())
            h = h + self.h
        elif how == "tensor's data":
            self.h.data.add_(h.detach())
            h = h + self.h
        elif how == "buffer resized":
            if self.low.numel() == 0:
                self.low.resize_(3).copy_(h.detach().amin(0))
            self.low.copy_(0.5 * (self.low + h.detach().amin(0)))
            h = h - self.low
        elif how == "list":
            self.seen.append(len(self.seen) + 1.0)
            h = h * self.seen[-1]
        elif how == "list of parameters":
            h = h + x @ self.ws[0].T
        elif how == "closure":
            h = self.scale(h)
        elif how == "detach":
            h = h.detach()
        elif how == "half detached":
            h = h - h.mean(1, keepdim=True).detach()
        elif how == "no_grad":
            with torch.no_grad():
                h = torch.tanh(self.fc(x))
        elif how == "gradient hook" and h.requires_grad:
            h.register_hook(lambda g: 0.1 * g)
        return self.out(h)


HABITS = [
    "writes into its input", "activates its input", "writes its input's data", "attribute",
    "buffer in place", "tensor in place", "tensor's data", "buffer resized",
    "list", "list of parameters", "closure",
    "hook", "detach", "half detached", "no_grad", "gradient hook",
]  # fmt: skip


@pytest.mark.parametrize("how", HABITS)
def test_a_module_of_any_habit_has_the_numbers_of_a_loop_that_moves_it_in_place(how: str) -> None:
    model, x, y = Net(how), X.clone(), Y.clone()
    before = copy.deepcopy(model.__dict__)
    land = torch_land(model, data=(x, y))
    agree(land, model)
    assert torch.equal(x, X)
    assert torch.equal(model.h, before["h"])
    assert torch.equal(model.b, torch.zeros(8, 3))
    assert model.low.shape == (0,)
    assert model.seen == []
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()).detach(), land.theta)


def test_batches_of_a_point_see_the_state_that_earlier_ones_left_and_points_do_not() -> None:
    data = [(X, Y), (X + 1, Y), (X - 1, Y)]
    for how in ("attribute", "buffer in place", "tensor in place"):
        land = torch_land(Net(how), data=data)
        fresh = Net(how)
        with torch.no_grad():
            want = sum(float(F.mse_loss(fresh(a), b)) for a, b in data) / 3
        values = land.losses(points=torch.stack([land.theta] * 3))
        assert values.tolist() == [values[0]] * 3
        assert values[0] == pytest.approx(want, rel=1e-6)


def test_kept_graphs_are_those_of_their_point_whatever_was_asked_in_between() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    for bn in ("eval", "recompute", "batch"):
        land = torch_land(net, bn=bn)
        v = torch.randn(2, land.n_params)
        first = land.hvp(v)
        land.loss(land.theta + 1)
        land.gradient(land.theta - 1)
        assert torch.equal(land.hvp(v), first)


class Penalty:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.lock = model, threading.Lock()

    def __call__(self, o: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(o, t) + 5 * decay(list(self.model.parameters()))

    def method(self, o: Tensor, t: Tensor) -> Tensor:
        return self(o, t)


def decay(params: list[nn.Parameter]) -> Tensor:
    return torch.stack([(p**2).sum() for p in params]).sum()


class Criterion(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.held = [model]

    def forward(self, o: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(o, t) + 5 * decay(list(self.held[0].parameters()))


GLOBAL: dict[str, Any] = {}


def by_global(o: Tensor, t: Tensor) -> Tensor:
    def inner() -> Tensor:
        return decay(list(GLOBAL["model"].parameters()))

    return F.mse_loss(o, t) + 5 * inner()


def by_keyword(o: Tensor, t: Tensor, params: Any = None) -> Tensor:
    return F.mse_loss(o, t) + 5 * decay(params)


@pytest.mark.parametrize(
    "how", ["closure", "object", "method", "module", "partial", "global", "default"]
)
def test_a_loss_that_holds_the_parameters_moves_with_them(how: str) -> None:
    model = nn.Linear(2, 1)
    params = list(model.parameters())

    def by_default(o: Tensor, t: Tensor, held: Any = params) -> Tensor:
        return by_keyword(o, t, held)

    GLOBAL["model"] = model
    losses: dict[str, Any] = {
        "closure": lambda o, t: F.mse_loss(o, t) + 5 * decay(params),
        "object": Penalty(model),
        "method": Penalty(model).method,
        "module": Criterion(model),
        "partial": functools.partial(by_keyword, params=params),
        "global": by_global,
        "default": by_default,
    }
    land = torch_land(model, losses[how])
    GLOBAL.clear()
    agree(land, model, lambda m: F.mse_loss(m(X), Y) + 5 * decay(list(m.parameters())))


def test_parameters_that_no_copy_can_follow_are_refused_by_name() -> None:
    outside = nn.Linear(2, 1)

    class Reaches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = outside

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + x @ outside.weight.T  # not by way of itself

    before = outside.weight.detach().clone()
    with pytest.raises(pl.InvalidArgument, match="reaches parameters outside the module"):
        torch_land(Reaches())
    assert torch.equal(outside.weight, before)


@pytest.mark.parametrize("failure", [ValueError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("count", range(3))  # the runs of the model in a construction
def test_a_construction_that_is_interrupted_leaves_the_module_as_it_was(
    count: int, failure: BaseException
) -> None:
    left = threading.Semaphore(count)  # which no one sets back

    class Fails(Net):
        def forward(self, x: Tensor) -> Tensor:
            if not left.acquire(blocking=False):
                raise failure
            return super().forward(x)

    model = Fails("buffer in place").train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(type(failure)):
        torch_land(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


def test_later_changes_of_module_buffers_data_and_teachers_do_not_reach_the_landscape() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    x, y, teacher = X.clone(), Y.clone(), nn.Linear(2, 1)
    land = torch_land(model, data=(x, y))
    distilled = torch_land(model, objective=lambda m, b: F.mse_loss(m(b), teacher(b)), data=[x])
    theta = land.theta[None].double()
    before = land.loss(), distilled.loss()
    with torch.no_grad():
        for t in (*model.state_dict().values(), *teacher.parameters(), x, y):
            t += 1
    assert (land.loss(), distilled.loss()) == before
    assert pl.gradients(land, theta).losses[0] == pytest.approx(before[0], rel=1e-6)


def test_losses_and_derivatives_of_a_transformer_layer_are_of_one_function() -> None:
    torch.manual_seed(0)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.Embedding(9, 8, padding_idx=0), nn.Linear(8, 2)
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.t = nn.TransformerEncoder(layer, 1)

        def forward(self, i: Tensor) -> Tensor:
            return self.o(self.t(self.e(i), src_key_padding_mask=i == 0).mean(1))

    net = Masked().eval()
    i, y = torch.tensor([[1, 2, 3, 0, 0]]), torch.tensor([0])
    land = torch_land(net, nn.CrossEntropyLoss(), (i, y))
    assert land.loss() == pytest.approx(float(F.cross_entropy(net(i), y).detach()), rel=1e-6)
    g = land.gradient()
    u, e = g / g.norm(), 1e-2
    slope = (land.loss(land.theta + e * u) - land.loss(land.theta - e * u)) / (2 * e)
    assert slope == pytest.approx(float(g.norm()), rel=1e-2)
    assert torch.backends.mha.get_fastpath_enabled()


def test_reentrant_checkpoints_have_derivatives() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
            self.cut = True

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone().requires_grad_()
            if not self.cut:
                return self.inner(x)
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=True)

    own = torch.utils.checkpoint.CheckpointFunction
    land, plain = torch_land(Cut()), Cut()
    plain.cut = False
    agree(land, plain)
    assert torch.utils.checkpoint.CheckpointFunction is own


def test_derivatives_of_what_has_none_are_refused_and_losses_work() -> None:
    model = nn.Linear(2, 2)
    land = torch_land(
        model,
        objective=lambda m, b: torch.tensor(float((m(b[0]).argmax(1) != b[1]).float().mean())),
        data=[(X, CLASSES)],
    )
    assert 0 <= land.loss() <= 1
    v = torch.ones(land.n_params)
    for ask in (land.gradient, lambda: land.hvp(v), lambda: pl.trace(land, progress=False)):
        with pytest.raises(pl.InvalidArgument, match="autograd finds no way"):
            ask()
    hits = torch_land(model, lambda o, t: (o.argmax(1) != t).float().mean(), (X, CLASSES))
    for ask in (land.gradient, hits.gradient, hits.per_sample_gradients):
        with pytest.raises(pl.InvalidArgument, match="expected a loss"):
            ask()
    for ask in (hits.gauss_newton_product, hits.covariance_product):
        with pytest.raises(pl.InvalidArgument, match="expected a loss with a derivative in the"):
            ask(v)
    unused = torch_land(model, objective=lambda m, b: b.sum(), data=[X])
    assert not unused.gradient().any()
    assert not unused.hvp(v).any()


def test_derivatives_that_are_not_the_slope_are_said_to_be_so() -> None:
    for how in ("half detached", "no_grad", "gradient hook", "buffer in place"):
        land = torch_land(Net(how))
        assert "not the slope of the losses" in str(land.engine_report())
        curve = pl.line(land, pl.random_directions(land, 1, seed=0)[0], x=(-1, 1, 5))
        assert "not the slope of the losses" in str(check(curve))
    for how in ("", "list of parameters", "writes into its input"):
        assert torch_land(Net(how)).slope_mismatch() is None
    relu = nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 1))
    assert torch_land(relu).engine_report().note is None


def pinn(m: nn.Module, b: tuple[Tensor]) -> Tensor:
    t = b[0].clone().requires_grad_(True)
    u = m(t)
    return (torch.autograd.grad(u.sum(), t, create_graph=True)[0] + u).pow(2).mean()


def functional_pinn(m: nn.Module, b: tuple[Tensor]) -> Tensor:
    u = lambda t: m(t).squeeze(0)  # noqa: E731
    curvature = torch.func.vmap(torch.func.jacfwd(torch.func.jacrev(u)))(b[0])
    return curvature.pow(2).mean() + m(b[0]).pow(2).mean()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # by torch, in forward mode
@pytest.mark.parametrize("objective", [pinn, functional_pinn])
def test_objectives_that_differentiate_have_values_and_derivatives(objective: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    z = torch.rand(8, 1)
    agree(torch_land(net, objective=objective, data=[(z,)]), net, lambda m: objective(m, (z,)))


def test_forward_passes_that_differentiate_have_values_and_derivatives() -> None:
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_(True)
            return -torch.autograd.grad(self.e(x).sum(), x, create_graph=True)[0]

    model = Force()
    land = torch_land(model, data=(X, X))
    agree(land, model, lambda m: F.mse_loss(m(X), X))
    curve = pl.line(land, pl.random_directions(land, 1, seed=0)[0], x=(-1, 1, 3))
    assert curve.values[1] == land.loss()


def test_ops_without_a_second_derivative_are_named_and_products_that_need_none_work() -> None:
    class Relu6(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu6(x + 3) / 6

    torch.manual_seed(0)
    first = nn.Linear(2, 2)
    hard, same = (
        torch_land(nn.Sequential(first, a), nn.CrossEntropyLoss(), (X, CLASSES))
        for a in (nn.Hardsigmoid(), Relu6())
    )
    v = torch.randn(3, hard.n_params)
    with pytest.raises(pl.InvalidArgument, match=r"hessian: hardsigmoid has no such derivative"):
        hard.hvp(v)
    with pytest.raises(RuntimeError, match="hardsigmoid"):
        hard.hvp(v)
    torch.testing.assert_close(hard.gradient(), same.gradient())
    for _ in range(2):
        torch.testing.assert_close(hard.gauss_newton_product(v), same.gauss_newton_product(v))
        torch.testing.assert_close(hard.covariance_product(v), same.covariance_product(v))
    torch.testing.assert_close(hard.gradient(), same.gradient())


def test_embeddings_that_renormalise_leave_the_users_weights() -> None:
    class Renormalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(4, 2, max_norm=0.5)

        def forward(self, i: Tensor) -> Tensor:
            return self.table(i)

    model, i = Renormalised(), torch.arange(8) % 4
    before = model.table.weight.detach().clone()
    land = torch_land(model, nn.CrossEntropyLoss(), (i, CLASSES))
    agree(land, model, lambda m: F.cross_entropy(m(i), CLASSES))
    assert torch.equal(model.table.weight, before)


@pytest.mark.parametrize("wrap", ["DataParallel", "compile", "inner compile"])
def test_wrappers_are_taken_off(wrap: str) -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.Hardswish(), nn.Linear(2, 1))
    model: nn.Module = copy.deepcopy(plain)
    if wrap == "DataParallel":
        model = nn.DataParallel(model)
    elif wrap == "compile":
        model = torch.compile(model, backend="eager")  # type: ignore[assignment]
    else:
        model[2] = torch.compile(model[2], backend="eager")  # type: ignore[index]
    land = torch_land(model)
    agree(land, plain)
    assert land.loss(model.state_dict()) == land.loss()
    names = [e.name for e in land.layout.entries]
    assert names == [name for name, _ in plain.named_parameters()]
    chosen = [name for name, _ in model.named_parameters()][:1]
    assert torch_land(model, params=chosen).n_params == 4


def test_an_averaged_model_has_its_own_names() -> None:
    model = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 1))  # its parameters are module.*
    land = torch_land(model, params=("module.weight",))
    assert [entry.name for entry in land.layout.entries] == ["module.weight"]


def test_objectives_that_ask_a_wrapper_for_its_module_get_it() -> None:
    wrapped = nn.DataParallel(nn.Linear(2, 1))
    inner = wrapped.module
    for f in (
        lambda m, b: (wrapped.module.weight**2).sum() + m(b).mean(),
        lambda m, b: (m.module.weight**2).sum() + m(b).mean(),
    ):
        land = torch_land(wrapped, objective=f, data=[X])
        agree(land, inner, lambda m: (m.weight**2).sum() + m(X).mean())


def test_torchscript_is_refused_clearly() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(nn.Linear(2, 1))
    with pytest.raises(pl.InvalidArgument, match="got TorchScript"):
        torch_land(script)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("where", ["data", "buffer"])
def test_sparse_matrices_in_data_and_buffers_work(layout: str, where: str) -> None:
    class Graph(nn.Module):
        def __init__(self, a: Tensor | None) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(2, 1)
            self.register_buffer("a", a)

        def forward(self, x: Tensor, a: Tensor | None = None) -> Tensor:
            return torch.sparse.mm(self.a if a is None else a, self.fc(x))

    dense = torch.eye(8) + torch.eye(8).roll(1, 0)
    a = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
    held = where == "buffer"
    land = torch_land(Graph(a if held else None), data=[(X if held else (X, a), Y)])
    land.describe()
    agree(land, nn.Sequential(Graph(None).fc), lambda m: F.mse_loss(dense @ m(X), Y))


@pytest.mark.parametrize("how", ["view", "buffer", "constant", "assert", "hidden"])
def test_a_batch_size_fixed_in_the_forward_pass_is_kept(how: str) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.gru = nn.Linear(2, 1), nn.GRU(2, 1, batch_first=True)
            self.h0 = nn.Parameter(torch.zeros(1, 8, 1))
            self.register_buffer("b", torch.ones(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            if how == "hidden":
                return self.gru(x[:, None], self.h0)[0][:, -1]
            if how == "assert":
                assert len(x) == 8
            h = self.fc(x.view(8, -1))
            return h + (self.b if how == "buffer" else torch.ones(8, 1))

    model = Fixed()
    agree(torch_land(model), model)


class Draws(nn.Module):
    def __init__(self, source: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.source = nn.Linear(2, 1), source
        self.own, self.numpy = torch.Generator(), np.random.default_rng(0)
        self.calls = itertools.count(1)

    def forward(self, x: Tensor) -> Tensor:
        draw = {
            "torch": lambda: torch.rand(()),
            "random": random.random,
            "numpy": np.random.rand,
            "own generator": lambda: torch.rand((), generator=self.own),
            "iterator": lambda: next(self.calls),
        }[self.source]
        return self.fc(x) * draw()


@pytest.mark.parametrize("source", ["torch", "random", "numpy", "own generator"])
def test_random_numbers_start_anew_at_every_point_and_leave_the_generators(source: str) -> None:
    model = Draws(source)

    def states() -> list[Any]:
        key = np.random.get_state()[1].tolist()  # noqa: NPY002
        return [
            random.getstate(), key, torch.get_rng_state().tolist(), model.own.get_state().tolist(),
        ]  # fmt: skip

    before = states()
    land = torch_land(model)
    values = land.losses(points=torch.stack([land.theta] * 3))
    assert values.tolist() == [land.model_loss()] * 3
    assert states() == before


def test_state_that_cannot_be_restored_is_refused_by_name() -> None:
    with pytest.raises(pl.InvalidArgument, match=r"takes from an iterator \(a count\)"):
        torch_land(Draws("iterator"))


def test_a_batch_norm_that_tracks_in_eval_mode_starts_anew_at_every_point() -> None:
    class Tracks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(2, 1)
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("var", torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            F.batch_norm(x, self.mean, self.var, training=True)
            return self.fc(F.batch_norm(x, self.mean, self.var))

    model = Tracks()
    agree(torch_land(model), model)
    assert not model.mean.any()


def test_frozen_parameters_have_derivatives_and_stay_frozen() -> None:
    model = nn.Linear(2, 1).requires_grad_(False)
    land = torch_land(model)
    assert land.gradient().all()
    assert not any(p.requires_grad for p in model.parameters())


def test_tensors_held_as_results_of_computations_and_locks_do_not_hinder_a_copy() -> None:
    model = Net()
    model.h, model.lock = model.fc(X).relu(), threading.Lock()
    model.rows = (row for row in X)
    agree(torch_land(model), Net())


def test_threads_wait_for_each_other() -> None:
    land = torch_land(Net())
    v = torch.ones(land.n_params)
    points = [land.theta, -land.theta]
    want = [land.hvp(v, p) for p in points]
    wrong: list[Any] = []

    def ask(i: int) -> None:
        for _ in range(40):
            if not torch.equal(land.hvp(v, points[i]), want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


class Boom(RuntimeError):
    pass


def test_errors_of_the_users_code_keep_their_type_and_say_what_to_do() -> None:
    def fails(o: Tensor, t: Tensor) -> Tensor:
        raise Boom("boom")

    with pytest.raises(Boom, match="boom") as caught:
        torch_land(nn.Linear(2, 1), fails)
    assert isinstance(caught.value, pl.InvalidArgument)
    with pytest.raises(pl.InvalidArgument, match=r"look like one sample.*x\[None\]"):
        torch_land(
            nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3)),
            nn.CrossEntropyLoss(),
            (X[:2].reshape(1, 2, 2), torch.tensor(1)),
        )
    bad = X.clone()
    bad[1, 0] = torch.nan
    with pytest.raises(pl.InvalidArgument, match="batch 0 has 1 elements that are NaN"):
        torch_land(nn.Linear(2, 1), data=(bad, Y))

    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x)}

    with pytest.raises(pl.InvalidArgument, match=r"one tensor, got dict; pass objective="):
        torch_land(Named(2, 1))


def test_data_without_an_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylandscape.theta.data._MOST_BATCHES", 100)
    endless = ((X, Y) for _ in itertools.count())
    with pytest.raises(pl.InvalidArgument, match="an iterable that ends"):
        torch_land(nn.Linear(2, 1), data=endless)


def test_memory_that_runs_out_is_said_so() -> None:
    class Large(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("tried to allocate")

    with pytest.raises(torch.OutOfMemoryError, match="not enough memory to run one batch"):
        torch_land(Large(2, 1))


def test_conversions_reach_tensors_held_as_attributes_and_views() -> None:
    model = Net("list of parameters")
    model.view = model.fc.weight.data.view(-1)
    land = torch_land(model, data=(X, Y), dtype=torch.float64)
    assert land.model.view.dtype == land.model.h.dtype == torch.float64
    assert land.model.view.data_ptr() == land.model.fc.weight.data_ptr()
    assert land.loss() == pytest.approx(torch_land(model).loss(), rel=1e-5)
    assert model.fc.weight.dtype == torch.float32


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_parametrised_module_shares_no_tensor_with_its_copy(how: str) -> None:
    torch.manual_seed(0)
    norms = nn.utils.parametrizations
    first = getattr(norms, how)(nn.Linear(2, 3))
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(3, 1)).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    land = torch_land(model)
    agree(land, model)
    own = {t.untyped_storage().data_ptr() for t in land.model.state_dict().values()}
    assert not own & {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name


class Slices(nn.Module):
    """Reads its weight by a view that was made once, as code for tied or sliced weights does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.out = nn.Linear(2, 4), nn.Linear(4, 1)
        self.half = self.fc.weight[:2]

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        return self.out(h) + (x @ self.half.T).sum(1, keepdim=True)


def test_views_of_parameters_move_and_have_derivatives_with_them() -> None:
    model = Slices()
    land = torch_land(model)
    assert land.model.half.untyped_storage().data_ptr() == (
        land.model.fc.weight.untyped_storage().data_ptr()
    )

    class Fresh(Slices):  # what a user's own loop has: the slice is taken in forward()
        def forward(self, x: Tensor) -> Tensor:
            self.half = self.fc.weight[:2]
            return super().forward(x)

    fresh = Fresh()
    del fresh.half
    agree(land, fresh)


def test_results_that_functools_keeps_are_those_of_their_point() -> None:
    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(2, 1)
            self.scale = functools.lru_cache(self.norm)

        def norm(self) -> float:
            return float(self.fc.weight.detach().norm())

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.scale()

    model = Caches()
    model(X)
    land = torch_land(model)
    moved = 2 * land.theta
    losses = land.losses(points=torch.stack([land.theta, moved, land.theta]))
    for theta, value in zip((land.theta, moved), losses, strict=False):
        fresh = Caches()
        nn.utils.vector_to_parameters(theta, fresh.parameters())
        assert value == pytest.approx(F.mse_loss(fresh(X), Y).item(), rel=1e-6)
    assert losses[2] == losses[0]
    assert model.scale() == pytest.approx(model.fc.weight.norm().item())


def test_flags_that_a_forward_pass_sets_are_put_back() -> None:
    class Freezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(torch.tanh(self.a(x)))
            self.a.weight.requires_grad_(False)  # backward() passes it by from here on
            return y

    model = Freezes()
    land = torch_land(model)
    gradients = [land.gradient() for _ in range(2)]
    F.mse_loss(Freezes()(X), Y).backward()
    assert torch.equal(*gradients)
    assert not gradients[0][:6].any()  # as the user's own backward() has it
    assert "slope" in (land.slope_mismatch() or "")
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


class Squares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]


@pytest.mark.parametrize("times", [1, 2])
def test_functions_that_differentiate_once_have_gradients_and_refuse_products(times: int) -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.out = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.fc(x)
            for _ in range(times):
                h = Squares.apply(h)
            return self.out(h)

    model = Once()
    land = torch_land(model)
    F.mse_loss(model(X), Y).backward()
    want = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(land.gradient().float(), want, rtol=1e-5, atol=1e-6)
    with pytest.raises(pl.NotDifferentiable, match="once_differentiable"):
        land.hvp(torch.ones(land.n_params))


def test_state_that_shows_only_far_from_the_first_point_is_found() -> None:
    class Widest(nn.Module):
        """Divides by the largest norm it ever had: at the first point always the same."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.most = nn.Linear(2, 1), 0.0

        def forward(self, x: Tensor) -> Tensor:
            self.most = max(self.most, float(self.fc.weight.detach().norm()))
            return self.fc(x) / self.most

    model = Widest()
    land = torch_land(model)
    points = torch.stack([land.theta, 3 * land.theta, land.theta])
    values = land.losses(points=points)
    for theta, value in zip(points, values, strict=True):
        fresh = Widest()
        nn.utils.vector_to_parameters(theta, fresh.parameters())
        assert value == pytest.approx(F.mse_loss(fresh(X), Y).item(), rel=1e-6)
    assert model.most == 0.0


def test_a_deque_of_the_model_keeps_its_bound() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.last = nn.Linear(2, 1), deque(maxlen=2)

        def forward(self, x: Tensor) -> Tensor:
            self.last.append(float(x.sum()))
            return self.fc(x) * sum(self.last)

    data = [(X + i, Y) for i in range(4)]
    land, fresh = torch_land(Remembers(), data=data), Remembers()
    with torch.no_grad():
        want = sum(float(F.mse_loss(fresh(x), y)) for x, y in data) / 4
    assert land.losses(points=torch.stack([land.theta] * 2)) == pytest.approx([want] * 2, rel=1e-6)
