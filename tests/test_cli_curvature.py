"""The commands spectrum, eigen and convexity: what they pass on, print, write and draw.

The computations are replaced by small ones with the same signatures.
"""

from __future__ import annotations

import inspect
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import pylandscape as pl
from pylandscape.cli import app
from pylandscape.results.eigen_pairs import EigenPairs
from pylandscape.results.loading import load
from pylandscape.results.spectra import Spectrum
from pylandscape.results.surface import Surface

MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

def data():
    g = torch.Generator().manual_seed(1)
    return torch.randn(40, 4, generator=g), torch.randint(0, 3, (40,), generator=g)
"""
MODEL = ["--model", "mine:model", "--data", "mine:data", "--no-progress"]
calls: dict[str, dict] = {}


def fake_pairs(k=1, n=51, which="LA", tol=1e-6, **info) -> EigenPairs:
    converged = np.arange(k) < 2
    return EigenPairs(
        np.arange(k, 0, -1.0), torch.eye(n)[:k], np.full(k, 1e-8), converged, 5 * k, which, tol,
        info,
    )  # fmt: skip


def eigenpairs(
    land_or_operator, k=1, which="LA", *, tol=1e-6, matrix="hessian", theta=None, params=None,
    basis=None, max_products=None, seed=0, start=None, path=None, progress=True,
):  # fmt: skip
    calls["eigenpairs"] = dict(locals())
    return fake_pairs(k, land_or_operator.n_params, which, tol, matrix=matrix)


def spectrum(
    land_or_operator, probes=10, steps=90, *, sigma2=1e-5, relative_sigma2=False,
    matrix="hessian", theta=None, params=None, vectors=0, seed=0, dtype=None, path=None,
    progress=True,
):  # fmt: skip
    calls["spectrum"] = dict(locals())
    nodes = np.sort(np.random.default_rng(seed).normal(size=(probes, steps)), axis=1)
    found = Spectrum(
        nodes, np.full_like(nodes, 1 / steps), np.full_like(nodes, 1e-3),
        land_or_operator.n_params, sigma2, relative_sigma2, ("complete",) * probes,
        {"matrix": matrix, "products": probes * steps, "request": {"seed": seed}},
        fake_pairs(vectors) if vectors else None,
    )  # fmt: skip
    if path is not None:
        found.save(path)
    return found


def layer_spectra(land, *, seed=0, **options):
    calls["layer_spectra"] = {"land": land, "seed": seed, **options}
    names = [entry.name for entry in land.layout.entries]
    return {name: spectrum(land, seed=i, **options) for i, name in enumerate(names)}


def convexity(land, d1, d2, x, y, *, tol=1e-3, path=None, progress=True, theta=None):
    calls["convexity"] = dict(locals())
    x, y = np.linspace(*x), np.linspace(*y)
    low = np.full((x.size, y.size), -0.01)
    high = np.where(x[:, None] > 0.9, -1.0, 10.0) + 0 * y
    metrics = {"lambda_min": low, "lambda_max": high, "ratio": np.abs(low / high)}
    return Surface(x, y, np.add.outer(x**2, y**2), metrics, {"not_converged": 2})


@pytest.fixture
def pylandscape(tmp_path: Path, monkeypatch, capsys):
    """Run a command in a folder with a model; its exit code, stdout and stderr."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    sys.modules.pop("mine", None)
    calls.clear()
    homes: dict[str, types.ModuleType] = {}
    for fake in (spectrum, layer_spectra, eigenpairs, convexity):
        name = getattr(pl, fake.__name__).__module__
        setattr(homes.setdefault(name, types.ModuleType(name)), fake.__name__, fake)
    for name, module in homes.items():
        monkeypatch.setitem(sys.modules, name, module)

    def run(*arguments: str, code: int = 0) -> str:
        found = app.main(arguments)
        said = capsys.readouterr()
        assert found == code, said.err + said.out
        return said.out if code == 0 else said.err

    return run


@pytest.mark.parametrize("fake", [eigenpairs, spectrum, convexity])
def test_the_computations_take_the_arguments_that_the_commands_pass(fake):
    taken = inspect.signature(getattr(pl, fake.__name__)).parameters
    assert set(inspect.signature(fake).parameters) - {"land_or_operator"} <= set(taken)


def test_spectrum_prints_a_summary_and_writes_file_and_picture(pylandscape, tmp_path):
    out = pylandscape(
        "spectrum", *MODEL, "--probes", "3", "--steps", "20", "--sigma2", "1e-3", "--seed", "7",
        "--relative-sigma2", "--vectors", "3", "--matrix", "gauss_newton", "--symlog",
        "--out", "s.h5", "--plot", "s.png", "--plot", "s.pdf",
    )  # fmt: skip
    asked = calls["spectrum"]
    assert (asked["probes"], asked["steps"], asked["sigma2"]) == (3, 20, 1e-3)
    assert (asked["seed"], asked["vectors"], asked["relative_sigma2"]) == (7, 3, True)
    assert (asked["matrix"], asked["path"], asked["progress"]) == ("gauss_newton", "s.h5", False)
    for word in ("engine", "extremes", "trace", "+-", "density    off by", "60 products"):
        assert word in out
    assert out.count("NOT CONVERGED") == 1  # the third pair of the table
    assert isinstance(load("s.h5"), Spectrum)
    for name in ("s.png", "s.pdf"):
        assert (tmp_path / name).stat().st_size > 2000


