"""Rescaling directions tensor by tensor, in place, sums in double."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...errors import InvalidArgument, LayoutMismatch
from ...theta.directions import NORMALIZATIONS

EPS = 1e-10  # the original's, of filter norms
NORMS = ("filter", "layer", "weight", "dfilter", "dlayer")


@torch.no_grad()
def normalize_direction(direction: Tensor, weights: Tensor, norm: str = "filter") -> None:
    """Rescale a tensor of a direction, in place, by its tensor of weights.

    Args:
        direction: of the shape of ``weights``; floating-point.
        norm: "filter": each filter (row) gets the norm of theirs; "layer": the whole does;
            "weight": each element is multiplied by theirs; "dfilter", "dlayer": norm 1 per filter
            or for the whole; "": nothing. A tensor of at most one dimension is one filter.

    Raises:
        InvalidArgument: another norm; LayoutMismatch for another shape.

    Numerics: ``d |w| / (|d| + 1e-10)``: zero parts give zero, never NaN.
    """
    check_norm(norm)
    if direction.shape != weights.shape:
        raise LayoutMismatch(
            f"direction: expected shape {tuple(weights.shape)}, got {tuple(direction.shape)}"
        )
    if not norm or not direction.numel():
        return
    if norm == "weight":
        direction.mul_(weights)
        return
    rows = direction.shape[0] if "filter" in norm and direction.dim() > 1 else 1
    own = _norms(direction, rows)
    wanted = torch.ones_like(own) if norm.startswith("d") else _norms(weights, rows)
    scale = wanted.to(own) / (own + EPS)
    shape = (rows, *[1] * (direction.dim() - 1)) if direction.dim() else ()
    direction.copy_(direction.double() * scale.reshape(shape))


def check_norm(norm: str, name: str = "norm") -> None:
    """InvalidArgument for what is none of the norms and not ""."""
    if norm and norm not in NORMS:
        assert set(NORMS) <= set(NORMALIZATIONS)
        known = ", ".join(map(repr, NORMS))
        raise InvalidArgument(f"{name}: expected one of {known} or '', got {norm!r}")


def normalize_all(
    direction: Iterable[Tensor],
    weights: Iterable[Tensor],
    norm: str,
    ignore: str,
    as_original: bool,
) -> None:
    """Every tensor of a direction; with ignore="biasbn", those of at most one dimension are 0.

    Without it they are normalised like the others; ``as_original``, they become the weights.
    """
    for d, w in zip(direction, weights, strict=True):
        if d.dim() > 1:
            normalize_direction(d, w, norm)
        elif ignore == "biasbn":
            d.zero_()
        elif as_original:
            d.copy_(w)
        else:
            normalize_direction(d, w, norm)


def _norms(tensor: Tensor, rows: int) -> Tensor:
    """(rows,) float64."""
    return torch.linalg.vector_norm(tensor.detach().double().reshape(rows, -1), dim=1)
