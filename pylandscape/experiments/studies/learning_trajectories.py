"""Learning trajectories along their principal components, beside what random walks give."""

from __future__ import annotations

import numpy as np
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import CATALOGUE, Lab, Study
from ..measured import Measured
from ..page import panels

OPTIMISERS = {"SGD": pl.SGD(lr=0.1), "momentum": pl.SGD(lr=0.02, momentum=0.9),
              "Adam": pl.Adam(lr=0.003)}  # fmt: skip


def run(lab: Lab) -> None:
    data, page = lab.images(side=8, train=512, test=64), lab.page
    count, steps = lab.size(toy=2, small=4, paper=10), lab.size(toy=24, small=800, paper=10_000)
    net = networks.fc2(data, lab.size(toy=4, small=16, paper=64), seed=lab.seed)
    land = pl.Landscape(net, nn.CrossEntropyLoss(), data.train)
    page.did(
        f"A network with two hidden layers (n = {land.n_params:,}) was trained for {steps} steps "
        f"by each of {', '.join(OPTIMISERS)} from {count} starts; the principal components of each "
        "path about its mean, beside the shares that a random walk in many dimensions has."
    )
    axes = panels(2 * len(OPTIMISERS), len(OPTIMISERS), height=2.0).reshape(2, -1)
    planes, first, null = [], [], 0.0
    for k, (name, rule) in enumerate(OPTIMISERS.items()):
        runs = pl.train(
            land, count, rule, steps=steps, batch_size=64, record=max(1, steps // 100),
            seed=lab.seed, path=lab.path(f"{name}.h5"), progress=lab.progress,
        )  # fmt: skip
        found = [pl.pca(run, 5, centre="mean") for run in runs]
        planes += [f.ratios[:2].sum() for f in found]
        first += [f.ratios[0] for f in found]
        null = float(found[0].null[0])
        for f in found:
            axes[0, k].plot(*f.coordinates[:, :2].T, linewidth=0.8)
            axes[0, k].plot(*f.coordinates[-1, :2], "k*", markersize=4)
            axes[1, k].plot(np.arange(1, 6), f.ratios, "o-", markersize=2, linewidth=0.6)
        axes[1, k].plot(np.arange(1, 6), found[0].null, "kx", label="random walk")
        axes[0, k].set(title=name, xlabel="component 1", ylabel="component 2")
        axes[1, k].set(yscale="log", xlabel="component", ylabel="share of the variance")
    axes[1, 0].legend(frameon=False, fontsize=6)
    page.claim(
        "two principal components show most of a learning trajectory",
        f"share of the variance in the plane: {Measured(planes)}", Measured(planes).above(0.7),
    )  # fmt: skip
    page.claim(
        "so training moves along few directions (more than a random walk does)",
        f"first component {Measured(first)}; a random walk has {null:.3f}",
        Measured(first).above(null),
    )
    loadings = pl.pca(runs[0], 2, centre="mean").loadings
    page.table(("parameter", "share of component 1", "of component 2"),
               [(key, *map(float, value[:2])) for key, value in loadings.items()],
               "Which weights move, in the last run of Adam:")  # fmt: skip
    page.picture(axes, "Paths in their own planes (star: the end), and the components' shares "
                 "beside a random walk's (crosses).")  # fmt: skip
    page.why("A random walk's first component holds 6 / pi^2 = 61 % of its variance about the mean "
             "(and 81 % about its end): a high share alone proves nothing.")  # fmt: skip


STUDY = Study(
    title="Learning trajectories along principal components, with their null",
    paper=CATALOGUE, figure="section 5.6 (Gallagher)", minutes=0.5, run=run,
)  # fmt: skip
