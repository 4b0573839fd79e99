"""Spectra in early training, across a drop of the learning rate, with and without shortcuts."""

from __future__ import annotations

import numpy as np
from torch import nn

import pylandscape as pl

from ..lab import CATALOGUE, Lab, Study
from ..measured import Measured
from ..page import panels
from ..residual import mlp


def run(lab: Lab) -> None:
    data, page = lab.images(side=8, train=512, test=64), lab.page
    depth, width = lab.size(toy=(1, 4), small=(6, 24), paper=(30, 64))
    count, epochs = lab.size(toy=1, small=3, paper=3), lab.size(toy=4, small=60, paper=200)
    probes, steps = lab.size(toy=(2, 8), small=(4, 60), paper=(10, 90))
    per_epoch = -(-len(data.x) // 64)
    drop = epochs * 2 // 3
    after = min(epochs, drop + max(1, epochs // 20))
    moments = {"start": 0, "early": max(1, epochs // 12), "before the drop": drop,
               "after the drop": after, "end": epochs}  # fmt: skip
    page.did(
        f"Fully connected networks of {depth} blocks with batch norm, with and without shortcuts, "
        f"were trained by SGD with momentum 0.9 for {epochs} epochs, the rate falling tenfold "
        f"after {drop}; {count} starts. Spectra by stochastic Lanczos quadrature with {probes} "
        f"probes of {steps} steps, training data, running statistics fixed."
    )
    top: dict[tuple[str, str], list[float]] = {}
    negative: dict[tuple[str, str], list[float]] = {}
    shown = {}
    for kind in ("residual", "plain"):
        land = pl.Landscape(mlp(data, depth, width, kind, seed=lab.seed), nn.CrossEntropyLoss(),
                            data.train)  # fmt: skip
        runs = pl.train(
            land, count, pl.SGD(lr=0.05, momentum=0.9), epochs=epochs, batch_size=64,
            seed=lab.seed, schedule=pl.StepDecay([drop * per_epoch], 0.1),
            path=lab.path(f"{kind}.h5"), progress=lab.progress,
        )  # fmt: skip
        for p, one in enumerate(runs):
            for name, epoch in moments.items():
                found = pl.spectrum(
                    land, probes, steps, theta=one[epoch], seed=lab.seed, relative_sigma2=True,
                    path=lab.path(f"{kind}-{p}-{epoch}.h5"), progress=False,
                )  # fmt: skip
                shown[kind, name] = found
                top.setdefault((kind, name), []).append(found.extremes[1])
                low = found.mean(lambda t: np.abs(np.minimum(t, 0)))[0]
                whole = found.mean(np.abs)[0]
                negative.setdefault((kind, name), []).append(low / whole)
    n = {key: np.array(value) for key, value in negative.items()}
    t = {key: np.array(value) for key, value in top.items()}
    fade = Measured(n["residual", "start"] - n["residual", "early"])
    page.claim(
        "after a few hundred steps the large (negative) eigenvalues of the start disappear (13)",
        f"share of sum |lambda| below zero at the start {Measured(n['residual', 'start'])}, after "
        f"{moments['early']} epochs {Measured(n['residual', 'early'])}: it fell by {fade}",
        fade.above(0.0),
    )
    end = Measured(n["residual", "end"])
    page.claim("there is notable negative density towards the end of optimisation (14)",
               f"share of sum |lambda| below zero: {end}", end.above(0.01))  # fmt: skip
    ratio = Measured(np.log10(t["residual", "before the drop"] / t["residual", "after the drop"]))
    page.claim(
        "before the drop of the learning rate the Hessian is sharper than after it (15)",
        f"lambda_max before {Measured(t['residual', 'before the drop'])}, after "
        f"{Measured(t['residual', 'after the drop'])}; orders of magnitude between them {ratio}",
        ratio.above(0.0),
    )
    plain = Measured(np.log10(t["residual", "before the drop"] / t["plain", "before the drop"]))
    page.claim(
        "without residual connections the Hessian appears smoother (16)",
        f"lambda_max without {Measured(t['plain', 'before the drop'])}; with shortcuts it is "
        f"{plain} orders of magnitude larger", plain.above(0.0),
    )  # fmt: skip
    axes = panels(3, 3, height=2.5)
    groups = (("residual", ("start", "early")), ("residual", ("before the drop", "after the drop")))
    for ax, (kind, names) in zip(axes, groups, strict=False):
        pl.plot_spectra([shown[kind, name] for name in names], ax, labels=list(names))
    pl.plot_spectra([shown["residual", "end"], shown["plain", "end"]], axes[2],
                    labels=["with shortcuts", "without"])  # fmt: skip
    page.picture(axes, "Densities of the last start: in early training, across the drop of the "
                 "rate, and with and without shortcuts at the end.")  # fmt: skip
    page.table(("network", "moment", "lambda_max", "share below zero"),
               [(k, m, Measured(t[k, m]), Measured(n[k, m])) for k, m in t])  # fmt: skip
    page.why("The paper's ResNet-32 is convolutional, and its drop comes after 40,000 steps; on "
             "small data the loss is near zero by then.")  # fmt: skip
    page.why("The source says 'smoother' without a measure; here the largest eigenvalue.")


STUDY = Study(
    title="Spectra in early training, across a drop of the rate, with and without shortcuts",
    paper=CATALOGUE, figure="figures 13 to 16", minutes=2, run=run,
)  # fmt: skip
