"""Loss-gradient and Hessian clouds of plain and residual networks on XOR, Iris and Diabetes."""

from __future__ import annotations

import numpy as np

import pylandscape as pl

from ..lab import BUMPINESS, Lab, Study
from ..measured import Measured
from ..page import panels
from ..table1_cases import Case, landscape


def run(lab: Lab) -> None:
    page = lab.page
    walks = lab.size(toy=2, small=20, paper=100)
    steps = lab.size(toy=20, small=100, paper=100)
    rough = {"xor": walks, "iris": walks, "diabetes": max(2, walks // 5)}
    names = lab.size(toy=("xor",), small=tuple(rough), paper=tuple(rough))
    page.did(
        f"Progressive gradient walks of {steps} points over networks with two hidden layers, plain "
        "and residual (mean squared error). Of every point: the loss, the norm of the gradient, "
        "the ruggedness E|u'Hu| and the bumpiness E u'Hu over unit directions u, from the exact "
        "Hessian. Dots are coloured by the step."
    )
    clouds = {}
    for name in names:
        for residual in (True, False):
            land = landscape(Case(name, 2, residual))
            found = pl.gradient_walk(
                land, rough[name], steps, 1.0, 0.1, seed=lab.seed, progress=lab.progress,
                path=lab.path(f"{name}-{residual}-walks.h5"),
            )  # fmt: skip
            critical = pl.classify(
                land, found.flat(), keep=True, progress=lab.progress,
                path=lab.path(f"{name}-{residual}-classes.h5"),
            )  # fmt: skip
            kind = "residual" if residual else "plain"
            clouds[name, kind] = pl.hessian_cloud(land, found, critical=critical)
            if (name, kind) == ("xor", "plain"):
                flat = pl.loss_gradient_cloud(land, found, "bumpiness", critical=critical)

    page.picture(
        flat.plot(title="XOR, plain"), "Figure 1a: the loss-gradient cloud, coloured by bumpiness."
    )
    axes = panels(len(names), 3, height=2.2)
    trend = {}
    for axis, name in zip(axes, names, strict=True):
        for kind in ("residual", "plain"):
            cloud = clouds[name, kind]
            negative = cloud.values("negative").reshape(rough[name], steps)
            axis.plot(negative.mean(axis=0), label=kind)
            half = steps // 2
            trend[name, kind] = negative[:, :half].mean(1) - negative[:, half:].mean(1)
        axis.set(title=name, xlabel="step", ylabel="share of negative eigenvalues")
    axes[0].legend(frameon=False)
    page.picture(axes, "Figure 1b: the share of negative eigenvalues along the walks.")
    for name in names:
        fall = Measured(np.concatenate([trend[name, k] for k in ("residual", "plain")]))
        page.claim(
            f"{name}: as the walk progresses the curvature approaches convexity (figure 1b)",
            f"share of negative eigenvalues, first half minus second half of the walks: {fall}",
            fall.above(0.0),
        )
        both = {kind: clouds[name, kind] for kind in ("residual", "plain")}
        page.picture(
            pl.plot_clouds(both), f"Hessian clouds of {name}: loss, gradient norm, ruggedness."
        )
        steep = Measured(
            _per_walk(both["residual"], rough[name]) - _per_walk(both["plain"], rough[name])
        )
        page.claim(
            f"{name}: residual networks have larger gradients (abstract of the paper)",
            f"log10 of the median gradient norm of a walk, residual minus plain: {steep}",
            steep.above(0.0),
        )

    xor = clouds["xor", "residual"]
    last = xor.select(xor.values("step") >= steps // 2)
    box = {"xlim": _range(last.losses), "ylim": _range(last.gradient_norms)}
    page.picture(
        last.plot(**box),
        "Figure 5: the second half of the walks on XOR, where steps of a fixed size swing "
        "across the valley (V-shaped zones).",
    )
    swings = np.diff(xor.losses.reshape(walks, steps)[:, steps // 2 :], axis=1)
    changes = Measured((np.sign(swings[:, 1:]) != np.sign(swings[:, :-1])).mean(axis=1))
    page.claim(
        "XOR: there are V-shaped areas where the sampling oscillates (figure 5)",
        f"share of steps of the second half at which the loss turns: {changes} (0.5 of noise)",
        changes.above(0.5),
    )  # fmt: skip
    page.why("The paper states neither loss, nor bounds, nor the formula of bumpiness and "
             "ruggedness; these are our readings.")  # fmt: skip


def _per_walk(cloud: pl.Cloud, walks: int) -> np.ndarray:
    return np.median(np.log10(cloud.gradient_norms.clip(1e-12)).reshape(walks, -1), axis=1)


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(np.quantile(values, 0.9))


STUDY = Study(
    title="Loss-gradient and Hessian clouds", paper=BUMPINESS, figure="figures 1 to 5", minutes=2,
    run=run, data="none",
)  # fmt: skip
