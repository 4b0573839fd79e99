"""The command line, end to end on a user's own module in the current directory."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import pylandscape as pl
from pylandscape.cli import app
from pylandscape.cli.inputs import parse_axis, parse_names
from pylandscape.errors import InvalidArgument
from pylandscape.experiments import theorems
from pylandscape.results.loading import load
from pylandscape.theta.checkpoints import read_state

MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

def data():
    g = torch.Generator().manual_seed(1)
    return torch.randn(40, 4, generator=g), torch.randint(0, 3, (40,), generator=g)

def broken():
    raise RuntimeError("the data is on another disk")

def not_a_model():
    return 3

def norm(model, batch):
    return sum((p ** 2).sum() for p in model.parameters()) + 0 * model(batch[0]).sum()

def entropy(outputs, target):
    p = outputs.softmax(1)
    return float(-(p * p.log()).sum(1).mean())

def stuck(model, batch):  # at its 30th call, the first time
    import pathlib, time
    with open("calls", "a") as calls:  # a variable would be the same again at every call
        calls.write(".")
    begun = pathlib.Path("begun")
    if pathlib.Path("calls").stat().st_size == 30 and not begun.exists():
        begun.touch()
        time.sleep(600)
    return model(batch[0]).square().mean()
"""
MODEL = ["--model", "mine:model", "--data", "mine:data", "--no-progress"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    namespace: dict = {}
    exec(MODULE, namespace)
    model = namespace["model"]()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3
    wrapped = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "b.pt")
    torch.save({"model": {k: 2 * v for k, v in model.state_dict().items()}}, tmp_path / "c.pt")
    torch.save(model, tmp_path / "pickled.pt")
    return tmp_path


