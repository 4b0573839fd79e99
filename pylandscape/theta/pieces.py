"""Vectors of parameter space that are read piece by piece, so that none is held whole.

A `Row` knows n numbers and gives any part of them: a stored tensor, a random direction that is
drawn again where it is needed, the tensors of a module or a checkpoint's file. A point is then
written as theta + c_1 d_1 + ... one piece after the other (`write_sum`), with the bits that stored
vectors give on a CPU: every product and sum is rounded once, in the order of the directions.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._native import ops
from ..arrays import digest
from ..errors import InvalidArgument
from .eval_mode import bare_names
from .layout import ParameterEntry, ParameterLayout

PIECE = 1 << 20  # elements that are worked on at once: a multiple of _CHUNK
WRITTEN = 1 << 18  # elements that several passes write: they stay in the cache from one to the next
_CHUNK = 1 << 14  # of one sum of squares (csrc/directions/directions.h)
_SAMPLED = 64  # elements of a tensor that are looked at to see whether it changed


class Row:
    """n numbers of one dtype on one device. Not to be changed by who reads them."""

    n: int
    dtype: torch.dtype
    device: torch.device

    def piece(self, begin: int, end: int) -> Tensor:
        """Elements begin .. end - 1: (end - begin,)."""
        raise NotImplementedError

    def add_to(self, out: Tensor, c: float, begin: int) -> None:
        """out (m,) += c times the elements from ``begin`` on; the product is rounded first."""
        add(out, c, self.piece(begin, begin + out.numel()))

    def whole(self) -> Tensor:
        """(n,), new memory."""
        out = torch.empty(self.n, dtype=self.dtype, device=self.device)
        for begin, end in spans(self.n):
            out[begin:end] = self.piece(begin, end)
        return out

    def check(self) -> None:
        """Raises InvalidArgument where the numbers are no longer those of the beginning."""


def spans(n: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """[begin, end) of the pieces of n elements."""
    size = size or PIECE
    for begin in range(0, n, size):
        yield begin, min(n, begin + size)


def add(out: Tensor, c: float, d: Tensor) -> None:
    """out (m,) += c d in place, for d (m,) of its dtype; the product is rounded first."""
    if out.device.type == "cpu" and out.dtype in (torch.float32, torch.float64):
        at = torch.tensor([[c]], dtype=torch.float64)
        ops.perturb(out, at, d.contiguous()[None], out=out[None])
    else:
        out += d * c


class Stored(Row):
    """A vector (n,) in memory."""

    def __init__(self, vector: Tensor) -> None:
        self.vector = vector
        self.n, self.dtype, self.device = vector.numel(), vector.dtype, vector.device

    def piece(self, begin: int, end: int) -> Tensor:
        return self.vector[begin:end]

    def whole(self) -> Tensor:
        return self.vector.clone()


class Zeros(Row):
    """n zeros."""

    def __init__(self, like: Row) -> None:
        self.n, self.dtype, self.device = like.n, like.dtype, like.device

    def piece(self, begin: int, end: int) -> Tensor:
        return torch.zeros(end - begin, dtype=self.dtype, device=self.device)


class Tensors(Row):
    """Tensors by name in the order of a layout, for example a module's own or a file's.

    Args:
        base: is taken off, for the difference of two points.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        layout: ParameterLayout,
        dtype: torch.dtype,
        device: torch.device,
        base: Row | None = None,
    ) -> None:
        self._entries: Sequence[ParameterEntry] = layout.entries
        self._tensors = [tensors[e.name].detach() for e in layout.entries]
        self._offsets = [e.offset for e in layout.entries]
        self._base = base
        self.n, self.dtype, self.device = layout.n, dtype, device

    def piece(self, begin: int, end: int) -> Tensor:
        parts = []
        at = bisect_right(self._offsets, begin) - 1
        while at < len(self._entries) and self._offsets[at] < end:
            e, t = self._entries[at], self._tensors[at]
            low, high = max(begin, e.offset) - e.offset, min(end, e.offset + e.numel) - e.offset
            if high > low:
                parts.append(_elements(t, low, high).to(self.device, self.dtype))
            at += 1
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found if self._base is None else found - self._base.piece(begin, end)


