"""What simple models of a landscape say: volumes below a level, spectra at interpolators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..arrays import Array
from ..files.store import by_fields, save
from .base import Pictured, draw


@by_fields
@dataclass(eq=False, repr=False)
class VolumeLaw(Pictured):
    """How much of a ball lies below a level of a loss, by Monte Carlo.

    Attributes:
        levels: (q,) levels as shares of the loss l0 at the ball's surface.
        shares: (D, q) of the ball's volume where L <= level l0.
        expected: (D, q) level^(n / 2), the law of a quadratic.
        dimensions: D numbers n of parameters.
        samples: points drawn for each.
    """

    CONTENT: ClassVar[str] = "volume_law"
    ARRAYS: ClassVar[tuple[str, ...]] = ("levels", "shares", "expected")

    levels: Array
    shares: Array
    expected: Array
    dimensions: list[int]
    samples: int
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> Array:
        """(D, q) standard errors of the shares, were the expected ones true."""
        p = self.expected
        found: Array = np.sqrt(np.maximum(p * (1.0 - p), 1.0 / self.samples) / self.samples)
        return found

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Shares and the law against the level; returns the Axes.

        Options: title;
        figsize (width, height) of a figure of its own, in inches.
        """
        return draw(self, ax, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def __repr__(self) -> str:
        off = float((np.abs(self.shares - self.expected) / self.errors).max())
        names = ", ".join(map(str, self.dimensions))
        return f"VolumeLaw(n = {names}: within {off:.2g} standard errors of a quadratic)"


@by_fields
@dataclass(eq=False, repr=False)
class Interpolator(Pictured):
    """The Hessian at a point that fits N samples exactly: K parameters, N targets of o numbers.

    Attributes:
        theta: (K,);  eigenvalues: (K,) of the Hessian, ascending.
        loss: L(theta), mean squared error.
        rank: of the outputs' Jacobian J (N o, K);  equations: N o.
        tolerance: up to which an eigenvalue is zero.
    """

    CONTENT: ClassVar[str] = "interpolator"
    ARRAYS: ClassVar[tuple[str, ...]] = ("theta", "eigenvalues")

    theta: Array
    eigenvalues: Array
    loss: float
    rank: int
    equations: int
    tolerance: float
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def nullity(self) -> int:
        """Eigenvalues that are zero."""
        return int((np.abs(self.eigenvalues) <= self.tolerance).sum())

    @property
    def negative(self) -> int:
        """Eigenvalues below zero: none at an interpolator."""
        return int((self.eigenvalues < -self.tolerance).sum())

    @property
    def least_nullity(self) -> int:
        """K - N o: there are at least so many zeros, since H = (2 / (N o)) J^T J there."""
        return max(0, len(self.eigenvalues) - self.equations)

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """|eigenvalues| in descending order, with the rank; returns the Axes.

        Options: title;
        figsize (width, height) of a figure of its own, in inches.
        """
        return draw(self, ax, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def __repr__(self) -> str:
        return (
            f"Interpolator(loss {self.loss:.3g}, {self.nullity} of {len(self.eigenvalues)} "
            f"eigenvalues zero, at least {self.least_nullity} expected, {self.negative} negative)"
        )
