"""W1: a 51x51 grid of the 784-20-10 MLP over 1,797 digits; everything a user waits for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

import pylandscape as pl

from . import peers
from .harness import Arm, Row, Run, absent, fastest, interleave, rows
from .workloads import digits, grid, mlp, reference, spread

RTOL = 1e-4  # float32 outputs; the peers' mean is in float32 too


def w1(quick: bool, repetitions: int) -> list[Row]:
    torch.manual_seed(0)
    x, y = digits()
    model = mlp(784, 20, 10)
    side, subset, steps = (5, 9, 3) if quick else (51, 153, 25)
    name = f"W1 {side}x{side}, 784-20-10"
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    d1, d2 = pl.random_directions(land, 2, seed=1)
    c, d = grid(side, side), torch.stack([d1.vector, d2.vector])
    few = spread(subset, len(c))
    case = peers.Case(model, F.cross_entropy, x, y, d, c[few])
    sample = spread(12, len(few))
    want = reference(model, F.cross_entropy, x, y, land.theta + c[few][sample] @ d.double())
    table: list[Row] = []

    def ours() -> np.ndarray:
        axis = (-1, 1, side)
        return pl.plane(land, d1, d2, x=axis, y=axis, progress=False).values.ravel()

    mine = Arm("pylandscape plane()", ours, len(c), note=f"{side}x{side}, all of the call")
    mine.note += f"; capture, once: {land.engine_report().seconds * 1e3:.0f} ms"
    mine.check(ours()[few][sample], want, RTOL)

    arms: list[Arm] = []

    def compete(arm: str, forms: Mapping[str, Callable[[], Run]], target: float | None) -> None:
        """Adds the fastest of the forms, checked; or a row that says why there is none."""
        try:
            run, form = fastest(forms)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            table.append(absent(name, arm, f"{type(error).__name__}: {reason}"))
            return
        note = f"{len(few)} of the points a repetition; {form}, the best of {', '.join(forms)}"
        arms.append(Arm(arm, run, len(few), target, note=note))
        arms[-1].check(run()[sample], want, RTOL)

    chunks = (4, 9) if quick else (1, 4, 16, 51, 153)
    loops = {"foreach": partial(peers.foreach_loop, case), "flat": partial(peers.flat_loop, case)}
    compete("torch loop", loops, 25)
    vmaps = {f"chunk {k}": partial(peers.vmap, case, k) for k in chunks}
    compete("torch.func.vmap", vmaps, 25)
    compiled = {
        "model and loss": partial(peers.foreach_loop, case, compiled=True),
        "whole step": partial(peers.compiled_step, case),
    }
    if quick:
        table.append(absent(name, "torch.compile of the loop", "not with --quick"))
    else:
        compete("torch.compile of the loop", compiled, 25)
    by_hand = "given the first-layer identity by hand"
    compete(f"torch loop, {by_hand}", {"in place": partial(peers.identity_loop, case)}, 8)
    batches = {f"chunk {k}": partial(peers.identity_batched, case, k) for k in chunks}
    compete(f"torch, {by_hand} and points batched by hand", batches, None)

    peer = "loss-landscapes 3.0.6 random_plane"
    try:
        run = peers.loss_landscapes_plane(case, steps)
        still = peers.loss_landscapes_plane(case, 2, distance=1e9)  # a plane of no extent
    except ImportError:
        table.append(absent(name, peer, "not installed"))
    else:
        note = f"{steps}x{steps} points of its own directions a repetition"
        arms.append(Arm(peer, run, steps**2, 25, note=note))
        arms[-1].check(still(), np.full(4, land.model_loss()), RTOL)
    interleave([mine, *arms], repetitions)
    return rows(name, mine, arms, "point") + table
