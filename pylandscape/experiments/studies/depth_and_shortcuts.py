"""Depth, shortcuts and the look of the loss around the ends of training, with held-out error."""

from __future__ import annotations

import numpy as np
from torch import nn

import pylandscape as pl

from ..lab import CATALOGUE, Lab, Study
from ..measured import Measured
from ..page import panels
from ..residual import mlp


def run(lab: Lab) -> None:
    data, page = lab.images(side=8, train=512, test=512), lab.page
    depths = lab.size(toy=(1, 2), small=(2, 8, 20), paper=(18, 54, 108))
    width, count = lab.size(toy=4, small=16, paper=64), lab.size(toy=1, small=3, paper=3)
    epochs, points = lab.size(toy=2, small=30, paper=300), lab.size(toy=5, small=21, paper=51)
    kinds = ("residual", "plain", "dense")[: lab.size(toy=2, small=3, paper=3)]
    page.did(
        f"Fully connected networks of {', '.join(map(str, depths))} blocks with batch norm: with "
        f"shortcuts, without, and densely connected; {epochs} epochs of Nesterov's momentum with "
        f"weight decay 0.0005, {count} starts. The loss on [-1, 1]^2 along two filter-normalised "
        "random directions at each end; roughness is the share of the plane's points where its "
        "second differences show a negative curvature, width that where the loss is below its "
        "value at the centre plus 0.1."
    )
    axes = panels(len(kinds) * len(depths), len(depths), height=2.0).reshape(len(kinds), -1)
    rough, wide, error, start = {}, {}, {}, {}
    for row, kind in enumerate(kinds):
        for column, depth in enumerate(depths):
            land = pl.Landscape(mlp(data, depth, width, kind, seed=lab.seed),
                                nn.CrossEntropyLoss(), data.train)  # fmt: skip
            held_out = pl.Landscape(land.model, nn.CrossEntropyLoss(), data.test)
            rule = pl.SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
            name = f"{kind}-{depth}"
            runs = pl.train(land, count, rule, epochs=epochs, batch_size=64, seed=lab.seed,
                            path=lab.path(f"{name}.h5"), progress=lab.progress)  # fmt: skip
            surfaces = []
            for p, one in enumerate(runs):
                here = land.at(one[-1])
                d1, d2 = pl.random_directions(here, 2, seed=lab.seed + p)
                surfaces.append(pl.plane(
                    here, d1, d2, (-1, 1, points), (-1, 1, points),
                    path=lab.path(f"{name}-{p}.h5"), progress=False,
                ))  # fmt: skip
            key = kind, depth
            rough[key] = np.array([_roughness(s.values) for s in surfaces])
            wide[key] = np.array([_width(s.values) for s in surfaces])
            error[key] = 1 - pl.agreement(held_out, [one[-1] for one in runs]).accuracy
            start[key] = runs.metrics["loss"][:, 0]
            surfaces[0].plot("contour", ax=axes[row, column], log=True)
            axes[row, column].set_title("", loc="left")
            axes[row, column].set_title(f"{kind}, {depth}: error {error[key].mean():.1%}")
    deep, shallow = depths[-1], depths[0]
    rise = Measured(rough["plain", deep] - rough["plain", shallow])
    page.claim("without shortcuts, depth turns the loss from nearly convex to chaotic (9)",
               f"roughness {Measured(rough['plain', shallow])} at {shallow}, "
               f"{Measured(rough['plain', deep])} at {deep}: {rise}", rise.above(0.0))  # fmt: skip
    ratio = Measured(np.log2(wide["residual", deep] / wide["residual", shallow]))
    page.claim("with shortcuts the 0.1 contour keeps its width (9)",
               f"doublings of its area from {shallow} to {deep} blocks: {ratio}",
               ratio.within(-1.0, 1.0))  # fmt: skip
    less = Measured(rough["plain", deep] - rough["residual", deep])
    page.claim("shortcuts prevent the transition to chaos", f"roughness at {deep} blocks: "
               f"{Measured(rough['residual', deep])} with; without, more by {less}",
               less.above(0.0))  # fmt: skip
    worse = Measured(error["plain", deep] - error["residual", deep])
    page.claim("chaotic landscapes have a higher test error",
               f"error at {deep} blocks {Measured(error['residual', deep])} with shortcuts, "
               f"without more by {worse}", worse.above(0.0))  # fmt: skip
    keys = [k for k in wide if k[0] != "dense"]
    flat = np.concatenate([np.log(np.maximum(wide[k], 1e-3)) for k in keys])
    r = float(np.corrcoef(flat, np.concatenate([error[k] for k in keys]))[0, 1])
    page.claim("flatter minimisers have lower test error",
               f"correlation of log width and error over {len(flat)} networks: {r:.2f}",
               bool(r < -0.3) if abs(r) > 0.3 else None)  # fmt: skip
    page.picture(axes, "Contours of the loss around the first start's end: with shortcuts, "
                 "without, densely connected; one column for each depth.")  # fmt: skip
    page.table(("network", "blocks", "initial loss", "roughness", "width", "held-out error"),
               [(*k, Measured(start[k]), Measured(rough[k]), Measured(wide[k]), Measured(error[k]))
                for k in rough])  # fmt: skip
    page.why(
        "Small fully connected networks on small images; a plane shows two directions of many."
    )


def _roughness(values: np.ndarray) -> float:
    """Share of inner points whose 2 x 2 matrix of second differences has a negative eigenvalue
    beyond 1 % of the largest."""
    v = np.minimum(values, 1e6)
    xx = v[2:, 1:-1] - 2 * v[1:-1, 1:-1] + v[:-2, 1:-1]
    yy = v[1:-1, 2:] - 2 * v[1:-1, 1:-1] + v[1:-1, :-2]
    xy = (v[2:, 2:] - v[2:, :-2] - v[:-2, 2:] + v[:-2, :-2]) / 4
    root = np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    low, high = (xx + yy) / 2 - root, (xx + yy) / 2 + root
    return float((low < -0.01 * np.abs(high).max()).mean())


def _width(values: np.ndarray) -> float:
    return float((values <= values[values.shape[0] // 2, values.shape[1] // 2] + 0.1).mean())


STUDY = Study(
    title="Depth and shortcuts: planes around the ends of training", paper=CATALOGUE,
    figure="figure 9", minutes=2.5, run=run,
)  # fmt: skip
