"""The command line: `pylandscape demo | line | plane | interpolate | spectrum | eigen | convexity |
plot | info`.

Exit codes: 0 done; 2 bad usage or input, with one line on stderr; 130 interrupted, with how to
resume. `--debug` shows tracebacks.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InvalidArgument, PylandscapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .landscape import Landscape
    from .loading import Result
    from .results import Curve, Surface

BAD_INPUT, INTERRUPTED = 2, 130
FACTS = (
    "matrix", "probes", "steps", "seed", "products",
    "model_loss", "engine", "engine_reason", "seconds", "dtype", "bn", "loss", "n_params",
    "theta_norm", "direction_norms", "direction_cosine", "created", "versions",
    "instruction_set", "layout", "theta", "data", "notes",
)  # fmt: skip
DIGEST = re.compile(r"[0-9a-f]{64}")
KINDS = ("contour", "filled", "heat", "surface", "line")
SPECTRAL_KINDS = ("lines", "evolution")
NORMALIZATIONS = ("filter", "layer", "model", "weight", "dfilter", "dlayer", "none")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse itself exits with 2 on bad usage)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures go to files: no window, no display needed
    options = parser().parse_args(_joined(arguments))
    try:
        options.run(options)
    except KeyboardInterrupt:
        print(_interrupted(options, arguments), file=sys.stderr)
        return INTERRUPTED
    except (PylandscapeError, OSError) as error:
        return _failed(error, options)
    except Exception as error:  # a user's model, or a mistake of ours: still one line
        return _failed(error, options, f"{type(error).__name__}: ")
    return 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """Words with "--x -1:1:51" as "--x=-1:1:51": to argparse a value with a "-" is an option."""
    found: list[str] = []
    for word in arguments:
        if found and found[-1] in ("--x", "--y") and ":" in word:
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def parser() -> argparse.ArgumentParser:
    from . import cli_clouds, cli_critical, cli_theory
    from .cli_curvature import add_commands

    top = argparse.ArgumentParser(
        prog="pylandscape", description="Loss landscapes of PyTorch models: compute, draw, judge."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        return sub

    demo = command("demo", _demo, "train a small network on digits and draw its loss landscape")
    demo.add_argument("--out", default="pylandscape-demo", help="folder (default: %(default)s)")
    demo.add_argument("--points", type=int, default=51, help="of each axis (default: %(default)s)")
    demo.add_argument("--steps", type=int, default=300, help="of training (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--no-progress", action="store_true")

    line = command("line", _line, "loss along one random direction")
    plane = command("plane", _plane, "loss over two random directions")
    between = command("interpolate", _interpolate, "loss between 2, 3 or 4 checkpoints")
    for sub in (line, plane, between):
        model_options(sub, required=True)
        _grid_options(sub)
    for sub in (line, plane):
        sub.add_argument("--normalize", choices=NORMALIZATIONS, default="filter")
        sub.add_argument(
            "--ignore", action="append", metavar="KINDS",
            help="parameters that do not move: bias,norm (default), one of them, or none",
        )  # fmt: skip
        sub.add_argument("--seed", type=int, default=0, help="of the directions (default: 0)")
        sub.add_argument("--x", default="-1:1:51", metavar="MIN:MAX:N", help="default: %(default)s")
    plane.add_argument("--y", default="-1:1:51", metavar="MIN:MAX:N", help="default: %(default)s")
    plane.add_argument("--orthogonal", action="store_true", help="make the second direction so")
    between.add_argument(
        "--to", action="append", required=True, metavar="FILE",
        help="checkpoint of the next vertex; the first one is the model as loaded. "
        "1: line, 2: triangle, 3: bilinear square",
    )  # fmt: skip
    between.add_argument("--x", metavar="MIN:MAX:N", help="default -0.5:1.5:401 (line), 0:1:25")
    between.add_argument("--y", metavar="MIN:MAX:N", help="default 0:1:25")

    add_commands(command)
    cli_critical.add_commands(command)
    cli_clouds.add_commands(command)
    cli_theory.add_commands(command)

    plot = command(
        "plot", _plot, "draw a saved result; several curves or spectra go into one picture"
    )
    plot.add_argument("files", nargs="+", metavar="FILE")
    plot.add_argument(
        "--out", required=True, action="append", help=".png, .pdf, .svg; may be repeated"
    )
    _picture_options(plot, (*KINDS, *SPECTRAL_KINDS))
    plot.add_argument(
        "--symlog", action="store_true", help="eigenvalues linear near 0, logarithmic beyond"
    )
    plot.add_argument("--metric", default="loss")
    plot.add_argument("--levels", help="how many contour levels, or their values: 0.1,0.2,0.5")
    plot.add_argument("--trajectory", metavar="FILE", help="(T, 2) path to overlay, .npy or text")
    plot.add_argument("--title")

    info = command(
        "info", _info, "what a saved result or a model is: provenance, verdict, layout, engine"
    )
    info.add_argument("files", nargs="*", metavar="FILE")
    model_options(info, required=False)
    return top


def model_options(sub: argparse.ArgumentParser, required: bool) -> None:
    sub.add_argument(
        "--model", required=required, metavar="PKG.MOD:FACTORY", help="returns the Module"
    )
    sub.add_argument("--checkpoint", metavar="FILE", help="state_dict, read without pickle")
    sub.add_argument("--data", required=required, metavar="PKG.MOD:FACTORY",
                     help="returns (x, y), a DataLoader or an iterable of batches")  # fmt: skip
    what = sub.add_mutually_exclusive_group()
    what.add_argument(
        "--loss", default=None, metavar="NAME|PKG.MOD:FN",
        help="cross_entropy (default), mse, bce_with_logits, nll, or a function",
    )  # fmt: skip
    what.add_argument("--objective", metavar="PKG.MOD:FN", help="fn(model, batch) -> scalar")
    sub.add_argument(
        "--params", action="append", metavar="PATTERNS", help="names, such as layer1.*,fc.*"
    )
    sub.add_argument("--bn", default="eval", help="eval (default), recompute, batch or interpolate")
    sub.add_argument("--engine", choices=("auto", "native", "torch"), default="auto")
    sub.add_argument("--dtype", choices=("float32", "float64"), help="default: the model's")
    sub.add_argument("--device", help="default: the model's")
    sub.add_argument("--threads", type=int, help="default: torch's")


def _grid_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--metrics", action="append", metavar="NAMES", help="loss,accuracy,PKG.MOD:FN")
    sub.add_argument(
        "--out", metavar="FILE.h5", help="written as it goes; the same command resumes it"
    )
    sub.add_argument(
        "--plot", action="append", metavar="FILE", help=".png, .pdf, .svg; may be repeated"
    )
    _picture_options(sub)
    sub.add_argument("--no-progress", action="store_true")


def _picture_options(sub: argparse.ArgumentParser, kinds: Sequence[str] = KINDS) -> None:
    spectral = "; lines and evolution are of spectra" if "lines" in kinds else ""
    sub.add_argument("--kind", choices=kinds, help=f"surface is 3-D{spectral}")
    sub.add_argument("--log", action="store_true", help="logarithmic loss")
    sub.add_argument("--vmin", type=float)
    sub.add_argument("--vmax", type=float)


def _demo(options: argparse.Namespace) -> None:
    from . import demo

    if options.points < 2:
        raise InvalidArgument(f"--points: expected at least 2, got {options.points}")
    demo.run(
        options.out, points=options.points, steps=options.steps, seed=options.seed,
        progress=not options.no_progress,
    )  # fmt: skip


def _line(options: argparse.Namespace) -> None:
    from .directions import random_directions
    from .grids import line

    x = axis_of(options, "x")
    land, grid = _start(options)
    (direction,) = random_directions(land, 1, seed=options.seed, **normalization(options))
    finish(options, land, lambda: line(land, direction, x=x, **grid))


def _plane(options: argparse.Namespace) -> None:
    from .directions import random_directions
    from .grids import plane

    x, y = axis_of(options, "x"), axis_of(options, "y")
    land, grid = _start(options)
    d1, d2 = random_directions(
        land, 2, seed=options.seed, orthogonal=options.orthogonal, **normalization(options)
    )
    finish(options, land, lambda: plane(land, d1, d2, x=x, y=y, **grid))


def _interpolate(options: argparse.Namespace) -> None:
    from .cli_inputs import read_state
    from .grids import interpolate

    if len(options.to) > 3:
        raise InvalidArgument(f"--to: expected 1 to 3 checkpoints, got {len(options.to)}")
    if options.y and len(options.to) == 1:
        raise InvalidArgument("--y: expected with two or three --to, got one --to")
    x, y = (axis_of(options, name) if getattr(options, name) else None for name in ("x", "y"))
    others = [read_state(path, "--to") for path in options.to]
    land, grid = _start(options)
    vertices = [land.origin, *others]
    finish(options, land, lambda: interpolate(land, vertices, x, y, **grid))


def _plot(options: argparse.Namespace) -> None:
    from . import cli_curvature, plotting
    from .loading import load
    from .spectral_results import EigenPairs, Spectrum

    results: list[Any] = [load(path) for path in options.files]
    for result in results:
        if hasattr(result, "CONTENT"):
            raise InvalidArgument(
                f"FILE: expected curves, a surface or spectra, got a {type(result).__name__}; "
                "`pylandscape cloud FILE --plot` draws clouds"
            )
    labels = [Path(path).stem for path in options.files] if len(results) > 1 else []
    if any(isinstance(r, EigenPairs | Spectrum) for r in results):
        axes = cli_curvature.draw(results, options, labels)
    else:
        axes = _landscape_picture(results, options, labels)
    for path in options.out:
        print(f"written    {plotting.save(axes, path)}")
    plotting.close(axes)


def _landscape_picture(results: list[Any], options: argparse.Namespace, labels: list[str]) -> Axes:
    from . import plotting
    from .cli_inputs import read_points

    chosen: dict[str, Any] = _picture(options)
    if options.title:
        chosen["title"] = options.title
    if len(results) > 1:
        if any(hasattr(r, "y") for r in results):
            raise InvalidArgument(
                f"FILE: expected one surface or several curves, got {len(results)} files"
            )
        return plotting.plot_lines(results, labels=labels, **chosen)
    if options.levels:
        chosen["levels"] = _levels(options.levels)
    if options.trajectory:
        chosen["trajectory"] = read_points(options.trajectory, "--trajectory")
    return plotting.plot(results[0], options.kind, **chosen)


def _info(options: argparse.Namespace) -> None:
    from .loading import load

    if not options.files and not options.model:
        raise InvalidArgument("info: expected a FILE or --model, got neither")
    for path in options.files:
        print(describe(load(path), path))
    if options.model:
        _print_model(options)


def describe(result: Result, path: str) -> str:
    """What a file holds, where it comes from, and the verdict."""
    from .cli_curvature import about_pairs, about_spectrum
    from .spectral_results import EigenPairs, Spectrum

    facts = {**(result.info.get("request") or {}), **result.info}
    lines = [f"{path}", f"  {result!r}"]
    if isinstance(result, EigenPairs | Spectrum):
        said = about_spectrum(result) if isinstance(result, Spectrum) else about_pairs(result)
        lines += [f"  {line}" for line in said[1:]]
    for name in ("x", "y"):
        axis = getattr(result, name, None)
        if axis is not None:
            lines.append(f"  {name:<18}{axis[0]:g} to {axis[-1]:g}, {len(axis)} points")
    for key in FACTS:
        if facts.get(key) not in (None, [], {}):
            lines.append(f"  {key:<18}{_short(facts[key])}")
    for k, direction in enumerate(facts.get("directions") or []):
        shown = {n: v for n, v in direction.items() if n not in ("digest", "layout")}
        lines.append(f"  {f'direction {k + 1}':<18}{_short(shown)}")
    if check := getattr(result, "check", None):
        lines.append(str(check()))
    return "\n".join(lines)


def _print_model(options: argparse.Namespace) -> None:
    from .cli_inputs import load_model, parse_names
    from .layout import ParameterLayout

    _threads(options)
    if options.data:
        land = _landscape(options)
        layout = land.layout
    else:
        land = None
        model = load_model(options.model, options.checkpoint)
        layout = ParameterLayout.of(model, parse_names(options.params) or None)
    width = max([len(e.name) for e in layout.entries] + [9])
    print(f"{'parameter':<{width}}  {'shape':<18}{'kind':<8}{'offset':>12}{'numbers':>12}")
    for entry in layout.entries:
        shape = "x".join(map(str, entry.shape)) or "scalar"
        print(
            f"{entry.name:<{width}}  {shape:<18}{entry.kind:<8}"
            f"{entry.offset:>12,}{entry.numel:>12,}"
        )
    print(f"n = {layout.n:,}")
    if land is not None:
        print(f"engine     {land.engine_report()}")
        print(f"loss       {land.loss():.6g} (the model's own: {land.model_loss():.6g})")


def _landscape(options: argparse.Namespace) -> Landscape:
    import torch

    from .cli_inputs import call, find, load_model, named, parse_names
    from .landscape import Landscape

    model = load_model(options.model, options.checkpoint)
    data = call(options.data, "--data")
    what: dict[str, Any] = (
        {"objective": find(options.objective, "--objective")}
        if options.objective
        else {"loss": named(options.loss or "cross_entropy", "--loss")}
    )
    return Landscape(
        model, data=data, params=parse_names(options.params) or None, bn=options.bn,
        device=options.device, dtype=getattr(torch, options.dtype) if options.dtype else None,
        engine=options.engine, **what,
    )  # fmt: skip


def prepare(options: argparse.Namespace) -> Landscape:
    """The landscape; complains about targets that cannot be written before it computes."""
    from .plotting import check_suffix

    for path in [options.out, *(options.plot or [])]:
        if path and not Path(path).resolve().parent.is_dir():
            raise InvalidArgument(f"{path}: no such folder {str(Path(path).parent)!r}")
    for path in options.plot or []:
        check_suffix(path)
    _threads(options)
    land = _landscape(options)
    print(f"engine     {land.engine_report()}", flush=True)
    return land


def _start(options: argparse.Namespace) -> tuple[Landscape, dict[str, Any]]:
    """The landscape and the options that every grid takes."""
    from .cli_inputs import find, parse_names

    if not options.out and not options.plot:
        raise InvalidArgument("expected --out FILE.h5 or --plot FILE.png (or both), got neither")
    flat = options.command == "line" or len(getattr(options, "to", ())) == 1
    if flat and options.kind not in (None, "line"):
        raise InvalidArgument(f"--kind: expected 'line' for a curve, got {options.kind!r}")
    land = prepare(options)
    names = parse_names(options.metrics) or ("loss",)
    metrics = tuple(find(n, "--metrics") if ":" in n else n for n in names)
    return land, {"path": options.out, "metrics": metrics, "progress": not options.no_progress}


def finish(
    options: argparse.Namespace, land: Landscape, compute: Callable[[], Curve | Surface]
) -> None:
    """Compute, report, draw."""
    from . import plotting
    from .cli_curvature import about_convexity
    from .results import Curve

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
    if options.out:
        print(f"written    {options.out}")
    for path in options.plot or []:
        axes = plotting.plot(result, options.kind, **_picture(options))
        print(f"written    {plotting.save(axes, path)}")
        plotting.close(axes)


def normalization(options: argparse.Namespace) -> dict[str, Any]:
    from .cli_inputs import parse_names

    normalize = None if options.normalize == "none" else options.normalize
    ignore = ("bias", "norm") if options.ignore is None else parse_names(options.ignore)
    return {"normalize": normalize, "ignore": ignore}


def axis_of(options: argparse.Namespace, name: str) -> tuple[float, float, int]:
    from .cli_inputs import parse_axis

    return parse_axis(getattr(options, name), f"--{name}")


def _picture(options: argparse.Namespace) -> dict[str, Any]:
    metric = {"metric": options.metric} if hasattr(options, "metric") else {}
    return {"log": options.log, "vmin": options.vmin, "vmax": options.vmax, **metric}


def _levels(text: str) -> int | list[float]:
    try:
        return [float(v) for v in text.split(",")] if "," in text else int(text)
    except ValueError as error:
        raise InvalidArgument(f"--levels: expected a count or numbers, got {text!r}") from error


def _threads(options: argparse.Namespace) -> None:
    import torch

    if options.threads is not None:
        if options.threads < 1:
            raise InvalidArgument(f"--threads: expected at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value))
    text = str(value)
    return f"{text[:16]}..." if DIGEST.fullmatch(text) else text


def _failed(error: BaseException, options: argparse.Namespace, prefix: str = "") -> int:
    if options.debug:
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    hint = "" if options.debug or not prefix else " (--debug shows where)"
    print(f"pylandscape: error: {prefix}{text}{hint}", file=sys.stderr)
    return BAD_INPUT


def _interrupted(options: argparse.Namespace, arguments: list[str]) -> str:
    again = shlex.join(["pylandscape", *arguments])
    out = getattr(options, "out", False)  # None: there is --out, and it was not given
    if out is False or options.command in ("demo", "plot") or getattr(options, "layers", False):
        return "\npylandscape: interrupted"
    if out:
        return (
            f"\npylandscape: interrupted; what is done is kept beside {options.out}. "
            f"To go on: {again}"
        )
    return "\npylandscape: interrupted; --out FILE.h5 would have kept it"
