"""The commands about training: `pylandscape train | trajectory | track`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument, PylandscapeError
from .common import (
    CHECK_FAILED,
    KINDS,
    AddCommand,
    _landscape,
    _picture,
    _picture_options,
    check_folder,
    check_rest,
    check_target,
    model_options,
    prepare,
    set_threads,
    written,
)

if TYPE_CHECKING:
    from ..landscape import Landscape
    from ..results.surface import Surface
    from ..results.tracks import Track
    from ..trajectories.base import Trajectory
    from ..trajectories.several import Runs

RUN = "which run of a recording of several, counted from 0"
SHARES = 6  # components in the table
RULES = {
    "sgd": "SGD", "adagrad": "Adagrad", "rmsprop": "RMSprop", "adadelta": "Adadelta",
    "adam": "Adam", "adamw": "AdamW",
}  # fmt: skip


def add_commands(command: AddCommand) -> None:
    """Give the parser the three commands; `command` makes one."""
    _train_command(command)
    _trajectory_command(command)
    _track_command(command)


def _train_command(command: AddCommand) -> None:
    train = command("train", _train, "runs trained side by side, recorded in one file")
    model_options(train, required=True)
    train.add_argument("--optimizer", choices=RULES, default="sgd", help="default: %(default)s")
    train.add_argument("--lr", type=float, help="learning rate (default: the optimiser's own)")
    train.add_argument("--momentum", type=float, help="of sgd and rmsprop")
    train.add_argument("--weight-decay", type=float)
    train.add_argument(
        "--runge-kutta", choices=("midpoint", "heun", "ralston", "ralston_min_error"),
        help="two gradients a step",
    )  # fmt: skip
    train.add_argument(
        "--runs", type=int, default=1,
        help="how many, each initialised anew (default: %(default)s, from the model as it is)",
    )  # fmt: skip
    train.add_argument(
        "--start", action="append", metavar="CHECKPOINT", help="instead of --runs; repeatable"
    )
    length = train.add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=int)
    length.add_argument("--steps", type=int)
    train.add_argument("--batch-size", type=int, help="default: all samples")
    train.add_argument(
        "--record", default="epoch", metavar="epoch|K", help="each epoch, or each K-th step"
    )
    train.add_argument("--clip", type=float, help="largest norm of a step's gradient")
    train.add_argument("--seed", type=int, default=0, help="default: 0")
    train.add_argument("--out", metavar="FILE.h5", help="the runs; the same command resumes them")
    train.add_argument(
        "--plot", action="append", metavar="FILE", help="learning curves; may be repeated"
    )
    train.add_argument("--no-progress", action="store_true")


def _trajectory_command(command: AddCommand) -> None:
    path = command(
        "trajectory", _trajectory,
        "a run as data: principal components, distances, its path on a surface, MDS",
    )  # fmt: skip
    path.add_argument(
        "checkpoints", nargs="+", metavar="CHECKPOINTS",
        help="a recording, a folder, a pattern, or checkpoint files in order",
    )  # fmt: skip
    path.add_argument("--run", dest="which_run", type=int, metavar="K", help=RUN)
    path.add_argument("--out", metavar="FILE.h5", help="all points in one file")
    path.add_argument("--pca", action="store_true", help="explained variance, and a random walk's")
    path.add_argument(
        "--components", type=int, default=2, metavar="K", help="of --pca (default: %(default)s)"
    )
    path.add_argument(
        "--centre", default="-1", help="of --pca: mean, or an index (default: -1, the end)"
    )
    path.add_argument(
        "--plot", action="append", metavar="FILE",
        help="path and scree (--pca), path on the surface (--surface) or MDS (--mds); repeatable",
    )  # fmt: skip
    path.add_argument(
        "--surface", metavar="FILE.h5",
        help="the loss over the path's first two components, with --model and --data; the same "
        "command resumes it",
    )  # fmt: skip
    path.add_argument(
        "--points", type=int, default=31, help="of each axis of --surface (default: %(default)s)"
    )
    path.add_argument("--no-progress", action="store_true")
    model_options(path, required=False)
    _picture_options(path, KINDS[:-1])
    path.add_argument(
        "--mds", action="store_true", help="strain MDS of the points, or of all runs of a recording"
    )
    path.add_argument("--layer", action="append", metavar="PATTERNS", help="of --mds; default all")
    path.add_argument(
        "--distance", choices=("cosine", "angular", "euclidean"), default="angular",
        help="of --mds (default: %(default)s)",
    )  # fmt: skip


def _track_command(command: AddCommand) -> None:
    track = command(
        "track", _track, "largest eigenvalues of the Hessian along a run, and where it is stable"
    )
    model_options(track, required=True)
    track.add_argument(
        "--trajectory", required=True, nargs="+", metavar="CHECKPOINTS",
        help="a recording, a folder, a pattern, or checkpoint files in order",
    )  # fmt: skip
    track.add_argument("--run", dest="which_run", type=int, metavar="K", help=RUN)
    track.add_argument("--k", "-k", type=int, default=3, help="how many (default: %(default)s)")
    track.add_argument("--every", type=int, default=1, help="look at each EVERYth point")
    track.add_argument(
        "--tol", type=float, default=1e-3, help="relative residual (default: %(default)s)"
    )
    track.add_argument("--lr", type=float, help="learning rate, for the stability threshold")
    track.add_argument(
        "--rule", choices=("sgd", "nesterov", "rk2"), default="sgd", help="default: %(default)s"
    )
    track.add_argument("--momentum", type=float, default=0.0, help="default: 0")
    track.add_argument("--seed", type=int, default=0, help="default: 0")
    track.add_argument("--out", metavar="FILE.h5", help="the result; the same command resumes it")
    track.add_argument(
        "--plot", action="append", metavar="FILE", help=".png, .pdf, .svg; may be repeated"
    )
    track.add_argument("--no-progress", action="store_true")


def about_trajectory(path: Trajectory) -> list[str]:
    """What a trajectory is, and how far it goes."""
    lengths, apart = path.lengths(), path.distances(0)
    lines = [f"trajectory {path!r}"]
    if len(path) > 1:
        lines.append(
            f"length     {lengths.sum():.6g} along the path, {apart[-1]:.6g} from start to end, "
            f"{apart.max():.6g} at most from the start"
        )
    for name, values in path.metrics.items():
        lines.append(f"{name:<10} {values[0]:.6g} to {values[-1]:.6g}")
    return lines


def about_track(track: Track) -> list[str]:
    """The largest eigenvalues by step."""
    k = track.values.shape[1]
    heads = "".join(f"{f'eigenvalue {i + 1}':>14}" for i in range(k))
    limit = f"{'threshold':>14}" if track.threshold is not None else ""
    lines = [f"result     {track!r}", f"{'step':>8}{heads}{limit}"]
    for i, step in enumerate(track.steps):
        values = "".join(f"{v:>14.6g}" for v in track.values[i])
        limit = f"{track.threshold[i]:>14.6g}" if track.threshold is not None else ""
        mark = "" if track.converged[i].all() else "  NOT CONVERGED"
        lines.append(f"{step:>8}{values}{limit}{mark}")
    return lines


def _train(options: argparse.Namespace) -> int:
    from ..training import optimisers
    from ..training.advance import train

    given = {
        name: value
        for name in ("lr", "momentum", "weight_decay")
        if (value := getattr(options, name)) is not None
    }
    kind = getattr(optimisers, RULES[options.optimizer])
    known = {field.name: field for field in dataclasses.fields(kind)}
    if "lr" not in given and known["lr"].default is dataclasses.MISSING:
        raise InvalidArgument(
            f"--lr: expected a learning rate, which {options.optimizer} has no default for"
        )
    for name in given.keys() - known.keys():
        raise InvalidArgument(
            f"--{name.replace('_', '-')}: expected with an optimiser that has one, got "
            f"{options.optimizer}"
        )
    rule = kind(**given)
    if options.runge_kutta:
        rule = optimisers.RungeKutta(rule, options.runge_kutta)
    record: Any = options.record
    if record != "epoch":
        try:
            record = int(record)
        except ValueError as error:
            raise InvalidArgument(
                f"--record: expected epoch or a number of steps, got {record!r}"
            ) from error
    for path in options.start or []:
        if not Path(path).is_file():
            raise InvalidArgument(f"--start: no file {path!r}")
    land = prepare(options)
    if options.start or options.runs != 1:
        check_rest(options, land, "--start" if options.start else "runs that are initialised anew")
    starts: Any = options.start
    if starts is None:
        starts = [land.theta] if options.runs == 1 else options.runs
    runs = train(
        land, starts, rule, epochs=options.epochs, steps=options.steps,
        batch_size=options.batch_size, record=record, clip=options.clip, seed=options.seed,
        engine=options.engine, path=options.out, progress=not options.no_progress,
    )  # fmt: skip
    why = f" ({runs.reason})" if runs.reason else ""
    print(f"result     {runs!r}{why}")
    for name, values in runs.metrics.items():
        ends = ", ".join(f"{v:.6g}" for v in values[:, -1])
        print(f"{name:<10} {ends} at the end of each run")
    written(options, options.out)
    if options.plot:
        save_to(runs.plot(), options.plot)
    if gone := runs.exploded:
        which = ", ".join(map(str, gone))
        print(f"pylandscape: DIVERGED: run {which} (a smaller --lr, or --clip)", file=sys.stderr)
        return CHECK_FAILED
    return 0


def _trajectory(options: argparse.Namespace) -> None:
    from .inputs import parse_names

    for path in (options.out, options.surface):
        if path:
            check_folder(path)
    for path in options.plot or []:
        check_target(path)
    if options.mds and options.surface and options.plot:
        raise InvalidArgument("--plot: expected --surface or --mds beside it, got both")
    if options.surface and not (options.model and options.data):
        raise InvalidArgument("--surface: expected --model and --data beside it")
    if options.points < 2:
        raise InvalidArgument(f"--points: expected at least 2, got {options.points}")
    centre = _centre(options.centre)
    params = parse_names(options.params) or None
    from ..trajectories.components import pca

    set_threads(options)
    if (runs := _all_runs(options)) is not None:
        print(f"runs       {runs!r}")
        _scale(runs, options)
        return
    land = _landscape(options) if options.model and options.data else None
    run = _read(options.checkpoints, land, "CHECKPOINTS", options.which_run)
    print("\n".join(about_trajectory(run)))
    picture: Any = None
    surface = None
    if options.pca or (options.plot and not (options.surface or options.mds)):
        count = max(options.components, 2) if options.plot else options.components
        found = picture = pca(run, count, centre=centre, params=params)
        print("\n".join(_components(found)))
    if land is not None and options.surface:
        check_rest(options, land, "a surface about the end of the run")
        surface = _on_surface(run, land, options)
    if options.out:
        run.save(options.out)
        written(options, options.out)
    if options.mds:
        _scale(run, options)
    elif options.plot and surface is not None:
        kind = options.kind or "contour"
        save_to(surface.plot(kind, trajectory=run, **_picture(options)), options.plot)
    elif options.plot:
        save_to(picture.plot(), options.plot)


def _all_runs(options: argparse.Namespace) -> Runs | None:
    """The runs of a recording that holds several, where only their MDS is asked for."""
    from ..trajectories.log import SUFFIX
    from ..trajectories.several import Runs, recorded

    (path, *more), others = options.checkpoints, (options.pca, options.surface, options.out)
    if not options.mds or options.which_run is not None or more or any(others):
        return None
    if not any(Path(name).is_file() for name in (path, path + SUFFIX)):
        return None  # a pattern or a folder
    try:
        found = recorded(path)
    except PylandscapeError:  # a checkpoint
        return None
    return found if isinstance(found, Runs) else None


def _scale(models: Trajectory | Runs, options: argparse.Namespace) -> None:
    """Multidimensional scaling of points, said and drawn."""
    from ..trajectories.embedding import mds
    from .inputs import parse_names

    layer = parse_names(options.layer) or None
    found = mds(models, layer=layer, distance=options.distance)
    print(f"mds        {found!r}")
    if options.plot:
        save_to(found.plot(), options.plot)


def _track(options: argparse.Namespace) -> None:
    from ..trajectories.tracking import track

    land = prepare(options)
    check_rest(options, land, "the points of a run")
    run = _read(options.trajectory, land, "--trajectory", options.which_run)
    found = track(
        run, land, options.k, every=options.every, tol=options.tol, lr=options.lr,
        rule=options.rule, momentum=options.momentum, seed=options.seed, path=options.out,
        progress=not options.no_progress,
    )  # fmt: skip
    print("\n".join(about_track(found)))
    written(options, options.out)
    if options.plot:
        save_to(found.plot(), options.plot)


def save_to(axes: Any, paths: Sequence[str]) -> None:
    """A drawn picture, of one Axes or two, in all the files."""
    from ..plots import surface

    first = axes[0] if isinstance(axes, tuple) else axes
    for path in paths:
        print(f"written    {surface.save(first, path)}")
    surface.close(first)


def _read(words: Sequence[str], like: Any, option: str, run: int | None) -> Trajectory:
    from ..trajectories.reading import trajectory

    try:
        return trajectory(words[0] if len(words) == 1 else list(words), like, run=run)
    except InvalidArgument as error:
        if str(error).startswith("run:"):
            text = str(error).partition(", and run=K")[0]
            raise InvalidArgument(f"--{text}") from error
        raise InvalidArgument(f"{option}: {str(error).removeprefix('trajectory: ')}") from error


def _centre(text: str) -> int | str:
    if text == "mean":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise InvalidArgument(f"--centre: expected mean or an index, got {text!r}") from error


def _components(found: Any) -> list[str]:
    """The scree beside the random walk's, and where the first component lies."""
    lines = [f"{'component':>11}{'variance':>11}{'random walk':>13}"]
    for k, (share, walk) in enumerate(zip(found.ratios, found.null, strict=False), 1):
        if k <= SHARES:
            lines.append(f"{k:>11}{share:>11.2%}{walk:>13.2%}")
    shares = sorted(found.loadings.items(), key=lambda item: -item[1][0])[:3]
    lines.append("component 1 lies in " + ", ".join(f"{n} ({s[0]:.0%})" for n, s in shares))
    return lines


def _on_surface(run: Trajectory, land: Landscape, options: argparse.Namespace) -> Surface:
    """The plane of the path's first two components about its end, as large as the path."""
    from ..surfaces.grids import plane
    from ..trajectories.components import pca_directions

    d1, d2 = pca_directions(run, 2)
    found = run.project(d1, d2)
    x, y = found.axes(options.points)
    surface = plane(
        land, d1, d2, x=x, y=y, theta=run[-1], path=options.surface,
        progress=not options.no_progress,
    )  # fmt: skip
    print(f"path       {found!r}")
    print(f"surface    {surface!r}")
    print(f"written    {options.surface}")
    return surface
