"""Surfaces as VTK XML PolyData (.vtp) for ParaView, in the form of Li et al.'s `h52vtp`.

A sheet of quads over the plane: point (x[i], y[j], z[i, j]), x fastest; point data `zvalue` (z),
cell data `averaged zvalue` (the mean of the four corners). ASCII, float32 in nine digits (exact).
Points that are not finite are left out, with the cells around them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array
from ..errors import InvalidArgument
from ..files.atomic import write_bytes
from ..files.hdf5 import as_path
from .surface import Surface

LOG_OFFSET = 0.1  # h52vtp's: log shows ln(z + 0.1)
NUMBERS_PER_LINE = 6
Integers = NDArray[np.int64]


def save_vtp(
    surface: Surface,
    path: str | os.PathLike[str],
    *,
    metric: str = "loss",
    log: bool = False,
    zmax: float | None = None,
    interp: int | None = None,
) -> Path:
    """Write a metric of a surface as a sheet that ParaView opens; any nx, ny >= 2.

    Args:
        surface: of kind "plane" or "bilinear"; of any kind, x and y are the axes' coordinates.
        path: of the .vtp file; one that is there is replaced, atomically.
        metric: which of ``surface.metrics``; its units are those of z.
        log: z is ln(value + 0.1); values <= -0.1 have none and are left out.
        zmax: larger values, infinity too, are cut to it (before the logarithm).
        interp: this many points of each axis instead of the grid's, by a cubic spline through the
            grid (of lower degree where an axis has fewer than four points).

    Returns:
        The path.

    Raises:
        InvalidArgument: names the argument; also fewer than 2 x 2 points, no finite cell, or
            ``interp`` of values that are not all finite.
        OSError: the file cannot be written.
    """
    return write_sheet(path, *sheet(surface, metric, log, zmax, interp))


def sheet(
    surface: Surface, metric: str, log: bool, zmax: float | None, interp: int | None
) -> tuple[Array, Array, Array]:
    """Axes x (nx,), y (ny,) and heights (nx, ny), as `save_vtp` writes them."""
    if not isinstance(surface, Surface):
        raise InvalidArgument(f"surface: expected a Surface, got {type(surface).__name__}")
    if metric not in surface.metrics:
        raise InvalidArgument(f"metric: expected one of {sorted(surface.metrics)}, got {metric!r}")
    x, y, z = surface.x, surface.y, surface.metrics[metric]
    if min(z.shape) < 2:
        raise InvalidArgument(f"surface: expected at least 2 x 2 points, got {z.shape}")
    if interp is not None:
        x, y, z = _refined(x, y, z, interp)
    if zmax is not None:
        z = np.minimum(z, zmax)
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.log(z + LOG_OFFSET)
    return x, y, z


def write_sheet(path: str | os.PathLike[str], x: Array, y: Array, z: Array) -> Path:
    """Write heights z (nx, ny) over the axes x (nx,) and y (ny,); see `save_vtp`."""
    target = as_path(path, "path")
    points = np.stack([*np.meshgrid(x, y), z.T], axis=-1).reshape(-1, 3)  # x fastest
    keep = (np.abs(points) <= np.finfo(np.float32).max).all(axis=1)
    cells = _quads(x.size, y.size)
    cells = cells[keep[cells].all(axis=1)]
    if not len(cells):
        raise InvalidArgument(
            f"surface: expected a cell of four finite values, got none in {target}"
        )
    number = np.cumsum(keep) - 1  # of a kept point among the kept
    text = "\n".join(_document(points[keep], number[cells])) + "\n"
    write_bytes(target, text.encode("ascii"))
    return target


def _refined(x: Array, y: Array, z: Array, count: int) -> tuple[Array, Array, Array]:
    from scipy.interpolate import RectBivariateSpline

    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 2:
        raise InvalidArgument(f"interp: expected an integer >= 2, got {count!r}")
    bad = int((~np.isfinite(z)).sum())
    if bad:
        raise InvalidArgument(f"interp: expected finite values, got {bad} that are not")
    spline = RectBivariateSpline(x, y, z, kx=min(3, x.size - 1), ky=min(3, y.size - 1))
    fine = [np.linspace(axis[0], axis[-1], count) for axis in (x, y)]
    return fine[0], fine[1], spline(*fine)


def _quads(nx: int, ny: int) -> Integers:
    """(cells, 4) corners, counterclockwise, of the grid whose point (i, j) is number j nx + i."""
    first = (np.arange(ny - 1)[:, None] * nx + np.arange(nx - 1)).reshape(-1, 1)
    return first + np.array([0, 1, nx + 1, nx])


def _document(points: Array, cells: Integers) -> Iterator[str]:
    z = points[:, 2]
    yield '<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">'
    yield "  <PolyData>"
    yield (
        f'    <Piece NumberOfPoints="{len(points)}" NumberOfVerts="0" NumberOfLines="0" '
        f'NumberOfStrips="0" NumberOfPolys="{len(cells)}">'
    )
    yield from _section("PointData", [_floats("zvalue", z)])
    yield from _section("CellData", [_floats("averaged zvalue", z[cells].mean(axis=1))])
    yield from _section("Points", [_floats("Points", points)])
    for name in ("Verts", "Lines", "Strips"):
        none = np.empty(0, dtype=np.int64)
        yield from _section(name, [_integers("connectivity", none), _integers("offsets", none)])
    ends = 4 * np.arange(1, len(cells) + 1)
    yield from _section("Polys", [_integers("connectivity", cells), _integers("offsets", ends)])
    yield "    </Piece>"
    yield "  </PolyData>"
    yield "</VTKFile>"


def _section(name: str, arrays: Iterable[Iterable[str]]) -> Iterator[str]:
    yield f"      <{name}>"
    for array in arrays:
        yield from array
    yield f"      </{name}>"


def _floats(name: str, values: Array) -> Iterator[str]:
    """values (n,) or (n, 3)."""
    components = 1 if values.ndim == 1 else values.shape[1]
    about = f'type="Float32" Name="{name}" NumberOfComponents="{components}"'
    return _array(about, [f"{v:.9g}" for v in values.ravel().tolist()], values)


def _integers(name: str, values: Integers) -> Iterator[str]:
    about = f'type="Int64" Name="{name}"'
    return _array(about, [str(v) for v in values.ravel().tolist()], values)


def _array(about: str, words: list[str], values: Array | Integers) -> Iterator[str]:
    span = f' RangeMin="{values.min()}" RangeMax="{values.max()}"' if values.size else ""
    yield f'        <DataArray {about} format="ascii"{span}>'
    for i in range(0, len(words), NUMBERS_PER_LINE):
        yield f"          {' '.join(words[i : i + NUMBERS_PER_LINE])}"
    yield "        </DataArray>"
