"""What `classify` returns: the curvature class of many points, and how sure it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..arrays import Array
from ..errors import FileFormatError, InvalidArgument
from ..files import store
from ..files.hdf5 import as_path, open_hdf5
from . import curvature_classes
from .base import Tabular
from .curvature_classes import KINDS

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Sensitivity:
    """How the classes depend on the tolerance.

    Attributes:
        rtols: the tolerances: a smaller one, the one that was asked for, a larger one.
        counts: for each of them {class: points}.
        changed: for each of them, how many points have another class than at the one asked for.
    """

    rtols: tuple[float, ...]
    counts: tuple[dict[str, int], ...]
    changed: tuple[int, ...]

    def __str__(self) -> str:
        names = [name for name in KINDS if any(row.get(name) for row in self.counts)]
        lines = [f"{'rtol':>10}" + "".join(f"{name:>11}" for name in names) + f"{'changed':>11}"]
        for rtol, row, changed in zip(self.rtols, self.counts, self.changed, strict=True):
            cells = "".join(f"{row.get(name, 0):>11,}" for name in names)
            lines.append(f"{rtol:>10.3g}{cells}{changed:>11,}")
        return "\n".join(lines)


@store.by_fields
@dataclass(eq=False, repr=False)
class CriticalPoints(Tabular):
    """Curvature classes of P points of a landscape with n parameters.

    Attributes:
        bounds: (P, 3, 2) float64: the lowest and highest value that lambda_min, lambda_max and
            min |lambda| can have. Equal on the exact path, where rounding is below n eps
            max |lambda|. NaN for invalid points. See `curvature_classes`.
        index, nullity: (P,) int64: eigenvalues below -rtol max |lambda|, and those that are zero
            by the tolerance; -1 for invalid points. By Lanczos: estimates from the spectral
            density, rounded.
        index_error, nullity_error: (P,) float64: how far off these can be, before rounding: the
            standard error over the probes, and half of what the nodes' bounds leave open; 0 on the
            exact path, NaN for invalid points and for a single probe.
        losses, gradient_norms: (P,) float64.
        rtol: |lambda| <= rtol max |lambda| is a zero.
        n: order of the Hessian.
        method: "exact" or "lanczos".
        blocks: the classes are those of the diagonal blocks, one for each parameter tensor.
        eigenvalues: (P, n) float64, ascending; None if they were not kept.
        info: provenance, JSON-able; info["notes"] is what to know about these numbers.

    Raises:
        InvalidArgument: arrays whose shapes do not fit together.
    """

    CONTENT: ClassVar[str] = "critical points"
    ARRAYS: ClassVar[tuple[str, ...]] = (
        "bounds", "index", "nullity", "index_error", "nullity_error", "losses", "gradient_norms",
        "eigenvalues",
    )  # fmt: skip

    bounds: Array
    index: np.ndarray
    nullity: np.ndarray
    index_error: Array
    nullity_error: Array
    losses: Array
    gradient_norms: Array
    rtol: float
    n: int
    method: str = "exact"
    blocks: bool = False
    eigenvalues: Array | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rtol = curvature_classes.checked_rtol(self.rtol)
        shape = np.shape(self.bounds)
        if len(shape) != 3 or shape[1:] != (3, 2):
            raise InvalidArgument(f"bounds: expected shape (P, 3, 2), got {shape}")
        wanted: dict[str, tuple[int, ...]] = dict.fromkeys(self.ARRAYS[1:-1], shape[:1])
        if self.eigenvalues is not None:
            wanted["eigenvalues"] = (shape[0], self.n)
        for name, each in wanted.items():
            if np.shape(getattr(self, name)) != each:
                got = np.shape(getattr(self, name))
                raise InvalidArgument(f"{name}: expected shape {each}, got {got}")
        if self.method not in ("exact", "lanczos"):
            raise InvalidArgument(f"method: expected exact or lanczos, got {self.method!r}")
        self.index, self.nullity = (np.asarray(a, np.int64) for a in (self.index, self.nullity))

    @cached_property
    def kinds(self) -> np.ndarray:
        """(P,) str: convex, concave, saddle, singular, undecided (bounds allow several of them), or
        invalid (loss, gradient or Hessian are not finite)."""
        return self.kinds_at(self.rtol)

    @property
    def flip_points(self) -> Array:
        """(P,) the rtol at which a point loses its class: min |lambda| / max |lambda|.

        NaN where it has none.
        """
        return curvature_classes.flip_points(self.bounds, self.rtol)

    @property
    def margins(self) -> Array:
        """(P,) >= 1: the factor by which rtol must move, up or down, until the class is lost.

        Infinite if no factor does it (a Hessian with a zero of exactly 0), NaN without a class.
        """
        return curvature_classes.margins(self.bounds, self.rtol)

    def kinds_at(self, rtol: float) -> np.ndarray:
        """(P,) the classes at another tolerance; nothing is computed again."""
        return curvature_classes.kinds_within(self.bounds, rtol)

    def counts(self, rtol: float | None = None) -> dict[str, int]:
        """{class: points}: the four classes, and undecided and invalid if there are any."""
        kinds = self.kinds if rtol is None else self.kinds_at(rtol)
        found = {name: int((kinds == name).sum()) for name in KINDS}
        return {k: v for k, v in found.items() if v or k in curvature_classes.CLASSES}

    def sensitivity(self, factor: float = 10.0) -> Sensitivity:
        """The counts at rtol / factor, rtol and rtol * factor, and how many points change.

        For rtol = 0 the larger one is n eps, which is what rounding can do.

        Raises:
            InvalidArgument: factor <= 1, or so large that rtol * factor is no tolerance.
        """
        if not factor > 1.0:
            raise InvalidArgument(f"factor: expected a number > 1, got {factor!r}")
        wider = self.rtol * factor if self.rtol else self.n * EPS
        rtols = (self.rtol / factor, self.rtol, wider)
        kinds = [self.kinds_at(rtol) for rtol in rtols]
        return Sensitivity(
            rtols,
            tuple(self.counts(rtol) for rtol in rtols),
            tuple(int((each != self.kinds).sum()) for each in kinds),
        )

    @property
    def notes(self) -> Sequence[str]:
        """What to know about these numbers, such as kinks."""
        return list(self.info.get("notes", []))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        store.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CriticalPoints:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            FileFormatError: damaged, or another result.
        """
        with open_hdf5(as_path(path, "path"), "path") as file:
            found = store.read(file)
        if not isinstance(found, cls):
            raise FileFormatError(
                f"path: expected critical points in {path}, got a {type(found).__name__}"
            )
        return found

    def table_columns(self) -> dict[str, Any]:
        names = ("losses", "gradient_norms", "index", "nullity", "index_error", "nullity_error")
        return {"kind": self.kinds, **{name: getattr(self, name) for name in names}}

    def __len__(self) -> int:
        return len(self.losses)

    def __repr__(self) -> str:
        shown = ", ".join(f"{count:,} {name}" for name, count in self.counts().items())
        blocks = " of parameter blocks" if self.blocks else ""
        return (
            f"CriticalPoints({len(self):,} points, n = {self.n:,}, {self.method}{blocks}, "
            f"rtol {self.rtol:.3g}: {shown})"
        )
