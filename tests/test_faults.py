"""Faults that were found, each as the right value or error: the landscape is that of the model."""

from __future__ import annotations

import copy
import itertools
import re
import resource
import subprocess
import sys
import textwrap
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pylandscape as pl
from pylandscape.compat import hessian_eigenthings, pyhessian
from pylandscape.errors import PylandscapeError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch.jit
]
ENGINES = ("auto", "torch")


def own_gradient(loss, module):
    """(n,) of the user's own backward pass."""
    g = torch.autograd.grad(
        loss, list(module.parameters()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.reshape(-1) for part in g]).double()


def own_product(loss, module, v):
    """H v (n,) by a second backward pass."""
    ps = list(module.parameters())
    kw = {"allow_unused": True, "materialize_grads": True}
    g = torch.autograd.grad(loss, ps, create_graph=True, **kw)
    total = torch.cat([part.reshape(-1) for part in g]) @ v
    return torch.cat([p.reshape(-1) for p in torch.autograd.grad(total, ps, **kw)]).double()


def close(got, want, rtol=2e-5):
    got, want = torch.as_tensor(got).double(), torch.as_tensor(want).double()
    assert float((got - want).norm()) <= rtol * max(1.0, float(want.norm())), (got, want)


def tiny(act=nn.Tanh, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), act(), nn.Linear(3, 1)).to(dtype)


def regression(samples=20, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 2, generator=generator, dtype=dtype)
    return x, torch.randn(samples, 1, generator=generator, dtype=dtype)


def refused(f, *words):
    """f raises an error of the package whose text holds each of the words."""
    with pytest.raises(PylandscapeError) as caught:
        f()
    for word in words:
        assert re.search(word, str(caught.value), re.IGNORECASE), str(caught.value)


def says(text, *words):
    for word in words:
        assert re.search(word, str(text), re.IGNORECASE), str(text)


def right_or_refused(f, want, *words):
    try:
        got = f()
    except PylandscapeError as error:
        says(error, *words)
    else:
        close(got, want)


# 1. Files answer for another model.

ASKED = {
    "line": lambda land, path: pl.line(land, np.ones(land.n_params), (0, 1, 3), path=path).values,
    "walk": lambda land, path: (
        pl.gradient_walk(land, walks=2, steps=3, seed=0, path=path, progress=False).losses
    ),
    "spectrum": lambda land, path: pl.spectrum(land, 1, 5, path=path, progress=False).nodes,
    "eigenpairs": lambda land, path: pl.eigenpairs(land, 1, path=path, progress=False).values,
    "classes": lambda land, path: (
        pl.classify(land, np.tile(land.theta, (2, 1)), path=path, progress=False).eigenvalues
    ),
    "critical": lambda land, path: (
        pl.find_critical_points(
            land, np.tile(land.theta, (2, 1)), max_iter=3, path=path, progress=False
        ).final_losses
    ),
}


@pytest.mark.parametrize("question", ASKED)
def test_a_finished_file_answers_for_its_own_model_only(question, tmp_path):
    path = tmp_path / "answer.h5"
    ask = ASKED[question]
    first, second = (
        pl.Landscape(tiny(act), nn.MSELoss(), regression()) for act in (nn.Sigmoid, nn.Softplus)
    )
    want = np.asarray(ask(first, path))
    np.testing.assert_array_equal(np.asarray(ask(first, path)), want)
    try:
        got = ask(second, path)
    except PylandscapeError:
        return
    np.testing.assert_allclose(got, ask(second, tmp_path / "other.h5"))


@pytest.mark.parametrize("question", ["line", "walk", "eigenpairs"])
def test_a_finished_file_answers_for_its_own_free_loss_only(question, tmp_path):
    path = tmp_path / "answer.h5"
    scales = (1.0, 9.0)
    losses = [lambda o, t, c=c: c * (o - t).pow(2).mean() for c in scales]
    losses += [_scaled(c) for c in (2.0, 3.0)]
    answers = []
    for loss in losses:
        land = pl.Landscape(tiny(), loss, regression())
        try:
            answers.append(np.asarray(ASKED[question](land, path)))
        except PylandscapeError:
            answers.append(None)
    assert answers[0] is not None
    for loss, got in zip(losses[1:], answers[1:], strict=True):
        if got is not None:
            other = pl.Landscape(tiny(), loss, regression())
            np.testing.assert_allclose(got, ASKED[question](other, tmp_path / "other.h5"))


def _scaled(c):
    def loss(o, t):
        return c * (o - t).abs().mean()

    return loss


# 2. The live module is read later.


def test_later_changes_of_the_module_do_not_reach_the_landscape():
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    m[0].requires_grad_(False)
    x, y = torch.randn(9, 3), torch.randint(0, 2, (9,))
    land = pl.Landscape(m, "cross_entropy", (x, y), params=("2.*",))
    want = float(F.cross_entropy(m(x), y).detach())
    with torch.no_grad():
        m[1].running_mean += 1.0
        m[0].weight += 1.0
    close(land.loss(), want)
    close(pl.gradients(land, land.theta[None].double()).losses[0], want)
    close(pl.hessians(land, land.theta[None].double()).losses[0], want)


# 3. Threads.


