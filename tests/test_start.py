"""What a start costs: torch and the other large packages are imported when they are needed."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import pylandscape as pl

PROBE = """
import contextlib, io, json, sys
from pylandscape.cli import app
answers = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = app.main(words)
        except SystemExit as end:
            code = end.code
    heavy = [name for name in ("torch", "scipy", "matplotlib") if name in sys.modules]
    answers.append([code, out.getvalue(), err.getvalue(), heavy])
print(json.dumps(answers))
"""


def python(*arguments: str, cwd: Path | None = None) -> str:
    """What a fresh Python prints; away from the checkout's folder."""
    done = subprocess.run(
        [sys.executable, "-c", *arguments],
        cwd=cwd or tempfile.gettempdir(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def command_lines(*lines: list[str], cwd: Path | None = None) -> list[tuple[int, str, str, list]]:
    """Of each: its exit code, what it says on both streams, and the large packages imported since
    the start."""
    return [tuple(answer) for answer in json.loads(python(PROBE, json.dumps(lines), cwd=cwd))]


def test_help_and_version_import_nothing_large():
    for code, said, _, heavy in command_lines(["--help"], ["plane", "--help"], ["--version"]):
        assert (code, heavy) == (0, [])
        assert "pylandscape" in said
    assert said.startswith(f"pylandscape {pl.__version__}, torch {torch.__version__}, Python 3.")


def test_wrong_words_are_refused_before_anything_large_is_imported():
    cases = [
        (["plain"], "usage: pylandscape [-h]", "invalid choice: 'plain'"),
        (["plot", "a.h5", "--out", "a.png", "--clour", "red"], "usage: pylandscape plot", "clour"),
        (["info", "--nothing"], "usage: pylandscape info", "unrecognized arguments: --nothing"),
        (["line", "--model", "m:f", "--data", "m:d", "--x=1:2"], "", "--x: expected min:max:n"),
    ]
    answers = command_lines(*(words for words, _, _ in cases))
    for (_, usage, complaint), (code, _, said, heavy) in zip(cases, answers, strict=True):
        assert (code, heavy) == (2, [])
        assert usage in said
        assert complaint in said


def some_pairs() -> pl.EigenPairs:
    vectors = torch.eye(3, dtype=torch.float64)[:2]
    return pl.EigenPairs(np.array([2.0, 1.0]), vectors, np.zeros(2), np.ones(2, bool))


def test_files_are_described_and_drawn_without_torch(tmp_path):
    axis = np.linspace(-1.0, 1.0, 5)
    results = {
        "surface": pl.Surface(axis, axis, axis[:, None] ** 2 + axis[None] ** 2),
        "curve": pl.Curve(axis, axis**2),
        "pairs": some_pairs(),
        "spectrum": pl.spectrum(np.diag([3.0, 2.0, 1.0]), probes=2, steps=3, vectors=2, seed=0),
    }
    for name, result in results.items():
        result.save(tmp_path / f"{name}.h5")
    lines = [["info", f"{name}.h5"] for name in results]
    lines += [["plot", f"{name}.h5", "--out", f"{name}.png"] for name in results]
    for line, (code, said, wrong, heavy) in zip(
        lines, command_lines(*lines, cwd=tmp_path), strict=True
    ):
        assert code == 0, wrong
        assert line[1 if line[0] == "info" else -1] in said
        assert "torch" not in heavy
    assert all((tmp_path / f"{name}.png").stat().st_size > 2000 for name in results)


def test_vectors_of_a_file_are_tensors_when_they_are_asked_for(tmp_path):
    found = some_pairs()
    found.save(tmp_path / "r.h5")
    read = pl.load(tmp_path / "r.h5")
    assert read.n == 3
    assert torch.equal(read.vectors, found.vectors)
    assert not hasattr(read, "vector")
    read.save(tmp_path / "again.h5")
    assert torch.equal(pl.load(tmp_path / "again.h5").vectors, found.vectors)


def test_importing_the_package_imports_nothing_large_and_a_landscape_no_scipy():
    probe = (
        "import sys, pylandscape as pl\n"
        "print(*{'torch', 'scipy', 'matplotlib'} & set(sys.modules), 'then')\n"
        "import torch; before = set(sys.modules)\n"
        "pl.Landscape, pl.plane, pl.spectrum, pl.eigenpairs, pl.classify\n"
        "print(*{'scipy', 'matplotlib'} & (set(sys.modules) - before))\n"
        "print(pl.plotting.plot.__name__, pl.interop.as_scipy.__name__)"
    )
    assert python(probe).split() == ["then", "plot", "as_scipy"]


def test_no_public_name_is_a_module_too():
    """Importing a module writes its name into the package, over a function of the same name."""
    assert [name for name in pl.__all__ if find_spec(f"pylandscape.{name}")] == []


def test_type_checkers_read_the_names_that_run():
    tree = ast.parse(Path(pl.__file__).read_text())
    written = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
    }
    assert written == {"__version__": "_version", **pl._HOME_OF}
    assert set(pl.__all__) <= set(dir(pl))


def test_every_public_name_is_there_and_a_wrong_one_is_not():
    for name in pl.__all__:
        assert not isinstance(getattr(pl, name), ModuleType), name
    with pytest.raises(AttributeError, match="no attribute 'plain'"):
        pl.plain  # noqa: B018


def test_a_star_import_brings_the_public_names():
    space: dict = {}
    exec("from pylandscape import *", space)
    assert set(pl.__all__) <= set(space)
    assert space["plane"] is pl.plane


def test_python_m_pytest_tests_the_installed_package_where_the_checkout_has_no_core(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "pylandscape").mkdir()
    (tmp_path / "pylandscape" / "__init__.py").write_text("raise ImportError('no core')")
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path / "tests")
    (tmp_path / "tests" / "test_it.py").write_text(
        "import subprocess, sys\n"
        "def test_it():\n"
        "    import pylandscape\n"
        "    child = [sys.executable, '-c', 'import pylandscape; print(pylandscape.__file__)']\n"
        "    found = subprocess.run(child, capture_output=True, text=True).stdout.strip()\n"
        f"    assert found == pylandscape.__file__ == {pl.__file__!r}\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(Path(pl.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
