"""pylandscape: the loss L(theta) of a PyTorch model, explored in parameter space.

import pylandscape as pl

land = pl.Landscape(model, torch.nn.CrossEntropyLoss(), (x, y))
d1, d2 = pl.random_directions(land, 2, seed=0)
surface = pl.plane(land, d1, d2, x=(-1, 1, 51), y=(-1, 1, 51), path="surface.h5")
surface.plot("contour")
print(surface.check())
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

# Where each public name lives. Nothing is imported before it is asked for: torch alone takes
# seconds. What type checkers and editors read is below; a test holds the two together.
_HOMES = {
    "_native": "cpu_capability has_cuda_kernels",
    "clouds.clouds": "hessian_cloud loss_gradient_cloud",
    "clouds.roughness": "bumpiness ruggedness",
    "clouds.walks": "gradient_walk progressive_random_walk random_walk",
    "connectivity.aligning": "align",
    "connectivity.asymmetric_valleys": "asymmetry",
    "connectivity.curves": "connect connection_plane",
    "connectivity.flatness_measures": (
        "critical_sharpness eigen_directions flatness worst_direction"
    ),
    "connectivity.lines": "barriers",
    "connectivity.merging": "merge_plane",
    "critical.alignment": "Alignment",
    "critical.classification": "classify",
    "critical.end_points": "ultrametricity",
    "critical.find": "find_critical_points",
    "critical.fitness": "fitness_distance",
    "critical.linear_networks": "LinearNetwork linear_network",
    "critical.monotone": "MonotonePath is_non_ascending monotone_path",
    "critical.symmetry": "EquioutputGroup",
    "curvature.at_points": "PointGradients PointHessians gradients hessians iterate_hessians",
    "curvature.eigen": "eigenpairs",
    "curvature.gradient_subspace": (
        "OutlierReport condition_number covariance_spectrum gradient_concentration "
        "gradient_descent_factors l1_energy largest_stable_rate outlier_ratio outliers rate_bound "
        "subspace_overlap"
    ),
    "curvature.lanczos": "Lanczos",
    "curvature.operators": "as_operator",
    "curvature.spectra": "layer_spectra spectrum",
    "curvature.symmetric_operator": "SymmetricOperator",
    "curvature.traces": "diagonal frobenius_norm trace",
    "engines.points.evaluator": "eigenvalues",
    "errors": (
        "CudaUnavailable FileFormatError InvalidArgument LayoutMismatch NotDifferentiable "
        "NotLowered PylandscapeError RankFailed ResumeMismatch"
    ),
    "experiments.theorems": "TheoryTable theory",
    "interop": "from_function",
    "landscape": "EngineReport Landscape",
    "plots.clouds": "plot_clouds",
    "plots.side_by_side": "compare",
    "plots.spectra": "plot_spectra",
    "ranks": "distributed",
    "reports.writing": "report",
    "results.asymmetry_profiles": "Asymmetry",
    "results.barrier_matrix": "Barriers",
    "results.cloud": "Cloud",
    "results.critical_points": "CriticalPoints",
    "results.critical_set": "CriticalSet",
    "results.curvature_classes": "classes_of",
    "results.curve": "Curve",
    "results.eigen_pairs": "EigenPairs",
    "results.estimates": "Estimate",
    "results.fitness": "FitnessDistance",
    "results.flatness_table": "Flatness FlatnessRow",
    "results.grid_values": "Grid",
    "results.merge_trees": "Topology",
    "results.mode_connection": "ModeConnection",
    "results.model_alignment": "ModelAlignment",
    "results.paths": "PrincipalComponents Projection",
    "results.similarity": "Agreement Embedding FunctionalDistance",
    "results.spectra": "Density Spectrum",
    "results.stagnations": "Stagnation stagnation",
    "results.surface": "Surface",
    "results.tracks": "Track",
    "results.ultrametric": "Ultrametricity",
    "results.vti": "save_vti",
    "results.vtp": "save_vtp",
    "results.walks": "Walks",
    "surfaces.convexity_map": "convexity",
    "surfaces.grids": "grid interpolate line plane",
    "surfaces.picture_curvature": "Sharpness hidden_curvature sharpness",
    "theta.directions": (
        "Direction as_directions gaussian normalize_direction random_directions target_direction"
    ),
    "theta.layout": "ParameterEntry ParameterLayout",
    "topology.distances": "bottleneck_distance wasserstein_distance",
    "training.advance": "train",
    "training.optimisers": (
        "Adadelta Adagrad Adam AdamW Cosine RMSprop RungeKutta SGD StepDecay WarmUp"
    ),
    "trajectories.averaging": "swa",
    "trajectories.base": "Trajectory",
    "trajectories.components": "pca pca_directions",
    "trajectories.embedding": "mds",
    "trajectories.loading": "load",
    "trajectories.reading": "trajectory",
    "trajectories.recorder": "Recorder",
    "trajectories.several": "Runs",
    "trajectories.similarity": "agreement functional_distance",
    "trajectories.tracking": "stability_threshold track",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [*_HOME_OF]


def _attribute(name: str) -> Any:
    """A public name, or a module of this package, at its first use (PEP 562)."""
    if name in _HOME_OF:
        found = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    elif not name.startswith("__") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


if not TYPE_CHECKING:  # a type checker takes an unknown name for an error
    __getattr__ = _attribute
else:
    from . import compat as compat
    from . import interop as interop
    from . import optim as optim
    from . import plotting as plotting
    from ._native import cpu_capability as cpu_capability
    from ._native import has_cuda_kernels as has_cuda_kernels
    from .clouds.clouds import hessian_cloud as hessian_cloud
    from .clouds.clouds import loss_gradient_cloud as loss_gradient_cloud
    from .clouds.roughness import bumpiness as bumpiness
    from .clouds.roughness import ruggedness as ruggedness
    from .clouds.walks import gradient_walk as gradient_walk
    from .clouds.walks import progressive_random_walk as progressive_random_walk
    from .clouds.walks import random_walk as random_walk
    from .connectivity.aligning import align as align
    from .connectivity.asymmetric_valleys import asymmetry as asymmetry
    from .connectivity.curves import connect as connect
    from .connectivity.curves import connection_plane as connection_plane
    from .connectivity.flatness_measures import critical_sharpness as critical_sharpness
    from .connectivity.flatness_measures import eigen_directions as eigen_directions
    from .connectivity.flatness_measures import flatness as flatness
    from .connectivity.flatness_measures import worst_direction as worst_direction
    from .connectivity.lines import barriers as barriers
    from .connectivity.merging import merge_plane as merge_plane
    from .critical.alignment import Alignment as Alignment
    from .critical.classification import classify as classify
    from .critical.end_points import ultrametricity as ultrametricity
    from .critical.find import find_critical_points as find_critical_points
    from .critical.fitness import fitness_distance as fitness_distance
    from .critical.linear_networks import LinearNetwork as LinearNetwork
    from .critical.linear_networks import linear_network as linear_network
    from .critical.monotone import MonotonePath as MonotonePath
    from .critical.monotone import is_non_ascending as is_non_ascending
    from .critical.monotone import monotone_path as monotone_path
    from .critical.symmetry import EquioutputGroup as EquioutputGroup
    from .curvature.at_points import PointGradients as PointGradients
    from .curvature.at_points import PointHessians as PointHessians
    from .curvature.at_points import gradients as gradients
    from .curvature.at_points import hessians as hessians
    from .curvature.at_points import iterate_hessians as iterate_hessians
    from .curvature.eigen import eigenpairs as eigenpairs
    from .curvature.gradient_subspace import OutlierReport as OutlierReport
    from .curvature.gradient_subspace import condition_number as condition_number
    from .curvature.gradient_subspace import covariance_spectrum as covariance_spectrum
    from .curvature.gradient_subspace import gradient_concentration as gradient_concentration
    from .curvature.gradient_subspace import gradient_descent_factors as gradient_descent_factors
    from .curvature.gradient_subspace import l1_energy as l1_energy
    from .curvature.gradient_subspace import largest_stable_rate as largest_stable_rate
    from .curvature.gradient_subspace import outlier_ratio as outlier_ratio
    from .curvature.gradient_subspace import outliers as outliers
    from .curvature.gradient_subspace import rate_bound as rate_bound
    from .curvature.gradient_subspace import subspace_overlap as subspace_overlap
    from .curvature.lanczos import Lanczos as Lanczos
    from .curvature.operators import as_operator as as_operator
    from .curvature.spectra import layer_spectra as layer_spectra
    from .curvature.spectra import spectrum as spectrum
    from .curvature.symmetric_operator import SymmetricOperator as SymmetricOperator
    from .curvature.traces import diagonal as diagonal
    from .curvature.traces import frobenius_norm as frobenius_norm
    from .curvature.traces import trace as trace
    from .engines.points.evaluator import eigenvalues as eigenvalues
    from .errors import CudaUnavailable as CudaUnavailable
    from .errors import FileFormatError as FileFormatError
    from .errors import InvalidArgument as InvalidArgument
    from .errors import LayoutMismatch as LayoutMismatch
    from .errors import NotDifferentiable as NotDifferentiable
    from .errors import NotLowered as NotLowered
    from .errors import PylandscapeError as PylandscapeError
    from .errors import RankFailed as RankFailed
    from .errors import ResumeMismatch as ResumeMismatch
    from .experiments.theorems import TheoryTable as TheoryTable
    from .experiments.theorems import theory as theory
    from .interop import from_function as from_function
    from .landscape import EngineReport as EngineReport
    from .landscape import Landscape as Landscape
    from .plots.clouds import plot_clouds as plot_clouds
    from .plots.side_by_side import compare as compare
    from .plots.spectra import plot_spectra as plot_spectra
    from .ranks import distributed as distributed
    from .reports.writing import report as report
    from .results.asymmetry_profiles import Asymmetry as Asymmetry
    from .results.barrier_matrix import Barriers as Barriers
    from .results.cloud import Cloud as Cloud
    from .results.critical_points import CriticalPoints as CriticalPoints
    from .results.critical_set import CriticalSet as CriticalSet
    from .results.curvature_classes import classes_of as classes_of
    from .results.curve import Curve as Curve
    from .results.eigen_pairs import EigenPairs as EigenPairs
    from .results.estimates import Estimate as Estimate
    from .results.fitness import FitnessDistance as FitnessDistance
    from .results.flatness_table import Flatness as Flatness
    from .results.flatness_table import FlatnessRow as FlatnessRow
    from .results.grid_values import Grid as Grid
    from .results.merge_trees import Topology as Topology
    from .results.mode_connection import ModeConnection as ModeConnection
    from .results.model_alignment import ModelAlignment as ModelAlignment
    from .results.paths import PrincipalComponents as PrincipalComponents
    from .results.paths import Projection as Projection
    from .results.similarity import Agreement as Agreement
    from .results.similarity import Embedding as Embedding
    from .results.similarity import FunctionalDistance as FunctionalDistance
    from .results.spectra import Density as Density
    from .results.spectra import Spectrum as Spectrum
    from .results.stagnations import Stagnation as Stagnation
    from .results.stagnations import stagnation as stagnation
    from .results.surface import Surface as Surface
    from .results.tracks import Track as Track
    from .results.ultrametric import Ultrametricity as Ultrametricity
    from .results.vti import save_vti as save_vti
    from .results.vtp import save_vtp as save_vtp
    from .results.walks import Walks as Walks
    from .surfaces.convexity_map import convexity as convexity
    from .surfaces.grids import grid as grid
    from .surfaces.grids import interpolate as interpolate
    from .surfaces.grids import line as line
    from .surfaces.grids import plane as plane
    from .surfaces.picture_curvature import Sharpness as Sharpness
    from .surfaces.picture_curvature import hidden_curvature as hidden_curvature
    from .surfaces.picture_curvature import sharpness as sharpness
    from .theta.directions import Direction as Direction
    from .theta.directions import as_directions as as_directions
    from .theta.directions import gaussian as gaussian
    from .theta.directions import normalize_direction as normalize_direction
    from .theta.directions import random_directions as random_directions
    from .theta.directions import target_direction as target_direction
    from .theta.layout import ParameterEntry as ParameterEntry
    from .theta.layout import ParameterLayout as ParameterLayout
    from .topology.distances import bottleneck_distance as bottleneck_distance
    from .topology.distances import wasserstein_distance as wasserstein_distance
    from .training.advance import train as train
    from .training.optimisers import SGD as SGD
    from .training.optimisers import Adadelta as Adadelta
    from .training.optimisers import Adagrad as Adagrad
    from .training.optimisers import Adam as Adam
    from .training.optimisers import AdamW as AdamW
    from .training.optimisers import Cosine as Cosine
    from .training.optimisers import RMSprop as RMSprop
    from .training.optimisers import RungeKutta as RungeKutta
    from .training.optimisers import StepDecay as StepDecay
    from .training.optimisers import WarmUp as WarmUp
    from .trajectories.averaging import swa as swa
    from .trajectories.base import Trajectory as Trajectory
    from .trajectories.components import pca as pca
    from .trajectories.components import pca_directions as pca_directions
    from .trajectories.embedding import mds as mds
    from .trajectories.loading import load as load
    from .trajectories.reading import trajectory as trajectory
    from .trajectories.recorder import Recorder as Recorder
    from .trajectories.several import Runs as Runs
    from .trajectories.similarity import agreement as agreement
    from .trajectories.similarity import functional_distance as functional_distance
    from .trajectories.tracking import stability_threshold as stability_threshold
    from .trajectories.tracking import track as track
