"""Modules through capture and lowering: the native engine's numbers are the module's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.lowering.capture import _Tracer
from pylandscape.lowering.interpreter import Lowering
from pylandscape.theta.held_state import same_bits

ACTIVATIONS = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    lambda: nn.LeakyReLU(0.2),
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    lambda: nn.GELU(approximate="tanh"),
    nn.SiLU,
    lambda: nn.Softplus(2.0),
    nn.ELU,
    nn.SELU,
    nn.ReLU6,
    nn.Hardtanh,
]


class Residual(nn.Module):
    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.activation(self.inner(x))


class Gated(nn.Module):
    """Concatenation, product, learnt scale, buffer, scalars: a DAG that is no chain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, 3), nn.Linear(width, 3)
        self.scale = nn.Parameter(torch.randn(3))
        self.register_buffer("shift", torch.randn(1, 3))
        self.out = nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.b(x)) * self.a(x)
        mixed = torch.cat([gate * self.scale, (1 - gate) / 2 + self.shift], dim=-1)
        return self.out(mixed) - 0.1 * x


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, int, int, int]:
    seed = draw(st.integers(0, 2**31))
    features, classes = draw(st.integers(1, 19)), draw(st.integers(1, 6))
    samples = draw(st.integers(1, 70))
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    width = features
    for _ in range(draw(st.integers(0, 4))):
        activation = draw(st.sampled_from(ACTIVATIONS))()
        kind = draw(st.sampled_from(["plain", "plain", "residual", "gated", "norm", "dropout"]))
        if kind == "residual":
            layers.append(Residual(width, activation))
        elif kind == "gated":
            layers.append(Gated(width))
        elif kind == "norm":
            layers.append(nn.LayerNorm(width, elementwise_affine=draw(st.booleans())))
        elif kind == "dropout":
            layers.append(nn.Dropout(0.5))
        else:
            new = draw(st.integers(1, 33))
            layers += [nn.Linear(width, new, bias=draw(st.booleans())), activation]
            width = new
    layers.append(nn.Linear(width, classes))
    return nn.Sequential(*layers), features, classes, samples


LOSSES = ["cross_entropy", "weighted", "smooth", "ignore", "soft", "sum", "mse", "bce", "nll"]


def _problem(name: str, classes: int, n: int) -> tuple[nn.Module, Tensor, nn.Module | None]:
    index = torch.randint(0, classes, (n,))
    weight = torch.rand(classes) + 0.1
    if name == "cross_entropy":
        return nn.CrossEntropyLoss(), index, None
    if name == "weighted":
        return nn.CrossEntropyLoss(weight), index, None
    if name == "smooth":
        return nn.CrossEntropyLoss(weight, label_smoothing=0.2), index, None
    if name == "ignore":
        index[torch.rand(n) < 0.3] = 0
        index[0] = min(1, classes - 1)
        return nn.CrossEntropyLoss(ignore_index=0 if classes > 1 else -100), index, None
    if name == "soft":
        return nn.CrossEntropyLoss(), torch.softmax(torch.randn(n, classes), 1), None
    if name == "sum":
        return nn.CrossEntropyLoss(reduction="sum"), index, None
    if name == "mse":
        return nn.MSELoss(), torch.randn(n, classes), None
    if name == "bce":
        labels = (torch.rand(n, classes) > 0.5).float()
        return nn.BCEWithLogitsLoss(pos_weight=weight), labels, None
    return nn.NLLLoss(weight), index, nn.LogSoftmax(dim=1)


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(networks(), st.sampled_from(LOSSES), st.sampled_from([torch.float32, torch.float64]))
def test_random_networks_match_float64_torch(
    network: tuple[nn.Module, int, int, int], loss_name: str, dtype: torch.dtype
) -> None:
    model, features, classes, samples = network
    loss, y, head = _problem(loss_name, classes, samples)
    if head is not None:
        model = nn.Sequential(model, head)
    model = model.to(dtype).train()
    x = torch.randn(samples, features, dtype=dtype)
    if y.is_floating_point():
        y = y.to(dtype)
    native = pl.Landscape(model, loss, (x, y), engine="native")
    reference = pl.Landscape(
        copy.deepcopy(model).double(),
        copy.deepcopy(loss).double(),
        (x.double(), y.double() if y.is_floating_point() else y),
        engine="torch",
    )
    g = torch.Generator().manual_seed(0)
    d = torch.randn(2, native.n_params, generator=g, dtype=torch.float64).to(dtype) * 0.3
    c = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-0.5, 2.0]], dtype=torch.float64)
    got = native.losses(c, d)
    want = reference.losses(c, d.double())
    points = native.theta.double() + c @ d.double()
    at_points = native.losses(points=points)
    depth = 2 + sum(1 for _ in model.modules())
    tolerance = 20 * torch.finfo(dtype).eps * depth
    # Rounding of a deep residual chain is relative to its activations, not to a loss near zero.
    scale = 1.0 if loss_name != "sum" else samples
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)
    np.testing.assert_allclose(at_points, want, rtol=tolerance, atol=tolerance * scale)