def test_spectrum_needs_neither_file_nor_picture(pylandscape, tmp_path):
    out = pylandscape("spectrum", *MODEL, "--probes", "1")
    assert "one probe: error unknown" in out
    assert calls["spectrum"]["path"] is None
    assert not list(tmp_path.glob("*.h5"))


def test_spectra_of_layers_have_a_line_and_a_file_each(pylandscape, tmp_path):
    out = pylandscape(
        "spectrum", *MODEL, "--layers", "--probes", "2", "--steps", "5", "--out", "s.h5",
        "--plot", "s.png",
    )  # fmt: skip
    assert calls["layer_spectra"]["probes"] == 2
    assert "path" not in calls["layer_spectra"]
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    for name in names:
        assert f"\n{name} " in out
        assert isinstance(load(f"s-{name}.h5"), Spectrum)
    assert not (tmp_path / "s.h5").exists()
    assert "40 products" in out
    assert (tmp_path / "s.png").stat().st_size > 2000


def test_eigen_prints_values_with_residuals_and_marks_what_did_not_converge(pylandscape, tmp_path):
    out = pylandscape(
        "eigen", *MODEL, "-k", "3", "--which", "BE", "--tol", "1e-4", "--matrix", "covariance",
        "--out", "e.h5", "--plot", "e.png",
    )  # fmt: skip
    asked = calls["eigenpairs"]
    assert (asked["k"], asked["which"], asked["tol"]) == (3, "BE", 1e-4)
    assert (asked["matrix"], asked["path"]) == ("covariance", "e.h5")
    rows = [line.split() for line in out.splitlines()]
    assert ["1", "3", "1e-08"] in rows
    assert ["3", "1", "1e-08", "NOT", "CONVERGED"] in rows
    assert "warning    1 of 3 did not converge" in out
    assert "15 products" in out
    assert load("e.h5").which == "BE"
    assert (tmp_path / "e.png").stat().st_size > 2000
    assert "warning" not in pylandscape("eigen", *MODEL)


def test_convexity_draws_the_ratio(pylandscape, tmp_path):
    out = pylandscape(
        "convexity", *MODEL, "--x", "-1:1:5", "--y=0:1:3", "--seed", "4", "--tol", "0.01",
        "--normalize", "layer", "--ignore", "none", "--plot", "c.png",
    )  # fmt: skip
    asked = calls["convexity"]
    assert (asked["x"], asked["y"], asked["tol"]) == ((-1.0, 1.0, 5), (0.0, 1.0, 3), 0.01)
    assert asked["d1"].info["normalize"] == "layer"
    assert asked["d1"].info["seed"] == 4
    assert (
        "below 0.01 at 80 % of the points; lambda_max <= 0 at 3 points; NOT CONVERGED at 2" in out
    )
    assert (tmp_path / "c.png").stat().st_size > 2000
    assert "--out FILE.h5 or --plot" in pylandscape("convexity", *MODEL, code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spectrum", *MODEL, "--out", "no/such/s.h5"], "no such folder 'no/such'"),
        (["eigen", *MODEL, "--plot", "e.txt"], "expected a picture suffix"),
        (["convexity", *MODEL, "--x=1:-1:5", "--plot", "c.png"], "--x: expected min:max:n"),
        (["eigen", "--model", "mine:nope", "--data", "mine:data"], "--model: mine has no 'nope'"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_computed(pylandscape, arguments, message):
    said = pylandscape(*arguments, code=2)
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not calls


def test_an_interrupt_says_how_to_go_on(pylandscape, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for name in ("spectrum", "layer_spectra"):
        monkeypatch.setattr(sys.modules[pl.spectrum.__module__], name, interrupted)
    assert "To go on: pylandscape spectrum" in pylandscape(
        "spectrum", *MODEL, "--out", "s.h5", code=130
    )
    assert "would have kept it" in pylandscape("spectrum", *MODEL, code=130)
    layers = pylandscape("spectrum", *MODEL, "--layers", "--out", "s.h5", code=130)
    assert "To go on" not in layers


def test_plot_and_info_take_files_of_spectra_and_eigenpairs(pylandscape, tmp_path):
    for name, seed in (("a", "0"), ("b", "1")):
        pylandscape("spectrum", *MODEL, "--seed", seed, "--probes", "2", "--out", f"{name}.h5")
    pylandscape("eigen", *MODEL, "-k", "4", "--out", "e.h5")
    pylandscape("plot", "a.h5", "--out", "a.png", "--symlog", "--title", "one")
    pylandscape("plot", "a.h5", "b.h5", "--out", "lines.png", "--vmin", "1e-3")
    pylandscape("plot", "a.h5", "b.h5", "--kind", "evolution", "--out", "map.png")
    pylandscape("plot", "a.h5", "b.h5", "--kind", "top", "--out", "top.png")
    pylandscape("plot", "e.h5", "--log", "--out", "e.png")
    for name in ("a", "lines", "map", "top", "e"):
        assert (tmp_path / f"{name}.png").stat().st_size > 2000
    said = pylandscape("info", "a.h5", "e.h5")
    assert "extremes" in said
    assert "matrix            hessian" in said
    assert "seed              0" in said
    assert "NOT CONVERGED" in said
    for arguments, message in (
        (["a.h5", "e.h5"], "expected spectra, or one set of eigenpairs, got 2 files"),
        (["a.h5", "--kind", "contour"], "--kind: expected one of lines, evolution, ridges, top"),
    ):
        assert message in pylandscape("plot", *arguments, "--out", "x.png", code=2)
