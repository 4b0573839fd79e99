"""Pictures of curves, under the original's file names.

python -m pylandscape.compat.loss_landscape.plot_1D --surf_file FILE.h5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import InvalidArgument
from ...plots import surface
from ...results.curve import Curve
from ._program import picture_flags, run
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
    curve = _curve(surf_file, "surf_file")
    low = None if log else 0.0
    both = _kinds(curve)
    shares = all("accuracy" in c.metrics for c in both.values())
    top = None if log and curve.values.min() >= loss_max else loss_max
    common: dict[str, Any] = {"log": log, "vmin": low, "vmax": top}
    suffix = "_log" if log else ""
    made = {
        f"_1d_loss_acc{suffix}": surface.plot_lines(
            list(both.values()),
            labels=list(both),
            second="accuracy" if shares else None,
            **common,
        ),
        f"_1d_train_loss{suffix}": surface.plot_lines(
            list(both.values())[:1], second=None, **common
        ),
    }
    if "train_err" in curve.metrics and np.isfinite(curve.metrics["train_err"]).any():
        made["_1d_train_err"] = surface.plot_lines([curve], metric="train_err", second=None)
    for axes in made.values():
        axes.set_xlim(None if xmin == -1.0 else xmin, None if xmax == 1.0 else xmax)
    _save({f"{surf_file}{kind}.pdf": axes for kind, axes in made.items()}, show)


def plot_1d_loss_err_repeat(
    prefix: str,
    idx_min: int = 1,
    idx_max: int = 10,
    xmin: float = -1.0,
    xmax: float = 1.0,
    loss_max: float = 5,
    show: bool = False,
) -> None:
    """Write ``{prefix}_1d_loss_err_repeat.pdf``: ``{prefix}_{idx_min}.h5`` ... in one picture.

    Args:
        xmin, xmax, loss_max: as in `plot_1d_loss_err`.

    Raises:
        InvalidArgument: no file, or a surface.
    """
    curves = {}
    for idx in range(idx_min, idx_max + 1):
        for kind, curve in _kinds(_curve(f"{prefix}_{idx}.h5", "prefix")).items():
            curves[f"{kind} {idx}"] = curve
    if not curves:
        raise InvalidArgument(f"idx_min, idx_max: expected a range, got {idx_min} .. {idx_max}")
    shares = all("accuracy" in curve.metrics for curve in curves.values())
    axes = surface.plot_lines(
        list(curves.values()),
        labels=list(curves),
        second="accuracy" if shares else None,
        vmin=0.0,
        vmax=loss_max,
    )
    axes.set_xlim(None if xmin == -1.0 else xmin, None if xmax == 1.0 else xmax)
    _save({f"{prefix}_1d_loss_err_repeat.pdf": axes}, show)


def _curve(file: str, name: str) -> Curve:
    found = read(file)
    if not isinstance(found, Curve):
        raise InvalidArgument(f"{name}: expected a curve, got a surface: {file}")
    return found


def _kinds(curve: Curve) -> dict[str, Curve]:
    """The curves of "train" and "test" that a file has."""
    known = [kind for kind in ("train", "test") if f"{kind}_loss" in curve.metrics]
    return {kind: _only(curve, kind) for kind in known}


def _only(curve: Curve, kind: str) -> Curve:
    """The curve of "train" or "test", as our plots take it."""
    metrics = {"loss": curve.metrics[f"{kind}_loss"]}
    share = curve.metrics.get(f"{kind}_acc")
    if share is not None and np.isfinite(share).any():
        metrics["accuracy"] = share / 100.0
    return Curve(curve.x, metrics=metrics, info=curve.info, kind=curve.kind)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 2 for bad input."""
    parser = picture_flags("Pictures of a curve, or one picture of several")
    add = parser.add_argument
    add("--log", action="store_true", help="logarithmic loss")
    add("--xmin", default=-1.0, type=float, help="where the picture begins")
    add("--xmax", default=1.0, type=float, help="where it ends")
    add("--loss_max", default=5.0, type=float, help="the largest loss shown")
    add("--prefix", default="", help="of {prefix}_{idx}.h5, for one picture of all")
    add("--idx_min", default=1, type=int, help="the first of them")
    add("--idx_max", default=10, type=int, help="the last of them")
    args = parser.parse_args(argv)
    if not args.prefix and not args.surf_file:
        parser.error("expected --surf_file or --prefix")
    span = args.xmin, args.xmax, args.loss_max

    def work() -> None:
        if args.prefix:
            plot_1d_loss_err_repeat(args.prefix, args.idx_min, args.idx_max, *span, args.show)
        else:
            plot_1d_loss_err(args.surf_file, *span, args.log, args.show)

    return run("plot_1D", work, args.show)


if __name__ == "__main__":
    sys.exit(main())
