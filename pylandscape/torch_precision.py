"""torch's products and convolutions in plain float32, and the same ones every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What torch may compute in TF32, by the names of its newer settings.
_KINDS = ("matmul", "conv", "rnn")


@contextmanager
def exact_float32() -> Iterator[None]:
    """Without TF32, and with the algorithms of cuDNN chosen by shapes among those whose results are
    the same every time.

    The settings are the process's: other threads have them meanwhile. They are the caller's again
    afterwards, whatever happens.
    """
    # torch keeps each choice twice, in an older and a newer setting, and refuses to multiply where
    # they contradict each other. Both are set here.
    names = [("cuda", kind) for kind in _KINDS] + [("mkldnn", "matmul")]
    newer = [torch._C._get_fp32_precision_getter(*name) for name in names]
    matmul, conv = _matmul_setting(newer[0]), _conv_setting(newer[1])
    chosen = torch._C._get_cudnn_benchmark(), torch._C._get_cudnn_deterministic()
    try:
        torch._C._set_float32_matmul_precision("highest")
        torch._C._set_cudnn_allow_tf32(False)
        for kind in _KINDS:
            torch._C._set_fp32_precision_setter("cuda", kind, "ieee")
        torch._C._set_cudnn_benchmark(False)
        torch._C._set_cudnn_deterministic(True)
        yield
    finally:
        torch._C._set_float32_matmul_precision(matmul)
        torch._C._set_cudnn_allow_tf32(conv)
        for name, precision in zip(names, newer, strict=True):
            torch._C._set_fp32_precision_setter(*name, precision)
        torch._C._set_cudnn_benchmark(chosen[0])
        torch._C._set_cudnn_deterministic(chosen[1])


def _matmul_setting(newer: str) -> str:
    """The older setting of products: torch does not tell it where it contradicts the newer one."""
    try:
        return str(torch._C._get_float32_matmul_precision())
    except RuntimeError:
        return "highest" if newer == "tf32" else "high"


def _conv_setting(newer: str) -> bool:
    try:
        return bool(torch._C._get_cudnn_allow_tf32())
    except RuntimeError:
        return newer != "tf32"
