"""Modules as nobody should write them: the numbers of a loop that moves the real parameters.

Each case is a class and what it does; more of them, in many combinations, are in `awkward`.
"""

from __future__ import annotations

import itertools
import os
import random
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).double()
Y = torch.randn(8, 2, generator=torch.Generator().manual_seed(2)).double()


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f, self.o = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()

    def h(self, x: Tensor) -> Tensor:
        return torch.tanh(self.f(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.h(x))


class CopiesAsItself(Base):
    """Its deep copy is the module itself."""

    def __deepcopy__(self, memo: Any) -> CopiesAsItself:
        return self


class CopiesItsParts(Base):
    """Its deep copy is a new module around the same layers."""

    def __deepcopy__(self, memo: Any) -> CopiesItsParts:
        other = type(self)()
        other.f, other.o = self.f, self.o
        return other


class HiddenInSlots(Base):
    __slots__ = ("hidden",)

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "hidden", nn.Linear(2, 2).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(super().forward(x))


class TiedThroughATranspose(Base):
    """Two parameters that share their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(4, 3, bias=False)
        self.back.weight = nn.Parameter(self.f.weight.t())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.back(self.h(x)))


class WholeNumbers(Base):
    """A parameter of integers, as the weights of quantized layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.n = nn.Parameter(torch.tensor([3, 1]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.n


class CachedMethod(Base):
    """A scale that all instances keep in one cache."""

    @cache  # noqa: B019
    def scale(self) -> float:
        return float(self.f.weight.detach().norm())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale()


class BinaryWeights(Base):
    """Forward with the signs of the weights, which are put back (BinaryConnect)."""

    def forward(self, x: Tensor) -> Tensor:
        kept = self.f.weight.data
        self.f.weight.data = kept.sign() * 0.5
        y = super().forward(x)
        self.f.weight.data = kept
        return y


class LoadsItself(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.load_state_dict({name: 0.9 * t for name, t in self.state_dict().items()})
        return super().forward(x)


class MetaTwin(Base):
    """A module without values, called with the parameters of this one."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = [nn.Linear(4, 2).to("meta")]

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(
            self.twin[0], dict(self.o.named_parameters()), (self.h(x),)
        )


class UnseenMaximum(Base):
    """An observer that changes far away alone, and without a new version of its tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("most", torch.full((), 1.5).double())

    def forward(self, x: Tensor) -> Tensor:
        h = self.f(x)
        self.most.data.copy_(torch.maximum(self.most, h.detach().abs().max()))
        return self.o(h / self.most)


class TeacherFollowsUnseen(Base):
    """A teacher, frozen and no part of theta, whose ``.data`` follows."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(3, 4).double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for mine, its in zip(self.f.parameters(), self.teacher.parameters(), strict=True):
            its.data = 0.5 * its.data + 0.5 * mine.data
        return self.o(self.h(x) - self.teacher(x))


class LayerOfTheClass(Base):
    slope: ClassVar[nn.Module] = nn.PReLU().double()

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.slope(self.f(x)))


class TurnsSwitches(Base):
    """Leaves settings of the process behind."""

    def forward(self, x: Tensor) -> Tensor:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("high")
        torch.autograd.set_detect_anomaly(False)
        os.environ["PYLANDSCAPE_TEST_SWITCH"] = "1"
        return super().forward(x)


CASES = [
    CopiesAsItself, CopiesItsParts, HiddenInSlots, TiedThroughATranspose, WholeNumbers,
    CachedMethod, BinaryWeights, LoadsItself, MetaTwin, LayerOfTheClass, UnseenMaximum,
    TeacherFollowsUnseen,
    pytest.param(TurnsSwitches, marks=pytest.mark.ci),  # torch loads its compiler for them
]  # fmt: skip


def reference(make: Callable[[], nn.Module], theta: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Value, gradient and Hessian product of a fresh module whose parameters are moved in place."""
    module = make().eval()
    p = [q for q in module.parameters() if q.is_floating_point() and q.requires_grad]
    for q, part in zip(p, theta.split([q.numel() for q in p]), strict=True):
        q.data.copy_(part.view_as(q))
    value = F.mse_loss(module(X), Y)
    g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(value, p, create_graph=True)])
    h = torch.autograd.grad(g @ v, p, allow_unused=True, materialize_grads=True)
    return value.detach(), g.detach(), torch.cat([t.reshape(-1) for t in h])


def settings() -> Any:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.is_anomaly_enabled(),
        dict(os.environ),
    )


@pytest.fixture
def switches_kept() -> Iterator[None]:
    """Of the reference's own run."""
    before = settings()
    yield
    if settings() == before:
        return
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.set_default_dtype(before[2])
    torch.set_float32_matmul_precision(before[3])
    os.environ.pop("PYLANDSCAPE_TEST_SWITCH", None)


@pytest.mark.usefixtures("switches_kept")
@pytest.mark.parametrize("make", CASES)
def test_the_numbers_are_those_of_the_loop_and_the_module_stays(make: type[nn.Module]) -> None:
    module = make()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    of_process = settings()
    moved = [name for name, p in module.named_parameters() if p.requires_grad]
    params = moved if make is TeacherFollowsUnseen else None
    land = pl.Landscape(module, nn.MSELoss(), (X, Y), engine="torch", params=params)
    generator = torch.Generator().manual_seed(3)
    n = land.n_params
    points = land.theta + 0.3 * torch.randn(2, n, generator=generator, dtype=torch.float64)
    v = torch.randn(n, generator=generator, dtype=torch.float64)
    got = [(land.loss(p), land.gradient(p), land.hvp(v, p)) for p in (*points, points[0])]
    assert settings() == of_process
    for name, t in module.state_dict().items():
        assert torch.equal(t, before[name]), name
    if hasattr(make, "scale"):
        assert make.scale.cache_info().currsize == 0
    for p, found in zip((*points, points[0]), got, strict=True):
        for value, want in zip(found, reference(make, p, v), strict=True):
            torch.testing.assert_close(torch.as_tensor(value).double(), want)


def test_an_optimiser_that_an_objective_steps_keeps_its_state() -> None:
    model = Base()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = [p.detach().clone() for p in model.parameters()]

    def objective(m: nn.Module, b: Any) -> Tensor:
        loss = F.mse_loss(m(b[0]), b[1])
        optimiser.zero_grad()
        loss.backward(retain_graph=True)
        optimiser.step()
        return loss

    land = pl.Landscape(model, objective=objective, data=[(X, Y)])
    theta = land.theta + 0.3
    assert land.loss(theta) == pytest.approx(float(reference(Base, theta, theta)[0]), rel=1e-12)
    assert not optimiser.state
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("loss", [nn.MSELoss(), lambda o, t: (o - t).pow(2).mean()])
def test_hooks_that_clip_see_the_gradient_of_the_mean(loss: Any, batches: int) -> None:
    class Clips(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g.clamp(-0.01, 0.01)

    class Clipped(Base):
        def __init__(self) -> None:
            super().__init__()
            self.o.weight.register_hook(lambda g: g.clamp(-0.02, 0.02) if batches == 1 else g)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(Clips.apply(self.h(x)))

    model = Clipped()
    land = pl.Landscape(model, loss, list(zip(X.chunk(batches), Y.chunk(batches), strict=True)))
    parts = zip(X.chunk(batches), Y.chunk(batches), strict=True)
    value = sum(F.mse_loss(model(x), y) for x, y in parts) / batches
    p = list(model.parameters())
    g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(value, p, create_graph=True)])
    torch.testing.assert_close(land.gradient(), g.detach())
    h = torch.autograd.grad(g.sum(), p, allow_unused=True, materialize_grads=True)
    found = land.hvp(torch.ones(land.n_params, dtype=torch.float64))
    torch.testing.assert_close(found, torch.cat([t.reshape(-1) for t in h]))


