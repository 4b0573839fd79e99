"""Restarts of each optimiser: accuracies, the look of the surface around the ends, basin widths."""

from __future__ import annotations

import warnings

import numpy as np
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import EMPIRICAL, Lab, Study
from ..measured import Measured
from ..methods import METHODS, trained
from ..page import panels

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=512)
    model = networks.nin(data, lab.size(toy=2, small=8, paper=96))
    land = pl.Landscape(model, nn.CrossEntropyLoss(), data.train, bn="recompute")
    held_out = pl.Landscape(model, nn.CrossEntropyLoss(), data.test)
    names = lab.size(toy=("SGD", "Adam"), small=tuple(METHODS)[:6], paper=tuple(METHODS))
    count = lab.size(toy=2, small=4, paper=5)
    runs = trained(lab, land, names, count)

    points = lab.size(toy=9, small=41, paper=101)
    lines = {name: [pl.interpolate(land, [run[0], run[-1]], (-0.5, 2.0, points), progress=False,
             path=lab.path(f"line-{METHODS[name].lr}-{names.index(name)}-{p}.h5"))
             for p, run in enumerate(runs[name])] for name in names}  # fmt: skip
    train = {name: runs[name].metrics["accuracy"][:, -1] for name in names}
    test = {n: pl.agreement(held_out, [r[-1] for r in runs[n]]).accuracy for n in names}
    level = 0.1 * np.mean([line.values[0] for n in names for line in lines[n]]).clip(0.5, 5.0)
    absolute = {name: np.array([_width(c, level) for c in lines[name]]) for name in names}
    length = {name: np.array([c.distance[0] / 1.5 for c in lines[name]]) for name in names}
    relative = {name: absolute[name] / length[name] for name in names}

    page = lab.page
    page.did(
        f"Each of {', '.join(names)} trained a network in network (n = {land.n_params:,}) from the "
        f"same {count} starts. The loss was computed on the line from each start to its end and "
        "beyond, up to alpha = 2; a basin's width is the length of the interval around the end in "
        f"which the loss is below its value there plus {level:.2g}."
    )
    spread = np.ptp([test[name].mean() for name in names])
    page.claim(
        "generalisation does not differ significantly between the algorithms (figure 4b)",
        "held-out accuracy " + ", ".join(f"{n} {Measured(test[n])}" for n in names)
        + f"; the means differ by {spread:.2g} at most",
        _same([test[name] for name in names]),
    )  # fmt: skip
    rises = [c.values[c.x > 1.0][-1] - c.values[np.argmin(np.abs(c.x - 1))]
             for name in names for c in lines[name]]  # fmt: skip
    page.claim(
        "beyond the end the loss increases (figure 10)",
        f"L(alpha = 2) - L(alpha = 1) = {Measured(rises)} over all runs, smallest {min(rises):.2g}",
        bool(min(rises) > 0),
    )
    for figure, widths in (("5, relative", relative), ("6, absolute", absolute)):
        wider = Measured(widths["Adam"] - widths["SGD"])
        page.claim(
            f"the basins of Adam are larger than those of SGD (figure {figure} distance)",
            f"width {Measured(widths['Adam'])} and {Measured(widths['SGD'])}, difference {wider}",
            wider.above(0.0),
        )
    shape = np.array([[c.values / c.values.max() for c in lines[name]] for name in names])
    within = shape.var(axis=1, ddof=1).mean()
    between = shape.mean(axis=1).var(axis=0, ddof=1).mean()
    page.claim(
        "surfaces look strikingly similar for runs of one algorithm, and different for others",
        f"variance of the normalised curves between algorithms {between:.2g}, within {within:.2g}",
        bool(between > within),
    )
    axes = panels(2 * len(names), len(names), height=1.6).reshape(2, len(names))
    for k, name in enumerate(names):
        for curve, colour in zip(lines[name], COLOURS, strict=False):
            axes[0, k].plot(curve.x, curve.values, color=colour, linewidth=0.8)
            axes[1, k].plot(curve.distance, curve.values, color=colour, linewidth=0.8)
        axes[0, k].set(title=name, ylim=(0, 5), xlabel="alpha")
        axes[1, k].set(ylim=(0, 5), xlabel="distance")
    axes[0, 0].set_ylabel("loss")
    page.picture(
        axes, "Loss from the start (alpha = 0) to the end (1) and beyond, by restart; below "
        "against the distance from the end."
    )  # fmt: skip
    page.table(
        ("", *names), [(what, *(str(Measured(found[n])) for n in names)) for what, found in
                       (("training accuracy", train), ("held-out accuracy", test),
                        ("distance from the start", length), ("relative width", relative),
                        ("absolute width", absolute))],
    )  # fmt: skip
    page.why("A width needs a level; the paper compares by eye. The line is one direction of many.")
    page.why("How far a method goes from its start depends on its learning rate and the epochs.")


def _width(curve: pl.Curve, level: float) -> float:
    with warnings.catch_warnings():  # a basin that reaches the end of the axis: a lower bound
        warnings.simplefilter("ignore")
        return curve.basin_width(level)


def _same(groups: list[np.ndarray]) -> bool | None:
    """One-way analysis of variance at 5 %: no difference found is what the paper says."""
    from scipy.stats import f_oneway

    return bool(f_oneway(*groups).pvalue > 0.05) if np.ptp(np.concatenate(groups)) else True


STUDY = Study(
    title="Restarts: the look and the width of the basins that each optimiser finds",
    paper=EMPIRICAL, figure="figures 4 to 6, 10", minutes=3, run=run,
)  # fmt: skip
