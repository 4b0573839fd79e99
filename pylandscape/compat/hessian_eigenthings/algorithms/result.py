"""The result of the eigenvalue algorithms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....results.eigen_pairs import EigenPairs


@dataclass(frozen=True)
class EigenResult:
    """Eigenpairs in the order that was asked for: values (k,), vectors (k, n), residual norms
    ||A v - value v|| (k,), steps or products made, and which pairs have converged (k,).
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    residuals: Tensor
    iterations: int
    converged: Tensor


def as_result(pairs: EigenPairs, operator: Any) -> EigenResult:
    """On the operator's device and in its dtype; iterations are the products."""

    def there(values: Any) -> Tensor:
        return torch.as_tensor(values).to(operator.device, operator.dtype)

    return EigenResult(
        there(pairs.values), there(pairs.vectors), there(pairs.residuals), pairs.products,
        torch.as_tensor(pairs.converged).to(operator.device),
    )  # fmt: skip
