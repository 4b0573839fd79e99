"""The density of eigenvalues by stochastic Lanczos quadrature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....arrays import edges as cell_edges
from ....curvature.spectra import spectrum
from ....errors import InvalidArgument
from ....results.smoothing import masses
from ....results.spectra import Spectrum
from ..._current import version
from ..linalg.backend import check_backend
from ..operators.base import VERSIONS
from ._common import check_least, driven, note, signs
from .lanczos import _place

LEAST_SPREAD = 1e-9


@dataclass(frozen=True)
class SpectralDensityResult:
    """A density (g,) on a grid (g,), the nodes and weights (runs, m) it is made of (NaN and 0
    where a run has fewer), and the standard deviation of the kernel.
    """

    grid: Tensor
    density: Tensor
    raw_eigenvalues: Tensor
    raw_weights: Tensor
    sigma: float


def spectral_density(
    operator: Any,
    *,
    num_runs: int = 10,
    lanczos_steps: int = 80,
    num_grid_points: int = 10000,
    sigma: float | None = None,
    grid_padding: float = 0.1,
    seed: int | None = None,
    backend: Any = None,
    compat: str | None = None,
) -> SpectralDensityResult:
    """The density of an operator's eigenvalues, smoothed by a Gaussian.

    Args:
        num_runs, lanczos_steps: probes, and steps for each (at most n are made).
        sigma: of the Gaussian; default the width of the spectrum / lanczos_steps.
        grid_padding: how far the grid goes beyond the nodes, in widths of the spectrum.
        seed: run i has the signs of seed + i, as in the original.
        compat: "1.0.0a5": Gaussians at the grid's points instead of means over its cells;
            lanczos_steps beyond n raise.

    Probes run together, in blocks. `pylandscape.spectrum` gives error bars as well.
    """
    compat = version("hessian_eigenthings", compat, VERSIONS)
    check_backend(backend)
    check_least(num_runs, "num_runs")
    check_least(lanczos_steps, "lanczos_steps")
    check_least(num_grid_points, "num_grid_points", 2)
    op = driven(operator)
    if compat and lanczos_steps > op.n:
        raise InvalidArgument(
            f"lanczos_steps: expected at most {op.n} (the operator's size), got {lanczos_steps}"
        )
    seeds = [(seed or 0) + run for run in range(num_runs)]
    starts = torch.cat([signs(op, 1, torch.Generator().manual_seed(one)) for one in seeds])
    found = spectrum(op, steps=lanczos_steps, starts=starts, progress=False)
    note("spectral_density", operator, op)
    low, high = found.extremes
    spread = max(high - low, LEAST_SPREAD)
    width = spread / lanczos_steps if sigma is None else float(sigma)
    if not width > 0:
        raise InvalidArgument(f"sigma: expected a positive number, got {sigma!r}")
    pad = grid_padding * spread
    grid = np.linspace(low - pad, high + pad, num_grid_points)
    density = (_sampled if compat else _averaged)(found, grid, width)
    place = _place(operator, op)

    def there(values: Any) -> Tensor:
        return torch.as_tensor(values).to(place.device, place.dtype)

    return SpectralDensityResult(
        there(grid), there(density), there(found.nodes), there(found.weights), width
    )


def _averaged(found: Spectrum, grid: np.ndarray, sigma: float) -> np.ndarray:
    edges, there = cell_edges(grid), ~np.isnan(found.nodes)
    share = found.weights[there] / len(found.nodes)
    return masses(found.nodes[there], share, sigma, edges) / np.diff(edges)


def _sampled(found: Spectrum, grid: np.ndarray, sigma: float) -> np.ndarray:
    density = np.zeros_like(grid)
    there = ~np.isnan(found.nodes)
    for node, share in zip(found.nodes[there], found.weights[there], strict=True):
        density += share * np.exp(-(((grid - node) / sigma) ** 2) / 2)
    scale = sigma * np.sqrt(2 * np.pi) * len(found.nodes)
    return np.asarray(density / scale)
