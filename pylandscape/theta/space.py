"""What directions and engines need of a landscape: where its points lie, and what L is."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .data import Dataset
from .layout import ParameterLayout
from .pieces import Row


class Space(Protocol):
    """Points theta (n,) of a parameter layout; a Landscape is one.

    With bn="interpolate" a point has the running statistics after theta, (n + m,): ``moved`` is
    the layout of both, otherwise the same as ``layout``.
    """

    layout: ParameterLayout
    moved: ParameterLayout
    base: Row  # (n + m,): the model's own point, read piece by piece
    dtype: torch.dtype
    device: torch.device
    model: nn.Module  # the landscape's own copy
    bn: str  # "eval", "recompute", "batch" or "interpolate", as the caller chose

    @property
    def origin(self) -> Tensor:
        """(n + m,): the model's own point."""

    @property
    def theta(self) -> Tensor:
        """(n,): its parameters."""

    @property
    def n_params(self) -> int:
        """n."""

    def point(self, theta: Any) -> Tensor:
        """The parameters and what else the landscape moves, (n + m,)."""


class Problem(Space, Protocol):
    """What an engine is built from: model, loss and data. A Landscape is one."""

    loss_spec: Any  # KnownLoss | FreeLoss | Objective
    dataset: Dataset
    has_batchnorm: bool
    memory: int  # bytes that derivatives may keep between products
