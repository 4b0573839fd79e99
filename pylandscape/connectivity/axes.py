"""How the axes of tensors hang together: which of them a permutation has to move alike.

An axis is an `Atom` (n places that may change places freely), a `Product` (blocks: the places of a
flattened axis, outer factor first) or a `Joined` one (a concatenation). `unify` says that two axes
are the same; an atom that meets a product or a concatenation becomes one, everywhere. So the group
of an axis only ever shrinks, and what is left at the end is a symmetry of every operation seen.

An atom that was split off inside another one (the features inside a head) may have another order in
each place of its `outer` ones; `symmetries.py` says where that holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod


class Atom:
    """n places; `fixed` if they may not move, and the first `reason` for it."""

    def __init__(self, size: int, outer: tuple[Atom, ...] = (), reason: str | None = None) -> None:
        self.size = size
        self.outer = outer
        self.reason = reason
        self.value: Axis | None = None  # what it has become
        self.family: list[Axis] | None = None  # by the place of a fixed outer atom: one for each
        self.over: Atom | None = None  # that atom

    @property
    def fixed(self) -> bool:
        return self.reason is not None


class Product:
    """Blocks: place (i_1, .., i_k) of the factors, the last one fastest; none: one place."""

    def __init__(self, factors: Sequence[Axis]) -> None:
        self.factors = tuple(factors)
        self.size: int = prod(f.size for f in self.factors)


class Joined:
    """One part behind the other."""

    def __init__(self, parts: Sequence[Axis]) -> None:
        self.parts = tuple(parts)
        self.size: int = sum(p.size for p in self.parts)


Axis = Atom | Product | Joined
ONE = Product(())


def fresh(size: int, reason: str | None = None) -> Axis:
    """An axis of its own; with a reason, a fixed one."""
    return ONE if size == 1 else Atom(size, (), reason)


def family(members: Sequence[Axis], over: Atom) -> Axis:
    """An axis with an order of its own in each place of a fixed one beside it."""
    found = Atom(members[0].size, (over,))
    found.family, found.over = list(members), over
    return found


def resolved(axis: Axis) -> Axis:
    """What an axis has become: flat products and concatenations of atoms."""
    if isinstance(axis, Atom):
        if axis.value is None:
            return axis
        found = resolved(axis.value)
        axis.value = found if isinstance(found, Atom) else axis.value
        return found
    if isinstance(axis, Product):
        factors: list[Axis] = []
        for f in map(resolved, axis.factors):
            factors += f.factors if isinstance(f, Product) else [f]
        return factors[0] if len(factors) == 1 else Product(factors)
    parts: list[Axis] = []
    for p in map(resolved, axis.parts):
        parts += p.parts if isinstance(p, Joined) else [p]
    parts = [p for p in parts if p.size]
    return parts[0] if len(parts) == 1 else Joined(parts)


def atoms(axis: Axis) -> Iterator[Atom]:
    """Those of an axis, members of families among them."""
    axis = resolved(axis)
    if isinstance(axis, Atom):
        yield axis
        for member in axis.family or ():
            yield from atoms(member)
    else:
        for part in axis.factors if isinstance(axis, Product) else axis.parts:
            yield from atoms(part)


def fix(axis: Axis, reason: str) -> None:
    """Its places may not move."""
    for atom in list(atoms(axis)):
        if atom.reason is None:
            atom.reason = reason


def unify(a: Axis, b: Axis) -> None:
    """The two axes, of the same size, are one."""
    a, b = resolved(a), resolved(b)
    if a.size != b.size:
        raise ValueError(f"axes of {a.size} and {b.size} places")
    if a is b or a.size <= 1:
        return
    if isinstance(b, Atom) and not isinstance(a, Atom):
        a, b = b, a
    if isinstance(a, Atom):
        _unify_atom(a, b)
    elif isinstance(a, Joined) or isinstance(b, Joined):
        _unify_parts(a, b)
    else:
        _unify_factors(a, b)


def _unify_atom(a: Atom, b: Axis) -> None:
    if a.family is not None or (isinstance(b, Atom) and b.family is not None):
        for atom in (a, b):
            if isinstance(atom, Atom):
                whole(atom)
        return unify(a, b)
    if isinstance(b, Atom):
        b.outer = b.outer or a.outer
        b.reason = b.reason or a.reason
        a.value = b
        return None
    if a.fixed:
        fix(b, str(a.reason))
        return None
    if any(atom is a for atom in atoms(b)):  # cannot be: sizes differ
        fix(b, "an axis that would have to contain itself")
        return None
    for atom in atoms(b):
        atom.outer = atom.outer + tuple(o for o in a.outer if o not in atom.outer)
    a.value = b
    return None


def _unify_parts(a: Axis, b: Axis) -> None:
    one = a if isinstance(a, Joined) else b
    other = b if one is a else a
    assert isinstance(one, Joined)
    at = one.parts[0].size
    halves = cut(other, at)
    if halves is None:
        why = "blocks that a concatenation cuts"
        fix(a, why)
        fix(b, why)
        return
    unify(one.parts[0], halves[0])
    unify(Joined(one.parts[1:]), halves[1])


def _unify_factors(a: Axis, b: Axis) -> None:
    assert isinstance(a, Product)
    assert isinstance(b, Product)
    size = min(a.factors[0].size, b.factors[0].size)
    first, second = split(a, size), split(b, size)
    if first is None or second is None:
        why = "blocks of sizes that do not divide each other"
        fix(a, why)
        fix(b, why)
        return
    unify(first[0], second[0])
    unify(first[1], second[1])


def whole(atom: Atom) -> None:
    """Ends a family: its members are one axis, and the atom is it."""
    family, atom.family, atom.over = atom.family, None, None
    if family is None:
        return
    for member in family[1:]:
        unify(family[0], member)
    unify(atom, family[0])


def cut(axis: Axis, at: int) -> tuple[Axis, Axis] | None:
    """The first `at` places and the rest; None where blocks would be cut."""
    axis = resolved(axis)
    if at in (0, axis.size):
        empty = Joined(())
        return (axis, empty) if at else (empty, axis)
    if isinstance(axis, Atom):
        whole(axis)
        if axis.value is not None:
            return cut(axis, at)
        a, b = (Atom(n, axis.outer, axis.reason) for n in (at, axis.size - at))
        axis.value = Joined((_one(a), _one(b)))
        return _one(a), _one(b)
    if isinstance(axis, Joined):
        first = axis.parts[0]
        if at < first.size:
            halves = cut(first, at)
            return halves and (halves[0], Joined((halves[1], *axis.parts[1:])))
        if at == first.size:
            return first, Joined(axis.parts[1:])
        halves = cut(Joined(axis.parts[1:]), at - first.size)
        return halves and (Joined((first, halves[0])), halves[1])
    inner = axis.size // axis.factors[0].size
    if at % inner:
        return None
    halves = cut(axis.factors[0], at // inner)
    return halves and (
        Product((halves[0], *axis.factors[1:])),
        Product((halves[1], *axis.factors[1:])),
    )


def split(axis: Axis, size: int) -> tuple[Axis, Axis] | None:
    """Outer blocks, `size` of them, and what is inside a block; None where that is not possible."""
    axis = resolved(axis)
    if size == 1:
        return ONE, axis
    if size == axis.size:
        return axis, ONE
    if axis.size % size:
        return None
    if isinstance(axis, Atom):
        whole(axis)
        if axis.value is not None:
            return split(axis, size)
        outer = Atom(size, axis.outer, axis.reason)
        inner = Atom(axis.size // size, (*axis.outer, outer), axis.reason)
        axis.value = Product((outer, inner))
        return outer, inner
    if isinstance(axis, Joined):
        return None
    first = axis.factors[0]
    if first.size == size:
        return first, Product(axis.factors[1:])
    if first.size > size:
        halves = split(first, size)
        return halves and (halves[0], Product((halves[1], *axis.factors[1:])))
    if size % first.size:
        return None
    halves = split(Product(axis.factors[1:]), size // first.size)
    return halves and (Product((first, halves[0])), halves[1])


def taken(axes: Sequence[Axis], dim: int, place: int) -> list[Axis]:
    """The axes of x.select(dim, place): what lies inside the blocks of a chosen place has an order
    of its own (queries, keys and values of one packed projection)."""
    chosen = resolved(axes[dim])
    rest = [axis for d, axis in enumerate(axes) if d != dim]
    fix(chosen, "places that are chosen one by one")
    if not isinstance(chosen, Atom):
        return rest
    inside: dict[int, Axis] = {}
    for axis in rest:
        for atom in list(atoms(axis)):
            _member(atom, chosen, place, inside)
    return [_replaced(axis, inside) for axis in rest]


def _member(atom: Atom, over: Atom, place: int, inside: dict[int, Axis]) -> Axis | None:
    if id(atom) in inside:
        return inside[id(atom)]
    outer = [resolved(o) for o in atom.outer]
    if over not in outer or atom.fixed:
        return None
    if atom.family is not None and atom.over is not None and resolved(atom.over) is not over:
        whole(atom)
        return None
    if atom.family is None:
        atom.over, atom.family = over, [Atom(atom.size) for _ in range(over.size)]
        for i, member in enumerate(atom.family):
            others: list[Atom] = []
            for o in outer:
                if isinstance(o, Atom) and o is not over:
                    family = o.family if o.family is not None else None
                    m = resolved(family[i]) if family is not None else o
                    others += [m] if isinstance(m, Atom) else []
            assert isinstance(member, Atom)
            member.outer = tuple(others)
    inside[id(atom)] = atom.family[place]
    return inside[id(atom)]


def _replaced(axis: Axis, inside: dict[int, Axis]) -> Axis:
    axis = resolved(axis)
    if isinstance(axis, Atom):
        return inside.get(id(axis), axis)
    if isinstance(axis, Product):
        return Product([_replaced(f, inside) for f in axis.factors])
    return Joined([_replaced(p, inside) for p in axis.parts])


def spread(axis: Axis) -> Axis:
    """The axis with its families written out: blocks of a fixed atom become a concatenation."""
    axis = resolved(axis)
    if isinstance(axis, Joined):
        return resolved(Joined([spread(p) for p in axis.parts]))
    if isinstance(axis, Atom):
        return axis
    factors = list(axis.factors)
    for k, over in enumerate(factors):
        if not isinstance(over, Atom) or not over.fixed:
            continue
        inner = factors[k + 1 :]
        if not any(_over(f, over) for f in inner):
            continue
        parts = [
            spread(Product([_replaced(f, _places(f, over, i)) for f in inner]))
            for i in range(over.size)
        ]
        return resolved(Product([*factors[:k], Joined(parts)]))
    return Product([spread(f) for f in factors])


def _over(axis: Axis, over: Atom) -> bool:
    return any(a.over is not None and resolved(a.over) is over for a in atoms(axis))


def _places(axis: Axis, over: Atom, place: int) -> dict[int, Axis]:
    return {
        id(a): a.family[place]
        for a in atoms(axis)
        if a.family is not None and a.over is not None and resolved(a.over) is over
    }


def _one(atom: Atom) -> Axis:
    return ONE if atom.size == 1 else atom
