"""Principal components of a recorded run that lies on disk: T = 200 points, n = 10^6 float32.

Beside it: one read of the file (the cost of a pass), and torch's way where the whole (T, n) fits in
memory: load, centre at the end, economy SVD. ``PYLANDSCAPE_BENCH_N`` is another n
(10000000 needs 8 GB of disk). The file is read from the page cache where that holds it; in the rows
"from disk" the cache has forgotten it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

import pylandscape as pl
from pylandscape.trajectories import records

from .harness import Arm, Row, absent, interleave, rows

POINTS, PARAMETERS, COMPONENTS = 200, 1_000_000, 2
RTOL = 1e-5
PASSES = 2.5  # over the file at the disk's speed, to stay within
FITS = 2 << 30  # bytes of (T, n) float32 that the other arms load
CHUNK = 16 << 20

_CHILD = "import sys; from bench.trajectories import peak; peak(sys.argv[1])"


def trajectories(quick: bool, repetitions: int) -> list[Row]:
    count = 8 if quick else POINTS
    n = 400 if quick else int(os.environ.get("PYLANDSCAPE_BENCH_N", PARAMETERS))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        write(path, count, n)
        arms = [
            Arm("pylandscape pca", lambda: pl.pca(pl.trajectory(path), COMPONENTS)),
            Arm("read of the file", lambda: read(path)),
        ]
        peers = [Arm("torch svd", lambda: torch_svd(path))]
        if count * n * 4 > FITS:
            peers = []
        want = gram(path)
        arms[0].check(arms[0].run().singular_values, want, RTOL)
        for peer in peers:
            peer.check(peer.run(), want, 1e-3)
        arms += peers
        cold = [
            Arm("pylandscape pca", lambda: pl.pca(pl.trajectory(forgotten(path)), COMPONENTS)),
            Arm("read of the file", lambda: read(forgotten(path)), target=PASSES, at_most=True),
        ]
        interleave(arms, repetitions)
        interleave(cold, repetitions)
        name = f"PCA of {count} points of {n:,} float32 on disk"
        table = rows(name, arms[0], arms[1:], "run")
        table += rows(f"{name}, from disk", cold[0], cold[1:], "run")
        table.append(absent(name, "peak memory", f"{memory(path)} MiB resident, mapped pages too"))
    return table


def write(path: Path, count: int, n: int) -> None:
    """A random walk of ``count`` points, one at a time."""
    layout = pl.ParameterLayout.of(nn.Linear(n, 1, bias=False, device="meta"))
    header = records.make_header(layout, {}, "float32", (), {})
    generator, at = np.random.default_rng(0), np.zeros(n, np.float32)

    def points() -> Any:
        nonlocal at
        for step in range(count):
            at = at + generator.standard_normal(n, dtype=np.float32)
            yield step, np.empty(0), at

    records.write(path, header, points(), count)


def forgotten(path: Path) -> Path:
    """The file, of which the system's page cache holds nothing."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def read(path: Path) -> int:
    """One pass over the file's bytes."""
    total, buffer = 0, bytearray(CHUNK)
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            total += size
    return total


def gram(path: Path) -> Any:
    """The largest singular values in float64, from the Gram matrix of the whole path about its
    end, block by block through numpy alone."""
    run = pl.trajectory(path)
    square = np.zeros((len(run), len(run)))
    for first in range(0, run.n, 50_000):
        block = run.columns(first, min(first + 50_000, run.n))
        block = block - block[-1]
        square += block @ block.T
    return np.sqrt(np.linalg.eigvalsh(square)[::-1][:COMPONENTS])


def torch_svd(path: Path) -> Any:
    """What one would write where everything fits."""
    run = pl.trajectory(path)
    x = torch.stack([run.vector(i).float() for i in range(len(run))])
    return torch.linalg.svd(x - x[-1], full_matrices=False)[1][:COMPONENTS].numpy()


def peak(path: str) -> None:
    """Prints the peak resident memory in KiB that `pca` adds to this process's start."""
    before = _status("VmHWM")
    pl.pca(pl.trajectory(path), COMPONENTS)
    print(_status("VmHWM"), before)


def memory(path: Path) -> int:
    """The peak resident memory of a fresh process, in MiB."""
    root = str(Path(__file__).parent.parent)
    where = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), root])
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)], check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": where},
    )  # fmt: skip
    return int(done.stdout.split()[0]) // 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
