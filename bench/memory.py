"""Peak memory of a surface does not grow with the number of points."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir

import torch
from torch import Tensor, nn

from .harness import Row
from .nets import resnet20
from .workloads import digits, mlp

GROWTH = 0.05  # at most

_CHILD = "import sys; from bench.memory import draw; draw(*sys.argv[1:])"

Made = tuple[nn.Module, Tensor, Tensor]
CASES: dict[str, Callable[[], Made]] = {
    "W1": lambda: (mlp(784, 20, 10), *digits()),
    "ResNet-20": lambda: resnet20(quick=False),
    "ResNet-8": lambda: resnet20(quick=True),
}


def draw(case: str, side: str, threads: str) -> None:
    """Draws a side x side surface and prints this process's peak resident memory in KiB."""
    import pylandscape as pl

    torch.manual_seed(0)
    torch.set_num_threads(int(threads))
    model, x, y = CASES[case]()
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    d1, d2 = pl.random_directions(land, 2)
    axis = (-1, 1, int(side))
    surface = pl.plane(land, d1, d2, x=axis, y=axis, progress=False)
    middle = int(side) // 2
    assert abs(surface.values[middle, middle] - land.model_loss()) < 1e-5
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))


def child(code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What code prints in a fresh process that gets the arguments and this one's threads."""
    # The checkout comes last: its source folder must not hide an installed package.
    checkout = Path(__file__).resolve().parent.parent
    paths = [p for p in sys.path if p] + [str(checkout)]
    env = {**(environment or os.environ), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code, *arguments, str(torch.get_num_threads())]
    run = subprocess.run(command, env=env, cwd=gettempdir(), capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(run.stderr)
    return run.stdout


def peak_kib(case: str, side: int) -> int:
    """Peak resident memory of a fresh process that draws a side x side surface."""
    return int(child(_CHILD, case, str(side)))


def memory(quick: bool) -> list[Row]:
    if quick:
        return [_row("W1", 3, 5), _row("ResNet-8", 3, 5)]
    return [_row("W1", 11, 101), _row("ResNet-20", 3, 9)]


def _row(case: str, small: int, large: int) -> Row:
    low, high = peak_kib(case, small), peak_kib(case, large)
    return {
        "workload": f"memory {case}",
        "small": f"{small}x{small}: {low / 1024:.0f} MiB",
        "large": f"{large}x{large}: {high / 1024:.0f} MiB",
        "growth": high / low - 1,
        "target": GROWTH,
        "met": high <= (1 + GROWTH) * low,
    }


def as_markdown(table: Sequence[Row]) -> str:
    lines = ["| peak memory of | | | growth | target | met |", "|---|---|---|---|---|---|"]
    for row in table:
        met = "yes" if row["met"] else "no"
        cells = [row["workload"].removeprefix("memory "), row["small"], row["large"]]
        cells += [f"{row['growth']:+.1%}", f"<= {row['target']:.0%}", met]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
