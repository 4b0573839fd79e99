"""Checks of single arguments that many functions take."""

from __future__ import annotations

import difflib
import operator
import sys
from collections.abc import Iterable
from typing import Any

from .errors import InvalidArgument


def callers_level() -> int:
    """The ``stacklevel`` with which a warning points at the code that called this package."""
    level, frame = 0, sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] == "pylandscape":
        if frame.f_back is None:
            break
        level, frame = level + 1, frame.f_back
    return level + 1


def integer(value: Any, name: str, least: int | None = None, most: int | None = None) -> int:
    """The value as an int; bounds belong to the range. InvalidArgument names the argument."""
    try:
        found = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{name}: expected an integer, got {value!r}") from None
    if least is not None and most is not None and not least <= found <= most:
        raise InvalidArgument(f"{name}: expected {least} to {most}, got {found}")
    if least is not None and found < least:
        raise InvalidArgument(f"{name}: expected at least {least}, got {found}")
    return found


def numbers(value: Any, name: str, expected: str) -> Any:
    """The value as an array of float64. InvalidArgument names the argument and what is expected."""
    import numpy as np

    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"{name}: expected {expected}, got {type(value).__name__}: {error}"
        ) from error


def near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """What an error adds of names like the one that is not known: "; did you mean a or b?", or
    nothing."""
    found = difflib.get_close_matches(name, [*known], 3, cutoff)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def check_landscape(land: Any, function: str) -> None:
    """Raises InvalidArgument for anything else in the place of a landscape."""
    from torch import nn  # files are read and drawn without torch

    if not (hasattr(land, "layout") and hasattr(land, "base")):  # points, runs, surfaces have one
        what = "the module " if isinstance(land, nn.Module) else ""
        raise InvalidArgument(
            f"land: {function}() expected a Landscape, got {what}{type(land).__name__}; make "
            "one with pylandscape.Landscape(model, loss, data)"
        )
