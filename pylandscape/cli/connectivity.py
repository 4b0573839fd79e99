"""The commands `pylandscape barriers | align | connect | flatness | merge`, about solutions."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument
from ..ranks import owns_files
from .common import (
    KINDS,
    AddCommand,
    _picture_options,
    axis_of,
    check_folder,
    check_target,
    model_options,
    prepare,
    written,
)
from .trajectories import save_to

MODEL = "--model pkg.mod:net --data pkg.mod:data"
MATRICES = ("barrier", "functional", "disagreement")


def add_commands(command: AddCommand) -> None:
    """Give the parser the five commands; `command` makes one."""
    barriers = command("barriers", _barriers, "loss barriers between all pairs of models")
    barriers.epilog = f"example: pylandscape barriers {MODEL} runs/*.pt --plot barriers.png"
    _models(barriers, "+", "two or more files, folders or patterns")
    barriers.add_argument(
        "--points", type=int, default=25, help="on each line (default: %(default)s)"
    )
    barriers.add_argument(
        "--what", choices=MATRICES, default="barrier", help="printed and drawn; default: barrier"
    )
    _targets(barriers)

    align = command(
        "align", _align, "the units of model B in the order of model A's, and both barriers"
    )
    align.epilog = f"example: pylandscape align {MODEL} a.pt b.pt --state b-aligned.pt"
    _models(align, 2, "A and B")
    align.add_argument("--method", choices=("weights", "activations"), default="weights",
                       help="default: %(default)s")  # fmt: skip
    align.add_argument("--orders", type=int, default=3, help="random ones tried (default: 3)")
    align.add_argument("--seed", type=int, default=0, help="of these (default: 0)")
    align.add_argument(
        "--points", type=int, default=25, help="on the lines A to B; 0: no barriers (default: 25)"
    )
    align.add_argument("--state", metavar="FILE.pt", help="state_dict of the permuted B")
    _targets(align)

    connect = command("connect", _connect, "a curve of low loss from model A to model B")
    connect.epilog = f"example: pylandscape connect {MODEL} a.pt b.pt --steps 300 --plane plane.png"
    _models(connect, 2, "A and B")
    connect.add_argument("--kind", choices=("bezier", "polychain"), default="bezier",
                         help="default: %(default)s")  # fmt: skip
    connect.add_argument("--bends", type=int, default=1, help="trained points (default: 1)")
    connect.add_argument("--steps", type=int, default=500, help="of Adam (default: 500)")
    connect.add_argument("--lr", type=float, default=0.01, help="learning rate (default: 0.01)")
    connect.add_argument("--samples", type=int, default=4, help="t of a step (default: 4)")
    connect.add_argument("--points", type=int, default=25, help="of the result (default: 25)")
    connect.add_argument("--seed", type=int, default=0, help="of the t (default: 0)")
    connect.add_argument(
        "--plane", action="append", metavar="FILE",
        help="picture of the plane through A, B and the bend; may be repeated",
    )  # fmt: skip
    connect.add_argument("--plane-points", type=int, default=41, help="of each axis (default: 41)")
    _targets(connect)

    flatness = command("flatness", _flatness, "flatness measures, each with its error")
    flatness.epilog = (
        f"example: pylandscape flatness {MODEL} sgd.pt adam.pt --measures "
        "lambda_max,average_element --plot flatness.png"
    )
    _models(flatness, "*", "each gets a table; default: the model with --checkpoint")
    flatness.add_argument("--measures", action="append", metavar="NAMES", help="default: all")
    flatness.add_argument(
        "--rho",
        action="append",
        metavar="RADII",
        help="increasing: 0.01,0.05 (default: 0.05); average case: sigma of each weight, worst "
        "case: norm of the whole step",
    )
    flatness.add_argument("--draws", type=int, default=100, help="of the average case (100)")
    flatness.add_argument("--steps", type=int, default=20, help="of the worst case's ascent (20)")
    flatness.add_argument("--starts", type=int, default=3, help="of the worst case (3)")
    flatness.add_argument("--products", type=int, default=100, help="of the trace (100)")
    flatness.add_argument("--seed", type=int, default=0, help="default: 0")
    _targets(flatness, "of several models: FILE-name.h5 each")

    merge = command("merge", _merge, "the plane through a model and two fine-tuned from it")
    merge.epilog = f"example: pylandscape merge {MODEL} base.pt a.pt b.pt --plot merge.png"
    _models(merge, 3, "the base, A and B")
    for name in ("x", "y"):
        merge.add_argument(
            f"--{name}", default="-0.25:1.25:31", metavar="MIN:MAX:N", help="default: %(default)s"
        )
    merge.add_argument(
        "--merge", action="append", metavar="NAME=X,Y",
        help="to mark, instead of soup, average and sum; may be repeated",
    )  # fmt: skip
    _targets(merge)
    _picture_options(merge, KINDS[:-1])


def _models(sub: argparse.ArgumentParser, count: int | str, text: str) -> None:
    model_options(sub, required=True)
    for action in sub._actions:
        if action.dest == "checkpoint" and count != "*":  # refused, with what to write instead
            action.help = argparse.SUPPRESS
    plural = "checkpoints, read without pickle: files, folders or patterns"
    sub.add_argument("checkpoints", nargs=count if count == "*" else "+", metavar="CHECKPOINTS",
                     help=f"{plural}; {text}")  # fmt: skip
    sub.set_defaults(count=count)


def _targets(sub: argparse.ArgumentParser, more: str = "") -> None:
    about = more or "the result; the same command answers from it"
    sub.add_argument("--out", metavar="FILE.h5", help=about)
    sub.add_argument(
        "--plot", action="append", metavar="FILE", help=".png, .pdf, .svg; may be repeated"
    )
    sub.add_argument("--no-progress", action="store_true")


def _barriers(options: argparse.Namespace) -> None:
    files = _files(options)
    labels = _labels(files)
    if len(files) < 2:
        raise InvalidArgument(f"CHECKPOINTS: expected at least 2 models, got {len(files)}")
    from ..connectivity.lines import barriers

    states = _states(files)
    land = _prepared(options, files)
    with _named({f"models[{i}]": file for i, file in enumerate(files)}):
        found = barriers(
            land, states, points=options.points, labels=labels, path=options.out,
            progress=not options.no_progress,
        )  # fmt: skip
    print(f"result     {found!r}")
    print(found.table(options.what))
    _finish(options, found, what=options.what)


def _align(options: argparse.Namespace) -> None:
    files = _files(options)
    _folder(options.state)
    import torch

    from ..connectivity.aligning import align

    a, b = _states(files)
    land = _prepared(options, files)
    with _named({"a": files[0], "b": files[1]}):
        found = align(
            land, a, b, method=options.method, orders=options.orders, seed=options.seed,
            points=options.points, path=options.out, progress=not options.no_progress,
        )  # fmt: skip
    print(f"result     {found}")
    if options.state:
        torch.save(found.state_dict(), options.state)
        print(f"written    {options.state}")
    _finish(options, found)


def _connect(options: argparse.Namespace) -> None:
    files = _files(options)
    for path in options.plane or []:
        check_target(path)
    if options.plane and options.steps == 0:
        raise InvalidArgument("--plane: expected at least 1 of --steps, without which it is a line")
    if options.plane_points < 2:
        raise InvalidArgument(f"--plane-points: expected at least 2, got {options.plane_points}")
    from ..connectivity.curves import connect

    a, b = _states(files)
    land = _prepared(options, files)
    progress = not options.no_progress
    with _named({"a": files[0], "b": files[1]}):
        found = connect(
            land, a, b, kind=options.kind, bends=options.bends, steps=options.steps, lr=options.lr,
            samples=options.samples, points=options.points, seed=options.seed, path=options.out,
            progress=progress,
        )  # fmt: skip
    print(f"result     {found}")
    for note in found.info["notes"]:
        print(f"note       {note}")
    _finish(options, found)
    if options.plane:
        surface = found.plane(points=options.plane_points, progress=progress)
        save_to(surface.plot(), options.plane)


def _flatness(options: argparse.Namespace) -> None:
    from ..connectivity.flatness_measures import MEASURES, flatness
    from .inputs import parse_names

    files = _files(options)
    labels = _labels(files)
    measures = parse_names(options.measures) or MEASURES
    rho = _numbers(options.rho or ["0.05"], "--rho")
    states = _states(files) or [None]
    land = _prepared(options, files)
    tables = []
    for file, state in zip(files or [""], states, strict=True):
        with _named({"theta": file}):
            table = flatness(
                land, measures, rho=rho, draws=options.draws, steps=options.steps,
                starts=options.starts, products=options.products, seed=options.seed, theta=state,
                progress=not options.no_progress,
            )  # fmt: skip
        tables.append(table)
        print(f"{file or 'result'}     {table!r}")
    if options.out:
        out = Path(options.out)
        names = [label.replace(os.sep, "-") for label in labels]
        several = [out.with_name(f"{out.stem}-{name}{out.suffix}") for name in names]
        for table, path in zip(tables, several if len(tables) > 1 else [out], strict=True):
            if owns_files():
                table.save(path)
            print(f"written    {path}")
    if options.plot:
        beside = {"beside": tables[1:], "labels": labels} if len(tables) > 1 else {}
        save_to(tables[0].plot(**beside), options.plot)


def _merge(options: argparse.Namespace) -> None:
    from ..connectivity.merging import MERGES, merge_plane
    from .surfaces import finish

    files = _files(options)
    x, y = axis_of(options, "x"), axis_of(options, "y")
    merges = _merges(options.merge) or MERGES
    states = _states(files)
    land = _prepared(options, files)
    names = {f"models[{i}]": file for i, file in enumerate(files)}
    with _named(names | {"base": files[0], "a": files[1], "b": files[2]}):
        surface = finish(
            options,
            land,
            lambda: merge_plane(
                land, states, x=x, y=y, merges=merges, path=options.out,
                progress=not options.no_progress,
            ),
        )  # fmt: skip
    print(f"{'merge':<20}{'x':>8}{'y':>8}{'loss':>14}")
    marks = surface.info["marks"]
    for name, place in zip(marks["names"], marks["points"], strict=True):
        loss = surface.info["merges"][name]
        print(f"{name:<20}{place[0]:>8.3g}{place[1]:>8.3g}{loss:>14.6g}")


def _files(options: argparse.Namespace) -> list[str]:
    """The checkpoint files that the words name, as many as the command takes."""
    from ..theta.checkpoints import series

    found: list[str] = []
    for word in options.checkpoints:
        if Path(word).is_dir() or (not Path(word).exists() and set(word) & set("*?[")):
            found += map(str, series(word, "CHECKPOINTS"))
        else:
            found.append(word)
    if isinstance(options.count, int) and len(found) != options.count:
        raise InvalidArgument(
            f"CHECKPOINTS: expected {options.count} models, got {len(found)}: {', '.join(found)}"
        )
    return found


def _prepared(options: argparse.Namespace, files: Sequence[str]) -> Any:
    """The landscape; what its models share (frozen parameters, buffers) is of the first one."""
    if files:
        options.checkpoint, options.rest = [files[0]], True
    return prepare(options)


def _states(files: Sequence[str]) -> list[Any]:
    from ..theta.checkpoints import read_state

    return [read_state(file, "CHECKPOINTS", mapped=True) for file in files]


def _labels(files: Sequence[str]) -> list[str]:
    """The files' names without what all have alike: their stems, or their paths."""
    stems = [Path(file).stem for file in files]
    return stems if len(set(stems)) == len(stems) else list(files)


