"""Whether autograd's derivative is the slope of the losses.

Derivatives are those of the user's own ``.backward()``. Whatever separates them from the values
(``detach``, ``no_grad`` blocks, hooks on gradients, custom autograd functions, straight-through
estimators) is part of the model, and worth a word: a curvature is then not that of the surface.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from .eager import TorchEngine

if TYPE_CHECKING:
    from .contract import Answered

_SAMPLES, _FEW = 32, 2  # of the first batch; few for networks of more than _LARGE parameters
_LARGE = 1_000_000
UNASKED = 10_000_000  # parameters up to which reports look without being asked
_STEPS = {torch.float64: 1e-5, torch.float32: 1e-2}  # relative to each tensor's spread
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 0.1}  # of the larger slope


def mismatch(land: Answered) -> str | None:
    """A sentence where the gradient is not the slope of L, None where it is or cannot be told.

    Compares them on a few samples of the first batch, along a random direction and along the
    gradient, by central differences with two steps: in float64 where the model runs in it.
    """
    for engine in _engines(land):
        try:
            return _compare(engine)
        except Exception:  # another way of asking may work; nothing is said where none does
            continue
    return None


def _compare(engine: TorchEngine) -> str | None:
    theta = engine.parameters.origin()
    gradient = engine.gradient(theta).to(theta)
    coarse = _rounds_to_float32(engine, theta)
    dtype = torch.float32 if coarse else theta.dtype
    step, tolerance = _STEPS[dtype], _TOLERANCE[dtype]
    rounding = max(engine.parameters.rounding(), torch.finfo(dtype).eps)
    directions = {"a random direction": engine.parameters.random_step()}
    norm = float(gradient.norm())
    if norm > 0:
        scale = float(directions["a random direction"].norm()) / norm
        directions["the gradient"] = gradient * scale
    c = np.array([[step], [-step], [step / 4], [-step / 4]])
    for name, u in directions.items():
        up, down, nearer_up, nearer_down = engine.prepare(theta, u[None], ("loss",))(c)["loss"]
        far, near = (up - down) / (2 * step), (nearer_up - nearer_down) / (step / 2)
        slope = float(gradient.double() @ u.double())
        noise = 256 * rounding * abs(up) / step
        allowed = tolerance * max(abs(slope), abs(near)) + noise + 2 * abs(far - near)
        if abs(slope - near) > allowed:
            return (
                "derivatives are autograd's, those of .backward(), and not the slope of the "
                f"losses: along {name} autograd says {slope:.4g} and the losses {near:.4g} "
                "(detach, no_grad, hooks on gradients, custom autograd functions, "
                "straight-through estimators and an embedding's padding_idx do this)"
            )
    return None


def _rounds_to_float32(engine: TorchEngine, theta: torch.Tensor) -> bool:
    """Whether the losses are float32 though the parameters are float64: so are those of models
    that convert their logits, as transformers' do."""
    if theta.dtype != torch.float64:
        return False
    points = torch.stack([theta, theta + _STEPS[theta.dtype] * engine.parameters.random_step()])
    found = engine.prepare_points(("loss",))(points)["loss"]
    rounded = found.astype(np.float32).astype(np.float64)
    return bool((np.abs(rounded - found) <= 8 * np.finfo(np.float64).eps * np.abs(found)).all())


def _engines(land: Answered) -> Iterator[TorchEngine]:
    batch = land.dataset.batches[0]
    count = _SAMPLES if land.n_params <= _LARGE else _FEW
    bn = "batch" if land.bn == "batch" and land.has_batchnorm else "eval"
    for dtype in (torch.float64, None):
        for some in (batch.first(count), batch):
            try:
                yield TorchEngine(
                    land.model, land.loss_spec, [some], land.layout, dtype=dtype,
                    device=land.device, bn=bn, memory=0, autocast=land.autocast,
                )  # fmt: skip
            except Exception:  # the copy cannot be made in this dtype
                continue
