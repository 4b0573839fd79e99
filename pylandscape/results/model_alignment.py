"""A network whose units stand in the order of another one's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array
from ..errors import InvalidArgument
from ..files.store import Content, register, save

if TYPE_CHECKING:
    from torch import nn


@dataclass(eq=False, repr=False)
class ModelAlignment:
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
    """

    theta: Array
    permutations: dict[str, NDArray[np.intp]]
    distance: tuple[float, float]
    loss: tuple[float, float]
    fixed: dict[str, str] = field(default_factory=dict)
    method: str = "weights"
    info: dict[str, Any] = field(default_factory=dict)
    model: nn.Module | None = None

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

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically, without the module; `pylandscape.load` reads it."""
        save(self, path)

    def __repr__(self) -> str:
        before, after = self.distance
        return (
            f"ModelAlignment({self.method}, {len(self.permutations)} symmetry classes, "
            f"{self.moved} units moved, distance {before:.4g} to {after:.4g})"
        )


def _apart(result: ModelAlignment) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = {"theta": result.theta}
    for k, p in enumerate(result.permutations.values()):
        arrays[f"permutation {k}"] = p.astype(np.float64)
    facts = {
        "classes": list(result.permutations), "distance": list(result.distance),
        "loss": list(result.loss), "fixed": result.fixed, "method": result.method,
        "info": result.info,
    }  # fmt: skip
    return arrays, facts


def _together(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> ModelAlignment:
    names = facts["classes"]
    found = {n: arrays[f"permutation {k}"].astype(np.intp) for k, n in enumerate(names)}
    (d0, d1), (l0, l1) = facts["distance"], facts["loss"]
    return ModelAlignment(
        arrays["theta"], found, (d0, d1), (l0, l1), facts["fixed"], facts["method"], facts["info"]
    )


register(ModelAlignment, Content("model alignment", _apart, _together))
