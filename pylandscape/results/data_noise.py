"""Which differences of a result are larger than what other samples of the data would change.

The errors are metrics of the result (theta/sampling.py says what they are). Where the samples'
differences were kept (to the centre, or to the mixture of the solutions) the answer is the paired
one. Of two other points that share their samples only a bound is known: the standard deviation of a
difference is at most the sum of both, directly or by way of the centre.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array
from ..errors import InvalidArgument
from ..theta.sampling import DIFFERENCE, STANDARD, remaining
from .mixtures import barycentric_weights, bilinear_weights

ERRORS = 2.0  # standard errors that a difference must exceed
SLICES = ("line", "plane", "grid")
# What two results must share for the samples' losses at their centres to be the same.
SAME_CENTRE = ("theta", "loss", "data", "model", "model_state", "bn", "engine", "dtype")


def significant(
    result: Any, other: Any = None, errors: float = ERRORS, of: str = "population"
) -> NDArray[np.bool_]:
    """See `Curve.significant`."""
    if not (isinstance(errors, int | float) and np.isfinite(errors) and errors > 0):
        raise InvalidArgument(f"errors: expected a positive number, got {errors!r}")
    left = factor(result, of)
    if other is None:
        apart, noise = result.values - reference(result), left * reference_errors(result)
    elif isinstance(other, int | float) and not isinstance(other, bool):
        apart, noise = result.values - float(other), left * own_errors(result)
    else:
        _check_same_axes(result, other)
        apart = result.values - other.values
        noise = _between_results(result, other, left, factor(other, of))
    with np.errstate(invalid="ignore"):
        found: NDArray[np.bool_] = np.abs(apart) > errors * noise
    return found


def factor(result: Any, of: str) -> float:
    """What of the errors is left: all for the population that samples are drawn from, less for the
    data that a subset is of, 0 where the subset is all."""
    if of == "population":
        return 1.0
    if of != "data":
        raise InvalidArgument(f"of: expected 'population' or 'data', got {of!r}")
    subset = result.info.get("subset")
    return remaining(subset["samples"], subset["of"]) if subset else 0.0


def own_errors(result: Any) -> Array:
    """Standard errors of the values, of their shape.

    Raises:
        InvalidArgument: the result has none.
    """
    if STANDARD not in result.metrics:
        raise InvalidArgument(
            f"metrics: expected {STANDARD!r} among them, got {sorted(result.metrics)}; compute it "
            f"with metrics=({STANDARD!r}, {DIFFERENCE!r})"
        )
    found: Array = result.metrics[STANDARD]
    return found


def reference(result: Any) -> Any:
    """What differences are to: L at the centre, or the mixture of the solutions' losses.

    Raises:
        InvalidArgument: the result does not know it.
    """
    if result.kind in SLICES:
        centre = _centre(result)
        if centre is not None:
            return result.values[centre]
        for name in ("difference_to", "center_loss"):
            if result.info.get(name) is not None:
                return float(result.info[name])
    losses = result.info.get("vertex_losses")
    weights = mixture_weights(result)
    if losses is None or weights is None or any(v is None for v in losses):
        raise InvalidArgument(
            "other: expected a result or a number, as this one does not know the loss at its "
            "centre or at its solutions; got None"
        )
    return weights @ np.asarray(losses, dtype=np.float64)


def mixture_weights(result: Any) -> Array | None:
    """(..., v) weights of the solutions at every point; None where the result is of none."""
    if result.kind == "interpolation":
        return np.stack([1.0 - result.x, result.x], axis=-1)
    weights = {"barycentric": barycentric_weights, "bilinear": bilinear_weights}.get(result.kind)
    if weights is None:
        return None
    x, y = (a.ravel() for a in np.meshgrid(result.x, result.y, indexing="ij"))
    return weights(x, y).reshape(*result.values.shape, -1)


def reference_errors(result: Any) -> Array:
    """Standard errors of the values' differences to `reference`: paired, else a bound.

    Raises:
        InvalidArgument: the result has no errors that tell.
    """
    if DIFFERENCE in result.metrics:
        paired: Array = result.metrics[DIFFERENCE]
        return paired
    own = own_errors(result)
    centre = _centre(result)
    if result.kind not in SLICES or centre is None:
        raise InvalidArgument(
            f"metrics: expected {DIFFERENCE!r} among them, got {sorted(result.metrics)}: the error "
            "of the loss that differences are to is not among the points"
        )
    bound = np.asarray(own + own[centre])
    bound[centre] = 0.0
    return bound


def step_errors(result: Any, first: NDArray[np.int64], second: NDArray[np.int64]) -> Array:
    """(m,) bounds of the standard errors of L(first) - L(second), vertices (m,) in row-major
    order."""
    found = []
    if STANDARD in result.metrics:
        found.append(result.metrics[STANDARD].ravel())
    if DIFFERENCE in result.metrics and result.kind in SLICES:
        found.append(result.metrics[DIFFERENCE].ravel())
    if not found:
        own_errors(result)
    return np.fmin.reduce([errors[first] + errors[second] for errors in found])


def _between_results(one: Any, other: Any, left: float, right: float) -> Array:
    """Errors of the differences of two results' values: of other data, those of independent
    samples, else a bound."""
    a, b = left * own_errors(one), right * own_errors(other)
    facts = [{**(r.info.get("request") or {}), **r.info} for r in (one, other)]
    data = [f.get("data") for f in facts]
    if None not in data and data[0] != data[1]:
        return np.hypot(a, b)
    bound = a + b
    same = all(name in facts[0] and facts[0][name] == facts[1].get(name) for name in SAME_CENTRE)
    if same and all(DIFFERENCE in r.metrics and r.kind in SLICES for r in (one, other)):
        through = left * one.metrics[DIFFERENCE] + right * other.metrics[DIFFERENCE]
        bound = np.fmin(bound, through)
    return bound


def _centre(result: Any) -> tuple[int, ...] | None:
    """The index of the centre, where all steps are 0, if the grid has it; a slice beside it has
    none."""
    if any(cut["at"] != 0.0 for cut in result.info.get("slice", [])):
        return None
    at = [np.flatnonzero(axis == 0.0) for axis in _axes(result)]
    return tuple(int(k[0]) for k in at) if all(k.size for k in at) else None


def _axes(result: Any) -> list[Array]:
    given: list[Array] = getattr(result, "axes", [])
    return given or [getattr(result, name) for name in "xy" if hasattr(result, name)]


def _check_same_axes(one: Any, other: Any) -> None:
    if type(one) is not type(other):
        raise InvalidArgument(
            f"other: expected None, a number or another {type(one).__name__}, got "
            f"{type(other).__name__}"
        )
    same = one.values.shape == other.values.shape and all(
        np.array_equal(a, b) for a, b in zip(_axes(one), _axes(other), strict=True)
    )
    if not same:
        raise InvalidArgument(
            "other: expected a result at the same steps, got other axes; compute both with the "
            "same x and y"
        )
