"""A trained curve of low loss between two models, beside the straight line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import comb
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument
from ..files.store import by_fields, save
from .barrier_matrix import barrier_of
from .base import Pictured, draw

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("bezier", "polychain")
_FINE = 1024  # pieces of a Bezier curve whose lengths are added


@by_fields
@dataclass(eq=False, repr=False)
class ModeConnection(Pictured):
    """phi(t) = sum_i w_i(t) vertex_i, 0 <= t <= 1, from model a to model b.

    Attributes:
        vertices: (bends + 2, n) of the model's dtype: a, the trained points, b; with
            bn="interpolate" the running statistics come after the parameters.
        t: (q,) float64 from 0 to 1.
        values: (q,) float64, L(phi(t)).
        line: (q,) float64, L((1 - t) a + t b).
        history: (steps,) float64, the mean of L over the t of each training step.
        kind: "bezier" (Bernstein weights) or "polychain" (straight segments of equal shares of t).
        n_params: how many of the numbers of a vertex are parameters.
        info: provenance; "notes" says whether a and b are equal.
    """

    CONTENT: ClassVar[str] = "mode_connection"
    ARRAYS: ClassVar[tuple[str, ...]] = ("vertices", "t", "values", "line", "history")
    planes: ClassVar[Callable[..., Any] | None] = None  # an instance's own, while it is in memory

    vertices: Array
    t: Array
    values: Array
    line: Array
    history: Array
    kind: str
    n_params: int
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def barrier(self) -> float:
        """max over t of L(phi(t)) - (1 - t) L(a) - t L(b), in units of the loss; never negative,
        NaN where the loss is NaN on the way."""
        return float(barrier_of(self.t, self.values, self.values[0], self.values[-1]))

    @property
    def line_barrier(self) -> float:
        """The same of the straight line."""
        return float(barrier_of(self.t, self.line, self.line[0], self.line[-1]))

    @property
    def length(self) -> float:
        """Length of the curve in parameter space."""
        return self._length(self.kind, self.vertices)

    @property
    def line_length(self) -> float:
        """The distance of a and b."""
        return self._length("polychain", self.vertices[[0, -1]])

    def theta(self, t: float) -> Tensor:
        """The parameters phi(t) (n,), of the model's dtype; at 0 and 1 bitwise those of a and b.

        Raises:
            InvalidArgument: t outside of [0, 1].
        """
        return self.point(t)[: self.n_params]

    def point(self, t: float) -> Tensor:
        """phi(t) with the running statistics, where these move."""
        import torch  # files are drawn without it

        if not 0.0 <= t <= 1.0:
            raise InvalidArgument(f"t: expected a number from 0 to 1, got {t!r}")
        if t in (0.0, 1.0):
            return torch.from_numpy(self.vertices[-1 if t else 0].copy())
        weights = curve_weights(self.kind, len(self.vertices) - 2, np.array([t]))[0]
        found = weights @ self.vertices.astype(np.float64)
        return torch.from_numpy(found.astype(self.vertices.dtype))

    def plane(self, **options: Any) -> Any:
        """The surface of the plane through a, b and the middle bend (`connection_plane`), which
        draws the curve and the straight line on itself.

        Raises:
            InvalidArgument: a connection read from a file, which has no landscape.
        """
        if self.planes is None:
            raise InvalidArgument(
                "plane: expected a connection computed in this process, got one read from a file, "
                "which has no landscape; use connection_plane(land, connection)"
            )
        return self.planes(self, **options)

    def table_columns(self) -> dict[str, Any]:
        return {"t": self.t, "loss": self.values, "line": self.line}

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """L along the curve and along the line, over t; returns the Axes.

        Options:
            log: a logarithmic axis of the loss.
            title: above the picture.
            figsize: (width, height) of a figure of its own, in inches.
        """
        return draw(self, ax, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def _length(self, kind: str, vertices: Array) -> float:
        corners = vertices[:, : self.n_params].astype(np.float64)
        pieces = len(corners) - 1 if kind == "polychain" else _FINE
        weights = curve_weights(kind, len(corners) - 2, np.linspace(0.0, 1.0, pieces + 1))
        gram = np.einsum("in,jn->ij", corners - corners[0], corners - corners[0])
        steps = np.diff(weights, axis=0)
        squares = np.einsum("ki,ij,kj->k", steps, gram, steps)
        return float(np.sqrt(np.maximum(squares, 0.0)).sum())

    def __repr__(self) -> str:
        return (
            f"ModeConnection({self.kind}, {len(self.vertices) - 2} bends, barrier "
            f"{self.barrier:.3g}, of the line {self.line_barrier:.3g}, length {self.length:.4g} "
            f"for a distance of {self.line_length:.4g})"
        )


def curve_weights(kind: str, bends: int, t: Array) -> Array:
    """(q, bends + 2) float64: the weights of a, the bends and b at each t; their sum is 1."""
    t = np.asarray(t, dtype=np.float64)[:, None]
    last = bends + 1
    if kind == "bezier":
        i = np.arange(last + 1)
        binomial = np.array([comb(last, k) for k in i], dtype=np.float64)
        return np.asarray(binomial * t**i * (1.0 - t) ** (last - i))
    return np.maximum(0.0, 1.0 - np.abs(t * last - np.arange(last + 1)))
