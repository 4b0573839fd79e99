"""Grids of three dimensions as VTK XML ImageData (.vti): a volume for ParaView."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..arrays import Array
from ..errors import InvalidArgument
from ..files.atomic import write_bytes
from ..files.hdf5 import as_path
from .grid_values import Grid
from .vtp import NUMBERS_PER_LINE

EVEN = 1e-9  # of the axis's length: by how much the points of an evenly spaced axis may be off


def save_vti(grid: Grid, path: str | os.PathLike[str]) -> Path:
    """Write all metrics of a grid as point data of a volume that ParaView opens; in float64, digits
    that give the same bits. What is not finite stays NaN or infinite.

    Args:
        grid: of three dimensions, with evenly spaced axes of at least two points.
        path: of the .vti file; one that is there is replaced, atomically.

    Returns:
        The path.

    Raises:
        InvalidArgument: names the argument.
        OSError: the file cannot be written.
    """
    if not isinstance(grid, Grid):
        raise InvalidArgument(f"grid: expected a Grid, got {type(grid).__name__}")
    if len(grid.axes) != 3:
        raise InvalidArgument(f"grid: expected three dimensions, got {len(grid.axes)}")
    for k, axis in enumerate(grid.axes):
        even = np.linspace(axis[0], axis[-1], axis.size)
        if axis.size < 2 or np.abs(axis - even).max() > EVEN * (axis[-1] - axis[0]):
            raise InvalidArgument(
                f"grid: expected evenly spaced axes of at least two points, got other steps in "
                f"axes[{k}]; save_vtp writes its slices"
            )
    target = as_path(path, "path")
    write_bytes(target, ("\n".join(_document(grid)) + "\n").encode("ascii"))
    return target


def _document(grid: Grid) -> Iterator[str]:
    axes: list[Array] = grid.axes
    extent = " ".join(f"0 {axis.size - 1}" for axis in axes)
    origin = " ".join(repr(float(axis[0])) for axis in axes)
    steps = " ".join(repr(float((axis[-1] - axis[0]) / (axis.size - 1))) for axis in axes)
    yield '<VTKFile type="ImageData" version="1.0" byte_order="LittleEndian">'
    yield f'  <ImageData WholeExtent="{extent}" Origin="{origin}" Spacing="{steps}">'
    yield f'    <Piece Extent="{extent}">'
    yield '      <PointData Scalars="loss">'
    for name, values in grid.metrics.items():
        words = [repr(v) for v in values.ravel(order="F").tolist()]  # the first axis is the fastest
        yield f'        <DataArray type="Float64" Name="{name}" format="ascii">'
        for i in range(0, len(words), NUMBERS_PER_LINE):
            yield f"          {' '.join(words[i : i + NUMBERS_PER_LINE])}"
        yield "        </DataArray>"
    yield "      </PointData>"
    yield "    </Piece>"
    yield "  </ImageData>"
    yield "</VTKFile>"
