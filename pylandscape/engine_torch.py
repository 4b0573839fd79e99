"""The torch engine: any module, loss or objective, through views of one flat parameter vector.

The user's module is called through ``torch.func.functional_call`` with views of a work buffer as
its parameters and with copies of its buffers, so nothing of the module changes. Random numbers that
a forward pass draws start from the same state at every point and leave the global state alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .arrays import digest_of_all
from .capture import restored_attributes
from .data import Batch, untouched_random_state
from .errors import InvalidArgument
from .layout import ParameterLayout
from .losses import FreeLoss, KnownLoss, as_scalar
from .losses import metric_name as _name
from .statistics import KIND
from .torch_derivatives import MEMORY, Derivatives

_SEED = 0  # of the random numbers that a forward pass draws, at every point


@dataclass(frozen=True)
class Objective:
    """``fn(model, batch) -> scalar``; batches are averaged by ``weights`` (one per batch)."""

    fn: Callable[[nn.Module, Any], Tensor]
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        return str(getattr(self.fn, "__name__", type(self.fn).__name__))


class _Caller(nn.Module):
    """The user's module as the child of one whose forward is what we want to compute."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[nn.Module], Any]) -> Any:
        return run(self.model)


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
        for module in model.modules():
            module.training = train_norms and isinstance(module, _BatchNorm)
            if module.training:
                module.track_running_stats = False  # type: ignore[assignment]
        yield


