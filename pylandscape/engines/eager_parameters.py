"""theta in the torch engine's copy of the module: where it lies, and how a point gets there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._native import ops
from ..theta.layout import ParameterLayout
from ..theta.pieces import Row, Rows, Stored, named_tensors, row_of, spans, write_sum
from ..theta.random_source import STEP, fill
from ..theta.running_statistics import KIND

_SEED = 0  # of `random_step`
_STEP = 0.1  # of each parameter tensor's spread: where the copy is compared with the module
_FLAT = 64 << 20  # bytes of parameters up to which they become views of one tensor


class CopyParameters:
    """The tensors of a model that a point (n,) moves, written in place.

    Args:
        layout: of the parameters (and statistics) that a point moves.
        objects: all that the copy holds, to find what shares their memory.
        base: the point that ``layout`` has in ``model``; None: stored here.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: ParameterLayout,
        device: torch.device,
        objects: Sequence[Any],
        base: Row | None,
    ) -> None:
        self._layout, self.device = layout, device
        named = named_tensors(model)
        self.slots = [named[e.name] for e in layout.entries]
        # The parameters that derivatives are in; statistics (bn="interpolate") come after them.
        self.leaves = [t for t, e in zip(self.slots, layout.entries, strict=True) if e.kind != KIND]
        self.sizes = [t.numel() for t in self.slots]
        dtypes = {t.dtype for t in self.slots}
        self.dtype = max(dtypes, key=lambda d: (torch.finfo(d).bits, torch.finfo(d).eps))
        if torch.finfo(self.dtype).bits < 32:
            self.dtype = torch.float32
        if base is None:
            base = Stored(torch.cat([t.detach().to(self.dtype).reshape(-1) for t in self.slots]))
        self.base: Row = base
        held = sum(t.numel() * t.element_size() for t in self.slots)
        self._small = held <= _FLAT
        self.large = not self._small and device.type == "cpu"
        self._flat = self._as_one_tensor(objects) if self._small else None
        self.views = [t.data for t in self.slots]  # written without a new version of the slots
        self._places = [_place_of(t) for t in self.slots]
        self._near: dict[str, Tensor] = {}  # what `move_near` writes, by name

    def _as_one_tensor(self, objects: Sequence[Any]) -> Tensor | None:
        """One tensor (n,) whose views the slots become, where nothing else shares their memory."""
        addresses = Counter(
            t.untyped_storage().data_ptr()
            for t in objects
            if isinstance(t, Tensor) and t.layout == torch.strided and t.numel()
        )
        for t in self.slots:
            if t.device.type != "cpu" or not t.is_contiguous() or type(t.data) is not Tensor:
                return None
            if t.numel() and addresses[t.untyped_storage().data_ptr()] != 1:
                return None
        if len({t.dtype for t in self.slots}) != 1:
            return None
        flat = torch.cat([t.detach().reshape(-1) for t in self.slots])
        for t, e in zip(self.slots, self._layout.entries, strict=True):
            t.data = flat[e.offset : e.offset + e.numel].view(e.shape)
        return flat

    def _attach(self) -> None:
        if [_place_of(t) for t in self.slots] != self._places:  # a forward pass swapped them
            for t, view in zip(self.slots, self.views, strict=True):
                t.data = view

    def place_sum(self, base: Row, rows: Sequence[Row] | Rows, c: Sequence[float]) -> None:
        """base + sum_j c_j d_j into the parameters, tensor by tensor."""
        self._attach()
        if self._flat is not None:
            write_sum(self._flat, 0, base, rows, c)
            return
        for view, e in zip(self.views, self._layout.entries, strict=True):
            write_sum(view, e.offset, base, rows, c)

    def place(self, theta: Tensor) -> None:
        """theta (n,) into the parameters, in place."""
        self._attach()
        if self._flat is not None:
            self._flat.copy_(theta.detach())
        else:
            theta = theta.detach().to(self.device)
            parts = [
                part.view(e.shape)
                for part, e in zip(theta.split(self.sizes), self._layout.entries, strict=True)
            ]
            torch._foreach_copy_(self.views, parts)

    def placed(self) -> Tensor:
        """What `place` wrote (n,), with what the forward pass made of running statistics since."""
        if self._flat is not None:
            return self._flat.clone()
        return torch.cat([t.detach().to(self.dtype).reshape(-1) for t in self.slots])

    def writer(
        self, theta: Tensor | Row, directions: Tensor | Rows
    ) -> Callable[[Tensor], Callable[[int], None]]:
        """C (g, k) -> what writes point i, theta + C_i D, into the parameters."""
        if isinstance(theta, Row) or isinstance(directions, Rows):
            base = row_of(theta)
            if isinstance(directions, Rows):
                rows = directions
            else:
                rows = Rows([Stored(d) for d in directions.to(base.device, base.dtype)])

            def piecewise(c: Tensor) -> Callable[[int], None]:
                return lambda index: self.place_sum(base, rows, c[index].tolist())

            return piecewise
        direct = self._flat is not None and self._flat.dtype == theta.dtype
        work = self._flat if direct and self._flat is not None else torch.empty_like(theta)
        on_cpu = theta.device.type == "cpu" and theta.dtype in (torch.float32, torch.float64)
        matrix = directions.to(theta)
        matrix = matrix.contiguous() if on_cpu else matrix

        def whole(c: Tensor) -> Callable[[int], None]:
            wide = c.double() if on_cpu else c.to(theta)

            def write(index: int) -> None:
                if on_cpu:
                    ops.perturb(theta, wide[index : index + 1], matrix, out=work[None])
                else:
                    torch.addmv(theta, matrix.T, wide[index], out=work)
                if not direct:
                    self.place(work)

            return write

        return whole

    def origin(self) -> Tensor:
        """The parameters (n,) of the model, in the widest of their dtypes."""
        return self.base.whole().to(self.dtype)

    def random_step(self) -> Tensor:
        """(n,) Gaussian, every parameter tensor scaled to its own spread; statistics stay."""
        step = torch.zeros(self.base.n, dtype=self.dtype, device=self.device)
        for e in self._layout.entries:
            if e.kind == KIND:
                continue
            spread = _spread(self.base.piece(e.offset, e.offset + e.numel))
            for begin, end in spans(e.numel):
                at = e.offset + begin
                step[at : e.offset + end] = self._step(spread, at, end - begin)
        return step

    def _step(self, spread: float, first: int, count: int) -> Tensor:
        """Elements first .. first + count - 1 of `random_step`, in a tensor of that spread."""
        noise = fill(torch.empty(count), _SEED, STEP, first=first)
        return noise.to(self.device, self.dtype).mul_(spread + 1e-3)

    def move_near(self, slots: Sequence[Tensor], own: Sequence[Tensor]) -> None:
        """The model's own point ``own``, the same at every call, and a tenth of `random_step` into
        the slots. Keeps these values, but for large models, until `forget_near`."""
        for slot, at, e in zip(slots, own, self._layout.entries, strict=True):
            if e.kind == KIND:
                continue
            data, flat = slot.data, at.detach().reshape(-1)
            known = self._near.get(e.name)
            if known is not None:
                data.copy_(known.view(e.shape))
                continue
            out = data.view(-1) if data.is_contiguous() else data.reshape(-1).clone()
            spread = _spread(flat)
            for begin, end in spans(e.numel):
                moved = flat[begin:end].to(self.device, self.dtype)
                moved = moved + _STEP * self._step(spread, e.offset + begin, end - begin)
                out[begin:end].copy_(moved)
                if self._small and end - begin == e.numel:
                    self._near[e.name] = moved
            if not data.is_contiguous():
                data.copy_(out.view(data.shape))

    def forget_near(self) -> None:
        """Lets go of the values that `move_near` writes."""
        self._near = {}

    def apart(self) -> list[Tensor]:
        """The values now, which writing one slot does not change where slots share their memory."""
        places = [t.untyped_storage().data_ptr() for t in self.views if t.numel()]
        shared = self._flat is None and len(set(places)) < len(places)
        return [t.clone() for t in self.views] if shared else self.views

    def rounding(self) -> float:
        """eps of the coarsest dtype among the parameters."""
        return float(max(torch.finfo(t.dtype).eps for t in self.slots))


def _spread(t: Tensor) -> float:
    """The standard deviation of its elements; of a single one, its size."""
    if t.numel() < 2:
        return float(t.abs().sum())
    if t.dtype in (torch.float32, torch.float64):
        return float(t.std())
    sums = torch.zeros(2, dtype=torch.float64)
    for begin, end in spans(t.numel()):
        part = t[begin:end].double()
        sums += torch.stack([part.sum(), part.square().sum()]).cpu()
    mean = float(sums[0]) / t.numel()
    return max(0.0, float(sums[1]) / t.numel() - mean**2) ** 0.5


def _place_of(t: Tensor) -> tuple[int, int]:
    """Where its elements lie, as an address of its storage that is not read from."""
    return t.untyped_storage().data_ptr(), int(t.storage_offset())
