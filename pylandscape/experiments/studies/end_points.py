"""Are the end points of training arranged like the leaves of a tree?"""

from __future__ import annotations

import torch
from torch import nn

import pylandscape as pl

from ..lab import CATALOGUE, Lab, Study


def run(lab: Lab) -> None:
    page = lab.page
    count, clouds = lab.size(toy=6, small=40, paper=100), lab.size(toy=3, small=40, paper=100)
    steps = lab.size(toy=20, small=3000, paper=10_000)
    page.did(
        f"Encoders (N inputs, one on at a time, to themselves through fewer tanh units) were "
        f"trained from {count} starts. Of the ends' distances, s is the mean of (d_max - d_mid) / "
        "(d_max - d_min) over all triangles, 0 in an ultrametric space, beside the s of "
        f"{clouds} Gaussian clouds with the same mean and covariance: of the ends as they are, of "
        "their canonical forms, and of the distances to nearest images."
    )
    rows, scores = [], {}
    for size, hidden in lab.size(toy=((4, 2),), small=((4, 2), (8, 3)), paper=((4, 2), (8, 3))):
        net = nn.Sequential(nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, size)).double()
        codes = torch.eye(size, dtype=torch.float64)
        land = pl.Landscape(net, "mse", (codes, codes))
        runs = pl.train(land, count, pl.Adam(lr=0.01), steps=steps, record=steps, seed=lab.seed,
                        progress=False)  # fmt: skip
        group = pl.EquioutputGroup(land)
        for metric in ("euclidean", "canonical", "quotient"):
            found = pl.ultrametricity(
                runs, metric=metric, group=None if metric == "euclidean" else group,
                clouds=clouds, seed=lab.seed, progress=lab.progress,
            )  # fmt: skip
            null = found.null
            own = f"{found.s:.3f} +- {found.errors[0]:.3f}"
            clouds_s = f"{null[:, 0].mean():.3f} +- {null[:, 0].std():.3f}"
            rows.append((f"{size}-{hidden}-{size}", metric, own, clouds_s, found.score, found.gap,
                         found.correlation, found.rammal))  # fmt: skip
            scores[size, metric] = found.score
            if metric != "canonical":
                page.picture(found.plot(title=f"{size}-{hidden}-{size}, {metric}"),
                             f"Triangles and tree of the ends of {size}-{hidden}-{size}, {metric} "
                             "distances.")  # fmt: skip
    for (size, metric), score in scores.items():
        page.claim(
            f"error surfaces have a high degree of ultrametric structure: {size} inputs, {metric}",
            f"s lies {score:+.1f} standard deviations from that of Gaussian clouds",
            bool(score < -2) if abs(score) > 2 else None,
        )
    page.table(("encoder", "distance", "s", "s of clouds", "score", "gap", "correlation", "Rammal"),
               rows)  # fmt: skip
    page.why("Gallagher's statistic could not be confirmed from the source; points in general "
             "position in many dimensions look ultrametric by measures that are not normalised by "
             "d_max - d_min, so that a study without a null finds structure.")  # fmt: skip
    page.why("Without taking nearest images, the group's copies alone make clusters.")


STUDY = Study(
    title="Ultrametricity of the end points of training", paper=CATALOGUE, figure="section 5.6",
    minutes=1, run=run, data="none",
)  # fmt: skip
