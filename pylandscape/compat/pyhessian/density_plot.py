"""The density that `hessian.density`'s nodes and weights stand for, and its picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...arrays import edges as cell_edges
from ...errors import InvalidArgument
from ...results.smoothing import masses
from .._current import version

Array = NDArray[np.float64]

REACH = 5.0  # sigmas of the outermost peaks that the grid holds
FLOOR = 1e-7  # added in the logarithmic picture


def get_esd_plot(eigenvalues: ArrayLike, weights: ArrayLike, *, compat: str | None = None) -> None:
    """Draw the density on a logarithmic scale and write ``example.pdf``, as the original does.

    `density_generate` gives the numbers; `pylandscape.spectrum(...).plot()` is the better picture.
    """
    from matplotlib import pyplot

    density, grid = density_generate(eigenvalues, weights, compat=compat)
    axes = pyplot.gca()
    axes.semilogy(grid, density + FLOOR)
    axes.set_xlabel("Eigenvalue", fontsize=14, labelpad=10)
    axes.set_ylabel("Density (Log Scale)", fontsize=14, labelpad=10)
    axes.tick_params(labelsize=12)
    axes.set_xlim(float(np.min(np.asarray(eigenvalues))) - 1, float(np.max(eigenvalues)) + 1)
    axes.figure.tight_layout()  # type: ignore[union-attr]
    axes.figure.savefig("example.pdf")  # type: ignore[union-attr]


def density_generate(
    eigenvalues: ArrayLike,
    weights: ArrayLike,
    num_bins: int = 10000,
    sigma_squared: float = 1e-5,
    overhead: float = 0.01,
    *,
    compat: str | None = None,
) -> tuple[Array, Array]:
    """The mean over runs of Gaussians at the nodes: (density (num_bins,), grid (num_bins,)).

    Args:
        eigenvalues, weights: (runs, nodes), as `hessian.density` gives them.
        sigma_squared: variance of the Gaussians, times max(1, width of the spectrum).
        overhead: how far the grid goes beyond the nodes, at least.

    The density sums to 1 over the bins. Values are means over the bins, so that no peak is missed;
    the original takes the Gaussians at the bins' centres, from a grid that ends where the mean of
    the runs' extremes does.
    """
    compat = version("pyhessian", compat, ("0.1",))
    nodes, shares = (
        _matrix(a, name) for a, name in ((eigenvalues, "eigenvalues"), (weights, "weights"))
    )
    if nodes.shape != shares.shape:
        raise InvalidArgument(
            f"weights: expected the eigenvalues' shape {nodes.shape}, got {shares.shape}"
        )
    if num_bins < 2:
        raise InvalidArgument(f"num_bins: expected at least 2, got {num_bins}")
    ends: Any = (np.mean, np.mean) if compat else (np.min, np.max)
    low, high = float(ends[0](nodes.min(axis=1))), float(ends[1](nodes.max(axis=1)))
    if compat:
        return _sampled(nodes, shares, low - overhead, high + overhead, num_bins, sigma_squared)
    sigma = float(np.sqrt(sigma_squared * max(1.0, high - low + 2 * overhead)))
    pad = max(overhead, REACH * sigma)
    grid = np.linspace(low - pad, high + pad, num_bins)
    edges = cell_edges(grid)
    found = masses(nodes.ravel(), shares.ravel() / len(nodes), sigma, edges)
    return found / found.sum() / np.diff(edges), grid


def _sampled(
    nodes: Array, shares: Array, low: float, high: float, num_bins: int, sigma_squared: float
) -> tuple[Array, Array]:
    """The original's numbers: Gaussians at the grid's points, rescaled."""
    grid = np.linspace(low, high, num_bins)
    variance = sigma_squared * max(1.0, high - low)
    density = np.zeros(num_bins)
    for run, weight in zip(nodes, shares, strict=True):
        for node, share in zip(run, weight, strict=True):
            density += share * np.exp(-((grid - node) ** 2) / (2.0 * variance))
    return density / (density.sum() * (grid[1] - grid[0])), grid


def _matrix(values: ArrayLike, name: str) -> Array:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2 or not found.size or not np.isfinite(found).all():
        raise InvalidArgument(
            f"{name}: expected finite numbers of shape (runs, nodes), got shape {found.shape}"
        )
    return found
