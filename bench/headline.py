"""headline: how far SLQ's density of the trained 784-20-10's Hessian is from the exact one.

The exact one takes minutes and 2 GB: products with the identity in float64, then eigenvalues.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from scipy.linalg import eigvalsh
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.experiments.demo import train

from .curvature import Problem, ours
from .curvature_peers import torch_lanczos
from .harness import Row, absent
from .products import retained
from .workloads import digits, mlp

SIGMA2 = 1e-5
SEEDS = 5
L1 = 0.005  # at most, on average: 0.0029 was found once for this network
BLOCK = 256  # rows of the identity at a time

Density = tuple[np.ndarray, np.ndarray]  # nodes and weights of all probes, flat


def headline(quick: bool) -> list[Row]:
    problem, training = trained(quick)
    probes, length = (4, 30) if quick else (10, 90)
    start = time.perf_counter()
    dense = dense_hessian(problem)
    built = time.perf_counter()
    exact = eigenvalues(dense)
    solved = time.perf_counter()
    del dense
    name = f"headline n = {problem.n:,}, {probes} probes, {length} steps"
    about = (
        f"{training}; exact: {built - start:.0f} s to build, {solved - built:.0f} s to solve, "
        f"eigenvalues {exact[0]:.3g} to {exact[-1]:.3g}"
    )
    row = partial(_row, name, exact=exact, target=None if quick else L1, note=about)
    spectrum, table = ours("spectrum"), []
    if spectrum is None:
        table.append(absent(name, "pylandscape spectrum()", "not in this build"))
    else:
        data, found = (problem.x, problem.y), {}
        land = pl.Landscape(problem.model, "cross_entropy", data, engine="native")

        def own(seed: int) -> Density:
            size = {"probes": probes, "steps": length, "sigma2": SIGMA2}
            found[seed] = got = spectrum(land, **size, seed=seed, progress=False)
            there = ~np.isnan(got.nodes)
            return got.nodes[there], got.weights[there] / probes

        table.append(row("pylandscape spectrum()", own))
        says = [found[seed].compare(exact) for seed in range(SEEDS)]
        np.testing.assert_allclose(says, table[0]["l1"], rtol=0.05)

    run = torch_lanczos(problem, length)

    def plain(seed: int) -> Density:
        found = [run(probes * seed + i) for i in range(probes)]
        weights = np.concatenate([one.weights for one in found]) / probes
        return np.concatenate([one.nodes for one in found]), weights

    arm = "torch Lanczos, all reorthogonalised twice"
    return [*table, row(arm, plain)]


def trained(quick: bool) -> tuple[Problem, str]:
    """784-20-10 trained by 400 steps; with quick 49-10-10 over shrunk digits by 50. Says so."""
    torch.manual_seed(0)
    x, y = digits()
    if quick:
        x = F.avg_pool2d(x.view(-1, 1, 28, 28), 4).flatten(1)
    model, steps = (mlp(49, 10, 10), 50) if quick else (mlp(784, 20, 10), 400)
    loss = train(model, x, y, steps)
    return Problem(model, x, y), f"{steps} full-batch steps of Adam, loss {loss:.2g}"


def dense_hessian(problem: Problem) -> np.ndarray:
    """(n, n) float64, row by row as it comes; checked by products that torch alone makes."""
    double = problem.double()
    data = (double.x, double.y)
    land = pl.Landscape(double.model, "cross_entropy", data, engine="native")
    n = problem.n
    dense = torch.empty(n, n, dtype=torch.float64)
    for at in range(0, n, BLOCK):
        rows = torch.arange(at, min(at + BLOCK, n))
        unit = torch.zeros(len(rows), n, dtype=torch.float64)
        unit[torch.arange(len(rows)), rows] = 1
        dense[rows] = land.hvp(unit)
    v = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = retained(double)(v)
    for product in (v @ dense, v @ dense.T):  # so it is symmetric, too
        assert float((product - want).norm()) <= 1e-10 * float(want.norm())
    return dense.numpy()


def eigenvalues(dense: np.ndarray) -> np.ndarray:
    """Ascending; overwrites ``dense``. Their sum is the trace, their squares' the norm's square."""
    trace, norm = float(np.trace(dense)), float(np.linalg.norm(dense))
    values: np.ndarray = eigvalsh(dense.T, overwrite_a=True, check_finite=False)
    assert abs(values.sum() - trace) <= 1e-10 * norm
    assert abs(np.linalg.norm(values) - norm) <= 1e-10 * norm
    return values


def density(grid: np.ndarray, at: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_i w_i N(t; l_i, SIGMA2) at the grid's points t (ascending); 9 sigma away it is zero."""
    sigma = math.sqrt(SIGMA2)
    order = np.argsort(at)
    at, weights = at[order], weights[order]
    out = []
    for t in np.array_split(grid, max(1, len(grid) // 256)):
        near = slice(*np.searchsorted(at, [t[0] - 9 * sigma, t[-1] + 9 * sigma]))
        kernel = np.exp(-((t[:, None] - at[near]) ** 2) / (2 * SIGMA2))
        out.append(kernel @ weights[near])
    return np.concatenate(out) / (sigma * math.sqrt(2 * math.pi))


def l1_distance(estimate: Density, exact: np.ndarray) -> float:
    """Integral of |difference| of the two densities; at most 2. Steps of a quarter of sigma."""
    sigma, both = math.sqrt(SIGMA2), np.concatenate([estimate[0], exact])
    low, high = both.min() - 9 * sigma, both.max() + 9 * sigma
    grid, step = np.linspace(low, high, math.ceil(4 * (high - low) / sigma) + 1, retstep=True)
    true = density(grid, exact, np.full(len(exact), 1 / len(exact)))
    assert abs(true.sum() * step - 1) <= 1e-9
    return float(np.abs(density(grid, *estimate) - true).sum() * step)


def _row(
    name: str,
    arm: str,
    estimate: Callable[[int], Density],
    exact: np.ndarray,
    target: float | None,
    note: str,
) -> Row:
    errors, seconds = [], []
    for seed in range(SEEDS):
        start = time.perf_counter()
        found = estimate(seed)
        seconds.append(time.perf_counter() - start)
        errors.append(l1_distance(found, exact))
    mean = float(np.mean(errors))
    return {
        "workload": name,
        "arm": arm,
        "l1": errors,
        "mean": mean,
        "spread": float(np.std(errors, ddof=1)),
        "target": target,
        "met": None if target is None else mean <= target,
        "seconds": float(np.median(seconds)),
        "note": note,
    }


def as_markdown(table: Sequence[Row]) -> str:
    lines = [
        f"| sigma2 = {SIGMA2:g} | arm | L1 error, mean of {SEEDS} seeds | spread | target | met "
        "| seconds | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        cells = [row["workload"], row["arm"]]
        if "l1" not in row:
            cells += ["did not run", "", "", "", "", row["note"]]
        else:
            cells += [f"{row['mean']:.4f}", f"{row['spread']:.4f}"]
            bound = row["target"] is not None
            cells += [f"<= {L1:g}" if bound else "", ("yes" if row["met"] else "no") * bound]
            cells += [f"{row['seconds']:.2g}", row["note"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
