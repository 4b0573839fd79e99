"""torch's products and convolutions in plain float32, and the same ones every time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# What torch may compute in TF32, by the names of its newer settings.
_KINDS = ("matmul", "conv", "rnn")

_lock = threading.Lock()
_inside = 0  # how often the settings are asked for at the moment, by all threads
_restore: Callable[[], None] | None = None


@contextmanager
def exact_float32() -> Iterator[None]:
    """Without TF32, and with the algorithms of cuDNN chosen by shapes among those whose results are
    the same every time.

    The settings are the process's: other threads have them meanwhile. They are the caller's again
    when the last of all who asked for them has left, whatever happens.
    """
    global _inside, _restore
    with _lock:
        if _inside == 0:
            _restore = _saved()
            _set()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _restore is not None:
                _restore()


# torch keeps each choice twice, in an older and a newer setting, and refuses to multiply where they
# contradict each other. Both are set here.


def _set() -> None:
    torch._C._set_float32_matmul_precision("highest")
    torch._C._set_cudnn_allow_tf32(False)
    for kind in _KINDS:
        torch._C._set_fp32_precision_setter("cuda", kind, "ieee")
    torch._C._set_cudnn_benchmark(False)
    torch._C._set_cudnn_deterministic(True)


def _saved() -> Callable[[], None]:
    """What brings the present settings back."""
    names = [("cuda", kind) for kind in _KINDS] + [("mkldnn", "matmul")]
    newer = [torch._C._get_fp32_precision_getter(*name) for name in names]
    matmul, conv = _matmul_setting(newer[0]), _conv_setting(newer[1])
    benchmark = torch._C._get_cudnn_benchmark()
    deterministic = torch._C._get_cudnn_deterministic()

    def restore() -> None:
        torch._C._set_float32_matmul_precision(matmul)
        torch._C._set_cudnn_allow_tf32(conv)
        for name, precision in zip(names, newer, strict=True):
            torch._C._set_fp32_precision_setter(*name, precision)
        torch._C._set_cudnn_benchmark(benchmark)
        torch._C._set_cudnn_deterministic(deterministic)

    return restore


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
