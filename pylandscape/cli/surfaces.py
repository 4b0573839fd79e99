"""The commands line, plane and interpolate."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from .common import (
    CHECK_FAILED,
    _picture,
    _picture_options,
    axis_of,
    normalization,
    prepare,
    written,
)

if TYPE_CHECKING:
    from ..landscape import Landscape
    from ..results.curve import Curve
    from ..results.surface import Surface


METRICS = ("loss", "accuracy", "standard_error", "difference_standard_error", "subset_error")


def _grid_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--metrics", action="append", metavar="NAMES",
        help="some of loss, accuracy, standard_error and difference_standard_error (of the data's "
        "sampling), subset_error (with --subset), PKG.MOD:FN; default: loss",
    )  # fmt: skip
    sub.add_argument(
        "--out", metavar="FILE.h5", help="written as it goes; the same command resumes it"
    )
    sub.add_argument(
        "--plot", action="append", metavar="FILE", help=".png, .pdf, .svg; may be repeated"
    )
    _picture_options(sub)
    sub.add_argument("--no-progress", action="store_true")


def _line(options: argparse.Namespace) -> int:
    x = axis_of(options, "x")
    from ..surfaces.grids import line
    from ..theta.directions import random_directions

    land, grid = _start(options)
    (direction,) = random_directions(land, 1, seed=options.seed, **normalization(options))
    return judged(finish(options, land, lambda: line(land, direction, x=x, **grid)))


def _plane(options: argparse.Namespace) -> int:
    x, y = axis_of(options, "x"), axis_of(options, "y")
    from ..surfaces.grids import plane
    from ..theta.directions import random_directions

    land, grid = _start(options)
    d1, d2 = random_directions(
        land, 2, seed=options.seed, orthogonal=options.orthogonal, **normalization(options)
    )
    return judged(finish(options, land, lambda: plane(land, d1, d2, x=x, y=y, **grid)))


def _interpolate(options: argparse.Namespace) -> int:
    if len(options.to) > 3:
        raise InvalidArgument(f"--to: expected 1 to 3 checkpoints, got {len(options.to)}")
    if options.y and len(options.to) == 1:
        raise InvalidArgument("--y: expected with two or three --to, got one --to")
    x, y = (axis_of(options, name) if getattr(options, name) else None for name in ("x", "y"))
    from ..surfaces.grids import interpolate
    from ..theta.checkpoints import read_state

    others = [read_state(path, "--to") for path in options.to]
    land, grid = _start(options)
    vertices = [land.origin, *others]
    return judged(finish(options, land, lambda: interpolate(land, vertices, x, y, **grid)))


def _start(options: argparse.Namespace) -> tuple[Landscape, dict[str, Any]]:
    """The landscape and the options that every grid takes."""
    from .inputs import find, parse_names

    if not options.out and not options.plot:
        raise InvalidArgument("expected --out FILE.h5 or --plot FILE.png (or both), got neither")
    flat = options.command == "line" or len(getattr(options, "to", ())) == 1
    if flat and options.kind not in (None, "line"):
        raise InvalidArgument(f"--kind: expected 'line' for a curve, got {options.kind!r}")
    names = parse_names(options.metrics) or ("loss",)
    metrics = tuple(find(n, "--metrics") if ":" in n else n for n in names)
    for name in metrics:
        if isinstance(name, str) and name not in METRICS:
            raise InvalidArgument(
                f"--metrics: expected some of {', '.join(METRICS)}, or PKG.MOD:FN, got {name!r}"
            )
    land = prepare(options)
    return land, {"path": options.out, "metrics": metrics, "progress": not options.no_progress}


def judged(result: Curve | Surface) -> int:
    """The exit code: whether the picture shows what it claims to."""
    if result.check().ok:
        return 0
    print("pylandscape: the check FAILED, see the lines with error above", file=sys.stderr)
    return CHECK_FAILED


def finish(
    options: argparse.Namespace, land: Landscape, compute: Callable[[], Curve | Surface]
) -> Curve | Surface:
    """Compute, report, draw; returns the result."""
    from ..plots import surface
    from ..results.curve import Curve
    from .words import about_convexity

    there = bool(options.out) and Path(options.out).exists()
    start = time.perf_counter()
    result = compute()
    seconds = time.perf_counter() - start
    new = result.values.size - result.info.get("resumed", 0)
    print(f"result     {result!r}")
    if there:
        print(f"time       none: {options.out} held the answer to this very request")
    else:
        rest = "" if new == result.values.size else f"; {result.values.size - new} were there"
        print(
            f"time       {seconds:.2f} s for {new} points of {land.n_params:,} parameters, "
            f"{1e3 * seconds / max(new, 1):.3g} ms each{rest}"
        )
    if isinstance(result, Curve) and result.kind == "interpolation":
        print(f"barrier    {result.barrier:.4g} above the line between the two losses")
    if {"ratio", "lambda_max"} <= set(result.metrics):
        print(about_convexity(result.metrics, result.info))
    print(result.check())
    written(options, options.out)
    for path in options.plot or []:
        axes = surface.plot(result, options.kind, **_picture(options))
        print(f"written    {surface.save(axes, path)}")
        surface.close(axes)
    return result
