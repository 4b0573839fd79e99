"""compat.loss_landscapes: right by default, the original's numbers on request."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pylandscape.compat import loss_landscapes as ours
from pylandscape.compat import report
from pylandscape.compat.loss_landscapes import _directions, metrics
from pylandscape.compat.loss_landscapes.model_interface import model_parameters, model_wrapper
from pylandscape.compat.loss_landscapes.model_interface.model_parameters import ModelParameters
from pylandscape.errors import InvalidArgument, LayoutMismatch

needs_original = pytest.mark.skipif(
    find_spec("loss_landscapes") is None,
    reason="loss-landscapes is not installed: pip install --no-deps loss-landscapes==3.0.6",
)
EPS = float(np.finfo(np.float32).eps)
RTOL = 200 * EPS  # losses of a few dozen float32 operations, at points that rounding moved
LOSS = nn.CrossEntropyLoss()
V = "3.0.6"
FUNCTIONS = ("linear_interpolation", "random_line", "planar_interpolation", "random_plane")


@pytest.fixture(autouse=True)
def _empty_report() -> Iterator[None]:
    report.clear()
    yield
    report.clear()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def data(samples: int = 40) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 6), torch.randint(0, 3, (samples,))


def normed() -> nn.Sequential:
    """With a batch norm, whose bias is zero."""
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def counts() -> dict[str, int]:
    """Evaluations by engine."""
    found: dict[str, int] = {}
    for (_, engine), count in report.counts().items():
        found[engine] = found.get(engine, 0) + count
    return found


class Margin(metrics.Metric):
    """A user's metric."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def __call__(self, model_wrapper: Any) -> float:
        best = model_wrapper.forward(self.x).topk(2, dim=1).values
        return float((best[:, 0] - best[:, 1]).mean())


def ask(package: Any, function: str, models: list[nn.Module], metric: Any, **more: Any) -> Any:
    """The function of the package, of copies of the models, with the same draws each time."""
    torch.manual_seed(7)
    count = {"linear_interpolation": 2, "planar_interpolation": 3}.get(function, 1)
    return getattr(package, function)(*copy.deepcopy(models[:count]), metric, **more)


@needs_original
@pytest.mark.parametrize("steps", [8, 9])
@pytest.mark.parametrize("python_metric", [False, True])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_compat_gives_the_numbers_of_the_original(
    function: str, python_metric: bool, steps: int
) -> None:
    original, models, (x, y) = (
        import_module("loss_landscapes"),
        [network() for _ in range(3)],
        data(),
    )
    metric = Margin(x) if python_metric else metrics.Loss(LOSS, x, y)
    normalizations = ("filter", "layer", "model", None) if "random" in function else (None,)
    for normalization in normalizations:
        more: dict[str, Any] = {"steps": steps}
        if "random" in function:
            more |= {"normalization": normalization, "distance": 1.5}
        want = ask(original, function, models, metric, **more)
        got = ask(ours, function, models, metric, compat=V, **more)
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=RTOL)
    assert list(counts()) == ["python" if python_metric else "native"]


@needs_original
@pytest.mark.parametrize("python_metric", [False, True])
def test_a_line_between_models_is_the_originals_by_default(python_metric: bool) -> None:
    models, (x, y) = [network(), network()], data()
    metric = Margin(x) if python_metric else metrics.Loss(LOSS, x, y)
    want = ask(import_module("loss_landscapes"), "linear_interpolation", models, metric, steps=40)
    got = ask(ours, "linear_interpolation", models, metric, steps=40)
    np.testing.assert_allclose(got, want, rtol=RTOL)


@needs_original
@pytest.mark.parametrize("deepcopy_model", [False, True])
@pytest.mark.parametrize("steps", [4, 9])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_compat_leaves_the_model_where_the_original_does(
    function: str, steps: int, deepcopy_model: bool
) -> None:
    ends, (x, y) = [network() for _ in range(3)], data()
    left = []
    for package, more in ((import_module("loss_landscapes"), {}), (ours, {"compat": V})):
        models = copy.deepcopy(ends)
        count = {"linear_interpolation": 2, "planar_interpolation": 3}.get(function, 1)
        torch.manual_seed(7)
        arguments = {"steps": steps, "deepcopy_model": deepcopy_model, **more}
        getattr(package, function)(*models[:count], metrics.Loss(LOSS, x, y), **arguments)
        flags = [p.requires_grad for model in models for p in model.parameters()]
        left.append((torch.stack([flat(m) for m in models]), flags))
    (want, wanted_flags), (got, flags) = left
    torch.testing.assert_close(got, want, rtol=RTOL, atol=RTOL)
    assert flags == wanted_flags


