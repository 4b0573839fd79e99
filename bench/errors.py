"""errors: what standard errors from the data add to W1's surface.

The same plane with and without them, interleaved; errors are checked against per-sample losses in
float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

import pylandscape as pl

from .harness import Arm, Row, interleave, rows
from .workloads import digits, grid, mlp, reference, spread

ONE = ("standard_error",)
BOTH = ("standard_error", "difference_standard_error")
RTOL = 1e-4  # float32 outputs


def errors(quick: bool, repetitions: int) -> list[Row]:
    torch.manual_seed(0)
    x, y = digits()
    model = mlp(784, 20, 10)
    side = 5 if quick else 51
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    d1, d2 = pl.random_directions(land, 2, seed=1)
    c, d = grid(side, side), torch.stack([d1.vector, d2.vector])
    few = spread(12, len(c))

    def squares(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        own = F.cross_entropy(outputs, target, reduction="none")
        return own.var() / len(own)

    want = np.sqrt(reference(model, squares, x, y, land.theta + c[few] @ d.double()))

    def plane(metrics: tuple[str, ...], shown: str) -> Callable[[], np.ndarray]:
        axis = (-1, 1, side)
        return lambda: (
            pl.plane(land, d1, d2, x=axis, y=axis, metrics=metrics, progress=False)
            .metrics[shown]
            .ravel()
        )

    table: list[Row] = []
    for metrics in (ONE, BOTH):
        mine = Arm(
            f"pylandscape plane() with {' and '.join(metrics)}", plane(metrics, ONE[0]), len(c)
        )
        mine.check(mine.run()[few], want, RTOL)
        plain = Arm(
            "pylandscape plane() without", plane(("loss",), "loss"), len(c), 1.15, at_most=True
        )
        interleave([mine, plain], repetitions)
        table += rows(f"standard errors of W1, {side}x{side}", mine, [plain], "point")
    return table
