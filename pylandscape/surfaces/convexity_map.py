"""The convexity map: extremal eigenvalues of the Hessian at every point of a plane.

rho = |lambda_min / lambda_max| (Li et al. 2018, section 7): near 0 where the loss is close to
convex in all n directions, not only in the two of the picture. All parameters count.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import check_landscape, integer
from ..arrays import Array, Path, all_finite
from ..curvature.ends import both_ends
from ..curvature.operators import as_operator
from ..curvature.tall import combine, norms
from ..errors import InvalidArgument
from ..results.surface import Surface
from ..theta import random_source
from .evaluation import GridQuestion, Measure, evaluate_grid
from .grids import LINE_AXIS, Axis, plane_question

if TYPE_CHECKING:
    from ..landscape import Landscape

METRICS = ("loss", "lambda_min", "lambda_max", "ratio", "residual")
# Up to this n dense eigenvalues cost less: n products and an eigendecomposition, where Lanczos
# takes 30 to 50 products. (At n = 1,900 dense ones take 15 to 35 times as long.)
DENSE = 200  # of Hessians that are compiled
DENSE_BY_TORCH = 100
NOISE = 1.0  # norm of what is random in a warm start, beside two unit vectors


def convexity(
    land: Landscape,
    d1: Any,
    d2: Any,
    x: Axis = LINE_AXIS,
    y: Axis = LINE_AXIS,
    *,
    tol: float = 1e-3,
    path: Path | None = None,
    progress: bool = True,
    theta: Any = None,
    dense: int | None = None,
    warm: bool = False,
    seed: int = 0,
) -> Surface:
    """lambda_min, lambda_max and their ratio at theta + x d1 + y d2, on a grid.

    Args:
        tol: of the Lanczos iteration, relative to the larger of |lambda_min| and |lambda_max|.
        dense: up to this many parameters, eigenvalues of the whole Hessian (n^2 numbers) in
            float64; beyond, both ends by Lanczos. The default is what costs less: 200 where the
            Hessian is compiled, 100 on the torch engine..
        warm: start each point from the eigenvectors of the one before it in its row, with as much
            of a random vector. It saves a third of the products, and where another eigenvalue
            takes the lead between two points it can stay with the old one, unnoticed, until they
            differ by several percent.
        seed: of the starting vectors, the same at every point.
        The others are those of `plane`.

    Returns:
        A Surface of kind "plane" with metrics "loss", "lambda_min", "lambda_max", "ratio" =
        |lambda_min / lambda_max| and "residual", the larger ||H v - lambda v|| of both
        eigenpairs, 0 for dense ones. lambda_min / lambda_max has the sign of lambda_min where
        lambda_max > 0. Points with lambda_max <= 0, where rho says nothing about convexity, keep
        their numbers; info["no_positive_curvature"] counts them, and info["not_converged"] those
        whose residual is beyond tol. All but the loss is NaN where the loss or the Hessian is not
        finite.

    Raises:
        As `plane`, and InvalidArgument for a tol outside (0, 1) or a negative `dense`.

    Numerics: the Hessian is evaluated in the landscape's dtype. Where a run was stopped does not
    show in its numbers: cold, no point depends on another; warm, none on another row, and a resumed
    run finds the vectors to go on with anew from the first point of its row. Another start changes
    the eigenvalues within tol.
    """
    check_landscape(land, "convexity")
    if not (isinstance(tol, int | float) and 0 < tol < 1):
        raise InvalidArgument(f"tol: expected a number between 0 and 1, got {tol!r}")
    if dense is None:
        dense = DENSE_BY_TORCH if land.engine == "torch" else DENSE
    limit, seed = integer(dense, "dense", 0), integer(seed, "seed", 0)
    land = land.at(theta)
    asked = plane_question(land, d1, d2, x, y, theta)
    whole = land.n_params <= max(limit, 2)
    about: dict[str, Any] = {"method": "dense"}
    if not whole:
        about = {"method": "lanczos", "tol": tol, "warm": bool(warm), "seed": seed}

    def summary(found: Mapping[str, Array]) -> dict[str, Any]:
        size = np.maximum(np.abs(found["lambda_min"]), np.abs(found["lambda_max"]))
        return {
            "eigenvalues": about,
            "no_positive_curvature": int((found["lambda_max"] <= 0).sum()),
            "not_converged": int((found["residual"] > tol * size).sum()),
        }

    def prepare() -> _Ends:
        return _Ends(land, asked, None if whole else tol, bool(warm), seed)

    measure = Measure(prepare, {"eigenvalues": about}, summary)
    result = evaluate_grid(land, asked, METRICS, path, progress, measure)
    assert isinstance(result, Surface)
    return result


class _Ends:
    """Both ends of the Hessian's spectrum at points of the question's grid.

    Args:
        tol: of Lanczos; None for dense eigenvalues.
    """

    def __init__(
        self, land: Landscape, asked: GridQuestion, tol: float | None, warm: bool, seed: int
    ) -> None:
        self._land, self._asked, self._tol = land, asked, tol
        self._warm, self._seed = warm, seed
        base, vectors = asked.base, asked.vectors
        self._base = base if isinstance(base, Tensor) else base.whole()
        self._vectors = vectors if isinstance(vectors, Tensor) else vectors.matrix()
        self._loss = land.prepare(self._vectors, theta=self._base)
        self._row = asked.axes["y"].size
        self._index = {c.tobytes(): i for i, c in enumerate(asked.coefficients)}
        self._last: tuple[int, Tensor | None] = (-1, None)  # a point and its vectors (2, n)

    def __call__(self, coefficients: Array) -> dict[str, Array]:
        found = [self._at(self._index[c.tobytes()]) for c in coefficients]
        return dict(zip(METRICS, np.array(found).T, strict=True))

    def _at(self, i: int) -> tuple[float, ...]:
        """The metrics at point i of the grid."""
        loss = float(self._loss(self._asked.coefficients[i : i + 1])["loss"][0])
        low, high, residual = float("nan"), float("nan"), float("nan")
        if np.isfinite(loss):
            low, high, residual = self._dense(i) if self._tol is None else self._lanczos(i)
        else:
            self._last = (i, None)
        with np.errstate(divide="ignore", invalid="ignore"):
            return loss, low, high, float(np.abs(np.float64(low) / high)), residual

    def _point(self, i: int) -> Tensor:
        c = torch.as_tensor(self._asked.coefficients[i])[None]
        base = self._base
        return (base.double() + combine(c, self._vectors.double())[0]).to(base.dtype)

    def _dense(self, i: int) -> tuple[float, float, float]:
        hessian = self._land.hessian(self._point(i))
        if not all_finite(hessian):
            return float("nan"), float("nan"), float("nan")
        values = np.linalg.eigvalsh(hessian.cpu().numpy())  # torch's bits depend on its threads
        return float(values[0]), float(values[-1]), 0.0

    def _lanczos(self, i: int) -> tuple[float, float, float]:
        assert self._tol is not None
        start = self._start(i)
        hessian = as_operator(self._land, theta=self._point(i))
        self._last = (i, None)
        try:
            with warnings.catch_warnings():  # of a product that is not finite: NaN says it
                warnings.simplefilter("ignore")
                ends = both_ends(hessian, self._tol, start=start, seed=self._seed)
        except InvalidArgument:  # the first one is not
            return float("nan"), float("nan"), float("nan")
        self._last = (i, ends.vectors)
        return ends.low, ends.high, max(ends.residuals)

    def _start(self, i: int) -> Tensor | None:
        """(n,) both vectors of the point before, and some of every direction: those alone may be
        eigenvectors here too, which their Krylov space never leaves, and no ends any more."""
        first = i - i % self._row
        if i == first or not self._warm:
            return None
        if self._last[0] != i - 1:
            for k in range(first, i):
                self._at(k)
        vectors = self._last[1]
        if vectors is None:
            return None
        noise = torch.empty(vectors.shape[1], dtype=torch.float64)
        random_source.fill(noise, self._seed, random_source.NOISE)
        noise = noise * (NOISE / norms(noise[None])[0])
        return vectors.double().sum(0) + noise
