"""FAMILIES: planes of networks nobody tuned for, gradients and products of sequence models, the
rates of attention and of the norms' derivatives, what a Landscape costs.

To compare AVX2 with AVX2 on a machine that has more, torch's libraries want it said too:
PYLANDSCAPE_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
MKL_ENABLE_INSTRUCTIONS=AVX2.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl

from . import products
from .curvature import Field, Problem, check_rows
from .harness import Arm, Row, absent, interleave, rows, sgemm_arms, shares
from .nets import Workload, images, resnet20, table_of
from .networks import (
    GPT,
    LanguageModel,
    ResNet,
    UNet,
    ViT,
    densenet_bc,
    mobilenet_v2,
    settle,
    with_group_norm,
)
from .workloads import digits, mlp

RTOL = 1e-4  # of a gradient's norm
PRODUCT_RTOL = 1e-3  # of a product's norm; where ReLUs near 0 flip, twice autograd's own error
NORMS = 4  # copies whose time is taken, beside two
LAYERS = 24  # of attention whose time is taken, beside one
ATTENTION = 0.6  # of the sgemm peak, to reach

Made = tuple[nn.Module, Tensor, Tensor]


def densenet(quick: bool) -> Made:
    x, y = images(4 if quick else 200)
    return settle(densenet_bc(1 if quick else 6), x), x, y


def mobilenet(quick: bool) -> Made:
    x, y = images(4 if quick else 200)
    return settle(mobilenet_v2(((16, 1, 1), (24, 2, 6))) if quick else mobilenet_v2(), x), x, y


def group_norm(quick: bool) -> Made:
    return with_group_norm(ResNet(8 if quick else 20)), *images(4 if quick else 200)


def unet(up: str, quick: bool) -> Made:
    x, _ = images(4 if quick else 100)
    return UNet(4 if quick else 16, up=up), x, torch.randint(0, 4, (len(x), 32, 32))


def _texts(count: int, length: int) -> tuple[Tensor, Tensor]:
    text = torch.randint(0, 64, (count, length + 1))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def lstm(quick: bool) -> Made:
    return LanguageModel(), *_texts(5 if quick else 128, 32)


def gru(quick: bool) -> Made:
    return LanguageModel(cell=nn.GRU), *_texts(5 if quick else 128, 32)


def _mlp(*hidden: int, quick: bool) -> Made:
    """Of 10,000 digits, all more than five times."""
    x, y = digits()
    rows = torch.arange(40 if quick else 10_000) % len(x)
    return mlp(784, *hidden, 10), x[rows], y[rows]


def vit(quick: bool) -> Made:
    return ViT(depth=1 if quick else 4), *images(5 if quick else 128)


def gpt(quick: bool, texts: int = 64) -> Made:
    return GPT(depth=1 if quick else 4), *_texts(2 if quick else texts, 128)


PLANES = (
    Workload("DenseNet-BC 6", densenet, 1.5, 1.5),
    Workload("MobileNetV2", mobilenet, 1.5, 1.5),
    Workload("ResNet-20, group norm", group_norm, 1.5, 1.5),
    Workload("U-Net, transposed", partial(unet, "transposed"), 1.5, 1.5),
    Workload("U-Net, bilinear", partial(unet, "bilinear"), 1.5, 1.5),
    Workload("GRU 2 x 128", gru, 3, 3),
)
GRADIENTS: dict[str, tuple[Callable[[bool], Made], float]] = {
    "LSTM 2 x 128": (lstm, 1.5),
    "GRU 2 x 128": (gru, 1.5),
    "ViT 4 x 64": (vit, 1.5),
}
PRODUCTS: dict[str, tuple[Callable[[bool], Made], float]] = {
    "LSTM 2 x 128": (lstm, 1.5),
    "GPT 4 x 128": (gpt, 2.0),
    "GPT 4 x 128, one vector of texts": (partial(gpt, texts=16), 2.0),
    "MobileNetV2": (mobilenet, 1.5),
    "ResNet-20, group norm": (group_norm, 1.5),
}
COMPILED = ("LSTM 2 x 128", "GPT 4 x 128")  # products that torch.compile gets to do as well


class Attention(nn.Module):
    """Layers of attention alone, between two linear ones."""

    def __init__(self, layers: int, heads: int, size: int, causal: bool) -> None:
        super().__init__()
        self.layers, self.heads, self.size, self.causal = layers, heads, size, causal
        self.first, self.last = nn.Linear(8, 3 * heads * size), nn.Linear(heads * size, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.first(x).unflatten(-1, (3, self.heads, self.size)).movedim(1, 3)
        q, k, v = heads.unbind(1)
        for _ in range(self.layers):
            q = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        found: Tensor = self.last(q.transpose(1, 2).flatten(2).mean(1))
        return found


def families(quick: bool, repetitions: int) -> list[Row]:
    table = [row for w in PLANES for row in table_of(w, quick, repetitions)]
    for name, (make, target) in GRADIENTS.items():
        table += _gradient(name, make, target, quick, repetitions)
    for name, (make, target) in PRODUCTS.items():
        table += _product(name, make, target, quick, repetitions)
    for kind in ("layer norm", "group norm", "batch norm"):
        table += _norm(kind, quick, repetitions)
    for size in (16, 32, 64):
        for causal in (False, True):
            table += _attention(size, causal, quick, repetitions)
    return table + _construction(quick, repetitions)


def _gradient(
    name: str, make: Callable[[bool], Made], target: float, quick: bool, repetitions: int
) -> list[Row]:
    """A gradient at a new theta."""
    torch.manual_seed(0)
    model, x, y = make(quick)
    problem = Problem(model.eval(), x, y)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    thetas = itertools.cycle([land.theta, land.theta * (1 + 1e-7)])  # else the last one is kept
    copied = problem.copy()
    parameters = list(copied.parameters())

    def theirs() -> Tensor:
        found = torch.autograd.grad(problem.loss(copied), parameters)
        return torch.cat([g.flatten() for g in found])[None]

    exact = problem.double()
    double = exact.copy()
    found = torch.autograd.grad(exact.loss(double), list(double.parameters()))
    want = torch.cat([g.flatten() for g in found])[None]
    check = partial(check_rows, want=want, rtol=RTOL)
    field = Field(f"gradient, {name}, {len(x)} samples", "gradient")
    mine = Arm("pylandscape gradient()", lambda: land.gradient(next(thetas)).reshape(1, -1))
    field.add_ours(mine, check)
    field.add("torch autograd", {"": lambda: theirs}, check, target=target)
    field.measure(repetitions)
    return field.rows()


def _product(
    name: str, make: Callable[[bool], Made], target: float, quick: bool, repetitions: int
) -> list[Row]:
    """A Hessian-vector product; attention by torch's plain kernel, the others have no second
    derivative."""
    torch.manual_seed(0)
    model, x, y = make(quick)
    problem = Problem(model.eval(), x, y)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    v = torch.randn(1, problem.n)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        want = products.retained(problem.double())(v.double())
        error = (products.retained(problem)(v).double() - want).norm() / want.norm()
        rtol = max(PRODUCT_RTOL, 2 * float(error))
        if rtol > 1e-2:
            raise AssertionError(f"{name}: autograd in float32 is off by {float(error):.1e}")
        check = partial(check_rows, want=want, rtol=rtol)
        field = Field(f"Hessian product, {name}, {len(x)} samples", "product")
        field.add_ours(
            Arm("pylandscape hvp(v)", lambda: land.hvp(v), note="all of the call"), check
        )
        make_run = {"": lambda: partial(products.retained(problem), v)}
        field.add(
            "torch autograd", make_run, check, target=target, note="graph of the gradient kept"
        )
        if name in COMPILED and not quick:
            ways = products.compiled_ways(problem, v)
            field.add("torch.compile of the product", ways, check, target=target)
        field.measure(repetitions)
    return field.rows()


def _attention(size: int, causal: bool, quick: bool, repetitions: int) -> list[Row]:
    """Losses with more layers of attention less those with one, by the arithmetic of all their
    products (of causal ones half is for nothing), against large products."""
    heads, tokens, count = (2, 8, 8) if quick else (4, 128, 16)
    points, arms = 2, []
    for layers in (1, 1 + LAYERS):
        torch.manual_seed(0)
        model = Attention(layers, heads, size, causal).eval()
        data = torch.randn(count, tokens, 8), torch.randint(0, 3, (count,))
        land = pl.Landscape(model, "cross_entropy", data, engine="native")
        thetas = torch.stack([land.theta * (1 + 0.01 * i) for i in range(points)])
        with torch.no_grad():
            want = float(F.cross_entropy(model.double()(data[0].double()), data[1]))
        got = float(land.losses(points=thetas)[0])
        if not np.isclose(got, want, rtol=RTOL):
            raise AssertionError(f"attention: {got}, expected {want}")
        arms.append(Arm("losses", partial(land.losses, points=thetas), points))
    peak = sgemm_arms(64 if quick else 1024)
    interleave([*arms, *peak], repetitions)
    name = f"attention{', causal' * causal}, {heads} x {size}, {tokens} tokens"
    own = Arm("pylandscape, attention alone", arms[0].run, points, note=f"{LAYERS} layers")
    less = np.array(arms[1].seconds) - np.array(arms[0].seconds)
    if less.min() <= 0:  # toy sizes, busy machines
        return [absent(name, own.name, "its time is lost in the noise")]
    own.seconds = less.tolist()
    flops = 4.0 * heads * tokens**2 * size * count * LAYERS
    return rows(name, own, [], "point") + shares(name, own, flops, peak, ATTENTION)


def _norm(kind: str, quick: bool, repetitions: int) -> list[Row]:
    """Hessian products of copies of a norm: the time of the copies beyond the first two, against
    that of copying as much memory as their passes read and write once."""
    size, count = (6, 8) if quick else (16, 128)
    lands = []
    for copies in (2, 2 + NORMS):
        torch.manual_seed(0)
        tokens = kind == "layer norm"
        make = {
            "layer norm": lambda: nn.LayerNorm(32),
            "group norm": lambda: nn.GroupNorm(8, 32),
            "batch norm": lambda: nn.BatchNorm2d(32),
        }[kind]
        first = nn.Linear(1, 32) if tokens else nn.Conv2d(1, 32, 1)
        last = [nn.Flatten(), nn.Linear(32 * size * size, 3)]
        model = nn.Sequential(first, *(make() for _ in range(copies)), *last)
        shape = (count, size * size, 1) if tokens else (count, 1, size, size)
        data = torch.randn(*shape), torch.randint(0, 3, (count,))
        lands.append(pl.Landscape(model.eval(), "cross_entropy", data, engine="native"))
    arms = []
    for land in lands:
        v = torch.randn(1, land.n_params)
        arms.append(Arm("hvp", partial(land.hvp, v)))
    elements = 32 * size * size * count * NORMS
    # tangents: x, rx, ry; of adjoints: x, rx, dy, rdy, rdx read and written; both rows cleared
    moved = 4 * 11 * elements
    x = torch.randn(moved // 8)
    copy = Arm("copy of as many bytes", partial(torch.empty_like(x).copy_, x))
    interleave([*arms, copy], repetitions)
    own = Arm(f"pylandscape, {kind}", arms[0].run, note=f"{moved / 1e6:.0f} MB")
    less = np.array(arms[1].seconds) - np.array(arms[0].seconds)
    if less.min() <= 0:  # toy sizes, busy machines
        return [absent(f"norm derivatives, {kind}", own.name, "its time is lost in the noise")]
    own.seconds = less.tolist()
    copy.target, copy.at_most = 2.0, True
    return rows(f"norm derivatives, {kind}", own, [copy], f"{NORMS} norms")


def _construction(quick: bool, repetitions: int) -> list[Row]:
    """A Landscape, with its comparison of values and gradients, against one evaluation."""
    table = []
    kinds = (
        ("MobileNetV2", mobilenet), ("ViT 4 x 64", vit), ("ResNet-20", resnet20),
        ("784-20-10", partial(_mlp, 20)), ("784-512-512-10", partial(_mlp, 512, 512)),
    )  # fmt: skip
    for name, make in kinds:
        torch.manual_seed(0)
        model, x, y = make(quick=quick)
        model.eval()
        build = partial(pl.Landscape, model, "cross_entropy", (x, y), engine="native")

        def evaluate(model: nn.Module = model, x: Tensor = x, y: Tensor = y) -> float:
            with torch.no_grad():
                return float(F.cross_entropy(model(x), y))

        mine = Arm("pylandscape Landscape()", build)
        one = Arm("one evaluation of the module", evaluate, target=2.0, at_most=True)
        interleave([mine, one], repetitions)
        table += rows(f"construction, {name}, {len(x)} samples", mine, [one], "call")
    return table
