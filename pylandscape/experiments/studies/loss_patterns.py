"""Patterns in loss surfaces: carved by optimisation, and constructed over bias directions."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import pylandscape as pl

from .. import networks
from ..datasets import Images
from ..lab import CATALOGUE, Lab, Study
from ..patterns import carve_pattern, construct_pattern

CROSS = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0],
                  [1, 0, 0, 0, 1]])  # fmt: skip
LETTER = np.array([[0, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1],
                   [0, 1, 1, 1, 0]])  # fmt: skip


def run(lab: Lab) -> None:
    data, page = lab.images(side=8, train=1024, test=512), lab.page
    net = networks.seeded(lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(data.channels * data.side**2, 64), nn.ReLU(),
        nn.Linear(64, data.classes)), lab.seed)  # fmt: skip
    land = pl.Landscape(net, nn.CrossEntropyLoss(), data.train)
    held_out = pl.Landscape(net, nn.CrossEntropyLoss(), data.test)
    steps = lab.size(toy=5, small=800, paper=5000)
    solid = np.indices((3, 3, 3)).sum(axis=0) % 2
    masks = {"a cross": CROSS, "a letter": LETTER, "a chessboard in three dimensions": solid}
    if lab.scale == "toy":
        masks = {"a cross": CROSS}
    page.did(
        f"A network with 64 ReLU units (n = {land.n_params:,}): origin, directions and spacing of "
        f"a plane were trained for {steps} steps of Adam so that the loss in its points follows a "
        "mask. Then a tanh network was built whose loss over two bias directions has given heights."
    )
    for k, (name, mask) in enumerate(masks.items()):
        found = carve_pattern(
            land, mask, steps=steps, lr=2e-3, batch_size=lab.size(toy=32, small=256, paper=512),
            held_out=held_out, seed=lab.seed, path=lab.path(f"pattern-{k}.h5"),
            progress=lab.progress,
        )  # fmt: skip
        own, other = found.means(), found.means(held_out=True)
        page.claim(
            f"one can find arbitrary binary patterns in the loss surface: {name}",
            f"accuracy {own[0]:.2f} in cells that should be good, {own[1]:.2f} in the others",
            found.gap() > 0.5,
        )
        page.claim(
            f"the pattern transfers to the test set: {name}",
            f"held-out accuracy {other[0]:.2f} and {other[1]:.2f}", found.gap(held_out=True) > 0.4,
        )  # fmt: skip
        page.picture(found.plot(), f"{name.capitalize()}: the mask and the accuracy in its cells.")
    small = _small(data)
    q = np.linspace(-1, 1, lab.size(toy=5, small=21, paper=41))
    a, b = np.meshgrid(q, q, indexing="ij")
    heights = 3.0 + 0.5 * np.cos(4 * np.hypot(a, b)) + 0.3 * a * b
    model, made = construct_pattern(
        heights, data.train, held_out=small, steps=lab.size(toy=30, small=1500, paper=5000),
        seed=lab.seed, progress=lab.progress,
    )  # fmt: skip
    page.claim(
        "a deep network's loss surface contains every low-dimensional pattern",
        f"largest error of the constructed surface {made.error:.2g}, of heights from "
        f"{heights.min():.2g} to {heights.max():.2g}", made.error < 0.05,
    )  # fmt: skip
    noise = torch.randn(data.x.shape, generator=torch.Generator().manual_seed(lab.seed))
    beside = pl.Landscape(model, "cross_entropy", (noise.flatten(1).double(), data.y))
    points = np.stack([a.ravel(), b.ravel()], axis=1)
    apart = np.abs(np.asarray(made.held) - made.values).max()
    same = np.array_equal(beside.losses(points, made.directions).reshape(a.shape), made.values)
    page.claim(
        "the pattern is there for any inputs with the same frequencies of labels",
        f"inputs replaced by noise leave it {'bit for bit the same' if same else 'not the same'}; "
        f"data with other frequencies differ by up to {apart:.2g}",
        same,
    )
    page.picture(made.plot(), "The heights asked for, the loss over the bias directions, and the "
                 "loss on held-out data with twice as many of the lower classes.")  # fmt: skip
    page.why("Carving succeeds within limits of steps and capacity; five or more cells a side and "
             "sharp borders take longer.")  # fmt: skip
    page.why(f"No height lies below the labels' entropy ({made.entropy:.3g}): lower patterns need "
             "the paper's second theorem.")  # fmt: skip


def _small(data: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """Held-out images, twice as many of the lower half of the classes."""
    low = data.y_test < data.classes // 2
    return torch.cat([data.x_test, data.x_test[low]]), torch.cat([data.y_test, data.y_test[low]])


STUDY = Study(
    title="Patterns in loss surfaces: carved and constructed", paper=CATALOGUE,
    figure="reference [8], [9]", minutes=2, run=run,
)  # fmt: skip
