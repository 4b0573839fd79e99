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
from ..theta.layout import ParameterLayout
from ..theta.losses import metric_name
from ..theta.pieces import Row, Rows, digest_of, distance_of, dot_of, norm_of, row_of

if TYPE_CHECKING:
    from ..landscape import Landscape

BATCHNORM_NOTE = (
    "BatchNorm statistics were not recomputed between the solutions (bn='eval'): the loss between "
    "them can look far higher than it is; bn='recompute' recomputes them at every point"
)


NOISE_POINTS = 11  # whose scatter tells the rounding of a half-precision model
SLICES = ("line", "plane", "grid")  # kinds that have a centre; the others lie between solutions


@dataclass(frozen=True)
class GridQuestion:
    """L(base + C D) on a grid.

    Attributes:
        kind: of the result.
        axes: name -> (n,), one per dimension.
        coefficients: C (G, k), the grid in row-major order.
        base: (n,), with the running statistics after it where they move (running_statistics.py);
            a Row where it is not stored.
        vectors: D (k, n), likewise; Rows where directions are not stored.
        infos: one per vector, JSON-able.
        own_loss: gives the loss of the model at the base, by torch; None where none lies there.
    """

    kind: str
    axes: dict[str, Array]
    coefficients: Array
    base: torch.Tensor | Row
    vectors: torch.Tensor | Rows
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
        found.frame = _frame(land, asked)
    return found


class _RowsFrame(Frame):
    """The frame of a plane whose directions are not stored: they are made when it is asked."""

    def __init__(self, base: torch.Tensor | Row, rows: Rows, layout: ParameterLayout) -> None:
        self.__dict__.update(base=row_of(base), rows=rows, layout=layout)

    base: Row
    rows: Rows

    @property
    def theta(self) -> torch.Tensor:
        return self.base.whole()

    @property
    def directions(self) -> torch.Tensor:
        return self.rows.matrix()


def _frame(land: Landscape, asked: GridQuestion) -> Frame:
    if isinstance(asked.vectors, Rows):
        return _RowsFrame(asked.base, asked.vectors, land.layout)
    base = asked.base.whole() if isinstance(asked.base, Row) else asked.base
    return Frame(base[: land.n_params], asked.vectors[:, : land.n_params], land.layout)


def request_for(
    land: Landscape,
    kind: str,
    axes: Mapping[str, Array],
    metrics: Sequence[Metric],
    base: torch.Tensor | Row,
    vectors: torch.Tensor | Rows,
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
        theta=digest_of(base),
        directions=[
            {**info, "digest": digest_of(vector)}
            for info, vector in zip(infos, vectors, strict=True)
        ],
        **more,
    )


def _info(
    land: Landscape, asked: GridQuestion, request: dict[str, Any], losses: Array
) -> dict[str, Any]:
    base, vectors = asked.base, asked.vectors
    if isinstance(base, torch.Tensor) and isinstance(vectors, torch.Tensor):
        base, vectors = base[: land.n_params], vectors[:, : land.n_params]
    norms = [norm_of(v) for v in vectors]
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
    info |= _rounding_noise(land, asked, norms)
    negative = None
    if isinstance(asked.base, torch.Tensor) and isinstance(asked.vectors, torch.Tensor):
        negative = running_statistics.negative(land.moved, asked.base, asked.vectors)
    if negative is not None:
        info["negative_variance"] = int(negative(asked.coefficients).sum())
    if asked.kind not in SLICES:
        distances = _distances(vectors)
        if isinstance(asked.vectors, Rows):  # base is 0
            info["vertex_losses"] = _losses(land, asked, np.eye(len(asked.vectors)))
        else:
            info["vertex_losses"] = land.losses(points=asked.vectors)
        info["vertex_norms"] = norms
        info["vertex_distances"] = distances
        if asked.kind == "barycentric":
            info["vertex_positions"] = triangle_layout(distances)
        if land.has_batchnorm and land.bn == "eval":
            info["notes"].append(BATCHNORM_NOTE)
        return info
    centre = np.flatnonzero((asked.coefficients == 0.0).all(axis=1))
    if centre.size:
        info["center_loss"] = float(losses[centre[0]])
    elif isinstance(asked.base, torch.Tensor):
        info["center_loss"] = land.loss(asked.base)
    else:
        info["center_loss"] = float(_losses(land, asked, np.zeros((1, len(vectors))))[0])
    info["model_loss"] = None if asked.own_loss is None else asked.own_loss()
    info["direction_norms"] = norms
    info["direction_cosine"] = _cosine(vectors, norms)
    info["theta_norm"] = norm_of(base)
    return info


def _rounding_noise(land: Landscape, asked: GridQuestion, norms: list[float]) -> dict[str, Any]:
    """Of half-precision models, how far L scatters along the first direction by rounding alone.

    Points one spacing of the weights apart are rounded differently; what is left of their losses
    after a parabola is rounding (methods: differences below the spacing of the weights are noise).
    """
    half = land.half
    if half is None:
        return {}
    spacing = max(torch.finfo(e.dtype).eps for e in land.layout.entries)
    middle = asked.coefficients[len(asked.coefficients) // 2]
    along = np.zeros(len(norms))
    if asked.kind in SLICES:
        size, length = norm_of(asked.base), norms[0]
        middle, along[0] = np.zeros(len(norms)), 1.0
    else:
        size, length = norms[0], distance_of(row_of(asked.vectors[0]), row_of(asked.vectors[1]))
        along[:2] = -1.0, 1.0
    if not size * length > 0.0:
        return {}
    steps = np.arange(NOISE_POINTS) - NOISE_POINTS // 2
    found = _losses(land, asked, middle + np.outer(steps * spacing * size / length, along))
    if not np.isfinite(found).all():
        return {}
    left = found - np.polyval(np.polyfit(steps, found, 2), steps)
    return {
        "rounding_noise": float(np.sqrt(np.square(left).sum() / (NOISE_POINTS - 3))),
        "half": half,
    }


def _losses(land: Landscape, asked: GridQuestion, coefficients: Array) -> Array:
    return land.prepare(asked.vectors, theta=asked.base)(coefficients)["loss"]


def _distances(vectors: torch.Tensor | Rows) -> Array:
    """(v, v) ‖theta_i - theta_j‖, differences and sums in float64."""
    v = len(vectors)
    out = np.zeros((v, v))
    for i in range(v):
        for j in range(i):
            out[i, j] = out[j, i] = distance_of(row_of(vectors[i]), row_of(vectors[j]))
    return out


def _cosine(vectors: torch.Tensor | Rows, norms: list[float]) -> float | None:
    if len(norms) != 2 or not norms[0] * norms[1] > 0.0:
        return None
    return dot_of(row_of(vectors[0]), row_of(vectors[1])) / (norms[0] * norms[1])
