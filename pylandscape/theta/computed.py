"""What a landscape's numbers are, where a user may not expect it: one sentence.

"eval mode, dropout off; 21,696 of 28,032 parameters frozen but moving".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .checkpoints import some
from .eval_mode import bare_names
from .losses import KnownLoss

if TYPE_CHECKING:
    from .space import Problem

_STATISTICS = {
    "eval": "batch norm by its running statistics",
    "recompute": "batch norm by statistics of the data, found anew at every point",
    "batch": "batch norm by each batch's own statistics",
    "interpolate": "batch norm by running statistics that move along",
}


def note(model: nn.Module, of: Problem, trained: Mapping[str, nn.Module], draws: bool) -> str:
    """The sentence: modes, frozen parameters that move all the same, how the data were read.

    Args:
        model: the user's own module, which knows what is frozen; ``of`` has a copy of it.
        trained: modules that its code or the loss's runs in train mode all the same, by name.
        draws: whether they draw random numbers.
    """
    mode = ["eval mode"]
    if "" in trained:
        mode = ["train mode, which its own code turns on"]
    elif trained:
        mode = [f"eval mode but for {some(list(trained))}, which its own code puts into train mode"]
    if any(map(_drops, trained.values())):
        mode.append("dropout on")
    elif any(map(_drops, model.modules())):
        mode.append("dropout off")
    if any(isinstance(m, _BatchNorm) for m in trained.values()):
        mode.append("batch norm by each batch's own statistics")
    elif any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules()):
        mode.append(_STATISTICS[of.bn])
    parts = [", ".join(mode)]
    if draws:
        parts.append("the same random numbers at every point")
    if len(of.dataset.batches) > 1 and not isinstance(of.loss_spec, KnownLoss):
        count = len(of.dataset.batches)
        parts.append(f"the values of {count} batches averaged, also where they are sums")
    n = of.layout.n
    moving = {entry.name for entry in of.layout.entries}
    bare = bare_names(model)
    own = {bare[k]: p for k, p in model.named_parameters()}
    frozen = sum(p.numel() for k, p in own.items() if k in moving and not p.requires_grad)
    if frozen:
        parts.append(f"{frozen:,} of {n:,} parameters frozen but moving")
    still = sum(p.numel() for k, p in own.items() if k not in moving)
    if still:
        parts.append(f"{still:,} parameters stay as they are")
    return "; ".join([*parts, *of.dataset.notes])


def _drops(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    share = getattr(module, "dropout", 0.0)  # of recurrent and attention layers
    return isinstance(share, float) and share > 0
