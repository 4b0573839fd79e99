"""Another basin in the landscape of plain networks on Iris: do the walks end on several levels?"""

from __future__ import annotations

import numpy as np
from scipy.signal import find_peaks
from scipy.stats import gaussian_kde

import pylandscape as pl

from ..lab import BUMPINESS, Lab, Study
from ..page import panels
from ..table1_cases import Case, landscape


def run(lab: Lab) -> None:
    walks, steps = lab.size(toy=12, small=200, paper=300), lab.size(toy=20, small=100, paper=100)
    draws = lab.size(toy=20, small=300, paper=1000)
    page = lab.page
    page.did(
        f"{walks} progressive gradient walks of {steps} points on Iris (two hidden layers, mean "
        "squared error), plain and residual. A basin of the cloud is a mode of the losses at the "
        "walks' best points (a kernel density in log10 of the loss, by Scott's rule; a mode stands "
        f"out by 5 % of the highest). Walks were drawn again with replacement {draws} times."
    )
    axes = panels(2, 2, height=2.3)
    shares, clouds = {}, {}
    for kind in ("plain", "residual"):
        land = landscape(Case("iris", 2, kind == "residual"))
        found = pl.gradient_walk(land, walks, steps, 1.0, 0.1, seed=lab.seed,
                                 path=lab.path(f"{kind}.h5"), progress=lab.progress)  # fmt: skip
        clouds[kind] = pl.loss_gradient_cloud(land, found, "step")
        best = np.log10(found.losses.min(axis=1))
        draw = np.random.default_rng(lab.seed)
        again = [_modes(draw.choice(best, len(best))) for _ in range(draws)]
        shares[kind] = np.mean(np.array(again) > 1)
        grid = np.linspace(best.min() - 0.2, best.max() + 0.2, 300)
        axes[0].plot(grid, gaussian_kde(best)(grid), label=f"{kind}: {_modes(best)} modes")
        axes[1].plot(np.median(found.losses, axis=0), label=kind)
    axes[0].set(xlabel="log10 of a walk's lowest loss", ylabel="density")
    axes[1].set(xlabel="step", ylabel="median loss", yscale="log")
    axes[0].legend(frameon=False, fontsize=6)
    page.picture(axes, "On which levels the walks end, and how they get there.")
    page.picture(
        pl.plot_clouds(clouds, log="xy"), "Loss-gradient clouds of all points, coloured by step."
    )
    for kind, more in (("plain", True), ("residual", False)):
        share = shares[kind]
        several = True if share > 0.95 else False if share < 0.05 else None
        page.claim(
            f"{kind} networks: {'another basin' if more else 'one basin'} (figure 6)",
            f"more than one mode in {share:.0%} of the draws",
            several if more or several is None else not several,
        )
    page.why("The paper shows one zoomed cloud and gives no criterion for a basin; a mode is ours.")
    page.why("Walks have steps of a fixed size, so that they do not settle at the bottom.")


def _modes(values: np.ndarray) -> int:
    grid = np.linspace(values.min() - 0.5, values.max() + 0.5, 400)
    density = gaussian_kde(values)(grid)
    return len(find_peaks(density, prominence=0.05 * density.max())[0])


STUDY = Study(
    title="Another basin in the landscape of plain networks on Iris", paper=BUMPINESS,
    figure="figure 6", minutes=0.5, run=run, data="none",
)  # fmt: skip
