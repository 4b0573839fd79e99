"""Work on the device that is the same for every chunk of points, recorded once and replayed.

A recording is a CUDA graph: the launches of one chunk, of one shape, with its coefficients in a
buffer that stays where it is. What records is an object of its own, so that everything but the
graph itself runs without a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

_MOST = 4  # recordings of one question: each holds what a chunk takes


class Recording(Protocol):
    """``replay`` computes ``result`` anew, on the current stream.

    Its buffers are written between ``wait``, after which nobody uses them, and ``release``, after
    which others may.
    """

    result: Tensor

    def wait(self) -> None: ...

    def replay(self) -> None: ...

    def release(self) -> None: ...


class Recorder(Protocol):
    def ready(self) -> bool:
        """Whether anything may be recorded or replayed now."""

    def record(self, run: Callable[[], Tensor]) -> Recording:
        """Of what ``run`` puts on the current stream; it may run it first. May raise."""


class Graph:
    """A recording of a CUDA graph, in the memory of its recorder."""

    def __init__(self, graph: torch.cuda.CUDAGraph, result: Tensor, owner: GraphRecorder) -> None:
        self.result = result
        self._graph, self._owner = graph, owner

    def wait(self) -> None:
        self._owner.wait()

    def replay(self) -> None:
        with torch.cuda.device(self.result.device):
            self._graph.replay()

    def release(self) -> None:
        self._owner.release()


class GraphRecorder:
    """CUDA graphs on one device, from a memory pool of their own.

    They share its memory, so a replay on one stream waits for the last one on another.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._done: torch.cuda.Event | None = None  # after the last use of the memory

    def wait(self) -> None:
        """The current stream waits for the last replay and for what was done with its result."""
        if self._done is not None:
            torch.cuda.current_stream(self._device).wait_event(self._done)

    def release(self) -> None:
        """The memory may be written again after what the current stream has been given so far."""
        with torch.cuda.device(self._device):
            self._done = self._done or torch.cuda.Event()
            self._done.record(torch.cuda.current_stream())

    def ready(self) -> bool:
        with torch.cuda.device(self._device):
            return not torch.cuda.is_current_stream_capturing()

    def record(self, run: Callable[[], Tensor]) -> Graph:
        with torch.cuda.device(self._device):
            if self._side is None:
                self._side, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
            here, side = torch.cuda.current_stream(), self._side
            side.wait_stream(here)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.stream(side):
                    run()  # workspaces and what is kept are allocated outside of the graph's pool
                    # Other threads may do as they like meanwhile.
                    graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                    try:
                        result = run()
                    finally:
                        graph.capture_end()
            except BaseException:
                self._abandon()
                raise
            finally:
                here.wait_stream(side)
            return Graph(graph, result, self)

    def _abandon(self) -> None:
        """After a capture that failed, torch takes it to be still under way: its allocator, and
        before 2.13 its random generator, which no user's draw would survive."""
        index = torch.cuda.current_device()
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            with suppress(RuntimeError, TypeError, AttributeError):
                getattr(torch._C, name)(index, self._pool)
        with suppress(RuntimeError, IndexError, AttributeError):
            own = torch.cuda.default_generators[index]
            fresh = torch.Generator(torch.device("cuda", index))
            fresh.set_state(own.get_state())
            own.graphsafe_set_state(fresh)
        self._side = self._pool = None


@dataclass
class _Kept:
    given: Tensor  # what the recording reads
    recording: Recording


class Replays:
    """Calls ``run(c, *options)`` for coefficients c (g, k), from the second call of a shape on by a
    recording.

    ``run`` must do the same work for all c of one shape, on their device, without waiting for it.
    Results are new tensors whose last dimension is g. Any failure to record ends recording, for
    good: the calls go on without.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._kept: dict[tuple[Any, ...], _Kept] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._busy = threading.Lock()
        self.failure: str | None = None  # why nothing is recorded any more

    def __call__(
        self, run: Callable[..., Tensor], c: Tensor, *options: Any, chunk: int = 0
    ) -> Tensor:
        """Fewer points than ``chunk`` are filled up where that chunk is recorded and at least half
        of it is wanted."""
        recorder = self._recorder
        if recorder is None or len(c) == 0 or not recorder.ready():
            return run(c, *options)
        with self._busy:
            count = len(c)
            key = (chunk, *c.shape[1:], c.dtype, *options)
            if chunk // 2 <= count < chunk and key in self._kept:
                c = torch.cat([c, c[-1:].expand(chunk - count, -1)])
            key = (*c.shape, c.dtype, *options)
            if key not in self._kept:
                if key not in self._seen or len(self._kept) == _MOST:
                    self._seen.add(key)
                    return run(c, *options)
                if not self._record(recorder, run, key, c, options):
                    return run(c, *options)
            return self._replay(self._kept[key], c)[..., :count]

    def _record(
        self,
        recorder: Recorder,
        run: Callable[..., Tensor],
        key: tuple[Any, ...],
        c: Tensor,
        options: tuple[Any, ...],
    ) -> bool:
        given = c.clone()
        try:
            self._kept[key] = _Kept(given, recorder.record(lambda: run(given, *options)))
        except (RuntimeError, ValueError) as error:
            self.failure = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            self._recorder = None
            return False
        return True

    def _replay(self, kept: _Kept, c: Tensor) -> Tensor:
        recording = kept.recording
        if kept.given.shape != c.shape or kept.given.dtype != c.dtype:
            raise AssertionError(f"recorded for {tuple(kept.given.shape)}, got {tuple(c.shape)}")
        recording.wait()
        kept.given.copy_(c)
        recording.replay()
        result: Tensor = recording.result.clone()
        recording.release()
        return result
