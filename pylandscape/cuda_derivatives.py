"""First and second derivatives of a compiled program on a GPU: H V for a block of vectors.

As csrc/derivatives/derivatives.h on the CPU: at one theta the values and their adjoints are
computed once, tile by tile of samples, and kept where they fit; a product is the R-operator forward
and backward (Pearlmutter 1994). Products of small matrices, everything between products and all
sums over samples are the kernels of csrc/cuda/products.h; large matrices go to torch.

Shapes: values at theta (1, rows, features), tangents and their adjoints (k, rows, features). Rows
are the samples of a tile, filled up to a multiple of 32 with copies of the last one, which weigh
nothing. Tiles follow from shapes alone and no product mixes vectors, so the result of a vector
depends neither on the block that it comes in nor on what memory there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import cuda_derivative_layers  # noqa: F401
from ._native import core
from .cuda_derivative_ops import HANDLERS, inverse_of
from .errors import NotLowered
from .point_parameters import Parameters, Source, Where
from .replays import Replays
from .torch_precision import exact_float32
from .torch_program import TorchProgram

if TYPE_CHECKING:
    from .engine_cuda import CudaEngine
    from .torch_program import Op

ROWS = core.WARP  # a tile's rows are a multiple; every vector's values then begin aligned
TILE_BYTES = 512 << 20  # tangents and adjoints of one vector over a tile
BLOCK_BYTES = 2 << 30  # of the vectors that a tile takes together
MOST_VECTORS = 256  # of a block
LARGE = 1 << 27  # multiply-adds of one vector's product from which torch multiplies
SUM_ROWS = 512  # rows that torch adds in the program's dtype; beyond, sums are double
RECORDED_BYTES = 512 << 20  # what a product may take to be recorded as a CUDA graph


@dataclass
class Tile:
    """Some samples at theta: values and adjoints by slot, ``saved`` by op what it keeps."""

    first: int
    count: int
    values: dict[int, Tensor] = field(default_factory=dict)
    adjoints: dict[int, Tensor] = field(default_factory=dict)
    saved: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def tensors(self) -> Iterator[Tensor]:
        yield from self.values.values()
        yield from self.adjoints.values()
        for group in self.saved.values():
            yield from group


class Structure:
    """What of a program does not depend on theta: which slots move, who reads them."""

    def __init__(self, engine: CudaEngine) -> None:
        self.program, self.kernels = engine.program, engine.kernels
        self.device, self.dtype = engine.device, engine.dtype
        self.torch_program = TorchProgram(self.program, self.kernels, self.device, fused=False)
        self.ops = self.torch_program.ops
        self.output = self.torch_program.output
        self.moves: set[int] = set()
        for op in self.ops:
            own = any(at >= 0 for at, _ in op.uses())
            if own or any(x in self.moves for x in op.inputs):
                self.moves.add(op.output)
        self.producer = {op.output: i for i, op in enumerate(self.ops)}
        readers = [x for op in self.ops for x in op.inputs] + [self.output]
        self.alone = {slot for slot in readers if readers.count(slot) == 1}
        # By op, the unary op that alone reads what it gives.
        self.followers = [self._follower(i) for i in range(len(self.ops))]
        self.none = torch.empty(0, dtype=self.dtype, device=self.device)
        self._tables: dict[tuple[int, str], tuple[Tensor, ...]] = {}
        unknown = [op.kind for op in self.moving() if op.kind not in HANDLERS]
        self.refusal = f"{unknown[0]} has no derivative on CUDA" if unknown else None
        if self.program.mixes:
            self.refusal = "derivatives of a batch's own statistics"

    def moving(self) -> list[Op]:
        return [op for op in self.ops if op.output in self.moves]

    def features(self, slot: int) -> int:
        return int(self.program.features(slot))

    def _follower(self, i: int) -> int | None:
        slot = self.ops[i].output
        if slot not in self.alone or slot == self.output:
            return None
        (reader,) = [j for j, op in enumerate(self.ops) if slot in op.inputs]
        return reader if self.ops[reader].kind == "unary" else None

    def list_of(self, i: int, name: str) -> Tensor:
        """A list of op i on the device, int64: `TorchProgram._index`."""
        return self.torch_program._index(i, name)

    def inverse(self, i: int, name: str, width: int) -> tuple[Tensor, Tensor]:
        """(start, list): which elements of a list of op i are 0, 1 ... width - 1, as
        `scatter_sums` wants them."""
        if (i, name) not in self._tables:
            found = inverse_of(self.list_of(i, name).cpu(), width)
            self._tables[i, name] = tuple(t.to(self.device) for t in found)
        start, listed = self._tables[i, name]
        return start, listed

    def windows(self, i: int) -> Tensor:
        """Which window each element of a pool's list belongs to."""
        if (i, "windows") not in self._tables:
            bounds = torch.tensor(self.ops[i].bounds)
            found = torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff())
            self._tables[i, "windows"] = (found.to(self.device, torch.int32),)
        return self._tables[i, "windows"][0]


