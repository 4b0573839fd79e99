"""Pictures of results: the public address.

The way goes on in plots/surface.py.
"""

from .plots.surface import check_suffix, close, plot, plot_lines, plot_surface, save

__all__ = ["check_suffix", "close", "plot", "plot_lines", "plot_surface", "save"]
