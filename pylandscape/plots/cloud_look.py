"""What the dots of clouds look like: a colour and a marker for each class, scales for numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument
from ..results.cloud import Cloud
from ..results.curvature_classes import KINDS

# Okabe and Ito's colours; the markers tell the classes apart in grey.
CLASS_STYLES: dict[str, tuple[str, str]] = {
    "convex": ("#009E73", "^"),
    "concave": ("#CC79A7", "v"),
    "saddle": ("#D55E00", "D"),
    "singular": ("#56B4E9", "o"),
    "undecided": ("#000000", "x"),
    "invalid": ("#7f7f7f", "+"),
}
LABELS = {
    "loss": r"loss $L$",
    "gradient_norm": r"gradient norm $\Vert\nabla L\Vert$",
    "step": "step",
    "bumpiness": r"bumpiness $B$",
    "ruggedness": r"ruggedness $R$",
    "negative": "share of negative eigenvalues",
}
DIVERGING = ("#0072B2", "#c9c9c9", "#D55E00")  # concave, flat, convex: no dot is white on white
SEQUENTIAL = "viridis"
OUTER = 0.005  # share of the values beyond each end of a colour bar, which gets an arrow
STEEP = 30.0  # values that span more than this factor get a logarithmic colour bar
INK = 14_000.0  # points^2 that the dots of a cloud cover at most
DOT_SIZES = (1.0, 14.0)  # points^2


@dataclass(frozen=True)
class Look:
    """One colouring of the dots of one or several clouds."""

    name: str  # "kind", or what the colours stand for
    norm: Any = None
    cmap: Any = None
    extend: str = "neither"
    kinds: tuple[str, ...] = ()  # the classes that occur, the most frequent first

    @classmethod
    def of(
        cls,
        clouds: Sequence[Cloud],
        name: str,
        vmin: float | None = None,
        vmax: float | None = None,
        cmap: Any = None,
    ) -> Look:
        """One scale for all of them.

        Raises:
            InvalidArgument: a colour that a cloud does not have; vmin >= vmax; limits of classes.
        """
        found = np.concatenate([c.values(name, "color") for c in clouds])
        if name == "kind":
            if vmin is not None or vmax is not None or cmap is not None:
                raise InvalidArgument("vmin, vmax, cmap: expected none with the classes as colours")
            counts = {kind: int((found == kind).sum()) for kind in KINDS}
            order = sorted((k for k in KINDS if counts[k]), key=lambda k: -counts[k])
            return cls(name, kinds=tuple(order))
        values = found[np.isfinite(found)].astype(np.float64)
        norm, extend = _norm(name, values if values.size else np.zeros(1), vmin, vmax)
        return cls(name, norm, _colours(name, cmap), extend)

    def label(self) -> str:
        return LABELS.get(self.name, self.name)


def dot_size(count: int) -> float:
    """points^2 of one of `count` dots: many are small, few are large."""
    return float(np.clip(INK / 4 / max(count, 1), *DOT_SIZES))


def class_handle(kind: str, count: int) -> Any:
    """The legend's entry for a class."""
    from matplotlib.lines import Line2D

    colour, marker = CLASS_STYLES[kind]
    return Line2D(
        [], [], linestyle="none", marker=marker, color=colour, markersize=3.5,
        label=f"{kind} ({count:,})",
    )  # fmt: skip


def _colours(name: str, cmap: Any) -> Any:
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap

    if cmap is not None:
        return cmap
    if name == "bumpiness":
        return LinearSegmentedColormap.from_list("bumpiness", DIVERGING)
    return mpl.colormaps[SEQUENTIAL]


def _norm(name: str, values: Array, vmin: float | None, vmax: float | None) -> tuple[Any, str]:
    """The scale of the colours, and which ends of the bar get an arrow."""
    from matplotlib.colors import LogNorm, Normalize, SymLogNorm

    low, high = np.quantile(values, [OUTER, 1.0 - OUTER])
    if name in ("step", "walk"):
        low, high = values.min(), values.max()
    elif name == "negative":
        low, high = 0.0, values.max()
    elif name == "bumpiness":
        high = max(abs(low), abs(high))
        low = -high
    low = float(low if vmin is None else vmin)
    high = float(high if vmax is None else vmax)
    if vmin is not None and vmax is not None and not low < high:
        raise InvalidArgument(f"vmin, vmax: expected vmin < vmax, got {vmin!r} and {vmax!r}")
    if not low < high:  # all values are the same
        room = max(abs(high), 1.0) * 0.05
        low, high = low - room, high + room
    under, over = bool(values.min() < low), bool(values.max() > high)
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[under, over]
    middle = float(np.median(np.abs(values)))
    if name == "bumpiness" and low < 0.0 < high and high > STEEP * middle:
        linear = max(middle, 1e-3 * high)
        return SymLogNorm(linear, vmin=low, vmax=high, base=10), extend
    if name == "ruggedness" and high > STEEP * max(low, 0.0) and high > 0.0:
        least = max(low, 1e-4 * high)
        return LogNorm(least, high), "min" if values.min() < least and not over else extend
    return Normalize(low, high), extend
