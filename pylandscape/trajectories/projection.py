"""A path in a plane: coordinates, and how far each point lies off the plane.

x_t - theta = a_t d1 + b_t d2 + r_t with r_t orthogonal to the plane (least squares: the directions
need not be orthogonal). A path that leaves the plane is not on the surface drawn there, so the
off-plane distance ‖r_t‖ belongs to every picture.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InvalidArgument, LayoutMismatch
from ..results.paths import Projection

if TYPE_CHECKING:
    from .sources import Points

_DEPENDENT = 1e-12  # of |d1|^2 |d2|^2: the smallest Gram determinant of a plane


def project(trajectory: Points, d1: Any, d2: Any, *, theta: Any = -1) -> Projection:
    """The path in the plane theta + a d1 + b d2; see `Trajectory.project`.

    Sums are float64, two passes over the path. Warns where the path shrinks to a dot, as it does
    on random directions, which are almost orthogonal to it (Li et al. 2018, section 7.1).

    Raises:
        InvalidArgument: directions that span no plane.
        LayoutMismatch: directions of other parameters.
    """
    layout = trajectory.layout
    for name, d in (("d1", d1), ("d2", d2)):
        of = getattr(d, "info", {}).get("layout")
        if of is not None and of != layout.digest:
            raise LayoutMismatch(
                f"{name}: expected a direction of the trajectory's parameters, got one of another "
                "layout; read the trajectory with trajectory(..., like=land)"
            )
    origin = trajectory.point(theta, "theta").numpy()
    rows = [layout.vector(d, name, torch.float64, "cpu") for d, name in ((d1, "d1"), (d2, "d2"))]
    plane = np.stack([row.numpy() for row in rows])
    gram = plane @ plane.T
    if not np.linalg.det(gram) > _DEPENDENT * gram[0, 0] * gram[1, 1]:
        raise InvalidArgument("d1, d2: expected two directions that span a plane")
    count = len(trajectory)
    products, squares, moved = np.zeros((2, count)), np.zeros(count), np.zeros(count)
    for first, last, block in trajectory.blocks(reuse=True):
        from_start = block - block[0]
        moved += np.einsum("ij,ij->i", from_start, from_start)
        block -= origin[first:last]
        products += plane[:, first:last] @ block.T
        squares += np.einsum("ij,ij->i", block, block)
    coordinates = np.linalg.solve(gram, products).T
    rest = np.zeros(count)
    for first, last, block in trajectory.blocks(reuse=True):  # not from the sums: they would cancel
        block -= origin[first:last]
        block -= coordinates @ plane[:, first:last]
        rest += np.einsum("ij,ij->i", block, block)
    norms = np.sqrt(np.diag(gram))
    found = Projection(
        coordinates, np.sqrt(rest), np.sqrt(squares), trajectory.steps,
        (float(norms[0]), float(norms[1])), float(np.sqrt(moved.max())),
    )  # fmt: skip
    if found.is_dot:
        warnings.warn(
            "the path shrinks to a dot in this plane: its extent there is below 1 % of its reach "
            f"({found.reach:.3g}); directions from pca_directions show it",
            stacklevel=3,
        )
    return found
