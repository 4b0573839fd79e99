"""What the rows of gpu_check share: times by CUDA events, the bandwidth of a copy, a row."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Run = Callable[[int], Any]  # of the number of an input set
CYCLES = 400_000  # about 0.2 ms
SECONDS = 1.5  # of the repetitions of one row, beyond the fewest


@dataclass
class Row:
    """One kernel: medians in milliseconds; share = floor / measured, 1 is as fast as a copy."""

    name: str
    milliseconds: float
    floor: float
    share: float
    torch: float | None  # plain torch for the same result
    error: float  # largest |difference to the CPU|, relative to the largest element; 0: same bits


def median_ms(run: Run, sets: int, repetitions: int = 25) -> float:
    """CUDA events around each of `repetitions` calls, which take the input sets in turn; fewer of
    them, but five, where they take long."""
    for i in range(sets + 2):
        run(i % sets)
    torch.cuda.synchronize()
    times: list[float] = []
    for i in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(CYCLES)  # meanwhile the host puts the launches in line
        start.record()
        run(i % sets)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
        if len(times) >= 5 and sum(times) > 1e3 * SECONDS:
            break
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes read plus bytes written per millisecond by a 2 GB device-to-device copy."""
    source = torch.empty(1 << 29, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_ms(lambda _: target.copy_(source), 1)
