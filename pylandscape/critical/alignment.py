"""The image of one network that is nearest to another, modulo the equioutput group.

‖g a - b‖^2 = ‖a‖^2 + ‖b‖^2 - 2 <g a, b>, since g is an isometry: the nearest image has the largest
inner product. With the other hidden layers fixed, it is a sum over the units of one layer:
sum_i s_i <b's unit i, a's unit o_i>, where a unit is its bias, incoming and outgoing weights. The
signs are those of the inner products, the order is an assignment problem (Kuhn 1955; Jonker and
Volgenant 1987 in scipy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument
from .group_actions import GroupAction
from .mlp_structure import GroupElement

SEARCHED = 1_000  # orders of groups that are searched whole
ROUNDS = 100  # over the layers; each round gains or is the last


@dataclass(frozen=True, eq=False, repr=False)
class Alignment:
    """g theta near a reference.

    Attributes:
        theta: (n,) float64, g theta.
        element: g.
        distance: ‖g theta - reference‖.
        exact: no image is nearer, up to rounding. True for networks with one hidden layer, for
            groups of at most 1,000 elements, and where the distance is as small as the norms allow;
            otherwise a nearer image may have been missed.
    """

    theta: Array
    element: GroupElement
    distance: float
    exact: bool

    def __repr__(self) -> str:
        return f"Alignment(distance {self.distance:.6g}, {'exact' if self.exact else 'heuristic'})"


def align(
    group: GroupAction, theta: Any, reference: Any, *, restarts: int = 10, seed: int = 0
) -> Alignment:
    """The image g theta nearest to reference, as far as it can be found.

    One hidden layer: exact, one assignment. More: layers in turn, each exactly for the others'
    present order, until none gains; from the identity, from the canonical forms and from random
    elements. That is a heuristic (the problem of several layers is a quadratic assignment, NP-hard
    in general), except for small groups, which are searched whole.

    Args:
        theta, reference: (n,).
        restarts: random elements to start from; only for more than one hidden layer.
        seed: of these.

    Raises:
        InvalidArgument: another length, elements that are not finite.

    Source: S. Ainsworth, J. Hayase, S. Srinivasa, "Git Re-Basin: merging models modulo permutation
    symmetries", ICLR 2023, section 3.2 (without signs).
    """
    a, b = _point(group, theta, "theta"), _point(group, reference, "reference")
    if restarts < 0:
        raise InvalidArgument(f"restarts: expected 0 or more, got {restarts}")
    hidden = len(group.widths)
    if hidden <= 1:
        best, exact = _improved(group, a, b, group.identity()), True
    elif group.order <= SEARCHED:
        best = max(group.elements(), key=lambda g: float(group.apply(g, a) @ b))
        exact = True
    else:
        starts = [group.identity(), _canonical_start(group, a, b)]
        starts += group.random_elements(restarts, seed)
        found = [_improved(group, a, b, start) for start in starts]
        best = max(found, key=lambda g: float(group.apply(g, a) @ b))
        exact = False
    image = group.apply(best, a)
    distance = float(np.linalg.norm(image - b))
    lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    rounding = 8.0 * np.finfo(np.float64).eps * (lengths[0] + lengths[1])
    exact = exact or distance <= abs(lengths[0] - lengths[1]) + rounding
    return Alignment(image, best, distance, exact)


def _improved(group: GroupAction, a: Array, b: Array, start: GroupElement) -> GroupElement:
    """The start, with layer after layer replaced by its best order for the others' present one."""
    best = start
    hidden = len(group.widths)
    gained, value = True, -np.inf
    for _ in range(ROUNDS if hidden > 1 else 1):
        for layer in range(hidden):
            step = _best_of_layer(group, group.apply(best, a), b, layer)
            best = step.after(best)
        reached = float(group.apply(best, a) @ b)
        gained, value = reached > value, reached
        if not gained:
            break
    return best


def _best_of_layer(group: GroupAction, a: Array, b: Array, layer: int) -> GroupElement:
    """The element of one layer that brings a nearest to b."""
    places = np.concatenate([group.layers.incoming(layer), group.layers.outgoing(layer)], axis=1)
    inner = b[places] @ a[places].T  # [i, j]: unit i of b with unit j of a
    flip = group.flips[layer]
    _, order = _assign(np.abs(inner) if flip else inner, maximize=True)
    chosen = inner[np.arange(len(order)), order]
    identity = group.identity()
    orders, signs = list(identity.orders), list(identity.signs)
    orders[layer] = order
    signs[layer] = np.where(chosen < 0.0, -1.0, 1.0) if flip else np.ones(len(order))
    return GroupElement(tuple(orders), tuple(signs))


def _canonical_start(group: GroupAction, a: Array, b: Array) -> GroupElement:
    """The element that gives a's canonical form, then undoes b's."""
    to_a, to_b = (_sorting(group, point) for point in (a, b))
    return to_b.inverse().after(to_a)


def _sorting(group: GroupAction, point: Array) -> GroupElement:
    """The element that takes a point to its canonical form, where no units are tied."""
    form, element = group.canonical(point), group.identity()
    for layer in range(len(group.widths)):
        places = group.layers.incoming(layer)
        step = _best_of_layer_keys(group, group.apply(element, point)[places], form[places], layer)
        element = step.after(element)
    return element


def _best_of_layer_keys(group: GroupAction, keys: Array, wanted: Array, layer: int) -> GroupElement:
    """The element of one layer whose units' keys (M, k) are the wanted ones."""
    plus = np.abs(wanted[:, None] - keys[None]).sum(axis=2)
    minus = np.abs(wanted[:, None] + keys[None]).sum(axis=2)
    flip = group.flips[layer]
    _, order = _assign(np.minimum(plus, minus) if flip else plus)
    at = np.arange(len(order)), order
    identity = group.identity()
    orders, signs = list(identity.orders), list(identity.signs)
    orders[layer] = order
    signs[layer] = np.where(flip & (minus[at] < plus[at]), -1.0, 1.0)
    return GroupElement(tuple(orders), tuple(signs))


def _point(group: GroupAction, value: Any, name: str) -> Array:
    point = group.points(value)
    if point.ndim != 1:
        raise InvalidArgument(f"{name}: expected shape ({group.n},), got {point.shape}")
    if not np.isfinite(point).all():
        raise InvalidArgument(f"{name}: expected finite elements, got others")
    return point


def _assign(scores: Array, maximize: bool = False) -> tuple[Any, Any]:
    """scipy's assignment of rows to columns."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=maximize)
    return rows, columns
