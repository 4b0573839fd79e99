"""pylandscape: the loss L(theta) of a PyTorch model, explored in parameter space.

import pylandscape as pl

land = pl.Landscape(model, torch.nn.CrossEntropyLoss(), (x, y))
d1, d2 = pl.random_directions(land, 2, seed=0)
surface = pl.plane(land, d1, d2, x=(-1, 1, 51), y=(-1, 1, 51), path="surface.h5")
surface.plot("contour")
print(surface.check())
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. Nothing is imported before it is asked for: torch alone takes
# seconds. What type checkers and editors read is below; a test holds the two together.
_HOMES = {
    "_native": "cpu_capability has_cuda_kernels",
    "alignment": "Alignment",
    "classify": "classify",
    "cloud_results": "Cloud",
    "clouds": "hessian_cloud loss_gradient_cloud",
    "convexity": "convexity",
    "critical": "find_critical_points",
    "critical_results": "CriticalPoints",
    "critical_set": "CriticalSet",
    "curvature_classes": "classes_of",
    "directions": (
        "Direction as_directions gaussian normalize_direction random_directions target_direction"
    ),
    "eigen": "eigenpairs",
    "errors": (
        "CudaUnavailable FileFormatError InvalidArgument LayoutMismatch NotDifferentiable "
        "NotLowered PylandscapeError ResumeMismatch"
    ),
    "grids": "interpolate line plane",
    "hessians": "PointGradients PointHessians eigenvalues gradients hessians iterate_hessians",
    "interop": "from_function",
    "lanczos": "Lanczos",
    "landscape": "EngineReport Landscape",
    "layout": "ParameterEntry ParameterLayout",
    "linear_networks": "LinearNetwork linear_network",
    "loading": "load",
    "monotone": "MonotonePath is_non_ascending monotone_path",
    "operators": "SymmetricOperator as_operator",
    "outliers": (
        "OutlierReport condition_number covariance_spectrum gradient_concentration "
        "gradient_descent_factors l1_energy largest_stable_rate outlier_ratio outliers rate_bound "
        "subspace_overlap"
    ),
    "plot_clouds": "plot_clouds",
    "plot_spectra": "plot_spectra",
    "results": "Curve Surface",
    "roughness": "bumpiness ruggedness",
    "sharpness": "Sharpness sharpness",
    "spectra": "layer_spectra spectrum",
    "spectral_results": "Density EigenPairs Spectrum",
    "stagnation": "Stagnation stagnation",
    "symmetry": "EquioutputGroup",
    "theory": "TheoryTable theory",
    "traces": "Estimate diagonal frobenius_norm trace",
    "track_results": "Track",
    "trajectories.components": "PrincipalComponents pca pca_directions",
    "trajectories.embedding": "Embedding mds",
    "trajectories.projection": "Projection",
    "trajectories.reading": "trajectory",
    "trajectories.recorder": "Recorder",
    "trajectories.similarity": "Agreement FunctionalDistance agreement functional_distance",
    "trajectories.tracking": "stability_threshold track",
    "trajectories.trajectory": "Trajectory",
    "vtp": "save_vtp",
    "walk_results": "Walks",
    "walks": "gradient_walk progressive_random_walk random_walk",
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


class _Facade(ModuleType):
    """Where a public function and its module have the same name, the name is the function's.

    Python binds a module in its package once it is imported, whoever imported it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME_OF.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Facade

if not TYPE_CHECKING:  # a type checker takes an unknown name for an error
    __getattr__ = _attribute
