"""Derivatives of the torch engine: gradients, products with matrices, per-sample gradients.

L = sum_b l_b / D over batches b, with D the loss's own denominator. In a batch: J is the Jacobian
of its outputs o in theta, H_out the Hessian of l_b in o, u_i the gradient of sample i's terms in o.
All Python code of the model runs with theta in place, also what runs it backwards (checkpoints).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .data import Batch, untouched_random_state
from .errors import InvalidArgument
from .losses import FreeLoss, KnownLoss, as_scalar
from .torch_graphs import (
    FUSED,
    Product,
    SavedTensors,
    fused_kernels,
    gradient,
    hessian_product,
    sandwich,
    storages,
)

if TYPE_CHECKING:
    from .engine_torch import TorchEngine

MEMORY = 2 << 30  # bytes kept between products
_SLICE_TOLERANCE = 100  # eps: samples run alone against the same samples in their batch
_MEAN_TOLERANCE = 1000  # eps: a free loss of a batch against its mean over the samples


class Derivatives:
    """Derivatives of an engine's L; of products, the graphs at the last theta are kept.

    ``memory``: the bytes that these graphs may hold beyond the parameters and the data; where they
    need more, every call builds them batch by batch and keeps nothing.
    """

    def __init__(self, engine: TorchEngine, memory: int) -> None:
        self._engine, self._memory = engine, memory
        self._samples = sum(batch.size for batch in engine.batches)
        self._theta: Tensor | None = None  # where the kept graphs are
        self._kept: dict[str, _Graphs] = {}
        self._too_large: set[str] = set()  # matrices whose graphs did not fit
        self._replaced: dict[str, None] = {}  # keys of FUSED met so far

    def gradient(self, theta: Tensor) -> Tensor:
        """(n,) float64."""
        with self._session():
            leaf, state = self._at(theta)
            result = torch.zeros(leaf.shape, dtype=torch.float64, device=leaf.device)
            denominator = 0.0
            for index in range(len(self._engine.batches)):

                def pull(model: nn.Module, index: int = index) -> tuple[Tensor, float]:
                    value, weight, _ = self._engine.batch_loss(model, index)
                    return gradient(value, leaf), weight

                g, weight = self._engine.run(state, pull)
                result += g.double()
                denominator += weight
        return result / denominator

    def product(self, matrix: str, theta: Tensor, vectors: Tensor) -> Tensor:
        """(k, n) float64 for vectors (k, n): "hessian", "gauss_newton" or "covariance" times v."""
        self._check_matrix(matrix)
        if self._theta is None or not torch.equal(self._theta, theta):
            self._kept.clear()
            self._theta = theta.detach().clone()
        while True:
            try:
                return self._product(matrix, vectors.detach().to(theta))
            except _NeedsReplacement as found:
                self._replaced[found.kernel] = None
                self._kept.clear()
                warnings.warn(
                    f"second derivatives: {FUSED[found.kernel][0]} for them, because the fused "
                    "kernel has none; the numbers are the same up to rounding",
                    UserWarning,
                    stacklevel=6,  # the caller of a method of Landscape
                )

    def per_sample_gradients(self, theta: Tensor) -> Tensor:
        """g_i (N, n) of theta's dtype, scaled so that their mean is the gradient."""
        self._check_samples("per_sample_gradients")
        start, denominator = 0, 0.0
        with self._session():
            leaf, state = self._at(theta)
            rows = leaf.detach().new_empty(self._samples, theta.numel())
            for index, batch in enumerate(self._engine.batches):
                part = rows[start : start + batch.size]
                fill = partial(self._fill, leaf=leaf, index=index, rows=part)
                denominator += self._engine.run(state, fill)
                start += batch.size
        return rows.mul_(self._samples).div_(denominator)

    def _product(self, matrix: str, vectors: Tensor) -> Tensor:
        with self._session():
            result = torch.zeros(vectors.shape, dtype=torch.float64, device=vectors.device)
            graphs = self._kept.get(matrix)
            if graphs is None:
                graphs = self._build(matrix, vectors, result)
            else:
                self._add(graphs.products, graphs.state, vectors, result)
        result /= graphs.denominator
        return result * self._samples / graphs.denominator if matrix == "covariance" else result

    def _build(self, matrix: str, vectors: Tensor, result: Tensor) -> _Graphs:
        """Adds the products to ``result`` batch by batch; keeps the graphs where they fit."""
        assert self._theta is not None
        leaf, state = self._at(self._theta)
        graphs = _Graphs(state)
        existing = set(storages((leaf, *state.values(), *_tensors(self._engine.batches))))
        keep = self._memory > 0 and matrix not in self._too_large
        for index in range(len(self._engine.batches)):
            saved = SavedTensors(existing)
            build = partial(self._graph, matrix, leaf=leaf, index=index)
            with saved.counted() if keep else nullcontext():
                product, weight = self._engine.run(state, build)
            self._add([product], state, vectors, result)
            graphs.denominator += weight
            if keep:
                graphs.products.append(product)
                graphs.bytes += saved.bytes
                if graphs.bytes + sum(other.bytes for other in self._kept.values()) > self._memory:
                    self._kept.clear()  # of other matrices
                if graphs.bytes > self._memory:
                    graphs.products.clear()
                    self._too_large.add(matrix)
                    keep = False
            del product
        if keep:
            self._kept[matrix] = graphs
        return graphs

    def _add(
        self, products: list[Product], state: dict[str, Tensor], vectors: Tensor, result: Tensor
    ) -> None:
        # One by one. A batched backward pass (is_grads_batched) is 4 times as fast for graphs so
        # small that overhead rules, but no faster at 2 MB saved, slower for wide layers, and rounds
        # a row differently in another block.
        def add(model: nn.Module) -> None:
            for product in products:
                for row, v in zip(result, vectors, strict=True):
                    row += product(v).double()

        self._engine.run(state, add)

    def _graph(
        self, matrix: str, model: nn.Module, leaf: Tensor, index: int
    ) -> tuple[Product, float]:
        """v (n,) -> the batch's share of the product, times D (D^2 / N for the covariance)."""
        if matrix == "hessian":
            value, weight, _ = self._engine.batch_loss(model, index)
            self._check_kernel(value)
            return hessian_product(value, leaf), weight
        outputs = self._engine.outputs(model, self._engine.batches[index])
        o = self._detached(outputs, matrix)
        self._check_kernel(outputs)
        if matrix == "gauss_newton":
            value, weight = self._engine.weighed(o.clone(), index)  # a loss may write into it
            return sandwich(outputs, leaf, hessian_product(value, o)), weight
        u, weight = self._output_gradients(o, index)
        return sandwich(outputs, leaf, lambda jv: _scaled(u, _row_sums(u * jv))), weight

    def _detached(self, outputs: Any, name: str) -> Tensor:
        """A copy of the outputs to differentiate in; in float64 where the loss computes in it."""
        if not isinstance(outputs, Tensor):
            raise InvalidArgument(
                f"{name}: expected a model whose output is one tensor, got {type(outputs).__name__}"
            )
        known = isinstance(self._engine.loss, KnownLoss)
        o = outputs.detach().to(torch.float64 if known else outputs.dtype, copy=True)
        return o.requires_grad_()

    def _output_gradients(self, o: Tensor, index: int) -> tuple[Tensor, float]:
        """The rows u_i of the outputs' shape and the batch's share of D."""
        batch, loss = self._engine.batches[index], self._engine.loss
        if o.dim() == 0 or len(o) != batch.size:
            raise InvalidArgument(
                "data: per-sample gradients expected one row of outputs for each of "
                f"{batch.size} samples, got shape {tuple(o.shape)}"
            )
        if isinstance(loss, KnownLoss):  # a sum over rows of the outputs
            value, weight = self._engine.weighed(o.clone(), index)
            return gradient(value, o), weight
        assert isinstance(loss, FreeLoss)
        terms = [
            as_scalar(loss.fn(o[i : i + 1].clone(), _sample(batch.target, i, batch.size)), "loss")
            for i in range(batch.size)
        ]
        total = torch.stack(terms).double().sum() if terms else o.double().sum()
        together, weight = self._engine.weighed(o.detach().clone(), index)
        size = sum(abs(float(term.detach())) for term in terms)
        want, got = float(total.detach()), float(together.detach())
        if abs(got - want) > _MEAN_TOLERANCE * torch.finfo(o.dtype).eps * size:
            raise InvalidArgument(
                "loss: per-sample gradients expected a loss that is the mean of its samples' "
                f"losses, got {got / batch.size:.6g} for a batch and a mean of "
                f"{want / batch.size:.6g} over its samples alone"
            )
        return gradient(total, o), weight

    def _fill(self, model: nn.Module, leaf: Tensor, index: int, rows: Tensor) -> float:
        """rows (b, n) <- the gradients of the samples' summed terms; gives the batch's share of D.

        Samples run alone where that gives the numbers of the batch, otherwise (a model that mixes
        samples or fixes their number) the batch runs backwards once per sample.
        """
        outputs = self._engine.outputs(model, self._engine.batches[index])
        u, weight = self._output_gradients(self._detached(outputs, "per_sample_gradients"), index)
        with untouched_random_state(self._engine.device):
            filled = self._fill_alone(model, leaf, index, rows, outputs, u)
        if not filled:
            for i, row in enumerate(rows):
                row.copy_(gradient(outputs, leaf, _scaled(u, _unit(i, u)), retain=True))
        return weight

    def _fill_alone(
        self, model: nn.Module, leaf: Tensor, index: int, rows: Tensor, outputs: Tensor, u: Tensor
    ) -> bool:
        batch = self._engine.batches[index]
        eps = max(torch.finfo(t.dtype).eps for t in (rows, outputs))
        if eps > torch.finfo(torch.float32).eps:  # too coarse to tell
            return False
        for i, row in enumerate(rows):
            inputs = _sample(batch.inputs, i, batch.size)
            try:
                alone = self._engine.outputs(model, Batch(None, inputs, None, 1))
            except Exception:  # the model cannot take one sample
                return False
            if not isinstance(alone, Tensor) or alone.shape != outputs[i : i + 1].shape:
                return False
            row.copy_(gradient(alone, leaf, u[i : i + 1]))
        # sum_i s_i g_i with random signs s_i, from the batch in one pass.
        signs = torch.randint(0, 2, (len(rows),), device=rows.device).to(rows) * 2 - 1
        want = gradient(outputs, leaf, _scaled(u, signs.to(u)), retain=True)
        scale = float(torch.linalg.vector_norm(rows, 1, dim=0).max()) if len(rows) else 0.0
        return bool(((signs @ rows - want).abs() <= _SLICE_TOLERANCE * eps * scale).all())

    def _at(self, theta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        leaf = theta.detach().clone().requires_grad_()
        return leaf, self._engine.state(leaf)

    @contextmanager
    def _session(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self._engine.session())
            for module in self._engine.model.modules():
                if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                    module.sparse = False  # parts of one dense vector; restored with the modes
            for kernel in self._replaced:
                stack.enter_context(FUSED[kernel][1]())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            yield

    def _check_matrix(self, matrix: str) -> None:
        if matrix not in ("hessian", "gauss_newton", "covariance"):
            raise InvalidArgument(
                f"matrix: expected 'hessian', 'gauss_newton' or 'covariance', got {matrix!r}"
            )
        if matrix == "covariance":
            self._check_samples("covariance")
        elif matrix == "gauss_newton" and self._is_objective:
            raise InvalidArgument(
                "matrix: 'gauss_newton' expected a loss of the model's outputs, got an objective, "
                "which has no outputs; pass loss= instead"
            )

    def _check_samples(self, name: str) -> None:
        if self._is_objective:
            raise InvalidArgument(
                f"{name}: expected a loss of the model's outputs, got an objective, which has one "
                "value for a whole batch and none for a sample; pass loss= instead"
            )
        if self._engine.bn == "batch":
            raise InvalidArgument(
                f"{name}: expected bn='eval' or bn='recompute', got bn='batch', where a sample's "
                "loss depends on the rest of its batch through the statistics"
            )

    @property
    def _is_objective(self) -> bool:
        return not isinstance(self._engine.loss, KnownLoss | FreeLoss)

    def _check_kernel(self, value: Tensor) -> None:
        for kernel in fused_kernels(value) - self._replaced.keys():
            raise _NeedsReplacement(kernel)


class _NeedsReplacement(Exception):
    def __init__(self, kernel: str) -> None:
        super().__init__(kernel)
        self.kernel = kernel


class _Graphs:
    """One product a batch, at one theta, for one matrix."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.products: list[Product] = []
        self.denominator, self.bytes = 0.0, 0


def _row_sums(t: Tensor) -> Tensor:
    return t.reshape(len(t), -1).sum(1)


def _scaled(u: Tensor, c: Tensor) -> Tensor:
    """The rows c_i u_i."""
    return u * c.reshape(-1, *[1] * (u.dim() - 1))


def _unit(i: int, u: Tensor) -> Tensor:
    e = u.new_zeros(len(u))
    e[i] = 1
    return e


def _sample(item: Any, i: int, size: int) -> Any:
    """Sample i, as a batch of one, of tensors with a leading dimension of ``size``."""
    if isinstance(item, Tensor):
        return item[i : i + 1] if item.dim() > 0 and len(item) == size else item
    if isinstance(item, Mapping):
        return {key: _sample(value, i, size) for key, value in item.items()}
    if isinstance(item, tuple | list):
        parts = [_sample(value, i, size) for value in item]
        return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
    return item


def _tensors(item: Any) -> Iterator[Tensor]:
    """All tensors in batches and what they hold."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Batch):
        yield from _tensors((item.raw, item.inputs, item.target))
    elif isinstance(item, Mapping):
        yield from _tensors(list(item.values()))
    elif isinstance(item, tuple | list):
        for part in item:
            yield from _tensors(part)
