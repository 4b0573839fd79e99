"""The documentation: its example runs, its figures are short, its links lead somewhere."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

import pylandscape as pl

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in ("CONTRIBUTING.md", "README.md"))]
PAGES = [page for page in PAGES if page.parent.name != "reference"]  # written by docs/conf.py
SCRIPTS = sorted((DOCS / "examples").glob("plot_*.py"))


def test_your_model_in_five_minutes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "start.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "start.md", "exec"), names)
    assert {p.name for p in tmp_path.iterdir()} == {"surface.h5", "surface.png"}


def test_every_public_name_has_a_page_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    conf = runpy.run_path(str(DOCS / "conf.py"))
    assert {conf["area"](home) for home in pl._HOMES} == set(conf["AREAS"])


def test_there_are_ten_figures_of_papers() -> None:
    assert len(SCRIPTS) >= 10


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_figure_takes_at_most_twenty_lines(script: Path) -> None:
    tree = ast.parse(script.read_text())
    doc = ast.get_docstring(tree)
    assert doc is not None
    assert "===" in doc
    first = tree.body[1].lineno
    lines = [line for line in script.read_text().splitlines()[first - 1 :] if line.strip()]
    assert len(lines) <= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        written = target.startswith(("gallery/", "reference/"))  # when the documentation is built
        if not written and not target.startswith(("http", "/")):
            found = page.parent / target
            assert found.exists(), target
            if DOCS in page.parents and found.suffix == ".md":  # sphinx knows no page outside
                assert DOCS in found.resolve().parents, target
