"""The module that a wrapper holds, and eval mode as the user's own ``eval()`` gives it."""

from __future__ import annotations

from torch import nn

from ..errors import InvalidArgument, wrapping
from .held_state import same_bits


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile's wrapper."""
    while (name := _wrapped(model)) is not None:
        model = getattr(model, name)
    return model


def _wrapped(model: nn.Module) -> str | None:
    """The attribute under which a wrapper holds its module; None for others."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    compiled = type(model).__name__ == "OptimizedModule"
    return "_orig_mod" if compiled and hasattr(model, "_orig_mod") else None


def bare_names(model: nn.Module) -> dict[str, str]:
    """The names of parameters and buffers, and what they are without the wrappers in the module."""
    wrappers = {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules(remove_duplicate=False)
        if (name := _wrapped(module)) is not None
    }

    def bare(name: str) -> str:
        parts = name.split(".")
        kept = [p for i, p in enumerate(parts) if ".".join(parts[: i + 1]) not in wrappers]
        return ".".join(kept)

    tensors = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name: bare(name) if wrappers else name for name, _ in tensors}


def has_own_eval(model: nn.Module) -> bool:
    """Whether eval mode is more than flags: a module has a train() or eval() of its own."""
    return any(
        type(m).train is not nn.Module.train
        or type(m).eval is not nn.Module.eval
        or "train" in vars(m)
        or "eval" in vars(m)
        for m in model.modules()
    )


def into_eval(model: nn.Module) -> None:
    """Eval mode as the user's own ``model.eval()`` gives it, which may do more than set flags, or
    leave some on (dropout that samples, norms that adapt); of others, all flags are off.

    Raises:
        InvalidArgument: it raises, or changes parameters, which then are not those of theta.
    """
    if not any(m.training for m in model.modules()):
        return
    if not has_own_eval(model):
        _flags_off(model)
        return
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    try:
        model.eval()
    except NotImplementedError:  # an exported program, whose mode is part of its graph
        _flags_off(model)
    except Exception as error:
        raise wrapping(
            error, f"model: its eval() raised {type(error).__name__}: {error}"
        ) from error
    after = dict(model.named_parameters())
    changed = [n for n, v in before.items() if n not in after or not same_bits(after[n], v)]
    for name in changed:
        if name in after and after[name].shape == before[name].shape:
            after[name].data.copy_(before[name])
    if changed:
        raise InvalidArgument(
            f"model: its own eval() changes the parameter {changed[0]!r} (does it fold weights?); "
            "call model.eval() before, so that theta is what the model then has"
        )


def _flags_off(model: nn.Module) -> None:
    for module in model.modules():
        module.training = False
