"""Whether a loss of the user's own has the numbers of one that is compiled, for a hint.

Found by one comparison on a few samples at moved parameters: a hint, nothing more is built on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..theta.data import Batch
from ..theta.losses import NAMES, FreeLoss, KnownLoss, Objective, own_loss
from .eager import TorchEngine
from .forward_pass import call_model

_FEW = 256  # samples
_TOLERANCE = 1e-5  # relative; of losses computed in float32


def hint(eager: TorchEngine) -> str | None:
    """What to write for the compiled engine where the loss or objective is a known one; else None.

    The model itself is run like the landscape's, in a session, and left as it was.
    """
    spec = eager.loss
    if isinstance(spec, KnownLoss) or eager.needs_grad or getattr(spec, "fn", None) is own_loss:
        return None
    batch = eager.batches[0].first(_FEW)
    try:
        with eager.session(), eager.grad_mode():
            eager.move_near()
            own = batch.fresh()
            output = eager.outputs(own)
            share, weight = eager.pass_.weighed(output, own, 0)
            value = float(share) / weight
            for inputs, target, how in _pairs(batch):
                eager.move_near()
                try:
                    outputs = call_model(eager.model, inputs)
                except Exception:  # they are not its inputs
                    continue
                found = _known(value, outputs, target, len(eager.batches) == 1)
                if found is not None:
                    return _sentence(spec, found, how)
    except Exception:  # the loss takes no part of a batch
        return None
    return None


def _sentence(spec: FreeLoss | Objective, found: str, how: str) -> str:
    if isinstance(spec, Objective):
        return (
            f"the objective {spec.name!r} has the numbers of {found} on the samples tried: pass "
            f"that as loss= and data {how} instead of objective= and it can be compiled"
        )
    return (
        f"the loss {spec.name!r} has the numbers of {found} on the samples tried: pass that and it "
        "can be compiled"
    )


def _pairs(batch: Batch) -> Iterator[tuple[Any, Tensor, str]]:
    """(inputs, target, how to write them) that may be in a batch."""
    raw = batch.raw
    if batch.inputs is not None and isinstance(batch.target, Tensor):
        yield batch.inputs, batch.target, "of pairs (x, y)"
    elif isinstance(raw, Mapping) and len(raw) == 2:
        (a, x), (b, y) = raw.items()
        for inputs, target, how in ((x, y, (a, b)), (y, x, (b, a))):
            if isinstance(inputs, Tensor) and isinstance(target, Tensor):
                yield inputs, target, f"of pairs (batch[{how[0]!r}], batch[{how[1]!r}])"
    elif isinstance(raw, tuple | list) and len(raw) == 1 and isinstance(raw[0], Tensor):
        yield raw[0], raw[0], "as they are"
    elif isinstance(raw, Tensor):
        yield raw, raw, "as they are"


def _known(value: float, outputs: Any, target: Tensor, single: bool) -> str | None:
    """The known loss that has this value, as it is written; sums only of a single batch."""
    if not isinstance(outputs, Tensor) or not math.isfinite(value) or value == 0:
        return None
    for kind in NAMES:
        loss = KnownLoss(kind)
        try:
            total = float(loss.total(outputs, target))
            mean = total / loss.denominator(target, tuple(outputs.shape))
        except Exception:  # targets of another kind
            continue
        if math.isclose(mean, value, rel_tol=_TOLERANCE):
            return f"loss={kind!r}"
        if single and math.isclose(total, value, rel_tol=_TOLERANCE):
            return f"the torch.nn loss of {kind!r} with reduction='sum'"
    return None
