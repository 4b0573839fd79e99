"""Merge trees of a grid's values, by the union-find of the core (csrc/topology/merge_tree.h)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._native import core
from ..arrays import Array
from ..errors import InvalidArgument
from ..results.merge_trees import NAMES, MergeTree, Topology
from ..results.sanity import EPS, axes_of

MOST_VERTICES = 2**31 - 2
BYTES_PER_VERTEX = 28  # while vertices are ordered: values, their order, components


def topology_of(result: Any, metric: str = "loss") -> Topology:
    """The merge trees of a metric of a Curve, Surface or Grid.

    Minima join along the axes (2d neighbours), maxima along the diagonals too (3^d - 1), which is
    the dual: a set and its complement on a grid are consistent with these two. Ties are decided by
    the index. What is not finite is a wall, in no component.

    Raises:
        InvalidArgument: an unknown metric; a single value; no finite value; more than 2^31 - 2
            values.
    """
    if metric not in result.metrics:
        raise InvalidArgument(f"metric: expected one of {sorted(result.metrics)}, got {metric!r}")
    values = result.metrics[metric]
    if values.size > MOST_VERTICES:
        raise InvalidArgument(
            f"grid: expected at most 2^31 - 2 values, got {values.size:,}, whose tree takes "
            f"{values.size * BYTES_PER_VERTEX / 2**30:,.0f} GiB; take a slice, or fewer points"
        )
    if values.size < 2:
        raise InvalidArgument("grid: expected at least two values, got a single one")
    values = np.ascontiguousarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise InvalidArgument(f"metric: expected finite values, got none among {values.size}")
    # A tree of maxima is the tree of minima of what is negated.
    join = merge_tree(np.where(finite, values, np.inf))
    split = merge_tree(np.where(finite, -values, np.inf), full=True)
    facts = {**(result.info.get("request") or {}), **result.info}
    dtype = str(facts.get("dtype", "float64")).removeprefix("torch.")
    noise = EPS.get(dtype, EPS["float64"]) * float(np.abs(values[finite]).max())
    return Topology(
        list(axes_of(result)), values, join, split, noise, {"metric": metric, "dtype": dtype}
    )


def merge_tree(values: Array, full: bool = False, outside: bool = False) -> MergeTree:
    """The join tree of values (n_1, ..., n_d); +inf and NaN are walls.

    Args:
        full: all 3^d - 1 neighbours instead of the 2d along the axes.
        outside: what lies around the grid is one more component, the eldest (its vertex is the
            number of values), which the border adjoins; pairs of the negated values with it are
            those of loops (d = 2), or cavities (d = 3), of the sublevel sets.
    """
    values = np.ascontiguousarray(values, dtype=np.float64)
    found = core.merge_tree(list(values.shape), values.ctypes.data, full, outside)
    parts = {n: np.frombuffer(b, dtype=np.int64) for n, b in zip(NAMES, found, strict=True)}
    return MergeTree(**parts)


def loops(values: Array) -> Array:
    """(k, 2) birth and death of the sublevel sets' holes of the highest dimension, d - 1: the top
    dimension of gudhi's CubicalComplex(vertices=values), d >= 2. +inf is a wall, which no hole
    survives; holes of length 0 are left out."""
    raised = np.where(np.isnan(values), np.inf, values).astype(np.float64)
    tree = merge_tree(-raised, full=True, outside=True)
    flat = np.append(raised.ravel(), np.inf)
    gone = tree.deaths >= 0
    pairs = np.stack([flat[tree.deaths[gone]], flat[tree.extrema[gone]]], axis=1)
    return pairs[pairs[:, 0] < pairs[:, 1]]
