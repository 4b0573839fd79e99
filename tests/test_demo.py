"""The demo at toy size, and the data and network that benchmarks share with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pylandscape.errors import PylandscapeError
from pylandscape.experiments import demo
from pylandscape.results.loading import load

pytest.importorskip("sklearn")


def test_digits_are_float32_of_a_float64_upsampling():
    x, y = demo.digits_28x28()
    assert x.shape == (1797, 784)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(torch.unique(y), torch.arange(10))
    assert x.min() >= 0
    assert x.max() <= 1
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    assert values[61] < 1e-5 * values[60]  # 61 pixels are ever lit; the rest is rounding


def test_the_network_is_the_same_each_time_and_leaves_the_random_state():
    before = torch.get_rng_state()
    one, two = demo.digits_mlp(), demo.digits_mlp()
    assert torch.equal(before, torch.get_rng_state())
    assert sum(p.numel() for p in one.parameters()) == 15_910
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_training_gets_the_digits_right_and_clears_gradients():
    x, y = demo.digits_28x28()
    model = demo.digits_mlp(hidden=8)
    assert demo.train(model, x, y, steps=60) < 0.5
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_demo_writes_its_files_and_reports(tmp_path):
    said: list[str] = []
    files = demo.run(tmp_path / "out", points=7, steps=40, progress=False, say=said.append)
    pictures = {"contour.png", "surface.png", "line.png", "spectrum.png"}
    assert set(files) == {"surface.h5", "spectrum.h5", *pictures}
    assert all(path.stat().st_size > 2000 for path in files.values())
    surface = load(files["surface.h5"])
    assert surface.values.shape == (7, 7)
    assert np.isfinite(surface.values).all()
    report = "\n".join(said)
    for words in ("engine", "7 x 7 points", "sanity: OK", "loss at 0 is the model's own loss"):
        assert words in report
    before = surface.values.copy()
    demo.run(tmp_path / "out", points=7, steps=40, progress=False, say=said.append)
    assert np.array_equal(load(files["surface.h5"]).values, before)


def test_demo_from_the_command_line(tmp_path):
    paths = [str(Path(demo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pylandscape", "demo", "--points=5", "--steps=5", "--no-progress"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pylandscape-demo" / "contour.png").exists()


def test_without_scikit_learn_the_demo_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(PylandscapeError, match=r'pip install "\.\[demo\]"'):
        demo.digits_28x28()
