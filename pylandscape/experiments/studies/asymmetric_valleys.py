"""Asymmetric valleys: an average of SGD's iterates lies on the flat side and generalises."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import CATALOGUE, Lab, Study
from ..measured import Measured


def run(lab: Lab) -> None:
    data, page = lab.images(side=8, train=512, test=512), lab.page
    count, epochs = lab.size(toy=1, small=4, paper=5), lab.size(toy=4, small=40, paper=200)
    late = epochs * 3 // 4
    net = networks.nin(data, lab.size(toy=2, small=6, paper=64), seed=lab.seed)
    loss = nn.CrossEntropyLoss()
    land = pl.Landscape(net, loss, data.train, bn="recompute")
    seen = pl.Landscape(net, loss, data.test, bn="interpolate")
    held_out = pl.Landscape(net, loss, data.test)
    runs = pl.train(land, count, pl.SGD(lr=0.1), epochs=epochs, batch_size=32, seed=lab.seed,
                    path=lab.path("sgd.h5"), progress=lab.progress)  # fmt: skip
    averages = [pl.swa(one[late:], land) for one in runs]
    resumed = pl.train(
        land, averages, pl.SGD(lr=0.1), epochs=epochs - late, batch_size=32, seed=lab.seed + 1,
        path=lab.path("on.h5"), progress=lab.progress,
    )  # fmt: skip
    page.did(
        f"Convolutional networks with batch norm (n = {land.n_params:,}) trained by SGD with a "
        f"constant rate for {epochs} epochs, {count} starts; the average (SWA) of the last "
        f"quarter, and SGD resumed from it for {epochs - late} epochs. The loss along the line "
        "from the average to that iterate and as far beyond, statistics recomputed; along random "
        "directions; along the batch-norm part of the first direction, and along the rest of it."
    )
    ratios: dict[str, list[float]] = {}
    biased, gains, first = [], [], None
    for average, last in zip(averages, [one[-1] for one in resumed], strict=True):
        asked: dict[str, Any] = {"theta": average, "points": lab.size(toy=4, small=20, paper=40),
                 "seed": lab.seed, "progress": False}  # fmt: skip
        found = pl.asymmetry(land, [last, (last, "norm"), (last, "rest")], test=seen, **asked,
                             labels=["SGD - SWA", "its batch norm", "its rest"])  # fmt: skip
        other = pl.asymmetry(land, "random", r=float(found.r[0]), **asked)
        first = first or found
        for name, value in zip([*found.labels, "random"], [*found.ratio, *other.ratio],
                               strict=True):  # fmt: skip
            ratios.setdefault(name, []).append(float(value))
        biased.append(found.ends[0, 1] - found.ends[0, 0])
        gains.append(held_out.loss(last) - held_out.loss(average))
    clear = {name: np.array(value) for name, value in ratios.items()}
    counts = {name: int((value > 1).sum()) for name, value in clear.items()}
    page.claim(
        "directions from the average to SGD's solutions are asymmetric",
        f"c* > 1 in {counts['SGD - SWA']} of {count}; of random ones {counts['random']}",
        None if count < 3 else counts["SGD - SWA"] > count / 2,
    )
    steep = Measured(biased)
    page.claim(
        "SGD's last iterate lies up the valley, the average on its flat side",
        f"loss at the iterate less that as far on the other side of the average: {steep}",
        steep.above(0.0) if steep.mean > 0 else steep.below(0.0) and False,
    )
    gain = Measured(gains)
    page.claim("averaging is biased towards the flat side and generalises better",
               f"held-out loss of the last iterate less that of the average: {gain}",
               gain.above(0.0))  # fmt: skip
    page.claim(
        "batch norm coordinates are where the asymmetry is",
        f"c* > 1 in {counts['its batch norm']} of {count} batch-norm parts, in "
        f"{counts['its rest']} of the rest",
        None if count < 3 else counts["its batch norm"] > counts["its rest"],
    )  # fmt: skip
    means, errors = _theorem(lab)
    page.claim(
        "on slopes a and -c a, SGD's mean iterate lies (c - 1) eta a / 2 on the flat side",
        "; ".join(f"c = {c}: {m:.4f} +- {2 * e:.4f}, {(c - 1) * 0.05:.3f} expected"
                  for c, m, e in zip((2, 5, 10), means, errors, strict=True)),
        bool(all(abs(m - (c - 1) * 0.05) < 4 * e + 2e-3 for c, m, e in
                 zip((2, 5, 10), means, errors, strict=True))),
    )  # fmt: skip
    assert first is not None
    page.picture(first.plot(), "Loss along the directions of the first start (dashed: held-out "
                 "data), from the average in the middle.")  # fmt: skip
    page.why("c* is the worst ratio of slopes on a grid, so that one rough place of a rugged line "
             "ends an asymmetry; the paper's constants are not given.")  # fmt: skip
    page.why("On few images the loss falls all along the run: the line from the average to a later "
             "iterate leads down, to an earlier one up, which hides the sides.")  # fmt: skip


def _theorem(lab: Lab) -> tuple[list[float], list[float]]:
    """Means of the iterates on slopes 1 and -c with uniform noise, and their errors (64 runs)."""
    steps, rate = lab.size(toy=500, small=50_000, paper=500_000), 0.1
    draw = torch.Generator().manual_seed(lab.seed)
    means, errors = [], []
    for c in (2, 5, 10):
        w, total = torch.zeros(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
        noise = torch.rand(steps, 64, generator=draw, dtype=torch.float64) * 2 - 1
        for row in noise:
            w = w - rate * (torch.where(w >= 0, 1.0, -float(c)) + row)
            total += w
        means.append(float(total.mean() / steps))
        errors.append(float((total / steps).std() / 8))
    return means, errors


STUDY = Study(
    title="Asymmetric valleys: SGD's iterates and their average", paper=CATALOGUE,
    figure="figure 19", minutes=2, run=run,
)  # fmt: skip
