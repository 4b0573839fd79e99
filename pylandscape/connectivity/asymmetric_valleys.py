"""Asymmetric valleys: minima whose loss rises slowly to one side and fast to the other.

Source: H. He, G. Huang, Y. Yuan, "Asymmetric valleys: beyond sharp and flat local minima", NeurIPS
2019, definition 1 and section 3; an average of iterates (`swa`) lies on the flat side.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import check_landscape, integer
from ..arrays import Array, digest
from ..errors import InvalidArgument
from ..files.hdf5 import JOURNAL_SUFFIX
from ..results.asymmetry_profiles import Asymmetry
from ..runs.chunks import evaluate_in_chunks
from ..runs.journal import Journal
from ..runs.request import build
from ..runs.resume import answered
from ..theta import random_source, running_statistics
from ..theta.checkpoints import MODELS
from ..theta.directions import as_steps

if TYPE_CHECKING:
    from ..landscape import Landscape

RANDOM = "random"
_NOISE = 64  # eps of the loss: smaller differences are rounding


def asymmetry(
    land: Landscape,
    directions: Any,
    *,
    r: float | None = None,
    points: int = 40,
    zeta: float = 0.1,
    theta: Any = None,
    test: Landscape | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Asymmetry:
    """L to both sides of a point along directions of norm 1, and by how much one side is steeper.

    Between models with batch norm use bn="recompute", as He et al. do.

    Args:
        directions: one or several: a Direction or vector (n,); a module, a state dict or the path
            of a checkpoint, for the direction from theta to it; "random", a random direction. A
            pair (direction, "norm") is its part in the parameters of normalisation layers,
            (direction, "rest") that in all others, (direction, pattern) that of parameter names.
        r: how far to each side, in parameter space; default the norm of each direction, so that a
            direction to a model ends there.
        points: to each side.
        zeta: share of r nearer than which slopes do not count: at a smooth minimum they vanish.
        theta: the point; default the model's parameters.
        test: a landscape of other data, whose losses come along. Where ``land`` recomputes running
            statistics, make it with bn="interpolate": it gets those of land's data.
        labels: a name for each direction.
        seed: of random directions.
        path: HDF5 file for the result; a run that was stopped goes on from what lies beside it.
        progress: show a bar on stderr.

    Raises:
        InvalidArgument: no r for a random direction alone, a zero direction, no normalisation layer
            where one is asked for, r <= 0.
        ResumeMismatch: `path` belongs to another call.
    """
    check_landscape(land, "asymmetry")
    points, seed = integer(points, "points", 2), integer(seed, "seed", 0)
    if r is not None and not (_is_number(r) and 0.0 < r < np.inf):
        raise InvalidArgument(f"r: expected a positive number, got {r!r}")
    if not (_is_number(zeta) and 0.0 <= zeta < 1.0):
        raise InvalidArgument(f"zeta: expected a share from 0 to below 1, got {zeta!r}")
    home = land.at(theta)
    centre = home.point(theta)
    units, reach, names, targets = _lines(home, centre, directions, r, seed)
    if labels is not None:
        if len(labels) != len(names):
            raise InvalidArgument(f"labels: expected {len(names)}, got {len(labels)}")
        names = list(map(str, labels))
    share = np.linspace(-1.0, 1.0, 2 * points + 1)
    share[points] = 0.0
    if int((share[points:-1] >= zeta).sum()) == 0:
        raise InvalidArgument(f"zeta: expected room for a slope of {points} points, got {zeta}")
    rows = np.zeros((1 + len(names) * 2 * points, len(names)))  # theta itself once
    sides = np.concatenate([share[:points], share[points + 1 :]])
    for k, far in enumerate(reach):
        rows[1 + 2 * points * k : 1 + 2 * points * (k + 1), k] = far * sides
    if test is not None:
        test = _test_at(home, test, centre)
    request = build(
        home, "asymmetry", path is not None, theta=digest(centre), directions=digest(units),
        r=reach.tolist(), points=points, zeta=float(zeta), labels=names,
        test=None if test is None else build(test, "asymmetry", path is not None),
    )  # fmt: skip

    def run(journal: Journal | None) -> Asymmetry:
        started = time.perf_counter()
        found = evaluate_in_chunks(
            rows, ("loss",), lambda: home.prepare(units.to(home.origin), theta=centre),
            journal=journal, progress=progress, label="asymmetry",
            exact=home.device.type == "cpu", request=request,
        )[:, 0]  # fmt: skip
        values = _profiles(found, len(names), points)
        other = None
        if test is not None:
            other = _profiles(_elsewhere(home, test, centre, units, rows), len(names), points)
        eps = torch.finfo(home.dtype).eps
        finite = values[np.isfinite(values)]
        rounding = float(_NOISE * eps * np.abs(finite).max()) if finite.size else 0.0
        info = {"request": request, "seconds": time.perf_counter() - started}
        marks = {names[k]: (k, s) for k, s in targets if s <= reach[k] * (1 + 1e-12)}
        return Asymmetry(share, reach, values, names, float(zeta), rounding, other, marks, info)

    if path is None:
        return run(None)

    def record(beside: Path | None) -> Journal:
        return Journal(beside, request, ("loss",), len(rows))

    return answered(path, request, JOURNAL_SUFFIX, record, run)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(
    land: Landscape, centre: Tensor, directions: Any, r: float | None, seed: int
) -> tuple[Tensor, Array, list[str], list[tuple[int, float]]]:
    """Directions of norm 1 (k, n + m), how far each is followed, their names, and the models that
    they lead to: (direction, distance)."""
    items = directions
    flat = isinstance(items, Tensor | np.ndarray) and items.ndim < 2
    if flat or isinstance(items, MODELS) or hasattr(items, "vector") or _is_pair(items):
        items = [items]
    if len(items) == 0:
        raise InvalidArgument("directions: expected at least one, got none")
    n = land.n_params
    rows, norms, names = [], [], []
    targets: list[tuple[int, float]] = []
    for k, item in enumerate(items):
        own = "directions" if len(items) == 1 else f"directions[{k}]"
        what, part = item if _is_pair(item) else (item, None)
        step, name = _step(land, centre, what, own, seed, k)
        if part is not None:
            step = step * _mask(land, part, own)
        size = float(torch.linalg.vector_norm(step[:n], dtype=torch.float64))
        if not 0.0 < size < np.inf:
            raise InvalidArgument(f"{own}: expected a direction with a norm above 0, got {size}")
        if r is None and isinstance(what, str) and what == RANDOM:
            raise InvalidArgument(
                f"r: expected how far to go along {own}='random', a positive number: a random "
                "direction leads to no model whose distance it could be, got None"
            )
        rows.append(step.double() / size)
        norms.append(size)
        names.append(name if part is None else f"{name}, {part}")
        if isinstance(what, MODELS) and what != RANDOM and part is None:
            targets.append((k, size))
    reach = np.array(norms if r is None else [float(r)] * len(norms))
    twice = {name for name in names if names.count(name) > 1}
    names = [f"{name} {k + 1}" if name in twice else name for k, name in enumerate(names)]
    return torch.stack(rows), reach, names, targets


def _is_pair(item: Any) -> bool:
    """Whether it is a direction with the part of it that is asked for."""
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[1], str)
        and (item[1] in ("norm", "rest") or any(c in item[1] for c in "*?[."))
    )


def _step(
    land: Landscape, centre: Tensor, what: Any, own: str, seed: int, k: int
) -> tuple[Tensor, str]:
    """A direction (n + m,) of any length, and a name for it."""
    if isinstance(what, str) and what == RANDOM:
        raw = torch.zeros_like(centre)
        random_source.fill(raw[: land.n_params], seed, random_source.PROFILES, k)
        return raw, RANDOM
    if isinstance(what, str) and not os.path.exists(what):
        raise InvalidArgument(
            f"{own}: expected 'random', the path of a checkpoint, a Direction, a vector or a "
            f"model, got {what!r}, which is no file"
        )
    if isinstance(what, MODELS):
        return running_statistics.point(land, what, own, needed=True) - centre, "model"
    vectors, infos = as_steps(land, what, own)
    return vectors[0], str(infos[0].get("kind", "given"))


def _mask(land: Landscape, part: str, own: str) -> Tensor:
    """(n + m,) 1 where the part is, else 0; statistics stay where they are."""
    mask = torch.zeros_like(land.origin)
    for entry in land.layout.entries:
        chosen = {"norm": entry.kind == "norm", "rest": entry.kind != "norm"}.get(
            part, fnmatchcase(entry.name, part)
        )
        if chosen:
            mask[entry.offset : entry.offset + entry.numel] = 1.0
    if not bool(mask.any()):
        what = "a normalisation layer" if part in ("norm", "rest") else "parameters of that name"
        raise InvalidArgument(f"{own}: expected a model with {what} for {part!r}, got none")
    return mask


def _profiles(found: Array, count: int, points: int) -> Array:
    """(k, 2 points + 1) of the losses at theta and at all other places."""
    lines = found[1:].reshape(count, 2 * points)
    middle = np.full((count, 1), found[0])
    return np.concatenate([lines[:, :points], middle, lines[:, points:]], axis=1)


def _test_at(land: Landscape, test: Landscape, centre: Tensor) -> Landscape:
    """The landscape of the other data, with the buffers of the point."""
    check_landscape(test, "asymmetry")
    if test.layout.digest != land.layout.digest:
        raise InvalidArgument("test: expected a landscape of the same model, got another layout")
    wanted = "interpolate" if _recomputes(land) else land.bn
    if test.bn != wanted and test.has_batchnorm:
        why = ", which takes the running statistics of land's data" if _recomputes(land) else ""
        raise InvalidArgument(f"test: expected bn={wanted!r}{why}, got bn={test.bn!r}")
    model = land.model
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return test.at({**own, **land.moved.unflatten(centre)})


def _recomputes(land: Landscape) -> bool:
    return land.bn == "recompute" and land.has_batchnorm


def _elsewhere(
    land: Landscape, test: Landscape, centre: Tensor, units: Tensor, rows: Array
) -> Array:
    """The losses of the other data at the same places."""
    if not _recomputes(land):
        return test.prepare(units.to(test.origin), theta=centre.to(test.origin))(rows)["loss"]
    found = np.empty(len(rows))
    for i, row in enumerate(rows):
        point = (centre.double() + torch.from_numpy(row).to(units) @ units).to(centre)
        named = {**land.layout.unflatten(point), **land.eager.recomputed(point)}
        at = test.moved.flatten(named, test.dtype, test.device)
        found[i] = test.losses(points=at[None])[0]
    return found
