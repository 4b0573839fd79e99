"""The tests, and the processes that they start, use one pylandscape: the checkout's where its core
is built in place, the installed one otherwise. `python -m pytest` puts the checkout first on the
path; without a core it goes to the end, where `bench` is still found."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["PYTHONSAFEPATH"] = "1"  # a child does not put the folder that it runs in first either

if any((ROOT / "pylandscape").glob("_C.*")):
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
else:
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != ROOT] + [str(ROOT)]

WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:  # workers share the cores, and so do the processes that they start
    os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

if WORKER:
    torch.set_num_threads(1)

# The CUDA kernels emulated on the CPU: where all tests are asked for, they are left to CI.
EMULATED = ("test_cuda", "test_emulation", "test_networks_cuda")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith(EMULATED):
            item.add_marker("ci")
    chosen = config.option
    if chosen.file_or_dir or chosen.keyword or chosen.markexpr != "not slow":
        return  # files, names or marks were asked for
    left = [item for item in items if item.get_closest_marker("ci")]
    items[:] = [item for item in items if not item.get_closest_marker("ci")]
    config.hook.pytest_deselected(items=left)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
