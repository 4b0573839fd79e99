"""The programs beside `plot_surface`: their exit codes and errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from ...errors import PylandscapeError

BAD_INPUT = 2


def run(name: str, work: Callable[[], None], show: bool = True) -> int:
    """Do the work; returns the exit code: 0, or 2 for bad input, which is said in one line.

    Args:
        show: False if no picture is shown, for which no display is needed then.
    """
    if not show:
        os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        work()
    except (PylandscapeError, OSError) as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return 0


def picture_flags(description: str) -> argparse.ArgumentParser:
    """A parser that has what programs of pictures share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--surf_file", "-f", default="", help="the .h5 file of values")
    parser.add_argument("--show", action="store_true", help="show the pictures")
    return parser
