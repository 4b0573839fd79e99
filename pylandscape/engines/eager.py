"""The torch engine: any module, loss or objective, run as the user's own loop would run it.

The engine owns a copy of the module (theta/snapshot.py). A point theta is written into the copy's
parameters in place, and the copy is called: what the module does with its parameters, wherever it
holds them, it does here. Derivatives are autograd's with respect to these parameters.

Before every point the copy is as it was when the landscape was made: buffers, attributes, tensors
changed in place. Within a point, batches run in their order and see the state that earlier ones
left, as in a loop over the data. Random numbers start from the same state at every point and leave
the global generators alone.

One long class, as all of it turns around the state of that one copy: points, sessions, the first
run, the comparison with the module. Beside it: eager_switches.py (what belongs to the whole
process), eager_derivatives.py, eager_graphs.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._native import ops
from ..arrays import digest_of_all
from ..errors import InvalidArgument, NotLowered, PylandscapeError, out_of_memory, wrapping
from ..lowering.capture import restored_attributes
from ..theta import sampling
from ..theta.checks import as_coefficients
from ..theta.data import Batch
from ..theta.layout import ParameterLayout
from ..theta.losses import FreeLoss, KnownLoss, Objective, as_scalar
from ..theta.losses import metric_name as _name
from ..theta.pieces import Row, Rows, Stored, row_of, spans, write_sum
from ..theta.random_source import STEP, fill
from ..theta.running_statistics import KIND
from ..theta.snapshot import Snapshot, State, into_eval, same_bits
from .eager_derivatives import MEMORY, Derivatives
from .eager_switches import (
    LOCK,
    attribute_set,
    dense_gradients,
    generator_states,
    persistently,
    switches,
)

_SEED = 0  # of the random numbers that a forward pass draws, at every point
_STEP = 0.1  # of each parameter tensor's spread: where the copy is compared with the module
_ROUNDING = 64  # eps of the coarsest parameters: two kernels' values of one loss
_FEW = 32  # samples on which the copy is compared
_FLAT = 64 << 20  # bytes of parameters up to which they become views of one tensor


def call_model(model: nn.Module, inputs: Any) -> Any:
    """model(x), model(*inputs) for a tuple or list, model(**inputs) for a mapping."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


@contextmanager
def eval_mode(model: nn.Module, train_norms: bool = False) -> Iterator[None]:
    """Eval mode, undone for every module afterwards.

    With ``train_norms``, batch-norm layers use the batch's statistics and track none.
    """
    with restored_attributes(model):
        into_eval(model)
        for module in model.modules():
            module.training = train_norms and isinstance(module, _BatchNorm)
            if module.training:
                module.track_running_stats = False  # type: ignore[assignment]
        yield


class _Touch(TorchDispatchMode):
    """Notes whether an operation reads one of the storages."""

    def __init__(self, storages: set[int]) -> None:
        super().__init__()
        self._storages, self.found = storages, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for t in tree_leaves((args, kwargs)):
            if isinstance(t, Tensor) and t.layout == torch.strided:
                self.found |= t.untyped_storage().data_ptr() in self._storages
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Pass:
    """What a model and its loss give for a batch."""

    model: nn.Module
    loss: KnownLoss | FreeLoss | Objective

    def outputs(self, batch: Batch) -> Any:
        """The model's outputs, or the objective's value."""
        if isinstance(self.loss, Objective):
            return self.loss.fn(self.model, batch.raw)
        return call_model(self.model, batch.inputs)

    def weighed(self, output: Any, batch: Batch, index: int) -> tuple[Tensor, float]:
        """The batch's shares of numerator (float64) and denominator, from its outputs."""
        if isinstance(self.loss, KnownLoss):
            if not isinstance(output, Tensor):
                raise InvalidArgument(
                    f"data: {self.loss.kind} expected a model whose output is one tensor, got "
                    f"{type(output).__name__}; pass objective=f(model, batch), for example "
                    f"lambda model, b: {_example(output)}"
                )
            if self.loss.reduction == "sum":
                return self.loss.total(output, batch.target), float(index == 0)
            weight = self.loss.denominator(batch.target, tuple(output.shape))
            return self.loss.total(output, batch.target), weight
        if isinstance(self.loss, Objective):
            weight = self.loss.weights[index]
            return as_scalar(output, "objective").double() * weight, weight
        value = as_scalar(self.loss.fn(output, batch.target), "loss")
        return value.double() * batch.size, float(batch.size)


def _example(output: Any) -> str:
    """How an objective takes the loss from such an output of the model."""
    if isinstance(output, Mapping):
        key = "logits" if "logits" in output else next(iter(output), "logits")
        return f"loss(model(b[0])[{key!r}], b[1])"
    if isinstance(output, tuple | list):
        return "loss(model(b[0])[0], b[1])"
    return "loss(model(b[0]).logits, b[1])"


