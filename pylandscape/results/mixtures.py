"""Weights of solutions in the points between them."""

from __future__ import annotations

import numpy as np

from ..arrays import Array


def barycentric_weights(alpha: Array, beta: Array) -> Array:
    """(m, 3) weights (1 - alpha, alpha beta, alpha (1 - beta)) of theta0, theta1, theta2 (their sum
    is 1)."""
    return np.stack([1.0 - alpha, alpha * beta, alpha * (1.0 - beta)], axis=1)


def bilinear_weights(alpha: Array, beta: Array) -> Array:
    """(m, 4) weights of theta0..theta3, which sit at (alpha, beta) = (1,1), (0,1), (1,0), (0,0)."""
    return np.stack(
        [alpha * beta, (1.0 - alpha) * beta, alpha * (1.0 - beta), (1.0 - alpha) * (1.0 - beta)],
        axis=1,
    )
