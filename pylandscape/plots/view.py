"""Where the points of a surface lie in a picture, and what its axes are called.

A plane and a bilinear surface are drawn in their own coordinates, a barycentric one in the
triangle of its three vertices, which keeps their distances in parameter space (its square would
stretch one vertex into a whole edge).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import edges
from ..errors import InvalidArgument
from ..results.mixtures import barycentric_weights
from ..results.surface import triangle_layout
from .scale import Array
from .style import direction_infos, step_label

if TYPE_CHECKING:
    from ..results.surface import Surface

# (x, y) = (alpha, beta) of the vertices, in order.
BILINEAR_CORNERS = np.array([(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
TRIANGLE_CORNERS = np.array([(0.0, 0.0), (1.0, 1.0), (1.0, 0.0)])
ROOM = 0.14  # of its width, around a triangle, for the names of its vertices
# Of a column-wide figure: labels and ticks of one axis; a colour bar with its labels.
LABEL_SHARE, BAR_SHARE = 0.17, 0.14
FLAT_TRIANGLE = 1e-3  # height over longest side below which a true layout would be a line


@dataclass(frozen=True)
class View:
    """px, py: (nx, ny) drawn positions; corners: (3, 2) of a triangle, else None.

    `vertices` are in the surface's own coordinates, `place` maps those to drawn ones.
    """

    x: Array
    y: Array
    xlabel: str
    ylabel: str
    equal: bool
    corners: Array | None = None
    vertices: Array = field(default_factory=lambda: np.empty((0, 2)))
    names: tuple[str, ...] = ()

    def place(self, points: Array) -> Array:
        """Drawn positions (..., 2) of points (..., 2) given in the surface's coordinates."""
        if self.corners is None:
            return points
        flat = points.reshape(-1, 2)
        placed = barycentric_weights(flat[:, 0], flat[:, 1]) @ self.corners
        return placed.reshape(points.shape)

    def grid(self) -> tuple[Array, Array]:
        """Drawn positions of the grid's points: px, py (nx, ny)."""
        placed = self.place(np.stack(np.meshgrid(self.x, self.y, indexing="ij"), axis=-1))
        return placed[..., 0], placed[..., 1]

    def frame(self) -> tuple[float, float, float, float]:
        """Drawn limits (left, right, bottom, top), with room for the names around a triangle."""
        if self.corners is None:
            return float(self.x[0]), float(self.x[-1]), float(self.y[0]), float(self.y[-1])
        (left, bottom), (right, top) = self.corners.min(axis=0), self.corners.max(axis=0)
        room = ROOM * (right - left)
        return left - room, right + room, bottom - room, top + room

    def height(self, bar: bool) -> float:
        """Height over width of a figure that the picture fills, with or without a colour bar."""
        if not self.equal:
            return 0.8
        left, right, bottom, top = self.frame()
        share = 1.0 - LABEL_SHARE - (BAR_SHARE if bar else 0.0)
        return float(np.clip(share * (top - bottom) / (right - left) + LABEL_SHARE, 0.5, 1.2))

    def cells(self, bad: Any, around: bool) -> Array:
        """Quadrilaterals (m, 4, 2), in drawn coordinates, that bad points (nx, ny) spoil.

        `around`: the cell around each point (heat map of a plane); otherwise every mesh cell with
        a bad corner, which is what contours and 3-D surfaces cannot draw.
        """
        if around:
            ex, ey = edges(self.x), edges(self.y)
            i, j = np.nonzero(bad)
        else:
            ex, ey = self.x, self.y
            i, j = np.nonzero(bad[1:, 1:] | bad[1:, :-1] | bad[:-1, 1:] | bad[:-1, :-1])
        quads = np.stack(
            [
                np.stack([ex[i], ey[j]], -1),
                np.stack([ex[i + 1], ey[j]], -1),
                np.stack([ex[i + 1], ey[j + 1]], -1),
                np.stack([ex[i], ey[j + 1]], -1),
            ],
            axis=1,
        )
        return self.place(quads)


def view_of(surface: Surface) -> View:
    """The view that belongs to the surface's kind."""
    x, y = (np.asarray(a, dtype=np.float64) for a in (surface.x, surface.y))
    for name, axis in (("x", x), ("y", y)):
        if axis.ndim != 1 or not axis.size or not (np.diff(axis) > 0).all():
            raise InvalidArgument(f"{name}: expected increasing numbers (n,), got {axis.tolist()}")
    info = surface.info or {}
    if surface.kind == "barycentric":
        corners, unit = triangle(info.get("vertex_distances"))
        return View(
            x, y, f"distance {unit}", f"distance {unit}", True,
            corners, TRIANGLE_CORNERS, (r"$\theta_0$", r"$\theta_1$", r"$\theta_2$"),
        )  # fmt: skip
    span_x, span_y = float(np.ptp(x)), float(np.ptp(y))
    comparable = span_x > 0 and span_y > 0 and 0.25 <= span_y / span_x <= 4
    if surface.kind == "bilinear":
        names = (r"$\theta_0$", r"$\theta_1$", r"$\theta_2$", r"$\theta_3$")
        return View(x, y, r"$\alpha$", r"$\beta$", comparable, None, BILINEAR_CORNERS, names)
    units = [d.get("normalize") for d in direction_infos(info)]
    equal = comparable and len(set(map(str, units))) <= 1
    across, up = info.get("axis_labels") or (step_label(info, 0), step_label(info, 1))
    marks = info.get("marks", {"points": np.empty((0, 2)), "names": ()})
    points = np.asarray(marks["points"], dtype=np.float64)
    return View(x, y, across, up, equal, None, points, tuple(marks["names"]))


def triangle(distances: Any) -> tuple[Array, str]:
    """Corners (3, 2) with the given pairwise distances (3, 3), and the unit's words.

    Without distances, or for vertices on a line, an equilateral triangle of side 1.
    """
    equilateral = np.array([(0.0, 0.0), (1.0, 0.0), (0.5, math.sqrt(0.75))])
    if distances is None:
        return equilateral, "(side = 1, not to scale)"
    d = np.asarray(distances, dtype=np.float64)
    if d.shape != (3, 3) or not np.isfinite(d).all():
        raise InvalidArgument(
            f"vertex_distances: expected finite numbers of shape (3, 3), got {d.shape}"
        )
    corners = triangle_layout(d)
    if corners[2, 1] < FLAT_TRIANGLE * d.max() or not d.max() > 0:
        return equilateral, "(side = 1, not to scale)"
    return corners, "in parameter space"
