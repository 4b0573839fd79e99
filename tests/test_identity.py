"""Whose numbers a file holds: another L is refused, with what differs; an equal one is not."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from grid_support import child_environment
from scipy.sparse.linalg import LinearOperator
from torch import nn
from torch.nn.utils import parametrizations

import pylandscape as pl
from pylandscape.errors import ResumeMismatch
from pylandscape.surfaces.grids import interpolate, line, plane
from pylandscape.theta.naming import Record

STEEPNESS = 1.0


class Net(nn.Module):
    """A linear layer, a nonlinearity that `forward` names, and another one."""

    def __init__(self, act=torch.tanh, slope=0.3, shift=0.0, bias=True) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 3, bias=bias), nn.Linear(3, 1)
        self.act, self.slope = act, slope
        self.register_buffer("shift", torch.tensor(shift))
        self.plain = torch.tensor([1.0, 2.0, 3.0])

    def forward(self, x):
        return self.last(self.slope * self.act(self._bent(self.first(x)) + self.shift))

    def _bent(self, h):
        return h * self.plain


class Other(Net):
    """The same modules and settings, another forward pass."""

    def forward(self, x):
        return self.last(self.slope * self.act(self._bent(self.first(x)) + self.shift)) + 1.0


class Straight(Net):
    """Another method that `forward` calls."""

    def _bent(self, h):
        return h + self.plain


def landscape(model=None, loss=None, *, params=None, engine="auto", data=None):
    model = model or Net()
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=gen, dtype=torch.float64))
    model = model.double()
    x, y = (torch.randn(20, n, generator=gen, dtype=torch.float64) for n in (2, 1))
    data = data or (x, y)
    return pl.Landscape(model, loss or nn.MSELoss(), data, params=params, engine=engine)


def square(outputs, target):
    return ((outputs - target) ** 2).mean()


# --- every kind of file --------------------------------------------------------------------------


def points(land):
    return np.random.default_rng(0).normal(size=(2, land.n_params))


def ones(land):
    return np.ones(land.n_params)


KINDS = {
    "line": lambda land, **o: line(land, ones(land), (-1, 1, 3), **o),
    "plane": lambda land, **o: plane(
        land, ones(land), np.arange(land.n_params) - 1.0, (-1, 1, 2), (-1, 1, 2), **o
    ),
    "interpolation": lambda land, **o: interpolate(land, list(points(land)), (0, 1, 3), **o),
    "convexity": lambda land, **o: pl.convexity(
        land, ones(land), np.arange(land.n_params) - 1.0, (-1, 1, 2), (-1, 1, 2), **o
    ),
    "spectrum": lambda land, **o: pl.spectrum(land, 1, 3, **o),
    "eigenpairs": lambda land, **o: pl.eigenpairs(land, 1, tol=1e-2, **o),
    "walks": lambda land, **o: pl.gradient_walk(land, 2, 3, **o),
    "random walks": lambda land, **o: pl.random_walk(land, 2, 3, **o),
    "classes": lambda land, **o: pl.classify(land, points(land), **o),
    "critical points": lambda land, **o: pl.find_critical_points(
        land, points(land), max_iter=2, samples=0, **o
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_file_of_any_kind_is_answered_for_its_own_model_and_loss_only(tmp_path, kind):
    ask = functools.partial(KINDS[kind], path=tmp_path / "r.h5", progress=False)
    made = ask(landscape())
    assert ask(landscape()).info["request"] == made.info["request"]
    with pytest.raises(
        ResumeMismatch, match=r"model: module itself: file .*tanh.*, request .*sigmoid"
    ):
        ask(landscape(Net(torch.sigmoid)))
    with pytest.raises(ResumeMismatch, match=r"loss\.name: file 'mse', request '<lambda>'"):
        ask(landscape(loss=lambda o, t: ((o - t) ** 2).mean()))
    pl.load(tmp_path / "r.h5")


# --- what is told apart --------------------------------------------------------------------------


def scaled(factor):
    return lambda o, t: factor * ((o - t) ** 2).mean()


class Weighted:
    """A callable object."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, o, t):
        return self.factor * square(o, t)


class Heavier(Weighted):
    def __call__(self, o, t):
        return self.factor * square(o, t) + 1.0


def keyword(o, t, factor=1.0):
    return factor * square(o, t)


def steep(o, t):
    return STEEPNESS * square(o, t)


NAMES = {"a", "b", "c", "d"}


def hook_over_a_set(module, inputs, output):
    return output * len(NAMES) if "a" in {"a", "b", "c"} else None


def hooked(hook):
    model = Net()
    model.first.register_forward_hook(hook)
    return model


def normed(dim):
    model = Net()
    parametrizations.weight_norm(model.first, dim=dim)
    return model