@pytest.mark.ci
def test_a_traced_part_hinders_no_capture() -> None:
    class Traced(Base):
        def __init__(self) -> None:
            super().__init__()
            part = nn.Sequential(nn.Linear(2, 2).double(), nn.Tanh())
            self.part = torch.jit.trace(part, torch.zeros(1, 2).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.part(super().forward(x))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit.trace
        model = Traced()
        land = pl.Landscape(model, nn.MSELoss(), (X, Y))
    assert land.loss() == pytest.approx(F.mse_loss(model(X), Y).item(), rel=1e-12)


def test_a_complex_loss_is_refused() -> None:
    with pytest.raises(pl.InvalidArgument, match=r"objective: expected a real number"):
        pl.Landscape(
            Base(), objective=lambda m, b: F.mse_loss(m(b[0]), b[1]) * (1 + 0j), data=[(X, Y)]
        )


def test_data_that_draw_leave_the_generators_of_python_and_numpy() -> None:
    class Drawn(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            return X[i] + random.random() + np.random.randn(), Y[i]  # noqa: NPY002

    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    pl.Landscape(Base(), "mse", Drawn())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


class Counted(torch.utils.data.Dataset):
    """Samples whose reading changes everything that a data set can keep."""

    reads = 0
    cached: ClassVar[dict[int, Tensor]] = {}

    def __init__(self) -> None:
        self.calls, self.order, self.x = 0, [0], X.clone()
        self.noise, self.numpy = random.Random(1), np.random.default_rng(1)
        self.legacy, self.asked = np.random.RandomState(1), 0

    def __len__(self) -> int:
        self.asked += 1
        return len(X)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.calls += 1
        Counted.reads += 1
        self.order.append(i)
        self.x[i] += self.noise.random() + self.numpy.random() + self.legacy.rand()
        return self.cached.setdefault(i, self.x[i] + self.calls), Y[i]

    def state(self) -> Any:
        return (self.calls, Counted.reads, list(self.order), self.x.tolist(),
                self.noise.getstate(), str(self.numpy.bit_generator.state),
                self.legacy.get_state()[1].tolist(), self.asked, dict(self.cached))  # fmt: skip


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda data: data,
        lambda data: torch.utils.data.Subset(data, range(6)),
        lambda data: torch.utils.data.DataLoader(
            data, 3, shuffle=True, generator=torch.Generator().manual_seed(4)
        ),
    ],
    ids=["the data", "a subset", "a loader"],
)
def test_reading_leaves_the_data_as_they_were(wrapped: Any) -> None:
    data = Counted()
    given, before = wrapped(data), data.state()
    generator = getattr(given, "generator", None)
    at = None if generator is None else generator.get_state()
    land = pl.Landscape(Base(), "mse", given)
    first = land.loss()
    land.gradient()
    assert data.state() == before
    assert generator is None or torch.equal(generator.get_state(), at)
    assert land.loss() == first
    if generator is None:  # their next reading, the user's own, gives the same
        assert pl.Landscape(Base(), "mse", given).loss() == first
    with pytest.raises(IndexError):
        pl.Landscape(Base(), "mse", torch.utils.data.Subset(data, [0, 100]))
    assert data.state() == before


