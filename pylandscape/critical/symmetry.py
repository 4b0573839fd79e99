"""The equioutput group of a multilayer perceptron: the maps of theta that leave its outputs alone.

Layers l = 1 .. K of weights W_l and biases b_l, M_l units in hidden layer l < K. Two units of a
hidden layer may change places (rows of W_l and b_l, columns of W_{l+1}); where the activation is
odd, a unit may change its sign (its row, bias and column). An element g is therefore one signed
permutation per hidden layer: unit i of g theta is s_i times unit o_i of theta. All are isometries;
there are prod_l M_l! 2^M_l of them, or prod_l M_l! without signs.

Source: A. M. Chen, H. Lu, R. Hecht-Nielsen, "On the geometry of feedforward neural network error
surfaces", Neural Computation 5 (1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array
from ..errors import InvalidArgument
from .alignment import Alignment, align
from .group_actions import GroupAction
from .mlp_structure import ODD, Layers, layers_of

IMAGES = 100_000  # most images that are listed


class EquioutputGroup(GroupAction):
    """The group of an MLP's unit permutations and, for odd activations, sign flips.

    Args:
        layers: a Sequential of Linear layers and elementwise activations, a Landscape of one, or
            the layers' (in, out) sizes, first to last.
        activation: with sizes: what follows the hidden layers, one name or one per hidden layer.
        bias: with sizes: whether layers have biases, one bool or one per layer.
        flips: None: wherever the activation is odd. True: everywhere, or an error. False: nowhere.

    theta is the layers' weight, then bias, first layer first (`named_parameters()` order). Other
    symmetries are not in the group: a ReLU network's continuous rescaling (p w_in, w_out / p), a
    sigmoid's flip, which shifts the biases behind it and is no isometry, and the whole of GL(M) of
    a hidden layer without activation.

    Raises:
        InvalidArgument: a model of another kind, sizes that do not fit, flips of an activation
            that is not odd.

        >>> EquioutputGroup([(2, 2), (2, 1)]).order
        8
    """

    def __init__(
        self,
        layers: Any,
        *,
        activation: str | Sequence[str] | None = None,
        bias: bool | Sequence[bool] | None = None,
        flips: bool | None = None,
    ) -> None:
        self.layers: Layers = layers_of(layers, activation, bias)
        odd = [name in ODD for name in self.layers.activations]
        if flips not in (None, True, False):
            raise InvalidArgument(f"flips: expected True, False or None, got {flips!r}")
        if flips and not all(odd):
            name = self.layers.activations[odd.index(False)]
            raise InvalidArgument(
                f"flips: expected odd activations, got {name}: {_why_not(name)}; flips=False gives "
                "the permutations alone"
            )
        self.flips = tuple(o and flips is not False for o in odd)

    @property
    def abelian(self) -> bool:
        """Whether its elements commute."""
        return all(m < (2 if flip else 3) for m, flip in zip(self.widths, self.flips, strict=True))

    def images(self, theta: Any, limit: int = IMAGES) -> Array:
        """All g theta (order, n) float64, theta itself first: its spherical throng.

        Raises:
            InvalidArgument: there are more than `limit`; `random_elements` gives some of them.
        """
        point = self.points(theta)
        if point.ndim != 1:
            raise InvalidArgument(f"theta: expected shape ({self.n},), got {point.shape}")
        if self.order > limit:
            raise InvalidArgument(
                f"limit: expected at least {self.order} for all images, got {limit}; "
                "random_elements() draws some of them"
            )
        return np.stack([self.apply(g, point) for g in self.elements()])

    def in_wedge(self, theta: Any) -> NDArray[np.bool_]:
        """Whether the hidden biases are positive (with flips) and fall strictly, in every layer.

        The wedge holds exactly one image of almost every theta: independent symmetric random biases
        lie in it with probability 1 / order.
        """
        return self._in_wedge(self.points(theta), np.array(1.0))

    def in_cone(self, theta: Any) -> NDArray[np.bool_]:
        """`in_wedge` with the hidden biases multiplied by the first output bias."""
        points = self.points(theta)
        at = self.layers.biases(len(self.widths))
        return self._in_wedge(points, points[..., at[0], None])

    def align(self, theta: Any, reference: Any, *, restarts: int = 10, seed: int = 0) -> Alignment:
        """The image of theta nearest to reference; see `alignment.align`."""
        return align(self, theta, reference, restarts=restarts, seed=seed)

    def distance(self, a: Any, b: Any) -> float:
        """min over g of ‖g a - b‖; an upper bound of it where `align(a, b).exact` is False."""
        return self.align(a, b).distance

    def _in_wedge(self, points: Array, scale: Array) -> NDArray[np.bool_]:
        inside = np.ones(points.shape[:-1], dtype=bool)
        for layer, flip in enumerate(self.flips):
            bias = points[..., self.layers.biases(layer)] * scale
            inside &= (np.diff(bias, axis=-1) < 0.0).all(axis=-1)
            if flip:
                inside &= (bias > 0.0).all(axis=-1)
        return inside

    def __repr__(self) -> str:
        sizes = "-".join(map(str, [*(i for i, _ in self.layers.sizes), self.layers.sizes[-1][1]]))
        what = "permutations and flips" if all(self.flips) else "permutations"
        if any(self.flips) and not all(self.flips):
            what = "permutations, flips where the activation is odd"
        return f"EquioutputGroup({sizes}, order {self.order}, {what})"


def _why_not(name: str) -> str:
    if name in ("ReLU", "LeakyReLU"):
        return "its units scale continuously instead (p w_in, w_out / p)"
    if name == "Sigmoid":
        return "a flipped sigmoid unit also shifts the biases behind it, which is no isometry"
    return "f(-x) = -f(x) does not hold"