def environ() -> dict[str, str]:
    """For a process in another folder: this pylandscape importable, one thread."""
    package = str(Path(app.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def run(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess:
    environment = environ()
    done = subprocess.run(
        [sys.executable, "-m", "pylandscape", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr + done.stdout
    return done


def in_process(folder: Path, monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """The same without a new process, for the many small cases."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    sys.modules.pop("mine", None)
    code = app.main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_plane_writes_a_file_and_a_picture_and_says_what_ran(folder):
    done = run(
        folder, "plane", *MODEL, "--checkpoint", "a.pt", "--x=-1:1:7", "--y=-0.5:0.5:5",
        "--metrics", "loss,accuracy", "--out", "s.h5", "--plot", "s.png", "--plot", "s.pdf",
    )  # fmt: skip
    assert "engine" in done.stdout
    assert "sanity: OK" in done.stdout
    assert "loss at 0 is the model's own loss" in done.stdout
    assert "written    s.h5" in done.stdout
    with h5py.File(folder / "s.h5") as file:
        assert file["train_loss"].shape == (5, 7)
        assert np.isfinite(file["train_loss"][:]).all()
    for name in ("s.png", "s.pdf"):
        assert (folder / name).stat().st_size > 2000
    again = run(folder, "info", "s.h5")
    assert "direction 1" in again.stdout
    assert "filter" in again.stdout
    assert "sanity: OK" in again.stdout
    (folder / "path.csv").write_text("0.5,0.2\n0.1,0.1\n0,0\n")
    run(folder, "plot", "s.h5", "--kind", "filled", "--log", "--trajectory", "path.csv",
        "--levels", "1.2,1.5,2", "--out", "p.png")  # fmt: skip
    assert (folder / "p.png").stat().st_size > 2000


def test_axes_may_be_given_with_a_space_and_a_finished_file_is_read_back(
    folder, monkeypatch, capsys
):
    line = ["line", *MODEL, "--x", "-1:1:5", "--out", "s.h5"]
    code, out, err = in_process(folder, monkeypatch, capsys, *line)
    assert code == 0, err
    assert "5 points of 51 parameters" in out
    code, out, err = in_process(folder, monkeypatch, capsys, *line)
    assert code == 0, err
    assert "s.h5 held the answer" in out


def test_line_and_several_curves_in_one_picture(folder, monkeypatch, capsys):
    for seed in ("0", "1"):
        code, out, err = in_process(
            folder, monkeypatch, capsys, "line", *MODEL, "--seed", seed, "--x=-1:1:9",
            "--out", f"l{seed}.h5", "--metrics", "loss", "--metrics", "accuracy,mine:entropy",
        )  # fmt: skip
        assert code == 0, err
        assert "also accuracy, entropy" in out
    code, out, err = in_process(
        folder, monkeypatch, capsys, "plot", "l0.h5", "l1.h5", "--out", "both.png", "--title", "two"
    )
    assert code == 0, err
    assert (folder / "both.png").stat().st_size > 2000


@pytest.mark.parametrize(
    ("others", "axes", "kind"),
    [
        (["b.pt"], ["--x=-0.5:1.5:9"], "interpolation"),
        (["b.pt", "c.pt"], ["--x=0:1:4", "--y=0:1:5"], "barycentric"),
        (["b.pt", "c.pt", "a.pt"], ["--x=0:1:4", "--y=0:1:5"], "bilinear"),
    ],
)
def test_interpolate_between_checkpoints(folder, monkeypatch, capsys, others, axes, kind):
    to = [word for path in others for word in ("--to", path)]
    code, out, err = in_process(
        folder, monkeypatch, capsys, "interpolate", *MODEL, "--checkpoint", "a.pt", *to, *axes,
        "--out", "i.h5", "--plot", "i.png",
    )  # fmt: skip
    assert code == 0, err
    assert kind in out
    assert ("barrier" in out) == (kind == "interpolation")
    assert "sanity: OK" in out
    assert (folder / "i.png").stat().st_size > 2000


@pytest.mark.parametrize("bn", ["recompute", "interpolate"])
def test_interpolate_between_checkpoints_with_batch_norm(folder, monkeypatch, capsys, bn):
    namespace: dict = {}
    exec(MODULE, namespace)
    other, (x, y) = namespace["normed"]().eval(), namespace["data"]()
    with torch.no_grad():
        for p in other.parameters():
            p += 0.1
    other[1].running_mean += 1
    torch.save(other.state_dict(), folder / "other.pt")
    code, out, err = in_process(
        folder, monkeypatch, capsys, "interpolate", "--model", "mine:normed", "--data", "mine:data",
        "--no-progress", "--to", "other.pt", "--x", "0:1:3", "--out", "bn.h5", "--bn", bn,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "native" in out
    found = load(folder / "bn.h5")
    own = torch.nn.functional.cross_entropy(other(x), y).item()
    assert (abs(found.values[2] - own) < 1e-6) == (bn == "interpolate")


def test_objectives_and_parameter_subsets(folder, monkeypatch, capsys):
    code, out, err = in_process(
        folder, monkeypatch, capsys, "line", "--model", "mine:model", "--data", "mine:data",
        "--objective", "mine:norm", "--params", "0.*", "--normalize", "none", "--ignore", "none",
        "--x=-1:1:5", "--no-progress", "--dtype", "float64", "--plot", "o.svg",
    )  # fmt: skip
    assert code == 0, err
    assert "of 30 parameters" in out
    assert "torch" in out


def test_info_of_a_model_lists_the_layout_and_the_engine(folder, monkeypatch, capsys):
    code, out, _ = in_process(
        folder, monkeypatch, capsys, "info", "--model", "mine:normed", "--data", "mine:data"
    )
    assert code == 0
    assert "1.weight" in out
    assert "norm" in out
    assert "engine" in out
    code, out, _ = in_process(folder, monkeypatch, capsys, "info", "--model", "mine:model")
    assert code == 0
    assert "n = 51" in out


BAD = [
    (["--model", "mine"], "--model: expected package.module:name, got 'mine'"),
    (["--model", "nothing_here:f"], "--model: no module 'nothing_here'"),
    (["--model", "mine:nope"], "--model: mine has no 'nope'"),
    (["--model", "mine:not_a_model"], "to return a torch.nn.Module, got int"),
    (["--data", "mine:broken"], "--data: mine:broken() raised RuntimeError: the data is on"),
    (["--checkpoint", "none.pt"], "--checkpoint: no file 'none.pt'"),
    (["--checkpoint", "mine.py"], "--checkpoint: mine.py is not a torch checkpoint"),
    (["--checkpoint", "pickled.pt"], "pickled.pt needs pickle"),
    (["--checkpoint", "a.pt", "--model", "mine:normed"], "is not of this model: missing"),
    (["--x=1:-1:5"], "--x: expected min:max:n with min < max"),
    (["--loss", "hinge"], "hinge"),
    (["--bn", "sometimes"], "sometimes"),
    (["--params", "encoder.*"], "encoder.*"),
    (["--metrics", "f1"], "f1"),
    (["--threads", "0"], "--threads: expected at least 1, got 0"),
    (["--out", "no/such/s.h5"], "no such folder 'no/such'"),
    (["--plot", "s.txt"], "expected a picture suffix"),
    (
        ["--kind", "contour", "--plot", "s.png"],
        "--kind: expected 'line' for a curve, got 'contour'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD, ids=[b[0][-1] for b in BAD])
def test_bad_input_is_one_line_on_stderr_and_exit_2(folder, monkeypatch, capsys, change, message):
    code, _, err = in_process(
        folder, monkeypatch, capsys, "line", *MODEL, "--x=-1:1:5", "--out", "s.h5", *change
    )
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_debug_shows_the_traceback(folder, monkeypatch, capsys):
    code, _, err = in_process(folder, monkeypatch, capsys, "info", "none.h5", "--debug")
    assert code == 2
    assert "Traceback" in err


@pytest.mark.parametrize("arguments", [[], ["fly"], ["plane"], ["plot", "s.h5"]])
def test_bad_usage_exits_with_2(folder, arguments):
    done = run(folder, *arguments, code=2)
    assert "usage: pylandscape" in done.stderr


def test_nothing_to_write_is_refused_before_computing(folder, monkeypatch, capsys):
    code, _, err = in_process(folder, monkeypatch, capsys, "line", *MODEL)
    assert code == 2
    assert "--out FILE.h5 or --plot" in err


def test_files_that_are_not_results_are_refused(folder, monkeypatch, capsys):
    (folder / "x.h5").write_bytes(b"not hdf5")
    for command in (["info", "x.h5"], ["plot", "x.h5", "--out", "x.png"], ["info", "none.h5"]):
        code, _, err = in_process(folder, monkeypatch, capsys, *command)
        assert code == 2
        assert len(err.strip().splitlines()) == 1
        assert ".h5" in err


def test_another_request_does_not_resume_a_file(folder, monkeypatch, capsys):
    line = ["line", *MODEL, "--x=-1:1:5", "--out", "s.h5"]
    assert in_process(folder, monkeypatch, capsys, *line)[0] == 0
    code, _, err = in_process(folder, monkeypatch, capsys, *line, "--seed", "7")
    assert code == 2
    assert "s.h5" in err


def test_an_interrupted_command_without_out_advises_none(folder, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(theorems, "theory", interrupted)
    code, _, err = in_process(folder, monkeypatch, capsys, "theory", "group")
    assert code == 130
    assert err.strip() == "pylandscape: interrupted"


def test_interrupt_exits_with_130_and_the_same_command_goes_on(folder):
    command = [
        "line", "--model", "mine:model", "--data", "mine:data", "--objective", "mine:stuck",
        "--x=-1:1:41", "--no-progress", "--out", "s.h5",
    ]  # fmt: skip
    environment = environ()
    with subprocess.Popen(
        [sys.executable, "-m", "pylandscape", *command],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not (folder / "begun").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)  # far less than a call that is stuck
    assert process.returncode == 130
    assert "interrupted" in err
    assert "pylandscape line --model mine:model" in err
    assert "Traceback" not in err
    done = run(folder, *command)
    assert "written    s.h5" in done.stdout
    with h5py.File(folder / "s.h5") as file:
        assert np.isfinite(file["train_loss"][:]).all()


def test_a_run_from_its_checkpoints_to_its_pictures(folder, monkeypatch, capsys):
    start = read_state(folder / "a.pt")
    (folder / "series").mkdir()
    for k in range(4):
        moved = {n: v + 0.1 * k * torch.sin(v + k) for n, v in start.items()}
        torch.save(
            {"net": {f"module.{n}": v for n, v in moved.items()}}, folder / f"series/e{k}.pt"
        )
    made = ("--model", "mine:model", "--data", "mine:data", "--no-progress")
    code, out, _ = in_process(
        folder, monkeypatch, capsys, "trajectory", "series", "--out", "t.h5", "--pca", "--mds"
    )
    assert code == 0
    assert "4 points of" in out
    assert "random walk" in out
    assert "angular distance" in out
    code, out, err = in_process(
        folder, monkeypatch, capsys, "trajectory", "t.h5", *made, "--surface", "plane.h5",
        "--points", "5", "--plot", "path.png",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "off the plane" in out
    code, out, _ = in_process(
        folder, monkeypatch, capsys, "track", *made, "--trajectory", "t.h5", "--k", "1", "--lr",
        "0.5", "--out", "track.h5", "--plot", "track.png",
    )  # fmt: skip
    assert code == 0
    assert "threshold" in out
    code, out, _ = in_process(folder, monkeypatch, capsys, "info", "t.h5", "track.h5")
    assert code == 0
    assert "length" in out
    assert "eigenvalue 1" in out
    for name in ("t.h5", "track.h5"):
        code, _, _ = in_process(folder, monkeypatch, capsys, "plot", name, "--out", "p.png")
        assert code == 0
    for picture in ("path.png", "track.png", "p.png"):
        assert (folder / picture).stat().st_size > 5_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["series-none"], "CHECKPOINTS: expected files that match"),
        (["a.pt", "--pca"], "expected at least two points, got 1"),
        (["a.pt", "--surface", "s9.h5"], "--surface: expected --model and --data"),
        (["a.pt", "--pca", "--centre", "middle"], "--centre: expected mean or an index"),
    ],
)
def test_the_trajectory_command_says_what_is_wrong(folder, monkeypatch, capsys, words, said):
    code, _, err = in_process(folder, monkeypatch, capsys, "trajectory", *words)
    assert code == 2
    assert said in err


def test_checkpoints_are_read_in_every_usual_form(folder):
    plain = read_state(folder / "a.pt")
    assert set(plain) == set(read_state(folder / "b.pt")) == set(read_state(folder / "c.pt"))
    torch.save({"best": torch.tensor(0.9), "model_state_dict": plain}, folder / "d.pt")
    assert set(read_state(folder / "d.pt")) == set(plain)
    torch.save({"epoch": 3}, folder / "e.pt")
    with pytest.raises(InvalidArgument, match="a dict with epoch"):
        read_state(folder / "e.pt")
    torch.save([1, 2], folder / "f.pt")
    with pytest.raises(InvalidArgument, match="got list"):
        read_state(folder / "f.pt")


def test_reading_a_pickled_checkpoint_runs_none_of_its_code(folder):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "sprung"),))

    torch.save({"state_dict": Trap()}, folder / "trap.pt")
    with pytest.raises(InvalidArgument, match="needs pickle"):
        read_state(folder / "trap.pt")
    assert not (folder / "sprung").exists()


def test_axes_and_names():
    assert parse_axis("-1:1:51", "--x") == (-1.0, 1.0, 51)
    assert parse_axis("0:0:1", "--x") == (0.0, 0.0, 1)
    for bad in ("1", "0:1", "0:1:5:9", "a:b:c", "0:1:1", "0:inf:5", "0:0:5"):
        with pytest.raises(InvalidArgument, match="--x: expected min:max:n"):
            parse_axis(bad, "--x")
    assert parse_names(["a,b", "c"]) == ("a", "b", "c")
    assert parse_names(["none"]) == ()
    assert parse_names(None) == ()


def test_runs_are_trained_resumed_and_drawn_from_the_shell(folder, monkeypatch, capsys):
    words = [
        "train", *MODEL, "--runs", "2", "--optimizer", "adam", "--lr", "0.01", "--epochs", "3",
        "--batch-size", "8", "--out", "runs.h5", "--plot", "curves.png", "--no-progress",
    ]  # fmt: skip
    code, out, err = in_process(folder, monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    assert "Runs(2 of" in out
    assert (folder / "curves.png").stat().st_size > 1000
    again = in_process(folder, monkeypatch, capsys, *words)[1]  # the finished file answers
    assert again[again.index("result") :] == out[out.index("result") :]
    for more, said in (
        (("--optimizer", "adagrad", "--lr", "0.1", "--momentum", "0.9"), "--momentum"),
        ((), "--lr: expected a learning rate, which sgd has no default for"),
        (("--lr", "0.1", "--record", "often"), "--record: expected epoch"),
        (("--lr", "0.1", "--start", "none.pt"), "--start: no file 'none.pt'"),
        (
            ("--lr", "0.1", "--runs", "2", "--checkpoint", "a.pt"),
            "--checkpoint: has no effect with runs that are initialised anew",
        ),
        (("--lr", "0.1", "--batch-size", "100000"), "batch_size"),
    ):
        code, _, err = in_process(
            folder, monkeypatch, capsys, "train", *MODEL, "--epochs", "1", *more
        )
        assert code == 2
        assert said in err
    code, _, err = in_process(
        folder, monkeypatch, capsys, "train", *MODEL, "--lr", "1e30", "--steps", "3"
    )
    assert code == 1
    assert "DIVERGED: run 0" in err


def test_the_merge_tree_of_a_saved_plane_is_printed_and_drawn(folder, monkeypatch, capsys):
    x = np.linspace(-2, 2, 41)
    values = (x[:, None] ** 2 - 1) ** 2 + 0.2 * x[:, None] + x[None, :] ** 2  # two wells
    pl.Surface(x, x, values).save(folder / "wells.h5")
    code, out, _ = in_process(
        folder, monkeypatch, capsys, "topology", "wells.h5", "--plot", "t.png", "--out", "t.h5"
    )
    assert code == 0
    table = out[out.index("persistence") :].splitlines()[1:3]
    assert [line.split()[2] for line in table] == ["inf", "0.8001"]  # of two wells, one dies
    assert (folder / "t.png").exists()
    code, _, err = in_process(folder, monkeypatch, capsys, "topology", "missing.h5")
    assert code == 2
    assert "missing.h5" in err


def test_several_checkpoints_get_a_file_each_and_one_picture(folder, monkeypatch, capsys):
    (folder / "runs").mkdir()
    for name in ("a.pt", "b.pt"):
        (folder / name).rename(folder / "runs" / name)
    code, out, err = in_process(
        folder, monkeypatch, capsys, "line", *MODEL, "--checkpoint", "runs", "--checkpoint", "c.pt",
        "--x=-1:1:5", "--out", "l.h5", "--plot", "all.png",
    )  # fmt: skip
    assert (code, err) == (0, "")
    losses = [load(folder / f"l-{name}.h5").values[2] for name in "abc"]
    assert len(set(losses)) == 3
    assert (folder / "all.png").stat().st_size > 2000
    assert "to draw" not in out
    code, _, err = in_process(
        folder, monkeypatch, capsys, "spectrum", *MODEL, "--checkpoint", "runs/*.pt", "--probes",
        "2", "--steps", "10", "--out", "s.h5", "--plot", "spectra.png",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert (folder / "spectra.png").stat().st_size > 2000
    several = ["--checkpoint", "c.pt", "--checkpoint", "runs/a.pt"]
    for words, said in (
        (["line", *MODEL, *several, "--plot", "p.png"], "--out: expected a FILE.h5 with 2"),
        (["eigen", *MODEL, *several], "--checkpoint: expected one with eigen, got 2"),
        (["line", *MODEL, "--checkpoint", "no*.pt", "--out", "l.h5"], "--checkpoint: expected"),
        (["line", *MODEL, *several, "--out", "l.h5", "--plot", "p.txt"], "picture suffix"),
    ):
        code, _, err = in_process(folder, monkeypatch, capsys, *words)
        assert code == 2
        assert said in err


def test_planes_are_compared_on_one_scale(folder, monkeypatch, capsys):
    for seed in ("0", "1"):
        code, out, err = in_process(
            folder, monkeypatch, capsys, "plane", *MODEL, "--seed", seed, "--x=-1:1:5",
            "--y=-1:1:5", "--out", f"s{seed}.h5",
        )  # fmt: skip
        assert code == 0, err
    assert "to draw    pylandscape plot s1.h5 --out s1.png" in out
    words = ["compare", "s0.h5", "s1.h5", "--labels", "one, two", "--out", "both.png"]
    code, _, err = in_process(folder, monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    assert (folder / "both.png").stat().st_size > 5000
    for change, said in ((["--labels", "one"], "expected 2, got 1"), ([], "at least two")):
        files = ["s0.h5", "s1.h5"] if change else ["s0.h5"]
        code, _, err = in_process(
            folder, monkeypatch, capsys, "compare", *files, *change, "--out", "p.png"
        )
        assert code == 2
        assert said in err


def test_a_picture_that_fails_its_check_exits_with_1_and_is_written(folder, monkeypatch, capsys):
    (folder / "flat.py").write_text(
        "import torch\nfrom mine import data\n"
        "class Net(torch.nn.Linear):\n    def forward(self, x): return torch.ones(len(x), 3)\n"
        "def net(): return Net(4, 3)\n"
    )
    code, out, err = in_process(
        folder, monkeypatch, capsys, "line", "--model", "flat:net", "--data", "mine:data",
        "--x=-1:1:5", "--out", "s.h5", "--no-progress", "--engine", "torch",
    )  # fmt: skip
    assert code == 1
    assert "the loss is flat" in out
    assert "check FAILED" in err
    assert (folder / "s.h5").exists()


def test_a_models_own_loss_and_the_first_batches(folder, monkeypatch, capsys):
    (folder / "own.py").write_text(
        "import torch\nimport mine\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.net = mine.model()\n"
        "    def forward(self, x, labels):\n"
        "        return {'loss': torch.nn.functional.cross_entropy(self.net(x), labels)}\n"
        "def data():\n    x, y = mine.data()\n"
        "    return [{'x': x[:10], 'labels': y[:10]}, {'x': x[10:], 'labels': y[10:]}]\n"
    )
    code, out, err = in_process(
        folder, monkeypatch, capsys, "info", "--model", "own:Net", "--data", "own:data",
        "--loss", "own", "--max-batches", "1",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "the first 1 of 2 batches" in out


def test_help_shows_an_example_of_every_command_and_the_exit_codes():
    top = app.parser()
    said = top.format_help()
    for code in ("1    a check failed", "2    bad usage or input", "130  interrupted"):
        assert code in said
    commands = top._subparsers._group_actions[0].choices
    for name, sub in commands.items():
        example = sub.epilog.removeprefix("example: ").splitlines()[0]
        assert example.startswith(f"pylandscape {name} ")
        words = app.joined(shlex.split(example)[1:])
        assert top.parse_args(words).command == name


def test_the_hint_for_a_pickled_checkpoint_finds_its_state(folder, monkeypatch, capsys):
    model = torch.nn.Linear(3, 2)
    held = {"args": Path("x"), "model_state_dict": model.state_dict()}  # a Path needs pickle
    torch.save(held, folder / "held.pt")
    with pytest.raises(InvalidArgument, match="needs pickle") as caught:
        read_state(folder / "held.pt")
    hint = str(caught.value).partition('python -c "')[2].removesuffix('"')
    monkeypatch.chdir(folder)
    exec(hint, {})
    assert torch.equal(read_state(folder / "state.pt")["weight"], model.weight)
