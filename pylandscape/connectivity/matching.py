"""Which unit of one network goes with which of another: weight matching and activation matching.

Weight matching maximises <a, P b> over the permutations P, so it minimises the distance (every P is
an isometry): one class at a time, each an assignment problem for the others' present order
(Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, section 3.2). Inside a head, every pair of
heads first gets the best order of its features, then the heads are assigned by what that gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import Array
from .symmetries import Element, Symmetries, SymmetryClass, atom_ids, units

Tensors = Mapping[str, Tensor]
ROUNDS = 100  # over the classes; each gains or is the last


def weight_matching(
    symmetries: Symmetries,
    a: Tensors,
    b: Tensors,
    *,
    orders: int,
    seed: int,
    done: Callable[[], Any] = lambda: None,
) -> Element:
    """The element g for which g b is nearest to a, as far as found; never farther than b is.

    a, b: float64 parameters by name. Starts: what the classes whose neighbours are known say, one
    after the other; the order as it stands; then as many random orders of the classes, unless two
    starts have ended in the same best place. ``done`` is called after each.
    """
    generator = np.random.default_rng(seed)
    classes = symmetries.classes
    best, reached = symmetries.identity(), inner(a, b)
    most = 0.5 * (inner(a, a) + inner(b, b))
    ends: list[tuple[Element, float]] = []
    for k in range(2 + orders):
        element, order = symmetries.identity(), list(range(len(classes)))
        if k == 0:
            element = _from_the_known(symmetries, a, b)
        elif k > 1:
            order = generator.permutation(len(classes)).tolist()
        element, value = _climbed(symmetries, a, b, element, [classes[i] for i in order])
        agreed = any(_same(element, end) for end, of_it in ends if of_it >= reached)
        ends.append((element, value))
        if value > reached:
            best, reached = element, value
        done()
        if agreed or most - reached <= 1e-14 * most:  # no image is nearer
            break
    return best


def _same(a: Element, b: Element) -> bool:
    return all(np.array_equal(a[i], p) for i, p in b.items())


def inner(a: Tensors, b: Tensors, names: Iterable[str] | None = None) -> float:
    """<a, b> over the tensors of these names, all of a's by default."""
    found = [float(a[n].reshape(-1) @ b[n].reshape(-1)) for n in (a if names is None else names)]
    return float(np.sum(found))


def _climbed(
    symmetries: Symmetries, a: Tensors, b: Tensors, element: Element, order: list[SymmetryClass]
) -> tuple[Element, float]:
    present = symmetries.apply(element, b)
    touched = {id(c): [n for n in symmetries.touched(c) if n in a] for c in order}
    settled: set[int] = set()  # in their best order while no tensor of theirs changes
    for _ in range(ROUNDS):
        gained = False
        for c in order:
            if id(c) in settled:
                continue
            names = touched[id(c)]
            step = _best_step(symmetries, c, a, present, names)
            moved = symmetries.apply(step, {n: present[n] for n in names})
            before, after = inner(a, present, names), inner(a, moved, names)
            settled.add(id(c))
            if after > before + 1e-12 * abs(before):
                settled -= {i for i, own in touched.items() if i != id(c) and set(own) & set(names)}
                present |= moved
                element = after_step(c, element, step)
                gained = True
        if not gained:
            break
    return element, inner(a, present)


def after_step(c: SymmetryClass, element: Element, step: Element) -> Element:
    """First the element, then a step of one class."""
    order = step[id(c.atom)]
    found = {**element, id(c.atom): element[id(c.atom)][order]}
    for atom in c.inner.values():
        found[id(atom)] = np.take_along_axis(element[id(atom)][order], step[id(atom)], axis=1)
    return found


def _best_step(
    symmetries: Symmetries, c: SymmetryClass, a: Tensors, b: Tensors, names: Sequence[str]
) -> Element:
    """The order of one class that makes <a, P b> largest, the others as they stand."""
    plain = np.zeros((c.atom.size, c.atom.size))
    inside = {k: np.zeros((c.atom.size * t.size,) * 2) for k, t in c.inner.items()}
    for name in names:
        for dim, axis in enumerate(symmetries.axes[name]):
            found = units(axis, c)
            if found is not None:
                plain += _scores(a[name], b[name], dim, found)
            for key, atom in c.inner.items():
                found = units(axis, c, atom) if id(atom) in atom_ids(axis) else None
                if found is not None:
                    inside[key] += _scores(a[name], b[name], dim, found)
    return assigned(c, plain, inside)


def _scores(a: Tensor, b: Tensor, dim: int, places: NDArray[np.intp]) -> Array:
    """(n, n) inner products of a's units with b's."""
    rows = [_in_order(x, dim, places).movedim(dim, 0).reshape(len(places), -1) for x in (a, b)]
    return np.asarray((rows[0] @ rows[1].T).cpu())


def _in_order(x: Tensor, dim: int, places: NDArray[np.intp]) -> Tensor:
    """x with the places (n, m) along an axis one after the other; itself where they are so."""
    flat = places.reshape(-1)
    if len(flat) == x.shape[dim] and np.array_equal(flat, np.arange(len(flat))):
        return x
    return x.index_select(dim, torch.from_numpy(flat).to(x.device))


