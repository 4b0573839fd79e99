"""Eigenpairs, traces and densities of symmetric operators."""

from .lanczos import LanczosTridiag, lanczos, lanczos_tridiagonal
from .power_iteration import deflated_power_iteration, power_iteration_one
from .result import EigenResult
from .spectral_density import SpectralDensityResult, spectral_density
from .trace import TraceResult, hutch_plus_plus, hutchinson, trace

__all__ = [
    "EigenResult",
    "LanczosTridiag",
    "SpectralDensityResult",
    "TraceResult",
    "deflated_power_iteration",
    "hutch_plus_plus",
    "hutchinson",
    "lanczos",
    "lanczos_tridiagonal",
    "power_iteration_one",
    "spectral_density",
    "trace",
]
