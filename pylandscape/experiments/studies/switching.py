"""Switching from one optimiser to another after 25, 50 and 75 % of the training."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import EMPIRICAL, Lab, Study
from ..measured import Measured
from ..page import panels

S, A, D = "SGD", "Adam", "Adadelta"
FIRST: dict[str, Any] = {S: pl.SGD(lr=0.05), A: pl.Adam(lr=0.001), D: pl.Adadelta(lr=1.0)}
AFTER: dict[str, list[Any]] = {  # the rates after the switch that the paper names
    S: [pl.SGD(lr=rate) for rate in (0.1, 0.05, 0.01)],
    A: [pl.Adam(lr=rate) for rate in (0.001, 0.0005, 0.0001)],
    D: [pl.Adadelta(lr=1.0)],
}
PAIRS = ((S, A), (S, D), (A, D))
SHARES = (0.25, 0.5, 0.75)


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=64)
    epochs = lab.size(toy=4, small=20, paper=200)
    batch = lab.size(toy=32, small=32, paper=128)
    width = lab.size(toy=2, small=8, paper=64)
    page = lab.page
    page.did(
        f"After 25, 50 and 75 % of {epochs} epochs the optimiser was exchanged (its state begins "
        "anew): SGD and Adam on a network in network, SGD and Adadelta, Adam and Adadelta on a "
        "VGG, both with batch norm, with each rate after the switch that the paper names. Then "
        "the distance from the start by epoch, and the loss between the ends."
    )
    falls, walls, jumps = [], [], []
    for a, b in PAIRS if lab.scale != "toy" else PAIRS[:1]:
        build = networks.nin if (a, b) == (S, A) else networks.vgg
        land = pl.Landscape(build(data, width, seed=lab.seed), nn.CrossEntropyLoss(), data.train,
                            bn="recompute")  # fmt: skip

        def train(start, optimiser, count, name, land=land):  # type: ignore[no-untyped-def]
            return pl.train(land, start, optimiser, epochs=count, batch_size=batch, seed=lab.seed,
                            path=lab.path(f"{name}.h5"), progress=lab.progress)[0]  # fmt: skip

        whole = {one: train([land.theta], FIRST[one], epochs, f"{a}{b}-{one}") for one in (a, b)}
        axes = panels(6, 3, height=1.8).reshape(2, 3)
        for row, (old, new) in enumerate(((a, b), (b, a))):
            for one in (old, new):
                axes[row, 0].plot(whole[one].metrics["accuracy"], label=one)
                axes[row, 1].plot(whole[one].distances(0))
            for k, optimiser in enumerate(AFTER[new] if lab.scale != "toy" else AFTER[new][:1]):
                ends = []
                for share in SHARES:
                    at = round(share * epochs)
                    after = train([whole[old][at]], optimiser, epochs - at,
                                  f"{a}{b}-{old}-{at}-{k}")  # fmt: skip
                    ends.append(after[-1])
                    away = after.distances(whole[old][0])
                    if (old, new) == (A, S):
                        falls.append(away[-1] - away[0])
                    alone = whole[new].metrics["accuracy"][-1], whole[old].metrics["accuracy"][-1]
                    own = after.metrics["accuracy"][-1]
                    jumps.append(abs(own - alone[1]) - abs(own - alone[0]))
                    if k == 0:
                        steps = np.arange(at, epochs + 1)
                        label = f"{old[0]}{at}-{new[0]}{epochs - at}"
                        axes[row, 0].plot(steps, after.metrics["accuracy"], "--", label=label)
                        axes[row, 1].plot(steps, away, "--")
                for i, j in combinations(range(3), 2):
                    line = pl.interpolate(land, [ends[i], ends[j]], (-0.2, 1.2, 29), progress=False)
                    walls.append((line.barrier, max(line.values[[4, 24]])))
                    if k == 0:
                        axes[row, 2].plot(line.x, line.values)
            axes[row, 0].legend(frameon=False, fontsize=5, loc="lower right")
            axes[row, 0].set(xlabel="epoch", ylabel="training accuracy")
            axes[row, 1].set(xlabel="epoch", ylabel="distance from the start")
            axes[row, 2].set(xlabel="alpha", ylabel="loss between the ends")
        page.picture(axes, f"Above {a} to {b}, below {b} to {a}: accuracy, distance from the "
                     "start, loss on the lines between the ends of different moments.")  # fmt: skip
    wall = np.array(walls)
    page.claim(
        "however late the switch, the minima found are all different (figures 7, 12 to 15)",
        f"barriers between ends of different moments: {Measured(wall[:, 0])}, positive in "
        f"{(wall[:, 0] > 1e-3).sum()} of {len(wall)}; loss at an end {wall[:, 1].max():.2g}",
        bool((wall[:, 0] > 1e-3).all()),
    )
    fall = Measured(falls)
    page.claim(
        "the distance from the start decreases when switching from Adam to SGD",
        f"change from the switch to the end: {fall} (all rates and moments)", fall.below(0.0),
    )  # fmt: skip
    jump = Measured(jumps)
    page.claim(
        "training accuracy jumps to the characteristic accuracy of the new method",
        f"how much nearer the end is to the new method's accuracy than to the old one's: {jump}",
        jump.above(0.0),
    )
    page.why("On small data every method reaches nearly full training accuracy, so that there are "
             "hardly characteristic ones.")  # fmt: skip
    page.why("Whether SGD moves back to the start depends on weight decay, of which the paper does "
             "not say a word; here there is none.")  # fmt: skip


STUDY = Study(
    title="Switching the optimiser after 25, 50 and 75 % of the training",
    paper=EMPIRICAL, figure="figures 7, 12 to 15", minutes=3, run=run,
)  # fmt: skip
