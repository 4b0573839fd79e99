"""The import hook: a peer's name leads to our package of the same interface."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

OURS = "pylandscape.compat"
PEERS = ("loss_landscapes", "pyhessian", "hessian_eigenthings", "loss_landscape")


class _Alias(Loader):
    """Gives the module of ours; both names lead to the same object."""

    def __init__(self, ours: str) -> None:
        self.ours = ours

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self.ours)
        # The import system is about to write the alias' spec and names into it.
        self._own = {k: v for k, v in vars(module).items() if k in _WRITTEN}
        return module

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._own)


_WRITTEN = ("__name__", "__loader__", "__package__", "__spec__", "__path__", "__file__")


class Finder(MetaPathFinder):
    """Finds `peer` and `peer.sub.module` at `pylandscape.compat.peer...`."""

    def __init__(self, peers: Sequence[str]) -> None:
        self.peers = frozenset(peers)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.peers:
            return None
        ours = f"{OURS}.{fullname}"
        found = find_spec(ours)
        if found is None:
            return None
        return ModuleSpec(fullname, _Alias(ours), is_package=found.submodule_search_locations is not None)


def available() -> tuple[str, ...]:
    """The peers that this package stands in for."""
    return tuple(peer for peer in PEERS if find_spec(f"{OURS}.{peer}") is not None)


@contextmanager
def patched(*peers: str, **options: Any) -> Iterator[None]:
    raise NotImplementedError
    yield
