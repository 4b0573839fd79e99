"""Dropout by counter: torch's forward pass drops what the compiled core does.

Whether an element is dropped is a function of (the run's seed, the step, which of the pass's
dropouts it is, the element's place in its tensor) alone: a standard normal number of that stream
lies below the rate's quantile. The way goes on in csrc/program/ops/dropout.cpp.
"""

from __future__ import annotations

import threading
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import _VF, Tensor

from ..theta import random_source

# What torch.nn.functional's dropouts call: of elements, and of channels.
_CALLS = ("dropout", "dropout_", "feature_dropout", "feature_dropout_")
_MOST = 1 << 16  # dropouts in a pass
_STEPS = 40  # bits


class CountedDropout:
    """Within it, torch.nn.functional's dropouts of elements and of channels draw by counter.

    torch's generator on the CPU counts the dropouts: its seed is ``start`` plus their number. So
    code that runs a part of the forward pass again from the generator's state (activation
    checkpoints, in the backward pass) meets the same masks. Where the pass has seeded the generator
    itself, they draw from it as ever; so do other threads.

    Args:
        seed: the run's.
        step: of the optimiser, below 2^40.
        start: what the generator is seeded with when the pass begins.
    """

    def __init__(self, seed: int, step: int, start: int) -> None:
        self._seed, self._step, self._start = seed, step, start
        self._thread = threading.get_ident()

    @property
    def count(self) -> int:
        """Dropouts so far; meaningless where the pass has seeded the generator itself."""
        return int(torch.default_generator.initial_seed()) - self._start

    def __enter__(self) -> CountedDropout:
        for name in _CALLS:
            setattr(_VF, name, partial(self._dropped, getattr(_VF, name), name))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in _CALLS:
            delattr(_VF, name)  # torch's own is behind it

    def _dropped(
        self, own: Any, name: str, input: Tensor, p: float, train: bool, *args: Any, **kwargs: Any
    ) -> Tensor:
        count = self.count
        ours = input.is_cuda or threading.get_ident() == self._thread
        if not (ours and train and 0 < p <= 1 and 0 <= count < _MOST and input.numel()):
            found: Tensor = own(input, p, train, *args, **kwargs)
            return found
        torch.default_generator.manual_seed(self._start + count + 1)
        shape = input.shape[:2] if name.startswith("feature") else input.shape
        numbers = torch.empty(shape, dtype=torch.float32, device=input.device)
        stream = count << _STEPS | self._step
        random_source.fill(numbers.view(-1), self._seed, random_source.DROPOUT, stream)
        mask = torch.zeros(shape, dtype=input.dtype, device=input.device)
        mask.masked_fill_(numbers >= random_source.quantile(p), 1 / (1 - p) if p < 1 else 0.0)
        mask = mask.view(*shape, *[1] * (input.dim() - len(shape)))
        return input.mul_(mask) if name.endswith("_") else input * mask
