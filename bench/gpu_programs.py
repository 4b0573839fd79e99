"""Losses of many points on a GPU: the compiled program against its floor and against torch.

Part of gpu_check.py. A case is a network, its data and points on a plane. Its floor is the larger
of two times: the multiply-adds that are left after what no point changes is computed once, at the
device's float32 peak, and the bytes that must move at the bandwidth of a copy. Activations and
losses are not counted, so the share is a lower bound of how busy the device is.
"""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .workloads import mlp

CHUNKS = (64, 256, 1024, 4096)  # of vmap; the best counts
LOOPED = 500  # points of a loop that is timed; its time is scaled to all of them
DIRECTIONS = 2


@dataclass
class Case:
    name: str
    dims: tuple[int, ...]
    loss: str
    samples: int
    points: int

    def model(self) -> nn.Sequential:
        return mlp(*self.dims, activation=nn.Tanh)

    def data(self) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.samples, self.dims[0])
        if self.loss == "mse":
            return x, torch.randn(self.samples, self.dims[-1])
        return x, torch.randint(0, self.dims[-1], (self.samples,))

    def multiply_adds(self) -> int:
        """Of one sample at one point: the first layer is a sum over directions."""
        first = min(DIRECTIONS, self.dims[0]) * self.dims[1]
        return first + sum(a * b for a, b in list(pairwise(self.dims))[1:])

    def bytes(self) -> int:
        """Pre-activations of theta and the directions once, two results a point."""
        return 4 * (1 + DIRECTIONS) * self.dims[1] * self.samples + 16 * self.points


CASES = (
    Case("W1: 784-20-10, N=1797, 101x101", (784, 20, 10), "cross_entropy", 1797, 101 * 101),
    Case("XOR: 2-2-1, N=4", (2, 2, 1), "mse", 4, 100_000),
    Case("Iris: 4-8-3, N=150", (4, 8, 3), "cross_entropy", 150, 100_000),
    Case("wide: 784-512-512-10, N=1797", (784, 512, 512, 10), "cross_entropy", 1797, 256),
)


@dataclass
class ProgramRow:
    name: str
    how: str  # "resident" or "wide"; of networks, what was chosen
    milliseconds: float | None
    floor: float | None
    peers: dict[str, float]  # milliseconds
    error: float  # largest relative difference to float64

    @property
    def ratio(self) -> float | None:
        """How many times faster than the best peer."""
        if self.milliseconds is None or not self.peers:
            return None
        return min(self.peers.values()) / self.milliseconds


def multiply_adds_per_ms() -> float | None:
    """The device's float32 peak: its lanes at the highest clock."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        clock = float(subprocess.check_output(query, text=True).split()[0])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    lanes = 64 if (found.major, found.minor) == (8, 0) else 128  # of a multiprocessor
    return lanes * found.multi_processor_count * clock * 1e3


def check(case: Case, engine_of: Callable[[nn.Module, Any], Any]) -> tuple[ProgramRow, Any, Tensor]:
    """The row without times, the question and its coefficients.

    ``engine_of(model, landscape on the CPU)`` gives the engine to test.
    """
    import pylandscape as pl

    torch.manual_seed(0)
    model, (x, y) = case.model(), case.data()
    land = pl.Landscape(model, case.loss, (x, y))
    exact = pl.Landscape(copy.deepcopy(model).double(), case.loss, (x.double(), y))
    d = torch.stack([v.vector for v in pl.random_directions(land, DIRECTIONS)])
    c = torch.rand(case.points, DIRECTIONS) * 2 - 1
    engine = engine_of(model, land)
    question = engine.ask(land.theta, d)
    some = c[:: max(1, len(c) // 37)]
    got = question.sums(some)[0].cpu().numpy() / engine.denominator
    want = exact.losses(some.double(), d.double())
    error = float(abs(got / want - 1).max())
    how = "wide" if question.reason else "resident"
    return ProgramRow(case.name, how, None, None, {}, error), question, c


def measure(
    case: Case,
    engine_of: Callable[[nn.Module, Any], Any],
    median_ms: Callable[..., float],
    bandwidth: float,
    compile_too: bool,
) -> ProgramRow:
    """Times on the current GPU; bandwidth in bytes per millisecond."""
    row, question, c = check(case, engine_of)
    c = c.cuda()
    first = question.sums(c)
    row.milliseconds = median_ms(lambda _: question.sums(c), 1)
    again = float((question.sums(c)[0] / first[0] - 1).abs().max())  # a replay, where it is one
    row.error = max(row.error, again)
    peak = multiply_adds_per_ms()
    work = case.points * case.samples * case.multiply_adds()
    row.floor = max(case.bytes() / bandwidth, work / peak if peak else 0.0)
    row.peers = peers(case, c, median_ms, compile_too)
    return row


def peers(
    case: Case, c: Tensor, median_ms: Callable[..., float], compile_too: bool
) -> dict[str, float]:
    model = case.model().cuda()
    x, y = (t.cuda() for t in case.data())
    call = nn.functional.cross_entropy if case.loss == "cross_entropy" else nn.functional.mse_loss
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    theta = torch.cat([p.reshape(-1) for p in parameters.values()])
    d = torch.randn(DIRECTIONS, len(theta), device="cuda")

    def loss_at(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in parameters.values()])
        state = {
            name: part.view(p.shape)
            for (name, p), part in zip(parameters.items(), parts, strict=True)
        }
        return call(torch.func.functional_call(model, state, (x,)), y)

    batched = torch.func.vmap(loss_at)

    def in_chunks(chunk: int, f: Callable[[Tensor], Tensor]) -> Callable[[int], Tensor]:
        return lambda _: torch.cat([f(theta + part @ d) for part in c.split(chunk)])

    found: dict[str, float] = {}
    with torch.no_grad():
        for chunk in CHUNKS:
            if chunk < 2 * len(c):
                keep(found, f"vmap {chunk}", lambda k=chunk: median_ms(in_chunks(k, batched), 1, 5))
        keep(found, "graph loop", lambda: graph_loop(loss_at, theta, d, c, median_ms))
        if compile_too and found:
            best = min(
                (k for k in found if k.startswith("vmap")), key=found.__getitem__, default=""
            )
            if best:
                made = torch.compile(batched, dynamic=True)
                size = int(best.split()[1])
                keep(found, "compiled", lambda: median_ms(in_chunks(size, made), 1, 5))
    return found


def keep(found: dict[str, float], name: str, run: Callable[[], float]) -> None:
    """A peer that cannot run (out of memory, no compiler) is left out, and said so."""
    try:
        found[name] = run()
    except Exception as error:
        print(f"peer {name}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        torch.cuda.empty_cache()


def graph_loop(
    loss_at: Callable[[Tensor], Tensor],
    theta: Tensor,
    d: Tensor,
    c: Tensor,
    median_ms: Callable[..., float],
) -> float:
    """One point as a CUDA graph, replayed; milliseconds for all points."""
    own, at = c[0].clone(), torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            loss_at(theta + own @ d)
    torch.cuda.synchronize()
    with torch.cuda.graph(at):
        found = loss_at(theta + own @ d)
    result = torch.empty(len(c), device="cuda")
    count = min(LOOPED, len(c))

    def run(_: int) -> None:
        for i in range(count):
            own.copy_(c[i])
            at.replay()
            result[i : i + 1].copy_(found.reshape(1))

    return median_ms(run, 1, 5) * len(c) / count
