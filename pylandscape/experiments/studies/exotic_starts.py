"""Starts far from the usual small weights: N(-10, 0.01) and N(-1, 1), with and without norm."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import EMPIRICAL, Lab, Study
from ..measured import Measured
from ..methods import trained
from ..page import panels

STARTS = {"N(-10, 0.01)": (-10.0, 0.01), "N(-1, 1)": (-1.0, 1.0)}


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=64)
    count = lab.size(toy=2, small=3, paper=5)
    page = lab.page
    page.did(
        f"SGD trained a network in network from {count} draws each of two exotic starts and of the "
        "usual one, with and without batch norm; then the loss on a random plane around the end."
    )
    gain: dict[bool, list[float]] = {True: [], False: []}
    final: dict[tuple[bool, str], np.ndarray] = {}
    flat = []
    axes = panels(4, 4, height=1.8)
    for bn in (True, False):
        model = networks.nin(data, lab.size(toy=2, small=8, paper=96), bn)
        land = pl.Landscape(
            model, nn.CrossEntropyLoss(), data.train, bn="recompute" if bn else "eval"
        )
        kind = "with" if bn else "without"
        chance = np.log(data.classes)
        for k, (name, (mean, deviation)) in enumerate([("usual", (0, 0)), *STARTS.items()]):
            draw = torch.Generator().manual_seed(lab.seed)
            drawn = mean + deviation * torch.randn(count, land.n_params, generator=draw)
            starts = count if name == "usual" else list(drawn.to(land.theta.dtype))
            runs = trained(lab, land, ("SGD",), starts, f"{kind}-{k}-")["SGD"]
            losses = runs.metrics["loss"]
            final[bn, name] = losses[:, -1]
            axes[1 - bn].plot(np.median(losses, axis=0), label=name)
            if name != "usual":
                gain[bn] += [*(1 - losses[:, -1] / chance)]
                end = runs[0][-1]
                d1, d2 = pl.random_directions(land, 2, normalize="filter", seed=lab.seed)
                side = lab.size(toy=3, small=15, paper=41)
                around = pl.plane(land, d1, d2, (-1, 1, side), (-1, 1, side), theta=end,
                                  path=lab.path(f"{kind}-{k}-plane.h5"),
                                  progress=lab.progress)  # fmt: skip
                if not bn:
                    flat.append(float(np.ptp(around.values) / around.values.mean()))
                if k == 1:
                    axes[3 - bn].contourf(around.x, around.y, around.values.T, 12)
                    low, high = around.values.min(), around.values.max()
                    axes[3 - bn].set_title(f"{name}, {kind}: {low:.3g} to {high:.3g}", fontsize=6)
        axes[1 - bn].set(
            title=f"{kind} batch norm",
            xlabel="epoch",
            ylabel="loss",
            yscale="log" if bn else "linear",
        )
        axes[1 - bn].legend(frameon=False, fontsize=5)
    without, with_ = Measured(gain[False]), Measured(gain[True])
    page.claim(
        "without batch norm the network does not train at all from these starts",
        f"1 - final loss / loss by chance: {without}", without.below(0.1),
    )  # fmt: skip
    page.claim(
        "around them the surface is a plateau, not a bad local minimum",
        f"range of the loss around the end, over its mean: {min(flat):.2g} to {max(flat):.2g}",
        bool(max(flat) < 0.05),
    )  # fmt: skip
    page.claim(
        "with batch norm it trains, slowly", f"1 - final loss / loss by chance: {with_}",
        with_.above(0.1),
    )  # fmt: skip
    worse = Measured(np.concatenate([final[True, n] - final[True, "usual"] for n in STARTS]))
    page.claim(
        "the minimum is not as good as from small weights",
        f"final loss minus that from the usual start: {worse}", worse.above(0.0),
    )  # fmt: skip
    page.picture(axes, "Loss by epoch, and the loss around an end.")
    page.why("The second argument of N is read as a standard deviation.")


STUDY = Study(
    title="Exotic starts, with and without batch norm", paper=EMPIRICAL, figure="figure 11",
    minutes=2, run=run,
)  # fmt: skip
