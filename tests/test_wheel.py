"""The built wheel runs where there is no compiler."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROBE = """
import shutil, torch
from pathlib import Path
import pylandscape as pl
assert not any(map(shutil.which, ("cc", "gcc", "g++", "c++", "clang", "cmake", "ninja", "nvcc")))
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
x, y = torch.randn(9, 3), torch.randint(0, 2, (9,))
land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
surface = pl.plane(land, *pl.random_directions(land, 2), x=(-1, 1, 3), y=(-1, 1, 5), progress=False)
assert surface.check().ok and surface.values.shape == (3, 5)
print(Path(pl.__file__).resolve())
"""


pytestmark = [pytest.mark.ci, pytest.mark.xdist_group("wheel")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that PYLANDSCAPE_WHEEL names, as .ci/run built it; or one that is built here."""
    if given := os.environ.get("PYLANDSCAPE_WHEEL"):
        return Path(given)
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("csrc", "pylandscape"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so"))
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "-w", str(out)]
    command += ["-C", "cmake.define.PYLANDSCAPE_CUDA=OFF"]
    env = {**os.environ, "CMAKE_ARGS": ""}
    built = subprocess.run(command, capture_output=True, text=True, env=env)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("pylandscape/_C.") for name in names)
    assert "pylandscape/py.typed" in names
    roots = {name.split("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"pylandscape"}


def test_the_wheel_runs_the_demo_on_a_path_without_compilers(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    own = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # torch and the other dependencies come from this environment, the package from the wheel.
    Path(own, "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    install = [python, "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*install, "-q", str(wheel)], check=True, env={**os.environ, "PYTHONPATH": ""})
    env = {"PATH": str(home / "bin"), "HOME": str(tmp_path)}
    run = subprocess.run(
        [python, "-c", PROBE], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert Path(run.stdout.strip()).is_relative_to(home)
    demo = [python, "-m", "pylandscape", "demo", "--points=5", "--steps=5", "--no-progress"]
    run = subprocess.run(demo, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "pylandscape-demo").is_dir()
