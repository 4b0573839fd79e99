"""The average of a run's last points (stochastic weight averaging; Izmailov et al. 2018, "Averaging
weights leads to wider optima and better generalization")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import check_landscape
from ..arrays import all_finite
from ..errors import InvalidArgument
from .base import Trajectory
from .reading import trajectory

if TYPE_CHECKING:
    from ..landscape import Landscape


def swa(
    source: Any, land: Landscape | None = None, *, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The state dict of the average of a trajectory's points, batch norm recomputed.

    Parameters are averaged in float64; running statistics are found anew over the landscape's data
    at the average, as torch.optim.swa_utils.update_bn does (an average of statistics would be those
    of no model). What else the model holds is the landscape's model's.

    Args:
        source: a Trajectory (``run[100:]`` leaves out its beginning), or what `trajectory` reads:
            a recording, a pattern, a folder, a sequence of checkpoints, modules, state dicts or
            vectors (n,).
        land: whose model and training data; may be left out for models without running statistics.
        weights: (T,) not negative, of the points; default all equal.

    Returns:
        A state dict, which ``model.load_state_dict`` and every ``theta=`` take.

    Raises:
        InvalidArgument: running statistics and no landscape, weights that are no weights, a run of
            another model.
    """
    if land is not None:
        check_landscape(land, "swa")
    run = trajectory(source, land)
    if land is not None and run.layout.digest != land.layout.digest:
        raise InvalidArgument("source: expected points of the landscape's parameters, got others")
    shares = _shares(weights, len(run))
    mean = torch.empty(run.n, dtype=torch.float64)
    for first, last, block in run.blocks(reuse=True):
        mean[first:last] = torch.from_numpy(_average(block, shares))
    if not all_finite(mean):
        raise InvalidArgument("source: expected finite points, got NaN or infinite numbers")
    if land is None:
        return _bare(run, mean)
    point = torch.cat([mean.to(land.origin), land.origin[land.n_params :]])
    state = {name: t.detach().clone() for name, t in land.model.state_dict().items()}
    for name, value in _named(run, point[: run.n]).items():
        state[name] = value.to(state[name]) if name in state else value
    return state | land.eager.recomputed(point)


def _average(block: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(columns,): about the first point, so that equal points give their very numbers."""
    found: np.ndarray = block[0] + shares @ (block - block[0])
    return found


def _shares(weights: Sequence[float] | None, count: int) -> np.ndarray:
    if weights is None:
        return np.full(count, 1.0 / count)
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (count,) or not (np.isfinite(given) & (given >= 0)).all() or not given.any():
        raise InvalidArgument(
            f"weights: expected {count} numbers, none negative and not all 0, got {weights!r}"
        )
    return given / given.sum()


def _bare(run: Trajectory, mean: Tensor) -> dict[str, Tensor]:
    """Without a landscape: the last state with the averaged parameters."""
    last = run[-1]
    statistics = [name for name in last if name.endswith(("running_mean", "running_var"))]
    if statistics:
        raise InvalidArgument(
            "land: expected a landscape, over whose data the running statistics "
            f"({statistics[0]!r}) are found anew, got None"
        )
    return last | {name: t.to(last[name].dtype) for name, t in _named(run, mean).items()}


def _named(run: Trajectory, vector: Tensor) -> dict[str, Tensor]:
    """Tensors by all names of the parameters."""
    parts = run.layout.unflatten(vector)
    return {alias: parts[own].clone() for alias, own in run.layout.aliases.items()}
