"""What the stand-ins for PyHessian and hessian-eigenthings share: the landscape of a live model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..landscape import Landscape
from ..results.eigen_pairs import EigenPairs
from ._options import version_of
from ._report import report

VERSIONS = {"pyhessian": ("0.1",), "hessian_eigenthings": ("1.0.0a5", "0.0.2")}


class ConvergenceWarning(UserWarning):
    """Eigenvalues whose residual is above the tolerance that was asked for."""


class LiveLandscape:
    """The landscape of a model as it is now: built when it is needed, again when it has changed.

    The peers evaluate the model itself at every product, so that it may be trained in between; a
    `Landscape` is a copy.
    """

    def __init__(self, model: nn.Module, build: Callable[[], Landscape]) -> None:
        self._model, self._build = model, build
        self._stamp: Any = None
        self._land: Landscape | None = None

    def get(self) -> Landscape:
        tensors = (*self._model.parameters(), *self._model.buffers())
        stamp = [(t.data_ptr(), t._version) for t in tensors]
        if self._land is None or stamp != self._stamp:
            self._land, self._stamp = self._build(), stamp
        return self._land


def literal(names: Sequence[str]) -> list[str]:
    """Patterns that match these names alone."""
    return ["".join(f"[{c}]" if c in "*?[" else c for c in name) for name in names]


def chosen_device(asked: bool, option: str) -> torch.device:
    """CUDA if asked for and there; else the CPU, with a warning that says why."""
    if not asked:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    warnings.warn(
        f"{option}=True, but this torch ({torch.__version__}) sees no CUDA device: the CPU is "
        f"used; {option}=False says so without a warning",
        UserWarning,
        stacklevel=4,
    )
    return torch.device("cpu")


def count(name: str, land: Landscape, products: int) -> None:
    """Products with the landscape's matrix, into the report."""
    told = land.engine_report()
    report.add(name, told.engine, products, told.reason)


def drawn_seed() -> int:
    """A seed from torch's global generator: ``torch.manual_seed`` decides, as in the peers."""
    return int(torch.randint(2**62, (1,)))


def warn_of_residuals(name: str, pairs: EigenPairs, tol: float) -> None:
    """Names every eigenvalue that has not converged, with its residual."""
    if pairs.converged.all():
        return
    found = zip(pairs.values, pairs.residuals, pairs.converged, strict=True)
    listed = ", ".join(f"{v:.6g} (residual {r:.2g})" for v, r, good in found if not good)
    warnings.warn(
        f"{name}: residuals above {tol:g} of the eigenvalue after {pairs.products} products: "
        f"{listed}; allow more products",
        ConvergenceWarning,
        stacklevel=3,
    )


def split_like(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector as tensors with the parameters' shapes, dtypes and devices."""
    parts = vector.split([p.numel() for p in parameters])
    return [
        part.view(p.shape).to(p.device, p.dtype) for part, p in zip(parts, parameters, strict=True)
    ]


def version(peer: str, given: str | None, own: Sequence[str]) -> str | None:
    """``given``, or what `patched` chose for the peer if that is one of these versions."""
    if given is not None:
        return version_of(peer, given, own)
    chosen = version_of(peer, None, VERSIONS[peer])
    return chosen if chosen in own else None
