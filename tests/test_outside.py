"""State outside of the module: what its code keeps in closures, globals, classes and defaults."""

from __future__ import annotations

import array
import ctypes
import functools
import io
import itertools
import linecache
import os
import random
import threading
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from types import SimpleNamespace
from typing import Any

import numpy as np
import outside_settings
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.theta.uses import Uses

X = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
Y = torch.randn(8, 1, generator=torch.Generator().manual_seed(2))
LIST: list[int] = []
COUNT = 0
PAIR = {"n": 0}
CHOSEN = random.Random(3)
LOCAL = threading.local()
LOCAL.n = 0
TENSOR = torch.zeros(())
TABLE = np.zeros(2)
VIEW = memoryview(TABLE)[1:]
VARIABLE: ContextVar[int] = ContextVar("VARIABLE")
SHARED: ContextVar[list[int]] = ContextVar("SHARED", default=[])  # noqa: B039
BYTES = bytearray(1)
PACKED = array.array("d", [0.0])
OF_C = ctypes.c_int(0)
BUFFER = io.BytesIO()
os.environ.setdefault("PYLANDSCAPE_TEST_COUNT", "0")


class Meter:
    """A plain object that counts."""

    def __init__(self) -> None:
        self.n = 0

    def step(self) -> int:
        self.n += 1
        return self.n


class Last(deque):
    """A deque that cannot be made of its contents alone."""

    def __init__(self, length: int) -> None:
        super().__init__([0], maxlen=length)


class Slotted:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0

    def step(self) -> int:
        self.n += 1
        return self.n


class Shared:
    """A class whose instances count together."""

    n = 0
    seen: list[int] = []  # noqa: RUF012

    def step(self) -> int:
        Shared.n += 1
        self.seen.append(Shared.n)
        return len(self.seen)

    @classmethod
    def step_of_the_class(cls) -> int:
        cls.n += 1
        return cls.n


METER = Meter()
WEAK: weakref.WeakKeyDictionary[Meter, int] = weakref.WeakKeyDictionary()


def count_in_global_list() -> int:
    LIST.append(0)
    return len(LIST)


def count_in_global() -> int:
    global COUNT
    COUNT += 1
    return COUNT


def count_through_another() -> int:
    return count_in_global()


def count_in_dict() -> int:
    PAIR["n"] += 1
    return PAIR["n"]


def count_in_default(seen: list[int] = [], *, also: dict[int, int] = {}) -> int:  # noqa: B006
    seen.append(0)
    also[len(seen)] = 1
    return len(also)


def count_on_the_function() -> int:
    count_on_the_function.n = getattr(count_on_the_function, "n", 0) + 1
    return count_on_the_function.n


def count_in_settings() -> int:
    outside_settings.CALLS += 1
    outside_settings.SEEN.append(0)
    return outside_settings.CALLS + len(outside_settings.SEEN)


def count_by_a_generator() -> float:
    return CHOSEN.random()


def count_in_the_thread() -> int:
    LOCAL.n += 1
    return LOCAL.n


def count_in_a_tensor() -> float:
    TENSOR.add_(1)
    return float(TENSOR)


def count_in_tensor_data() -> float:
    TENSOR.data += 1
    return float(TENSOR)


def count_in_an_array() -> float:
    TABLE[0] += 1
    return float(TABLE[0])


def count_in_an_object() -> int:
    return METER.step()


def count_in_a_context() -> int:
    VARIABLE.set(VARIABLE.get(0) + 1)  # which has no value at first
    return VARIABLE.get()


def count_in_a_default_of_contexts() -> int:
    SHARED.get().append(0)
    return len(SHARED.get())


def count_in_bytes() -> int:
    BYTES[0] += 1
    return BYTES[0]


def count_in_a_packed_array() -> float:
    PACKED[0] += 1
    return PACKED[0]


def count_through_a_view() -> float:
    VIEW[0] += 1
    return float(TABLE[1])


def count_in_c() -> int:
    OF_C.value += 1
    return OF_C.value


def count_in_a_buffer() -> int:
    BUFFER.write(b"x")
    return BUFFER.tell()


def count_in_the_environment() -> int:
    os.environ["PYLANDSCAPE_TEST_COUNT"] = str(int(os.environ["PYLANDSCAPE_TEST_COUNT"]) + 1)
    return int(os.environ["PYLANDSCAPE_TEST_COUNT"])


def count_by_weak_keys() -> int:
    WEAK[METER] = WEAK.get(METER, 0) + 1
    return WEAK[METER]


