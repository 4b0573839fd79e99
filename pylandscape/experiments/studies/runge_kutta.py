"""Second-order Runge-Kutta steps beside SGD and Adam at equal numbers of gradients."""

from __future__ import annotations

import numpy as np
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import EMPIRICAL, Lab, Study
from ..measured import Measured
from ..page import panels

RATE, ADAM = 0.05, 0.001


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=512)
    model = networks.nin(data, lab.size(toy=2, small=8, paper=96))
    land = pl.Landscape(model, nn.CrossEntropyLoss(), data.train)
    epochs, count = lab.size(toy=4, small=16, paper=200), lab.size(toy=2, small=4, paper=5)
    families = {
        "SGD": (pl.SGD(lr=RATE), 1), "SGD x2": (pl.SGD(lr=2 * RATE), 1),
        **{m: (pl.RungeKutta(pl.SGD(lr=2 * RATE), m), 2) for m in ("midpoint", "heun", "ralston")},
        "Adam": (pl.Adam(lr=ADAM), 1), "Adam x2": (pl.Adam(lr=2 * ADAM), 1),
        "Adam + heun": (pl.RungeKutta(pl.Adam(lr=2 * ADAM), "heun"), 2),
    }  # fmt: skip
    runs = {
        name: pl.train(
            land, count, optimiser, epochs=epochs // cost, seed=lab.seed,
            batch_size=lab.size(toy=32, small=32, paper=128),
            path=lab.path(f"{name.replace(' ', '')}.h5"), progress=lab.progress,
        ) for name, (optimiser, cost) in families.items()
    }  # fmt: skip
    final = {name: np.log10(of.metrics["loss"][:, -1]) for name, of in runs.items()}

    page = lab.page
    page.did(
        f"A network in network (n = {land.n_params:,}) from {count} starts, {epochs} epochs of SGD "
        f"(rate {RATE}), of SGD with twice the rate, and half as many epochs of Runge-Kutta steps, "
        "which cost two gradients each, with twice the rate; likewise for Adam."
    )
    for method, better in (("heun", True), ("ralston", True), ("midpoint", False)):
        gain = Measured(final["SGD"] - final[method])
        page.claim(
            f"{method.capitalize()} {'outperforms' if better else 'does not outperform'} SGD at "
            "equal numbers of gradients",
            f"log10 of the final loss, SGD minus {method}: {gain}; SGD x2 minus {method}: "
            f"{Measured(final['SGD x2'] - final[method])}",
            gain.above(0.0) if better else gain.below(0.0),
        )
    gain = Measured(final["Adam + heun"] - final["Adam"])
    page.claim(
        "Adam outperforms Adam with Runge-Kutta",
        f"log10 of the final loss, Adam + heun minus Adam: {gain}", gain.above(0.0),
    )  # fmt: skip
    axes = panels(2, 2, height=2.4)
    for name, of in runs.items():
        axis = axes[int(name.startswith("Adam"))]
        gradients = of.steps * families[name][1]
        axis.plot(gradients, np.median(of.metrics["accuracy"], axis=0), label=name)
    for axis in axes:
        axis.set(xlabel="gradients", ylabel="training accuracy")
        axis.legend(frameon=False, fontsize=6)
    page.picture(axes, "Median training accuracy against gradients computed.")
    head = ("", *runs)
    page.table(head, [("log10 final loss", *(str(Measured(final[name])) for name in runs))])
    page.why("Which is ahead depends on the learning rate: where SGD is far from its limit, "
             "twice the rate helps more than a second gradient.")  # fmt: skip
    page.why("The paper counts epochs, each with two gradients for Runge-Kutta; here gradients.")


STUDY = Study(
    title="Runge-Kutta steps beside SGD and Adam at equal numbers of gradients",
    paper=EMPIRICAL, figure="figure 9", minutes=2, run=run,
)  # fmt: skip
