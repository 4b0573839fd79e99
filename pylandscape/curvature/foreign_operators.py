"""Other packages' operators on tensors as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InvalidArgument
from .symmetric_operator import SymmetricOperator

if TYPE_CHECKING:
    pass


def on_tensors(a: Any) -> SymmetricOperator | None:
    """Operators on tensors of other packages; None for what is no such thing.

    ``A @ columns`` with shape and a torch dtype (curvlinops), or ``matvec`` of one vector with a
    size and a torch dtype (hessian-eigenthings); or an object with ``symmetric_operator()``.
    """
    if hasattr(a, "symmetric_operator"):
        own: SymmetricOperator = a.symmetric_operator()
        return own
    dtype = getattr(a, "dtype", None)
    if not isinstance(dtype, torch.dtype):
        return None
    shape = getattr(a, "shape", None)
    if shape is not None and hasattr(type(a), "__matmul__"):
        if len(shape) != 2 or shape[0] != shape[1]:
            raise InvalidArgument(f"operator: expected a square matrix, got shape {tuple(shape)}")
        return _wrapped(a, shape[0], dtype, lambda v: (a @ v.T.contiguous()).T)
    if isinstance(getattr(a, "size", None), int) and hasattr(a, "matvec"):
        return _wrapped(a, a.size, dtype, lambda v: torch.stack([a.matvec(row) for row in v]))
    return None


def _wrapped(
    a: Any, n: int, dtype: torch.dtype, product: Callable[[Tensor], Tensor]
) -> SymmetricOperator:
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    return SymmetricOperator(
        int(n), lambda v: product(v.to(dtype)).detach(), dtype=wide, device=a.device, source=a
    )