def closure_that_decides_late() -> Callable[[], float]:
    """What the first three calls count shows in the fourth."""
    n = 0

    def count() -> float:
        nonlocal n
        n += 1
        return 5.0 if n > 3 else 1.0

    return count


def closure_of_list() -> Callable[[], int]:
    calls: list[int] = []

    def count() -> int:
        calls.append(0)
        return len(calls)

    return count


def closure_of_number() -> Callable[[], int]:
    n = 0

    def count() -> int:
        nonlocal n
        n += 1
        return n

    return count


def closure_of_two() -> Callable[[], int]:
    """Two functions that share a variable."""
    n = 0

    def step() -> None:
        nonlocal n
        n += 1

    def count() -> int:
        step()
        return n

    return count


def closure_of_containers() -> Callable[[], int]:
    last, kinds, seen = Last(2), Counter(), {0}

    def count() -> int:
        last.append(last[-1] + 1)
        kinds["call"] += 1
        seen.add(last[-1])
        return last[-1] + kinds["call"] + len(seen)

    return count


def add_to(box: SimpleNamespace, *, seen: list[int]) -> int:
    box.n += 1
    seen.append(0)
    return box.n + len(seen)


def decorated() -> Callable[[], int]:
    """As functools.wraps makes it."""
    inner = closure_of_number()

    @functools.wraps(inner)
    def outer() -> int:
        return inner()

    return outer


KINDS: dict[str, Callable[[], Callable[[], float]]] = {
    "a list in a closure": closure_of_list,
    "a number in a closure": closure_of_number,
    "a number that two functions share": closure_of_two,
    "a deque, a counter and a set in a closure": closure_of_containers,
    "a decorated function": decorated,
    "arguments of a partial": lambda: functools.partial(add_to, SimpleNamespace(n=0), seen=[]),
    "a bound method": lambda: Meter().step,
    "a bound method of an object with slots": lambda: Slotted().step,
    "attributes of a class": lambda: Shared().step,
    "a class method": lambda: Shared.step_of_the_class,
    "defaults of a function": lambda: count_in_default,
    "attributes of a function": lambda: count_on_the_function,
    "a global list": lambda: count_in_global_list,
    "a global number": lambda: count_in_global,
    "a global number of another function": lambda: count_through_another,
    "a global dict": lambda: count_in_dict,
    "a global object": lambda: count_in_an_object,
    "a global generator": lambda: count_by_a_generator,
    "a global tensor": lambda: count_in_a_tensor,
    "data of a global tensor": lambda: count_in_tensor_data,
    "a global array": lambda: count_in_an_array,
    "what a thread has": lambda: count_in_the_thread,
    "settings in a file of their own": lambda: count_in_settings,
    "a context variable": lambda: count_in_a_context,
    "the default of a context variable": lambda: count_in_a_default_of_contexts,
    "a bytearray": lambda: count_in_bytes,
    "an array.array": lambda: count_in_a_packed_array,
    "a memoryview": lambda: count_through_a_view,
    "data of C": lambda: count_in_c,
    "a file in memory": lambda: count_in_a_buffer,
    "the environment": lambda: count_in_the_environment,
    "weak keys": lambda: count_by_weak_keys,
    "a number that decides from the fourth call on": closure_that_decides_late,
}


class Net(nn.Module):
    def __init__(self, count: Callable[[], float] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.out, self.count = nn.Linear(2, 3), nn.Linear(3, 1), count

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.fc(x))
        return self.out(y if self.count is None else y * self.count())


