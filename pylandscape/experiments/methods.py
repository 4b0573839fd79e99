"""The optimisers of *An empirical analysis of deep network loss surfaces*, and runs of them.

Learning rates are from the paper's ranges (0.2 to 0.01 for SGD, 0.002 to 0.0001 for the adaptive
ones, twice that for Runge-Kutta, whose steps cost two gradients).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..landscape import Landscape
from ..training.advance import train
from ..training.optimisers import SGD, Adadelta, Adam, RMSprop, RungeKutta
from ..trajectories.several import Runs
from .lab import Lab

METHODS: dict[str, Any] = {
    "SGD": SGD(lr=0.1),
    "SGDM": SGD(
        lr=0.2, momentum=0.9, dampening=0.9, from_zero=True
    ),  # the paper's exponential mean
    "RMSprop": RMSprop(lr=0.001),
    "Adadelta": Adadelta(lr=1.0),
    "Adam": Adam(lr=0.002),
    "RK2": RungeKutta(SGD(lr=0.2), "heun"),
    "Adam&RK2": RungeKutta(Adam(lr=0.004), "heun"),
}


def trained(
    lab: Lab, land: Landscape, names: Sequence[str], starts: Any, of: str = ""
) -> dict[str, Runs]:
    """{name: runs} of each method from the same starts over the same mini-batches, as long as the
    scale says (20 epochs of batches of 32 at the small one, 200 of 128 at the paper's).

    Args:
        starts: as in `train`;  of: told apart by it in the names of files.
    """
    found = {}
    for name in names:
        found[name] = train(
            land, starts, METHODS[name], epochs=lab.size(toy=2, small=20, paper=200),
            batch_size=lab.size(toy=32, small=32, paper=128), seed=lab.seed,
            path=lab.path(f"{of}{name.replace('&', '-')}.h5"), progress=lab.progress,
        )  # fmt: skip
    return found
