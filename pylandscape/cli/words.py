"""What the commands say of a result, in lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..arrays import Array
    from ..results.eigen_pairs import EigenPairs
    from ..results.spectra import Spectrum


CONVEX = 0.01  # |lambda_min / lambda_max| below which a point looks convex


def about_spectrum(spectrum: Spectrum) -> list[str]:
    """What a spectrum says: extremes, trace, error of the density; its eigenpairs."""
    lines = [f"result     {spectrum!r}"]
    if np.isnan(spectrum.nodes).all():
        return lines
    low, high = np.nanargmin(spectrum.nodes), np.nanargmax(spectrum.nodes)
    least = spectrum.rounding
    ends = [
        f"{spectrum.nodes.flat[i]:.6g} ({max(spectrum.bounds.flat[i], least):.1g})"
        for i in (low, high)
    ]
    lines.append(f"extremes   {ends[0]} to {ends[1]}; in brackets how far an eigenvalue can be")
    lines.append(f"trace      {_with_error(*spectrum.trace)}")
    distance = spectrum.expected_distance()
    if np.isfinite(distance):
        lines.append(f"density    off by about {distance:.2g} in L1, for so many probes")
    if spectrum.pairs is not None:
        lines += _table(spectrum.pairs)
    return lines


def about_layers(layers: Mapping[str, Spectrum]) -> list[str]:
    width = max(len("layer"), *map(len, layers))
    lines = [f"{'layer':<{width}}{'numbers':>12}{'lowest':>13}{'highest':>13}  trace"]
    for name, each in layers.items():
        low, high = each.extremes
        lines.append(
            f"{name:<{width}}{each.n:>12,}{low:>13.5g}{high:>13.5g}  {_with_error(*each.trace)}"
        )
    return lines


def about_pairs(pairs: EigenPairs) -> list[str]:
    """The eigenvalues with their residuals, and a mark at those that did not converge."""
    lost = int((~pairs.converged).sum())
    lines = [f"result     {pairs!r}", *_table(pairs)]
    if lost:
        lines.append(
            f"warning    {lost} of {len(pairs.values)} did not converge: an eigenvalue is within "
            "the residual, but maybe not this one; a larger --tol accepts them"
        )
    return lines


def about_convexity(metrics: Mapping[str, Array], info: Mapping[str, Any]) -> str:
    """How far from convex a convexity map is."""
    ratio, top = metrics["ratio"], metrics["lambda_max"]
    finite = ratio[np.isfinite(ratio)]
    if not finite.size:
        return "convexity  no point with finite eigenvalues"
    flagged = int((top <= 0.0).sum())
    more = f"; lambda_max <= 0 at {flagged} points" if flagged else ""
    if info.get("not_converged"):
        more += f"; NOT CONVERGED at {info['not_converged']} points"
    return (
        f"convexity  |lambda_min / lambda_max| {finite.min():.3g} to {finite.max():.3g}, below "
        f"{CONVEX:g} at {100 * np.mean(finite < CONVEX):.0f} % of the points{more}"
    )


def _table(pairs: EigenPairs) -> list[str]:
    lines = [f"{'':>5}  {'eigenvalue':>15}  {'residual':>9}"]
    rows = zip(pairs.values, pairs.residuals, pairs.converged, strict=True)
    for i, (value, residual, good) in enumerate(rows, 1):
        mark = "" if good else "  NOT CONVERGED"
        lines.append(f"{i:>5}  {value:>15.8g}  {residual:>9.2g}{mark}")
    return lines


def _with_error(value: float, error: float) -> str:
    if not np.isfinite(error):
        return f"{value:.6g} (one probe: error unknown)"
    return f"{value:.6g} +- {error:.2g}"
