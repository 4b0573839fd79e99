"""Pictures of surfaces and trajectories, under the original's file names."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import InvalidArgument
from ...plots import surface as plotting
from ...results.surface import Surface
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
