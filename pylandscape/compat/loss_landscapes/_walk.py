"""Evaluating metrics at theta + C D for coefficients C (G, k) on a grid and directions D.

What can be lowered goes to the compiled engine. For the rest the model itself is moved from point
to point and the metric called, as in the original, but anew from theta every few points, so that no
rounding adds up; under ``compat`` step by step, along the original's path.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidArgument, NotLowered
from ...runs.chunks import evaluate_in_chunks
from .._report import report
from ._lower import is_a, is_pipeline, lower
from .metrics.sl_metrics import Loss
from .model_interface.model_parameters import ModelParameters
from .model_interface.model_wrapper import SimpleModelWrapper, is_wrapper

Parts = list[Tensor]  # shaped as the parameters

ANCHOR = 16  # points: over fewer steps, rounding does not add up to anything


@dataclass(frozen=True)
class Grid:
    """theta + C D: one coefficient per direction and point, the last direction fastest.

    Attributes:
        name: of the function that asks.
        directions: D, one or two, shaped as the parameters.
        axes: the coefficients along each; under ``stepwise`` in whole steps.
        stepwise: along the original's path, whose odd rows go backwards, one step behind the even.
    """

    name: str
    directions: Sequence[ModelParameters]
    axes: Sequence[np.ndarray]
    stepwise: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    @property
    def coefficients(self) -> np.ndarray:
        """C (G, k)."""
        mesh = np.meshgrid(*self.axes, indexing="ij")
        if self.stepwise and len(mesh) == 2:
            mesh[1][0::2] += 1.0
        return np.stack([m.ravel() for m in mesh], axis=1)

    @property
    def end(self) -> np.ndarray:
        """Where the original's path ends, (k,)."""
        if len(self.axes) == 1:
            return self.axes[0][-1:]
        first, second = self.axes
        return np.array([first[-1] + 1.0, second[0] + (len(second) if len(first) % 2 else 0.0)])


@contextmanager
def borrowed(model: Any, deepcopy: bool, restore: bool) -> Iterator[Any]:
    """The model's wrapper, requiring no grad; afterwards all of the model is as it was.

    With ``deepcopy`` a copy's. Without ``restore`` it stays as it was left.

    Raises:
        InvalidArgument (a ValueError): for anything but a module or a wrapper.
    """
    chosen = copy.deepcopy(model) if deepcopy else model
    wrapper = chosen
    if isinstance(chosen, torch.nn.Module):
        wrapper = SimpleModelWrapper(chosen)
    elif not is_wrapper(chosen):
        raise InvalidArgument(
            f"model: expected a torch.nn.Module or a ModelWrapper, got {type(model).__name__}"
        )
    modules = [m for part in wrapper.modules for m in part.modules()]
    parameters = wrapper.get_module_parameters().parameters
    buffers = [b for part in wrapper.modules for b in part.buffers()]
    live = [*parameters, *buffers]
    values = [t.detach().clone() for t in live] if restore and not deepcopy else []
    flags = [p.requires_grad for p in parameters]
    modes = [m.training for m in modules]
    try:
        yield wrapper.requires_grad_(False)
    finally:
        if values:
            with torch.no_grad():
                for t, value in zip(live, values, strict=True):
                    t.copy_(value)
            for p, flag in zip(parameters, flags, strict=True):
                p.requires_grad_(flag)
            for m, mode in zip(modules, modes, strict=True):
                m.training = mode


def values_on(grid: Grid, wrapper: Any, metric: Any) -> np.ndarray:
    """What the metric gives at every point of the grid, as the original returns it."""
    if not callable(metric):
        raise InvalidArgument(f"metric: expected a Metric, got {type(metric).__name__}")
    start = [p.detach().clone() for p in wrapper.get_module_parameters().parameters]
    together = is_pipeline(metric)
    metrics = list(metric.metrics) if together else [metric]
    columns: list[Any] = [_lowered(grid, wrapper, m) for m in metrics]
    rest = [i for i, column in enumerate(columns) if column is None]
    if rest:
        found = _called(grid, wrapper, [metrics[i] for i in rest], start)
        for i, column in zip(rest, found, strict=True):
            columns[i] = column
    elif grid.stepwise:
        live = wrapper.get_module_parameters().parameters
        _place(live, start, [d.parameters for d in grid.directions], grid.end.tolist())
    flat = list(zip(*columns, strict=True)) if together else columns[0]
    if len(grid.shape) == 1:
        return np.array(flat)
    rows, length = grid.shape
    return np.array([flat[i * length : (i + 1) * length] for i in range(rows)])