def listed(value):
    model = Net()
    model.options = {"scale": [value, "x"]}
    return model


def with_plain(value):
    model = Net()
    model.plain = torch.tensor([1.0, 2.0, value])
    return model


def patched():
    model = Net()
    model.forward = lambda x: model.last(model.first(x))
    return model


def frozen(value):
    model = Net()
    land = landscape(model, params=["first.*"])
    with torch.no_grad():
        model.last.weight.fill_(value)
    return pl.Landscape(model, nn.MSELoss(), land.dataset.batches[0].raw, params=["first.*"])


OTHERS = {
    "settings": (
        lambda: landscape(Net(slope=0.4)),
        r"model: module itself: file .*slope=0\.3.*slope=0\.4",
    ),
    "forward": (lambda: landscape(Other()), r"model: forward of Other: file None"),
    "a method": (lambda: landscape(Straight()), r"model: _bent of Straight"),
    "buffers": (lambda: landscape(Net(shift=0.5)), r"model_state: file"),
    "a plain tensor": (lambda: landscape(with_plain(4.0)), r"model: module itself: file"),
    "nested settings": (lambda: landscape(listed(2.0)), r"model: module itself: file"),
    "a hook": (lambda: landscape(hooked(lambda m, i, o: 2 * o)), r"forward hook of module 'first'"),
    "a parametrisation": (lambda: landscape(normed(0)), r"model: module 'first\.parametriz"),
    "a patched forward": (lambda: landscape(patched()), r"model: code of <lambda>"),
    "no bias": (lambda: landscape(Net(bias=False)), r"model: module 'first': .*bias=None"),
    "class": (lambda: landscape(loss=nn.HuberLoss()), r"loss\.name"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_model_or_loss_is_told_in_words(tmp_path, what):
    other, said = OTHERS[what]
    path = tmp_path / "r.h5"
    land = landscape()
    line(land, np.ones(land.n_params), (-1, 1, 2), path=path, progress=False)
    land = other()
    with pytest.raises(ResumeMismatch, match=said):
        line(land, np.ones(land.n_params), (-1, 1, 2), path=path, progress=False)


def test_other_frozen_weights_are_noticed(tmp_path):
    ask = functools.partial(pl.gradient_walk, walks=1, steps=2, progress=False)
    ask(frozen(1.0), path=tmp_path / "w.h5")
    ask(frozen(1.0), path=tmp_path / "w.h5")
    with pytest.raises(ResumeMismatch, match="model_state"):
        ask(frozen(2.0), path=tmp_path / "w.h5")


LOSSES = {
    "closure": (lambda: scaled(1.0), lambda: scaled(2.0), "loss: factor of <lambda>: file 1.0"),
    "code": (
        lambda: lambda o, t: ((o - t) ** 2).mean(),
        lambda: lambda o, t: ((o - t) ** 4).mean(),
        "loss: code of <lambda>: file 'source ",
    ),
    "default": (
        lambda: keyword,
        lambda: lambda o, t, factor=1.0: factor * square(o, t),
        "loss",
    ),
    "partial": (
        lambda: functools.partial(keyword, factor=1.0),
        lambda: functools.partial(keyword, factor=2.0),
        "loss.function",
    ),
    "object": (lambda: Weighted(1.0), lambda: Weighted(2.0), "loss.function"),
    "object's code": (lambda: Weighted(1.0), lambda: Heavier(1.0), "loss: __call__ of Heavier"),
    "method": (
        lambda: SimpleNamespace(f=Weighted(1.0)).f.__call__,
        lambda: SimpleNamespace(f=Weighted(2.0)).f.__call__,
        "loss.function",
    ),
    "criterion": (lambda: nn.HuberLoss(delta=1.0), lambda: nn.HuberLoss(delta=2.0), "loss"),
    "tensor": (
        lambda: scaled(torch.tensor(1.0)), lambda: scaled(torch.tensor(2.0)), "loss: factor of",
    ),
    "function": (
        lambda: (lambda f: lambda o, t: f(o - t).mean())(torch.abs),
        lambda: (lambda f: lambda o, t: f(o - t).mean())(torch.square),
        "loss: f of <lambda>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LOSSES)
def test_a_free_loss_is_known_by_what_it_computes(what):
    one, other, said = LOSSES[what]
    about = [landscape(loss=make()).describe() for make in (one, one, other)]
    assert about[0] == about[1]
    assert about[0]["loss"] != about[2]["loss"]
    from pylandscape.runs.request import differences, listing

    assert said in listing(differences(about[0], about[2])).replace("file '1.0'", "file 1.0")


def test_a_global_that_the_loss_names_counts(monkeypatch):
    before = landscape(loss=steep).describe()
    monkeypatch.setitem(globals(), "STEEPNESS", 2.0)
    assert landscape(loss=steep).describe()["loss"]["STEEPNESS of steep"] == "2.0"
    assert before["loss"]["STEEPNESS of steep"] == "1.0"


def test_a_function_that_the_loss_calls_counts(monkeypatch):
    before = landscape(loss=keyword).describe()
    monkeypatch.setitem(globals(), "square", lambda o, t: (o - t).abs().mean())
    assert landscape(loss=keyword).describe() != before


@pytest.mark.parametrize("make", [lambda a, b: (a, b), lambda a, b: (scaled(a), scaled(b)),
                                  lambda a, b: (Weighted(a), Weighted(b))])  # fmt: skip
def test_which_of_equal_names_stands_where_counts(make):
    """A, B, A is not A, B, B."""
    if make(1, 2) == (1, 2):
        one, two = (type("Own", (Weighted,), {"power": power}) for power in (1, 2))
        rows = [(one(1), two(1), one(1)), (one(1), two(1), two(1))]
    else:
        (a, b), (c, d) = make(1.0, 2.0), make(1.0, 2.0)
        rows = [(a, b, a), (a, b, b), (a, b, c), (a, b, d)]
    told = []
    for row in rows:
        record = Record()
        record.add("row", row)
        told.append(record.parts)
    for one, two in zip(told[::2], told[1::2], strict=True):
        assert one != two


def test_two_lambdas_of_one_line_are_two():
    one, two = (lambda o, t: (o - t).abs().mean(), lambda o, t: (o - t).square().mean())
    told = []
    for loss in (one, two):
        record = Record()
        record.add("loss", loss)
        told.append(record.parts["code of <lambda>"])
    assert told[0] != told[1]


def test_a_metric_is_known_by_what_it_computes(tmp_path):
    def ask(land, factor):
        def metric(outputs, targets):
            return factor * (outputs - targets).abs().max()

        path = tmp_path / "l.h5"
        return line(land, np.ones(land.n_params), (-1, 1, 2), path=path, progress=False,
                    metrics=[metric])  # fmt: skip

    ask(landscape(), 1.0)
    ask(landscape(), 1.0)
    with pytest.raises(ResumeMismatch, match=r"metrics\[1\]: factor of metric"):
        ask(landscape(), 2.0)


# --- what is not told apart ----------------------------------------------------------------------

COMMENTED = '''
def loss(o, t):
    """A docstring."""
    # a comment
    return ((o - t) ** 2) . mean()
'''
PLAIN = "def loss(o, t):\n    return ((o - t)**2).mean()\n"


def test_layout_comments_and_docstrings_do_not_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    told = []
    for name, text in (("commented_loss", COMMENTED), ("plain_loss", PLAIN)):
        (tmp_path / f"{name}.py").write_text(text)
        module = __import__(name)
        record = Record()
        record.add("loss", module.loss)
        told.append(record.parts)
    assert told[0] == told[1]
    assert told[0]["code of loss"].startswith("source ")


def test_a_file_edited_since_it_was_imported_is_not_taken_for_what_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited_loss.py").write_text(PLAIN)
    module = __import__("edited_loss")
    (tmp_path / "edited_loss.py").write_text(PLAIN.replace("**2", "**4"))
    record = Record()
    record.add("loss", module.loss)
    assert record.parts["code of loss"].startswith("bytecode (Python ")


SCRIPT = """
import json, test_identity as t
land = t.landscape(t.hooked(t.hook_over_a_set), t.Weighted(1.0))
print(json.dumps(land.describe(), sort_keys=True))
"""


def test_another_process_with_other_hashes_and_addresses_gives_the_same_identity():
    told = []
    for seed in ("1", "2"):
        environment = {**child_environment(), "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        told.append(run.stdout)
    assert told[0] == told[1]
    assert "0x" not in told[0]


def test_asking_again_gives_the_same_identity_and_changes_nothing():
    land = landscape(loss=scaled(torch.tensor(1.0)))
    before = torch.random.get_rng_state()
    assert land.describe() == land.describe()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "opaque" not in land.describe()


def test_counters_and_histories_of_a_loss_are_no_part_of_what_it_computes(tmp_path):
    calls, history = 0, []

    def loss(o, t):
        nonlocal calls
        calls += 1
        history.append(calls)
        return square(o, t)

    ask = functools.partial(pl.random_walk, walks=1, steps=2, path=tmp_path / "w.h5")
    made = ask(landscape(loss=loss), progress=False)
    assert calls == len(history) > 0
    assert ask(landscape(loss=loss), progress=False).info == made.info


class Slotted:
    """A loss with a slot, a sentinel and a compiled pattern."""

    __slots__ = ("factor",)
    NONE = object()
    SHAPE: ClassVar = re.compile("a+")

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, o, t):
        return square(o, t) * (1.0 if self.factor is self.NONE else self.factor)


def test_ordinary_objects_of_the_language_are_looked_into():
    told = [landscape(loss=Slotted(factor)).describe() for factor in (1.0, 1.0, 2.0)]
    assert "opaque" not in told[0]
    assert told[0] == told[1]
    assert told[0] != told[2]


# --- what cannot be looked into ------------------------------------------------------------------


class Guarded:
    """A loss with something that no record can tell."""

    def __init__(self, variable):
        self.lock = threading.Lock()
        self.variable = variable

    def __call__(self, o, t):
        with self.lock:
            return float(os.environ["GUARDED"]) * square(o, t)


def test_what_cannot_be_looked_into_is_compared_by_two_losses(tmp_path, monkeypatch):
    def ask(factor):
        monkeypatch.setenv("GUARDED", factor)
        land = landscape(loss=Guarded("GUARDED"))
        return pl.random_walk(land, 1, 2, path=tmp_path / "w.h5", progress=False)

    made = ask("1.0")
    told = made.info["request"]["opaque"]
    assert "lock" in told["what"][0]
    assert len(set(told["numbers"])) == 2
    assert ask("1.0").info == made.info
    with pytest.raises(ResumeMismatch, match=r"opaque\.numbers"):
        ask("1.0000000001")


def operator(matrix, lock=None):
    def product(v):
        with lock or threading.Lock():
            return matrix @ v

    return LinearOperator(matrix.shape, matvec=product, dtype=np.float64)


@pytest.mark.parametrize(
    "wrap", [operator, lambda m: pl.SymmetricOperator(3, lambda v: v @ torch.tensor(m))]
)
def test_a_matrix_known_by_its_products_is_told_from_another(tmp_path, wrap):
    a, b = np.diag([1.0, 2.0, 3.0]), np.diag([1.0, 2.0, 4.0])
    path = tmp_path / "e.h5"
    made = pl.eigenpairs(wrap(a), 1, path=path, progress=False)
    assert pl.eigenpairs(wrap(a), 1, path=path, progress=False).info == made.info
    with pytest.raises(ResumeMismatch, match="operator"):
        pl.eigenpairs(wrap(b), 1, path=path, progress=False)


def test_an_operator_that_cannot_be_looked_into_is_told_by_two_products(tmp_path):
    lock = threading.Lock()
    path = tmp_path / "e.h5"
    values = [np.diag([1.0, 2.0, 3.0])]

    def product(v):
        with lock:
            return values_of()(v)

    def values_of():
        return SimpleNamespace(f=lambda v: v @ torch.tensor(values[0])).f

    op = pl.SymmetricOperator(3, product)
    told = op.describe()
    assert "lock" in told["opaque"]["what"][0]
    assert op.products == 0
    pl.eigenpairs(op, 1, path=path, progress=False)
    pl.eigenpairs(op, 1, path=path, progress=False)
    values[0] = np.diag([1.0, 2.0, 4.0])
    with pytest.raises(ResumeMismatch, match="numbers"):
        pl.eigenpairs(op, 1, path=path, progress=False)


def test_without_a_path_no_function_is_looked_into_or_called_for_it():
    turns = iter(range(100))
    seen = []

    def product(v):
        seen.append((next(turns), len(v)))
        return 2.0 * v

    found = pl.eigenpairs(pl.SymmetricOperator(3, product), 1, progress=False)
    assert sum(rows for _, rows in seen) == found.products
    assert found.info["request"]["operator"]["operator"] == "not looked into"


def test_a_shuffling_loader_is_asked_about(tmp_path):
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 2, generator=gen).double(), torch.randn(20, 1, generator=gen).double()
    dataset = torch.utils.data.TensorDataset(x, y)

    def ask():
        loader = torch.utils.data.DataLoader(dataset, batch_size=5, shuffle=True)
        land = landscape(data=loader)
        return pl.spectrum(land, 1, 2, path=tmp_path / "s.h5", progress=False)

    ask()
    with pytest.raises(ResumeMismatch, match=r"does the loader shuffle\?"):
        ask()


def test_an_objective_is_known_by_what_it_computes():
    def of(power):
        objective = lambda model, batch: ((model(batch[0]) - batch[1]) ** power).mean()  # noqa: E731
        x, y = torch.ones(3, 2), torch.ones(3, 1)
        return pl.Landscape(nn.Linear(2, 1), objective=objective, data=[(x, y)]).describe()["loss"]

    assert of(2) == of(2)
    assert of(2) != of(4)
