"""How sharp a picture's directions are, and how much sharpness lies across them, unseen."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import check_landscape
from ..arrays import Array, digest
from ..curvature.ends import both_ends
from ..curvature.operators import as_operator
from ..curvature.symmetric_operator import SymmetricOperator
from ..errors import InvalidArgument
from ..results.surface import Surface
from ..theta import random_source
from ..theta.directions import as_directions, as_steps, random_directions

if TYPE_CHECKING:
    from ..landscape import Landscape


@dataclass(frozen=True, eq=False)
class Sharpness:
    """The Hessian H in the span of directions D (k, n), and across it.

    Attributes:
        projected: (k, k) float64, D H D^T: second derivatives of the loss in the picture's own
            coordinates; [0, 0] is that along its x axis.
        unit: (k, k) float64, the same for the directions scaled to norm 1.
        gram: (k, k) float64, D D^T.
        curvatures: (k,) float64, descending: the principal curvatures of the span, the eigenvalues
            of H restricted to it.
        axes: (k, k) float64: row i has the coefficients, in D, of the unit vector of curvature i.
        across_max, across_min: the extremal eigenvalues of P H P on the orthogonal complement, P
            onto it; NaN if there is none (k = n).
        converged: whether both are.
        products: vectors multiplied with H.
    """

    projected: Array
    unit: Array
    gram: Array
    curvatures: Array
    axes: Array
    across_max: float
    across_min: float
    converged: bool
    products: int

    @property
    def hidden(self) -> float:
        """max |lambda| across the picture over max |lambda| in it: 10 says that the picture hides
        directions ten times as sharp as any that it shows."""
        seen = np.abs(self.curvatures).max()
        across = max(abs(self.across_max), abs(self.across_min))
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.float64(across) / seen)

    def __str__(self) -> str:
        shown = ", ".join(f"{c:.4g}" for c in self.curvatures)
        found = "" if self.converged else " (NOT converged)"
        return (
            f"curvature in the picture: {shown}\n"
            f"curvature across it:      {self.across_min:.4g} to {self.across_max:.4g}{found}\n"
            f"hidden / shown:           {self.hidden:.3g}"
        )


def hidden_curvature(
    land: Landscape,
    directions: Any,
    theta: Any = None,
    seed: int = 0,
    *,
    tol: float = 1e-3,
    progress: bool = True,
) -> Sharpness:
    """The Hessian's curvature along a picture's directions, and the largest and smallest across.

    Args:
        land: the landscape.
        directions: Directions, tensors or arrays (n,) or (k, n), linearly independent; or a Surface
            made by `plane` from random directions, which are drawn again and compared.
        theta: where (n,); default the model's parameters.
        seed: of the starting vectors of the eigenvalues across.
        tol: their tolerance, relative to the larger one.
        progress: show a bar on stderr.

    Raises:
        InvalidArgument: zero or linearly dependent directions; a Surface whose directions cannot be
            had, or whose centre is not theta. LayoutMismatch for another length.
    """
    check_landscape(land, "hidden_curvature")
    land = land.at(theta)
    point = land.point(theta)
    if isinstance(directions, Surface):
        directions = directions_of(land, directions, point)
    given, _ = as_directions(land, directions)
    hessian = as_operator(land, theta=point)
    d = given.to(hessian.device).double()
    norms = torch.linalg.vector_norm(d, dim=1)
    gram = d @ d.T
    q, r = torch.linalg.qr((d / norms[:, None]).T) if len(d) <= land.n_params else (d.T, None)
    # the directions are rounded to theta's dtype: what that leaves may look independent
    least = land.n_params**0.5 * torch.finfo(given.dtype).eps
    if r is None or not bool((r.diagonal().abs() > least).all()):
        raise InvalidArgument(
            "directions: expected linearly independent ones that are not zero, got norms "
            f"{[float(f'{v:.4g}') for v in norms]}"
        )
    products = hessian(d) @ d.T
    projected = ((products + products.T) / 2).cpu().numpy()
    scale = norms.cpu().numpy()
    unit = projected / np.outer(scale, scale)
    # H in the span: D = diag(norms) R^T Q^T, and D H D^T x = c D D^T x
    from scipy.linalg import eigh

    curvatures, x = eigh(unit, (gram / norms / norms[:, None]).cpu().numpy())
    high, low, converged = _across(hessian, q, seed, tol, progress)
    return Sharpness(
        projected=projected,
        unit=unit,
        gram=gram.cpu().numpy(),
        curvatures=curvatures[::-1].copy(),
        axes=(x / scale[:, None]).T[::-1].copy(),
        across_max=high,
        across_min=low,
        converged=converged,
        products=hessian.products,
    )


def sharpness(
    land: Landscape,
    directions: Any,
    theta: Any = None,
    seed: int = 0,
    *,
    tol: float = 1e-3,
    progress: bool = True,
) -> Sharpness:
    """Deprecated: the former name of `hidden_curvature`, not the field's lambda_max (`flatness`).

    Arguments, result and errors are those of `hidden_curvature`.
    """
    warnings.warn(
        "sharpness measures the curvature inside and across a picture's plane: use its new name, "
        "hidden_curvature; for lambda_max and other measures of sharpness use flatness",
        DeprecationWarning,
        stacklevel=2,
    )
    return hidden_curvature(land, directions, theta, seed, tol=tol, progress=progress)


def directions_of(land: Landscape, surface: Surface, theta: Any = None) -> Tensor:
    """The directions (k, n) of a `plane`, which its file has by seed and digest only.

    Raises:
        InvalidArgument: they were not random, or come out otherwise here; another centre.
    """
    request = surface.info.get("request", {})
    recorded = request.get("directions", [])
    if surface.kind != "plane" or not recorded:
        raise InvalidArgument(
            f"directions: expected a Surface made by plane(), got one of kind {surface.kind!r} "
            f"with {len(recorded)} directions recorded"
        )
    land = land.at(theta)
    point = land.point(theta)
    if request["theta"] != digest(point):
        raise InvalidArgument("theta: expected the centre of the Surface, got another point")
    rows = []
    for i, info in enumerate(recorded):
        if info.get("kind") != "random":
            raise InvalidArgument(
                f"directions: expected a Surface of random directions, got number {i} of kind "
                f"{info.get('kind')!r}, whose numbers are not in the file; pass the directions"
            )
        options = {key: info[key] for key in ("normalize", "ignore", "seed", "orthogonal")}
        for origin in (land.theta, point):  # whichever the normalisation took the norms of
            found = random_directions(land, info["index"] + 1, theta=origin, **options)[-1]
            if digest(as_steps(land, found)[0][0]) == info["digest"]:
                rows.append(found.vector)
                break
        else:
            raise InvalidArgument(
                f"directions: expected to draw the Surface's direction {i} again, got other "
                "numbers; pass the directions"
            )
    return torch.stack(rows)


def _across(
    hessian: SymmetricOperator, q: Tensor, seed: int, tol: float, progress: bool
) -> tuple[float, float, bool]:
    """Largest and smallest eigenvalue of P H P on the complement of Q (n, k), P = I - Q Q^T.

    P H P is zero on Q's span. To keep these zeros from being taken for an end of the spectrum, they
    are moved inside it: to x^T H x for a unit vector x of the complement.
    """
    n, k = q.shape
    if k == n:
        return float("nan"), float("nan"), True
    x = random_source.normals(1, n, seed, random_source.SINGLE, torch.float64, q.device)
    x = x - (x @ q) @ q.T
    x = x - (x @ q) @ q.T  # once more: what rounding left
    x = x / torch.linalg.vector_norm(x)
    inside = float((hessian(x) * x).sum())
    if k == n - 1:
        return inside, inside, True

    def product(v: Tensor) -> Tensor:
        v = v.double()
        along = v @ q
        out = hessian(v - along @ q.T)
        return out - (out @ q) @ q.T + inside * along @ q.T

    operator = SymmetricOperator(
        n, product, dtype=hessian.dtype, device=hessian.device,
        about=lambda whole: {**hessian.describe(whole), "without": digest(q), "matrix": "hessian"},
    )  # fmt: skip
    ends = both_ends(operator, tol, seed=seed, progress=progress)
    return ends.high, ends.low, ends.converged
