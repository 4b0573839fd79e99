"""The page of a study: what was done, what the paper found, what came out here, whether they agree.

A page is Markdown with pictures beside it, and the same facts in a JSON file, by which a finished
page is known and the index is made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidArgument
from ..files.atomic import write_bytes

PICTURES = "pictures"  # the folder of all pages' pictures
DPI = 110
LONG = 24  # letters of a label that a panel has room for
VERDICTS = {True: "yes", False: "**no**", None: "not decided"}


@dataclass(frozen=True)
class Claim:
    """One finding of the paper beside the same here.

    Attributes:
        paper: what it says;  here: what came out, with its uncertainty.
        agrees: computed from the study's own data; None where they do not decide.
    """

    paper: str
    here: str
    agrees: bool | None


@dataclass
class Page:
    """What a study writes down, in the order of reading."""

    name: str
    pictures_folder: Path
    done: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    def did(self, text: str) -> None:
        """A paragraph on what was done."""
        self.done.append(" ".join(text.split()))

    def claim(self, paper: str, here: str, agrees: Any) -> None:
        """A finding of the paper, what came out here, and whether they agree: True, False, or None
        where the data do not decide; computed, never written down beforehand."""
        if agrees is not None and not isinstance(agrees, bool | np.bool_):
            raise InvalidArgument(f"agrees: expected True, False or None, got {agrees!r}")
        verdict = None if agrees is None else bool(agrees)
        self.claims.append(Claim(_one_line(paper), _one_line(here), verdict))

    def why(self, text: str) -> None:
        """One reason why the numbers may differ from the paper's."""
        self.reasons.append(" ".join(text.split()))

    def picture(self, axes: Any, caption: str) -> None:
        """Save the figure of Axes (or of a list of them) as a PNG of the page, and close it."""
        from ..plots.surface import close, save

        one = np.ravel(np.asarray(axes, dtype=object))[0]
        for each in one.figure.axes:  # titles and legends that came after the panels' style
            words = each.get_legend().get_texts() if each.get_legend() else []
            for text, most in ((each.title, 8), *((word, 6.5) for word in words)):
                text.set_fontsize(min(text.get_fontsize(), most))
        _uncrowd(np.ravel(np.asarray(axes, dtype=object)))
        self.pictures_folder.mkdir(parents=True, exist_ok=True)
        file = f"{self.name}-{len(self.pictures) + 1}.png"
        save(one, self.pictures_folder / file, dpi=DPI)
        close(one)
        self.pictures.append(file)
        said = " ".join(caption.split())
        self.shown.append(f"![{said}]({PICTURES}/{file})\n\n*{said}*")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
        """A table; numbers are written with three digits."""
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
        self.shown.append("\n".join([*([f"{caption}\n"] if caption else []), *lines]))

    def text(self, markdown: str) -> None:
        """Markdown as it is, between the pictures."""
        self.shown.append(markdown.strip())

    @property
    def verdict(self) -> str:
        """All findings in one line."""
        return verdict_of([claim.agrees for claim in self.claims])

    def write(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """NAME.md and NAME.json; ``facts`` has "title", "source", "command" and "about" (lines)."""
        parts = [f"# {facts['title']}", "", facts["source"], "", f"**{self.verdict}.**", ""]
        parts += ["## What was done", "", *_spaced(self.done)]
        parts += ["## What the paper found, and what came out here", ""]
        parts += ["| the paper | here | agree? |", "|---|---|---|"]
        parts += [f"| {c.paper} | {c.here} | {VERDICTS[c.agrees]} |" for c in self.claims]
        parts += ["", "Uncertainties are 95 % intervals of the mean over what is named."]
        parts += ["", "## Pictures and tables", "", *_spaced(self.shown)]
        parts += ["## Why they may not agree", "", *(f"- {text}" for text in self.reasons), ""]
        parts += ["## How to repeat it", "", f"`{facts['command']}`", ""]
        parts += [f"- {line}" for line in facts["about"]]
        write_bytes(folder / f"{self.name}.md", ("\n".join(parts) + "\n").encode())
        kept = {**facts, "name": self.name, "verdict": self.verdict, "pictures": self.pictures,
                "claims": [asdict(claim) for claim in self.claims]}  # fmt: skip
        write_bytes(folder / f"{self.name}.json", (json.dumps(kept, indent=1) + "\n").encode())


def verdict_of(agrees: Sequence[bool | None]) -> str:
    """ "agrees", "agrees in part", "does not agree" or "not decided", with the counts."""
    counts = [sum(a is value for a in agrees) for value in (True, False, None)]
    yes, no, _ = counts
    total = len(agrees)
    if not total:
        return "Nothing was compared"
    words = "Agrees with the paper" if yes == total else "Not decided at this size"
    if no and not yes:
        words = "Does not agree with the paper"
    elif yes and yes < total:
        words = "Agrees with the paper in part"
    names = ("agree", "do not", "not decided")
    said = [f"{n} {name}" for n, name in zip(counts, names, strict=True) if n]
    return f"{words}: of {total} findings, {', '.join(said)}"


def kept(folder: Path, name: str) -> dict[str, Any] | None:
    """The facts of a page that is whole, with all of its pictures; None otherwise."""
    try:
        found = json.loads((folder / f"{name}.json").read_text())
        there = [folder / f"{name}.md", *(folder / PICTURES / p for p in found["pictures"])]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if all(path.is_file() for path in there) else None


def write_index(folder: Path, names: Sequence[str]) -> None:
    """README.md of a folder: its pages, by paper, with their verdicts."""
    pages = [found for name in names if (found := kept(folder, name)) is not None]
    lines = ["# Published studies, computed again", ""]
    lines += ["Every page says what was done, what the paper found, what came out and whether they "
              "agree. `pylandscape reproduce --list` names the studies.", ""]  # fmt: skip
    for paper in dict.fromkeys(page["paper"] for page in pages):
        lines += [f"## {paper}", "", "| study | figure | outcome | minutes |", "|---|---|---|---|"]
        for page in pages:
            if page["paper"] == paper:
                lines.append(
                    f"| [{page['title']}]({page['name']}.md) | {page['figure']} | "
                    f"{page['verdict']} | {page['seconds'] / 60:.1f} |"
                )
        lines.append("")
    write_bytes(folder / "README.md", "\n".join(lines).encode())


def panels(
    count: int, columns: int = 3, *, height: float = 2.0, projection: str | None = None
) -> Any:
    """(count,) Axes of one figure in the style of the package's pictures."""
    import matplotlib
    import matplotlib.pyplot as plt

    from ..plots.style import STYLE

    wide = min(count, columns)
    rows = -(-count // wide)
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, wide, squeeze=False, figsize=(min(2.4 * wide + 0.6, 7.2), height * rows),
            layout="constrained", subplot_kw={"projection": projection},
        )  # fmt: skip
        for one in axes.ravel():
            one.tick_params(labelsize=STYLE["xtick.labelsize"])
        for spare in axes.ravel()[count:]:
            figure.delaxes(spare)
    return axes.ravel()[:count]


def _uncrowd(axes: Any) -> None:
    """Of panels side by side: equal labels once in a row or column, long ones on two lines."""
    flat = [one for one in axes if one.name != "3d" and one.get_subplotspec() is not None]
    if len({one.get_subplotspec().colspan.start for one in flat}) < 2:
        return
    for of, along, kept in (("x", "colspan", -1), ("y", "rowspan", 0)):
        lines: dict[int, list[Any]] = {}
        for one in flat:
            place = getattr(one.get_subplotspec(), along).start
            lines.setdefault(place, []).append(getattr(one, f"{of}axis").label)
        for labels in lines.values():
            texts = {label.get_text() for label in labels}
            for label in labels:
                if len(texts) == 1 and label is not labels[kept]:
                    label.set_text("")
                elif len(label.get_text()) > LONG:
                    label.set_text(label.get_text().replace(" (", "\n("))


def _spaced(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield text
        yield ""


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{float(value):.3g}"
    return _one_line(str(value))


def _one_line(text: str) -> str:
    """For a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
