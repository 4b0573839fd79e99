"""Surface files under the original's names of what is in them."""

from __future__ import annotations

import os
from dataclasses import replace

from ...errors import InvalidArgument
from ...results.curve import Curve
from ...results.foreign import METRICS, PERCENT
from ...results.loading import load
from ...results.surface import Surface


def read(surf_file: str | os.PathLike[str]) -> Curve | Surface:
    """A surface or curve, the metrics under the original's names, accuracies in percent.

    Beside ``train_acc`` stands ``train_err`` = 100 - ``train_acc``; metrics that the original does
    not have keep their names.

    Raises:
        FileNotFoundError, FileFormatError; InvalidArgument for spectra and eigenpairs.
    """
    result = load(surf_file)
    if not isinstance(result, Curve | Surface):
        raise InvalidArgument(f"surf_file: expected a surface, got {result!r}")
    names = {ours: theirs for theirs, ours in METRICS.items()}
    found = {}
    for name, values in result.metrics.items():
        theirs = names.get(name, name)
        found[theirs] = 100.0 * values if theirs in PERCENT else values
        if theirs in PERCENT:
            found[theirs.replace("acc", "err")] = 100.0 - found[theirs]
    return replace(result, metrics={"loss": result.values, **found})


def named(surf_file: str, surf_name: str) -> tuple[Curve | Surface, str]:
    """What `read` gives, and the name if it is there.

    Raises:
        InvalidArgument: it is not.
    """
    result = read(surf_file)
    if surf_name not in result.metrics:
        known = ", ".join(sorted(result.metrics))
        raise InvalidArgument(f"surf_name: expected one of {known}, got {surf_name!r}")
    return result, surf_name
