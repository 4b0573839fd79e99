"""One representative of every orbit of the equioutput group (see symmetry.py)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array
from .mlp_structure import Layers

TIES = 10_000  # orders of tied units that are tried


def canonical_forms(layers: Layers, flips: Sequence[bool], points: Array) -> Array:
    """(P, n) of (P, n): hidden units flipped to a positive first number, sorted falling."""
    found = points + 0.0  # a copy, without negative zeros
    tied = np.zeros(len(found), dtype=bool)
    for layer, flip in enumerate(flips):
        last = layer == len(flips) - 1
        keys = _keys(layers, layer, found, last)
        signs = _signs(keys) if flip else np.ones(keys.shape[:2])
        keys = keys * signs[:, :, None]
        order = _falling(keys)
        found = _moved(layers, layer, found, order, signs)
        if not last:
            in_order = np.take_along_axis(keys, order[:, :, None], axis=1)
            tied |= (in_order[:, 1:] == in_order[:, :-1]).all(axis=2).any(axis=1)
            if flip:
                tied |= np.any(~keys.any(axis=2), axis=1)
    for p in np.flatnonzero(tied):
        found[p] = _largest(layers, flips, points[p] + 0.0)
    return found


def _keys(layers: Layers, layer: int, points: Array, last: bool) -> Array:
    """(P, M, k): what units are sorted by, bias first.

    What leaves the last hidden layer is in a fixed order too, what leaves another one is not.
    """
    places = layers.incoming(layer)
    if last:
        places = np.concatenate([places, layers.outgoing(layer)], axis=1)
    return points[:, places]


def _signs(keys: Array) -> Array:
    """(P, M): the sign of the first number that is not zero; 1 where there is none."""
    first = np.argmax(keys != 0.0, axis=2)
    value = np.take_along_axis(keys, first[:, :, None], axis=2)[:, :, 0]
    return np.where(value < 0.0, -1.0, 1.0)


def _falling(keys: Array) -> NDArray[np.intp]:
    """(P, M): the units in falling lexicographic order of their keys, stable."""
    return np.lexsort(np.moveaxis(-keys, 2, 0)[::-1], axis=-1)


def _moved(
    layers: Layers, layer: int, points: Array, order: NDArray[np.intp], signs: Array
) -> Array:
    """Points (P, n) whose unit i of a layer is the unit order[i], with its sign."""
    found = points.copy()
    for places in (layers.incoming(layer), layers.outgoing(layer)):
        units = points[:, places] * signs[:, :, None]
        found[:, places] = np.take_along_axis(units, order[:, :, None], axis=1)
    return found + 0.0


def _largest(layers: Layers, flips: Sequence[bool], point: Array) -> Array:
    """The lexicographically largest of the forms that the ties of one point (n,) leave open."""
    forms = [point[None]]
    for layer, flip in enumerate(flips):
        last = layer == len(flips) - 1
        budget = max(1, TIES // sum(map(len, forms)))
        forms = [
            form
            for group in forms
            for each in group
            for form in [_arranged(layers, layer, each, flip, last, budget)]
        ]
    every = np.unique(np.concatenate(forms), axis=0)
    largest: Array = every[-1]
    return largest


def _arranged(
    layers: Layers, layer: int, point: Array, flip: bool, last: bool, budget: int
) -> Array:
    """(F, n): the point with a layer in order, in every way that its ties allow."""
    keys = _keys(layers, layer, point[None], last)
    signs = _signs(keys) if flip else np.ones(keys.shape[:2])
    keys = keys * signs[:, :, None]
    order = _falling(keys)
    if last:
        return _moved(layers, layer, point[None], order, signs)
    in_order = keys[0, order[0]]
    starts = np.flatnonzero(np.r_[True, (in_order[1:] != in_order[:-1]).any(axis=1)])
    blocks = np.split(order[0], starts[1:])
    free = [b for b in blocks if flip and not keys[0, b[0]].any()]  # no sign to go by: the last
    ways = math.prod(math.factorial(len(b)) for b in blocks) * 2 ** sum(map(len, free))
    if ways > budget:
        return _by_magnitude(layers, layer, point, blocks, signs)
    orders, marks = [], []
    for choice in itertools.product(*(itertools.permutations(b) for b in blocks)):
        for mark in _sign_choices(signs[0], free):
            orders.append(np.concatenate([np.array(c, dtype=np.intp) for c in choice]))
            marks.append(mark)
    repeated = np.broadcast_to(point, (len(orders), point.size))
    return np.unique(_moved(layers, layer, repeated, np.stack(orders), np.stack(marks)), axis=0)


def _sign_choices(signs: Array, free: Sequence[NDArray[np.intp]]) -> Iterator[Array]:
    units = np.concatenate([*free, np.zeros(0, dtype=np.intp)]).astype(np.intp)
    for choice in itertools.product((1.0, -1.0), repeat=len(units)):
        chosen = signs.copy()
        chosen[units] = choice
        yield chosen


def _by_magnitude(
    layers: Layers, layer: int, point: Array, blocks: Sequence[NDArray[np.intp]], signs: Array
) -> Array:
    """One arrangement: tied units by the sorted magnitudes of what leaves them."""
    sizes = -np.sort(-np.abs(point[layers.outgoing(layer)]), axis=1)
    order = np.concatenate([b[_falling(sizes[None, b])[0]] for b in blocks])
    return _moved(layers, layer, point[None], order[None], signs)
