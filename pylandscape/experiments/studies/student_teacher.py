"""Fitness-distance correlation: does the loss tell a student how far the teacher is?"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import CATALOGUE, Lab, Study
from ..measured import Measured
from ..page import panels


def run(lab: Lab) -> None:
    page = lab.page
    hidden = lab.size(toy=(2,), small=(2, 4, 8), paper=(2, 4, 8, 16, 32))
    points, teachers = (
        lab.size(toy=40, small=2000, paper=10_000),
        lab.size(toy=2, small=5, paper=20),
    )
    page.did(
        f"{teachers} random tanh networks of {', '.join(map(str, hidden))} hidden units made the "
        f"targets of students of the same shape. The loss at {points:,} points was compared with "
        "their distance from the teacher, and from its nearest image under the group: points at "
        "uniform distances from it, and points of a box around the origin."
    )
    axes = panels(2 * len(hidden), len(hidden), height=1.9).reshape(2, -1)
    rows, near, box, image = [], {}, {}, {}
    for k, h in enumerate(hidden):
        r: dict[str, list[float]] = {"radial": [], "box": [], "image": [], "close": []}
        for seed in range(teachers):
            land, group = _teacher(h, lab.seed + seed)
            size = float(land.theta.norm())
            radial = pl.fitness_distance(land, points=points, radius=2 * size, seed=lab.seed,
                                         progress=False)  # fmt: skip
            close = pl.fitness_distance(land, points=points, radius=0.1 * size, seed=lab.seed,
                                        progress=False)  # fmt: skip
            wide = pl.fitness_distance(
                land, points=points // 4, radius=2.0, draw="box", seed=lab.seed, group=group,
                progress=False,
            )  # fmt: skip
            for name, value in (("radial", radial.r), ("close", close.r), ("box", wide.r),
                                ("image", wide.r_nearest)):  # fmt: skip
                r[name].append(value)
        axes[0, k].scatter(radial.distances, radial.losses, s=1)
        axes[1, k].scatter(wide.nearest, wide.losses, s=4, facecolors="none", edgecolors="#D55E00")
        axes[1, k].scatter(wide.distances, wide.losses, s=2)
        axes[0, k].set(title=f"{h} hidden units", ylabel="loss")
        axes[1, k].set(xlabel="distance from the teacher", ylabel="loss")
        near[h], box[h], image[h] = (Measured(r[n]) for n in ("radial", "box", "image"))
        rows.append((h, land.n_params, Measured(r["close"]), near[h], box[h], image[h]))
    page.claim(
        "globally bowl-like regions: the loss grows with the distance from the teacher",
        f"r = {', '.join(str(near[h]) for h in hidden)} at uniform distances",
        bool(all(near[h].above(0.5) for h in hidden)),
    )
    gain = Measured(np.concatenate([image[h].values - box[h].values for h in hidden]))
    page.claim(
        "error plateaus and transitions: far away the loss says little about one optimum",
        f"r = {', '.join(str(box[h]) for h in hidden)} in the box; {gain} more with the distance "
        "to the nearest image",
        bool(all(box[h].below(0.5) for h in hidden)),
    )
    page.table(("hidden", "n", "r within 0.1 of the teacher's norm", "r within 2", "r in the box",
                "r to the nearest image"), rows)  # fmt: skip
    page.picture(
        axes, "Above: loss against the distance from the teacher, at uniform distances. Below: "
        "points of a box, with the distance to the nearest image (hollow)."
    )  # fmt: skip
    page.why("The correlation depends on how points are drawn; the source does not say how. In the "
             "unit ball of a quadratic it is above 0.96 in any dimension.")  # fmt: skip


def _teacher(hidden: int, seed: int) -> tuple[pl.Landscape, pl.EquioutputGroup]:
    net = networks.seeded(lambda: nn.Sequential(nn.Linear(3, hidden), nn.Tanh(),
                                                nn.Linear(hidden, 1)).double(), seed)  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
        x = torch.randn(200, 3, generator=draw, dtype=torch.float64)
        land = pl.Landscape(net, "mse", (x, net(x)))
    return land, pl.EquioutputGroup(net)


STUDY = Study(
    title="Fitness-distance correlation of students and teachers", paper=CATALOGUE,
    figure="section 5.6.6", minutes=0.5, run=run, data="none",
)  # fmt: skip