def test_products_from_two_threads_are_those_of_one():
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
    land = pl.Landscape(m, "cross_entropy", (torch.randn(30, 6), torch.randint(0, 2, (30,))))
    v, at = torch.ones(land.n_params), [land.theta, -land.theta]
    for name in ("gauss_newton_product", "hvp"):
        product = getattr(land, name)
        want = [np.asarray(product(v, t)) for t in at]
        seen = []

        def run(i, product=product, want=want, seen=seen):
            try:
                for _ in range(400):
                    if np.abs(np.asarray(product(v, at[i])) - want[i]).max() > 1e-6:
                        seen.append("another number")
            except Exception as error:
                seen.append(repr(error))

        both = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert not seen, (name, set(seen))


# 4. Derivatives are autograd's.


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


class Cut(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(2, 3), nn.Linear(3, 1), how

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if self.how == "no_grad":
            with torch.no_grad():
                h = torch.tanh(self.a(x))
        elif self.how == "detach":
            h = h.detach()
        elif self.how == "data":
            h = h.data
        elif self.how == "hook" and h.requires_grad:
            h.register_hook(lambda g: 0.1 * g)
        elif self.how == "function":
            h = Reversal.apply(h)
        elif self.how == "decorated":
            h = self.frozen(x)
        elif self.how == "centred":
            h = h - h.mean(1, keepdim=True).detach()
        elif self.how == "straight through":
            h = h + (torch.round(4 * h) / 4 - h).detach()
        return self.b(h)

    @torch.no_grad()
    def frozen(self, x):
        return torch.tanh(self.a(x))


CUTS = (
    "no_grad", "decorated", "detach", "data", "hook", "function", "centred", "straight through",
)  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", CUTS)
def test_derivatives_are_those_of_the_users_own_backward(how, engine):
    net, (x, y) = Cut(how), regression(8, torch.float32)
    land = pl.Landscape(net, nn.MSELoss(), (x, y), engine=engine)
    v = torch.randn(land.n_params)
    close(land.loss(), float(F.mse_loss(net(x), y).detach()))
    close(land.gradient(), own_gradient(F.mse_loss(net(x), y), net))
    close(land.hvp(v), own_product(F.mse_loss(net(x), y), net, v))


@pytest.mark.parametrize("how", ["detach", "function", "straight through"])
def test_a_gradient_that_is_not_the_slope_of_the_values_is_said(how):
    land = pl.Landscape(Cut(how), nn.MSELoss(), regression(8, torch.float32))
    said = str(land.engine_report())
    assert re.search("slope|gradient|derivative", said), said
    curve = pl.line(land, np.ones(land.n_params), (-1, 1, 3), progress=False)
    assert re.search("slope|gradient|derivative", str(curve.check())), str(curve.check())


# 5. The forward pass writes into its input.


class Writes(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.fc, self.how = nn.Linear(2, 1), how

    def forward(self, x):
        if self.how == "minus":
            x -= 1.0
        elif self.how == "leaky":
            F.leaky_relu_(x, 0.1)
        elif self.how == "item":
            x[:, 0] = x[:, 1] * 2 + 1
        else:
            x = self.inplace(x)
        return self.fc(x)

    inplace = nn.ReLU(inplace=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["minus", "leaky", "item", "relu"])
def test_what_the_forward_pass_writes_into_its_input_does_not_last(how, engine):
    net, (x, y) = Writes(how), regression(4, torch.float32)
    want = float(F.mse_loss(net(x.clone()), y).detach())
    kept = x.clone()
    land = pl.Landscape(net, nn.MSELoss(), (x, y), engine=engine)
    for _ in range(3):
        close(land.loss(), want)
        close(land.gradient(), own_gradient(F.mse_loss(net(x.clone()), y), net))
    close(land.model_loss(), want)
    assert torch.equal(x, kept)


# 6. State kept between calls.


class Keeps(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.fc, self.how, self.h = nn.Linear(2, 1), how, torch.zeros(4, 1)
        self.register_buffer("b", torch.zeros(4, 1))

    def forward(self, x):
        y = self.fc(x)
        if self.how == "attribute":
            self.h = torch.tanh(y + self.h).detach()
            return self.h + y
        kept = self.b if self.how == "buffer" else self.h
        kept.mul_(0.5).add_(y.detach())
        return kept + y


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["attribute", "buffer", "tensor"])
def test_state_is_that_of_the_module_at_every_point(how, engine):
    net, (x, y) = Keeps(how), regression(4, torch.float32)
    fresh = copy.deepcopy(net)
    want = float(F.mse_loss(fresh(x), y).detach())

    def ask():
        land = pl.Landscape(net, nn.MSELoss(), (x, y), engine=engine)
        t = land.theta
        values = [land.losses(points=torch.stack([t, t, t])) for _ in range(2)]
        ends = [
            pl.line(land, np.ones(3), a, progress=False).values for a in ((-1, 1, 5), (0, 1, 3))
        ]
        np.testing.assert_array_equal(ends[0][2:], ends[1])
        return np.concatenate(values)

    right_or_refused(ask, np.full(6, want), "state|attribute|buffer|between")
    assert float(net.h.abs().max() + net.b.abs().max()) == 0.0


# 7. Parameters reached outside module attributes.


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.ws = [self.fc.weight]

    def forward(self, x):
        return self.fc(x) + x @ self.ws[0].T


@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_in_a_list_move(engine):
    net, (x, y) = Listed(), regression(8, torch.float32)

    def ask():
        land = pl.Landscape(net, nn.MSELoss(), (x, y), engine=engine)
        return torch.cat([torch.tensor([land.loss(land.theta * 0)]).double(), land.gradient()])

    want = own_gradient(F.mse_loss(net(x), y), net)
    right_or_refused(ask, torch.cat([(y**2).mean()[None].double(), want]), "list|parameter")


def test_parameters_that_a_criterion_holds_move():
    net, (x, y) = nn.Linear(2, 1), regression(8, torch.float32)
    held = list(net.parameters())

    def criterion(o, t):
        return F.mse_loss(o, t) + 5 * sum(p.pow(2).sum() for p in held)

    def ask():
        land = pl.Landscape(net, criterion, (x, y))
        return land.loss(land.theta * 2), land.hvp(torch.ones(3)).tolist()

    doubled = copy.deepcopy(net)
    with torch.no_grad():
        [p.mul_(2) for p in doubled.parameters()]
    decay = 5 * sum(p.pow(2).sum() for p in doubled.parameters())
    want = float((F.mse_loss(doubled(x), y) + decay).detach())
    try:
        loss, product = ask()
    except PylandscapeError as error:
        says(error, "loss|criterion|parameter")
    else:
        close(loss, want)
        close(product, own_product(criterion(net(x), y), net, torch.ones(3)))
    top = pyhessian.hessian(net, criterion, data=(x, y), cuda=False).eigenvalues(tol=1e-8)[0]
    assert top[0] >= 10.0


# 8. Two functions of one network.


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.e, self.t = nn.Embedding(9, 8, padding_idx=0), nn.TransformerEncoder(layer, 1)
        self.o = nn.Linear(8, 2)

    def forward(self, i):
        return self.o(self.t(self.e(i), src_key_padding_mask=i == 0).mean(1))


@pytest.mark.parametrize("engine", ENGINES)
def test_losses_and_gradients_are_of_the_same_function(engine):
    net = Padded().eval().double()
    i, y = torch.tensor([[1, 2, 3, 0, 0]]), torch.tensor([0])
    land = pl.Landscape(net, nn.CrossEntropyLoss(), (i, y), engine=engine)
    close(land.loss(), float(F.cross_entropy(net(i), y).detach()))
    g = land.gradient()
    e, u = 1e-4, g / g.norm()
    slope = (land.loss(land.theta + e * u) - land.loss(land.theta - e * u)) / (2 * e)
    close(slope, float(g.norm()), 1e-5)


# 9. Re-entrant checkpointing.


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        x = x.clone().requires_grad_() if torch.is_grad_enabled() else x
        return self.b(torch.sort(checkpoint(self.a, x, use_reentrant=True)).values)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_reentrant_checkpoint_has_its_gradient_or_is_refused(engine):
    net = Checkpointed()
    x, y = torch.randn(8, 2), torch.randint(0, 2, (8,))
    own = copy.deepcopy(net)
    F.cross_entropy(own(x), y).backward()
    want = torch.cat([p.grad.reshape(-1) for p in own.parameters()])
    land = pl.Landscape(net, nn.CrossEntropyLoss(), (x, y), engine=engine)
    right_or_refused(land.gradient, want, "checkpoint")
    v, e = torch.randn(land.n_params), 1e-2
    try:
        product = land.hvp(v)
    except PylandscapeError as error:
        says(error, "checkpoint")
    else:
        ahead, behind = land.gradient(land.theta + e * v), land.gradient(land.theta - e * v)
        close(product, (ahead - behind) / (2 * e), 5e-2)


# 10. Batch norm at another point.


def normed(seed):
    torch.manual_seed(seed)
    m = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    for _ in range(5):
        m(torch.randn(32, 1, 8, 8) * (seed + 1) + seed)
    return m.eval()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("given", ["module", "state dict"])
def test_another_model_brings_its_running_statistics(given, engine):
    a, b = normed(0), normed(2)
    x, y = torch.randn(16, 1, 8, 8), torch.randint(0, 3, (16,))
    want = float(F.cross_entropy(b(x), y).detach())
    land = pl.Landscape(a, "cross_entropy", (x, y), engine=engine)
    other = b if given == "module" else b.state_dict()
    words = ("statistic|buffer|running|bn=",)
    right_or_refused(lambda: land.loss(other), want, *words)
    right_or_refused(
        lambda: land.gradient(other), own_gradient(F.cross_entropy(b(x), y), b), *words
    )
    right_or_refused(
        lambda: pl.interpolate(land, [a, other], x=(0, 1, 3), progress=False).values[-1],
        want, *words,
    )  # fmt: skip


def test_check_compares_with_the_other_models_own_loss():
    a, b = normed(0), normed(2)
    x, y = torch.randn(16, 1, 8, 8), torch.randint(0, 3, (16,))
    land = pl.Landscape(a, "cross_entropy", (x, y))
    try:
        curve = pl.line(land, np.ones(land.n_params), (-1e-3, 1e-3, 3), theta=b, progress=False)
    except PylandscapeError as error:
        says(error, "statistic|buffer|running|bn=")
    else:
        close(curve.values[1], float(F.cross_entropy(b(x), y).detach()))


# 11. No derivative at all.


def _zero_one(m, b):
    return torch.tensor(float((m(b[0]).argmax(1) != b[1]).float().mean()))


@torch.no_grad()
def _undifferentiated(m, b):
    return F.cross_entropy(m(b[0]), b[1])


def _item(m, b):
    return F.cross_entropy(m(b[0]), b[1]).item()


@pytest.mark.parametrize("objective", [_zero_one, _undifferentiated, _item])
def test_derivatives_of_what_has_none_are_refused(objective):
    m, x, y = nn.Linear(3, 2), torch.randn(8, 3), torch.randint(0, 2, (8,))
    land = pl.Landscape(m, objective=objective, data=[(x, y)])
    close(land.loss(), float(objective(m, (x, y))))
    words = ("gradient|derivative|differentiable",)
    refused(land.gradient, *words)
    refused(lambda: land.hvp(torch.ones(8)), *words)
    refused(lambda: pl.trace(land, progress=False), *words)
    refused(lambda: pl.eigenpairs(land, 1, progress=False), *words)


# 12. Words that are not true.


@pytest.mark.parametrize("bn", ["batch", "eval", "recompute"])
def test_the_report_says_where_derivatives_run(bn, monkeypatch):
    m = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))
    land = pl.Landscape(m, "cross_entropy", (torch.randn(9, 2), torch.arange(9) % 2), bn=bn)
    assert land.engine == "native"
    said = re.search("torch", str(land.engine_report())) is not None
    used = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: used.append(1) or grad(*a, **k))
    land.gradient()
    land.hvp(torch.ones(land.n_params))
    assert said == bool(used), str(land.engine_report())


