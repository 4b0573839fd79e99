"""Loads the compiled core. torch first: the core uses its thread pool and its dispatcher."""

from __future__ import annotations

from importlib.util import find_spec

import torch

try:
    from . import _C as core
except ImportError as error:  # pragma: no cover - a broken installation
    raise ImportError(
        f"pylandscape: the compiled core could not be loaded ({error}). Install the package with "
        '"pip install ." from its checkout, with torch >= 2.11 installed first.'
    ) from error

ops = torch.ops.pylandscape


def _load_cuda() -> bool:
    spec = find_spec("pylandscape._C_cuda")
    if spec is None or spec.origin is None:
        return False
    torch.ops.load_library(spec.origin)
    return True


has_cuda_kernels: bool = _load_cuda()


def cpu_capability() -> str:
    """The instruction set in use: "default", "avx2" or "avx512".

    The environment variable PYLANDSCAPE_CPU_CAPABILITY, read once at load, forces one.
    """
    return str(core.cpu_capability())
