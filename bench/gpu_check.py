"""``python bench/gpu_check.py [--parts ...] [--json FILE]``: the CUDA half on this machine.

Builds the extension with CUDA from this checkout (no network; needs nvcc, cmake, ninja, pybind11
and torch), then, in this order:

    tests     those of TESTS, on the GPU only
    kernels   directions and perturbation: against the CPU's result and, timed, against their floor:
              the bytes that they must move over the bandwidth of a copy, measured in the same run
    programs  losses of many points: against float64, their floor and torch (gpu_programs.py)
    networks  the same of convolution networks, in every way that they can run (gpu_networks.py)
    curvature  reorthogonalisation, small eigenvalues (gpu_curvature.py) and Hessian-vector products
              (gpu_products.py), likewise
    hessians  small Hessians at many points, likewise (gpu_hessians.py)
    memory    compute-sanitizer's memcheck and racecheck over the tests of programs; not by default

The tables come last. JSON goes to --json, else to $OUT/gpu_check.json where OUT is set. Exit status
1 when a part fails or there is no GPU (the build is checked anyway). Parts that do not start within
--minutes are left out and named.
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


TESTS = (
    "test_cuda.py",
    "test_cuda_program.py",
    "test_cuda_basis.py",
    "test_cuda_lanczos.py",
    "test_cuda_eigenvalues.py",
    "test_cuda_hessians.py",
    "test_cuda_products.py",
    "test_cuda_derivatives.py",
    "test_cuda_layers.py",
    "test_networks_cuda.py",
    "test_replays.py",
)


def test(tree: Path, tool: tuple[str, ...], *more: str) -> tuple[bool, str]:
    """Whether the GPU's tests pass on the package in `tree`, and pytest's last line."""
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*tool, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "-k", "not emulated and not order", *more]
    done = subprocess.run(
        [*command, "--rootdir", str(ROOT / "tests"), *(str(ROOT / "tests" / t) for t in TESTS)],
        env=env,
        cwd=tree,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.strip().splitlines() or [done.stderr[-500:]]
    if done.returncode != 0:
        print((done.stdout + done.stderr)[-6000:])
    return done.returncode == 0, lines[-1]


MEMORY_TESTS = (
    "not emulated and (other_ops or groups or few_samples or folded or epilogue or windows "
    "or cells_are)"
)


def check_memory(tree: Path) -> tuple[bool, str]:
    """memcheck and racecheck over a few programs; every launch is slow under them."""
    found = []
    for check in ("memcheck", "racecheck"):
        tool = ("compute-sanitizer", "--tool", check, "--error-exitcode", "9")
        passed, summary = test(tree, tool, "-k", MEMORY_TESTS)
        found.append((passed, f"{check}: {summary}"))
    return all(passed for passed, _ in found), "; ".join(text for _, text in found)


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


def measure(width: int, bandwidth: float) -> list[Row]:
    """A row for each kernel of directions; bandwidth in bytes per millisecond."""
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
    return rows


def measure_curvature(bandwidth: float) -> list[Row]:
    import gpu_curvature

    return [Row(*values) for values in gpu_curvature.measure(bandwidth, median_ms)]


def measure_hessians(bandwidth: float) -> list[Row]:
    import gpu_hessians
    import gpu_programs

    peak = gpu_programs.multiply_adds_per_ms()  # in float32
    half = None if peak is None else peak / 2
    return [Row(*values) for values in gpu_hessians.measure(bandwidth, half, median_ms)]


def allowed_error(name: str) -> float:
    """Same bits, but for sums of another order: a few eps of the factor."""
    import gpu_curvature
    import gpu_hessians

    for allowed in (gpu_curvature.ALLOWED, gpu_hessians.ALLOWED):
        if name in allowed:
            return allowed[name]
    if "direction" not in name:
        return 0.0
    return 24 * torch.finfo(torch.float64 if "float64" in name else torch.float32).eps


PARTS = ("tests", "kernels", "programs", "networks", "curvature", "hessians", "memory")


def engine_of(model: Any, land: Any) -> Any:
    """The CUDA engine for the model of a landscape on the CPU, on the current device."""
    from pylandscape import engine_cuda
    from pylandscape._native import ops
    from pylandscape.replays import GraphRecorder

    device = torch.device("cuda", torch.cuda.current_device())

    return engine_cuda.lower(
        model,
        land.loss_spec,
        land.dataset,
        land.moved,
        land.origin,
        dtype=land.dtype,
        memory=1 << 30,
        bn="eval",
        device=device,
        kernels=ops,
        shared_limit=int(ops.cuda_shared_limit(device.index)),
        instruction_set="cuda",
        recorder=lambda: GraphRecorder(device),
    )


def measure_programs(bandwidth: float, compile_too: bool) -> list[Any]:
    import gpu_programs

    return [
        gpu_programs.measure(case, engine_of, median_ms, bandwidth, compile_too)
        for case in gpu_programs.CASES
    ]


def measure_networks(compile_too: bool) -> list[Any]:
    import gpu_networks

    return [
        row
        for network in gpu_networks.NETWORKS
        for row in gpu_networks.measure(network, engine_of, median_ms, compile_too)
    ]


def print_kernels(rows: list[Row], bandwidth: float, width: int) -> None:
    n = resnet_segments(width)[0]
    print(
        f"copy {bandwidth / 1e6:.0f} GB/s; ResNet-18 of width {width}: {n / 1e6:.1f} M numbers\n"
        f"{'kernel':<36}{'ms':>9}{'floor':>9}{'share':>8}{'torch ms':>10}  error"
    )
    for row in rows:
        other = "" if row.torch is None else f"{row.torch:.3f}"
        wrong = "" if row.error <= allowed_error(row.name) else "  WRONG"
        print(
            f"{row.name:<36}{row.milliseconds:>9.3f}{row.floor:>9.3f}{row.share:>8.0%}{other:>10}"
            f"  {row.error:.1e}{wrong}"
        )


PROGRAM_ERROR = 200 * torch.finfo(torch.float32).eps  # as in tests/test_cuda_program.py


def print_programs(rows: list[Any]) -> None:
    print(f"{'losses of points':<36}{'how':<10}{'ms':>9}{'floor':>9}  best peer      ratio  error")
    for row in rows:
        best = min(row.peers, key=row.peers.__getitem__, default="none")
        other = f"{best} {row.peers.get(best, float('nan')):.2f} ms"
        wrong = "" if row.error <= PROGRAM_ERROR else "  WRONG"
        print(
            f"{row.name:<36}{row.how:<10}{row.milliseconds:>9.3f}{row.floor:>9.3f}  {other}"
            f"  {row.ratio or float('nan'):.1f}x  {row.error:.1e}{wrong}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--architectures", default="native", help="CMAKE_CUDA_ARCHITECTURES")
    parser.add_argument("--width", type=int, default=128, help="ResNet-18's; 64: 11.7 M parameters")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:-1])
    parser.add_argument("--compile", action="store_true", help="torch.compile among the peers")
    parser.add_argument("--minutes", type=float, default=8, help="when to start no further part")
    options = parser.parse_args()
    target = options.json
    if target is None and os.environ.get("OUT"):
        target = Path(os.environ["OUT"]) / "gpu_check.json"
    start = time.perf_counter()
    # Without a GPU there is no "native": both that are shipped.
    native = options.architectures == "native"
    architectures = None if native and not torch.cuda.is_available() else options.architectures
    report: dict[str, Any] = {"passed": True, "left_out": []}
    kernels: list[Row] = []
    programs: list[Any] = []
    bandwidth = 0.0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        build(tree, architectures)
        report["build_seconds"] = time.perf_counter() - start
        print(f"built with warnings as errors in {report['build_seconds']:.0f} s", flush=True)
        sys.path.insert(0, str(tree))
        from pylandscape._native import cuda_problem

        problem = cuda_problem()
        if problem is not None:
            print(f"the CUDA library builds and loads, but nothing can run on it here: {problem}")
            return 1
        report["device"] = torch.cuda.get_device_name()
        report["versions"] = {"torch": torch.__version__, "cuda": torch.version.cuda}
        for part in options.parts:
            if time.perf_counter() - start > 60 * options.minutes:
                report["left_out"].append(part)
                continue
            if part in ("kernels", "programs", "curvature", "hessians") and not bandwidth:
                bandwidth = report["copy_bytes_per_ms"] = copy_bandwidth()
            if part == "tests":
                passed, report["tests"] = test(tree, ())
                print(f"tests: {report['tests']}", flush=True)
                report["passed"] &= passed
            elif part == "kernels":
                kernels += measure(options.width, bandwidth)
            elif part == "curvature":
                kernels += measure_curvature(bandwidth)
            elif part == "hessians":
                kernels += measure_hessians(bandwidth)
            elif part == "programs":
                programs += measure_programs(bandwidth, options.compile)
            elif part == "networks":
                programs += measure_networks(options.compile)
            else:
                passed, report["memory"] = check_memory(tree)
                print(f"memory: {report['memory']}", flush=True)
                report["passed"] &= passed
            report[f"{part}_done_after"] = time.perf_counter() - start
    report["passed"] &= all(row.error <= allowed_error(row.name) for row in kernels)
    report["passed"] &= all(row.error <= PROGRAM_ERROR for row in programs)
    report["kernels"] = [asdict(row) for row in kernels]
    report["programs"] = [{**asdict(row), "ratio": row.ratio} for row in programs]
    print(f"{report['device']}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    if kernels:
        print_kernels(kernels, bandwidth, options.width)
    if programs:
        print_programs(programs)
    for part in report["left_out"]:
        print(f"left out for time: {part}")
    print("all checks passed" if report["passed"] else "FAILED")
    if target is not None:
        target.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
