"""Losses of convolution networks on a plane on a GPU: the compiled program against torch's best.

Part of gpu_check.py. The engine's own choice is one row; every other way of its convolutions
(engines/cuda/conv.py), sizes of tiles and chunks, and launches without a recorded graph are
further rows, so that one run says which choice was right. Peers compute in float32 without TF32 as
the engine does, but may choose cuDNN's algorithms by timing. Floor: multiply-adds at the device's
float32 peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import gpu_programs, networks

DIRECTIONS = 2
CHECKED = 3  # points that float64 torch computes
VMAPPED = (2, 4, 8)  # points at once
MEGABYTES = (64, 256, 2048, 8192)  # what the values of a chunk may take


@dataclass
class Network:
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    samples: int
    points: int

    def member(self) -> tuple[nn.Module, Tensor, Tensor]:
        """A random member in eval mode, with statistics of the data, and the data."""
        torch.manual_seed(0)
        model, x = self.make(), torch.randn(self.samples, *self.shape)
        networks.settle(model, x[:256])
        return model.eval(), x, torch.randint(0, 10, (self.samples,))


NETWORKS = (
    Network("ResNet-20, N=5000, 16 points", networks.ResNet, (3, 32, 32), 5000, 16),
    Network("LeNet, N=512, 441 points", networks.lenet, (1, 28, 28), 512, 441),
)


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Of one sample."""
    found = 0

    def count(module: Any, _: Any, out: Tensor) -> None:
        nonlocal found
        found += out[0].numel() * prod(module.weight.shape[1:])

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(x[:1])
    for hook in hooks:
        hook.remove()
    return found


class Folded(nn.Module):
    """A convolution with its batch norm folded in, anew in every forward pass."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        norm, conv = self.norm, self.conv
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        before = -mean if conv.bias is None else conv.bias - mean
        shift = before * scale + norm.bias
        weight = (conv.weight * scale[:, None, None, None]).contiguous(
            memory_format=torch.channels_last
        )
        return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def folded(model: nn.Module) -> nn.Module:
    """The model with every batch norm that alone reads a convolution folded into it."""
    graph = torch.fx.symbolic_trace(model)
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        conv = modules.get(before.target) if before.op == "call_module" else None
        if isinstance(conv, nn.Conv2d) and len(before.users) == 1:
            graph.set_submodule(before.target, Folded(conv, modules[node.target]))
            graph.set_submodule(node.target, nn.Identity())
    return graph


Loss = Callable[[Tensor], Tensor]


def loss_of(
    model: nn.Module, x: Tensor, y: Tensor, batch: int | None = None
) -> tuple[Loss, Tensor]:
    """The loss as a function of all parameters (n,), and the model's own; in batches if asked."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def loss(theta: Tensor) -> Tensor:
        parts = zip(parameters.items(), theta.split(sizes), strict=True)
        state = {name: part.view(p.shape) for (name, p), part in parts}
        found = [
            F.cross_entropy(torch.func.functional_call(model, state, (some,)), own, reduction="sum")
            for some, own in zip(x.split(batch or len(x)), y.split(batch or len(y)), strict=True)
        ]
        return torch.stack(found).sum() / len(x)

    return loss, torch.cat([p.reshape(-1) for p in parameters.values()])


def check(
    network: Network, engine_of: Callable[[nn.Module, Any], Any]
) -> tuple[float, Any, Any, Tensor, Tensor, Tensor]:
    """Error, engine, landscape, directions, coefficients and the losses of the first of them, of
    float64 torch on the engine's device, which says what is right."""
    import pylandscape as pl

    model, x, y = network.member()
    land = pl.Landscape(model, "cross_entropy", (x, y))
    engine = engine_of(model, land)
    d = torch.stack([v.vector for v in pl.random_directions(land, DIRECTIONS)])
    c = torch.rand(network.points, DIRECTIONS) * 2 - 1
    where = engine.device
    exact = network.member()[0].double().to(where)
    loss, theta = loss_of(exact, x.double().to(where), y.to(where), batch=500)
    some = c[:CHECKED]
    with torch.no_grad():
        want = torch.stack([loss(theta + (own.double() @ d.double()).to(where)) for own in some])
    got = engine.ask(land.theta, d).sums(some)[0] / engine.denominator
    return float((got / want - 1).abs().max()), engine, land, d, c, want