class TorchEngine:
    """Answers questions about L by running the module; deterministic at equal threads."""

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
    ) -> None:
        self.model, self._caller = model, _Caller(model)
        self.loss, self._layout, self.bn, self.device = loss, layout, bn, device
        self._dtypes = {e.name: dtype or e.dtype for e in layout.entries}
        self._fixed = {
            name: _cast(tensor.detach().to(device, copy=True), dtype)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if name not in layout.aliases
        }
        self.batches = [_cast_batch(batch, dtype) for batch in batches]
        self._derivatives = Derivatives(self, memory)

    def prepare(
        self, theta: Tensor, directions: Tensor, metrics: Sequence[Any]
    ) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """A function of coefficients (g, k) to {metric: (g,)} along directions (k, n)."""
        work = torch.empty_like(theta)
        transposed = directions.to(theta).T

        def evaluate(coefficients: np.ndarray) -> dict[str, np.ndarray]:
            c = torch.as_tensor(np.asarray(coefficients)).to(theta)

            def move(index: int) -> Tensor:
                return torch.addmv(theta, transposed, c[index], out=work)

            return self._evaluate(len(c), move, metrics)

        return evaluate

    def prepare_points(self, metrics: Sequence[Any]) -> Callable[[Tensor], dict[str, np.ndarray]]:
        """The same for arbitrary points (p, n)."""

        def evaluate(points: Tensor) -> dict[str, np.ndarray]:
            return self._evaluate(len(points), lambda i: points[i].to(self.device), metrics)

        return evaluate

    def gradient(self, theta: Tensor) -> Tensor:
        """(n,) float64. With bn="recompute" the statistics are those at theta, held fixed.

        As in all of this class, n counts what the layout moves, statistics among it
        (bn="interpolate"); derivatives in those are zero.
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
        return digest_of_all([dict(sorted(self._fixed.items()))])

    def _evaluate(
        self, count: int, move: Callable[[int], Tensor], metrics: Sequence[Any]
    ) -> dict[str, np.ndarray]:
        results = {_name(metric): np.empty(count) for metric in metrics}
        with self.session(), torch.no_grad():
            for i in range(count):
                for name, value in self._at(move(i), metrics).items():
                    results[name][i] = value
        return results

    @contextmanager
    def session(self) -> Iterator[None]:
        with eval_mode(self.model, self.bn == "batch"), untouched_random_state(self.device):
            yield

    def _at(self, theta: Tensor, metrics: Sequence[Any]) -> dict[str, float]:
        callables = [metric for metric in metrics if callable(metric)]
        state = self.state(theta)
        total = denominator = 0.0
        hits = counted = 0
        outputs: list[Tensor] = []
        for index in range(len(self.batches)):
            value, weight, output = self.run(state, partial(self.batch_loss, index=index))
            total += float(value)
            denominator += weight
            if "accuracy" in metrics:
                right, of = self._correct(output, self.batches[index].target)
                hits, counted = hits + right, counted + of
            if callables:
                outputs.append(output)
        values: dict[str, float] = {"loss": total / denominator if denominator else np.nan}
        if "accuracy" in metrics:
            values["accuracy"] = hits / counted if counted else np.nan
        if callables:
            if isinstance(self.loss, Objective):
                raise InvalidArgument(
                    "metrics: an objective has no outputs; expected only 'loss', got "
                    f"{_name(callables[0])!r}"
                )
            targets = [batch.target for batch in self.batches]
            for metric in callables:
                values[_name(metric)] = float(metric(torch.cat(outputs), torch.cat(targets)))
        return {_name(metric): values[_name(metric)] for metric in metrics}

    def state(self, theta: Tensor) -> dict[str, Tensor]:
        """The tensors of the model at theta (views of it), for `run`; seeds the generators."""
        entries = self._layout.entries
        parts = theta.split([e.numel for e in entries])  # backward: one concatenation
        parameters = {
            e.name: (part.detach() if e.kind == KIND else part)
            .view(e.shape)
            .to(self._dtypes[e.name])
            for e, part in zip(entries, parts, strict=True)
        }
        state = {f"model.{name}": t for name, t in {**self._fixed, **parameters}.items()}
        if self.bn == "recompute":
            self._recompute_statistics(state)
        torch.default_generator.manual_seed(_SEED)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(_SEED)
        return state

    def _recompute_statistics(self, state: dict[str, Tensor]) -> None:
        """Running statistics as torch.optim.swa_utils.update_bn leaves them, into ``state``.

        Only batch-norm layers are in train mode meanwhile: dropout stays off.
        """
        norms = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        for name, module in norms.items():
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                key = f"model.{name}.{buffer}" if name else f"model.{buffer}"
                state[key] = torch.zeros_like(state[key])
            key = key.replace("num_batches_tracked", "running_var")
            state[key] = torch.ones_like(state[key])
            module.training, module.momentum = True, None  # None: plain averages over the batches
        with torch.no_grad():
            for batch in self.batches:
                self.run(state, partial(self.outputs, batch=batch))
        for module in norms.values():
            module.training = False

    def run(self, state: dict[str, Tensor], f: Callable[[nn.Module], Any]) -> Any:
        """f(model) with the tensors of ``state`` in the model's places."""
        return torch.func.functional_call(self._caller, state, (f,), tie_weights=True)

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """The model's outputs, or the objective's value."""
        if isinstance(self.loss, Objective):
            return self.loss.fn(model, batch.raw)
        return call_model(model, batch.inputs)

    def batch_loss(self, model: nn.Module, index: int) -> tuple[Tensor, float, Any]:
        """The batch's share of the numerator, its share of the denominator, the outputs."""
        output = self.outputs(model, self.batches[index])
        return *self.weighed(output, index), output

    def weighed(self, output: Any, index: int) -> tuple[Tensor, float]:
        """The batch's shares of numerator (float64) and denominator, from its outputs."""
        batch = self.batches[index]
        if isinstance(self.loss, KnownLoss):
            if self.loss.reduction == "sum":
                return self.loss.total(output, batch.target), float(index == 0)
            weight = self.loss.denominator(batch.target, tuple(output.shape))
            return self.loss.total(output, batch.target), weight
        if isinstance(self.loss, Objective):
            weight = self.loss.weights[index]
            return as_scalar(output, "objective").double() * weight, weight
        value = as_scalar(self.loss.fn(output, batch.target), "loss")
        return value.double() * batch.size, float(batch.size)

    def _correct(self, output: Any, target: Any) -> tuple[int, int]:
        if not isinstance(self.loss, KnownLoss):
            raise InvalidArgument(
                "metrics: 'accuracy' needs one of the losses cross_entropy, nll and "
                f"bce_with_logits, got {self.loss.name!r}; pass a callable metric instead"
            )
        return self.loss.correct(output, target)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _cast_batch(batch: Batch, dtype: torch.dtype | None) -> Batch:
    if dtype is None:
        return batch

    def cast(item: Any) -> Any:
        if isinstance(item, Tensor):
            return _cast(item, dtype)
        if isinstance(item, Mapping):
            return {key: cast(value) for key, value in item.items()}
        if isinstance(item, tuple | list) and not hasattr(item, "_fields"):
            return type(item)(cast(value) for value in item)
        return item

    return Batch(cast(batch.raw), cast(batch.inputs), cast(batch.target), batch.size)
