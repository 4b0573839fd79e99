"""Whether the torch engine's copy has the losses of the user's own module, at every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidArgument, out_of_memory, wrapping
from ..theta.data import Batch
from ..theta.held_state import State
from ..theta.losses import FreeLoss, KnownLoss, Objective
from ..theta.outside import Outside
from ..theta.snapshot import Snapshot
from .calls import Calls, Computed, graphless
from .eager_parameters import CopyParameters
from .eager_switches import dense_gradients, persistently
from .forward_pass import Pass, eval_mode, roots

_ROUNDING = 64  # eps of the coarsest parameters: two kernels' values of one loss
Watch = TypeVar("Watch", Calls, Computed)
_FEW = 32  # samples on which the copy is compared


class Copy(Protocol):
    """What a comparison asks of the torch engine."""

    batches: list[Batch]
    device: torch.device
    bn: str
    needs_grad: bool
    parameters: CopyParameters
    outside: Outside

    def session(self) -> AbstractContextManager[None]:
        """Modes and random numbers as the engine has them, put back afterwards."""

    def share(
        self, batch: Batch, place: Callable[[], None], mode: AbstractContextManager[Any]
    ) -> float:
        """A batch's share of the numerator where ``place`` puts the copy, from the start."""

    def place_near(self) -> None:
        """The copy to a point near its own."""

    def to_origin(self) -> None:
        """The copy as it was made."""

    def undo_run(self) -> None:
        """The same after a run that has failed."""

    def seed(self) -> None:
        """Random numbers from their start."""

    def grad_mode(self) -> AbstractContextManager[Any]:
        """Gradients enabled or not, as the forward pass needs it."""

    def needs_gradients(self) -> None:
        """From now on the forward pass runs with gradients enabled."""


