"""Dominant eigenpairs under the original's names: by Lanczos, or as it does with `compat`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....curvature.eigen import eigenpairs
from ....curvature.symmetric_operator import SymmetricOperator
from ....errors import InvalidArgument
from ....results.eigen_pairs import EigenPairs
from ..._current import version
from ..linalg.backend import check_backend
from ..operators.base import VERSIONS
from ._common import check_least, driven, generator, note
from .lanczos import TINY, _place
from .result import EigenResult, as_result

Product = Callable[[Tensor], Tensor]


def power_iteration_one(
    operator: Any,
    *,
    max_iter: int = 100,
    tol: float = 1e-4,
    momentum: float = 0.0,
    init: Tensor | None = None,
    seed: int | None = None,
    backend: Any = None,
    compat: str | None = None,
) -> tuple[float, Tensor, float, int, bool]:
    """The eigenvalue of largest magnitude, its vector, residual, products, whether it converged.

    Args:
        max_iter: at most so many products.
        momentum: only with `compat`; Lanczos needs none.
        init: start (n,).
        The others are those of `lanczos`.
    """
    compat = version("hessian_eigenthings", compat, VERSIONS)
    check_backend(backend)
    check_least(max_iter, "max_iter")
    op = driven(operator)
    if compat:
        found = _powers(_product(op), _start(op, init, seed), max_iter, tol, momentum)
    else:
        pairs = eigenpairs(
            op, 1, "LM", tol=tol, max_products=max_iter, start=init, seed=seed or 0, progress=False
        )
        found = (
            float(pairs.values[0]), pairs.vectors[0], float(pairs.residuals[0]), pairs.products,
            bool(pairs.converged[0]),
        )  # fmt: skip
    note("power_iteration_one", operator, op)
    place = _place(operator, op)
    return (found[0], found[1].to(place.device, place.dtype), *found[2:])


def deflated_power_iteration(
    operator: Any,
    *,
    k: int = 10,
    max_iter: int = 100,
    tol: float = 1e-4,
    momentum: float = 0.0,
    seed: int | None = None,
    backend: Any = None,
    compat: str | None = None,
) -> EigenResult:
    """The k eigenpairs of largest magnitude, with at most max_iter products for each."""
    compat = version("hessian_eigenthings", compat, VERSIONS)
    check_backend(backend)
    check_least(max_iter, "max_iter")
    op = driven(operator)
    if not 1 <= k <= op.n:
        raise InvalidArgument(f"k: expected 1 .. {op.n} (the operator's size), got {k}")
    if compat:
        pairs = _deflated(op, k, max_iter, tol, momentum, seed)
    else:
        pairs = eigenpairs(
            op, k, "LM", tol=tol, max_products=k * max_iter, seed=seed or 0, progress=False
        )
    note("deflated_power_iteration", operator, op)
    return as_result(pairs, _place(operator, op))


def _product(op: SymmetricOperator) -> Product:
    return lambda v: op(v[None])[0].to(v)


def _start(op: SymmetricOperator, init: Tensor | None, seed: int | None) -> Tensor:
    if init is None:
        return torch.randn(op.n, dtype=op.dtype, generator=generator(seed))
    if init.shape != (op.n,) or not float(torch.linalg.vector_norm(init)) >= TINY:
        raise InvalidArgument(f"init: expected a vector ({op.n},) that is not zero")
    return init.detach().to(op.dtype)


def _powers(
    product: Product, v: Tensor, most: int, tol: float, momentum: float
) -> tuple[float, Tensor, float, int, bool]:
    """The original's steps, until value and residual both change or are less than tol of it."""
    v = v / torch.linalg.vector_norm(v)
    before, last, value, residual = torch.zeros_like(v), 0.0, 0.0, float("inf")
    for step in range(1, most + 1):
        av = product(v) - momentum * before
        value = float(v @ av)
        residual = float(torch.linalg.vector_norm(av - value * v))
        norm = float(torch.linalg.vector_norm(av))
        if norm < TINY:
            return 0.0, v, 0.0, step, True
        scale = max(abs(value), TINY)
        if step > 1 and abs(value - last) < tol * scale and residual < tol * scale:
            return value, v, residual, step, True
        before, v, last = v, av / norm, value
    return value, v, residual, most, False


def _deflated(
    op: SymmetricOperator, k: int, most: int, tol: float, momentum: float, seed: int | None
) -> EigenPairs:
    """One after the other, of A - sum value v v^T."""
    single = _product(op)
    found: list[tuple[float, Tensor, float, int, bool]] = []

    def product(x: Tensor) -> Tensor:
        y = single(x)
        for value, v, *_ in found:
            y = y - value * (v @ x) * v
        return y

    for i in range(k):
        start = _start(op, None, None if seed is None else seed + i)
        found.append(_powers(product, start, most, tol, momentum))
    found.sort(key=lambda one: -abs(one[0]))
    values, vectors, residuals, steps, converged = zip(*found, strict=True)
    return EigenPairs(
        np.array(values), torch.stack(vectors), np.array(residuals), np.array(converged),
        sum(steps), "LM", tol,
    )  # fmt: skip
