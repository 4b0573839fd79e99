"""Directions in parameter space: random, normalised, or towards another model."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._native import cuda_problem, ops
from ..arguments import check_landscape
from ..arrays import all_finite
from ..errors import CudaUnavailable, InvalidArgument, LayoutMismatch
from . import running_statistics
from .checkpoints import tensors_of
from .pieces import Random, Row, Rows, Stored, Tensors, finite, norm_of, row_of, vector_of

if TYPE_CHECKING:
    from .layout import ParameterLayout
    from .space import Space

NORMALIZATIONS = ("filter", "layer", "model", "weight", "dfilter", "dlayer", None)
_PER_ROW = ("filter", "dfilter")
_KINDS = ("bias", "norm")
LARGE = 1 << 25  # parameters from which on random directions are not stored unless asked for


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction ``vector`` (n,) and how it came about (``info``, JSON-able).

    ``statistics`` (m,): how it moves the running statistics of batch norm, in the order of
    ``Landscape.moved``; None for not at all. Only bn="interpolate" looks at it.

    ``info`` has at least "kind" ("random" | "target" | "given"), "layout" (digest of the parameter
    layout) and "norm" where this package made the direction; random ones add "seed" and "index".
    """

    vector: Tensor
    info: dict[str, Any] = field(default_factory=dict)
    statistics: Tensor | None = None

    def __post_init__(self) -> None:
        shape = getattr(self.vector, "shape", None)
        if not isinstance(self.vector, Tensor) or self.vector.dim() != 1:
            raise InvalidArgument(
                "vector: expected a tensor of shape (n,), got "
                + (type(self.vector).__name__ if shape is None else f"shape {tuple(shape)}")
            )

    def __repr__(self) -> str:
        names = ("normalize", "seed", "index")
        more = [f"{k} {self.info[k]}" for k in names if self.info.get(k) is not None]
        moved = [] if self.statistics is None else ["moves running statistics"]
        size = [f"n = {self.vector.numel():,}", f"norm {float(self.vector.norm()):.4g}"]
        kind = str(self.info.get("kind", "given"))
        return f"Direction({', '.join([kind, *size, *more, *moved])})"


class NamedDirection(Direction):
    """A direction that is not stored: ``vector`` makes its n numbers anew each time it is read.

    Lines, planes and grids read it piece by piece and never hold it whole.
    """

    def __init__(self, row: Row, info: dict[str, Any]) -> None:
        self.__dict__.update(row=row, info=info, statistics=None)

    row: Row

    @property
    def vector(self) -> Tensor:
        return self.row.whole()

    def __repr__(self) -> str:
        names = ("normalize", "seed", "index")
        more = [f"{k} {self.info[k]}" for k in names if self.info.get(k) is not None]
        size = [f"n = {self.row.n:,}", f"norm {self.info['norm']:.4g}"]
        return f"Direction({', '.join([str(self.info['kind']), *size, *more, 'not stored'])})"


