"""Results of Lanczos: eigenpairs, and the spectrum of a symmetric matrix A of order n.

Stochastic Lanczos quadrature gives nodes l_j and weights w_j for each of k random probes; their
mean estimates every spectral sum: (1/n) tr f(A) ~ mean over probes of sum_j w_j f(l_j) (Ghorbani,
Krishnan and Xiao, 2019, section 3). Plain data in float64 that saves and plots itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import Array
from ..arrays import edges as cell_edges
from ..errors import InvalidArgument
from ..files import store
from .base import check_axis, draw
from .eigen_pairs import EPS, SHOWN, EigenPairs, StoredRows, _numbers, _span, _SpectralResult
from .estimates import Estimate
from .sanity import EPS as EPSILONS
from .smoothing import fine_edges, masses

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MATRICES = ("hessian", "gauss_newton", "covariance")
SIGMA2 = 1e-5  # of the kernel, Ghorbani et al.'s
OUTCOMES = ("complete", "breakdown", "exhausted", "not finite", "stopped")
GRID_POINTS, GRID_PAD = 10_000, 5.0  # padding in sigmas
WEIGHT_TOLERANCE = 1e-8  # of the sum of a probe's weights
BULK_SHARE, BULK_REACH = 0.9, 3.0  # the bulk reaches that many times as far as this share
GAP = 1.5  # between the bulk and outliers: ratio of their distances from the median
RESOLVED = 1e-2  # bound of a node over its magnitude, at most, that counts as an eigenvalue
SAME = 1e-6  # of the largest magnitude: nodes of two probes that are one eigenvalue


@dataclass(frozen=True, eq=False, repr=False)
class Density:
    """A spectral density on a grid: values[i] is its mean over the cell around grid[i].

    Cells reach half-way to the neighbours; a lone point has a cell of width 1. `values @ widths` is
    therefore the mass inside the grid, however coarse it is.

    Attributes:
        grid: (q,) float64, increasing, in units of the eigenvalues.
        values: (q,) float64, >= 0; its integral is 1.
        standard_error: (q,) float64, of the mean over probes; NaN for a single probe.
    """

    grid: Array
    values: Array
    standard_error: Array

    def __post_init__(self) -> None:
        grid = check_axis(self.grid, "grid")
        object.__setattr__(self, "grid", grid)
        for name in ("values", "standard_error"):
            object.__setattr__(self, name, _numbers(getattr(self, name), name, 1, grid.shape))

    @property
    def widths(self) -> Array:
        """(q,) widths of the cells."""
        return np.diff(cell_edges(self.grid))

    @property
    def mass(self) -> float:
        """The share of the spectrum inside the grid's cells."""
        return float(self.values @ self.widths)

    def __repr__(self) -> str:
        low, high = self.grid[0], self.grid[-1]
        return f"Density({self.grid.size} points, {_span(low, high)}, mass {self.mass:.6g})"


