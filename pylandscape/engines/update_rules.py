"""One step of each optimiser on a flat vector, as torch.optim computes it on tensors.

Sources: Duchi et al. 2011 (Adagrad), Hinton's lecture 6e (RMSprop), Zeiler 2012 (Adadelta), Kingma
and Ba 2015 (Adam), Loshchilov and Hutter 2019 (AdamW).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .contract import Rule

_TORCHS = 1e-6  # added to the norm, as torch.nn.utils.clip_grad_norm_ does


def apply(
    rule: Rule, theta: Tensor, gradient: Tensor, moments: Sequence[Tensor], step: int, lr: float
) -> None:
    """theta (n,) and its moments (n,) after one step, in place. Without ``clip``, any shape.

    Args:
        gradient: (n,), which may be overwritten.
        moments: the rule's ``slots``.
        step: 1 for the first.
    """
    g = gradient
    if rule.clip is not None:
        g = g * (rule.clip / (torch.linalg.vector_norm(g) + _TORCHS)).clamp(max=1.0)
    if rule.weight_decay and (rule.decoupled or rule.name == "adamw"):
        theta.mul_(1.0 - lr * rule.weight_decay)
    elif rule.weight_decay:
        g = g.add(theta, alpha=rule.weight_decay)
    _STEPS[rule.name](rule, theta, g, moments, step, lr)


def _sgd(
    rule: Rule, theta: Tensor, g: Tensor, moments: Sequence[Tensor], step: int, lr: float
) -> None:
    if rule.momentum:
        (momentum,) = moments
        if step == 1 and not rule.from_zero:
            momentum.copy_(g)
        else:
            momentum.mul_(rule.momentum).add_(g, alpha=1.0 - rule.dampening)
        g = g.add(momentum, alpha=rule.momentum) if rule.nesterov else momentum
    theta.add_(g, alpha=-lr)


def _adagrad(
    rule: Rule, theta: Tensor, g: Tensor, moments: Sequence[Tensor], step: int, lr: float
) -> None:
    (total,) = moments
    total.addcmul_(g, g)
    theta.addcdiv_(g, _root(rule, total), value=-lr / (1.0 + (step - 1) * rule.lr_decay))


def _rmsprop(
    rule: Rule, theta: Tensor, g: Tensor, moments: Sequence[Tensor], step: int, lr: float
) -> None:
    square = moments[0]
    square.mul_(rule.alpha).addcmul_(g, g, value=1.0 - rule.alpha)
    if not rule.momentum:
        theta.addcdiv_(g, _root(rule, square), value=-lr)
        return
    momentum = moments[1]
    momentum.mul_(rule.momentum).addcdiv_(g, _root(rule, square))
    theta.add_(momentum, alpha=-lr)


def _adadelta(
    rule: Rule, theta: Tensor, g: Tensor, moments: Sequence[Tensor], step: int, lr: float
) -> None:
    square, update = moments
    square.mul_(rule.rho).addcmul_(g, g, value=1.0 - rule.rho)
    change = (update + rule.eps).sqrt_().div_((square + rule.eps).sqrt_()).mul_(g)
    update.mul_(rule.rho).addcmul_(change, change, value=1.0 - rule.rho)
    theta.add_(change, alpha=-lr)


def _adam(
    rule: Rule, theta: Tensor, g: Tensor, moments: Sequence[Tensor], step: int, lr: float
) -> None:
    mean, square = moments
    first, second = rule.betas
    mean.lerp_(g, 1.0 - first)
    square.mul_(second).addcmul_(g, g, value=1.0 - second)
    scale = (1.0 - second**step) ** 0.5
    if rule.eps_inside:
        root = (square + rule.eps).sqrt_().div_(scale)
    else:
        root = (square.sqrt() / scale).add_(rule.eps)
    theta.addcdiv_(mean, root, value=-lr / (1.0 - first**step))


def _root(rule: Rule, square: Tensor) -> Tensor:
    return (square + rule.eps).sqrt_() if rule.eps_inside else square.sqrt().add_(rule.eps)


_STEPS = {
    "sgd": _sgd,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "adadelta": _adadelta,
    "adam": _adam,
    "adamw": _adam,
}