class Derivatives:
    """Of an engine's loss, the sum over its samples, at theta (n,). Nothing here waits for the
    device but the question whether everything is kept, which shapes answer."""

    def __init__(
        self, engine: CudaEngine, structure: Structure, theta: Tensor, memory: int
    ) -> None:
        self.engine, self.structure = engine, structure
        self.theta = theta.detach().to(engine.device, engine.dtype).contiguous()
        self.n, self.samples = int(engine.program.n), int(engine.program.samples)
        none = self.theta.new_empty(0, self.n)
        where = Where(engine.kernels, self.theta, none, engine.constants, frozenset(), None)
        self._parameters = Parameters(where, self.theta.new_empty(1, 0))
        self._channels: dict[int, tuple[Tensor, ...]] = {}
        self._replays = Replays(engine.recorder())
        size = engine.x.element_size()
        own = sum(structure.features(op.output) for op in structure.moving())
        each = 2 * size * max(1, own)  # bytes of a sample's tangents, and their adjoints
        self._rows = max(1, TILE_BYTES // each // core.SUM_RUN) * core.SUM_RUN
        self.starts = range(0, self.samples, self._rows)
        self._each = each * min(self._rows, -(-self.samples // ROWS) * ROWS)
        self.total = torch.zeros(1, self.n, dtype=torch.float64, device=engine.device)
        self._kept: list[Tile] = []
        self.kept = True
        with exact_float32():
            for first in self.starts:
                tile = self.at(first, self.total)
                if first == 0:
                    self.kept = len(self.starts) * _bytes(tile, engine.x) <= memory
                if self.kept:
                    self._kept.append(tile)

    def products(self, matrix: str, vectors: Tensor, scale: float) -> Tensor:
        """scale A v (k, n) float64 for the rows of vectors (k, n)."""
        if self.structure.output not in self.structure.moves:
            return vectors.new_zeros(vectors.shape, dtype=torch.float64)
        small = len(self.starts) == 1 and self._each * len(vectors) <= RECORDED_BYTES
        if not small:
            return self._products(vectors, matrix, scale).T
        return self._replays(self._products, vectors, matrix, scale).T

    def _products(self, vectors: Tensor, matrix: str, scale: float) -> Tensor:
        """(n, k). The same launches for all vectors of one shape: it may be recorded."""
        k = len(vectors)
        v = torch.nn.functional.pad(vectors, (0, -self.n % ROWS))[:, : self.n]  # aligned rows
        out = torch.zeros(k, self.n, dtype=torch.float64, device=v.device)
        block = min(MOST_VECTORS, max(1, BLOCK_BYTES // self._each))
        with exact_float32():
            for first in self.starts:
                tile = self._kept[first // self._rows] if self.kept else self.at(first)
                for j in range(0, k, block):
                    part = slice(j, min(k, j + block))
                    self._multiply(matrix, tile, v[part], out[part])
        return out.mul_(scale).T

    def sample_gradients(self, out: Tensor) -> None:
        """out (samples, n), zeros, += the gradients of the samples' own terms."""
        with exact_float32():
            for first in self.starts:
                tile = self._kept[first // self._rows] if self.kept else self.at(first)
                sweep = Sweep(self, tile, 1)
                for i, op in enumerate(self.structure.ops):
                    if op.output in sweep.tile.adjoints and any(at >= 0 for at, _ in op.uses()):
                        HANDLERS[op.kind].samples(i, op, sweep, out[first : first + tile.count])

    def at(self, first: int, gradient: Tensor | None = None) -> Tile:
        """The tile of the samples from ``first`` on, at theta; gradient (1, n) += its own."""
        s = self.structure
        tile = Tile(first, min(self._rows, self.samples - first))
        values = {0: self._data(tile)}
        rows = values[0].shape[1]
        for i, op in enumerate(s.ops):
            found = dict(values)
            s.torch_program.run([i], found, self._parameters)
            values[op.output] = found[op.output].expand(1, rows, -1).contiguous()
        tile.values = values
        if s.output not in s.moves:
            return tile
        sweep = Sweep(self, tile, 1, sums=gradient)
        slopes = self._slopes(tile, s.none, s.none)
        sweep.add(s.output, slopes)
        sweep.reverse()
        tile.adjoints[s.output] = slopes
        wanted = {s.output}
        for op in s.moving():
            wanted |= HANDLERS[op.kind].values(op)
        tile.values = {slot: t for slot, t in values.items() if slot in wanted}
        return tile

    def parameter(self, use: Source) -> Tensor:
        """(1, elements) at theta."""
        return self._parameters(use)

    def channels(self, op: Op) -> tuple[Tensor, ...]:
        """Of batch norm: scale, inverse and centre (channels,), so that y = x scale + shift and the
        normalised x is x inverse + centre."""
        if op.output not in self._channels:
            assert op.norm is not None
            mean, variance = (self.parameter(op.norm[x])[0].double() for x in ("mean", "variance"))
            inverse = 1 / torch.sqrt(variance + op.norm["eps"])
            gain = op.norm["gain"]
            scale = inverse if gain is None else inverse * self.parameter(gain)[0]
            found = (scale, inverse, -mean * inverse)
            self._channels[op.output] = tuple(t.to(self.theta.dtype) for t in found)
        return self._channels[op.output]

    def _data(self, tile: Tile) -> Tensor:
        last = tile.first + tile.count
        x = self.engine.x[:, tile.first : last]
        fill = -tile.count % ROWS
        return torch.cat([x, x[:, -1:].expand(1, fill, -1)], 1) if fill else x

    def _slopes(self, tile: Tile, slopes: Tensor, tangents: Tensor) -> Tensor:
        e, s = self.engine, self.structure
        found = s.kernels.loss_slopes(
            e.loss_plan, tile.values[s.output], tile.first, tile.count, e.targets, e.loss_weights,
            slopes, tangents,
        )  # fmt: skip
        return torch.as_tensor(found)

    def _multiply(self, matrix: str, tile: Tile, vectors: Tensor, out: Tensor) -> None:
        s = self.structure
        sweep = Sweep(self, tile, len(vectors), vectors, out, second=matrix == "hessian")
        sweep.forward()
        slopes = tile.adjoints[s.output] if matrix == "covariance" else s.none
        sweep.add(s.output, self._slopes(tile, slopes, sweep.tangents[s.output]))
        sweep.reverse()


class Sweep:
    """Passes over the ops of one tile for k vectors: tangents forward, adjoints backward.

    ``vectors`` (k, n); ``sums`` (k, n) float64 takes the parameters' adjoints. ``second``: the
    adjoints are tangents of those at theta (the Hessian), else they are adjoints themselves.
    Without vectors, adjoints at theta, which the tile keeps.
    """

    def __init__(
        self,
        derivatives: Derivatives,
        tile: Tile,
        k: int,
        vectors: Tensor | None = None,
        sums: Tensor | None = None,
        *,
        second: bool = False,
    ) -> None:
        self.d, self.s, self.tile, self.k = derivatives, derivatives.structure, tile, k
        self.vectors, self.sums, self.second = vectors, sums, second
        self.at_theta = vectors is None
        self.tangents: dict[int, Tensor] = {}
        self.adjoints: dict[int, Tensor] = {}
        self.masked: set[int] = set()  # slots whose adjoint is already that before the relu
        self._done: set[int] = set()

    @property
    def rows(self) -> int:
        return -(-self.tile.count // ROWS) * ROWS

    def forward(self) -> None:
        """Tangents of everything that moves."""
        s = self.s
        last = {x: i for i, op in enumerate(s.ops) for x in op.inputs}
        for i, op in enumerate(s.ops):
            if op.output not in s.moves or op.output in self.tangents:
                continue
            handler = HANDLERS[op.kind]
            found = handler.tangent(i, op, self)
            if op.relu and not handler.masks:
                found = self.bend(found, self.value(op.output), positive=True)
            self.tangents[op.output] = found
            if not self.second:  # nobody asks for them later
                for x in op.inputs:
                    if last[x] == i and x != s.output:
                        self.tangents.pop(x, None)

    def reverse(self) -> None:
        """Adjoints of everything that moves, from the output's."""
        for i in reversed(range(len(self.s.ops))):
            op = self.s.ops[i]
            if op.output not in self.s.moves or i in self._done:
                continue
            dy = self.adjoints.pop(op.output, None)
            if dy is None:  # nobody reads it
                dy = self.zeros(self.s.features(op.output))
            if op.relu and op.output not in self.masked:
                dy = self.bend(dy, self.value(op.output), positive=True)
            handler = HANDLERS[op.kind]
            if self.at_theta:
                if handler.wants_adjoint:
                    self.tile.adjoints[op.output] = dy
                handler.reverse_at_theta(i, op, self, dy)
            else:
                handler.reverse(i, op, self, dy)

    def value(self, slot: int) -> Tensor:
        """(1, rows, features) at theta."""
        return self.tile.values[slot]

    def adjoint(self, slot: int) -> Tensor:
        """(1, rows, features) at theta; before the relu of the op that gives it."""
        return self.tile.adjoints[slot]

    def along(self, use: Source | None) -> Tensor | None:
        """(k, elements): how the vectors move a parameter, or None where they do not."""
        if use is None or use[0] < 0 or self.vectors is None:
            return None
        return self.vectors[:, use[0] : use[0] + use[1]]

    def zeros(self, features: int) -> Tensor:
        return self.s.none.new_zeros(self.k, self.rows, features)

    def add(self, slot: int, x: Tensor) -> None:
        """The adjoint of a slot += x (k, rows, features)."""
        if slot not in self.s.moves:
            return
        old = self.adjoints.get(slot)
        self.adjoints[slot] = x if old is None else old + x

    def finish(self, i: int, slot: int, x: Tensor) -> None:
        """Op i is done: its input ``slot`` has the adjoint x."""
        self._done.add(i)
        self.add(slot, x)

    def bend(
        self,
        x: Tensor,
        first: Tensor,
        *,
        positive: bool = False,
        bias: Tensor | None = None,
        curved: Tensor | None = None,
        r: Tensor | None = None,
    ) -> Tensor:
        """first x + curved r; x += bias before, in place. ``positive``: slopes are first > 0."""
        none = self.s.none
        found = self.s.kernels.bend_(
            x.contiguous(), none if bias is None else bias, first, positive,
            none if curved is None else curved, none if r is None else r.contiguous(),
        )  # fmt: skip
        return torch.as_tensor(found)

    def multiply(
        self,
        pairs: list[tuple[Tensor, Tensor]],
        *,
        bias: Tensor | None = None,
        first: Tensor | None = None,
        positive: bool = False,
        curved: Tensor | None = None,
        r: Tensor | None = None,
        keep: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """t = sum of a b over pairs of (1 | k, m, inner) and (1 | k, inner, columns), plus bias
        (k, columns); with ``first`` also bent = first t + curved r, and then t only to ``keep`` it.
        (t, bent); what was not asked for is empty."""
        none = self.s.none
        m, columns = pairs[0][0].shape[1], pairs[0][1].shape[2]
        if m * columns * sum(a.shape[2] for a, _ in pairs) < LARGE:
            (a, b), (c, d) = pairs[0], pairs[1] if len(pairs) > 1 else (none, none)
            t, bent = self.s.kernels.pair_products(
                a, b, c, d, none if bias is None else bias, none if first is None else first,
                positive, none if curved is None else curved,
                none if r is None else r.contiguous(), keep,
            )  # fmt: skip
            return t, bent
        t = a_by_b(pairs, self.k)
        if first is not None:
            return t, self.bend(t, first, positive=positive, bias=bias, curved=curved, r=r)
        if bias is not None:
            t += bias[:, None]
        return t, none

    def sum(
        self,
        pairs: list[tuple[Tensor, Tensor]],
        weight: Source | None,
        bias: Source | None,
        transposed: bool = False,
    ) -> None:
        """The adjoint of a weight (m, columns) += sum over rows of a b, for pairs of
        (1 | k, rows, m) and (1 | k, rows, columns); that of a bias (m,) += the sums of the first
        a (k, rows, m)."""
        if self.sums is None:
            return
        weight = weight if weight is not None and weight[0] >= 0 else None
        bias = bias if bias is not None and bias[0] >= 0 else None
        a, b = pairs[0]
        m, columns, kernels = a.shape[2], b.shape[2], self.s.kernels
        if weight is None:
            if bias is not None:
                kernels.add_row_sums_(self.sums, bias[0], a.contiguous(), 0)
        elif a.shape[1] * m * columns * len(pairs) < LARGE:
            c, d = pairs[1] if len(pairs) > 1 else (self.s.none, self.s.none)
            at = -1 if bias is None else bias[0]
            kernels.pair_sums_(self.sums, weight[0], at, transposed, a, b, c, d)
        else:
            for j in range(self.k):
                for x, y in pairs:
                    parts = summed(x[j if len(x) > 1 else 0], y[j if len(y) > 1 else 0])
                    out = self.sums[j : j + 1]
                    kernels.add_row_sums_(out, weight[0], parts, m if transposed else 0)
            if bias is not None:
                kernels.add_row_sums_(self.sums, bias[0], a.contiguous(), 0)

    def sum_rows(self, x: Tensor, use: Source | None) -> None:
        """The adjoint of a parameter += the sums of x (k, rows, elements) over its rows."""
        if self.sums is not None and use is not None and use[0] >= 0:
            self.s.kernels.add_row_sums_(self.sums, use[0], x.contiguous(), 0)


def a_by_b(pairs: list[tuple[Tensor, Tensor]], k: int) -> Tensor:
    """(k, m, columns), vector by vector: each product has the same shapes whatever k is."""
    (a, b), *more = pairs
    out = a.new_empty(k, a.shape[1], b.shape[2])
    for j in range(k):
        torch.mm(a[j if len(a) > 1 else 0], b[j if len(b) > 1 else 0], out=out[j])
        for c, d in more:
            out[j].addmm_(c[j if len(c) > 1 else 0], d[j if len(d) > 1 else 0])
    return out


def summed(x: Tensor, y: Tensor) -> Tensor:
    """Sums (1, parts, m * columns) of x (rows, m) and y (rows, columns) over SUM_ROWS rows each."""
    rows, m, columns = len(x), x.shape[1], y.shape[1]
    whole = rows // SUM_ROWS
    parts = x.new_empty(-(-rows // SUM_ROWS), m, columns)
    if whole:
        split = whole * SUM_ROWS
        a = x[:split].unflatten(0, (whole, SUM_ROWS))
        b = y[:split].unflatten(0, (whole, SUM_ROWS))
        torch.bmm(a.mT, b, out=parts[:whole])
    if rows > whole * SUM_ROWS:
        torch.mm(x[whole * SUM_ROWS :].mT, y[whole * SUM_ROWS :], out=parts[whole])
    return parts.view(1, len(parts), m * columns)


def _bytes(tile: Tile, data: Tensor) -> int:
    """Of a tile, beyond the data."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tile.tensors()
    }
    storages.pop(data.untyped_storage().data_ptr(), None)
    return sum(storages.values())


class AtTheta:
    """The derivatives at the last theta that was asked for."""

    def __init__(self, engine: CudaEngine, memory: int) -> None:
        self._engine, self._memory = engine, memory
        self._structure: Structure | None = None
        self._theta: Tensor | None = None
        self._version: int | None = None
        self._found: Derivatives | None = None

    def structure(self) -> Structure:
        """Raises NotLowered where an op has no derivative."""
        if self._structure is None:
            self._structure = Structure(self._engine)
        if self._structure.refusal is not None:
            raise NotLowered(self._structure.refusal)
        return self._structure

    def __call__(self, theta: Tensor) -> Derivatives:
        """The same memory, unchanged as far as torch counts changes, is taken for the same theta;
        any other tensor is compared, for which the host waits."""
        structure, theta = self.structure(), theta.detach()
        if self._found is not None and self._same(theta):
            return self._found
        self._found = None  # before the next one takes its memory
        point = theta.to(self._engine.device, self._engine.dtype, copy=True)
        found = Derivatives(self._engine, structure, point, self._memory)
        self._theta, self._version, self._found = theta, _version(theta), found
        return found

    def _same(self, theta: Tensor) -> bool:
        assert self._theta is not None
        assert self._found is not None
        version = _version(theta)
        if theta.is_set_to(self._theta) and version is not None and version == self._version:
            return True
        own = self._found.theta
        if theta.shape != own.shape or not torch.equal(theta.to(own), own):
            return False
        self._theta, self._version = theta, version
        return True


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else int(x._version)