else:
    from . import compat as compat
    from . import interop as interop
    from . import plotting as plotting
    from ._native import cpu_capability as cpu_capability
    from ._native import has_cuda_kernels as has_cuda_kernels
    from .alignment import Alignment as Alignment
    from .classify import classify as classify
    from .cloud_results import Cloud as Cloud
    from .clouds import hessian_cloud as hessian_cloud
    from .clouds import loss_gradient_cloud as loss_gradient_cloud
    from .convexity import convexity as convexity
    from .critical import find_critical_points as find_critical_points
    from .critical_results import CriticalPoints as CriticalPoints
    from .critical_set import CriticalSet as CriticalSet
    from .curvature_classes import classes_of as classes_of
    from .directions import Direction as Direction
    from .directions import as_directions as as_directions
    from .directions import gaussian as gaussian
    from .directions import normalize_direction as normalize_direction
    from .directions import random_directions as random_directions
    from .directions import target_direction as target_direction
    from .eigen import eigenpairs as eigenpairs
    from .errors import CudaUnavailable as CudaUnavailable
    from .errors import FileFormatError as FileFormatError
    from .errors import InvalidArgument as InvalidArgument
    from .errors import LayoutMismatch as LayoutMismatch
    from .errors import NotDifferentiable as NotDifferentiable
    from .errors import NotLowered as NotLowered
    from .errors import PylandscapeError as PylandscapeError
    from .errors import ResumeMismatch as ResumeMismatch
    from .grids import interpolate as interpolate
    from .grids import line as line
    from .grids import plane as plane
    from .hessians import PointGradients as PointGradients
    from .hessians import PointHessians as PointHessians
    from .hessians import eigenvalues as eigenvalues
    from .hessians import gradients as gradients
    from .hessians import hessians as hessians
    from .hessians import iterate_hessians as iterate_hessians
    from .interop import from_function as from_function
    from .lanczos import Lanczos as Lanczos
    from .landscape import EngineReport as EngineReport
    from .landscape import Landscape as Landscape
    from .layout import ParameterEntry as ParameterEntry
    from .layout import ParameterLayout as ParameterLayout
    from .linear_networks import LinearNetwork as LinearNetwork
    from .linear_networks import linear_network as linear_network
    from .loading import load as load
    from .monotone import MonotonePath as MonotonePath
    from .monotone import is_non_ascending as is_non_ascending
    from .monotone import monotone_path as monotone_path
    from .operators import SymmetricOperator as SymmetricOperator
    from .operators import as_operator as as_operator
    from .outliers import OutlierReport as OutlierReport
    from .outliers import condition_number as condition_number
    from .outliers import covariance_spectrum as covariance_spectrum
    from .outliers import gradient_concentration as gradient_concentration
    from .outliers import gradient_descent_factors as gradient_descent_factors
    from .outliers import l1_energy as l1_energy
    from .outliers import largest_stable_rate as largest_stable_rate
    from .outliers import outlier_ratio as outlier_ratio
    from .outliers import outliers as outliers
    from .outliers import rate_bound as rate_bound
    from .outliers import subspace_overlap as subspace_overlap
    from .plot_clouds import plot_clouds as plot_clouds
    from .plot_spectra import plot_spectra as plot_spectra
    from .results import Curve as Curve
    from .results import Surface as Surface
    from .roughness import bumpiness as bumpiness
    from .roughness import ruggedness as ruggedness
    from .sharpness import Sharpness as Sharpness
    from .sharpness import sharpness as sharpness
    from .spectra import layer_spectra as layer_spectra
    from .spectra import spectrum as spectrum
    from .spectral_results import Density as Density
    from .spectral_results import EigenPairs as EigenPairs
    from .spectral_results import Spectrum as Spectrum
    from .stagnation import Stagnation as Stagnation
    from .stagnation import stagnation as stagnation
    from .symmetry import EquioutputGroup as EquioutputGroup
    from .theory import TheoryTable as TheoryTable
    from .theory import theory as theory
    from .traces import Estimate as Estimate
    from .traces import diagonal as diagonal
    from .traces import frobenius_norm as frobenius_norm
    from .traces import trace as trace
    from .track_results import Track as Track
    from .trajectories.components import PrincipalComponents as PrincipalComponents
    from .trajectories.components import pca as pca
    from .trajectories.components import pca_directions as pca_directions
    from .trajectories.embedding import Embedding as Embedding
    from .trajectories.embedding import mds as mds
    from .trajectories.projection import Projection as Projection
    from .trajectories.reading import trajectory as trajectory
    from .trajectories.recorder import Recorder as Recorder
    from .trajectories.similarity import Agreement as Agreement
    from .trajectories.similarity import FunctionalDistance as FunctionalDistance
    from .trajectories.similarity import agreement as agreement
    from .trajectories.similarity import functional_distance as functional_distance
    from .trajectories.tracking import stability_threshold as stability_threshold
    from .trajectories.tracking import track as track
    from .trajectories.trajectory import Trajectory as Trajectory
    from .vtp import save_vtp as save_vtp
    from .walk_results import Walks as Walks
    from .walks import gradient_walk as gradient_walk
    from .walks import progressive_random_walk as progressive_random_walk
    from .walks import random_walk as random_walk
