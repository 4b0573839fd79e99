"""The command `pylandscape cloud`: walk, classify, draw."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..clouds.walk_steps import TIES
from ..errors import InvalidArgument
from ..results.cloud import COLOURS, HEIGHTS, Cloud
from .common import AddCommand

if TYPE_CHECKING:
    from ..landscape import Landscape
    from ..results.walks import Walks

WALKS = ("gradient", "random", "progressive")


def add_commands(command: AddCommand) -> None:
    """Give the parser the command; `command` makes one."""
    from ..plots.clouds import ZOOMS
    from .common import model_options

    cloud = command(
        "cloud", _cloud, "loss, gradient norm and curvature at the points of walks; or draw clouds"
    )
    cloud.add_argument(
        "files", nargs="*", metavar="FILE.h5",
        help="saved clouds, to draw side by side on the same axes instead of computing one",
    )  # fmt: skip
    model_options(cloud, required=False)
    cloud.add_argument("--walk", choices=WALKS, default="gradient", help="default: %(default)s")
    for name, default, text in (
        ("--walks", 100, "how many"),
        ("--steps", 100, "points of each walk"),
        ("--bound", 1.0, "starts are uniform on [-bound, bound]"),
        ("--fraction", 0.1, "longest step of a component, as a share of 2 bound"),
    ):
        cloud.add_argument(
            name, type=type(default), default=default, help=f"{text} (default: %(default)s)"
        )
    cloud.add_argument(
        "--bounded", action=argparse.BooleanOptionalAction,
        help="stay within [-bound, bound]; default: random walks do, gradient walks do not",
    )  # fmt: skip
    cloud.add_argument(
        "--tie", choices=TIES, default="plus",
        help="where a derivative is exactly 0: upward (default), either way, or not at all",
    )  # fmt: skip
    cloud.add_argument("--seed", type=int, default=0, help="default: 0")
    cloud.add_argument("--rtol", type=float, help="|lambda| <= rtol max |lambda| is a zero")
    cloud.add_argument(
        "--height", choices=(*HEIGHTS, "none"), default="none",
        help="of a 3-D Hessian cloud; none (default): the flat loss-gradient cloud",
    )  # fmt: skip
    cloud.add_argument("--color", choices=COLOURS, help="default: kind; step in 3-D")
    cloud.add_argument("--log", default="", metavar="AXES", help="logarithmic ones: x, xy, xyz")
    cloud.add_argument(
        "--box", action="append", metavar="X0:X1,Y0:Y1[,Z0:Z1]",
        help="a window to zoom into; may be repeated",
    )  # fmt: skip
    cloud.add_argument("--zoom", choices=ZOOMS, help="how; default inset, panels in 3-D")
    for axis in ("--xlim", "--ylim", "--zlim"):
        cloud.add_argument(axis, metavar="MIN:MAX", help="drawn range")
    cloud.add_argument("--title")
    cloud.add_argument(
        "--out", metavar="FILE.h5",
        help="the cloud; FILE-walks.h5 and FILE-classes.h5 beside it let the same command go on",
    )  # fmt: skip
    cloud.add_argument(
        "--plot", action="append", metavar="FILE", help=".png, .pdf, .svg; may be repeated"
    )
    cloud.add_argument("--no-progress", action="store_true")


def _cloud(options: argparse.Namespace) -> None:
    from ..plots import surface
    from ..results.loading import load

    picture = _picture(options)
    if options.files:
        if options.model or options.out or not options.plot:
            raise InvalidArgument("cloud: expected --plot, and no --model and --out, with files")
        for path in options.plot:
            surface.check_suffix(path)
        clouds: list[Any] = [load(path) for path in options.files]
        for path, found in zip(options.files, clouds, strict=True):
            if not isinstance(found, Cloud):
                raise InvalidArgument(
                    f"FILE: expected clouds, got a {type(found).__name__} in {path}"
                )
            print("\n".join(about(found)))
    else:
        if not (options.model and options.data):
            raise InvalidArgument("cloud: expected --model and --data, or saved clouds, got none")
        if not options.out and not options.plot:
            raise InvalidArgument("cloud: expected --out FILE.h5 or --plot FILE.png, got neither")
        clouds = [_computed(options)]
    for path in options.plot or []:
        axes = _draw(clouds, [Path(f).stem for f in options.files], picture)
        print(f"written    {surface.save(axes, path)}")
        surface.close(axes)


def _computed(options: argparse.Namespace) -> Cloud:
    from ..clouds.clouds import CURVED, hessian_cloud, loss_gradient_cloud
    from ..critical.classification import classify
    from . import common

    solid = options.height != "none"
    color = options.color or ("step" if solid else "kind")
    _check_out(options.out)
    land = common.prepare(options)
    common.check_rest(options, land, "walks, which start at random points")
    start = time.perf_counter()
    walks = _walked(options, land)
    print(f"walks      {walks!r}")
    if walks.points.shape[1] > 6:
        print(f"stagnation {walks.stagnation()!r}")
    critical = None
    if solid or color in CURVED:
        critical = classify(
            land, walks.flat(), rtol=options.rtol, seed=options.seed,
            path=_beside(options.out, "classes"), progress=not options.no_progress,
        )  # fmt: skip
    shared: dict[str, Any] = {
        "critical": critical, "rtol": options.rtol, "seed": options.seed,
        "progress": not options.no_progress,
    }  # fmt: skip
    if solid:
        found = hessian_cloud(land, walks, options.height, color, **shared)
    else:
        found = loss_gradient_cloud(land, walks, color, **shared)
    print("\n".join(about(found)))
    print(f"time       {time.perf_counter() - start:.2f} s for {len(found):,} points")
    if options.out:
        found.save(options.out)
        common.written(options, options.out, "cloud")
    return found


def about(cloud: Cloud) -> list[str]:
    """What a cloud says in numbers."""
    lines = [f"result     {cloud!r}"]
    for name in ("loss", "gradient_norm", "bumpiness", "ruggedness", "negative"):
        try:
            values = cloud.values(name)
        except InvalidArgument:
            continue
        finite = values[np.isfinite(values)]
        if finite.size:
            low, middle, high = np.quantile(finite, [0.0, 0.5, 1.0])
            lines.append(
                f"{name.replace('_', ' '):<13}  median {middle:.4g}, {low:.4g} to {high:.4g}"
            )
    return lines + [f"note       {note}" for note in cloud.info.get("notes", [])]


def _walked(options: argparse.Namespace, land: Landscape) -> Walks:
    from ..clouds import walks

    chosen: dict[str, Any] = {
        "seed": options.seed, "path": _beside(options.out, "walks"),
        "progress": not options.no_progress,
    }  # fmt: skip
    if options.bounded is not None:
        chosen["bounded"] = options.bounded
    if options.walk == "gradient":
        chosen["tie"] = options.tie
    sample: Any = {
        "gradient": walks.gradient_walk, "random": walks.random_walk,
        "progressive": walks.progressive_random_walk,
    }[options.walk]  # fmt: skip
    found: Walks = sample(
        land, options.walks, options.steps, options.bound, options.fraction, **chosen
    )
    return found


def _draw(clouds: list[Cloud], labels: list[str], picture: dict[str, Any]) -> Any:
    from ..plots.clouds import plot_cloud, plot_clouds

    if len(clouds) == 1:
        return plot_cloud(clouds[0], **picture)
    if picture.pop("zoom", None) not in (None, "outline"):
        raise InvalidArgument("--zoom: expected outline for several clouds")
    return plot_clouds(clouds, labels=labels, **picture)[0]


def _picture(options: argparse.Namespace) -> dict[str, Any]:
    chosen = {"color": options.color, "log": options.log, "zoom": options.zoom}
    if options.title:
        chosen["title"] = options.title
    for name in ("xlim", "ylim", "zlim"):
        if text := getattr(options, name):
            chosen[name] = _span(text, f"--{name}")
    if options.box:
        chosen["boxes"] = [[_span(t, "--box") for t in box.split(",")] for box in options.box]
    return chosen


def _span(text: str, option: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise InvalidArgument(f"{option}: expected min:max with min < max, got {text!r}")
    return low, high


def _beside(path: str | None, what: str) -> Path | None:
    """cloud.h5 and "walks" give cloud-walks.h5."""
    if path is None:
        return None
    target = Path(path)
    return target.with_name(f"{target.stem}-{what}{target.suffix}")


def _check_out(path: str | None) -> None:
    """What is at --out is a cloud, or nothing: it is going to be replaced."""
    from ..results.loading import load

    if path is None or not Path(path).exists():
        return
    found = load(path)
    if not isinstance(found, Cloud):
        raise InvalidArgument(f"--out: expected no file or a cloud, got a {type(found).__name__}")
