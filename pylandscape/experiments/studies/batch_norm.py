"""The surfaces between starts and ends with and without batch norm."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.signal import find_peaks
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import EMPIRICAL, Lab, Study
from ..measured import Difference, Measured
from ..methods import trained
from ..page import panels


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=64)
    names = lab.size(toy=("SGD", "Adam"), small=("SGD", "RMSprop", "Adam"),
                     paper=("SGD", "SGDM", "RMSprop", "Adadelta", "Adam"))  # fmt: skip
    count = lab.size(toy=2, small=4, paper=5)
    page = lab.page
    page.did(
        f"A network in network with and without batch norm was trained by {', '.join(names)} from "
        f"{count} starts; loss on the lines from starts to ends and between the ends, and over the "
        "triangles of one start with two ends."
    )
    points, side = lab.size(toy=9, small=41, paper=101), lab.size(toy=3, small=15, paper=25)
    quality, bumps, wide = {}, {}, {}
    for bn in (True, False):
        model = networks.nin(data, lab.size(toy=2, small=8, paper=96), bn)
        mode = "recompute" if bn else "eval"
        kind = "with" if bn else "without"
        land = pl.Landscape(model, nn.CrossEntropyLoss(), data.train, bn=mode)
        runs = trained(lab, land, names, count, f"{kind}-")
        final = np.array([runs[name].metrics["loss"][:, -1] for name in names])
        quality[bn] = np.log10(final.clip(1e-6)).std(axis=1, ddof=1)
        axes = panels(2 * count, count, height=1.6).reshape(2, count)
        found, breadth = [], []
        for p in range(count):
            for name in names:
                run = runs[name][p]
                line = pl.interpolate(land, [run[0], run[-1]], (-0.2, 1.5, points), progress=False,
                                      path=lab.path(f"{kind}-{name}-{p}.h5"))  # fmt: skip
                axes[0, p].plot(line.x, line.values, label=name, linewidth=0.8)
            for a, b in combinations(names, 2):
                line = pl.interpolate(land, [runs[a][p][-1], runs[b][p][-1]], (0, 1, points),
                                      path=lab.path(f"{kind}-{a}-{b}-{p}.h5"),
                                      progress=False)  # fmt: skip
                axes[1, p].plot(line.x, line.values, label=f"{a}, {b}", linewidth=0.8)
                found.append(_maxima(line.values))
                ends = line.values[[0, -1]].max()
                if found[-1]:
                    breadth.append(float((line.values > (line.values.max() + ends) / 2).mean()))
            axes[0, p].set(ylim=(0, 4), xlabel="alpha", title=f"start {p + 1}")
            axes[1, p].set(xlabel="alpha")
        axes[0, 0].set_ylabel("start to end")
        axes[1, 0].set_ylabel("end to end")
        for row in axes[:, -1]:
            row.legend(frameon=False, fontsize=5)
        bumps[bn], wide[bn] = np.array(found, float), np.array(breadth)
        page.picture(axes, f"Loss {kind} batch norm: from start to end, and between ends.")
        last = [runs[name][0][-1] for name in names[-2:]]
        triangle = pl.interpolate(land, [runs[names[0]][0][0], *last], (0, 1, side), (0, 1, side),
                                  path=lab.path(f"{kind}-triangle.h5"),
                                  progress=lab.progress)  # fmt: skip
        page.picture(
            triangle.plot("surface", title=f"{kind} batch norm"),
            f"Start, end of {names[-2]} and end of {names[-1]}, {kind} batch norm.",
        )
    more = Measured(quality[False] - quality[True])
    page.claim(
        "without batch norm the quality of a minimum depends much more on the initialisation",
        f"deviation of log10 of the final loss over starts, without minus with: {more} (methods); "
        f"{quality[False].mean():.2g} without, {quality[True].mean():.2g} with",
        more.above(0.0),
    )
    uneven = Measured(bumps[False] - bumps[True])
    page.claim(
        "between ends: sharp unimodal jumps with, wide bumps that need not be unimodal without",
        f"maxima on a line: {bumps[True].mean():.2g} with, {bumps[False].mean():.2g} without "
        f"(difference {uneven}); not unimodal: {(bumps[True] > 1).mean():.0%} and "
        f"{(bumps[False] > 1).mean():.0%} of the lines",
        uneven.above(0.0),
    )
    both = len(wide[True]) > 0 and len(wide[False]) > 0
    broad = Difference(wide[False], wide[True]) if both else None
    page.claim(
        "the bumps are wider without batch norm",
        f"share of the line above half height, of {len(wide[False])} lines with a bump without and "
        f"{len(wide[True])} with batch norm: difference {broad}",
        None if broad is None else broad.above(0.0),
    )
    page.why("The network is small and shallow: it trains without batch norm more easily than the "
             "paper's nine layers.")  # fmt: skip


def _maxima(values: np.ndarray, share: float = 0.05) -> int:
    """Inner maxima that stand out by a share of the curve's range."""
    return len(find_peaks(values, prominence=share * np.ptp(values))[0])


STUDY = Study(
    title="With and without batch norm", paper=EMPIRICAL, figure="table 2, figure 8", minutes=2,
    run=run,
)  # fmt: skip
