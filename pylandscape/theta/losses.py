"""Losses that both engines know, and how batches of them are combined.

L is the loss of the concatenated data: each known loss is a sum of terms over the data divided by
its own denominator (methods: samples, the classes' weights, targets that are not ignored). Terms
are computed in float64 from the model's outputs, whatever its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidArgument, out_of_memory, wrapping
from .data import untouched_random_state
from .outside import Outside
from .snapshot import Snapshot


@dataclass(frozen=True)
class Objective:
    """``fn(model, batch) -> scalar``; batches are averaged by ``weights`` (one per batch)."""

    fn: Callable[[nn.Module, Any], Tensor]
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        return str(getattr(self.fn, "__name__", type(self.fn).__name__))


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model gives by itself: ``.loss`` or ["loss"] of what it returns.

    A batch that is a dict is passed as ``model(**batch)``, a tuple as ``model(*batch)``, as
    transformers' models take them.
    """
    try:
        if isinstance(batch, Mapping):
            found = model(**batch)
        else:
            found = model(*batch) if isinstance(batch, tuple | list) else model(batch)
    except TypeError as error:
        if isinstance(batch, Mapping) and not any(isinstance(t, Tensor) for t in batch.values()):
            raise  # lists, not tensors
        raise InvalidArgument(
            "loss, objective: expected exactly one of them, or a model that takes a batch as it is "
            f"and returns its own loss; got neither, and {type(model).__name__} says: {error}"
        ) from error
    loss = _part(found, "loss")
    if isinstance(loss, Tensor):
        return loss
    silent = isinstance(batch, Mapping) and "labels" not in batch
    none = "; its loss is None: the batch has no labels" if loss is None or silent else ""
    raise InvalidArgument(
        "loss, objective: expected exactly one of them, or a model that returns its own loss (an "
        f"output with .loss, or a dict with 'loss'), got a {type(found).__name__}{none}"
    )


def _part(output: Any, name: str) -> Any:
    """output.name or output[name]; the word "missing" where there is none."""
    if isinstance(output, Mapping):
        return output.get(name, "missing")
    return getattr(output, name, "missing")


def counted_labels(model: nn.Module, batches: Sequence[Any]) -> tuple[float, ...] | None:
    """What each batch's own loss is a mean over: its labels that are not -100.

    Models of the next token leave out the first label of each sequence. Which of the two it is
    shows in the numbers of one batch; it matters only where batches are padded differently. None
    where batches have no integer ``labels`` of sequences, or their loss is another mean.
    """
    labels: list[Tensor] = []
    for batch in batches:
        y = batch.get("labels") if isinstance(batch, Mapping) else None
        if not isinstance(y, Tensor) or y.dim() < 2 or y.is_floating_point():
            return None
        labels.append(y)
    counts = [float((y != -100).sum()) for y in labels]
    later = [float((y[..., 1:] != -100).sum()) for y in labels]
    ratios = {a / b if b else float("inf") for a, b in zip(counts, later, strict=True)}
    if len(ratios) == 1:
        return tuple(counts)
    i = max(range(len(labels)), key=lambda i: counts[i] - later[i])
    y = labels[i]
    try:
        with torch.no_grad(), untouched_random_state(y.device), Outside([model]).undone():
            found = Snapshot(model).model.eval()(**batches[i])
    except Exception:  # the first run over the data says it better
        return None
    loss, logits = _part(found, "loss"), _part(found, "logits")
    if not isinstance(loss, Tensor) or not isinstance(logits, Tensor):
        return None
    if logits.shape[:-1] != y.shape:
        return None
    for chosen, x, t in ((counts, logits, y), (later, logits[..., :-1, :], y[..., 1:])):
        mean = F.cross_entropy(x.reshape(-1, x.shape[-1]).double(), t.reshape(-1).long())
        if torch.isclose(mean, loss.double(), rtol=1e-2 if x.dtype.itemsize < 4 else 1e-4):
            return tuple(chosen)
    return None


def metric_name(metric: Any) -> str:
    """A metric's key in the results: itself, or the callable's `__name__`.

    Raises:
        InvalidArgument: a callable without one.
    """
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", None)
    if not isinstance(name, str):
        raise InvalidArgument(f"metrics: expected callables with a __name__, got {metric!r}")
    return name


