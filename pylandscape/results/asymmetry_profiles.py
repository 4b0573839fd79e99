"""Loss to both sides of a point, and how much steeper one side is than the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array
from ..errors import InvalidArgument
from ..files.store import by_fields, save
from .base import Pictured, draw


@by_fields
@dataclass(eq=False, repr=False)
class Asymmetry(Pictured):
    """phi(s) = L(theta + s u) along k directions u of norm 1, |s| <= r.

    Attributes:
        share: (q,) float64, s / r: from -1 to 1, evenly, 0 in the middle.
        r: (k,) float64, how far each direction is followed, in parameter space.
        values: (k, q) float64, phi.
        test: (k, q) float64, the same of other data, or None.
        labels: k names.
        zeta: share of r nearer than which slopes do not count.
        rounding: of phi: smaller differences count as none.
        marks: {name: (direction, s)} of places on the lines, for pictures.
    """

    CONTENT: ClassVar[str] = "asymmetry"
    ARRAYS: ClassVar[tuple[str, ...]] = ("share", "r", "values", "test")

    share: Array
    r: Array
    values: Array
    labels: list[str]
    zeta: float
    rounding: float
    test: Array | None = None
    marks: dict[str, tuple[int, float]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def s(self) -> Array:
        """(k, q) places on the lines, in parameter space."""
        return self.r[:, None] * self.share

    @property
    def ratio(self) -> Array:
        """(k,) c* = min over l of -phi'(-l) / max over l of phi'(l), zeta r < l < r, of the better
        of u and -u (He, Huang, Yuan 2019, definition 1).

        phi' are slopes between neighbours on the grid. An orientation counts where its flat side
        never falls (phi'(l) >= 0): a descending line is no valley. NaN where none counts, and where
        phi is not finite; infinite where the flat side does not rise at all.
        """
        return np.array([max(pair, key=_or_less) for pair in self._both()])

    @property
    def asymmetric(self) -> NDArray[np.bool_]:
        """(k,) whether c* > 1."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.ratio > 1.0)

    @property
    def flat_side(self) -> NDArray[np.intp]:
        """(k,) 1 where the side of +u is the flat one, -1 where that of -u is, 0 where phi is not
        asymmetric."""
        sides = np.array([1 if _or_less(a) >= _or_less(b) else -1 for a, b in self._both()])
        return np.where(self.asymmetric, sides, 0)

    @property
    def ends(self) -> Array:
        """(k, 2) phi(-r), phi(r)."""
        return self.values[:, [0, -1]]

    def shifted(self, delta: float, i: int = 0, *, test: bool = False) -> Array:
        """(q,) the mean of phi(s - delta) and phi(s + delta) on line i: the expected loss at s
        where the landscape of unseen data is shifted by delta to either side equally likely. NaN
        where that leads off the line.

        Raises:
            InvalidArgument: no such line, delta < 0, test without test losses.
        """
        if not -len(self.r) <= i < len(self.r):
            raise InvalidArgument(f"i: expected a line of {len(self.r)}, got {i}")
        if not 0.0 <= delta < np.inf:
            raise InvalidArgument(f"delta: expected a number of at least 0, got {delta!r}")
        if test and self.test is None:
            raise InvalidArgument("test: expected a result with test losses, got none")
        phi = self.test[i] if test and self.test is not None else self.values[i]
        at, edge = self.s[i], self.r[i] * (1.0 + 1e-12)
        found = np.full(len(at), np.nan)
        inside = np.abs(at) + delta <= edge
        both = [np.interp(at[inside] + sign * delta, at, phi) for sign in (-1, 1)]
        found[inside] = (both[0] + both[1]) / 2
        return found

    def table_columns(self) -> dict[str, Any]:
        k, at = (i.ravel() for i in np.indices(self.values.shape))
        names = np.array(self.labels, dtype=object)
        found = {"direction": names[k], "s": self.share[at] * self.r[k], "loss": self.values[k, at]}
        return found if self.test is None else found | {"test": self.test[k, at]}

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """phi along every direction; the test losses are dashed. Returns the Axes.

        Options: log (of the loss), title;
        figsize (width, height) of a figure of its own, in inches.
        """
        return draw(self, ax, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def _both(self) -> list[tuple[float, float]]:
        """c of u and of -u, for every direction."""
        middle = len(self.share) // 2
        counted = self.share[middle:-1] >= self.zeta * (1 - 1e-12)
        right = np.diff(self.values[:, middle:], axis=1)[:, counted]
        left = np.diff(self.values[:, middle::-1], axis=1)[:, counted]
        return [
            (_ratio(up, down, self.rounding), _ratio(down, up, self.rounding))
            for up, down in zip(right, left, strict=True)
        ]

    def __repr__(self) -> str:
        each = ", ".join(
            f"{name}: c* {c:.3g}" for name, c in zip(self.labels, self.ratio, strict=True)
        )
        return f"Asymmetry({each}; {int(self.asymmetric.sum())} of {len(self.r)} asymmetric)"

    def __str__(self) -> str:
        wide = max(len("direction"), *map(len, self.labels))
        heads = "".join(f"{h:>13}" for h in ("r", "L(-r)", "L(0)", "L(r)", "c*"))
        lines = [f"{'direction':<{wide}}{heads}  asymmetric"]
        sides = {0: "no", 1: "yes, flat towards +", -1: "yes, flat towards -"}
        middle = len(self.share) // 2
        for k, name in enumerate(self.labels):
            phi = self.values[k, [0, middle, -1]]
            numbers = "".join(f"{v:>13.6g}" for v in (self.r[k], *phi, self.ratio[k]))
            lines.append(f"{name:<{wide}}{numbers}  {sides[int(self.flat_side[k])]}")
        return "\n".join(lines)


def _ratio(flat: Array, steep: Array, rounding: float) -> float:
    """min(steep) / max(flat), both outward rises; NaN where the flat side falls somewhere."""
    if not (np.isfinite(flat).all() and np.isfinite(steep).all()) or flat.min() < -rounding:
        return float("nan")
    most, least = float(flat.max()), float(steep.min())
    if most > rounding:
        return least / most
    return float("inf") if least > rounding else float("nan")


def _or_less(c: float) -> float:
    return -np.inf if np.isnan(c) else c
