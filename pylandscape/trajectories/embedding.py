"""Strain (classical) multidimensional scaling of models by their weights.

Zhang et al. 2018 ("Theory of deep learning IIb"), figures 3 and 8 to 13, draw runs so, layer by
layer. J = I - 11^T / P, B = -J D^2 J / 2, Y = the two largest eigenpairs of B: points of the plane
whose distances are closest to D in this sense.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..results.similarity import Embedding
from .base import Trajectory
from .reading import trajectory
from .sources import Array

DISTANCES = ("cosine", "angular", "euclidean")
NEGATIVE = 0.05  # smallest over largest eigenvalue of B beyond which D is no plane-like distance


def mds(
    models: Any,
    *,
    layer: str | Sequence[str] | None = None,
    distance: str = "cosine",
    like: Any = None,
) -> Embedding:
    """Strain MDS of models or of the points of trajectories.

    Args:
        models: a Trajectory or several, or what `trajectory` takes (modules, states, paths).
        layer: name patterns of the parameters to compare; default all.
        distance: "cosine": 1 - cos (the paper's); "angular": sqrt(2 (1 - cos)), the Euclidean one
            of normalised vectors; "euclidean".
        like: as in `trajectory`.

    Distances are computed in float64. Warns where they are far from Euclidean (a negative
    eigenvalue beyond 5 % of the largest): 1 - cos is the square of a distance, and MDS of it bends
    straight paths; "angular" does not.

    Raises:
        InvalidArgument: fewer than two models, models of different layouts, an unknown distance, a
            pattern that matches nothing, a zero vector where cosines are asked for.
    """
    if distance not in DISTANCES:
        raise InvalidArgument(f"distance: expected one of {', '.join(DISTANCES)}, got {distance!r}")
    runs = _runs(models, like)
    if len({t.layout.digest for t in runs}) > 1:
        raise InvalidArgument("models: expected models of one layout, got several")
    names = None
    if layer is not None:
        patterns = (layer,) if isinstance(layer, str) else tuple(layer)
        names = [e.name for e in runs[0].layout.select(patterns).entries]
    count = sum(map(len, runs))
    if count < 2:
        raise InvalidArgument(f"models: expected at least two, got {count}")
    gram, squares = np.zeros((count, count)), np.zeros((count, count))
    for parts in zip(*(t.blocks(names, points=count, reuse=True) for t in runs), strict=True):
        block = np.concatenate([p[2] for p in parts])
        gram += block @ block.T
        block -= block.mean(axis=0)  # differences do not change, and cancel less
        inner = block @ block.T
        squares += np.diag(inner)[:, None] + np.diag(inner) - 2 * inner
    if not np.isfinite(np.diag(gram)).all():
        bad = np.flatnonzero(~np.isfinite(np.diag(gram)))
        raise InvalidArgument(
            f"models: expected finite numbers, got others in {bad.size} of {count} models, number "
            f"{bad[0]} the first"
        )
    d = _distances(gram, squares, distance)
    points, strain, values = strain_mds(d)
    if values[-1] < -NEGATIVE * values[0]:
        warnings.warn(
            f"these {distance} distances are far from those of points of a plane (smallest "
            f"eigenvalue {values[-1] / values[0]:.0%} of the largest); distance='angular' is exact",
            stacklevel=2,
        )
    run = np.concatenate([np.full(len(t), k) for k, t in enumerate(runs)])
    steps = np.concatenate([t.steps for t in runs])
    chosen = tuple(names or (e.name for e in runs[0].layout.entries))
    return Embedding(points, d, strain, values, run, steps, distance, chosen)


def strain_mds(distances: Any) -> tuple[Array, float, Array]:
    """Points (P, 2), strain and all eigenvalues (P,) of B, descending, from distances (P, P)."""
    d = np.asarray(distances, dtype=np.float64)
    centred = -0.5 * d**2
    centred = centred - centred.mean(axis=0) - centred.mean(axis=1)[:, None] + centred.mean()
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    points = vectors[:, :2] * np.sqrt(values[:2].clip(min=0.0))
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    largest = points[np.abs(points).argmax(axis=0), np.arange(2)]
    points = points * np.where(largest < 0, -1.0, 1.0)
    size = float(np.linalg.norm(centred))
    strain = float(np.linalg.norm(centred - points @ points.T)) / size if size else 0.0
    return points, strain, values


def _distances(gram: Array, squares: Array, distance: str) -> Array:
    if distance == "euclidean":
        d = np.sqrt(squares.clip(min=0.0))
    else:
        norms = np.sqrt(np.diag(gram))
        if not (norms > 0).all():
            raise InvalidArgument(
                f"models: expected vectors that are not zero for {distance!r} distances, got zeros "
                f"in model {int(np.argmin(norms))}"
            )
        # 1 - cos of close vectors from the difference of the normalised ones, which cancels less
        apart = (squares - (norms[:, None] - norms) ** 2) / (2 * norms[:, None] * norms)
        cosine = apart.clip(0.0, 2.0)
        d = np.sqrt(2 * cosine) if distance == "angular" else cosine
    d = (d + d.T) / 2
    np.fill_diagonal(d, 0.0)
    return d


def _runs(models: Any, like: Any) -> list[Trajectory]:
    if isinstance(models, Trajectory):
        return [models]
    if isinstance(models, Sequence) and models and all(isinstance(m, Trajectory) for m in models):
        return list(models)
    if isinstance(models, nn.Module | Tensor) and not isinstance(models, torch.nn.ModuleList):
        raise InvalidArgument("models: expected several, got one")
    return [trajectory(models, like)]
