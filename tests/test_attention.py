"""Products of two values, attention and a small ViT: the native engine's numbers are torch's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from core_support import PROGRAM, QUESTION, outputs_of
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape._native import core

DTYPES = [torch.float32, torch.float64]
# Of the largest element, over the dozens of ops of a small transformer.
EPS_FACTOR = 200


def error(got: Tensor, want: Tensor, dtype: torch.dtype) -> float:
    """Largest error in eps of the largest element."""
    scale = want.abs().max().clamp_min(1e-300)
    return float((got.double() - want.double()).abs().max() / scale) / torch.finfo(dtype).eps


def check(
    model: nn.Module,
    x: Tensor,
    dtype: torch.dtype = torch.float64,
    classes: int = 3,
    factor: float = EPS_FACTOR,
) -> pl.Landscape:
    """Loss, accuracy, gradient, products and per-sample gradients against float64 torch."""
    y = torch.randint(0, classes, (len(x),))
    exact = pl.Landscape(
        copy.deepcopy(model).double(), "cross_entropy", (x.double(), y), engine="torch"
    )
    land = pl.Landscape(model.to(dtype), "cross_entropy", (x.to(dtype), y), engine="native")
    v = torch.randn(2, land.n_params, dtype=torch.float64)
    for got, want in (
        (land.losses(points=land.theta[None]), exact.losses(points=exact.theta[None])),
        (land.gradient(), exact.gradient()),
        (land.hvp(v.to(dtype)), exact.hvp(v.to(dtype).double())),
        (land.gauss_newton_product(v.to(dtype)), exact.gauss_newton_product(v.to(dtype).double())),
        (land.per_sample_gradients(), exact.per_sample_gradients()),
    ):
        assert error(torch.as_tensor(got), torch.as_tensor(want), dtype) <= factor
    return land


def ops(land: pl.Landscape) -> tuple[str, ...]:
    assert land.engine == "native"
    return tuple(str(land.engine_report()).split("ops: ")[1].rstrip(")").split(", "))


# The kernel, straight on the core


def _multiplied(
    x: Tensor, y: Tensor, dtype: torch.dtype, merged: bool = False, scale: float = 1.0
) -> Tensor:
    """(samples, outer, m, k) times (samples, outer, k, n), or (samples, m, outer, n) if merged."""
    samples, outer, m, k = x.shape
    n = y.shape[-1]
    data = torch.cat([x.flatten(1), y.flatten(1)], 1).to(dtype)
    first = torch.arange(outer)

    def build(p: Any, s: int) -> int:
        z, zi = (first * n, outer * n) if merged else (first * m * n, n)
        return p.matmul(
            s, s, (m, n, k), (k, 1, n, 1, zi, 1), (first * m * k).tolist(),
            (x[0].numel() + first * k * n).tolist(), z.tolist(), scale,
        )  # fmt: skip

    out = outputs_of(data.shape[1], data, build)
    return out.view(samples, m, outer, n) if merged else out.view(samples, outer, m, n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("samples", "outer", "m", "k", "n"),
    [(1, 1, 1, 1, 1), (17, 2, 3, 5, 7), (33, 1, 9, 4, 13), (40, 3, 4, 6, 6), (5, 1, 2, 171, 25)],
)
def test_products_match_float64_for_odd_sizes(
    dtype: torch.dtype, samples: int, outer: int, m: int, k: int, n: int
) -> None:
    x = torch.randn(samples, outer, m, k).to(dtype)
    y = torch.randn(samples, outer, k, n).to(dtype)
    want = 0.3 * (x.double() @ y.double())
    bound = (x.double().abs() @ y.double().abs()) * torch.finfo(dtype).eps * (k + 2)
    for merged in (False, True):
        got = _multiplied(x, y, dtype, merged, 0.3).double()
        assert bool(((got - (want.transpose(1, 2) if merged else want)).abs() <= (
            bound.transpose(1, 2) if merged else bound)).all())  # fmt: skip


def test_a_product_that_does_not_fit_is_refused() -> None:
    program = PROGRAM[torch.float32](0, 0, 0)
    x = program.input(12)
    args = ((3, 3, 4), (4, 1, 1, 4, 3, 1), [0], [0], [0], 1.0)
    program.matmul(x, x, *args)
    for at, other in (
        (1, (4, 2, 1, 4, 3, 1)),  # reads beyond the operand
        (1, (4, 1, 1, -4, 3, 1)),  # and before it
        (1, (4, 1, 1, 4, 3, 0)),  # writes rows twice
        (2, [1]),
        (2, [0, 0]),
        (0, (0, 3, 4)),
    ):
        wrong = [*args[:at], other, *args[at + 1 :]]
        with pytest.raises(ValueError, match="matmul"):
            program.matmul(x, x, *wrong)


# Calls


class Calls(nn.Module):
    """A linear layer to (tokens, width), one call in the middle, a linear read-out."""

    def __init__(self, call: Callable[..., Tensor], tokens: int = 5, width: int = 6) -> None:
        super().__init__()
        self.call, self.tokens, self.width = call, tokens, width
        self.enter = nn.Linear(7, tokens * width)
        self.w, self.v = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(5, 5))
        self.heads, self.b = nn.Parameter(torch.randn(2, 3, 4)), nn.Parameter(torch.randn(4))
        self.row = nn.Parameter(torch.randn(6))
        with torch.no_grad():
            some = self.call(self, torch.randn(2, tokens, width))
        self.leave = nn.Linear(some[0].numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x)).view(-1, self.tokens, self.width)
        return self.leave(self.call(self, h).flatten(1))


def _split(h: Tensor) -> Tensor:
    return h.view(-1, 5, 2, 3).transpose(1, 2)


CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "x x^T": lambda m, h: h @ h.transpose(1, 2),
    "x^T x": lambda m, h: torch.matmul(h.mT, h),
    "bmm of slices": lambda m, h: torch.bmm(h[:, 1:4, ::2], h[:, :3, 1:4]),
    "bmm of a flip": lambda m, h: torch.bmm(h.flip(1), h.transpose(1, 2)),
    "heads": lambda m, h: _split(h) @ _split(h).mT,
    "broadcast heads": lambda m, h: _split(h) @ h.view(-1, 1, 10, 3).mT,
    "expanded": lambda m, h: h[:, :1].expand(-1, 5, -1) @ h.mT,
    "uneven rows": lambda m, h: torch.cat([h, h[:, :2]], 1).roll(1, 1) @ h.mT,
    "x W": lambda m, h: h @ m.w,
    "x W + b": lambda m, h: torch.relu(torch.matmul(h, m.w) + m.b),
    "x W^T": lambda m, h: h[..., :4] @ m.w.t(),
    "x W, sliced": lambda m, h: h[..., :3] @ m.w[2:5] + h @ m.w,
    "x W, columns": lambda m, h: h @ m.w[:, 1:3],
    "W x": lambda m, h: m.v @ h,
    "W^T x": lambda m, h: m.w.t() @ h.mT,
    "one W per head": lambda m, h: _split(h) @ m.heads,
    "W and its own transpose": lambda m, h: (h @ m.w) @ m.w.T,
    "x w": lambda m, h: h @ m.row,
    "w x": lambda m, h: m.row @ h.mT,
    "addmm": lambda m, h: torch.addmm(m.b, h[:, 0], m.w, alpha=0.5),
    "baddbmm": lambda m, h: torch.baddbmm(m.v, h, h.mT, alpha=0.5),
    "baddbmm without its input": lambda m, h: torch.baddbmm(m.v, h, h.mT, beta=0),
    "einsum q k": lambda m, h: torch.einsum("bihd,bjhd->bhij", *2 * [h.view(-1, 5, 2, 3)]),
    "einsum p v": lambda m, h: torch.einsum("bhij,bjhd->bihd", h.view(-1, 1, 5, 6)[..., :5],
                                           h.view(-1, 5, 1, 6)),
    "einsum x W": lambda m, h: torch.einsum("bnd,de->bne", h, m.w),
    "einsum W x": lambda m, h: torch.einsum("de, bnd -> ebn", m.w, h).transpose(0, 1),
    "einsum of heads": lambda m, h: torch.einsum("bnhd,hde->bnhe", h.view(-1, 5, 2, 3), m.heads),
    "einsum of two k": lambda m, h: torch.einsum("bnhd,hde->bne", h.view(-1, 5, 2, 3), m.heads),
    "einsum, outer": lambda m, h: torch.einsum("bi,bj->bij", h[:, 0], h[:, 1]),
    "einsum, implicit": lambda m, h: torch.einsum("abc,cd", h, m.w),
    "einsum, elementwise": lambda m, h: torch.einsum("abc,abc->acb", h, h),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_every_product_has_its_value_and_derivatives(name: str) -> None:
    check(Calls(CALLS[name]), torch.randn(19, 7))


@pytest.mark.parametrize("name", ["x x^T", "heads", "x W", "einsum of heads"])
def test_products_in_float32(name: str) -> None:
    check(Calls(CALLS[name]), torch.randn(35, 7), torch.float32)


def test_frozen_operands_move_nothing() -> None:
    model = Calls(CALLS["x W"])
    model.w.requires_grad_(False)
    check(model, torch.randn(6, 7))


def test_products_run_with_points_as_lanes() -> None:
    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x)).view(-1, 2, 3)
            return self.b((h @ h.mT).flatten(1))

    model, x, y = Gram(), torch.randn(4, 4), torch.tensor([0, 1, 1, 0])
    native = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    assert native.native.program.lanes
    exact = pl.Landscape(copy.deepcopy(model).double(), "cross_entropy", (x.double(), y))
    points = native.theta + 0.3 * torch.randn(37, native.n_params)
    got, want = native.losses(points=points), exact.losses(points=points.double())
    assert error(torch.tensor(got), torch.tensor(want), torch.float32) <= EPS_FACTOR


def test_points_are_lanes_only_where_all_samples_fit_the_cache() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            found: Tensor = F.scaled_dot_product_attention(h, h, h).mean(1)
            return found

    y = torch.arange(4)
    for tokens, lanes in ((2, True), (64, False)):
        land = pl.Landscape(Attention(), "cross_entropy", (torch.randn(4, tokens, 3), y))
        assert land.native.program.lanes is lanes


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "over the batch": (lambda m, h: (h.flatten(1) @ h.flatten(1).T) @ h.flatten(1), "batches"),
    "einsum over the batch": (lambda m, h: torch.einsum("bij,cij->bc", h, h)[:, :1], "batches"),
    "a sum over a parameter": (lambda m, h: torch.einsum("bij,jk->bi", h, m.w), "a sum over"),
    "a diagonal": (lambda m, h: torch.einsum("bii,bj->bj", h[..., :5], h[:, 0]), "a diagonal"),
    "beta": (lambda m, h: torch.baddbmm(m.v, h, h.mT, beta=2.0), "beta"),
    "dropout": (lambda m, h: F.scaled_dot_product_attention(h, h, h, dropout_p=1e-12), "dropout_p"),
    "a computed condition": (lambda m, h: h.masked_fill(h > 0, 1.0), "gt"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_honoured_is_refused_with_the_reason(name: str) -> None:
    call, reason = REFUSED[name]
    land = pl.Landscape(Calls(call), "cross_entropy", (torch.randn(3, 7), torch.arange(3)))
    assert land.engine == "torch"
    assert reason in land.engine_report().reason


# Attention as one op, straight on the core


@dataclass
class Heads:
    """Attention of ``heads`` of width ``size`` to values ``wide``; keys and values serve ``share``
    heads in a row."""

    heads: int
    queries: int
    keys: int
    size: int
    wide: int
    share: int = 1
    merged: bool = False  # the result's rows are (queries, heads, wide)
    seen: tuple[int, ...] = ()  # how many keys each query sees; none: all
    masked: bool = False  # by -inf in the scores, which a step of its own has scaled before

    def data(self, samples: int, dtype: torch.dtype) -> list[Tensor]:
        """Queries (samples, heads, queries, size), keys and values of the shared heads."""
        shared = self.heads // self.share
        return [
            torch.randn(samples, *shape).to(dtype)
            for shape in (
                (self.heads, self.queries, self.size),
                (shared, self.keys, self.size),
                (shared, self.keys, self.wide),
            )
        ]

    def outputs(self, data: list[Tensor], apart: bool = False) -> tuple[Tensor, int]:
        """(samples, heads, queries, wide), and how many steps it took. ``apart``: the scores are
        results, too, so that each op runs by itself."""
        heads, m, n, size, wide = self.heads, self.queries, self.keys, self.size, self.wide
        x = torch.cat([t.flatten(1) for t in data], 1).contiguous()
        dtype = x.dtype
        program = PROGRAM[dtype](1, 0, 0)
        slot, ones = program.input(x.shape[1]), program.expand(0, 1, [0] * x.shape[1])
        slot = program.binary(core.Binary.mul, slot, ones)  # by theta, so that it moves
        h = torch.arange(heads)
        first = [0, data[0][0].numel(), data[0][0].numel() + data[1][0].numel()]
        scores = program.matmul(
            slot, slot, (m, n, size), (size, 1, 1, size, n, 1), (h * m * size).tolist(),
            (first[1] + h // self.share * n * size).tolist(), (h * m * n).tolist(),
            1.0 if self.masked else SCALE,
        )  # fmt: skip
        weights, bounds = scores, list(self.seen) * heads
        if self.masked:
            weights = program.unary(weights, core.Unary.affine, SCALE, 0.0)
        if self.masked and self.seen:
            index = torch.arange(heads * m * n).view(heads, m, n)
            hidden = torch.arange(n) >= torch.tensor(self.seen)[:, None]
            index = torch.where(hidden, -1, index).contiguous()
            weights = program.gather(weights, index.numel(), index.data_ptr(), -math.inf)
            bounds = []
        weights = program.softmax(weights, False, heads * m, n, 1, bounds)
        z, zi = (h * wide, heads * wide) if self.merged else (h * m * wide, wide)
        found = program.matmul(
            weights, slot, (m, wide, n), (n, 1, wide, 1, zi, 1), (h * m * n).tolist(),
            (first[2] + h // self.share * n * wide).tolist(), z.tolist(), 1.0,
        )  # fmt: skip
        count = heads * m * wide
        if apart:
            found = program.join([found, scores], [(0, count), (0, heads * m * n)])
        program.finish(found)
        program.set_data(len(x), x.data_ptr())
        features = program.features(found)
        target = torch.zeros(len(x), features, dtype=torch.float64)
        program.set_loss(core.Loss.mse, features, 1, 0.0, [], [], 0, target.data_ptr())
        question, at = QUESTION[dtype](program), torch.ones(1, 1, dtype=dtype)
        result, loss = (
            torch.full((len(x), features), torch.nan, dtype=dtype),
            torch.empty(1).double(),
        )
        question.run(1, at.data_ptr(), loss.data_ptr(), 0, result.data_ptr())
        result = result[:, :count]
        if self.merged:
            result = result.view(-1, m, heads, wide).transpose(1, 2)
        return result.reshape(-1, heads, m, wide), len(question.describe().split())


SCALE = 0.3
HEADS = {
    "one of each": Heads(1, 1, 2, 1, 1),
    "cross": Heads(3, 7, 13, 5, 6),
    "merged": Heads(2, 25, 9, 4, 7, merged=True),
    "shared keys": Heads(6, 7, 13, 3, 4, share=3),
    "more than a depth": Heads(2, 13, 171, 3, 2),
    "causal": Heads(2, 29, 29, 5, 3, seen=tuple(range(1, 30))),
    "causal, shared keys": Heads(4, 14, 14, 3, 5, share=2, seen=tuple(range(1, 15))),
    "causal, more than a depth": Heads(1, 170, 170, 2, 3, seen=tuple(range(1, 171))),
    "any bounds": Heads(2, 40, 13, 4, 5, seen=tuple(1 + (5 * i) % 13 for i in range(40))),
    "scaled after": Heads(2, 7, 13, 4, 5, masked=True),
    "masked": Heads(2, 29, 29, 4, 5, seen=tuple(range(1, 30)), masked=True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HEADS)
def test_attention_as_one_op_has_the_bits_of_its_parts(name: str, dtype: torch.dtype) -> None:
    heads = HEADS[name]
    for samples in (3, 17, 41):  # with padding columns, in tiles of one vector and of two
        q, k, v = heads.data(samples, dtype)
        got, steps = heads.outputs([q, k, v])
        want, more = heads.outputs([q, k, v], apart=True)
        parts = 3 + heads.masked * (1 + bool(heads.seen))
        assert more == steps + parts  # its own steps less one, and the join
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))
        q, k, v = (t.double() for t in (q, k.repeat_interleave(heads.share, 1),
                                        v.repeat_interleave(heads.share, 1)))  # fmt: skip
        scores = SCALE * q @ k.mT
        if heads.seen:
            hidden = torch.arange(heads.keys) >= torch.tensor(heads.seen)[:, None]
            scores = scores.masked_fill(hidden, -math.inf)
        # Of a score's error its weight has as much relatively; then come a sum and a product.
        size = SCALE * (q.abs() @ k.abs().mT).amax((-2, -1), keepdim=True)
        eps = torch.finfo(dtype).eps * (4 + (heads.size + 2) * size + heads.keys)
        bound = eps * (scores.softmax(-1) @ v.abs())
        assert bool(((got.double() - scores.softmax(-1) @ v).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name, heads in HEADS.items() if heads.seen])
@pytest.mark.parametrize("what", ["inf", "nan", "tiny", "scores"])
def test_keys_that_nobody_sees_count_as_zero_times_their_values(
    name: str, dtype: torch.dtype, what: str
) -> None:
    heads = HEADS[name]
    q, k, v = heads.data(5, dtype)
    last = heads.keys - 1
    if what == "tiny":  # with fused multiply-adds, sums are -0 until a +0 is added
        v = -torch.finfo(dtype).tiny * torch.finfo(dtype).eps * torch.ones_like(v)
        v[1, :, last] *= -1
        v[2, :, heads.keys // 2] = 1
    elif what == "scores":
        k[0, :, last], k[1, :, heads.keys // 2] = math.inf, math.nan
    else:
        v[0, :, last, 0] = v[1, :, heads.keys // 2, -1] = float(what)
        v[2, :, 1:] = -float(what)
    (got, _), (want, _) = heads.outputs([q, k, v]), heads.outputs([q, k, v], apart=True)
    assert torch.equal(got.isnan(), want.isnan())
    bits = {4: torch.int32, 8: torch.int64}[got.element_size()]
    assert torch.equal(*(t.masked_fill(t.isnan(), 0).view(bits) for t in (got, want)))
    if what == "tiny":
        assert bool((got == 0).any())
    else:
        assert bool(got.isnan().any())
        assert bool(got.isfinite().any())


def test_attention_whose_weights_are_read_elsewhere_runs_op_by_op() -> None:
    q = torch.randn(4, 3 * 30)

    def build(p: Any, s: int) -> int:
        first = [0], [30], [0]
        scores = p.matmul(s, s, (5, 5, 6), (6, 1, 1, 6, 5, 1), *first, 0.4)
        weights = p.softmax(scores, False, 5, 5, 1)
        found = p.matmul(weights, s, (5, 6, 5), (5, 1, 6, 1, 6, 1), [0], [60], [0], 1.0)
        return int(p.join([found, weights], [(0, 30), (0, 25)]))

    got = outputs_of(90, q, build).double()
    a, b, c = q.double().view(4, 3, 5, 6).unbind(1)
    weights = (0.4 * a @ b.mT).softmax(-1)
    torch.testing.assert_close(got[:, 30:].view(4, 5, 5), weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[:, :30].view(4, 5, 6), weights @ c, rtol=1e-5, atol=1e-6)


# Attention


def _masks() -> dict[str, Tensor]:
    causal = torch.full((5, 5), float("-inf")).triu(1)
    return {
        "bool": torch.rand(5, 5).gt(0.4) | torch.eye(5).bool(),
        "causal": causal,
        "float": torch.randn(5, 5),
        "per head": torch.randn(1, 2, 5, 5),
    }


ATTENTION: dict[str, Callable[..., Tensor]] = {
    "plain": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v),
    "scale": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, scale=0.7),
    "causal": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "fewer queries": lambda q, k, v, m: F.scaled_dot_product_attention(
        q[..., :2, :], k, v, is_causal=True),
    "fewer keys": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, k[..., :3, :], v[..., :3, :]),
    "wider values": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, torch.cat([v, k], -1)),
    "one head of keys": lambda q, k, v, m: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1]),
    "bool mask": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m.bool_),
    "float mask": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m.float_),
    "infinite mask": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m.causal),
    "learnt bias": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m.heads),
    "by hand": lambda q, k, v, m: torch.softmax(
        (q @ k.transpose(-2, -1)) * 0.5 + m.heads, dim=-1) @ v,
    "masked_fill": lambda q, k, v, m: F.softmax(
        (q @ k.mT / math.sqrt(3)).masked_fill(m.tril[:, :, :5, :5] == 0, float("-inf")), -1) @ v,
    "where": lambda q, k, v, m: torch.where(m.bool_, q @ k.mT, -1e9).softmax(-1) @ v,
    "made inside": lambda q, k, v, m: (
        q @ k.mT + torch.full((5, 5), float("-inf")).triu(1)).softmax(-1) @ v,
}  # fmt: skip


class Attending(nn.Module):
    """Two heads over 5 tokens, by one of the ways in ATTENTION."""

    def __init__(self, how: Callable[..., Tensor]) -> None:
        super().__init__()
        self.how, self.qkv = how, nn.Linear(6, 18)
        masks = _masks()
        self.register_buffer("bool_", masks["bool"])
        self.register_buffer("float_", masks["float"])
        self.register_buffer("tril", torch.ones(1, 1, 8, 8).tril())
        self.causal = masks["causal"]  # an attribute, not a buffer
        self.heads = nn.Parameter(masks["per head"])
        with torch.no_grad():
            size = self.mixed(torch.zeros(1, 5, 6))[0].numel()
        self.out = nn.Linear(size, 3)

    def mixed(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        return self.how(q, k, v, self).transpose(1, 2).reshape(b, -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mixed(x))


@pytest.mark.filterwarnings("ignore:second derivatives")
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_has_its_value_and_derivatives(name: str) -> None:
    check(Attending(ATTENTION[name]), torch.randn(19, 5, 6))


@pytest.mark.filterwarnings("ignore:second derivatives")
def test_attention_reads_heads_where_they_stand() -> None:
    land = check(Attending(ATTENTION["plain"]), torch.randn(4, 5, 6), torch.float32)
    # qkv, q k^T, softmax, p v, and the read-out: no op moves rows.
    assert land.native.program.ops == 5
    # As they also run on a GPU.
    kinds = [op["kind"] for op in land.native.program.op_list(True)]
    assert kinds == ["linear", "matmul", "softmax", "matmul", "linear"]


def test_scores_of_any_size_give_finite_derivatives() -> None:
    model = Attending(ATTENTION["causal"])
    with torch.no_grad():
        model.qkv.weight.mul_(100)
    x, y = torch.randn(9, 5, 6), torch.randint(0, 3, (9,))
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    v = torch.randn(2, land.n_params)
    for found in (land.gradient(), land.hvp(v), land.per_sample_gradients()):
        assert bool(torch.isfinite(found).all())


class Multihead(nn.Module):
    """nn.MultiheadAttention over 5 tokens; how: which values meet, and the arguments."""

    def __init__(self, how: str, **kwargs: Any) -> None:
        super().__init__()
        self.how, self.first = how, kwargs.get("batch_first", False)
        self.mask = torch.ones(5, 5).triu(1).bool()
        self.attention = nn.MultiheadAttention(6, 3, **kwargs)
        self.other = nn.Linear(6, kwargs.get("kdim", 6))
        self.out = nn.Linear(30, 3)
        if self.attention.in_proj_bias is not None:  # torch starts them at zero
            nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        if self.how == "self":
            y, _ = self.attention(x, x, x)
        elif self.how == "no weights":
            y = self.attention(x, x, x, need_weights=False)[0]
        elif self.how == "mask":
            y = self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0]
        elif self.how == "mask per sample":
            y = self.attention(x, x, x, attn_mask=self.mask.expand(9, 5, 5))[0]
        elif self.how == "padding":
            y = self.attention(x, x, x, key_padding_mask=self.mask[:3])[0]
        elif self.how == "weights":
            y, w = self.attention(x, x, x)
            y = y + w.sum() * 0
        else:
            z = torch.tanh(self.other(x))
            y, _ = self.attention(x, z, z)
        return self.out((y if self.first else y.transpose(0, 1)).flatten(1))


@pytest.mark.filterwarnings("ignore:second derivatives")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("how", "kwargs"),
    [
        ("self", {}),
        ("self", {"bias": False}),
        ("no weights", {"dropout": 0.1}),
        ("mask", {}),
        ("cross", {}),
        ("cross", {"kdim": 4, "vdim": 4}),
    ],
)
def test_multihead_attention_is_the_modules(how: str, kwargs: dict[str, Any], first: bool) -> None:
    check(Multihead(how, batch_first=first, **kwargs), torch.randn(11, 5, 6))


@pytest.mark.parametrize(
    ("how", "kwargs", "reason"),
    [
        ("padding", {}, "key_padding_mask"),
        ("mask per sample", {}, "a mask per sample"),
        ("weights", {}, "'sum'"),
        ("self", {"add_bias_kv": True}, "bias_k"),
        ("self", {"add_zero_attn": True}, "add_zero_attn"),
    ],
)
def test_multihead_attention_refuses_the_rest(
    how: str, kwargs: dict[str, Any], reason: str
) -> None:
    model, x = Multihead(how, batch_first=True, **kwargs), torch.randn(3, 5, 6)
    land = pl.Landscape(model, "cross_entropy", (x, torch.arange(3)))
    assert land.engine == "torch"
    assert reason in land.engine_report().reason


class Encoder(nn.Module):
    def __init__(self, depth: int, masked: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.first = kwargs.get("batch_first", False)
        layer = nn.TransformerEncoderLayer(6, 2, 10, **kwargs)
        norm = nn.LayerNorm(6) if depth > 1 else None
        self.encoder = (
            layer
            if depth == 0
            else nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        )
        self.masked, self.out = masked, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(5) if self.masked else None
        h = self.encoder(x, mask)
        return self.out(h[:, 0] + h[:, -1] if self.first else h[0] + h[-1])


@pytest.mark.filterwarnings("ignore:second derivatives")
@pytest.mark.parametrize(
    ("depth", "masked", "kwargs", "dtype"),
    [
        (0, False, {"batch_first": True}, torch.float64),
        (0, False, {"norm_first": True, "activation": "gelu"}, torch.float32),
        (1, True, {"batch_first": True, "activation": nn.SiLU()}, torch.float64),
        (2, False, {"batch_first": True, "norm_first": True, "bias": False}, torch.float32),
        (2, True, {}, torch.float64),
    ],
)
def test_transformer_encoders_are_the_modules(
    depth: int, masked: bool, kwargs: dict[str, Any], dtype: torch.dtype
) -> None:
    # In float32, the Hessian of a post-norm stack is ill-conditioned: errors add up over 30 ops.
    check(Encoder(depth, masked, **kwargs), torch.randn(13, 5, 6), dtype, factor=3 * EPS_FACTOR)


def test_an_encoder_layer_of_ones_own_is_traced_through() -> None:
    class Doubled(nn.TransformerEncoderLayer):
        def forward(self, src: Tensor) -> Tensor:  # type: ignore[override]
            return src + 2.0 * self.linear2(torch.relu(self.linear1(src)))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = Doubled(6, 2, 10, batch_first=True), nn.Linear(30, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.layer(x).flatten(1))

    land = check(Model(), torch.randn(7, 5, 6))
    assert "TransformerEncoderLayer" not in ops(land)


def test_an_activation_that_is_not_known_is_named() -> None:
    model = Encoder(0, activation=F.softshrink, batch_first=True)
    land = pl.Landscape(model, "cross_entropy", (torch.randn(3, 5, 6), torch.arange(3)))
    assert land.engine == "torch"
    assert "softshrink" in land.engine_report().reason


# A ViT


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, ratio * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(ratio * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, class token, learnt positions, pre-norm blocks."""

    def __init__(
        self, side: int, patch: int, dim: int, depth: int, heads: int, ratio: int, classes: int
    ) -> None:
        super().__init__()
        self.patch, tokens = patch, (side // patch) ** 2
        self.embed = nn.Linear(3 * patch * patch, dim)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, tokens + 1, dim) * 0.02)
        self.blocks = nn.Sequential(*[Block(dim, heads, ratio) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        p = self.patch
        x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
        x = self.embed(x.reshape(b, (h // p) * (w // p), c * p * p))
        x = torch.cat([self.token.expand(b, -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


@pytest.mark.filterwarnings("ignore:second derivatives")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_vit_matches_torch(dtype: torch.dtype) -> None:
    check(ViT(9, 3, 12, 4, 3, 2, 5), torch.randn(37, 3, 9, 9), dtype, 5, factor=3 * EPS_FACTOR)


def test_the_loss_and_accuracy_of_a_vit_over_a_plane() -> None:
    model, x, y = ViT(32, 4, 64, 4, 4, 2, 10), torch.randn(40, 3, 32, 32), torch.arange(40) % 10
    native = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    exact = pl.Landscape(
        copy.deepcopy(model).double(), "cross_entropy", (x.double(), y), engine="torch"
    )
    d = torch.randn(2, native.n_params, dtype=torch.float64).float() * 0.05
    c = torch.cartesian_prod(*2 * [torch.linspace(-1, 1, 3, dtype=torch.float64)])
    got = native.evaluate(c, d, metrics=("loss", "accuracy"))
    want = exact.evaluate(c, d.double(), metrics=("loss", "accuracy"))
    eps, depth = torch.finfo(torch.float32).eps, 34  # layers that a value goes through
    loss, exact_loss = torch.tensor(got["loss"]), torch.tensor(want["loss"])
    assert bool(((loss - exact_loss).abs() <= 20 * eps * depth * (exact_loss + 0.01)).all())
    assert torch.equal(torch.tensor(got["accuracy"]), torch.tensor(want["accuracy"]))


def test_threads_do_not_change_the_bits() -> None:
    model, x, y = ViT(9, 3, 12, 1, 3, 2, 5), torch.randn(70, 3, 9, 9), torch.arange(70) % 5
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    v = torch.randn(3, land.n_params)
    want = land.loss(), land.gradient(), land.hvp(v)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
        assert again.loss() == want[0]
        assert torch.equal(again.gradient(), want[1])
        assert torch.equal(again.hvp(v), want[2])
    finally:
        torch.set_num_threads(threads)