def random_directions(
    land: Space,
    count: int = 2,
    *,
    normalize: str | None = "filter",
    ignore: Sequence[str] = ("bias", "norm"),
    seed: int = 0,
    orthogonal: bool = False,
    theta: Any = None,
    stored: bool | None = None,
) -> list[Direction]:
    """``count`` Gaussian directions, normalised as in Li et al. (2018), section 4.

    Args:
        land: whose parameter layout, dtype and device the directions have.
        count: how many. Direction i is the same whatever the count.
        normalize: "filter": each filter (row ``W[o, ...]`` of a weight) gets the norm of theta's;
            "layer": each parameter tensor does; "model": all that is not ignored together does;
            "weight": each element times theta's; "dfilter", "dlayer": norm 1 per filter or tensor;
            None: raw N(0, 1). A tensor of at most one dimension is one filter.
        ignore: kinds ("bias", "norm") or name patterns (``"layer1.*"``) of parameters whose part
            is zero. The default is the paper's: everything that is not a weight.
        seed: 64-bit. Direction i is stream i of the seed.
        orthogonal: remove from each direction its component along the earlier ones (Gram-Schmidt,
            in double, after the normalisation). It is not normalised again, which would undo it:
            the norm of a filter changes by what is removed, relatively of order 1 / sqrt(n).
        theta: the point whose norms count; default the model's parameters.
        stored: False: keep the seed and a scale for each filter instead of n numbers, which are
            drawn again at every point, on a CPU with the same bits: directions then take no
            memory, and the torch engine needs none for them. Default: where theta has fewer than
            2^25 (33,554,432) elements, or ``orthogonal`` is asked for. Engines other than torch's
            store them in any case.

    Raises:
        InvalidArgument: for an unknown normalisation, kind or pattern, a count below 1, a seed
            beyond 64 bits, ``orthogonal`` with stored=False.
        CudaUnavailable: for a landscape on CUDA without this package's CUDA kernels.

    Numerics: the raw numbers have the same bits on every CPU and GPU, in either dtype; on CPUs the
    normalised ones too, GPUs agree to a few eps. Sums are double. A segment is
    ``d * |theta| / (|d| + 1e-10)``: zero filters give zero, never NaN.
    """
    check_landscape(land, "random_directions")
    count, seed = _integer(count, "count", 1, 2**31), _integer(seed, "seed", -(2**63), 2**63)
    if stored is not None and not isinstance(stored, bool):
        raise InvalidArgument(f"stored: expected True, False or None, got {stored!r}")
    if stored is False and orthogonal:
        raise InvalidArgument(
            "stored: expected True together with orthogonal=True, which makes each direction from "
            "those before it; of n parameters, random directions are orthogonal up to 1 / sqrt(n)"
        )
    keep = orthogonal or land.layout.n < LARGE if stored is None else stored
    base = land.base if theta is None else row_of(land.point(theta))
    mode = _mode(normalize)
    segments = _segments(land.layout, normalize in _PER_ROW, ignore)
    _check_device(base.device)
    point = vector_of(base)[: land.layout.n] if keep else None
    found: list[Direction] = []
    for index in range(count):
        info = {
            "kind": "random",
            "normalize": normalize,
            "ignore": _patterns(ignore),
            "seed": seed,
            "index": index,
            "orthogonal": orthogonal,
        }
        if point is None:
            row = Random(base, land.layout.n, segments, mode, seed, index)
            found.append(_named(land, row, info))
            continue
        vector = ops.random_direction(point, segments, mode, seed, index)
        if orthogonal:
            for earlier in found:
                vector = _without(vector, earlier.vector)
        found.append(_direction(land, vector, info))
    return found


def normalize_direction(
    land: Space,
    direction: Any,
    *,
    normalize: str | None = "filter",
    ignore: Sequence[str] = ("bias", "norm"),
    theta: Any = None,
) -> Direction:
    """Any direction (Direction or vector), normalised.

    Arguments, errors and numerics as in ``random_directions``. A direction that moves running
    statistics (bn="interpolate") is only taken with normalize=None: of a rescaled one, they would
    be those of no model.
    """
    check_landscape(land, "normalize_direction")
    running_statistics.check_direction(direction, "direction")
    carried = getattr(direction, "statistics", None)
    if carried is not None and normalize is not None:
        raise InvalidArgument(
            "normalize: expected None for a direction that moves running statistics "
            f"(bn='interpolate'), got {normalize!r}"
        )
    point = (
        land.theta
        if theta is None
        else running_statistics.point(land, theta, "theta")[: land.n_params]
    )
    vector = land.layout.vector(direction, "direction", point.dtype, point.device)
    mode = _mode(normalize)
    segments = _segments(land.layout, normalize in _PER_ROW, ignore)
    _check_device(point.device)
    out = ops.normalize_direction(vector, point, segments, mode)
    info = dict(getattr(direction, "info", {"kind": "given"}))
    found = _direction(land, out, {**info, "normalize": normalize, "ignore": _patterns(ignore)})
    if carried is None:
        return found
    keep = running_statistics.kept(land.moved, _patterns(ignore)).to(carried.device)
    return replace(found, statistics=carried * keep)


def target_direction(
    land: Space,
    target: Any,
    *,
    normalize: str | None = None,
    ignore: Sequence[str] = (),
    stored: bool = True,
) -> Direction:
    """From the model's parameters to ``target`` (a module, a state dict or a vector (n,)).

    With bn="interpolate" also from its running statistics to the target's, which must have them;
    ``normalize`` must be None then, and ignore=("norm",) leaves the statistics still as well.

    ``stored``: False: the difference is taken where it is needed, of the tensors of a module, a
    state dict or a checkpoint's file, which must stay as they are; a ``.safetensors`` file, or one
    of `torch.save`, is read tensor by tensor. The direction then takes no memory.

    Raises:
        InvalidArgument: with another ``bn``, for a target whose buffers are others, which the way
            there could not move.
    """
    check_landscape(land, "target_direction")
    n = land.n_params
    moves = land.moved.n > n
    if not stored:
        if moves or normalize is not None or ignore:
            raise InvalidArgument(
                "stored: expected True together with normalize=, ignore= or bn='interpolate', got "
                f"{stored!r}"
            )
        info: dict[str, Any] = {"kind": "target", "normalize": None, "ignore": []}
        return _named(land, solution(land, target, "target", land.base), info)
    step = running_statistics.point(land, target, "target", needed=moves) - land.origin
    difference = Direction(step[:n], {"kind": "target"}, step[n:] if moves else None)
    return normalize_direction(land, difference, normalize=normalize, ignore=ignore)


