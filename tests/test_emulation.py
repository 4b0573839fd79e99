"""The emulation finds what it is there to find."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from emulation_support import ORDERS, library, scheduled
from torch import Tensor


def _run(which: int, n: int, x: Tensor, out: Tensor) -> str:
    ask = library().emulation_fault
    ask.restype, ask.argtypes = (
        ctypes.c_char_p,
        [ctypes.c_int, ctypes.c_int, *[ctypes.c_void_p] * 2],
    )
    return str(ask(which, n, x.data_ptr(), out.data_ptr()).decode())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 255, 1024])
def test_a_block_meets_at_its_barrier_in_every_order(n: int, order: str) -> None:
    x, out = torch.randn(n), torch.empty(n)
    with scheduled(threads=order, seed=n):
        assert _run(0, n, x, out) == ""
    assert torch.equal(out, x.flip(0))


RACES = "libtsan" in os.environ.get("LD_PRELOAD", "")


@pytest.mark.skipif(not RACES, reason="without the thread sanitizer")
def test_a_missing_barrier_is_a_race() -> None:
    planted = "test_a_missing_barrier_gives_wrong_results_in_every_order"
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", __file__, "-k", planted],
        env={**os.environ, "PLANTED": "1", "TSAN_OPTIONS": "exitcode=66"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 66, found.stdout[-2000:]
    assert "data race" in found.stderr
    assert "reverse<false>" in found.stderr


@pytest.mark.skipif(RACES and "PLANTED" not in os.environ, reason="a race, which ends the run")
def test_a_missing_barrier_gives_wrong_results_in_every_order() -> None:
    for order in ORDERS:
        x, out = torch.randn(64), torch.empty(64)
        with scheduled(threads=order, seed=1):
            assert _run(1, 64, x, out) == ""
        assert not torch.equal(out, x.flip(0))  # some threads read before others wrote: NaN


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (2, "7 of 32 threads wait, the others never come"),
        (3, "threads of one block wait in lines"),
        (4, "waits for lanes of its mask that never come"),
        (5, "from lane 20, which is not in its mask"),
        (7, "more dynamic shared memory than the kernel was allowed"),
        (8, "a block of more than 1024 threads"),
    ],
)
def test_what_a_gpu_leaves_undefined_is_an_error(which: int, message: str) -> None:
    x, out = torch.zeros(32), torch.zeros(32)
    assert message in _run(which, 32, x, out)
    assert _run(0, 32, x, out) == ""  # and the next launch runs


@pytest.mark.parametrize("order", ORDERS)
def test_warp_operations_move_what_cuda_moves(order: str) -> None:
    lanes, out = torch.arange(32), torch.empty(6, 32)
    with scheduled(threads=order, seed=2):
        assert _run(6, 32, out, out) == ""
    want = [
        torch.full((32,), 5),
        lanes ^ 6,
        torch.where(lanes + 3 < 32, lanes + 3, lanes),
        torch.where(lanes >= 3, lanes - 3, lanes),
        lanes // 8 * 8 + 1,
        torch.full((32,), 11),
    ]
    assert torch.equal(out, torch.stack(want).float())


def test_every_thread_of_every_block_runs_once() -> None:
    total = torch.zeros(1, dtype=torch.int32)
    assert _run(9, 1, total, total) == ""
    assert total.item() == 3 * 5 * 2 * 4 * 8 * 2
