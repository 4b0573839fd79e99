"""Lanczos: eigenpairs, and the tridiagonal matrix itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ....curvature.eigen import eigenpairs, wanted
from ....curvature.lanczos import Lanczos
from ....curvature.symmetric_operator import SymmetricOperator
from ....errors import InvalidArgument
from ..._current import version
from ..linalg.backend import check_backend
from ..operators.base import VERSIONS
from ._common import check_least, driven, generator, note
from .result import EigenResult, as_result

Which = Literal["LM", "LA", "SA"]

TINY = 1e-12  # the original's breakdown and least eigenvalue
SHORT = 50  # steps up to which the original reorthogonalises by itself


@dataclass(frozen=True)
class LanczosTridiag:
    """T of m steps: diagonal alphas (m,), off-diagonal betas (m - 1,), the m basis vectors, and
    the norm of what is left after the last step.
    """

    alphas: Tensor
    betas: Tensor
    basis: list[Tensor]
    last_beta: float
    iterations: int


def lanczos(
    operator: Any,
    *,
    k: int = 10,
    max_iter: int | None = None,
    tol: float = 1e-4,
    reorthogonalize: bool | None = None,
    which: Which = "LM",
    seed: int | None = None,
    backend: Any = None,
    compat: str | None = None,
) -> EigenResult:
    """The k extreme eigenpairs of an operator.

    Args:
        operator: of this package, of hessian-eigenthings or curvlinops, or what `pl.eigenpairs`
            takes.
        k: 1 .. n.
        max_iter: at most so many products; default as many as it takes, at most 10 n or 1,000.
        tol: a pair has converged with a residual of tol |value|.
        reorthogonalize: always done, but with `compat`.
        which: "LM", "LA", "SA", or "BE" for both ends.
        seed: of the start.
        compat: "1.0.0a5": max_iter steps (default min(2k, n - 1)) without restarts.

    Raises:
        InvalidArgument (a ValueError): k, max_iter or which do not fit.
    """
    compat = version("hessian_eigenthings", compat, VERSIONS)
    check_backend(backend)
    op = driven(operator)
    if not 1 <= k <= op.n:
        raise InvalidArgument(f"k: expected 1 .. {op.n} (the operator's size), got {k}")
    if max_iter is not None and not k <= max_iter <= op.n:
        raise InvalidArgument(f"max_iter: expected {k} (k) .. {op.n} (the size), got {max_iter}")
    if compat:
        found = _unrestarted(op, operator, k, max_iter, tol, reorthogonalize, which, seed)
    else:
        room = None if max_iter is None else min(max(max_iter, k + 3), op.n)
        pairs = eigenpairs(
            op, k, which, tol=tol, max_products=max_iter, basis=room, seed=seed or 0,
            progress=False,
        )  # fmt: skip
        found = as_result(pairs, _place(operator, op))
    note("lanczos", operator, op)
    return found


def lanczos_tridiagonal(
    operator: Any,
    v0: Tensor,
    max_iter: int,
    *,
    reorthogonalize: bool = True,
    backend: Any = None,
) -> LanczosTridiag:
    """max_iter steps from v0, fewer where the Krylov space is exhausted."""
    check_backend(backend)
    check_least(max_iter, "max_iter")
    op = driven(operator)
    if v0.shape != (op.n,) or not float(torch.linalg.vector_norm(v0)) >= TINY:
        raise InvalidArgument(f"v0: expected a vector ({op.n},) that is not zero")
    run = _run(op, v0, max_iter, reorthogonalize)
    note("lanczos_tridiagonal", operator, op)
    alpha, beta, _, _ = run.state()
    place, m = _place(operator, op), len(alpha)

    def there(values: Any) -> Tensor:
        return torch.as_tensor(values).to(place.device, place.dtype)

    basis = [there(row) for row in run.basis[0, :m]]
    return LanczosTridiag(there(alpha), there(beta[: m - 1]), basis, float(beta[-1]), m)


def _run(op: SymmetricOperator, v0: Tensor, steps: int, reorthogonalize: bool) -> Lanczos:
    how = "full" if reorthogonalize else "none"
    run = Lanczos(op, v0.detach()[None], steps, reorthogonalize=how)
    run.run()
    return run


def _unrestarted(
    op: SymmetricOperator,
    operator: Any,
    k: int,
    max_iter: int | None,
    tol: float,
    reorthogonalize: bool | None,
    which: str,
    seed: int | None,
) -> EigenResult:
    steps = min(2 * k, op.n - 1) if max_iter is None else max_iter
    if steps < k:
        raise InvalidArgument(f"max_iter: expected at least k = {k}, got {steps}")
    again = steps <= SHORT if reorthogonalize is None else reorthogonalize
    start = torch.randn(op.n, dtype=op.dtype, generator=generator(seed))
    run = _run(op, start, steps, again)
    values, turn, bounds = run.ritz()
    chosen = wanted(values, k, which)
    place = _place(operator, op)
    found, residuals = (
        torch.as_tensor(a[chosen].copy()).to(place.device, place.dtype) for a in (values, bounds)
    )
    vectors = run.vectors(turn[:, chosen]).to(place.device, place.dtype)
    converged = residuals < tol * found.abs().clamp(min=TINY)
    return EigenResult(found, vectors, residuals, run.steps(), converged)


def _place(operator: Any, op: SymmetricOperator) -> Any:
    """What has the device and dtype of the results."""
    return operator if isinstance(getattr(operator, "dtype", None), torch.dtype) else op
