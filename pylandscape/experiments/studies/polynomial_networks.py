"""Polynomial networks learn as ReLU networks do, and what Bezout's theorem says of them."""

from __future__ import annotations

import torch
from torch import nn

import pylandscape as pl

from .. import networks
from ..lab import THEORY_II, Lab, Study
from ..measured import Measured
from ..page import panels
from ..polynomial import (
    Interpolator,
    find_interpolator,
    polynomial_network,
    relu_fit,
    solution_counts,
)


def run(lab: Lab) -> None:
    data = lab.images(side=8, train=512, test=512)
    widths = lab.size(toy=(2, 2), small=(8, 8, 8), paper=(128, 64, 64, 64, 64))
    count, epochs = lab.size(toy=2, small=4, paper=5), lab.size(toy=2, small=15, paper=60)
    relu = networks.dcnn(data, widths, lab.seed, bn=True)
    nets = {"ReLU": relu, "degree 2": polynomial_network(relu, 2, 1.0),
            "degree 4": polynomial_network(relu, 4, 3.0)}  # fmt: skip
    runs, test = {}, {}
    for name, net in nets.items():
        land = pl.Landscape(net, nn.CrossEntropyLoss(), data.train)
        runs[name] = pl.train(
            land, count, pl.SGD(lr=0.05, momentum=0.9), epochs=epochs, batch_size=64,
            seed=lab.seed, path=lab.path(f"{name}.h5"), progress=lab.progress,
        )  # fmt: skip
        held_out = pl.Landscape(net, nn.CrossEntropyLoss(), data.test)
        test[name] = pl.agreement(held_out, [run[-1] for run in runs[name]]).accuracy
    page = lab.page
    page.did(
        f"{count} convolutional networks with batch norm ({land.n_params:,} parameters) trained "
        f"for {epochs} epochs from the same starts: with ReLU, and with the polynomials of degree "
        "2 on [-1, 1] and 4 on [-3, 3] that are nearest to it in the mean square."
    )
    for name in ("degree 2", "degree 4"):
        gap = Measured(test["ReLU"] - test[name])
        page.claim(
            f"a polynomial net performs similarly to a ReLU net (figure 2): {name}",
            f"held-out accuracy {Measured(test[name])}, ReLU {Measured(test['ReLU'])}; "
            f"difference {gap}",
            gap.within(-0.05, 0.05),
        )
    counts = solution_counts(2, 4, 50_000)
    page.claim(
        "real zeros by Shub and Smale: as many as 2^(10^5) for CIFAR",
        f"degree 2, 4 layers, 50,000 samples: 2^{counts.shub_smale:,.0f} of at most "
        f"2^{counts.bezout:,.0f} complex ones", abs(counts.shub_smale - 1e5) < 1,
    )  # fmt: skip
    nullities, page_axes = [], panels(4, 2, height=2.2)
    for seed in range(lab.size(toy=2, small=8, paper=8)):
        found = _interpolator(lab.seed + seed)
        nullities.append((found.nullity, found.least_nullity, found.negative))
    found.plot(page_axes[3])
    page.claim(
        "zero-error minima are degenerate: K weights and N samples leave K - N flat directions",
        f"zero eigenvalues at {len(nullities)} interpolators of polynomial nets, K = "
        f"{len(found.theta)}, N = {found.equations}: {sorted({n for n, _, _ in nullities})}, none "
        "negative" if not any(n for _, _, n in nullities) else "some eigenvalues are negative",
        all(n >= least and not negative for n, least, negative in nullities),
    )  # fmt: skip
    x = torch.linspace(-2.5, 2.5, 101).numpy()
    for name, (degree, radius) in {"degree 2": (2, 1.0), "degree 4": (4, 3.0)}.items():
        page_axes[0].plot(x, sum(c * x**k for k, c in enumerate(relu_fit(degree, radius))),
                          label=name)  # fmt: skip
    page_axes[0].plot(x, x.clip(min=0), "k--", label="ReLU")
    page_axes[0].set(ylim=(-0.5, 3), xlabel="input", ylabel="activation")
    page_axes[0].legend(frameon=False, fontsize=6)
    for name in nets:
        curves = runs[name].metrics
        page_axes[1].plot(curves["accuracy"].mean(0), label=name)
        page_axes[2].plot(curves["loss"].mean(0), label=name)
    page_axes[1].set(xlabel="epoch", ylabel="training accuracy")
    page_axes[2].set(xlabel="epoch", ylabel="training loss", yscale="log", ylim=(None, 30))
    page_axes[1].legend(frameon=False, fontsize=6)
    page.picture(
        page_axes, "The activations, training accuracy and loss (means over the runs), and the "
        "spectrum of the Hessian at an interpolator of a small polynomial network."
    )  # fmt: skip
    page.why("The paper's network has no batch norm in this figure that we know of; without it the "
             "polynomials leave the interval where they are near ReLU.")  # fmt: skip
    page.why("Bezout's count is of isolated complex solutions of general equations; those of a "
             "network are not general, as its symmetries show.")  # fmt: skip


def _interpolator(seed: int) -> Interpolator:
    """Six random targets fitted exactly by a 3-8-1 network of degree 2."""
    net = networks.seeded(
        lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).double(), seed
    )
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(6, n, generator=draw, dtype=torch.float64) for n in (3, 1))
    return find_interpolator(pl.Landscape(polynomial_network(net), "mse", (x, y)))


STUDY = Study(
    title="Polynomial networks beside ReLU networks, and their zero-error minima",
    paper=THEORY_II, figure="figure 2, section 3", minutes=1, run=run,
)  # fmt: skip