@pytest.mark.parametrize("python_metric", [False, True])
def test_planes_are_where_the_formula_says(python_metric: bool) -> None:
    models, (x, y) = [network() for _ in range(3)], data()
    theta, one, two = (flat(m).double() for m in models)
    exact = copy.deepcopy(models[0]).double()

    @torch.no_grad()
    def at(theta: Tensor) -> float:
        nn.utils.vector_to_parameters(theta, exact.parameters())
        outputs = exact(x.double())
        if not python_metric:
            return float(LOSS(outputs, y))
        best = outputs.topk(2, dim=1).values
        return float((best[:, 0] - best[:, 1]).mean())

    steps = 20  # more than the points between two that are computed from theta
    metric = Margin(x) if python_metric else metrics.Loss(LOSS, x, y)
    got = ours.planar_interpolation(*models, metric, steps)
    want = [
        [at(theta + i / steps * (one - theta) + j / steps * (two - theta)) for j in range(steps)]
        for i in range(steps)
    ]
    np.testing.assert_allclose(got, want, rtol=RTOL)


def test_random_planes_have_the_model_in_the_middle_and_follow_the_seed() -> None:
    model, (x, y) = network(), data()
    metric = metrics.Loss(LOSS, x, y)
    planes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        planes.append(ours.random_plane(model, metric, steps=6))
    np.testing.assert_allclose(planes[0][3, 3], metric(ours_wrapper(model)), rtol=RTOL)
    np.testing.assert_array_equal(planes[0], planes[1])
    assert not np.array_equal(planes[0], planes[2])
    again = ours.random_plane(model, metric, steps=6)  # draws go on, as torch.rand's do
    assert not np.array_equal(planes[2], again)


def ours_wrapper(model: nn.Module) -> Any:
    return model_wrapper.SimpleModelWrapper(model)


def test_random_directions_are_orthogonal_and_as_long_as_theta() -> None:
    start = ModelParameters([p.detach() for p in network().parameters()])
    one, two = _directions.drawn(start, 2, "filter")
    n = start.numel()
    assert abs(one.dot(two)) <= 10 * n * EPS * start.model_norm() ** 2
    for direction in (one, two):
        assert direction.model_norm() == pytest.approx(start.model_norm(), rel=n * EPS)
    ratios = [one.filter_norm((0, i)) / start.filter_norm((0, i)) for i in range(8)]
    ratios.append(one.layer_norm(1) / start.layer_norm(1))  # a bias is one filter
    np.testing.assert_allclose(ratios, ratios[0], rtol=n * EPS)
    assert min(one[1]) < 0 < max(one[1])  # and keeps its signs