def solution(land: Space, value: Any, name: str, base: Row | None = None) -> Row:
    """What `running_statistics.point` gives, read piece by piece where the value has tensors by
    name (a module, a state dict, a checkpoint's path); minus ``base``, where one is given.

    Raises: as `running_statistics.point`.
    """
    tensors = tensors_of(getattr(value, "vector", value), name)
    if not isinstance(tensors, Mapping):
        found = running_statistics.point(land, value, name)
        return Stored(found if base is None else found - base.whole())
    running_statistics.check_buffers(land, tensors, name)
    named = land.layout.named(tensors, name)
    moving = {t.untyped_storage().data_ptr() for t in land.model.parameters()}
    for key, t in named.items():
        if t.layout == torch.strided and t.untyped_storage().data_ptr() in moving:
            named[key] = t.detach().clone()  # of the landscape's own copy, which points move
    row = Tensors(named, land.layout, land.dtype, land.device, base)
    bad = finite(row)
    if bad:
        raise InvalidArgument(f"{name}: expected finite elements, got {bad} that are not")
    return row


def as_directions(
    land: Space, directions: Any, name: str = "directions"
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Anything that gives directions as one matrix (k, n) and one info each.

    Accepts a Direction, a vector (n,), a matrix (k, n), or a sequence of them. Raises
    LayoutMismatch or InvalidArgument naming the offender, also for a module or state dict.
    """
    check_landscape(land, "as_directions")
    dtype, device = land.theta.dtype, land.theta.device

    def read(item: Any, own: str) -> Tensor:
        running_statistics.check_direction(item, own)
        return land.layout.vector(item, own, dtype, device)

    return _rows(land, directions, name, read)


def as_steps(
    land: Space, directions: Any, name: str = "directions"
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The same as (k, n + m): with bn="interpolate", with the statistics' part."""
    return _rows(land, directions, name, lambda item, own: running_statistics.step(land, item, own))


def as_rows(
    land: Space, directions: Any, name: str = "directions"
) -> tuple[Tensor | Rows, list[dict[str, Any]]]:
    """As `as_steps`, but Rows where directions are among them that are not stored."""
    if isinstance(directions, Rows):
        return directions, [{"kind": "given"} for _ in directions]
    given = directions if isinstance(directions, list | tuple) else [directions]
    if land.moved.n > land.n_params or not any(isinstance(d, NamedDirection) for d in given):
        return as_steps(land, directions, name)
    rows: list[Row] = []
    infos = []
    for i, item in enumerate(given):
        own = name if len(given) == 1 else f"{name}[{i}]"
        if isinstance(item, NamedDirection):
            _check_layout(land, item, own)
            rows.append(item.row)
            infos.append(dict(item.info))
        else:
            vectors, found = as_steps(land, item, own)
            rows += [Stored(v) for v in vectors]
            infos += found
    return Rows(rows), infos


def _check_layout(land: Space, item: Any, name: str) -> None:
    layout = getattr(item, "info", {}).get("layout")
    if layout is not None and layout != land.layout.digest:
        raise LayoutMismatch(
            f"{name}: expected a direction of this model's parameter layout "
            f"({land.layout.digest[:12]}), got one of {layout[:12]}"
        )


def _rows(
    land: Space, directions: Any, name: str, read: Callable[[Any, str], Tensor]
) -> tuple[Tensor, list[dict[str, Any]]]:
    if isinstance(directions, Tensor | np.ndarray) and directions.ndim == 2:
        if directions.shape[1] not in (land.n_params, land.moved.n):
            raise LayoutMismatch(
                f"{name}: expected shape (k, {land.n_params}) (the model's parameters), "
                f"got {tuple(directions.shape)}"
            )
        whole = _whole(land, directions)
        if whole is not None:
            return whole, [{"kind": "given"} for _ in whole]
        directions = list(directions)
    elif not isinstance(directions, list | tuple):
        directions = [directions]
    if not directions:
        raise InvalidArgument(f"{name}: expected at least one direction, got none")
    rows, infos = [], []
    for i, item in enumerate(directions):
        own = name if len(directions) == 1 else f"{name}[{i}]"
        _check_layout(land, item, own)
        rows.append(read(item, own))
        infos.append(dict(getattr(item, "info", {"kind": "given"})))
    return torch.stack(rows), infos


def _whole(land: Space, directions: Any) -> Tensor | None:
    """A copy of a matrix (k, n) of finite elements; None for what is looked at row by row."""
    if not len(directions) or land.n_params != land.moved.n:
        return None
    own = land.origin
    rows = torch.as_tensor(directions).detach().to(own.device, own.dtype, copy=True).contiguous()
    return rows if all_finite(rows) else None


def gaussian(
    seed: int, stream: int, first: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normals number first .. first + count - 1 of (seed, stream), (count,) float32.

    The same bits on every machine, device and thread count (csrc/common/gaussian.h).

    Raises:
        InvalidArgument: for a negative first or count, a seed or stream beyond 64 bits.
        CudaUnavailable: for a CUDA device without CUDA kernels.
    """
    seed = _integer(seed, "seed", -(2**63), 2**63)
    stream = _integer(stream, "stream", -(2**63), 2**63)
    first, count = _integer(first, "first", 0, 2**62), _integer(count, "count", 0, 2**62)
    where = torch.device(device)
    _check_device(where)
    out = torch.empty(count, dtype=torch.float32, device=where)
    return ops.gaussian(seed, stream, first, out=out)


def _integer(value: Any, name: str, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{name}: expected an integer, got {value!r}") from None
    if not low <= number < high:
        wanted = "a 64-bit integer" if low == -(2**63) else f"an integer >= {low}"
        raise InvalidArgument(f"{name}: expected {wanted}, got {number}")
    return number


def _mode(normalize: str | None) -> str:
    if normalize not in NORMALIZATIONS:
        known = ", ".join(map(repr, NORMALIZATIONS))
        raise InvalidArgument(f"normalize: expected one of {known}, got {normalize!r}")
    return normalize or "none"


def _patterns(ignore: Sequence[str]) -> list[str]:
    return [ignore] if isinstance(ignore, str) else list(ignore)


def _segments(layout: ParameterLayout, rows: bool, ignore: Sequence[str]) -> Tensor:
    """(s, 2) begin and end of what is normalised together, without the ignored parameters."""
    patterns = _patterns(ignore)
    for pattern in patterns:
        if pattern not in _KINDS and not any(fnmatchcase(e.name, pattern) for e in layout.entries):
            raise InvalidArgument(
                f"ignore: expected 'bias', 'norm' or the name of a parameter, got {pattern!r}"
            )
    parts = [torch.empty(0, 2, dtype=torch.int64)]
    for entry in layout.entries:
        ignored = any(p == entry.kind or fnmatchcase(entry.name, p) for p in patterns)
        if ignored or entry.numel == 0:
            continue
        count = entry.shape[0] if rows and len(entry.shape) > 1 else 1
        edges = entry.offset + torch.arange(count + 1) * (entry.numel // count)
        parts.append(torch.stack([edges[:-1], edges[1:]], dim=1))
    return torch.cat(parts)


def _check_device(device: torch.device) -> None:
    if device.type == "cuda":
        problem = cuda_problem()
        if problem is not None:
            raise CudaUnavailable(problem)
    elif device.type != "cpu":
        raise InvalidArgument(f"device: expected cpu or cuda, got {device}")


def _without(vector: Tensor, along: Tensor) -> Tensor:
    """vector - along (along . vector) / |along|^2, in double; rounded once."""
    wide, axis = vector.double(), along.double()
    square = axis.dot(axis)
    share = torch.where(square > 0, wide.dot(axis) / square, 0.0)
    return (wide - share * axis).to(vector.dtype)


def _direction(land: Space, vector: Tensor, info: dict[str, Any]) -> Direction:
    return Direction(vector, {**info, "layout": land.layout.digest, "norm": norm_of(vector)})


def _named(land: Space, row: Row, info: dict[str, Any]) -> NamedDirection:
    return NamedDirection(row, {**info, "layout": land.layout.digest, "norm": norm_of(row)})
