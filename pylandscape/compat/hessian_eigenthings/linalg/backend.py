"""Arithmetic on vectors that are single tensors."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ....errors import InvalidArgument

V = TypeVar("V")


class LinAlgBackend(Protocol[V]):
    """The operations that the original's algorithms use."""

    def dot(self, a: V, b: V) -> Tensor: ...
    def norm(self, a: V) -> Tensor: ...
    def axpy(self, alpha: float | Tensor, a: V, b: V) -> V: ...
    def scale(self, alpha: float | Tensor, a: V) -> V: ...
    def zeros_like(self, a: V) -> V: ...
    def randn_like(self, a: V, *, generator: torch.Generator | None = None) -> V: ...
    def rademacher_like(self, a: V, *, generator: torch.Generator | None = None) -> V: ...


class SingleDeviceBackend:
    """Vectors are tensors; random numbers come from the generator's device."""

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return a.reshape(-1) @ b.reshape(-1)

    def norm(self, a: Tensor) -> Tensor:
        return torch.linalg.vector_norm(a)

    def axpy(self, alpha: float | Tensor, a: Tensor, b: Tensor) -> Tensor:
        return alpha * a + b

    def scale(self, alpha: float | Tensor, a: Tensor) -> Tensor:
        return alpha * a

    def zeros_like(self, a: Tensor) -> Tensor:
        return torch.zeros_like(a)

    def randn_like(self, a: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        where = a.device if generator is None else generator.device
        if where == a.device:
            return torch.randn(a.shape, dtype=a.dtype, device=where, generator=generator)
        return torch.randn(a.shape, device=where, generator=generator).to(a)

    def rademacher_like(self, a: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        where = a.device if generator is None else generator.device
        coins = torch.randint(0, 2, a.shape, device=where, generator=generator)
        return 2.0 * coins.to(a) - 1.0


def check_backend(backend: Any) -> None:
    """InvalidArgument for a backend of the user's own, which the compiled drivers cannot call."""
    if backend is not None and type(backend).__name__ != "SingleDeviceBackend":
        raise InvalidArgument(
            f"backend: expected None or SingleDeviceBackend(), got {type(backend).__name__}"
        )
