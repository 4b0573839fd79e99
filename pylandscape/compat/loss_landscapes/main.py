"""Losses, or any metric, at a point, along lines and over planes of parameter space."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import InvalidArgument, LayoutMismatch
from .._options import version_of
from .._report import report
from ._directions import check_normalization, drawn, drawn_as_3_0_6, scale_as_3_0_6
from ._lower import is_a
from ._walk import Grid, borrowed, values_on
from .metrics.sl_metrics import Loss
from .model_interface.model_parameters import ModelParameters

_NAME = "loss_landscapes"
_KNOWN = ("3.0.6",)


def point(model: Any, metric: Any) -> Any:
    """``metric(wrapper)`` of the model as it is.

    Args:
        model: an nn.Module, or a ModelWrapper. It is left as it was.
        metric: called with the model's wrapper.
    """
    _check_metric(metric)
    with borrowed(model, deepcopy=False, restore=True) as wrapper:
        value = metric(wrapper)
    report.add(f"{_NAME}.point", "torch" if is_a(metric, Loss) else "python", 1)
    return value


def linear_interpolation(
    model_start: Any,
    model_end: Any,
    metric: Any,
    steps: int = 100,
    deepcopy_model: bool = False,
    *,
    compat: str | None = None,
) -> np.ndarray:
    """The metric at theta_start + t (theta_end - theta_start), t = 1/steps, 2/steps, ..., 1.

    Args:
        model_start, model_end: modules or ModelWrappers with parameters of the same shapes. They
            are left as they were; with ``compat`` the first is moved to the last point, and none
            requires grad any longer, unless ``deepcopy_model``.
        metric: called with the wrapper of ``model_start``; `Loss` is compiled where it can be.
        steps: how many points.
        deepcopy_model: work on copies.
        compat: "3.0.6": the original's numbers.

    Returns:
        (steps, ...): as NumPy stacks what the metric returns; (steps,) float64 for `Loss`.

    Raises:
        InvalidArgument: for arguments of another type or value; LayoutMismatch (one, too) for
            parameters of other shapes.
    """
    version = version_of(_NAME, compat, _KNOWN)
    count = _count(steps)
    _check_metric(metric)
    with borrowed(model_start, deepcopy_model, version is None) as wrapper:
        ends = _differences(wrapper, {"model_end": model_end}, count, version)
        _release([model_end], version, deepcopy_model)
        grid = _grid("linear_interpolation", ends, [np.arange(1.0, count + 1)], count, version)
        return values_on(grid, wrapper, metric)


def random_line(
    model_start: Any,
    metric: Any,
    distance: float = 0.1,
    steps: int = 100,
    normalization: str | None = "filter",
    deepcopy_model: bool = False,
    *,
    compat: str | None = None,
) -> np.ndarray:
    """The metric at theta + t d, t = 1/steps, ..., 1, for a random direction d.

    Args:
        distance: |d| is |theta| / distance, as in 3.0.6 (whose later source multiplies); not 0.
        normalization: what of d gets the norm of what of theta: every "filter", "layer", the whole
            "model", or None.
        The others are those of `linear_interpolation`.

    Returns, Raises:
        As `linear_interpolation`; an AttributeError (InvalidArgument, too) for another
        normalization.
    """
    version = version_of(_NAME, compat, _KNOWN)
    count, divisor = _count(steps), _distance(distance)
    _check_metric(metric)
    check_normalization(normalization)
    with borrowed(model_start, deepcopy_model, version is None) as wrapper:
        directions = _random(wrapper, 1, normalization, divisor, count, version)
        axis = np.arange(1.0, count + 1)
        grid = _grid("random_line", directions, [axis], count, version, divisor)
        return values_on(grid, wrapper, metric)


def planar_interpolation(
    model_start: Any,
    model_end_one: Any,
    model_end_two: Any,
    metric: Any,
    steps: int = 20,
    deepcopy_model: bool = False,
    *,
    compat: str | None = None,
) -> np.ndarray:
    """The metric at theta + (i/steps) (theta_one - theta) + (j/steps) (theta_two - theta).

    Row i, column j, both from 0 to steps - 1; see the package's table for ``compat``. Arguments,
    Returns (steps, steps, ...), Raises: as `linear_interpolation`.
    """
    version = version_of(_NAME, compat, _KNOWN)
    count = _count(steps)
    _check_metric(metric)
    ends = {"model_end_one": model_end_one, "model_end_two": model_end_two}
    with borrowed(model_start, deepcopy_model, version is None) as wrapper:
        directions = _differences(wrapper, ends, count, version)
        _release(ends.values(), version, deepcopy_model)
        axes = [np.arange(0.0, count)] * 2
        grid = _grid("planar_interpolation", directions, axes, count, version)
        return values_on(grid, wrapper, metric)


def random_plane(
    model: Any,
    metric: Any,
    distance: float = 1,
    steps: int = 20,
    normalization: str | None = "filter",
    deepcopy_model: bool = False,
    *,
    compat: str | None = None,
) -> np.ndarray:
    """The metric at theta + (i/steps - 1/2) d1 + (j/steps - 1/2) d2 for random directions.

    Row i, column j, both from 0 to steps - 1: theta is at [steps/2, steps/2] for an even number of
    steps. Arguments, Raises: as `random_line`. Returns (steps, steps, ...).
    """
    version = version_of(_NAME, compat, _KNOWN)
    count, divisor = _count(steps), _distance(distance)
    _check_metric(metric)
    check_normalization(normalization)
    with borrowed(model, deepcopy_model, version is None) as wrapper:
        directions = _random(wrapper, 2, normalization, divisor, count, version)
        axes = [np.arange(0.0, count) - count / 2] * 2
        grid = _grid("random_plane", directions, axes, count, version, divisor)
        return values_on(grid, wrapper, metric)


def _grid(
    name: str,
    directions: Sequence[ModelParameters],
    axes: Sequence[np.ndarray],
    steps: int,
    version: str | None,
    distance: float = 1.0,
) -> Grid:
    """``axes`` are in steps; correct directions are whole ones, the original's single steps."""
    label = f"{_NAME}.{name}"
    if version is None:
        return Grid(label, directions, [axis / steps / distance for axis in axes])
    return Grid(label, directions, axes, stepwise=True)


