"""``python bench/gpu_check.py [--parts ...] [--json FILE]``: the CUDA half on this machine.

Builds the extension with CUDA from this checkout (no network; needs nvcc, cmake, ninja, pybind11
and torch), then, each in a process of its own:

    tests     those of TESTS, on the GPU only
    kernels   directions and perturbation: against the CPU's result and, timed, against their floor:
              the bytes that they must move over the bandwidth of a copy, measured in the same run
    programs  losses of many points: against float64, their floor and torch (gpu_programs.py)
    networks  the same of convolution networks, in every way that they can run (gpu_networks.py)
    curvature  reorthogonalisation, small eigenvalues (gpu_curvature.py) and Hessian-vector products
              (gpu_products.py), likewise
    hessians  small Hessians at many points, likewise (gpu_hessians.py)
    memory    compute-sanitizer's memcheck and racecheck over a few of the tests; not by default

Rows are printed and kept as they come, so that a part that fails, or takes longer than its share,
loses nothing of the others; a short table comes last. JSON goes to --json, else to
$OUT/gpu_check.json where OUT is set. Exit status 1 when a part fails or there is no GPU (the build
is checked anyway). No part starts, or goes on, after --minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

TOGETHER = 4  # files of tests at a time
ROOT = Path(__file__).resolve().parent.parent
# Seconds that a part may take.
PARTS = {"tests": 210, "kernels": 80, "hessians": 80, "curvature": 150, "programs": 100,
         "networks": 150, "memory": 240}  # fmt: skip
PROGRAM_ERROR = 200 * torch.finfo(torch.float32).eps  # as in tests/test_cuda_program.py


def build(tree: Path, architectures: str | None) -> str | None:
    """The package with both libraries in `tree`, an importable folder; the build beside it is gone
    on with where there is one. Gives what the compilers warned of, if that alone is in the way."""
    work = tree.parent / "build"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT / "pylandscape", tree / "pylandscape", ignore=_not_source)
    prefix = subprocess.check_output(
        [sys.executable, "-m", "pybind11", "--cmakedir"], text=True
    ).strip()
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_INSTALL_PREFIX": tree,
        "CMAKE_PREFIX_PATH": prefix,
        "Python_EXECUTABLE": sys.executable,
        "PYLANDSCAPE_CUDA": "ON",
    }
    if architectures:
        options["CMAKE_CUDA_ARCHITECTURES"] = architectures
    said = None
    for warnings_are_errors in ("ON", "OFF"):
        options["PYLANDSCAPE_WERROR"] = warnings_are_errors
        configure = ["cmake", "-S", str(ROOT), "-B", str(work), "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in options.items()]
        for command in (configure, ["cmake", "--build", str(work), "--target", "install"]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                log = f"{' '.join(command)}\n{(done.stdout + done.stderr)[-6000:]}"
                break
        else:
            return said
        if said is not None:
            break
        print(log, flush=True)
        said = log
    raise SystemExit(log)


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


def test(tree: Path, tool: tuple[str, ...], seconds: float, *more: str) -> tuple[bool, str]:
    """Whether the GPU's tests pass on the package in `tree`, and pytest's last lines.

    Each file is a process of its own, some at a time: an error that a GPU does not recover from
    ends only one."""
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*tool, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "-k", "not emulated and not order", *more]
    command += ["--rootdir", str(ROOT / "tests")]
    end = time.perf_counter() + seconds

    def run(name: str) -> tuple[bool, str]:
        log = tree.parent / f"{name}.log"
        left = max(1.0, end - time.perf_counter())
        try:
            with log.open("w") as out:
                code = subprocess.run(
                    [*command, str(ROOT / "tests" / name)],
                    env=env,
                    cwd=tree,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    timeout=left,
                ).returncode
        except subprocess.TimeoutExpired:
            code = -1
        said = log.read_text()
        last = (said.strip().splitlines() or [""])[-1]
        if code == 5 or (code == 0 and " passed" in last):  # 5: none of this file was asked for
            return True, f"{name}: {last}"
        print(f"-- {name}\n{said[-3000:]}", flush=True)
        return False, f"{name}: {'no end' if code < 0 else last}"

    with ThreadPoolExecutor(1 if tool else TOGETHER) as pool:
        found = list(pool.map(run, TESTS))
    return all(passed for passed, _ in found), "\n".join(text for _, text in found)


MEMORY_TESTS = (
    "not emulated and (other_ops or groups or few_samples or folded or epilogue or windows "
    "or cells_are)"
)


def check_memory(tree: Path, seconds: float) -> tuple[bool, str]:
    """memcheck and racecheck over a few programs; every launch is slow under them."""
    found = []
    for check in ("memcheck", "racecheck"):
        tool = ("compute-sanitizer", "--tool", check, "--error-exitcode", "9")
        passed, summary = test(tree, tool, seconds / 2, "-k", MEMORY_TESTS)
        found.append((passed, f"{check}\n{summary}"))
    return all(passed for passed, _ in found), "\n".join(text for _, text in found)


def engine_of(model: Any, land: Any) -> Any:
    """The CUDA engine for the model of a landscape on the CPU, on the current device."""
    from pylandscape._native import ops
    from pylandscape.engines.cuda import engine
    from pylandscape.engines.cuda.replays import GraphRecorder

    device = torch.device("cuda", torch.cuda.current_device())

    return engine.lower(
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


def rows_of(part: str, bandwidth: float, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of a part: what is measured, "allowed" (the error that is) and "text" (a line)."""
    from bench import gpu_curvature, gpu_directions, gpu_hessians, gpu_networks, gpu_programs
    from bench.gpu_timing import Row, median_ms

    if part == "programs":
        for case in gpu_programs.CASES:
            yield _program(
                gpu_programs.measure(case, engine_of, median_ms, bandwidth, options.compile)
            )
    elif part == "networks":
        for network in gpu_networks.NETWORKS:
            for row in gpu_networks.measure(network, engine_of, median_ms, options.compile):
                yield _program(row)
    elif part == "kernels":
        for row in gpu_directions.measure(options.width, bandwidth):
            double = torch.finfo(torch.float64 if "float64" in row.name else torch.float32)
            # Same bits, but for sums of another order: a few eps of the factor.
            yield _kernel(row, 24 * double.eps if "direction" in row.name else 0.0)
    elif part == "curvature":
        for values in gpu_curvature.measure(engine_of, bandwidth, median_ms):
            yield _kernel(Row(*values), gpu_curvature.ALLOWED[values[0]])
    else:
        peak = gpu_programs.multiply_adds_per_ms()  # in float32
        half = None if peak is None else peak / 2
        for values in gpu_hessians.measure(bandwidth, half, median_ms):
            yield _kernel(Row(*values), gpu_hessians.ALLOWED[values[0]])


