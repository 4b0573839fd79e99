"""`report`: results as one HTML file.

The way goes on in sections.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import InvalidArgument
from ..files.atomic import write_bytes
from ..files.store import content_of
from ..plots.side_by_side import unlike
from ..results.base import Tabular
from ..results.loading import load
from .page import page_of
from .sections import is_path, section_of

SUFFIXES = (".html", ".htm")
STATIC = (
    'The pictures are static: plotly is not installed (pip install "pylandscape[report]" has it).'
)


def report(
    results: Any,
    path: str | os.PathLike[str] = "report.html",
    *,
    labels: Sequence[str] | None = None,
    title: str = "Loss landscape",
    interactive: bool = True,
) -> Path:
    """Write results, their checks and their provenance as one HTML file that needs no network.

    Surfaces are shown as contours and in 3-D to be turned, with the trajectories that are given
    beside them as paths; curves, spectra with their eigenvalues, clouds, tracks and paths with
    their values under the pointer; every other result as its picture or table. With plotly
    (``pip install "pylandscape[report]"``) its script is in the file, once. Each picture has a
    static one behind it, for print and for browsers without scripts or WebGL.

    Args:
        results: one, several, or {label: result}; files of results count as results.
        path: of the page, .html.
        labels: one text per result; default what it is.
        title: of the page.
        interactive: False leaves plotly out: a small file with static pictures.

    Returns:
        The path.

    Results of different parameters, losses, data or batch norm modes are said at the top.

    Raises:
        InvalidArgument: nothing to report on, something that is no result, another suffix, a
            folder that is not there.
        OSError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise InvalidArgument(f"path: expected a name ending in .html, got {target.name!r}")
    if not target.absolute().parent.is_dir():
        raise InvalidArgument(f"path: expected an existing folder, got {target.parent}")
    found, names = _given(results, labels)
    script = _plotly() if interactive else None
    notes = [STATIC] if interactive and script is None else []
    differing = unlike(found)
    if differing:
        notes.insert(0, f"These results are not of the same {', '.join(differing)}.")
    paths = [r for r in found if is_path(r)]
    sections = [
        section_of(r, name, paths, k, script is not None)
        for k, (r, name) in enumerate(zip(found, names, strict=True))
    ]
    page = page_of(title, sections, notes, script, f"pylandscape {__version__}")
    write_bytes(target, page.encode())
    return target


def _given(results: Any, labels: Sequence[str] | None) -> tuple[list[Any], list[str]]:
    """Results, and the label of each ("" for none)."""
    if isinstance(results, Mapping):
        labels = [str(k) for k in results] if labels is None else labels
        results = list(results.values())
    single = isinstance(results, str | os.PathLike) or _is_result(results)
    try:
        several = [results] if single else list(results)
    except TypeError:
        several = [results]
    if not several:
        raise InvalidArgument("results: expected at least one to report on, got none")
    if labels is not None and len(labels) != len(several):
        raise InvalidArgument(f"labels: expected {len(several)}, got {len(labels)}")
    found, names = [], []
    for k, each in enumerate(several):
        is_file = isinstance(each, str | os.PathLike)
        result = _read(each) if is_file else each
        if not _is_result(result):
            raise InvalidArgument(
                f"results[{k}]: expected a result or the file of one, got {type(each).__name__}"
            )
        found.append(result)
        names.append(labels[k] if labels is not None else Path(each).name if is_file else "")
    return found, names


def _is_result(given: Any) -> bool:
    return isinstance(given, Tabular) or is_path(given)


def _read(path: Any) -> Any:
    if content_of(path) == "trajectory":
        from ..trajectories.several import recorded

        return recorded(path)
    return load(path)


def _plotly() -> str | None:
    """The script of plotly, or None where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    return str(get_plotlyjs())
