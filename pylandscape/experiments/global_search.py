"""Search without gradients by a model of where good weights lie, beside random search and descent.

Population-based incremental learning (PBIL; Baluja 1994, for real numbers as in Rudlof and Koeppen
1996 and Sebag and Ducoulombier 1998): a Gaussian with independent weights is drawn from and moved
towards the best of what was drawn. M. Gallagher ("Multi-layer perceptron error surfaces", PhD
thesis, University of Queensland 2000) proposes such models of error surfaces for training.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import integer
from ..arrays import Array, progress_bar
from ..errors import InvalidArgument
from ..landscape import Landscape
from ..results.searches import GlobalSearch
from ..runs.checkpoint import Arrays, Checkpoint
from ..runs.items import by_ranks
from ..runs.request import build
from ..runs.resume import resumable
from ..training.advance import train
from ..training.optimisers import SGD

if TYPE_CHECKING:
    from numpy.random import Generator

METHODS = ("pbil", "random", "gradient")
GRADIENT_PRICE = 3  # evaluations of L that one gradient costs: a pass forwards, two backwards
TOLD = 200  # moments at which the best is told

Losses = Callable[[Array], Array]


def pbil(
    losses: Losses,
    n: int,
    rng: Generator,
    *,
    population: int = 50,
    elite: int = 10,
    rate: float = 0.1,
    mean: float | Array = 0.0,
    deviation: float = 1.0,
) -> Iterator[tuple[Array, Array]]:
    """Endless generations of PBIL: (points (population, n), their losses).

    mu <- (1 - rate) mu + rate mean(E), sigma <- (1 - rate) sigma + rate sd(E), E the ``elite``
    points of lowest loss in the generation.
    """
    mu = np.zeros(n) + mean
    sigma = np.full(n, float(deviation))
    while True:
        points = mu + sigma * rng.standard_normal((population, n))
        found = losses(points)
        yield points, found
        order = np.argsort(np.where(np.isfinite(found), found, np.inf), kind="stable")
        best = points[order[:elite]]
        mu = (1 - rate) * mu + rate * best.mean(axis=0)
        sigma = (1 - rate) * sigma + rate * best.std(axis=0)


def random_search(
    losses: Losses, n: int, rng: Generator, *, population: int = 50, mean: float | Array = 0.0,
    deviation: float = 1.0,
) -> Iterator[tuple[Array, Array]]:  # fmt: skip
    """Endless generations of independent draws, as PBIL's first."""
    while True:
        points = mean + deviation * rng.standard_normal((population, n))
        yield points, losses(points)