def test_a_bfloat16_model_says_so():
    m = nn.Linear(2, 2).bfloat16()
    land = pl.Landscape(m, "cross_entropy", (torch.randn(6, 2).bfloat16(), torch.arange(6) % 2))
    says(land.engine_report(), "bfloat16")


def test_a_module_as_a_direction_names_target_direction():
    a, b = tiny(), tiny(nn.ReLU)
    land = pl.Landscape(a, "mse", regression())
    refused(lambda: pl.line(land, b, progress=False), "target_direction")
    refused(lambda: pl.plane(land, b, np.ones(land.n_params), progress=False), "target_direction")


# 13 to 15. Eigenvalues: loose tolerances, tiny matrices, bits.


def _off(seed, tol):
    """By how much "converged" ends are off, of the norm."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    d = 0.2 * rng.standard_normal(60)
    d[:2] = 5, 4.95
    a = (q * d) @ q.T
    r = pl.eigenpairs((a + a.T) / 2, 1, tol=tol, seed=seed, progress=False)
    return abs(r.values[0] - 5) / 5 if r.converged[0] else 0.0


def test_a_neighbour_is_not_taken_for_the_largest_eigenvalue():
    off = [_off(seed, 1e-3) for seed in range(200)]
    assert max(off) <= 1e-3, [i for i, error in enumerate(off) if error > 1e-3]


@pytest.mark.slow
def test_converged_ends_are_off_by_more_than_tol_in_less_than_a_thousandth_of_runs():
    assert sum(_off(seed, 1e-3) > 1e-3 for seed in range(3000)) <= 2


@pytest.mark.parametrize("scale", [1e-160, 1e-165, 1e-200, 1e-300, 1e300])
def test_matrices_of_any_norm_are_scaled_first(scale):
    d = np.linspace(-1, 3, 50)
    r = pl.eigenpairs(np.diag(d) * scale, 2, progress=False)
    np.testing.assert_allclose(r.values / scale, d[[-1, -2]], rtol=1e-6)
    assert np.all(r.converged)
    norm = pl.frobenius_norm(np.diag(d) * scale, 60)
    assert float(norm.value) / scale == pytest.approx(np.linalg.norm(d), rel=0.2)
    s = pl.spectrum(np.diag(d) * scale, 1, 50, progress=False)
    assert np.nanmax(np.asarray(s.nodes)) / scale == pytest.approx(3.0, rel=1e-6)


def test_bits_do_not_depend_on_the_threads():
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            m = nn.Sequential(
                nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)
            )
            x, y = torch.randn(600, 8), torch.randint(0, 3, (600,))
            land = pl.Landscape(m, "cross_entropy", (x, y))
            starts = np.random.default_rng(0).standard_normal((4, land.n_params))
            pairs = pl.eigenpairs(land, 2, progress=False)
            ends = pl.find_critical_points(land, starts, max_iter=8, progress=False)
            found.append(
                {
                    "values": pairs.values.tobytes(),
                    "vectors": np.asarray(pairs.vectors).tobytes(),
                    "residuals": pairs.residuals.tobytes(),
                    "trace": np.asarray(pl.trace(land, 20).value).tobytes(),
                    "diagonal": np.asarray(pl.diagonal(land, 20).value).tobytes(),
                    "critical": ends.final_losses.tobytes(),
                }
            )
    finally:
        torch.set_num_threads(before)
    assert [k for k in found[0] if found[0][k] != found[1][k]] == []


# 16. In the drop-ins.


def test_hessian_eigenthings_compat_with_the_first_batch_alone():
    net, (x, y) = nn.Linear(2, 1), regression(8, torch.float32)
    for version in ("1.0.0a5",):
        op = hessian_eigenthings.HessianOperator(
            net, [(x, y)], _supervised, full_dataset=False, compat=version
        )
        close(op.matvec(torch.ones(3)), own_product(F.mse_loss(net(x), y), net, torch.ones(3)))
    from pylandscape.compat import patched

    with patched(compat={"hessian_eigenthings": "1.0.0a5"}):
        op = hessian_eigenthings.HessianOperator(net, [(x, y)], _supervised, full_dataset=False)
        close(op.matvec(torch.ones(3)), own_product(F.mse_loss(net(x), y), net, torch.ones(3)))


def _supervised(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def test_lanczos_takes_at_most_the_products_it_is_given():
    calls = []
    a = np.diag(np.linspace(1.0, 2.0, 40))

    def product(v):
        calls.append(len(v))
        return v @ torch.as_tensor(a).to(v)

    op = pl.SymmetricOperator(40, product, dtype=torch.float64)
    for most in (5, 8, 12):
        calls.clear()
        hessian_eigenthings.lanczos(op, k=2, max_iter=most, tol=1e-14)
        assert sum(calls) <= most


class Mine(RuntimeError):
    pass


def _fails(o, t):
    raise Mine("the user's own")


DROP_INS = {
    "landscape": lambda net, loss, x, y: pl.Landscape(net, loss, (x, y)).loss(),
    "pyhessian": lambda net, loss, x, y: pyhessian.hessian(
        net, loss, data=(x, y), cuda=False
    ).eigenvalues(),
    "hessian_eigenthings": lambda net, loss, x, y: hessian_eigenthings.compute_hessian_eigenthings(
        net, [(x, y)], loss, 1, use_gpu=False
    ),
    "operator": lambda net, loss, x, y: hessian_eigenthings.HessianOperator(
        net, [(x, y)], lambda m, b: loss(m(b[0]), b[1])
    ).matvec(torch.ones(3)),
}


@pytest.mark.parametrize("name", DROP_INS)
def test_a_runtime_error_of_the_users_loss_is_caught_as_one(name):
    x, y = regression(8, torch.float32)
    with pytest.raises(RuntimeError, match="the user's own"):
        DROP_INS[name](nn.Linear(2, 1), _fails, x, y)


@pytest.mark.parametrize("name", [n for n in DROP_INS if n != "landscape"])
def test_an_error_of_the_users_loss_keeps_its_type_in_a_drop_in(name):
    x, y = regression(8, torch.float32)
    with pytest.raises(Mine, match="the user's own"):
        DROP_INS[name](nn.Linear(2, 1), _fails, x, y)


# Raw or misleading errors, refused without need.


def pinn(m, b):
    t = b[0].clone().requires_grad_(True)
    u = m(t)
    return (torch.autograd.grad(u.sum(), t, create_graph=True)[0] + u).pow(2).mean()


def laplacian(m, b):
    one = torch.func.jacfwd(torch.func.jacrev(lambda s: m(s).sum()))
    return (torch.func.vmap(one)(b[0]).flatten(1) + m(b[0])).pow(2).mean()


class Hamiltonian(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.e = net

    def forward(self, x):
        x = x.detach().requires_grad_(True)
        return -torch.autograd.grad(self.e(x).sum(), x, create_graph=True)[0]


def field():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.mark.parametrize("objective", [pinn, laplacian])
def test_an_objective_that_differentiates_has_values_and_derivatives(objective):
    net, z = field(), torch.rand(8, 1)
    land = pl.Landscape(net, objective=objective, data=[(z,)])
    v = torch.randn(land.n_params)
    close(land.loss(), float(objective(net, (z,)).detach()))
    close(land.gradient(), own_gradient(objective(net, (z,)), net))
    close(land.hvp(v), own_product(objective(net, (z,)), net, v), 1e-4)


@pytest.mark.parametrize("loss", [nn.MSELoss(), lambda o, t: (o - t).pow(4).mean()])
def test_a_forward_pass_that_differentiates_has_values_and_derivatives(loss):
    net, z = Hamiltonian(field()), torch.rand(8, 1)
    land = pl.Landscape(net, loss, (z, z))
    v = torch.randn(land.n_params)
    close(land.loss(), float(loss(net(z), z).detach()))
    close(land.gradient(), own_gradient(loss(net(z), z), net))
    close(land.hvp(v), own_product(loss(net(z), z), net, v), 1e-4)
    curve = pl.line(land, np.ones(land.n_params), (-1, 1, 3), progress=False)
    close(curve.values[1], land.loss())


class Fixed(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.size = how, 4
        self.fc, self.gru = nn.Linear(6, 3), nn.GRU(2, 3, batch_first=True)
        self.h0 = nn.Parameter(torch.zeros(1, 4, 3))
        self.register_buffer("b", torch.zeros(4, 3))
        self.z = torch.zeros(4, 3)

    def forward(self, x):
        if self.how == "view":
            return self.fc(x.view(self.size, -1))
        if self.how == "h0":
            return self.gru(x, self.h0)[0][:, -1]
        if self.how == "assert":
            assert x.shape[0] == self.size
        y = self.fc(x.flatten(1))
        if self.how == "buffer":
            return y + self.b
        if self.how == "tensor":
            return y + self.z
        if self.how == "unbind":
            a, b, c, d = y.unbind(0)
            return torch.stack([a, b, c, d])
        if self.how == "bmm":
            return torch.bmm(self.z[:, None], y[:, :, None]).squeeze(1) + y
        return y + torch.zeros(self.size, 3)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize(
    "how", ["view", "buffer", "tensor", "h0", "zeros", "unbind", "assert", "bmm"]
)
def test_a_batch_size_that_is_fixed_in_the_forward_pass_is_kept(how, batches):
    m = Fixed(how)
    x, y = torch.randn(4, 3, 2), torch.randint(0, 3, (4,))
    data = [(x + i, y) for i in range(batches)]
    want = torch.stack([F.cross_entropy(m(a), b) for a, b in data]).mean()
    land = pl.Landscape(m, nn.CrossEntropyLoss(), data if batches > 1 else data[0])
    close(land.loss(), float(want.detach()))
    close(land.gradient(), own_gradient(want, m))


@pytest.mark.parametrize("wrapper", ["data parallel", "compile", "compile aot"])
def test_wrappers_of_torch_are_taken_off(wrapper):
    net, (x, y) = nn.Linear(2, 2), (torch.randn(8, 2), torch.randint(0, 2, (8,)))
    if wrapper == "data parallel":
        given = nn.DataParallel(net)
    else:
        given = torch.compile(net, backend="eager" if wrapper == "compile" else "aot_eager")
    land = pl.Landscape(given, nn.CrossEntropyLoss(), (x, y))
    v = torch.randn(land.n_params)
    assert land.engine == "native"
    close(land.loss(), float(F.cross_entropy(net(x), y).detach()))
    close(land.gradient(), own_gradient(F.cross_entropy(net(x), y), net))
    close(land.hvp(v), own_product(F.cross_entropy(net(x), y), net, v))
    close(land.loss(given), land.loss())


class Graph(nn.Module):
    def __init__(self, adjacency=None):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        if adjacency is not None:
            self.register_buffer("a", adjacency)

    def forward(self, x, a=None):
        return torch.sparse.mm(self.a if a is None else a, self.fc(x))


@pytest.mark.parametrize("where", ["data", "buffer", "objective"])
@pytest.mark.parametrize("form", ["coo", "csr"])
def test_sparse_tensors_work(where, form, tmp_path):
    a = torch.eye(4) + torch.ones(4, 4).tril()
    a = a.to_sparse() if form == "coo" else a.to_sparse_csr()
    x, y, c = torch.randn(4, 3), torch.randint(0, 2, (4,)), nn.CrossEntropyLoss()
    net = Graph(a if where == "buffer" else None)
    if where == "data":
        land = pl.Landscape(net, c, [((x, a), y)])
    elif where == "buffer":
        land = pl.Landscape(net, c, (x, y))
    else:
        data = [(x, a, y)]
        land = pl.Landscape(net, objective=lambda m, b: c(m(b[0], b[1]), b[2]), data=data)
    own = lambda: c(net(x) if where == "buffer" else net(x, a), y)  # noqa: E731
    v = torch.randn(land.n_params)
    close(land.loss(), float(own().detach()))
    close(land.gradient(), own_gradient(own(), net))
    close(land.hvp(v), own_product(own(), net, v))
    land.describe()
    pl.line(land, np.ones(land.n_params), (-1, 1, 3), path=tmp_path / "l.h5", progress=False)


def test_hardsigmoid_has_all_products_that_need_no_second_derivative():
    net, x, y = (
        nn.Sequential(nn.Linear(2, 2), nn.Hardsigmoid()),
        torch.randn(8, 2),
        torch.ones(8).long(),
    )
    land = pl.Landscape(net, nn.CrossEntropyLoss(), (x, y))
    v = torch.randn(land.n_params)
    close(land.gradient(), own_gradient(F.cross_entropy(net(x), y), net))
    rows = torch.stack(
        [own_gradient(F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), net) for i in range(8)]
    )
    close(land.covariance_product(v), rows.T @ (rows @ v.double()) / 8)
    j = torch.stack([own_gradient(net(x)[i, k], net) for i in range(8) for k in range(2)])
    p = torch.softmax(net(x), 1).detach().double()
    h = torch.block_diag(*[torch.diag(r) - torch.outer(r, r) for r in p]) / 8
    close(land.gauss_newton_product(v), j.T @ (h @ (j @ v.double())))


class MaxNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Embedding(4, 2, max_norm=0.5)

    def forward(self, x):
        return self.l(x)


def _ctc(o, t):
    logs = torch.log_softmax(o, -1).view(1, 8, 2).transpose(0, 1)
    return F.ctc_loss(logs, torch.tensor([[1, 1]]), torch.tensor([8]), torch.tensor([2]))


@pytest.mark.parametrize("which", ["hardsigmoid", "ctc", "max_norm"])
def test_a_product_that_torch_has_not_is_refused_by_op_or_near(which):
    torch.manual_seed(3)
    x, y, loss = torch.randn(8, 2), torch.randint(0, 2, (8,)), nn.CrossEntropyLoss()
    net = nn.Sequential(nn.Linear(2, 2), nn.Hardsigmoid())
    words = "hardsigmoid"
    if which == "ctc":
        net, loss, words = nn.Linear(2, 2), _ctc, "ctc"
    elif which == "max_norm":
        net, x, words = MaxNorm(), torch.randint(0, 4, (8,)), "max_norm|renorm|embedding"
    land = pl.Landscape(net, loss, (x, y))
    v, e = torch.randn(land.n_params), 1e-2
    for ask in (land.gradient, lambda: land.hvp(v)):
        try:
            got = ask()
        except PylandscapeError as error:
            says(error, words)
        else:
            if ask == land.gradient:
                own = copy.deepcopy(net)
                close(got, own_gradient(loss(own(x), y), own))
            elif which == "max_norm":  # whose own product is that of the shortened rows
                own = copy.deepcopy(net)
                close(got, own_product(loss(own(x), y), own, v))
            else:
                ends = [land.gradient(land.theta + s * e * v) for s in (1, -1)]
                close(got, (ends[0] - ends[1]) / (2 * e), 5e-2)
    kept = copy.deepcopy(net.state_dict())
    land.loss()
    assert all(torch.equal(kept[k], t) for k, t in net.state_dict().items())


def test_torchscript_is_said_clearly():
    x, y = torch.randn(8, 2), torch.randint(0, 2, (8,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.jit.script(nn.Linear(2, 2))
    try:
        land = pl.Landscape(net, nn.CrossEntropyLoss(), (x, y))
    except PylandscapeError as error:
        says(error, "torchscript|jit|script")
    else:
        close(land.loss(), float(F.cross_entropy(net(x), y).detach()))


LOSSES = {
    "HuberLoss": (nn.HuberLoss(), "real"),
    "L1Loss": (nn.L1Loss(), "real"),
    "SmoothL1Loss": (nn.SmoothL1Loss(), "real"),
    "BCELoss": (nn.BCELoss(), "probability"),
    "KLDivLoss": (nn.KLDivLoss(reduction="batchmean"), "logs"),
    "PoissonNLLLoss": (nn.PoissonNLLLoss(), "real"),
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), "soft"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_torch_are_compiled_or_named(name):
    loss, kind = LOSSES[name]
    last = {"probability": nn.Sigmoid(), "logs": nn.LogSoftmax(1)}.get(kind, nn.Identity())
    net = nn.Sequential(nn.Linear(2, 3), last)
    x, y = torch.randn(8, 2), torch.softmax(torch.randn(8, 3), 1)
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    land = pl.Landscape(net, loss, batches)
    close(land.loss(), float(loss(net(x), y).detach()))
    close(land.gradient(), own_gradient(loss(net(x), y), net))
    if land.engine != "native":
        assert name in str(land.engine_report()) or "soft" in str(land.engine_report())


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        y = self.fc(x)
        return {"loss": y.pow(2).mean()} if self.training else [{"boxes": y}]


def test_a_model_that_has_losses_in_train_mode_only_is_told_of_eval_mode():
    data = [torch.randn(4, 2)]
    refused(
        lambda: pl.Landscape(Detector(), objective=lambda m, b: m(b)["loss"], data=data), "eval"
    )


def test_an_unbatched_sample_is_answered_or_refused_as_one():
    net, x, t = nn.Linear(3, 3), torch.randn(3), torch.tensor([0.2, 0.3, 0.5])
    c = nn.CrossEntropyLoss()
    right_or_refused(
        lambda: pl.Landscape(net, c, (x, t)).loss(), float(c(net(x), t).detach()), "batch|sample"
    )


def test_nan_in_the_data_is_said():
    x, y = regression(6)
    x[2, 1] = float("nan")
    land = None
    try:
        land = pl.Landscape(tiny(), "mse", (x, y))
    except PylandscapeError as error:
        says(error, "nan|finite")
    if land is not None:
        curve = pl.line(land, np.ones(land.n_params), (-1, 1, 3), progress=False)
        said = str(curve.check()) + str(land.engine_report())
        assert re.search(r"data.*(nan|finite)|(nan|finite).*data", said, re.IGNORECASE), said


def test_the_class_of_a_loss_stands_for_its_default_instance_where_it_has_one():
    net, x, y = nn.Linear(2, 2), torch.randn(8, 2), torch.randint(0, 2, (8,))
    want = F.cross_entropy(net(x), y).detach()
    close(pl.Landscape(net, nn.CrossEntropyLoss, (x, y)).loss(), want)

    class Needs(nn.Module):
        def __init__(self, scale):
            super().__init__()

    refused(lambda: pl.Landscape(net, Needs, (x, y)), "instance.*class Needs")


ROWS = np.ones((2, 13))


@pytest.mark.parametrize(
    ("question", "more"),
    [
        (pl.plane, ROWS), (pl.line, ROWS[:1]), (pl.spectrum, ()), (pl.eigenpairs, ()),
        (pl.gradient_walk, ()), (pl.random_walk, ()), (pl.classify, [ROWS]), (pl.convexity, ROWS),
        (pl.find_critical_points, [ROWS]), (pl.monotone_path, (ROWS[0], 0.1)),
        (pl.outliers, [2]), (pl.covariance_spectrum, ()), (pl.functional_distance, ROWS),
        (pl.agreement, [ROWS]), (pl.gradients, [ROWS]), (pl.hessians, [ROWS]),
        (pl.layer_spectra, ()), (pl.hidden_curvature, [ROWS]), (pl.as_directions, [ROWS]),
        (pl.loss_gradient_cloud, [ROWS]), (pl.barriers, [ROWS]), (pl.flatness, ()),
    ],
)  # fmt: skip
def test_a_model_in_place_of_a_landscape_is_told(question, more):
    refused(lambda: question(tiny(), *more), "landscape")


def test_an_output_object_with_a_named_loss_is_told():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return SimpleNamespace(logits=self.fc(x), hidden=None)

    x, y = torch.randn(8, 2), torch.randint(0, 2, (8,))
    refused(lambda: pl.Landscape(Model(), "cross_entropy", (x, y)), "output|logits")


def test_a_hessian_that_is_too_large_is_refused_before_it_is_made():
    net = nn.Linear(1300, 1300)
    land = pl.Landscape(net, "mse", (torch.randn(2, 1300), torch.randn(2, 1300)))
    refused(land.hessian, "1691300|1,691,300|large|bytes|memory")


def test_a_garbage_file_is_told(tmp_path):
    path = tmp_path / "garbage.h5"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    kept = path.read_bytes()
    land = pl.Landscape(tiny(), "mse", regression())
    refused(lambda: pl.load(path), "garbage")
    for ask in ASKED.values():
        refused(lambda ask=ask: ask(land, path), "garbage")
    assert path.read_bytes() == kept


def run(script, seconds=60):
    """A process of its own, with at most 2 GiB of data."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))\n"
    found = subprocess.run(
        [sys.executable, "-c", limit + textwrap.dedent(script)],
        capture_output=True, text=True, timeout=seconds, env=_environment(),
    )  # fmt: skip
    return found.returncode, found.stdout, found.stderr


