"""What a cloud holds: per dot, loss, gradient norm, step, class and curvature."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument
from ..files import store
from .base import Pictured, draw
from .curvature_classes import KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("kind", "step", "bumpiness", "ruggedness", "negative")
HEIGHTS = ("ruggedness", "bumpiness")
COLUMNS = {
    "loss": "losses", "gradient_norm": "gradient_norms", "step": "steps", "walk": "walks",
    "kind": "kinds", "bumpiness": "bumpiness", "ruggedness": "ruggedness", "negative": "negative",
}  # fmt: skip

Range = tuple[float, float]


@store.by_fields
@dataclass(eq=False, repr=False)
class Cloud(Pictured):
    """P dots.

    Attributes:
        losses, gradient_norms: (P,) float64, L and ‖grad L‖.
        steps, walks: (P,) from 0, of dots of walks; None otherwise.
        kinds: (P,) str, curvature classes; None if no Hessian was asked for, as all below.
        negative: (P,) share of negative eigenvalues.
        bumpiness, ruggedness: (P,) B and R in loss per squared unit of a parameter; see
            `pylandscape.ruggedness`.
        bumpiness_error, ruggedness_error: (P,) their standard errors; None where exact.
        n: number of parameters.
        height: the third coordinate, "ruggedness" or "bumpiness"; None for a flat cloud.
        color: what the dots are coloured by, unless `plot` says otherwise.
        info: provenance, JSON-able.

    Raises:
        InvalidArgument: arrays whose shapes do not fit together; a colour or height that is not
            there.
    """

    CONTENT: ClassVar[str] = "cloud"
    ARRAYS: ClassVar[tuple[str, ...]] = (
        "losses", "gradient_norms", "steps", "walks", "kinds", "negative", "bumpiness",
        "ruggedness", "bumpiness_error", "ruggedness_error",
    )  # fmt: skip

    losses: Array
    gradient_norms: Array
    steps: Array | None = None
    walks: Array | None = None
    kinds: np.ndarray | None = None
    negative: Array | None = None
    bumpiness: Array | None = None
    ruggedness: Array | None = None
    bumpiness_error: Array | None = None
    ruggedness_error: Array | None = None
    n: int = 0
    height: str | None = None
    color: str = "kind"
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.ARRAYS:
            found = getattr(self, name)
            if found is not None and np.shape(found) != (len(self.losses),):
                raise InvalidArgument(
                    f"{name}: expected shape ({len(self.losses)},), got {np.shape(found)}"
                )
        self.values(self.color, "color")
        if self.height is not None:
            self.values(self.height, "height")

    def values(self, name: str, argument: str = "name") -> np.ndarray:
        """(P,) one of "loss", "gradient_norm", "step", "walk", "kind", "bumpiness", "ruggedness",
        "negative".

        Raises:
            InvalidArgument: an unknown one, or one that this cloud does not have.
        """
        found = getattr(self, COLUMNS[name]) if name in COLUMNS else None
        if found is None:
            there = [k for k, v in COLUMNS.items() if getattr(self, v) is not None]
            raise InvalidArgument(f"{argument}: expected one of {', '.join(there)}, got {name!r}")
        return np.asarray(found)

    @property
    def nonfinite(self) -> int:
        """Number of dots whose loss, gradient norm or height is not finite."""
        return int((~self._finite()).sum())

    def counts(self) -> dict[str, int]:
        """{class: dots}, without those that have none."""
        kinds = self.values("kind")
        return {kind: int((kinds == kind).sum()) for kind in KINDS if (kinds == kind).any()}

    def select(self, mask: Any) -> Cloud:
        """The dots that a mask (P,) or an index chooses."""
        chosen = {
            name: getattr(self, name)[mask]
            for name in self.ARRAYS
            if getattr(self, name) is not None
        }
        return replace(self, **chosen)

    def inside(
        self, x: Range | None = None, y: Range | None = None, z: Range | None = None
    ) -> np.ndarray:
        """(P,) bool: which dots are in a box of loss, gradient norm and height; ends count.

        Raises:
            InvalidArgument: a range that is not two increasing numbers; z of a flat cloud.
        """
        found = self._finite()
        for name, span in checked_box(x, y, z).items():
            if name == "z" and self.height is None:
                raise InvalidArgument("z: expected None for a flat cloud, got a range")
            values = self.values({"x": "loss", "y": "gradient_norm"}.get(name, str(self.height)))
            found &= (values >= span[0]) & (values <= span[1])
        return found

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw it and return the Axes.

        Args:
            ax: where; of 3-D for a cloud with a height; default a figure of its own.

        Options:
            color: "kind", "step", "bumpiness", "ruggedness" or "negative"; default its own.
            log: the logarithmic axes: "x", "xy", ...
            xlim, ylim, zlim: drawn ranges.
            boxes: windows to zoom into: ranges of x, y and, in 3-D, z; one or several.
            zoom: of the windows: "inset", "panels" or "outline".
            vmin, vmax, cmap: of colours that stand for numbers.
            size: of a dot, in points^2.
            elevation, azimuth: of the 3-D view, in degrees.
            title: above the picture.
            figsize: (width, height) of a figure of its own, in inches.
        """
        axes: Axes = draw(self, ax, **options)
        return axes

    def table_columns(self) -> dict[str, Any]:
        there = {k: getattr(self, v) for k, v in COLUMNS.items()}
        return {k: v for k, v in there.items() if v is not None}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        store.save(self, path)

    def __len__(self) -> int:
        return len(self.losses)

    def __repr__(self) -> str:
        kinds = (
            "" if self.kinds is None else ", ".join(f"{v} {k}" for k, v in self.counts().items())
        )
        solid = f"height {self.height}, " if self.height else ""
        bad = f", {self.nonfinite} not finite" if self.nonfinite else ""
        return f"Cloud({len(self):,} dots, n = {self.n}, {solid}colour {self.color}{bad}" + (
            f": {kinds})" if kinds else ")"
        )

    def _finite(self) -> np.ndarray:
        found = np.isfinite(self.losses) & np.isfinite(self.gradient_norms)
        return found if self.height is None else found & np.isfinite(self.values(self.height))


