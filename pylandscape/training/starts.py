"""Where runs begin: points of any form, or initialisations drawn from a seed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..engines.eager_switches import LOCK
from ..errors import InvalidArgument, LayoutMismatch
from ..theta.checkpoints import tensors_of
from ..theta.data import untouched_random_state
from ..theta.layout import ParameterLayout
from ..theta.running_statistics import foreign_buffers
from ..theta.snapshot import Snapshot
from ..trajectories.base import Trajectory

if TYPE_CHECKING:
    from ..landscape import Landscape


def points_of(
    land: Landscape, starts: Any, layout: ParameterLayout, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """theta (P, n) and running statistics (P, m), of the landscape's dtype, new.

    Args:
        starts: as in `train`.
        layout: parameters, then statistics.
        seeds: of the runs, where ``starts`` is their number.

    Raises:
        InvalidArgument, LayoutMismatch: they name which start.
    """
    n = land.n_params
    if isinstance(starts, int):
        rows = [_drawn(land, layout, seed) for seed in seeds]
    else:
        items = _items(starts)
        rows = [_row(land, layout, item, f"starts[{p}]") for p, item in enumerate(items)]
    whole = torch.stack(rows)
    return whole[:, :n].clone(), whole[:, n:].clone()


def count_of(starts: Any) -> int:
    """P. Raises InvalidArgument for none."""
    if isinstance(starts, bool) or starts is None:
        raise InvalidArgument(f"starts: expected points or how many, got {starts!r}")
    count = starts if isinstance(starts, int) else len(_items(starts))
    if count < 1:
        raise InvalidArgument(f"starts: expected at least one, got {count}")
    return count


def _items(starts: Any) -> Sequence[Any]:
    """One item for each run."""
    if isinstance(starts, nn.Module | Mapping | str | os.PathLike | Trajectory):
        return [starts]
    if isinstance(starts, Tensor | np.ndarray):
        if starts.ndim == 1 and starts.dtype != object:
            return [starts]
        if starts.ndim != 2:
            raise InvalidArgument(f"starts: expected shape (P, n), got {tuple(starts.shape)}")
        return list(starts)
    if isinstance(starts, Sequence):
        return starts
    raise InvalidArgument(
        "starts: expected an array (P, n), modules, state dicts, checkpoints, runs, or how many, "
        f"got {type(starts).__name__}"
    )


def _row(land: Landscape, layout: ParameterLayout, value: Any, name: str) -> Tensor:
    """(n + m,)."""
    if isinstance(value, Trajectory):
        if value.layout.digest != land.layout.digest:
            raise LayoutMismatch(f"{name}: expected a run of this landscape's parameters")
        value = value[-1]
    value = tensors_of(value, name)
    if isinstance(value, Mapping):
        others = [k for k in foreign_buffers(land, value, name) if k not in layout.aliases]
        if others:
            raise InvalidArgument(
                f"{name}: expected the landscape's own buffers but for running statistics, got "
                f"another {others[0]!r}; train it on a landscape of that model"
            )
        return layout.vector(value, name, land.dtype, land.device)
    if getattr(value, "ndim", 0) == 1 and len(value) == layout.n > land.n_params:
        return layout.vector(value, name, land.dtype, land.device)
    theta = land.layout.vector(value, name, land.dtype, land.device)
    return torch.cat([theta, _own(land.model, layout, land)[land.n_params :]])


def _own(model: nn.Module, layout: ParameterLayout, land: Landscape) -> Tensor:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return layout.flatten(named, land.dtype, land.device)


def _drawn(land: Landscape, layout: ParameterLayout, seed: int) -> Tensor:
    """The landscape's model as its modules' own ``reset_parameters`` initialise it from the seed.

    Torch's generators are left as they were.
    """
    with LOCK, untouched_random_state(land.device), torch.inference_mode(False):
        model = Snapshot(land.model).model
        wanted = {id(p) for k, p in model.named_parameters() if k in land.layout.aliases}
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, module in model.named_modules():
                reset = getattr(module, "reset_parameters", None)
                reset = reset or getattr(module, "_reset_parameters", None)
                own = any(id(p) in wanted for p in module.parameters(recurse=False))
                if own and (reset is None or parametrize.is_parametrized(module)):
                    raise InvalidArgument(
                        f"starts: module {name or 'model'!r} ({type(module).__name__}) has no "
                        "reset_parameters() that draws its parameters anew; pass modules or points "
                        "instead of how many"
                    )
                if reset is not None and not parametrize.is_parametrized(module):
                    reset()
        return _own(model, layout, land)
