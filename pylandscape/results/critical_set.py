"""Critical points that were found, with what certifies them."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array
from ..errors import InvalidArgument
from ..files import store
from .base import Tabular

OUTCOMES = ("running", "converged", "flat", "stalled", "exhausted", "far", "not finite")
_PER_POINT = (
    "losses", "gradient_norms", "kinds", "index", "nullity", "extremes", "decrements", "beta",
    "eta", "lipschitz", "radius", "certificates", "multiplicity",
)  # fmt: skip
_PER_START = ("starts", "outcomes", "final_losses", "final_norms", "iterations")


@store.by_fields
@dataclass(eq=False, repr=False)
class CriticalSet(Tabular):
    """K critical points, reached from P starts. Sorted by loss, then by index.

    H = ∇²L at a point has eigenvalues lambda; those with |lambda| <= tau count as zero, where tau
    is the larger of rtol max|lambda| and of what the point's own error can change, lipschitz eta.
    What follows from `lipschitz` is an estimate, since that comes from samples of H around the
    point, and a maximum over samples can miss the largest.

    Attributes:
        points: (K, n) float64.
        losses, gradient_norms: (K,) float64.
        kinds: (K,) str: "convex" | "concave" | "saddle" | "singular" | "undecided".
        index, nullity: (K,) int, negative and zero eigenvalues; -1 where they are not known.
        eigenvalues: (K, n) float64, ascending; None from products.
        extremes: (K, 2) float64, the least and the largest eigenvalue.
        decrements: (K,) the Newton decrement sqrt(g^T |H|^+ g): its square, halved, is what
            Newton's model says of the loss beyond the critical point, where H > 0.
        beta: (K,) 1 / min |lambda| over the eigenvalues that are not zero.
        eta: (K,) ‖H^+ g‖, the length of Newton's next step.
        lipschitz: (K,) of H around the point, estimated; NaN where it was not asked for.
        radius: (K,) how far the true critical point is at most, 2 eta / (1 + sqrt(1 - 2h)) with
            h = beta eta lipschitz; NaN where h > 1/2 (estimated).
        certificates: (K,) str. "isolated": no zero eigenvalue and h <= 1/2, so that (Kantorovich)
            there is exactly one critical point within `radius`. "range": the same on the range of
            H alone, H has zero eigenvalues (a symmetry, a valley, a plateau of critical points);
            it certifies a zero of the gradient's part in that range. "none": neither.
        multiplicity: (K,) int, how many starts came here.
        starts: (P,) int, which point each start came to; -1 for none.
        outcomes: (P,) str: "converged"; "flat": the gradient is below tol, but Newton's step is
            still long or the curvature below tol too: loss that levels off towards infinity, or a
            point whose Hessian vanishes; "stalled": the gradient's norm has no descent left, H g =
            0 with g not 0; "exhausted": max_iter; "far": beyond `bound`; "not finite".
        final_losses, final_norms: (P,) at the end of each start.
        iterations: (P,) int.
        info: provenance, JSON-able.
    """

    CONTENT: ClassVar[str] = "critical set"
    ARRAYS: ClassVar[tuple[str, ...]] = ("points", "eigenvalues", *_PER_POINT, *_PER_START)

    points: Array
    losses: Array
    gradient_norms: Array
    kinds: NDArray[np.str_]
    index: NDArray[np.int64]
    nullity: NDArray[np.int64]
    extremes: Array
    decrements: Array
    beta: Array
    eta: Array
    lipschitz: Array
    radius: Array
    certificates: NDArray[np.str_]
    multiplicity: NDArray[np.int64]
    starts: NDArray[np.int64]
    outcomes: NDArray[np.str_]
    final_losses: Array
    final_norms: Array
    iterations: NDArray[np.int64]
    eigenvalues: Array | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if np.ndim(self.points) != 2:
            raise InvalidArgument(f"points: expected shape (K, n), got {np.shape(self.points)}")
        for names, count in ((_PER_POINT, len(self.points)), (_PER_START, len(self.starts))):
            for name in names:
                found = np.shape(getattr(self, name))
                wanted = (count, 2) if name == "extremes" else (count,)
                if found != wanted:
                    raise InvalidArgument(f"{name}: expected shape {wanted}, got {found}")
        for name in ("index", "nullity", "multiplicity", "starts", "iterations"):
            setattr(self, name, np.asarray(getattr(self, name)).astype(np.int64))
        for name in ("kinds", "certificates", "outcomes"):
            setattr(self, name, np.asarray(getattr(self, name)).astype(np.str_))

    def __len__(self) -> int:
        return len(self.points)

    @property
    def n(self) -> int:
        """The number of parameters."""
        return int(self.points.shape[1])

    def counts(self) -> dict[str, int]:
        """How many points there are of each kind."""
        return dict(Counter(self.kinds.tolist()))

    def outcome_counts(self) -> dict[str, int]:
        """How many starts ended in each way."""
        return dict(Counter(self.outcomes.tolist()))

    def levels(self, atol: float = 1e-8) -> list[tuple[float, int]]:
        """(loss, how many of the points) where losses closer than atol are one level."""
        found: list[tuple[float, int]] = []
        ends = np.flatnonzero(np.diff(self.losses) > atol) + 1  # losses ascend
        for part in np.split(self.losses, ends):
            if part.size:
                found.append((float(part.mean()), int(part.size)))
        return found

    def table_columns(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in _PER_POINT if name != "extremes"}
        return found | {"lowest": self.extremes[:, 0], "highest": self.extremes[:, 1]}

    def table(self, rows: int = 20) -> str:
        """The first points, a line each."""
        lines = [
            f"{'loss':>13}  {'‖g‖':>8}  {'kind':<9}{'index':>6}{'null':>6}"
            f"{'lambda min':>13}{'max':>11}  {'within':>8}  {'certificate':<12}{'starts':>7}"
        ]
        for k in range(min(rows, len(self))):
            low, high = self.extremes[k]
            lines.append(
                f"{self.losses[k]:>13.9g}  {self.gradient_norms[k]:>8.1e}  {self.kinds[k]:<9}"
                f"{self.index[k]:>6}{self.nullity[k]:>6}{low:>13.4g}{high:>11.4g}  "
                f"{self.radius[k]:>8.1e}  {self.certificates[k]:<12}{self.multiplicity[k]:>7}"
            )
        if len(self) > rows:
            lines.append(f"... and {len(self) - rows} more")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        store.save(self, path)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts().items()))
        ends = ", ".join(f"{count} {name}" for name, count in sorted(self.outcome_counts().items()))
        worst = f", ‖g‖ <= {self.gradient_norms.max():.1e}" if len(self) else ""
        return (
            f"CriticalSet({len(self)} points{': ' if kinds else ''}{kinds}{worst}, n = {self.n}; "
            f"{len(self.starts)} starts: {ends})"
        )
