"""Models moved a little, layer by layer, as *Theory of deep learning II* does it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InvalidArgument


def perturbed(
    state: Mapping[str, Tensor], factor: float, seed: int, of: str = "deviation"
) -> dict[str, Tensor]:
    """A state dict whose weights have Gaussian noise added.

    Args:
        state: parameters and running statistics by name; what is no weight or bias stays.
        factor: the noise's deviation, as a share of S: of each tensor the standard deviation of its
            elements ("deviation"), or their mean size ("size", for the paper's small noise).
        seed: of the noise.

    Raises:
        InvalidArgument: another ``of``.
    """
    if of not in ("deviation", "size"):
        raise InvalidArgument(f"of: expected 'deviation' or 'size', got {of!r}")
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in state.items():
        if name.rpartition(".")[2] in ("weight", "bias") and value.numel() > 1:
            whole = value.double()
            scale = whole.std() if of == "deviation" else whole.abs().mean()
            noise = torch.randn(value.shape, generator=draw, dtype=torch.float64)
            value = (whole + factor * scale * noise).to(value.dtype)
        found[name] = value
    return found


def average(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict half-way between two."""
    return {name: (a[name] + b[name]) / 2 if a[name].is_floating_point() else a[name] for name in a}
