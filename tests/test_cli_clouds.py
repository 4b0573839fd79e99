"""The command cloud: what it prints, writes, draws and refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pylandscape.cli import app
from pylandscape.results.loading import load

MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))

def data():
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return corners, torch.tensor([[0.0], [1.0], [1.0], [0.0]])
"""
MODEL = [
    "cloud", "--model", "corners:model", "--data", "corners:data", "--loss", "mse",
    "--walks", "4", "--steps", "9", "--no-progress",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corners.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "corners", raising=False)


def run(*words: str) -> int:
    return app.main([*words])


def test_a_cloud_is_computed_printed_kept_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*MODEL, "--out", "c.h5", "--plot", "c.png", "--box", "0:0.3,0:0.5") == 0
    said = capsys.readouterr().out
    assert "walks      Walks(gradient, 4 walks of 9 points, n = 9" in said
    assert "n_stag" in said
    assert "result     Cloud(36 dots, n = 9" in said
    assert "ruggedness     median" in said
    assert Path("c.png").stat().st_size > 5000
    cloud = load("c.h5")
    np.testing.assert_array_equal(cloud.losses, load("c-walks.h5").losses.ravel())
    assert run(*MODEL, "--out", "c.h5") == 0
    np.testing.assert_array_equal(load("c.h5").ruggedness, cloud.ruggedness)
    assert run("info", "c.h5", "c-walks.h5") == 0


def test_a_range_may_start_below_zero_without_an_equals_sign() -> None:
    words = [*MODEL, "--xlim", "-1:3", "--ylim=-2:1", "--box", "-0.1:0.3,0:0.5", "--plot", "c.png"]
    options = app.parser().parse_args(app.joined(words))
    assert (options.xlim, options.ylim, options.box) == ("-1:3", "-2:1", ["-0.1:0.3,0:0.5"])
    assert run(*words) == 0


def test_clouds_are_drawn_side_by_side() -> None:
    assert run(*MODEL, "--height", "ruggedness", "--out", "a.h5") == 0
    assert run(*MODEL, "--height", "ruggedness", "--out", "b.h5", "--walk", "random") == 0
    assert run("cloud", "a.h5", "b.h5", "--plot", "two.png", "--log", "z") == 0
    assert Path("two.png").stat().st_size > 5000


def test_the_options_reach_the_walks() -> None:
    words = ["--walk", "progressive", "--bound", "2", "--fraction", "0.2", "--seed", "3"]
    assert run(*MODEL, *words, "--color", "step", "--out", "c.h5") == 0
    walks = load("c-walks.h5")
    assert walks.kind == "progressive random"
    request = walks.info["request"]
    assert (request["bound"], request["fraction"], request["seed"]) == (2.0, 0.2, 3)
    assert request["bounded"]
    assert load("c.h5").kinds is None
    assert run(*MODEL, "--tie", "stay", "--bounded", "--color", "step", "--out", "d.h5") == 0
    assert load("d-walks.h5").info["request"]["tie"] == "stay"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cloud"], "expected --model and --data, or saved clouds"),
        (MODEL, "expected --out FILE.h5 or --plot FILE.png"),
        ([*MODEL, "--plot", "c.png", "--box", "1:0,0:1"], "--box: expected min:max"),
        ([*MODEL, "--plot", "c.png", "--log", "z"], "log: expected some of the letters xy"),
        (["cloud", "none.h5"], "expected --plot"),
        (["cloud", "none.h5", "--plot", "c.png"], "does not exist"),
    ],
)
def test_bad_usage_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_files_of_another_kind_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*MODEL, "--color", "step", "--out", "c.h5") == 0
    assert run("cloud", "c-walks.h5", "--plot", "c.png") == 2
    assert "FILE: expected clouds, got a Walks" in capsys.readouterr().err
    assert run("plot", "c.h5", "c.h5", "--out", "c.png") == 2
    assert "draws clouds together" in capsys.readouterr().err
    assert run("plot", "c.h5", "--out", "c.png") == 0
    assert run(*MODEL, "--color", "step", "--out", "c-walks.h5") == 2
    assert "--out: expected no file or a cloud, got a Walks" in capsys.readouterr().err
