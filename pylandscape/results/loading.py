"""`pylandscape.load`: a result from a file, one of ours or of Li et al.'s loss-landscape."""

from __future__ import annotations

import os

from ..errors import InvalidArgument
from ..files import store  # fmt: skip
from ..files.hdf5 import as_path, open_hdf5

# The classes register themselves with the store when their modules are imported.
from . import (
    asymmetry_profiles,
    barrier_matrix,
    cloud,
    critical_points,
    critical_set,
    curve,
    eigen_pairs,
    fitness,
    flatness_table,
    foreign,
    grid_values,
    merge_trees,
    mode_connection,
    model_alignment,
    patterns,
    searches,
    simple_models,
    spectra,
    surface,
    tracks,
    ultrametric,
)
from . import walks as _walks

Result = (
    barrier_matrix.Barriers
    | curve.Curve
    | mode_connection.ModeConnection
    | surface.Surface
    | grid_values.Grid
    | merge_trees.Topology
    | eigen_pairs.EigenPairs
    | spectra.Spectrum
    | _walks.Walks
    | critical_points.CriticalPoints
    | critical_set.CriticalSet
    | cloud.Cloud
    | tracks.Track
    | model_alignment.ModelAlignment
    | flatness_table.Flatness
    | asymmetry_profiles.Asymmetry
    | ultrametric.Ultrametricity
    | fitness.FitnessDistance
    | patterns.Pattern
    | patterns.ConstructedPattern
    | searches.GlobalSearch
    | simple_models.VolumeLaw
    | simple_models.Interpolator
)


def load(path: str | os.PathLike[str], dir_file: str | os.PathLike[str] | None = None) -> Result:
    """Read a result: one of ours, bit for bit, or a surface file of Li et al.'s loss-landscape.

    Of a loss-landscape file, values that were never computed (-1) come back as NaN and are counted
    in `info["unfilled"]`, accuracies become fractions, and `info["dir_file"]` is the direction
    file's name. It is opened, for the directions' lengths and their cosine, only if it is given
    here or lies in the same folder.

    Args:
        path: HDF5 file.
        dir_file: direction file of a loss-landscape surface.

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: truncated, damaged, no surface, or links that lead out of the file.
    """
    source = as_path(path, "path")
    other = None if dir_file is None else as_path(dir_file, "dir_file")
    with open_hdf5(source, "path") as file:
        ours = store.is_ours(file)
        result: Result = store.read(file) if ours else foreign.read(file)
    if not ours:
        foreign.describe_directions(result.info, source, other)
    elif other is not None:
        raise InvalidArgument(
            f"dir_file: expected none for a file of pylandscape's own, got {str(other)!r}"
        )
    return result
