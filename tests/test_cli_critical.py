"""The commands classify and reproduce, on a small network."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pylandscape.cli import app
from pylandscape.results.critical_points import CriticalPoints

MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))

def data():
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return x, (x.sum(1, keepdim=True) == 1).float()
"""
MODEL = ["--model", "mine:model", "--data", "mine:data", "--loss", "mse", "--no-progress"]


@pytest.fixture
def pylandscape(tmp_path: Path, monkeypatch, capsys):
    """Run a command in a folder with a model; its stdout, or stderr."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    sys.modules.pop("mine", None)

    def run(*arguments: str, code: int = 0) -> str:
        found = app.main(arguments)
        said = capsys.readouterr()
        assert found == code, said.err + said.out
        return said.out if code == 0 else said.err

    return run


def test_classify_walks_and_says_how_sure_it_is(pylandscape, tmp_path):
    said = pylandscape(
        "classify", *MODEL, "--walks", "4", "--steps", "10", "--rtol", "1e-6", "--out", "c.h5"
    )
    assert "walks      Walks(gradient, 4 walks of 10 points, n = 9" in said
    assert "CriticalPoints(40 points, n = 9, exact, rtol 1e-06" in said
    assert "tolerance        rtol" in said
    assert "relu has kinks" in said
    assert len(CriticalPoints.load(tmp_path / "c.h5")) == 40
    again = pylandscape(
        "classify", *MODEL, "--walks", "4", "--steps", "10", "--rtol", "1e-6", "--out", "c.h5"
    )
    assert "time       none" in again
    assert "CriticalPoints(40 points" in pylandscape("info", "c.h5")


def test_classify_takes_points_from_files(pylandscape):
    from pylandscape.clouds.walks import gradient_walk

    points = np.random.default_rng(0).normal(size=(5, 9))
    np.save("p.npy", points)
    said = pylandscape("classify", *MODEL, "--points", "p.npy", "--method", "lanczos")
    assert "CriticalPoints(5 points, n = 9, lanczos" in said
    said = pylandscape("classify", *MODEL, "--points", "p.npy", "--blocks", "--rtol", "0")
    assert "exact of parameter blocks" in said
    import torch
    from grid_support import classifier

    walks = gradient_walk(classifier(), 2, 3, progress=False)
    assert torch.is_tensor(torch.as_tensor(walks.flat()))
    walks.save("w.h5")
    assert "expected shape (P, 9), got (6, 51)" in pylandscape(
        "classify", *MODEL, "--points", "w.h5", code=2
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--points", "no.npy"], "no file"),
        (["--points", "mine.py"], "HDF5"),
        (["--points", "bad.npy"], "expected numbers"),
        (["--rtol", "2"], "rtol"),
        (["--walks", "0"], "walks"),
        (["--out", "no/where.h5"], "no such folder"),
    ],
)
def test_classify_names_bad_input(pylandscape, arguments, message):
    Path("bad.npy").write_text("these are no numbers")
    assert message in pylandscape("classify", *MODEL, *arguments, code=2)


def test_reproduce_writes_the_table_beside_the_published_one(pylandscape, tmp_path):
    options = ["reproduce", "table1", "--points", "40", "--datasets", "xor", "--no-progress"]
    said = pylandscape(*options, "--depths", "2,3", "--b", "1", "--b", "10", "--out", "t")
    assert said.count("| xor | 2 | with |") == 2
    assert "## b = 10" in said
    assert "published singular" in said
    assert sorted(p.suffix for p in (tmp_path / "t").glob("table1.*")) == [".csv", ".json", ".md"]
    assert "(was there)" in pylandscape(*options, "--depths", "2", "--out", "t")
    blocks = pylandscape(*options, "--depths", "2", "--out", "t", "--blocks")
    assert "(was there)" not in blocks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets", "mnist"], "datasets"),
        (["--depths", "two"], "--depths"),
        (["--b", "-1"], "b: expected"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_reproduce_names_bad_input(pylandscape, arguments, message):
    assert message in pylandscape("reproduce", "table1", *arguments, code=2)


def test_only_known_tables_are_reproduced(pylandscape, capsys):
    with pytest.raises(SystemExit):
        pylandscape("reproduce", "table9")
    assert "table1" in capsys.readouterr().err