def _environment():
    import os

    root = str(pl.__path__[0]).rsplit("/", 1)[0]
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_DATA"), reason="no limit on memory here")
def test_an_infinite_stream_of_batches_is_bounded():
    code, out, err = run(
        """
        import torch, pylandscape as pl
        x, y = torch.randn(40_000, 500), torch.randint(0, 2, (40_000,))
        def forever():
            while True: yield x.clone(), y
        try: pl.Landscape(torch.nn.Linear(500, 2), "cross_entropy", forever())
        except pl.PylandscapeError as error: print("refused", error)
        """
    )
    assert code == 0, err[-500:]
    assert out.startswith("refused"), out + err
    assert re.search("endless|infinite|batches|islice", out)


def test_a_capture_is_silent():
    code, out, err = run(
        """
        import torch, pylandscape as pl
        class Net(torch.nn.Module):
            def __init__(self): super().__init__(); self.fc = torch.nn.Linear(2, 2)
            def forward(self, x): return self.fc(x) if x.sum() > 0 else -self.fc(x)
        data = (torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
        print(pl.Landscape(Net(), "cross_entropy", data).engine)
        """
    )
    assert (code, out.strip(), err) == (0, "torch", "")


def test_a_cycle_of_the_same_batches_is_bounded(monkeypatch):
    """Batches that repeat cost no memory: the bound is on their number too."""
    monkeypatch.setattr("pylandscape.theta.data._MOST_BATCHES", 1000)
    batches = itertools.repeat((torch.randn(4, 2), torch.tensor([0, 1, 0, 1])))
    refused(lambda: pl.Landscape(nn.Linear(2, 2), "cross_entropy", batches), "ends.*goes on")


