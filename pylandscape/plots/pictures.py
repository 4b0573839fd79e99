"""Which function draws which result: where results come in when a picture is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .alignments import plot_alignment
from .asymmetry_profiles import plot_asymmetry
from .barrier_matrix import plot_barriers
from .clouds import plot_cloud
from .flatness_tables import plot_flatness
from .grid_slices import plot_grid
from .learning_curves import plot_runs
from .merge_trees import plot_topology
from .mode_connection import plot_connection
from .paths import (
    plot_agreement,
    plot_components,
    plot_embedding,
    plot_projection,
    plot_track,
)
from .patterns import plot_constructed, plot_pattern
from .points_apart import plot_fitness, plot_ultrametricity
from .simple_models import plot_interpolator, plot_search, plot_volumes
from .spectra import plot_pairs, plot_spectrum
from .surface import plot

DRAWN_BY: dict[str, Callable[..., Any]] = {
    "Curve": plot,
    "Surface": plot,
    "Agreement": plot_agreement,
    "Asymmetry": plot_asymmetry,
    "Barriers": plot_barriers,
    "Cloud": plot_cloud,
    "ConstructedPattern": plot_constructed,
    "EigenPairs": plot_pairs,
    "Flatness": plot_flatness,
    "FitnessDistance": plot_fitness,
    "GlobalSearch": plot_search,
    "Grid": plot_grid,
    "Embedding": plot_embedding,
    "Interpolator": plot_interpolator,
    "ModeConnection": plot_connection,
    "ModelAlignment": plot_alignment,
    "Pattern": plot_pattern,
    "PrincipalComponents": plot_components,
    "Projection": plot_projection,
    "Runs": plot_runs,
    "Spectrum": plot_spectrum,
    "Topology": plot_topology,
    "Track": plot_track,
    "Ultrametricity": plot_ultrametricity,
    "VolumeLaw": plot_volumes,
}
