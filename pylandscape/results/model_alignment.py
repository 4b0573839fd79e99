"""A network whose units stand in the order of another one's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array
from ..errors import InvalidArgument
from ..files.store import Content, register, save
from .barrier_matrix import barrier_of
from .base import Pictured, draw

if TYPE_CHECKING:
    from torch import nn


@dataclass(eq=False, repr=False)
class ModelAlignment(Pictured):
    """b with its units permuted towards a; of `pylandscape.align`.

    Attributes:
        theta: (n + m,) float64, the permuted b: parameters, then running statistics that move.
        permutations: by symmetry class: unit i is b's unit p[i], (units,). What lies inside units
            (features of a head): (units, features), row i for the new unit i.
        distance: of the parameters of b from those of a, before and after.
        loss: L of b before and after, equal up to rounding.
        fixed: axes of parameters that nothing moves, and why; without inputs and outputs.
        method: "weights" or "activations".
        info: provenance; "notes", "rounding": how far the outputs moved, relative.
        model: the permuted b as a module; None in a loaded result.
        alpha: (q,) float64 from 0 to 1, None where no line was asked for or possible (a note says
            why).
        line_before: (q,) float64, L((1 - alpha) a + alpha b).
        line: (q,) float64, the same to the permuted b.
        statistics: running statistics of the permuted b by name, float64.
    """

    theta: Array
    permutations: dict[str, NDArray[np.intp]]
    distance: tuple[float, float]
    loss: tuple[float, float]
    fixed: dict[str, str] = field(default_factory=dict)
    method: str = "weights"
    info: dict[str, Any] = field(default_factory=dict)
    model: nn.Module | None = None
    alpha: Array | None = None
    line_before: Array | None = None
    line: Array | None = None
    statistics: dict[str, Array] = field(default_factory=dict)

    @property
    def barrier_before(self) -> float:
        """max over alpha of L on the line from a to b - (1 - alpha) L(a) - alpha L(b), in units of
        the loss; NaN where there is no line."""
        return self._barrier(self.line_before)

    @property
    def barrier(self) -> float:
        """The same on the line from a to the permuted b."""
        return self._barrier(self.line)

    def _barrier(self, line: Array | None) -> float:
        if self.alpha is None or line is None:
            return float("nan")
        return float(barrier_of(self.alpha, line, line[0], line[-1]))

    @property
    def moved(self) -> int:
        """How many units stand at another place than before."""
        found = 0
        for p in self.permutations.values():
            found += int((p != np.arange(p.shape[-1])).sum())
        return found

    def state_dict(self) -> dict[str, Any]:
        """The permuted b's tensors by name.

        Raises:
            InvalidArgument: a loaded result, which has no module.
        """
        if self.model is None:
            raise InvalidArgument(
                "state_dict: expected a result of align() itself, got a loaded one, which has "
                "theta and the permutations but no module"
            )
        return dict(self.model.state_dict())

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """L on the lines from a to b, before and after; returns the Axes.

        Options: log (of the loss), title;
        figsize (width, height) of a figure of its own, in inches.
        """
        return draw(self, ax, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically, without the module; `pylandscape.load` reads it."""
        save(self, path)

    def __repr__(self) -> str:
        before, after = self.distance
        barriers = ""
        if self.alpha is not None:
            barriers = f", barrier {self.barrier_before:.3g} to {self.barrier:.3g}"
        return (
            f"ModelAlignment({self.method}, {len(self.permutations)} symmetry classes, "
            f"{self.moved} units moved, distance {before:.4g} to {after:.4g}{barriers})"
        )

    def __str__(self) -> str:
        lines = [repr(self), f"{'':<12}{'before':>12}{'after':>12}"]
        rows = [("distance", self.distance), ("loss of b", self.loss)]
        if self.alpha is not None:
            rows.append(("barrier", (self.barrier_before, self.barrier)))
        lines += [f"{name:<12}{first:>12.6g}{last:>12.6g}" for name, (first, last) in rows]
        wide = max([len("units of"), *map(len, self.permutations)])
        lines.append(f"{'units of':<{wide}}{'count':>9}{'moved':>9}")
        for name, p in self.permutations.items():
            moved = int((p != np.arange(p.shape[-1])).sum())
            lines.append(f"{name:<{wide}}{p.size:>9,}{moved:>9,}")
        lines += [f"note: {note}" for note in self.info.get("notes", [])]
        return "\n".join(lines)


_LINES = ("alpha", "line_before", "line")


def _apart(result: ModelAlignment) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = {"theta": result.theta}
    for k, p in enumerate(result.permutations.values()):
        arrays[f"permutation {k}"] = p.astype(np.float64)
    for k, statistic in enumerate(result.statistics.values()):
        arrays[f"statistic {k}"] = statistic
    lines = {name: getattr(result, name) for name in _LINES}
    arrays |= {name: found for name, found in lines.items() if found is not None}
    facts = {
        "classes": list(result.permutations), "distance": list(result.distance),
        "loss": list(result.loss), "fixed": result.fixed, "method": result.method,
        "info": result.info, "statistics": list(result.statistics),
    }  # fmt: skip
    return arrays, facts


def _together(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> ModelAlignment:
    names = facts["classes"]
    found = {n: arrays[f"permutation {k}"].astype(np.intp) for k, n in enumerate(names)}
    statistics = {n: arrays[f"statistic {k}"] for k, n in enumerate(facts.get("statistics", []))}
    (d0, d1), (l0, l1) = facts["distance"], facts["loss"]
    return ModelAlignment(
        arrays["theta"], found, (d0, d1), (l0, l1), facts["fixed"], facts["method"], facts["info"],
        None, arrays.get("alpha"), arrays.get("line_before"), arrays.get("line"), statistics,
    )  # fmt: skip


register(ModelAlignment, Content("model alignment", _apart, _together))