def test_a_loader_of_a_stream_without_an_end_is_bounded(monkeypatch):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return itertools.repeat((torch.randn(2), 1))

    monkeypatch.setattr("pylandscape.theta.data._MOST_BATCHES", 100)
    loader = torch.utils.data.DataLoader(Stream(), 2)
    refused(lambda: pl.Landscape(nn.Linear(2, 2), "cross_entropy", loader), "ends.*goes on")
    assert pl.Landscape(nn.Linear(2, 2), "cross_entropy", loader, max_batches=2).loss() > 0


def test_a_power_between_one_and_two_behind_a_relu_has_finite_products() -> None:
    class Powered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(5, 16), nn.LayerNorm(16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.norm(self.a(x))) ** 1.5)

    torch.manual_seed(0)
    land = pl.Landscape(Powered(), "cross_entropy", (torch.randn(50, 5), torch.randint(3, (50,))))
    assert torch.isfinite(land.hvp(torch.ones(land.n_params))).all()


@pytest.mark.filterwarnings("ignore:L is nan at the model's own parameters")
@pytest.mark.parametrize("engine", ["native", "torch"])
def test_derivatives_where_no_target_counts_are_torchs(engine: str) -> None:
    """Zeros where all are ignored, NaN where the weights of the classes are 0; L is NaN in both."""
    model, x, ignored = nn.Linear(4, 3), torch.randn(6, 4), torch.full((6,), -100)
    weightless = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0, 1.0]))
    for loss, y in ((nn.CrossEntropyLoss(), ignored), (weightless, torch.zeros(6).long())):
        land = pl.Landscape(model, loss, (x, y), engine=engine)
        assert np.isnan(land.loss())
        p = list(model.parameters())
        slopes = torch.autograd.grad(loss(model(x), y), p, create_graph=True)
        want = torch.cat([t.reshape(-1) for t in slopes])
        (bent, _) = torch.autograd.grad(want.sum(), p)
        v = torch.ones(land.n_params)
        torch.testing.assert_close(
            land.gradient().float(), want.detach(), rtol=0, atol=0, equal_nan=True
        )
        assert bool(land.hvp(v).isnan().all()) == bool(bent.isnan().all())
        assert bool(land.per_sample_gradients().isnan().all()) == bool(want.isnan().all())
        assert np.isnan(pl.hessians(land, land.theta[None]).losses).all()


def test_a_backward_pass_in_an_objective_leaves_no_gradient_in_unregistered_layers():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = nn.Linear(2, 2), [nn.Linear(2, 1)]

        def forward(self, x):
            return self.rest[0](torch.tanh(self.first(x)))

    def objective(m, batch):
        value = F.mse_loss(m(batch[0]), batch[1])
        if value.requires_grad:
            value.backward(retain_graph=True)
            m.zero_grad()
        return value

    torch.manual_seed(0)
    m, kept = Hidden(), torch.ones(1, 2)
    m.rest[0].weight.grad = kept
    x, y = torch.randn(6, 2), torch.randn(6, 1)
    want = F.mse_loss(m(x), y).item()
    land = pl.Landscape(m, objective=objective, data=[(x, y)])
    assert land.loss() == pytest.approx(want, rel=1e-6)
    assert m.rest[0].weight.grad is kept
    assert torch.equal(kept, torch.ones(1, 2))
    assert m.rest[0].bias.grad is None
