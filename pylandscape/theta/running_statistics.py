"""Running statistics that move with the parameters: ``Landscape(bn="interpolate")``.

A point is then (theta, s): the n parameters, followed by the m elements of the running means and
variances of the batch-norm layers, in the order of ``Landscape.moved``. Where nothing but theta
moves, m = 0 and a point is theta. Between two models every element of s is on the straight line
between theirs, as with loss-landscape's ``--dir_type states`` (Li et al. 2018). Random directions
leave s where it is, as theirs do with ``ignore=biasbn``; without it, theirs move every tensor of
one dimension, statistics too, along itself, which we do not copy.

With the other modes the statistics are no part of a point. A module or state dict with others than
the landscape's is then a point of another landscape (`Landscape.at`), and neither a direction nor
a vertex, as there would be no place for its statistics between the models.

Beyond the models a variance can become negative. With epsilon added some of these would still give
a number, so every metric is NaN wherever one is negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidArgument, LayoutMismatch
from .checkpoints import MODELS, fitted, tensors_of
from .layout import ParameterEntry, ParameterLayout

if TYPE_CHECKING:
    from .space import Problem, Space

KIND = "statistic"
_BUFFERS = ("running_mean", "running_var")


def with_statistics(
    layout: ParameterLayout,
    model: nn.Module,
    params: Sequence[str] | None = None,
    types: type = nn.modules.batchnorm._NormBase,
) -> ParameterLayout:
    """The layout, followed by the running means and variances whose names ``params`` match.

    ``types``: of the layers that have them.
    """
    patterns = (params,) if isinstance(params, str) else params
    entries, aliases = list(layout.entries), dict(layout.aliases)
    first_name: dict[int, str] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, types):
            continue
        for short in _BUFFERS:
            name, buffer = f"{prefix}.{short}".lstrip("."), getattr(module, short)
            if buffer is None:
                continue
            if id(buffer) in first_name:
                aliases[name] = first_name[id(buffer)]
            elif patterns is None or any(fnmatchcase(name, p) for p in patterns):
                first_name[id(buffer)] = aliases[name] = name
                offset = entries[-1].offset + entries[-1].numel
                shape = tuple(buffer.shape)
                entry = ParameterEntry(name, shape, offset, buffer.numel(), buffer.dtype, KIND)
                entries.append(entry)
    return ParameterLayout(tuple(entries), aliases) if first_name else layout


def point(land: Space, value: Any, name: str, *, needed: bool = False) -> Tensor:
    """(n + m,) of a solution: a module, a state dict, a vector (n + m,) or (n,).

    A vector (n,) says nothing of statistics: they are the model's own, or, where they are
    ``needed``, InvalidArgument is raised; as for a module or state dict with other buffers.
    """
    check_buffers(land, value, name)
    vector, statistics = _parts(land, value, name)
    if statistics is None and needed:
        raise InvalidArgument(
            f"{name}: expected a module or a state dict, whose running statistics "
            f"bn='interpolate' moves, got parameters alone ({type(value).__name__})"
        )
    return torch.cat([vector, land.origin[land.n_params :] if statistics is None else statistics])


def check_buffers(land: Space, value: Any, name: str) -> None:
    """Raises InvalidArgument for a module or state dict with other buffers, which are no point."""
    buffers = foreign_buffers(land, value, name)
    if buffers:
        raise InvalidArgument(_no_place(land, sorted(buffers), name))


def step(land: Space, value: Any, name: str) -> Tensor:
    """(n + m,) of a direction; one without statistics leaves them where they are.

    Raises InvalidArgument for a direction to another model without its statistics, and for a
    module or state dict, which is a place.
    """
    check_direction(value, name)
    vector, statistics = _parts(land, value, name)
    m = land.moved.n - land.n_params
    if statistics is None:
        if m and getattr(value, "info", {}).get("kind") == "target":
            raise InvalidArgument(
                f"{name}: expected a direction that moves the running statistics too, as "
                "bn='interpolate' needs towards another model, got one of the parameters alone; "
                "make it with target_direction() of this landscape"
            )
        statistics = vector.new_zeros(m)
    return torch.cat([vector, statistics]) if m else vector


def check_direction(value: Any, name: str) -> None:
    """Raises InvalidArgument for a module, a state dict or a checkpoint's path."""
    if isinstance(value, MODELS):
        raise InvalidArgument(
            f"{name}: expected a Direction, a tensor or an array (n,), got "
            f"{type(value).__name__}, which is a place and no direction; "
            "target_direction(land, model) is the direction from the landscape's model to it"
        )


