"""Packages as they were installed: known by the checksums of their files, not looked into.

A package that pip installed lists its files with checksums (RECORD, PEP 376). The list stands for
its code, so that a model of a large library is named in milliseconds. Packages in development,
installed in place or without a list, are looked into like any other code.
"""

from __future__ import annotations

import csv
import os
import sys
from importlib import metadata
from pathlib import Path

from ..arrays import text_digest

_found: dict[str, tuple[str, Path, dict[str, int]] | None] = {}  # by the name that is imported
_same: dict[str, bool] = {}  # whether a module's file has the size that it was installed with


def installed(module: str) -> str | None:
    """The digest of the installed package that a module is of; None where it is not installed, or
    the module's file was edited since."""
    top = module.partition(".")[0]
    if top not in _found:
        if top not in sys.modules:
            return None
        _found[top] = _package(top)
    package = _found[top]
    if package is None:
        return None
    if module not in _same:
        _same[module] = _is_unchanged(module, package)
    return package[0] if _same[module] else None


def _package(top: str) -> tuple[str, Path, dict[str, int]] | None:
    file = getattr(sys.modules[top], "__file__", None)
    if file is None:
        return None
    for root in Path(file).parents[:2]:
        for name in (top, *_owners(root, top)):
            try:
                package = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue
            rows = _rows(package)
            if Path(str(package.locate_file(""))).resolve() == root.resolve() and rows.get(
                os.path.relpath(file, root)
            ):
                own = {k: v for k, v in rows.items() if k.partition(os.sep)[0].split(".")[0] == top}
                sums = "\n".join(
                    f"{path} {checksum}" for path, (checksum, _) in sorted(own.items())
                )
                sizes = {path: size for path, (_, size) in own.items()}
                return text_digest(sums), root, sizes
    return None


def _owners(root: Path, top: str) -> list[str]:
    """Distributions of another name that have this package: scikit-learn has sklearn."""
    found = []
    for record in root.glob("*.dist-info/top_level.txt"):
        if top in record.read_text().split():
            found.append(record.parent.name.partition("-")[0])
    return found


def _rows(package: metadata.Distribution) -> dict[str, tuple[str, int]]:
    """{path: (checksum, bytes)} of the files that have both."""
    text = package.read_text("RECORD") or ""
    return {
        os.path.normpath(row[0]): (row[1], int(row[2]))
        for row in csv.reader(text.splitlines())
        if len(row) == 3 and row[1] and row[2].isdigit()
    }


def _is_unchanged(module: str, package: tuple[str, Path, dict[str, int]]) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:  # of a class that says it is from elsewhere
        return module in sys.modules
    _, root, sizes = package
    try:
        return sizes.get(os.path.relpath(file, root)) == os.stat(file).st_size
    except OSError:
        return False
