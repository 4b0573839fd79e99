"""Arithmetic on lists of tensors, by the original's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def group_product(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """The inner product of two lists of tensors."""
    return torch.stack([(x * y).sum() for x, y in zip(xs, ys, strict=True)]).sum()


def group_add(params: list[Tensor], update: Sequence[Tensor], alpha: Any = 1) -> list[Tensor]:
    """params + alpha update, in place."""
    with torch.no_grad():
        for p, u in zip(params, update, strict=True):
            p.add_(u * alpha)
    return params


def normalization(v: Sequence[Tensor]) -> list[Tensor]:
    """v / ||v||; zeros stay zeros. (The original divides by ||v|| + 1e-6.)"""
    norm = float(group_product(v, v)) ** 0.5
    return [part / norm if norm else part.clone() for part in v]


def orthnormal(w: list[Tensor], v_list: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """w without its components along the orthonormal v_list, normalised; w is overwritten."""
    for v in v_list:
        w = group_add(w, v, alpha=-group_product(w, v))
    return normalization(w)


def get_params_grad(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that require gradients, and copies of their ``.grad`` (zeros for none)."""
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    return params, [torch.zeros_like(p) if p.grad is None else p.grad + 0.0 for p in params]


def hessian_vector_product(
    gradsH: Sequence[Tensor],  # the original's name
    params: Sequence[Tensor],
    v: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """H v from gradients that have a graph; zero for parameters that these do not depend on."""
    live = [(g, part) for g, part in zip(gradsH, v, strict=True) if g.requires_grad]
    found = torch.autograd.grad(
        [g for g, _ in live], list(params), [part for _, part in live],
        retain_graph=True, allow_unused=True,
    )  # fmt: skip
    return tuple(
        torch.zeros_like(p) if h is None else h for h, p in zip(found, params, strict=True)
    )