def _kernel(row: Any, allowed: float) -> dict[str, Any]:
    other = "" if row.torch is None else f"torch {row.torch:.3f} ms"
    text = (
        f"{row.name:<44}{row.milliseconds:>10.3f} ms, floor {row.floor:.3f}, {row.share:.0%}"
        f"  {other}  error {row.error:.1e}"
    )
    return {**asdict(row), "allowed": allowed, "text": text}


def _program(row: Any) -> dict[str, Any]:
    best = min(row.peers, key=row.peers.__getitem__, default="none")
    ratio = "" if row.ratio is None else f"{row.ratio:.1f}x  {best} {row.peers[best]:.2f} ms"
    text = (
        f"{row.name + ', ' + row.how:<44}{row.milliseconds:>10.3f} ms, "
        f"floor {row.floor or float('nan'):.3f}  {ratio}  error {row.error:.1e}"
    )
    return {**asdict(row), "ratio": row.ratio, "allowed": PROGRAM_ERROR, "text": text}


def measure(part: str, options: argparse.Namespace) -> int:
    """A part of rows, in a process of its own: each is written to --json as it comes."""
    sys.path[0] = str(options.tree)  # before the checkout, whose package is not built
    sys.path.append(str(ROOT))
    from bench.gpu_timing import copy_bandwidth

    bandwidth = copy_bandwidth()
    report: dict[str, Any] = {"copy_bytes_per_ms": bandwidth, "rows": []}
    right = True
    for row in rows_of(part, bandwidth, options):
        right &= row["error"] <= row["allowed"]
        print(row["text"] + ("" if row["error"] <= row["allowed"] else "  WRONG"), flush=True)
        report["rows"].append(row)
        options.json.write_text(json.dumps(report))
    return 0 if right else 1


