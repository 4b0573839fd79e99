"""A search by a model of where good weights lie, beside random search and gradient descent."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import pylandscape as pl

from .. import networks
from ..global_search import global_search
from ..lab import CATALOGUE, Lab, Study
from ..measured import Measured
from ..page import panels


def run(lab: Lab) -> None:
    page, runs = lab.page, lab.size(toy=2, small=10, paper=30)
    evaluations = lab.size(toy=300, small=30_000, paper=200_000)
    tasks = {"XOR 2-2-1": _xor(lab.seed), "encoder 8-3-8": _encoder(lab.seed)}
    page.did(
        f"PBIL (a Gaussian with independent weights, moved towards the best 10 of each 50 draws), "
        f"independent draws and full-batch gradient descent spent {evaluations:,} evaluations of "
        f"the loss each (a gradient counts as three), {runs} runs of each, on two small problems."
    )
    axes = panels(len(tasks), 2, height=2.4)
    for ax, (name, land) in zip(axes, tasks.items(), strict=True):
        found = global_search(
            land, runs=runs, evaluations=evaluations, deviation=2.0, rate=0.05, lr=0.1,
            seed=lab.seed, path=lab.path(f"{land.n_params}.h5"), progress=lab.progress,
        )  # fmt: skip
        found.plot(ax)
        ax.legend(frameon=False, fontsize=6)
        ax.set_title(name)
        logs = {m: np.log10(np.maximum(found.final(m), 1e-12)) for m in found.methods}
        gain = Measured(logs["random"] - logs["pbil"])
        page.claim(
            f"a model of the error surface can direct the search for good weights: {name}",
            f"lowest loss: PBIL {np.median(found.final('pbil')):.2g}, random draws "
            f"{np.median(found.final('random')):.2g} (medians); orders of magnitude between "
            f"them: {gain}",
            gain.above(0.0),
        )
        slope = Measured(logs["pbil"] - logs["gradient"])
        page.claim(
            f"the gradient leads further at the same cost: {name}",
            f"descent reaches {np.median(found.final('gradient')):.2g} (median), {slope} orders of "
            "magnitude below PBIL", slope.above(0.0),
        )  # fmt: skip
    page.picture(axes, "The lowest loss so far against the evaluations: medians, and the range of "
                 "all runs.")  # fmt: skip
    page.why("The thesis is known to us by its title and summary; the algorithm is a minimal form "
             "of it. One Gaussian cannot hold several optima, of which the symmetry group makes "
             "many.")  # fmt: skip


def _xor(seed: int) -> pl.Landscape:
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    net = networks.seeded(
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double(), seed
    )
    return pl.Landscape(net, "mse", (x, (x.sum(1, keepdim=True) == 1).double()))


def _encoder(seed: int) -> pl.Landscape:
    codes = torch.eye(8, dtype=torch.float64)
    net = networks.seeded(
        lambda: nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 8)).double(), seed
    )
    return pl.Landscape(net, "mse", (codes, codes))


STUDY = Study(
    title="Model-based search beside random search and gradient descent", paper=CATALOGUE,
    figure="section 5.6", minutes=0.5, run=run, data="none",
)  # fmt: skip
