"""pylandscape: the loss L(theta) of a PyTorch model, explored in parameter space.

import pylandscape as pl

land = pl.Landscape(model, torch.nn.CrossEntropyLoss(), (x, y))
d1, d2 = pl.random_directions(land, 2, seed=0)
surface = pl.plane(land, d1, d2, x=(-1, 1, 51), y=(-1, 1, 51), path="surface.h5")
surface.plot("contour")
print(surface.check())
"""

from ._native import cpu_capability, has_cuda_kernels
from .alignment import Alignment
from .classify import classify
from .cloud_results import Cloud
from .clouds import hessian_cloud, loss_gradient_cloud
from .convexity import convexity
from .critical import find_critical_points
from .critical_results import CriticalPoints
from .critical_set import CriticalSet
from .curvature_classes import classes_of
from .directions import (
    Direction,
    as_directions,
    gaussian,
    normalize_direction,
    random_directions,
    target_direction,
)
from .eigen import eigenpairs
from .errors import (
    CudaUnavailable,
    FileFormatError,
    InvalidArgument,
    LayoutMismatch,
    NotLowered,
    PylandscapeError,
    ResumeMismatch,
)
from .grids import interpolate, line, plane
from .hessians import (
    PointGradients,
    PointHessians,
    eigenvalues,
    gradients,
    hessians,
    iterate_hessians,
)
from .interop import from_function
from .lanczos import Lanczos
from .landscape import EngineReport, Landscape
from .layout import ParameterEntry, ParameterLayout
from .linear_networks import LinearNetwork, linear_network
from .loading import load
from .monotone import MonotonePath, is_non_ascending, monotone_path
from .operators import SymmetricOperator, as_operator
from .outliers import (
    OutlierReport,
    condition_number,
    covariance_spectrum,
    gradient_concentration,
    gradient_descent_factors,
    l1_energy,
    largest_stable_rate,
    outlier_ratio,
    outliers,
    rate_bound,
    subspace_overlap,
)
from .plot_clouds import plot_clouds
from .plot_spectra import plot_spectra
from .results import Curve, Surface
from .roughness import bumpiness, ruggedness
from .sharpness import Sharpness, sharpness
from .spectra import layer_spectra, spectrum
from .spectral_results import Density, EigenPairs, Spectrum
from .stagnation import Stagnation, stagnation
from .symmetry import EquioutputGroup
from .theory import TheoryTable, theory
from .traces import Estimate, diagonal, frobenius_norm, trace
from .trajectories.components import PrincipalComponents, pca, pca_directions
from .trajectories.embedding import Embedding, mds
from .trajectories.projection import Projection
from .trajectories.reading import trajectory
from .trajectories.recorder import Recorder
from .trajectories.similarity import (
    Agreement,
    FunctionalDistance,
    agreement,
    functional_distance,
)
from .trajectories.tracking import Track, stability_threshold, track
from .trajectories.trajectory import Trajectory
from .vtp import save_vtp
from .walk_results import Walks
from .walks import gradient_walk, progressive_random_walk, random_walk

__version__ = "0.1.0"

__all__ = [
    "Agreement",
    "Alignment",
    "Cloud",
    "CriticalPoints",
    "CriticalSet",
    "CudaUnavailable",
    "Curve",
    "Density",
    "Direction",
    "EigenPairs",
    "Embedding",
    "EngineReport",
    "EquioutputGroup",
    "Estimate",
    "FileFormatError",
    "FunctionalDistance",
    "InvalidArgument",
    "Lanczos",
    "Landscape",
    "LayoutMismatch",
    "LinearNetwork",
    "MonotonePath",
    "NotLowered",
    "OutlierReport",
    "ParameterEntry",
    "ParameterLayout",
    "PointGradients",
    "PointHessians",
    "PrincipalComponents",
    "Projection",
    "PylandscapeError",
    "Recorder",
    "ResumeMismatch",
    "Sharpness",
    "Spectrum",
    "Stagnation",
    "Surface",
    "SymmetricOperator",
    "TheoryTable",
    "Track",
    "Trajectory",
    "Walks",
    "agreement",
    "as_directions",
    "as_operator",
    "bumpiness",
    "classes_of",
    "classify",
    "condition_number",
    "convexity",
    "covariance_spectrum",
    "cpu_capability",
    "diagonal",
    "eigenpairs",
    "eigenvalues",
    "find_critical_points",
    "frobenius_norm",
    "from_function",
    "functional_distance",
    "gaussian",
    "gradient_concentration",
    "gradient_descent_factors",
    "gradient_walk",
    "gradients",
    "has_cuda_kernels",
    "hessian_cloud",
    "hessians",
    "interpolate",
    "is_non_ascending",
    "iterate_hessians",
    "l1_energy",
    "largest_stable_rate",
    "layer_spectra",
    "line",
    "linear_network",
    "load",
    "loss_gradient_cloud",
    "mds",
    "monotone_path",
    "normalize_direction",
    "outlier_ratio",
    "outliers",
    "pca",
    "pca_directions",
    "plane",
    "plot_clouds",
    "plot_spectra",
    "progressive_random_walk",
    "random_directions",
    "random_walk",
    "rate_bound",
    "ruggedness",
    "save_vtp",
    "sharpness",
    "spectrum",
    "stability_threshold",
    "stagnation",
    "subspace_overlap",
    "target_direction",
    "theory",
    "trace",
    "track",
    "trajectory",
]