def _native(model: nn.Module, shape: tuple[int, ...] = (5,), classes: int = 3) -> pl.EngineReport:
    x, y = torch.randn(8, *shape), torch.randint(0, classes, (8,))
    return pl.Landscape(model, "cross_entropy", (x, y)).engine_report()


class Functional(nn.Module):
    """Methods, operators, in-place ops and views by the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.view(x.size(0), -1))
        kept = h.reshape(-1, 4)
        h.relu_()  # kept sees it too
        h += 0.5
        h = (h + kept).mul(2).sub(1).neg().abs().clamp(min=0.1, max=9) ** 2
        return F.log_softmax(self.b(h.contiguous()), dim=-1)


def test_functional_style_with_in_place_ops_is_lowered_right() -> None:
    model = Functional()
    x, y = torch.randn(20, 5), torch.randint(0, 3, (20,))
    native = pl.Landscape(model, "nll", (x, y), engine="native")
    assert native.loss() == pytest.approx(native.model_loss(), rel=1e-6)
    # fx loses that `h += 0.5` reaches `kept`; the comparison finds out, and export takes over.
    assert native.engine_report().capture == "export"


def test_per_token_heads_with_extra_dimensions_are_lowered_right() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm((4, 8)), nn.Linear(8, 3))
    x, y = torch.randn(9, 4, 6), torch.randn(9, 4, 3)
    native = pl.Landscape(model, nn.MSELoss(), (x, y), engine="native")
    assert native.loss() == pytest.approx(native.model_loss(), rel=1e-6)


def test_tied_weights_move_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    model = Tied()
    x, y = torch.randn(20, 5), torch.randint(0, 5, (20,))
    native = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    torch_engine = pl.Landscape(model, "cross_entropy", (x, y), engine="torch")
    assert native.n_params == 25 + 5 + 5
    d = torch.randn(2, native.n_params)
    c = np.random.default_rng(0).normal(size=(7, 2))
    np.testing.assert_allclose(native.losses(c, d), torch_engine.losses(c, d), rtol=1e-5)


def test_a_subset_of_parameters_moves_alone() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(20, 5), torch.randint(0, 3, (20,))
    options = {"params": ("2.*",)}
    native = pl.Landscape(model, "cross_entropy", (x, y), engine="native", **options)
    torch_engine = pl.Landscape(model, "cross_entropy", (x, y), engine="torch", **options)
    assert native.n_params == 6 * 3 + 3
    c, d = np.random.default_rng(0).normal(size=(7, 2)), torch.randn(2, native.n_params)
    np.testing.assert_allclose(native.losses(c, d), torch_engine.losses(c, d), rtol=1e-5)


def test_dtype_override_computes_in_float64() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(20, 5), torch.randint(0, 3, (20,))
    native = pl.Landscape(model, "cross_entropy", (x, y), engine="native", dtype=torch.float64)
    exact = pl.Landscape(model.double(), "cross_entropy", (x.double(), y), engine="torch")
    assert native.loss() == pytest.approx(exact.loss(), rel=1e-14)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) if x.sum() > 0 else -self.lin(x)


class OverBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x - x.mean(0, keepdim=True))


class BatchSize(nn.Module):
    """The batch size enters the value: what a trace would freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) / x.shape[0]


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 3))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    return model


