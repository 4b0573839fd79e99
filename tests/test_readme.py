"""What the README tells a newcomer to type is what CI runs; its example works."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_ci_runs_the_two_commands_as_written() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    commands = [line for block in _blocks("bash")[:2] for line in block.strip().splitlines()]
    assert len(commands) == 2
    assert "README" in ci
    for command in commands:
        assert command in ci, command


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    example = _blocks("python")[0]
    assert len(example.strip().splitlines()) <= 20
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "surface.h5").exists()
    assert (tmp_path / "surface.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore:the path shrinks")
def test_the_example_of_trajectories_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "trajectories.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (example,) = [block for block in blocks if "pl.Recorder" in block]
    exec(compile(example, "trajectories.md", "exec"), {})
    assert {p.name for p in tmp_path.iterdir()} == {"run.h5", "path.png", "path.gif"}
    assert (tmp_path / "path.png").stat().st_size > 10_000


def test_pictures_and_files_that_it_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
