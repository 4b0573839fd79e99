"""The trace by random signs: Hutchinson (1990), Hutch++ (Meyer, Musco, Musco, Woodruff 2021).

The random numbers are the original's for the same seed, and so are the samples. For the most
accurate estimate of a decaying spectrum see `pylandscape.trace` (XTrace).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ....curvature.symmetric_operator import SymmetricOperator
from ....errors import InvalidArgument
from ..linalg.backend import check_backend
from ._common import check_least, driven, generator, note, signs
from .lanczos import _place

Distribution = Literal["rademacher", "gaussian"]
Method = Literal["hutchinson", "hutch++"]

BLOCK = 16  # vectors multiplied at once


@dataclass(frozen=True)
class TraceResult:
    """An estimate of tr A, its standard error (NaN for one sample), and the samples (m,)."""

    estimate: float
    stderr: float
    samples: Tensor


def trace(
    operator: Any,
    *,
    num_matvecs: int = 100,
    method: Method = "hutch++",
    distribution: Distribution = "rademacher",
    seed: int | None = None,
    backend: Any = None,
) -> TraceResult:
    """tr A from num_matvecs products, by `hutchinson` or `hutch_plus_plus`."""
    if method == "hutchinson":
        return hutchinson(
            operator, num_samples=num_matvecs, distribution=distribution, seed=seed,
            backend=backend,
        )  # fmt: skip
    if method != "hutch++":
        raise InvalidArgument(f"method: expected 'hutchinson' or 'hutch++', got {method!r}")
    return hutch_plus_plus(operator, num_matvecs=num_matvecs, seed=seed, backend=backend)


def hutchinson(
    operator: Any,
    *,
    num_samples: int = 100,
    distribution: Distribution = "rademacher",
    seed: int | None = None,
    backend: Any = None,
) -> TraceResult:
    """The mean of v^T A v over random v."""
    check_backend(backend)
    check_least(num_samples, "num_samples")
    if distribution not in ("rademacher", "gaussian"):
        raise InvalidArgument(
            f"distribution: expected 'rademacher' or 'gaussian', got {distribution!r}"
        )
    op, source = driven(operator), generator(seed)
    samples = []
    for at in range(0, num_samples, BLOCK):
        rows = min(BLOCK, num_samples - at)
        if distribution == "rademacher":
            v = signs(op, rows, source)
        else:
            drawn = [torch.randn(op.n, dtype=op.dtype, generator=source) for _ in range(rows)]
            v = torch.stack(drawn)
        samples.append(op.forms(v).cpu())
    note("hutchinson", operator, op)
    return _result(torch.cat(samples), 0.0, operator, op)


def hutch_plus_plus(
    operator: Any, *, num_matvecs: int = 99, seed: int | None = None, backend: Any = None
) -> TraceResult:
    """Exact on the range of A S for m/3 random vectors S, Hutchinson's on its complement.

    ``samples`` are those of the complement, as in the original.
    """
    check_backend(backend)
    check_least(num_matvecs, "num_matvecs")
    op, source = driven(operator), generator(seed)
    rows = max(1, num_matvecs // 3)
    q = torch.linalg.qr(_multiply(op, signs(op, rows, source)).T).Q
    inside = float((_multiply(op, q.T) * q.T).sum())
    g = signs(op, rows, source).double().cpu()
    g = g - (g @ q) @ q.T
    samples = (_multiply(op, g) * g).sum(1)
    note("hutch_plus_plus", operator, op)
    return _result(samples, inside, operator, op)


def _multiply(op: SymmetricOperator, rows: Tensor) -> Tensor:
    """(k, n) float64."""
    return torch.cat([op(block) for block in rows.split(BLOCK)])


def _result(samples: Tensor, inside: float, operator: Any, op: SymmetricOperator) -> TraceResult:
    count = len(samples)
    error = float(samples.std()) / count**0.5 if count > 1 else float("nan")
    place = _place(operator, op)
    return TraceResult(inside + float(samples.mean()), error, samples.to(place.device, place.dtype))
