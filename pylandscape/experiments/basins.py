"""Basins as models of a landscape, and how their volume falls with the loss.

Zhang, Liao, Rakhlin, Miranda, Golowich, Poggio, "Theory of deep learning II" (2017), section 5,
figures 1, 6, 38 and 39: the landscape of an overparametrised network as a collection of basins with
flat floors ("simple"), or of basins that are themselves rippled at every scale ("basin-fractal"),
which has walls between two models at all losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arguments import integer
from ..arrays import Array
from ..errors import InvalidArgument
from ..results.curve import Curve
from ..results.grid_values import Grid
from ..results.simple_models import VolumeLaw
from ..results.surface import Surface


@dataclass(frozen=True, eq=False)
class BasinModel:
    """L(theta) = min over centres c of b(theta - c), a basin b of depth 1:

    b(u) = 1 - exp(-‖u‖^2 / width^2) + ripples sum_k decay^k mean_j (1 - cos(2^k 2 pi u_j / width)) / 2

    Args:
        centres: (K, n), one for each basin, or (n,) for one.
        width: of a basin.
        ripples: height of the coarsest ripple; 0 is the simple basin, above it the basin-fractal.
        decay: of the ripples from one octave to the next;  octaves: how many.

    Calling it with points (P, n) gives their losses (P,); a tensor (n,) gives a scalar tensor, so
    ``pl.from_function`` takes it.

    Raises:
        InvalidArgument: numbers out of their range.
    """  # noqa: E501

    centres: Any
    width: float = 1.0
    ripples: float = 0.0
    decay: float = 0.5
    octaves: int = 5

    def __post_init__(self) -> None:
        found = np.atleast_2d(np.asarray(self.centres, dtype=np.float64))
        if found.ndim != 2 or found.size == 0 or not np.isfinite(found).all():
            raise InvalidArgument(f"centres: expected finite numbers (K, n), got {found.shape}")
        object.__setattr__(self, "centres", found)
        if not self.width > 0 or not self.ripples >= 0 or not 0 <= self.decay < 1:
            raise InvalidArgument(
                "width, ripples, decay: expected width > 0, ripples >= 0 and 0 <= decay < 1, got "
                f"{self.width}, {self.ripples}, {self.decay}"
            )
        integer(self.octaves, "octaves", 1)

    @property
    def n(self) -> int:
        return int(self.centres.shape[1])

    def __call__(self, theta: Any) -> Array:
        points = np.asarray(theta, dtype=np.float64)
        rows = np.atleast_2d(points)
        if rows.shape[1] != self.n:
            raise InvalidArgument(f"theta: expected shape (P, {self.n}), got {points.shape}")
        least = np.full(len(rows), np.inf)
        for centre in self.centres:
            least = np.minimum(least, self._basin(rows - centre))
        return least if points.ndim == 2 else least[0]

    def _basin(self, u: Array) -> Array:
        found = -np.expm1(-(u**2).sum(axis=1) / self.width**2)
        for k in range(self.octaves if self.ripples else 0):
            wave = 0.5 * (1.0 - np.cos(2.0**k * 2.0 * np.pi * u / self.width))
            found = found + self.ripples * self.decay**k * wave.mean(axis=1)
        return found

    def grid(self, *axes: Any) -> Any:
        """The loss over the first one, two or three parameters, the others at 0: a Curve, Surface
        or Grid. ``axes`` are (first, last, how many)."""
        if not 1 <= len(axes) <= min(3, self.n):
            raise InvalidArgument(f"axes: expected 1 to {min(3, self.n)}, got {len(axes)}")
        ticks = [np.linspace(*axis) for axis in axes]
        mesh = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1)
        points = np.zeros((mesh[..., 0].size, self.n))
        points[:, : len(axes)] = mesh.reshape(-1, len(axes))
        values = self(points).reshape(mesh.shape[:-1])
        if len(axes) == 1:
            return Curve(ticks[0], values=values)
        if len(axes) == 2:
            return Surface(ticks[0], ticks[1], values=values)
        return Grid(ticks, values=values)

    def line(self, a: Any, b: Any, points: int = 201) -> Curve:
        """The loss from a (alpha = 0) to b (alpha = 1); ``Curve.barrier`` is the wall between."""
        alpha = np.linspace(0.0, 1.0, integer(points, "points", 3))
        first, last = (np.asarray(p, dtype=np.float64) for p in (a, b))
        rows = (1 - alpha)[:, None] * first + alpha[:, None] * last
        return Curve(alpha, values=self(rows), kind="interpolation")


def squared_norm(points: Array) -> Array:
    """‖theta‖^2 (P,)."""
    found: Array = (np.asarray(points) ** 2).sum(axis=1)
    return found


def volume_law(
    loss: Callable[[Array], Array] = squared_norm,
    dimensions: Sequence[int] = (1, 2, 3, 10, 100),
    levels: Any = None,
    *,
    samples: int = 20_000,
    seed: int = 0,
) -> VolumeLaw:
    """The share of the unit ball around 0 where the loss is below a level.

    Of ‖theta‖^2 it is level^(n / 2): in high dimension nearly all of a basin lies at its rim, so a
    random step from a low point almost never leads lower.

    Args:
        loss: points (P, n) to losses (P,); radial and rising (its value on the sphere is l0).
        dimensions: numbers n of parameters.
        levels: shares of l0 in (0, 1]; default 0.1, 0.2, ... 1.
        samples: points for each n: uniform on the sphere of R^(n + 2), without the last two
            coordinates, which is uniform in the ball of R^n.

    Raises:
        InvalidArgument: levels outside (0, 1], dimensions below 1, a loss that is not finite.
    """
    chosen = np.linspace(0.1, 1.0, 10) if levels is None else np.atleast_1d(np.asarray(levels))
    if chosen.ndim != 1 or not ((chosen > 0) & (chosen <= 1)).all():
        raise InvalidArgument(f"levels: expected shares in (0, 1], got {levels!r}")
    sizes = [integer(n, "dimensions", 1) for n in dimensions]
    samples = integer(samples, "samples", 1)
    rng = np.random.default_rng(seed)
    shares = np.zeros((len(sizes), len(chosen)))
    for row, n in enumerate(sizes):
        rim = np.zeros((1, n))
        rim[0, 0] = 1.0
        top = float(loss(rim)[0])
        if not np.isfinite(top) or top <= 0:
            raise InvalidArgument(f"loss: expected a positive value on the sphere, got {top}")
        for begin in range(0, samples, 1024):  # small blocks: n may be large
            z = rng.standard_normal((min(1024, samples - begin), n + 2))
            ball = (z / np.linalg.norm(z, axis=1, keepdims=True))[:, :n]
            found = np.asarray(loss(ball), dtype=np.float64)
            shares[row] += (found[:, None] <= chosen * top).sum(axis=0)
    expected = chosen ** (np.array(sizes)[:, None] / 2.0)
    return VolumeLaw(chosen, shares / samples, expected, sizes, samples, {"seed": seed})
