"""Pieces of autograd that the derivatives are made of: products, saved bytes, fused kernels."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import NotDifferentiable

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


def _names(values: Iterable[Tensor]) -> set[str]:
    """The names of the nodes in the graphs of ``values``."""
    seen: set[Any] = set()
    waiting: list[Any] = [value.grad_fn for value in values]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(before for before, _ in node.next_functions)
    return {node.name() for node in seen}


def fused_kernels(value: Tensor) -> set[str]:
    """The keys in FUSED of the kernels in the graph of ``value``."""
    names = _names([value])
    return {kernel for kernel in FUSED if any(name.startswith(kernel) for name in names)}


@contextmanager
def whole_graphs() -> Iterator[None]:
    """Raises NotDifferentiable where @once_differentiable cuts a graph off inside: torch says so
    only to ``.backward()``, and leaves the part out of ``autograd.grad`` in silence."""

    def cut(*args: Any) -> None:
        raise NotDifferentiable(
            "a custom autograd.Function with @once_differentiable has no second derivative, which "
            "this one needs; write its backward of differentiable operations without the decorator"
        )

    functions: Any = getattr(torch._C, "_functions", None)  # it is looked up there
    own = functions.DelayedError
    functions.DelayedError = cut
    try:
        yield
    finally:
        functions.DelayedError = own


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


class Leaves:
    """The tensors that derivatives are in, as one vector of ``n`` elements and ``rest`` zeros.

    ``reached``: whether any value so far had a path to one of them.
    """

    def __init__(self, tensors: Sequence[Tensor], rest: int, dtype: torch.dtype) -> None:
        self.tensors, self._rest, self._dtype = list(tensors), rest, dtype
        self._sizes = [t.numel() for t in tensors]
        self.reached = False

    def pull(
        self, value: Any, w: Any = None, *, create: bool = False, retain: bool = False
    ) -> list[Tensor | None]:
        """w^T dvalue/dleaf for every leaf, None where there is no path; value and w may be lists
        of tensors."""
        values = [value] if isinstance(value, Tensor) else value
        weights = [w] if isinstance(w, Tensor) else w
        kept = [i for i, v in enumerate(values) if v.requires_grad]
        if not kept:
            return [None] * len(self.tensors)
        free = [t.requires_grad for t in self.tensors]  # the forward pass may have frozen some
        if create and not all(free):
            raise NotDifferentiable(
                "model: its forward pass turns requires_grad off for a parameter of theta, so that "
                "there is no Hessian in it; leave this parameter out of theta with params="
            )
        if not any(free):
            return [None] * len(self.tensors)
        given = iter(
            torch.autograd.grad(
                [values[i] for i in kept],
                [t for t, wanted in zip(self.tensors, free, strict=True) if wanted],
                None if weights is None else [weights[i].to(values[i].dtype) for i in kept],
                create_graph=create,
                retain_graph=create or retain,
                allow_unused=True,
            )
        )
        found = [next(given) if wanted else None for wanted in free]
        self.reached |= any(g is not None for g in found)
        return found

    def flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        """(n + rest,) of the parts, zeros where there is none."""
        like = self.tensors[0]
        rows = [
            like.new_zeros(size, dtype=self._dtype)
            if g is None
            else (g if g.layout == torch.strided else g.to_dense()).reshape(-1).to(self._dtype)
            for g, size in zip(parts, self._sizes, strict=True)
        ]
        if self._rest:
            rows.append(like.new_zeros(self._rest, dtype=self._dtype))
        return torch.cat(rows)

    def parts(self, v: Tensor) -> list[Tensor]:
        """v (n + rest,) as tensors shaped like the leaves."""
        rows = v[: v.numel() - self._rest].split(self._sizes)
        return [row.view(t.shape) for row, t in zip(rows, self.tensors, strict=True)]

    def gradient(self, value: Any, w: Any = None, *, retain: bool = False) -> Tensor:
        """w^T dvalue/dtheta (n + rest,)."""
        return self.flat(self.pull(value, w, retain=retain))

    def hessian_product(self, value: Tensor) -> Product:
        """v -> H v, H the Hessian of value."""
        found = self.pull(value, create=True)
        kept = [i for i, g in enumerate(found) if g is not None and g.requires_grad]
        values = [found[i] for i in kept]

        def product(v: Tensor) -> Tensor:
            parts = self.parts(v)
            return self.flat(self.pull(values, [parts[i] for i in kept], retain=True))

        return product

    def sandwich(self, outputs: Tensor, middle: Product) -> Product:
        """v -> J^T middle(J v), J the Jacobian of the outputs."""
        w = torch.zeros_like(outputs, requires_grad=True)
        pulled = self.pull(outputs, w, create=True)  # J^T w: its derivative in w, along v, is J v
        kept = [i for i, g in enumerate(pulled) if g is not None and g.requires_grad]

        def product(v: Tensor) -> Tensor:
            parts = self.parts(v)
            jv = torch.zeros_like(outputs)
            if kept:
                (jv,) = torch.autograd.grad(
                    [g for g in pulled if g is not None and g.requires_grad],
                    w,
                    [parts[i].to(outputs.dtype) for i in kept],
                    retain_graph=True,
                    materialize_grads=True,
                )
            return self.gradient(outputs, middle(jv), retain=True)

        return product


def hessian_product(value: Tensor, leaf: Tensor) -> Product:
    """v -> H v, H the Hessian of value in one tensor."""
    g = gradient(value, leaf, create=True)
    return lambda v: gradient(g, leaf, v, retain=True)


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
