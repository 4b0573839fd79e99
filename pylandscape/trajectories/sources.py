"""Where the numbers of a trajectory lie: an array, state dicts and mapped checkpoints, a file.

A source gives the parameters of all T points for a range of columns of theta, so that no question
needs the whole (T, n) in memory, and the state of one point by name.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import Array
from ..errors import InvalidArgument
from ..theta.layout import ParameterLayout

VERIFIED = 256 << 20  # bytes: a recording up to it is compared with its checksums when opened
_RESIDENT = 64 << 20  # bytes of a mapped file that may stay in the process after they were read


class Source(Protocol):
    """T points of n parameters."""

    def __len__(self) -> int: ...

    def columns(
        self, rows: NDArray[np.intp], first: int, last: int, out: Array | None = None
    ) -> Array:
        """(len(rows), last - first) float64: elements first .. last of theta at these points;
        ``out`` is filled and given back, where it is given."""

    def state(self, row: int) -> dict[str, Tensor]:
        """Parameters and running statistics of one point by name."""

    def verify(self) -> None:
        """Compare all points with their checksums. Raises FileFormatError."""


class Points(Protocol):
    """What a `Trajectory` is to the questions asked of it."""

    layout: ParameterLayout
    steps: NDArray[np.int64]
    metrics: dict[str, Array]
    info: dict[str, Any]

    def __len__(self) -> int: ...

    def state(self, index: int) -> dict[str, Tensor]:
        """Parameters and running statistics of one point by name."""

    def point(self, value: Any, name: str) -> Tensor:
        """(n,) float64 of an index of the path, a module, a state dict or a vector."""

    def blocks(
        self,
        selected: Sequence[str] | None = None,
        points: int | None = None,
        *,
        reuse: bool = False,
    ) -> Iterator[tuple[int, int, Array]]:
        """(first, last, columns (T, last - first)) block by block through theta; with ``reuse``
        each is there until the next."""


def check_points(trajectory: Any, function: str) -> None:
    """Raises InvalidArgument for anything else in the place of a trajectory."""
    if all(hasattr(trajectory, name) for name in ("layout", "steps", "blocks")):
        return
    several = isinstance(trajectory, Sequence) and all(hasattr(t, "blocks") for t in trajectory)
    how = "pylandscape.trajectory(...) makes one of recordings, checkpoints, modules or vectors"
    raise InvalidArgument(
        f"trajectory: {function}() expected a Trajectory, got {type(trajectory).__name__}; "
        + ("the first of these is [0]" if several and len(trajectory) else how)
    )


class ArraySource:
    """An array (T, n), in memory or in a file, and the statistics (T, s) that go with it."""

    def __init__(
        self,
        theta: NDArray[np.floating],
        layout: ParameterLayout,
        statistics: NDArray[np.floating] | None = None,
        places: Sequence[tuple[str, tuple[int, ...], int, int]] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """``places``: (name, shape, first, last) of each statistic in the rows of statistics;
        ``check`` compares the points with their checksums."""
        self._theta, self._layout = theta, layout
        self._statistics, self._places = statistics, places
        self._check = check
        self._read = 0  # bytes since pages were given back

    def __len__(self) -> int:
        return len(self._theta)

    def columns(
        self, rows: NDArray[np.intp], first: int, last: int, out: Array | None = None
    ) -> Array:
        out = np.empty((len(rows), last - first)) if out is None else out
        for i, row in enumerate(rows):
            out[i] = self._theta[row, first:last]
        self._read += out.size * self._theta.itemsize
        if self._read > _RESIDENT:
            self._give_back()
        return out

    def _give_back(self) -> None:
        """Unmap the pages of a file that were read, which count as this process's memory; the
        system keeps them as long as it likes."""
        self._read = 0
        mapped = getattr(self._theta, "_mmap", None)
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def state(self, row: int) -> dict[str, Tensor]:
        theta = torch.from_numpy(np.array(self._theta[row]))
        state = {k: v.clone() for k, v in self._layout.unflatten(theta).items()}
        if self._statistics is not None:
            values = np.array(self._statistics[row])
            for name, shape, first, last in self._places:
                state[name] = torch.from_numpy(values[first:last].reshape(shape))
        for alias, name in self._layout.aliases.items():  # tied parameters under all their names
            state[alias] = state[name]
        return state

    def verify(self) -> None:
        self._check()

    def renamed(self, layout: ParameterLayout, names: Mapping[str, str]) -> ArraySource:
        """The same numbers as those of another layout, whose entries lie in this order; names:
        of the statistics, from those here."""
        places = [(names.get(k, k), shape, a, b) for k, shape, a, b in self._places]
        return ArraySource(self._theta, layout, self._statistics, places, self._check)


class StateSource:
    """Points that are state dicts; those of checkpoint files are mapped, not read."""

    def __init__(self, states: Sequence[Mapping[str, Tensor]], layout: ParameterLayout) -> None:
        self._states, self._layout = states, layout

    def __len__(self) -> int:
        return len(self._states)

    def columns(
        self, rows: NDArray[np.intp], first: int, last: int, out: Array | None = None
    ) -> Array:
        out = np.empty((len(rows), last - first)) if out is None else out
        for entry in self._layout.entries:
            begin, end = max(first, entry.offset), min(last, entry.offset + entry.numel)
            if begin >= end:
                continue
            part = slice(begin - entry.offset, end - entry.offset)
            for i, row in enumerate(rows):
                flat = self._states[row][entry.name].detach().reshape(-1)[part]
                out[i, begin - first : end - first] = flat.to("cpu", torch.float64).numpy()
        return out

    def state(self, row: int) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in self._states[row].items()}

    def verify(self) -> None:
        """Nothing: checkpoint files have no checksums that their readers do not look at."""
