"""Loads the compiled core. torch first: the core uses its thread pool and its dispatcher."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

if find_spec("pylandscape._C") is None:
    folder = Path(__file__).resolve().parent
    raise ImportError(
        f"pylandscape: {folder} has no compiled core. "
        + (
            "It is the source folder of a checkout, which hides an installed package while Python "
            'runs in the checkout: run elsewhere, or install with "pip install -e .".'
            if (folder.parent / "CMakeLists.txt").exists()
            else "Install the package again, with torch >= 2.11 installed first."
        )
    )
core: Any = import_module("pylandscape._C")

ops = torch.ops.pylandscape


def _load_cuda() -> bool:
    spec = find_spec("pylandscape._C_cuda")
    if spec is None or spec.origin is None:
        return False
    torch.ops.load_library(spec.origin)
    return True


has_cuda_kernels: bool = _load_cuda()


def cuda_problem() -> str | None:
    """Why the CUDA kernels cannot run here, and what to do about it; None when they can."""
    if not has_cuda_kernels:
        return (
            "this pylandscape was built without CUDA kernels: install nvcc and build again with "
            '"PYLANDSCAPE_CUDA=ON pip install ."'
        )
    torch_can, error, count = ops.cuda_status()
    if not torch_can:
        return (
            f"this torch ({torch.__version__}) has no CUDA support: install a CUDA build of torch "
            "(pylandscape's own CUDA kernels are there)"
        )
    if error != 0 or count == 0:
        return f"no usable GPU: the CUDA driver reports {count} devices (error {error})"
    return None


def cpu_capability() -> str:
    """The instruction set in use: "default", "avx2" or "avx512".

    The environment variable PYLANDSCAPE_CPU_CAPABILITY, read once at load, forces one.
    """
    return str(core.cpu_capability())
