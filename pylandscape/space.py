"""Where a landscape's points lie: what directions and vectors need of it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .layout import ParameterLayout


class Space(Protocol):
    """Points theta (n,) of a parameter layout; a Landscape is one.

    With bn="interpolate" a point has the running statistics after theta, (n + m,): ``moved`` is
    the layout of both, otherwise the same as ``layout``.
    """

    layout: ParameterLayout
    moved: ParameterLayout
    origin: Tensor  # (n + m,): the model's own point
    theta: Tensor  # (n,): its parameters
    dtype: torch.dtype
    device: torch.device

    @property
    def n_params(self) -> int:
        """n."""
