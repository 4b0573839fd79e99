"""The error surface of XOR: stationary points, plateaus, and paths that never rise."""

from __future__ import annotations

import numpy as np

import pylandscape as pl

from ..lab import CATALOGUE, Lab, Study
from ..page import panels
from ..theorems import xor_landscape


def run(lab: Lab) -> None:
    page, land, draw = lab.page, xor_landscape("mse"), np.random.default_rng(lab.seed)
    count = lab.size(toy=3, small=40, paper=400)
    found = pl.find_critical_points(
        land, draw.normal(0, 2, (lab.size(toy=10, small=300, paper=1000), 9)), dedupe="symmetry",
        rtol=1e-9, progress=lab.progress, path=lab.path("critical.h5"),
    )  # fmt: skip
    above = found.losses > 0.01
    starts = draw.normal(0, 2, (count, 9))
    paths = [pl.monotone_path(land, start, 0.01, seed=k) for k, start in enumerate(starts)]
    reached = np.array([path.reached for path in paths])
    falling = [pl.is_non_ascending(path.points, 1e-14, land=land, between=50) for path in paths]
    descents = pl.train(
        land, draw.normal(0, 1, (lab.size(toy=5, small=400, paper=400), 9)), pl.SGD(lr=1.0),
        steps=lab.size(toy=50, small=20_000, paper=50_000), record=10**6, progress=False,
    )  # fmt: skip
    ends = descents.metrics["loss"][:, -1]
    page.did(
        f"XOR with two sigmoid hidden units (n = 9), mean squared error. Stationary points were "
        f"sought from {len(found.outcomes) if hasattr(found, 'outcomes') else 'many'} starts, "
        f"paths that never rise to a loss of 0.01 from {count} starts, and gradient descent was "
        f"run from {len(ends)} for {descents.steps[-1]:,} steps."
    )
    kinds = [str(kind) for kind in found.kinds[above]]
    page.claim(
        "there are no local minima of finite weights above the global one",
        f"{above.sum()} stationary points above 0.01, strictly convex: {kinds.count('convex')} ("
        + ", ".join(f"{kinds.count(k)} {k}" for k in sorted(set(kinds))) + ")",
        None if not kinds else "convex" not in kinds,
    )  # fmt: skip
    page.claim(
        "XOR with two hidden nodes has no regional local minima: from every finite weights a "
        "non-ascending trajectory leads to the global minimum",
        f"found from {reached.sum()} of {count} starts; of these none rises, resampled: "
        f"{sum(np.array(falling)[reached])}",
        bool(reached.all() and all(falling)) or None,
    )
    levels = np.array([0.0, 1 / 8, 1 / 6, 1 / 4])
    stuck = np.abs(ends[:, None] - levels[1:]).min(axis=1) < 0.01
    page.claim(
        "poor training is due to saddles and plateaus, where descent is slow, not to minima",
        f"{stuck.sum()} of {len(ends)} descents end near the plateaus 1/8, 1/6 or 1/4; from "
        f"{_escapes(land, descents.ends().numpy()[stuck][: lab.size(toy=1, small=10, paper=50)])} "
        "of these ends a path that never rises goes on to 0.01",
        bool(stuck.any()) if stuck.sum() else None,
    )
    axes = panels(3, 3, height=2.2)
    for path in paths[:12]:
        axes[0].plot(np.linspace(0, 1, len(path.losses)), path.losses, linewidth=0.7)
    axes[0].set(xlabel="share of the path's moves", ylabel="loss", title="paths that never rise")
    axes[1].hist(ends, 60, color="#0072B2")
    for level in levels[1:]:
        axes[1].axvline(level, color="k", linewidth=0.5, linestyle=":")
    axes[1].set(xlabel="loss at the end of descent", ylabel="runs", yscale="log")
    axes[2].plot(np.arange(1, 10), np.sort(pl.hessians(land, np.zeros((1, 9))).eigenvalues()[0]),
                 "o", markersize=3)  # fmt: skip
    axes[2].set(xlabel="eigenvalue", ylabel="value", title="Hessian at theta = 0")
    page.picture(axes, "Losses along paths that never rise; where plain descent ends (dotted: the "
                 "plateaus); the spectrum at the origin, a singular stationary point.")  # fmt: skip
    tries = lab.size(toy=5, small=60, paper=400)
    tables = pl.theory("xor", starts=tries, descents=tries, seed=lab.seed)
    page.text("\n\n".join(f"```\n{table}\n```" for table in tables))
    page.why("A search for paths that fails proves nothing; one that succeeds is a proof for its "
             "start. Weak minima at infinity exist (Sprinkhuizen-Kuyper, Boers 1996).")  # fmt: skip


def _escapes(land: pl.Landscape, ends: np.ndarray) -> str:
    reached = [pl.monotone_path(land, end, 0.01, seed=1).reached for end in ends]
    return f"{sum(reached)} of {len(reached)}"


STUDY = Study(
    title="XOR: stationary points, plateaus and paths that never rise", paper=CATALOGUE,
    figure="section 5.3, figures 7, 8", minutes=1.5, run=run, data="none",
)  # fmt: skip
