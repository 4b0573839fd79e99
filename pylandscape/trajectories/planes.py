"""The plane of a surface that was read from a file, found again from the path it was made with.

A file keeps digests of its origin and directions, not the vectors. Where the origin is a point of
the path and the directions are the path's principal components, they can be computed again, and the
digests prove that they are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arrays import digest
from ..errors import PylandscapeError
from ..results.surface import Frame
from .components import pca

if TYPE_CHECKING:
    from .sources import Points


def frame_of(trajectory: Points, info: Mapping[str, Any]) -> Frame | None:
    """The frame of the plane whose ``Surface.info`` this is, or None where it is not one over the
    trajectory's own components around one of its points."""
    request = info.get("request") or {}
    directions = request.get("directions") or []
    kinds = [(d.get("kind"), d.get("centre")) for d in directions]
    if request.get("layout") != trajectory.layout.digest or len(directions) != 2:
        return None
    if kinds[0] != kinds[1] or kinds[0][0] != "pca" or kinds[0][1] is None:
        return None
    dtype = getattr(torch, str(request.get("dtype")), torch.float32)
    theta = _origin(trajectory, request.get("theta"), dtype)
    if theta is None:
        return None
    count = 1 + max(int(d.get("index", 0)) for d in directions)
    try:
        found = pca(trajectory, count, centre=kinds[0][1]).directions
    except PylandscapeError:
        return None
    vectors = [found[int(d.get("index", 0))].vector.to(dtype) for d in directions]
    if [digest(v) for v in vectors] != [d.get("digest") for d in directions]:
        return None
    return Frame(theta, torch.stack(vectors), trajectory.layout)


def _origin(trajectory: Points, wanted: Any, dtype: torch.dtype) -> Tensor | None:
    """The point of the path with this digest; mostly the last or the first."""
    count = len(trajectory)
    for k in dict.fromkeys((count - 1, 0, *range(count))):
        point = trajectory.point(k, "theta").to(dtype)
        if digest(point) == wanted:
            return point
    return None
