"""The original's iterations, for ``compat="0.1"``: its steps and stopping rules on flat vectors.

Vectors are (n,) in the parameters' dtype, drawn tensor by tensor from torch's global generator.
``product``: (n,) -> H v (n,) in the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
Draw = Callable[[Tensor], Tensor]

SHIFT = 1e-6  # in its denominators


def normals(p: Tensor) -> Tensor:
    """As the original draws a start of the power iteration."""
    return torch.randn(p.shape)


def signs(p: Tensor) -> Tensor:
    """As the original draws Rademacher numbers."""
    drawn = torch.randint_like(p.detach(), high=2)
    return torch.where(drawn == 0, -1.0, drawn)


def drawn(parameters: Sequence[Tensor], draw: Draw) -> Tensor:
    """(n,): every tensor's own draw, one after the other."""
    return torch.cat([draw(p).to(p).reshape(-1) for p in parameters])


def _normalised(v: Tensor) -> Tensor:
    return v / (float(torch.linalg.vector_norm(v)) + SHIFT)


def _orthonormal(w: Tensor, basis: Sequence[Tensor]) -> Tensor:
    for v in basis:
        w = w - v * (w @ v)
    return _normalised(w)


def power_iteration(
    product: Product, parameters: Sequence[Tensor], most: int, tol: float, count: int
) -> tuple[list[float], list[Tensor]]:
    """`count` values and vectors; a value is the one before the step that changed it too little."""
    values: list[float] = []
    vectors: list[Tensor] = []
    for _ in range(count):
        v = _normalised(drawn(parameters, normals))
        value = None
        for _ in range(most):
            v = _orthonormal(v, vectors)
            hv = product(v)
            found = float(hv @ v)
            v = _normalised(hv)
            if value is not None and abs(value - found) / (abs(value) + SHIFT) < tol:
                break
            value = found
        values.append(value if value is not None else float("nan"))
        vectors.append(v)
    return values, vectors


def hutchinson(
    product: Product, parameters: Sequence[Tensor], most: int, tol: float
) -> list[float]:
    """Samples until their mean moves by less than tol of it (signed, as it stands there)."""
    samples: list[float] = []
    mean = 0.0
    for _ in range(most):
        v = drawn(parameters, signs)
        samples.append(float(product(v) @ v))
        now = float(np.mean(samples))
        if abs(now - mean) / (mean + SHIFT) < tol:
            break
        mean = now
    return samples


def quadrature(
    product: Product, parameters: Sequence[Tensor], steps: int
) -> tuple[list[float], list[float]]:
    """Nodes, ascending, and weights of one probe; as many as steps, also beyond n."""
    v = _normalised(drawn(parameters, signs))
    basis = [v]
    hv = product(v)
    alpha = [float(hv @ v)]
    w = hv - alpha[0] * v
    beta: list[float] = []
    for _ in range(1, steps):
        beta.append(float(torch.linalg.vector_norm(w)))
        if beta[-1] == 0.0:
            w = drawn(parameters, normals)
        v = _orthonormal(w, basis)
        basis.append(v)
        hv = product(v)
        alpha.append(float(hv @ v))
        w = hv - alpha[-1] * v - beta[-1] * basis[-2]
    t = np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1)
    nodes, vectors = np.linalg.eigh(t)
    return nodes.tolist(), (vectors[0] ** 2).tolist()