def parameters(land: Space, value: Any, name: str) -> Tensor:
    """The parameters (n,) of anything that `point` takes, whatever its statistics."""
    return _parts(land, value, name)[0]


def foreign_buffers(land: Space, value: Any, name: str) -> dict[str, Tensor]:
    """The buffers of a module or state dict that are not the landscape's, by the model's names.

    Without those that points have (bn="interpolate") or that the batches decide ("recompute",
    "batch"), and counters of batches.

    Raises:
        LayoutMismatch: of another shape, or running statistics are missing.
        InvalidArgument: a parameter outside theta (params=) is another.
    """
    value = tensors_of(value, name)
    if not isinstance(value, Mapping):
        return {}
    value = fitted(value, land.layout.aliases)
    model = land.model
    norms = {p: m for p, m in model.named_modules(remove_duplicate=False)
             if isinstance(m, nn.modules.batchnorm._NormBase)}  # fmt: skip
    found_anew: tuple[type, ...] = ()
    if land.bn in ("recompute", "batch"):
        found_anew = (nn.modules.batchnorm._BatchNorm,)
    statistics = {f"{p}.{short}".lstrip("."): isinstance(m, found_anew)
                  for p, m in norms.items() for short in _BUFFERS}  # fmt: skip
    skipped = {f"{p}.num_batches_tracked".lstrip(".") for p in norms} | {
        key for key, anew in statistics.items() if anew
    }
    foreign: dict[str, Tensor] = {}
    for key, own in model.named_buffers():
        if key in skipped or key in land.moved.aliases:
            continue
        if key in value:
            other = _like(own, value[key], key, name)
            if not _equal(own, other):
                foreign[key] = other
        elif key in statistics:
            raise LayoutMismatch(
                f"{name}: expected the running statistics {key!r}, which bn={land.bn!r} needs of a "
                "model, but they are missing; pass the module, its state_dict(), or a vector (n,) "
                "for the landscape's own statistics"
            )
    for key, own in model.named_parameters():
        outside = key not in land.moved.aliases and key in value
        if outside and not _equal(own, _like(own, value[key], key, name)):
            raise InvalidArgument(
                f"{name}: expected the landscape's own values of the parameters outside theta "
                f"(params=), but {key!r} differs; pass a vector (n,) of theta alone, or make a "
                "landscape of that model"
            )
    return foreign


def nothing_recomputed(land: Problem) -> list[str]:
    """A sentence where bn="recompute" was asked for and the model has no batch norm; else none."""
    if land.bn != "recompute" or land.has_batchnorm:
        return []
    return ["bn='recompute' was asked for, but the model has no batch norm: nothing is recomputed"]


def _like(own: Tensor, other: Any, key: str, name: str) -> Tensor:
    found = torch.as_tensor(other).detach().to(own)
    if found.shape != own.shape:
        raise LayoutMismatch(
            f"{name}: expected shape {tuple(own.shape)} for {key!r}, got {tuple(found.shape)}"
        )
    return found


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _no_place(land: Space, buffers: Sequence[str], name: str) -> str:
    """Why a model with other buffers is neither a vertex nor a target."""
    shown = ", ".join(map(repr, buffers[:2])) + (", ..." if len(buffers) > 2 else "")
    if all(key.rpartition(".")[2] in _BUFFERS for key in buffers):
        return (
            f"{name}: expected the running statistics of the landscape's model, which "
            f"bn={land.bn!r} keeps at every point, but {shown} differ; bn='interpolate' moves them "
            "along from model to model, bn='recompute' finds them anew at every point"
        )
    return (
        f"{name}: expected the buffers of the landscape's model, which points do not move, but "
        f"{shown} differ; land.at(model) is the landscape with that model's buffers"
    )