@dataclass(frozen=True)
class KnownLoss:
    """kind: one of `NAMES`; the rest as in torch.nn. ``delta`` is smooth_l1's beta too."""

    kind: str
    reduction: str = "mean"
    weight: Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    pos_weight: Tensor | None = None
    delta: float = 1.0  # huber, smooth_l1
    log_target: bool = False  # kl_div
    log_input: bool = True  # poisson_nll, and the next two
    full: bool = False
    eps: float = 1e-8

    @property
    def name(self) -> str:
        return self.kind

    @property
    def targets(self) -> str:
        """What its targets are: "classes" or "values" of the outputs' shape."""
        return "classes" if self.kind in ("cross_entropy", "nll") else "values"

    @property
    def classifies(self) -> bool:
        """Whether its outputs choose classes: there is an accuracy."""
        return self.kind in WITH_ACCURACY

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers of the kind's own that its value depends on."""
        own = {
            "huber": ("delta",), "smooth_l1": ("delta",), "kl_div": ("log_target",),
            "poisson_nll": ("log_input", "full", "eps"),
        }  # fmt: skip
        return {name: float(getattr(self, name)) for name in own.get(self.kind, ())}

    def total(self, outputs: Tensor, target: Tensor, reduction: str = "sum") -> Tensor:
        """The sum of the terms: a float64 scalar, differentiable in ``outputs``; with "none", the
        terms, as torch shapes them."""
        x = outputs.double()
        weight = None if self.weight is None else self.weight.to(x)
        if self.targets == "classes":
            try:
                return self._of_classes(x, target, weight, reduction)
            except (RuntimeError, ValueError) as error:
                hint = _as_classes(outputs, target)
                if not hint or out_of_memory(error):
                    raise
                raise wrapping(
                    error, f"data: {self.kind} expected other targets: {error}; {hint}"
                ) from error
        if outputs.shape != target.shape:
            raise InvalidArgument(
                f"data: {self.kind} expected targets of the outputs' shape "
                f"{tuple(outputs.shape)}, got {tuple(target.shape)}{_reshaped(outputs, target)}"
            )
        if self.kind == "mse":
            return F.mse_loss(x, target.double(), reduction=reduction)
        if self.kind in _OF_PAIRS:
            return self._of_pairs(x, target.double(), weight, reduction)
        pos_weight = None if self.pos_weight is None else self.pos_weight.to(x)
        return F.binary_cross_entropy_with_logits(
            x, target.double(), weight=weight, pos_weight=pos_weight, reduction=reduction
        )

    def _of_classes(self, x: Tensor, y: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
        if self.kind == "nll":
            return F.nll_loss(
                x, y, weight=weight, ignore_index=self.ignore_index, reduction=reduction
            )
        return F.cross_entropy(
            x,
            y.double() if y.is_floating_point() else y,
            weight=weight,
            ignore_index=self.ignore_index,
            reduction=reduction,
            label_smoothing=self.label_smoothing,
        )

    def _of_pairs(self, x: Tensor, y: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
        if self.kind == "l1":
            return F.l1_loss(x, y, reduction=reduction)
        if self.kind == "smooth_l1":
            return F.smooth_l1_loss(x, y, reduction=reduction, beta=self.delta)
        if self.kind == "huber":
            return F.huber_loss(x, y, reduction=reduction, delta=self.delta)
        if self.kind == "bce":
            return F.binary_cross_entropy(x, y, weight=weight, reduction=reduction)
        if self.kind == "kl_div":
            return F.kl_div(x, y, reduction=reduction, log_target=self.log_target)
        return F.poisson_nll_loss(
            x, y, log_input=self.log_input, full=self.full, eps=self.eps, reduction=reduction
        )

    def sample_totals(self, outputs: Tensor, target: Tensor, samples: int) -> Tensor:
        """(samples,) float64: each one's sum of terms; they add up to `total`."""
        terms = self.total(outputs, target, "none")
        if terms.dim() == 0 or len(terms) % samples:
            raise InvalidArgument(
                f"metrics: errors from the data need outputs with rows for each of the {samples} "
                f"samples, got losses of shape {tuple(terms.shape)}"
            )
        return terms.reshape(samples, -1).sum(1)

    def sample_shares(self, target: Tensor, samples: int) -> Tensor:
        """(samples,) float64: each one's part of `denominator`; under "sum", 1 / samples."""
        even = torch.ones(samples, dtype=torch.float64, device=target.device)
        if self.kind in ("cross_entropy", "nll") and self.reduction != "sum":
            if target.is_floating_point():
                return even * (target.numel() // _classes(tuple(target.shape)) / samples)
            counted = (target != self.ignore_index).double()
            if self.weight is not None:
                own = self.weight.double().to(target.device)
                counted = counted * own[target.clamp(0, len(own) - 1)]
            return counted.reshape(samples, -1).sum(1)
        return even * (self.denominator(target, tuple(target.shape)) / samples)

    def denominator(self, target: Tensor, outputs_shape: tuple[int, ...]) -> float:
        """What the sum is divided by under "mean"; 1 under "sum"."""
        if self.reduction == "sum":
            return 1.0
        if self.kind in ("cross_entropy", "nll"):
            if target.is_floating_point():
                return float(target.numel() // _classes(outputs_shape))
            counted = target[target != self.ignore_index]
            if self.weight is None:
                return float(counted.numel())
            return float(self.weight.double().to(target.device)[counted].sum())
        return float(len(target) if self.reduction == "batchmean" else target.numel())

    def slope_denominator(self, targets: Iterable[Tensor], denominator: float) -> float:
        """What sums of derivatives are divided by: 1 where every target is ignored, for there
        torch's backward pass gives zeros, though its mean is NaN."""
        none = denominator == 0 and self.kind in ("cross_entropy", "nll")
        none = none and all(bool((target == self.ignore_index).all()) for target in targets)
        return 1.0 if none else denominator

    def correct(self, outputs: Tensor, target: Tensor) -> tuple[int, int]:
        """How many targets the outputs hit, and of how many."""
        if not self.classifies:
            raise InvalidArgument(
                f"metrics: 'accuracy' needs a classification loss, got {self.kind}"
            )
        if self.kind in ("bce_with_logits", "bce"):
            above = outputs > (0.5 if self.kind == "bce" else 0)
            return int((above == (target > 0.5)).sum()), target.numel()
        best = outputs.argmax(dim=min(1, outputs.dim() - 1))
        if target.is_floating_point():
            right = best == target.argmax(dim=min(1, target.dim() - 1))
            return int(right.sum()), best.numel()
        counted = target != self.ignore_index
        return int((best == target)[counted].sum()), int(counted.sum())


def _classes(shape: tuple[int, ...]) -> int:
    """How many classes outputs (N, C, ...), or (C,) of a single sample, have."""
    return shape[1] if len(shape) > 1 else shape[0]


def _as_classes(outputs: Tensor, target: Tensor) -> str:
    """What makes targets classes of these outputs, where something simple does; or nothing."""
    if target.shape == outputs.shape and not target.is_floating_point():
        return "target.argmax(1) has the classes of one-hot rows, target.float() probabilities"
    places = (len(outputs), *outputs.shape[2:])
    steps = ""
    if target.dim() == len(places) + 1 and target.shape[1] == 1:
        steps, target = ".squeeze(1)", target.squeeze(1)
    if tuple(target.shape) != places:
        return ""
    if target.is_floating_point():
        steps += ".long()"
    return f"target{steps} has classes" if steps else ""


def _reshaped(outputs: Tensor, target: Tensor) -> str:
    """What makes targets fit that only lack or have a dimension of one, as a sentence's end."""
    if outputs.numel() != target.numel() or len(outputs) != len(target):
        return ""
    return f"; target.reshape({', '.join(map(str, (-1, *outputs.shape[1:])))}) has it"


@dataclass(frozen=True)
class FreeLoss:
    """Any ``fn(outputs, target) -> scalar``; batches are averaged by their size."""

    fn: Callable[[Any, Any], Tensor]
    targets = "any"

    @property
    def name(self) -> str:
        return str(getattr(self.fn, "__name__", type(self.fn).__name__))


_FUNCTIONS: dict[Any, str] = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll",
    F.mse_loss: "mse",
    F.binary_cross_entropy_with_logits: "bce_with_logits",
    F.l1_loss: "l1",
    F.smooth_l1_loss: "smooth_l1",
    F.huber_loss: "huber",
    F.binary_cross_entropy: "bce",
    F.kl_div: "kl_div",
    F.poisson_nll_loss: "poisson_nll",
}
_OF_PAIRS = ("l1", "smooth_l1", "huber", "bce", "kl_div", "poisson_nll")
NAMES = ("cross_entropy", "nll", "mse", "bce_with_logits", *_OF_PAIRS)
WITH_ACCURACY = ("cross_entropy", "nll", "bce_with_logits", "bce")


def resolve_loss(loss: Any) -> KnownLoss | FreeLoss:
    """The loss as one that both engines know, or as a free function. A class of torch.nn stands
    for its instance with default options.

    Accepts the names "cross_entropy", "nll", "mse", "bce_with_logits", "l1", "smooth_l1", "huber",
    "bce", "kl_div", "poisson_nll"; the functions of torch.nn.functional; instances of the classes
    of torch.nn with these losses; any other callable of (outputs, target).
    """
    if isinstance(loss, KnownLoss | FreeLoss):
        return loss
    if isinstance(loss, str):
        if loss not in NAMES:
            raise InvalidArgument(f"loss: expected one of {', '.join(NAMES)}, got {loss!r}")
        return KnownLoss(loss)
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        loss = _instance(loss)
    known = _from_module(loss)
    if known is not None:
        means = ("mean", "batchmean") if known.kind == "kl_div" else ("mean",)
        if known.reduction not in (*means, "sum"):
            raise InvalidArgument(
                f"loss: expected reduction 'mean' or 'sum', got {known.reduction!r}"
            )
        return known
    if not callable(loss):
        raise InvalidArgument(
            f"loss: expected a callable, a torch.nn loss or a name, got {type(loss).__name__}"
        )
    kind = _known_function(loss)
    if kind is not None:
        return KnownLoss(kind)
    if isinstance(loss, partial) and not loss.args and (kind := _known_function(loss.func)):
        try:  # the classes have the functions' keywords
            return resolve_loss(_CLASSES[kind](**loss.keywords))
        except TypeError:
            pass  # such as mse's weight
    return FreeLoss(loss)


def _known_function(loss: Any) -> str | None:
    try:
        return _FUNCTIONS.get(loss)
    except TypeError:  # an unhashable callable
        return None


# torch.nn losses that run as they are, by how near they are to one that is compiled.
_NEAR: dict[str, str] = {
    "GaussianNLLLoss": "not compiled; no compiled loss is near it",
    "MultiLabelSoftMarginLoss": (
        "not compiled: BCEWithLogitsLoss with the same targets is the same function and compiled"
    ),
    "SoftMarginLoss": (
        "not compiled: BCEWithLogitsLoss with targets 0 and 1 for -1 and 1 is the same function "
        "and compiled"
    ),
    "MultiMarginLoss": "not compiled; CrossEntropyLoss takes the same targets and is",
}
_NEAR_FUNCTIONS = {
    "gaussian_nll_loss": "GaussianNLLLoss",
    "multilabel_soft_margin_loss": "MultiLabelSoftMarginLoss",
    "soft_margin_loss": "SoftMarginLoss",
    "multi_margin_loss": "MultiMarginLoss",
}
_CLASSES: dict[str, type[nn.Module]] = {
    "cross_entropy": nn.CrossEntropyLoss, "nll": nn.NLLLoss, "mse": nn.MSELoss,
    "bce_with_logits": nn.BCEWithLogitsLoss, "l1": nn.L1Loss, "smooth_l1": nn.SmoothL1Loss,
    "huber": nn.HuberLoss, "bce": nn.BCELoss, "kl_div": nn.KLDivLoss,
    "poisson_nll": nn.PoissonNLLLoss,
}  # fmt: skip
_KNOWN_MODULES = tuple(_CLASSES.values())


def why_free(loss: Any) -> str:
    """Why a loss or objective runs as Python code, and what near it is compiled."""
    fn, name = getattr(loss, "fn", loss), loss.name
    if fn is own_loss:
        return (
            "the model computes its own loss in Python; loss= with cross_entropy, nll, mse or "
            "bce_with_logits and data (x, y) can be compiled"
        )
    if not isinstance(loss, FreeLoss):
        return (
            f"the objective {name!r} is Python code of your own; "
            "loss= with cross_entropy, nll, mse or bce_with_logits can be compiled"
        )
    if type(fn) in _KNOWN_MODULES:
        return f"the loss {name} has hooks or a forward of its own; without them it is compiled"
    near = _NEAR_FUNCTIONS.get(name, name)
    own = type(fn).__module__ == "torch.nn.modules.loss" or getattr(F, name, None) is fn
    if own:
        return f"the loss {name} is {_NEAR.get(near, 'not compiled')}"
    for kind in _KNOWN_MODULES:
        if isinstance(fn, kind):
            return (
                f"the loss {name!r} is a class of your own, derived from {kind.__name__}, which "
                "would be compiled"
            )
    return (
        f"the loss {name!r} is free Python code; where it is a cross-entropy, nll, mse or "
        "bce-with-logits, pass the torch.nn loss or its name and it can be compiled"
    )


def _instance(kind: type[nn.Module]) -> nn.Module:
    try:
        return kind()
    except Exception as error:
        raise InvalidArgument(
            f"loss: expected an instance, got the class {kind.__name__}, which cannot be made "
            f"without arguments ({type(error).__name__}: {error})"
        ) from error


def _from_module(loss: Any) -> KnownLoss | None:
    if isinstance(loss, nn.Module) and (
        loss._forward_hooks or loss._forward_pre_hooks or loss._backward_hooks
        or loss._backward_pre_hooks or "forward" in loss.__dict__
    ):  # fmt: skip
        return None  # it does not compute what its class does
    if type(loss) is nn.CrossEntropyLoss:
        return KnownLoss(
            "cross_entropy",
            loss.reduction,
            _copy(loss.weight),
            loss.ignore_index,
            loss.label_smoothing,
        )
    if type(loss) is nn.NLLLoss:
        return KnownLoss("nll", loss.reduction, _copy(loss.weight), loss.ignore_index)
    if type(loss) is nn.MSELoss:
        return KnownLoss("mse", loss.reduction)
    if type(loss) is nn.BCEWithLogitsLoss:
        return KnownLoss(
            "bce_with_logits",
            loss.reduction,
            _copy(loss.weight),
            pos_weight=_copy(loss.pos_weight),
        )
    if type(loss) is nn.L1Loss:
        return KnownLoss("l1", loss.reduction)
    if type(loss) is nn.SmoothL1Loss:
        return KnownLoss("smooth_l1", loss.reduction, delta=float(loss.beta))
    if type(loss) is nn.HuberLoss:
        return KnownLoss("huber", loss.reduction, delta=float(loss.delta))
    if type(loss) is nn.BCELoss:
        return KnownLoss("bce", loss.reduction, _copy(loss.weight))
    if type(loss) is nn.KLDivLoss:
        return KnownLoss("kl_div", loss.reduction, log_target=bool(loss.log_target))
    if type(loss) is nn.PoissonNLLLoss:
        return KnownLoss(
            "poisson_nll",
            loss.reduction,
            log_input=bool(loss.log_input),
            full=bool(loss.full),
            eps=float(loss.eps),
        )
    return None


def _copy(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach().clone()


def as_scalar(value: Any, name: str) -> Tensor:
    """A loss value as a scalar tensor; InvalidArgument where it is none."""
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            what = f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else value
            raise InvalidArgument(
                f"{name}: expected a scalar, got a {what}; return the loss alone"
                if value is not None
                else f"{name}: expected a scalar, got None (does the function return its loss?)"
            ) from error
    if value.numel() != 1:
        raise InvalidArgument(
            f"{name}: expected a scalar, got shape {tuple(value.shape)} "
            "(does the loss use reduction='none'?)"
        )
    if value.is_complex():
        raise InvalidArgument(
            f"{name}: expected a real number, got a complex one; take its .real or .abs()"
        )
    return value.reshape(())
