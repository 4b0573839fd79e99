"""A file of several runs from every side: all of them, one of them, and no dead end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grid_support import classifier

import pylandscape as pl
from pylandscape.cli import app


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "runs.h5"
    land = classifier()
    made = pl.train(land, 3, pl.SGD(lr=0.1), steps=4, record=2, path=path, progress=False)
    return path, made, land


def test_load_gives_all_runs_or_the_one_that_is_asked_for(runs):
    path, made, _ = runs
    found = pl.load(path)
    assert isinstance(found, pl.Runs)
    assert len(found) == 3
    for p in (0, 2, -1):
        for one in (pl.load(path, run=p), pl.trajectory(path, run=p)):
            assert isinstance(one, pl.Trajectory)
            assert torch.equal(one.vector(-1), made[p].vector(-1))
            np.testing.assert_array_equal(one.steps, made.steps)


def test_a_run_that_is_not_named_or_not_there_is_refused_with_the_argument(runs, tmp_path):
    path, made, _ = runs
    with pytest.raises(pl.InvalidArgument, match=r"run: expected 0 to 2, got none: .* holds 3"):
        pl.trajectory(path)
    for wrong in (3, -4, True, "0"):
        with pytest.raises(pl.InvalidArgument, match=r"run: expected 0 to 2, a run of"):
            pl.trajectory(path, run=wrong)
    made[1].save(tmp_path / "one.h5")
    assert torch.equal(pl.load(tmp_path / "one.h5").vector(0), made[1].vector(0))
    assert torch.equal(pl.load(tmp_path / "one.h5", run=0).vector(0), made[1].vector(0))
    pl.Curve([0.0, 1.0], [1.0, 2.0]).save(tmp_path / "c.h5")
    with pytest.raises(pl.InvalidArgument, match="run: expected with a file of recorded runs"):
        pl.load(tmp_path / "c.h5", run=0)
    with pytest.raises(pl.InvalidArgument, match="run: expected with a recording"):
        pl.trajectory([made[0][0], made[0][1]], run=0)
    with pytest.raises(FileNotFoundError):
        pl.load(tmp_path / "none.h5")


def test_the_command_line_takes_a_run_and_says_which_there_are(runs, capsys, tmp_path):
    path, made, _ = runs
    assert app.main(["trajectory", str(path)]) == 2
    assert "--run: expected 0 to 2, got none" in capsys.readouterr().err
    assert app.main(["trajectory", str(path), "--run", "1", "--out", str(tmp_path / "t.h5")]) == 0
    assert torch.equal(pl.load(tmp_path / "t.h5").vector(-1), made[1].vector(-1))
    picture = tmp_path / "p.png"
    assert app.main(["plot", str(path), str(tmp_path / "t.h5"), "--out", str(picture)]) == 0
    assert picture.stat().st_size > 2000


def test_the_command_line_scales_all_runs_of_a_recording(runs, capsys, tmp_path):
    path, made, _ = runs
    picture = tmp_path / "mds.png"
    assert app.main(["trajectory", str(path), "--mds", "--plot", str(picture)]) == 0
    count = len(made) * len(made.steps)
    assert f"Embedding({count} models by angular distance" in capsys.readouterr().out
    assert picture.stat().st_size > 2000
    assert app.main(["trajectory", str(path), "--mds", "--pca"]) == 2
