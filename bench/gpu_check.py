"""``python bench/gpu_check.py [--json FILE] [--architectures 90]``: the CUDA half on this machine.

Builds the extension with CUDA from this checkout (no network; needs nvcc, cmake, ninja, pybind11
and torch), runs tests/test_cuda.py, compares each kernel with the CPU's result and times it
against its floor: the bytes that it must move over the bandwidth of a device-to-device copy,
measured in the same run. The table comes last. JSON goes to --json, else to $OUT/gpu_check.json
where OUT is set. Exit status 1 when a part fails or there is no GPU (the build is checked anyway).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gpu_curvature
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[[int], Any]  # of the number of an input set


@dataclass
class Row:
    """One kernel: medians in milliseconds; share = floor / measured, 1 is as fast as a copy."""

    name: str
    milliseconds: float
    floor: float
    share: float
    torch: float | None  # plain torch for the same result
    error: float  # largest |difference to the CPU|, relative to the largest element; 0: same bits


def build(tree: Path, architectures: str | None) -> None:
    """The package with both libraries in `tree`, an importable folder."""
    work = tree.parent / "build"
    shutil.copytree(ROOT / "pylandscape", tree / "pylandscape", ignore=_not_source)
    prefix = subprocess.check_output(
        [sys.executable, "-m", "pybind11", "--cmakedir"], text=True
    ).strip()
    configure = ["cmake", "-S", str(ROOT), "-B", str(work), "-G", "Ninja"]
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_INSTALL_PREFIX": tree,
        "CMAKE_PREFIX_PATH": prefix,
        "Python_EXECUTABLE": sys.executable,
        "PYLANDSCAPE_CUDA": "ON",
        "PYLANDSCAPE_WERROR": "ON",
    }
    if architectures:
        options["CMAKE_CUDA_ARCHITECTURES"] = architectures
    configure += [f"-D{name}={value}" for name, value in options.items()]
    for command in (configure, ["cmake", "--build", str(work), "--target", "install"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-6000:]}")


def _not_source(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__" or name.endswith(".so")}


def test(tree: Path) -> tuple[bool, str]:
    """Whether tests/test_cuda.py passes on the package in `tree`, and pytest's last line."""
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [*command, "--rootdir", str(ROOT / "tests"), str(ROOT / "tests" / "test_cuda.py")],
        env=env,
        cwd=tree,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.strip().splitlines() or [done.stderr[-500:]]
    if done.returncode != 0:
        print((done.stdout + done.stderr)[-6000:])
    return done.returncode == 0, lines[-1]


def median_ms(run: Run, sets: int, repetitions: int = 25) -> float:
    """CUDA events around each of `repetitions` calls, which take the input sets in turn."""
    for i in range(sets + 2):
        run(i % sets)
    times = []
    for i in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(i % sets)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes read plus bytes written per millisecond by a 2 GB device-to-device copy."""
    source = torch.empty(1 << 29, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_ms(lambda _: target.copy_(source), 1)


def resnet_segments(width: int) -> tuple[int, Tensor, Tensor]:
    """n, and the filter and layer segments, of ResNet-18's convolutions and head."""
    shapes, inside = [(width, 147)], width
    for stage in range(4):
        outside = width * 2**stage
        for block in range(2):
            shapes += [(outside, 9 * (inside if block == 0 else outside)), (outside, 9 * outside)]
            if block == 0 and stage > 0:
                shapes.append((outside, inside))
        inside = outside
    shapes.append((1000, inside))
    layers, filters, at = [], [], 0
    for rows, columns in shapes:
        layers.append((at, at + rows * columns))
        filters += [(at + r * columns, at + (r + 1) * columns) for r in range(rows)]
        at += rows * columns + 2 * rows  # what follows a weight is ignored: norm or bias
    return at, torch.tensor(filters), torch.tensor(layers)


def relative_error(got: Tensor, want: Tensor) -> float:
    got = got.cpu()
    if torch.equal(got, want):
        return 0.0
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


