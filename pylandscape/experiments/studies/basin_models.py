"""A landscape as a collection of basins: volumes, averages, walls, and steps that lead lower."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

import pylandscape as pl

from .. import networks
from ..basins import BasinModel, volume_law
from ..lab import THEORY_II, Lab, Study
from ..measured import Measured
from ..page import panels


def run(lab: Lab) -> None:
    draw, page = np.random.default_rng(lab.seed), lab.page
    samples = lab.size(toy=500, small=20_000, paper=100_000)
    page.did(
        "Basins 1 - exp(-|u|^2 / w^2), a collection of them (the least of all) and a basin-fractal "
        "(with ripples at every scale) were computed in closed form; volumes by "
        f"{samples:,} uniform points in the ball. A trained network was perturbed at random."
    )
    law = volume_law(samples=samples, seed=lab.seed)
    off = float((np.abs(law.shares - law.expected) / law.errors).max())
    page.claim(
        "as the loss decreases, the volume falls as its power n / 2 (figures 6H, 38)",
        f"largest deviation of {law.shares.size} shares from (l / l0)^(n / 2), n = 1 to 100: "
        f"{off:.2g} standard errors", off < 4.0,
    )  # fmt: skip
    two, step = BasinModel(np.array([[-1.6, 0.0], [1.6, 0.0]]), width=1.2), np.array([3.2, 0.0])
    a, b = draw.normal(0, 0.35, (2, lab.size(toy=20, small=400, paper=4000), 2)) - step / 2
    inside, across = _above(two, a, b), _above(two, a, b + step)
    page.claim("averaging two models within a basin gives about their average error, or less (1E)",
               f"the average's loss is above the larger end's in {inside:.1%} of pairs",
               inside == 0.0)  # fmt: skip
    page.claim("averaging models between basins gives an error higher than both (figure 1E)",
               f"above both ends in {across:.1%} of pairs", across > 0.95)  # fmt: skip
    simple, fractal = BasinModel([0.0]), BasinModel([0.0], ripples=0.4, decay=0.6, octaves=8)
    walls = {"simple": _walls(simple), "fractal": _walls(fractal)}
    low = walls["fractal"].min() if len(walls["fractal"]) else float("nan")
    page.claim(
        "a basin-fractal has walls within a basin, at all levels of error; a simple one none (39)",
        f"{len(walls['fractal'])} walls at losses from {low:.2g} to {walls['fractal'].max():.2g}; "
        f"{len(walls['simple'])} in the simple basin",
        len(walls["simple"]) == 0 and len(walls["fractal"]) > 10 and low < 0.2,
    )
    n, sigma = 100, 0.05
    steps = np.eye(n)[:1] + sigma * draw.standard_normal((samples, n))
    falls = float(((steps**2).sum(1) < 1).mean())
    error = math.sqrt((phi := 0.5 * math.erfc(sigma * n / 2 / math.sqrt(2))) / samples)
    page.claim(
        "in a hyper-basin a random perturbation almost never lowers the loss",
        f"in {falls:.2%} of steps from a bowl's wall in 100 dimensions; Phi(-sigma n / 2 r) = "
        f"{phi:.2%} +- {2 * error:.1%}", abs(falls - phi) < 4 * error + 1e-3,
    )  # fmt: skip
    shares = _network(lab)
    page.claim("perturbing a model by significant noise almost never lowers its loss",
               f"falls in {shares} of perturbations of networks that were trained for some epochs",
               shares.below(0.05))  # fmt: skip
    axes = panels(6, 3, height=2.0)
    law.plot(axes[0])
    axes[0].legend(frameon=False, fontsize=5, handletextpad=0.2, borderpad=0)
    for name, model in (("simple", simple), ("basin-fractal", fractal)):
        curve = model.grid((-2, 2, 1601))
        axes[1].plot(curve.x, curve.values, linewidth=0.8, label=name)
    axes[1].legend(frameon=False, fontsize=6)
    axes[1].set(xlabel="theta", ylabel="loss")
    line = two.line([-1.9, 0.2], [1.9, -0.2])
    axes[2].plot(line.x, line.values)
    axes[2].set(xlabel="alpha", ylabel="loss between two basins")
    rough = BasinModel(two.centres, 1.2, ripples=0.3, octaves=5)
    for ax, model in ((axes[3], two), (axes[4], rough)):
        model.grid((-3, 3, 121), (-2, 2, 81)).plot("filled", ax=ax)
    BasinModel(np.zeros(3)).grid((-1.5, 1.5, 61), (-1.5, 1.5, 61), (0.6, 1.5, 2)).slice(
        2, 0).plot("filled", ax=axes[5])  # fmt: skip
    page.picture(
        axes, "Volumes below a level; profiles of the two kinds of basin; the line between two "
        "basins; both kinds from above; a slice of a basin in three dimensions."
    )  # fmt: skip
    page.why("The models are illustrations in the paper, without formulas: these are ours; a "
             "trained network's wall is not a bowl: most directions are flat.")  # fmt: skip


def _above(model: BasinModel, a: np.ndarray, b: np.ndarray) -> float:
    """Share of pairs whose average has a higher loss than both."""
    return float((model((a + b) / 2) > np.maximum(model(a), model(b))).mean())


def _walls(model: BasinModel) -> np.ndarray:
    inner = (values := model.grid((-1, 1, 8001)).values)[1:-1]
    return inner[(inner > values[:-2] + 1e-9) & (inner >= values[2:])]


def _network(lab: Lab) -> Measured:
    """For each of several networks, the share of perturbations that lower the loss."""
    data = lab.images(side=8, train=512, test=64)
    land = pl.Landscape(networks.fc2(data, 16, seed=lab.seed), nn.CrossEntropyLoss(), data.train)
    runs = pl.train(land, lab.size(toy=2, small=6, paper=10), pl.SGD(lr=0.1), epochs=3,
                    batch_size=64, seed=lab.seed, progress=False)  # fmt: skip
    draw, shares = torch.Generator().manual_seed(lab.seed), []
    for end in runs.ends().float():
        noise = torch.randn(lab.size(toy=20, small=500, paper=2000), len(end), generator=draw)
        shares.append((land.losses(points=end + 0.5 * end.std() * noise) < land.loss(end)).mean())
    return Measured(shares)


STUDY = Study(
    title="Basins and basin-fractals as models of the landscape", paper=THEORY_II,
    figure="figures 1, 6, 38, 39", minutes=0.5, run=run,
)  # fmt: skip
