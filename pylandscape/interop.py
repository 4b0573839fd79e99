"""Inside other people's code, and other people's code inside: the public address.

The way goes on in curvature/bridges.py.
"""

from .curvature.bridges import (
    TensorOperator,
    as_scipy,
    as_tensor,
    as_tensors,
    from_function,
    from_product,
    in_kind,
)

__all__ = [
    "TensorOperator",
    "as_scipy",
    "as_tensor",
    "as_tensors",
    "from_function",
    "from_product",
    "in_kind",
]
