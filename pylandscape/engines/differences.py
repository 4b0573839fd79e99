"""Products with the Hessian by central differences of gradients, with a bound of their error.

D(eps) = [g(theta + eps v) - g(theta - eps v)] / (2 eps), eps = u^(1/3) |theta| / |v| with u the
machine epsilon of the coarsest parameter: the step that balances truncation (eps^2) and rounding
(u / eps). |D(eps) - D(2 eps)| bounds the error: where truncation rules it is three times the error,
where rounding rules about as large. Two products of 2 gradients each; no second derivative.
Where the gradient is far from linear within the step neither rules, and it is no bound: from
`LINEAR` of the product's norm on, results say so. The steps of half precision are long enough for
that (a fifth of |theta| in bfloat16).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InvalidArgument

LINEAR = 0.3  # |D(eps) - D(2 eps)| / |D(eps)|, up to which the one bounds the other's error


def hessian_by_differences(
    gradient: Callable[[Tensor], Tensor], theta: Tensor, vectors: Tensor, rounding: float
) -> tuple[Tensor, Tensor]:
    """H v_i (k, n) float64 for the rows of vectors (k, n), and bounds (k,) of |error|_2.

    Args:
        gradient: of a point like theta (n,), float64.
        rounding: machine epsilon of the coarsest parameter.
    """
    rows = torch.zeros(vectors.shape, dtype=torch.float64, device=vectors.device)
    bounds = torch.zeros(len(vectors), dtype=torch.float64, device=vectors.device)
    size = float(torch.linalg.vector_norm(theta, dtype=torch.float64)) or 1.0
    for i, v in enumerate(vectors):
        length = float(torch.linalg.vector_norm(v, dtype=torch.float64))
        if length == 0.0:
            continue
        eps = rounding ** (1 / 3) * size / length

        def difference(step: float, v: Tensor = v) -> Tensor:
            up, down = gradient(theta + step * v), gradient(theta - step * v)
            return (up - down) / (2 * step)

        rows[i] = difference(eps)
        bounds[i] = torch.linalg.vector_norm(rows[i] - difference(2 * eps))
    return rows, bounds


def check_products(products: str) -> None:
    """Raises InvalidArgument for what is no way of having products."""
    if products not in ("exact", "differences"):
        raise InvalidArgument(f"products: expected 'exact' or 'differences', got {products!r}")
