"""Curvature classes of many points: convex, concave, saddle or singular, and how sure that is.

Small models: the eigenvalues of every exact Hessian, in float64 (the way goes on in
engines/points/evaluator.py). Large ones: Lanczos (lanczos_classifier.py), whose bounds decide or
leave a point "undecided". Every point gets a class, stationary or not; `gradient_norms` tells which
are nearly stationary. Chunks, files and resuming: runs/.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..arguments import check_landscape
from ..arrays import Array, digest, jsonable
from ..curvature.at_points import as_points, check_memory
from ..engines.points.evaluator import PointEvaluator, block_size, eigenvalues
from ..errors import InvalidArgument
from ..files.hdf5 import JOURNAL_SUFFIX as SUFFIX
from ..results.critical_points import EPS, CriticalPoints
from ..results.curvature_classes import checked_rtol, classes_of, exact_bounds, inertia_of
from ..runs.chunks import evaluate_in_chunks
from ..runs.journal import Journal
from ..runs.request import build
from ..runs.resume import answered
from . import kinks
from .lanczos_classifier import LanczosClassifier

if TYPE_CHECKING:
    from ..landscape import Landscape

__all__ = ["CriticalPoints", "classes_of", "classify"]

METHODS = ("auto", "exact", "lanczos")
EXACT = 2000  # "auto" is exact up to this n, where a Hessian is 32 MiB
KINK_POINTS = 4  # of large models, where the notice about kinks looks
KEPT = 1 << 25  # eigenvalues kept unless asked otherwise: 256 MiB
BASIC = (
    "loss", "gradient_norm", "low", "low_most", "high_least", "high", "near", "near_most",
    "index", "nullity", "index_error", "nullity_error",
)  # fmt: skip

Path = str | os.PathLike[str]


def classify(
    land: Landscape,
    points: Any,
    *,
    rtol: float | None = None,
    blocks: bool = False,
    method: str = "auto",
    keep: bool | None = None,
    probes: int = 4,
    steps: int = 90,
    seed: int = 0,
    path: Path | None = None,
    progress: bool = True,
) -> CriticalPoints:
    """The curvature class of every point.

    Args:
        points: (P, n), tensor or array, or walks. A point that is not finite is "invalid"; the
            others are answered.
        rtol: |lambda| <= rtol max |lambda| is a zero. Default n eps of the dtype of evaluation:
            float64 on the exact path, the landscape's by Lanczos. For the published tables of ReLU
            networks 1e-6, the noise of float32.
        blocks: classify the diagonal blocks of the Hessian, one for each parameter tensor, instead
            of all of it. With rtol=0 that is what the code behind published tables of such classes
            does (in float32); a matrix whose blocks are definite can be a saddle.
        method: "exact", "lanczos", or "auto": exact up to n = 2,000.
        keep: all eigenvalues (P, n) of the exact path; default where they take up to 256 MiB.
        probes, steps: of the spectral density on the Lanczos path; see `spectrum`.
        seed: of the probes, the same at every point.
        path: HDF5 file for the result; a run that was stopped goes on from what lies beside it.
        progress: show a bar on stderr.

    Returns:
        CriticalPoints. On the Lanczos path singular is certified by a vector with ||H v|| <= tau,
        convex, concave and saddle by the ends of the spectrum with their residuals, as far as
        iterations from random starts can tell; whatever is not settled is "undecided". A saddle
        without zeros needs all eigenvalues: it is found only where the Krylov space is exhausted.

    Raises:
        InvalidArgument: points of another length, none at all, rtol outside [0, 1), an unknown
            method, blocks by Lanczos.
        ResumeMismatch: `path` belongs to another request.

    Example:
        >>> found = classify(land, walks.flat(), rtol=1e-6)
        >>> found.counts(), found.sensitivity().changed
    """
    check_landscape(land, "classify")
    asked = _Classification(land, points, rtol, blocks, method, keep, (probes, steps, seed))
    if path is None:
        return asked.run(None, progress)
    return answered(
        path, asked.request, SUFFIX,
        lambda at: Journal(at, asked.request, asked.names, len(asked.points)),
        lambda journal: asked.run(journal, progress),
    )  # fmt: skip


class _Classification:
    """One checked request."""

    def __init__(
        self,
        land: Landscape,
        points: Any,
        rtol: float | None,
        blocks: bool,
        method: str,
        keep: bool | None,
        density: tuple[int, int, int],
    ) -> None:
        if method not in METHODS:
            raise InvalidArgument(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        self.land, self.n = land, land.n_params
        given = points if isinstance(points, torch.Tensor) else getattr(points, "points", points)
        if getattr(given, "ndim", 0) == 3:  # walks (W, T, n)
            given = given.reshape(-1, given.shape[-1])
        self.points = as_points(land, given)
        if not len(self.points):
            raise InvalidArgument(f"points: expected at least one, got shape {self.points.shape}")
        exact = self.n <= EXACT if method == "auto" else method == "exact"
        self.method = "exact" if exact else "lanczos"
        if blocks and not exact:
            raise InvalidArgument(
                f"blocks: expected False by Lanczos (n = {self.n:,}), got True; method='exact' "
                f"needs {self.n**2 * 8 / 2**30:.3g} GiB for a Hessian"
            )
        if exact:
            check_memory(1, self.n, None)
        self.blocks, self.density = bool(blocks), density
        eps = EPS if exact else float(torch.finfo(land.dtype).eps)
        self.rtol = checked_rtol(min(self.n * eps, 0.5) if rtol is None else rtol)
        few = len(self.points) * self.n <= KEPT
        self.keep = exact and (few if keep is None else bool(keep))
        values = tuple(f"eigenvalue {i}" for i in range(self.n)) if self.keep else ()
        self.names = BASIC + values
        self.request = self._request()

    def _request(self) -> dict[str, Any]:
        probes, steps, seed = (None, None, None) if self.method == "exact" else self.density
        return build(
            self.land, "critical points", rtol=self.rtol, method=self.method, blocks=self.blocks,
            keep=self.keep, count=len(self.points), points=digest(self.points), probes=probes,
            steps=steps, seed=seed,
        )  # fmt: skip

    def run(self, journal: Journal | None, progress: bool) -> CriticalPoints:
        started = time.perf_counter()
        resumed = 0 if journal is None else int(journal.done.sum())
        values = evaluate_in_chunks(
            self.points, self.names, self._evaluate, journal=journal, progress=progress,
            label="classify", exact=False, request=self.request,
        )  # fmt: skip
        basic = dict(zip(BASIC, values.T, strict=False))
        integers = {
            name: np.where(np.isnan(basic[name]), -1, np.round(basic[name])).astype(np.int64)
            for name in ("index", "nullity")
        }
        info: dict[str, Any] = {
            "request": self.request, "seconds": time.perf_counter() - started, "resumed": resumed,
            "engine": self.land.engine, "notes": [],
        }  # fmt: skip
        most = kinks.POINTS if self.method == "exact" else KINK_POINTS
        found = kinks.notice(self.land, self.points, most=most)
        if found is not None:
            info["kinks"] = found
            info["notes"].append(kinks.sentence(found))
        return CriticalPoints(
            values[:, 2:8].reshape(-1, 3, 2), **integers, index_error=basic["index_error"],
            nullity_error=basic["nullity_error"], losses=basic["loss"],
            gradient_norms=basic["gradient_norm"], rtol=self.rtol, n=self.n, method=self.method,
            blocks=self.blocks, eigenvalues=values[:, len(BASIC) :] if self.keep else None,
            info=jsonable(info, "info"),
        )  # fmt: skip

    def _evaluate(self) -> Callable[[Array], dict[str, Array]]:
        """A function from points (g, n) to their columns."""
        if self.method == "exact":
            evaluator = self.land.point_evaluator()
            return lambda points: dict(
                zip(self.names, self._exact(evaluator, points).T, strict=True)
            )
        lanczos = LanczosClassifier(self.land, self.rtol, *self.density)

        def each(points: Array) -> dict[str, Array]:
            return dict(zip(self.names, np.stack([lanczos(p) for p in points]).T, strict=True))

        return each

    def _exact(self, evaluator: PointEvaluator, points: Array) -> Array:
        """(g, columns)"""
        spectra = self._block_spectra if self.blocks else PointEvaluator.spectra
        losses, gradients, values = spectra(evaluator, points)
        given = np.isfinite(points).all(axis=1)
        good = given & np.isfinite(losses) & np.isfinite(gradients).all(axis=1)
        for at in np.flatnonzero(good & ~np.isfinite(values).all(axis=1)):
            values[at] = self._last_resort(evaluator, points[at : at + 1])
        good &= np.isfinite(values).all(axis=1)
        rows = np.full((len(points), len(self.names)), np.nan)
        rows[given, 0] = losses[given]
        rows[given, 1] = np.linalg.norm(gradients[given], axis=1)
        values = values[good]
        rows[good, 2:8] = exact_bounds(values).reshape(-1, 6)
        rows[good, 8:10] = np.stack(inertia_of(values, self.rtol), axis=1)
        rows[good, 10:12] = 0.0
        if self.keep:
            rows[good, len(BASIC) :] = values
        return rows

    def _last_resort(self, evaluator: PointEvaluator, point: Array) -> Array:
        """(n,) eigenvalues by LAPACK: an iteration that failed must not make a point invalid."""
        h = evaluator.hessians(point)[2][0]
        if not np.isfinite(h).all():
            return np.full(self.n, np.nan)
        parts = self._parts() if self.blocks else [(0, self.n)]
        return np.sort(np.concatenate([np.linalg.eigvalsh(h[a:b, a:b]) for a, b in parts]))

    def _parts(self) -> list[tuple[int, int]]:
        """Where the parameter tensors begin and end."""
        return [(e.offset, e.offset + e.numel) for e in self.land.layout.entries if e.numel]

    def _block_spectra(
        self, evaluator: PointEvaluator, points: Array
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `PointEvaluator.spectra`, of all diagonal blocks together, ascending."""
        entries, size, parts = self._parts(), block_size(self.n), []
        for first in range(0, len(points), size):
            losses, gradients, h = evaluator.hessians(points[first : first + size])
            found = [eigenvalues(np.ascontiguousarray(h[:, a:b, a:b])) for a, b in entries]
            parts.append((losses, gradients, np.sort(np.concatenate(found, axis=1), axis=1)))
        losses, gradients, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        return losses, gradients, values
