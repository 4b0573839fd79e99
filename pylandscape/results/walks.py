"""What a sampler returns: W walks of T points, with L and ‖grad L‖ at every one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..arrays import Array, is_tensor
from ..errors import InvalidArgument
from ..files import store
from .base import Tabular
from .stagnations import Stagnation, stagnation


@store.by_fields
@dataclass(eq=False, repr=False)
class Walks(Tabular):
    """W walks of T points each.

    Attributes:
        points: (W, T, n) float64; points[:, 0] are the starts.
        losses, gradient_norms: (W, T) float64, L and ‖grad L‖ at the points.
        kind: "gradient" | "random" | "progressive random".
        info: provenance, JSON-able: "request" (what was asked) and "seconds".

    Raises:
        InvalidArgument: arrays whose shapes do not fit together.
    """

    CONTENT: ClassVar[str] = "walks"
    ARRAYS: ClassVar[tuple[str, ...]] = ("points", "losses", "gradient_norms")

    points: Array
    losses: Array
    gradient_norms: Array
    kind: str = "gradient"
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = np.shape(self.points)
        if len(shape) != 3 or 0 in shape:
            raise InvalidArgument(f"points: expected shape (W, T, n), none 0, got {shape}")
        for name in ("losses", "gradient_norms"):
            found = np.shape(getattr(self, name))
            if found != shape[:2]:
                raise InvalidArgument(f"{name}: expected shape {shape[:2]}, got {found}")

    @property
    def n(self) -> int:
        """The number of parameters."""
        return int(self.points.shape[2])

    @property
    def nonfinite(self) -> int:
        """Number of points where the loss or the gradient is NaN or infinite."""
        return int((~np.isfinite(self.losses) | ~np.isfinite(self.gradient_norms)).sum())

    def table_columns(self) -> dict[str, Any]:
        walk, step = (k.ravel() for k in np.indices(self.losses.shape))
        norms = self.gradient_norms.ravel()
        return {"walk": walk, "step": step, "loss": self.losses.ravel(), "gradient_norm": norms}

    def flat(self) -> Array:
        """All points (W T, n), walk after walk; a view."""
        return self.points.reshape(-1, self.n)

    def stagnation(self) -> Stagnation:
        """Where the walks stand still (`pylandscape.results.stagnations`)."""
        return stagnation(self.losses)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        store.save(self, path)

    def __repr__(self) -> str:
        walks, steps, n = self.points.shape
        finite = self.losses[np.isfinite(self.losses)]
        span = f"loss {finite.min():.4g} to {finite.max():.4g}" if finite.size else "no finite loss"
        bad = f", {self.nonfinite} points not finite" if self.nonfinite else ""
        return f"Walks({self.kind}, {walks} walks of {steps} points, n = {n}, {span}{bad})"


def as_points(given: Any, n: int | None, name: str) -> Array:
    """(P, n) float64 from numbers of that shape; `n` None takes any.

    Raises:
        InvalidArgument: another shape, no point, no numbers.
    """
    wanted = f"(P, {'n' if n is None else n})"
    try:
        if is_tensor(given):
            given = given.detach().cpu().numpy()
        points = np.ascontiguousarray(given, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(f"{name}: expected numbers of shape {wanted}: {error}") from error
    if points.ndim != 2 or 0 in points.shape or n not in (None, points.shape[1]):
        raise InvalidArgument(f"{name}: expected shape {wanted}, got {points.shape}")
    return points
