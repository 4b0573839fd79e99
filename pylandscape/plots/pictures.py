"""Which function draws which result: where results come in when a picture is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .clouds import plot_cloud
from .spectra import plot_pairs, plot_spectrum
from .surface import plot

DRAWN_BY: dict[str, Callable[..., Any]] = {
    "Curve": plot,
    "Surface": plot,
    "Cloud": plot_cloud,
    "EigenPairs": plot_pairs,
    "Spectrum": plot_spectrum,
}
