"""Clouds: one dot for every sampled point, in the space of loss, gradient norm and curvature.

A loss-gradient cloud has x = L and y = ‖grad L‖ (Bosman, Engelbrecht, Helbig 2020): (0, 0) is a
global minimum of a non-negative loss, dots with y near 0 elsewhere are stationary points that are
not. A Hessian cloud adds z = the ruggedness or the bumpiness of the Hessian (`roughness.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import Array, digest, jsonable
from ..critical.classification import classify
from ..curvature.at_points import as_points, gradients
from ..errors import InvalidArgument
from ..results.cloud import COLOURS, HEIGHTS, Cloud
from ..results.critical_points import CriticalPoints
from ..results.walks import Walks
from .roughness import bumpiness, mean_absolute_form, ruggedness

if TYPE_CHECKING:
    from ..landscape import Landscape

CURVED = ("kind", "bumpiness", "ruggedness", "negative")  # colours that need Hessians


def loss_gradient_cloud(
    land: Landscape,
    walks: Any,
    color: str = "kind",
    *,
    critical: CriticalPoints | None = None,
    rtol: float | None = None,
    samples: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Cloud:
    """The cloud of (L, ‖grad L‖) at sampled points.

    Args:
        walks: Walks; or points (W, T, n) of walks, or any points (P, n), which have no step.
        color: what `Cloud.plot` colours the dots by: "kind" (curvature class), "step",
            "bumpiness", "ruggedness" or "negative" (share of negative eigenvalues). All but "step"
            need the Hessians.
        critical: what `classify` found at these very points, in place of computing it again.
        rtol: of the classes; see `classify`.
        samples, seed: random directions of bumpiness and ruggedness where Hessians are too large
            for all eigenvalues (`ruggedness` with method="products").
        progress: show a bar on stderr.

    Returns:
        A Cloud.

    Raises:
        InvalidArgument: names the argument.

    Example:
        >>> cloud = loss_gradient_cloud(land, gradient_walk(land), "bumpiness")
        >>> cloud.plot().figure.savefig("cloud.pdf")
    """
    return _cloud(land, walks, None, color, critical, rtol, samples, seed, progress)


def hessian_cloud(
    land: Landscape,
    walks: Any,
    height: str = "ruggedness",
    color: str = "step",
    *,
    critical: CriticalPoints | None = None,
    rtol: float | None = None,
    samples: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Cloud:
    """The 3-D cloud of (L, ‖grad L‖, curvature) at sampled points.

    Args:
        height: "ruggedness" or "bumpiness".
        color: as in `loss_gradient_cloud`, where the other arguments are explained too.
    """
    if height not in HEIGHTS:
        raise InvalidArgument(f"height: expected one of {', '.join(HEIGHTS)}, got {height!r}")
    return _cloud(land, walks, height, color, critical, rtol, samples, seed, progress)


def _cloud(
    land: Landscape,
    walks: Any,
    height: str | None,
    color: str,
    critical: CriticalPoints | None,
    rtol: float | None,
    samples: int,
    seed: int,
    progress: bool,
) -> Cloud:
    if color not in COLOURS:
        raise InvalidArgument(f"color: expected one of {', '.join(COLOURS)}, got {color!r}")
    points, shape = _points(land, walks)
    if shape is None and color == "step":
        raise InvalidArgument("color: expected walks for 'step', got points (P, n) without steps")
    if critical is not None and len(critical) != len(points):
        raise InvalidArgument(
            f"critical: expected {len(points)} points, got {len(critical)}: those of other walks"
        )
    if critical is None and (height is not None or color in CURVED):
        critical = classify(land, points, rtol=rtol, keep=True if _exact(land) else None,
                            seed=seed, progress=progress)  # fmt: skip
    columns: dict[str, Any] = {}
    if critical is not None:
        columns = _curvature(land, points, critical, {height, color}, samples, seed)
        losses, norms = critical.losses, critical.gradient_norms
    elif isinstance(walks, Walks):
        losses, norms = walks.losses.ravel(), walks.gradient_norms.ravel()
    else:
        found = gradients(land, points)
        losses, norms = found.losses, found.norms
    if shape is not None:
        walk, step = np.divmod(np.arange(len(points), dtype=np.float64), shape[1])
        columns |= {"walks": walk, "steps": step}
    info: dict[str, Any] = {"points": digest(points), "model": land.describe()}
    if critical is not None:
        info |= {"rtol": critical.rtol, "method": critical.method, "notes": list(critical.notes)}
    if isinstance(walks, Walks):
        info["walks"] = walks.info.get("request")
    return Cloud(
        losses, norms, n=land.n_params, height=height, color=color, info=jsonable(info, "info"),
        **columns,
    )  # fmt: skip


def _curvature(
    land: Landscape,
    points: Array,
    critical: CriticalPoints,
    asked: set[str | None],
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Kinds, the share of negative eigenvalues, B and R; without eigenvalues only those asked."""
    known = critical.index >= 0
    found: dict[str, Any] = {
        "kinds": critical.kinds,
        "negative": np.where(known, critical.index / critical.n, np.nan),
    }
    if critical.eigenvalues is not None and not critical.blocks:
        values = critical.eigenvalues
        return found | {"bumpiness": values.mean(axis=1), "ruggedness": mean_absolute_form(values)}
    options: dict[str, Any] = {"samples": samples, "seed": seed}
    for name, compute in (("bumpiness", bumpiness), ("ruggedness", ruggedness)):
        if name in asked:
            estimate = compute(land, points, **options)
            found |= {name: estimate.value, f"{name}_error": estimate.standard_error}
    return found


def _exact(land: Landscape) -> bool:
    from ..critical.classification import EXACT

    return land.n_params <= EXACT


def _points(land: Landscape, walks: Any) -> tuple[Array, tuple[int, int] | None]:
    """The points (P, n), and (W, T) where they are of walks."""
    given = walks.points if isinstance(walks, Walks) else walks
    shape = tuple(getattr(given, "shape", ()))
    if len(shape) == 3:
        found = as_points(land, given.reshape(-1, shape[2]))
        walked: tuple[int, int] | None = (shape[0], shape[1])
    else:
        found, walked = as_points(land, given), None
    if not len(found):
        raise InvalidArgument("walks: expected at least one point, got none")
    return found, walked
