"""A number that was estimated, with its standard error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """A value and its standard error, which it can be unpacked into: ``value, error = estimate``.

    Attributes:
        value: a number; of a diagonal (n,) float64.
        standard_error: of the same shape; 0 where the value is exact up to rounding, NaN where
            one draw tells nothing of it.
        products: vectors multiplied for it.
        method: "xtrace", "xdiag", "hutch++", "hutchinson", "lanczos" (the quadrature of a
            `Spectrum`), or "exact" where `products` allowed it.
    """

    value: Any
    standard_error: Any
    products: int
    method: str

    def __float__(self) -> float:
        if isinstance(self.value, np.ndarray):
            raise TypeError(f"float: expected one number, got {self.value.size} of them")
        return float(self.value)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.value, self.standard_error))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return (self.value, self.standard_error)[index]

    def __repr__(self) -> str:
        how = f"({self.products} products, {self.method})"
        if isinstance(self.value, np.ndarray):
            worst = f"{np.max(self.standard_error):.1g}"
            return f"{self.value.size} values +- at most {worst} {how}"
        return f"{_rounded(self.value, self.standard_error)} {how}"


def _rounded(value: float, error: float) -> str:
    """ "12.3 +- 0.4": the value as far as its error leaves it known."""
    if not (np.isfinite(value) and np.isfinite(error)) or error == 0.0:
        return f"{value:.6g} +- {error:.1g}"
    first = int(np.floor(np.log10(error)))
    leading = int(np.floor(np.log10(abs(value)))) if value else first
    return f"{value:.{max(leading - first, 0) + 1}g} +- {error:.1g}"
