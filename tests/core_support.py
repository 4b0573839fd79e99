"""Builds small programs straight on the core, beside a float64 torch reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pylandscape._native import core

PROGRAM = {torch.float32: core.ProgramF32, torch.float64: core.ProgramF64}
QUESTION = {torch.float32: core.QuestionF32, torch.float64: core.QuestionF64}
DERIVATIVES = {torch.float32: core.DerivativesF32, torch.float64: core.DerivativesF64}


@dataclass
class Mlp:
    """A multilayer perceptron with one activation, as a Program and as float64 torch."""

    dims: tuple[int, ...]
    activation: str
    loss: str  # "cross_entropy" | "mse"
    x: Tensor
    y: Tensor
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.n = sum(a * b + b for a, b in zip(self.dims, self.dims[1:], strict=False))
        self.program = PROGRAM[self.dtype](self.n, 0, 0)
        slot, at = self.program.input(self.dims[0]), 0
        for i, (a, b) in enumerate(zip(self.dims, self.dims[1:], strict=False)):
            slot = self.program.linear(slot, 1, a, b, at, at + a * b)
            at += a * b + b
            if i < len(self.dims) - 2:
                slot = self.program.unary(slot, getattr(core.Unary, self.activation), 0.0, 0.0)
        self.program.finish(slot)
        x = self.x.to(self.dtype).contiguous()
        self.program.set_data(len(x), x.data_ptr())
        index = self.y.contiguous() if self.loss == "cross_entropy" else None
        dense = None if index is not None else self.y.double().contiguous()
        self.program.set_loss(
            getattr(core.Loss, self.loss),
            self.dims[-1],
            1,
            0.0,
            [],
            [],
            0 if index is None else index.data_ptr(),
            0 if dense is None else dense.data_ptr(),
        )

    def reference(self, theta: Tensor) -> Tensor:
        """The summed loss at theta (n,), in float64 from the same (rounded) data."""
        h, at = self.x.to(self.dtype).double(), 0
        for i, (a, b) in enumerate(zip(self.dims, self.dims[1:], strict=False)):
            weight = theta[at : at + a * b].view(b, a)
            h = h @ weight.T + theta[at + a * b : at + a * b + b]
            at += a * b + b
            if i < len(self.dims) - 2:
                h = getattr(torch, self.activation)(h)
        if self.loss == "cross_entropy":
            return torch.nn.functional.cross_entropy(h, self.y, reduction="sum")
        return ((h - self.y.double()) ** 2).sum()

    def ask(self, theta: Tensor, directions: Tensor) -> object:
        t, d = theta.to(self.dtype).contiguous(), directions.to(self.dtype).contiguous()
        return QUESTION[self.dtype](self.program, t.data_ptr(), d.data_ptr(), len(d))

    def run(self, question: object, coordinates: Tensor, correct: bool = False) -> np.ndarray:
        c = coordinates.to(self.dtype).contiguous()
        loss, hits = np.full(len(c), np.nan), np.full(len(c), np.nan)
        question.run(len(c), c.data_ptr(), loss.ctypes.data, hits.ctypes.data * correct, 0)
        return np.stack([loss, hits]) if correct else loss


def make_mlp(
    dims: tuple[int, ...],
    activation: str,
    loss: str,
    samples: int,
    dtype: torch.dtype,
    seed: int = 0,
) -> Mlp:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, dims[0], generator=g)
    if loss == "cross_entropy":
        y = torch.randint(0, dims[-1], (samples,), generator=g)
    else:
        y = torch.randn(samples, dims[-1], generator=g)
    return Mlp(dims, activation, loss, x, y, dtype)


def outputs_of(features: int, x: Tensor, build: object) -> Tensor:
    """The outputs of the program that ``build(program, input_slot)`` makes, on x (N, features)."""
    program = PROGRAM[x.dtype](0, 0, 0)
    slot = build(program, program.input(features))
    program.finish(slot)
    x = x.contiguous()
    program.set_data(len(x), x.data_ptr())
    width = program.features(slot)
    target = torch.zeros(len(x), width, dtype=torch.float64)
    program.set_loss(core.Loss.mse, width, 1, 0.0, [], [], 0, target.data_ptr())
    question = QUESTION[x.dtype](program, 0, 0, 0)
    result, loss = torch.full((len(x), width), torch.nan, dtype=x.dtype), np.empty(1)
    question.run(1, 0, loss.ctypes.data, 0, result.data_ptr())
    return result
