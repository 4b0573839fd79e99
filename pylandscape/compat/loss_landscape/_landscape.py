"""The landscape of a network as the original describes it: lists of weights or states, loaders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...engines.forward_pass import eval_mode
from ...errors import InvalidArgument, LayoutMismatch
from ...landscape import Landscape
from ...theta.directions import Direction
from ...theta.losses import KnownLoss, resolve_loss
from ._accuracy import accuracy, is_classes, one_hot

CLASSIFIES = ("cross_entropy", "nll", "bce_with_logits")


class Asked:
    """L and accuracy along directions of weights or states.

    Args:
        net: evaluated in eval mode; never changed.
        loss: a known name, a torch.nn loss or a function. "mse" of class numbers compares
            softmax(outputs) with one-hot targets.
        data: a loader, batches or (x, y).
        states: directions and centre are in the order of the state_dict: the running statistics
            of batch norm move.
        device: default the network's.
    """

    def __init__(
        self, net: nn.Module, loss: Any, data: Any, states: bool, device: str | None = None
    ) -> None:
        spec, module, self._prefix = resolve_loss(loss), net, ""
        if isinstance(spec, KnownLoss) and spec.kind == "mse":
            data = _batches(data)
            if all(is_classes(target) for _, target in data):
                classes = _classes(net, data[0][0])
                data = [(x, one_hot(target, classes)) for x, target in data]
                module, self._prefix = nn.Sequential(net, nn.Softmax(dim=1)), "0."
        bn = "interpolate" if states else "eval"
        self.land = Landscape(module, spec, data, bn=bn, device=device)
        self._names = list(net.state_dict()) if states else None
        classifies = isinstance(spec, KnownLoss) and spec.kind in CLASSIFIES
        self.metrics: tuple[Any, ...] = ("loss", "accuracy" if classifies else accuracy)

    def point(self, values: Sequence[Tensor] | Mapping[str, Tensor]) -> Any:
        """The centre, as the landscape takes it: of weights in order, or of a state_dict."""
        if isinstance(values, Mapping):
            return {self._prefix + name: value for name, value in values.items()}
        return self._vector(values, "w")

    def direction(self, parts: Sequence[Any], name: str) -> Direction:
        """A direction of a file, as `net_plotter.load_directions` gives it.

        Raises:
            LayoutMismatch: not as many tensors, or other shapes.
            InvalidArgument: it moves buffers that are no statistics of batch norm.
        """
        info = {"kind": "given"}
        if self._names is None:
            return Direction(self._vector(parts, name), info)
        if len(parts) != len(self._names):
            raise LayoutMismatch(
                f"{name}: expected {len(self._names)} tensors, as the state_dict has, got "
                f"{len(parts)}"
            )
        land = self.land
        named = {
            self._prefix + key: torch.as_tensor(np.asarray(part))
            for key, part in zip(self._names, parts, strict=True)
        }
        for key, part in named.items():
            counter = key.endswith("num_batches_tracked")
            if key not in land.moved.aliases and not counter and bool(part.any()):
                raise InvalidArgument(
                    f"{name}: expected parameters and running statistics to move, but {key!r} does"
                )
        whole = land.moved.vector(named, name, land.dtype, land.device)
        n = land.n_params
        return Direction(whole[:n], info, whole[n:] if land.moved.n > n else None)

    def _vector(self, parts: Iterable[Any], name: str) -> Tensor:
        land, given = self.land, [torch.as_tensor(part).detach() for part in parts]
        shapes = [tuple(part.shape) for part in given]
        wanted = [entry.shape for entry in land.layout.entries]
        if shapes != wanted:
            raise LayoutMismatch(f"{name}: expected tensors of shapes {wanted}, got {shapes}")
        return torch.cat([part.reshape(-1).to(land.theta) for part in given])


def _batches(data: Any) -> list[Any]:
    pair = isinstance(data, tuple | list) and len(data) == 2
    if pair and all(isinstance(part, Tensor | np.ndarray) for part in data):
        return [tuple(torch.as_tensor(part) for part in data)]
    batches = list(data)
    if not batches or any(not isinstance(b, tuple | list) or len(b) != 2 for b in batches):
        raise InvalidArgument("data: expected batches (inputs, target)")
    return batches


def _classes(net: nn.Module, inputs: Any) -> int:
    """How many outputs the network has."""
    where = next((p.device for p in net.parameters()), torch.device("cpu"))
    with eval_mode(net), torch.no_grad():
        return int(net(inputs[:1].to(where)).shape[1])
