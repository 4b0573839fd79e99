"""Eigenvalues of the Hessian along a trajectory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..arrays import Array
from ..files.store import by_fields, save
from .base import Pictured, draw


@by_fields
@dataclass(eq=False, repr=False)
class Track(Pictured):
    """Eigenvalues along a trajectory.

    Attributes:
        steps: (T,) training steps.
        values: (T, k) eigenvalues, largest first, in loss per squared unit of the parameters.
        residuals: (T, k) ‖A x - value x‖.
        converged: (T, k) bool, as in `eigenpairs`.
        products: (T,) products that each point took.
        threshold: (T,) the rule's stability threshold, or None.
        rule: what the threshold is of, for pictures.
        preconditioned: whether the matrix is P^-1/2 H P^-1/2.
    """

    CONTENT: ClassVar[str] = "track"
    ARRAYS: ClassVar[tuple[str, ...]] = (
        "steps", "values", "residuals", "converged", "products", "threshold",
    )  # fmt: skip

    steps: Any
    values: Array
    residuals: Array
    converged: Any
    products: Any
    threshold: Array | None = None
    rule: str = ""
    preconditioned: bool = False
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = np.asarray(self.steps, dtype=np.int64)
        self.converged = np.asarray(self.converged, dtype=bool)
        self.products = np.asarray(self.products, dtype=np.int64)

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Eigenvalues against steps, with the threshold as a dashed line; returns the Axes.
        Options: title; figsize (width, height) of a figure of its own, in inches."""
        return draw(self, ax, **options)

    def table_columns(self) -> dict[str, Any]:
        found: dict[str, Any] = {"step": self.steps}
        for name in ("values", "residuals", "converged"):
            for k, column in enumerate(getattr(self, name).T):
                found[f"{name.removesuffix('s')} {k + 1}"] = column
        if self.threshold is not None:
            found["threshold"] = self.threshold
        return found

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def __repr__(self) -> str:
        top = self.values[:, 0]
        bad = int((~self.converged).sum())
        more = f", {bad} not converged" if bad else ""
        return (
            f"Track({len(top)} points, largest eigenvalue {top[0]:.4g} to {top[-1]:.4g}, "
            f"{int(self.products.sum())} products{more})"
        )
