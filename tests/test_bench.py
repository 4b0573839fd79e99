"""Every benchmark runs at toy size, so that none rots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["W1", "W2", "W3", "W5,draw", "memory", "kernels"])
def test_benchmark_runs_at_toy_size(name: str, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    command = [sys.executable, "-W", "error::DeprecationWarning:bench", "-m", "bench", "--quick"]
    run = subprocess.run(
        [*command, "--only", name, "--json", str(out)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    report = json.loads(out.read_text())
    assert set(report) == {"environment", "quick", *name.split(",")}
    assert "pylandscape" in run.stdout or name in ("memory", "kernels")
