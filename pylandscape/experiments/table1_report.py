"""The report of `reproduce`: the table beside the published one, where they differ, and why."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..files.atomic import write_bytes
from ..results.critical_points import EPS
from ..results.curvature_classes import CLASSES
from .table1_cases import Row

CLOSE = 0.01  # of all points: a difference up to this counts as agreement
PLAUSIBLE = 1e-4  # a tolerance beyond this is no rounding
DECISIONS = (
    "The paper states neither loss, nor scaling, nor the walk's bounds, nor a tolerance. Here: "
    "mean squared error (with softmax cross-entropy every point of Iris would be singular), linear "
    "output, hidden layers as wide as the input, skips h <- h + relu(W h + c), standardised Iris "
    "and Diabetes, progressive gradient walks of 100 points with steps up to 0.2 b, unbounded; the "
    "full Hessian in float64."
)


def line(row: Row) -> str:
    """One row, as it is done."""
    case = row.case
    counts = ", ".join(f"{row.counts.get(name, 0):,} {name}" for name in CLASSES)
    return (
        f"{case.dataset:<9} {case.hidden} hidden, {'with' if case.residual else 'without':<7} "
        f"b = {case.b:g}: {counts} of {row.points:,} in {row.seconds:.1f} s"
    )


def markdown(rows: Sequence[Row]) -> str:
    """The whole report."""
    parts = ["# Table 1: curvature classes of sampled points", "", DECISIONS, ""]
    for b in dict.fromkeys(row.case.b for row in rows):
        chosen = [row for row in rows if row.case.b == b]
        parts += [f"## b = {b:g}", "", *_table(chosen), "", *_differences(chosen), ""]
    parts += ["## Why they can differ", "", *_reasons(rows)]
    return "\n".join(parts) + "\n"


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """All rows with what was asked; replaced atomically."""
    text = json.dumps({"table": "table1", "rows": [asdict(row) for row in rows]}, indent=1)
    write_bytes(path, f"{text}\n".encode())


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line a row: the case, the counts, the published counts."""
    table = io.StringIO(newline="")
    names = [f"{kind}{name}" for kind in ("", "published_") for name in CLASSES]
    writer = csv.writer(table)
    writer.writerow(
        ["dataset", "hidden", "residual", "b", "rtol", "blocks", "n", "points", *names,
         "standard_error",
         "matching_rtol", "seconds"]
    )  # fmt: skip
    for row in rows:
        case = row.case
        counts = [of.get(name, 0) for of in (row.counts, case.published) for name in CLASSES]
        writer.writerow(
            [case.dataset, case.hidden, case.residual, case.b, case.rtol, case.blocks, row.n,
             row.points, *counts, row.error, row.matching_rtol, round(row.seconds, 3)]
        )  # fmt: skip
    write_bytes(path, table.getvalue().encode())


def _table(rows: Sequence[Row]) -> list[str]:
    case = rows[0].case
    wider = [f"{rtol:.0e}" for rtol in (case.rtol / 10, case.rtol * 10)] if case.rtol else []
    head = ["dataset", "hidden", "residual", "n", "points", *CLASSES]
    head += ["published saddle", "published singular", "singular at n eps"]
    head += [f"at {text}" for text in wider] + ["seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        case, published = row.case, row.case.published
        at = list(row.at.values())
        levels = [at[0], *([at[1], at[-1]] if wider else [])]
        cells = [case.dataset, case.hidden, "with" if case.residual else "without", row.n]
        cells += [f"{row.points:,}", *(f"{row.counts.get(name, 0):,}" for name in CLASSES)]
        cells += [f"{published['saddle']:,}", f"{published['singular']:,}"]
        cells += [f"{each['singular']:,}" for each in levels] + [f"{row.seconds:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _differences(rows: Sequence[Row]) -> list[str]:
    """One sentence for each row that differs, and for the order of residual and plain."""
    found = [sentence for row in rows if (sentence := _difference(row))]
    agree = len(rows) - len(found)
    lines = [f"- {agree} of {len(rows)} rows agree within {100 * CLOSE:g} % of the points."]
    return lines + [f"- {sentence}" for sentence in found] + _orders(rows)


def _difference(row: Row) -> str | None:
    case = row.case
    name = f"{case.dataset} {case.hidden} {'with' if case.residual else 'without'}"
    other = [f"{row.counts.get(k, 0):,} {k}" for k in ("convex", "concave") if row.counts.get(k)]
    share, published = row.share(), row.published_share()
    if abs(share - published) <= CLOSE and not other:
        return None
    scatter = "" if row.error is None else f" +- {100 * row.error:.2g}"
    text = f"{name}: {100 * share:.4g}{scatter} % singular, published {_percent(published)}"
    if other:
        text += f"; {' and '.join(other)} points where the paper has none"
    if row.matching_rtol is None:
        text += "; no point has a class"
    elif row.matching_rtol > PLAUSIBLE:
        text += f"; rtol would have to be {row.matching_rtol:.1g}, which is no rounding"
    elif row.matching_rtol < row.n * EPS:
        text += "; no tolerance above rounding (n eps) gives so few"
    else:
        text += f"; with rtol = {row.matching_rtol:.1g} it would be the same"
    return text + "."


def _orders(rows: Sequence[Row]) -> list[str]:
    lines = []
    pairs: dict[tuple[str, int], dict[bool, Row]] = {}
    for row in rows:
        pairs.setdefault((row.case.dataset, row.case.hidden), {})[row.case.residual] = row
    for (name, hidden), pair in pairs.items():
        if len(pair) < 2:
            continue
        printed = pair[True].published_share() - pair[False].published_share()
        ours = pair[True].share() - pair[False].share()
        if printed * ours < 0.0:
            lines.append(
                f"- {name} {hidden}: residual networks have fewer singular points here "
                f"({_percent(pair[True].share())} with, {_percent(pair[False].share())} without); "
                "in the paper they have more. Skips carry signal past dead units; its rows may be "
                "swapped."
            )
    return lines


def _reasons(rows: Sequence[Row]) -> list[str]:
    kinks = [row.kink_share for row in rows if row.kink_share is not None]
    lines = [
        "- Tolerance: no count of singular points means anything without one. The columns show "
        "how far it matters here; n eps is what float64 can resolve.",
        "- Bounds: with a larger b units die more often, and more points are singular.",
        "- Blocks: code published for such tables tests the float32 Hessian block of each "
        "parameter tensor for exact zeros; that gives convex points, of which the paper has none. "
        "`--blocks` counts that way.",
        "- Walks are random, and the points of a walk resemble each other: the standard errors "
        "above are over walks.",
    ]
    if kinks:
        lines.append(
            f"- Kinks: up to {_percent(max(kinks))} of the samples are within 1e-3 of one, where "
            "the Hessian is the one almost everywhere."
        )
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