def _random(
    wrapper: Any,
    count: int,
    normalization: str | None,
    distance: float,
    steps: int,
    version: str | None,
) -> list[ModelParameters]:
    start = wrapper.get_module_parameters()
    if version is None:
        return drawn(start, count, normalization)
    found = drawn_as_3_0_6(start, count, normalization)
    for direction in found:
        scale_as_3_0_6(start, direction, distance, steps)
    return found


def _differences(
    wrapper: Any, ends: dict[str, Any], steps: int, version: str | None
) -> list[ModelParameters]:
    """Every end minus the start; under compat one step of it. Raises LayoutMismatch."""
    start = wrapper.get_module_parameters()
    found = []
    for name, model in ends.items():
        with borrowed(model, deepcopy=False, restore=True) as end:
            theta = end.get_module_parameters()
            wanted, got = ([tuple(p.shape) for p in v.parameters] for v in (start, theta))
            if wanted != got:
                raise LayoutMismatch(f"{name}: expected parameters of shapes {wanted}, got {got}")
            whole = theta - start
            found.append(whole if version is None else whole / steps)
    return found


def _release(models: Any, version: str | None, deepcopy_model: bool) -> None:
    """Under compat, end models no longer require grad, as in the original."""
    if version is not None and not deepcopy_model:
        for model in models:
            model.requires_grad_(False)


def _count(steps: Any) -> int:
    try:
        count = operator.index(steps)
    except TypeError:
        count = 0
    if count < 1:
        raise InvalidArgument(f"steps: expected a positive integer, got {steps!r}")
    return count


def _distance(distance: Any) -> float:
    value = float(distance)
    if value == 0 or math.isnan(value):
        raise InvalidArgument(f"distance: expected a number other than 0, got {distance!r}")
    return value


def _check_metric(metric: Any) -> None:
    if not callable(metric):
        raise InvalidArgument(f"metric: expected a Metric, got {type(metric).__name__}")