@dataclass(eq=False, repr=False)
class Spectrum(_SpectralResult):
    """The spectrum of a symmetric matrix of order n, by stochastic Lanczos quadrature.

    Attributes:
        nodes: (k, m) float64: for each of k probes its nodes (Ritz values), ascending, then NaN.
        weights: (k, m) float64, >= 0: a row sums to 1; 0 where nodes are NaN.
        bounds: (k, m) float64: an eigenvalue lies within bounds[i, j] of nodes[i, j]; NaN where
            nodes are.
        n: order of the matrix.
        sigma2: variance of the kernel of densities; see `variance`. Pictures have a kernel of
            their own unless one is chosen (`plot`).
        relative_sigma2: sigma2 is multiplied by the spectrum's width, as in the code of Ghorbani
            et al. and in PyHessian. (That scales the variance by the width, not by its square: a
            matrix in other units has another density.)
        outcomes: k of "complete", "breakdown" (an invariant subspace: the quadrature is exact for
            this probe), "exhausted" (as many nodes as the matrix has dimensions), "not finite",
            "stopped".
        info: provenance, JSON-able.
        pairs: eigenpairs of the same run, if asked for.

    A probe without a single node ("not finite", "stopped") does not count.

    Raises:
        InvalidArgument: an attribute of another shape or type, or out of its range.
    """

    nodes: Array
    weights: Array
    bounds: Array
    n: int
    sigma2: float = SIGMA2
    relative_sigma2: bool = False
    outcomes: tuple[str, ...] = ()
    info: dict[str, Any] = None  # type: ignore[assignment]
    pairs: EigenPairs | None = None

    def __post_init__(self) -> None:
        self.nodes = _numbers(self.nodes, "nodes", 2)
        shape = self.nodes.shape
        if 0 in shape:
            raise InvalidArgument(f"nodes: expected at least one probe and step, got {shape}")
        self.weights = _numbers(self.weights, "weights", 2, shape)
        self.bounds = _numbers(self.bounds, "bounds", 2, shape)
        self.n, self.sigma2 = int(self.n), check_sigma2(self.sigma2)
        self.relative_sigma2 = bool(self.relative_sigma2)
        self.outcomes = tuple(self.outcomes)
        self.info = {} if self.info is None else dict(self.info)
        if self.n < 1:
            raise InvalidArgument(f"n: expected at least 1, got {self.n}")
        if len(self.outcomes) != shape[0] or not set(self.outcomes) <= set(OUTCOMES):
            raise InvalidArgument(
                f"outcomes: expected {shape[0]} of {', '.join(OUTCOMES)}, got {self.outcomes}"
            )
        if self.pairs is not None and not isinstance(self.pairs, EigenPairs):
            raise InvalidArgument(
                f"pairs: expected EigenPairs or None, got {type(self.pairs).__name__}"
            )
        self._check_rows()

    def _check_rows(self) -> None:
        empty = np.isnan(self.nodes)
        self.nodes = np.where(empty, np.nan, self.nodes)
        self.bounds = np.where(empty, np.nan, self.bounds)
        with np.errstate(invalid="ignore"):
            falls = np.diff(self.nodes, axis=1) < 0
        if np.isinf(self.nodes).any() or falls.any() or (empty[:, :-1] & ~empty[:, 1:]).any():
            raise InvalidArgument(
                "nodes: expected rows of finite ascending numbers, NaN after the last one, got "
                f"others in probe {self._first(np.isinf(self.nodes), falls, empty)}"
            )
        if not (self.weights >= 0.0).all() or self.weights[empty].any():
            raise InvalidArgument("weights: expected numbers >= 0, and 0 where nodes are NaN")
        sums = self.weights.sum(axis=1)
        wrong = ~empty[:, 0] & ~(np.abs(sums - 1.0) <= WEIGHT_TOLERANCE)
        if wrong.any():
            raise InvalidArgument(
                f"weights: expected rows whose sum is 1, got {sums[wrong].tolist()}"
            )
        if not (self.bounds[~empty] >= 0.0).all():
            raise InvalidArgument("bounds: expected numbers >= 0 for every node, got others")
        lost = [o for o, none in zip(self.outcomes, empty[:, 0], strict=True) if none]
        if not set(lost) <= {"not finite", "stopped"}:
            raise InvalidArgument(f"nodes: expected nodes for every probe, got none for {lost}")

    @staticmethod
    def _first(*bad: NDArray[np.bool_]) -> int:
        rows = np.logical_or.reduce([b.any(axis=1) for b in bad])
        return int(np.argmax(rows))

    @property
    def products(self) -> int:
        """Matrix-vector products used."""
        return int(self.info.get("products", (~np.isnan(self.nodes)).sum()))

    @property
    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest node: inside the spectrum's ends, up to their bounds."""
        nodes = np.concatenate([nodes for nodes, _ in self._probes()])
        return float(nodes.min()), float(nodes.max())

    @property
    def variance(self) -> float:
        """Variance of the kernel: sigma2, or (relative) sigma2 max(1, lambda_max - lambda_min)."""
        return self._variance(self.sigma2)

    @property
    def trace(self) -> Estimate:
        """tr A and its standard error over probes (NaN for one probe), as of `pylandscape.trace`;
        unpacks into the two."""
        value, error = self.mean(lambda t: t)
        return Estimate(self.n * value, self.n * error, self.products, "lanczos")

    def size(self, share: float) -> float:
        """The size below which this share of the eigenvalues lies: |node|, or its bound where that
        is larger, since nothing smaller is known of it."""
        there = ~np.isnan(self.nodes)
        sizes = np.maximum(np.abs(self.nodes[there]), self.bounds[there])
        return _weighted_quantile(sizes, self.weights[there], share)

    @property
    def rounding(self) -> float:
        """What the products and the Lanczos basis leave unknown of every eigenvalue: eight times
        the eps of their dtype, of the largest magnitude."""
        there = ~np.isnan(self.nodes)
        basis = (self.info.get("request") or {}).get("basis")
        largest = float(np.abs(self.nodes[there]).max(initial=0.0))
        return 8.0 * EPSILONS.get(str(basis), EPS) * largest

    def resolved(self) -> tuple[Array, Array]:
        """Eigenvalues that the probes found one by one, descending, and their bounds: (r,), (r,).

        Nodes whose bound is at most 1 % of their magnitude, those of several probes merged where
        they are one within their bounds. A multiple eigenvalue appears once. Bounds are not below
        `rounding`.
        """
        there = ~np.isnan(self.nodes)
        values, bounds = self.nodes[there], np.maximum(self.bounds[there], self.rounding)
        good = bounds <= RESOLVED * np.abs(values)
        values, bounds = values[good], bounds[good]
        order = np.argsort(-values, kind="stable")
        same = SAME * float(np.abs(values).max(initial=0.0))
        found: list[tuple[float, float]] = []
        for value, bound in zip(values[order].tolist(), bounds[order].tolist(), strict=True):
            if found and found[-1][0] - value <= found[-1][1] + bound + same:
                found[-1] = min(found[-1], (value, bound), key=lambda pair: pair[1])
            else:
                found.append((value, bound))
        pairs = np.array(found).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def outliers(self) -> tuple[Array, Array]:
        """The `resolved` eigenvalues outside of the bulk, descending, and their bounds.

        The bulk is around the median eigenvalue, 3 times as wide as what holds 90 % of the
        spectrum, and goes on, on either side, as long as the next node is not more than 1.5 times
        as far from the median as the one before: a tail without a gap belongs to it.
        """
        there = ~np.isnan(self.nodes)
        nodes, weights = self.nodes[there], self.weights[there]
        middle = _weighted_quantile(nodes, weights, 0.5)
        width = _weighted_quantile(np.abs(nodes - middle), weights, BULK_SHARE)
        edge = max(BULK_REACH * width, EPS * self.n * float(np.abs(nodes).max()))
        values, bounds = self.resolved()
        outside = np.zeros(values.size, dtype=bool)
        for side in (-1.0, 1.0):
            away = np.sort(side * (nodes - middle))
            away = np.concatenate([[edge], away[away > edge]])
            gaps = np.flatnonzero(away[1:] > GAP * away[:-1])
            if gaps.size:
                outside |= side * (values - middle) - bounds > away[gaps[0]]
        return values[outside], bounds[outside]

    def mean(self, f: Callable[[Array], ArrayLike]) -> tuple[float, float]:
        """(1/n) tr f(A) and its standard error over probes (NaN for one probe).

        Args:
            f: of an array of eigenvalues, elementwise.

        Raises:
            InvalidArgument: f is not finite at a node (a logarithm of a negative one).
        """
        found = []
        for nodes, weights in self._probes():
            with np.errstate(all="ignore"):
                at = np.broadcast_to(np.asarray(f(nodes), dtype=np.float64), nodes.shape)
            if not np.isfinite(at).all():
                j = int(np.argmin(np.isfinite(at)))
                raise InvalidArgument(
                    f"f: expected finite values at the nodes, got f({nodes[j]:g}) = {at[j]:g}"
                )
            found.append(float(weights @ at))
        error = np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
        return float(np.mean(found)), float(error)

    def moments(self, count: int = 4) -> tuple[Array, Array]:
        """(count,) estimates of (1/n) tr A^p for p = 1 .. count, and their standard errors.

        A probe v of m steps gives v^T A^p v exactly for p <= 2m - 1.
        """
        rows = [self.mean(lambda t, p=p: t**p) for p in range(1, count + 1)]  # type: ignore[misc]
        return np.array([r[0] for r in rows]), np.array([r[1] for r in rows])

    def l1_energy(self, eps: float) -> float:
        """Sum of |lambda| over |lambda| < eps, as a share of the sum over all; NaN for A = 0."""
        near, _ = self.mean(lambda t: np.where(np.abs(t) < eps, np.abs(t), 0.0))
        total, _ = self.mean(np.abs)
        return near / total if total > 0.0 else float("nan")

    def grid(self, points: int = GRID_POINTS, sigma2: float | None = None) -> Array:
        """(points,) evenly spaced eigenvalues, 5 sigma beyond the nodes on both sides."""
        if points < 2:
            raise InvalidArgument(f"points: expected at least 2, got {points}")
        low, high = self.extremes
        rounding = 4.0 * points * EPS * max(abs(low), abs(high))
        pad = max(GRID_PAD * self.kernel_width(sigma2), rounding)
        return np.linspace(low - pad, high + pad, points)

    def density(self, grid: ArrayLike | None = None, sigma2: float | None = None) -> Density:
        """phi(t) = mean over probes of sum_j w_j N(t; l_j, variance), as means over cells.

        Args:
            grid: (q,) increasing; default `self.grid()`.
            sigma2: instead of `self.sigma2`, and like it relative if `relative_sigma2` is.

        Raises:
            InvalidArgument: a grid that does not increase, sigma2 not positive, no usable probe.
        """
        at = check_axis(self.grid(sigma2=sigma2) if grid is None else grid, "grid")
        edges = cell_edges(at)
        inside, error = self._masses(edges, self.kernel_width(sigma2))
        return Density(at, inside / np.diff(edges), error / np.diff(edges))

    def exact_density(
        self, exact: ArrayLike, grid: ArrayLike | None = None, sigma2: float | None = None
    ) -> Density:
        """The density of the exact eigenvalues (n,) under the same kernel; errors are 0."""
        at = check_axis(self.grid(sigma2=sigma2) if grid is None else grid, "grid")
        edges, values = cell_edges(at), self._exact(exact)
        inside = masses(values, np.full(self.n, 1.0 / self.n), self.kernel_width(sigma2), edges)
        return Density(at, inside / np.diff(edges), np.zeros(at.size))

    def picture_density(
        self,
        grid: ArrayLike,
        width: float,
        place: Callable[[Array], Array],
        exact: ArrayLike | None = None,
    ) -> Density:
        """The density under a kernel that is equally wide everywhere in a picture.

        phi(t) = place'(t) mean over probes of sum_j w_j N(place(t); place(l_j), width^2), as means
        over cells: still one per unit of the eigenvalue, its integral 1.

        Args:
            grid: (q,) increasing.
            width: of the kernel, a standard deviation in units of `place`.
            place: increasing, from eigenvalues to places in the picture.
            exact: (n,) all eigenvalues: their density, without errors.
        """
        at = check_axis(grid, "grid")
        edges = cell_edges(at)
        sizes, places = np.diff(edges), place(edges)
        if exact is None:
            inside, error = self._masses(places, width, place)
            return Density(at, inside / sizes, error / sizes)
        share = np.full(self.n, 1.0 / self.n)
        inside = masses(place(self._exact(exact)), share, width, places)
        return Density(at, inside / sizes, np.zeros(at.size))

    def compare(self, exact: ArrayLike, sigma2: float | None = None) -> float:
        """L1 distance, in [0, 2], to the exact spectrum smoothed by the same kernel.

        Cells of a third of sigma, wherever this density or the other has mass.

        Args:
            exact: (n,) all eigenvalues.
            sigma2: as in `density`.
        """
        eigenvalues, share = self._exact(exact), np.full(self.n, 1.0 / self.n)
        sigma = self.kernel_width(sigma2)
        return sum(
            float(np.abs(mean - masses(eigenvalues, share, sigma, edges)).sum())
            for edges, mean, _ in self._fine(sigma, eigenvalues)
        )

    def expected_distance(self, sigma2: float | None = None) -> float:
        """The L1 distance to the exact spectrum that the probes' scatter lets expect.

        sqrt(2 / pi) times the integral of the standard error, the mean of |x| for Gaussian errors;
        NaN for one probe. It knows nothing of what too few steps cost.
        """
        errors = [float(error.sum()) for _, _, error in self._fine(self.kernel_width(sigma2))]
        return float(np.sqrt(2.0 / np.pi) * sum(errors))

    def table_columns(self) -> dict[str, Any]:
        probe, at = np.nonzero(~np.isnan(self.nodes))
        columns = {"node": self.nodes, "weight": self.weights, "bound": self.bounds}
        return {"probe": probe, **{name: c[probe, at] for name, c in columns.items()}}

    def facts(self) -> list[tuple[str, str]]:
        """Order, probes, range, trace and outliers."""
        k, m = self.nodes.shape
        found = [("Spectrum", f"n = {self.n:,}, {k} probes of {m} steps")]
        if np.isnan(self.nodes).all():
            return found
        found += [("range", _span(*self.extremes)), ("trace", repr(self.trace))]
        values, _ = self.outliers()
        few = [f"{v:.4g}" for v in values[:SHOWN]]
        return [*found, ("outliers", ", ".join(few) + ", ..." * (values.size > SHOWN) or "none")]

    def plot(self, exact: ArrayLike | None = None, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the log density with its outliers, and return the Axes.

        Args:
            exact: (n,) all eigenvalues: drawn as a histogram and under the same kernel.
            ax: where; default a figure of its own.

        Options:
            width: of the kernel, its standard deviation as a share of the picture's width. By
                default 0.5 %, so that a spectrum can be read whatever its scale.
            sigma2: variance of the kernel in units of the eigenvalues instead (the paper's: 1e-5).
                A sigma2 that was chosen with the spectrum is taken without this.
            xscale: "linear" or "symlog" (linear near 0, logarithmic beyond); default "symlog"
                where the ends are more than 30 times farther out than 90 % of the spectrum.
            linthresh: end of the linear part of a symlog axis; default: half of the spectrum.
            outliers: mark and list them (`outliers()`); default True.
            band: shade one standard error over probes; default True.
            bins: of the exact histogram; default 80.
            xlim: the drawn eigenvalues; default all.
            vmin, vmax: the drawn densities.
            title: above the picture.
            figsize: (width, height) of a figure of its own, in inches.
        """
        axes: Axes = draw(self, exact, ax, **options)
        return axes

    def __repr__(self) -> str:
        k, m = self.nodes.shape
        parts = [f"n = {self.n:,}", f"{k} probe{'s' if k > 1 else ''} of {m} steps"]
        if not np.isnan(self.nodes).all():
            value, error = self.trace
            parts.append(_span(*self.extremes))
            parts.append(f"trace {value:.4g}" + (f" +- {error:.2g}" if np.isfinite(error) else ""))
        counts = Counter(self.outcomes)
        parts += [f"{counts[o]} {o}" for o in OUTCOMES[1:] if o in counts]
        return f"Spectrum({', '.join(parts)})"

    def _probes(self) -> Iterator[tuple[Array, Array]]:
        """Nodes and weights (j,) of every probe that has any."""
        there = ~np.isnan(self.nodes)
        if not there.any():
            raise InvalidArgument(
                f"spectrum: expected at least one probe with nodes, got {', '.join(self.outcomes)}"
            )
        for row in np.flatnonzero(there.any(axis=1)):
            yield self.nodes[row, there[row]], self.weights[row, there[row]]

    def _exact(self, exact: ArrayLike) -> Array:
        eigenvalues = _numbers(exact, "exact", 1, (self.n,))
        if not np.isfinite(eigenvalues).all():
            raise InvalidArgument("exact: expected finite eigenvalues, got some that are not")
        return eigenvalues

    def _variance(self, sigma2: float) -> float:
        if not self.relative_sigma2:
            return sigma2
        low, high = self.extremes
        return sigma2 * max(1.0, high - low)

    def kernel_width(self, sigma2: float | None) -> float:
        chosen = self.sigma2 if sigma2 is None else check_sigma2(sigma2)
        return float(np.sqrt(self._variance(chosen)))

    def _masses(
        self, edges: Array, sigma: float, place: Callable[[Array], Array] | None = None
    ) -> tuple[Array, Array]:
        """Masses in the cells: mean over probes, and its standard error (Welford's update).

        place: from eigenvalues to the coordinate of edges and sigma; default the same.
        """
        count = 0
        mean, squares = np.zeros(edges.size - 1), np.zeros(edges.size - 1)
        for nodes, weights in self._probes():
            count += 1
            found = masses(nodes if place is None else place(nodes), weights, sigma, edges)
            delta = found - mean
            mean += delta / count
            squares += delta * (found - mean)
        if count == 1:
            return mean, np.full_like(mean, np.nan)
        return mean, np.sqrt(squares / (count - 1) / count)

    def _fine(self, sigma: float, *others: Array) -> Iterator[tuple[Array, Array, Array]]:
        """Borders, masses and their errors, piece by piece of a fine grid."""
        nodes = [nodes for nodes, _ in self._probes()]
        for edges in fine_edges(np.concatenate([*nodes, *others]), sigma):
            yield edges, *self._masses(edges, sigma)


def _weighted_quantile(values: Array, weights: Array, share: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order[min(int(np.searchsorted(reached, share)), values.size - 1)]])


def check_sigma2(sigma2: Any) -> float:
    number = isinstance(sigma2, int | float | np.number)
    if not (number and np.isfinite(sigma2) and sigma2 > 0.0):
        raise InvalidArgument(f"sigma2: expected a positive variance, got {sigma2!r}")
    return float(sigma2)


PAIR_ARRAYS = ("values", "residuals", "converged", "vectors")
SPECTRUM_ARRAYS = ("nodes", "weights", "bounds")


def _pairs_apart(pairs: EigenPairs) -> tuple[store.Arrays, store.Facts]:
    arrays = {"values": pairs.values, "residuals": pairs.residuals, "converged": pairs.converged}
    return arrays | {"vectors": pairs.vectors.numpy()}, _facts(pairs, PAIR_ARRAYS)


def _pairs_together(arrays: store.Arrays, facts: store.Facts) -> EigenPairs:
    vectors: Any = StoredRows(arrays["vectors"])
    converged = arrays["converged"] != 0.0
    return EigenPairs(arrays["values"], vectors, arrays["residuals"], converged, **facts)


def _spectrum_apart(spectrum: Spectrum) -> tuple[store.Arrays, store.Facts]:
    arrays: store.Arrays = {name: getattr(spectrum, name) for name in SPECTRUM_ARRAYS}
    facts = _facts(spectrum, (*SPECTRUM_ARRAYS, "pairs"))
    if spectrum.pairs is None:
        return arrays, facts | {"pairs": None}
    more, about = _pairs_apart(spectrum.pairs)
    return arrays | more, facts | {"pairs": about}


def _spectrum_together(arrays: store.Arrays, facts: store.Facts) -> Spectrum:
    own = {name: arrays[name] for name in SPECTRUM_ARRAYS}
    pairs = None if facts["pairs"] is None else _pairs_together(arrays, facts["pairs"])
    return Spectrum(**{**facts, **own, "pairs": pairs})


def _facts(result: EigenPairs | Spectrum, arrays: tuple[str, ...]) -> store.Facts:
    return {f.name: getattr(result, f.name) for f in fields(result) if f.name not in arrays}


store.register(EigenPairs, store.Content("eigenpairs", _pairs_apart, _pairs_together))
store.register(Spectrum, store.Content("spectrum", _spectrum_apart, _spectrum_together))
