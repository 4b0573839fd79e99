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
from .spectra import plot_pairs, plot_spectrum
from .surface import plot

DRAWN_BY: dict[str, Callable[..., Any]] = {
    "Curve": plot,
    "Surface": plot,
    "Agreement": plot_agreement,
    "Asymmetry": plot_asymmetry,
    "Barriers": plot_barriers,
    "Cloud": plot_cloud,
    "EigenPairs": plot_pairs,
    "Flatness": plot_flatness,
    "Grid": plot_grid,
    "Embedding": plot_embedding,
    "ModeConnection": plot_connection,
    "ModelAlignment": plot_alignment,
    "PrincipalComponents": plot_components,
    "Projection": plot_projection,
    "Runs": plot_runs,
    "Spectrum": plot_spectrum,
    "Topology": plot_topology,
    "Track": plot_track,
}