class TorchEngine:
    """Answers questions about L by running a copy of the module; deterministic at equal threads.

    Args:
        model: copied, together with what a free loss or an objective holds of it, unless its
            ``snapshot`` and a loss rebound to it are given.
        layout: of the parameters (and statistics) that a point moves.
        dtype, device: where and in what to compute; None: the model's own dtype.
        memory: bytes that derivatives may keep at one theta.
        needs_grad: whether the forward pass differentiates, or is another function without
            gradients enabled; found by the first run and `compare` too.
        base: the point that ``layout`` has in ``model``, which is then not stored here.
    """

    name = "torch"

    def __init__(
        self,
        model: nn.Module,
        loss: KnownLoss | FreeLoss | Objective,
        batches: Sequence[Batch],
        layout: ParameterLayout,
        *,
        dtype: torch.dtype | None,
        device: torch.device,
        bn: str,
        memory: int = MEMORY,
        snapshot: Snapshot | None = None,
        needs_grad: bool = False,
        base: Row | None = None,
    ) -> None:
        self._kept_open = snapshot is not None  # its owner releases it
        if snapshot is None:
            with LOCK:  # it may be another engine's model, which a session moves
                snapshot = Snapshot(model, dtype, device)
                loss = rebound(snapshot, loss)
        self.model, self._snapshot = snapshot.model, snapshot
        self.loss, self._layout, self.bn, self.device = loss, layout, bn, device
        self._digest: str | None = None
        self.pass_ = _Pass(self.model, loss)
        self.batches = [_cast_batch(batch, dtype) for batch in batches]
        self._tensors = [batch.tensors() for batch in self.batches]
        self._data_versions = [[t._version for t in tensors] for tensors in self._tensors]
        named = {**dict(self.model.named_buffers()), **dict(self.model.named_parameters())}
        self._slots = [named[e.name] for e in layout.entries]
        # The parameters that derivatives are in; statistics (bn="interpolate") come after them.
        self.leaves = [
            t for t, e in zip(self._slots, layout.entries, strict=True) if e.kind != KIND
        ]
        moved = {id(t) for t in self._slots}
        for module in self.model.modules():
            module.training = False
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(id(parameter) in moved)
            parameter.grad = None
        dtypes = {t.dtype for t in self._slots}
        self.dtype = max(dtypes, key=lambda d: (torch.finfo(d).bits, torch.finfo(d).eps))
        if torch.finfo(self.dtype).bits < 32:
            self.dtype = torch.float32
        if base is None:
            base = Stored(torch.cat([t.detach().to(self.dtype).reshape(-1) for t in self._slots]))
        self._base: Row = base
        self._flat = self._as_one_tensor(dtypes)
        self._views = [t.data for t in self._slots]  # written without a new version of the slots
        self._places = [_place_of(t) for t in self._slots]
        frozen = {id(p) for p in self.model.parameters() if id(p) not in moved}
        with self._modes():
            self._state = State(snapshot.copies(), snapshot.cells, moved, frozen)
        self.sizes = [t.numel() for t in self._slots]
        self._depth = 0
        self._looked = False
        self._first: float | None = None  # L at the origin, from the first run
        self.needs_grad = needs_grad
        self.writes_input = False
        self.writes_state = False  # into tensors, in place
        self.keeps_state = False  # anywhere
        self._draws: list[str] = []  # generators other than torch's: "random", "numpy"
        self._derivatives = Derivatives(self, memory)
        self._shares: np.ndarray | None = None

    def prepare(
        self,
        theta: Tensor | Row,
        directions: Tensor | Rows,
        metrics: Sequence[Any],
        between: bool = False,
    ) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """A function of coefficients (g, k) to {metric: (g,)} along directions (k, n).

        Of Rows, no vector is held: each tensor of a point is written anew, on a CPU with the
        same bits.
        """
        k = len(directions)
        base = row_of(theta)
        writer = self._writer(theta, directions)
        against: np.ndarray | None = None
        if sampling.DIFFERENCE in metrics:
            at = torch.as_tensor(sampling.references(k, between), dtype=base.dtype)
            kept: list[np.ndarray] = []
            self._evaluate(len(at), writer(at), (sampling.STANDARD,), kept=kept)
            against = np.stack(kept)

        def evaluate(coefficients: np.ndarray) -> dict[str, np.ndarray]:
            given = as_coefficients(coefficients, k)
            off = None if against is None else sampling.mixture(given, between) @ against
            c = torch.as_tensor(given).to(base.dtype)
            return self._evaluate(len(c), writer(c), metrics, off)

        return evaluate

    def _writer(
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
                return lambda index: self._place_sum(base, rows, c[index].tolist())

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

    def prepare_points(self, metrics: Sequence[Any]) -> Callable[[Tensor], dict[str, np.ndarray]]:
        """The same for arbitrary points (p, n)."""

        def evaluate(points: Tensor) -> dict[str, np.ndarray]:
            return self._evaluate(len(points), lambda i: self.place(points[i]), metrics)

        return evaluate

    def gradient(self, theta: Tensor) -> Tensor:
        """(n,) float64. With bn="recompute" the statistics are those at theta, held fixed.

        As in all of this class, n counts what the layout moves, statistics among it
        (bn="interpolate"); derivatives in those are zero. Raises NotDifferentiable where L depends
        on theta in a way that autograd does not follow.
        """
        return self._derivatives.gradient(theta)

    def product(self, matrix: str, theta: Tensor, vectors: Tensor) -> Tensor:
        """(k, n) float64 for vectors (k, n): "hessian", "gauss_newton" or "covariance" times v.

        By double backward; batch-norm statistics as in `gradient`. Graphs at theta are kept for the
        next call where they fit ``memory``. Raises InvalidArgument where there is no such matrix.
        """
        return self._derivatives.product(matrix, theta, vectors)

    def per_sample_gradients(self, theta: Tensor) -> Tensor:
        """(N, n) of theta's dtype; their mean is `gradient`. Raises as the covariance."""
        return self._derivatives.per_sample_gradients(theta)

    def fixed_digest(self) -> str:
        """SHA-256 of what theta does not hold: buffers and the parameters left out."""
        if self._digest is None:
            fixed = {
                name: tensor
                for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers())
                if name not in self._layout.aliases
            }
            with LOCK, torch.inference_mode(False):
                self._digest = digest_of_all([dict(sorted(fixed.items()))])
        return self._digest

    @contextmanager
    def session(self) -> Iterator[None]:
        """Inside, points may be moved and the model run; after it, all is as it was before."""
        with LOCK, ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            draws = bool(self._draws) or not self._looked
            stack.enter_context(switches(self.device, draws))
            stack.enter_context(self._modes())
            if self._depth == 0:
                self._base.check()
            self._depth += 1
            try:
                if not self._looked:
                    self._look()
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    persistently(self._to_origin)

    def move(self, theta: Tensor) -> None:
        """Puts the model at theta (n,), with the state of the landscape's making; seeds."""
        self._state.restore()
        self.place(theta)
        self._begin()

    def _attach(self) -> None:
        if [_place_of(t) for t in self._slots] != self._places:  # a forward pass swapped them
            for t, view in zip(self._slots, self._views, strict=True):
                t.data = view

    def _place_sum(self, base: Row, rows: Sequence[Row] | Rows, c: Sequence[float]) -> None:
        """base + sum_j c_j d_j into the parameters, tensor by tensor."""
        self._attach()
        if self._flat is not None:
            write_sum(self._flat, 0, base, rows, c)
            return
        for view, e in zip(self._views, self._layout.entries, strict=True):
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
            torch._foreach_copy_(self._views, parts)

    def placed(self) -> Tensor:
        """What `place` wrote (n,), with what the forward pass made of running statistics since."""
        if self._flat is not None:
            return self._flat.clone()
        return torch.cat([t.detach().to(self.dtype).reshape(-1) for t in self._slots])

    def train(self) -> None:
        """From now on the model is in train mode, for `engines.eager_training`; there is no first
        run that looks at what it does."""
        self.assume_ordinary()
        self._draws = ["random", "numpy"]  # whatever it draws from is put back
        with LOCK:
            self.model.train()
            with self._modes():
                self._state.settle()

    def statistics(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The buffers of batch norm in use, to be put back by `put`."""
        return [(norm._buffers, dict(norm._buffers)) for norm in self._norms()]

    def put(self, statistics: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        for table, values in statistics:
            table.update(values)

    def recomputed(self, theta: Tensor) -> dict[str, Tensor]:
        """The running statistics that torch.optim.swa_utils.update_bn finds at theta (n,), by the
        names of the buffers; whatever ``bn`` is."""
        norms = self._norms()
        own = {id(module) for module in norms}
        with self.session():
            try:
                self.move(theta)
                if self.bn != "recompute":
                    with attribute_set(norms, "track_running_stats", True):
                        self._recompute_statistics()
            except PylandscapeError:
                raise
            except Exception as error:
                raise failed(error) from error
            return {
                f"{prefix}.{name}".lstrip("."): buffer.detach().clone()
                for prefix, module in self.model.named_modules(remove_duplicate=False)
                if id(module) in own
                for name, buffer in module._buffers.items()
                if buffer is not None
            }

    def batch(self, index: int) -> Batch:
        """The batch for one run of the model."""
        return self.batches[index].fresh() if self.writes_input else self.batches[index]

    def outputs(self, batch: Batch) -> Any:
        """The model's outputs, or the objective's value."""
        return self.pass_.outputs(batch)

    def weighed(self, output: Any, batch: Batch, index: int) -> tuple[Tensor, float]:
        """The batch's shares of numerator (float64) and denominator, from its outputs."""
        result = self.pass_.weighed(output, batch, index)
        tensors = self._tensors[index]
        if [t._version for t in tensors] != self._data_versions[index]:
            raise InvalidArgument(
                f"data: the model or its loss wrote into batch {index}, which it did not when the "
                "landscape was made; expected code that leaves its inputs alone or always writes "
                "into them: clone them first"
            )
        return result

    def batch_loss(self, index: int) -> tuple[Tensor, float, Any]:
        """The batch's share of the numerator, its share of the denominator, the outputs."""
        batch = self.batch(index)
        output = self.outputs(batch)
        return *self.weighed(output, batch, index), output

    @property
    def mixes(self) -> bool:
        """Whether batch norm makes a sample's output depend on its batch."""
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        return bool(norms) and (self.bn == "batch" or any(m.running_mean is None for m in norms))

    def obstacle(self) -> str | None:
        """Why no captured graph could stand for the model, from what its first run did."""
        if self.writes_input:
            return "the forward pass writes into its input"
        if self.writes_state:
            return "the forward pass changes tensors that it keeps"
        if self._draws:
            return "the forward pass draws random numbers"
        if self.needs_grad:
            return "the forward pass needs gradients enabled"
        return None

    def check_state(self, native: Any) -> None:
        """Raises NotLowered where a compiled program does not give the losses of a model that keeps
        state between its calls, which the tracing of its graph may have filled."""
        if not self.keeps_state:
            return
        point = (self.origin() + self.random_step())[None]  # far: what is kept may be a norm
        got, want = (float(e.prepare_points(("loss",))(point)["loss"][0]) for e in (native, self))
        if not _near(got, want, self.rounding() ** 0.5):
            raise NotLowered("the forward pass reads what it keeps from one call to the next")

    def reads_parameters(self) -> bool:
        """Whether the model or its loss reads what theta moves, at all. Inside a session."""
        storages = {t.untyped_storage().data_ptr() for t in self.leaves if t.numel()}
        self._state.restore()
        with _Touch(storages) as touch, self.grad_mode():
            for index in range(len(self.batches)):
                self.batch_loss(index)
                if touch.found:
                    return True
        return False

    def functional_loss(self, theta: Tensor) -> Tensor:
        """L at theta (n,) as a function that torch.func can transform. Inside a session.

        The model's tensors are swapped for views of theta, which not every model follows.
        """
        parts = theta.split(self.sizes)
        state = {
            e.name: part.view(e.shape).to(t.dtype)
            for e, part, t in zip(self._layout.entries, parts, self._slots, strict=True)
        }
        total: Any = 0.0
        denominator = 0.0
        for index in range(len(self.batches)):
            batch = self.batch(index)
            if isinstance(self.loss, Objective):
                swapped = _Swapped(self.model, self.loss.fn)
                named = {f"model.{name}": t for name, t in state.items()}
                output = torch.func.functional_call(swapped, named, (batch.raw,), tie_weights=True)
            else:
                inputs = batch.inputs
                swapped = _Swapped(self.model, call_model)
                named = {f"model.{name}": t for name, t in state.items()}
                output = torch.func.functional_call(swapped, named, (inputs,), tie_weights=True)
            share, weight = self.weighed(output, batch, index)
            total, denominator = total + share, denominator + weight
        result: Tensor = total / denominator
        return result

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
        with self.session():
            real = {id(own): x for x, own in self._snapshot.pairs if isinstance(x, Tensor)}
            slots = [real.get(id(t)) for t in self._slots]
            movable = not any(t is None or t.is_meta or _overlapping(t) for t in slots)

            def run_real(part: Batch, enabled: bool) -> float | None:
                if not movable:
                    return None
                return self._real_loss(model, loss, part, slots, enabled)

            few = self.batches[0].first(_FEW)
            if few is not self.batches[0]:
                try:
                    if self._agree(few, run_real(batch.first(_FEW), True)):
                        return
                except Exception as error:  # a model that fixes the size of its batches
                    if out_of_memory(error):
                        raise
                    self._undo_run()
            try:
                want = run_real(batch, True)
            except Exception as error:
                if not converted and not out_of_memory(error):
                    raise wrapping(
                        error,
                        "model: a copy of it runs on the data, but the module itself does not once "
                        f"its parameters have moved: {type(error).__name__}: {error}",
                    ) from error
                want = None
            if self._agree(self.batches[0], want):
                return
            got = self._repeated(self.place_near)
            coarsest = max(
                torch.finfo(t.dtype).eps for t in (*slots, *self._slots) if t is not None
            )
            allowed = min(0.1, coarsest**0.5) if converted else min(0.05, _ROUNDING * coarsest)
            if want is None or _near(got, want, allowed):
                return
            if not self.needs_grad:  # what requires a gradient in the copy may be frozen in it
                other = run_real(batch, False)
                assert other is not None
                want = other if _near(got, other, allowed) else want
        if not _near(got, want, allowed):
            raise InvalidArgument(
                f"model: at moved parameters the module gives {want:.6g} and the landscape's copy "
                f"of it {got:.6g} (the first batch's sum): the module or the loss reaches "
                "parameters outside the module (a global variable, a class attribute, another "
                "module's memory), or its dtype decides what it computes. Hold them as attributes "
                "of the module, or pass them through objective=f(model, batch)"
            )

    def _agree(self, batch: Batch, want: float | None) -> bool:
        """Whether the copy, near its own point, has the value ``want`` of a batch, to the bit."""
        if want is None:
            return False
        return _near(self._share(batch, self.place_near, self.grad_mode()), want, 0.0)

    def _repeated(self, place: Callable[[], None]) -> float:
        """The first batch's share of L where ``place`` puts the copy, which two runs in either grad
        mode agree about."""
        batch = self.batches[0]
        first = self._share(batch, place, self.grad_mode())
        self._check_same(first, self._share(batch, place, self.grad_mode()), self.grad_mode)
        if self.needs_grad:
            return first
        enabled = self._enabled(batch, place)
        if enabled is None or _near(first, enabled, _ROUNDING * self.rounding()):
            return first
        again = self._enabled(batch, place)
        self._check_same(enabled, float("nan") if again is None else again, torch.enable_grad)
        self.needs_grad, self._first = True, None  # another function with gradients enabled
        return enabled

    def _check_same(self, first: float, again: float, mode: Any) -> None:
        exact = 0.0 if self.device.type == "cpu" else _ROUNDING * self.rounding()
        if not _near(first, again, exact):
            raise InvalidArgument(
                f"model: it gives {first!r} and then {again!r} (the first batch's sum) at the same "
                "parameters and data: it keeps state outside itself (a global variable, an "
                "iterator, an object that cannot be copied) or draws from a generator of its own. "
                "Keep the state in buffers or attributes, and draw from torch's global generator"
            )

    def _enabled(self, batch: Batch, place: Callable[[], None]) -> float | None:
        """The batch's share of L with gradients enabled, if need be with its graph; None where it
        cannot be."""
        for hooks in (saved_tensors_hooks(_drop, _gone), nullcontext()):
            try:
                with hooks:
                    return self._share(batch, place, torch.enable_grad())
            except Exception as error:
                if out_of_memory(error):
                    raise
                self._undo_run()
        return None

    def _share(
        self, batch: Batch, place: Callable[[], None], mode: AbstractContextManager[Any]
    ) -> float:
        """The share of the numerator that a batch in the first one's place has, from the start."""
        self._state.restore()
        place()
        self._seed()
        with mode:
            own = batch.fresh() if self.writes_input else batch
            try:
                return float(self.pass_.weighed(self.outputs(own), own, 0)[0].detach())
            except PylandscapeError:
                raise
            except Exception as error:
                raise failed(error) from error

    def _real_loss(
        self,
        model: nn.Module,
        loss: KnownLoss | FreeLoss | Objective,
        batch: Batch,
        slots: Sequence[Any],
        enabled: bool,
    ) -> float:
        state = State(self._snapshot.originals(), moved=map(id, slots))
        grads = [p.grad for p in model.parameters()]
        self._to_origin()  # the copy then holds what the module gets back, unless it is coarser
        at = [view.detach() for view in self._views]
        exact = all(torch.promote_types(a.dtype, t.dtype) == a.dtype
                    for a, t in zip(at, slots, strict=True))  # fmt: skip
        kept = at if exact else [t.data.clone() for t in slots]
        inference = any(t.is_inference() for t in slots)

        def put_back() -> None:
            with torch.inference_mode(inference):
                for slot, value in zip(slots, kept, strict=True):
                    slot.data.copy_(value)
                state.put_back_changes()
            for p, grad in zip(model.parameters(), grads, strict=True):
                if p.grad is not grad:
                    p.grad = grad

        def run(mode: AbstractContextManager[Any], hooks: AbstractContextManager[Any]) -> float:
            for p in model.parameters():  # which a backward pass inside would add to
                p.grad = None
            with torch.inference_mode(inference):
                self._move_near(slots, at)
            self._seed()
            own, pass_ = batch.fresh(), _Pass(model, loss)
            with mode, hooks:
                return float(pass_.weighed(pass_.outputs(own), own, 0)[0].detach())

        ways: list[Any] = [(torch.no_grad, nullcontext)]
        if enabled:
            dropped = partial(saved_tensors_hooks, _drop, _gone)
            ways = [(torch.enable_grad, dropped), (torch.enable_grad, nullcontext), *ways]
        try:
            with eval_mode(model, self.bn == "batch"), dense_gradients(model):
                while True:
                    mode, hooks = ways.pop(0)
                    try:
                        return run(mode(), hooks())
                    except Exception as error:
                        if not ways or out_of_memory(error):
                            raise
                    state.put_back_changes()
        finally:
            persistently(put_back)

    def origin(self) -> Tensor:
        """The parameters (n,) of the model, in the widest of their dtypes."""
        return self._base.whole().to(self.dtype)

    def random_step(self) -> Tensor:
        """(n,) Gaussian, every parameter tensor scaled to its own spread; statistics stay."""
        step = torch.zeros(self._base.n, dtype=self.dtype, device=self.device)
        for e in self._layout.entries:
            if e.kind == KIND:
                continue
            spread = _spread(self._base.piece(e.offset, e.offset + e.numel))
            for begin, end in spans(e.numel):
                at = e.offset + begin
                step[at : e.offset + end] = self._step(spread, at, end - begin)
        return step

    def _step(self, spread: float, first: int, count: int) -> Tensor:
        """Elements first .. first + count - 1 of `random_step`, in a tensor of that spread."""
        noise = fill(torch.empty(count), _SEED, STEP, first=first)
        return noise.to(self.device, self.dtype).mul_(spread + 1e-3)

    def place_near(self) -> None:
        """The model's own point and a tenth of `random_step` into the parameters."""
        self._to_origin()
        self._move_near(self._views, self._views)

    def move_near(self) -> None:
        """`place_near` for a run from the beginning, as `move` is for a point."""
        self.place_near()
        self._begin()

    def _move_near(self, slots: Sequence[Tensor], own: Sequence[Tensor]) -> None:
        """The point of `place_near` into the slots; ``own``: the model's own point."""
        for slot, at, e in zip(slots, own, self._layout.entries, strict=True):
            if e.kind == KIND:
                continue
            data, flat = slot.data, at.detach().reshape(-1)
            out = data.view(-1) if data.is_contiguous() else data.reshape(-1).clone()
            spread = _spread(flat)
            for begin, end in spans(e.numel):
                moved = flat[begin:end].to(self.device, self.dtype)
                moved = moved + _STEP * self._step(spread, e.offset + begin, end - begin)
                out[begin:end].copy_(moved)
            if not data.is_contiguous():
                data.copy_(out.view(data.shape))

    def rounding(self) -> float:
        """eps of the coarsest dtype among the parameters."""
        return float(max(torch.finfo(t.dtype).eps for t in self._slots))

    def first_loss(self) -> float:
        """L at the model's own parameters; makes the first run where it is still to come."""
        with self.session():
            pass
        if self._first is None:
            found = self._evaluate(1, lambda i: self._place_sum(self._base, (), ()), ("loss",))
            self._first = float(found["loss"][0])
        return self._first

    def assume_ordinary(self) -> None:
        """Leaves out the first run, for a model that another engine has looked at."""
        self._looked = True
        self.release()

    def release(self) -> None:
        """Lets go of the user's module, which nothing needs after `compare`."""
        self._snapshot.forget_originals()

    def _look(self) -> None:
        """The first run over all batches: what the model does besides computing L.

        Finds whether it writes into its inputs or its state, draws from generators of Python or
        numpy, and needs gradients enabled.
        """
        self._looked = True
        try:
            self._first_look()
            if not self._kept_open:  # nobody compares it with another module
                self._repeated(self._to_origin)
        except BaseException:
            self._looked = False
            self._undo_run()
            raise
        if not self._kept_open:
            self.release()

    def _first_look(self) -> None:
        generators = generator_states()
        written: set[int] = set()

        def run() -> list[tuple[float, float]]:
            self._begin()
            found = []
            for index, batch in enumerate(self.batches):
                own = batch.fresh()
                pairs = list(zip(batch.tensors(), own.tensors(), strict=True))
                versions = [t._version for _, t in pairs]
                value, weight = self.weighed(self.outputs(own), own, index)
                found.append((float(value.detach()), weight))
                for (kept, t), version in zip(pairs, versions, strict=True):
                    if t._version != version or not same_bits(kept, t):
                        written.add(index)
            return found

        self.writes_input = True  # every run has its own copy of the data until we know better
        try:
            try:
                with self.grad_mode():
                    found = run()
            except RuntimeError as error:
                if self.needs_grad or out_of_memory(error):
                    raise
                self._undo_run()
                self.needs_grad = True
                try:
                    with torch.enable_grad():
                        found = run()
                except Exception:
                    self.needs_grad = False
                    raise error from None
        finally:
            self._draws = [
                name for name, state in generator_states().items() if state != generators[name]
            ]
        self.writes_state = self._state.learn(self._original)
        self.keeps_state = self.writes_state or self._state.differs()
        self._state.restore()
        self.writes_input = bool(written)
        total, denominator = (sum(column) for column in zip(*found, strict=True))
        self._first = total / denominator if denominator else float("nan")
        if self._draws:  # this run began from an unknown state
            self._first = None

    def _undo_run(self) -> None:
        self._state.learn(self._original)
        self._to_origin()

    def _original(self, t: Tensor) -> Tensor | None:
        """The value that a frozen parameter had in the user's module."""
        for x, own in self._snapshot.pairs:
            if own is t and isinstance(x, Tensor):
                return x.detach().to(t, copy=True)
        return None

    def _evaluate(
        self,
        count: int,
        write: Callable[[int], None],
        metrics: Sequence[Any],
        off: np.ndarray | None = None,
        kept: list[np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """off: (count, N) what is taken off the samples' losses for differences; kept: gets these
        losses (N,) of every point."""
        results = {_name(metric): np.empty(count) for metric in metrics}
        with self.session(), self.grad_mode():
            for i in range(count):
                self._state.restore()
                write(i)
                try:
                    self._begin()
                    found = self._at(metrics, None if off is None else off[i], kept)
                except PylandscapeError:
                    raise
                except Exception as error:
                    raise failed(error) from error
                for name, value in found.items():
                    results[name][i] = value
        return results

    def _at(
        self,
        metrics: Sequence[Any],
        off: np.ndarray | None = None,
        kept: list[np.ndarray] | None = None,
    ) -> dict[str, float]:
        errors = sampling.asked(metrics)
        own: list[np.ndarray] = []
        callables = [metric for metric in metrics if callable(metric)]
        total = denominator = 0.0
        hits = counted = 0
        outputs: list[Tensor] = []
        for index in range(len(self.batches)):
            value, weight, output = self.batch_loss(index)
            total += float(value.detach())
            denominator += weight
            if "accuracy" in metrics:
                right, of = self._correct(output, self.batches[index].target)
                hits, counted = hits + right, counted + of
            if callables:
                outputs.append(output.detach() if isinstance(output, Tensor) else output)
            if errors:
                assert isinstance(self.loss, KnownLoss)
                batch = self.batches[index]
                losses = self.loss.sample_totals(output.detach(), batch.target, batch.size)
                own.append(losses.cpu().numpy())
        values: dict[str, float] = {"loss": total / denominator if denominator else np.nan}
        if "accuracy" in metrics:
            values["accuracy"] = hits / counted if counted else np.nan
        if errors:
            found = np.concatenate(own)
            if kept is not None:
                kept.append(found)
            shares = self._sample_shares()
            for name in errors:
                apart = found - off if name == sampling.DIFFERENCE else found
                squares = sampling.squares_of(apart, shares)
                values[name] = float(sampling.errors(squares, len(found), shares.sum()))
        if callables:
            if isinstance(self.loss, Objective):
                raise InvalidArgument(
                    "metrics: an objective has no outputs; expected only 'loss', got "
                    f"{_name(callables[0])!r}"
                )
            targets = [batch.target for batch in self.batches]
            with torch.no_grad():
                for metric in callables:
                    values[_name(metric)] = float(metric(torch.cat(outputs), torch.cat(targets)))
        return {_name(metric): values[_name(metric)] for metric in metrics}

    def _sample_shares(self) -> np.ndarray:
        """(N,) what each sample adds to the denominator."""
        if self._shares is None:
            assert isinstance(self.loss, KnownLoss)
            parts = [self.loss.sample_shares(b.target, b.size).cpu() for b in self.batches]
            self._shares = torch.cat(parts).numpy()
            if self.loss.reduction == "sum":  # of each batch's own samples
                self._shares = np.full(len(self._shares), 1 / len(self._shares))
        return self._shares

    def _begin(self) -> None:
        """After theta is in place: statistics and random numbers of this point."""
        if self.bn == "recompute":
            self._recompute_statistics()
        self._seed()

    def _seed(self) -> None:
        torch.default_generator.manual_seed(_SEED)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(_SEED)
        if self._draws:
            random.seed(_SEED)
            np.random.seed(_SEED)  # noqa: NPY002

    def _recompute_statistics(self) -> None:
        """Running statistics as torch.optim.swa_utils.update_bn leaves them, in new buffers.

        Only batch-norm layers are in train mode meanwhile: dropout stays off.
        """
        norms = self._norms()
        fresh = []
        for module in norms:
            mean, count = module._buffers["running_mean"], module._buffers["num_batches_tracked"]
            assert mean is not None
            fresh.append(
                {
                    "running_mean": torch.zeros_like(mean),
                    "running_var": torch.ones_like(mean),
                    "num_batches_tracked": None if count is None else torch.zeros_like(count),
                }
            )
        for module, buffers in zip(norms, fresh, strict=True):
            module._buffers.update(buffers)
            module.training, module.momentum = True, None  # None: plain averages over the batches
        self._seed()
        with self.grad_mode():
            for index in range(len(self.batches)):
                self.outputs(self.batch(index))
        self._state.restore()  # what else the passes changed
        for module, buffers in zip(norms, fresh, strict=True):
            module._buffers.update(buffers)

    def _norms(self) -> list[_BatchNorm]:
        return [
            module
            for module in self.model.modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        ]

    def grad_mode(self) -> AbstractContextManager[Any]:
        return torch.enable_grad() if self.needs_grad else torch.no_grad()

    @contextmanager
    def _modes(self) -> Iterator[None]:
        """Attributes of the copy that hold inside a session."""
        with ExitStack() as stack:
            if self.bn == "batch":
                norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
                stack.enter_context(attribute_set(norms, "training", True))
                stack.enter_context(attribute_set(norms, "track_running_stats", False))
            stack.enter_context(dense_gradients(self.model))
            yield

    def _to_origin(self) -> None:
        self._state.restore()
        self._place_sum(self._base, (), ())

    def _as_one_tensor(self, dtypes: set[torch.dtype]) -> Tensor | None:
        """One tensor (n,) whose views the slots become, where nothing else shares their memory."""
        addresses = Counter(
            t.untyped_storage().data_ptr()
            for t in self._snapshot.copies()
            if isinstance(t, Tensor) and t.layout == torch.strided and t.numel()
        )
        for t in self._slots:
            if t.device.type != "cpu" or not t.is_contiguous() or type(t.data) is not Tensor:
                return None
            if t.numel() and addresses[t.untyped_storage().data_ptr()] != 1:
                return None
        held = sum(t.numel() * t.element_size() for t in self._slots)
        if len(dtypes) != 1 or held > _FLAT:
            return None
        flat = torch.cat([t.detach().reshape(-1) for t in self._slots])
        for t, e in zip(self._slots, self._layout.entries, strict=True):
            t.data = flat[e.offset : e.offset + e.numel].view(e.shape)
        return flat

    def _correct(self, output: Any, target: Any) -> tuple[int, int]:
        if not isinstance(self.loss, KnownLoss):
            raise InvalidArgument(
                "metrics: 'accuracy' needs one of the losses cross_entropy, nll and "
                f"bce_with_logits, got {self.loss.name!r}; pass a callable metric instead"
            )
        return self.loss.correct(output, target)


class _Swapped(nn.Module):
    """f(model, inputs), with the model as a child whose tensors functional_call swaps."""

    def __init__(self, model: nn.Module, f: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model, self._f = model, f

    def forward(self, inputs: Any) -> Any:
        return self._f(self.model, inputs)


def rebound(
    snapshot: Snapshot, loss: KnownLoss | FreeLoss | Objective
) -> KnownLoss | FreeLoss | Objective:
    """The loss with the snapshot's model wherever it holds the original."""
    return loss if isinstance(loss, KnownLoss) else replace(loss, fn=snapshot.rebound(loss.fn))


def failed(error: Exception) -> PylandscapeError:
    """The error of ours for what the user's code raised at a point."""
    said = f"{type(error).__name__}: {error}"
    if out_of_memory(error):
        return wrapping(
            error, f"data: not enough memory to run one batch; pass smaller batches ({said})"
        )
    return wrapping(
        error,
        f"model: it ran at its own parameters, but at a point asked for it, its loss or a metric "
        f"raised {said}",
    )


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


def _near(a: float, b: float, tolerance: float) -> bool:
    if a == b or (np.isnan(a) and np.isnan(b)):
        return True
    return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))


def _overlapping(t: Tensor) -> bool:
    return t.layout != torch.strided or any(
        stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape, strict=True)
    )


def _place_of(t: Tensor) -> tuple[int, int]:
    """Where its elements lie, as an address of its storage that is not read from."""
    return t.untyped_storage().data_ptr(), int(t.storage_offset())


def _drop(t: Tensor) -> None:
    return None


def _gone(x: Any) -> Tensor:
    raise RuntimeError("no graph is kept here")


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _cast_batch(batch: Batch, dtype: torch.dtype | None) -> Batch:
    if dtype is None:
        return batch

    return batch.mapped(lambda t: _cast(t, dtype))
