"""Recording of repeated work: what is replayed, on which buffers, and when not."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cuda_support import Backend, backend, on_gpu, one_thread  # noqa: F401
from network_support import plane
from test_conv import Residual, data, settled
from torch import Tensor

import pylandscape as pl
from pylandscape.engines.cuda import engine as engine_cuda
from pylandscape.engines.cuda.precision import exact_float32
from pylandscape.engines.cuda.replays import GraphRecorder, Replays

pytestmark = pytest.mark.usefixtures("one_thread")


class Tape:
    """Stands for a CUDA graph: the same work again, on the buffers that it was recorded with."""

    def __init__(self, run: Callable[[], Tensor], log: list[str]) -> None:
        self._run, self._log, self.result = run, log, run()
        self._where = self.result.data_ptr()

    def wait(self) -> None:
        self._log.append("wait")

    def replay(self) -> None:
        self._log.append("replay")
        self.result.copy_(self._run())
        assert self.result.data_ptr() == self._where

    def release(self) -> None:
        self._log.append("release")


class TapeRecorder:
    def __init__(self, fails: bool = False) -> None:
        self.log: list[str] = []
        self.idle = True
        self._fails = fails

    def ready(self) -> bool:
        return self.idle

    def record(self, run: Callable[[], Tensor]) -> Tape:
        self.log.append("record")
        if self._fails:
            raise RuntimeError("operation not permitted when stream is capturing\nat a place")
        return Tape(run, self.log)


def doubled(c: Tensor, more: bool = False) -> Tensor:
    return torch.stack([c.sum(1) * 2, c.sum(1) + more])


def test_a_shape_is_recorded_when_it_comes_again() -> None:
    recorder = TapeRecorder()
    replays = Replays(recorder)
    for turn in range(4):
        c = torch.randn(5, 3)
        assert torch.equal(replays(doubled, c, False), doubled(c))
        assert recorder.log.count("record") == (turn > 0)
    assert recorder.log == ["record", *["wait", "replay", "release"] * 3]


def test_results_of_replays_stay_what_they_were() -> None:
    replays = Replays(TapeRecorder())
    given = [torch.randn(4, 2) for _ in range(4)]
    kept = [replays(doubled, c, False) for c in given]
    for c, found in zip(given, kept, strict=True):
        assert torch.equal(found, doubled(c))


def test_options_and_dtypes_are_recorded_apart() -> None:
    recorder = TapeRecorder()
    replays = Replays(recorder)
    for _ in range(3):
        for more in (False, True):
            for dtype in (torch.float32, torch.float64):
                c = torch.randn(4, 2, dtype=dtype)
                assert torch.equal(replays(doubled, c, more), doubled(c, more))
    assert recorder.log.count("record") == 4
    assert torch.equal(
        replays(doubled, c[:3], True), doubled(c[:3], True)
    )  # seen for the first time


def test_no_more_recordings_are_held_than_a_few() -> None:
    recorder = TapeRecorder()
    replays = Replays(recorder)
    for _ in range(3):
        for count in range(1, 9):
            c = torch.randn(count, 2)
            assert torch.equal(replays(doubled, c, False), doubled(c))
    assert recorder.log.count("record") == 4


@pytest.mark.parametrize("rest", [1, 3, 4, 7])
def test_the_last_chunk_is_filled_up_where_that_is_less_than_twice_the_work(rest: int) -> None:
    recorder, sizes = TapeRecorder(), []

    def run(c: Tensor) -> Tensor:
        sizes.append(len(c))
        return doubled(c)

    replays = Replays(recorder)
    c = torch.randn(24 + rest, 2)
    found = torch.cat([replays(run, part, chunk=8) for part in c.split(8)], 1)
    assert torch.equal(found, doubled(c))
    assert sizes[-1] == (8 if rest >= 4 else rest)


def test_nothing_is_recorded_while_the_caller_records() -> None:
    recorder = TapeRecorder()
    replays = Replays(recorder)
    recorder.idle = False
    for _ in range(3):
        replays(doubled, torch.ones(2, 2), False)
    assert not recorder.log
    assert torch.equal(replays(doubled, torch.ones(0, 2), False), doubled(torch.ones(0, 2)))


def test_a_failure_to_record_is_kept_and_the_work_done_without() -> None:
    recorder = TapeRecorder(fails=True)
    replays = Replays(recorder)
    for _ in range(4):
        c = torch.randn(5, 3)
        assert torch.equal(replays(doubled, c, False), doubled(c))
    assert recorder.log == ["record"]
    assert replays.failure == "RuntimeError: operation not permitted when stream is capturing"


def test_another_shape_than_the_recorded_one_never_reaches_its_buffer() -> None:
    replays = Replays(TapeRecorder())
    for _ in range(2):
        replays(doubled, torch.ones(4, 2), False)
    (kept,) = replays._kept.values()
    for wrong in (torch.ones(3, 2), torch.ones(4, 2, dtype=torch.float64)):
        with pytest.raises(AssertionError, match="recorded for"):
            replays._replay(kept, wrong)


def test_threads_take_turns_with_the_buffers() -> None:
    replays, wrong = Replays(TapeRecorder()), []

    def work(seed: int) -> None:
        c = torch.full((4, 2), float(seed))
        for _ in range(50):
            if not torch.equal(replays(doubled, c, False), doubled(c)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def engine_of(backend: Backend, land: pl.Landscape, recorder: Any) -> Any:  # noqa: F811
    engine = backend.engine(land.model, land)
    engine.recorder = recorder
    return engine


def test_a_question_replays_its_chunks(backend: Backend) -> None:  # noqa: F811
    torch.manual_seed(0)
    x, y = data(33, 3, 5, 6)
    land = pl.Landscape(settled(Residual().double(), x), "cross_entropy", (x, y))

    def recorder() -> Any:  # of each question its own
        return GraphRecorder(backend.device) if backend.is_gpu else TapeRecorder()

    engine, plain = (engine_of(backend, land, r) for r in (recorder, lambda: None))
    engine.wide_bytes = plain.wide_bytes = 3_000_000
    d, c = plane(land), torch.randn(8, 2, dtype=torch.float64)
    for make in (lambda e: e.ask(land.theta, d), lambda e: e.ask(None, None)):
        question, other = make(engine), make(plain)
        step = question._tile_and_step()[1]
        assert 1 < step < 6
        assert len(c) % step
        assert len(c) > 2 * step
        points = c if question._d is not None else land.theta + c @ d
        for hits in (False, True):
            for _ in range(2):
                got, want = question.sums(points, hits), other.sums(points, hits)
                torch.testing.assert_close(got, want, rtol=1e-13, atol=0)
        assert question._replays.failure is None
        assert len(question._replays._kept) >= 2
        assert not other._replays._kept
        outside = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(
            question.outputs(outside if question._d is not None else land.theta[None]),
            other.outputs(outside if question._d is not None else land.theta[None]),
        )


def test_recordings_end_with_their_question(backend: Backend) -> None:  # noqa: F811
    torch.manual_seed(0)
    x, y = data(9, 3, 5, 6)
    land = pl.Landscape(settled(Residual().double(), x), "cross_entropy", (x, y))
    engine = engine_of(backend, land, TapeRecorder)
    question = engine.ask(land.theta, plane(land))
    kept = weakref.ref(question)
    question.sums(torch.ones(2, 2))  # recorded, a tape would hold the question
    gc.disable()
    try:
        del question
        assert kept() is None
    finally:
        gc.enable()


@on_gpu
def test_a_graph_is_replayed_on_any_stream_and_under_the_callers_capture() -> None:
    recorder = GraphRecorder(torch.device("cuda", torch.cuda.current_device()))
    replays = Replays(recorder)
    given = torch.randn(6, 4, 2, device="cuda")
    streams = [torch.cuda.Stream() for _ in range(3)]
    found = []
    for i, c in enumerate(given):
        stream = streams[i % 3]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found.append(replays(doubled, c, False))
    torch.cuda.synchronize()
    assert len(replays._kept) == 1
    for c, result in zip(given, found, strict=True):
        torch.testing.assert_close(result, doubled(c))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inside = replays(doubled, given[0], False)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(inside, doubled(given[0]))


@on_gpu
def test_a_question_is_captured_in_the_callers_graph() -> None:
    torch.manual_seed(0)
    x, y = data(40, 3, 5, 6, dtype=torch.float32)
    land = pl.Landscape(
        settled(Residual(), x), "cross_entropy", (x, y), device="cuda", engine="native"
    )
    question = land.native.ask(land.theta, plane(land))
    c = torch.randn(5, 2, device="cuda")
    want = question.sums(c)
    given, graph = torch.zeros_like(c), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = question.sums(given)
    given.copy_(c)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, want)


@on_gpu
def test_work_that_waits_for_the_device_is_done_without_a_recording() -> None:
    replays = Replays(GraphRecorder(torch.device("cuda", torch.cuda.current_device())))

    def waits(c: Tensor) -> Tensor:
        return c.sum(1)[None] * float(c.sum())

    for _ in range(3):
        c = torch.randn(4, 2, device="cuda")
        torch.testing.assert_close(replays(waits, c), waits(c))
    assert replays.failure is not None
    torch.cuda.empty_cache()  # the allocator takes no recording to be under way
    torch.testing.assert_close(replays(doubled, c, False), doubled(c))


SETTINGS: dict[str, Callable[[], None]] = {
    "torch's own": lambda: None,
    "older, high": lambda: torch.set_float32_matmul_precision("high"),
    "older, medium": lambda: torch.set_float32_matmul_precision("medium"),
    "older flags": lambda: (
        setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        setattr(torch.backends.cudnn, "allow_tf32", False),
    ),
    "newer, products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "newer, convolutions": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "newer, all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "benchmarked": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
}


def settings() -> list[Any]:
    """All that torch says about precision and cuDNN; None where it says that settings disagree."""
    found: list[Any] = [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic]
    for ask in (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.cudnn.allow_tf32,
    ):
        try:
            found.append(ask())
        except RuntimeError:
            found.append(None)
    names = [("cuda", kind) for kind in ("all", "matmul", "conv", "rnn")]
    names += [("mkldnn", "matmul"), ("generic", "all")]
    return found + [torch._C._get_fp32_precision_getter(*name) for name in names]


@pytest.fixture
def own_settings() -> Iterator[None]:
    before = settings()
    assert None not in before
    yield
    torch.set_float32_matmul_precision(before[2])
    torch.backends.cudnn.allow_tf32 = before[4]
    for name, value in zip(
        (("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"),
         ("cuda", "rnn"), ("mkldnn", "matmul")),
        (before[10], *before[5:10]),
        strict=True,
    ):  # fmt: skip
        torch._C._set_fp32_precision_setter(*name, value)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[:2]
    assert settings() == before


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.usefixtures("own_settings")
def test_float32_is_float32_and_settings_are_the_callers_again(name: str) -> None:
    SETTINGS[name]()
    before = settings()

    def fail() -> None:
        with exact_float32():
            assert settings()[:5] == [False, True, "highest", False, False]
            assert settings()[6:9] == ["ieee"] * 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert settings() == before
    with exact_float32(), exact_float32():
        torch.ones(3, 3) @ torch.ones(3, 3)
    assert settings() == before


@pytest.mark.usefixtures("own_settings")
def test_settings_come_back_with_the_last_of_several_threads() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    before, inside, leave = settings(), threading.Event(), threading.Event()

    def work() -> None:
        with exact_float32():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=work)
    with exact_float32():
        thread.start()
        assert inside.wait(60)
    assert settings()[2] == "highest"  # the other one is still there
    leave.set()
    thread.join()
    assert settings() == before


def test_the_engine_computes_in_exact_float32(
    backend: Backend,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    x, y = data(9, 3, 5, 6, dtype=torch.float32)
    land = pl.Landscape(settled(Residual(), x), "cross_entropy", (x, y))
    engine, inside = backend.engine(land.model, land), []
    convolve = engine_cuda.TorchProgram._conv

    def watched(*args: Any) -> Tensor:
        inside.append(settings()[:5])
        return convolve(*args)

    monkeypatch.setattr(engine_cuda.TorchProgram, "_conv", watched)
    before = settings()
    question = engine.ask(land.theta, plane(land))
    question.sums(torch.ones(3, 2))
    question.outputs(torch.ones(1, 2))
    assert inside
    assert all(found == [False, True, "highest", False, False] for found in inside)
    assert settings() == before
