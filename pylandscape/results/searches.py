"""Global searches beside each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..arrays import Array
from ..files.store import by_fields, save
from .base import Pictured, draw


@by_fields
@dataclass(eq=False, repr=False)
class GlobalSearch(Pictured):
    """The best loss that M methods had found after so many evaluations, in R runs each.

    Attributes:
        evaluations: (T,) at which the best is told: evaluations of L, gradients at their price.
        best: (M, R, T) float64: the lowest loss so far; NaN before a method's first.
        theta: (M, R, n) where the lowest loss lies.
        methods: M names.
        info: provenance.
    """

    CONTENT: ClassVar[str] = "global_search"
    ARRAYS: ClassVar[tuple[str, ...]] = ("evaluations", "best", "theta")

    evaluations: Array
    best: Array
    theta: Array
    methods: list[str]
    info: dict[str, Any] = field(default_factory=dict)

    def final(self, method: str) -> Array:
        """(R,) the lowest loss of each run of a method."""
        found: Array = self.best[self.methods.index(method), :, -1]
        return found

    def table_columns(self) -> dict[str, Any]:
        m, run, at = (i.ravel() for i in np.indices(self.best.shape))
        names = np.array(self.methods, dtype=object)
        best = self.best[m, run, at]
        return {"method": names[m], "run": run, "evaluations": self.evaluations[at], "best": best}

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """The medians over the runs against the evaluations, with the range of all runs; returns
        the Axes.

        Options: title;
        figsize (width, height) of a figure of its own, in inches.
        """
        return draw(self, ax, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def __repr__(self) -> str:
        import numpy as np

        each = [f"{m} {np.median(self.final(m)):.3g}" for m in self.methods]
        return (
            f"GlobalSearch({self.best.shape[1]} runs of {self.evaluations[-1]:.0f} evaluations; "
            f"median of the best: {', '.join(each)})"
        )
