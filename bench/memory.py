"""Peak memory of a surface does not grow with the number of points."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir

from .harness import Row

GROWTH = 0.05  # at most

_CHILD = """
import sys
import torch, pylandscape as pl
from bench.workloads import digits, mlp
torch.manual_seed(0)
torch.set_num_threads(int(sys.argv[2]))
side = int(sys.argv[1])
land = pl.Landscape(mlp(784, 20, 10), "cross_entropy", digits(), engine="native")
d1, d2 = pl.random_directions(land, 2)
surface = pl.plane(land, d1, d2, x=(-1, 1, side), y=(-1, 1, side), progress=False)
assert abs(surface.values[side // 2, side // 2] - land.model_loss()) < 1e-5
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]))
"""


def peak_kib(side: int) -> int:
    """Peak resident memory of a fresh process that draws a side x side surface (W1's model)."""
    import torch

    # The checkout comes last: its source folder must not hide an installed package.
    checkout = Path(__file__).resolve().parent.parent
    paths = [p for p in sys.path if p] + [str(checkout)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", _CHILD, str(side), str(torch.get_num_threads())]
    run = subprocess.run(command, env=env, cwd=gettempdir(), capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(run.stderr)
    return int(run.stdout)


def memory(quick: bool) -> list[Row]:
    small, large = (3, 5) if quick else (11, 101)
    low, high = peak_kib(small), peak_kib(large)
    return [
        {
            "workload": "memory W1",
            "small": f"{small}x{small}: {low / 1024:.0f} MiB",
            "large": f"{large}x{large}: {high / 1024:.0f} MiB",
            "growth": high / low - 1,
            "target": GROWTH,
            "met": high <= (1 + GROWTH) * low,
        }
    ]


def as_markdown(table: Sequence[Row]) -> str:
    lines = ["| peak memory of | | growth | target | met |", "|---|---|---|---|---|"]
    for row in table:
        met = "yes" if row["met"] else "no"
        cells = [
            row["small"],
            row["large"],
            f"{row['growth']:+.1%}",
            f"<= {row['target']:.0%}",
            met,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
