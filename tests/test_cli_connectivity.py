"""The commands about several models: barriers, align, connect, flatness, merge."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.cli import app

MODULE = """
import torch
from torch import nn

def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

def normed():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))

def one_layer():
    return nn.Linear(4, 3)

def data():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(7))
    return x, x[:, :3].argmax(1)

def stepped(outputs, target):
    return (outputs.argmax(1) != target).float().mean()
"""
MODEL = ["--model", "mine:net", "--data", "mine:data", "--no-progress"]


@pytest.fixture
def pylandscape(tmp_path: Path, monkeypatch, capsys):
    """Run a command in a folder with checkpoints; its stdout, or stderr."""
    (tmp_path / "mine.py").write_text(MODULE)
    space: dict = {}
    exec(MODULE, space)
    for k, name in enumerate(("a", "b", "c")):
        torch.save(space["net"](k + 1).state_dict(), tmp_path / f"{name}.pt")
    (tmp_path / "other").mkdir()
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other" / "small.pt")
    for k in range(2):
        torch.manual_seed(k)
        model = space["normed"]()
        model(torch.randn(50, 4))
        torch.save(model.state_dict(), tmp_path / "other" / f"normed{k}.pt")
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    sys.modules.pop("mine", None)

    def run(*arguments: str, code: int = 0) -> str:
        found = app.main(arguments)
        said = capsys.readouterr()
        assert found == code, said.err + said.out
        return said.out if code == 0 else said.err

    return run


def test_barriers_of_a_pattern_are_a_table_a_file_and_a_picture(pylandscape, tmp_path):
    words = ["barriers", *MODEL, "?.pt", "--points", "5", "--out", "m.h5", "--plot", "m.png"]
    said = pylandscape(*words)
    found = pl.load("m.h5")
    assert found.labels == ["a", "b", "c"]
    rows = said[said.index("barrier ") :].splitlines()[1:4]
    for row, want in zip(rows, found.barrier, strict=True):
        numbers = [float(word) for word in row.split("|")[1].split()]
        assert numbers == pytest.approx(want, rel=1e-3)
    assert (tmp_path / "m.png").stat().st_size > 2000
    again = pylandscape(*words)  # the finished file answers
    assert again[again.index("result") :] == said[said.index("result") :]
    said = pylandscape("barriers", *MODEL, "a.pt", "b.pt", "--what", "disagreement")
    assert "disagreement" in said
    assert "Barriers(3 models" in pylandscape("info", "m.h5")


def test_many_models_are_summed_up_in_their_rows():
    count = 12
    values = np.zeros((count, count, 3))
    values[..., 1] = np.arange(count)[:, None] + np.arange(count)
    labels = [f"m{i}" for i in range(count)]
    zero = np.zeros((count, count))
    found = pl.Barriers(np.linspace(0, 1, 3), values, zero, zero, labels)
    last = str(found).splitlines()[-1].split("|")[1].split()
    assert [float(w) for w in last] == [11, 21]
    with pytest.raises(pl.InvalidArgument, match="what"):
        found.table("loss")


def test_the_first_model_gives_what_params_leave_out(pylandscape):
    state = torch.load("a.pt", weights_only=True)
    torch.save({**state, "2.weight": -state["2.weight"]}, "fine.pt")
    said = pylandscape("barriers", *MODEL, "a.pt", "fine.pt", "--params", "2.*", "--points", "3")
    rows = said[said.index("barrier ") :].splitlines()[1:]
    space: dict = {}
    exec(MODULE, space)
    model, (x, y) = space["net"](1), space["data"]()
    own = nn.functional.cross_entropy(model(x), y).item()
    assert float(rows[0].split()[1]) == pytest.approx(own, rel=1e-5)


def test_align_writes_the_permuted_model_and_says_what_the_barrier_became(pylandscape, tmp_path):
    sys.path.insert(0, "")
    from mine import data, net

    model, (x, y) = net(1), data()
    for _ in range(100):
        slopes = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), model.parameters())
        with torch.no_grad():
            torch._foreach_sub_(list(model.parameters()), slopes)
    torch.save(model.state_dict(), "a.pt")
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[order])
        model[0].bias.copy_(model[0].bias[order])
        model[2].weight.copy_(model[2].weight[:, order])
    torch.save(model.state_dict(), "p.pt")
    words = ["align", *MODEL, "a.pt", "p.pt", "--state", "q.pt", "--out", "m.h5", "--plot", "m.png"]
    said = pylandscape(*words)
    table = {line.split()[0]: line.split()[-2:] for line in said.splitlines()}
    assert float(table["distance"][1]) == 0.0 < float(table["distance"][0])
    assert float(table["barrier"][1]) < 1e-6 < float(table["barrier"][0])
    a, q = (torch.load(name, weights_only=True) for name in ("a.pt", "q.pt"))
    assert all(torch.equal(a[name], q[name]) for name in a)
    assert (tmp_path / "m.png").stat().st_size > 2000
    Path("q.pt").unlink()
    again = pylandscape(*words)  # from the file, with the model
    assert again[again.index("result") :] == said[said.index("result") :]
    assert all(torch.equal(a[n], t) for n, t in torch.load("q.pt", weights_only=True).items())


@pytest.mark.ci
def test_connect_trains_a_curve_and_draws_it_and_its_plane(pylandscape, tmp_path):
    said = pylandscape(
        "connect", *MODEL, "a.pt", "b.pt", "--steps", "10", "--lr", "0.1", "--points", "5",
        "--out", "c.h5", "--plot", "c.png", "--plane", "p.png", "--plane-points", "5",
    )  # fmt: skip
    found = pl.load("c.h5")
    assert repr(found) in said
    assert len(found.history) == 10
    for name in ("c.png", "p.png"):
        assert (tmp_path / name).stat().st_size > 2000


def test_flatness_has_a_table_for_each_model_and_one_picture(pylandscape, tmp_path):
    few = ["--measures", "trace,average,worst_l2", "--draws", "5", "--steps", "2", "--rho", "0.1"]
    said = pylandscape("flatness", *MODEL, "a.pt", "b.pt", *few, "--out", "f.h5", "--plot", "f.png")
    for name in ("a", "b"):
        assert repr(pl.load(f"f-{name}.h5")) in said
    assert (tmp_path / "f.png").stat().st_size > 2000
    said = pylandscape("flatness", *MODEL, "--checkpoint", "a.pt", *few, "--out", "one.h5")
    assert repr(pl.load("one.h5")) in said
    assert pl.load("one.h5")["trace"].value == pytest.approx(pl.load("f-a.h5")["trace"].value)
    pylandscape("plot", "f-a.h5", "f-b.h5", "--out", "again.png")
    assert "worst_l2 (rho 0.1)" in pylandscape("info", "one.h5")


@pytest.mark.ci
def test_merge_marks_the_models_and_their_mixtures(pylandscape, tmp_path):
    said = pylandscape(
        "merge", *MODEL, "a.pt", "b.pt", "c.pt", "--x=0:1:3", "--y=0:1:3", "--out", "s.h5",
        "--plot", "s.png", "--merge", "mine=0.3,0.2",
    )  # fmt: skip
    found = pl.load("s.h5")
    assert f"{found.info['merges']['mine']:.6g}" in said
    assert list(found.info["merges"]) == ["base", "a", "b", "mine"]
    assert found.values[2, 0] == pytest.approx(found.info["merges"]["a"])
    assert (tmp_path / "s.png").stat().st_size > 2000


NORMED = ["--model", "mine:normed", "--data", "mine:data", "--no-progress"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["barriers", *MODEL, "a.pt"], "CHECKPOINTS: expected at least 2 models, got 1"),
        (["barriers", *MODEL, "a.pt", "no.pt"], "CHECKPOINTS: no file 'no.pt'"),
        (["barriers", *MODEL, "no*.pt"], "CHECKPOINTS: expected files that match 'no*.pt'"),
        (["barriers", *MODEL, "a.pt", "other/small.pt"], "other/small.pt: "),
        (["barriers", *MODEL, "a.pt", "b.pt", "--points", "1"], "points: expected at least 3"),
        (["barriers", *MODEL, "a.pt", "b.pt", "--plot", "m.xyz"], "path: expected a picture"),
        (["barriers", *NORMED, "other/normed0.pt", "other/normed1.pt"], "bn='recompute'"),
        (["align", *MODEL, "?.pt"], "CHECKPOINTS: expected 2 models, got 3"),
        (["align", *MODEL, "a.pt", "other/small.pt"], "other/small.pt: "),
        (["align", *MODEL, "a.pt", "b.pt", "--points", "2"], "points: expected 0 or at least 3"),
        (["align", *MODEL, "a.pt", "b.pt", "--state", "no/q.pt"], "no such folder"),
        (["connect", *MODEL, "a.pt", "b.pt", "--lr", "0"], "lr: expected a positive number"),
        (["connect", *MODEL, "a.pt", "other/small.pt"], "other/small.pt: "),
        (["connect", *MODEL, "a.pt", "b.pt", "--loss", "mine:stepped"], "derivative"),
        (["connect", *MODEL, "a.pt", "b.pt", "--plane-points", "1"], "--plane-points"),
        (["flatness", *MODEL, "--rho", "0"], "rho: expected positive radii"),
        (["flatness", *MODEL, "--rho", "a"], "--rho: expected numbers"),
        (["flatness", *MODEL, "--measures", "sam"], "measures: expected some of"),
        (["flatness", *MODEL, "other/small.pt"], "other/small.pt: "),
        (["merge", *MODEL, "a.pt", "b.pt"], "CHECKPOINTS: expected 3 models"),
        (["merge", *MODEL, "?.pt", "--merge", "mine"], "--merge: expected NAME=X,Y"),
        (["merge", *MODEL, "?.pt", "--x", "1:0:3"], "--x: expected min:max:n"),
        (["merge", *MODEL, "a.pt", "a.pt", "b.pt"], "equal"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_names_what_is_wrong(pylandscape, arguments, message):
    said = pylandscape(*arguments, code=2)
    assert message in said
    assert said.count("\n") == 1


def test_a_model_without_symmetry_cannot_be_aligned(pylandscape):
    torch.save(nn.Linear(4, 3).state_dict(), "l.pt")
    torch.save(nn.Linear(4, 3).state_dict(), "k.pt")
    words = ["--model", "mine:one_layer", "--data", "mine:data", "--no-progress"]
    assert "units that may change places" in pylandscape("align", *words, "l.pt", "k.pt", code=2)


@pytest.mark.parametrize("command", ["barriers", "align", "connect", "flatness", "merge"])
def test_the_help_has_an_example(pylandscape, capsys, command):
    with pytest.raises(SystemExit) as end:
        app.main([command, "--help"])
    assert end.value.code == 0
    assert f"example: pylandscape {command} --model" in " ".join(capsys.readouterr().out.split())
