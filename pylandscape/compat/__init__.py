"""Other people's landscape code, unchanged, on this package's engines.

Change an import: `from pylandscape.compat import loss_landscapes`. Or change nothing:
`python -m pylandscape.compat script.py ...`, or

    with pylandscape.compat.patched():
        import loss_landscapes  # is ours, whether or not the original is installed

The submodules say where they differ from the original; what is wrong there is right here, unless
`compat=` asks for the original's numbers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ._patch import PEERS, patched
from ._report import report

__all__ = ["PEERS", "patched", "report"]


def __getattr__(name: str) -> Any:
    """Peers are imported when they are asked for."""
    if name in PEERS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
