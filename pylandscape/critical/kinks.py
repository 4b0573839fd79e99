"""Kinks: functions of a model whose derivative jumps, and how close samples come to the jumps.

Autograd's Hessian is the one almost everywhere: it sees no curvature at a kink, finite differences
do. A sample is within `distance` of a kink if the input of one of its units is, in units of that
input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..arrays import Array

if TYPE_CHECKING:
    from ..landscape import Landscape

DISTANCE = 1e-3
POINTS = 64  # at most, of those that are classified

Places = Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[float, ...]]


def notice(
    land: Landscape, points: Array, distance: float = DISTANCE, most: int = POINTS
) -> dict[str, Any] | None:
    """What a classification says about kinks, JSON-able; None where the model has none.

    Args:
        points: (P, n); at most `most` of them are looked at, evenly spread.
        distance: from a kink, in units of the function's input.

    Returns:
        {"functions": names, "distance", "share": of samples within the distance, over the points;
        None if it cannot be told (ties of max pooling), "points": how many were looked at}.
    """
    finite = points[np.isfinite(points).all(axis=1)]
    step = max(1, -(-len(finite) // most))
    chosen = finite[::step]
    if not len(chosen):
        return None
    names: list[str] = []
    near = total = 0
    known = True
    engine = land.eager
    with engine.session(), engine.grad_mode():
        for point in chosen:
            engine.move(land.point(point))
            for index, batch in enumerate(engine.batches):
                with _Watch(batch.size, distance) as watch:
                    engine.batch_loss(index)
                names += [name for name in watch.names if name not in names]
                known &= watch.known
                near += int(watch.near.sum())
                total += batch.size
            if not names:
                return None
    share = near / total if known and total else None
    return {"functions": names, "distance": distance, "share": share, "points": len(chosen)}


def sentence(found: Mapping[str, Any]) -> str:
    """The notice as one sentence."""
    share = (
        "how close samples are to its kinks is not known"
        if found["share"] is None
        else f"{100 * found['share']:.3g} % of the samples are within {found['distance']:g} of a "
        f"kink (at {found['points']} of the points)"
    )
    return (
        f"{', '.join(found['functions'])} has kinks, where the Hessian is the one almost "
        f"everywhere and finite differences see more; {share}"
    )


class _Watch(TorchFunctionMode):
    """Notes calls of functions with kinks, and which samples are near one."""

    def __init__(self, samples: int, distance: float) -> None:
        super().__init__()
        self.samples, self.distance = samples, distance
        self.names: list[str] = []
        self.known = True
        self.near = torch.zeros(samples, dtype=torch.bool)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if name in _PLACES:
            self._note(name, _PLACES[name](args, options), args, options)
        elif name in _TIES and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            self.names += [name] if name not in self.names else []
            self.known = False
        return func(*args, **options)

    def _note(
        self, name: str, places: tuple[float, ...], args: tuple[Any, ...], options: Any
    ) -> None:
        x = args[0] if args else options.get("input")
        if not places or not isinstance(x, Tensor) or not x.is_floating_point():
            return
        if name not in self.names:
            self.names.append(name)
        close = torch.zeros_like(x, dtype=torch.bool)
        for place in places:
            close |= (x - place).abs() <= self.distance
        if x.dim() and x.shape[0] == self.samples:
            self.near |= close.reshape(self.samples, -1).any(dim=1).cpu()
        elif bool(close.any()):
            self.near[:] = True


def _at(*places: float) -> Places:
    return lambda args, options: places


def _option(name: str, position: int, default: Any) -> Places:
    """At the value of one argument; on both sides of 0 where `position` is 1 (lambd)."""

    def places(args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[float, ...]:
        found = args[position] if len(args) > position else options.get(name, default)
        return (float(found),) if isinstance(found, int | float) else ()

    return places


def _between(low: str, high: str, defaults: tuple[Any, Any]) -> Places:
    def places(args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[float, ...]:
        given = [*args[1:3], *[None] * (3 - len(args[:3]))]
        ends = [
            options.get(name, default) if value is None else value
            for name, value, default in zip((low, high), given, defaults, strict=False)
        ]
        return tuple(float(end) for end in ends if isinstance(end, int | float))

    return places


def _both_sides(args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[float, ...]:
    (place,) = _option("lambd", 1, 0.5)(args, options) or (0.5,)
    return (-place, place)


_PLACES: dict[str, Places] = {
    **{name: _at(0.0) for name in ("relu", "leaky_relu", "prelu", "rrelu", "abs", "absolute")},
    "relu6": _at(0.0, 6.0),
    "hardswish": _at(-3.0, 3.0),
    "hardsigmoid": _at(-3.0, 3.0),
    "threshold": _option("threshold", 1, 0.0),
    "hardshrink": _both_sides,
    "softshrink": _both_sides,
    "hardtanh": _between("min_val", "max_val", (-1.0, 1.0)),
    "clamp": _between("min", "max", (None, None)),
    "clip": _between("min", "max", (None, None)),
}
_TIES = frozenset(
    {
        "max", "min", "amax", "amin", "maximum", "minimum", "max_pool1d", "max_pool2d",
        "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "l1_loss",
    }
)  # fmt: skip
