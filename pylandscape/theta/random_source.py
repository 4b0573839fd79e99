"""Random numbers of the spectral path: the counter-based Gaussian of csrc/common/gaussian.h.

Number j of a stream is a function of (seed, stream, j) alone: the same on every CPU, GPU and thread
count, and in a run that was stopped and goes on. They are float32 values, in vectors of any dtype.

A stream is a kind in the top byte and an index below it, so that no two uses of one seed share
numbers; random directions have streams 0, 1, ... (kind 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._native import cuda_problem, ops

SOURCE = "counter"  # what a request says of its draws
STARTS = 0x11  # kinds: starts of Lanczos and probes of a spectrum,
SINGLE = 0x17  # one vector that asks a matrix something else: which rows are zero,
TEST_VECTORS = 0x12  # of traces and diagonals,
FRESH_ROWS = 0x13  # of Lanczos after a breakdown, also in csrc/lanczos/rows.h,
NOISE = 0x14  # what is random in a warm start (0x15: csrc/lanczos/basis.cpp),
PERTURBATIONS = 0x16  # steps of flatness measures,
ORDER = 0x18  # the order of the samples in an epoch of training,
DROPOUT = 0x19  # masks of training, also in csrc/program/ops/dropout.cpp
PROFILES = 0x1C  # directions in which a valley is looked at
SUBSET = 0x1D  # which samples of the data a landscape takes
STEP = 0x1E  # the step to the point where a copy is compared with its module


def fill(out: Tensor, seed: int, kind: int, index: int = 0, first: int = 0) -> Tensor:
    """Standard normal numbers in out (n,), float32 or float64, on any device; returns it.

    Args:
        seed: any integer, modulo 2^64.
        kind: one of this module's.
        index: which vector of its kind, below 2^56.
        first: the number of the vector that goes into out[0].
    """
    there = out.device.type == "cpu" or (out.device.type == "cuda" and cuda_problem() is None)
    direct = there and out.dtype == torch.float32 and out.is_contiguous()
    place = out.device if there else "cpu"
    drawn = out if direct else torch.empty(out.shape, dtype=torch.float32, device=place)
    ops.gaussian(_signed(seed), _signed(kind << 56 | index), first, out=drawn)
    return out if direct else out.copy_(drawn)


def quantile(share: float) -> float:
    """What a standard normal number is below with this probability, as a float32 has it."""
    return float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64)).float())


def normals(
    count: int, n: int, seed: int, kind: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """(count, n) of standard normal numbers: row i depends on (seed, kind, i) alone."""
    found = torch.empty(count, n, dtype=dtype, device=device)
    for i, row in enumerate(found):
        fill(row, seed, kind, i)
    return found


def _signed(word: int) -> int:
    """The 64-bit word as the integer that an op takes."""
    return (word + 2**63) % 2**64 - 2**63