class Comparison:
    """Of an engine's copy, made with ``snapshot``."""

    def __init__(self, copy: Copy, snapshot: Snapshot) -> None:
        self._copy, self._snapshot = copy, snapshot

    def compare(
        self,
        model: nn.Module,
        loss: KnownLoss | FreeLoss | Objective,
        batch: Batch,
        converted: bool,
    ) -> None:
        """The user's own module, moved in place, must have the loss of the copy.

        Both run on a part of the first batch at one moved theta, the module with gradients enabled:
        values that agree are those of either grad mode, and of no state outside the module. Where
        the parts do not agree, the whole batch decides. The module gets back every bit of its
        parameters, buffers, attributes and modes, also after Ctrl-C.

        Args:
            model, loss: the user's own.
            batch: the first one, where the module is.
            converted: whether the copy computes in another dtype or on another device.

        Raises InvalidArgument where the two differ: the module reaches parameters in a way that the
        copy does not follow; and where a second run does not give the values of the first.
        """
        with self._copy.session():
            real = {id(own): x for x, own in self._snapshot.pairs if isinstance(x, Tensor)}
            slots = [real.get(id(t)) for t in self._copy.parameters.slots]
            movable = not any(t is None or t.is_meta or _overlapping(t) for t in slots)

            def run_real(part: Batch, enabled: bool) -> tuple[float | None, list[str] | None]:
                if not movable:
                    return None, None
                return self._real_loss(model, loss, part, slots, enabled)

            few = self._copy.batches[0].first(_FEW)
            if few is not self._copy.batches[0]:
                try:
                    if self._agree(few, *run_real(batch.first(_FEW), True)):
                        return
                except Exception as error:  # a model that fixes the size of its batches
                    if out_of_memory(error):
                        raise
                    self._copy.undo_run()
            try:
                want, calls = run_real(batch, True)
            except Exception as error:
                if not converted and not out_of_memory(error):
                    raise wrapping(
                        error,
                        "model: a copy of it runs on the data, but the module itself does not once "
                        f"its parameters have moved: {type(error).__name__}: {error}",
                    ) from error
                want, calls = None, None
            if self._agree(self._copy.batches[0], want, calls):
                return
            got = self.repeated(self._copy.place_near)
            coarsest = max(
                torch.finfo(t.dtype).eps
                for t in (*slots, *self._copy.parameters.slots)
                if t is not None
            )
            allowed = min(0.1, coarsest**0.5) if converted else min(0.05, _ROUNDING * coarsest)
            if want is None or near(got, want, allowed):
                return
            # What requires a gradient in the copy may be frozen in the module.
            if not self._copy.needs_grad:
                other, _ = run_real(batch, False)
                assert other is not None
                want = other if near(got, other, allowed) else want
        if not near(got, want, allowed):
            raise InvalidArgument(
                f"model: at moved parameters the module gives {want:.6g} and the landscape's copy "
                f"of it {got:.6g} (the first batch's sum): the module or the loss reaches "
                "parameters outside the module (a global variable, a class attribute, another "
                "module's memory), or its dtype decides what it computes. Hold them as attributes "
                "of the module, or pass them through objective=f(model, batch)"
            )

    def _agree(self, batch: Batch, want: float | None, calls: list[str] | None) -> bool:
        """Whether the copy, near its own point, has the value ``want`` of a batch to the bit, by
        the same calls: two functions may have one value where units are dead."""
        if want is None:
            return False
        value, own = self._watched(batch, self._copy.grad_mode(), Calls())
        return near(value, want, 0.0) and (own is None or calls is None or own.names == calls)

    def repeated(self, place: Callable[[], None]) -> float:
        """The first batch's share of L where ``place`` puts the copy, which two runs in either grad
        mode agree about."""
        batch = self._copy.batches[0]
        first = self._copy.share(batch, place, self._copy.grad_mode())
        self._check_same(first, self._copy.share(batch, place, self._copy.grad_mode()))
        if self._copy.needs_grad:
            return first
        enabled = self._enabled(batch, place)
        if enabled is None or (
            near(first, enabled, _ROUNDING * self._copy.parameters.rounding())
            and not self._other_calls(batch)
        ):
            return first
        again = self._enabled(batch, place)
        self._check_same(enabled, float("nan") if again is None else again)
        self._copy.needs_gradients()
        return enabled

    def depends_on_changes(self, restore: Callable[[], None]) -> bool:
        """Whether L depends on what its code has changed outside and ``restore`` puts back.

        That state is the making's afterwards, or of later runs.
        """

        def computed(batch: Batch) -> tuple[float, Any]:
            value, seen = self._watched(batch, self._copy.grad_mode(), Computed())
            return value, seen and seen.results()

        def differs(batch: Batch) -> bool:  # near the origin: it may have kept what it found there
            later = computed(batch)
            restore()
            first = computed(batch)
            return not near(first[0], later[0], 0.0) or first[1] != later[1]

        batch = self._copy.batches[0]
        if (few := batch.first(_FEW)) is not batch:
            try:
                return differs(few)
            except Exception as error:  # a model that fixes the size of its batches
                if out_of_memory(error):
                    raise
        return differs(batch)

    def _other_calls(self, batch: Batch) -> bool:
        """Whether the code takes another way where gradients are enabled."""
        try:
            plain = self._watched(batch, self._copy.grad_mode(), Calls())[1]
            enabled = self._watched(batch, graphless(), Calls())[1]
        except Exception as error:  # it wants the graph itself
            if out_of_memory(error):
                raise
            self._copy.undo_run()
            return False
        return plain is not None and enabled is not None and plain.names != enabled.names

    def _watched(
        self, batch: Batch, mode: AbstractContextManager[Any], watch: Watch
    ) -> tuple[float, Watch | None]:
        """The batch's share of L near the copy's point, and what watched the calls that led to it;
        None where torch cannot run so."""
        try:
            return self._copy.share(batch, self._copy.place_near, _both(mode, watch)), watch
        except Exception as error:
            if out_of_memory(error):
                raise
        self._copy.undo_run()
        return self._copy.share(batch, self._copy.place_near, self._copy.grad_mode()), None

    def _check_same(self, first: float, again: float) -> None:
        exact = (
            0.0 if self._copy.device.type == "cpu" else _ROUNDING * self._copy.parameters.rounding()
        )
        if not near(first, again, exact):
            raise InvalidArgument(
                f"model: it gives {first!r} and then {again!r} (the first batch's sum) at the same "
                "parameters and data: it keeps state outside itself (a global variable, an "
                "iterator, an object that cannot be copied) or draws from a generator of its own. "
                "Keep the state in buffers or attributes, and draw from torch's global generator"
            )

    def _enabled(self, batch: Batch, place: Callable[[], None]) -> float | None:
        """The batch's share of L with gradients enabled, if need be with its graph; None where it
        cannot be."""
        for mode in (graphless(), torch.enable_grad()):
            try:
                return self._copy.share(batch, place, mode)
            except Exception as error:
                if out_of_memory(error):
                    raise
                self._copy.undo_run()
        return None

    def _real_loss(
        self,
        model: nn.Module,
        loss: KnownLoss | FreeLoss | Objective,
        batch: Batch,
        slots: Sequence[Any],
        enabled: bool,
    ) -> tuple[float, list[str] | None]:
        originals = self._snapshot.originals()
        state = State(originals, moved=map(id, slots))
        outside = Outside(roots(model, loss), originals)
        outside.choose_as(self._copy.outside)
        stays = outside.chosen or outside.steps or self._copy.outside.holds
        leaves = [t for t in originals if isinstance(t, Tensor) and t.is_leaf]  # registered or not
        grads = [t.grad for t in leaves]
        self._copy.to_origin()  # which holds what the module gets back, unless it is coarser
        at = [view.detach() for view in self._copy.parameters.views]
        exact = all(torch.promote_types(a.dtype, t.dtype) == a.dtype
                    for a, t in zip(at, slots, strict=True))  # fmt: skip
        kept = at if exact else [t.data.clone() for t in slots]
        inference = any(t.is_inference() for t in slots)

        def restore_outside() -> None:
            if stays:
                outside.put_back()

        def put_back() -> None:
            with torch.inference_mode(inference):
                for slot, value in zip(slots, kept, strict=True):
                    slot.data.copy_(value)
                state.put_back_changes()
            restore_outside()
            for t, grad in zip(leaves, grads, strict=True):
                if t.grad is not grad:
                    t.grad = grad

        def run(mode: AbstractContextManager[Any]) -> float:
            for t in leaves:  # which a backward pass inside would add to
                t.grad = None
            with torch.inference_mode(inference):
                self._copy.parameters.move_near(slots, at)
            self._copy.seed()
            own, pass_ = batch.fresh(), Pass(model, loss)
            with mode:
                return float(pass_.weighed(pass_.outputs(own), own, 0)[0].detach())

        ways: list[Any] = [(torch.no_grad, False)]
        if enabled:
            ways[:0] = [(graphless, True), (graphless, False), (torch.enable_grad, False)]
        try:
            while True:
                mode, watched = ways.pop(0)
                watch = Calls() if watched else None
                try:  # the modes are put back with the rest
                    with eval_mode(model, self._copy.bn == "batch"), dense_gradients(model):
                        value = run(_both(mode(), watch or nullcontext()))
                    return value, watch.names if watch else None
                except Exception as error:
                    if not ways or out_of_memory(error):
                        raise
                state.put_back_changes()
                restore_outside()
        finally:
            persistently(put_back)


def near(a: float, b: float, tolerance: float) -> bool:
    """Whether two values differ by at most a share of the larger one; NaN equals NaN."""
    if a == b or (np.isnan(a) and np.isnan(b)):
        return True
    return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))


def _overlapping(t: Tensor) -> bool:
    return t.layout != torch.strided or any(
        stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape, strict=True)
    )


@contextmanager
def _both(a: AbstractContextManager[Any], b: AbstractContextManager[Any]) -> Iterator[None]:
    with a, b:
        yield
