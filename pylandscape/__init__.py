"""pylandscape: the loss L(theta) of a PyTorch model, explored in parameter space.

import pylandscape as pl

land = pl.Landscape(model, torch.nn.CrossEntropyLoss(), (x, y))
d1, d2 = pl.random_directions(land, 2, seed=0)
surface = pl.plane(land, d1, d2, x=(-1, 1, 51), y=(-1, 1, 51), path="surface.h5")
surface.plot("contour")
print(surface.check())
"""

from ._native import cpu_capability, has_cuda_kernels
from .directions import (
    Direction,
    as_directions,
    gaussian,
    normalize_direction,
    random_directions,
    target_direction,
)
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
from .landscape import EngineReport, Landscape
from .layout import ParameterEntry, ParameterLayout
from .results import Curve, Surface

__version__ = "0.1.0"

__all__ = [
    "CudaUnavailable",
    "Curve",
    "Direction",
    "EngineReport",
    "FileFormatError",
    "InvalidArgument",
    "Landscape",
    "LayoutMismatch",
    "NotLowered",
    "ParameterEntry",
    "ParameterLayout",
    "PylandscapeError",
    "ResumeMismatch",
    "Surface",
    "as_directions",
    "cpu_capability",
    "gaussian",
    "has_cuda_kernels",
    "interpolate",
    "line",
    "load",
    "normalize_direction",
    "plane",
    "random_directions",
    "target_direction",
]
