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

import threading
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..._native import core
from ...errors import NotLowered
from . import derivative_layers  # noqa: F401
from .op import Source
from .parameters import Parameters, Where
from .precision import exact_float32
from .replays import Replays
from .structure import Structure
from .sweep import HANDLERS, ROWS, Sweep, Tile

if TYPE_CHECKING:
    from .op import Op
    from .structure import Loaded


TILE_BYTES = 512 << 20  # tangents and adjoints of one vector over a tile
BLOCK_BYTES = 2 << 30  # of the vectors that a tile takes together
MOST_VECTORS = 256  # of a block
RECORDED_BYTES = 512 << 20  # what a product may take to be recorded as a CUDA graph


class Derivatives:
    """Of an engine's loss, the sum over its samples, at theta (n,). Nothing here waits for the
    device but the question whether everything is kept, which shapes answer."""

    def __init__(self, engine: Loaded, structure: Structure, theta: Tensor, memory: int) -> None:
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


def _bytes(tile: Tile, data: Tensor) -> int:
    """Of a tile, beyond the data."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tile.tensors()
    }
    storages.pop(data.untyped_storage().data_ptr(), None)
    return sum(storages.values())


class AtTheta:
    """The derivatives at the last theta that was asked for."""

    def __init__(self, engine: Loaded, memory: int) -> None:
        self._engine, self._memory = engine, memory
        self._structure: Structure | None = None
        self._theta: Tensor | None = None
        self._version: int | None = None
        self._found: Derivatives | None = None
        self._lock = threading.Lock()

    def structure(self) -> Structure:
        """Raises NotLowered where an op has no derivative."""
        if self._engine.no_derivatives is not None:
            raise NotLowered(self._engine.no_derivatives)
        if self._structure is None:
            self._structure = Structure(self._engine, HANDLERS)
        if self._structure.refusal is not None:
            raise NotLowered(self._structure.refusal)
        return self._structure

    def __call__(self, theta: Tensor) -> Derivatives:
        """The same memory, unchanged as far as torch counts changes, is taken for the same theta;
        any other tensor is compared, for which the host waits."""
        with self._lock:
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
