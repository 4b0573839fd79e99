"""The command line: `pylandscape demo | line | plane | interpolate | spectrum | eigen | convexity |
trajectory | track | barriers | plot | report | info | ...`.

The parser, and the commands that read files, do without torch, which takes seconds to import.

Exit codes: 0 done; 1 a check failed (a picture that does not show what it claims to, a
theorem, a training run that diverged);
2 bad usage or input, with one line on stderr; 130 interrupted, with how to resume. `--debug` shows
tracebacks.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from typing import Any

from ..errors import InvalidArgument, PylandscapeError, RankFailed
from ..ranks import by_itself, speaks
from .common import (
    KINDS,
    NORMALIZATIONS,
    AddCommand,
    _picture_options,
    model_options,
    scale_options,
)
from .effects import Options, begin, without_effect, written_by_user
from .examples import TOP, complete
from .info import _info
from .pictures import SPECTRAL_KINDS, _compare, _plot
from .several import each_checkpoint
from .surfaces import _grid_options, _interpolate, _line, _plane

BAD_INPUT, INTERRUPTED = 2, 130
RESTARTED = (
    "demo",
    "plot",
    "compare",
    "report",
    "align",
    "flatness",
)  # commands that keep no unfinished run
OF_FILES = ("demo", "plot", "compare", "report")  # commands that one process answers
FOLDERS = ("reproduce", "table1")  # commands whose --out is a folder of pages
RANGES = ("--x", "--y", "--xlim", "--ylim", "--zlim", "--box")  # options whose value is min:max


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse itself exits with 2 on bad usage)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # a command of its own: one line, without the place in our code
        warnings.showwarning = _warn  # type: ignore[assignment]
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures go to files: no window, no display needed
    words = joined(arguments)
    options, unknown = parser().parse_known_args(words, Options())
    if unknown:  # with the command's own usage
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        begin(options, written_by_user(parser(), words))
        with one_speaker(options):
            code = int(options.run(options) or 0)
            for option in without_effect(options) if speaks() else ():
                print(f"warning: {option} had no effect", file=sys.stderr)
            return code
    except KeyboardInterrupt:
        print(_interrupted(options, arguments), file=sys.stderr)
        return INTERRUPTED
    except RankFailed as error:
        return BAD_INPUT if error.told else _failed(error, options)
    except (PylandscapeError, OSError) as error:
        return _failed(error, options)
    except Exception as error:  # a user's model, or a mistake of ours: still one line
        return _failed(error, options, f"{type(error).__name__}: ")


@contextmanager
def one_speaker(options: argparse.Namespace) -> Iterator[None]:
    """Under torchrun, one of the processes prints and writes: the first. The others help it to
    compute: their pictures and pages go to a folder that is removed, their words nowhere. What
    computes nothing together is the first one's alone."""
    apart = options.command in OF_FILES or not getattr(options, "model", True)
    if speaks():
        with by_itself() if apart else nullcontext():
            yield
        return
    if apart:
        options.run = lambda _: 0
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pylandscape-"))
        stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        if getattr(options, "plot", None) and not isinstance(options.plot, str):
            options.plot = [os.path.join(folder, os.path.basename(path)) for path in options.plot]
        for name in ("state", "out") if options.command in FOLDERS else ("state",):
            if getattr(options, name, None):
                setattr(options, name, os.path.join(folder, name))
        yield


def _warn(message: Warning | str, *_: Any) -> None:
    if not speaks():
        return
    print(f"warning: {message}", file=sys.stderr)


def joined(arguments: Sequence[str]) -> list[str]:
    """Words with "--x -1:1:51" as "--x=-1:1:51": to argparse a value with a "-" is an option."""
    found: list[str] = []
    for word in arguments:
        if found and found[-1] in RANGES and ":" in word:
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def parser() -> argparse.ArgumentParser:
    from . import clouds, connectivity, critical, pictures, studies, trajectories
    from .curvature import add_commands

    top = argparse.ArgumentParser(
        prog="pylandscape", description="Loss landscapes of PyTorch models: compute, draw, judge.",
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=TOP,
    )  # fmt: skip
    top.add_argument("--version", action=_Version, nargs=0, help="of pylandscape, torch and Python")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int | None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run, parser=sub)
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        complete(sub, name)
        return sub

    demo = command("demo", _demo, "train a small network on digits and draw its loss landscape")
    demo.add_argument("--out", default="pylandscape-demo", help="folder (default: %(default)s)")
    demo.add_argument("--points", type=int, default=51, help="of each axis (default: %(default)s)")
    demo.add_argument("--steps", type=int, default=300, help="of training (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--no-progress", action="store_true")

    _surface_commands(command)
    add_commands(command)
    critical.add_commands(command)
    clouds.add_commands(command)
    studies.add_commands(command)
    trajectories.add_commands(command)
    connectivity.add_commands(command)
    pictures.add_commands(command)
    _file_commands(command)
    return top


def _surface_commands(command: AddCommand) -> None:
    """line, plane and interpolate."""
    line = command("line", each_checkpoint(_line), "loss along one random direction")
    plane = command("plane", each_checkpoint(_plane), "loss over two random directions")
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


def _file_commands(command: AddCommand) -> None:
    """plot, compare and info, of saved results."""
    plot = command(
        "plot", _plot, "draw a saved result; several curves or spectra go into one picture"
    )
    compare = command("compare", _compare, "draw several saved results of one kind on one scale")
    for sub in (plot, compare):
        sub.add_argument("files", nargs="+", metavar="FILE")
        sub.add_argument(
            "--out", required=True, action="append", help=".png, .pdf, .svg; may be repeated"
        )
        _picture_options(sub, (*KINDS, *SPECTRAL_KINDS))
        scale_options(sub)
        sub.add_argument("--metric", default="loss")
        sub.add_argument("--levels", help="how many contour levels, or their values: 0.1,0.2,0.5")
        sub.add_argument("--title")
    plot.add_argument("--trajectory", metavar="FILE", help="(T, 2) path to overlay, .npy or text")
    plot.add_argument(
        "--band", action="store_true", help="shade 2 standard errors of the loss from the data"
    )
    compare.add_argument("--labels", metavar="A,B", help="default: the files' names")
    compare.set_defaults(trajectory=None, band=False)

    info = command(
        "info", _info, "what a saved result or a model is: provenance, verdict, layout, engine"
    )
    info.add_argument("files", nargs="*", metavar="FILE")
    model_options(info, required=False)


class _Version(argparse.Action):
    """Prints the versions, of torch as it is installed, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *ignored: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        from .._version import __version__

        try:
            torch = version("torch")
        except PackageNotFoundError:
            torch = "not installed"
        print(f"pylandscape {__version__}, torch {torch}, Python {platform.python_version()}")
        parser.exit()


def _demo(options: argparse.Namespace) -> None:
    from ..experiments import demo

    if options.points < 2:
        raise InvalidArgument(f"--points: expected at least 2, got {options.points}")
    demo.run(
        options.out, points=options.points, steps=options.steps, seed=options.seed,
        progress=not options.no_progress,
    )  # fmt: skip


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
    if out is False or options.command in RESTARTED or getattr(options, "layers", False):
        return "\npylandscape: interrupted"
    if out:
        return (
            f"\npylandscape: interrupted; what is done is kept beside {options.out}. "
            f"To go on: {again}"
        )
    return "\npylandscape: interrupted; --out FILE.h5 would have kept it"