def test_data_that_take_from_an_iterator_stay_where_that_has_moved_to() -> None:
    class Stream:
        def __init__(self) -> None:
            self.source, self.taken = iter([(X, Y), (X, Y)]), 0

        def __iter__(self) -> Iterator[Any]:
            for batch in self.source:
                self.taken += 1
                yield batch

    data = Stream()
    pl.Landscape(Base(), "mse", data)
    assert data.taken == 2


def test_an_array_in_a_parameters_memory_is_refused_also_where_no_value_shows_it() -> None:
    class Viewed(Base):
        def __init__(self) -> None:
            super().__init__()
            self.seen = self.f.bias.detach().numpy()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + float(self.seen.sum())

    def wrong(m: nn.Module, b: Any) -> Tensor:
        return torch.tensor(float(((m(b[0]) - b[1]).abs() > 1e9).float().mean()))

    with pytest.raises(pl.InvalidArgument, match=r"a numpy array .* shares the memory of a param"):
        pl.Landscape(Viewed(), objective=wrong, data=[(X, Y)])


def _errors(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]).argmax(1) != batch[1]).double().mean()


def test_state_that_a_count_of_errors_seldom_shows_is_held() -> None:
    """Two runs may make as many errors with other outputs."""
    calls = 0

    class Counts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return super().forward(x) + 1e-3 * calls * torch.arange(3)

    torch.manual_seed(0)
    x, y = torch.randn(8, 2), torch.randint(0, 3, (8,))
    land = pl.Landscape(Counts(2, 3), objective=_errors, data=[(x, y)])
    assert calls == 0
    far = land.theta + torch.randn(200, len(land.theta))
    assert np.array_equal(land.losses(points=far), land.losses(points=far))
    assert calls == 0


