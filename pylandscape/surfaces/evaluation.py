"""From a grid to a result: evaluate, resume or load, and say where the numbers come from.

The way goes on in runs/chunks.py, which hands chunks of coefficients to the function that
`Landscape.prepare` gives; with a path, in runs/resume.py and runs/journal.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..arrays import Array, digest, jsonable
from ..files.hdf5 import JOURNAL_SUFFIX as SUFFIX
from ..results.curve import Curve
from ..results.grid_values import Grid
from ..results.surface import Frame, Surface, triangle_layout
from ..runs.chunks import Evaluate, evaluate_in_chunks
from ..runs.journal import Journal
from ..runs.request import FORMAT, Metric, build, with_loss
from ..runs.resume import answered
from ..theta import running_statistics
from ..theta.identity import of_metric
from ..theta.losses import metric_name

if TYPE_CHECKING:
    from ..landscape import Landscape

BATCHNORM_NOTE = (
    "BatchNorm statistics were not recomputed between the solutions (bn='eval'): the loss between "
    "them can look far higher than it is; bn='recompute' recomputes them at every point"
)


SLICES = ("line", "plane", "grid")  # kinds that have a centre; the others lie between solutions


@dataclass(frozen=True)
class GridQuestion:
    """L(base + C D) on a grid.

    Attributes:
        kind: of the result.
        axes: name -> (n,), one per dimension.
        coefficients: C (G, k), the grid in row-major order.
        base: (n,), with the running statistics after it where they move (running_statistics.py).
        vectors: D (k, n), likewise.
        infos: one per vector, JSON-able.
        own_loss: gives the loss of the model at the base, by torch; None where none lies there.
    """

    kind: str
    axes: dict[str, Array]
    coefficients: Array
    base: torch.Tensor
    vectors: torch.Tensor
    infos: Sequence[Mapping[str, Any]]
    own_loss: Callable[[], float] | None


@dataclass(frozen=True)
class Measure:
    """What is asked of every point, where it is more than the landscape's own metrics.

    Attributes:
        prepare: gives the function from coefficients (g, k) to {metric: (g,)}, the loss among them.
        request: what determines its numbers, JSON-able.
        summary: what `info` gets of {metric: (G,)}, JSON-able.
    """

    prepare: Callable[[], Evaluate]
    request: Mapping[str, Any]
    summary: Callable[[dict[str, Array]], dict[str, Any]]


def evaluate_grid(
    land: Landscape,
    asked: GridQuestion,
    metrics: str | Metric | Sequence[Metric],
    path: str | os.PathLike[str] | None,
    progress: bool,
    measure: Measure | None = None,
) -> Curve | Surface | Grid:
    """Evaluate, or resume, or load; with a path, the result is in that file at the end.

    Args:
        measure: gives the metrics, instead of the landscape.

    Raises: as `grids.line`.
    """
    chosen, names = with_loss(metrics)
    more = {} if measure is None else measure.request
    request = request_for(
        land, asked.kind, asked.axes, chosen, asked.base, asked.vectors, asked.infos, **more
    )
    total = len(asked.coefficients)

    def prepare() -> Evaluate:
        if measure is not None:
            return measure.prepare()
        between = asked.kind not in SLICES
        return land.prepare(asked.vectors, metrics=chosen, theta=asked.base, between=between)

    def run(journal: Journal | None) -> Curve | Surface | Grid:
        started = time.perf_counter()
        resumed = 0 if journal is None else int(journal.done.sum())
        values = evaluate_in_chunks(
            asked.coefficients,
            names,
            prepare,
            journal=journal,
            progress=progress,
            label=asked.kind,
            exact=land.device.type == "cpu",
            guess=land.point_seconds,
            request=request,
        )
        seconds = time.perf_counter() - started
        axes = list(asked.axes.values())
        shape = tuple(axis.size for axis in axes)
        info = _info(land, asked, request, values[:, 0])
        info["nonfinite"] = int((~np.isfinite(values)).any(axis=1).sum())
        info |= {"seconds": seconds, "resumed": resumed}
        if measure is not None:
            info |= measure.summary(dict(zip(names, values.T, strict=True)))
        more: dict[str, Any] = {
            "metrics": {name: values[:, i].reshape(shape) for i, name in enumerate(names)},
            "info": jsonable(info, "info"),
            "kind": asked.kind,
        }
        if asked.kind == "grid":
            return Grid(axes, **more)
        return Curve(axes[0], **more) if len(axes) == 1 else Surface(axes[0], axes[1], **more)

    if path is None:
        found = run(None)
    else:
        found = answered(path, request, SUFFIX, lambda at: Journal(at, request, names, total), run)
    if isinstance(found, Surface) and asked.kind == "plane":
        base, vectors = asked.base[: land.n_params], asked.vectors[:, : land.n_params]
        found.frame = Frame(base, vectors, land.layout)
    return found


def request_for(
    land: Landscape,
    kind: str,
    axes: Mapping[str, Array],
    metrics: Sequence[Metric],
    base: torch.Tensor,
    vectors: torch.Tensor,
    infos: Sequence[Mapping[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    """The request for metrics at base + C D on the given axes; D: vectors (k, n), one info each."""
    return build(
        land,
        kind,
        axes={
            name: {"min": axis[0], "max": axis[-1], "n": axis.size, "digest": digest(axis)}
            for name, axis in axes.items()
        },
        metrics=[of_metric(land, metric, metric_name(metric)) for metric in metrics],
        theta=digest(base),
        directions=[
            {**info, "digest": digest(vector)} for info, vector in zip(infos, vectors, strict=True)
        ],
        **more,
    )


def _info(
    land: Landscape, asked: GridQuestion, request: dict[str, Any], losses: Array
) -> dict[str, Any]:
    vectors, base = asked.vectors[:, : land.n_params], asked.base[: land.n_params]
    norms = [float(torch.linalg.vector_norm(v, dtype=torch.float64)) for v in vectors]
    info: dict[str, Any] = {
        "format": FORMAT,
        "request": request,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": request["versions"],
        "engine": land.engine,
        "engine_reason": land.engine_report().reason,
        "computed": land.computed,
        "bn": land.bn,
        "has_batchnorm": land.has_batchnorm,
        "dtype": str(asked.base.dtype).removeprefix("torch."),
        "n_params": land.n_params,
        "samples": land.dataset.size,
        "notes": [],
    }
    if land.dataset.subset is not None:
        info["subset"] = asdict(land.dataset.subset)
    mismatch = land.slope_note()
    if mismatch is not None:
        info["slope_mismatch"] = mismatch
    negative = running_statistics.negative(land.moved, asked.base, asked.vectors)
    if negative is not None:
        info["negative_variance"] = int(negative(asked.coefficients).sum())
    if asked.kind not in SLICES:
        distances = _distances(vectors)
        info["vertex_losses"] = land.losses(points=asked.vectors)
        info["vertex_norms"] = norms
        info["vertex_distances"] = distances
        if asked.kind == "barycentric":
            info["vertex_positions"] = triangle_layout(distances)
        if land.has_batchnorm and land.bn == "eval":
            info["notes"].append(BATCHNORM_NOTE)
        return info
    centre = np.flatnonzero((asked.coefficients == 0.0).all(axis=1))
    info["center_loss"] = float(losses[centre[0]]) if centre.size else land.loss(asked.base)
    info["model_loss"] = None if asked.own_loss is None else asked.own_loss()
    info["direction_norms"] = norms
    info["direction_cosine"] = _cosine(vectors, norms)
    info["theta_norm"] = float(torch.linalg.vector_norm(base, dtype=torch.float64))
    return info


def _distances(vectors: torch.Tensor) -> Array:
    """(v, v) ‖theta_i - theta_j‖, differences and sums in float64."""
    v = len(vectors)
    out = np.zeros((v, v))
    for i in range(v):
        for j in range(i):
            out[i, j] = out[j, i] = float(
                torch.linalg.vector_norm(vectors[i].double() - vectors[j].double())
            )
    return out


def _cosine(vectors: torch.Tensor, norms: list[float]) -> float | None:
    if len(norms) != 2 or not norms[0] * norms[1] > 0.0:
        return None
    return float(torch.dot(vectors[0].double(), vectors[1].double())) / (norms[0] * norms[1])
