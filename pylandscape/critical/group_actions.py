"""The elements of an MLP's equioutput group and how they act on theta (see symmetry.py)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array
from ..errors import InvalidArgument
from .canonical import canonical_forms
from .mlp_structure import GroupElement, Layers, numbers


class GroupAction:
    """A group of signed permutations of the hidden units of ``layers``; ``flips``: of which hidden
    layers units may change their sign."""

    layers: Layers
    flips: tuple[bool, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """M_l of the hidden layers."""
        return self.layers.widths

    @property
    def n(self) -> int:
        """The length of theta."""
        return self.layers.n

    @property
    def order(self) -> int:
        """How many elements the group has, exactly."""
        pairs = zip(self.widths, self.flips, strict=True)
        return math.prod(math.factorial(m) * (2**m if flip else 1) for m, flip in pairs)

    def identity(self) -> GroupElement:
        return GroupElement(
            tuple(np.arange(m) for m in self.widths), tuple(np.ones(m) for m in self.widths)
        )

    def elements(self) -> Iterator[GroupElement]:
        """All elements, the identity first. There are `order` of them."""
        for choice in itertools.product(*map(self._of_layer, self.widths, self.flips)):
            yield GroupElement(tuple(o for o, _ in choice), tuple(s for _, s in choice))

    def random_elements(self, count: int, seed: int = 0) -> list[GroupElement]:
        """`count` elements, independent and uniform over the group."""
        if count < 0:
            raise InvalidArgument(f"count: expected 0 or more, got {count}")
        rng = np.random.default_rng(seed)
        found = []
        for _ in range(count):
            orders = tuple(rng.permutation(m) for m in self.widths)
            signs = tuple(
                rng.choice([-1.0, 1.0], m) if flip else np.ones(m)
                for m, flip in zip(self.widths, self.flips, strict=True)
            )
            found.append(GroupElement(orders, signs))
        return found

    def apply(self, element: GroupElement, theta: Any) -> Array:
        """g theta, float64, of theta (n,) or of each of thetas (P, n)."""
        points = self.points(theta)
        index, factor = self.layers.action(element.orders, element.signs)
        # + 0.0: no negative zeros, so that equal points are equal bit for bit
        return points[..., index] * factor + 0.0

    def canonical(self, theta: Any) -> Array:
        """The representative of theta's orbit, float64: (n,) of (n,), (P, n) of (P, n).

        Layer by layer, units are flipped to a positive bias and sorted by falling bias. Where
        biases are equal (or there are none), the incoming weights decide, then the outgoing ones;
        units of equal incoming weights before further hidden layers are tried in every order, up to
        `canonical.TIES` orders, and beyond it (many identical units) sorted by what their outgoing
        weights' magnitudes are: that alone need not be constant on the orbit.

        Idempotent, bit for bit constant on orbits. Not continuous: a bias near 0, or two that are
        close, can turn a small step of theta into another representative; compare points by
        `distance`.
        """
        points = self.points(theta)
        return canonical_forms(self.layers, self.flips, points.reshape(-1, self.n)).reshape(
            points.shape
        )

    def points(self, theta: Any) -> Array:
        """theta as float64 (n,) or (P, n); raises InvalidArgument for other shapes."""
        points = numbers(theta, "theta")
        if points.ndim not in (1, 2) or points.shape[-1] != self.n:
            raise InvalidArgument(
                f"theta: expected shape ({self.n},) or (P, {self.n}), got {points.shape}"
            )
        return points

    @staticmethod
    def _of_layer(m: int, flip: bool) -> Iterator[tuple[NDArray[np.intp], Array]]:
        for order in itertools.permutations(range(m)):
            for signs in itertools.product((1.0, -1.0), repeat=m if flip else 0):
                yield np.array(order, dtype=np.intp), np.array(signs) if flip else np.ones(m)
