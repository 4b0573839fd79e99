"""Curvature classes of the points of gradient walks over ReLU networks, plain and residual."""

from __future__ import annotations

from ..lab import BUMPINESS, Lab, Study
from ..table1 import table1
from ..table1_report import DECISIONS, markdown


def run(lab: Lab) -> None:
    rows = table1(
        lab.folder, points=lab.size(toy=20, small=600, paper=None), seed=lab.seed,
        datasets=lab.size(toy=("xor",), small=("xor", "iris", "diabetes"), paper=("xor", "iris",
        "diabetes")), progress=lab.progress, say=lambda line: None,
    )  # fmt: skip
    page = lab.page
    page.did(
        f"{len(rows)} networks; {rows[0].points:,} to {rows[-1].points:,} points each. {DECISIONS}"
    )
    other = sum(row.counts.get(kind, 0) for row in rows for kind in ("convex", "concave"))
    page.claim("no convex and no concave point", f"{other:,} of them", other == 0)

    shallow = [row for row in rows if row.case.hidden == 2]
    for row in shallow:
        half = 2 * (row.error or float("inf"))
        share, printed = row.share(), row.published_share()
        kind = "residual" if row.case.residual else "plain"
        page.claim(
            f"{row.case.dataset}, 2 hidden layers, {kind}: {100 * printed:.4g} % singular",
            f"{100 * share:.3g} +- {100 * half:.2g} %", abs(share - printed) <= max(half, 0.01),
        )  # fmt: skip
    deep = [row for row in rows if row.case.hidden > 2]
    least = min(row.share() for row in deep)
    page.claim(
        "3 and 4 hidden layers: every point is singular",
        f"between {100 * least:.3g} and {100 * max(r.share() for r in deep):.3g} %",
        least >= 0.99,
    )
    page.text(markdown(rows).partition("## b")[2].partition("\n")[2].partition("## Why")[0])
    page.why(
        "The paper does not say which tolerance makes an eigenvalue zero, where walks begin, and "
        "which loss: the shares move with all three (tables above)."
    )
    page.why("Where the counts of residual and plain networks are the other way round than here, "
             "the rows of the paper's table may be swapped.")  # fmt: skip


STUDY = Study(
    title="Curvature classes of sampled points", paper=BUMPINESS, figure="table 1", minutes=0.5,
    run=run, data="none",
)  # fmt: skip
