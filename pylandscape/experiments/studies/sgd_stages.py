"""Twelve stages of eight parallel SGDs, seen by multidimensional scaling layer by layer."""

from __future__ import annotations

import warnings
from itertools import combinations

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import THEORY_II, Lab, Study
from ..measured import Measured
from ..page import panels
from ..perturbations import perturbed

LAYERS = {"layer 2": "0.weight", "layer 5": "9.weight"}  # the input counts as layer 1


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=64)
    widths = lab.size(toy=(4,) * 5, small=(24, 16, 16, 16, 16), paper=(128, 64, 64, 64, 64))
    stages = lab.size(toy=2, small=12, paper=12)
    epochs = lab.size(toy=1, small=3, paper=10)
    rate, batch = lab.size(toy=0.05, small=0.05, paper=0.01), lab.size(toy=32, small=32, paper=100)
    model = networks.dcnn(data, widths)
    page = lab.page
    count = sum(p.numel() for p in model.parameters())
    page.did(
        f"A network of five convolutions with batch norm (n = {count:,}) was trained by SGD (rate "
        f"{rate}, batches of {batch}) in {stages} stages of {epochs} epochs. In each stage four "
        "runs start from P, the end of the first run of the stage before, and four from P with "
        "Gaussian noise of 0.01 of each tensor's deviation; each has its own order of batches. The "
        "same again with random labels."
    )
    mixed = data.y[torch.randperm(len(data.y), generator=torch.Generator().manual_seed(lab.seed))]
    for kind, labels in (("true", data.y), ("random", mixed)):
        land = pl.Landscape(model, nn.CrossEntropyLoss(), (data.x, labels))
        found, apart, moved = [], [], []
        state = pl.train(land, 1, pl.SGD(lr=rate), steps=1, seed=lab.seed, progress=False,
                         batch_size=batch)[0][0]  # fmt: skip
        for stage in range(stages):
            seeds = [lab.seed + 8 * stage + p for p in range(8)]
            noisy = [perturbed(state, 0.01, seed) for seed in seeds[4:]]
            runs = pl.train(
                land, [state] * 4 + noisy, pl.SGD(lr=rate), epochs=epochs, batch_size=batch,
                seed=seeds, own_order=True, path=lab.path(f"{kind}-{stage}.h5"),
                progress=lab.progress,
            )  # fmt: skip
            ends = runs.ends()
            norm = float(ends.norm(dim=1).mean())
            apart.append([float((ends[i] - ends[j]).norm()) / norm for i, j in
                          combinations(range(4), 2)])  # fmt: skip
            moved.append([float((ends[i] - ends[4]).norm()) / norm for i in range(4)])
            found.append(runs)
            state = runs[0][-1]
        _pictures(lab, kind, found)
        away = np.array(apart)
        page.claim(
            f"{kind} labels: parallel runs from one model take slightly different paths",
            f"distance of ends from one start over their norm: {Measured(away)} (pairs, stages), "
            f"least {away.min():.2g}",
            bool(away.min() > 1e-4),
        )
        rho, p = spearmanr(np.arange(stages), away.mean(1))
        page.claim(
            f"{kind} labels: they diverge less the later the stage",
            f"rank correlation of stage and distance {rho:.2f} (p = {p:.2g}); "
            f"{away[0].mean():.2g} in the first, {away[-1].mean():.2g} in the last stage",
            bool(rho < 0) if p < 0.05 else None,
        )
        noise = Measured(np.array(moved).mean(1) - away.mean(1))
        page.claim(
            f"{kind} labels: a small perturbation does no more than another order of mini-batches",
            f"distance of a perturbed run from the others, minus theirs, by stage: {noise} "
            f"(theirs {away.mean():.2g})",
            noise.within(-0.5 * away.mean(), 0.5 * away.mean()),
        )
        error = 1 - found[-1].metrics["accuracy"][:, -1]
        page.claim(
            f"{kind} labels: training goes to zero error",
            f"training error at the end {Measured(100 * error)} %", bool(error.max() < 0.01),
        )  # fmt: skip
    page.why("Fewer epochs a stage and a larger learning rate than the paper's at the small scale.")
    page.why("Distances are relative to the norm of the weights, which batch norm leaves free.")


def _pictures(lab: Lab, kind: str, stages: list[pl.Runs]) -> None:
    half = len(stages) // 3
    axes = panels(4, 2, height=2.7)
    for row, (layer, name) in enumerate(LAYERS.items()):
        for column, chosen in enumerate((stages, stages[half:])):
            with warnings.catch_warnings():  # 1 - cos is no plane-like distance: the paper's
                warnings.simplefilter("ignore")
                seen = pl.mds([run for runs in chosen for run in runs], layer=name)
            axis, first = axes[2 * row + column], 0 if column == 0 else half
            colour = first + seen.run // 8 + 1
            dots = axis.scatter(
                *seen.points.T, c=colour, s=3, cmap="viridis", vmin=1, vmax=len(stages)
            )
            axis.set_title(f"{layer}, stages {first + 1} to {len(stages)}, {kind} labels")
    axes[0].figure.colorbar(dots, ax=list(axes), label="stage", shrink=0.6)
    lab.page.picture(axes, f"All epochs of all runs, {kind} labels: strain MDS by 1 - cos of one "
                     "layer's weights; colour is the stage.")  # fmt: skip


STUDY = Study(
    title="Twelve stages of eight parallel SGDs, true and random labels",
    paper=THEORY_II, figure="figures 3, 8 to 13", minutes=3, run=run,
)  # fmt: skip