def test_a_zero_filter_stays_where_the_original_divides_by_zero() -> None:
    x, y = data()
    for version in (None, V):
        for function in ("random_line", "random_plane"):
            values = ask(ours, function, [normed().eval()], metrics.Loss(LOSS, x, y), steps=8,
                         compat=version)  # fmt: skip
            assert np.isfinite(values).all()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_callers_model_is_left_as_it_was(mode: str) -> None:
    model, (x, y) = normed().train(mode == "train"), data()
    other = copy.deepcopy(model)
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    for metric in (metrics.Loss(LOSS, x, y), Margin(x)):
        ours.point(model, metric)
        ours.random_line(model, metric, steps=8)
        ours.linear_interpolation(model, other, metric, steps=8)
    with pytest.raises(ZeroDivisionError):
        ours.random_line(model, lambda wrapper: 1 / 0, steps=8)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.requires_grad for p in other.parameters())
    assert all(m.training == (mode == "train") for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@needs_original
def test_the_models_own_mode_counts_as_in_the_original() -> None:
    x, y = data()
    models = [normed().train() for _ in range(2)]
    metric = metrics.Loss(LOSS, x, y)
    original = import_module("loss_landscapes")
    want = ask(original, "linear_interpolation", models, metric, steps=10)
    np.testing.assert_allclose(
        ask(ours, "linear_interpolation", models, metric, steps=10), want, rtol=RTOL
    )
    assert counts() == {"native": 10}
    assert not np.allclose(
        want, ask(ours, "linear_interpolation", [m.eval() for m in models], metric, steps=10)
    )


@needs_original
def test_dropout_in_train_mode_is_not_compiled() -> None:
    x, y = data()
    models: list[nn.Module] = [nn.Sequential(*network(), nn.Dropout(0.5)) for _ in range(2)]
    metric = metrics.Loss(LOSS, x, y)
    original = import_module("loss_landscapes")
    want = ask(original, "linear_interpolation", models, metric, steps=10)
    got = ask(ours, "linear_interpolation", models, metric, steps=10)
    np.testing.assert_allclose(got, want, rtol=RTOL)  # the same masks, too
    assert counts() == {"torch": 10}
    assert "train mode" in report.summary()


def test_what_cannot_be_lowered_is_called_at_every_point() -> None:
    (x, y), models = data(), [network(), network()]
    calls = 0

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(outputs, target)

    got = ours.linear_interpolation(*models, metrics.Loss(loss, x, y), 12)
    want = ours.linear_interpolation(*models, metrics.Loss(LOSS, x, y), 12)
    np.testing.assert_allclose(got, want, rtol=RTOL)
    assert calls == 12
    assert counts() == {"torch": 12, "native": 12}


def test_an_overridden_loss_is_the_users_own_metric() -> None:
    class Twice(metrics.Loss):
        def __call__(self, model_wrapper: Any) -> float:
            return 2 * super().__call__(model_wrapper)

    (x, y), models = data(), [network(), network()]
    twice = ours.linear_interpolation(*models, Twice(LOSS, x, y), 9)
    once = ours.linear_interpolation(*models, metrics.Loss(LOSS, x, y), 9)
    np.testing.assert_allclose(twice, 2 * once, rtol=RTOL)
    assert counts() == {"python": 9, "native": 9}


def test_a_pipeline_compiles_what_it_can() -> None:
    (x, y), models = data(), [network() for _ in range(3)]
    both = metrics.MetricPipeline([metrics.Loss(LOSS, x, y), Margin(x)])
    got = ours.planar_interpolation(*models, both, 4)
    assert got.shape == (4, 4, 2)
    alone = [ours.planar_interpolation(*models, m, 4) for m in both.metrics]
    np.testing.assert_array_equal(got, np.stack(alone, axis=-1))
    assert counts() == {"native": 32, "python": 32}


def test_general_wrappers_are_compiled_too() -> None:
    class Agent:
        def __init__(self) -> None:
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(agent: Agent, x: Tensor) -> Tensor:
        return agent.head(torch.tanh(agent.body(x)))

    agent, (x, y) = Agent(), data()
    wrapper = ours.GeneralModelWrapper(agent, [agent.body, agent.head], forward)
    plain = nn.Sequential(agent.body, nn.Tanh(), agent.head)
    metric = metrics.Loss(LOSS, x, y)
    planes = []
    for model in (wrapper, plain):
        torch.manual_seed(3)
        planes.append(ours.random_plane(model, metric, steps=4))
    np.testing.assert_array_equal(*planes)
    assert counts() == {"native": 32}
    part = ours.GeneralModelWrapper(agent, [agent.head], forward)  # the body stays as it is
    start = agent.body.weight.clone()
    ours.random_line(part, metric, steps=9, compat=V)
    assert torch.equal(agent.body.weight, start)


@needs_original
def test_the_originals_own_metrics_and_wrappers_are_taken() -> None:
    theirs, (x, y), model = import_module("loss_landscapes.metrics"), data(), network()
    interface = import_module("loss_landscapes.model_interface.model_wrapper")
    torch.manual_seed(1)
    want = ours.random_line(model, metrics.Loss(LOSS, x, y), steps=8)
    torch.manual_seed(1)
    wrapper = interface.SimpleModelWrapper(model)
    got = ours.random_line(wrapper, theirs.Loss(LOSS, x, y), steps=8)
    np.testing.assert_array_equal(got, want)
    assert counts() == {"native": 16}


def test_tied_unused_and_scalar_parameters_work() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.head, self.unused = nn.Linear(6, 3), nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.scale * self.b(torch.relu(self.a(x))))

    model, (x, y) = Odd(), data()
    for version in (None, V):
        for metric in (metrics.Loss(LOSS, x, y), Margin(x)):
            values = ask(ours, "random_plane", [model], metric, steps=4, compat=version)
            assert np.isfinite(values).all()
            assert np.ptp(values) > 0