def _lowered(grid: Grid, wrapper: Any, metric: Any) -> list[float] | None:
    coefficients = grid.coefficients
    try:
        land = lower(wrapper, metric, len(coefficients), grid.stepwise)
        flat = [torch.cat([p.reshape(-1).to(land.dtype) for p in d]) for d in grid.directions]
        ask = land.prepare(torch.stack(flat))
    except (NotLowered, InvalidArgument) as refusal:
        engine = "torch" if is_a(metric, Loss) else "python"
        report.add(grid.name, engine, len(coefficients), str(refusal))
        return None
    found = evaluate_in_chunks(coefficients, ("loss",), lambda: ask, progress=False)
    report.add(grid.name, "native", len(coefficients))
    values: list[float] = found[:, 0].tolist()
    return values


def _called(grid: Grid, wrapper: Any, metrics: Sequence[Any], start: Parts) -> list[list[Any]]:
    """The metrics' values, by metric and point."""
    values: list[list[Any]] = [[None] * int(np.prod(grid.shape)) for _ in metrics]
    live = wrapper.get_module_parameters().parameters
    for index in _path(grid, live) if grid.stepwise else _points(grid, live, start):
        for column, metric in zip(values, metrics, strict=True):
            column[index] = metric(wrapper)
    return values


def _points(grid: Grid, live: Parts, start: Parts) -> Iterator[int]:
    """Moves the live parameters to every point in turn, row by row.

    Every `ANCHOR`-th point is computed from theta, the others by a step from the one before.
    """
    *outer, inner = (d.parameters for d in grid.directions)
    *rows, steps = (axis.tolist() for axis in grid.axes)
    spacing = steps[1] - steps[0] if len(steps) > 1 else 0.0
    index = 0
    for c1 in rows[0] if rows else [0.0]:
        for j, c2 in enumerate(steps):
            if j % ANCHOR:
                _add(live, inner, spacing)
            else:
                _place(live, start, [*outer, inner], [c1, c2][-len(grid.axes) :])
            yield index
            index += 1


def _path(grid: Grid, live: Parts) -> Iterator[int]:
    """The original's walk from the grid's first corner, in place."""
    *outer, inner = (d.parameters for d in grid.directions)
    offsets = [axis[0] for axis in grid.axes]
    if not outer:
        for i in range(len(grid.axes[0])):
            _add(live, inner, 1.0)
            yield i
        return
    for d, offset in zip((outer[0], inner), offsets, strict=True):
        if offset:
            _add(live, d, offset)
    rows, length = grid.shape
    for i in range(rows):
        for j in range(length):
            backwards = i % 2 == 1
            _add(live, inner, -1.0 if backwards else 1.0)
            yield i * length + (length - 1 - j if backwards else j)
        _add(live, outer[0], 1.0)


@torch.no_grad()
def _place(live: Parts, start: Parts, directions: Sequence[Parts], at: Sequence[float]) -> None:
    """live <- start + sum_i at[i] d_i."""
    torch._foreach_copy_(live, start)
    for d, c in zip(directions, at, strict=True):
        _add(live, d, c)


def _add(live: Parts, step: Parts, alpha: float) -> None:
    """live <- live + alpha step. At every point: the guard costs more than looking for its need."""
    if any(p.requires_grad for p in live):
        with torch.no_grad():
            torch._foreach_add_(live, step, alpha=alpha)
    else:
        torch._foreach_add_(live, step, alpha=alpha)
