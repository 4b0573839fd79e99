"""Loss barriers on the straight lines between models (Frankle et al. 2020, "Linear mode
connectivity and the lottery ticket hypothesis").

All lines are one question L(C D), D the models and C their weights: the engine's products with the
models are made once for all pairs.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..arguments import callers_level, check_landscape, integer
from ..arrays import Array, digest
from ..errors import InvalidArgument
from ..files.hdf5 import JOURNAL_SUFFIX
from ..results.barrier_matrix import Barriers
from ..runs.chunks import evaluate_in_chunks
from ..runs.journal import Journal
from ..runs.request import build
from ..runs.resume import answered
from ..theta import running_statistics
from ..trajectories.similarity import compare_all, outputs_at

if TYPE_CHECKING:
    from ..landscape import Landscape


def barriers(
    land: Landscape,
    models: Sequence[Any],
    *,
    points: int = 25,
    labels: Sequence[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Barriers:
    """Barriers, functional distances and label disagreement of all pairs of models.

    Args:
        land: whose loss and data. Between models with batch norm use bn="recompute" (the
            statistics are found anew at every point) or "interpolate"; with "eval" the models must
            share their statistics.
        models: P >= 2 points: modules, state dicts, directions or vectors (n,).
        points: on each line, ends included; at least 3.
        labels: P names for pictures; default 0 .. P - 1, as in the matrices.
        path: HDF5 file for the result; a run that was stopped goes on from what lies beside it.
        progress: show a bar on stderr.

    Raises:
        InvalidArgument: fewer than two models, models of another layout (which names differ),
            other running statistics where they stay.
        ResumeMismatch: `path` belongs to another call.

    Warns where two of the models are equal (their barrier is 0), and where bn="recompute" finds no
    batch norm.
    """
    check_landscape(land, "barriers")
    points = integer(points, "points", 3)
    if isinstance(models, str | Mapping | nn.Module) or len(models) < 2:
        raise InvalidArgument("models: expected a sequence of at least two models")
    count = len(models)
    names = [str(i) for i in range(count)] if labels is None else list(map(str, labels))
    if len(names) != count:
        raise InvalidArgument(f"labels: expected {count}, got {len(names)}")
    vertices = torch.stack(
        [
            running_statistics.point(land, model, f"models[{i}]", needed=True)
            for i, model in enumerate(models)
        ]
    )
    equal = [
        (i, j) for i in range(count) for j in range(i) if torch.equal(vertices[i], vertices[j])
    ]
    notes = [f"models {names[j]} and {names[i]} are equal: their barrier is 0" for i, j in equal]
    notes += running_statistics.nothing_recomputed(land)
    for note in notes:
        warnings.warn(note, stacklevel=callers_level())
    alpha = np.linspace(0.0, 1.0, points)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    weights = _weights(alpha, pairs, count)
    base = torch.zeros_like(vertices[0])
    request = build(
        land, "barriers", path is not None, points=points, models=digest(vertices), labels=names
    )

    def run(journal: Journal | None) -> Barriers:
        started = time.perf_counter()
        found = evaluate_in_chunks(
            weights, ("loss",), lambda: land.prepare(vertices, theta=base), journal=journal,
            progress=progress, label="barriers", exact=land.device.type == "cpu",
            request=request,
        )  # fmt: skip
        values = _square(found[:, 0], pairs, count, points)
        for i, j in equal:  # one point: what differs is the rounding of its weights
            values[i, j] = values[j, i] = values[i, i]
        functional, disagreement = _functions(land, vertices)
        info = {"request": request, "notes": notes, "seconds": time.perf_counter() - started}
        return Barriers(alpha, values, functional, disagreement, names, info)

    if path is None:
        return run(None)
    total = len(weights)
    return answered(
        path,
        request,
        JOURNAL_SUFFIX,
        lambda beside: Journal(beside, request, ("loss",), total),
        run,
    )


def _weights(alpha: Array, pairs: list[tuple[int, int]], count: int) -> Array:
    """(P + pairs (q - 2), P): the models themselves, then the inner points of every line."""
    inner = alpha[1:-1]
    rows = [np.eye(count)]
    for i, j in pairs:
        line = np.zeros((len(inner), count))
        line[:, i], line[:, j] = 1.0 - inner, inner
        rows.append(line)
    return np.concatenate(rows)


def _square(found: Array, pairs: list[tuple[int, int]], count: int, points: int) -> Array:
    """(P, P, q) from what `_weights` asks for."""
    losses, inner = found[:count], found[count:].reshape(len(pairs), points - 2)
    values = np.repeat(losses[:, None, None], count, axis=1).repeat(points, axis=2)
    for (i, j), line in zip(pairs, inner, strict=True):
        whole = np.concatenate([losses[i : i + 1], line, losses[j : j + 1]])
        values[i, j], values[j, i] = whole, whole[::-1]
    return values


def _functions(land: Landscape, vertices: torch.Tensor) -> tuple[Array, Array]:
    """Functional distances and disagreement (P, P); NaN for an objective, which has no outputs."""
    kept = outputs_at(land, vertices)
    if kept is None:
        unknown = np.full((len(vertices), len(vertices)), np.nan)
        return unknown, unknown.copy()
    return compare_all(land, [outputs for outputs, _ in kept], kept[0][1])
