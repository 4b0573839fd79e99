"""A trajectory: the parameters of a model at T recorded moments, read block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..arrays import Array, digest_of_all
from ..errors import InvalidArgument
from ..results.paths import Projection
from ..theta.layout import ParameterLayout
from . import projection, records
from .sources import ArraySource, Source, StateSource

if TYPE_CHECKING:
    from ..results.surface import Frame, Surface

BLOCK_BYTES = 64 << 20  # of the float64 columns of all points that are held at once


class Trajectory:
    """T points of one model's parameters, in the order of training.

    Attributes:
        layout: which parameter lies where in theta (n,).
        steps: (T,) int64, increasing: what the recorder or the file names say, else 0 .. T - 1.
        metrics: name -> (T,) float64, what was recorded beside the parameters ("loss", ...).
        info: JSON-able provenance.

    ``len(t)`` is T; ``t[i]`` is the state dict of point i (parameters and the running statistics
    that were recorded), which any ``theta=`` takes; ``t[a:b]`` is a trajectory of these points.
    Numbers stay where they are (files are mapped): nothing here holds (T, n) in memory.
    """

    def __init__(
        self,
        source: Source,
        layout: ParameterLayout,
        *,
        steps: Sequence[int] | NDArray[np.integer] | None = None,
        metrics: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
        rows: NDArray[np.intp] | None = None,
    ) -> None:
        self._source, self.layout = source, layout
        self._rows = np.arange(len(source)) if rows is None else rows
        count = len(self._rows)
        if count == 0:
            raise InvalidArgument("trajectory: expected at least one point, got none")
        self.steps = np.arange(count) if steps is None else np.asarray(steps, dtype=np.int64)
        self.metrics = {k: np.asarray(v, dtype=np.float64) for k, v in (metrics or {}).items()}
        for name, found in (("steps", self.steps), *self.metrics.items()):
            if found.shape != (count,):
                raise InvalidArgument(
                    f"{name}: expected shape ({count},), one for each point, got {found.shape}"
                )
        self.info = dict(info or {})

    @property
    def n(self) -> int:
        """The number of parameters."""
        return self.layout.n

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> Trajectory: ...
    def __getitem__(self, index: int | slice) -> dict[str, Tensor] | Trajectory:
        if isinstance(index, slice):
            return Trajectory(
                self._source, self.layout, steps=self.steps[index], info=self.info,
                metrics={k: v[index] for k, v in self.metrics.items()}, rows=self._rows[index],
            )  # fmt: skip
        return self.state(index)

    def state(self, index: int) -> dict[str, Tensor]:
        """Parameters and running statistics of one point by name."""
        return self._source.state(int(self._rows[index]))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(len(self)))

    def columns(self, first: int, last: int, out: Array | None = None) -> Array:
        """(T, last - first) float64: elements first .. last of theta at every point; ``out`` is
        filled and given back, where it is given."""
        return self._source.columns(self._rows, first, last, out)

    def blocks(
        self,
        selected: Sequence[str] | None = None,
        points: int | None = None,
        *,
        reuse: bool = False,
    ) -> Iterator[tuple[int, int, Array]]:
        """(first, last, columns (T, last - first)) block by block through theta.

        Args:
            selected: names of the parameters to go through; default all.
            points: how many points share the memory of a block; default T. Trajectories with the
                same number have the same blocks.
            reuse: all blocks lie in the same memory, each until the next (new pages for each cost
                more than reading it).
        """
        width = max(1, BLOCK_BYTES // (8 * (points or len(self))))
        names = None if selected is None else set(selected)
        spans = [(0, self.n)]
        if names is not None:
            chosen = [e for e in self.layout.entries if e.name in names]
            spans = [(e.offset, e.offset + e.numel) for e in chosen]
        widest = min(width, max((end - begin for begin, end in spans), default=0))
        memory = np.empty(len(self) * widest) if reuse else None
        for begin, end in spans:
            for first in range(begin, end, width):
                last = min(first + width, end)
                shape = len(self), last - first
                out = None if memory is None else memory[: shape[0] * shape[1]].reshape(shape)
                yield first, last, self.columns(first, last, out)

    def vector(self, index: int) -> Tensor:
        """theta (n,) of one point, float64."""
        row = self._rows[[index]]
        return torch.from_numpy(self._source.columns(row, 0, self.n)[0])

    def distances(self, point: Any = 0) -> Array:
        """(T,) ‖theta_t - theta‖ from a point: an index (0 the start, -1 the end), a model, a state
        dict or a vector (n,)."""
        origin = self.point(point, "point").numpy()
        squares = np.zeros(len(self))
        for first, last, block in self.blocks(reuse=True):
            block -= origin[first:last]
            squares += np.einsum("ij,ij->i", block, block)
        return np.sqrt(squares)

    def lengths(self) -> Array:
        """(T - 1,) ‖theta_{t+1} - theta_t‖: their sum is the length of the path."""
        squares = np.zeros(len(self) - 1)
        for _, _, block in self.blocks(reuse=True):
            steps = np.diff(block, axis=0)
            squares += np.einsum("ij,ij->i", steps, steps)
        return np.sqrt(squares)

    def project(self, d1: Any, d2: Any, *, theta: Any = -1) -> Projection:
        """Coordinates in the plane theta + a d1 + b d2, and how far each point lies off it
        (`pylandscape.Projection`). ``theta``: an index of the path or any point."""
        return projection.project(self, d1, d2, theta=theta)

    def frame_of(self, info: Mapping[str, Any]) -> Frame | None:
        """The frame of a plane over this path's components that was read from a file, by its
        ``info``; None for other planes (planes.py)."""
        from .planes import frame_of

        return frame_of(self, info)

    def animate(
        self, path: str | os.PathLike[str], surface: Surface, kind: str = "contour", *,
        frames: int = 120, fps: int = 20, **options: Any,
    ) -> Path:  # fmt: skip
        """A film of this path growing over a surface: .gif, or .mp4 where ffmpeg is.

        Args:
            surface: a plane computed here, whose frame the path is projected on.
            kind: "contour", "filled", "heat" or "surface" (3-D).
            frames: at most so many pictures;  fps: in a second.
            **options: of `Surface.plot`.

        Returns the file. Raises InvalidArgument: another suffix or kind, no ffmpeg, a surface that
        was read from a file.
        """
        from ..plots.surface import film

        return film(surface, self, path, kind, frames=frames, fps=fps, **options)

    def verify(self) -> None:
        """Read every recorded point and compare it with its checksum, where it has one.

        Small recordings (`sources.VERIFIED`) are verified when they are opened.

        Raises:
            FileFormatError: a damaged point; it says which.
        """
        self._source.verify()

    def point(self, value: Any, name: str) -> Tensor:
        """(n,) float64 of an index of the path, a module, a state dict or a vector."""
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            if not -len(self) <= value < len(self):
                raise InvalidArgument(
                    f"{name}: expected an index of one of {len(self)} points, got {value}"
                )
            return self.vector(int(value))
        return self.layout.vector(value, name, torch.float64, "cpu")

    def digest(self) -> str:
        """SHA-256 of steps, parameters and statistics; reads every point once."""
        return digest_of_all([self.steps.tolist(), *(digest_of_all([state]) for state in self)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file, atomically; `pylandscape.trajectory` reads it back bit for bit."""
        records.save(self, path)

    def renamed(self, layout: ParameterLayout, names: Mapping[str, str]) -> Trajectory:
        """A recording's numbers under the names of another layout, in the same order; names: of
        all its tensors, from the old ones."""
        assert isinstance(self._source, ArraySource)
        return Trajectory(
            self._source.renamed(layout, names), layout, steps=self.steps, metrics=self.metrics,
            info=self.info, rows=self._rows,
        )  # fmt: skip

    def __repr__(self) -> str:
        span = f"steps {self.steps[0]} to {self.steps[-1]}"
        more = f", {', '.join(self.metrics)}" if self.metrics else ""
        return f"Trajectory({len(self)} points of {self.n} parameters, {span}{more})"


