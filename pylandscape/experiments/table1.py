"""`pylandscape reproduce table1`: curvature classes of points on walks over ReLU networks.

The table is Table 1 of "Visual Analysis of the Bumpiness and Ruggedness of Residual Neural Network
Landscapes" (anonymous, appendix): how many of 10,000 (XOR, Diabetes) or 30,000 (Iris) sampled
points are convex, concave, saddles and singular, for 2, 3 and 4 hidden layers, with and without
skip connections. What the paper leaves open is decided here and said in the report.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..clouds.walks import gradient_walk
from ..critical.classification import classify
from ..errors import InvalidArgument
from ..files.atomic import write_bytes
from ..results.critical_points import EPS, CriticalPoints
from ..theta.identity import own_version
from . import table1_report as report
from .table1_cases import DATASETS, DEPTHS, FRACTION, RTOL, Case, Row, cases, landscape


def table1(
    out: str | os.PathLike[str] = "pylandscape-table1",
    *,
    bounds: Sequence[float] = (1.0,),
    points: int | None = None,
    datasets: Sequence[str] = DATASETS,
    depths: Sequence[int] = DEPTHS,
    rtol: float = RTOL,
    blocks: bool = False,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Compute the table, row by row, beside the published counts.

    Args:
        out: folder: table1.json, .csv and .md, and for each row an HDF5 file of its
            classification. What is there of the same request is not computed again; a row that was
            stopped goes on where it was.
        bounds: b of the walks' starts; the paper does not say. Methods: 1, and 10.
        points: of each row, fewer than published, for a quick look.
        datasets, depths: rows.
        rtol: |lambda| <= rtol max |lambda| is a zero.
        blocks: classify the diagonal blocks of parameter tensors; rtol is 0 then.
        seed: of the walks.
        progress: show bars on stderr.
        say: called with each line of the report.

    Raises:
        InvalidArgument: names the argument.
    """
    _check(bounds, points, datasets, depths)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InvalidArgument(f"out: expected a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    kept = _kept(folder / "table1.json")
    rows: list[Row] = []
    options = {"rtol": 0.0 if blocks else rtol, "blocks": blocks, "seed": seed}
    for case in cases(bounds, points, datasets, depths, **options):
        row = kept.get(case)
        there = row is not None
        if row is None:
            row = _row(case, folder / f"{case.name}.h5", progress)
        rows.append(row)
        say(report.line(row) + (" (was there)" if there else ""))
        others = [each for each in kept.values() if each.case not in {r.case for r in rows}]
        report.write_json(folder / "table1.json", rows + others)
    report.write_csv(folder / "table1.csv", rows)
    write_bytes(folder / "table1.md", report.markdown(rows).encode())
    say("\n" + report.markdown(rows))
    for suffix in ("json", "csv", "md"):
        say(f"written    {folder / f'table1.{suffix}'}")
    return rows


def _row(case: Case, path: Path, progress: bool) -> Row:
    started = time.perf_counter()
    land = landscape(case)
    walks = gradient_walk(
        land, case.walks, case.steps, case.b, FRACTION, seed=case.seed, progress=progress
    )
    found = classify(
        land, walks.flat(), rtol=case.rtol, blocks=case.blocks, keep=False, path=path,
        progress=progress,
    )  # fmt: skip
    rtols = (land.n_params * EPS, case.rtol / 10.0, case.rtol, case.rtol * 10.0)
    kinks = found.info.get("kinks") or {}
    return Row(
        case, land.n_params, found.counts(), {f"{r:.3g}": found.counts(r) for r in rtols},
        _matching_rtol(case, found), _error(case, found), kinks.get("share"),
        time.perf_counter() - started, land.describe()["versions"],
    )  # fmt: skip


def _matching_rtol(case: Case, found: CriticalPoints) -> float | None:
    """The smallest rtol at which the share of singular points is at least the published one."""
    ratios = np.sort(found.flip_points[~np.isnan(found.flip_points)])
    share = case.published["singular"] / sum(case.published.values())
    return float(ratios[max(0, round(share * len(ratios)) - 1)]) if len(ratios) else None


def _error(case: Case, found: CriticalPoints) -> float | None:
    """The standard error of the singular share, from how the walks differ."""
    if case.walks < 2:
        return None
    shares = (found.kinds == "singular").reshape(case.walks, case.steps).mean(axis=1)
    return float(shares.std(ddof=1) / np.sqrt(case.walks))


def _kept(path: Path) -> dict[Case, Row]:
    """Rows of an earlier run by the same versions; none from a file that cannot be read."""
    versions = {"pylandscape": own_version(), "torch": torch.__version__}
    try:
        rows = json.loads(path.read_text())["rows"]
        found = [Row(**{**row, "case": Case(**row["case"])}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {row.case: row for row in found if row.versions == versions}


def _check(
    bounds: Sequence[float], points: int | None, datasets: Sequence[str], depths: Sequence[int]
) -> None:
    if not len(bounds) or not all(0.0 < b < float("inf") for b in bounds):
        raise InvalidArgument(f"b: expected positive numbers, got {list(bounds)}")
    if points is not None and points < 1:
        raise InvalidArgument(f"points: expected at least 1, got {points}")
    if not datasets or not set(datasets) <= set(DATASETS):
        raise InvalidArgument(f"datasets: expected {', '.join(DATASETS)}, got {list(datasets)}")
    if not depths or not set(depths) <= set(DEPTHS):
        raise InvalidArgument(f"depths: expected some of 2, 3, 4, got {list(depths)}")
