"""Pictures of curves, under the original's file names."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import InvalidArgument
from ...plots import surface
from ...results.curve import Curve
from ._read import read
from .plot_2D import _save


def plot_1d_loss_err(
    surf_file: str,
    xmin: float = -1.0,
    xmax: float = 1.0,
    loss_max: float = 5,
    log: bool = False,
    show: bool = False,
) -> None:
    """Write ``{surf_file}_1d_loss_acc[_log].pdf``, ``_1d_train_loss[_log]``, ``_1d_train_err``.

    Args:
        xmin, xmax: what is shown; -1 and 1 stand for all of it, as in the original.
        loss_max: the largest loss shown.
        log: logarithmic loss.

    Raises:
        InvalidArgument: a surface.
    """
    curve = read(surf_file)
    if not isinstance(curve, Curve):
        raise InvalidArgument(f"surf_file: expected a curve, got a surface: {surf_file}")
    low = None if log else 0.0
    known = [kind for kind in ("train", "test") if f"{kind}_loss" in curve.metrics]
    both = [_only(curve, kind) for kind in known]
    shares = all("accuracy" in c.metrics for c in both)
    top = None if log and curve.values.min() >= loss_max else loss_max
    common: dict[str, Any] = {"log": log, "vmin": low, "vmax": top}
    suffix = "_log" if log else ""
    made = {
        f"_1d_loss_acc{suffix}": surface.plot_lines(
            both, labels=known, second="accuracy" if shares else None, **common
        ),
        f"_1d_train_loss{suffix}": surface.plot_lines(both[:1], second=None, **common),
    }
    if "train_err" in curve.metrics and np.isfinite(curve.metrics["train_err"]).any():
        made["_1d_train_err"] = surface.plot_lines([curve], metric="train_err", second=None)
    for axes in made.values():
        axes.set_xlim(None if xmin == -1.0 else xmin, None if xmax == 1.0 else xmax)
    _save({f"{surf_file}{kind}.pdf": axes for kind, axes in made.items()}, show)


def _only(curve: Curve, kind: str) -> Curve:
    """The curve of "train" or "test", as our plots take it."""
    metrics = {"loss": curve.metrics[f"{kind}_loss"]}
    share = curve.metrics.get(f"{kind}_acc")
    if share is not None and np.isfinite(share).any():
        metrics["accuracy"] = share / 100.0
    return Curve(curve.x, metrics=metrics, info=curve.info, kind=curve.kind)