def test_a_branch_on_gradients_is_found_where_its_values_agree() -> None:
    """With a unit that is dead where the copy is compared, both ways give 0."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(-30.0))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.w * x)
            if self.w > 1e3:  # no program for a capture
                return y
            return torch.sin(y) if y.requires_grad else y

    x = torch.rand(8, 1)
    land = pl.Landscape(Branch(), nn.MSELoss(), (x, torch.zeros(8, 1)))
    want = float(torch.sin(2 * x).pow(2).mean())
    assert np.isclose(land.losses(points=torch.tensor([[2.0]]))[0], want, rtol=1e-6)


def test_units_that_are_dead_at_first_hide_no_difference_of_a_capture() -> None:
    """Code that leaves them out while it is traced."""

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.side, self.last = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            nn.init.constant_(self.side.bias, -20.0)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            if not isinstance(x, torch.fx.Proxy) and not torch.compiler.is_compiling():
                h = h + 1e-3 * torch.relu(self.side(h))
            return self.last(h)

    torch.manual_seed(0)
    model = Traced()
    x, y = torch.randn(8, 2), torch.randn(8, 2)
    land = pl.Landscape(model, nn.MSELoss(), (x, y))
    theta = 3.0 * torch.randn(land.n_params)
    loss, gradient = land.losses(points=theta[None])[0], land.gradient(theta)
    nn.utils.vector_to_parameters(theta, list(model.parameters()))
    want = F.mse_loss(model(x), y)
    want.backward()
    assert loss == pytest.approx(float(want.detach()), rel=1e-5)
    own = torch.cat([g.grad.reshape(-1) for g in model.parameters() if g.grad is not None])
    torch.testing.assert_close(gradient.float(), own, rtol=1e-4, atol=1e-6)


def test_the_comparison_runs_in_eval_mode_also_after_a_run_that_failed() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop = nn.Linear(2, 2), nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            h = self.drop(self.fc(x))
            return torch.autograd.grad(h.sin().sum(), h, create_graph=True)[0]

    torch.manual_seed(0)
    x, y = torch.randn(8, 2), torch.randn(8, 2)
    model = Inner().train()
    land = pl.Landscape(model, nn.MSELoss(), (x, y))
    with torch.no_grad():
        want = float((model.fc(x).cos() - y).pow(2).mean())
    assert np.isclose(land.losses(points=land.theta[None])[0], want, rtol=1e-6)
    assert model.training
    assert model.drop.training


def test_observers_of_quantisation_start_anew_at_every_point() -> None:
    """Their fused kernel changes them without a new version, those of weights where these move."""
    from torch.ao import quantization

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that it moves to another package
        net = quantization.prepare_qat(net.train())
    net(X.float())
    land = pl.Landscape(net, nn.MSELoss(), (X.float(), Y.float()))
    points = torch.stack([land.theta, land.theta * 1.1, land.theta, land.theta * 1.1])
    losses = land.losses(points=points)
    assert losses[:2].tolist() == losses[2:].tolist()
    with torch.no_grad():
        for p in net.eval().parameters():
            p.mul_(1.1)
        own = float(F.mse_loss(net(X.float()), Y.float()))
    assert losses[1] == pytest.approx(own, rel=1e-6)


def test_an_error_behind_an_inner_gradient_is_the_one_that_is_told() -> None:
    def objective(m: nn.Module, b: Any) -> Tensor:
        x = b[0].clone().requires_grad_()
        (g,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)  # fails under no_grad
        return g.sum() + {}["boundary"]

    with pytest.raises(KeyError, match="KeyError: 'boundary'"):
        pl.Landscape(Base(), objective=objective, data=[(X,)])


def test_computed_weights_do_not_hinder_questions_about_many_points() -> None:
    from torch.nn.utils import prune

    net = Base()
    prune.l1_unstructured(net.f, "weight", 0.5)
    net(X)  # its weight is a result of the parameters from now on
    land = pl.Landscape(net, nn.MSELoss(), (X, Y))
    assert pl.classify(land, land.theta[None], progress=False).eigenvalues.shape == (
        1,
        land.n_params,
    )


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_part_in_a_wrapper_has_the_users_names(wrap: Any) -> None:
    def made() -> nn.Module:
        net = Base()
        net.f = wrap(net.f)
        return net

    net, other = made(), made()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    name = next(iter(dict(net.named_parameters())))
    land = pl.Landscape(net, nn.MSELoss(), (X, Y), copy=False)
    want = pytest.approx(float(F.mse_loss(other(X), Y).detach()), rel=1e-12)
    assert land.loss(other) == want
    assert land.loss(other.state_dict()) == want
    assert "stay as they are" not in str(land.engine_report())
    assert pl.Landscape(net, nn.MSELoss(), (X, Y), params=(name,)).n_params == 12


def test_automatic_casting_around_is_that_of_the_making() -> None:
    net, x, y = Base().float(), X.float(), Y.float()
    plain = pl.Landscape(net, nn.MSELoss(), (x, y), engine="torch")
    at = plain.theta * 1.3
    want = plain.loss(at)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plain.loss(at) == want
        cast = pl.Landscape(net, nn.MSELoss(), (x, y))
        inside = [cast.loss(at), cast.loss(), cast.loss(at)]
        with torch.no_grad():
            own = float(F.mse_loss(net(x), y))
    assert "autocast to bfloat16" in str(cast.engine_report())
    assert inside[0] == inside[2] == cast.loss(at) != want
    assert inside[1] == pytest.approx(own, rel=1e-2)
    assert not torch.is_autocast_enabled("cpu")


def test_a_landscape_can_be_made_in_inference_mode() -> None:
    want = pl.Landscape(Base(), nn.MSELoss(), (X, Y), engine="torch")
    with torch.inference_mode():
        land = pl.Landscape(Base(), nn.MSELoss(), (X, Y), engine="torch")
        assert land.loss() == want.loss()
        assert torch.equal(land.gradient(), want.gradient())
    assert torch.equal(land.hvp(land.theta), want.hvp(want.theta))


class FromAFile(torch.utils.data.Dataset):
    """Samples whose numbers are the bytes of an open file, which is left where it was read last."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(range(len(X))))
        self.file, self.reads = path.open("rb"), 0

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        self.file.seek(i)
        (n,) = self.file.read(1)
        return X[n], Y[n]


