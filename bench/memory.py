"""Peak memory of a surface does not grow with the number of points."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

_CHILD = """
import resource, sys
import torch, pylandscape as pl
from bench.surfaces import digits, mlp
torch.manual_seed(0)
side = int(sys.argv[1])
land = pl.Landscape(mlp(784, 20, 10), "cross_entropy", digits(), engine="native")
pl.plane(land, *pl.random_directions(land, 2), x=(-1, 1, side), y=(-1, 1, side), progress=False)
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]))
"""


def peak_kib(side: int) -> int:
    """Peak resident memory of a fresh process that draws a side x side surface."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(side)], env=env, capture_output=True, text=True
    )
    if run.returncode != 0:
        raise RuntimeError(run.stderr)
    return int(run.stdout)


def memory(quick: bool) -> list[dict[str, Any]]:
    small, large = (3, 5) if quick else (11, 101)
    low, high = peak_kib(small), peak_kib(large)
    return [
        {
            "workload": "memory W1",
            "small": f"{small}x{small}: {low / 1024:.0f} MiB",
            "large": f"{large}x{large}: {high / 1024:.0f} MiB",
            "growth": high / low - 1,
            "target": 0.05,
            "met": high <= 1.05 * low,
        }
    ]
