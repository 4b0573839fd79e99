"""gpu_check's rows of Hessian-vector products: against float64, their floor and torch's own ways.

The floor is the larger of two times: the multiply-adds of the layers' products at the device's
float32 peak, and what must move at the bandwidth of a copy: the data and the values at theta once,
the vectors and the products. Torch's ways: double backward with the graph kept, vector by vector
or all at once (is_grads_batched), and torch.func (forward over reverse, vmapped).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .gpu_programs import keep, multiply_adds_per_ms
from .workloads import mlp

Make = Callable[[nn.Module, Any], Any]  # (model, landscape on the CPU) to the engine to test
ALLOWED = 60 * torch.finfo(torch.float32).eps  # of the largest element: tests/test_derivatives.py


@dataclass
class Case:
    name: str
    dims: tuple[int, ...]
    samples: int
    k: int

    def model(self) -> nn.Sequential:
        return mlp(*self.dims, activation=nn.Tanh)

    def data(self) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.samples, self.dims[0])
        return x, torch.randint(0, self.dims[-1], (self.samples,))

    def multiply_adds(self) -> int:
        """Of one vector: V x and rdy x^T of the first layer; W rx, dy rx^T, W^T rdy and V^T dy of
        the others as well."""
        first, *others = (a * b for a, b in pairwise(self.dims))
        return self.samples * (2 * first + 6 * sum(others))

    def bytes(self) -> int:
        n = sum(a * b + b for a, b in pairwise(self.dims))
        return 4 * self.samples * sum(self.dims) + (4 + 8) * n * self.k


CASES = (
    Case("784-20-10, N=1797", (784, 20, 10), 1797, 1),
    Case("784-20-10, N=1797", (784, 20, 10), 1797, 10),
    Case("784-512-512-10, N=1797", (784, 512, 512, 10), 1797, 1),
    Case("784-512-512-10, N=1797", (784, 512, 512, 10), 1797, 10),
)


def check(case: Case, engine_of: Make) -> tuple[float, Any, Tensor, Tensor]:
    """The largest error relative to the largest element, the engine, theta and vectors (k, n)."""
    import pylandscape as pl

    torch.manual_seed(0)
    model, (x, y) = case.model(), case.data()
    land = pl.Landscape(model, "cross_entropy", (x, y))
    exact = pl.Landscape(copy.deepcopy(model).double(), "cross_entropy", (x.double(), y))
    engine = engine_of(model, land)
    v = torch.randn(case.k, land.n_params)
    theta, there = land.theta.to(engine.device), v.to(engine.device)
    got = engine.product("hessian", theta, there).cpu()
    want = exact.hvp(v.double())
    return float((got - want).abs().max() / want.abs().max()), engine, theta, there


def measure(
    engine_of: Make, bandwidth: float, median_ms: Callable[..., float]
) -> Iterator[tuple[str, float, float, float, float | None, float]]:
    """Name, milliseconds, floor, share, torch's best milliseconds, error of each case."""
    peak = multiply_adds_per_ms()
    for case in CASES:
        error, engine, theta, v = check(case, engine_of)
        first = engine.product("hessian", theta, v)
        took = median_ms(lambda _, e=engine, t=theta, v=v: e.product("hessian", t, v), 1)
        again = (engine.product("hessian", theta, v) - first).abs().max()  # of a replay: nothing
        error = max(error, float(again / first.abs().max()))
        work = case.k * case.multiply_adds()
        floor = max(case.bytes() / bandwidth, work / peak if peak else 0.0)
        found = peers(case, v, median_ms)
        name = f"hvp {case.name}, k={case.k}"
        others = ", ".join(f"{way} {ms:.3f} ms" for way, ms in found.items())
        print(f"{name}: {others}", flush=True)
        yield name, took, floor, floor / took, min(found.values(), default=None), error


def peers(case: Case, v: Tensor, median_ms: Callable[..., float]) -> dict[str, float]:
    """Milliseconds of torch's ways on the same GPU; one that cannot run is left out."""
    model = case.model().cuda()
    x, y = (t.cuda() for t in case.data())
    found: dict[str, float] = {}
    for name, ask in ways(model, x, y).items():
        keep(found, name, lambda ask=ask: median_ms(lambda _: ask(v), 1))
    return found


def ways(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of vectors (k, n) to the products (k, n), by torch alone."""
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(x), y)
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    gradient = torch.cat([g.reshape(-1) for g in slopes])

    def backward(v: Tensor, batched: bool = False) -> Tensor:
        parts = torch.autograd.grad(
            gradient, parameters, v, retain_graph=True, is_grads_batched=batched
        )
        return torch.cat([p.reshape(*v.shape[:-1], -1) for p in parts], -1)

    state = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in state.values()]
    theta = torch.cat([p.reshape(-1) for p in state.values()])

    def loss_at(vector: Tensor) -> Tensor:
        parts = zip(state.items(), vector.split(sizes), strict=True)
        moved = {name: part.view(p.shape) for (name, p), part in parts}
        return F.cross_entropy(torch.func.functional_call(model, moved, (x,)), y)

    def forward(v: Tensor) -> Tensor:
        product: Tensor = torch.func.jvp(torch.func.grad(loss_at), (theta,), (v,))[1]
        return product

    return {
        "graph kept": lambda v: torch.stack([backward(row) for row in v]),
        "graph kept, batched": lambda v: backward(v, batched=True),
        "torch.func": torch.func.vmap(forward),
    }