class ModuleTensors(Tensors):
    """A module's own tensors, which must keep their values."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        layout: ParameterLayout,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(tensors, layout, dtype, device)
        self._own = [tensors[e.name] for e in layout.entries]
        self._before = [_state(t) for t in self._own]

    def check(self) -> None:
        for e, t, (about, sample) in zip(self._entries, self._own, self._before, strict=True):
            now, values = _state(t)
            if now != about or not torch.equal(values, sample):
                raise InvalidArgument(
                    f"model: its parameter {e.name!r} has changed since the landscape was made of "
                    "the module's own parameters (copy=False); make a new landscape, or make it "
                    "without copy=False, which keeps a copy"
                )


class Random(Row):
    """A normalised Gaussian direction known by (seed, index): csrc/directions/parts.h.

    The bits are those of `random_direction` on the same segments. Held are the segments (s, 2) and
    a factor for each, which one pass over ``theta`` finds.

    Args:
        theta: whose norms count.
        layout: of theta; segments never cross its entries.
        mode: "filter", "layer", "model", "weight", "dfilter", "dlayer" or "none".
    """

    def __init__(self, theta: Row, n: int, segments: Tensor, mode: str, seed: int, index: int):
        self.n, self.dtype, self.device = n, theta.dtype, theta.device
        self._segments, self._seed, self._index = segments, seed, index
        self._theta = theta if mode == "weight" else None
        self._factors: Tensor | None = None
        if mode not in ("weight", "none"):
            found = _factors(theta, segments, mode, seed, index)
            self._factors = torch.from_numpy(found).to(theta.dtype)

    def piece(self, begin: int, end: int) -> Tensor:
        out = torch.empty(end - begin, dtype=self.dtype, device=self.device)
        theta = None if self._theta is None else self._theta.piece(begin, end)
        if out.device.type == "cpu":
            own, found = self._within(begin, end), self._factors
            ops.direction_part_(
                out, begin, None if theta is None else theta.contiguous(), self._segments[own],
                None if found is None else found[own], self._seed, self._index,
            )  # fmt: skip
            return out
        drawn = torch.empty(out.numel(), dtype=torch.float32, device=out.device)
        ops.gaussian(self._seed, self._index, begin, out=drawn)
        out.copy_(drawn).mul_(self._scales(begin, end).to(out.device))
        return out if theta is None else out.mul_(theta)

    def add_to(self, out: Tensor, c: float, begin: int) -> None:
        if out.device.type == "cpu" and out.dtype == self.dtype and out.is_contiguous():
            self.sum_to(out, out, begin, [self], [c])
        else:
            super().add_to(out, c, begin)

    def with_this(self, row: Row) -> bool:
        """Whether `sum_to` takes ``row`` beside this one."""
        if (
            not isinstance(row, Random)
            or self.device.type != "cpu"
            or self._theta is not row._theta
        ):
            return False
        if (row.n, row.dtype, row.device) != (self.n, self.dtype, self.device):
            return False
        same = row._segments is self._segments or torch.equal(row._segments, self._segments)
        return same and (self._factors is None) == (row._factors is None)

    def sum_to(
        self, out: Tensor, base: Tensor, begin: int, rows: Sequence[Random], c: Sequence[float]
    ) -> None:
        """out (m,) <- base (m,) + sum_j c_j d_j from ``begin`` on, for rows that go with this one.

        One pass over ``base`` and ``out``, which may be the same.
        """
        end = begin + out.numel()
        own = self._within(begin, end)
        theta = None if self._theta is None else self._theta.piece(begin, end).contiguous()
        found = [row._factors[own] for row in rows if row._factors is not None]
        names = torch.tensor([[row._seed, row._index] for row in rows])
        ops.direction_sum_(
            out, base.contiguous(), begin, theta, self._segments[own],
            torch.stack(found) if found else None, names, torch.tensor(c, dtype=torch.float64),
        )  # fmt: skip

    def _scales(self, begin: int, end: int) -> Tensor:
        """(end - begin,) the factor of each element, zero outside the segments."""
        within = self._within(begin, end)
        own = np.clip(self._segments[within].numpy(), begin, end)
        steps = np.diff(np.concatenate([[begin], own.ravel(), [end]]))  # gap, segment, gap, ...
        values = np.zeros(len(steps))
        found = self._factors
        values[1::2] = 1.0 if found is None else found[within].double().numpy()
        return torch.from_numpy(np.repeat(values, steps)).to(self.dtype)

    def _within(self, begin: int, end: int) -> slice:
        """The segments that have any of the elements begin .. end - 1."""
        edges = self._segments.numpy()
        first = int(np.searchsorted(edges[:, 1], begin, "right"))
        return slice(first, max(first, int(np.searchsorted(edges[:, 0], end, "left"))))


class Rows:
    """k rows of one length: the directions of a point, or the solutions that it lies between."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def matrix(self) -> Tensor:
        """(k, n), which takes the memory that rows save."""
        first = self.rows[0]
        out = torch.empty(len(self.rows), first.n, dtype=first.dtype, device=first.device)
        for own, row in zip(out, self.rows, strict=True):
            for begin, end in spans(row.n):
                own[begin:end] = row.piece(begin, end)
        return out


