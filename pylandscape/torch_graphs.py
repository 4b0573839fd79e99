"""Pieces of autograd that the derivatives are made of: products, saved bytes, fused kernels."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

Product = Callable[[Tensor], Tensor]

# Fused kernels without a second derivative, by the name of their node: what runs instead.
FUSED: dict[str, tuple[str, Callable[[], AbstractContextManager[Any]]]] = {
    "ScaledDotProduct": (
        "scaled_dot_product_attention runs on its math backend",
        partial(sdpa_kernel, SDPBackend.MATH),
    ),
    "CudnnRnn": (
        "recurrent layers run without cuDNN",
        partial(torch.backends.cudnn.flags, enabled=False),
    ),
}


def fused_kernels(value: Tensor) -> set[str]:
    """The keys in FUSED of the kernels in the graph of ``value``."""
    found: set[str] = set()
    seen: set[Any] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.update(kernel for kernel in FUSED if node.name().startswith(kernel))
            waiting.extend(before for before, _ in node.next_functions)
    return found


def gradient(
    value: Tensor,
    leaf: Tensor,
    w: Tensor | None = None,
    *,
    create: bool = False,
    retain: bool = False,
) -> Tensor:
    """w^T dvalue/dleaf, of leaf's shape; zeros where value does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (g,) = torch.autograd.grad(
        value,
        leaf,
        None if w is None else w.to(value.dtype),
        create_graph=create,
        retain_graph=create or retain,
        materialize_grads=True,
    )
    return g


def hessian_product(value: Tensor, leaf: Tensor) -> Product:
    """v -> H v, H the Hessian of value in leaf."""
    g = gradient(value, leaf, create=True)
    return lambda v: gradient(g, leaf, v, retain=True)


def sandwich(outputs: Tensor, leaf: Tensor, middle: Product) -> Product:
    """v -> J^T middle(J v)."""
    w = torch.zeros_like(outputs, requires_grad=True)
    pulled = gradient(outputs, leaf, w, create=True)  # J^T w: its derivative in w, along v, is J v
    return lambda v: gradient(
        outputs, leaf, middle(gradient(pulled, w, v, retain=True)), retain=True
    )


@dataclass(eq=False)
class _Saved:
    tensor: Tensor
    version: int

    def unpack(self) -> Tensor:
        if self.tensor._version != self.version:  # autograd checks only what it packs itself
            raise RuntimeError(
                "a tensor needed for the derivative was modified by an in-place operation: shape "
                f"{tuple(self.tensor.shape)}, at version {self.tensor._version}, expected "
                f"{self.version}"
            )
        return self.tensor


class SavedTensors:
    """Counts the bytes that a graph holds, each storage once, without those in ``existing``."""

    def __init__(self, existing: set[int]) -> None:
        self._existing = existing
        self._live: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def counted(self) -> saved_tensors_hooks:
        """Counts what is saved inside the context for as long as it lives."""
        return saved_tensors_hooks(self._pack, _Saved.unpack)

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor, tensor._version)
        self._live.add(saved)
        return saved

    @property
    def bytes(self) -> int:
        sizes = storages(saved.tensor for saved in self._live)
        return sum(size for address, size in sizes.items() if address not in self._existing)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """{address: bytes} of the tensors' storages; sparse tensors are left out."""
    kept = [t.untyped_storage() for t in tensors if t.layout == torch.strided]
    return {storage.data_ptr(): storage.nbytes() for storage in kept}
