"""The random directions of `random_line` and `random_plane`, right ones and those of 3.0.6.

All follow from torch's global generator, as in the original.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ...errors import InvalidArgument
from ...theta.directions import random_directions
from ...theta.layout import ParameterEntry, ParameterLayout
from ...theta.pieces import Stored
from .model_interface.model_parameters import (
    ModelParameters,
    orthogonal_to,
    rand_u_like,
    ratio,
    row_ratios,
)

NORMALIZATIONS = ("filter", "layer", "model", None)
ALL_ZERO = (
    "model: expected parameters that are not all zero, whose norms give the random directions "
    "theirs, or normalization=None"
)


class UnsupportedNormalization(InvalidArgument, AttributeError):
    """A normalisation that is none of `NORMALIZATIONS`."""


@dataclass
class _Theta:
    """What `random_directions` asks of a landscape."""

    layout: ParameterLayout
    theta: Tensor

    @property
    def base(self) -> Stored:
        """theta, as what is read piece by piece."""
        return Stored(self.theta)


def check_normalization(normalization: Any) -> None:
    """Raises UnsupportedNormalization (an AttributeError)."""
    if normalization not in NORMALIZATIONS:
        raise UnsupportedNormalization(
            f"normalization: expected one of {', '.join(map(repr, NORMALIZATIONS))}, "
            f"got {normalization!r}"
        )


def drawn(start: ModelParameters, count: int, normalization: str | None) -> list[ModelParameters]:
    """Gaussian directions, normalised by theta's filters, orthogonal, then of theta's norm.

    Every parameter moves, biases and those of norms too, as in the original; each such tensor is
    one filter. Raises InvalidArgument where they are zero because theta is.
    """
    entries, offset = [], 0
    for i, p in enumerate(start):
        kind = "bias" if p.dim() <= 1 else "weight"
        entries.append(ParameterEntry(str(i), tuple(p.shape), offset, p.numel(), p.dtype, kind))
        offset += p.numel()
    layout = ParameterLayout(tuple(entries), {e.name: e.name for e in entries})
    wide = torch.float64 if any(p.dtype == torch.float64 for p in start) else torch.float32
    theta = torch.cat([p.detach().to("cpu", wide).reshape(-1) for p in start])
    seed = int(torch.randint(2**62, ()))
    found = random_directions(
        cast(Any, _Theta(layout, theta)),
        count,
        normalize=normalization,
        ignore=(),
        seed=seed,
        orthogonal=True,
    )
    norm = float(torch.linalg.vector_norm(theta, dtype=torch.float64))
    directions = []
    for direction in found:
        length = float(torch.linalg.vector_norm(direction.vector, dtype=torch.float64))
        if length == 0.0:
            raise InvalidArgument(ALL_ZERO)
        vector = direction.vector * (norm / length)
        parts = layout.unflatten(vector).values()
        moved = [v.to(p.device, p.dtype) for v, p in zip(parts, start, strict=True)]
        directions.append(ModelParameters(moved))
    return directions


def drawn_as_3_0_6(
    start: ModelParameters, count: int, normalization: str | None
) -> list[ModelParameters]:
    """The original's draws and arithmetic, before `scale_as_3_0_6`: one direction, or two."""
    directions = [rand_u_like(start)]
    if count == 2:
        directions.append(orthogonal_to(directions[0]))
    for direction in directions:
        if normalization == "layer":
            direction.layer_normalize_(start)
        elif normalization == "model":
            _model_normalize(direction, start)
        elif normalization == "filter":
            _filter_normalize(direction, start)
    return directions


def scale_as_3_0_6(
    start: ModelParameters, direction: ModelParameters, distance: float, steps: int
) -> None:
    """The direction becomes one step: steps of them are |theta| / distance long.

    Raises InvalidArgument for a direction of zero.
    """
    norm = direction.model_norm()
    if norm == 0:
        raise InvalidArgument(ALL_ZERO)
    direction.mul_(((start.model_norm() / distance) / steps) / norm)


@torch.no_grad()
def _model_normalize(direction: ModelParameters, ref: ModelParameters) -> None:
    """Tensor by tensor, the norm taken anew each time, of what is already partly scaled."""
    wanted = ref.model_norm()
    squares = [direction.layer_norm(i) ** 2 for i in range(len(direction))]
    for i, p in enumerate(direction):
        factor = ratio(wanted, math.sqrt(sum(squares)))
        p.mul_(factor)
        squares[i] *= factor**2


@torch.no_grad()
def _filter_normalize(direction: ModelParameters, ref: ModelParameters) -> None:
    """Every element of a tensor of one dimension is a filter, so it becomes +-|w|."""
    for p, w in zip(direction, ref.parameters, strict=True):
        p.mul_(row_ratios(p, w) if p.dim() else ratio(abs(float(w)), abs(float(p))))
