"""Products with the Hessian by central differences of gradients, with a bound of their error.

D(eps) = [g(theta + eps v) - g(theta - eps v)] / (2 eps), first with eps = u^(1/3) |theta| / |v|, u
the machine epsilon of the coarsest parameter: the step that balances truncation (eps^2) and
rounding (u / eps) where the gradient changes over a length of |theta|. |D(eps) - D(2 eps)| bounds
the error: where truncation rules it is three times the error, where rounding rules about as large;
and it is never less than what rounding the two gradients alone can do, u |g| / (2 eps).
Many networks' gradients change over a far shorter length (a transformer's: a tenth), and neither
rules within the first step, which for bfloat16 is a fifth of |theta|; so the step is halved until
the bound is what balanced errors would give. Where no step reaches that, the one is taken above
which the bound grows again, seen from the shortest: there rounding and truncation meet. From
`LINEAR` of the product's norm on it is no bound, and results say so. Two products of 2 gradients
each, and one more for each halving; no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InvalidArgument

LINEAR = 0.3  # |D(eps) - D(2 eps)| / |D(eps)|, up to which the one bounds the other's error
_BALANCED = 4.0  # times u^(2/3): the bound at which a step is short enough
_HALVINGS = 8  # of the step, at most


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

        def difference(step: float, v: Tensor = v) -> tuple[Tensor, Tensor]:
            up, down = gradient(theta + step * v), gradient(theta - step * v)
            rounded = rounding * torch.linalg.vector_norm(up) / (2 * step)
            return (up - down) / (2 * step), rounded

        rows[i], bounds[i] = _shortened(difference, eps, _BALANCED * rounding ** (2 / 3))
    return rows, bounds


def _shortened(
    difference: Callable[[float], tuple[Tensor, Tensor]], eps: float, enough: float
) -> tuple[Tensor, Tensor]:
    """D at a step of eps or shorter, and its bound, at most ``enough`` of |D| if that can be.

    ``difference``: of a step, D and the bound of what rounding does to it.
    """
    wider = difference(2 * eps)[0]
    tried: list[tuple[Tensor, Tensor, float]] = []
    for halvings in range(_HALVINGS + 1):
        found, rounded = difference(eps / 2**halvings)
        bound = torch.maximum(torch.linalg.vector_norm(found - wider), rounded)
        size = float(torch.linalg.vector_norm(found))
        share = float(bound) / size if size else float("inf")
        if share <= enough or not bound > 0:  # or it is not finite
            return found, bound
        tried.append((found, bound, share))
        wider = found
    best = tried.pop()
    while tried and tried[-1][2] <= best[2]:  # all is rounded off below some step
        best = tried.pop()
    return best[0], best[1]


def check_products(products: str) -> None:
    """Raises InvalidArgument for what is no way of having products."""
    if products not in ("exact", "differences"):
        raise InvalidArgument(f"products: expected 'exact' or 'differences', got {products!r}")