@contextmanager
def _named(files: Mapping[str, str]) -> Iterator[None]:
    """Errors that begin with the name of an argument say its file instead."""
    try:
        yield
    except InvalidArgument as error:
        for argument, file in files.items():
            if file and str(error).startswith(f"{argument}:"):
                raise type(error)(f"{file}{str(error).removeprefix(argument)}") from error
        raise


def _finish(options: argparse.Namespace, found: Any, **drawn: Any) -> None:
    written(options, options.out)
    if options.plot:
        save_to(found.plot(**drawn), options.plot)


def _folder(path: str | None) -> None:
    if path:
        check_folder(path)


def _numbers(texts: Sequence[str], option: str) -> tuple[float, ...]:
    try:
        return tuple(float(t) for text in texts for t in text.split(","))
    except ValueError as error:
        raise InvalidArgument(f"{option}: expected numbers, got {', '.join(texts)}") from error


def _merges(texts: Sequence[str] | None) -> dict[str, tuple[float, float]]:
    found = {}
    for text in texts or []:
        name, equals, place = text.rpartition("=")
        pair = _numbers([place], "--merge") if equals else ()
        if not name or len(pair) != 2:
            raise InvalidArgument(f"--merge: expected NAME=X,Y such as soup=0.5,0.5, got {text!r}")
        found[name] = (pair[0], pair[1])
    return found
