"""Bumpiness and ruggedness: the mean second derivative over random directions, signed and not.

    B = E[u^T H u] = tr(H) / n,        R = E|u^T H u|,        u uniform on the unit sphere

in loss per squared unit of a parameter. |B| <= R, with equality where H is semidefinite. The paper
that introduced the words (an analysis of residual networks' landscapes by Hessian clouds) gives no
formula; these are ours.

R needs no sampling where the eigenvalues are known. For z ~ N(0, I_n), |z| and z / |z| are
independent, so E|z^T H z| = n R, and X = z^T H z = sum_i lambda_i z_i^2 has the moment generating
function M(s) = prod_i (1 - 2 lambda_i s)^{-1/2}. With E|X| = E X + 2 E max(-X, 0) and, for any
c < 0 where M is finite,

    E max(-X, 0) = 1 / (2 pi) int_{-inf}^{inf} M(c + i y) / (c + i y)^2 dy,

one smooth integral is left; through the saddle point c it does not oscillate (Lugannani, Rice 1980;
Imhof 1961 has c = 0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import integer
from ..arrays import Array
from ..curvature.at_points import as_points, iterate_hessians
from ..curvature.traces import Estimate
from ..engines.points.evaluator import eigenvalues
from ..errors import InvalidArgument
from ..landscape import Landscape

if TYPE_CHECKING:
    from collections.abc import Iterator

METHODS = ("auto", "exact", "products", "finite")
EXACT_ORDER = 600  # "auto" takes the eigenvalues of matrices up to this order
STEP = 1e-3  # h of the finite differences
BLOCK = 1 << 17  # numbers of one pass of the integral: they stay in the cache
BISECTIONS = 16
NODES, SPACING = 66, 0.2  # of the integral over asinh(y / width): relative error below 1e-9
ENOUGH = 1e-12  # terms below it end the sum


def bumpiness(
    source: Any,
    points: Any = None,
    *,
    method: str = "auto",
    samples: int = 100,
    step: float = STEP,
    seed: int = 0,
) -> Estimate:
    """B = tr(H) / n, the mean curvature over all directions: positive in a bowl.

    Arguments, result and errors as in `ruggedness`; "exact" is the trace.
    """
    return _Forms(source, points, method, samples, step, seed).estimate(signed=True)


def ruggedness(
    source: Any,
    points: Any = None,
    *,
    method: str = "auto",
    samples: int = 100,
    step: float = STEP,
    seed: int = 0,
) -> Estimate:
    """R = E|u^T H u|, the mean absolute curvature over all directions.

    Args:
        source: Hessians (P, n, n), one (n, n), or a Landscape.
        points: (P, n), with a landscape; default its own parameters, as one point.
        method: "exact" (to 1e-9, from the eigenvalues), "products" (mean over random directions of
            u^T H u, for large n), "finite" (the same from [L(theta + h u) - 2 L(theta) +
            L(theta - h u)] / h^2, which sees kinks; in float64), or "auto": exact up to n = 600.
        samples: directions of each point, >= 2; methods: 100.
        step: h, of "finite".
        seed: of the directions.

    Returns:
        An Estimate: value and standard_error (P,), or numbers for one matrix; the error is 0 where
        exact. A point whose Hessian is not finite has NaN.

    Raises:
        InvalidArgument: names the argument.

    Example:
        >>> ruggedness([[1.0, 0.0], [0.0, -1.0]])  # 2 / pi
        0.63662 +- 0 (0 products, exact)
    """
    return _Forms(source, points, method, samples, step, seed).estimate(signed=False)


def mean_absolute_form(spectra: Any) -> Array:
    """R (P,) of matrices with the eigenvalues (P, n); NaN where they are not finite.

    See the module. Relative error below 1e-9.
    """
    values = torch.as_tensor(np.asarray(spectra, dtype=np.float64))
    found = torch.empty(len(values), dtype=torch.float64)
    size = max(1, BLOCK // max(values.shape[1], 1))
    for first in range(0, len(values), size):
        part = slice(first, first + size)
        found[part] = _mean_absolute(values[part])
    return found.numpy()


def _mean_absolute(values: Tensor) -> Tensor:
    """E|X| / n for the rows of (p, n)."""
    n = values.shape[1]
    scale = values.abs().amax(dim=1)
    mean = values.sum(dim=1)
    # X and -X have the same |X|: let the mean be positive, so that max(-X, 0) is the small part.
    values = values * mean.sign().where(mean != 0, 1.0)[:, None] / scale[:, None]
    lowest = values.amin(dim=1)
    found = mean.abs() / n  # R = |B| of semidefinite matrices
    found[scale == 0] = 0.0
    rows = torch.nonzero(lowest < 0.0)[:, 0]
    if len(rows):
        negative = _negative_part(values[rows], lowest[rows, None])
        found[rows] += 2.0 * scale[rows] * negative / n
    return found


def _negative_part(values: Tensor, lowest: Tensor) -> Tensor:
    """E max(-X, 0) for rows with a negative eigenvalue, the smallest (p, 1), and a sum >= 0."""
    # The saddle point c = x / (2 lambda_min), 0 < x < 1: the minimum of log M(c) - 2 log(-c), which
    # is convex, so its derivative sum_i lambda_i / (1 - 2 lambda_i c) - 2 / c rises from -inf at
    # x = 1 to inf at x = 0. c has no effect on the integral, only on how smooth it is.
    low, high = torch.zeros_like(lowest), torch.ones_like(lowest)
    for _ in range(BISECTIONS):
        x = 0.5 * (low + high)
        slope = (values / (1.0 - x * (values / lowest))).sum(1, keepdim=True) - 4.0 * lowest / x
        low, high = torch.where(slope > 0.0, x, low), torch.where(slope > 0.0, high, x)
    x = 0.5 * (low + high)
    c = (x / (2.0 * lowest))[:, 0]
    room = 1.0 - x * (values / lowest)  # 1 - 2 lambda_i c > 0
    a = 2.0 * values / room  # M(c + i y) = M(c) prod_i (1 - i y a_i)^{-1/2}
    width = (0.5 * a.square().sum(1) + 2.0 / c.square()).rsqrt()
    height = torch.exp(-0.5 * room.log().sum(1)) / c.square()
    # Two factors together, (1 - i y p)(1 - i y q) = 1 - y^2 p q - i y (p + q), have an argument
    # within (-pi, pi): their square root is the principal one, and half of the atan2 is saved.
    a = torch.nn.functional.pad(a * width[:, None], (0, a.shape[1] % 2))
    sums, products = a[:, ::2] + a[:, 1::2], a[:, ::2] * a[:, 1::2]
    slant = width / c
    total = torch.full_like(c, 0.5)  # of the integrand over its value at y = 0, which counts half
    for k in range(1, NODES):
        y, slope_y = float(np.sinh(k * SPACING)), float(np.cosh(k * SPACING))
        real, imaginary = 1.0 - y * y * products, y * sums
        log_size = (real.square() + imaginary.square()).prod(1).log()  # inf far out: size 0
        size = slope_y * torch.exp(-0.25 * log_size) / (1.0 + (y * slant).square())
        angle = 0.5 * torch.atan2(imaginary, real).sum(1) - 2.0 * torch.atan(y * slant)
        total += size * torch.cos(angle)
        if not (size > ENOUGH).any():
            break
    return height * width * SPACING * total / np.pi


class _Forms:
    """Quadratic forms u^T H u at points, or the eigenvalues there."""

    def __init__(
        self, source: Any, points: Any, method: str, samples: int, step: float, seed: int
    ) -> None:
        if method not in METHODS:
            raise InvalidArgument(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        self.land = source if isinstance(source, Landscape) else None
        self.single = False
        if self.land is not None:
            self.single = points is None
            at = self.land.theta[None] if points is None else points
            self.points = as_points(self.land, at)
            self.n, self.count = self.land.n_params, len(self.points)
        else:
            if points is not None:
                raise InvalidArgument("points: expected only with a Landscape, got Hessians")
            self.matrices, self.single = _matrices(source)
            self.count, self.n = self.matrices.shape[:2]
            if method == "finite":
                raise InvalidArgument("method: expected a Landscape for 'finite', got Hessians")
        self.method = method
        if method == "auto":
            exact = self.land is None or self.n <= EXACT_ORDER
            self.method = "exact" if exact else "products"
        self.samples = integer(samples, "samples", 2)
        self.seed = integer(seed, "seed", 0)
        self.step = float(step)
        if not (np.isfinite(self.step) and self.step > 0.0):
            raise InvalidArgument(f"step: expected a positive number, got {step!r}")

    def estimate(self, signed: bool) -> Estimate:
        if self.method == "exact":
            values = np.full(self.count, np.nan)
            for part, h in self._hessians():
                values[part] = exact_bumpiness(h) if signed else mean_absolute_form(eigenvalues(h))
            errors, products = np.zeros(self.count), 0
        else:
            forms = self.forms()
            forms = forms if signed else np.abs(forms)
            values = forms.mean(axis=1)
            errors = forms.std(axis=1, ddof=1) / np.sqrt(self.samples)
            products = self.samples * self.count
        if self.single:
            return Estimate(float(values[0]), float(errors[0]), products, self.method)
        return Estimate(values, errors, products, self.method)

    def forms(self) -> Array:
        """(P, samples) values of u^T H u; each point has directions of its own."""
        found = np.empty((self.count, self.samples))
        for p in range(self.count):
            u = np.random.default_rng([self.seed, p]).standard_normal((self.samples, self.n))
            u /= np.linalg.norm(u, axis=1, keepdims=True)
            found[p] = self._forms_at(p, u)
        return found

    def _forms_at(self, p: int, u: Array) -> Array:
        if self.land is None:
            return np.einsum("kj,kj->k", u @ self.matrices[p], u)
        theta = self.points[p]
        if self.method == "finite":
            h = self.step
            losses, _ = self.land.point_evaluator().gradients(
                np.concatenate([theta[None], theta + h * u, theta - h * u])
            )
            right, left = losses[1:].reshape(2, -1)
            return (right - 2.0 * losses[0] + left) / h**2
        rows = self.land.hvp(torch.as_tensor(u), torch.as_tensor(theta))
        return np.einsum("kj,kj->k", rows.double().cpu().numpy(), u)

    def _hessians(self) -> Iterator[tuple[slice, Array]]:
        if self.land is None:
            yield slice(0, self.count), self.matrices
            return
        for part, found in iterate_hessians(self.land, self.points):
            assert found.matrices is not None
            yield part, found.matrices


def exact_bumpiness(matrices: Array) -> Array:
    """tr(H) / n (P,) of (P, n, n)."""
    return np.trace(matrices, axis1=1, axis2=2) / matrices.shape[1]


def _matrices(source: Any) -> tuple[Array, bool]:
    """Hessians (P, n, n), and whether one (n, n) was given."""
    try:
        given = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
        found = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"source: expected a Landscape or Hessians (P, n, n), got {type(source).__name__}"
        ) from error
    single = found.ndim == 2
    found = found[None] if single else found
    if found.ndim != 3 or found.shape[1] != found.shape[2] or 0 in found.shape:
        raise InvalidArgument(f"source: expected shape (P, n, n) or (n, n), got {np.shape(source)}")
    return found, single
