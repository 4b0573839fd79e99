"""The interface of the operators, and what those of a landscape share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ....curvature.operators import as_operator
from ....curvature.symmetric_operator import SymmetricOperator
from ....errors import InvalidArgument
from ....landscape import Landscape
from ....theta.data import leading_size
from ..._current import LiveLandscape, count, literal, version
from ..batching import iterate_batches
from ..linalg.backend import check_backend
from ..param_utils import ParamFilter, select_parameters, total_size

VERSIONS = ("1.0.0a5",)


class CurvatureOperator(ABC):
    """A symmetric matrix of order `size`, known by ``matvec``: v (size,) -> A v, of `dtype`."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Order of the matrix."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where products are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of products."""

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """A v for v (size,)."""

    def rmatvec(self, v: Tensor) -> Tensor:
        """A^T v = A v."""
        return self.matvec(v)

    def __call__(self, v: Tensor) -> Tensor:
        return self.matvec(v)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.matvec(v)


class LambdaOperator(CurvatureOperator):
    """A function v -> A v as an operator."""

    def __init__(
        self,
        matvec_fn: Callable[[Tensor], Tensor],
        size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._matvec_fn, self._size = matvec_fn, size
        self._device, self._dtype = torch.device(device), dtype

    @property
    def size(self) -> int:
        return self._size

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def matvec(self, v: Tensor) -> Tensor:
        return self._matvec_fn(v)


class LandscapeOperator(CurvatureOperator):
    """A matrix of the landscape of a model as it is now; the batches are read once for it.

    Subclasses say which: ``_build(batches)`` makes the landscape, `matrix` names the matrix.
    """

    matrix = "hessian"
    report_name = "hessian_eigenthings.matvec"

    def __init__(
        self,
        model: nn.Module,
        dataloader: Iterable[Any],
        param_filter: ParamFilter | None,
        full_dataset: bool,
        num_batches: int | None,
        backend: Any,
        compat: str | None,
    ) -> None:
        check_backend(backend)
        self.model, self.dataloader = model, dataloader
        self.full_dataset, self.num_batches = full_dataset, num_batches
        self.compat = version("hessian_eigenthings", compat, VERSIONS)
        params = select_parameters(model, param_filter)
        self._names, self._parameters = list(params), list(params.values())
        self._size = total_size(params)
        self._live = LiveLandscape(model, lambda: self._build(self._batches()))

    @property
    def size(self) -> int:
        return self._size

    @property
    def device(self) -> torch.device:
        return self._parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self._parameters[0].dtype

    @property
    def landscape(self) -> Landscape:
        """The landscape whose matrix this is."""
        return self._live.get()

    def matvec(self, v: Tensor) -> Tensor:
        if v.shape != (self._size,):
            raise InvalidArgument(f"v: expected shape ({self._size},), got {tuple(v.shape)}")
        found = self.symmetric_operator()(v.detach()[None])[0]
        count(self.report_name, self.landscape, 1)
        return found.to(self.device, self.dtype)

    def symmetric_operator(self) -> SymmetricOperator:
        """What the drivers take: blocks of vectors, compiled where that is possible."""
        return as_operator(self.landscape, self.matrix)

    def _batches(self) -> list[Any]:
        most = self.num_batches if self.full_dataset else 1
        found = list(iterate_batches(self.dataloader, most))
        if not found:
            raise InvalidArgument("dataloader: expected at least one batch, got none")
        return found

    @property
    def _chosen(self) -> list[str] | None:
        """Patterns of the parameters that take part; None for all."""
        whole = len(self._names) == len(list(self.model.parameters()))
        return None if whole else literal(self._names)

    @abstractmethod
    def _build(self, batches: list[Any]) -> Landscape: ...


def sizes_of(batches: list[Any]) -> list[int]:
    """Samples of every batch, as a landscape counts them."""
    return [leading_size(batch) or 1 for batch in batches]


def sizes_differ(batches: list[Any]) -> bool:
    """Whether the mean over batches is another one than that over samples."""
    return len(set(sizes_of(batches))) > 1
