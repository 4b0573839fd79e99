"""The skip-connection picture: ``python -m bench.skip_connections``.

A CIFAR-style ResNet and its twin without shortcuts, of the same depth and width, are trained alike
on scikit-learn's digits; then their surfaces are drawn side by side on one logarithmic scale, as in
Li et al. (2018), figure 1: filter-normalised directions, running statistics of batch norm (eval).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.results.surface import Surface

from .networks import ResNet

OUT = Path(__file__).parent / "results" / "skip_connections.png"
SIDE = 16  # pixels: the digits are 8 x 8
BATCH = 32
# As Li et al. (2018), appendix A, but for a smaller rate, at which both learn, and its schedule.
RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
SEED = 0
# Of the figure, in inches, and of its panels, as shares of its width.
WIDTH, HEIGHT = 6.9, 6.1
LEFT, PANEL, GAP = 0.085, 0.365, 0.06


def images() -> tuple[Tensor, Tensor]:
    """The 1,797 digits (N, 1, SIDE, SIDE), mean 0 and deviation 1 over all pixels, and labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(np.asarray(bunch.images, dtype=np.float64))[:, None]
    x = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    x = (x - x.mean()) / x.std()
    return x.float(), torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    """Leaves the model in eval mode."""
    generator = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.SGD(
        model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True
    )
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()
    model.eval()


def surface(model: nn.Module, x: Tensor, y: Tensor, points: int) -> Surface:
    land = pl.Landscape(model, "cross_entropy", (x, y), bn="eval")
    d1, d2 = pl.random_directions(land, 2, normalize="filter", seed=SEED)
    axis = (-1.0, 1.0, points)
    print(f"  engine {land.engine_report()}")
    return pl.plane(land, d1, d2, x=axis, y=axis, progress=False)


def draw(surfaces: Sequence[tuple[str, Surface]], path: Path) -> None:
    """3-D above, filled contours below, one colour scale for all."""
    import matplotlib

    from pylandscape.plots.scale import Scale, format_levels
    from pylandscape.plots.style import STYLE, close, save
    from pylandscape.plots.surface import plot_surface

    values = np.stack([s.values for _, s in surfaces])
    scale = Scale.of(values, log=True)
    levels = marked = scale.levels(values, None)
    decades = np.arange(np.ceil(np.log10(scale.vmin)), np.ceil(np.log10(scale.vmax)))
    if decades.size > 3:
        marked = 10**decades
        levels = np.sort(np.concatenate([marked, 3 * marked[:-1]]))
    shared: dict[str, Any] = {"log": True, "vmin": scale.vmin, "vmax": scale.vmax}
    with matplotlib.rc_context(STYLE):
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(WIDTH, HEIGHT))
        flat = []
        for i, (title, found) in enumerate(surfaces):
            middle = LEFT + (i + 0.5) * PANEL + i * GAP
            solid = figure.add_axes((middle - 0.23, 0.535, 0.43, 0.43), projection="3d")
            solid.patch.set_visible(False)  # it would hide the neighbour's labels
            names = {"xlabel": "$d_1$", "ylabel": "$d_2$"}
            plot_surface(found, "surface", solid, **names, **shared)
            figure.text(middle, 0.97, title, ha="center", va="top")
            ax = figure.add_axes((middle - PANEL / 2, 0.075, PANEL, PANEL * WIDTH / HEIGHT))
            plot_surface(found, "filled", ax, levels=levels, colorbar=False, **shared)
            flat.append(ax)
        flat[1].set(ylabel="", yticklabels=[])
        right = LEFT + 2 * PANEL + GAP + 0.02
        bar = figure.add_axes((right, 0.075, 0.02, PANEL * WIDTH / HEIGHT))
        drawn = figure.colorbar(flat[0].collections[0], cax=bar, spacing="uniform")
        drawn.set_ticks(scale.forward(marked), labels=format_levels(marked))
        drawn.ax.minorticks_off()
        drawn.set_label(scale.label("loss"))
        drawn.outline.set_linewidth(0.5)
    save(flat[0], path)
    close(flat[0])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.skip_connections", description=__doc__)
    parser.add_argument("--depth", type=int, default=56, help="6 n + 2 (%(default)s)")
    parser.add_argument("--width", type=int, default=8, help="of the first stage (%(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="%(default)s")
    parser.add_argument("--points", type=int, default=51, help="along each axis (%(default)s)")
    parser.add_argument("--images", type=int, default=500, help="of a surface (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="picture (%(default)s)")
    options = parser.parse_args(arguments)
    begin = time.perf_counter()
    x, y = images()
    few_x, few_y = x[: options.images], y[: options.images]
    found = []
    for shortcut, name in (("A", "with shortcuts"), (None, "without shortcuts")):
        torch.manual_seed(SEED)
        model = ResNet(options.depth, options.width, channels=1, shortcut=shortcut)
        start = time.perf_counter()
        train(model, x, y, options.epochs)
        with torch.no_grad():
            outputs = model(x)
        accuracy = float((outputs.argmax(1) == y).double().mean())
        loss = float(F.cross_entropy(outputs, y))
        title = f"ResNet-{options.depth} {name}"
        reached = f"loss {loss:.2g}, accuracy {accuracy:.1%}"
        seconds = time.perf_counter() - start
        print(f"{title}: {reached}, trained in {seconds:.0f} s", flush=True)
        start = time.perf_counter()
        found.append((f"{title}\n{reached}", surface(model, few_x, few_y, options.points)))
        low, high = found[-1][1].values.min(), found[-1][1].values.max()
        print(
            f"  {options.points} x {options.points} points over {len(few_x)} images in "
            f"{time.perf_counter() - start:.0f} s: loss {low:.3g} to {high:.3g}",
            flush=True,
        )
    draw(found, options.out)
    print(f"{options.out.name} in {time.perf_counter() - begin:.0f} s, training included")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