def test_a_loader_leaves_its_own_generator(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    from_a_file = FromAFile(tmp_path / "numbers")
    with from_a_file.file:
        for data in (torch.utils.data.TensorDataset(X, Y), from_a_file):
            loader = torch.utils.data.DataLoader(data, 3, shuffle=True, generator=generator)
            before = generator.get_state()
            pl.Landscape(Base(), "mse", loader)
            assert torch.equal(generator.get_state(), before)
    assert from_a_file.reads == len(X)  # as far as the file has been read


class Told(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@pytest.mark.parametrize(
    "error", [KeyError("x"), Told(3), UnicodeDecodeError("utf8", b"a", 0, 1, "r"), OSError(2, "no")]
)
@pytest.mark.parametrize("where", ["objective", "data"])
def test_an_error_of_the_users_code_is_also_ours_and_says_what_it_was(
    error: Exception, where: str
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    def batches() -> Iterator[Any]:
        yield X, Y
        fails()

    given = {"objective": fails, "data": [(X, Y)]}
    with pytest.raises(pl.InvalidArgument, match=r"^data: ") as e:
        pl.Landscape(Base(), **(given if where == "objective" else {"data": batches()}))
    assert isinstance(e.value, type(error))
    assert f"{type(error).__name__}: " in str(e.value)
    assert getattr(e.value, "code", 3) == 3


class Record:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


def _popped(m: nn.Module, b: dict[str, Tensor]) -> Tensor:
    y = b.pop("y")
    return F.mse_loss(m(**b), y)


def _reversed(m: nn.Module, b: list[Tensor]) -> Tensor:
    b.reverse()
    return F.mse_loss(m(b[1]), b[0])


def _renewed(m: nn.Module, b: Record) -> Tensor:
    b.x = torch.sin(b.x)
    b.x = m(b.x)
    b.seen.append(b.x)
    return F.mse_loss(b.x, b.y) * len(b.seen)


def _written(m: nn.Module, b: Record) -> Tensor:
    return F.mse_loss(m(b.x.sub_(0.5)), b.y)


BATCHES: dict[Any, Callable[[], Any]] = {
    _popped: lambda: {"x": X.clone(), "y": Y},
    _reversed: lambda: [X.clone(), Y],
    _renewed: lambda: Record(x=X.clone(), y=Y, seen=[]),
    _written: lambda: Record(x=X.clone(), y=Y),
}


@pytest.mark.parametrize("objective", BATCHES)
def test_what_code_changes_in_a_batch_is_as_it_was_at_every_run(objective: Any) -> None:
    made = BATCHES[objective]
    batch = made()
    land = pl.Landscape(Base(), objective=objective, data=[batch])
    want = pytest.approx(float(objective(Base(), made()).detach()), rel=1e-12)
    assert land.losses(points=land.theta.expand(3, -1)).tolist() == [want] * 3
    assert land.gradient().isfinite().all()
    assert land.loss() == want
    parts = batch if isinstance(batch, list) else getattr(batch, "__dict__", batch).values()
    for given in (X, Y):
        assert any(t is given or (isinstance(t, Tensor) and t.equal(given)) for t in parts)
    assert pl.Landscape(Base(), objective=objective, data=[batch]).loss() == want


def test_an_iterator_that_a_module_goes_through_is_refused_by_name() -> None:
    class Cycles(Base):
        def __init__(self) -> None:
            super().__init__()
            self.turns = itertools.cycle([1.0, 2.0])

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * next(self.turns)

    model = Cycles()
    with pytest.raises(pl.InvalidArgument, match="an iterator"):
        pl.Landscape(model, nn.MSELoss(), (X, Y))
    assert next(model.turns) == 1.0


class StartsFromZeros(Base):
    """Its first state is of torch's default dtype, where its parameters are float32."""

    def __init__(self) -> None:
        super().__init__()
        self.float()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 4)
        for _ in range(2):
            h = torch.tanh(torch.addmm(h, x, self.f.weight.T))
        return self.o(h)


class Single(StartsFromZeros):
    """Computes in float32 whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).float()


@pytest.mark.parametrize("make", [StartsFromZeros, Single])
def test_many_points_of_a_model_that_makes_tensors_of_its_own_precision(make: Any) -> None:
    def loss(o: Tensor, y: Tensor) -> Tensor:
        return (o - y).square().mean()

    land = pl.Landscape(make(), loss, (X.float(), Y.float()))
    found = pl.classify(land, land.theta[None], progress=False)
    want = np.linalg.eigvalsh(land.hessian().numpy())
    np.testing.assert_allclose(found.eigenvalues[0], want, atol=1e-5)
    assert torch.get_default_dtype() == torch.float32


def test_a_dtype_that_a_models_own_tensors_do_not_have_is_said() -> None:
    with pytest.raises(pl.InvalidArgument, match=r"as dtype= asks, but .* x\.new_zeros"):
        pl.Landscape(StartsFromZeros(), "mse", (X.float(), Y.float()), dtype=torch.float64)


class Limit(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clamp(max=0.9)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g


def _without_gradients(y: Tensor) -> Tensor:
    with torch.no_grad():
        over = (y - 0.9).clamp(min=0)
    return y - over


def _in_place(y: Tensor) -> Tensor:
    y.data.clamp_(max=0.9)
    return y * 1


@pytest.mark.parametrize(
    "limited",
    [
        lambda y: y - (y - 0.9).detach().clamp(min=0),
        lambda y: y - (y.data - 0.9).clamp(min=0),
        _without_gradients,
        _in_place,
        Limit.apply,
    ],
    ids=["detach", "data", "no_grad", "in_place", "function"],
)
def test_values_out_of_the_graph_have_autograds_derivatives_also_where_it_shows_far_away(
    limited: Any,
) -> None:
    """No unit reaches the limit near the model's own point."""

    class Limits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return limited(torch.sigmoid(self.fc(x)))

    torch.manual_seed(0)
    x, y = torch.randn(16, 2).double(), torch.randn(16, 2).double()
    model = Limits().double()
    land = pl.Landscape(model, nn.MSELoss(), (x, y))
    far = land.theta.clone()
    far[4:] += 3.0
    got, slopes = land.gradient(far), pl.gradients(land, far[None])
    runs = pl.train(land, far[None], pl.SGD(lr=1.0), steps=1, progress=False)
    with torch.no_grad():
        nn.utils.vector_to_parameters(far, model.parameters())
    nn.MSELoss()(model(x), y).backward()
    want = torch.cat([p.grad.reshape(-1) for p in model.parameters()])  # type: ignore[union-attr]
    assert torch.allclose(got, want, rtol=1e-10)
    assert np.allclose(slopes.gradients[0], want, rtol=1e-10)
    assert torch.allclose(far - torch.as_tensor(runs.ends())[0], want, rtol=1e-10)


def test_a_forward_pass_asks_for_derivatives_by_what_theta_leaves_out() -> None:
    """One step of an inner optimiser in a layer that params= does not name."""

    class Inner(Base):
        def forward(self, x: Tensor) -> Tensor:
            inner = self.h(x).square().mean()
            (slope,) = torch.autograd.grad(inner, self.f.weight, create_graph=True)
            return self.o(torch.tanh(F.linear(x, self.f.weight - slope, self.f.bias)))

    model = Inner()
    land = pl.Landscape(model, nn.MSELoss(), (X, Y), params=("o.*",))
    moved = land.theta + 0.3
    v = torch.linspace(-1.0, 1.0, land.n_params).double()
    loss, slopes = land.losses(points=moved[None])[0], land.gradient(moved)
    product = land.hvp(v, moved)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    with torch.no_grad():
        nn.utils.vector_to_parameters(moved, model.o.parameters())
    want, own = nn.MSELoss()(model(X), Y), tuple(model.o.parameters())
    first = torch.cat([g.flatten() for g in torch.autograd.grad(want, own, create_graph=True)])
    second = torch.cat([g.flatten() for g in torch.autograd.grad(first @ v, own)])
    assert np.isclose(loss, want.item(), rtol=1e-12)
    assert torch.allclose(slopes, first.detach(), rtol=1e-10)
    assert torch.allclose(product.reshape(-1), second, rtol=1e-10)


class Dead(Base):
    """Units that no sample reaches near the model's own point: a comparison there sees nothing."""

    def __init__(self, scaled: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scaled = scaled
        with torch.no_grad():
            self.f.bias -= 50.0

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.scaled(self.f(x))))


@pytest.mark.parametrize(
    "scaled",
    [
        lambda h: h * h.shape[0],
        lambda h: h / len(h),
        lambda h: h + 0.1 * h.numel(),
        lambda h: h * torch.full((h.size(0), 1), float(h.size(0))).to(h),
        lambda h: h * torch.ones(9).to(h)[: h.size(0)].sum(),
        lambda h: h.sin() if len(h) == 3 else h,
    ],
    ids=["shape", "len", "numel", "full", "slice", "branch"],
)
def test_the_size_of_a_batch_decides_no_value_of_what_is_compiled(scaled: Any) -> None:
    model = Dead(scaled)
    land = pl.Landscape(model, nn.MSELoss(), (X, Y))
    moved = land.theta.clone()
    moved[12:16] += 50.0
    got, slopes = land.losses(points=moved[None])[0], land.gradient(moved)
    with torch.no_grad():
        nn.utils.vector_to_parameters(moved, model.parameters())
    want = nn.MSELoss()(model(X), Y)
    first = torch.autograd.grad(want, tuple(model.parameters()))
    assert np.isclose(got, want.item(), rtol=1e-12)
    assert torch.allclose(slopes, torch.cat([g.flatten() for g in first]), rtol=1e-10)


def test_shapes_of_a_batch_are_compiled() -> None:
    class Shapes(Base):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 4, batch_first=True).double()

        def forward(self, x: Tensor) -> Tensor:
            n, h = x.size(0), self.h(x)
            steps = h.view(n, 2, 2).reshape(-1, 2, h.numel() // (2 * n))
            return self.o(self.rnn(steps, h.new_zeros(1, n, 4))[0][:, -1])

    assert pl.Landscape(Shapes(), nn.MSELoss(), (X, Y)).engine == "native"


def test_random_numbers_that_only_a_later_call_draws_leave_the_users_state() -> None:
    """The objective takes a part of the model; whether a loss is known is tried with all of it."""

    class Draws(Base):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1.0 + random.random() + np.random.rand())  # noqa: NPY002

    def objective(m: Any, b: Any) -> Tensor:
        return (m.o(m.h(b[0])) - b[1]).square().mean()

    before = random.getstate(), np.random.get_state()[2]  # noqa: NPY002
    pl.Landscape(Draws(), data=(X, Y), objective=objective)
    assert (random.getstate(), np.random.get_state()[2]) == before  # noqa: NPY002
