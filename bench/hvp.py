"""HVP: a block of Hessian-vector products of 784-20-10 over the digits, and a single one."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import pylandscape as pl

from . import products
from .curvature import Field, Problem, check_rows, w
from .harness import Arm, Row, Run

RTOL = 1e-5  # of a product's norm; all arms are in float32


def hvp(quick: bool, repetitions: int) -> list[Row]:
    problem = w(quick)
    land = pl.Landscape(problem.model, "cross_entropy", (problem.x, problem.y), engine="native")
    return [row for k in (10, 1) for row in _block(problem, land, k, repetitions)]


def _block(problem: Problem, land: pl.Landscape, k: int, repetitions: int) -> list[Row]:
    v = torch.randn(k, problem.n, generator=torch.Generator().manual_seed(k))
    want = products.retained(problem.double())(v.double())

    def check(arm: Arm, got: Tensor) -> None:
        check_rows(arm, got, want, RTOL)

    def run(make: products.Make, *more: object) -> Run:
        return partial(make(problem, *more), v)

    field = Field(f"HVP block of {k}, 784-20-10", "product")
    field.mine = Arm("pylandscape hvp(V)", lambda: land.hvp(v), k, note="all of the call")
    check(field.mine, land.hvp(v))
    add = partial(field.add, check=check, units=k)
    kept = {"graph of the gradient kept, not timed": partial(run, products.retained)}
    add("torch autograd, one by one", kept, target=3)
    kept = {"graph of the gradient kept, not timed": partial(run, products.grads_batched)}
    add("torch autograd, is_grads_batched", kept)
    jvps = {
        "flat": partial(run, products.vmapped, True),
        "by parameter": partial(run, products.vmapped, False),
    }
    add("torch.func.vmap of jvp of grad", jvps, target=3)
    once = {
        "linearize": partial(run, products.linearised),
        "vjp": partial(run, products.pulled_back),
    }
    add("torch.func, the gradient linearised once", once, note="which is not timed")
    if k > 1:
        block = {"": partial(run, products.curvlinops, False)}
        add("curvlinops 3.0.1 matmat", block, target=3)
    add("curvlinops 3.0.1 one by one", {"": partial(run, products.curvlinops, True)}, target=3)
    field.measure(repetitions)
    return field.rows()
