"""PyHessian's class; the package's docstring says where it differs from the original."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...curvature.eigen import eigenpairs
from ...curvature.operators import as_operator
from ...curvature.spectra import spectrum
from ...curvature.symmetric_operator import SymmetricOperator
from ...engines.forward_pass import call_model, eval_mode
from ...errors import InvalidArgument
from ...landscape import Landscape
from ...theta.data import untouched_random_state
from .. import _current as current
from . import _original as original

VERSIONS = ("0.1",)
BLOCK = 10  # probes of the trace that are multiplied at once


class InvalidRequest(InvalidArgument, AssertionError):
    """Arguments that the original refuses by an assertion."""


class Samples(list[float]):
    """Samples v^T H v of the trace; their mean estimates it."""

    @property
    def estimate(self) -> float:
        """The estimate of the trace."""
        return float(np.mean(self))

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN for one sample."""
        return float(np.std(self, ddof=1)) / len(self) ** 0.5 if len(self) > 1 else float("nan")


class hessian:  # the original's name
    """The Hessian of ``criterion(model(x), y)`` over one batch or a loader, in eval mode.

    Args:
        model, criterion: as in the original; parameters that need no gradient stay fixed.
        data: one batch (inputs, targets); the Hessian is that of the model as it is now.
        dataloader: batches; the model may change between calls.
        cuda: compute on the current CUDA device; the CPU, with a warning, where there is none.
        compat: "0.1" for the original's iterations and numbers.

    Raises:
        InvalidArgument: not exactly one of data and dataloader (also an AssertionError), data that
            the model cannot take, unknown `compat`.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Any,
        data: Any = None,
        dataloader: Iterable[Any] | None = None,
        cuda: bool = True,
        *,
        compat: str | None = None,
    ) -> None:
        if (data is None) == (dataloader is None):
            got = "neither" if data is None else "both"
            raise InvalidRequest(f"data, dataloader: expected exactly one of them, got {got}")
        self.compat = current.version("pyhessian", compat, VERSIONS)
        self.model, self.criterion = model, criterion
        self.full_dataset = data is None
        self.data = data if data is not None else dataloader
        place = current.chosen_device(cuda, "cuda")
        self.device = place.type
        self.params = [p for p in model.parameters() if p.requires_grad]
        if not self.params:
            raise InvalidArgument("model: expected parameters that require gradients, got none")
        self._names = [n for n, p in model.named_parameters() if p.requires_grad]
        self._place = place
        self._live = current.LiveLandscape(model, self._build)
        self._fixed: Landscape | None = None
        self._gradients: list[Tensor] | None = None
        if not self.full_dataset:
            if not isinstance(data, tuple | list) or len(data) != 2:
                raise InvalidArgument(
                    f"data: expected a pair (inputs, targets), got {type(data).__name__}"
                )
            self.inputs, self.targets = (
                part.to(place) if isinstance(part, Tensor) else part for part in data
            )
            self._fixed = self._build()

    @property
    def landscape(self) -> Landscape:
        """The landscape whose Hessian this is."""
        return self._fixed if self._fixed is not None else self._live.get()

    @property
    def gradsH(self) -> list[Tensor]:  # the original's name
        """The gradients by parameter: for ``data`` with a graph for second derivatives, made when
        first asked for; for a loader those of the whole data, without.
        """
        if self._gradients is None or self.full_dataset:
            if self.full_dataset:
                flat = self.landscape.gradient()
                self._gradients = current.split_like(flat, self.params)
            else:
                with eval_mode(self.model), untouched_random_state(self._place):
                    outputs = call_model(self.model, self.inputs)
                    loss = self.criterion(outputs, self.targets)
                found = torch.autograd.grad(loss, self.params, create_graph=True, allow_unused=True)
                self._gradients = [
                    torch.zeros_like(p) if g is None else g
                    for g, p in zip(found, self.params, strict=True)
                ]
        return self._gradients

    def dataloader_hv_product(self, v: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        """v^T H v and H v for v given by parameter."""
        land = self.landscape
        flat = torch.cat([part.detach().reshape(-1) for part in v]).to(land.device)
        if flat.numel() != land.n_params:
            raise InvalidArgument(
                f"v: expected {land.n_params} numbers in {len(self.params)} tensors, "
                f"got {flat.numel()} in {len(v)}"
            )
        found = land.hvp(flat)
        current.count("pyhessian.dataloader_hv_product", land, 1)
        return float(found @ flat.double()), current.split_like(found, self.params)

    def eigenvalues(
        self,
        maxIter: int = 100,
        tol: float = 1e-3,
        top_n: int = 1,
    ) -> tuple[list[float], list[list[Tensor]]]:
        """The top_n eigenvalues of largest magnitude, and their vectors by parameter.

        At most maxIter top_n products. A pair has converged when ||H v - value v|| <= tol |value|;
        a `ConvergenceWarning` names those that have not.
        """
        if top_n < 1:
            raise InvalidRequest(f"top_n: expected at least 1, got {top_n}")
        if maxIter < 1:
            raise InvalidArgument(f"maxIter: expected at least 1, got {maxIter}")
        op = self._operator()
        name = "pyhessian.eigenvalues"
        if self.compat:
            product = _single(op)
            values, rows = original.power_iteration(product, self.params, maxIter, tol, top_n)
            vectors = [current.split_like(row, self.params) for row in rows]
            current.count(name, self.landscape, op.products)
            return values, vectors
        pairs = eigenpairs(
            op, top_n, "LM", tol=min(tol, 0.5), max_products=maxIter * top_n,
            seed=current.drawn_seed(), progress=False,
        )  # fmt: skip
        current.count(name, self.landscape, op.products)
        current.warn_of_residuals(name, pairs, tol)
        return pairs.values.tolist(), [current.split_like(v, self.params) for v in pairs.vectors]

    def trace(self, maxIter: int = 100, tol: float = 1e-3) -> Samples:
        """Samples whose mean estimates tr H: at most maxIter, until their standard error is at
        most tol of the mean. The list has `estimate` and `standard_error`.
        """
        if maxIter < 1:
            raise InvalidArgument(f"maxIter: expected at least 1, got {maxIter}")
        op = self._operator()
        if self.compat:
            samples = Samples(original.hutchinson(_single(op), self.params, maxIter, tol))
        else:
            samples = Samples()
            while len(samples) < maxIter:
                v = self._probes(min(BLOCK, maxIter - len(samples)))
                samples += op.forms(v).tolist()
                if samples.standard_error <= tol * abs(samples.estimate):
                    break
        current.count("pyhessian.trace", self.landscape, op.products)
        return samples

    def density(self, iter: int = 100, n_v: int = 1) -> tuple[list[list[float]], list[list[float]]]:
        """Nodes and weights of n_v runs of stochastic Lanczos quadrature with iter steps.

        At most as many nodes as parameters; where runs end at different lengths, the shorter ones
        repeat their last node with weight 0.
        """
        op = self._operator()
        if self.compat:
            runs = [original.quadrature(_single(op), self.params, iter) for _ in range(n_v)]
            nodes, weights = [run[0] for run in runs], [run[1] for run in runs]
        else:
            starts = self._probes(n_v)
            # Semi-orthogonality gives T to rounding (Simon 1984), in two thirds of the time.
            found = spectrum(
                op, steps=iter, starts=starts, reorthogonalize="partial", progress=False
            )
            filled = np.fmax.accumulate(found.nodes, axis=1)  # NaN: the node before
            nodes, weights = filled.tolist(), found.weights.tolist()
        current.count("pyhessian.density", self.landscape, op.products)
        return nodes, weights

    def _build(self) -> Landscape:
        whole = all(p.requires_grad for p in self.model.parameters())
        batches = self.data if self.full_dataset else [(self.inputs, self.targets)]
        return Landscape(
            self.model, self.criterion, batches, device=self._place,
            params=None if whole else current.literal(self._names),
        )  # fmt: skip

    def _operator(self) -> SymmetricOperator:
        return as_operator(self.landscape)

    def _probes(self, count: int) -> Tensor:
        """(count, n) of random signs."""
        if count < 1:
            raise InvalidArgument(f"n_v: expected at least 1, got {count}")
        if self._place.type == "cpu":  # the original's stream, in one go
            n = sum(p.numel() for p in self.params)
            return torch.randint(2, (count, n), dtype=torch.float32).mul_(2).sub_(1)
        return torch.stack([original.drawn(self.params, original.signs) for _ in range(count)])


def _single(op: SymmetricOperator) -> original.Product:
    return lambda v: op(v[None])[0].to(v)
