"""Every elementwise kernel, softmax and layer_norm against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from core_support import PROGRAM, QUESTION, outputs_of

from pylandscape._native import core

F = torch.nn.functional
DTYPES = [torch.float32, torch.float64]

# name: (a, b), float64 reference
UNARY = {
    "affine": ((-1.5, 0.25), lambda x: -1.5 * x + 0.25),
    "relu": ((0, 0), torch.relu),
    "leaky_relu": ((0.1, 0), lambda x: F.leaky_relu(x, 0.1)),
    "tanh": ((0, 0), torch.tanh),
    "sigmoid": ((0, 0), torch.sigmoid),
    "gelu": ((0, 0), lambda x: x * torch.special.ndtr(x)),
    "gelu_tanh": ((0, 0), lambda x: F.gelu(x, approximate="tanh")),
    "silu": ((0, 0), F.silu),
    "softplus": ((1.5, 20), lambda x: F.softplus(x, 1.5, 20)),
    "elu": ((0.7, 1.2), lambda x: 1.2 * F.elu(x, 0.7)),
    "clamp": ((-1, 2), lambda x: x.clamp(-1, 2)),
    "hardtanh": ((-1, 2), lambda x: F.hardtanh(x, -1, 2)),
    "square": ((0, 0), torch.square),
    "abs": ((0, 0), torch.abs),
    "exp": ((0, 0), torch.exp),
    "hardswish": ((0, 0), F.hardswish),
    "mish": ((0, 0), F.mish),
    "softsign": ((0, 0), F.softsign),
    "threshold": ((0.3, -1.5), lambda x: F.threshold(x, 0.3, -1.5)),
    "reciprocal": ((1.5, 0), lambda x: 1.5 / x),
    "power": ((3, 0), lambda x: x**3),
    "sin": ((0, 0), torch.sin),
    "cos": ((0, 0), torch.cos),
    "erf": ((0, 0), torch.erf),
}
# Of positive numbers
ROOTS = {
    "log": ((0, 0), torch.log),
    "log1p": ((0, 0), torch.log1p),
    "sqrt": ((0, 0), torch.sqrt),
    "rsqrt": ((0, 0), torch.rsqrt),
    "length": ((0, 0), torch.sqrt),
    "power": ((-2.5, 0), lambda x: x**-2.5),
}
# Relative accuracy everywhere, not only near 1: tanh and elu near 0, sigmoid and gelu in the tail.
# gelu's negative tail is held to |x| (torch's own loses it to 1 + erf).
# softplus(1.5 x) carries the rounding of its argument, times the argument.
RELATIVE_EPS = {"gelu_tanh": 4, "softplus": 24, "silu": 8, "sigmoid": 6, "exp": 4,
                "mish": 8}  # fmt: skip


def _unary(name: str, x: torch.Tensor) -> torch.Tensor:
    return _computed(name, *UNARY[name][0], x)


def _computed(name: str, a: float, b: float, x: torch.Tensor) -> torch.Tensor:
    return outputs_of(
        x.shape[1], x, lambda p, s: p.unary(s, getattr(core.Unary, name), float(a), float(b))
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UNARY)
def test_unary_is_accurate_to_a_few_ulp(name: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    wide = torch.randn(997, 3, generator=g, dtype=torch.float64) * torch.tensor([1e-4, 1.0, 6.0])
    x = wide.to(dtype)
    got, want = _unary(name, x).double(), UNARY[name][1](x.double())
    eps = torch.finfo(dtype).eps
    # Cancellation (affine near its root) is measured against the operands.
    scale = want.abs()
    if name == "affine":
        scale = (1.5 * x.double()).abs() + 0.25
    elif name.startswith("gelu"):
        scale = x.double().abs()
    error = ((got - want).abs() / (scale + 1e-30)).max().item() / eps
    assert error <= RELATIVE_EPS.get(name, 3), f"{name}: {error:.1f} eps"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UNARY)
def test_unary_keeps_nan_and_reaches_its_limits(name: str, dtype: torch.dtype) -> None:
    huge = 1e4
    x = torch.tensor([[math.nan], [-huge], [huge], [0.0]], dtype=dtype)
    got, want = _unary(name, x).double(), UNARY[name][1](x.double())
    assert math.isnan(got[0])
    if dtype == torch.float32:
        want = want.float().double()  # exp overflows where float32 does
    torch.testing.assert_close(got[1:], want[1:], rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_covers_the_whole_range(dtype: torch.dtype) -> None:
    low, high = (-86.5, 88.7) if dtype == torch.float32 else (-707.5, 709.7)
    x = torch.linspace(low, high, 4001, dtype=dtype)[:, None]
    error = (_unary("exp", x).double() / torch.exp(x.double()) - 1).abs().max().item()
    assert error <= 3 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROOTS)
def test_logarithms_and_roots_are_accurate_from_subnormal_to_huge_numbers(
    name: str, dtype: torch.dtype
) -> None:
    (a, b), reference = ROOTS[name]
    least = 1e-42 if dtype == torch.float32 and name != "power" else 1e-12
    x = torch.logspace(math.log10(least), 12, 4001, dtype=torch.float64).to(dtype)[:, None]
    x[:50] = 1 + torch.linspace(-1e-3, 1e-3, 50, dtype=dtype)[:, None]
    got, want = _computed(name, float(a), float(b), x).double(), reference(x.double())
    known = want.float().isfinite() if dtype == torch.float32 else want.isfinite()
    worst = ((got - want) / want.abs().clamp_min(1e-300))[known].abs().max()
    assert worst <= (5 if name == "log1p" else 3) * torch.finfo(dtype).eps
    ends = torch.tensor([[0.0], [-1.0], [math.inf], [math.nan]], dtype=dtype)
    torch.testing.assert_close(
        _computed(name, float(a), float(b), ends), reference(ends), equal_nan=True
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sines_of_large_angles_are_accurate(name: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(2)
    scale = torch.tensor([1.0, 1e2, 1e5, 1e9], dtype=torch.float64)
    x = (torch.randn(500, 4, generator=g, dtype=torch.float64) * scale).to(dtype)
    x[:4, 0] = torch.tensor([math.pi, -math.pi / 2, 0.0, -0.0], dtype=dtype)
    got = _unary(name, x).double()
    worst = (got - getattr(torch, name)(x.double())).abs().max()
    assert worst <= torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("shape", [(1, 5, 1), (3, 4, 2), (2, 1, 3)])
def test_softmax_matches_float64(
    dtype: torch.dtype, log: bool, shape: tuple[int, int, int]
) -> None:
    outer, size, inner = shape
    x = (torch.randn(37, outer * size * inner, dtype=torch.float64) * 30).to(dtype)
    got = outputs_of(x.shape[1], x, lambda p, s: p.softmax(s, log, outer, size, inner))
    f = F.log_softmax if log else F.softmax
    want = f(x.double().reshape(-1, *shape), dim=2).reshape(x.shape)
    eps = torch.finfo(dtype).eps
    # A log-probability near zero keeps the absolute error of the logits that it is a difference of.
    atol = 100 * eps if log else 1e-30
    torch.testing.assert_close(got.double(), want, rtol=4 * eps, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", [1, 15, 16, 17, 300])
def test_layer_norm_matches_float64(dtype: torch.dtype, samples: int) -> None:
    x = (torch.randn(samples, 2 * 7, dtype=torch.float64) + 5).to(dtype)
    got = outputs_of(14, x, lambda p, s: p.layer_norm(s, 2, 7, 1e-5, None, None))
    want = F.layer_norm(x.double().reshape(-1, 2, 7), (7,), eps=1e-5).reshape(x.shape)
    torch.testing.assert_close(got.double(), want, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_binary_ops_are_exact(dtype: torch.dtype, name: str) -> None:
    x = torch.randn(33, 5, dtype=dtype)

    def build(p: object, s: int) -> int:
        squared = p.unary(s, core.Unary.square, 0.0, 0.0)
        return p.binary(getattr(core.Binary, name), s, squared)

    got = outputs_of(5, x, build)
    want = getattr(torch, name)(x, x * x)
    assert torch.equal(got, want)


def test_concat_interleaves_groups() -> None:
    x = torch.arange(12.0).reshape(2, 6)
    got = outputs_of(6, x, lambda p, s: p.concat([s, p.unary(s, core.Unary.square, 0.0, 0.0)], 2))
    pair = x.reshape(2, 2, 3)
    assert torch.equal(got, torch.cat([pair, pair**2], dim=2).reshape(2, 12))


def test_building_rejects_what_does_not_fit() -> None:
    program = core.ProgramF32(10, 0, 0)
    slot = program.input(4)
    with pytest.raises(ValueError, match="outer \\* k"):
        program.linear(slot, 1, 3, 2, 0, None)
    with pytest.raises(ValueError, match="outside its source"):
        program.linear(slot, 1, 4, 3, 0, None)
    with pytest.raises(ValueError, match="unknown slot"):
        program.unary(9, core.Unary.relu, 0.0, 0.0)


def _class_losses(logits: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """The sum of the samples' cross-entropies, and how many are hit."""
    samples, classes = logits.shape
    program = PROGRAM[logits.dtype](0, 0, 0)
    program.finish(program.unary(program.input(classes), core.Unary.affine, 1.0, 0.0))
    program.set_data(samples, logits.data_ptr())
    program.set_loss(core.Loss.cross_entropy, classes, 1, 0.0, [], [], target.data_ptr(), 0)
    loss, hits = np.empty(1), np.empty(1)
    QUESTION[logits.dtype](program, 0, 0, 0).run(1, 0, loss.ctypes.data, hits.ctypes.data, 0)
    return float(loss[0]), float(hits[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 67])
