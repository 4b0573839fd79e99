"""What a Hessian's spectrum says about training: outliers, the gradient's place, speed.

Symbols: lambda_1 >= lambda_2 >= ... the eigenvalues of H; g the gradient; Sigma = (1/N) sum_i
g_i g_i^T the uncentred covariance of the per-sample gradients; K the number of classes. After
Ghorbani, Krishnan, Xiao (2019), sections 4 and 5. The functions of `values` take any order, and
eigenvalues that are NaN (the padding of a Spectrum) do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..arguments import check_landscape, integer
from ..arrays import Array
from ..errors import InvalidArgument, PylandscapeError
from .ends import both_ends
from .operators import as_operator
from .tall import combine, inner, norms, orthonormal

if TYPE_CHECKING:
    from ..landscape import Landscape

END_TOL = 1e-3  # of lambda_min, relative to max |lambda|


class Condition(NamedTuple):
    """Condition numbers of a spectrum, by the zero rule |lambda| <= rtol max |lambda|.

    Attributes:
        full: lambda_max / lambda_min, signed; infinite where lambda_min is a zero.
        positive: lambda_max / lambda_min_plus; NaN where nothing is positive.
        lambda_max, lambda_min, lambda_min_plus: the ends, and the smallest positive eigenvalue that
            is no zero.
        zeros: how many are zeros.
    """

    full: float
    positive: float
    lambda_max: float
    lambda_min: float
    lambda_min_plus: float
    zeros: int


class CovarianceSpectrum(NamedTuple):
    """Sigma's eigenvalues (min(N, n),) float64, descending, and eigenvectors (r, n) float64, rows
    orthonormal, of the first r of them; on the CPU."""

    values: Array
    vectors: Tensor


@dataclass(frozen=True, eq=False)
class OutlierReport:
    """What stands out of a Hessian's spectrum.

    Attributes:
        values: (K,) float64, the largest eigenvalues, descending.
        zeta: lambda_1 / lambda_K.
        gradient_norm: ||g||.
        gradient_concentration: ||P g||^2 / ||g||^2, P onto their eigenvectors; NaN if g = 0.
        covariance_overlap: mean ||P_Sigma u_i||^2 of the eigenvectors u_i on Sigma's top space of
            the same dimension; NaN where `notes` say why.
        lambda_min: the smallest eigenvalue, within 1e-3 max |lambda|.
        condition: lambda_1 / lambda_min, signed; infinite where lambda_min is no more than that.
        largest_stable_rate: 2 / lambda_1.
        converged: all eigenpairs are.
        products: with the Hessian.
        notes: what could not be had.
    """

    values: Array
    zeta: float
    gradient_norm: float
    gradient_concentration: float
    covariance_overlap: float
    lambda_min: float
    condition: float
    largest_stable_rate: float
    converged: bool
    products: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        k = len(self.values)
        shown = ", ".join(f"{v:.4g}" for v in self.values[:10]) + (", ..." if k > 10 else "")
        found = "converged" if self.converged else "NOT all converged"
        rows = [
            (f"largest eigenvalues ({found})", shown),
            (f"zeta = lambda_1 / lambda_{k}", f"{self.zeta:.4g}"),
            ("lambda_min", f"{self.lambda_min:.4g}"),
            ("lambda_1 / lambda_min", f"{self.condition:.4g}"),
            (f"gradient in their space, of {self.gradient_norm:.4g}",
             f"{self.gradient_concentration:.2%}"),
            ("their space in the gradient covariance's", f"{self.covariance_overlap:.2%}"),
            ("largest stable learning rate", f"{self.largest_stable_rate:.4g}"),
        ]  # fmt: skip
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def outliers(
    land: Landscape,
    classes: int,
    theta: Any = None,
    *,
    tol: float = 1e-6,
    covariance: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> OutlierReport:
    """The K largest eigenvalues of the Hessian, and how they lie to the gradient and to Sigma.

    Args:
        land: the landscape.
        classes: K, how many (the number of classes; at most n).
        theta: where (n,); default the model's parameters.
        tol: relative tolerance of the largest eigenvalues.
        covariance: also find Sigma's top K eigenvectors, from products with it. Without, or for an
            objective that has no samples, the overlap is NaN.
        seed: of the starting vectors.
        progress: show a bar on stderr.

    Raises:
        InvalidArgument: K below 1 or above n; LayoutMismatch for a theta of another length.
    """
    check_landscape(land, "outliers")
    from .eigen import eigenpairs

    k = integer(classes, "classes", 1, land.n_params)
    land = land.at(theta)
    point = land.point(theta)
    options: dict[str, Any] = {"tol": tol, "theta": point, "seed": seed, "progress": progress}
    top = eigenpairs(land, k, "LA", **options)
    hessian = as_operator(land, theta=point)
    ends = both_ends(hessian, END_TOL, seed=seed, progress=progress)
    gradient = land.gradient(point)
    overlap, notes = float("nan"), []
    if covariance:
        try:
            noise = eigenpairs(land, k, "LA", matrix="covariance", **options)
            pair = (found.vectors.to(land.device) for found in (top, noise))
            overlap = subspace_overlap(*pair)
            if not np.all(noise.converged):
                notes.append("not all eigenpairs of the gradient covariance converged")
        except PylandscapeError as error:
            notes.append(f"no gradient covariance: {error}")
    else:
        notes.append("the gradient covariance was not asked for")
    values = np.asarray(top.values, dtype=np.float64)
    rtol = max(END_TOL, land.n_params * torch.finfo(land.dtype).eps)
    return OutlierReport(
        values=values,
        zeta=outlier_ratio(values, k),
        gradient_norm=float(norms(gradient.detach()[None])[0]),
        gradient_concentration=gradient_concentration(gradient, top.vectors.to(land.device)),
        covariance_overlap=overlap,
        lambda_min=ends.low,
        condition=condition_number([values[0], ends.low], rtol).full,
        largest_stable_rate=largest_stable_rate(values),
        converged=bool(np.all(top.converged)) and ends.converged,
        products=top.products + ends.products,
        notes=tuple(notes),
    )


# --- of eigenvalues ----------------------------------------------------------------------------


def outlier_ratio(values: ArrayLike, classes: int) -> float:
    """zeta = lambda_1 / lambda_K: how far the outliers reach beyond the bulk; scale-free.

    Infinite or NaN where lambda_K = 0, negative where it is.

    Raises:
        InvalidArgument: fewer than K eigenvalues, K < 1.
    """
    found = np.sort(_values(values))[::-1]
    k = integer(classes, "classes", 1, found.size)
    return _ratio(found[0], found[k - 1])


def condition_number(
    values: ArrayLike,
    rtol: float | None = None,
    *,
    n: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Condition:
    """lambda_max / lambda_min, and lambda_max / lambda_min_plus, of a spectrum.

    Args:
        values: eigenvalues; all of them, if `positive` and `zeros` are to mean the matrix's.
        rtol: |lambda| <= rtol max |lambda| is a zero; default n eps of `dtype`.
        n: order of the matrix; default as many as there are values.
        dtype: that the matrix was evaluated in.

    Raises:
        InvalidArgument: no values, a negative rtol.
    """
    found = _values(values)
    if rtol is None:
        rtol = (found.size if n is None else n) * torch.finfo(dtype).eps
    if not rtol >= 0:
        raise InvalidArgument(f"rtol: expected a number >= 0, got {rtol!r}")
    zero = np.abs(found) <= rtol * np.abs(found).max()
    high, low = float(found.max()), float(found.min())
    above = found[(found > 0) & ~zero]
    least = float(above.min()) if above.size else float("nan")
    low_is_zero = bool(zero[np.argmin(found)])
    full = _ratio(high, 0.0 if low_is_zero else low)
    positive = high / least if above.size else float("nan")
    return Condition(full, positive, high, low, least, int(zero.sum()))


def l1_energy(values: ArrayLike, eps: float, weights: ArrayLike | None = None) -> float:
    """The share of sum |lambda| that lies in |lambda| < eps; NaN if all are zero.

    Args:
        values: eigenvalues, or a Spectrum's nodes, of any shape.
        eps: in units of the eigenvalues, > 0.
        weights: of the same shape; default equal ones.

    Raises:
        InvalidArgument: eps <= 0, weights of another shape or negative.
    """
    if not eps > 0:
        raise InvalidArgument(f"eps: expected a number > 0, got {eps!r}")
    given = np.asarray(values, dtype=np.float64)
    share = np.ones(given.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != given.shape or not (share >= 0).all():
        raise InvalidArgument(
            f"weights: expected numbers >= 0 of shape {given.shape}, got shape {share.shape}"
        )
    share = share[~np.isnan(given)]
    energy = share * np.abs(_values(given))
    near = np.abs(_values(given)) < eps
    return _ratio(float(energy[near].sum()), float(energy.sum()))


def gradient_descent_factors(values: ArrayLike, learning_rate: float) -> Array:
    """|1 - eta lambda_i|: what a step of gradient descent on a quadratic does to the distance from
    the minimum along each eigenvector (after t steps, the t-th power). Below 1 for all i if
    0 < lambda_i and eta < 2 / lambda_1."""
    return np.abs(1.0 - learning_rate * np.asarray(values, dtype=np.float64))


def largest_stable_rate(values: ArrayLike) -> float:
    """2 / lambda_1: gradient descent with a larger learning rate diverges; infinite if no
    eigenvalue is positive."""
    highest = float(_values(values).max())
    return 2.0 / highest if highest > 0 else float("inf")


def rate_bound(values: ArrayLike) -> Array:
    """The best that |1 - eta lambda_i| can be with any stable eta, 0 < eta < 2 / lambda_1.

    It is |1 - 2 lambda_i / lambda_1| where 0 <= lambda_i <= lambda_1 / 2; 0 above, where eta =
    1 / lambda_i is stable; 1 below, where nothing shrinks.
    """
    given = np.asarray(values, dtype=np.float64)
    highest = float(_values(given).max())
    if highest <= 0:
        return np.where(np.isnan(given), np.nan, 1.0)
    return np.clip(1.0 - 2.0 * given / highest, 0.0, 1.0)


# --- of eigenvectors and gradients ---------------------------------------------------------------


def gradient_concentration(gradient: Any, vectors: Any) -> float:
    """||P g||^2 / ||g||^2, P onto the span of the vectors (k, n); NaN if g = 0.

    Raises:
        InvalidArgument: another length, vectors that are linearly dependent.
    """
    basis = _basis(vectors, "vectors")
    g = _wide(gradient).to(basis.device)
    if g.shape != basis.shape[1:]:
        raise InvalidArgument(
            f"gradient: expected shape ({basis.shape[1]},), as the vectors, got {tuple(g.shape)}"
        )
    return _ratio(float(inner(basis, g[None]).square().sum()), float(inner(g[None], g[None])))


def subspace_overlap(vectors: Any, others: Any) -> float:
    """mean_i ||P u_i||^2, u_i an orthonormal basis of the vectors' span (k, n), P onto that of the
    others (m, n): 1 if it lies in theirs, 0 if they are orthogonal, m / n for random ones.

    Raises:
        InvalidArgument: different lengths, vectors that are linearly dependent.
    """
    u, other = _basis(vectors, "vectors"), _basis(others, "others")
    u = u.to(other.device)
    if u.shape[1] != other.shape[1]:
        raise InvalidArgument(
            f"others: expected rows of length {u.shape[1]}, as the vectors, got {other.shape[1]}"
        )
    return float(inner(u, other).square().sum() / len(u))


def covariance_spectrum(
    land: Landscape, theta: Any = None, k: int | None = None
) -> CovarianceSpectrum:
    """Sigma's spectrum from the Gram matrix (N, N) of the per-sample gradients (or from Sigma
    itself, where n < N).

    Its trace, the sum of the values, is mean_i ||g_i||^2.

    Args:
        land: the landscape; N n numbers are kept, so for small models.
        theta: where; default the model's parameters.
        k: eigenvectors of the largest k eigenvalues; fewer if those are zeros (methods: |lambda| <=
            n eps lambda_1, eps of the model's dtype). Default all that are no zeros.

    Raises:
        InvalidArgument: k < 1, an objective without samples.
    """
    check_landscape(land, "covariance_spectrum")
    g = land.per_sample_gradients(theta).detach().double()
    samples, n = g.shape
    wanted = None if k is None else integer(k, "k", 1, n)
    small = n < samples
    across = g.T.contiguous() if small else g
    gram = (inner(across, across) / samples).cpu().numpy()
    values, vectors = (torch.as_tensor(each) for each in np.linalg.eigh((gram + gram.T) / 2))
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1).to(g.device)
    rank = int((values > n * torch.finfo(land.dtype).eps * values[0]).sum())
    rank = rank if wanted is None else min(rank, wanted)
    rows = vectors[:, :rank].T
    if not small:  # from the Gram matrix's a_i to g^T a_i, orthogonal up to rounding
        q, r = orthonormal(combine(rows, g))
        rows = q * r.diagonal().sign()[:, None]
    return CovarianceSpectrum(values.cpu().numpy(), rows.cpu().contiguous())


# --- checks ------------------------------------------------------------------------------------


def _values(values: ArrayLike) -> Array:
    """The eigenvalues that are there, (k,) float64, k >= 1."""
    given = values.detach().cpu() if isinstance(values, Tensor) else values
    try:
        found = np.asarray(given, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"values: expected eigenvalues, got {type(values).__name__}: {error}"
        ) from error
    found = found[~np.isnan(found)]
    if not found.size:
        raise InvalidArgument("values: expected at least one eigenvalue, got none")
    return found


def _wide(vector: Any) -> Tensor:
    return torch.as_tensor(getattr(vector, "vector", vector)).detach().double()


def _basis(vectors: Any, name: str) -> Tensor:
    """(k, n) float64 orthonormal rows with the span of the given ones."""
    if isinstance(vectors, list | tuple):
        each = [_wide(v) for v in vectors]
        rows = torch.stack([v.to(each[0].device) for v in each])
    else:
        rows = torch.atleast_2d(_wide(vectors))
    if rows.dim() != 2 or not 1 <= rows.shape[0] <= rows.shape[1]:
        raise InvalidArgument(
            f"{name}: expected rows (k, n) with 1 <= k <= n, got {tuple(rows.shape)}"
        )
    q, r = orthonormal(rows / norms(rows)[:, None])
    if not bool((r.diagonal().abs() > rows.shape[1] * torch.finfo(torch.float64).eps).all()):
        raise InvalidArgument(f"{name}: expected linearly independent rows, got dependent ones")
    return q


def _ratio(above: float, below: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(above) / np.float64(below))
