"""Published studies as short scripts on the public names.

registry        `pylandscape reproduce`: which studies there are, and how they run
lab, page, measured   what a study is handed, what it writes down, numbers with uncertainty
datasets, networks, methods, perturbations   what several studies compute on and with
studies/        one file for each study
table1, table1_cases, table1_report   the table of `pylandscape reproduce table1`
theorems        `pylandscape theory`: what theorems say beside what is found
demo            `pylandscape demo`
residual        deep fully connected networks with and without shortcuts
patterns        masks carved into a loss surface, surfaces constructed over bias directions
global_search   PBIL over the weights, beside random search and gradient descent
polynomial      networks with a polynomial for ReLU: counts of solutions, interpolators
basins          basins and basin-fractals as models of a landscape, their volumes

The functions of the last four are here by name: ``from pylandscape.experiments import pbil``.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "patterns": "carve_pattern construct_pattern",
    "global_search": "pbil random_search",
    "polynomial": ("Polynomial find_interpolator polynomial_network relu_fit solution_counts"),
    "basins": "BasinModel volume_law",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """A function of this package, at its first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
