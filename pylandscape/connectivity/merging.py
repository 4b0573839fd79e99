"""The plane through a model and two that were fine-tuned from it, in task-vector coordinates.

Task vectors: Ilharco et al. 2023 ("Editing models with task arithmetic"); soups: Wortsman et al.
2022 ("Model soups: averaging weights of multiple fine-tuned models").
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..arguments import callers_level, check_landscape
from ..errors import InvalidArgument
from ..ranks import owns_files
from ..results.surface import Surface
from ..surfaces.grids import Axis, plane
from ..theta import running_statistics

if TYPE_CHECKING:
    from ..landscape import Landscape

MERGES = {"soup": (0.5, 0.5), "average of all": (1 / 3, 1 / 3), "sum": (1.0, 1.0)}


def merge_plane(
    land: Landscape,
    models: Sequence[Any],
    *,
    x: Axis = (-0.25, 1.25, 31),
    y: Axis = (-0.25, 1.25, 31),
    merges: Mapping[str, tuple[float, float]] = MERGES,
    metrics: Any = ("loss",),
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Surface:
    """L(base + x (a - base) + y (b - base)): base at (0, 0), a at (1, 0), b at (0, 1).

    Args:
        models: base, a and b: modules, state dicts, checkpoints or vectors (n,).
        x, y: (min, max, n) or increasing arrays: how much of each task vector is added.
        merges: {name: (x, y)} to mark; default the soup (a + b) / 2, the average of all three, and
            the sum of both task vectors. `info["merges"]` has the loss at each.
        The others are those of `plane`.

    Raises:
        InvalidArgument: other than three models, models of another layout, a and base or b and
            base equal, a merge that is not two numbers.
    """
    check_landscape(land, "merge_plane")
    if isinstance(models, str | Mapping | nn.Module) or len(models) != 3:
        raise InvalidArgument("models: expected a sequence of three: the base, a and b")
    base, a, b = (
        running_statistics.point(land, model, f"models[{i}]", needed=True)
        for i, model in enumerate(models)
    )
    for name, other in (("a", a), ("b", b)):
        if torch.equal(base, other):
            raise InvalidArgument(f"models: expected {name} to differ from the base, got it equal")
    for note in running_statistics.nothing_recomputed(land):
        warnings.warn(note, stacklevel=callers_level())
    places = {}
    for name, place in merges.items():
        pair = np.asarray(place, dtype=np.float64)
        if pair.shape != (2,) or not np.isfinite(pair).all():
            raise InvalidArgument(f"merges[{name!r}]: expected two numbers, got {place!r}")
        places[str(name)] = pair.tolist()
    surface = plane(
        land, a - base, b - base, x, y, theta=base, metrics=metrics, path=path, progress=progress
    )
    corners = {"base": [0.0, 0.0], "a": [1.0, 0.0], "b": [0.0, 1.0]}
    marks = corners | places
    rows = np.array(list(marks.values()))
    weights = np.column_stack([1.0 - rows.sum(axis=1), rows])  # exact at the models themselves
    losses = land.prepare(torch.stack([base, a, b]), theta=torch.zeros_like(base))(weights)["loss"]
    surface.info["marks"] = {"names": list(marks), "points": rows.tolist()}
    surface.info["merges"] = dict(zip(marks, losses.tolist(), strict=True))
    surface.info["axis_labels"] = ["x: share of a - base", "y: share of b - base"]
    if path is not None and owns_files():
        surface.save(path)
    return surface
