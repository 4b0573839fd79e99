"""Numbers with their uncertainty, as a study's findings compare them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InvalidArgument

LEVEL = 0.95  # of the interval


class Measured:
    """The mean of k values that were drawn alike (runs, pairs, restarts), with its 95 % interval
    by Student's t.

    Attributes:
        values: (k,) float64;  mean;  half: half the width of the interval, infinite for one value.

    ``str(m)`` is "0.31 +- 0.02 (k = 5)".

    Raises:
        InvalidArgument: no values, or values that are not finite.
    """

    def __init__(self, values: Any) -> None:
        self.values = np.atleast_1d(np.asarray(values, dtype=np.float64)).ravel()
        if self.values.size == 0 or not np.isfinite(self.values).all():
            raise InvalidArgument(f"values: expected at least one, all finite, got {self.values}")
        self.mean = float(self.values.mean())
        self.half = float("inf")
        if self.values.size > 1:
            from scipy.stats import t

            error = self.values.std(ddof=1) / np.sqrt(self.values.size)
            self.half = float(t.ppf((1 + LEVEL) / 2, self.values.size - 1) * error)

    def above(self, level: float = 0.0) -> bool | None:
        """True or False where the whole interval lies above or below the level, else None."""
        if self.mean - self.half > level:
            return True
        return False if self.mean + self.half < level else None

    def below(self, level: float = 0.0) -> bool | None:
        """As `above`, the other way round."""
        found = self.above(level)
        return None if found is None else not found

    def within(self, low: float, high: float) -> bool | None:
        """True where the whole interval lies between, False where it lies outside, else None."""
        sides = (self.above(low), self.below(high))
        if False in sides:
            return False
        return None if None in sides else True

    def __str__(self) -> str:
        if np.isinf(self.half):
            return f"{self.mean:.3g} (one value)"
        return f"{self.mean:.3g} +- {self.half:.2g} (k = {self.values.size})"


class Difference(Measured):
    """The mean of some values minus that of others, drawn independently: Welch's interval.

    Attributes:
        values: (k,) the first ones;  mean, half: of the difference, which is not known of single
            values.
    """

    def __init__(self, first: Any, second: Any) -> None:
        one, other = Measured(first), Measured(second)
        super().__init__(one.values)
        self.mean, self.half = one.mean - other.mean, float("inf")
        sizes = np.array([one.values.size, other.values.size])
        if sizes.min() > 1:
            from scipy.stats import t

            squares = np.array([one.values.var(ddof=1), other.values.var(ddof=1)]) / sizes
            total = squares.sum()
            freedom = total**2 / max((squares**2 / (sizes - 1)).sum(), 1e-300)
            self.half = float(t.ppf((1 + LEVEL) / 2, max(freedom, 1.0)) * np.sqrt(total))
        self._sizes = f"k = {sizes[0]}, {sizes[1]}"

    def __str__(self) -> str:
        if np.isinf(self.half):
            return f"{self.mean:.3g} (single values)"
        return f"{self.mean:.3g} +- {self.half:.2g} ({self._sizes})"
