"""Perturb a model early, midway and at the global minimum, and train it again: are minima flat, are
the retrained models alike, and is there a wall between them?"""

from __future__ import annotations

import warnings
from itertools import combinations

import numpy as np
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import THEORY_II, Lab, Study
from ..measured import Measured
from ..page import panels
from ..perturbations import perturbed

KINDS = {"large": (0.1, "deviation"), "small": (0.01, "size")}


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=512)
    widths = lab.size(toy=(4,) * 5, small=(24, 16, 16, 16, 16), paper=(128, 64, 64, 64, 64))
    model = networks.dcnn(data, widths)
    land = pl.Landscape(model, nn.CrossEntropyLoss(), data.train)
    between = pl.Landscape(model, nn.CrossEntropyLoss(), data.train, bn="recompute")
    held_out = pl.Landscape(model, nn.CrossEntropyLoss(), data.test)
    epochs = lab.size(toy=4, small=24, paper=60)
    moments = lab.size(toy=(1, 2), small=(2, 12), paper=(5, 30))
    more, again = lab.size(toy=4, small=60, paper=400), lab.size(toy=4, small=50, paper=200)
    batch = lab.size(toy=32, small=32, paper=100)
    sgd = pl.SGD(lr=lab.size(toy=0.05, small=0.05, paper=0.01))

    def train(starts, rule, name, **options):  # type: ignore[no-untyped-def]
        return pl.train(land, starts, rule, seed=lab.seed, path=lab.path(f"{name}.h5"),
                        progress=lab.progress, **options)  # fmt: skip

    first = train(2, sgd, "sgd", epochs=epochs, batch_size=batch)  # the model and a reference
    last = train(first, pl.SGD(lr=0.1), "descent", steps=more, record=max(1, more // 10))
    models = {f"M{moment}": first[0][moment] for moment in moments} | {"Mfinal": last[0][-1]}
    page = lab.page
    page.did(
        f"A network of five convolutions (n = {land.n_params:,}) was trained by {epochs} epochs of "
        f"SGD and {more} of batch gradient descent. {', '.join(models)} were perturbed by Gaussian "
        "noise of 0.1 of each tensor's deviation (large) or 0.01 of its mean size (small), four "
        f"times each, and trained again by {again} epochs of batch gradient descent."
    )
    rows = []
    axes = panels(6, 3, height=2.2)
    for k, (name, state) in enumerate(models.items()):
        for row, (kind, (factor, of)) in enumerate(KINDS.items()):
            starts = [perturbed(state, factor, lab.seed + p, of) for p in range(4)]
            runs = train(starts, pl.SGD(lr=0.1), f"{name}-{kind}", steps=again,
                         record=max(1, again // 10))  # fmt: skip
            ends = [r[-1] for r in runs]
            error = 1 - runs.metrics["accuracy"][:, -1]
            test = 1 - pl.agreement(held_out, ends).accuracy
            norm = float(runs.ends().norm(dim=1).mean())
            away = Measured([float((runs.ends()[i] - runs.ends()[j]).norm()) / norm
                             for i, j in combinations(range(4), 2)])  # fmt: skip
            walls = [pl.interpolate(between, pair, (0, 1, 11), metrics=("loss", "accuracy"),
                                    progress=False) for pair in (starts[:2], ends[:2])]  # fmt: skip
            high = [max(0.0, min(w.metrics["accuracy"][[0, -1]]) - min(w.metrics["accuracy"]))
                    for w in walls]  # fmt: skip
            rows.append((name, kind, 100 * error.mean(), str(Measured(100 * test)), str(away),
                         100 * high[0], 100 * high[1]))  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pl.mds(list(runs), layer="0.weight").plot(axes[3 * row + k])
            axes[3 * row + k].get_legend().remove()
            axes[3 * row + k].set(title=f"{name}, {kind} noise", xlabel="", ylabel="")
            axes[3 * row + k].locator_params(nbins=4)
            if name == "Mfinal":
                page.claim(
                    f"{kind} noise on Mfinal: retrained to zero error again",
                    f"training error {Measured(100 * error)} %", bool(error.max() < 0.01),
                )  # fmt: skip
                page.claim(
                    f"{kind} noise on Mfinal: the global minima found are different models",
                    f"distance of the retrained ones over their norm: {away}", away.above(1e-4),
                )  # fmt: skip
            if kind == "large":
                _alike(lab, held_out, name, ends, last[1][-1])
                page.claim(
                    f"{name}: no wall between retrained models at this noise (figures 30, 37)",
                    f"training error on the line above its ends: {100 * high[0]:.2g} % before and "
                    f"{100 * high[1]:.2g} % after retraining", bool(high[1] < 0.02),
                )  # fmt: skip
    page.picture(axes, "Retraining from each of the models: strain MDS of layer 2, a colour a run. "
                 "Circles: just perturbed; stars: retrained.")  # fmt: skip
    page.table(("model", "noise", "training error, %", "held-out error, %", "distance",
                "wall before, %", "wall after, %"), rows)  # fmt: skip
    page.why("The reference is a network trained from another start; the paper does not say which.")


def _alike(lab: Lab, held_out: pl.Landscape, name: str, ends: list, reference: dict) -> None:
    """Agreement of four retrained models and a reference (figures 23, 29, 36)."""
    found = pl.agreement(held_out, [*ends, reference])
    own, other = found.right[np.triu_indices(4, 1)], found.right[4, :4]
    more = Measured(own).mean - Measured(other).mean
    lab.page.claim(
        f"{name}: retrained models agree not fully, but more than with a reference",
        f"P(j right given i right) {Measured(own)} among them, {Measured(other)} with it",
        bool(own.min() < 1 and more > 0),
    )
    names = ["1", "2", "3", "4", "reference"]
    lab.page.picture(found.plot(names=names), f"Retrained from {name}, and a reference.")


STUDY = Study(
    title="Perturb and retrain: flat minima, agreement, interpolation", paper=THEORY_II,
    figure="figures 5, 18 to 45", minutes=2, run=run,
)  # fmt: skip