def counted_twice(theta: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
    """L and its gradient where the two batches get the factors a and b."""
    net = Net()
    with torch.no_grad():
        nn.utils.vector_to_parameters(theta, net.parameters())
    parts = [
        F.mse_loss(net.out(torch.tanh(net.fc(x)) * c), y, reduction="sum")
        for x, y, c in zip(X.split(4), Y.split(4), (a, b), strict=True)
    ]
    value = sum(parts) / 8
    grads = torch.autograd.grad(value, list(net.parameters()))
    return value.detach(), torch.cat([g.reshape(-1) for g in grads])


def probed(make: Callable[[], Callable[[], float]], count: Callable[[], float]) -> Any:
    """What the user's own state gives from here on, without moving it."""
    kept = [LIST.copy(), PAIR.copy(), TABLE.tolist()]
    return (kept, COUNT, CHOSEN.getstate(), LOCAL.n, TENSOR.item(), METER.n, Shared.n,
            list(Shared.seen), vars(count_on_the_function).copy(), count_in_default.__defaults__,
            str(count_in_default.__kwdefaults__), outside_settings.CALLS,
            len(outside_settings.SEEN), state_of(count), VARIABLE.get(None), len(SHARED.get()),
            bytes(BYTES), PACKED.tolist(), OF_C.value, BUFFER.getvalue(), BUFFER.tell(),
            os.environ["PYLANDSCAPE_TEST_COUNT"], dict(WEAK))  # fmt: skip


def state_of(x: Any) -> Any:
    """The contents of a function's cells, of a partial's arguments, of a method's object."""
    if isinstance(x, functools.partial):
        return str((x.args, x.keywords))
    owner = getattr(x, "__self__", None)
    if owner is not None and not isinstance(owner, type):
        return getattr(owner, "n", None)
    cells = [c.cell_contents for c in getattr(x, "__closure__", None) or ()]
    return [state_of(c) if callable(c) else str(c) for c in cells]


RARER = {"a deque, a counter and a set in a closure", "a global number of another function",
         "the default of a context variable", "an array.array", "data of C", "weak keys",
         "a bound method of an object with slots", "a decorated function"}  # fmt: skip
CASES = [
    (kind, "module" if i % 2 else "objective", "torch")
    for i, kind in enumerate(KINDS)
    if kind not in RARER
]
OTHERS = [(kind, "module", "auto") for kind in KINDS]
OTHERS += [(kind, "objective" if i % 2 else "module", "torch") for i, kind in enumerate(KINDS)]


@pytest.mark.parametrize(
    ("kind", "where", "engine"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.ci) for case in OTHERS if case not in CASES)],
)
def test_state_of_code_is_that_of_the_making_at_every_point_and_stays_the_users(
    kind: str, where: str, engine: str
) -> None:
    count = KINDS[kind]()
    before = probed(KINDS[kind], count)
    net = Net(count if where == "module" else None)
    data = list(zip(X.split(4), Y.split(4), strict=True))
    if where == "module":
        land = pl.Landscape(net, nn.MSELoss(), data, engine=engine)
    else:
        land = pl.Landscape(
            net,
            objective=lambda m, b: F.mse_loss(m.out(torch.tanh(m.fc(b[0])) * count()), b[1]),
            data=data,
            engine=engine,
        )
    assert probed(KINDS[kind], count) == before
    points = land.theta + 0.3 * torch.randn(3, land.n_params, generator=torch.manual_seed(5))
    values = land.losses(points=points)
    slopes = [land.gradient(p) for p in points]
    assert probed(KINDS[kind], count) == before
    factors = count(), count()  # what the user's own first two calls give
    for theta, value, slope in zip(points, values, slopes, strict=True):
        want, gradient = counted_twice(theta, *factors)
        assert value == pytest.approx(float(want), rel=1e-5)
        torch.testing.assert_close(slope.float(), gradient, rtol=1e-4, atol=1e-5)
    after = probed(KINDS[kind], count)
    assert np.array_equal(land.losses(points=points), values)  # the user's steps do not reach it
    torch.testing.assert_close(land.gradient(points[1]), slopes[1], rtol=0, atol=0)
    assert probed(KINDS[kind], count) == after


def numbers() -> Iterator[int]:
    yield from range(1, 1000)


@pytest.mark.parametrize(
    "source", [numbers(), itertools.count(1), iter(range(1, 1000)), (i + 1 for i in range(1000))]
)
def test_state_that_no_one_can_put_back_is_refused_by_name(source: Any) -> None:
    def late() -> float:
        return 1.0 if next(source) < 6 else 2.0

    for count in (late, functools.partial(next, source)):
        with pytest.raises(
            pl.InvalidArgument, match=r"takes from an iterator \(a \w+\).*keeps state"
        ):
            pl.Landscape(Net(count), nn.MSELoss(), (X, Y), engine="torch")


def test_an_iterator_that_only_numbers_notes_is_the_codes_own() -> None:
    notes: list[tuple[int, float]] = []
    source = itertools.count()

    def objective(m: nn.Module, b: Any) -> Tensor:
        value = F.mse_loss(m(b[0]), b[1])
        notes.append((next(source), value.item()))
        return value

    land = pl.Landscape(Net(), objective=objective, data=[(X, Y)])
    made = len(notes)
    assert land.loss(land.theta + 1) == notes[-1][1]
    found = [i for i, _ in notes]
    assert len(found) == made + 1
    assert found == sorted(set(found))


LARGE = torch.ones(5_000_000)


