"""The command plot: pictures of saved results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from .common import AddCommand, _picture, check_folder, check_target, written
from .effects import PICTURE, picture_options

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SPECTRAL_KINDS = ("lines", "evolution", "ridges", "top")


def _plot(options: argparse.Namespace) -> None:
    from ..files.store import content_of
    from ..plots import surface
    from ..results.eigen_pairs import EigenPairs
    from ..results.flatness_table import Flatness
    from ..results.loading import load
    from ..results.spectra import Spectrum
    from . import curvature
    from .trajectories import save_to

    for path in options.out:
        check_target(path)
    if all(content_of(path) == "trajectory" for path in options.files):
        _plot_runs(options)
        return
    results: list[Any] = [load(path) for path in options.files]
    if len(results) == 1 and hasattr(results[0], "CONTENT"):
        save_to(_own_picture(results[0], options), options.out)
        return
    if all(isinstance(r, Flatness) for r in results):
        names = _labels(options)
        picture_options(options, ("title", "labels"), "flatness tables")
        picture = results[0].plot(beside=results[1:], labels=names, title=options.title)
        save_to(picture, options.out)
        return
    for result in results:
        if hasattr(result, "CONTENT"):
            raise InvalidArgument(
                f"FILE: expected one file, or several of curves, surfaces or spectra, got a "
                f"{type(result).__name__}; `pylandscape cloud FILES --plot` draws clouds together"
            )
    labels = _labels(options) if len(results) > 1 else []
    if any(isinstance(r, EigenPairs | Spectrum) for r in results):
        axes = curvature.draw(results, options, labels)
    else:
        axes = _landscape_picture(results, options, labels)
    for path in options.out:
        print(f"written    {surface.save(axes, path)}")
    surface.close(axes)


def _own_picture(result: Any, options: argparse.Namespace) -> Any:
    from ..plots.pictures import DRAWN_BY

    name = type(result).__name__
    if name not in DRAWN_BY:
        raise InvalidArgument(
            f"FILE: a {name} has no picture; `pylandscape info FILE` says what is in it"
        )
    drawn = DRAWN_BY[name]
    return drawn(result, **picture_options(options, drawn, f"a {name}"))


def _labels(options: argparse.Namespace) -> list[str]:
    if not getattr(options, "labels", None):
        return [Path(path).stem for path in options.files]
    labels = [label.strip() for label in options.labels.split(",")]
    if len(labels) != len(options.files):
        raise InvalidArgument(f"--labels: expected {len(options.files)}, got {len(labels)}")
    return labels


def _compare(options: argparse.Namespace) -> None:
    if len(options.files) < 2:
        raise InvalidArgument(f"FILE: expected at least two to compare, got {len(options.files)}")
    _plot(options)


def add_commands(command: AddCommand) -> None:
    """Give the parser the commands report and topology; `command` makes one."""
    report = command(
        "report", _report, "saved results as one HTML file: pictures, checks, provenance"
    )
    report.add_argument("files", nargs="+", metavar="FILE")
    report.add_argument("--out", required=True, metavar="FILE.html")
    report.add_argument("--title", default="Loss landscape", help="default: %(default)s")
    report.add_argument(
        "--static", action="store_true", help="a small file without plotly's script"
    )
    topology = command(
        "topology", _topology, "basins, saddles and their persistence of a saved line, plane, grid"
    )
    topology.add_argument("file", metavar="FILE.h5")
    topology.add_argument("--metric", default="loss", help="default: %(default)s")
    topology.add_argument("--most", type=int, default=10, help="rows printed (default: 10)")
    topology.add_argument("--out", metavar="FILE.h5", help="the trees")
    topology.add_argument(
        "--plot", action="append", metavar="FILE", help=".png, .pdf, .svg; may be repeated"
    )
    topology.add_argument(
        "--kind", choices=("tree", "barcode", "diagram"), default="tree", help="default: tree"
    )


def _report(options: argparse.Namespace) -> None:
    from ..reports.writing import report

    made = report(options.files, options.out, title=options.title, interactive=not options.static)
    print(f"written    {made}")


def _topology(options: argparse.Namespace) -> None:
    from ..results.loading import load
    from .trajectories import save_to

    if options.out:
        check_folder(options.out)
    for path in options.plot or []:
        check_target(path)
    result = load(options.file)
    if not hasattr(result, "topology"):
        raise InvalidArgument(
            f"FILE: expected a curve, a surface or a grid, got a {type(result).__name__}"
        )
    found = result.topology(options.metric)
    print(f"result     {found!r}")
    pairs = found.barcode()
    print(f"{'born':>14}{'dies':>14}{'persistence':>14}")
    for born, dies in pairs[: options.most]:
        print(f"{born:>14.6g}{dies:>14.6g}{dies - born:>14.6g}")
    if len(pairs) > options.most:
        print(f"... {len(pairs) - options.most} more; --most N shows them")
    print(f"smad       {found.smad():.6g}")
    if options.out:
        found.save(options.out)
        written(options, options.out)
    if options.plot:
        save_to(found.draw(options.kind), options.plot)


def _plot_runs(options: argparse.Namespace) -> None:
    """The path of one run along its components, or several side by side by MDS; learning curves of
    the runs of one file."""
    from ..trajectories.components import pca
    from ..trajectories.embedding import mds
    from ..trajectories.several import Runs, recorded
    from .trajectories import save_to

    if len(options.files) == 1 and isinstance(one := recorded(options.files[0]), Runs):
        save_to(_own_picture(one, options), options.out)
        return
    runs: list[Any] = []
    names: list[str] = []
    for label, path in zip(_labels(options), options.files, strict=True):
        found = recorded(path)
        several = list(found) if isinstance(found, Runs) else [found]
        runs += several
        names += [f"{label} {p}" for p in range(len(several))] if len(several) > 1 else [label]
    picture_options(options, ("title", "labels"), "recorded runs")
    if len(runs) == 1:
        save_to(pca(runs[0], 2).plot(title=options.title), options.out)
        return
    apart = mds(runs, distance="angular")
    save_to(apart.plot(names=names, title=options.title), options.out)


def _landscape_picture(results: list[Any], options: argparse.Namespace, labels: list[str]) -> Axes:
    from ..plots import surface

    chosen: dict[str, Any] = _picture(options)
    if options.title:
        chosen["title"] = options.title
    flat = not hasattr(results[0], "y") and not hasattr(results[0], "axes")
    as_lines = flat or (options.kind == "line" and len(results) == 1)
    takes = [n for n in PICTURE if n not in ("symlog", "linear")]
    if as_lines or options.kind == "heat":
        takes.remove("levels")
    if as_lines:
        takes.remove("trajectory")
    picture_options(options, takes, "curves" if as_lines else f"a {options.kind or 'surface'}")
    if len(results) > 1:
        from ..plots.side_by_side import compare

        if options.band:
            raise InvalidArgument("--band: expected one file with it, got several")
        if any(hasattr(result, "axes") for result in results):
            raise InvalidArgument("FILE: expected one grid, or several curves or surfaces")
        if options.trajectory:
            raise InvalidArgument("--trajectory: expected one surface with it, got several files")
        if hasattr(results[0], "y"):
            chosen["kind"] = options.kind
            if options.levels:
                chosen["levels"] = _levels(options.levels)
        return compare(results, labels=labels, **chosen)[0]
    if options.levels:
        chosen["levels"] = _levels(options.levels)
    if options.trajectory:
        from .inputs import read_points

        chosen["trajectory"] = read_points(options.trajectory, "--trajectory")
    if options.band:
        chosen["band"] = True
    if hasattr(results[0], "axes"):  # a grid; of its numbers of dimensions its own function decides
        found: Axes = results[0].plot(options.kind, **chosen)
        return found
    return surface.plot(results[0], options.kind, **chosen)


def _levels(text: str) -> int | list[float]:
    try:
        return [float(v) for v in text.split(",")] if "," in text else int(text)
    except ValueError as error:
        raise InvalidArgument(f"--levels: expected a count or numbers, got {text!r}") from error
