"""The progress bar of long work, and the estimate that stands above it.

Imports tqdm, so it is imported where a bar is made (`arrays.progress_bar`).
"""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

DELAY = 0.5  # seconds before a bar appears
LONG = 30.0  # seconds of work ahead that deserve an estimate
MEASURED = 0.3  # seconds of work, after the first, slower share, that are enough for one
SLOW = 2.0  # seconds of one first share that are enough alone
UNITS = {"pt": "points", "Av": "products", "product": "products", "step": "steps"}


class Bar(tqdm):
    """A bar on stderr that says once, where the work is long, how long it will take.

    Args:
        memory: bytes that the whole work holds; 0: not known.
        guess: seconds that a unit may take, known before any was done; 0: not known.
        total, desc, unit, initial, disable: as tqdm's.
    """

    def __init__(self, *, memory: int = 0, guess: float = 0.0, **options: Any) -> None:
        super().__init__(delay=DELAY, **options)
        self._memory, self._told = memory, bool(self.disable)
        self._begun = time.perf_counter()
        self._first: tuple[float, float] | None = None  # units done and time after the first share
        if guess > SLOW and not self._told and self._ahead(guess) > LONG:
            self._say(guess, "at most, as the model's first run took")
            self.refresh()

    def update(self, n: float | None = 1) -> bool | None:
        """tqdm's, and then the estimate where it is time for it."""
        shown = super().update(n)
        if self._told:
            return shown
        now = time.perf_counter()
        if self._first is None:  # the first share is slower
            done, seconds, enough = self.n - self.initial, now - self._begun, SLOW
            self._first = (self.n, now)
        else:
            done, seconds, enough = self.n - self._first[0], now - self._first[1], MEASURED
        if done > 0 and seconds > enough:
            self._told = True
            if self._ahead(seconds / done) > LONG:
                self._say(seconds / done, "measured")
        return shown

    def _ahead(self, each: float) -> float:
        return each * ((self.total or 0) - self.n)

    def _say(self, each: float, how: str) -> None:
        self._told = True
        rest = int((self.total or 0) - self.n)
        held = f"; {_size(self._memory)} of memory" if self._memory else ""
        about = "at most" if self.unit == "Av" else "about"  # iterations end when they converge
        what = UNITS.get(self.unit, f"{self.unit}s")
        self.write(
            f"{self.desc.rstrip(': ')}: {rest:,} {what}, {_duration(each)} each ({how}): {about} "
            f"{_duration(self._ahead(each))}{held}",
            file=sys.stderr,
        )


_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


def _duration(seconds: float) -> str:
    """As "1.3 ms", "12 s", "4 min", "2 h 5 min", "3 d 4 h"."""
    if seconds < 100:
        unit, scale = next((u, k) for u, k in _UNITS if seconds >= k or u == "us")
        return f"{float(f'{seconds / scale:.2g}'):g} {unit}"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24:,} d {hours % 24} h"


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 2**10:.3g} KiB"
