"""Where a picture looks convex, is the Hessian nearly positive?"""

from __future__ import annotations

import numpy as np
from torch import nn

import pylandscape as pl

from ..lab import CATALOGUE, Lab, Study
from ..measured import Measured
from ..page import panels
from ..residual import mlp


def run(lab: Lab) -> None:
    data, page = lab.images(side=8, train=256, test=64), lab.page
    depth, width = lab.size(toy=(1, 3), small=(8, 12), paper=(54, 64))
    epochs, points = lab.size(toy=2, small=40, paper=300), lab.size(toy=3, small=13, paper=51)
    count = lab.size(toy=1, small=2, paper=3)
    page.did(
        f"Fully connected networks of {depth} blocks with batch norm, with and without shortcuts, "
        f"{epochs} epochs of SGD, {count} starts. At each point of a filter-normalised plane "
        f"({points} x {points}) the smallest and largest eigenvalue of the Hessian by Lanczos, and "
        "their ratio |lambda_min / lambda_max|. A point looks convex where the second differences "
        "of the picture are positive definite."
    )
    kinds = ("residual", "plain")
    axes = panels(4, 2, height=2.3).reshape(2, 2)
    looks, others, low = (dict[str, list[float]]() for _ in range(3))
    for row, kind in enumerate(kinds):
        land = pl.Landscape(mlp(data, depth, width, kind, seed=lab.seed), nn.CrossEntropyLoss(),
                            data.train)  # fmt: skip
        rule = pl.SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        runs = pl.train(land, count, rule, epochs=epochs, batch_size=64, seed=lab.seed,
                        path=lab.path(f"{kind}.h5"), progress=lab.progress)  # fmt: skip
        looks[kind], others[kind], low[kind] = [], [], []
        for p, one in enumerate(runs):
            here = land.at(one[-1])
            d1, d2 = pl.random_directions(here, 2, seed=lab.seed + p)
            found = pl.convexity(
                here, d1, d2, (-1, 1, points), (-1, 1, points), tol=1e-2, dense=0,
                path=lab.path(f"{kind}-{p}.h5"), progress=lab.progress,
            )  # fmt: skip
            ratio = found.metrics["ratio"][1:-1, 1:-1]
            convex = _convex(found.values)
            looks[kind] += ratio[convex].tolist()
            others[kind] += ratio[~convex].tolist()
            low[kind] += ratio[found.values[1:-1, 1:-1] < found.values.min() + 0.5].tolist()
            if p == 0:
                found.plot("contour", ax=axes[row, 0], log=True)
                found.plot("heat", ax=axes[row, 1], metric="ratio", vmin=0.0, vmax=1.0)
                axes[row, 0].set_title("", loc="left")
                axes[row, 0].set_title(f"{kind}: loss (log scale)")
                axes[row, 1].set_title(f"{kind}: ratio")
    for kind in kinds:
        seen = np.array(looks[kind])
        if not len(seen):
            page.claim(f"negative curvature is tiny where the picture looks convex (11): {kind}",
                       "no point of the picture looks convex", None)  # fmt: skip
            continue
        page.claim(
            f"negative curvature is tiny (below 1 %) where the picture looks convex (11): {kind}",
            f"median ratio {np.median(seen):.3g}, 90th percentile {np.quantile(seen, 0.9):.3g} of "
            f"{len(seen)} points; in the region of low loss {_median(low[kind])}",
            bool(np.quantile(seen, 0.9) < 0.01),
        )
    both = [np.concatenate([found[k] for k in kinds]) for found in (looks, others)]
    if min(map(len, both)) > 1:
        gap = np.median(both[1]) - np.median(both[0])
        page.claim("chaotic regions have large negative curvatures, others do not",
                   f"median ratio where the picture is not convex {np.median(both[1]):.3g}, where "
                   f"it is {np.median(both[0]):.3g} ({Measured(both[1])} and {Measured(both[0])})",
                   bool(gap > 0))  # fmt: skip
    page.picture(axes, "Loss and |lambda_min / lambda_max| on the same plane.")
    page.why("The paper leaves biases and batch norm out of the Hessian; here it has all "
             "parameters. Convex slices prove nothing about other directions.")  # fmt: skip


def _convex(v: np.ndarray) -> np.ndarray:
    """Whether the second differences at inner points are positive definite."""
    xx = v[2:, 1:-1] - 2 * v[1:-1, 1:-1] + v[:-2, 1:-1]
    yy = v[1:-1, 2:] - 2 * v[1:-1, 1:-1] + v[1:-1, :-2]
    xy = (v[2:, 2:] - v[2:, :-2] - v[:-2, 2:] + v[:-2, :-2]) / 4
    return np.asarray((xx > 0) & (xx * yy - xy**2 > 0))


def _median(values: list[float]) -> str:
    return f"{np.median(values):.3g}" if values else "no point"


STUDY = Study(
    title="Convexity maps beside pictures of the loss", paper=CATALOGUE, figure="figure 11",
    minutes=2, run=run,
)  # fmt: skip
