"""`pylandscape demo`: train a small network on digits and draw its loss landscape.

The data are scikit-learn's 1,797 digits (8 x 8), upsampled bilinearly to 28 x 28; the network is
784-20-10 with ReLU (n = 15,910 parameters), the size of published Hessian studies.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PylandscapeError

if TYPE_CHECKING:
    from ..results.curve import Curve
    from ..results.surface import Surface

STEPS = 300
PROBES, LANCZOS_STEPS = 10, 90  # of the spectrum (Ghorbani et al. 2019)
LEARNING_RATE = 1e-2
INSTALL = (
    "the demo needs scikit-learn for its digits: "
    'pip install "scikit-learn>=1.4", or, in the checkout, pip install ".[demo]"'
)


def digits_28x28() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits at 28 x 28: X (1797, 784) float32 in [0, 1], y (1797,) int64.

    Upsampled in float64 and then rounded: in float32 the rank of the images would rise from 62 to
    688.

    Raises:
        PylandscapeError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise PylandscapeError(INSTALL) from error
    bunch = load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float64) / 16.0)[:, None]
    large = F.interpolate(images, size=(28, 28), mode="bilinear", align_corners=False)
    return large.flatten(1).float(), torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))


def digits_mlp(hidden: int = 20, seed: int = 0) -> nn.Sequential:
    """A fresh 784-hidden-10 ReLU network; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int = STEPS) -> float:
    """Full-batch Adam with cross-entropy; returns the last loss. Leaves the model in eval mode."""
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    loss = torch.tensor(float("nan"))
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.zero_grad(set_to_none=True)
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(x), y)
    return float(loss)


def run(
    out: str | Path = "pylandscape-demo",
    *,
    points: int = 51,
    steps: int = STEPS,
    hidden: int = 20,
    seed: int = 0,
    progress: bool = True,
    say: Any = print,
) -> dict[str, Path]:
    """Train, draw, save and judge; returns the files written, by name. One step after the other, as
    a user's script would have them.

    Args:
        out: folder for surface.h5, contour.png, surface.png, line.png, and the Hessian's spectrum
            in spectrum.h5 and spectrum.png.
        points: of each axis of the surface.
        say: called with each line of the report.
    """
    from ..curvature.gradient_subspace import outlier_ratio
    from ..curvature.spectra import spectrum
    from ..landscape import Landscape
    from ..plots import surface as plotting
    from ..surfaces.grids import line, plane
    from ..theta.directions import random_directions

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    x, y = digits_28x28()
    model = digits_mlp(hidden, seed)
    loss = train(model, x, y, steps)
    accuracy = float((model(x).argmax(1) == y).double().mean())
    n = sum(p.numel() for p in model.parameters())
    say(
        f"model      784-{hidden}-10 ReLU, n = {n:,}, trained {steps} steps in "
        f"{time.perf_counter() - start:.1f} s: loss {loss:.4g}, accuracy {accuracy:.4f}"
    )

    land = Landscape(model, nn.CrossEntropyLoss(), (x, y))
    say(f"engine     {land.engine_report()}")
    d1, d2 = random_directions(land, 2, normalize="filter", seed=seed)
    axis = (-1.0, 1.0, points)
    files = {"surface.h5": folder / "surface.h5"}
    files["surface.h5"].unlink(missing_ok=True)  # timed, so computed and not read back
    start = time.perf_counter()
    surface = plane(land, d1, d2, x=axis, y=axis, path=files["surface.h5"], progress=progress)
    seconds = time.perf_counter() - start
    say(
        f"surface    {points} x {points} points over {len(x)} digits in {seconds:.2f} s "
        f"({1e6 * seconds / points**2:.0f} microseconds a point)"
    )
    start = time.perf_counter()
    curve = line(
        land, d1, x=(-1.0, 1.0, 2 * points - 1), metrics=("loss", "accuracy"), progress=progress
    )
    say(
        f"line       {2 * points - 1} points, loss and accuracy, in "
        f"{time.perf_counter() - start:.2f} s"
    )

    start = time.perf_counter()
    found = spectrum(land, PROBES, LANCZOS_STEPS, vectors=10, seed=seed, progress=progress)
    assert found.pairs is not None
    trace, error = found.trace
    say(
        f"spectrum   {found.info['products']} Hessian-vector products in "
        f"{time.perf_counter() - start:.2f} s: eigenvalues {found.extremes[0]:.3g} to "
        f"{found.extremes[1]:.4g}, trace {trace:.3g} +- {error:.2g}, "
        f"lambda_1/lambda_10 {outlier_ratio(found.pairs.values, 10):.3g}"
    )
    files["spectrum.h5"] = folder / "spectrum.h5"
    found.save(files["spectrum.h5"])

    start = time.perf_counter()
    pictures: dict[str, tuple[Curve | Surface, str, dict[str, Any]]] = {
        "contour.png": (surface, "contour", {"log": True}),
        "surface.png": (surface, "surface", {"log": True}),
        "line.png": (curve, "line", {}),
    }
    for name, (result, kind, options) in pictures.items():
        axes = plotting.plot(result, kind, **options)
        files[name] = plotting.save(axes, folder / name)
        plotting.close(axes)
    axes = found.plot(xscale="symlog")
    files["spectrum.png"] = plotting.save(axes, folder / "spectrum.png")
    plotting.close(axes)
    say(f"pictures   in {time.perf_counter() - start:.1f} s")
    say(str(surface.check()))
    for path in files.values():
        say(f"written    {path}")
    return files
