"""Learning curves: a short transient phase, then a long minimisation phase."""

from __future__ import annotations

import numpy as np
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import EMPIRICAL, Lab, Study
from ..measured import Measured
from ..methods import trained
from ..page import panels


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=512)
    model = networks.nin(data, lab.size(toy=2, small=8, paper=96))
    land = pl.Landscape(model, nn.CrossEntropyLoss(), data.train)
    names = lab.size(toy=("SGD",), small=("SGD", "Adam"), paper=("SGD", "RMSprop", "Adam"))
    runs = trained(lab, land, names, lab.size(toy=2, small=4, paper=4))

    early, late = [], []  # of each run, the share of the decrease, and the rate of decrease
    for of_one in runs.values():
        losses = of_one.metrics["batch_loss"][:, 1:]
        fifth = max(1, losses.shape[1] // 5)
        early += [*((losses[:, 0] - losses[:, fifth]) / (losses[:, 0] - losses[:, -1]))]
        fast = (losses[:, 0] - losses[:, fifth]) / fifth
        slow = (losses[:, fifth] - losses[:, -1]) / (losses.shape[1] - fifth)
        late += [*(slow / fast)]

    page = lab.page
    page.did(
        f"{len(names)} optimisers trained a network in network (n = {land.n_params:,}) from "
        f"{len(runs[names[0]])} starts each. The mean loss of an epoch's mini-batches is followed."
    )
    share, ratio = Measured(early), Measured(late)
    page.claim(
        "improvement decreases rapidly: a short transient phase, then a long minimisation phase",
        f"share of the whole decrease in the first fifth of the epochs after the first: {share}; "
        f"the later decrease an epoch is {ratio} of the early one (two phases: below a half)",
        ratio.below(0.5),
    )  # fmt: skip
    axes = panels(2, 2, height=2.3)
    for name, of_one in runs.items():
        epochs = np.arange(1, len(of_one.steps))
        for k, axis in enumerate(axes):
            values = of_one.metrics[("batch_loss", "accuracy")[k]][:, 1:]
            axis.plot(epochs, np.median(values, axis=0), label=name)
    axes[0].set(yscale="log", xlabel="epoch", ylabel="loss of mini-batches")
    axes[1].set(xlabel="epoch", ylabel="training accuracy")
    axes[0].legend(frameon=False, fontsize=6)
    page.picture(axes, "Medians over the starts.")
    page.why("The paper's figure is an illustration without numbers; the fifth is our choice.")


STUDY = Study(
    title="Learning curves with their transient and minimisation phase",
    paper=EMPIRICAL, figure="figure 1", minutes=1, run=run,
)  # fmt: skip