class Bench:
    """Rows of one dtype; three input sets, so that none waits in the cache."""

    SETS = 3

    def __init__(self, width: int, dtype: torch.dtype, bandwidth: float) -> None:
        self.width, self.dtype, self.bandwidth = width, dtype, bandwidth
        self.n, self.filters, self.layers = resnet_segments(width)
        self.host = [torch.randn(self.n, dtype=dtype) for _ in range(self.SETS)]
        self.given = [torch.randn(self.n, dtype=dtype) for _ in range(self.SETS)]
        self.theta, self.d = [t.cuda() for t in self.host], [t.cuda() for t in self.given]
        self.out = [torch.empty_like(t) for t in self.theta]
        self.rows: list[Row] = []

    def row(
        self, name: str, run: Run, want: Tensor, elements: float, plain: Run | None = None
    ) -> None:
        """Checks run's first result against `want`, and times it against moving `elements`."""
        error = relative_error(run(0), want)
        took = median_ms(run, self.SETS)
        floor = elements * want.element_size() / self.bandwidth
        other = None if plain is None else median_ms(plain, self.SETS)
        name = f"{name} {str(self.dtype).removeprefix('torch.')}"
        self.rows.append(Row(name, took, floor, floor / took, other, error))

    def directions(self, mode: str, segments: Tensor) -> None:
        from pylandscape._native import ops

        theta, d, out = self.theta, self.d, self.out
        filters = mode == "filter"
        self.row(
            f"normalize_direction {mode}",
            lambda i: ops.normalize_direction(d[i], theta[i], segments, mode, out=out[i]),
            ops.normalize_direction(self.given[0], self.host[0], segments, mode),
            3 * self.n,
            self.normalise if filters else None,
        )
        self.row(
            f"random_direction {mode}",
            lambda i: ops.random_direction(theta[i], segments, mode, 1, 0, out=out[i]),
            ops.random_direction(self.host[0], segments, mode, 1, 0),
            2 * self.n,
            (lambda i: (out[i].normal_(), self.normalise(i))) if filters else None,
        )

    def normalise(self, i: int) -> None:
        """out[i], filter by filter, by plain torch: layer after layer."""
        heights = [self.width]
        for stage in range(4):
            heights += [self.width * 2**stage] * (4 + (stage > 0))
        for (a, b), rows in zip(self.layers.tolist(), [*heights, 1000], strict=True):
            w, v = self.theta[i][a:b].view(rows, -1), self.out[i][a:b].view(rows, -1)
            v.mul_(w.norm(dim=1, keepdim=True) / (v.norm(dim=1, keepdim=True) + 1e-10))

    def gaussian(self) -> None:
        from pylandscape._native import ops

        self.row(
            "gaussian",
            lambda i: ops.gaussian(1, 0, 0, out=self.out[i]),
            ops.gaussian(1, 0, 0, out=torch.empty(self.n)),
            self.n,
            lambda i: self.out[i].normal_(),
        )

    def perturb(self, k: int) -> None:
        from pylandscape._native import ops

        points, n = 64, self.n // 64 * 4
        c = torch.randn(points, k, dtype=torch.float64)
        d = torch.randn(k, n, dtype=self.dtype)
        matrix, directions = c.to("cuda", self.dtype), d.cuda()
        theta = [t[:n] for t in self.theta]
        out = torch.empty(points, n, dtype=self.dtype, device="cuda")
        self.row(
            f"perturb {points} points, k={k}",
            lambda i: ops.perturb(theta[i], c, directions, out=out),
            ops.perturb(self.host[0][:n], c, d),
            (1 + k + points) * n,
            lambda i: torch.addmm(theta[i], matrix, directions, out=out),
        )


def measure(width: int) -> tuple[float, list[Row]]:
    """The copy bandwidth (GB/s) and a row for each kernel."""
    bandwidth = copy_bandwidth()
    rows: list[Row] = []
    for dtype in (torch.float32, torch.float64):
        bench = Bench(width, dtype, bandwidth)
        for mode in ("filter", "layer", "model"):
            bench.directions(mode, bench.filters if mode == "filter" else bench.layers)
        if dtype == torch.float32:
            bench.gaussian()
        for k in (1, 2, 3, 6):
            bench.perturb(k)
        rows += bench.rows
    rows += [Row(*values) for values in gpu_curvature.measure(bandwidth, median_ms)]
    return bandwidth / 1e6, rows


def allowed_error(name: str) -> float:
    """Same bits, but for sums of another order: a few eps of the factor."""
    if name in gpu_curvature.ALLOWED:
        return gpu_curvature.ALLOWED[name]
    if "direction" not in name:
        return 0.0
    return 24 * torch.finfo(torch.float64 if "float64" in name else torch.float32).eps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--architectures", help="CMAKE_CUDA_ARCHITECTURES, e.g. 90")
    parser.add_argument("--width", type=int, default=128, help="ResNet-18's; 64: 11.7 M parameters")
    options = parser.parse_args()
    target = options.json
    if target is None and os.environ.get("OUT"):
        target = Path(os.environ["OUT"]) / "gpu_check.json"
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        start = time.perf_counter()
        build(tree, options.architectures)
        built = time.perf_counter() - start
        print(f"built with warnings as errors in {built:.0f} s", flush=True)
        sys.path.insert(0, str(tree))
        from pylandscape._native import cuda_problem

        problem = cuda_problem()
        if problem is not None:
            print(f"the CUDA library builds and loads, but nothing can run on it here: {problem}")
            return 1
        passed, summary = test(tree)
        print(f"tests/test_cuda.py: {summary}", flush=True)
        bandwidth, rows = measure(options.width)
    exact = [row.error <= allowed_error(row.name) for row in rows]
    n = resnet_segments(options.width)[0]
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}; "
        f"copy {bandwidth:.0f} GB/s; ResNet-18 of width {options.width}: {n / 1e6:.1f} M numbers\n"
        f"{'kernel':<36}{'ms':>9}{'floor':>9}{'share':>8}{'torch ms':>10}  error"
    )
    for row, ok in zip(rows, exact, strict=True):
        other = "" if row.torch is None else f"{row.torch:.3f}"
        print(
            f"{row.name:<36}{row.milliseconds:>9.3f}{row.floor:>9.3f}{row.share:>8.0%}{other:>10}"
            f"  {row.error:.1e}{'' if ok else '  WRONG'}"
        )
    good = passed and all(exact)
    print("all checks passed" if good else "FAILED")
    if target is not None:
        report = {
            "device": torch.cuda.get_device_name(),
            "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
            "build_seconds": built,
            "tests": summary,
            "passed": good,
            "copy_gb_per_s": bandwidth,
            "numbers": n,
            "rows": [asdict(row) for row in rows],
        }
        target.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
