"""Distances between persistence diagrams, by gudhi."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument, PylandscapeError
from ..results.merge_trees import Topology


def bottleneck_distance(t1: Topology, t2: Topology, of: str = "minima") -> float:
    """The largest move, in units of L, of the best match between two diagrams (features may also
    vanish). It is at most the largest difference of the two functions on one grid.

    Raises:
        InvalidArgument: no `Topology`, or another `of` than "minima" and "maxima".
        PylandscapeError: gudhi is not installed.
    """
    one, two = _diagrams(t1, t2, of)
    return float(_gudhi().bottleneck_distance(one, two))


def wasserstein_distance(
    t1: Topology, t2: Topology, of: str = "minima", order: float = 1.0
) -> float:
    """The p-th root of the sum of p-th powers of the moves of the best match between two diagrams;
    moves are measured by their largest coordinate, in units of L.

    Raises: as `bottleneck_distance`; also InvalidArgument for an order below 1.
    """
    if not 1.0 <= order < np.inf:
        raise InvalidArgument(f"order: expected a finite number >= 1, got {order!r}")
    one, two = _diagrams(t1, t2, of)
    _gudhi()
    from gudhi.hera import wasserstein_distance as by_hera

    return float(by_hera(one, two, order=order, internal_p=np.inf))


def _diagrams(t1: Topology, t2: Topology, of: str) -> tuple[Array, Array]:
    found = []
    for name, each in (("t1", t1), ("t2", t2)):
        if not isinstance(each, Topology):
            raise InvalidArgument(f"{name}: expected a Topology, got {type(each).__name__}")
        pairs = each.pairs(of, noise=True)
        found.append(pairs if of == "minima" else -pairs)
    return found[0], found[1]


def _gudhi() -> Any:
    try:
        import gudhi
    except ImportError as error:
        raise PylandscapeError(
            'distances between diagrams need gudhi: pip install "pylandscape[topology]"'
        ) from error
    return gudhi
