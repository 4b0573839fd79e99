"""pylandscape: the loss L(theta) of a PyTorch model, explored in parameter space.

import pylandscape as pl

land = pl.Landscape(model, torch.nn.CrossEntropyLoss(), (x, y))
d1, d2 = pl.random_directions(land, 2, seed=0)
surface = pl.plane(land, d1, d2, x=(-1, 1, 51), y=(-1, 1, 51), path="surface.h5")
surface.plot("contour")
print(surface.check())
"""

from ._native import cpu_capability, has_cuda_kernels
from .convexity import convexity
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
from .files import load
from .grids import interpolate, line, plane
from .lanczos import Lanczos
from .landscape import EngineReport, Landscape
from .layout import ParameterEntry, ParameterLayout
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
from .plot_spectra import plot_spectra
from .results import Curve, Surface
from .sharpness import Sharpness, sharpness
from .spectra import layer_spectra, spectrum
from .spectral_results import Density, EigenPairs, Spectrum
from .traces import Estimate, diagonal, frobenius_norm, trace

__version__ = "0.1.0"

__all__ = [
    "CudaUnavailable",
    "Curve",
    "Density",
    "Direction",
    "EigenPairs",
    "EngineReport",
    "Estimate",
    "FileFormatError",
    "InvalidArgument",
    "Lanczos",
    "Landscape",
    "LayoutMismatch",
    "NotLowered",
    "OutlierReport",
    "ParameterEntry",
    "ParameterLayout",
    "PylandscapeError",
    "ResumeMismatch",
    "Sharpness",
    "Spectrum",
    "Surface",
    "SymmetricOperator",
    "as_directions",
    "as_operator",
    "condition_number",
    "convexity",
    "covariance_spectrum",
    "cpu_capability",
    "diagonal",
    "eigenpairs",
    "frobenius_norm",
    "gaussian",
    "gradient_concentration",
    "gradient_descent_factors",
    "has_cuda_kernels",
    "interpolate",
    "l1_energy",
    "largest_stable_rate",
    "layer_spectra",
    "line",
    "load",
    "normalize_direction",
    "outlier_ratio",
    "outliers",
    "plane",
    "plot_spectra",
    "random_directions",
    "rate_bound",
    "sharpness",
    "spectrum",
    "subspace_overlap",
    "target_direction",
    "trace",
]