def measure(
    network: Network,
    engine_of: Callable[[nn.Module, Any], Any],
    median_ms: Callable[..., float],
    compile_too: bool,
) -> Iterator[Any]:
    """Rows of the current GPU (gpu_programs.ProgramRow)."""
    _, engine, land, d, c, want = check(network, engine_of)
    model, x, _ = network.member()
    peak = gpu_programs.multiply_adds_per_ms()
    work = network.points * network.samples * multiply_adds(model, x)
    floor = work / peak if peak else None
    own = engine.torch_program.way, engine.wide_bytes, engine.recorder
    given = c.to(engine.device)

    def row(how: str, peers: dict[str, float]) -> Any:
        question = engine.ask(land.theta, d)
        took = median_ms(lambda _: question.sums(given), 1, 5)
        got = question.sums(given)[0, : len(want)] / engine.denominator  # what was timed
        error = float((got / want - 1).abs().max())
        failure = question._replays.failure
        if failure is not None:
            print(f"{network.name}, {how}: no graph: {failure}")
        return gpu_programs.ProgramRow(network.name, how, took, floor, peers, error)

    yield row("own", peers(network, given, median_ms, compile_too))
    engine.recorder = lambda: None
    yield row("eager", {})
    engine.recorder = own[2]
    for size in MEGABYTES:
        engine.wide_bytes = size << 20
        yield row(f"{size} MB", {})
        for way in ("looped", "grouped", "products"):
            engine.torch_program.way = forced(way, own[0])
            if engine.ask(land.theta, d)._tile_and_step()[1] > 1:  # else there is one way
                try:
                    yield row(f"{way[:4]} {size}", {})
                except RuntimeError as error:  # no memory, or no algorithm
                    print(f"{network.name}, {way} {size}: {str(error).splitlines()[0]}")
                    torch.cuda.empty_cache()
            engine.torch_program.way = own[0]
    engine.wide_bytes = own[1]


def forced(way: str, own: Callable[[Any, int, bool], str]) -> Callable[[Any, int, bool], str]:
    """One way wherever a convolution can run so."""

    def choose(conv: Any, samples: int, same_input: bool) -> str:
        return own(conv, samples, same_input) if way == "products" and conv.groups > 1 else way

    return choose


def peers(
    network: Network, c: Tensor, median_ms: Callable[..., float], compile_too: bool
) -> dict[str, float]:
    from pylandscape.engines.cuda.precision import exact_float32

    model, x, y = network.member()
    model, x, y = model.cuda(), x.cuda(), y.cuda()
    last = x.contiguous(memory_format=torch.channels_last)
    found: dict[str, float] = {}
    before = torch.backends.cudnn.benchmark
    with torch.no_grad(), exact_float32():
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
        parts = None if network.samples < 2000 else 1000
        forms: dict[str, tuple[nn.Module, Tensor, int | None]] = {
            "graph loop": (model, x, None),
            "folded graph loop": (folded(model), last, None),
            "folded graph loop, parts": (folded(model), last, parts),
        }
        for name, (form, images, batch) in forms.items():
            loss, theta = loss_of(form, images, y, batch)
            d = 0.01 * torch.randn(DIRECTIONS, len(theta), device="cuda")

            def loop(f: Loss = loss, theta: Tensor = theta, d: Tensor = d) -> float:
                return gpu_programs.graph_loop(f, theta, d, c, median_ms)

            gpu_programs.keep(found, name, loop)
            if compile_too:
                made = torch.compile(loss)
                gpu_programs.keep(found, f"{name}, compiled", lambda f=made, g=loop: g(f))
        loss, theta = loss_of(model, x, y)
        d = 0.01 * torch.randn(DIRECTIONS, len(theta), device="cuda")
        many = torch.func.vmap(loss)
        for chunk in VMAPPED:

            def chunks(_: int, size: int = chunk) -> Tensor:
                return torch.cat([many(theta + some @ d) for some in c.split(size)])

            gpu_programs.keep(found, f"vmap {chunk}", lambda f=chunks: median_ms(f, 1, 3))
    torch.backends.cudnn.benchmark = before
    return found
