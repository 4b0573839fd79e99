"""NETS: planes of ResNet-20, LeNet, a 6-layer DCNN, a ViT, an LSTM. HVPNET: ResNet-20's products.

Against what users run and against torch's best form; ResNet-20's share of the sgemm peak counts the
arithmetic of direct convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.errors import InvalidArgument, NotLowered

from . import products
from .curvature import Field, Problem, check_rows
from .eigen import in_parts
from .harness import Arm, Row, sgemm_arms, shares
from .net_peers import torch_forms, user_loop
from .networks import LanguageModel, ResNet, ViT, dcnn, lenet, settle
from .peers import Case
from .workloads import digits, grid, reference, spread

RTOL = 1e-4  # of the loss, in float32
HVP_RTOL = 1e-3  # of a product's norm, in float32; ReLUs near 0 flip: autograd's own error is 3e-4
SHARE = 0.65  # of the sgemm peak, to reach
OURS = "pylandscape plane()"

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """A network with data, and how many times faster than the two arms ours is to be."""

    name: str
    make: Callable[[bool], tuple[nn.Module, Tensor, Tensor]]  # of `quick`
    default: float
    best: float
    share: float | None = None  # of the sgemm peak; None: not asked


def images(count: int) -> Data:
    return torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))


def resnet20(quick: bool) -> tuple[nn.Module, Tensor, Tensor]:
    x, y = images(6 if quick else 500)
    return settle(ResNet(8 if quick else 20), x), x, y


def _lenet(quick: bool) -> tuple[nn.Module, Tensor, Tensor]:
    x, y = digits()
    x = x.view(-1, 1, 28, 28)
    return lenet(), *((x[::100], y[::100]) if quick else (x, y))


def _dcnn(quick: bool) -> tuple[nn.Module, Tensor, Tensor]:
    x, y = images(10 if quick else 1000)
    return settle(dcnn(), x), x, y


def _vit(quick: bool) -> tuple[nn.Module, Tensor, Tensor]:
    return ViT(depth=1 if quick else 4), *images(5 if quick else 500)


def _lstm(quick: bool) -> tuple[nn.Module, Tensor, Tensor]:
    text = torch.randint(0, 64, (5 if quick else 256, 33))
    return LanguageModel(), text[:, :-1].contiguous(), text[:, 1:].contiguous()


WORKLOADS = (
    Workload("ResNet-20", resnet20, 2.2, 1.5, SHARE),
    Workload("LeNet", _lenet, 3, 1.5),
    Workload("6-layer DCNN", _dcnn, 3, 1.5),
    Workload("ViT 4 x 64", _vit, 1.5, 1.5),
    Workload("LSTM 2 x 128", _lstm, 1.5, 1.5),
)


def nets(quick: bool, repetitions: int) -> list[Row]:
    return [row for w in WORKLOADS for row in table_of(w, quick, repetitions)]


def table_of(workload: Workload, quick: bool, repetitions: int) -> list[Row]:
    """A plane of the network, by us, by the user's loop and by torch's best form."""
    torch.manual_seed(0)
    torch.compiler.reset()  # it compiles one function for so many models only
    model, x, y = workload.make(quick)
    model.eval()
    side, few, size = (2, 2, 256) if quick else (5, 2, 2048)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="torch")
    d1, d2 = pl.random_directions(land, 2, normalize="filter", seed=1)
    c, d = grid(side, side), torch.stack([d1.vector, d2.vector])
    some = spread(few, len(c))
    want = reference(model, F.cross_entropy, x, y, land.theta + c[some] @ d.double())
    flops = 2.0 * multiplications(model, x[:1]) * len(x)
    name = f"NETS {side}x{side}, {workload.name}, {_size(x)}"
    field = Field(name, "point")

    def check(arm: Arm, got: np.ndarray) -> None:
        arm.check(got[some] if len(got) == len(c) else got, want, RTOL)

    try:
        land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    except InvalidArgument as refusal:
        field.miss(OURS, str(refusal))
    else:
        note = "all of the call"
        if workload.share is not None:
            note += f"; {flops / 1e9:.4g} GFLOP a point"

        def ours() -> np.ndarray:
            axis = (-1, 1, side)
            return pl.plane(land, d1, d2, x=axis, y=axis, progress=False).values.ravel()

        field.add_ours(Arm(OURS, ours, len(c), note=note), check)
    case = Case(model, F.cross_entropy, x, y, d, c[some])
    add = partial(field.add, check=check, units=few, note=f"{few} of the points a repetition")
    add("default user code", {"NCHW": partial(user_loop, case)}, target=workload.default)
    add("best plain torch", torch_forms(case, compiled=not quick), target=workload.best)
    peak = sgemm_arms(size) if workload.share is not None else []
    field.measure(repetitions, *peak)
    table = field.rows()
    if field.mine is not None and peak:
        table += shares(name, field.mine, flops, peak, workload.share)
    return table


def _size(x: Tensor) -> str:
    shape = "x".join(str(n) for n in x.shape[1:])
    return f"{len(x):,} {'images' if x.is_floating_point() else 'texts of length'} {shape}"


def multiplications(model: nn.Module, x: Tensor) -> int:
    """Of the convolutions and linear layers on x, as direct convolution counts them."""
    count = 0

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal count
        weight = module.weight
        assert isinstance(weight, Tensor)
        count += output.numel() * weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [m.register_forward_hook(add) for m in layers]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return count


def hvpnet(quick: bool, repetitions: int) -> list[Row]:
    """One Hessian-vector product of ResNet-20 over 500 images."""
    torch.manual_seed(0)
    problem = Problem(*resnet20(quick))
    v = torch.randn(1, problem.n)
    want = in_parts(problem.double())(v.double())

    def check(arm: Arm, got: Tensor) -> None:
        check_rows(arm, got, want, HVP_RTOL)

    field = Field(f"HVPNET ResNet-20, {_size(problem.x)}", "product")
    try:
        land = pl.Landscape(problem.model, "cross_entropy", (problem.x, problem.y), engine="native")
        land.native.product("hessian", land.theta, v)  # land.hvp would quietly be torch's
    except (InvalidArgument, NotLowered) as refusal:
        field.miss("pylandscape hvp(v)", str(refusal))
    else:
        mine = Arm("pylandscape hvp(v)", lambda: land.hvp(v), note="all of the call")
        field.add_ours(mine, check)
    last = torch.channels_last
    moved = problem.copy().to(memory_format=last)  # type: ignore[call-overload]
    x = problem.x.contiguous(memory_format=last)
    forms = {"NCHW": problem, "channels_last": Problem(moved, x, problem.y)}
    field.add(
        "torch autograd",
        {name: partial(_product, form, v) for name, form in forms.items()},
        check,
        target=1.5,
        note="graph of the gradient kept, not timed",
    )
    if not quick:
        ways = products.compiled_ways(problem, v)
        field.add("torch.compile of the product", ways, check, target=1.3)
    field.measure(repetitions)
    return field.rows()


def _product(problem: Problem, v: Tensor) -> Callable[[], Tensor]:
    return partial(products.retained(problem), v)
