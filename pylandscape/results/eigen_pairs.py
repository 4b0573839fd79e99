"""Eigenvalues with their vectors and residuals."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array, is_tensor
from ..errors import InvalidArgument
from ..files import store
from .base import Pictured, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


WHICH = ("LA", "SA", "LM", "BE")
SHOWN = 10  # eigenvalues in a notebook
EPS = float(np.finfo(np.float64).eps)


class _SpectralResult(Pictured):
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file, atomically; one that is there is replaced. `pylandscape.load` reads
        it back bit for bit.

        Raises:
            OSError: the file cannot be written (what was there before is untouched).
        """
        store.save(self, path)


class StoredRows:
    """Vectors (k, n) as a file holds them. They become a tensor when one is asked for: a file is
    read, described and drawn without torch."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array


@dataclass(eq=False, repr=False)
class EigenPairs(_SpectralResult):
    """Eigenvalues and eigenvectors of a symmetric matrix: A vectors[i] ~ values[i] vectors[i].

    Attributes:
        values: (k,) float64, finite; descending for "LA" and "BE", ascending for "SA", by falling
            magnitude for "LM".
        vectors: (k, n) CPU tensor, float32 or float64, rows orthonormal.
        residuals: (k,) float64, the norms of A vectors[i] - values[i] vectors[i].
        converged: (k,) bool.
        products: matrix-vector products used; `matvecs` is another name for it.
        which: "LA" (largest), "SA" (smallest), "LM" (largest magnitude) or "BE" (both ends).
        tol: the tolerance that was asked for.
        info: provenance, JSON-able.

    Raises:
        InvalidArgument: an attribute of another shape or type, values that are not finite.
    """

    values: Array
    vectors: Tensor
    residuals: Array
    converged: NDArray[np.bool_]
    products: int = 0
    which: str = "LA"
    tol: float = 0.0
    info: dict[str, Any] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.values = _numbers(self.values, "values", 1)
        shape = self.values.shape
        if isinstance(self.vectors, StoredRows):
            self._stored = self.__dict__.pop("vectors").array
            rows = self._stored.shape
        else:
            self.vectors = _tensor(self.vectors)
            rows = tuple(self.vectors.shape)
        if len(rows) != 2 or rows[0] != len(self.values):
            raise InvalidArgument(f"vectors: expected rows ({len(self.values)}, n), got {rows}")
        self.residuals = _numbers(self.residuals, "residuals", 1, shape)
        self.converged = np.array(self.converged)
        if self.converged.shape != shape or self.converged.dtype != np.bool_:
            raise InvalidArgument(
                f"converged: expected booleans of shape {shape}, got shape "
                f"{self.converged.shape} and dtype {self.converged.dtype}"
            )
        if not np.isfinite(self.values).all():
            raise InvalidArgument(f"values: expected finite numbers, got {self.values.tolist()}")
        if not (self.residuals >= 0.0).all():
            raise InvalidArgument(f"residuals: expected norms >= 0, got {self.residuals.tolist()}")
        if self.which not in WHICH:
            raise InvalidArgument(f"which: expected one of {', '.join(WHICH)}, got {self.which!r}")
        self.products, self.tol = int(self.products), float(self.tol)
        self.info = {} if self.info is None else dict(self.info)

    if not TYPE_CHECKING:

        def __getattr__(self, name):  # asked for what is not there: the vectors of a file
            if name != "vectors" or "_stored" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            import torch

            self.vectors = torch.from_numpy(self.__dict__.pop("_stored"))
            return self.vectors

    @property
    def n(self) -> int:
        """Order of the matrix."""
        rows = self._stored if "_stored" in self.__dict__ else self.vectors
        return int(rows.shape[1])

    @property
    def matvecs(self) -> int:
        """Matrix-vector products used."""
        return self.products

    def table_columns(self) -> dict[str, Any]:
        return {"value": self.values, "residual": self.residuals, "converged": self.converged}

    def facts(self) -> list[tuple[str, str]]:
        """How many there are, and the first ones with their residuals."""
        found = super().facts()
        for k in range(min(SHOWN, self.values.size)):
            bad = "" if self.converged[k] else ", not converged"
            found.append((f"{k + 1}", f"{self.values[k]:.6g} +- {self.residuals[k]:.1g}{bad}"))
        return found

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the values in order, with bars of their residuals; returns the Axes.

        Options:
            log: a symlog axis.
            title: above the picture.
            figsize: (width, height) of a figure of its own, in inches.
        """
        axes: Axes = draw(self, ax, **options)
        return axes

    def __repr__(self) -> str:
        parts = [self.which, f"{len(self.values)} of n = {self.n:,}"]
        if self.values.size:
            parts.append(_span(self.values[0], self.values[-1]))
            parts.append(f"residuals <= {self.residuals.max():.2g}")
        parts.append(f"{self.products:,} products")
        if not self.converged.all():
            parts.append(f"{int((~self.converged).sum())} NOT CONVERGED")
        return f"EigenPairs({', '.join(parts)})"


def _tensor(given: Any) -> Tensor:
    """The given vectors on the CPU, contiguous, or InvalidArgument."""
    import torch

    if not isinstance(given, torch.Tensor) or given.dtype not in (torch.float32, torch.float64):
        raise InvalidArgument(
            "vectors: expected a float32 or float64 tensor, got "
            f"{getattr(given, 'dtype', type(given).__name__)}"
        )
    return given.detach().cpu().contiguous()


def _numbers(given: Any, name: str, dims: int, shape: tuple[int, ...] | None = None) -> Array:
    """A float64 copy of real numbers with `dims` axes, or of the given shape."""
    wanted = f"shape {shape}" if shape is not None else f"{dims} axes"
    if is_tensor(given):
        given = given.detach().cpu().numpy()
    try:
        found = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{name}: expected numbers of {wanted}, got {given!r}") from error
    fits = found.ndim == dims if shape is None else found.shape == shape
    if not fits or found.dtype.kind not in "fiu":
        raise InvalidArgument(
            f"{name}: expected numbers of {wanted}, got shape {found.shape} and dtype {found.dtype}"
        )
    return np.array(found, dtype=np.float64)


def _span(first: float, last: float) -> str:
    return f"{first:.4g} to {last:.4g}"
