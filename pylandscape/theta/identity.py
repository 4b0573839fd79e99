"""Whose numbers these are: everything that L(theta), or a matrix, depends on, in one place.

Two landscapes of equal identity have the same L, whatever theta is: the model's structure, code and
frozen state, the loss by what it computes, the data, the arithmetic. What a record cannot look into
(`naming.Record.opaque`) is told by numbers: L at two points, or two products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..arrays import OPAQUE, digest, text_digest
from .losses import KnownLoss
from .naming import Record
from .pieces import Row, Rows, digest_of
from .space import Problem

GPU_TOLERANCE = 1e-6  # relative, of such numbers on a GPU; on a CPU they must be equal
SEED = 29  # of the moved point and of the vectors
REACH = 0.0625  # how far the point is moved, relative to each parameter
LEAST = 0.015625  # the parameters count as at least this large there


class Asked(Problem, Protocol):
    """A Landscape, as far as it is asked who it is."""

    @property
    def engine(self) -> str:
        """ "native" or "torch"."""

    def engine_report(self) -> Any:
        """Which engine answers, and why."""

    def evaluate(
        self, coefficients: Any, directions: Any, *, metrics: Sequence[Any] = ("loss",)
    ) -> dict[str, np.ndarray]:
        """{metric: (G,)} at theta + C D."""


def of_landscape(land: Asked, state: str) -> dict[str, Any]:
    """What determines L(theta) for every theta, and the model's own theta; JSON-able.

    `state`: digest of the frozen parameters and the buffers.
    """
    model, loss = Record(), Record()
    model.module(land.model, told=True)
    spec = land.loss_spec
    about: dict[str, Any] = {"name": spec.name}
    if isinstance(spec, KnownLoss):
        about |= {
            "reduction": spec.reduction, "ignore_index": spec.ignore_index,
            "label_smoothing": spec.label_smoothing,
        } | spec.numbers  # fmt: skip
        for name, weight in (("weight", spec.weight), ("pos_weight", spec.pos_weight)):
            about[name] = None if weight is None else digest(weight)
    else:
        loss.add("function", spec.fn)
        if hasattr(spec, "weights"):
            about["weights"] = text_digest(repr(spec.weights))
    found: dict[str, Any] = {
        "engine": land.engine,
        "instruction_set": land.engine_report().instruction_set,
        "arithmetic": _arithmetic(land),
        "versions": {"pylandscape": own_version(), "torch": torch.__version__},
        "dtype": str(land.dtype).removeprefix("torch."),
        "n_params": land.n_params,
        "layout": land.layout.digest,
        "model": model.parts,
        "model_theta": digest_of(land.base),
        "model_state": state,
        "data": land.dataset.digest,
        "bn": land.bn,
        "has_batchnorm": land.has_batchnorm,
        "loss": about | loss.parts,
    }
    if land.dataset.subset is not None:
        found["subset"] = asdict(land.dataset.subset)
    hidden = [f"model: {each}" for each in model.opaque]
    hidden += [f"loss: {each}" for each in loss.opaque]
    if not land.dataset.plain:
        data = Record()
        for i, batch in enumerate(land.dataset.batches):
            data.add(f"batch {i}", batch.raw)
        found["batches"] = data.parts
        hidden += [f"data: {each}" for each in data.opaque]
    if hidden:
        found[OPAQUE] = _told_by(hidden, _at_two_points(land, "loss"), land.device)
    return found


def of_metric(land: Asked, metric: str | Callable[..., Any], name: str) -> Any:
    """A metric of a landscape: its name, or what the callable computes."""
    if isinstance(metric, str):
        return metric
    record = Record()
    record.add("function", metric)
    found: dict[str, Any] = {"name": name, **record.parts}
    if record.opaque:
        found[OPAQUE] = _told_by(record.opaque, _at_two_points(land, metric, name), land.device)
    return found


def of_product(what: Any, n: int, product: Callable[[Tensor], Tensor], like: Tensor) -> Any:
    """A symmetric matrix (n, n) known by its products alone.

    Args:
        what: the function, operator or matrix that multiplies.
        product: rows (k, n), of dtype and device of `like`, to their products.
    """
    record = Record()
    record.add("operator", what)
    found: dict[str, Any] = dict(record.parts)
    if record.opaque:
        vectors, weights = (_gaussian(2 * n, i).reshape(2, n).double() for i in (1, 2))
        products = product(vectors.to(like)).detach().cpu().double()
        told = [math.fsum(row) if all(map(math.isfinite, row)) else math.nan
                for row in (weights * products).tolist()]  # fmt: skip
        found[OPAQUE] = _told_by(record.opaque, told, like.device)
    return found


def own_version() -> str:
    """This package's version; "source" where it is not installed."""
    try:
        return version("pylandscape")
    except PackageNotFoundError:
        return "source"


def _arithmetic(land: Asked) -> dict[str, Any]:
    """What decides the last bits beside the engine: PyTorch's sums depend on threads and device."""
    if land.device.type == "cuda":
        return {"device": torch.cuda.get_device_name(land.device)}
    if land.engine == "native":
        return {"device": "cpu"}
    return {
        "device": land.device.type,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _told_by(what: list[str], numbers: list[float], device: torch.device) -> dict[str, Any]:
    tolerance = 0.0 if device.type == "cpu" else GPU_TOLERANCE
    return {"what": what, "numbers": numbers, "tolerance": tolerance}


def _at_two_points(land: Asked, metric: Any, name: str = "loss") -> list[float]:
    """The metric at the model's own theta and at one moved from there."""
    steps = Rows([_Step(land.base, land.n_params)])
    directions: Any = steps if land.moved.n == land.n_params else steps.matrix()
    found = land.evaluate(np.array([[0.0], [1.0]]), directions, metrics=(metric,))
    return [float(value) for value in found[name]]


class _Step(Row):
    """From the model's own theta to a point nearby."""

    def __init__(self, base: Row, n: int) -> None:
        self.n, self.dtype, self.device, self._at = n, base.dtype, base.device, base

    def piece(self, begin: int, end: int) -> Tensor:
        theta = self._at.piece(begin, end).cpu()
        step = _gaussian(end - begin, 0, begin).to(theta) * REACH
        return (step * theta.abs().clamp(min=LEAST)).to(self.device)


def _gaussian(count: int, stream: int, first: int = 0) -> Tensor:
    from .directions import gaussian

    return gaussian(SEED, stream, first, count)
