"""Directions in parameter space: random, normalised, or towards another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._native import has_cuda_kernels, ops
from .errors import CudaUnavailable, InvalidArgument, LayoutMismatch

if TYPE_CHECKING:
    from .landscape import Landscape
    from .layout import ParameterLayout

# normalize -> (what a segment is scaled to, one norm over all segments, segments are rows)
_THETA, _UNIT, _ELEMENTWISE, _NONE = range(4)  # csrc/program/directions.h
_MODES: dict[str | None, tuple[int, bool, bool]] = {
    "filter": (_THETA, False, True),
    "layer": (_THETA, False, False),
    "model": (_THETA, True, False),
    "weight": (_ELEMENTWISE, False, False),
    "dfilter": (_UNIT, False, True),
    "dlayer": (_UNIT, False, False),
    None: (_NONE, False, False),
}
_IGNORABLE = ("bias", "norm")


@dataclass(frozen=True)
class Direction:
    """A direction ``vector`` (n,) and how it came about (``info``, JSON-able)."""

    vector: Tensor
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vector.dim() != 1:
            raise InvalidArgument(f"vector: expected shape (n,), got {tuple(self.vector.shape)}")


def random_directions(
    land: Landscape,
    count: int = 2,
    *,
    normalize: str | None = "filter",
    ignore: Sequence[str] = ("bias", "norm"),
    seed: int = 0,
    orthogonal: bool = False,
    theta: Any = None,
) -> list[Direction]:
    """``count`` Gaussian directions, normalised as in Li et al. (2018), section 4.

    Args:
        normalize: "filter": each filter (row ``W[o, ...]`` of a weight) gets the norm of theta's;
            "layer": each parameter tensor does; "model": the whole vector does; "weight": each
            element times theta's; "dfilter", "dlayer": norm 1 per filter or tensor; None: raw.
            A tensor of at most one dimension is one filter. ``d * |theta| / (|d| + 1e-10)``: a
            zero filter gives a zero direction.
        ignore: kinds ("bias", "norm") or names of parameters whose part is zero.
        seed: 64-bit. Direction i is stream i of the seed: the same raw numbers on every machine,
            device, dtype and thread count; normalised ones agree to a few eps.
        orthogonal: remove from each direction its component along the earlier ones. This comes
            after the normalisation and lowers the filter norms by what it removes (of order
            1/sqrt(n), relatively).
        theta: the point whose norms count; default the model's parameters.

    Raises:
        InvalidArgument: for an unknown normalisation or kind, or a count below 1.
    """
    if not isinstance(count, int) or count < 1:
        raise InvalidArgument(f"count: expected an integer >= 1, got {count!r}")
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise InvalidArgument(f"seed: expected a 64-bit integer, got {seed!r}")
    point = land.theta if theta is None else land._theta(theta)
    target, joint, rows = _mode(normalize)
    segments = _segments(land.layout, rows, ignore, point.device)
    _check_device(point)
    found: list[Direction] = []
    for index in range(count):
        vector = torch.empty_like(point)
        ops.random_direction_(vector, point, segments, target, joint, seed, index)
        if orthogonal:
            for earlier in found:
                vector = _without(vector, earlier.vector)
        info = {
            "kind": "random",
            "normalize": normalize,
            "ignore": list(ignore),
            "seed": seed,
            "index": index,
            "orthogonal": orthogonal,
        }
        found.append(_direction(land, vector, info))
    return found


def normalize_direction(
    land: Landscape,
    direction: Any,
    *,
    normalize: str | None = "filter",
    ignore: Sequence[str] = ("bias", "norm"),
    theta: Any = None,
) -> Direction:
    """Any direction, normalised as ``random_directions`` does."""
    point = land.theta if theta is None else land._theta(theta)
    vector = land.layout.vector(direction, "direction", point.dtype, point.device).contiguous()
    target, joint, rows = _mode(normalize)
    segments = _segments(land.layout, rows, ignore, point.device)
    _check_device(point)
    out = torch.empty_like(point)
    ops.normalize_direction_(out, vector, point, segments, target, joint)
    info = {**getattr(direction, "info", {"kind": "given"})}
    return _direction(land, out, {**info, "normalize": normalize, "ignore": list(ignore)})


def target_direction(
    land: Landscape,
    target: Any,
    *,
    normalize: str | None = None,
    ignore: Sequence[str] = (),
) -> Direction:
    """From the model's parameters to ``target`` (a module, a state dict or a vector (n,))."""
    end = land.layout.vector(target, "target", land.theta.dtype, land.theta.device)
    difference = Direction(end - land.theta, {"kind": "target"})
    return normalize_direction(land, difference, normalize=normalize, ignore=ignore)


