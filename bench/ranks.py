"""Several processes: two ranks on a core each against one process on one core, the same bits.

The two processes stay for all repetitions; for the arm of one process the other waits.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pylandscape as pl

from .harness import Arm, Row, rows
from .w2 import _iris
from .workloads import digits, mlp

SIZE, TARGET = 2, 1.8
LIMIT = 1800.0  # seconds


def ranks(quick: bool, repetitions: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        found = _measured(Path(folder), quick, repetitions)
    table: list[Row] = []
    for name, case in found.items():
        assert case["alone"]["digest"] == case["together"]["digest"], f"{name}: other bits"
        together = Arm(f"{SIZE} ranks", _told, case["units"], note="the same bits; a core each")
        alone = Arm("one process", _told, case["units"], TARGET, note="one core")
        together.error = alone.error = 0.0
        together.seconds, alone.seconds = case["together"]["seconds"], case["alone"]["seconds"]
        table += rows(name, together, [alone], case["unit"])
    return table


def _told() -> None:
    raise AssertionError("timed in processes of their own")


def _measured(folder: Path, quick: bool, repetitions: int) -> dict[str, Any]:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
    command = [sys.executable, "-m", "bench.ranks", str(folder), str(int(quick)), str(repetitions)]
    processes = [
        subprocess.Popen(command, env={
            **os.environ, "RANK": str(rank), "WORLD_SIZE": str(SIZE), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        })
        for rank in range(SIZE)
    ]  # fmt: skip
    try:
        codes = [process.wait(LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise RuntimeError(f"the ranks ended with {codes}")
    return dict(json.loads((folder / "found.json").read_text()))


def _rank(folder: Path, quick: bool, repetitions: int) -> None:
    """One of the processes."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["RANK"]) % len(cores)]})
    torch.set_num_threads(1)
    found = {}
    with pl.distributed(timeout=LIMIT) as group:
        for name, (run, units, unit) in _cases(quick).items():
            arms: dict[str, Any] = {
                arm: {"seconds": [], "digest": ""} for arm in ("together", "alone")
            }
            for repetition in range(repetitions + 1):  # the first one warms up
                for arm in ("together", "alone") if repetition % 2 else ("alone", "together"):
                    pl.gradients(*_START)  # all are here
                    begun = time.perf_counter()
                    if arm == "together":
                        values = run()
                    elif group.first:
                        with pl.distributed(alone=True):
                            values = run()
                    if repetition:
                        arms[arm]["seconds"].append(time.perf_counter() - begun)
                    if group.first:
                        arms[arm]["digest"] = hashlib.sha256(values.tobytes()).hexdigest()
            found[name] = {**arms, "units": units, "unit": unit}
        if group.first:
            (folder / "found.json").write_text(json.dumps(found))


Case = tuple[Callable[[], np.ndarray], int, str]


def _cases(quick: bool) -> dict[str, Case]:
    torch.manual_seed(0)
    x, y = digits()
    digit = pl.Landscape(mlp(784, 20, 10), "cross_entropy", (x, y), engine="native")
    directions = pl.random_directions(digit, 2, seed=1)
    side, probes, count = (21, 4, 500) if quick else (401, 40, 100_000)
    iris = pl.Landscape(mlp(4, 4, 4, 3, activation=torch.nn.Tanh), "cross_entropy", _iris())
    points = np.random.default_rng(0).normal(size=(count, iris.n_params))
    axis = (-1, 1, side)
    noise = np.random.default_rng(1).normal(size=(8 if quick else 80, digit.n_params))
    path = pl.trajectory(digit.theta.numpy() + 0.01 * noise.cumsum(axis=0), digit)
    draws, steps = (20, 2) if quick else (100, 20)

    def table() -> np.ndarray:
        found = pl.flatness(digit, draws=draws, steps=steps)
        return np.array([row.value for row in found.rows])

    return {
        f"W1 surface {side}x{side}": (
            lambda: pl.plane(digit, *directions, x=axis, y=axis, progress=False).values,
            side**2, "point",
        ),
        f"SLQ {probes} probes, 784-20-10": (
            lambda: pl.spectrum(digit, probes, 30, progress=False).nodes, probes, "probe"
        ),
        f"classify {count} points, Iris 4-4-4-3": (
            lambda: pl.classify(iris, points, keep=True, progress=False).eigenvalues,
            count, "point",
        ),
        "flatness, all measures, 784-20-10": (table, 1, "table"),
        f"track, {len(path)} points, 784-20-10": (
            lambda: pl.track(path, digit, 1, progress=False).values, len(path), "point"
        ),
    }  # fmt: skip


def _start() -> tuple[pl.Landscape, np.ndarray]:
    """What costs nothing and is shared: the ranks meet there."""
    torch.manual_seed(0)
    land = pl.Landscape(mlp(2, 2, 1), "mse", (torch.zeros(1, 2), torch.zeros(1, 1)))
    return land, np.zeros((256, land.n_params))


if __name__ == "__main__":
    _START = _start()
    _rank(Path(sys.argv[1]), sys.argv[2] == "1", int(sys.argv[3]))
