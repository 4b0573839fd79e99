"""The other ways to draw a surface: plain torch in its best forms, and loss-landscapes 3.0.6."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Losses = Callable[[], np.ndarray]


def plain_loop(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    directions: Tensor,
    coefficients: Tensor,
    forward: Callable[..., Tensor] | None = None,
) -> Losses:
    """The best eager loop: foreach updates of the parameters, no_grad, all data in one batch."""
    model = copy.deepcopy(model).eval()
    run = forward(model) if forward else model
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    moves = [_split(d, parameters) for d in directions]
    steps = coefficients.tolist()

    def losses() -> np.ndarray:
        out = np.empty(len(steps))
        with torch.no_grad():
            for i, step in enumerate(steps):
                torch._foreach_copy_(parameters, start)
                for alpha, move in zip(step, moves, strict=True):
                    torch._foreach_add_(parameters, move, alpha=alpha)
                out[i] = loss(run(x), y).item()
        return out

    return losses


def compiled_loop(*args: object) -> Losses:
    """The same loop around ``torch.compile(model)``."""
    return plain_loop(*args, forward=lambda model: torch.compile(model, dynamic=False))


def vmap(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    points: Tensor,
    chunk: int,
) -> Losses:
    """``torch.func.vmap`` of the functional call over points (P, n), ``chunk`` at a time."""
    model = copy.deepcopy(model).eval()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def one(theta: Tensor) -> Tensor:
        parts = theta.split(sizes)
        state = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return loss(torch.func.functional_call(model, state, (x,)), y)

    many = torch.func.vmap(one)

    def losses() -> np.ndarray:
        with torch.no_grad():
            return torch.cat([many(part) for part in points.split(chunk)]).double().numpy()

    return losses


def best_vmap(make: Callable[[int], Losses], chunks: tuple[int, ...]) -> tuple[Losses, int]:
    """The fastest chunk, found by one timed run each after a warm-up."""
    import time

    best: tuple[float, Losses, int] | None = None
    for chunk in chunks:
        run = make(chunk)
        run()
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        if best is None or seconds < best[0]:
            best = (seconds, run, chunk)
    assert best is not None
    return best[1], best[2]


def identity_loop(
    model: nn.Sequential, x: Tensor, y: Tensor, directions: Tensor, coefficients: Tensor
) -> Losses:
    """A torch loop that is given the first-layer identity by hand: X W0, X D1, X D2 once."""
    linears = [m for m in model if isinstance(m, nn.Linear)]
    moves = [_split(d, list(model.parameters())) for d in directions]
    first = linears[0]
    z = [x @ first.weight.T] + [x @ move[0].T for move in moves]
    rest = [
        (p.detach(), [move[i] for move in moves]) for i, p in enumerate(model.parameters()) if i > 0
    ]
    steps = coefficients.tolist()

    def losses() -> np.ndarray:
        out = np.empty(len(steps))
        with torch.no_grad():
            for i, step in enumerate(steps):
                own = [p + step[0] * a[0] + step[1] * a[1] for p, a in rest]
                h = torch.add(z[0], z[1], alpha=step[0]).add_(z[2], alpha=step[1]).add_(own[0])
                for weight, bias in zip(own[1::2], own[2::2], strict=True):
                    h = torch.addmm(bias, h.relu_(), weight.T)
                out[i] = nn.functional.cross_entropy(h, y).item()
        return out

    return losses


def loss_landscapes_plane(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, steps: int
) -> Losses | None:
    """loss-landscapes 3.0.6 ``random_plane``; None where the package is not installed."""
    try:
        import loss_landscapes
        from loss_landscapes.metrics import Loss
    except ImportError:
        return None
    metric = Loss(loss, x, y)

    def losses() -> np.ndarray:
        own = copy.deepcopy(model).eval()
        with torch.no_grad():
            return loss_landscapes.random_plane(
                own, metric, distance=1, steps=steps, normalization="filter"
            )

    return losses


def _split(vector: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    parts = vector.split([p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
