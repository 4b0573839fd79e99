"""Both ends of a symmetric matrix's spectrum, as exact as the larger one asks for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .symmetric_operator import SymmetricOperator

COARSE = 0.3  # relative residual at which max |lambda| is known well enough to be a scale
SHIFT = 3.0  # times that scale: where it is 0.75 of the truth or more, the shifted ends are > 0


class Ends(NamedTuple):
    """lambda_min and lambda_max.

    Attributes:
        low, high: NaN where a product is not finite.
        residuals: of low and of high.
        vectors: (2, n) their unit vectors on the CPU, that of `high` first; None where the ends are
            NaN.
        converged: the residuals are within the tolerance.
        products: vectors multiplied.
    """

    low: float
    high: float
    residuals: tuple[float, float]
    vectors: Tensor | None
    converged: bool
    products: int


def both_ends(
    op: SymmetricOperator,
    tol: float,
    *,
    start: Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Ends:
    """Both ends to residuals of at most tol max(|lambda_min|, |lambda_max|).

    `eigenpairs` measures each eigenvalue by its own size, which has no end for a matrix that is
    nearly semidefinite: its lambda_min is next to a crowd around 0. Here the matrix is moved by
    `SHIFT` times a rough norm first, so that both ends are about as large.

    Args:
        op: (n, n).
        tol: in (0, 1).
        start: (n,); default random from the seed.
        progress: show a bar on stderr.

    Raises:
        InvalidArgument: the very first product is not finite.
    """
    from .eigen import eigenpairs, rough_norm

    before = op.products
    if op.n == 1:
        only = float(op(torch.ones(1, 1, dtype=op.dtype)))
        return Ends(only, only, (0.0, 0.0), torch.ones(2, 1, dtype=op.dtype), True, 1)
    shift = SHIFT * rough_norm(op, COARSE, start, seed, progress)

    def product(v: Tensor) -> Tensor:
        return op(v) + shift * v.double()

    moved = SymmetricOperator(
        op.n, product, dtype=op.dtype, device=op.device,
        about=lambda whole: {"of": op.describe(whole), "shift": shift},
    )  # fmt: skip
    # of the shifted matrix the larger end is at most 4.33 times the scale
    own = tol / (SHIFT + 4 / 3)
    pairs = eigenpairs(moved, 2, "BE", tol=own, start=start, seed=seed, progress=progress)
    values = np.asarray(pairs.values, dtype=np.float64) - shift
    used = op.products - before
    if pairs.info.get("outcome") == "not finite" or not np.isfinite(values).all():
        nan = float("nan")
        return Ends(nan, nan, (nan, nan), None, False, used)
    high, low = float(values[0]), float(values[1])
    residuals = (float(pairs.residuals[1]), float(pairs.residuals[0]))
    good = bool(np.all(pairs.converged)) or max(residuals) <= tol * max(abs(low), abs(high))
    return Ends(low, high, residuals, pairs.vectors, good, used)
