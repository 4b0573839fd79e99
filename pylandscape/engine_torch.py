"""The torch engine: any module, loss or objective, through views of one flat parameter vector.

The user's module is called through ``torch.func.functional_call`` with views of a work buffer as
its parameters and with copies of its buffers, so nothing of the module changes. Random numbers that
a forward pass draws start from the same state at every point and leave the global state alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .capture import restored_attributes
from .data import Batch, Dataset, untouched_random_state
from .errors import InvalidArgument
from .layout import ParameterLayout
from .losses import FreeLoss, KnownLoss, as_scalar

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
    """Eval mode (batch-norm layers in train mode if asked), undone for every module afterwards."""
    with restored_attributes(model):
        for module in model.modules():
            module.training = train_norms and isinstance(module, _BatchNorm)
        yield


class TorchEngine:
    """Answers questions about L by running the module; deterministic at equal threads."""

    name = "torch"

    def __init__(
        self,
        model: nn.Module,
        loss: KnownLoss | FreeLoss | Objective,
        dataset: Dataset,
        layout: ParameterLayout,
        *,
        dtype: torch.dtype | None,
        device: torch.device,
        bn: str,
    ) -> None:
        self._model, self._caller = model, _Caller(model)
        self._loss, self._layout, self._bn, self._device = loss, layout, bn, device
        self._dtypes = {e.name: dtype or e.dtype for e in layout.entries}
        self._fixed = {
            name: _cast(tensor.detach().to(device, copy=True), dtype)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if name not in layout.aliases
        }
        self._batches = [_cast_batch(batch, dtype) for batch in dataset.batches]

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
            return self._evaluate(len(points), lambda i: points[i].to(self._device), metrics)

        return evaluate

    def gradient(self, theta: Tensor) -> Tensor:
        """(n,) float64. With bn="recompute" the statistics are those at theta, held fixed."""
        return self._derivatives(theta, None)

    def product(self, matrix: str, theta: Tensor, vectors: Tensor) -> Tensor:
        """(k, n) float64 for vectors (k, n), by double backward over one retained graph a batch."""
        if matrix != "hessian":
            raise NotImplementedError(matrix)
        return self._derivatives(theta, vectors.to(theta))

    def fixed_digest(self) -> str:
        """SHA-256 of what theta does not hold: buffers and the parameters left out."""
        sha = hashlib.sha256()
        for name in sorted(self._fixed):
            flat = self._fixed[name].detach().cpu().contiguous().reshape(-1)
            sha.update(name.encode())
            sha.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        return sha.hexdigest()

    def _evaluate(
        self, count: int, move: Callable[[int], Tensor], metrics: Sequence[Any]
    ) -> dict[str, np.ndarray]:
        results = {_name(metric): np.empty(count) for metric in metrics}
        with self._session(), torch.no_grad():
            for i in range(count):
                for name, value in self._at(move(i), metrics).items():
                    results[name][i] = value
        return results

    @contextmanager
    def _session(self) -> Iterator[None]:
        with eval_mode(self._model, self._bn == "batch"), untouched_random_state(self._device):
            yield

    def _at(self, theta: Tensor, metrics: Sequence[Any]) -> dict[str, float]:
        callables = [metric for metric in metrics if callable(metric)]
        state = self._state(theta)
        total = denominator = 0.0
        hits = counted = 0
        outputs: list[Tensor] = []
        for index in range(len(self._batches)):
            value, weight, output = self._batch_loss(state, index)
            total += float(value)
            denominator += weight
            if "accuracy" in metrics:
                right, of = self._correct(output, self._batches[index].target)
                hits, counted = hits + right, counted + of
            if callables:
                outputs.append(output)
        values: dict[str, float] = {"loss": total / denominator if denominator else np.nan}
        if "accuracy" in metrics:
            values["accuracy"] = hits / counted if counted else np.nan
        if callables:
            if isinstance(self._loss, Objective):
                raise InvalidArgument(
                    "metrics: an objective has no outputs; expected only 'loss', got "
                    f"{_name(callables[0])!r}"
                )
            targets = [batch.target for batch in self._batches]
            for metric in callables:
                values[_name(metric)] = float(metric(torch.cat(outputs), torch.cat(targets)))
        return {_name(metric): values[_name(metric)] for metric in metrics}

    def _state(self, theta: Tensor) -> dict[str, Tensor]:
        parameters = {
            name: view.to(self._dtypes[name])
            for name, view in self._layout.unflatten(theta).items()
        }
        state = {f"model.{name}": t for name, t in {**self._fixed, **parameters}.items()}
        if self._bn == "recompute":
            self._recompute_statistics(state)
        torch.default_generator.manual_seed(_SEED)
        return state

    def _recompute_statistics(self, state: dict[str, Tensor]) -> None:
        """Running statistics as torch.optim.swa_utils.update_bn leaves them, into ``state``.

        Only batch-norm layers are in train mode meanwhile: dropout stays off.
        """
        norms = {
            name: module
            for name, module in self._model.named_modules()
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
            for batch in self._batches:
                self._run(state, partial(self._forward, batch=batch))
        for module in norms.values():
            module.training = False

    def _run(self, state: dict[str, Tensor], f: Callable[[nn.Module], Any]) -> Any:
        return torch.func.functional_call(self._caller, state, (f,), tie_weights=True)

    def _forward(self, model: nn.Module, batch: Batch) -> Any:
        if isinstance(self._loss, Objective):
            return self._loss.fn(model, batch.raw)
        return call_model(model, batch.inputs)

    def _batch_loss(self, state: dict[str, Tensor], index: int) -> tuple[Tensor, float, Any]:
        """The batch's share of the numerator, its share of the denominator, the outputs."""
        batch = self._batches[index]
        output = self._run(state, lambda model: self._forward(model, batch))
        if isinstance(self._loss, KnownLoss):
            shape = tuple(output.shape)
            if self._loss.reduction == "sum":
                return self._loss.total(output, batch.target), float(index == 0), output
            weight = self._loss.denominator(batch.target, shape)
            return self._loss.total(output, batch.target), weight, output
        if isinstance(self._loss, Objective):
            weight = self._loss.weights[index]
            return as_scalar(output, "objective").double() * weight, weight, None
        value = as_scalar(self._loss.fn(output, batch.target), "loss")
        return value.double() * batch.size, float(batch.size), output

    def _correct(self, output: Any, target: Any) -> tuple[int, int]:
        if not isinstance(self._loss, KnownLoss):
            raise InvalidArgument(
                "metrics: 'accuracy' needs one of the losses cross_entropy, nll and "
                f"bce_with_logits, got {self._loss.name!r}; pass a callable metric instead"
            )
        return self._loss.correct(output, target)

    def _derivatives(self, theta: Tensor, vectors: Tensor | None) -> Tensor:
        leaf = theta.detach().clone().requires_grad_()
        shape = (leaf.numel(),) if vectors is None else tuple(vectors.shape)
        result = torch.zeros(shape, dtype=torch.float64, device=leaf.device)
        denominator = 0.0
        with self._session(), torch.enable_grad():
            state = self._state(leaf)
            for index in range(len(self._batches)):
                value, weight, _ = self._batch_loss(state, index)
                denominator += weight
                if not value.requires_grad:
                    continue
                (g,) = torch.autograd.grad(
                    value, leaf, create_graph=vectors is not None, materialize_grads=True
                )
                if vectors is None:
                    result += g.double()
                elif g.requires_grad:
                    for row, v in zip(result, vectors, strict=True):
                        (hv,) = torch.autograd.grad(
                            g, leaf, v, retain_graph=True, materialize_grads=True
                        )
                        row += hv.double()
        return result / denominator


def _name(metric: Any) -> str:
    return metric if isinstance(metric, str) else str(metric.__name__)


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