def test_loss_gradient_is_the_gradient() -> None:
    model, (x, y) = network(), data()
    got = ours.point(model, metrics.LossGradient(LOSS, x, y))
    want = torch.autograd.grad(LOSS(model(x), y), list(model.parameters()))
    np.testing.assert_array_equal(got, torch.cat([g.flatten() for g in want]).numpy())
    line = ours.random_line(model, metrics.LossGradient(LOSS, x, y), steps=3)
    assert line.shape == (3, got.size)


def test_loss_perturbations_are_alpha_long() -> None:
    model, (x, y) = network(), data()
    slope = float(np.linalg.norm(ours.point(model, metrics.LossGradient(LOSS, x, y))))
    alpha = 1e-2
    got = ours.point(model, metrics.LossPerturbations(LOSS, x, y, 50, alpha))
    assert got.shape == (50,)
    assert 0 < np.abs(got).max() <= 1.1 * alpha * slope  # to first order |<g, u>| <= |g|


@needs_original
def test_loss_perturbations_of_the_original_on_request() -> None:
    model, (x, y) = network(), data()
    torch.manual_seed(2)
    theirs = import_module("loss_landscapes.metrics").LossPerturbations(LOSS, x, y, 4, 0.1)
    want = import_module("loss_landscapes").point(copy.deepcopy(model), theirs)
    torch.manual_seed(2)
    got = ours.point(model, metrics.LossPerturbations(LOSS, x, y, 4, 0.1, compat=V))
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=RTOL)


def _line(**more: Any) -> Callable[[nn.Module, Any], Any]:
    return lambda model, metric: ours.random_line(model, metric, **more)


BAD: list[tuple[str, type[Exception], Callable[[nn.Module, Any], Any]]] = [
    ("normalization: expected", AttributeError, _line(normalization="x")),
    (
        "normalization: expected",
        AttributeError,
        lambda m, f: ours.random_plane(m, f, normalization="x"),
    ),
    ("steps: expected", ValueError, _line(steps=0)),
    ("steps: expected", ValueError, _line(steps=2.5)),
    ("distance: expected", ValueError, _line(distance=0)),
    ("model: expected a torch.nn.Module", ValueError, lambda m, f: ours.point(lambda x: x, f)),
    ("model: expected a torch.nn.Module", ValueError, lambda m, f: model_wrapper.wrap_model(3)),
    ("metric: expected", ValueError, lambda m, f: ours.random_line(m, 3)),
    ("compat: expected '3.0.6' or None", ValueError, _line(compat="4")),
    (
        "model_end: expected parameters of shapes",
        LayoutMismatch,
        lambda m, f: ours.linear_interpolation(m, nn.Linear(2, 2), f),
    ),
    ("parameters: expected a list of tensors", AttributeError, lambda m, f: ModelParameters([1])),
]


@pytest.mark.parametrize(("message", "kind", "call"), BAD)
def test_mistakes_are_named(
    message: str, kind: type[Exception], call: Callable[[nn.Module, Any], Any]
) -> None:
    x, y = data()
    with pytest.raises(InvalidArgument, match=message) as caught:
        call(network(), metrics.Loss(LOSS, x, y))
    assert isinstance(caught.value, kind)


