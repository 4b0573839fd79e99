"""Batch norm suppresses the outliers of the Hessian."""

from __future__ import annotations

import numpy as np
from torch import nn

import pylandscape as pl

from ..lab import CATALOGUE, Lab, Study
from ..measured import Measured
from ..page import panels
from ..residual import mlp

CLASSES = 10


def run(lab: Lab) -> None:
    data, page = lab.images(side=8, train=512, test=64), lab.page
    depth, width = lab.size(toy=(1, 6), small=(4, 32), paper=(30, 64))
    count, epochs = lab.size(toy=1, small=3, paper=3), lab.size(toy=2, small=30, paper=200)
    full = lab.size(toy=4, small=300, paper=5000)
    page.did(
        f"Residual networks of {depth} fully connected blocks, with and without batch norm, were "
        f"trained by SGD for {epochs} epochs ({count} starts), then by full-batch descent for "
        f"{full} steps from the first start. zeta = lambda_1 / lambda_10; the densities at the end "
        "in units of the tenth eigenvalue; the share of sum |lambda| in |lambda| < lambda_1 / 100."
    )
    zeta, energy, top = {}, dict[str, list[float]](), {}
    spectra, units, curves, tops = [], [], {}, {}
    for name in ("batch norm", "none"):
        land = pl.Landscape(mlp(data, depth, width, bn=name != "none", seed=lab.seed),
                            nn.CrossEntropyLoss(), data.train)  # fmt: skip
        runs = pl.train(
            land, count, pl.SGD(lr=0.05), epochs=epochs, batch_size=64, seed=lab.seed,
            path=lab.path(f"{name}.h5"), progress=lab.progress,
        )  # fmt: skip
        moments = np.unique(np.linspace(1, epochs, 4).astype(int))
        found = [
            [pl.eigenpairs(land, CLASSES, theta=one[e], tol=1e-3, progress=False).values
             for e in moments] for one in runs
        ]  # fmt: skip
        zeta[name] = np.array([[pl.outlier_ratio(v, CLASSES) for v in row] for row in found])
        top[name] = np.array([[v[0] for v in row] for row in found])
        energy[name] = []
        for p, one in enumerate(runs):
            spectrum = pl.spectrum(
                land, *lab.size(toy=(2, 8), small=(4, 60), paper=(10, 90)), theta=one[epochs],
                seed=lab.seed, relative_sigma2=True, path=lab.path(f"{name}-{p}-s.h5"),
                progress=False,
            )  # fmt: skip
            energy[name].append(spectrum.l1_energy(found[p][-1][0] / 100))
        spectra.append(spectrum)
        units.append(found[-1][-1][-1])
        descent = pl.train(
            land, [runs[0][0]], pl.SGD(lr=0.1), steps=full, record=max(1, full // 10),
            path=lab.path(f"{name}-full.h5"), progress=False,
        )  # fmt: skip
        curves[name] = descent.steps, descent.metrics["loss"][0]
        tops[name] = pl.track(descent[0], land, 1, progress=False, seed=lab.seed).values[:, 0]
    higher = Measured(np.log10(zeta["none"][:, -1] / zeta["batch norm"][:, -1]))
    page.claim(
        "without batch norm the outliers grow much larger, further from the bulk (17)",
        f"zeta at the end: {Measured(zeta['none'][:, -1])} without, "
        f"{Measured(zeta['batch norm'][:, -1])} with; orders of magnitude between them {higher}",
        higher.above(0.0),
    )
    share = Measured(energy["none"])
    page.claim(
        "without batch norm a small ball around 0 holds almost 50 % of the L1 energy",
        f"{share} without, {Measured(energy['batch norm'])} with", share.within(0.25, 0.75),
    )  # fmt: skip
    ratio = np.abs(np.log10(tops["none"] / tops["batch norm"]))[1:]
    page.claim(
        "the largest eigenvalue is roughly the same in both throughout full-batch training",
        f"largest ratio of the two along training {10 ** ratio.max():.2g}", bool(ratio.max() < 0.5),
    )  # fmt: skip
    slower = curves["batch norm"][1][-1] > curves["none"][1][-1]
    page.claim(
        "a full-batch network with batch norm trains more slowly",
        f"loss after {full} steps: {curves['batch norm'][1][-1]:.3g} with, "
        f"{curves['none'][1][-1]:.3g} without",
        bool(slower),
    )
    axes = panels(4, 2, height=2.3)
    pl.plot_spectra(spectra, axes[0], labels=["batch norm", "none"], divide=units, xscale="symlog")
    for name in zeta:
        axes[1].errorbar(moments, zeta[name].mean(0), [Measured(c).half for c in zeta[name].T],
                         marker="o", markersize=3, label=name)  # fmt: skip
        axes[2].plot(*curves[name], label=name)
        axes[3].plot(curves[name][0], tops[name], label=name)
    axes[1].set(xlabel="epoch", ylabel="zeta", yscale="log")
    axes[2].set(xlabel="full-batch step", ylabel="loss", yscale="log")
    axes[3].set(xlabel="full-batch step", ylabel="largest eigenvalue")
    axes[1].legend(frameon=False)
    page.picture(axes, "Densities in units of the tenth eigenvalue; outlier ratio along training; "
                 "losses and largest eigenvalues of full-batch training.")  # fmt: skip
    page.why("Running statistics are fixed here, as in a trained network; the paper's Hessians may "
             "be of batch statistics.")  # fmt: skip
    page.why("Residual blocks without batch norm begin with large outputs.")


STUDY = Study(
    title="Batch norm and the outliers of the Hessian", paper=CATALOGUE, figure="figure 17",
    minutes=1.5, run=run,
)  # fmt: skip
