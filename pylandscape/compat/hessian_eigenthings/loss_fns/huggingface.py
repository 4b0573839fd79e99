"""Losses of models in the style of transformers, whose batches are dicts with ``labels``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

Batch = dict[str, Any]


def shifted_cross_entropy(logits: Tensor, tokens: Tensor, ignore_index: int = -100) -> Tensor:
    """Cross-entropy of every token given those before it."""
    ahead = logits[..., :-1, :].flatten(0, -2)
    return F.cross_entropy(ahead, tokens[..., 1:].flatten(), ignore_index=ignore_index)


def hf_lm_loss() -> Callable[[nn.Module, Batch], Tensor]:
    """The loss that the model computes itself from the batch's labels."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        found: Tensor = model(**batch).loss
        return found

    return loss


def hf_seq2seq_loss() -> Callable[[nn.Module, Batch], Tensor]:
    """`hf_lm_loss` by the name for encoder-decoders."""
    return hf_lm_loss()


def hf_lm_forward() -> Callable[[nn.Module, Batch], Tensor]:
    """The logits, without the labels' loss."""

    def forward(model: nn.Module, batch: Batch) -> Tensor:
        found: Tensor = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        return found

    return forward


def hf_lm_loss_of_output() -> Callable[[Tensor, Batch], Tensor]:
    """The shifted cross-entropy of logits and labels."""
    return lambda logits, batch: shifted_cross_entropy(logits, batch["labels"])
