"""W3: a 21x21 grid of a 784-512-512-10 MLP, and the share of the sgemm peak that it reaches."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

import pylandscape as pl

from . import peers
from .harness import Arm, Row, fastest, interleave, rows, sgemm_arms, shares
from .workloads import digits, grid, mlp, reference, spread

RTOL = 1e-4
SHARE = 0.7  # of the sgemm peak, to reach


def w3(quick: bool, repetitions: int) -> list[Row]:
    torch.manual_seed(0)
    x, y = digits()
    hidden = 32 if quick else 512
    model = mlp(784, hidden, hidden, 10)
    side, few, size = (3, 2, 256) if quick else (21, 12, 2048)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    d1, d2 = pl.random_directions(land, 2, seed=1)
    c, d = grid(side, side), torch.stack([d1.vector, d2.vector])
    some = spread(few, len(c))
    case = peers.Case(model, F.cross_entropy, x, y, d, c[some])
    sample = some[spread(4, len(some))]
    want = reference(model, F.cross_entropy, x, y, land.theta + c[sample] @ d.double())

    def ours() -> np.ndarray:
        axis = (-1, 1, side)
        return pl.plane(land, d1, d2, x=axis, y=axis, progress=False).values.ravel()

    loop, form = fastest(
        {"foreach": partial(peers.foreach_loop, case), "flat": partial(peers.flat_loop, case)}
    )
    note = f"{len(some)} of the points a repetition"
    mine = Arm("pylandscape plane()", ours, len(c), note=f"{side}x{side}, all of the call")
    arms = [
        Arm("torch loop", loop, len(some), 2, note=f"{note}; {form}"),
        Arm(
            "torch loop, given the first-layer identity by hand",
            peers.identity_loop(case),
            len(some),
            note=note,
        ),
    ]
    mine.check(ours()[sample], want, RTOL)
    for arm in arms:
        arm.check(arm.run()[spread(4, len(some))], want, RTOL)
    products = sgemm_arms(size)
    interleave([mine, *products, *arms], repetitions)

    name = f"W3 {side}x{side}, 784-{hidden}-{hidden}-10"
    # What must be done a point: 2 directions combined in the first layer, the others in full.
    flops = 2.0 * len(x) * (2 * hidden + hidden * hidden + 10 * hidden)
    table = rows(name, mine, arms, "point")
    table[0]["note"] += f"; {flops / 1e9:.3g} GFLOP that must be done a point"
    return table + shares(name, mine, flops, products, SHARE)
