"""Lines, planes, grids and interpolations: which points of parameter space a picture needs.

Every question here is L(base + C D) for coefficients C (G, k) on a grid and directions D (k, n).
Between solutions, base = 0, D = the solutions and C = their weights, so that corners are exact.

The way goes on in evaluation.py, then runs/chunks.py, and `Landscape.prepare` for each chunk.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..arguments import check_landscape
from ..arrays import Array, Path
from ..errors import InvalidArgument
from ..results.base import check_axis
from ..results.curve import Curve
from ..results.grid_values import Grid
from ..results.mixtures import barycentric_weights, bilinear_weights
from ..results.surface import Surface
from ..runs.request import Metric
from ..theta import running_statistics
from ..theta.checkpoints import MODELS
from ..theta.directions import LARGE, as_rows, solution
from ..theta.pieces import Row, Rows, Stored, Zeros, nonzero, row_of
from .evaluation import GridQuestion, evaluate_grid

if TYPE_CHECKING:
    from ..landscape import Landscape


Axis = tuple[float, float, int] | ArrayLike
Metrics = str | Metric | Sequence[Metric]

LINE_AXIS = (-1, 1, 51)
BETWEEN_TWO = (-0.5, 1.5, 401)  # methods: alpha in [-0.5, 1.5], 401 points
BETWEEN_MORE = (0, 1, 25)
GRID_AXIS = (-1, 1, 21)
MOST_POINTS = 2**31


def line(
    land: Landscape,
    direction: Any,
    x: Axis = LINE_AXIS,
    *,
    path: Path | None = None,
    metrics: Metrics = ("loss",),
    progress: bool = True,
    theta: Any = None,
) -> Curve:
    """L(theta + x d) along one direction.

    Args:
        land: the landscape.
        direction: a Direction, or a tensor or array (n,).
        x: (min, max, n), n evenly spaced steps with both ends, or an increasing array (n,).
        path: HDF5 file to write. A run that was killed goes on where it stopped when the same call
            is made again; a finished file of the same call is loaded. While it runs, `path +
            ".journal"` holds what is done.
        metrics: "loss", "accuracy", errors from the data ("standard_error" of L,
            "difference_standard_error" of L minus the centre's, "subset_error" of a subset against
            all: theta/sampling.py), or callables metric(outputs, targets) over the whole data; the
            loss is always among them.
        progress: show a bar on stderr.
        theta: centre: (n,), a module, a state dict, or the path of a checkpoint; default the
            model's parameters.

    Returns:
        A Curve with values[i] = L(theta + x[i] d), kept as they are where they are not finite.

    Raises:
        InvalidArgument: names the argument; LayoutMismatch for a vector of another length.
        ResumeMismatch: `path` or its journal belong to another call; lists what differs.
        FileFormatError: `path` is a file of another kind, or its journal is damaged.
        OSError: the disk is full; what was computed is kept, and the same call continues.
    """
    check_landscape(land, "line")
    axis, land = make_axis(x, "x"), land.at(theta)
    vectors, infos = _directions(land, {"direction": direction})
    centre = _centre(land, theta, vectors)
    question = GridQuestion(
        "line", {"x": axis}, axis[:, None], centre[0], vectors, infos, centre[1]
    )
    result = evaluate_grid(land, question, metrics, path, progress)
    assert isinstance(result, Curve)
    return result


def plane(
    land: Landscape,
    d1: Any,
    d2: Any = None,
    x: Axis = LINE_AXIS,
    y: Axis = LINE_AXIS,
    *,
    path: Path | None = None,
    metrics: Metrics = ("loss",),
    progress: bool = True,
    theta: Any = None,
) -> Surface:
    """L(theta + x d1 + y d2) on a grid (Li et al. 2018, section 4).

    Args:
        d1, d2: Directions, tensors or arrays (n,).
        x, y: (min, max, n) or increasing arrays, of any lengths.
        The others are those of `line`.

    Returns:
        A Surface with values[i, j] = L(theta + x[i] d1 + y[j] d2), (nx, ny).

    Raises:
        As `line`.
    """
    check_landscape(land, "plane")
    if d2 is None:
        several = isinstance(d1, list | tuple) and len(d1) == 2
        raise InvalidArgument(
            "d2: expected a second direction, got none"
            + ("; a list of two is unpacked by *: plane(land, *directions)" if several else "")
        )
    land = land.at(theta)
    question = plane_question(land, d1, d2, x, y, theta)
    result = evaluate_grid(land, question, metrics, path, progress)
    assert isinstance(result, Surface)
    return result


def grid(
    land: Landscape,
    directions: Any,
    axes: Sequence[Axis] | None = None,
    *,
    path: Path | None = None,
    metrics: Metrics = ("loss",),
    progress: bool = True,
    theta: Any = None,
) -> Grid:
    """L(theta + sum_k x_k d_k) on a grid of any dimension: lines and planes, and beyond.

    Args:
        directions: d Directions, tensors or arrays (n,); or a tensor or array (d, n).
        axes: one per direction: (min, max, n) or an increasing array (n,), of at least two points;
            by default (-1, 1, 21) each.
        The others are those of `line`.

    Returns:
        A Grid with values[i1, ..., id].

    Raises:
        As `line`; also InvalidArgument for a grid of more than 2^31 points.
    """
    check_landscape(land, "grid")
    land = land.at(theta)
    try:
        given = [] if isinstance(directions, str | Mapping) else list(directions)
    except TypeError:
        given = []
    if not given:
        raise InvalidArgument(f"directions: expected a sequence of directions, got {directions!r}")
    try:
        ranges: list[Any] = [GRID_AXIS] * len(given) if axes is None else list(axes)
    except TypeError:
        raise InvalidArgument(f"axes: expected one per direction, got {axes!r}") from None
    if len(ranges) != len(given):
        raise InvalidArgument(
            f"axes: expected one per direction, {len(given)} of them, got {len(ranges)}"
        )
    found = {f"axes[{k}]": make_axis(each, f"axes[{k}]") for k, each in enumerate(ranges)}
    for name, axis in found.items():
        if axis.size < 2:
            raise InvalidArgument(f"{name}: expected at least two points, got {axis.size}")
    points = math.prod(axis.size for axis in found.values())
    if points > MOST_POINTS:
        need = points * 8 * (len(given) + 1) / 2**30
        raise InvalidArgument(
            f"axes: expected at most 2^31 points, got {points:,}, whose coordinates and losses "
            f"take {need:,.0f} GiB; take fewer points along an axis"
        )
    vectors, infos = _directions(land, {f"directions[{k}]": d for k, d in enumerate(given)})
    base, own_loss = _centre(land, theta, vectors)
    coefficients = np.stack(_mesh(found), axis=1)
    question = GridQuestion("grid", found, coefficients, base, vectors, infos, own_loss)
    result = evaluate_grid(land, question, metrics, path, progress)
    assert isinstance(result, Grid)
    return result


def plane_question(
    land: Landscape, d1: Any, d2: Any, x: Axis, y: Axis, theta: Any = None
) -> GridQuestion:
    """The points theta + x[i] d1 + y[j] d2, y fastest; arguments and errors as in `plane`, but for
    the landscape, which must be ``land.at(theta)``."""
    axes = {"x": make_axis(x, "x"), "y": make_axis(y, "y")}
    vectors, infos = _directions(land, {"d1": d1, "d2": d2})
    base, own_loss = _centre(land, theta, vectors)
    coefficients = np.stack(_mesh(axes), axis=1)
    return GridQuestion("plane", axes, coefficients, base, vectors, infos, own_loss)


def interpolate(
    land: Landscape,
    vertices: Sequence[Any],
    x: Axis | None = None,
    y: Axis | None = None,
    *,
    path: Path | None = None,
    metrics: Metrics = ("loss",),
    progress: bool = True,
) -> Curve | Surface:
    """L between two, three or four solutions; exact at the solutions themselves.

    - Two vertices: theta(alpha) = (1 - alpha) theta0 + alpha theta1, by default alpha in
      [-0.5, 1.5] with 401 points (Goodfellow et al. 2015). The Curve gives `barrier`,
      `basin_width` and `distance`.
    - Three, barycentric: weights (1 - alpha, alpha beta, alpha (1 - beta)); `Surface.triangle`
      lays it out.
    - Four, bilinear: theta0..theta3 sit at (alpha, beta) = (1,1), (0,1), (1,0), (0,0) (Im et al.
      2016).

    Args:
        vertices: 2, 3 or 4 of: module, state dict, path of a checkpoint, Direction, tensor or
            array (n,); with bn="interpolate", of what has running statistics: the first three.
            Of 2^25 parameters and more, the first three are read piece by piece and not stored,
            where torch answers.
        x: alpha; y: beta, for three and four vertices: (min, max, n) or increasing arrays, by
            default (0, 1, 25) each.
        The others are those of `line`; "difference_standard_error" is that of L minus the same
            mixture of the vertices' losses, which a barrier is the largest of.

    Returns:
        A Curve of kind "interpolation", or a Surface of kind "barycentric" or "bilinear". `info`
        holds the vertices' losses and distances, and a note where BatchNorm statistics stay those
        of the model.

    Raises:
        As `line`.
    """
    check_landscape(land, "interpolate")
    try:
        given = [] if isinstance(vertices, str | Mapping) else list(vertices)
    except TypeError:
        given = []
    if not 2 <= len(given) <= 4:
        got = f"{len(given)} of them" if given else repr(type(vertices).__name__)
        raise InvalidArgument(f"vertices: expected a sequence of 2, 3 or 4 solutions, got {got}")
    if len(given) == 2 and y is not None:
        raise InvalidArgument(f"y: expected None for two vertices, got {y!r}")
    solutions = _solutions(land, given)
    default = BETWEEN_TWO if len(given) == 2 else BETWEEN_MORE
    axes = {"x": make_axis(default if x is None else x, "x")}
    if len(given) > 2:
        axes["y"] = make_axis(default if y is None else y, "y")
    mesh = _mesh(axes)
    if len(given) == 2:
        kind, weights = "interpolation", np.stack([1.0 - mesh[0], mesh[0]], axis=1)
    elif len(given) == 3:
        kind, weights = "barycentric", barycentric_weights(*mesh)
    else:
        kind, weights = "bilinear", bilinear_weights(*mesh)
    infos = [{"kind": "vertex", "index": i} for i in range(len(given))]
    base: torch.Tensor | Row = (
        Zeros(solutions[0]) if isinstance(solutions, Rows) else (torch.zeros_like(solutions[0]))
    )
    question = GridQuestion(kind, axes, weights, base, solutions, infos, None)
    found = evaluate_grid(land, question, metrics, path, progress)
    assert isinstance(found, Curve | Surface)
    return found


def make_axis(axis: Axis, name: str) -> Array:
    """(min, max, n) or an increasing array, as (n,) float64; a range through 0 holds 0 exactly if 0
    is one of its evenly spaced points.

    Raises:
        InvalidArgument: anything else, also three numbers in a list, which could mean either.
    """
    expected = (
        f"{name}: expected (min, max, n) with min < max and n >= 2, or min == max and n = 1, or an "
        "increasing 1-D array"
    )
    if isinstance(axis, list) and len(axis) == 3 and isinstance(axis[2], int):
        raise InvalidArgument(
            f"{expected}; got {axis!r}, which could be either: use a tuple or a NumPy array"
        )
    if not isinstance(axis, tuple):
        if isinstance(axis, torch.Tensor):
            axis = axis.detach().cpu().numpy()
        return check_axis(axis, name)
    try:
        low, high, count = axis
        low, high, n = float(low), float(high), operator.index(count)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"{expected}; got {axis!r}") from error
    sane = np.isfinite(high - low) and ((low < high and n >= 2) or (low == high and n == 1))
    if not sane or isinstance(count, bool):
        raise InvalidArgument(f"{expected}; got {axis!r}")
    points = np.linspace(low, high, n)
    if low < 0.0 < high:  # the rounding of linspace, which may miss 0
        points[np.abs(points) <= 4 * np.finfo(np.float64).eps * max(-low, high)] = 0.0
    return check_axis(points, name)


def _solutions(land: Landscape, given: Sequence[Any]) -> torch.Tensor | Rows:
    """(k, n) the vertices; large ones of tensors by name as Rows, which reads them in pieces."""
    names = [f"vertices[{i}]" for i in range(len(given))]
    apart = land.n_params >= LARGE and land.moved.n == land.n_params and land.native is None
    if apart and any(isinstance(v, MODELS) for v in given):
        return Rows([solution(land, v, name) for v, name in zip(given, names, strict=True)])
    return torch.stack(
        [
            running_statistics.point(land, v, name, needed=True)
            for v, name in zip(given, names, strict=True)
        ]
    )


def _directions(
    land: Landscape, given: dict[str, Any]
) -> tuple[torch.Tensor | Rows, list[dict[str, Any]]]:
    """(k, n) vectors and their infos, one per argument; Rows where some are not stored."""
    parts: list[torch.Tensor | Rows] = []
    infos = []
    for name, direction in given.items():
        vectors, found = as_rows(land, direction, name)
        if len(vectors) != 1:
            raise InvalidArgument(f"{name}: expected one direction (n,), got {len(vectors)}")
        if not nonzero(row_of(vectors[0])):
            raise InvalidArgument(
                f"{name}: expected a direction along which something moves, got zeros alone (are "
                "all parameters ignored, or of norm 0?)"
            )
        parts.append(vectors)
        infos += found
    if any(isinstance(part, Rows) for part in parts):
        return Rows(
            [part[0] if isinstance(part, Rows) else Stored(part[0]) for part in parts]
        ), infos
    return torch.cat([part for part in parts if isinstance(part, torch.Tensor)]), infos


def _centre(
    land: Landscape, theta: Any, vectors: torch.Tensor | Rows
) -> tuple[torch.Tensor | Row, Callable[[], float] | None]:
    """The base of a line or plane, and what gives the loss of the model that lies there, by torch;
    None for a bare vector. ``land``: ``land.at(theta)``."""
    if theta is None:
        return land.base if isinstance(vectors, Rows) else land.origin, land.model_loss
    base = running_statistics.point(land, theta, "theta")
    if isinstance(theta, MODELS):
        return base, lambda: land.model_loss(base)
    return base, None


def _mesh(axes: dict[str, Array]) -> list[Array]:
    """Every axis at every grid point, (G,) each, the last axis fastest."""
    return [a.ravel() for a in np.meshgrid(*axes.values(), indexing="ij")]
