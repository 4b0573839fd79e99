"""The gradient covariance: its outliers, the overlap with the Hessian's, the gradient's share."""

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
    depth, width = lab.size(toy=(1, 6), small=(3, 24), paper=(30, 64))
    count, epochs = lab.size(toy=1, small=3, paper=3), lab.size(toy=2, small=20, paper=200)
    moments = np.unique(np.linspace(1, epochs, lab.size(toy=2, small=5, paper=10)).astype(int))
    page.did(
        f"Residual networks of {depth} fully connected blocks, with and without batch norm, were "
        f"trained by SGD for {epochs} epochs ({count} starts). At epochs "
        f"{', '.join(map(str, moments))}: the ten largest eigenvectors of the Hessian, the share "
        "of the gradient's square in their span, and how much of it lies in that of the ten "
        "largest of Sigma, the uncentred covariance of the samples' gradients."
    )
    share, overlap, energy, values = {}, {}, {}, {}
    for name in ("batch norm", "none"):
        land = pl.Landscape(mlp(data, depth, width, bn=name != "none", seed=lab.seed),
                            nn.CrossEntropyLoss(), data.train)  # fmt: skip
        runs = pl.train(
            land, count, pl.SGD(lr=0.05), epochs=epochs, batch_size=64, seed=lab.seed,
            path=lab.path(f"{name}.h5"), progress=lab.progress,
        )  # fmt: skip
        reports = [[pl.outliers(land, CLASSES, one[e], tol=1e-4, seed=lab.seed, progress=False)
                    for e in moments] for one in runs]  # fmt: skip
        share[name] = np.array([[r.gradient_concentration for r in row] for row in reports])
        overlap[name] = np.array([[r.covariance_overlap for r in row] for row in reports])
        middle = moments[len(moments) // 2]
        values[name] = [pl.covariance_spectrum(land, one[middle], CLASSES).values for one in runs]
        energy[name] = [float(v[:CLASSES].sum() / v.sum()) for v in map(np.sort, values[name])
                        for v in [v[::-1]]]  # fmt: skip
    none = Measured(energy["none"])
    page.claim(
        "without batch norm almost 99 % of Sigma's energy is in the top few subspaces (18)",
        f"the ten largest of {len(values['none'][0])} eigenvalues hold {none} of its trace at "
        f"epoch {middle}", none.above(0.95),
    )  # fmt: skip
    lie = Measured(overlap["none"].mean(1))
    page.claim(
        "99 % of the energy of the Hessian's outlier eigenvectors lies in Sigma's outlier subspace",
        f"mean over training {lie} without batch norm", lie.above(0.9),
    )  # fmt: skip
    grad = Measured(share["none"].mean(1))
    page.claim(
        "almost all of the gradient's energy is concentrated in these subspaces",
        f"mean over training {grad} without batch norm", grad.above(0.9),
    )  # fmt: skip
    less = Measured(share["none"].mean(1) - share["batch norm"].mean(1))
    page.claim(
        "with batch norm this concentration subsides substantially",
        f"{Measured(share['batch norm'].mean(1))} with; less by {less}", less.above(0.0),
    )  # fmt: skip
    axes = panels(3, 3, height=2.3)
    for name in values:
        scaled = values[name][0] / np.mean(values[name][0])
        kept = np.log10(np.maximum(scaled, 1e-8))
        axes[0].hist(kept, np.linspace(-8, 3, 45), alpha=0.6, label=name)
        for ax, found in ((axes[1], share[name]), (axes[2], overlap[name])):
            ax.errorbar(moments, found.mean(0), [Measured(c).half for c in found.T], marker="o",
                        markersize=3, label=name)  # fmt: skip
    axes[0].set(xlabel="log10 of Sigma's eigenvalues / their mean", ylabel="eigenvalues",
                yscale="log")  # fmt: skip
    axes[0].legend(frameon=False, fontsize=6)
    axes[1].set(xlabel="epoch", ylabel="gradient concentration", ylim=(0, 1.05))
    axes[2].set(xlabel="epoch", ylabel="overlap with Sigma's space", ylim=(0, 1.05))
    page.picture(axes, "Sigma's eigenvalues, scaled to equal means; the share of the gradient in "
                 "the Hessian's top ten; how much of these lies in Sigma's top ten.")  # fmt: skip
    page.why("Per-sample gradients with batch norm need fixed statistics: the running ones here.")
    page.why("The paper's ResNet-32 has ten classes of 5,000 images, this data ten of fifty.")


STUDY = Study(
    title="The gradient covariance, subspace overlap and gradient concentration",
    paper=CATALOGUE, figure="figure 18", minutes=1.5, run=run,
)  # fmt: skip
