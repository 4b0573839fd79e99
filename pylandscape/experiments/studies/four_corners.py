"""Bilinear surfaces: two starts with their two ends, and the ends of four optimisers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import EMPIRICAL, Lab, Study
from ..measured import Measured
from ..methods import trained


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=64)
    model = networks.nin(data, lab.size(toy=2, small=8, paper=96))
    land = pl.Landscape(model, nn.CrossEntropyLoss(), data.train, bn="recompute")
    names = ("SGD", "RMSprop", "Adadelta", "Adam")
    count = lab.size(toy=2, small=3, paper=5)
    runs = trained(lab, land, names, count)
    side = lab.size(toy=3, small=17, paper=41)
    axis = (0, 1, side)

    first, second = runs["SGD"][0], runs["SGD"][1]
    two = pl.interpolate(
        land, [first[0], second[0], first[-1], second[-1]], axis, axis,
        path=lab.path("starts-and-ends.h5"), progress=lab.progress,
    )  # fmt: skip
    four = pl.interpolate(
        land, [runs[name][0][-1] for name in names], axis, axis, path=lab.path("four-ends.h5"),
        progress=lab.progress,
    )  # fmt: skip

    across = []  # barriers between the ends of SGD from different starts
    for i, j in combinations(range(count), 2):
        line = pl.interpolate(land, [runs["SGD"][i][-1], runs["SGD"][j][-1]], (0, 1, side),
                              progress=False)  # fmt: skip
        across.append(line.barrier)
    same = []  # between different optimisers from the same start
    for p in range(count):
        for a, b in combinations(names, 2):
            line = pl.interpolate(land, [runs[a][p][-1], runs[b][p][-1]], (0, 1, side),
                                  progress=False)  # fmt: skip
            same.append(line.barrier)

    page = lab.page
    page.did(
        f"SGD trained a network in network (n = {land.n_params:,}) from two starts: the surface "
        "over the square of both starts (top) and both ends (bottom). Then the ends of four "
        f"optimisers from one start at the corners of a square. Barriers over {count} starts."
    )
    page.claim(
        "the ends of SGD from two starts are separated by high loss (figure 2)",
        f"barrier {Measured(across)} over pairs of starts", Measured(across).above(0.1),
    )  # fmt: skip
    page.claim(
        "the ends of four algorithms from one start are separated by high loss (figure 3)",
        f"barrier {Measured(same)} over pairs and starts", Measured(same).above(0.1),
    )  # fmt: skip
    middle = four.values[side // 2, side // 2]
    corner = max(four.values[0, 0], four.values[0, -1], four.values[-1, 0], four.values[-1, -1])
    page.claim(
        "the loss in the middle of the four is higher than at each of them",
        f"{middle:.3g} in the middle, {corner:.3g} at the highest corner", bool(middle > corner),
    )  # fmt: skip
    starts, ends = np.mean(two.values[[0, -1], -1]), np.mean(two.values[[0, -1], 0])
    page.picture(
        two.plot("surface", title="two starts (top), their ends"),
        f"Two starts (beta = 1, mean loss {starts:.2g}) and their ends (beta = 0, {ends:.2g}).",
    )
    page.picture(
        four.plot("surface", title=", ".join(names)),
        f"The ends of four optimisers: {', '.join(names)} at (alpha, beta) = (1,1), (0,1), (1,0), "
        "(0,0).",
    )
    page.why("The paper shows one picture each and no numbers; barriers are measured here instead.")


STUDY = Study(
    title="Bilinear surfaces over starts and ends, and over the ends of four optimisers",
    paper=EMPIRICAL, figure="figures 2, 3", minutes=2, run=run,
)  # fmt: skip
