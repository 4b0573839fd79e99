"""Errors of L that come from the data: other samples would have given another mean.

The unit is the sample, a row of the inputs (a text, not its tokens). l_i is the sum of its loss
terms, b_i its part of the denominator: L = sum l / sum b. Where the b_i differ (class weights,
targets that are ignored) L is a ratio of two means, and its variance that of its linear part
(Cochran 1977, section 2.11):

    s^2 = 1/(N - 1) sum u_i^2,    u_i = N (l_i - L b_i) / sum b,    error = sqrt(s^2 / N).

Two points share the samples, so the error of a difference is that of the mean of the samples' own
differences. A random subset of m of M samples has the error sqrt(s^2 / m (1 - m/M)) against all M.

"standard_error"             of L, as an estimate of the loss over whatever the samples are drawn
                             from; with reduction "sum", of N draws
"difference_standard_error"  of L - L(theta), theta the centre; between solutions of L minus the
                             same mixture of their losses, which a barrier is the largest of
"subset_error"               of L against L of the data that `samples=` drew from; else 0
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import InvalidArgument

STANDARD, DIFFERENCE, SUBSET = "standard_error", "difference_standard_error", "subset_error"
METRICS = (STANDARD, DIFFERENCE, SUBSET)


def asked(metrics: Iterable[Any]) -> tuple[str, ...]:
    """Those of the metrics that are errors from the data."""
    return tuple(m for m in metrics if isinstance(m, str) and m in METRICS)


def check_own_losses(metrics: Sequence[Any], loss: Any, mixes: bool, samples: int) -> None:
    """Raises InvalidArgument where samples have no losses of their own, saying what is missing.

    ``mixes``: whether a sample's output depends on its batch.
    """
    wanted = asked(metrics)
    if not wanted:
        return
    from .losses import NAMES, KnownLoss, Objective  # not above: results know no torch

    head = f"metrics: {wanted[0]!r} needs the loss of each sample"
    if not isinstance(loss, KnownLoss):
        what = "the objective" if isinstance(loss, Objective) else "the loss"
        raise InvalidArgument(
            f"{head}, but {what} {loss.name!r} gives one number for a batch; pass one of these as "
            f"loss=: {', '.join(NAMES)}"
        )
    if mixes:
        raise InvalidArgument(
            f"{head}, but batch norm with the statistics of each batch makes them depend on one "
            "another (bn='batch', or layers that track none); use bn='eval' or bn='recompute'"
        )
    if samples < 2:
        raise InvalidArgument(f"{head}, and at least two of them, got {samples}")


def references(k: int, between: bool) -> np.ndarray:
    """(v, k) coefficients of the points whose losses differences are to: theta, or the k solutions
    that the directions are."""
    return np.eye(k) if between else np.zeros((1, k))


def mixture(coefficients: np.ndarray, between: bool) -> np.ndarray:
    """(g, v) how much of each of them is taken off at coefficients (g, k)."""
    return coefficients if between else np.ones((len(coefficients), 1))


def errors(squares: np.ndarray, count: int, total: float) -> np.ndarray:
    """Standard errors (g,) from sum_i (l_i - L b_i)^2 over ``count`` samples, whose denominators
    add up to ``total``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = np.sqrt(squares * (count / (count - 1))) / total
    return found


def squares_of(losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """sum_i (l_i - L b_i)^2 (...,) of losses (..., N) with denominators that are broadcast to them;
    NaN where a loss is not finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.broadcast_to(shares, losses.shape)
        mean = losses.sum(-1, keepdims=True) / shares.sum(-1, keepdims=True)
        return np.asarray(np.square(losses - mean * shares).sum(-1))


def remaining(samples: int, of: int) -> float:
    """What a subset's error is of the error of a sample from an endless population."""
    return float(np.sqrt(1.0 - samples / of))
