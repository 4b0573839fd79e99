"""Which peers are asked to be as their originals are, defects included: `patched(compat=...)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import InvalidArgument

_chosen: ContextVar[Mapping[str, str] | None] = ContextVar("compat", default=None)


def version_of(peer: str, given: str | None, known: Sequence[str]) -> str | None:
    """``given``, or else what `patched` chose for the peer; None: correct, not compatible.

    Raises:
        InvalidArgument: not one of the ``known`` versions.
    """
    version = (_chosen.get() or {}).get(peer) if given is None else given
    if version is not None and version not in known:
        raise InvalidArgument(
            f"compat: expected {' or '.join(map(repr, known))} or None, got {version!r}"
        )
    return version


@contextmanager
def chosen(compat: Mapping[str, str]) -> Iterator[None]:
    """While this lasts, functions of the peers named take these versions as their ``compat``."""
    token = _chosen.set(dict(compat))
    try:
        yield
    finally:
        _chosen.reset(token)