def test_a_large_tensor_that_code_changes_is_refused() -> None:
    def scale() -> float:
        LARGE[0] += 1
        return float(LARGE[0])

    with pytest.raises(pl.InvalidArgument, match=r"\(5000000,\).* changed in place by its code"):
        pl.Landscape(Net(scale), nn.MSELoss(), (X, Y), engine="torch")


def test_state_that_a_failing_run_leaves_is_put_back() -> None:
    seen: list[int] = []

    def fails(o: Tensor, t: Tensor) -> Tensor:
        seen.append(0)
        raise ValueError("a loss that fails")

    with pytest.raises(ValueError, match="a loss that fails"):
        pl.Landscape(Net(), fails, (X, Y))
    assert not seen


def test_a_variable_that_copied_and_shared_functions_count_in_stays_one() -> None:
    net, n = Net(), 0
    weight = net.fc.weight

    def step() -> None:  # holds the module's tensor: made anew for the copy
        nonlocal n
        n += 1
        assert weight.shape == (3, 2)

    def count() -> int:  # does not, but for step
        return n

    def objective(m: nn.Module, b: Any) -> Tensor:
        step()
        return count() * F.mse_loss(m(b[0]), b[1])

    land = pl.Landscape(net, objective=objective, data=[(X, Y)], engine="torch")
    assert land.loss() == pytest.approx(float(F.mse_loss(net(X), Y).detach()), rel=1e-6)
    assert n == 0


@pytest.mark.parametrize("draws", [False, True])
def test_notes_that_no_value_depends_on_stay_the_users(draws: bool) -> None:
    net, calls = Net(), [0]
    losses: list[float] = []

    def objective(m: nn.Module, b: Any) -> Tensor:
        calls[0] += 1
        value = F.mse_loss(m(b[0]), b[1]) * (1 + random.random() if draws else 1)
        losses.append(float(value.detach()))
        return value

    land = pl.Landscape(net, objective=objective, data=[(X, Y)], engine="torch")
    made = calls[0]
    assert made == len(losses) > 0
    found = land.losses(np.array([[0.0], [1.0]]), torch.ones(1, land.n_params))
    assert calls[0] == made + 2
    assert losses[-2:] == found.tolist()


class Record:
    """Notes as a training loop takes them."""

    def __init__(self) -> None:
        self.steps, self.best, self.mean = 0, float("inf"), 0.0
        self.losses: dict[str, list[float]] = {"train": []}

    def update(self, value: float) -> None:
        self.steps += 1
        self.losses["train"].append(value)
        if value < self.best:
            self.best = value
        self.mean = 0.9 * self.mean + 0.1 * value
        if self.steps % 2 == 0:
            self.report()

    def report(self) -> None:
        if self.steps < 3:
            return
        print(self.steps, self.best)


def test_notes_beside_state_that_l_depends_on_stay_the_users() -> None:
    net, record = Net(), Record()
    calls = [0]
    losses: list[float] = []

    def objective(m: nn.Module, b: Any) -> Tensor:
        calls[0] += 1
        value = calls[0] * F.mse_loss(m(b[0]), b[1])
        losses.append(value.item())
        record.update(value.item())
        return value

    land = pl.Landscape(net, objective=objective, data=[(X, Y)], engine="torch")
    made = len(losses)
    assert made > 0
    found = land.losses(np.array([[0.0], [1.0]]), torch.ones(1, land.n_params))
    assert losses[made:] == record.losses["train"][made:] == found.tolist()
    assert record.steps == len(losses)
    assert record.best == min(losses)
    assert record.mean > 0
    assert calls == [0]
    assert found[0] == pytest.approx(F.mse_loss(net(X), Y).item(), rel=1e-6)


def test_what_is_only_read_beside_state_is_read_as_it_stands() -> None:
    setup = SimpleNamespace(scale=2.0, calls=0)

    def objective(m: nn.Module, b: Any) -> Tensor:
        setup.calls += 1
        return setup.calls * setup.scale * F.mse_loss(m(b[0]), b[1])

    land = pl.Landscape(Net(), objective=objective, data=[(X, Y)], engine="torch")
    before = land.loss()
    setup.scale = 4.0
    assert land.loss() == pytest.approx(2 * before)
    assert setup == SimpleNamespace(scale=4.0, calls=0)