def checked_box(
    x: Range | None = None, y: Range | None = None, z: Range | None = None, *, suffix: str = ""
) -> dict[str, Range]:
    """The ranges that are given, as pairs of floats; ``suffix`` of their names in errors."""
    found: dict[str, Range] = {}
    for name, span in (("x", x), ("y", y), ("z", z)):
        if span is None:
            continue
        try:
            low, high = (float(v) for v in span)
        except (TypeError, ValueError):
            low = high = np.nan
        if not low < high:
            raise InvalidArgument(f"{name}{suffix}: expected two increasing numbers, got {span!r}")
        found[name] = (low, high)
    return found


def as_boxes(boxes: Any) -> list[dict[str, Range]]:
    """Boxes as a list of {"x": range, "y": range[, "z": range]}.

    One is a mapping like that, or a sequence of two or three ranges.

    Raises:
        InvalidArgument: something else.
    """
    if boxes is None:
        return []
    given: Sequence[Any] = [boxes] if isinstance(boxes, dict) or _is_box(boxes) else boxes
    found = []
    for each in given:
        try:
            spans = each if isinstance(each, dict) else dict(zip("xyz", each, strict=False))
            found.append(checked_box(**spans))
        except TypeError:
            raise InvalidArgument(
                f"boxes: expected ranges of x, y and z such as ((0, 1), (0, 2)), got {each!r}"
            ) from None
    return found


def _is_box(boxes: Any) -> bool:
    """Whether it is one sequence of ranges, not several."""
    try:
        return np.ndim(boxes[0]) == 1 and np.isscalar(boxes[0][0])
    except (TypeError, IndexError, KeyError, ValueError):
        return False
