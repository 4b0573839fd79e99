"""Running statistics that move with the parameters: ``Landscape(bn="interpolate")``.

A point is then (theta, s): the n parameters, followed by the m elements of the running means and
variances of the batch-norm layers, in the order of ``Landscape.moved``. Where nothing but theta
moves, m = 0 and a point is theta. Between two models every element of s is on the straight line
between theirs, as with loss-landscape's ``--dir_type states`` (Li et al. 2018). Random directions
leave s where it is, as theirs do with ``ignore=biasbn``; without it, theirs move every tensor of
one dimension, statistics too, along itself, which we do not copy.

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

from .errors import InvalidArgument, LayoutMismatch
from .layout import ParameterEntry, ParameterLayout

if TYPE_CHECKING:
    from .landscape import Landscape

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


def point(land: Landscape, value: Any, name: str, *, needed: bool = False) -> Tensor:
    """(n + m,) of a solution: a module, a state dict, a vector (n + m,) or (n,).

    A vector (n,) says nothing of statistics: they are the model's own, or, where they are
    ``needed``, InvalidArgument is raised.
    """
    vector, statistics = _parts(land, value, name)
    if statistics is None and needed:
        raise InvalidArgument(
            f"{name}: expected a module or a state dict, whose running statistics "
            f"bn='interpolate' moves, got parameters alone ({type(value).__name__})"
        )
    return torch.cat([vector, land.origin[land.n_params :] if statistics is None else statistics])


def step(land: Landscape, value: Any, name: str) -> Tensor:
    """(n + m,) of a direction; one without statistics leaves them where they are.

    Raises InvalidArgument for a direction to another model without its statistics.
    """
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
    return torch.cat([vector, statistics])


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


def _parts(land: Landscape, value: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Parameters (n,), and statistics (m,) if ``value`` has them; m may be 0."""
    dtype, device, n = land.theta.dtype, land.theta.device, land.n_params
    layout, m = land.moved, land.moved.n - land.n_params
    statistics = getattr(value, "statistics", None)
    if m == 0:
        vector = land.layout.vector(value, name, dtype, device)
        return vector, vector.new_empty(0)
    if isinstance(value, nn.Module):
        value = {
            **dict(value.named_parameters(remove_duplicate=False)),
            **dict(value.named_buffers(remove_duplicate=False)),
        }
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
