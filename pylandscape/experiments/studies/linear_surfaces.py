"""Linear networks and autoencoders: one minimum, saddles in closed form, principal components."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import pylandscape as pl

from ..lab import CATALOGUE, Lab, Study
from ..page import panels


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=64)
    flat = data.x.flatten(1).double().numpy()
    flat = flat - flat.mean(axis=0)
    x = flat @ np.linalg.svd(flat, full_matrices=False)[2][:6].T
    x = x / x.std()
    draw, page = np.random.default_rng(lab.seed), lab.page
    y = x @ draw.standard_normal((6, 4)) + draw.standard_normal((len(x), 4))
    count, steps = lab.size(toy=4, small=60, paper=500), lab.size(toy=50, small=6000, paper=20_000)
    axes = panels(3, 3, height=2.2)
    for k, (name, target) in enumerate((("network 6-2-4", y), ("autoencoder 6-2-6", None))):
        net = pl.linear_network(x, target, 2, lower_ranks=True, seed=lab.seed)
        found = pl.hessians(net.land, net.points)
        values = found.eigenvalues()
        zero = 1e-9 * np.abs(values).max(axis=1, keepdims=True)
        index, nullity = (values < -zero).sum(1), (np.abs(values) <= zero).sum(1)
        right = (index == net.index) & (nullity == net.nullity)
        worst = float(np.abs(found.losses - net.losses).max() / net.losses.max())
        page.claim(
            f"{name}: all critical points but the minimum are saddles",
            f"{len(net.losses)} sets of eigenvectors: losses right to {worst:.1e}, index and "
            f"nullity right at {right.sum()}, minima: {(index == 0).sum()}",
            bool(right.all() and (index == 0).sum() == 1 and worst < 1e-10),
        )
        starts = 0.5 * draw.standard_normal((count, net.land.n_params))
        rate = 0.5 / float(np.linalg.eigvalsh(np.cov(x.T))[-1])
        runs = pl.train(net.land, starts, pl.SGD(lr=0.1 * rate), steps=steps, record=steps // 50,
                        seed=lab.seed, progress=False)  # fmt: skip
        least = float(net.losses.min())
        gap = runs.metrics["loss"] - least
        arrived = gap[:, -1] < 1e-3 * gap[:, 0]
        page.claim(
            f"{name}: the error surface has a unique minimum, so descent finds it from everywhere",
            f"{arrived.sum()} of {count} starts reach it within {np.abs(gap[:, -1]).max():.1e}",
            bool(arrived.all()) or None,
        )
        axes[k].plot(runs.steps, np.maximum(gap.T, 1e-16), color="#0072B2", linewidth=0.4)
        for loss in np.unique(net.losses.round(10)):
            axes[k].axhline(max(loss - least, 1e-16), color="k", linewidth=0.4, linestyle=":")
        axes[k].set(xlabel="step", ylabel="loss above the minimum", yscale="log", title=name,
                    ylim=(1e-8, None))  # fmt: skip
    best = runs.ends()[int(np.argmin(runs.metrics["loss"][:, -1]))].numpy()
    p, d = 2, 6
    product = best[p * d :].reshape(d, p) @ best[: p * d].reshape(p, d)
    first = np.linalg.svd(x, full_matrices=False)[2][:p]
    error = float(np.abs(product - first.T @ first).max())
    page.claim(
        "the linear autoencoder projects on the first principal components",
        f"largest difference of A B from that projection after descent: {error:.1e}", error < 1e-2,
    )  # fmt: skip
    single = pl.Landscape(nn.Linear(6, 4, bias=False).double(), "mse",
                          (torch.tensor(x), torch.tensor(y)))  # fmt: skip
    least_curvature = float(np.linalg.eigvalsh(single.hessian().numpy())[0])
    page.claim(
        "without a hidden layer the error surface is strictly convex",
        f"smallest eigenvalue of its Hessian {least_curvature:.3g}", least_curvature > 0,
    )  # fmt: skip
    axes[2].semilogy(np.sort(np.abs(values[int(np.argmin(net.losses))]))[::-1], "o", markersize=3)
    axes[2].set(xlabel="eigenvalue at the minimum", ylabel="size", title="p^2 = 4 are zero")
    page.did(
        "The images' first six principal components were the inputs of linear networks with two "
        f"hidden units. Their critical points are known in closed form; descent ran from {count} "
        f"random starts for {steps} steps."
    )
    page.picture(axes, "Loss above the minimum along descent (dotted: the saddles' levels); the "
                 "spectrum at the autoencoder's minimum.")  # fmt: skip
    page.why("The minimum is unique up to an invertible map of the hidden units (p^2 flat "
             "directions). Descent that is slow near a saddle has not arrived yet.")  # fmt: skip


STUDY = Study(
    title="Linear networks and autoencoders: one minimum and saddles", paper=CATALOGUE,
    figure="sections 5.6.1, 5.6.3", minutes=0.3, run=run,
)  # fmt: skip
