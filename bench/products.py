"""Hessian-vector products by torch in its best forms and by curvlinops.

Each function does its set-up (which is not timed) and gives a function that does the work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .curvature import Problem, Products
from .workloads import split

Make = Callable[..., Products]


def retained(problem: Problem) -> Products:
    """d(g . v) / d theta, one vector after the other, through the graph of g that is kept."""
    parameters, gradient = _gradient(problem)

    def products(v: Tensor) -> Tensor:
        out = []
        for row in v:
            parts = split(row, parameters)
            hv = torch.autograd.grad(gradient, parameters, parts, retain_graph=True)
            out.append(torch.cat([part.flatten() for part in hv]))
        return torch.stack(out)

    return products


def grads_batched(problem: Problem) -> Products:
    """The same for all vectors at once, by autograd's ``is_grads_batched``."""
    parameters, gradient = _gradient(problem)

    def products(v: Tensor) -> Tensor:
        parts = _split_rows(v, parameters)
        hv = torch.autograd.grad(
            gradient, parameters, parts, retain_graph=True, is_grads_batched=True
        )
        return torch.cat([part.flatten(1) for part in hv], dim=1)

    return products


def vmapped(problem: Problem, flat: bool) -> Products:
    """``vmap`` of ``jvp`` of ``grad``, in one vector theta or in the parameters' own shapes."""
    func = torch.func
    if flat:
        gradient, theta = _functional_gradient(problem), problem.theta
        return func.vmap(lambda v: func.jvp(gradient, (theta,), (v,))[1])
    model = problem.copy()
    state = {name: p.detach() for name, p in model.named_parameters()}
    slopes = func.grad(
        lambda s: F.cross_entropy(func.functional_call(model, s, (problem.x,)), problem.y)
    )
    many = func.vmap(lambda v: func.jvp(slopes, (state,), (v,))[1])

    def products(v: Tensor) -> Tensor:
        hv = many(dict(zip(state, _split_rows(v, list(state.values())), strict=True)))
        return torch.cat([hv[name].flatten(1) for name in state], dim=1)

    return products


def compiled(problem: Problem, forward: bool) -> Products:
    """``torch.compile`` of whole products: ``jvp`` of ``grad``, or ``grad`` of the product of
    ``grad`` and v; in the parameters' own shapes."""
    func = torch.func
    model = problem.copy()
    state = {name: p.detach() for name, p in model.named_parameters()}
    slopes = func.grad(
        lambda s: F.cross_entropy(func.functional_call(model, s, (problem.x,)), problem.y)
    )

    def slope(s: dict[str, Tensor], v: dict[str, Tensor]) -> Tensor:
        return torch.stack([(g * v[name]).sum() for name, g in slopes(s).items()]).sum()

    def one(v: dict[str, Tensor]) -> dict[str, Tensor]:
        along = func.jvp(slopes, (state,), (v,))[1] if forward else func.grad(slope)(state, v)
        done: dict[str, Tensor] = along
        return done

    run = torch.compile(one)

    def products(v: Tensor) -> Tensor:
        out = []
        for row in v:
            hv = run(dict(zip(state, split(row, list(state.values())), strict=True)))
            out.append(torch.cat([hv[name].flatten() for name in state]))
        return torch.stack(out)

    return products


def compiled_ways(problem: Problem, v: Tensor) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    """Both ways of `compiled`, times v, by name."""
    return {
        "forward over reverse": lambda: partial(compiled(problem, True), v),
        "reverse over reverse": lambda: partial(compiled(problem, False), v),
    }


def linearised(problem: Problem) -> Products:
    """``torch.func.linearize`` of the gradient, its tangent map vmapped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of its own constant folding
        _, tangent = torch.func.linearize(_functional_gradient(problem), problem.theta)
        return torch.func.vmap(tangent)


def pulled_back(problem: Problem) -> Products:
    """``torch.func.vjp`` of the gradient (H is symmetric), the pullback vmapped."""
    with torch.no_grad():
        _, pull = torch.func.vjp(_functional_gradient(problem), problem.theta)
    many = torch.func.vmap(lambda v: pull(v)[0])

    def products(v: Tensor) -> Tensor:
        with torch.no_grad():
            done: Tensor = many(v)
        return done

    return products


def curvlinops(problem: Problem, one_by_one: bool) -> Products:
    """curvlinops' HessianLinearOperator times a matrix, or times its columns one by one."""
    package = import_module("curvlinops")
    model = problem.copy()
    operator = package.HessianLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(problem.x, problem.y)],
        check_deterministic=False,
        num_data=len(problem.x),
    )
    if one_by_one:
        return lambda v: torch.stack([operator @ row for row in v])
    return lambda v: (operator @ v.T).T


def _gradient(problem: Problem) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters, and the loss's gradient in them with its graph."""
    model = problem.copy()
    parameters: list[Tensor] = list(model.parameters())
    gradient = torch.autograd.grad(problem.loss(model), parameters, create_graph=True)
    return parameters, list(gradient)


def _functional_gradient(problem: Problem) -> Callable[[Tensor], Tensor]:
    """theta (n,) to the gradient (n,), by torch.func."""
    model = problem.copy()
    names = [name for name, _ in model.named_parameters()]
    parameters: list[Tensor] = [p.detach() for p in model.parameters()]

    def loss(theta: Tensor) -> Tensor:
        state = dict(zip(names, split(theta, parameters), strict=True))
        return F.cross_entropy(torch.func.functional_call(model, state, (problem.x,)), problem.y)

    gradient: Callable[[Tensor], Tensor] = torch.func.grad(loss)
    return gradient


def _split_rows(v: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Rows (k, n) as one (k, *shape) for each parameter."""
    parts = v.split([p.numel() for p in parameters], dim=1)
    return [part.view(len(v), *p.shape) for part, p in zip(parts, parameters, strict=True)]
