"""Derivatives of the torch engine: gradients, products with matrices, per-sample gradients.

L = sum_b l_b / D over batches b, with D the loss's own denominator. In a batch: J is the Jacobian
of its outputs o in theta, H_out the Hessian of l_b in o, u_i the gradient of sample i's terms in o.
All Python code of the model runs with theta in place, also what runs it backwards (checkpoints).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..arguments import callers_level
from ..errors import InvalidArgument, NotDifferentiable, PylandscapeError, out_of_memory, wrapping
from ..theta.data import Batch, untouched_random_state
from ..theta.losses import FreeLoss, KnownLoss, as_scalar
from .eager_graphs import (
    FUSED,
    Leaves,
    Product,
    SavedTensors,
    fused_kernels,
    gradient,
    hessian_product,
    storages,
    whole_graphs,
)

MEMORY = 2 << 30  # bytes kept between products
_SLICE_TOLERANCE = 100  # eps: samples run alone against the same samples in their batch
_MEAN_TOLERANCE = 1000  # eps: a free loss of a batch against its mean over the samples


class Forward(Protocol):
    """What derivatives ask of the torch engine: the model run at theta, and its loss."""

    model: nn.Module
    loss: Any  # KnownLoss | FreeLoss | Objective
    batches: list[Batch]
    device: torch.device
    bn: str
    leaves: Any
    keeps_state: bool
    writes_state: bool  # into tensors, in place
    weight: float | None  # D, where a first run has found it

    def reads_parameters(self) -> bool:
        """Whether the model or its loss reads what theta moves, at all."""

    def session(self) -> AbstractContextManager[None]:
        """Modes and random numbers as the engine has them, put back afterwards."""

    def move(self, theta: Tensor) -> None:
        """The model to theta (n,), with the state of the landscape's making; seeds."""

    def place(self, theta: Tensor) -> None:
        """theta (n,) into the parameters, in place."""

    def slope_denominator(self, denominator: float) -> float:
        """What sums of derivatives over all batches are divided by."""

    def statistics(self) -> Any:
        """The buffers of batch norm in use, to be put back by `put`."""

    def put(self, statistics: Any) -> None:
        """Buffers of `statistics` in the model's places."""

    def batch(self, index: int) -> Batch:
        """A copy of a batch, which the model may write into."""

    def outputs(self, batch: Batch) -> Any:
        """The model's outputs, or the objective's value."""

    def batch_loss(self, index: int) -> tuple[Tensor, float, Any]:
        """A batch's shares of numerator and denominator, and its outputs."""

    def weighed(self, output: Any, batch: Batch, index: int) -> tuple[Tensor, float]:
        """A batch's shares of numerator and denominator, from its outputs."""


