"""The other ways to get losses of many points: torch in its best forms, loss-landscapes 3.0.6.

Each function does its set-up and gives a function that computes the losses. `Case` fixes what is
asked: the model, the data, and points theta + c D.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .workloads import split

Losses = Callable[[], np.ndarray]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Case:
    """Losses of ``model`` over (x, y) at theta + c D for the rows c of coefficients (G, k)."""

    model: nn.Module
    loss: Loss
    x: Tensor
    y: Tensor
    directions: Tensor  # (k, n)
    coefficients: Tensor  # (G, k) float64

    @property
    def theta(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    @property
    def points(self) -> Tensor:
        """(G, n), rounded once."""
        exact = self.theta.double() + self.coefficients @ self.directions.double()
        return exact.to(self.theta.dtype)


def foreach_loop(case: Case, compiled: bool = False) -> Losses:
    """Loop of foreach updates of the parameters, no_grad, all data in one batch.

    With ``compiled``, model and loss go through ``torch.compile``.
    """
    model = copy.deepcopy(case.model).eval()
    parameters: list[Tensor] = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    moves = [split(d, parameters) for d in case.directions]

    def forward() -> Tensor:
        return case.loss(model(case.x), case.y)

    evaluate = torch.compile(forward, dynamic=False) if compiled else forward

    def losses() -> np.ndarray:
        out = np.empty(len(case.coefficients))
        with torch.no_grad():
            for i, step in enumerate(case.coefficients.tolist()):
                torch._foreach_copy_(parameters, start)
                for alpha, move in zip(step, moves, strict=True):
                    torch._foreach_add_(parameters, move, alpha=alpha)
                out[i] = evaluate().item()
        return out

    return losses


def flat_loop(case: Case) -> Losses:
    """Eager loop: the parameters are views of one vector, which is moved; inference mode."""
    model = copy.deepcopy(case.model).eval()
    theta, buffer = case.theta, torch.empty_like(case.theta)
    for p, view in zip(model.parameters(), split(buffer, list(model.parameters())), strict=True):
        p.requires_grad_(False)
        p.data = view

    def losses() -> np.ndarray:
        out = np.empty(len(case.coefficients))
        with torch.inference_mode():
            for i, step in enumerate(case.coefficients.tolist()):
                buffer.copy_(theta)
                for alpha, d in zip(step, case.directions, strict=True):
                    buffer.add_(d, alpha=alpha)
                out[i] = case.loss(model(case.x), case.y).item()
        return out

    return losses


def compiled_step(case: Case) -> Losses:
    """``torch.compile`` of the whole step, from the coefficients to the loss."""
    model = copy.deepcopy(case.model).eval()
    names = [name for name, _ in model.named_parameters()]
    start = [p.detach() for p in model.parameters()]
    moves = [split(d, start) for d in case.directions]

    def step(c: Tensor) -> Tensor:
        state = {}
        for i, (name, p) in enumerate(zip(names, start, strict=True)):
            state[name] = p
            for j, move in enumerate(moves):
                state[name] = state[name] + c[j] * move[i]
        return case.loss(torch.func.functional_call(model, state, (case.x,)), case.y)

    compiled = torch.compile(step, dynamic=False)
    coefficients = list(case.coefficients.to(case.x.dtype))

    def losses() -> np.ndarray:
        with torch.no_grad():
            return np.array([compiled(c).item() for c in coefficients])

    return losses


def vmap(case: Case, chunk: int) -> Losses:
    """``torch.func.vmap`` of the functional call over the points, ``chunk`` at a time."""
    model = copy.deepcopy(case.model).eval()
    parameters = list(model.parameters())
    names = [name for name, _ in model.named_parameters()]
    points = case.points

    def one(theta: Tensor) -> Tensor:
        state = dict(zip(names, split(theta, parameters), strict=True))
        return case.loss(torch.func.functional_call(model, state, (case.x,)), case.y)

    many = torch.func.vmap(one)

    def losses() -> np.ndarray:
        with torch.no_grad():
            return torch.cat([many(part) for part in points.split(chunk)]).double().numpy()

    return losses


def identity_loop(case: Case) -> Losses:
    """A torch loop that is given the first-layer identity by hand.

    For a ReLU MLP with cross-entropy: X W0 + b0 and X D + b of every direction are there; per point
    they are combined in place, then come the other layers, whose parameters move as one vector.
    """
    linears, first, theta = _linears(case)
    vectors = [theta, *case.directions]
    z = [_first_layer(case.x, v, linears[0]) for v in vectors]
    rest = [v[first:] for v in vectors]
    moved, hidden = torch.empty_like(rest[0]), torch.empty_like(z[0])
    layers = _layers(moved, linears[1:])

    def losses() -> np.ndarray:
        out = np.empty(len(case.coefficients))
        with torch.inference_mode():
            for i, step in enumerate(case.coefficients.tolist()):
                torch.add(rest[0], rest[1], alpha=step[0], out=moved)
                torch.add(z[0], z[1], alpha=step[0], out=hidden)
                for alpha, move, more in zip(step[1:], rest[2:], z[2:], strict=True):
                    moved.add_(move, alpha=alpha)
                    hidden.add_(more, alpha=alpha)
                h = hidden
                for weight, bias in layers:
                    h = torch.addmm(bias, h.relu_(), weight.T)
                out[i] = F.cross_entropy(h, case.y).item()
        return out

    return losses


def identity_batched(case: Case, chunk: int) -> Losses:
    """The first-layer identity by hand and ``chunk`` points per call, every op written batched."""
    linears, first, theta = _linears(case)
    vectors = [theta, *case.directions]
    z = torch.stack([_first_layer(case.x, v, linears[0]).flatten() for v in vectors])
    rest = torch.stack([v[first:] for v in vectors])
    one = torch.ones(len(case.coefficients), 1, dtype=theta.dtype)
    coefficients = torch.cat([one, case.coefficients.to(theta.dtype)], dim=1)
    samples, target = len(case.x), case.y.repeat(chunk)

    def losses() -> np.ndarray:
        out = []
        with torch.inference_mode():
            for c in coefficients.split(chunk):
                h = (c @ z).view(len(c), samples, -1)
                for weight, bias in _layers(c @ rest, linears[1:]):
                    h = torch.baddbmm(bias.unsqueeze(1), h.relu_(), weight.mT)
                flat = F.cross_entropy(
                    h.flatten(0, 1), target[: len(c) * samples], reduction="none"
                )
                out.append(flat.view(len(c), samples).mean(1))
        return torch.cat(out).double().numpy()

    return losses


def loss_landscapes_plane(case: Case, steps: int, distance: float = 1) -> Losses:
    """loss-landscapes 3.0.6 ``random_plane``, steps x steps points of its own directions.

    Raises:
        ImportError: the package is not installed.
    """
    package = import_module("loss_landscapes")
    metric = import_module("loss_landscapes.metrics").Loss(case.loss, case.x, case.y)

    def losses() -> np.ndarray:
        model = copy.deepcopy(case.model).eval()  # random_plane leaves it moved
        with torch.no_grad():
            values = package.random_plane(
                model, metric, distance=distance, steps=steps, normalization="filter"
            )
        return np.asarray(values).ravel()

    return losses


def _linears(case: Case) -> tuple[list[nn.Linear], int, Tensor]:
    linears = [m for m in case.model.modules() if isinstance(m, nn.Linear)]
    return linears, linears[0].weight.numel() + linears[0].bias.numel(), case.theta


def _first_layer(x: Tensor, vector: Tensor, layer: nn.Linear) -> Tensor:
    """x (N, k) through the first layer whose weight and bias lead ``vector``: (N, m)."""
    (weight, bias), *_ = _layers(vector, [layer])
    return torch.addmm(bias, x, weight.T)


def _layers(vectors: Tensor, linears: list[nn.Linear]) -> list[tuple[Tensor, Tensor]]:
    """Weights (..., m, k) and biases (..., m) as views of vectors (..., n)."""
    out, at = [], 0
    for layer in linears:
        m, k = layer.weight.shape
        weight = vectors[..., at : at + m * k].unflatten(-1, (m, k))
        out.append((weight, vectors[..., at + m * k : at + m * k + m]))
        at += m * k + m
    return out
