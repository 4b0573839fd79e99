"""Ends of pairs of optimisers for a recurrent network on text and for a fully connected one."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import EMPIRICAL, Lab, Study
from ..measured import Measured
from ..methods import trained
from ..page import panels


def run(lab: Lab) -> None:
    words, digits = lab.text(), lab.images(side=8, train=512, test=512)
    names = lab.size(toy=("SGD", "Adam"), small=("SGD", "RMSprop", "Adadelta", "Adam"),
                     paper=("SGD", "SGDM", "RMSprop", "Adadelta", "Adam"))  # fmt: skip
    width = lab.size(toy=4, small=16, paper=128)
    tasks: dict[str, Any] = {
        "LSTM": (networks.lstm(words, width, lab.seed), words),
        "FC2": (networks.fc2(digits, 2 * width, seed=lab.seed), digits),
    }
    page = lab.page
    page.did(
        f"An LSTM of width {width} for next-word prediction and a network of two hidden layers "
        f"were trained by {', '.join(names)}, each from one start over the same mini-batches. "
        "Between the ends of every pair: the loss on the straight line, and how far apart they are "
        "as functions on held-out data; from the start to each end and beyond: the loss."
    )
    axes = panels(2, 2, height=2.4)
    for axis, (kind, (model, data)) in zip(axes, tasks.items(), strict=True):
        land = pl.Landscape(model, nn.CrossEntropyLoss(), data.train)
        held_out = pl.Landscape(model, nn.CrossEntropyLoss(), data.test)
        runs = trained(lab, land, names, [land.theta], f"{kind}-")
        ends = [runs[name][0][-1] for name in names]
        between = pl.barriers(land, ends, labels=names, path=lab.path(f"{kind}-barriers.h5"),
                              progress=lab.progress)  # fmt: skip
        apart = pl.barriers(held_out, ends, points=3, labels=names, progress=lab.progress,
                            path=lab.path(f"{kind}-held-out.h5"))  # fmt: skip
        upper = np.triu_indices(len(names), 1)
        barrier, distance = between.barrier[upper], apart.functional[upper]
        page.claim(
            f"{kind}: the loss rises between the ends of every pair of algorithms",
            f"barrier {Measured(barrier)}, least {barrier.min():.2g}; losses at the ends "
            f"{between.losses.min():.3g} to {between.losses.max():.3g}",
            bool((barrier > 0.01).all()),
        )
        page.claim(
            f"{kind}: the ends are different functions",
            f"functional distance {Measured(distance)}; the most probable class differs on "
            f"{Measured(100 * apart.disagreement[upper])} % of held-out targets",
            bool((distance > 0.05).all()),
        )
        rises = []
        for name, end in zip(names, ends, strict=True):
            line = pl.interpolate(
                land, [runs[name][0][0], end], (-0.5, 2.0, lab.size(toy=6, small=51, paper=101)),
                path=lab.path(f"{kind}-{name}-line.h5"), progress=lab.progress,
            )  # fmt: skip
            rises.append(line.values[-1] - line.values[np.argmin(np.abs(line.x - 1))])
            axis.plot(line.x, line.values, label=name)
        axis.set(title=kind, xlabel="alpha", ylabel="loss")
        page.claim(
            f"{kind}: beyond the end the loss increases (figure 10)",
            f"L(alpha = 2) - L(alpha = 1) = {Measured(rises)}, least {min(rises):.2g}",
            bool(min(rises) > 0),
        )
        page.picture(between.plot(title=kind), f"{kind}: barriers between the ends.")
    axes[0].legend(frameon=False, fontsize=6)
    page.picture(axes, "From the start (alpha = 0) to the end (1) of each optimiser and beyond.")
    page.why(
        "The generated text has a small vocabulary, and its entropy bounds the loss from below."
    )


STUDY = Study(
    title="Ends of pairs of optimisers: a recurrent and a fully connected network",
    paper=EMPIRICAL, figure="table 1, figure 10", minutes=1, run=run, data="both",
)  # fmt: skip
