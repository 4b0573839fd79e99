"""Width, batch size and the start: planes around the ends of training, with held-out error."""

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
    factors = lab.size(toy=(1, 2), small=(1, 2, 4, 8), paper=(1, 2, 4, 8))
    base, depth = lab.size(toy=(3, 1), small=(8, 8), paper=(16, 54))
    epochs, points = lab.size(toy=2, small=25, paper=300), lab.size(toy=5, small=21, paper=51)
    count = lab.size(toy=1, small=3, paper=3)
    page.did(
        f"Fully connected networks of {depth} blocks with batch norm, {base} units wide times "
        f"{', '.join(map(str, factors))}, with and without shortcuts, trained as in figure 9 "
        f"({count} starts); of the widest with shortcuts also with small (32) and large (256) "
        "batches, without weight decay. Width of the minimiser: the share of a filter-normalised "
        "plane where the loss is below that of its centre plus 0.1."
    )
    axes = panels(2 * len(factors), len(factors), height=1.9).reshape(2, -1)
    wide, error, above = {}, {}, []
    for row, kind in enumerate(("residual", "plain")):
        for column, factor in enumerate(factors):
            rule = pl.SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
            found = _trained(lab, data, mlp(data, depth, base * factor, kind, seed=lab.seed), rule,
                             64, (count, epochs, points), f"{kind}-{factor}")  # fmt: skip
            surfaces, error[kind, factor], start = found
            wide[kind, factor] = np.array([_width(s.values) for s in surfaces])
            above += [bool(s.values.max() > loss) for s, loss in zip(surfaces, start, strict=True)]
            surfaces[0].plot("contour", ax=axes[row, column], log=True)
            axes[row, column].set_title("", loc="left")
            axes[row, column].set_title(f"{kind} x{factor}: {error[kind, factor].mean():.1%}")
    last, first = factors[-1], factors[0]
    for kind in ("residual", "plain"):
        gain = Measured(wide[kind, last] - wide[kind, first])
        page.claim(
            f"increased width gives flat minima and wide regions of convexity (10): {kind}",
            f"area below the 0.1 contour {Measured(wide[kind, first])} at x{first}, "
            f"{Measured(wide[kind, last])} at x{last}", gain.above(0.0),
        )  # fmt: skip
    short = np.concatenate([wide["residual", f] - wide["plain", f] for f in factors])
    page.claim("skip connections dramatically widen minimisers",
               f"area with shortcuts less that without: {Measured(short)}",
               Measured(short).above(0.0))  # fmt: skip
    flat = np.concatenate([wide[k] for k in wide])
    wrong = np.concatenate([error[k] for k in wide])
    r = float(np.corrcoef(flat, wrong)[0, 1])
    page.claim(
        "sharpness correlates with test error",
        f"correlation of width and error over {len(flat)} networks: {r:.2f}",
        bool(r < -0.3) if abs(r) > 0.3 else None,
    )
    page.claim(
        "a random start lies within the region around the minimiser, which reaches higher losses",
        f"the plane rises above the loss at the start in {sum(above)} of {len(above)} networks",
        sum(above) > len(above) / 2,
    )
    sizes = lab.size(toy=(16, 32), small=(32, 256), paper=(128, 8192))
    net, batches = mlp(data, depth, base * last, seed=lab.seed), {}
    for size in sizes:
        found = _trained(lab, data, net, pl.SGD(lr=0.05), size, (count, epochs, points),
                         f"batch-{size}")  # fmt: skip
        batches[size] = np.array([_width(s.values) for s in found[0]]), found[1]
    small, large = (batches[size] for size in sizes)
    page.claim("large batches find sharper minima than small ones",
               f"width {Measured(small[0])} with {sizes[0]}, {Measured(large[0])} with {sizes[1]} "
               f"(errors {Measured(small[1])} and {Measured(large[1])})",
               Measured(small[0] - large[0]).above(0.0))  # fmt: skip
    page.picture(axes, "Contours around the first start's end, with held-out error: above with "
                 "shortcuts, below without, wider to the right.")  # fmt: skip
    rows = [(k, f"x{f}", Measured(wide[k, f]), Measured(error[k, f])) for k, f in wide]
    page.table(("network", "width", "area below 0.1", "held-out error"), rows)
    page.why("Filter-normalised directions change with width: a wider network's have more filters. "
             "With equal epochs, large batches take fewer steps.")  # fmt: skip


def _trained(lab, data, net, rule, batch, sizes, name):  # type: ignore[no-untyped-def]
    """Planes at the ends of ``count`` runs, their held-out errors, and the losses at the starts."""
    count, epochs, points = sizes
    land = pl.Landscape(net, nn.CrossEntropyLoss(), data.train)
    held_out = pl.Landscape(net, nn.CrossEntropyLoss(), data.test)
    runs = pl.train(land, count, rule, epochs=epochs, batch_size=batch, seed=lab.seed,
                    path=lab.path(f"{name}.h5"), progress=lab.progress)  # fmt: skip
    surfaces = []
    for p, one in enumerate(runs):
        here = land.at(one[-1])
        d = pl.random_directions(here, 2, seed=lab.seed + p)
        surfaces.append(pl.plane(here, *d, (-1, 1, points), (-1, 1, points),
                                 path=lab.path(f"{name}-{p}.h5"), progress=False))  # fmt: skip
    wrong = 1 - pl.agreement(held_out, [one[-1] for one in runs]).accuracy
    return surfaces, wrong, runs.metrics["loss"][:, 0]


def _width(values: np.ndarray) -> float:
    return float((values <= values[values.shape[0] // 2, values.shape[1] // 2] + 0.1).mean())


STUDY = Study(
    title="Width, batch size and the start: planes around the ends", paper=CATALOGUE,
    figure="figure 10", minutes=2.5, run=run,
)  # fmt: skip