def test_a_model_of_zeros_is_told_why_it_has_no_filter_norms() -> None:
    model, (x, y) = network(), data()
    for p in model.parameters():
        nn.init.zeros_(p)
    for version in (None, V):
        with pytest.raises(InvalidArgument, match="not all zero"):
            ours.random_line(model, metrics.Loss(LOSS, x, y), compat=version)


@needs_original
def test_every_name_and_signature_of_the_original_is_here() -> None:
    for path in (
        "", ".main", ".metrics", ".metrics.metric", ".metrics.sl_metrics", ".metrics.rl_metrics",
        ".model_interface.model_parameters", ".model_interface.model_wrapper",
    ):  # fmt: skip
        theirs = import_module(f"loss_landscapes{path}")
        mine = import_module(f"pylandscape.compat.loss_landscapes{path}")
        for name, thing in vars(theirs).items():
            home = str(getattr(thing, "__module__", ""))
            own = home.startswith("loss_landscapes") if path in ("", ".metrics") else False
            if name.startswith("_") or not (own or home == theirs.__name__):
                continue
            assert hasattr(mine, name), f"{path}.{name}"
            want = list(inspect.signature(thing).parameters.values())
            got = list(inspect.signature(getattr(mine, name)).parameters.values())
            if name.endswith("normalize"):
                continue  # which pass the order as the reference there, and cannot run
            pairs = [(p.name, p.default) for p in got]
            assert pairs[: len(want)] == [(p.name, p.default) for p in want], name
            public = (
                [k for k in vars(thing) if not k.startswith("_")] if isinstance(thing, type) else []
            )
            assert all(hasattr(getattr(mine, name), k) for k in public), name


@needs_original
def test_model_parameters_have_the_originals_arithmetic() -> None:
    theirs = import_module("loss_landscapes.model_interface.model_parameters")
    a, b = (ModelParameters([torch.randn(3, 4), torch.rand(3) + 0.5]) for _ in range(2))
    c, d = (theirs.ModelParameters([t.clone() for t in v]) for v in (a, b))
    scalars = (a.numel(), len(a), a.dot(b), a.model_norm(), a.layer_norm(1), a.filter_norm((0, 2)))
    wanted = (c.numel(), len(c), c.dot(d), c.model_norm(), c.layer_norm(1), c.filter_norm((0, 2)))
    assert scalars == pytest.approx(wanted, rel=100 * EPS)
    pairs = [(a + b, c + d), (a - b, c - d), (a * 3, c * 3), (3 * a, 3 * c), (a / 3, c / 3)]
    for x, y in [*pairs, (a // 0.3, c // 0.3)]:
        np.testing.assert_array_equal(x.as_numpy(), y.as_numpy())
    for step in ("add_", "sub_"):
        getattr(a, step)(b)
        getattr(c, step)(d)
    for step in ("mul_", "truediv_"):
        getattr(a, step)(1.7)
        getattr(c, step)(1.7)
    a.layer_normalize_(b)
    c.layer_normalize_(d)
    np.testing.assert_allclose(a.as_numpy(), c.as_numpy(), rtol=10 * EPS)
    assert a == ModelParameters([t.clone() for t in a])
    assert a != b
    with pytest.raises(InvalidArgument, match="other: expected tensors of shapes"):
        a.add_(ModelParameters([torch.zeros(2)]))
    rand = model_parameters.rand_u_like(a)
    torch.manual_seed(5)
    mine = model_parameters.orthogonal_to(a)
    torch.manual_seed(5)
    original = theirs.orthogonal_to(theirs.ModelParameters(a.parameters))
    np.testing.assert_allclose(mine.as_numpy(), original.as_numpy(), rtol=1e3 * EPS, atol=10 * EPS)
    assert 0 <= rand.as_numpy().min() <= rand.as_numpy().max() < 1


def test_returns_of_an_environment_are_averaged() -> None:
    class Environment:
        left = 0

        def reset(self) -> tuple[np.ndarray, dict[str, Any]]:
            self.left = 3
            return np.zeros(6), {}

        def step(self, action: Tensor) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            self.left -= 1
            return np.zeros(6), 2.0, self.left == 0, False, {}

    assert ours.point(network(), metrics.ExpectedReturnMetric(Environment(), 2)) == 6.0
