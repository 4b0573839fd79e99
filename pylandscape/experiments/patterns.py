"""Patterns in loss surfaces: a mask carved into L by optimisation, and a surface constructed.

carve_pattern: I. Skorokhodov, M. Burtsev, "Loss landscape sightseeing with multi-point
    optimization" (2019): the plane itself is trained, with the points of a binary mask as low and
    high losses.
construct_pattern: W. M. Czarnecki, S. Osindero, R. Pascanu, M. Jaderberg, "A deep neural network's
    loss surface contains every low-dimensional pattern" (2019): with first weights of 0 the output
    is a function q(h) of the first biases h alone; q is trained so that the mean loss is T(h).
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import check_landscape, integer
from ..arrays import Array, digest, progress_bar
from ..engines import training
from ..engines.contract import Rule, RunState, Stepper
from ..engines.update_rules import apply
from ..errors import InvalidArgument, NotLowered
from ..landscape import Landscape
from ..results.patterns import ConstructedPattern, Pattern
from ..runs.checkpoint import Checkpoint
from ..runs.request import build
from ..runs.resume import resumable

if TYPE_CHECKING:
    from collections.abc import Sequence

_ADAM = Rule("adam")
_GRADIENT = Rule("sgd", momentum=0.5)  # whose momentum is the gradient after a first step


def carve_pattern(
    land: Landscape,
    mask: Any,
    *,
    steps: int = 800,
    lr: float = 1e-3,
    ceiling: float = 3.0,
    kappa: float = 1.0,
    cells: int | None = None,
    batch_size: int | None = 512,
    spacing: float = 0.1,
    clip: float = 10.0,
    held_out: Landscape | None = None,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Pattern:
    """Train a plane or volume so that its loss is low where a mask is 1 and high where it is 0.

    theta(i) = o + gamma sum_k (i_k - c_k) u_k; o, the u_k (orthogonalised in turn, with their own
    lengths) and gamma are trained by Adam on

        mean over ones of L - kappa * mean over zeros of min(L, ceiling).

    Args:
        land: its model's parameters are the first o.
        mask: (a, b) or (a, b, c) of zeros and ones, both among them.
        lr: of Adam, constant.
        ceiling: beyond which a high loss need not rise; 2 to 5 for ten classes.
        cells: so many of the mask's, drawn anew for each step; default all (25 to 50 are enough).
        batch_size: samples of a step, drawn anew; None for all. Models that the compiled core does
            not train use all, at every step.
        spacing: the first gamma; the u_k begin as Gaussian vectors of o's length.
        clip: longest gradient; a longer one is shortened.
        held_out: the same model with other data: the pattern's transfer.
        seed: of directions, cells and mini-batches.
        path: HDF5 file for the result; a run that was stopped goes on from what lies beside it.
        progress: show a bar on stderr.

    Raises:
        InvalidArgument: a mask of another kind, numbers out of their range, a landscape with batch
            norm whose statistics move.
        ResumeMismatch: ``path`` belongs to another call.
    """
    check_landscape(land, "carve_pattern")
    wanted = _checked_mask(mask)
    steps, total = integer(steps, "steps", 1), wanted.size
    cells = total if cells is None else integer(cells, "cells", 2, total)
    size = land.dataset.size
    batch = size if batch_size is None else min(integer(batch_size, "batch_size", 1), size)
    if not (lr > 0 and ceiling > 0 and kappa > 0 and spacing > 0 and clip > 0):
        raise InvalidArgument("lr, ceiling, kappa, spacing, clip: expected numbers above 0")
    if land.moved.n != land.n_params:
        raise InvalidArgument("land: expected running statistics that stay (bn='eval')")
    if held_out is not None and held_out.n_params != land.n_params:
        raise InvalidArgument(
            f"held_out: expected a landscape of {land.n_params} parameters, got {held_out.n_params}"
        )
    request = build(
        land, "carve_pattern", path is not None, theta=digest(land.theta), mask=wanted.tolist(),
        steps=steps, lr=lr, ceiling=ceiling, kappa=kappa, cells=cells, batch_size=batch,
        spacing=spacing, clip=clip, seed=seed,
        held_out=None if held_out is None else held_out.describe()["data"],
    )  # fmt: skip

    def run(kept: Checkpoint) -> Pattern:
        carving = _Carving(land, wanted, spacing, seed)
        history = carving.run(steps, lr, ceiling, kappa, cells, batch, clip, kept, progress)
        origin, axes = carving.frame()
        losses, accuracy = _over(land, carving.offsets, origin, axes, wanted.shape)
        held: tuple[Array | None, Array | None] = (None, None)
        if held_out is not None:
            held = _over(held_out, carving.offsets, origin, axes, wanted.shape)
        return Pattern(
            wanted, losses, origin.numpy(), axes.numpy(), history, accuracy, *held,
            info={"request": request},
        )  # fmt: skip

    return resumable(path, request, run)


class _Carving:
    """o and the raw u_k (1 + d, n) with gamma (1,), float64, and Adam's moments of both."""

    def __init__(self, land: Landscape, mask: Array, spacing: float, seed: int) -> None:
        self.land, self.seed = land, seed
        self.good = torch.from_numpy(mask.ravel() > 0.5)
        middle = [(size - 1) / 2 for size in mask.shape]
        places = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), axis=-1)
        self.offsets = places.reshape(-1, mask.ndim) - np.array(middle)
        origin = land.theta.detach().cpu().double()
        drawn = np.random.default_rng([seed, 0]).standard_normal((mask.ndim, len(origin)))
        length = float(origin.norm()) or 1.0
        rows = torch.from_numpy(drawn * length / np.linalg.norm(drawn, axis=1, keepdims=True))
        self.rows = torch.cat([origin[None], rows])
        self.gamma = torch.tensor([spacing], dtype=torch.float64)
        self.moments = [torch.zeros_like(t) for t in (self.rows, self.rows)]
        self.gamma_moments = [torch.zeros_like(self.gamma) for _ in range(2)]
        self.stepper: Stepper | None = None
        with suppress(NotLowered):
            self.stepper = training.build(land, _GRADIENT)

    def run(
        self, steps: int, lr: float, ceiling: float, kappa: float, cells: int, batch: int,
        clip: float, kept: Checkpoint, progress: bool,
    ) -> Array:  # fmt: skip
        """The objective of each step; takes up what is kept."""
        history, done = np.full(steps, np.nan), 0
        state = {
            "rows": self.rows, "gamma": self.gamma, "mean": self.moments[0],
            "square": self.moments[1], "gamma_mean": self.gamma_moments[0],
            "gamma_square": self.gamma_moments[1],
        }  # fmt: skip
        if (before := kept.load()) is not None:
            history, done = before["history"], int(before["done"])
            for name, tensor in state.items():
                tensor.copy_(torch.from_numpy(before[name]))

        def save() -> None:
            arrays = {name: tensor.numpy() for name, tensor in state.items()}
            kept.save({**arrays, "history": history, "done": np.array(done)})

        with progress_bar(steps, "carve", "step", progress, done) as bar:
            try:
                for k in range(done, steps):
                    rng = np.random.default_rng([self.seed, 1, k])
                    chosen = self._cells(rng, cells)
                    samples = torch.arange(self.land.dataset.size)
                    if batch < len(samples):
                        samples = torch.from_numpy(rng.permutation(len(samples))[:batch])
                    history[k] = self._step(chosen, samples, ceiling, kappa, clip, k + 1, lr)
                    done = k + 1
                    bar.update()
                    if kept.due:
                        save()
            except BaseException:
                if done:
                    save()
                raise
        return history

    def _cells(self, rng: np.random.Generator, count: int) -> Tensor:
        """Cells of a step, of both kinds."""
        total = len(self.good)
        if count == total:
            return torch.arange(total)
        kinds = [np.flatnonzero(self.good.numpy() == kind) for kind in (True, False)]
        first = [rng.choice(kind) for kind in kinds]
        rest = np.setdiff1d(np.arange(total), first)
        return torch.from_numpy(np.concatenate([first, rng.permutation(rest)[: count - 2]]))

    def _step(
        self, chosen: Tensor, samples: Tensor, ceiling: float, kappa: float, clip: float,
        number: int, lr: float,
    ) -> float:  # fmt: skip
        rows, gamma = self.rows.requires_grad_(), self.gamma.requires_grad_()
        with torch.enable_grad():
            offsets = torch.from_numpy(self.offsets)[chosen]
            points = rows[0] + gamma * (offsets @ orthogonal(rows[1:]))
        losses, slopes = self._gradients(points.detach(), samples)
        good = self.good[chosen]
        factor = torch.where(
            good, 1.0 / good.sum(), -kappa / (~good).sum() * (losses < ceiling).double()
        )
        with torch.enable_grad():
            grads = torch.autograd.grad(points, [rows, gamma], factor[:, None] * slopes.double())
        self.rows, self.gamma = rows.detach_(), gamma.detach_()
        norm = float(torch.sqrt(sum((g**2).sum() for g in grads)))  # type: ignore[arg-type]
        scale = min(1.0, clip / norm) if norm > 0 else 1.0
        apply(_ADAM, self.rows, grads[0] * scale, (*self.moments,), number, lr)
        apply(_ADAM, self.gamma, grads[1] * scale, (*self.gamma_moments,), number, lr)
        low = losses[good].mean()
        return float(low - kappa * losses[~good].clamp(max=ceiling).mean())

    def _gradients(self, points: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (c,) float64 of a mini-batch and gradients (c, n) at points (c, n)."""
        at = points.to(self.land.dtype).contiguous()
        if self.stepper is None:  # all data
            slopes = torch.stack([self.land.gradient(point) for point in at])
            return torch.from_numpy(np.asarray(self.land.losses(points=at))), slopes.cpu()
        slopes = torch.zeros_like(at)
        state = RunState(at, [slopes], at[:, :0], 0, torch.zeros(len(at), dtype=torch.int64))
        found = self.stepper.advance(state, [samples], torch.ones(1, dtype=torch.float64))
        return found[:, 0].double(), slopes

    def frame(self) -> tuple[Tensor, Tensor]:
        """o (n,) and gamma u_k (d, n)."""
        return self.rows[0].clone(), self.gamma * orthogonal(self.rows[1:])


def orthogonal(rows: Tensor) -> Tensor:
    """Rows (d, n) made orthogonal to those before them, each with its own length."""
    found: list[Tensor] = []
    for row in rows:
        left = row
        for other in found:
            left = left - (left @ other) / (other @ other) * other
        found.append(left * (row.norm() / left.norm()))
    return torch.stack(found)


def _over(
    land: Landscape, offsets: Array, origin: Tensor, axes: Tensor, shape: tuple[int, ...]
) -> tuple[Array, Array | None]:
    """Loss and accuracy of all cells over all data."""
    classes = land.loss_spec.name in ("cross_entropy", "nll", "bce_with_logits")
    metrics = ("loss", "accuracy") if classes else ("loss",)
    found = land.evaluate(
        offsets, axes.to(land.dtype), metrics=metrics, theta=origin.to(land.dtype)
    )
    return found["loss"].reshape(shape), found["accuracy"].reshape(shape) if classes else None


def _checked_mask(mask: Any) -> Array:
    found = np.asarray(mask, dtype=np.float64)
    if found.ndim not in (2, 3) or not np.isin(found, (0.0, 1.0)).all():
        raise InvalidArgument(f"mask: expected (a, b) or (a, b, c) of 0 and 1, got {found.shape}")
    if found.all() or not found.any():
        raise InvalidArgument("mask: expected zeros and ones, got one kind alone")
    return found


def construct_pattern(
    heights: Any,
    data: tuple[Tensor, Tensor],
    *,
    hidden: Sequence[int] = (8, 64, 64),
    steps: int = 1000,
    held_out: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Sequential, ConstructedPattern]:
    """A tanh network whose cross-entropy over given data has given heights over bias directions.

    The first weights are 0 and the first biases (h_1, ..., h_d, 0, ...), so that the inputs have no
    say: the mean cross-entropy over labels of frequencies p is -sum_c p_c log softmax(q(h))_c.
    The layers above are trained (L-BFGS, float64) to make it T(h) on a grid of [-1, 1]^d.

    Args:
        heights: T, (q, q) or (q, q, q), none below the labels' entropy.
        data: inputs (N, ...), which are flattened, and labels (N,) int64.
        hidden: widths of the hidden layers, at least two; the first holds h.
        steps: of L-BFGS.
        held_out: other data: its surface differs by the labels' frequencies alone.

    Returns:
        The network, float64, and the result.

    Raises:
        InvalidArgument: heights of another shape or below the entropy, labels that are no integers.
    """
    target = np.asarray(heights, dtype=np.float64)
    x, y = data
    if target.ndim not in (2, 3) or len(set(target.shape)) != 1 or not np.isfinite(target).all():
        raise InvalidArgument(f"heights: expected finite (q, q) or (q, q, q), got {target.shape}")
    if y.is_floating_point() or y.dim() != 1:
        raise InvalidArgument(
            f"data: expected labels (N,) of integers, got {y.dtype} {tuple(y.shape)}"
        )
    if len(hidden) < 2 or hidden[0] < target.ndim:
        raise InvalidArgument(
            f"hidden: expected two widths, the first >= {target.ndim}, got {hidden}"
        )
    counts = torch.bincount(y).double()
    p = counts / counts.sum()
    entropy = -float(torch.special.xlogy(p, p).sum())
    if target.min() < entropy:
        raise InvalidArgument(
            f"heights: expected none below the labels' entropy {entropy:.4g}, got {target.min():g}"
        )
    flat = x.reshape(len(x), -1)
    model = _tanh_network([flat.shape[1], *hidden, len(p)], seed)
    axis = np.linspace(-1.0, 1.0, target.shape[0])
    mesh = np.stack(np.meshgrid(*[axis] * target.ndim, indexing="ij"), axis=-1)
    h = torch.from_numpy(mesh.reshape(-1, target.ndim))
    history = _fitted(model, h, p, torch.from_numpy(target.ravel()), steps, progress)
    land = Landscape(model, "cross_entropy", (flat.double(), y))
    directions = torch.zeros(target.ndim, land.n_params, dtype=torch.float64)
    start = next(e for e in land.layout.entries if e.name == "0.bias").offset
    directions[torch.arange(target.ndim), start + torch.arange(target.ndim)] = 1.0
    values = land.losses(h, directions).reshape(target.shape)
    held = None
    if held_out is not None:
        other = held_out[0].reshape(len(held_out[0]), -1).double()
        there = Landscape(model, "cross_entropy", (other, held_out[1]))
        held = there.losses(h, directions).reshape(target.shape)
    info = {"sizes": [flat.shape[1], *hidden, len(p)], "seed": seed, "steps": steps}
    return model, ConstructedPattern(
        target, values, axis, np.asarray(land.theta), directions.numpy(), history, entropy, held,
        info,
    )  # fmt: skip


def _tanh_network(sizes: list[int], seed: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inner, outer in pairwise(sizes):
            layers += [nn.Linear(inner, outer), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        for parameter in layers[0].parameters():
            parameter.zero_()
    return model


def _fitted(
    model: nn.Sequential, h: Tensor, p: Tensor, target: Tensor, steps: int, progress: bool
) -> Array:
    """L-BFGS on all layers but the first, so that the mean loss at biases h is the target."""
    from scipy.optimize import minimize

    first = next(model.parameters())
    biases = torch.nn.functional.pad(h, (0, len(first) - h.shape[1]))
    above = model[1:]
    parameters = list(above.parameters())
    history: list[float] = []

    def error_at(point: Array) -> tuple[float, Array]:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(point.copy()), parameters)
        with torch.enable_grad():
            found = -(above(biases).log_softmax(dim=1) @ p)
            error = ((found - target) ** 2).mean()
            slopes = torch.autograd.grad(error, parameters)
        last[0] = float(error.detach())
        return last[0], torch.cat([g.reshape(-1) for g in slopes]).numpy()

    def after_step(_: Array) -> None:
        history.append(last[0])
        bar.update()

    last = [float("nan")]
    start = torch.nn.utils.parameters_to_vector(parameters).detach().numpy()
    with progress_bar(steps, "construct", "step", progress) as bar:
        found = minimize(
            error_at, start, jac=True, method="L-BFGS-B", callback=after_step,
            options={"maxiter": steps, "maxfun": 3 * steps, "maxcor": 20, "ftol": 0.0, "gtol": 0.0},
        )  # fmt: skip
    torch.nn.utils.vector_to_parameters(torch.from_numpy(found.x), parameters)
    return np.array(history)
