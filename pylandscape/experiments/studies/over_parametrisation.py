"""More parameters than data do not hurt: validation error against width, at several data sizes."""

from __future__ import annotations

import numpy as np
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import THEORY_II, Lab, Study
from ..measured import Measured
from ..page import panels


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=1024, test=512)
    sizes = lab.size(toy=(16, 32), small=(64, 256, 1024), paper=(1000, 5000, 20_000))
    widths = lab.size(toy=(2, 4), small=(2, 4, 8, 16, 32, 64, 128, 256), paper=(4, 16, 64, 256))
    count, steps = lab.size(toy=2, small=5, paper=3), lab.size(toy=20, small=600, paper=20_000)
    error = np.zeros((len(sizes), len(widths), count))
    wrong, parameters = np.zeros_like(error), np.zeros(len(widths))
    for i, size in enumerate(sizes):
        for j, width in enumerate(widths):
            net = networks.fc2(data, width, seed=lab.seed)
            land = pl.Landscape(net, nn.CrossEntropyLoss(), (data.x[:size], data.y[:size]))
            held_out = pl.Landscape(net, nn.CrossEntropyLoss(), data.test)
            runs = pl.train(
                land, count, pl.Adam(lr=0.003), steps=steps, batch_size=min(64, size),
                record=steps, seed=lab.seed, path=lab.path(f"{size}-{width}.h5"),
                progress=lab.progress,
            )  # fmt: skip
            parameters[j] = land.n_params
            error[i, j] = 1 - pl.agreement(held_out, [run[-1] for run in runs]).accuracy
            wrong[i, j] = 1 - runs.metrics["accuracy"][:, -1]
    page = lab.page
    page.did(
        f"Fully connected networks of two hidden layers, {widths[0]} to {widths[-1]} wide "
        f"({parameters[0]:,.0f} to {parameters[-1]:,.0f} parameters), were trained on "
        f"{', '.join(map(str, sizes))} images for {steps} steps of Adam, {count} starts each."
    )
    for i, size in enumerate(sizes):
        fitting = [j for j in range(len(widths)) if wrong[i, j].max() == 0.0]
        first = fitting[0] if fitting else len(widths) - 1
        rise = Measured(error[i, -1] - error[i, first])
        page.claim(
            f"overparametrisation does not raise the validation error (figure 40): {size} images",
            f"from {parameters[first]:,.0f} parameters, the fewest that fit all of them, to "
            f"{parameters[-1]:,.0f} ({parameters[-1] / size:.0f} for each image): {rise}",
            None if not fitting else rise.below(0.02),
        )
    axes = panels(2, 2, height=2.4)
    for i, size in enumerate(sizes):
        for ax, values in zip(axes, (error, wrong), strict=True):
            half = [Measured(row).half for row in values[i]]
            ax.errorbar(parameters, values[i].mean(1), half, marker="o", markersize=3,
                        label=f"{size} images")  # fmt: skip
    axes[0].set(xscale="log", xlabel="parameters", ylabel="held-out error")
    axes[1].set(xscale="log", xlabel="parameters", ylabel="training error")
    axes[0].legend(frameon=False)
    page.picture(axes, "Held-out and training error against the number of parameters.")
    page.why("Early stopping, weight decay and label noise all matter for this curve; here there "
             "are none, and the steps are the same for all widths.")  # fmt: skip


STUDY = Study(
    title="Overparametrisation and the validation error", paper=THEORY_II, figure="figure 40",
    minutes=1.5, run=run,
)  # fmt: skip