def as_directions(
    land: Landscape, directions: Any, name: str = "directions"
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Anything that gives directions as one matrix (k, n) and one info each.

    Accepts a Direction, a vector (n,), a matrix (k, n), a module or state dict (as a vector), or a
    sequence of them. Raises LayoutMismatch or InvalidArgument naming the offender.
    """
    dtype, device = land.theta.dtype, land.theta.device
    if isinstance(directions, Tensor | np.ndarray) and directions.ndim == 2:
        if directions.shape[1] != land.n_params:
            raise LayoutMismatch(
                f"{name}: expected shape (k, {land.n_params}) (the model's parameters), "
                f"got {tuple(directions.shape)}"
            )
        directions = list(directions)
    elif not isinstance(directions, list | tuple):
        directions = [directions]
    if not directions:
        raise InvalidArgument(f"{name}: expected at least one direction, got none")
    rows, infos = [], []
    for i, item in enumerate(directions):
        own = name if len(directions) == 1 else f"{name}[{i}]"
        layout = getattr(item, "info", {}).get("layout")
        if layout is not None and layout != land.layout.digest:
            raise LayoutMismatch(
                f"{own}: expected a direction of this model's parameter layout "
                f"({land.layout.digest[:12]}), got one of {layout[:12]}"
            )
        rows.append(land.layout.vector(item, own, dtype, device))
        infos.append(dict(getattr(item, "info", {"kind": "given"})))
    return torch.stack(rows), infos


def gaussian(seed: int, stream: int, first: int, count: int) -> Tensor:
    """Standard normals number first .. first + count of (seed, stream), (count,) float32.

    The same bits on every machine (csrc/common/gaussian.h).
    """
    out = torch.empty(count, dtype=torch.float32)
    ops.gaussian_(out, seed, stream, first)
    return out


def _mode(normalize: str | None) -> tuple[int, bool, bool]:
    if normalize not in _MODES:
        known = ", ".join(repr(mode) for mode in _MODES)
        raise InvalidArgument(f"normalize: expected one of {known}, got {normalize!r}")
    return _MODES[normalize]


def _segments(
    layout: ParameterLayout, rows: bool, ignore: Sequence[str], device: torch.device
) -> Tensor:
    """(s, 2) begin and end of what is normalised together, without the ignored parameters."""
    if isinstance(ignore, str):
        ignore = (ignore,)
    names = {entry.name for entry in layout.entries}
    for item in ignore:
        if item not in _IGNORABLE and item not in names:
            raise InvalidArgument(
                f"ignore: expected 'bias', 'norm' or the name of a parameter, got {item!r}"
            )
    parts: list[Tensor] = []
    for entry in layout.entries:
        if entry.kind in ignore or entry.name in ignore or entry.numel == 0:
            continue
        count = entry.shape[0] if rows and len(entry.shape) > 1 else 1
        edges = entry.offset + torch.arange(count + 1) * (entry.numel // count)
        parts.append(torch.stack([edges[:-1], edges[1:]], dim=1))
    joined = torch.cat(parts) if parts else torch.empty(0, 2, dtype=torch.int64)
    return joined.to(device).contiguous()


def _check_device(point: Tensor) -> None:
    if point.device.type == "cuda" and not has_cuda_kernels:
        raise CudaUnavailable(
            "this pylandscape was built without CUDA kernels: install nvcc and build again with "
            "PYLANDSCAPE_CUDA=ON (pip install . -C cmake.define.PYLANDSCAPE_CUDA=ON)"
        )


def _without(vector: Tensor, along: Tensor) -> Tensor:
    norm2 = along.double().dot(along.double())
    if norm2 == 0:
        return vector
    share = vector.double().dot(along.double()) / norm2
    return (vector.double() - share * along.double()).to(vector.dtype)


def _direction(land: Landscape, vector: Tensor, info: dict[str, Any]) -> Direction:
    norm = float(torch.linalg.vector_norm(vector.double()))
    return Direction(vector, {**info, "layout": land.layout.digest, "norm": norm})