def _parametrised() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Branch, "could not be captured"),
        (OverBatch, "rest of their batch"),
        (BatchSize, "how many samples a batch has"),
        (_hooked, "hooks"),
        (_parametrised, "parametrised"),
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.Softshrink()), "softshrink"),
    ],
    ids=["branch", "over-batch", "batch-size", "hook", "parametrised", "rare-op"],
)
def test_what_cannot_be_lowered_runs_on_torch_and_says_why(make: object, reason: str) -> None:
    model = make().eval()
    report = _native(model)
    assert report.engine == "torch"
    assert reason in report.reason
    x, y = torch.randn(8, 5), torch.randint(0, 3, (8,))
    land = pl.Landscape(model, "cross_entropy", (x, y))
    with torch.no_grad():
        assert land.loss() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-6)


def test_asking_for_the_native_engine_in_vain_names_the_op() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.Softshrink())
    with pytest.raises(pl.InvalidArgument, match=r"engine: .*softshrink"):
        pl.Landscape(
            model, "cross_entropy", (torch.randn(4, 5), torch.zeros(4).long()), engine="native"
        )


def test_capture_leaves_the_module_as_it_was() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(5, 3)
            self.last: object = "nothing"

        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            return self.lin(x)

    model = Remembers().train()
    before = torch.get_rng_state()
    report = _native(model)
    assert report.engine == "native"
    assert model.last == "nothing"
    assert model.training
    torch.set_rng_state(before)


@pytest.mark.parametrize(("eps", "times"), [(1e-6, 1), (None, 2)])
def test_a_graph_is_lowered_once_for_all_its_programs_unless_the_dtype_decides(
    eps: float | None, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RMS norm's own eps is that of the dtype: 1e-7 in float32, 1e-16 in float64."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.rms_norm(1e-7 * self.lin(x), (3,), eps=eps)

    lowered = []
    run = Lowering.run
    monkeypatch.setattr(
        Lowering, "run", lambda self, *args: (lowered.append(self), run(self, *args))[1]
    )
    torch.manual_seed(0)
    model, x, y = Small(), torch.randn(200, 5), torch.zeros(200).long()
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    assert len(lowered) == times
    with torch.no_grad():
        want = F.cross_entropy(model(x).double(), y).item()
    assert land.loss() == pytest.approx(want, rel=1e-5)


def test_tuples_are_unpacked_as_torch_fx_does() -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n, _ = x.shape
            (a, b), *rest = x[:, :4].chunk(2, 1), n
            c, d = torch.stack([a, b]).unbind()
            return c + d * len(rest)

    exec_names: dict[str, Any] = {}
    parts = ", ".join(f"a{i}" for i in range(300))
    exec(f"def f(self, x):\n    {parts} = x.unbind(1)\n    return a0 + a299\n", exec_names)
    wide = type("Wide", (nn.Module,), {"forward": exec_names["f"]})
    for model in (Many(), wide()):
        assert str(_Tracer(model).trace(model)) == str(torch.fx.Tracer().trace(model))


@pytest.mark.parametrize("count", [3, 1 << 13, (1 << 17) + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float64])
def test_equal_tensors_are_told_with_nan_and_either_zero(count: int, dtype: torch.dtype) -> None:
    a = torch.arange(count).to(dtype)
    b = a.clone()
    assert same_bits(a, b)
    for place in (0, count // 2, count - 1):
        b[place] += 1
        assert not same_bits(a, b)
        assert not same_bits(a[::2], b[::2]) or place % 2
        b[place] -= 1
    if dtype.is_floating_point:
        a[0], b[0] = 0.0, -0.0
        a[1] = b[1] = float("nan")
        assert same_bits(a, b)
        a[1] = 1.0
        assert not same_bits(a, b)
