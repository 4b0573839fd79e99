"""The topology of a grid's values: merge trees, persistence pairs, basins."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array
from ..errors import InvalidArgument
from ..files import store
from .base import Pictured, draw

Integers = NDArray[np.int64]
NAMES = ("extrema", "saddles", "deaths", "sizes", "borders", "parents")
KINDS = ("tree", "barcode", "diagram")


@dataclass(frozen=True, eq=False)
class MergeTree:
    """How components of sublevel (or superlevel) sets are born and join. Vertices are numbers in
    the row-major order of the grid.

    Attributes:
        extrema: (m,) vertices of the minima (maxima), from the lowest (highest).
        saddles: (s,) vertices where components join.
        deaths: (m,) where the component joins one with a lower minimum (the elder rule); -1: never,
            one for each region between walls.
        sizes: (m,) vertices of the component when it dies.
        borders: (m,) 1 where the component touches the grid's border when it dies.
        parents: (m + s,) the saddle above each extremum, then each saddle, as m + its place; -1.
    """

    extrema: Integers
    saddles: Integers
    deaths: Integers
    sizes: Integers
    borders: Integers
    parents: Integers

    def elders(self) -> Integers:
        """(m,) the place of the extremum whose component each one joins; -1: none."""
        m = self.extrema.size
        eldest = np.arange(self.parents.size)
        eldest[m:] = m  # extrema come in their order: the smallest place is the eldest
        for node, above in enumerate(self.parents.tolist()):  # saddles come after what joins there
            if above >= 0:
                eldest[above] = min(eldest[above], eldest[node])
        found = np.full(m, -1)
        for node, above in enumerate(self.parents.tolist()):
            if above >= 0 and eldest[node] != eldest[above]:
                found[eldest[node]] = eldest[above]
        return found


class Basin(NamedTuple):
    """A component of {L <= level}.

    Attributes:
        minimum: index of its lowest vertex in the grid.
        value: L there.
        position: the coordinates of that vertex.
        size: in vertices.
        border: it touches the grid's border, so that its true extent is not seen.
    """

    minimum: tuple[int, ...]
    value: float
    position: tuple[float, ...]
    size: int
    border: bool


@dataclass(eq=False, repr=False)
class Topology(Pictured):
    """Merge trees of a metric on a grid.

    Attributes:
        axes: d arrays (n_k,).
        values: (n_1, ..., n_d) float64, the metric.
        join: the tree of minima, neighbours along the axes.
        split: the tree of maxima, neighbours along the diagonals too.
        noise: rounding of the metric: eps of the landscape's dtype times the largest magnitude.
            Features that persist no longer are counted apart.
        info: the metric's name, the dtype.
    """

    axes: list[Array]
    values: Array
    join: MergeTree
    split: MergeTree
    noise: float
    info: dict[str, Any] = field(default_factory=dict)

    def pairs(self, of: str = "minima", noise: bool = False) -> Array:
        """(k, 2) the values where each feature is born and dies, the longest first; inf (-inf of
        maxima) for those that never do.

        Args:
            of: "minima" or "maxima".
            noise: also those below the noise, but none of length 0.
        """
        found = self._pairs(of)
        length = np.abs(found[:, 1] - found[:, 0])
        keep = length > (0.0 if noise else self.noise)
        order = np.argsort(-length[keep], kind="stable")
        return found[keep][order]

    def barcode(self, of: str = "minima") -> Array:
        """`pairs` above the noise: one bar from birth to death for each feature."""
        return self.pairs(of)

    def below_noise(self, of: str = "minima") -> int:
        """How many features, ties included, persist no longer than the noise."""
        return len(self._pairs(of)) - len(self.pairs(of))

    def smad(self) -> float:
        """Saddle-minimum average distance as in Landscaper: the mean over the minima of L at the
        saddle that each one adjoins in the join tree, minus L at the minimum. NaN without a saddle.
        Edges below the noise do not count."""
        height = self._edges()
        return float(height.mean()) if height.size else float("nan")

    def mean_persistence(self) -> float:
        """The mean length of the minima's finite bars (by the elder rule, which `smad` does not
        take); NaN without one."""
        pairs = self.pairs()
        finite = pairs[np.isfinite(pairs).all(axis=1)]
        return float((finite[:, 1] - finite[:, 0]).mean()) if len(finite) else float("nan")

    def basins(self, level: float) -> list[Basin]:
        """The components of {L <= level}, from the lowest minimum.

        Raises:
            InvalidArgument: the level is no number.
        """
        from scipy.ndimage import label

        try:
            height = float(level)
        except (TypeError, ValueError):
            height = float("nan")
        if np.isnan(height):
            raise InvalidArgument(f"level: expected a number, got {level!r}")
        labels, count = label(np.isfinite(self.values) & (self.values <= height))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        border = {
            int(k)
            for axis, size in enumerate(self.values.shape)
            if size > 1
            for k in np.unique(np.take(labels, [0, size - 1], axis=axis))
        }
        found, seen = [], set()
        for vertex in self.join.extrema.tolist():
            place = tuple(int(i) for i in np.unravel_index(vertex, self.values.shape))
            k = int(labels[place])
            if k == 0 or k in seen:
                continue
            seen.add(k)
            position = tuple(float(a[i]) for a, i in zip(self.axes, place, strict=True))
            value = float(self.values[place])
            found.append(Basin(place, value, position, int(sizes[k]), k in border))
        return found

    def draw(self, kind: str = "tree", ax: Any = None, **options: Any) -> Any:
        """Draw the "tree", the "barcode" or the persistence "diagram"; returns the Axes.

        Options:
            of: "minima" (default) or "maxima".
            most: how many features at most, the longest.
            title: above the picture.
            figsize: (width, height) of a figure of its own, in inches.
        """
        return draw(self, kind, ax, **options)

    def table_columns(self) -> dict[str, Any]:
        rows = [(of, *pair) for of in ("minima", "maxima") for pair in self.pairs(of).tolist()]
        born, dies = (np.array([r[k] for r in rows], dtype=np.float64) for k in (1, 2))
        return {
            "of": [r[0] for r in rows], "birth": born, "death": dies,
            "persistence": np.abs(dies - born),
        }  # fmt: skip

    def persistence_diagram(self, ax: Any = None, **options: Any) -> Any:
        """Draw births against deaths; returns the Axes. The numbers are those of `pairs`."""
        return self.draw("diagram", ax, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        store.save(self, path)

    def tree(self, of: str) -> MergeTree:
        """`join` for "minima", `split` for "maxima"."""
        if of not in ("minima", "maxima"):
            raise InvalidArgument(f"of: expected 'minima' or 'maxima', got {of!r}")
        return self.join if of == "minima" else self.split

    def _pairs(self, of: str) -> Array:
        """(m, 2), in the order of the tree's extrema."""
        tree, flat = self.tree(of), self.values.ravel()
        never = np.inf if of == "minima" else -np.inf
        deaths = np.where(tree.deaths < 0, never, flat[tree.deaths])
        return np.stack([flat[tree.extrema], deaths], axis=1)

    def _edges(self) -> Array:
        """Heights of the join tree's edges at minima, above the noise."""
        tree, flat = self.join, self.values.ravel()
        m = tree.extrema.size
        above = tree.parents[:m]
        inner = above >= 0
        heights = flat[tree.saddles[above[inner] - m]] - flat[tree.extrema[inner]]
        return heights[heights > self.noise]

    def __repr__(self) -> str:
        size = " x ".join(str(n) for n in self.values.shape)
        inner = int((self.join.borders == 0).sum())
        smad = self.smad()
        return (
            f"Topology({size}, {_count(len(self.pairs()), 'minimum', 'minima')} and "
            f"{_count(len(self.pairs('maxima')), 'maximum', 'maxima')} above the noise "
            f"{self.noise:.2g}, {_count(inner, 'basin', 'basins')} clear of the border, "
            f"{'no saddle' if np.isnan(smad) else f'SMAD {smad:.4g}'})"
        )


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _apart(found: Topology) -> tuple[store.Arrays, store.Facts]:
    arrays = {f"axis{k}": axis for k, axis in enumerate(found.axes)} | {"values": found.values}
    for of, tree in (("join", found.join), ("split", found.split)):
        arrays |= {f"{of}.{name}": getattr(tree, name) for name in NAMES}
    return arrays, {"noise": found.noise, "info": found.info}


def _together(arrays: store.Arrays, facts: store.Facts) -> Topology:
    axes = [arrays[f"axis{k}"] for k in range(arrays["values"].ndim)]
    join, split = (
        MergeTree(**{name: arrays[f"{of}.{name}"].astype(np.int64) for name in NAMES})
        for of in ("join", "split")
    )
    return Topology(axes, arrays["values"], join, split, facts["noise"], facts["info"])


store.register(Topology, store.Content("topology", _apart, _together))
