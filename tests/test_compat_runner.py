"""patched() and ``python -m pylandscape.compat``: scripts run unchanged, on ours."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from grid_support import run_python

from pylandscape import compat
from pylandscape.compat import patched
from pylandscape.compat._report import Report
from pylandscape.errors import InvalidArgument

SCRIPT = """
import sys
import torch
import loss_landscapes
import loss_landscapes.metrics as m
from loss_landscapes.model_interface.model_wrapper import wrap_model
from beside import SIDE

if __name__ == "__main__":
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    metric = m.Loss(torch.nn.CrossEntropyLoss(), torch.randn(9, 4), torch.randint(0, 3, (9,)))
    print(loss_landscapes.__name__, loss_landscapes.random_plane(model, metric, steps=SIDE).shape)
    print(sys.argv[1:], __file__)
    sys.exit(3)
"""
BLOCK = """
import sys
class Block:  # as if the original were not installed
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "loss_landscapes":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "pylandscape.compat", *arguments)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("SIDE = 4\n")
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_a_script_runs_unchanged_and_the_report_says_where(script: Path) -> None:
    done = run(str(script), "--flag", "value")
    assert done.returncode == 3, done.stderr
    assert "pylandscape.compat.loss_landscapes (4, 4)" in done.stdout
    assert f"['--flag', 'value'] {script}" in done.stdout
    assert "loss_landscapes.random_plane: 16 evaluations on native" in done.stderr
    assert "pylandscape.compat:" not in done.stdout


def test_a_script_that_is_not_there_is_named() -> None:
    done = run("nowhere.py")
    assert done.returncode == 2
    assert "expected a file, got 'nowhere.py'" in done.stderr


def test_an_unknown_peer_or_version_is_named(script: Path) -> None:
    done = run("--compat", "other=1", str(script))
    assert done.returncode == 2
    assert "got 'other'" in done.stderr
    done = run("--compat", "loss_landscapes=2", str(script))
    assert done.returncode == 1
    assert "compat: expected '3.0.6' or None, got '2'" in done.stderr


def test_the_original_need_not_be_installed() -> None:
    code = BLOCK + (
        "from pylandscape.compat import patched\n"
        "with patched():\n"
        "    import loss_landscapes.metrics\n"
        "print(loss_landscapes.metrics.Loss.__module__)\n"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pylandscape.compat.loss_landscapes.metrics")


def test_patched_names_are_ours_and_only_while_it_lasts() -> None:
    before = {name: sys.modules.get(name) for name in sys.modules if "loss_landscapes" in name}
    path = list(sys.meta_path)
    with patched("loss_landscapes"):
        import loss_landscapes
        import loss_landscapes.metrics.sl_metrics
        from loss_landscapes.metrics import Loss
        from loss_landscapes.model_interface import model_parameters

        ours = import_module("pylandscape.compat.loss_landscapes")
        assert loss_landscapes is ours
        assert Loss is ours.metrics.Loss
        assert sys.modules["loss_landscapes.metrics"] is ours.metrics
        assert model_parameters.__spec__.name == model_parameters.__name__
    after = {name: sys.modules.get(name) for name in sys.modules if name in before}
    assert {name: module for name, module in after.items() if module is not before[name]} == {}
    aliases = [n for n in sys.modules if n.partition(".")[0] == "loss_landscapes"]
    assert set(aliases) <= set(before)
    assert sys.meta_path == path


@pytest.mark.skipif(find_spec("loss_landscapes") is None, reason="loss-landscapes is not installed")
def test_an_original_that_was_imported_comes_back() -> None:
    original = import_module("loss_landscapes.main")
    with patched():
        assert import_module("loss_landscapes.main") is not original
    assert import_module("loss_landscapes.main") is original


def test_a_module_that_ours_does_not_have_is_named() -> None:
    with patched("loss_landscapes"), pytest.raises(ModuleNotFoundError, match="stands in for"):
        import_module("loss_landscapes.nothing")


def test_patched_chooses_the_version() -> None:
    from torch import nn

    model, torch = nn.Linear(3, 2), import_module("torch")
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))

    def plane() -> object:
        package = import_module("loss_landscapes")
        metric = import_module("loss_landscapes.metrics").Loss(nn.CrossEntropyLoss(), x, y)
        torch.manual_seed(0)
        return package.random_plane(model, metric, steps=4, deepcopy_model=True).tolist()

    with patched():
        default = plane()
    with patched(compat={"loss_landscapes": "3.0.6"}):
        theirs = plane()
    assert default != theirs


def test_unknown_peers_are_refused() -> None:
    with (
        pytest.raises(InvalidArgument, match="peers: expected some of loss_landscapes"),
        patched("x"),
    ):
        pass
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = compat.nothing


def test_the_report_adds_up() -> None:
    report = Report()
    assert "nothing was evaluated" in report.summary()
    report.add("a.f", "native", 2)
    report.add("a.f", "native", 3)
    report.add("a.f", "torch", 1, "no such op")
    assert report.counts() == {("a.f", "native"): 5, ("a.f", "torch"): 1}
    assert "a.f: 5 evaluations on native" in report.summary()
    assert "a.f: 1 evaluation on torch (no such op)" in report.summary()
    report.clear()
    assert report.counts() == {}
