"""Pictures of surfaces and trajectories, under the original's file names.

python -m pylandscape.compat.loss_landscape.plot_2D --surf_file FILE.h5
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import InvalidArgument
from ...plots import surface as plotting
from ...results.surface import Surface
from ._program import picture_flags, run
from ._read import named
from .projection import coefficients, explained


def plot_2d_contour(
    surf_file: str,
    surf_name: str = "train_loss",
    vmin: float = 0.1,
    vmax: float = 10,
    vlevel: float = 0.5,
    show: bool = False,
    *,
    log: bool = False,
) -> None:
    """Write ``{surf_file}_{surf_name}_2dcontour.pdf, _2dcontourf, _2dheat, _3dsurface``.

    Args:
        vmin, vmax, vlevel: contours at vmin, vmin + vlevel, ... below vmax, where the surface has
            some of them; the heat map's range.
        log: logarithmic values.
    """
    surface, metric = _surface(surf_file, surf_name)
    levels = _levels(surface.metrics[metric], vmin, vmax, vlevel)
    common: dict[str, Any] = {"metric": metric, "log": log}
    made = {
        "_2dcontour": plotting.plot(surface, "contour", levels=levels, **common),
        "_2dcontourf": plotting.plot(surface, "filled", levels=levels, **common),
        "_2dheat": plotting.plot(surface, "heat", vmin=vmin, vmax=vmax, **common),
        "_3dsurface": plotting.plot(surface, "surface", **common),
    }
    _save({f"{surf_file}_{surf_name}{kind}.pdf": axes for kind, axes in made.items()}, show)


def plot_trajectory(proj_file: str, dir_file: str, show: bool = False) -> None:
    """Write ``{proj_file}.pdf``: the path in the plane of the directions, in their units."""
    from ...plots.style import new_axes, own_style

    track = coefficients(proj_file, dir_file)
    with own_style(True):
        axes = new_axes()
        axes.plot(track[:, 0], track[:, 1], marker=".")
        xlabel, ylabel = _labels(dir_file)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
    _save({f"{proj_file}.pdf": axes}, show)


def plot_contour_trajectory(
    surf_file: str,
    dir_file: str,
    proj_file: str,
    surf_name: str = "loss_vals",
    vmin: float = 0.1,
    vmax: float = 10,
    vlevel: float = 0.5,
    show: bool = False,
) -> None:
    """Write ``{proj_file}_{surf_name}_2dcontour_proj.pdf``: the path over the contours.

    The path is drawn in units of the directions, as the surface's axes are.
    """
    surface, metric = _surface(surf_file, surf_name)
    xlabel, ylabel = _labels(dir_file)
    axes = plotting.plot(
        surface,
        "contour",
        metric=metric,
        levels=_levels(surface.metrics[metric], vmin, vmax, vlevel),
        trajectory=coefficients(proj_file, dir_file),
        xlabel=xlabel,
        ylabel=ylabel,
    )
    _save({f"{proj_file}_{surf_name}_2dcontour_proj.pdf": axes}, show)


def _surface(surf_file: str, surf_name: str) -> tuple[Surface, str]:
    surface, metric = named(surf_file, surf_name)
    if not isinstance(surface, Surface):
        raise InvalidArgument(f"surf_file: expected a surface, got a curve: {surf_file}")
    return surface, metric


def _levels(values: np.ndarray, vmin: float, vmax: float, vlevel: float) -> list[float] | None:
    """The contours asked for that the values reach; None if there is none."""
    if not vlevel > 0:
        raise InvalidArgument(f"vlevel: expected a positive number, got {vlevel!r}")
    finite = values[np.isfinite(values)]
    wanted = np.arange(vmin, vmax, vlevel)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    return wanted[(wanted > low) & (wanted < high)].tolist() or None


def _labels(dir_file: str) -> tuple[str, str]:
    shares = explained(dir_file)
    if shares is None:
        return "step along xdirection", "step along ydirection"
    return f"1st PC: {100 * shares[0]:.2f} %", f"2nd PC: {100 * shares[1]:.2f} %"


def _save(pictures: dict[str, Any], show: bool) -> None:
    from matplotlib import pyplot

    for path, axes in pictures.items():
        print(plotting.save(axes, path))
    if show:
        pyplot.show()
    for axes in pictures.values():
        plotting.close(axes)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 2 for bad input."""
    parser = picture_flags("Pictures of a surface, of a path, or of a path over contours")
    add = parser.add_argument
    add("--dir_file", default="", help="the directions, for a path")
    add("--proj_file", default="", help="the path's coordinates")
    add("--surf_name", default="train_loss", help="train_loss, test_loss, train_acc, train_err ...")
    add("--vmax", default=10.0, type=float, help="the largest contour")
    add("--vmin", default=0.1, type=float, help="the smallest contour")
    add("--vlevel", default=0.5, type=float, help="between two contours")
    add("--zlim", default=10.0, type=float, help="accepted, as by the original")
    args = parser.parse_args(argv)
    return run("plot_2D", lambda: _run(args), args.show)


def _run(args: argparse.Namespace) -> None:
    if bool(args.proj_file) != bool(args.dir_file):
        raise InvalidArgument("--proj_file, --dir_file: expected both, or neither")
    levels = args.vmin, args.vmax, args.vlevel, args.show
    if args.surf_file and args.proj_file:
        plot_contour_trajectory(
            args.surf_file, args.dir_file, args.proj_file, args.surf_name, *levels
        )
    elif args.proj_file:
        plot_trajectory(args.proj_file, args.dir_file, args.show)
    elif args.surf_file:
        plot_2d_contour(args.surf_file, args.surf_name, *levels)
    else:
        raise InvalidArgument(
            "expected --surf_file, or --proj_file and --dir_file, or all three, got none"
        )


if __name__ == "__main__":
    sys.exit(main())
