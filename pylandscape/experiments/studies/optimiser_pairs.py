"""Surfaces between the start and the ends of two optimisers, for every pair, with how far apart the
ends are as functions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import EMPIRICAL, Lab, Study
from ..measured import Measured
from ..methods import METHODS, trained
from ..page import panels


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=512)
    model = networks.nin(data, lab.size(toy=2, small=8, paper=96), seed=lab.seed)
    land = pl.Landscape(model, nn.CrossEntropyLoss(), data.train, bn="recompute")
    held_out = pl.Landscape(model, nn.CrossEntropyLoss(), data.test, bn="recompute")
    few = ("SGD", "SGDM", "RMSprop", "Adadelta", "Adam")
    names = lab.size(toy=("SGD", "Adam"), small=few, paper=tuple(METHODS))
    runs = trained(lab, land, names, [land.theta])
    ends = {name: runs[name].ends()[0] for name in names}

    between = pl.barriers(
        land, list(ends.values()), labels=names, path=lab.path("barriers.h5"), progress=lab.progress
    )
    apart = pl.barriers(
        held_out, list(ends.values()), points=5, labels=names, path=lab.path("held_out.h5"),
        progress=lab.progress,
    )  # fmt: skip
    upper = np.triu_indices(len(names), 1)
    barrier, distance = between.barrier[upper], apart.functional[upper]
    worse = np.maximum(between.losses[upper[0]], between.losses[upper[1]])
    high = between.values[upper].max(axis=1) / worse
    disagree = apart.disagreement[upper]
    accuracy = pl.agreement(held_out, list(ends.values())).accuracy
    error = 1 - accuracy
    most = np.array([error[i] + error[j] for i, j in zip(*upper, strict=True)])

    page = lab.page
    page.did(
        f"A network in network (n = {land.n_params:,}, batch norm, statistics recomputed at every "
        f"point) was trained by {', '.join(names)} from one start over the same mini-batches, for "
        f"{lab.size(toy=2, small=20, paper=200)} epochs. Between the ends of every pair: the loss "
        "on the straight line, the functional distance on held-out data, and the surface over the "
        "triangle of the start and both ends."
    )
    page.claim(
        "on the line between the ends of every pair of algorithms the training loss rises sharply",
        f"the highest loss on the way is {Measured(high)} times that of the worse end (at least "
        f"twice counts as sharp); barriers {Measured(barrier)}, least {barrier.min():.2g}",
        Measured(high).above(2.0),
    )
    page.claim(
        "the ends are different functions: distance about 0.16 for every pair (its square, in our "
        "reading), labels disagree on 8 %",
        f"distance {Measured(distance)}, square {Measured(distance**2)}, labels disagree on "
        f"{Measured(100 * disagree)} %",
        bool((distance > 0.05).all()),
    )
    share = Measured(disagree / np.maximum(most, 1e-9))
    page.claim(
        "they disagree on over a third of the examples on which they could (twice the error)",
        f"share {share} of the sum of both errors", share.above(1 / 3),
    )  # fmt: skip

    k, alpha = len(names), np.linspace(0, 1, lab.size(toy=3, small=9, paper=41))
    axes = panels(k * k, k, height=1.35).reshape(k, k)
    side = lab.size(toy=3, small=11, paper=25)
    for (i, a), (j, b) in combinations(enumerate(names), 2):
        surface = pl.interpolate(
            land, [land.theta, ends[a], ends[b]], (0, 1, side), (0, 1, side),
            path=lab.path(f"triangle-{i}{j}.h5"), progress=lab.progress,
        )  # fmt: skip
        surface.plot("filled", axes[j, i], vmax=3.0, colorbar=False, labels=False)
        mixed = [(1 - t) * ends[a] + t * ends[b] for t in alpha]
        away = [pl.functional_distance(held_out, ends[a], theta).distance for theta in mixed]
        axes[i, j].plot(alpha, away, color="#0072B2")
        axes[i, j].set_ylim(0, 1.2)
    for i, name in enumerate(names):
        for one in axes[i]:
            one.set(xlabel="", ylabel="", title="")
        axes[i, i].axis("off")
        axes[i, i].text(0.5, 0.5, name, ha="center", transform=axes[i, i].transAxes)
    page.picture(
        axes, "Below the diagonal: the loss over the triangle of the start and both ends (dark is "
        "low, one colour scale up to 3). Above: functional distance from the first end along the "
        "line to the second, 0 to 1.2."
    )  # fmt: skip
    page.picture(between.plot(), "Barriers between the ends, in units of the loss.")
    page.table(("", *names), [("held-out accuracy", *map(float, accuracy))])
    page.why("Smaller images and networks, fewer epochs: training errors are near zero for all.")
    page.why("The paper does not say whether F is a probability; here it is, after the softmax.")


STUDY = Study(
    title="Surfaces and functional distances between the ends of pairs of optimisers",
    paper=EMPIRICAL, figure="table 1", minutes=2, run=run,
)  # fmt: skip
