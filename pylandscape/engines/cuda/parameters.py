"""The parameters of some points as torch's calls want them, each computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .op import Source

if TYPE_CHECKING:
    from .op import Op


_NOWHERE = -(2**63)
_ALIGNED = 4  # elements: what a point's parameters start at, for wide accesses


class Moved:
    """The parameters that directions move, side by side: theta (m,) and directions (k, m) of what
    is read as it is. Weights of convolutions are not among them: they are folded from the whole.
    Where these are nearly all of theta, the whole stands for them."""

    def __init__(self, theta: Tensor, directions: Tensor, uses: Iterable[Source]) -> None:
        some = list(dict.fromkeys(uses))
        self.theta, self.directions = theta, directions
        self.place = {use: use[0] for use in some}
        if 10 * sum(size for _, size in some) >= 9 * len(theta):
            return
        parts, more, at = [theta[:0]], [directions[:, :0]], 0
        for use in some:
            first, size = use
            pad = -size % _ALIGNED
            parts += [theta[first : first + size], theta.new_zeros(pad)]
            more += [
                directions[:, first : first + size],
                directions.new_zeros(len(directions), pad),
            ]
            self.place[use] = at
            at += size + pad
        self.theta, self.directions = torch.cat(parts), torch.cat(more, 1)


@dataclass(frozen=True)
class Where:
    """What all points of a question have in common."""

    kernels: Any
    theta: Tensor | None  # (n,); None: points are free
    directions: Tensor  # (k, n), k = 0 of free points
    constants: Tensor
    moved: frozenset[Source] | None  # uses that the directions move; None: all of theta
    together: Moved | None  # of those that are read as they are

    def moves(self, use: Source | None) -> bool:
        if use is None or use[0] < 0:
            return False
        return self.moved is None or use in self.moved


class Parameters:
    """Of the points with coefficients c (g, k), or of free points the thetas c (g, n)."""

    def __init__(self, where: Where, c: Tensor) -> None:
        self._w = where
        self.count = len(c)
        free = where.theta is None
        none = c.new_empty(len(c), 0, dtype=torch.float64)
        self.coefficients = none if free else c.double()
        self._thetas = c if where.theta is None else where.theta[None]
        self._own: Tensor | None = None  # (g, m) of `together`
        if where.together is not None and where.together.place:
            found = where.kernels.perturb(
                where.together.theta, self.coefficients, where.together.directions
            )
            self._own = torch.as_tensor(found)
        self._kept: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self.tables: dict[tuple[Source | None, ...], Tensor] = {}  # of looked-up products

    def __call__(self, use: Source) -> Tensor:
        """(g, elements), or (1, elements) where no point moves them."""
        at, size = use
        if at < 0:
            return self._w.constants[None, -1 - at : -1 - at + size]
        if self._w.together is not None and use in self._w.together.place:
            assert self._own is not None
            first = self._w.together.place[use]
            return self._own[:, first : first + size]
        return self._thetas[:, at : at + size]

    def convolution(self, op: Op) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Weights (1 or g, rows, taps, channels), and scale and shift (1 or g, rows) for its
        results; a scale that belongs to the weights is in them already."""
        conv = op.conv
        assert conv is not None
        shape = (conv.outputs, conv.channels, conv.taps)
        if self._w.moves(op.weight) or not self._moves_any(op):
            weight, affine = self._fold(op, shape, weigh=True, norm=True)
            return weight, None, affine[1] if len(affine) else None
        weight, _ = self._fold(op, shape, weigh=True, norm=False)
        _, affine = self._fold(op, shape, weigh=False, norm=True)
        scale = affine[0] if len(affine) and op.norm is not None else None
        return weight, scale, affine[1] if len(affine) else None

    def norm(self, op: Op) -> tuple[Tensor, Tensor]:
        """Scale and shift (1 or g, channels) of batch norm."""
        _, affine = self._fold(op, (op.k, 0, 0), weigh=False, norm=True)
        return affine[0], affine[1]

    def _moves_any(self, op: Op) -> bool:
        return any(self._w.moves(use) for use in _sources(op, norm=True)[1:])

    def _fold(
        self, op: Op, shape: tuple[int, int, int], *, weigh: bool, norm: bool
    ) -> tuple[Tensor, Tensor]:
        key = (op.output, weigh, norm)
        if key not in self._kept:
            uses = _sources(op, norm)
            if not weigh:
                uses[0] = None
            same = not any(self._w.moves(use) for use in uses)
            c, d, thetas = self.coefficients, self._w.directions, self._thetas
            if same:  # the same at all points
                c, d, thetas = c[:1, :0].contiguous(), d[:0], thetas[:1]
            where = torch.tensor([_NOWHERE if use is None else use[0] for use in uses])
            eps = 0.0 if op.norm is None else op.norm["eps"]
            found = self._w.kernels.fold(thetas, c, d, self._w.constants, where, *shape, eps)
            self._kept[key] = (torch.as_tensor(found[0]), torch.as_tensor(found[1]))
        return self._kept[key]


def _sources(op: Op, norm: bool) -> list[Source | None]:
    """Weight, bias, gain, shift, mean and variance."""
    if not norm:
        return [op.weight, None, None, None, None, None]
    given: Mapping[str, Any] = op.norm or {}
    names = ("gain", "shift", "mean", "variance")
    return [op.weight, op.bias, *(given.get(name) for name in names)]
