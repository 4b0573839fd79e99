"""Batch gradient descent with branches: perturbed at four moments by noise of three sizes."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import spearmanr
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import THEORY_II, Lab, Study
from ..page import panels
from ..perturbations import average, perturbed

SIZES = (0.25, 0.5, 1.0)


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=256)
    widths = lab.size(toy=(4,) * 5, small=(24, 16, 16, 16, 16), paper=(128, 64, 64, 64, 64))
    model = networks.dcnn(data, widths)
    land = pl.Landscape(model, nn.CrossEntropyLoss(), data.train)
    middle = pl.Landscape(model, nn.CrossEntropyLoss(), data.train, bn="recompute")
    held_out = pl.Landscape(model, nn.CrossEntropyLoss(), data.test)
    epochs = lab.size(toy=8, small=120, paper=400)
    moments = lab.size(toy=(0, 4), small=(0, 5, 20, 60), paper=(0, 10, 50, 200))
    shown = np.unique(np.linspace(0, epochs, lab.size(toy=3, small=9, paper=17)).astype(int))

    def descend(start, count, name):  # type: ignore[no-untyped-def]
        return pl.train(land, [start], pl.SGD(lr=0.1), steps=count, record=1, seed=lab.seed,
                        path=lab.path(f"{name}.h5"), progress=lab.progress)[0]  # fmt: skip

    main = descend(land.theta, epochs, "main")
    page = lab.page
    page.did(
        f"Batch gradient descent (rate 0.1, {epochs} epochs) trained a network of five "
        f"convolutions (n = {land.n_params:,}). At epochs {', '.join(map(str, moments))} branches "
        "began from the model with Gaussian noise of 0.25, 0.5 and 1 S, S the deviation of each "
        "tensor. Main path and branch were averaged epoch by epoch."
    )
    rows, distance, excess, finals = [], [], [], []
    for size in SIZES:
        branches = []
        for moment in moments:
            branch = descend(perturbed(main[moment], size, lab.seed + moment), epochs - moment,
                             f"branch-{size}-{moment}")  # fmt: skip
            times = [t for t in shown if t >= moment]
            half = [average(main[int(t)], branch[int(t - moment)]) for t in times]
            errors = 1 - pl.agreement(middle, half).accuracy
            branches.append(branch)
            away = branch.distances(main[-1])[-1] / float(main.vector(-1).norm())
            distance.append((size, moment, away))
            finals.append(1 - branch.metrics["accuracy"][-1])
            excess.append(errors[-1] - max(finals[-1], 1 - main.metrics["accuracy"][-1]))
            rows.append((f"{size:g} S", moment, f"{100 * finals[-1]:.3g} %", f"{away:.3g}",
                         f"{100 * errors[-1]:.3g} %"))  # fmt: skip
        _picture(lab, size, main, branches, moments, shown)
    found = np.array(distance)
    error = 1 - main.metrics["accuracy"][-1]
    page.claim(
        "no local minima: gradient descent gets to zero error, on all branches",
        f"training error {100 * error:.2g} % on the main path, {100 * max(finals):.2g} % at most "
        "on the branches", bool(max([error, *finals]) < 0.01),
    )  # fmt: skip
    page.claim(
        "a perturbed model takes another path: no branch ends where the main path does",
        f"relative distance of the ends {found[:, 2].min():.2g} to {found[:, 2].max():.2g}",
        bool(found[:, 2].min() > 1e-3),
    )  # fmt: skip
    for what, column, sign in (("the larger the noise", 0, 1), ("the earlier the branch", 1, -1)):
        rho, p = spearmanr(found[:, column], found[:, 2])
        page.claim(
            f"{what}, the more different the final model",
            f"rank correlation {rho:.2f} (p = {p:.2g}) over {len(found)} branches",
            bool(sign * rho > 0) if p < 0.05 else None,
        )
    rho, p = spearmanr(found[:, 2], excess)
    page.claim(
        "averages of near models have similar errors, those of distant ones raised errors",
        f"error of the average minus that of the worse end: {100 * min(excess):.2g} to "
        f"{100 * max(excess):.2g} %; rank correlation with the distance {rho:.2f} (p = {p:.2g})",
        bool(rho > 0) if p < 0.05 else None,
    )
    test = 1 - pl.agreement(held_out, [main[-1]]).accuracy[0]
    page.table(("noise", "epoch", "final training error", "distance from the main end",
                "error of the average"), rows)  # fmt: skip
    page.text(f"Held-out error at the end of the main path: {100 * test:.3g} % (the paper: 40 % by "
              "batch gradient descent on CIFAR-10, 32 % by SGD).")  # fmt: skip
    page.why("Averages use batch norm statistics recomputed for them; the paper does not say.")


def _picture(lab: Lab, size: float, main: pl.Trajectory, branches: list[pl.Trajectory],
             moments: tuple[int, ...], shown: np.ndarray) -> None:  # fmt: skip
    axes = panels(2, 2, height=2.8)
    for axis, (layer, name) in zip(axes, {"layer 2": "0.weight", "layer 3": "3.weight"}.items(),
                                   strict=True):  # fmt: skip
        paths = [main, *branches]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seen = pl.mds([path[:: max(1, len(main) // 40)] for path in paths], layer=name)
        seen.plot(axis, names=["main", *(f"from epoch {moment}" for moment in moments)])
        axis.get_legend().remove()
        axis.set_title(f"{layer}, noise of {size:g} S")
    axes[0].legend(fontsize=5, frameon=False)
    lab.page.picture(axes, f"Main path and branches by noise of {size:g} S: strain MDS of one "
                     "layer's weights. Circles: starts; stars: ends.")  # fmt: skip


STUDY = Study(
    title="Batch gradient descent with perturbed branches and their averages",
    paper=THEORY_II, figure="figures 4, 14 to 17", minutes=2, run=run,
)  # fmt: skip