def test_cross_entropy_of_class_indices_is_that_of_float64(
    dtype: torch.dtype, classes: int
) -> None:
    g = torch.Generator().manual_seed(3)
    for scale in (1e-3, 1.0, 30.0, 1e3):
        logits = (scale * torch.randn(45, classes, generator=g, dtype=torch.float64)).to(dtype)
        target = torch.randint(classes, (45,), generator=g)
        logits[3] = logits[3, 0]  # a tie, which the first class wins
        want = F.cross_entropy(logits.double(), target, reduction="sum").item()
        loss, hits = _class_losses(logits, target)
        assert loss == pytest.approx(want, rel=1e-13 if dtype == torch.float32 else 8e-15)
        best = logits.double().numpy().argmax(1)
        assert hits == (best == target.numpy()).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_keeps_tiny_losses_and_what_is_not_finite(dtype: torch.dtype) -> None:
    sure = torch.tensor([[0.0, -30.0, -32.0]], dtype=dtype)
    zero = torch.tensor([0])
    want = torch.log1p(torch.exp(torch.tensor([-30.0, -32.0], dtype=torch.float64)).sum()).item()
    assert _class_losses(sure, zero)[0] == pytest.approx(want, abs=3e-16)
    sure[0, 1] = -math.inf
    assert _class_losses(sure, zero)[0] == pytest.approx(math.exp(-32), abs=3e-16)
    assert _class_losses(sure, zero + 1)[0] == math.inf
    for value in (math.nan, math.inf):
        sure[0, 2] = value
        assert math.isnan(_class_losses(sure, zero + 2)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_underflows_to_zero_and_saturates_at_one(dtype: torch.dtype) -> None:
    low = {torch.float32: -87.0, torch.float64: -708.0}[dtype]
    x = torch.tensor([[low], [1.1 * low], [-low], [-math.inf], [math.inf]], dtype=dtype)
    y = _unary("sigmoid", x)[:, 0].double()
    assert y[0].item() == pytest.approx(math.exp(low), rel=1e-6)
    assert y[1:].tolist() == [0.0, 1.0, 0.0, 1.0]