def write_sum(
    out: Tensor, begin: int, base: Row, rows: Sequence[Row] | Rows, c: Sequence[float]
) -> None:
    """out <- base + sum_j c_j d_j at the elements from ``begin`` on, of any shape and dtype.

    Computed in base's dtype and rounded to out's once.
    """
    n = out.numel()
    direct = out.is_contiguous() and out.dtype == base.dtype and out.device == base.device
    if not out.is_contiguous():
        work = torch.empty(n, dtype=base.dtype, device=base.device)
        write_sum(work, begin, base, rows, c)
        out.copy_(work.view(out.shape))
        return
    flat, rows = out.view(-1), list(rows)
    drawn = _drawn_together(rows, base)
    later = list(zip(rows, c, strict=True))[len(drawn) :]
    for a, b in spans(n, PIECE if direct and not later else WRITTEN):
        part = flat[a:b]
        work = part if direct else torch.empty(b - a, dtype=base.dtype, device=base.device)
        start = base.piece(begin + a, begin + b)
        if drawn:
            drawn[0].sum_to(work, start, begin + a, drawn, c[: len(drawn)])
        else:
            work.copy_(start)
        for row, factor in later:
            row.add_to(work, factor, begin + a)
        if not direct:
            part.copy_(work)


def _drawn_together(rows: Sequence[Row], base: Row) -> list[Random]:
    """The first rows, as far as they are added to ``base`` in one pass."""
    found: list[Random] = []
    for row in rows:
        if not isinstance(row, Random) or (row.dtype, row.device) != (base.dtype, base.device):
            break
        if not (found[0] if found else row).with_this(row):
            break
        found.append(row)
    return found


def row_of(x: Tensor | Row) -> Row:
    return x if isinstance(x, Row) else Stored(x)


def digest_of(x: Tensor | Row) -> str:
    """`arrays.digest`, which a row has in common with the vector that it stands for."""
    if isinstance(x, Tensor | Stored):
        return digest(vector_of(x))
    kind = np.dtype(str(x.dtype).removeprefix("torch.")).str  # of a landscape: 32 or 64 bits
    state = hashlib.sha256(f"{kind} {(x.n,)} ".encode())
    for begin, end in spans(x.n):
        state.update(x.piece(begin, end).cpu().contiguous().numpy().data)
    return state.hexdigest()


def vector_of(x: Tensor | Row) -> Tensor:
    """(n,), only to be read: what is stored, or new memory."""
    if isinstance(x, Stored):
        return x.vector
    return x.whole() if isinstance(x, Row) else x


def norm_of(x: Tensor | Row) -> float:
    """|x|, summed in double."""
    x = row_of(x)
    if x.n <= PIECE:
        return float(torch.linalg.vector_norm(x.piece(0, x.n), dtype=torch.float64))
    return math.sqrt(dot_of(x, x))