def run_part(part: str, options: argparse.Namespace, tree: Path, seconds: float) -> dict[str, Any]:
    """What a part gives; "failure" where it does not end well."""
    found: dict[str, Any] = {"rows": []}
    start = time.perf_counter()
    try:
        if part == "tests":
            passed, found["summary"] = test(tree, (), seconds)
        elif part == "memory":
            passed, found["summary"] = check_memory(tree, seconds)
        else:
            kept = tree.parent / f"{part}.json"
            command = [sys.executable, __file__, "--measure", part, "--tree", str(tree)]
            command += ["--json", str(kept), "--width", str(options.width)]
            command += ["--compile"] if options.compile else []
            try:
                passed = subprocess.run(command, timeout=seconds).returncode == 0
            finally:
                if kept.exists():
                    found |= json.loads(kept.read_text())
        if not passed:
            found["failure"] = "wrong, or stopped by an error: see above"
    except subprocess.TimeoutExpired:
        found["failure"] = f"took longer than {seconds:.0f} s"
    found["seconds"] = time.perf_counter() - start
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--architectures", default="native", help="CMAKE_CUDA_ARCHITECTURES")
    parser.add_argument("--width", type=int, default=192, help="ResNet-18's; 192: 105 M numbers")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS)[:-1])
    parser.add_argument("--compile", action="store_true", help="torch.compile among the peers")
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything")
    parser.add_argument("--folder", type=Path, help="where to build, and go on with a build")
    parser.add_argument("--measure", choices=PARTS, help=argparse.SUPPRESS)  # a child's part
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure, options)
    target = options.json
    if target is None and os.environ.get("OUT"):
        target = Path(os.environ["OUT"]) / "gpu_check.json"
    end = time.perf_counter() + 60 * options.minutes
    # Without a GPU there is no "native": both that are shipped.
    native = options.architectures == "native"
    architectures = None if native and not torch.cuda.is_available() else options.architectures
    report: dict[str, Any] = {"parts": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.folder is None else options.folder.resolve()
        tree = folder / "tree"
        start = time.perf_counter()
        report["warnings"] = build(tree, architectures)
        report["build_seconds"] = time.perf_counter() - start
        how = "with warnings as errors" if report["warnings"] is None else "WITH WARNINGS"
        print(f"built {how} in {report['build_seconds']:.0f} s", flush=True)
        problem = _problem(tree)
        if problem:
            print(f"the CUDA library builds and loads, but nothing can run on it here: {problem}")
            return 1
        report["device"] = torch.cuda.get_device_name()
        report["versions"] = {"torch": torch.__version__, "cuda": torch.version.cuda}
        for part in options.parts:
            left = end - time.perf_counter()
            print(f"\n== {part}", flush=True)
            found = {"rows": [], "failure": "no time left"}
            if left > 5:
                found = run_part(part, options, tree, min(left, PARTS[part]))
            report["parts"][part] = found
            if target is not None:
                target.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{report['device']}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    for part, found in report["parts"].items():
        print(f"== {part}, {found.get('seconds', 0):.0f} s: {found.get('failure', 'passed')}")
        if "summary" in found:
            print(found["summary"])
        for row in found["rows"]:
            print(row["text"] + ("" if row["error"] <= row["allowed"] else "  WRONG"))
    return int(any("failure" in found for found in report["parts"].values()))


def _problem(tree: Path) -> str:
    """Why nothing can run on the GPU, or nothing."""
    code = "from pylandscape._native import cuda_problem; print(cuda_problem() or '')"
    env = {**os.environ, "PYTHONPATH": str(tree)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tree, capture_output=True, text=True
    )
    return (found.stdout + found.stderr[-2000:] * (found.returncode != 0)).strip()


if __name__ == "__main__":
    raise SystemExit(main())
