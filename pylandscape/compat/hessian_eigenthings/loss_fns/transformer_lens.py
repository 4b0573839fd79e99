"""Losses of models in the style of TransformerLens: batches of tokens, or dicts with ``tokens``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .huggingface import shifted_cross_entropy


def _tokens(batch: Any) -> Tensor:
    found: Tensor = batch["tokens"] if isinstance(batch, dict) else batch
    return found


def _returning(kind: str) -> Callable[[nn.Module, Any], Tensor]:
    def run(model: nn.Module, batch: Any) -> Tensor:
        found: Tensor = model(_tokens(batch), return_type=kind)
        return found

    return run


def tlens_loss() -> Callable[[nn.Module, Any], Tensor]:
    """The loss that the model computes itself."""
    return _returning("loss")


def tlens_forward() -> Callable[[nn.Module, Any], Tensor]:
    """The logits."""
    return _returning("logits")


def tlens_loss_of_output() -> Callable[[Tensor, Any], Tensor]:
    """The shifted cross-entropy of logits and tokens."""
    return lambda logits, batch: shifted_cross_entropy(logits, _tokens(batch))