def global_search(
    loss: Landscape | Losses,
    n: int | None = None,
    *,
    methods: Sequence[str] | None = None,
    runs: int = 5,
    evaluations: int = 20_000,
    population: int = 50,
    elite: int = 10,
    rate: float = 0.1,
    deviation: float = 1.0,
    lr: float = 0.1,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> GlobalSearch:
    """PBIL, random search and gradient descent at equal cost.

    Args:
        loss: a landscape, or a function of points (P, n) to losses (P,) for the methods without
            gradients; then n is needed.
        methods: of "pbil", "random" and "gradient"; default all that the loss allows.
        runs: of each method, with seeds of their own.
        evaluations: of L in each run; a gradient counts as three.
        population: points of a generation;  elite, rate: see `pbil`.
        deviation: of the weights that a search begins with, N(0, deviation^2) each; descent begins
            at such a point too.
        lr: of full-batch gradient descent.
        path: HDF5 file for the result; a search that was stopped goes on after its last whole run.
            Landscapes only.
        progress: show a bar on stderr.

    Raises:
        InvalidArgument: numbers out of their range, "gradient" without a landscape.
        ResumeMismatch: ``path`` belongs to another search.
    """
    land = loss if isinstance(loss, Landscape) else None
    if land is None and (n is None or not callable(loss)):
        raise InvalidArgument("loss: expected a Landscape, or a function and n")
    size = land.n_params if land is not None else integer(n, "n", 1)
    chosen = list(methods or (METHODS if land is not None else METHODS[:2]))
    for name in chosen:
        if name not in METHODS or (name == "gradient" and land is None):
            raise InvalidArgument(f"methods: expected some of {', '.join(METHODS)}, got {name!r}")
    runs, population = integer(runs, "runs", 1), integer(population, "population", 2)
    elite = integer(elite, "elite", 1, population)
    evaluations = integer(evaluations, "evaluations", population)
    if not 0 < rate <= 1 or not deviation > 0 or not lr > 0:
        raise InvalidArgument(
            f"rate, deviation, lr: expected 0 < rate <= 1, the others above 0, got {rate}, "
            f"{deviation}, {lr}"
        )
    if path is not None and land is None:
        raise InvalidArgument("path: expected none for a function: it cannot be told from others")
    asked = {
        "methods": chosen, "runs": runs, "evaluations": evaluations, "population": population,
        "elite": elite, "rate": rate, "deviation": deviation, "lr": lr, "seed": seed,
    }  # fmt: skip
    request = {} if land is None else build(land, "global_search", path is not None, **asked)
    ask: Any = (lambda points: land.losses(points=points)) if land is not None else loss
    told = np.unique(np.geomspace(population, evaluations, TOLD).round()).astype(np.int64)
    options = {"population": population, "deviation": deviation}

    def one(k: int) -> tuple[Array, Array]:
        m, r = divmod(k, runs)
        rng = np.random.default_rng([seed, m, r])
        if chosen[m] == "gradient" and land is not None:
            return _descent(land, deviation * rng.standard_normal((1, size)), lr, told)
        more = {"elite": elite, "rate": rate} if chosen[m] == "pbil" else {}
        make: Any = pbil if chosen[m] == "pbil" else random_search
        return _followed(make(ask, size, rng, **options, **more), told)

    def some(at: np.ndarray, beat: Callable[[], None]) -> Arrays:
        best, theta = zip(*(one(int(k)) for k in at), strict=True)
        return {"best": np.stack(best), "theta": np.stack(theta)}

    def run(kept: Checkpoint) -> GlobalSearch:
        shared = None
        if land is not None:
            shared = by_ranks(
                "search", request, len(chosen) * runs, some, kept=kept, most=1, unit="run",
                progress=progress,
            )  # fmt: skip
        info = {"request": request, "price": GRADIENT_PRICE}
        if shared is not None:
            shape = (len(chosen), runs, -1)
            best, theta = (shared[name].reshape(shape) for name in ("best", "theta"))
            return GlobalSearch(told.astype(np.float64), best, theta, chosen, info)
        best, theta = _one_by_one(one, (len(chosen), runs), (len(told), size), kept, progress)
        return GlobalSearch(told.astype(np.float64), best, theta, chosen, info)

    return resumable(path, request, run)


def _one_by_one(
    one: Callable[[int], tuple[Array, Array]],
    shape: tuple[int, int],
    sizes: tuple[int, int],
    kept: Checkpoint,
    progress: bool,
) -> tuple[Array, Array]:
    """The best losses and points of all searches, in a process alone."""
    best, theta = np.full((*shape, sizes[0]), np.nan), np.zeros((*shape, sizes[1]))
    count, done = shape[0] * shape[1], 0
    if (before := kept.load()) is not None:
        best, theta, done = before["best"], before["theta"], int(before["done"])
    with progress_bar(count, "search", "run", progress, done) as bar:
        for k in range(done, count):
            best[divmod(k, shape[1])], theta[divmod(k, shape[1])] = one(k)
            bar.update()
            kept.save({"best": best, "theta": theta, "done": np.array(k + 1)})
    return best, theta


def _followed(stream: Iterator[tuple[Array, Array]], told: Any) -> tuple[Array, Array]:
    """The best loss at each told number of evaluations, and where it lies."""
    found, where = np.full(len(told), np.nan), np.zeros(0)
    least, done, row = np.inf, 0, 0
    for points, losses in stream:
        losses = np.where(np.isfinite(losses), losses, np.inf)
        k = int(np.argmin(losses))
        lowest = np.minimum(least, np.minimum.accumulate(losses))
        if losses[k] < least or not where.size:
            least, where = float(min(least, losses[k])), points[k]
        while row < len(told) and told[row] <= done + len(losses):
            found[row] = lowest[told[row] - done - 1]
            row += 1
        done += len(losses)
        if row == len(told):
            break
    return found, where


def _descent(land: Landscape, start: Array, lr: float, told: Any) -> tuple[Array, Array]:
    """Full-batch gradient descent; the loss of the start is told from the first moment on."""
    steps = np.unique(told // GRADIENT_PRICE)
    with warnings.catch_warnings():  # one that diverges has found what it found before
        warnings.filterwarnings("ignore", message=".*diverged")
        done = train(
            land, start, SGD(lr=lr), steps=int(max(1, steps[-1])),
            record=steps[steps > 0].tolist(), metrics=("loss",), progress=False,
        )  # fmt: skip
    losses = np.where(np.isfinite(done.metrics["loss"][0]), done.metrics["loss"][0], np.inf)
    lowest = np.minimum.accumulate(losses)
    rows = np.searchsorted(done.steps, told // GRADIENT_PRICE, side="right") - 1
    where = np.asarray(done[0].vector(int(np.argmin(losses))), dtype=np.float64)
    return lowest[rows], where
