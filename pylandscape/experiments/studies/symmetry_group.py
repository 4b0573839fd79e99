"""The equioutput group of a network: spherical throng, canonical wedge and cone."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import CATALOGUE, Lab, Study
from ..page import panels


def run(lab: Lab) -> None:
    page, draw = lab.page, np.random.default_rng(lab.seed)
    net = networks.seeded(
        lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), lab.seed
    )
    x = torch.tensor(draw.standard_normal((40, 2)))
    land = pl.Landscape(net, "mse", (x, (x[:, :1] * x[:, 1:]).sin()))
    group = pl.EquioutputGroup(land)
    runs = pl.train(land, lab.size(toy=3, small=20, paper=100), pl.Adam(lr=0.02),
                    steps=lab.size(toy=20, small=800, paper=4000), record=10**6, metrics=(),
                    seed=lab.seed, progress=False)  # fmt: skip
    ends = runs.ends().numpy()
    throng = group.images(ends[0])
    losses, norms = land.losses(points=throng), np.linalg.norm(throng, axis=1)
    page.did(
        f"A 2-3-1 tanh network was trained from {len(ends)} starts; all {group.order} images of "
        "an end under the group (units change places, signs flip) were listed, and all ends "
        "mapped into the wedge of positive, falling hidden biases."
    )
    page.claim(
        "the group has the order of the product of M! 2^M over the hidden layers",
        f"3 units: {group.order}; 10 units: {pl.EquioutputGroup([(2, 10), (10, 1)]).order:,}; "
        f"distinct images of an end: {len(np.unique(throng, axis=0))}",
        group.order == 48 == len(np.unique(throng, axis=0))
        and pl.EquioutputGroup([(2, 10), (10, 1)]).order == 3_715_891_200,
    )
    spread = float(np.ptp(losses) / losses[0])
    page.claim(
        "all of them have the same output, so the loss repeats around the origin",
        f"their losses differ by {spread:.1e} of the loss", spread < 1e-12,
    )  # fmt: skip
    shell = float(np.ptp(norms) / norms[0])
    page.claim(
        "critical points come in spherical throngs: all images lie on one sphere",
        f"their norms differ by {shell:.1e} of the norm", shell < 1e-12,
    )  # fmt: skip
    canonical = group.canonical(throng)
    samples = lab.size(toy=5000, small=400_000, paper=4_000_000)
    share = float(group.in_wedge(draw.standard_normal((samples, group.n))).mean())
    error = np.sqrt((1 / 48) * (47 / 48) / samples)
    page.claim(
        "a wedge holds one representative of every network: search 1 / order of the space",
        f"{len(np.unique(canonical, axis=0))} canonical form of {len(throng)} images; share of "
        f"Gaussian weights in the wedge {share:.5f} +- {2 * error:.5f}, 1 / 48 = {1 / 48:.5f}",
        len(np.unique(canonical, axis=0)) == 1 and abs(share - 1 / 48) < 4 * error,
    )
    cone = group.in_cone(draw.standard_normal((samples, group.n)))
    page.claim(
        "the cone, with the biases multiplied by the output's, has the same share",
        f"{cone.mean():.5f}", abs(float(cone.mean()) - 1 / 48) < 4 * error,
    )  # fmt: skip
    plain = [np.linalg.norm(a - b) for i, a in enumerate(ends) for b in ends[:i]]
    quotient = [group.distance(a, b) for i, a in enumerate(ends) for b in ends[:i]]
    axes = panels(3, 3, height=2.2)
    centred = throng - throng.mean(axis=0)
    flat = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    axes[0].scatter(*flat.T, s=8, c=group.in_wedge(throng), cmap="coolwarm")
    axes[0].set(xlabel="component 1", ylabel="component 2", title="48 images (red: in the wedge)")
    axes[0].set_aspect("equal")
    apart = np.linalg.norm(throng - throng[0], axis=1)
    axes[1].hist(apart, 30, color="#0072B2")
    axes[1].set(xlabel="distance from the first image", ylabel="images")
    axes[2].scatter(plain, quotient, s=5)
    axes[2].plot([0, max(plain)], [0, max(plain)], "k--", linewidth=0.6)
    axes[2].set(xlabel="distance of two ends", ylabel="to the nearest image")
    page.picture(
        axes, "The throng of an end along its first two principal components; how far its images "
        "are apart; distances of the ends of training before and after taking the nearest image."
    )  # fmt: skip
    page.text(f"```\n{pl.theory('group', seed=lab.seed)[0]}\n```")
    page.why("Theorems: only rounding separates these numbers from the paper's.")


STUDY = Study(
    title="The symmetry group: spherical throngs, the wedge and the cone", paper=CATALOGUE,
    figure="section 5.2", minutes=0.3, run=run, data="none",
)  # fmt: skip
