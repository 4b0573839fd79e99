"""The command `pylandscape classify`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidArgument
from .common import AddCommand

if TYPE_CHECKING:
    from ..landscape import Landscape
    from ..results.critical_points import CriticalPoints


def add_commands(command: AddCommand) -> None:
    """Give the parser the command; `command` makes it."""
    from .common import model_options

    classify = command(
        "classify", _classify, "curvature class of many points: convex, concave, saddle, singular"
    )
    model_options(classify, required=True)
    classify.set_defaults(plot=None)
    classify.add_argument(
        "--points", metavar="FILE",
        help="(P, n) numbers, .npy, or walks, .h5; default: a gradient walk from random starts",
    )  # fmt: skip
    for name, default, text in (
        ("--walks", 100, "of the gradient walk"),
        ("--steps", 100, "of each walk"),
        ("--bound", 1.0, "starts are uniform on [-bound, bound]"),
        ("--fraction", 0.1, "longest step of a component, as a share of 2 bound"),
    ):
        classify.add_argument(
            name, type=type(default), default=default, help=f"{text} (default: %(default)s)"
        )
    classify.add_argument("--seed", type=int, default=0, help="default: 0")
    classify.add_argument("--rtol", type=float, help="|lambda| <= rtol max |lambda| is a zero")
    classify.add_argument(
        "--blocks", action="store_true", help="of the diagonal block of each parameter tensor"
    )
    classify.add_argument(
        "--method", choices=("auto", "exact", "lanczos"), default="auto", help="default: auto"
    )
    classify.add_argument(
        "--out", metavar="FILE.h5", help="the result; the same command resumes it"
    )
    classify.add_argument("--no-progress", action="store_true")


def about(found: CriticalPoints) -> list[str]:
    """What a classification says: counts, how sure they are, what to know."""
    lines = [f"result     {found!r}"]
    table = str(found.sensitivity()).splitlines()
    lines += [f"{'' if i else 'tolerance':<11}{text}" for i, text in enumerate(table)]
    margins = found.margins[np.isfinite(found.margins)]
    if margins.size:
        near, none = int((margins < 2.0).sum()), int(np.isinf(found.margins).sum())
        lines.append(
            f"margins    {near:,} points lose their class when rtol moves by a factor of 2, "
            f"{none:,} never; median factor of the others {np.median(margins):.3g}"
        )
    valid = found.index >= 0
    if valid.any():
        index, nullity = found.index[valid], found.nullity[valid]
        lines.append(
            f"inertia    {index.mean() / found.n:.1%} negative and {nullity.mean() / found.n:.1%} "
            f"zero eigenvalues on average, of {found.n:,}"
        )
    return lines + [f"note       {note}" for note in found.notes]


def _classify(options: argparse.Namespace) -> None:
    from ..critical.classification import classify
    from . import common

    given = None if options.points is None else _points_of(options.points)
    land = common.prepare(options)
    common.check_rest(options, land, "points of their own")
    points = _walked(options, land) if given is None else given
    there = bool(options.out) and Path(options.out).exists()
    start = time.perf_counter()
    found = classify(
        land, points, rtol=options.rtol, blocks=options.blocks, method=options.method,
        seed=options.seed, path=options.out, progress=not options.no_progress,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    print("\n".join(about(found)))
    if there:
        print(f"time       none: {options.out} held the answer to this very request")
    else:
        new = len(found) - found.info.get("resumed", 0)
        print(
            f"time       {seconds:.2f} s for {new:,} points, {1e3 * seconds / max(new, 1):.3g} ms "
            "each"
        )
    if options.out:
        print(f"written    {options.out}")


def _walked(options: argparse.Namespace, land: Landscape) -> Any:
    from ..clouds.walks import gradient_walk

    walks = gradient_walk(
        land, options.walks, options.steps, options.bound, options.fraction,
        seed=options.seed, progress=not options.no_progress,
    )  # fmt: skip
    print(f"walks      {walks!r}")
    return walks.flat()


def _points_of(path: str) -> Any:
    """The points in the file of --points."""
    if not Path(path).is_file():
        raise InvalidArgument(f"--points: no file {path!r}")
    if path.endswith(".npy"):
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InvalidArgument(
                f"--points: expected numbers (P, n) in {path}: {error}"
            ) from error
    from ..results.loading import load
    from ..results.walks import Walks

    found = load(path)
    if not isinstance(found, Walks):
        raise InvalidArgument(
            f"--points: expected a .npy file or walks, got a {type(found).__name__}"
        )
    return found.flat()
