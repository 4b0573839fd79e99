"""The CUDA kernels on the CPU: csrc/cuda compiled by the host's C++ compiler (tests/emulation)."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
EMULATION = ROOT / "tests" / "emulation"
SOURCES = (
    EMULATION / "ops.cpp",
    EMULATION / "faults.cu",
    *sorted((ROOT / "csrc" / "cuda").glob("*.c[up]*")),
)
ORDERS = ("forward", "reversed", "shuffled")
SHARED_LIMIT = 163 * 1024  # of sm_80
FLAGS = [
    *("-std=gnu++17", "-O1", "-fPIC", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"),
    "-DTORCH_TARGET_VERSION=0x020b000000000000ULL",
]


def compiler() -> list[str]:
    """The command of the host's C++ compiler."""
    return shlex.split(os.environ.get("CXX", "g++"))


def compile_objects(sources: tuple[Path, ...], flags: list[str], folder: Path) -> list[str]:
    """Object files of the sources, as C++; a few at a time."""
    include = Path(torch.__file__).parent / "include"
    flags = [*flags, f"-I{EMULATION}", f"-I{ROOT / 'csrc'}", "-isystem", str(include)]

    def one(source: Path) -> str:
        target = folder / f"{source.name}.o"
        command = [*compiler(), *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-5000:]}"
        return str(target)

    sources = tuple(s for s in sources if s.suffix in (".cu", ".cpp"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, sources))


def _digest() -> str:
    """Of everything that is compiled in, so that a library is built once for each version."""
    sha = hashlib.sha256(f"{FLAGS}{torch.__version__}{compiler()}{_sanitized()}".encode())
    for path in sorted([*ROOT.glob("csrc/**/*"), *EMULATION.glob("**/*")]):
        if path.suffix in (".cu", ".cuh", ".cpp", ".h"):
            sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


def _sanitized() -> list[str]:
    """The flags of a run under a sanitizer (.ci/run), which the library must share."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    for runtime, kinds in (("libasan", "address,undefined"), ("libtsan", "thread")):
        if runtime in preloaded:
            return [f"-fsanitize={kinds}", "-fno-omit-frame-pointer", "-g1"]
    return []


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = compile_objects(SOURCES, [*FLAGS, *_sanitized()], Path(folder))
        torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        linked = Path(folder) / "linked.so"
        link = [*compiler(), "-shared", *_sanitized(), *objects, str(torch_cpu)]
        subprocess.run([*link, "-o", str(linked)], check=True)
        linked.rename(target)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The emulated ops, loaded: torch.ops.pylandscape_emulated."""
    if shutil.which(compiler()[0]) is None:
        pytest.skip("no C++ compiler to build the emulated kernels with")
    kept = Path(tempfile.gettempdir()) / f"pylandscape-emulation-{os.getuid()}"
    kept.mkdir(exist_ok=True, mode=0o700)
    target = kept / f"{_digest()}.so"
    with locked(target.with_suffix(".lock")):  # another worker may be compiling it
        if not target.exists():
            _build(target)
    torch.ops.load_library(str(target))
    found = ctypes.CDLL(str(target))
    found.emulation_launches.restype = ctypes.c_int64
    found.emulation_blocks.argtypes = [ctypes.c_int64]
    found.emulation_order.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint64]
    return found


def emulated_ops() -> Any:
    library()
    return torch.ops.pylandscape_emulated


@contextmanager
def scheduled(threads: str = "forward", blocks: str = "forward", seed: int = 0) -> Iterator[None]:
    """In which order threads between barriers, and blocks, run."""
    set_order = library().emulation_order
    set_order(ORDERS.index(threads), ORDERS.index(blocks), seed)
    try:
        yield
    finally:
        set_order(0, 0, 0)


@contextmanager
def device_of(blocks: int) -> Iterator[None]:
    """A device that runs so many blocks at once."""
    library().emulation_blocks(blocks)
    try:
        yield
    finally:
        library().emulation_blocks(8)
