"""The torch engine: any module, loss or objective, run as the user's own loop would run it.

The engine owns a copy of the module (theta/snapshot.py). A point theta is written into the copy's
parameters in place, and the copy is called: what the module does with its parameters, wherever it
holds them, it does here. Derivatives are autograd's with respect to these parameters.

Before every point the copy is as it was when the landscape was made: buffers, attributes, tensors
changed in place. Within a point, batches run in their order and see the state that earlier ones
left, as in a loop over the data. Random numbers start from the same state at every point and leave
the global generators alone.

The class here holds the state of that one copy: points, sessions, the first run. Beside it:
forward_pass.py (one batch), eager_parameters.py (theta in the copy), eager_comparison.py (the copy
against the module), eager_derivatives.py, eager_graphs.py, eager_switches.py (what belongs to the
whole process).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..arrays import digest_of_all
from ..errors import InvalidArgument, NotLowered, PylandscapeError, out_of_memory
from ..theta import sampling
from ..theta.checks import as_coefficients
from ..theta.data import Batch, chosen_batches, generator_states
from ..theta.eval_mode import into_eval
from ..theta.held_state import State, same_bits
from ..theta.layout import ParameterLayout
from ..theta.losses import FreeLoss, KnownLoss, Objective
from ..theta.losses import metric_name as _name
from ..theta.outside import Outside
from ..theta.pieces import Row, Rows, row_of
from ..theta.snapshot import Snapshot
from .eager_comparison import Comparison, near
from .eager_derivatives import MEMORY, Derivatives
from .eager_parameters import CopyParameters
from .eager_switches import (
    LOCK,
    Autocast,
    attribute_set,
    dense_gradients,
    persistently,
    return_unused_memory,
    switches,
)
from .forward_pass import Pass, failed, rebound, roots

_SEED = 0  # of the random numbers that a forward pass draws, at every point
SEEN_BATCHES, SEEN_SAMPLES = 2, 128  # of which the first run's outputs are kept, of each
_SEEN_BYTES = 16 << 20  # larger ones are not


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
        autocast: automatic casting inside of which the model runs; None: what is on now.
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
        autocast: Autocast | None = None,
    ) -> None:
        self.autocast = autocast or Autocast(device)
        self._kept_open = snapshot is not None  # its owner releases it
        if snapshot is None:
            with LOCK:  # it may be another engine's model, which a session moves
                snapshot = Snapshot(model, dtype, device)
                loss = rebound(snapshot, loss)
        self.model, self._snapshot = snapshot.model, snapshot
        self.loss, self._layout, self.bn, self.device = loss, layout, bn, device
        self._digest: str | None = None
        self.pass_ = Pass(self.model, loss)
        self.batches = [_cast_batch(batch, dtype) for batch in batches]
        self._tensors = [batch.tensors() for batch in self.batches]
        self._data_versions = [[t._version for t in tensors] for tensors in self._tensors]
        self.parameters = CopyParameters(self.model, layout, device, snapshot.copies(), base)
        self.leaves, self.dtype = self.parameters.leaves, self.parameters.dtype
        moved = {id(t) for t in self.parameters.slots}
        into_eval(self.model)
        self._apart: list[nn.Parameter] = []  # no part of theta, but free in the user's module
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                if parameter.requires_grad and id(parameter) not in moved:
                    self._apart.append(parameter)
                parameter.requires_grad_(id(parameter) in moved)
            parameter.grad = None
        frozen = {id(p) for p in self.model.parameters() if id(p) not in moved}
        with self._modes():
            self._state = State(snapshot.copies(), snapshot.cells, moved, frozen)
        self.outside = Outside(roots(self.model, loss), snapshot.copies())
        self._depth = 0
        self._looked = False
        self._looked_near = False  # at what a run near the model's own point changes
        self._first: float | None = None  # L at the origin, from the first run
        self._enable_gradients(needs_grad)
        self.writes_input = False
        self.writes_state = False  # into tensors, in place
        self.keeps_state = False  # anywhere
        self.weight: float | None = None  # D: sum of the batches' weights, from the first run
        self.seen: dict[int, Tensor] = {}  # by batch, outputs of the first samples, until `forget`
        self.trained: dict[str, nn.Module] = {}  # what its code runs in train mode, by name
        self.draws = False  # from any of the process's generators
        self._draws: list[str] = []  # generators other than torch's: "random", "numpy"
        self._derivatives = Derivatives(self, memory)
        self.comparison = Comparison(self, snapshot)
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
        writer = self.parameters.writer(theta, directions)
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

    def prepare_points(self, metrics: Sequence[Any]) -> Callable[[Tensor], dict[str, np.ndarray]]:
        """The same for arbitrary points (p, n)."""

        def evaluate(points: Tensor) -> dict[str, np.ndarray]:
            return self._evaluate(len(points), lambda i: self.parameters.place(points[i]), metrics)

        return evaluate

    def gradient(self, theta: Tensor) -> Tensor:
        """(n,) float64. With bn="recompute" the statistics are those at theta, held fixed.

        As in all of this class, n counts what the layout moves, statistics among it
        (bn="interpolate"); derivatives in those are zero. Raises NotDifferentiable where L depends
        on theta in a way that autograd does not follow.
        """
        return self._derivatives.gradient(theta)

    def gradient_and_outputs(self, theta: Tensor) -> tuple[Tensor, list[Any]]:
        """`gradient`, and what the model gave for each batch on the way."""
        outputs: list[Any] = []
        return self._derivatives.gradient(theta, outputs), outputs

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
            stack.enter_context(switches(self.device, self.autocast))
            stack.enter_context(self._modes())
            if self._depth == 0:
                self.parameters.base.check()
                stack.enter_context(self.outside.session())
            self._depth += 1
            try:
                if not self._looked:
                    self._look()
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    persistently(self.to_origin)

    def move(self, theta: Tensor) -> None:
        """Puts the model at theta (n,), with the state of the landscape's making; seeds."""
        self._restore()
        self.parameters.place(theta)
        self._begin()

    def place(self, theta: Tensor) -> None:
        """theta (n,) into the parameters, in place."""
        self.parameters.place(theta)

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
        batch = self.batches[index]
        return batch.fresh() if self.writes_input else batch.apart()

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

    def slope_denominator(self, denominator: float) -> float:
        """What sums of derivatives over all batches are divided by."""
        if not isinstance(self.loss, KnownLoss):
            return denominator
        return self.loss.slope_denominator((b.target for b in self.batches), denominator)

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
        return self.autocast.said

    def check_state(self, native: Any) -> None:
        """Raises NotLowered where a compiled program does not give the losses of a model that keeps
        state between its calls, which the tracing of its graph may have filled."""
        if not self.keeps_state:
            return
        at = self.parameters
        point = (at.origin() + at.random_step())[None]  # far: what is kept may be a norm
        got, want = (float(e.prepare_points(("loss",))(point)["loss"][0]) for e in (native, self))
        if not near(got, want, at.rounding() ** 0.5):
            raise NotLowered("the forward pass reads what it keeps from one call to the next")

    def reads_parameters(self) -> bool:
        """Whether the model or its loss reads what theta moves, at all. Inside a session."""
        storages = {t.untyped_storage().data_ptr() for t in self.leaves if t.numel()}
        self._restore()
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
        parts = theta.split(self.parameters.sizes)
        state = {
            f"model.{e.name}": part.view(e.shape).to(t.dtype)
            for e, part, t in zip(self._layout.entries, parts, self.parameters.slots, strict=True)
        }
        total: Any = 0.0
        denominator = 0.0
        for index in range(len(self.batches)):
            batch = self.batch(index)
            swapped = _Swapped(self.model, self.pass_.outputs)
            output = torch.func.functional_call(swapped, state, (batch,), tie_weights=True)
            share, weight = self.weighed(output, batch, index)
            total, denominator = total + share, denominator + weight
        result: Tensor = total / denominator
        return result

    def share(
        self, batch: Batch, place: Callable[[], None], mode: AbstractContextManager[Any]
    ) -> float:
        """The share of the numerator that a batch in the first one's place has, from the start."""
        self._restore()
        place()
        self.seed()
        with mode:
            own = batch.fresh() if self.writes_input else batch.apart()
            try:
                found = float(self.pass_.weighed(self.outputs(own), own, 0)[0].detach())
            except PylandscapeError:
                raise
            except Exception as error:
                raise failed(error) from error
        if not self._looked_near:
            self._looked_near = True
            changed = self._learn()
            self.writes_state |= changed
            self.keeps_state |= changed
        return found

    def _restore(self) -> None:
        """What is kept between calls, as it was when the landscape was made."""
        self._state.restore()
        self.outside.before_point()

    def place_near(self) -> None:
        """The model's own point and a tenth of `random_step` into the parameters."""
        self.to_origin()
        self.parameters.move_near(self.parameters.views, self.parameters.apart())

    def move_near(self) -> None:
        """`place_near` for a run from the beginning, as `move` is for a point."""
        self.place_near()
        self._begin()

    def first_loss(self) -> float:
        """L at the model's own parameters; makes the first run where it is still to come."""
        if not self._looked:
            with self.session():
                pass
        if self._first is None:
            found = self._evaluate(
                1, lambda i: self.parameters.place_sum(self.parameters.base, (), ()), ("loss",)
            )
            self._first = float(found["loss"][0])
        return self._first

    def needs_gradients(self) -> None:
        """From now on the forward pass runs with gradients enabled: it is another function then."""
        self._enable_gradients(True)
        self._first = None

    def _enable_gradients(self, needed: bool) -> None:
        """With them enabled, the forward pass may ask for derivatives by all parameters that the
        user left free, in theta or not."""
        self.needs_grad = needed
        for parameter in self._apart:
            parameter.requires_grad_(needed)
        self._state.settle_flags()

    def assume_ordinary(self) -> None:
        """Leaves out the first run, for a model that another engine has looked at."""
        self._looked = True
        self.release()

    def release(self) -> None:
        """Lets go of the user's module, which nothing needs once it has been compared."""
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
                self.comparison.repeated(self.to_origin)
        except BaseException:
            self._looked = False
            self.undo_run()
            raise
        if not self._kept_open:
            self.release()
            self.forget()

    def _first_look(self) -> None:
        generators = generator_states()
        written: set[int] = set()
        kept_outputs = chosen_batches([batch.size for batch in self.batches], SEEN_BATCHES)

        def run() -> list[tuple[float, float]]:
            self._begin()
            found = []
            for index, batch in enumerate(self.batches):
                own = batch.fresh()
                pairs = list(zip(batch.tensors(), own.tensors(), strict=True))
                versions = [t._version for _, t in pairs]
                output = self.outputs(own)
                if index in kept_outputs:
                    self._see(index, output, batch.size)
                value, weight = self.weighed(output, own, index)
                del output
                found.append((float(value.detach()), weight))
                for (kept, t), version in zip(pairs, versions, strict=True):
                    if t._version != version or not same_bits(kept, t):
                        written.add(index)
            return found

        self.writes_input = True  # every run has its own copy of the data until we know better
        trains = register_module_forward_pre_hook(self._note_mode())
        try:
            try:
                with self.grad_mode():
                    found = run()
            except RuntimeError as error:
                if self.needs_grad or out_of_memory(error):
                    raise
                self.undo_run()
                self.outside.restore()
                self._enable_gradients(True)
                try:
                    with torch.enable_grad():
                        found = run()
                except Exception as own:  # what the user's own loop raises
                    self.undo_run()
                    self._enable_gradients(False)
                    raise own from None
        finally:
            trains.remove()
            self._draws = [
                name for name, state in generator_states().items() if state != generators[name]
            ]
            after = torch.default_generator.get_state()
            torch.default_generator.manual_seed(_SEED)
            drawn = not torch.equal(after, torch.default_generator.get_state())
            self.draws = drawn or bool(self._draws)
        self.writes_state = self._learn()
        self.keeps_state = self.writes_state or self._state.differs()
        self.outside.settle(self.comparison.depends_on_changes)
        self.writes_state |= self.outside.writes()
        self.keeps_state |= self.outside.holds
        self._restore()
        self.writes_input = bool(written)
        total, denominator = (sum(column) for column in zip(*found, strict=True))
        self._first = total / denominator if denominator else float("nan")
        self.weight = denominator
        if self._draws:  # this run began from an unknown state
            self._first = None

    def _see(self, index: int, output: Any, samples: int) -> None:
        """Keeps what the first samples of a batch gave, where each gave as many rows."""
        self.seen.pop(index, None)
        if not isinstance(self.loss, KnownLoss) or not isinstance(output, Tensor):
            return
        if output.layout != torch.strided or not output.dim() or len(output) % max(1, samples):
            return
        rows = output.detach()[: len(output) // max(1, samples) * SEEN_SAMPLES]
        if rows.numel() * rows.element_size() <= _SEEN_BYTES:
            self.seen[index] = rows.clone()

    def forget(self) -> None:
        """Lets go of what only comparisons need."""
        self.seen = {}
        self.parameters.forget_near()

    def _note_mode(self) -> Callable[[nn.Module, Any], None]:
        """What notes in ``trained`` each module that is called in train mode, but for norms where
        ``bn`` puts them into it."""
        own = self.bn in ("batch", "recompute")
        names = {
            id(m): name
            for name, m in self.model.named_modules()
            if not (own and isinstance(m, _BatchNorm))
        }

        def note(module: nn.Module, args: Any) -> None:
            if module.training and id(module) in names:
                self.trained[names[id(module)]] = module

        return note

    def undo_run(self) -> None:
        self._learn()
        if not self._looked:
            self.outside.restore()
        self.to_origin()

    def _learn(self) -> bool:
        """After a run: whether it changed tensors in place; those are put back from now on."""
        originals = {
            id(own): x for x, own in self._snapshot.pairs if isinstance(x, Tensor) and x is not own
        }

        def original(t: Tensor) -> Tensor | None:  # of a frozen parameter, in the user's module
            x = originals.get(id(t))
            return None if x is None or x.is_meta else x.detach().to(t)

        return self._state.learn(original)

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
                self._restore()
                write(i)
                if self.parameters.large:
                    return_unused_memory()
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
        self.seed()

    def seed(self) -> None:
        torch.clear_autocast_cache()  # of weights that have moved
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
        self.seed()
        with self.grad_mode():
            for index in range(len(self.batches)):
                self.outputs(self.batch(index))
        self._restore()  # what else the passes changed
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

    def to_origin(self) -> None:
        self._restore()
        self.parameters.place_sum(self.parameters.base, (), ())

    def _correct(self, output: Any, target: Any) -> tuple[int, int]:
        if not isinstance(self.loss, KnownLoss):
            raise InvalidArgument(
                "metrics: 'accuracy' needs one of the losses cross_entropy, nll and "
                f"bce_with_logits, got {self.loss.name!r}; pass a callable metric instead"
            )
        return self.loss.correct(output, target)


class _Swapped(nn.Module):
    """f(batch), with the model as a child whose tensors functional_call swaps."""

    def __init__(self, model: nn.Module, f: Callable[[Batch], Any]) -> None:
        super().__init__()
        self.model, self._f = model, f

    def forward(self, batch: Batch) -> Any:
        return self._f(batch)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _cast_batch(batch: Batch, dtype: torch.dtype | None) -> Batch:
    if dtype is None:
        return batch

    return batch.mapped(lambda t: _cast(t, dtype))
