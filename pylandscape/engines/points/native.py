"""Loss, gradient and Hessian of many points by the compiled core, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._native import core
from ...errors import NotLowered
from ...theta.data import untouched_random_state
from ...theta.losses import KnownLoss
from ...theta.snapshot import Snapshot
from .. import native
from ..eager_switches import LOCK
from ..forward_pass import eval_mode

if TYPE_CHECKING:
    from ..contract import Answered

_TANGENTS = 2  # tangent passes per parameter up to which points are lanes


class NativePoints:
    """A landscape's program in float64 with points as vector lanes (csrc/points), or, where that
    does not serve it, point by point through the products of csrc/derivatives.

    Raises NotLowered where the core has no derivatives of the model.
    """

    def __init__(self, land: Answered) -> None:
        self.n = land.n_params
        self._engine = float64_engine(land)
        self._memory = land.memory
        self._program, self._denominator = self._engine.sums()
        self.reason: str | None = None  # why points are not lanes
        self._lanes: Any = None
        try:
            self._lanes = core.Points(self._program)
        except ValueError as refusal:
            self.reason = str(refusal)
        if self._lanes is not None and not self._hessian_lanes:
            self.reason = "large Hessians"

    @property
    def _hessian_lanes(self) -> bool:
        lanes = self._lanes
        return lanes is not None and lanes.able and lanes.tangents <= _TANGENTS * self.n

    def gradients(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses (p,) and gradients (p, n) of contiguous float64 points (p, n)."""
        losses, gradients = np.empty(len(points)), np.empty((len(points), self.n))
        if self._lanes is not None:
            self._run(points, losses, gradients, None, None)
        else:
            for i, point in enumerate(points):
                self._derivatives(point, losses[i : i + 1], gradients[i])
        return losses, gradients

    def hessians(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same, and Hessians (p, n, n), exactly symmetric."""
        p, n = len(points), self.n
        losses, gradients, matrices = np.empty(p), np.empty((p, n)), np.empty((p, n, n))
        if self._hessian_lanes:
            self._run(points, losses, gradients, matrices, None)
            return losses, gradients, matrices
        identity = torch.eye(n, dtype=torch.float64)
        for i, point in enumerate(points):
            derivatives = self._derivatives(point, losses[i : i + 1], gradients[i])
            derivatives.products(
                core.Matrix.hessian,
                n,
                identity.data_ptr(),
                matrices[i].ctypes.data,
                1.0 / self._denominator,
            )
            matrices[i] = (matrices[i] + matrices[i].T) / 2
            if not np.isfinite(losses[i]):
                matrices[i] = np.nan
        return losses, gradients, matrices

    def spectra(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """The same with eigenvalues (p, n) in place of the Hessians; None where it cannot."""
        if not self._hessian_lanes:
            return None
        p, n = len(points), self.n
        losses, gradients, values = np.empty(p), np.empty((p, n)), np.empty((p, n))
        self._run(points, losses, gradients, None, values)
        return losses, gradients, values

    @property
    def walks(self) -> bool:
        """Whether `walk` serves the model."""
        return self._lanes is not None

    def walk(
        self,
        rule: tuple[float, float, int, int],
        numbers: np.ndarray,
        found: tuple[np.ndarray, np.ndarray, np.ndarray],
        gradients: np.ndarray,
        first: int,
        end: int,
        known: bool,
    ) -> bool:
        """Progressive gradient walks (`clouds.walk_steps`) from their point `first` to end - 1.

        Args:
            rule: the longest step of a component; the bound that turns a component, or infinity;
                of a derivative that is zero: 0 upward, 1 either way, 2 stays; the seed.
            numbers: (W,) uint64, each walk's stream.
            found: points (W, T, n), losses and gradient norms (W, T), contiguous float64; filled in
                from `first` + 1 on, losses and norms also at `first` unless known.
            gradients: (W, n) at point `first`, where `known`; afterwards, at end - 1.

        Returns:
            False where a loss is finite and its derivatives are not: nothing of this call counts.
        """
        walks, steps = found[1].shape
        addresses = [a.ctypes.data for a in (numbers, *found, gradients)]
        arrays = (walks, steps, *addresses)
        ended: bool = self._lanes.walk(rule, arrays, first, end, known, self._denominator)
        return ended

    def _run(self, points: np.ndarray, *results: np.ndarray | None) -> None:
        addresses = [0 if r is None else r.ctypes.data for r in results]
        self._lanes.run(len(points), points.ctypes.data, self._denominator, *addresses)

    def _derivatives(self, point: np.ndarray, loss: np.ndarray, gradient: np.ndarray) -> Any:
        """At one point, whose loss (1,) and gradient (n,) are filled in."""
        theta = torch.from_numpy(np.ascontiguousarray(point))
        derivatives = core.DerivativesF64(self._program, theta.data_ptr(), self._memory)
        loss[0] = derivatives.loss / self._denominator if np.isfinite(point).all() else np.nan
        derivatives.gradient(gradient.ctypes.data)
        gradient /= self._denominator if np.isfinite(loss[0]) else np.nan
        return derivatives


def float64_engine(land: Answered) -> native.NativeEngine:
    """The landscape's program in float64, over its parameters alone; on the CPU, as a copy of the
    model there."""
    if land.has_batchnorm and land.bn not in ("eval", "interpolate"):
        raise NotLowered(f"derivatives with bn={land.bn!r}")
    own = land.native
    own_fits = land.dtype == torch.float64 and land.moved.n == land.n_params
    if own_fits and isinstance(own, native.NativeEngine):
        return own
    if not isinstance(land.loss_spec, KnownLoss):
        raise NotLowered("a free loss")
    if land.engine_report().reason == "asked for":
        raise NotLowered("asked for")
    with LOCK:  # a session of another thread moves it
        model = Snapshot(land.model, torch.float64, torch.device("cpu")).model
    with eval_mode(model, False), untouched_random_state():
        return native.build(
            model,
            land.loss_spec,
            land.dataset,
            land.layout,
            land.theta.cpu().double(),
            dtype=torch.float64,
            memory=land.memory,
        )


def eigenvalues(matrices: np.ndarray) -> np.ndarray:
    """(p, n) ascending, of contiguous float64 symmetric matrices (p, n, n): lower triangles."""
    p, n = matrices.shape[:2]
    found = np.empty((p, n))
    core.eigenvalues(p, n, matrices.ctypes.data, found.ctypes.data)
    lost = np.isnan(found).any(axis=1) & np.isfinite(np.tril(matrices)).all(axis=(1, 2))
    if lost.any():  # the iteration did not end
        found[lost] = np.linalg.eigvalsh(matrices[lost])
    return found