def of_points(points: Any, layout: ParameterLayout, **about: Any) -> Trajectory:
    """From numbers (T, n)."""
    array = points.detach().cpu().numpy() if isinstance(points, Tensor) else np.asarray(points)
    if array.ndim != 2 or array.shape[1] != layout.n:
        raise InvalidArgument(f"trajectory: expected shape (T, {layout.n}), got {array.shape}")
    return Trajectory(ArraySource(array, layout), layout, **about)


def of_states(
    states: Sequence[Mapping[str, Any]], layout: ParameterLayout | None, names: Sequence[str],
    **about: Any,
) -> Trajectory:  # fmt: skip
    """From state dicts; ``names`` say in errors which is which. The layout is the first one's,
    where none is given."""
    from ..theta.checkpoints import fitted, some

    own = layout or layout_of(states[0])
    wanted = [entry.name for entry in own.entries]
    found = []
    for state, name in zip(states, names, strict=True):
        fits = fitted(state, own.aliases)
        for alias, first in own.aliases.items():  # tied: stored under one of its names
            if alias in fits:
                fits.setdefault(first, fits[alias])
        missing = [k for k in wanted if k not in fits]
        shapes = [
            f"{e.name} {tuple(fits[e.name].shape)} for {e.shape}"
            for e in own.entries
            if e.name in fits and tuple(fits[e.name].shape) != e.shape
        ]
        if missing or shapes:
            left = [k for k in fits if k not in set(own.aliases) and k not in wanted]
            what = [f"missing {some(missing)}"] if missing else []
            what += [f"left over {some(left)}"] if missing and left else []
            what += [f"other shapes: {some(shapes)}"] if shapes else []
            raise InvalidArgument(f"trajectory: {name} is not of this model: {'; '.join(what)}")
        found.append(fits)
    return Trajectory(StateSource(found, own), own, **about)


def layout_of(state: Mapping[str, Tensor]) -> ParameterLayout:
    """The layout of a state dict alone: its floating-point tensors but running statistics.

    Tensors that share their memory are one, tied parameter.
    """
    from ..theta.checkpoints import STATISTICS
    from ..theta.layout import ParameterEntry

    entries: list[ParameterEntry] = []
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    offset = 0
    for name, t in state.items():
        if not t.is_floating_point() or name.rpartition(".")[2] in STATISTICS:
            continue
        key = (t.data_ptr(), tuple(t.shape))
        own = seen.setdefault(key, name) if t.numel() else name
        aliases[name] = own
        if own != name:
            continue
        kind = "bias" if t.dim() <= 1 else "weight"
        entries.append(ParameterEntry(name, tuple(t.shape), offset, t.numel(), t.dtype, kind))
        offset += t.numel()
    if not entries:
        raise InvalidArgument("trajectory: expected states with floating-point tensors, got none")
    return ParameterLayout(tuple(entries), aliases)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module by name, copied."""
    return {k: v.detach().clone() for k, v in model.state_dict().items() if isinstance(v, Tensor)}
