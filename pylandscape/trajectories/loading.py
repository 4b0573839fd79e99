"""`pylandscape.load`: whatever a file holds, a result or recorded runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from ..files.store import content_of
from ..results import loading
from . import log

if TYPE_CHECKING:
    from ..results.loading import Result
    from .base import Trajectory
    from .several import Runs


def load(
    path: str | os.PathLike[str],
    dir_file: str | os.PathLike[str] | None = None,
    *,
    run: int | None = None,
) -> Result | Trajectory | Runs:
    """Read a file: a result, bit for bit, recorded runs, or a surface of Li et al.'s
    loss-landscape.

    Of a recording of `train` it is the `Runs` where there are several, of others the `Trajectory`;
    their numbers stay in the file (they are mapped).

    Of a loss-landscape file, values that were never computed (-1) come back as NaN and are counted
    in `info["unfilled"]`, accuracies become fractions, and `info["dir_file"]` is the direction
    file's name. It is opened, for the directions' lengths and their cosine, only if it is given
    here or lies in the same folder.

    Args:
        path: HDF5 file; of a recording that is not finished also its log.
        dir_file: direction file of a loss-landscape surface.
        run: of a recording of several runs, the `Trajectory` of this one, counted from 0.

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: truncated, damaged, no surface, or links that lead out of the file.
        InvalidArgument: ``run`` for a file without runs, or of a run that is not there.
    """
    if _is_recording(path):
        from .reading import trajectory
        from .several import recorded

        if dir_file is not None:
            raise InvalidArgument(f"dir_file: expected none for recorded runs, got {dir_file!r}")
        found: Any = recorded(path) if run is None else trajectory(path, run=run)
        return found
    if run is not None:
        raise InvalidArgument(f"run: expected with a file of recorded runs, got {os.fspath(path)}")
    return loading.load(path, dir_file)


def _is_recording(path: str | os.PathLike[str]) -> bool:
    if not isinstance(path, str | os.PathLike):
        return False  # which the reader of results says
    name = os.fspath(path)
    if content_of(path) == "trajectory" or os.path.isfile(f"{name}{log.SUFFIX}"):
        return True
    if not os.path.isfile(name):
        return False
    return log.is_log(name)
