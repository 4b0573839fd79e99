"""The import hook: a peer's name leads to our package of the same interface."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from ..errors import InvalidArgument
from . import _options

OURS = "pylandscape.compat"
PEERS = ("loss_landscapes", "pyhessian", "hessian_eigenthings", "loss_landscape")


class _Alias(Loader):
    """Gives the module of ours: both names lead to the same object."""

    def __init__(self, ours: str) -> None:
        self.ours = ours
        self.spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self.ours)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # over which the import system wrote the alias's


class _Finder(MetaPathFinder):
    """Finds ``peer.sub.module`` at ``pylandscape.compat.peer.sub.module``."""

    def __init__(self, peers: Sequence[str]) -> None:
        self.peers = frozenset(peers)
        self.aliases: list[str] = []

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.peers:
            return None
        ours = f"{OURS}.{fullname}"
        found = sys.modules[ours].__spec__ if ours in sys.modules else find_spec(ours)
        if found is None:
            raise ModuleNotFoundError(
                f"No module named {fullname!r} in {OURS}, which stands in for "
                f"{fullname.partition('.')[0]!r}",
                name=fullname,
            )
        self.aliases.append(fullname)
        whole = found.submodule_search_locations is not None
        return ModuleSpec(fullname, _Alias(ours), is_package=whole)


@cache
def available() -> tuple[str, ...]:
    """The peers that this build stands in for."""
    return tuple(peer for peer in PEERS if find_spec(f"{OURS}.{peer}") is not None)


@contextmanager
def patched(*peers: str, compat: Mapping[str, str] | None = None) -> Iterator[None]:
    """While this lasts, ``import peer`` gives ours, whether or not the original is installed.

    What was imported before keeps its names; afterwards the originals are importable again.

    Args:
        peers: of `PEERS`; default all that are there.
        compat: peer -> version whose numbers are wanted, defects included:
            ``patched(compat={"loss_landscapes": "3.0.6"})``. Functions' own ``compat=`` wins.

    Raises:
        InvalidArgument: for a name that is not one of `PEERS`, or not in this build.
    """
    there = available()
    for name in (*peers, *(compat or {})):
        if name not in there:
            raise InvalidArgument(f"peers: expected some of {', '.join(there)}, got {name!r}")
    chosen = peers or there
    finder = _Finder(chosen)
    originals = _taken(chosen)
    sys.meta_path.insert(0, finder)
    try:
        with _options.chosen(compat or {}):
            yield
    finally:
        sys.meta_path.remove(finder)
        for alias in finder.aliases:
            sys.modules.pop(alias, None)
        sys.modules.update(originals)


def _taken(peers: Sequence[str]) -> dict[str, ModuleType]:
    """The peers' modules, taken out of sys.modules."""
    prefixes = tuple(f"{peer}." for peer in peers)
    names = [name for name in sys.modules if name in peers or name.startswith(prefixes)]
    return {name: sys.modules.pop(name) for name in names}