def dot_of(a: Row, b: Row) -> float:
    """a . b in double."""
    total = 0.0
    for begin, end in spans(a.n):
        x = a.piece(begin, end).double()
        total += float(x.dot(x if b is a else b.piece(begin, end).double()))
    return total


def distance_of(a: Row, b: Row) -> float:
    """|a - b|, differences and sums in double."""
    total = 0.0
    for begin, end in spans(a.n):
        x = a.piece(begin, end).double() - b.piece(begin, end).double()
        total += float(x.dot(x))
    return math.sqrt(total)


def finite(row: Row) -> int:
    """How many of its elements are not finite."""
    return sum(int((~torch.isfinite(row.piece(*span))).sum()) for span in spans(row.n))


def nonzero(row: Row) -> bool:
    """Whether any of its elements is not zero."""
    return any(bool((row.piece(*span) != 0).any()) for span in spans(row.n))


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's buffers and parameters, each under its first name, without wrappers' parts."""
    own = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    bare = bare_names(module)
    return {bare[name]: t for name, t in own.items()}


def _elements(t: Tensor, low: int, high: int) -> Tensor:
    if low == 0 and high == t.numel():
        return t.reshape(-1)
    if t.is_contiguous():
        return t.view(-1)[low:high]
    rows = t.numel() // len(t)  # whole leading rows, then what is asked for of them
    first, last = low // rows, (high + rows - 1) // rows
    return t[first:last].reshape(-1)[low - first * rows : high - first * rows]


def _state(t: Tensor) -> tuple[Any, Tensor]:
    """What tells that a tensor changed: where it lies, its version, some of its elements."""
    version = 0 if t.is_inference() else t._version
    t = t.detach()
    step = max(1, t.numel() // _SAMPLED)
    sample = t.view(-1)[::step] if t.is_contiguous() else t.reshape(-1)[::step]
    return (t.shape, t.dtype, t.device, version), sample.clone()


def _factors(theta: Row, segments: Tensor, mode: str, seed: int, index: int) -> np.ndarray:
    """(s,) float64: what each segment of the draw is multiplied by."""
    edges = segments.numpy()
    chunks = -(-(edges[:, 1] - edges[:, 0]) // _CHUNK)
    ends = np.cumsum(chunks)
    # One array from the start: small ones between the pieces would keep their memory apart.
    found = np.empty((int(chunks.sum()), 2))
    filled = at = 0

    def add_sums(own: np.ndarray) -> None:
        nonlocal filled
        part = _sums(theta, own, seed, index)
        found[filled : filled + len(part)] = part
        filled += len(part)

    while at < len(edges):
        begin = int(edges[at, 0])
        last = int(np.searchsorted(edges[at:, 1], begin + PIECE, "right")) + at
        if last > at:
            add_sums(edges[at:last])
        else:  # one segment of many pieces, cut where its chunks end
            for a in range(begin, int(edges[at, 1]), PIECE):
                own = np.array([[a, min(int(edges[at, 1]), a + PIECE)]])
                add_sums(own)
            last = at + 1
        at = last
    if mode == "model":
        squares = np.tile(np.cumsum(found, axis=0)[-1:], (len(edges), 1))
    else:
        squares = np.zeros((len(edges), 2))
        one = chunks == 1
        squares[one] = found[ends[one] - 1]
        for s in np.flatnonzero(chunks > 1):
            squares[s] = np.cumsum(found[ends[s] - chunks[s] : ends[s]], axis=0)[-1]
    wanted = np.ones(len(edges)) if mode.startswith("d") else np.sqrt(squares[:, 1])
    return np.where(squares[:, 0] == 0.0, 0.0, wanted / (np.sqrt(squares[:, 0]) + 1e-10))


def _sums(theta: Row, edges: np.ndarray, seed: int, index: int) -> np.ndarray:
    begin, end = int(edges[0, 0]), int(edges[-1, 1])
    part = theta.piece(begin, end).cpu().contiguous()
    own = torch.from_numpy(np.ascontiguousarray(edges))
    found: np.ndarray = ops.direction_sums(part, begin, own, seed, index).numpy()
    return found