class Derivatives:
    """Derivatives of an engine's L; of products, the graphs at the last theta are kept.

    ``memory``: the bytes that these graphs may hold beyond the parameters and the data; where they
    need more, every call builds them batch by batch and keeps nothing.
    """

    def __init__(self, engine: Forward, memory: int) -> None:
        self._engine, self._memory = engine, memory
        self._samples = sum(batch.size for batch in engine.batches)
        self._theta: Tensor | None = None  # where the kept graphs are
        self._kept: dict[str, _Graphs] = {}
        self._too_large: set[str] = set()  # matrices whose graphs did not fit
        self._forward: set[str] = set()  # matrices whose J v is forward-mode's
        self._replaced: dict[str, None] = {}  # keys of FUSED met so far
        self._joined = False  # a batch's value goes back into earlier ones through kept state

    def gradient(self, theta: Tensor, outputs: list[Any] | None = None) -> Tensor:
        """(n,) float64. ``outputs`` gets what the batches gave on the way."""
        with self._session():
            while True:
                try:
                    return self._gradient(theta, outputs)
                except Exception as error:
                    if _second_time(error) and not self._joined:
                        self._joined = True
                        continue
                    raise explained(error, "gradient") from error

    def product(self, matrix: str, theta: Tensor, vectors: Tensor) -> Tensor:
        """(k, n) float64 for vectors (k, n): "hessian", "gauss_newton" or "covariance" times v."""
        self._check_matrix(matrix)
        with self._engine.session():  # one thread at a time
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
                        stacklevel=callers_level(),
                    )
                except Exception as error:
                    missing = _missing(error)
                    if missing and matrix != "hessian" and matrix not in self._forward:
                        self._forward.add(matrix)
                        continue
                    raise explained(error, matrix) from error

    def per_sample_gradients(self, theta: Tensor) -> Tensor:
        """g_i (N, n) of theta's dtype, scaled so that their mean is the gradient."""
        self._check_samples("per_sample_gradients")
        start, denominator = 0, 0.0
        with self._session():
            leaves = self._at(theta)
            rows = theta.detach().new_empty(self._samples, theta.numel())
            try:
                for index, batch in enumerate(self._engine.batches):
                    part = rows[start : start + batch.size]
                    denominator += self._fill(leaves, index, part)
                    start += batch.size
            except Exception as error:
                raise explained(error, "per_sample_gradients") from error
            check_reached(self._engine, leaves.reached, "per_sample_gradients")
        return rows.mul_(self._samples).div_(self._engine.slope_denominator(denominator))

    def _gradient(self, theta: Tensor, outputs: list[Any] | None) -> Tensor:
        leaves = self._at(theta)
        if outputs is not None:
            outputs.clear()
        result = torch.zeros(theta.shape, dtype=torch.float64, device=self._engine.device)
        denominator, scale = 0.0, self._scale()
        for index in range(len(self._engine.batches)):
            value, weight, output = self._engine.batch_loss(index)
            if outputs is not None:
                outputs.append(output.detach() if isinstance(output, Tensor) else output)
            del output
            result += leaves.gradient(value / scale, retain=self._joined).double()
            denominator += weight
            del value
        check_reached(self._engine, leaves.reached, "gradient")
        return result / (self._engine.slope_denominator(denominator) / scale)

    def _scale(self) -> float:
        """D before the backward pass, as in the user's own, whose hooks may clip what they see."""
        weight = self._engine.weight
        return 1.0 if weight is None else self._engine.slope_denominator(weight) or 1.0

    def _product(self, matrix: str, vectors: Tensor) -> Tensor:
        with self._session():
            result = torch.zeros(vectors.shape, dtype=torch.float64, device=vectors.device)
            graphs = self._kept.get(matrix)
            if graphs is None:
                graphs = self._build(matrix, vectors, result)
            else:
                assert self._theta is not None
                self._engine.place(self._theta)
                self._engine.put(graphs.statistics)
                self._add(graphs.products, vectors, result)
        denominator = self._engine.slope_denominator(graphs.denominator)
        result /= denominator / self._scale() if matrix == "hessian" else denominator
        return result * self._samples / denominator if matrix == "covariance" else result

    def _build(self, matrix: str, vectors: Tensor, result: Tensor) -> _Graphs:
        """Adds the products to ``result`` batch by batch; keeps the graphs where they fit."""
        assert self._theta is not None
        engine = self._engine
        leaves = self._at(self._theta)
        graphs = _Graphs(engine.statistics())
        held = (*engine.model.parameters(), *engine.model.buffers(), *_tensors(engine.batches))
        existing = set(storages(held))
        keep = self._memory > 0 and matrix not in self._too_large and not engine.writes_state
        keep &= matrix not in self._forward
        for index in range(len(engine.batches)):
            saved = SavedTensors(existing)
            try:
                with saved.counted() if keep else nullcontext():
                    product, weight = self._graph(matrix, leaves, index)
            except RuntimeError as error:
                if not keep or not _no_hooks(error):
                    raise
                self._too_large.add(matrix)  # torch.func inside the model: nothing is counted
                result.zero_()
                return self._build(matrix, vectors, result)
            self._add([product], vectors, result)
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
        check_reached(self._engine, leaves.reached, matrix)
        if keep:
            self._kept[matrix] = graphs
        return graphs

    def _add(self, products: list[Product], vectors: Tensor, result: Tensor) -> None:
        # One by one. A batched backward pass (is_grads_batched) is 4 times as fast for graphs so
        # small that overhead rules, but no faster at 2 MB saved, slower for wide layers, and rounds
        # a row differently in another block.
        for product in products:
            for row, v in zip(result, vectors, strict=True):
                row += product(v).double()

    def _graph(self, matrix: str, leaves: Leaves, index: int) -> tuple[Product, float]:
        """v (n,) -> the batch's share of the product, times D (D / scale for the Hessian,
        D^2 / N for the covariance)."""
        if matrix == "hessian":
            value, weight, _ = self._engine.batch_loss(index)
            self._check_kernel(value)
            return leaves.hessian_product(value / self._scale()), weight
        batch = self._engine.batch(index)
        outputs = self._engine.outputs(batch)
        o = self._detached(outputs, matrix)
        self._check_kernel(outputs)
        if matrix == "gauss_newton":
            # A loss may write into its outputs.
            value, weight = self._engine.weighed(o.clone(), batch, index)
            _check_loss(value, matrix)
            middle = hessian_product(value, o)
        else:
            u, weight = self._output_gradients(o, index)

            def middle(jv: Tensor) -> Tensor:
                return _scaled(u, _row_sums(u * jv))

        if matrix in self._forward:
            return lambda v: self._by_forward_mode(leaves, index, v, middle), weight
        return leaves.sandwich(outputs, middle), weight

    def _by_forward_mode(self, leaves: Leaves, index: int, v: Tensor, middle: Product) -> Tensor:
        """J^T middle(J v) with J v by forward mode, for a network without a second derivative."""
        assert self._theta is not None
        engine = self._engine
        statistics = engine.statistics()
        try:
            with warnings.catch_warnings(), torch.no_grad(), forward_ad.dual_level():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch's own use of jit.script
                for leaf, part in zip(leaves.tensors, leaves.parts(v), strict=True):
                    leaf.requires_grad_(False)
                    if leaf.numel():
                        leaf.copy_(forward_ad.make_dual(leaf.clone(), part.to(leaf.dtype)))
                dual = forward_ad.unpack_dual(engine.outputs(engine.batch(index)))
                jv = torch.zeros_like(dual.primal) if dual.tangent is None else dual.tangent.clone()
        finally:
            for leaf in leaves.tensors:
                leaf.requires_grad_()
        engine.move(self._theta)
        engine.put(statistics)
        outputs = engine.outputs(engine.batch(index))
        return leaves.gradient(outputs, middle(jv))

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
        batch, loss = self._engine.batch(index), self._engine.loss
        if o.dim() == 0 or len(o) != batch.size:
            raise InvalidArgument(
                "data: per-sample gradients expected one row of outputs for each of "
                f"{batch.size} samples, got shape {tuple(o.shape)}"
            )
        if isinstance(loss, KnownLoss):  # a sum over rows of the outputs
            value, weight = self._engine.weighed(o.clone(), batch, index)
            return gradient(value, o), weight
        assert isinstance(loss, FreeLoss)
        _check_loss(as_scalar(loss.fn(o.clone(), self._engine.batch(index).target), "loss"), "loss")
        terms = [
            as_scalar(loss.fn(o[i : i + 1].clone(), _sample(batch.target, i, batch.size)), "loss")
            for i in range(batch.size)
        ]
        total = torch.stack(terms).double().sum() if terms else o.double().sum()
        together, weight = self._engine.weighed(
            o.detach().clone(), self._engine.batch(index), index
        )
        size = sum(abs(float(term.detach())) for term in terms)
        want, got = float(total.detach()), float(together.detach())
        if abs(got - want) > _MEAN_TOLERANCE * torch.finfo(o.dtype).eps * size:
            raise InvalidArgument(
                "loss: per-sample gradients expected a loss that is the mean of its samples' "
                f"losses, got {got / batch.size:.6g} for a batch and a mean of "
                f"{want / batch.size:.6g} over its samples alone"
            )
        return gradient(total, o), weight

    def _fill(self, leaves: Leaves, index: int, rows: Tensor) -> float:
        """rows (b, n) <- the gradients of the samples' summed terms; gives the batch's share of D.

        Samples run alone where that gives the numbers of the batch, otherwise (a model that mixes
        samples or fixes their number) the batch runs backwards once per sample.
        """
        outputs = self._engine.outputs(self._engine.batch(index))
        u, weight = self._output_gradients(self._detached(outputs, "per_sample_gradients"), index)
        with untouched_random_state(self._engine.device):
            filled = self._fill_alone(leaves, index, rows, outputs, u)
        if not filled:
            for i, row in enumerate(rows):
                row.copy_(leaves.gradient(outputs, _scaled(u, _unit(i, u)), retain=True))
        return weight

    def _fill_alone(
        self, leaves: Leaves, index: int, rows: Tensor, outputs: Tensor, u: Tensor
    ) -> bool:
        if self._engine.keeps_state:  # a sample more is a step more of the state
            return False
        batch = self._engine.batch(index)
        eps = max(torch.finfo(t.dtype).eps for t in (rows, outputs))
        if eps > torch.finfo(torch.float32).eps:  # too coarse to tell
            return False
        for i, row in enumerate(rows):
            inputs = _sample(batch.inputs, i, batch.size)
            try:
                alone = self._engine.outputs(Batch(None, inputs, None, 1))
            except Exception as error:  # the model cannot take one sample
                if out_of_memory(error):
                    raise
                return False
            if not isinstance(alone, Tensor) or alone.shape != outputs[i : i + 1].shape:
                return False
            row.copy_(leaves.gradient(alone, u[i : i + 1]))
        # sum_i s_i g_i with random signs s_i, from the batch in one pass.
        signs = torch.randint(0, 2, (len(rows),), device=rows.device).to(rows) * 2 - 1
        want = leaves.gradient(outputs, _scaled(u, signs.to(u)), retain=True)
        scale = float(torch.linalg.vector_norm(rows, 1, dim=0).max()) if len(rows) else 0.0
        return bool(((signs @ rows - want).abs() <= _SLICE_TOLERANCE * eps * scale).all())

    def _at(self, theta: Tensor) -> Leaves:
        self._engine.move(theta)
        leaves = self._engine.leaves
        rest = theta.numel() - sum(t.numel() for t in leaves)
        return Leaves(leaves, rest, theta.dtype)

    @contextmanager
    def _session(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self._engine.session())
            for kernel in self._replaced:
                stack.enter_context(FUSED[kernel][1]())
            stack.enter_context(whole_graphs())
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

    def __init__(self, statistics: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        self.statistics = statistics  # batch norm's buffers at theta
        self.products: list[Product] = []
        self.denominator, self.bytes = 0.0, 0


def check_reached(engine: Forward, reached: Any, name: str) -> None:
    """Zeros are right where the parameters are not used, and wrong where autograd loses them:
    NotDifferentiable. ``reached``: whether autograd found any of them. Inside a session."""
    if not reached and engine.reads_parameters():
        raise NotDifferentiable(
            f"{name}: expected a loss with a derivative, but autograd finds no way from it to the "
            "parameters, although it uses them: torch.no_grad(), detach(), .item(), a new "
            "torch.tensor(...), argmax or a comparison cuts the way. Losses can be computed; "
            "derivatives need a differentiable loss"
        )


def _check_loss(value: Tensor, name: str) -> None:
    if not value.requires_grad:
        raise NotDifferentiable(
            f"{name}: expected a loss with a derivative in the model's outputs, got a value that "
            "autograd does not follow (argmax, .item(), detach() or torch.no_grad())"
        )


def _missing(error: Exception) -> str | None:
    """The op that has no derivative, from torch's words; None for other errors."""
    text = str(error)
    found = re.search(r"derivative for '?(?:aten::)?(\w+)'? is not implemented", text)
    if found:
        return found[1].lstrip("_").removesuffix("_backward")
    if "once_differentiable" in text:
        return "a custom autograd.Function with @once_differentiable"
    found = re.search(r"(\S+) (?:does not|doesn't) (?:currently )?support double backward", text)
    return found[1] if found else None


def _no_hooks(error: Exception) -> bool:
    """Whether torch.func or forward mode met the hooks that count what a graph saves."""
    text = str(error)
    return "saved tensor hooks" in text or "invalid python storage" in text


def _second_time(error: Exception) -> bool:
    return "backward through the graph a second time" in str(error)


def explained(error: Exception, name: str) -> Exception:
    """The error of ours for what torch could not differentiate."""
    if isinstance(error, PylandscapeError):
        return error
    if out_of_memory(error):
        return wrapping(
            error,
            f"{name}: not enough memory for the graph of one batch; pass smaller batches "
            f"({type(error).__name__}: {error})",
        )
    op = _missing(error)
    if op is not None:
        return wrapping(
            error,
            f"{name}: {op} has no such derivative in torch ({error}). Losses and gradients work; "
            "for second derivatives replace it by operations that have them (for example "
            "relu6(x + 3) / 6 for hardsigmoid), or have products with the Hessian by differences "
            "of gradients, with a bound of their error: Landscape(..., products='differences')",
            NotDifferentiable,
        )
    return wrapping(
        error,
        f"{name}: autograd could not differentiate the model and its loss: "
        f"{type(error).__name__}: {error}",
        NotDifferentiable,
    )


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