def assigned(c: SymmetryClass, plain: Array, inside: Mapping[str, Array]) -> Element:
    """The class's order with the largest sum of scores: plain (n, n) of units, inside
    (n k, n k) of what each holds."""
    total, orders = plain.copy(), {}
    n = c.atom.size
    for key, scores in inside.items():
        size = c.inner[key].size
        blocks = scores.reshape(n, size, n, size).transpose(0, 2, 1, 3)
        orders[key] = np.empty((n, n, size), dtype=np.intp)
        for i in range(n):
            for j in range(n):
                orders[key][i, j] = _assign(blocks[i, j])
                total[i, j] += blocks[i, j][np.arange(size), orders[key][i, j]].sum()
    order = _assign(total)
    found: Element = {id(c.atom): order}
    for key, each in orders.items():
        found[id(c.inner[key])] = each[np.arange(n), order]
    return found


def _assign(scores: Array) -> NDArray[np.intp]:
    from scipy.optimize import linear_sum_assignment

    columns: NDArray[np.intp] = linear_sum_assignment(scores, maximize=True)[1]
    return columns


def _from_the_known(symmetries: Symmetries, a: Tensors, b: Tensors) -> Element:
    """One class after the other from the tensors whose other classes are known: a planted order is
    found from the input on."""
    element = symmetries.identity()
    left = list(symmetries.classes)
    own = {
        n: {i for axis in axes for i in atom_ids(axis)}
        for n, axes in symmetries.axes.items()
        if n in a
    }
    present = dict(b)
    while left:
        open_ = {id(x) for c in left for x in c.members}

        def known(c: SymmetryClass, open_: set[int] = open_) -> list[str]:
            mine = {id(x) for x in c.members}
            names = [n for n in symmetries.touched(c) if n in a]
            return [
                n
                for n in names
                if not (own[n] & open_) - mine
                and sum(bool(atom_ids(axis) & mine) for axis in symmetries.axes[n]) == 1
            ]

        weights = [sum(a[n].numel() for n in known(c)) / c.atom.size for c in left]
        c = left.pop(int(np.argmax(weights)))
        names = [n for n in symmetries.touched(c) if n in a]
        step = _best_step(symmetries, c, a, present, known(c, open_) or names)
        present |= symmetries.apply(step, {n: present[n] for n in names})
        element = after_step(c, element, step)
    return element


class Correlations:
    """Correlations of the features of two networks, from batch after batch."""

    def __init__(self, symmetries: Symmetries) -> None:
        self.symmetries = symmetries
        self.sums: dict[tuple[int, str | None, int], list[Tensor]] = {}

    @property
    def operations(self) -> set[int]:
        """Whose results are looked at."""
        return {number for c in self.symmetries.classes for number, _, _ in c.seen}

    def add(self, a: Mapping[int, Tensor], b: Mapping[int, Tensor]) -> None:
        """The results of the operations in one batch."""
        for k, c in enumerate(self.symmetries.classes):
            for number, dim, axis in c.seen:
                x, y = a[number], b[number]
                if x.shape[dim] != axis.size:
                    continue
                for key, atom in ((None, None), *c.inner.items()):
                    found = units(axis, c, atom)
                    if found is not None:
                        self._add((k, key, number), _rows(x, dim, found), _rows(y, dim, found))

    def _add(self, key: tuple[int, str | None, int], x: Tensor, y: Tensor) -> None:
        if key not in self.sums:  # about the first batch's means: no cancellation
            zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            square = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
            shift = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
            self.sums[key] = [*shift, zero[:1].clone(), *(zero.clone() for _ in range(4)), square]
        sums = self.sums[key]
        x, y = x - sums[0], y - sums[1]
        parts = (x.sum(1), y.sum(1), (x * x).sum(1), (y * y).sum(1), x @ y.T)
        sums[2] += x.shape[1]
        for total, part in zip(sums[3:], parts, strict=True):
            total += part

    def element(self) -> Element:
        """The order of every class with the largest sum of correlations."""
        found = self.symmetries.identity()
        for k, c in enumerate(self.symmetries.classes):
            scores: dict[str | None, Array] = {}
            for (own, key, _), sums in self.sums.items():
                if own == k:
                    scores[key] = scores.get(key, 0.0) + _correlation(sums)
            if scores:
                plain = scores.pop(None, np.zeros((c.atom.size,) * 2))
                inside = {
                    key: scores.get(key, np.zeros((c.atom.size * t.size,) * 2))
                    for key, t in c.inner.items()
                }
                found |= assigned(c, plain, inside)
        return found


def _rows(x: Tensor, dim: int, places: NDArray[np.intp]) -> Tensor:
    return _in_order(x.double(), dim, places).movedim(dim, 0).reshape(len(places), -1)


def _correlation(sums: Sequence[Tensor]) -> Array:
    n, sx, sy, xx, yy, xy = (s.cpu().numpy() for s in sums[2:])
    covariance = xy - np.outer(sx, sy) / n
    square = np.outer(xx - sx**2 / n, yy - sy**2 / n)
    floor = 1e-24 * max(float(square.max()), 1e-300)
    return np.where(square > floor, covariance / np.sqrt(np.maximum(square, floor)), 0.0)
