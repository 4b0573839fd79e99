"""Which parameters take part, and flat vectors of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ...errors import InvalidArgument

ParamFilter = Callable[[str, nn.Parameter], bool]


def select_parameters(
    model: nn.Module, param_filter: ParamFilter | None = None
) -> dict[str, nn.Parameter]:
    """The parameters that require gradients and pass the filter, in `named_parameters` order.

    Raises:
        InvalidArgument: there are none.
    """
    found = {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad and (param_filter is None or param_filter(name, p))
    }
    if not found:
        raise InvalidArgument(
            "param_filter: expected at least one parameter that requires gradients, got none"
        )
    return found


def match_names(*patterns: str) -> ParamFilter:
    """A filter: names that match one of the shell-style patterns."""
    return lambda name, _: any(fnmatchcase(name, pattern) for pattern in patterns)


def match_regex(*patterns: str) -> ParamFilter:
    """A filter: names in which one of the regular expressions is found."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda name, _: any(pattern.search(name) for pattern in compiled)


def total_size(params: Mapping[str, Tensor] | Iterable[Tensor]) -> int:
    """How many numbers there are."""
    return sum(p.numel() for p in (params.values() if isinstance(params, Mapping) else params))


def params_to_vector(params: Mapping[str, Tensor]) -> Tensor:
    """All tensors as one vector, in the mapping's order."""
    return torch.cat([p.reshape(-1) for p in params.values()])


def vector_to_params(vec: Tensor, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vector as tensors of the reference's names and shapes."""
    if vec.shape != (total_size(reference),):
        raise InvalidArgument(
            f"vec: expected shape ({total_size(reference)},), got {tuple(vec.shape)}"
        )
    parts = vec.split([p.numel() for p in reference.values()])
    return {
        name: part.reshape(p.shape)
        for (name, p), part in zip(reference.items(), parts, strict=True)
    }