def test_state_that_code_changes_only_far_away_is_held_from_there_on() -> None:
    seen = [0]

    def objective(m: nn.Module, b: Any) -> Tensor:
        value = F.mse_loss(m(b[0]), b[1])
        if value.item() > 50:
            seen[0] += 1
        return value * (1 + seen[0])

    land = pl.Landscape(Net(), objective=objective, data=[(X, Y)], engine="torch")
    points = torch.stack([land.theta, 0 * land.theta + 30])
    first = land.losses(points=points.repeat(2, 1))
    assert first.tolist() == 2 * first[:2].tolist()
    assert land.losses(points=points).tolist() == first[:2].tolist()
    assert seen == [0]


def test_a_user_inside_a_context_of_their_own_stays_in_it() -> None:
    def ask() -> tuple[float, int | None]:
        land = pl.Landscape(Net(count_in_a_context), nn.MSELoss(), (X, Y), engine="torch")
        return land.loss(), VARIABLE.get(None)

    context = copy_context()
    context.run(VARIABLE.set, 4)
    value, left = context.run(ask)
    assert left == 4
    assert value == pytest.approx(float(counted_twice(nn.utils.parameters_to_vector(
        Net().parameters()).detach(), 5, 5)[0]), rel=1e-6)  # fmt: skip


def made(source: str) -> types.CodeType:
    """The code of a function f in a file of its own."""
    name = f"<{hash(source)}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    scope: dict[str, Any] = {}
    exec(compile(source, name, "exec", dont_inherit=True), scope)
    return scope["f"].__code__


@pytest.mark.parametrize(
    ("body", "read"),
    [
        ("global n; n += 1", False),
        ("global n; n += 1; return x * n", True),
        ("global n; n += 1\n    if n > 2: return 2 * x\n    return x", True),
        ("global n; n = max(n, x.item()); return x", False),
        ("n.append(x.item()); return x", False),
        ("n.append(x.item()); return x / len(n)", True),
        ("last = n[-1]; n.append(x + last); return x", False),
        ("last = n[-1]; n.append(x); y = last + x; return y", True),
        ("n['k'] = n.get('k', 0) + 1; return n['k']", True),
        ("print(n); n.append(1); return x", False),
        ("known(n); return x", True),
        ("if n[0] % 9 == 0: print(x)\n    n[0] += 1; return x", False),
        ("for each in n: x = x + each\n    n.append(1); return x", True),
        ("for each in n: each.append(x)\n    return x", False),
        ("n.count += 1; return getattr(n, 'count') * x", True),
        ("with n: return x", True),
        ("assert n.pop() < 3; return x", True),
        ("getattr(n, x)(); return x", True),
        ("setattr(known, x, 1); n.append(x); return x", False),
        ("known.step(n); return x", True),
        ("one = known[n[0]]; n[0] += 1; return one.value", True),
        ("try: n['k']\n    except KeyError: x = 2 * x\n    n['k'] = 1; return x", True),
        ("if n[0] > 3: return\n    n[0] += 1", False),
        ("if n[0] > 3: return\n    n[0] += 1; known.append(x); return x", True),
        ("yield n", True),
        ("return [x * each for each in n]", True),
        ("return (lambda: n)()", True),
    ],
)
def test_the_text_of_code_tells_what_it_reads(body: str, read: bool) -> None:
    uses = Uses([made(f"def f(x, known=0):\n    {body}\n")])
    assert (uses.reads("n") or uses.reads("count") or uses.reads("k")) == read


def test_what_code_only_reads_is_read_as_it_stands(monkeypatch: Any) -> None:
    net = Net(lambda: PAIR["scale"])
    monkeypatch.setitem(PAIR, "scale", 2.0)
    land = pl.Landscape(net, nn.MSELoss(), (X, Y), engine="torch")
    for scale in (2.0, 3.0):
        monkeypatch.setitem(PAIR, "scale", scale)
        with torch.no_grad():
            assert land.loss() == pytest.approx(float(F.mse_loss(net(X), Y)), rel=1e-6)


def test_a_change_that_comes_late_leaves_what_the_user_has_and_later_what_was_there_first() -> None:
    left: list[int] = []

    class Late(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if left:
                left[0] -= 1
                return super().forward(x) + left[0]
            return super().forward(x)

    torch.manual_seed(0)
    land = pl.Landscape(Late(2, 1), nn.MSELoss(), (X, Y), engine="torch")
    points = land.theta.repeat(3, 1)
    first = land.losses(points=points)
    left.append(5)
    shown = land.losses(points=points)
    assert len({*shown}) == 1
    assert shown[0] != first[0]
    assert left == [5]
    assert np.array_equal(land.losses(points=points), first)
    assert left == [5]
