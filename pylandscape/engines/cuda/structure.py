"""What of a program does not depend on theta: which slots move, who reads them."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .program import TorchProgram

if TYPE_CHECKING:
    from .op import Op
    from .replays import Recorder


def inverse_of(index: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(start (width + 1,), list) int32: where index (count,) is 0, 1 ..., in order."""
    order = torch.argsort(index, stable=True)[int((index < 0).sum()) :]
    counts = torch.bincount(index[index >= 0], minlength=width)
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return start.to(torch.int32), order.to(torch.int32)


class Loaded(Protocol):
    """What derivatives ask of an engine: its program, with data, targets and constants there."""

    program: Any  # core.Program
    kernels: Any
    device: torch.device
    dtype: torch.dtype
    constants: Tensor
    x: Tensor  # (1, samples, features)
    targets: Tensor  # (rows, samples)
    loss_plan: Tensor
    loss_weights: Tensor
    no_derivatives: str | None
    recorder: Callable[[], Recorder | None]


class Structure:
    """What of a program does not depend on theta: which slots move, who reads them.

    ``known``: the kinds of op that have derivatives; ``refusal`` says what has none.
    """

    def __init__(self, engine: Loaded, known: Container[str]) -> None:
        self.program, self.kernels = engine.program, engine.kernels
        self.device, self.dtype = engine.device, engine.dtype
        self.torch_program = TorchProgram(self.program, self.kernels, self.device, fused=False)
        self.ops = self.torch_program.ops
        self.output = self.torch_program.output
        self.moves: set[int] = set()
        for op in self.ops:
            own = any(at >= 0 for at, _ in op.uses())
            if own or any(x in self.moves for x in op.inputs):
                self.moves.add(op.output)
        self.producer = {op.output: i for i, op in enumerate(self.ops)}
        readers = [x for op in self.ops for x in op.inputs] + [self.output]
        self.alone = {slot for slot in readers if readers.count(slot) == 1}
        # By op, the unary op that alone reads what it gives.
        self.followers = [self._follower(i) for i in range(len(self.ops))]
        self.none = torch.empty(0, dtype=self.dtype, device=self.device)
        self._tables: dict[tuple[int, str], tuple[Tensor, ...]] = {}
        unknown = [op.kind for op in self.moving() if op.kind not in known]
        self.refusal = f"{unknown[0]} has no derivative on CUDA" if unknown else None
        if self.program.mixes:
            self.refusal = "derivatives of a batch's own statistics"

    def moving(self) -> list[Op]:
        return [op for op in self.ops if op.output in self.moves]

    def features(self, slot: int) -> int:
        return int(self.program.features(slot))

    def _follower(self, i: int) -> int | None:
        slot = self.ops[i].output
        if slot not in self.alone or slot == self.output:
            return None
        (reader,) = [j for j, op in enumerate(self.ops) if slot in op.inputs]
        return reader if self.ops[reader].kind == "unary" else None

    def list_of(self, i: int, name: str) -> Tensor:
        """A list of op i on the device, int64: `TorchProgram._index`."""
        return self.torch_program._index(i, name)

    def inverse(self, i: int, name: str, width: int) -> tuple[Tensor, Tensor]:
        """(start, list): which elements of a list of op i are 0, 1 ... width - 1, as
        `scatter_sums` wants them."""
        if (i, name) not in self._tables:
            found = inverse_of(self.list_of(i, name).cpu(), width)
            self._tables[i, name] = tuple(t.to(self.device) for t in found)
        start, listed = self._tables[i, name]
        return start, listed

    def windows(self, i: int) -> Tensor:
        """Which window each element of a pool's list belongs to."""
        if (i, "windows") not in self._tables:
            bounds = torch.tensor(self.ops[i].bounds)
            found = torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff())
            self._tables[i, "windows"] = (found.to(self.device, torch.int32),)
        return self._tables[i, "windows"][0]