def kept(layout: ParameterLayout, ignore: Sequence[str]) -> Tensor:
    """(m,) bool: the statistics that ``ignore`` of directions.py, "norm" among it, lets move."""
    found = [
        torch.full((e.numel,), not any(p == "norm" or fnmatchcase(e.name, p) for p in ignore))
        for e in layout.entries
        if e.kind == KIND
    ]
    return torch.cat([torch.empty(0, dtype=torch.bool), *found])


def negative(
    layout: ParameterLayout, base: Tensor, vectors: Tensor
) -> Callable[[np.ndarray], np.ndarray] | None:
    """C (g, k) -> (g,) bool: where base + C D has a negative variance; None if nothing moves one.

    base (n + m,), vectors (k, n + m).
    """
    spans = [(e.offset, e.offset + e.numel) for e in layout.entries if is_variance(e)]
    if not spans:
        return None
    a = torch.cat([base[i:j] for i, j in spans]).double().cpu().numpy()
    d = torch.cat([vectors[:, i:j] for i, j in spans], dim=1).double().cpu().numpy()

    def at(coefficients: np.ndarray) -> np.ndarray:
        c = np.asarray(coefficients, dtype=np.float64)
        found = np.empty(len(c), dtype=bool)
        for i, row in enumerate(c):
            found[i] = (a + row @ d < 0.0).any()
        return found

    return at


def negative_points(layout: ParameterLayout, points: Tensor) -> np.ndarray:
    """(p,) bool: the points (p, n + m) with a negative variance."""
    found = np.zeros(len(points), dtype=bool)
    for e in layout.entries:
        if is_variance(e):
            found |= (points[:, e.offset : e.offset + e.numel] < 0).any(dim=1).cpu().numpy()
    return found


def without_negative(layout: ParameterLayout, at: Tensor) -> Tensor:
    """The point (n + m,) with NaN for negative variances: with epsilon they might pass for small
    ones."""
    for e in layout.entries:
        part = slice(e.offset, e.offset + e.numel)
        if is_variance(e) and bool((at[part] < 0).any()):
            at = at.clone()
            at[part] = torch.where(at[part] < 0, torch.nan, at[part])
    return at


def without(
    bad: np.ndarray, names: Sequence[str], ask: Callable[[np.ndarray], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """{name: (g,)} of ``ask`` at the good points (a mask), NaN at the bad ones."""
    if not bad.any():
        return ask(~bad)
    values = {name: np.full(len(bad), np.nan) for name in names}
    if not bad.all():
        for name, found in ask(~bad).items():
            values[name][~bad] = found
    return values


def is_variance(entry: ParameterEntry) -> bool:
    return entry.kind == KIND and entry.name.endswith("running_var")


def _parts(land: Space, value: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Parameters (n,), and statistics (m,) if ``value`` has them; m may be 0."""
    dtype, device, n = land.theta.dtype, land.theta.device, land.n_params
    layout, m = land.moved, land.moved.n - land.n_params
    statistics = getattr(value, "statistics", None)
    if m == 0:
        vector = land.layout.vector(value, name, dtype, device)
        return vector, vector.new_empty(0)
    value = tensors_of(value, name)
    whole = isinstance(value, Tensor | np.ndarray) and tuple(value.shape) == (layout.n,)
    if whole or isinstance(value, Mapping):
        vector = layout.vector(value, name, dtype, device)
        return vector[:n], vector[n:]
    vector = land.layout.vector(value, name, dtype, device)
    if statistics is None:
        return vector, None
    if tuple(statistics.shape) != (m,):
        raise LayoutMismatch(
            f"{name}: expected ({m},) running statistics, got {tuple(statistics.shape)}"
        )
    return vector, statistics.detach().to(vector)
