"""How alike models are as functions: functional distance and agreement on the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import check_landscape
from ..errors import InvalidArgument
from ..results.similarity import Agreement, FunctionalDistance
from ..theta.checkpoints import MODELS
from .sources import Array

if TYPE_CHECKING:
    from ..landscape import Landscape

BLOCK_BYTES = 64 << 20  # of all models' answers that are compared at once


def functional_distance(land: Landscape, a: Any, b: Any) -> FunctionalDistance:
    """The functional distance of two points (models, state dicts, paths of checkpoints, vectors),
    and their label disagreement.

    Raises:
        InvalidArgument: an objective, which has no outputs; points of another layout.
    """
    check_landscape(land, "functional_distance")
    (first, target), (second, _) = _outputs(land, a), _outputs(land, b)
    return compare(land, first, second, target)


def compare(land: Landscape, first: Tensor, second: Tensor, target: Tensor) -> FunctionalDistance:
    """The same from the outputs of both over all data, and the targets."""
    distances, disagreements = compare_all(land, [first, second], target)
    distance = float(distances[0, 1])
    return FunctionalDistance(distance, distance**2, float(disagreements[0, 1]))


def compare_all(land: Landscape, outputs: Sequence[Tensor], target: Tensor) -> tuple[Array, Array]:
    """Functional distances and shares of disagreement (P, P) of all pairs of outputs over all data;
    the answers of each are made once, block of samples by block."""
    count = len(outputs)
    squares, differ = np.zeros((2, count, count))
    seen, compared = 0, 0
    width = 8 * count * max(1, outputs[0][:1].numel())
    rows = max(1, BLOCK_BYTES // width)
    for first in range(0, len(outputs[0]), rows):
        block = torch.stack([x[first : first + rows] for x in outputs])
        wanted = target[first : first + rows]
        answers, labels = _answers(land, block), None
        if _classes(land):
            labels = _labels(land, block).reshape(count, -1)
            if not wanted.is_floating_point():  # ignored tokens do not count
                counts = wanted.reshape(-1) != getattr(land.loss_spec, "ignore_index", -100)
                if not bool(counts.all()):
                    answers, labels = answers[:, counts], labels[:, counts]
            compared += labels.shape[1]
        seen += answers.shape[1]
        flat = answers.reshape(count, -1).numpy()
        for i in range(1, count):
            apart = flat[:i] - flat[i]
            squares[i, :i] += np.einsum("pk,pk->p", apart, apart)
            if labels is not None:
                differ[i, :i] += (labels[:i] != labels[i]).sum(dim=1).numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        distances = np.sqrt((squares + squares.T) / np.float64(seen))
        disagreements = (differ + differ.T) / np.float64(compared)
    return distances, disagreements if _classes(land) else np.full((count, count), np.nan)


def agreement(land: Landscape, models: Sequence[Any]) -> Agreement:
    """Which samples the models get right together (Zhang et al. 2018, figures 23, 29 and 36).

    Args:
        land: whose data are asked; its loss must be one of classes.
        models: P points: models, state dicts, paths of checkpoints or vectors; a Trajectory; or
            several, such as `Runs`, which stand for their ends.

    Raises:
        InvalidArgument: no models, a loss without classes, class probabilities as targets.
    """
    check_landscape(land, "agreement")
    if isinstance(models, MODELS):
        raise InvalidArgument(
            f"models: expected several in a sequence, got one ({type(models).__name__})"
        )
    if len(models) == 0:
        raise InvalidArgument("models: expected at least one, got none")
    if not _classes(land):
        raise InvalidArgument(
            f"land: expected a loss of classes, got {land.loss_spec.name!r}, where no answer is "
            "right or wrong"
        )
    rows, confusions = [], []
    for model in models:
        outputs, target = _outputs(land, model[-1] if hasattr(model, "blocks") else model)
        if target.is_floating_point() and land.loss_spec.name != "bce_with_logits":
            raise InvalidArgument("land: expected class indices as targets, got probabilities")
        if target.is_floating_point() and not bool(((target == 0) | (target == 1)).all()):
            raise InvalidArgument("land: expected targets 0 or 1, got probabilities")
        answer, wanted = _labels(land, outputs[None]).reshape(-1), target.reshape(-1).long()
        counts = wanted != getattr(land.loss_spec, "ignore_index", -100)
        answer, wanted = answer[counts], wanted[counts]
        rows.append((answer == wanted).numpy())
        binary = land.loss_spec.name == "bce_with_logits"
        classes = 2 if binary else int(outputs.shape[1])
        flat = torch.bincount(wanted * classes + answer, minlength=classes**2)
        confusions.append(flat.reshape(classes, classes).numpy())
    right = np.stack(rows).astype(np.float64)
    return Agreement(_shares(right), _shares(1.0 - right), right.mean(axis=1), np.stack(confusions))


def _shares(event: Array) -> Array:
    """(P, P) share of the samples with event i on which event j is, too."""
    both, own = event @ event.T, event.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(own[:, None] > 0, both / own[:, None], np.nan)


def outputs_at(land: Landscape, points: Tensor) -> list[tuple[Tensor, Tensor]] | None:
    """Outputs and targets over all data at each of the points (P, n); None for an objective, which
    has none."""
    if not hasattr(land.loss_spec, "reduction") and hasattr(land.loss_spec, "weights"):
        return None
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(outputs: Tensor, target: Tensor) -> float:
        kept.append((outputs.detach().cpu().clone(), target.detach().cpu()))
        return 0.0

    land.evaluate(np.eye(len(points)), points, metrics=(keep,), theta=torch.zeros_like(points[0]))
    return kept


def _outputs(land: Landscape, point: Any) -> tuple[Tensor, Tensor]:
    """The model's outputs and targets over all data at a point, on the CPU."""
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(outputs: Tensor, target: Tensor) -> float:
        kept.append((outputs.detach().cpu().clone(), target.detach().cpu()))
        return 0.0

    land.evaluate([[0.0]], torch.zeros(1, land.n_params), metrics=(keep,), theta=point)
    return kept[0]


def _classes(land: Landscape) -> bool:
    return land.loss_spec.name in ("cross_entropy", "nll", "bce_with_logits")


def _answers(land: Landscape, outputs: Tensor) -> Tensor:
    """Of outputs (P, N, ...) of P models, float64: probabilities (P, N, C), of tokens one row each;
    the outputs of other losses (P, N, all)."""
    x = outputs.double()
    if land.loss_spec.name == "bce_with_logits":
        x = x.sigmoid()
    elif land.loss_spec.name in ("cross_entropy", "nll"):
        x = x.softmax(dim=2) if land.loss_spec.name == "cross_entropy" else x.exp()
        return x.movedim(2, -1).reshape(len(x), -1, x.shape[2])
    return x.reshape(*x.shape[:2], -1)


def _labels(land: Landscape, outputs: Tensor) -> Tensor:
    """Of outputs (P, N, ...) of P models."""
    if land.loss_spec.name == "bce_with_logits":
        return (outputs > 0).long()
    return outputs.argmax(dim=2)
