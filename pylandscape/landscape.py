"""The landscape: the loss L(theta) of a model on data, as a function of one flat vector."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import engine_cuda, engine_native, engine_recompute, identity, statistics
from .data import Dataset, untouched_random_state
from .engine_torch import Objective, TorchEngine, call_model, eval_mode
from .errors import InvalidArgument, NotLowered
from .layout import ParameterLayout
from .losses import FreeLoss, KnownLoss, as_scalar, metric_name, resolve_loss
from .torch_derivatives import MEMORY

Evaluate = Callable[[np.ndarray], dict[str, np.ndarray]]
Metric = str | Callable[[Tensor, Tensor], Any]

_BN_MODES = ("eval", "recompute", "batch", "interpolate")
_ENGINES = ("auto", "native", "torch")


@dataclass(frozen=True)
class EngineReport:
    """Which engine answers, and why: ``reason`` is None for the native engine.

    ``seconds``: what capture, lowering and the comparison with the module took.
    """

    engine: str
    reason: str | None
    seconds: float
    capture: str | None = None
    ops: tuple[str, ...] = ()
    instruction_set: str | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"torch ({self.reason})"
        ops = ", ".join(dict.fromkeys(self.ops))
        return (
            f"native ({self.instruction_set}; captured by {self.capture} in "
            f"{self.seconds * 1e3:.0f} ms; ops: {ops})"
        )


class Landscape:
    """L(theta) of ``loss(model(x), y)`` over data, or of ``objective(model, batch)``.

    Args:
        model: any ``nn.Module``. It is never changed, and later changes of it do not reach here.
        loss: a torch.nn loss, its functional form, a name ("cross_entropy", "nll", "mse",
            "bce_with_logits"), or any callable of (outputs, target) giving a scalar.
        data: (x, y) tensors, a DataLoader, or an iterable of batches; read once, in order, kept.
            Inputs that are a tuple are passed as ``model(*inputs)``, a dict as
            ``model(**inputs)``.
        objective: instead of loss: ``f(model, batch)`` giving a scalar, for any task.
        weight: with objective: one number per batch, or a function of the batch; default its size.
        params: name patterns (``"layer1.*"``) of the parameters that make up theta; the others
            stay as they are. Default: all.
        bn: batch normalisation: "eval" uses the running statistics, "recompute" estimates them
            anew over the data at every point, "batch" uses each batch's own, "interpolate" moves
            the running means and variances along with the parameters: on lines to other models
            (`target_direction`, `interpolate`) they go linearly from one model's to the other's,
            along other directions they stay. Beyond the models a variance can become negative; all
            metrics of such a point are NaN. "recompute" and "batch" hold the activations of one
            whole batch (in each thread, while these take less than 1 GiB together). Derivatives
            hold the statistics fixed, but for "batch" and layers that track none.
        device: where to compute; default the model's. Given, the data are moved there.
        dtype: the dtype to compute in; default the model's own.
        engine: "auto" (native where it can), "native" (or an error that says why not), "torch".
        memory: bytes that derivatives may keep between products at the same theta, beyond the
            parameters and the data; default 2 GiB. What does not fit is computed anew.

    L is the loss of the concatenated data: known losses divide by their own denominator (samples,
    class weights, targets not ignored), "sum" adds, a free loss or objective is averaged by batch
    size or ``weight``. Known losses are computed in float64 from the outputs.

    Raises:
        InvalidArgument: for arguments that do not fit each other, non-finite parameters, data that
            the model cannot take, a loss that is no scalar.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any = None,
        data: Any = None,
        *,
        objective: Callable[[nn.Module, Any], Tensor] | None = None,
        weight: Sequence[float] | Callable[[Any], float] | None = None,
        params: Sequence[str] | None = None,
        bn: str = "eval",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        engine: str = "auto",
        memory: int | None = None,
    ) -> None:
        _check_choices(model, loss, data, objective, weight, bn, dtype, engine)
        own_device = _device_of(model)
        self.model = model
        self.device = own_device if device is None else _device(device)
        self.layout = ParameterLayout.of(model, params)
        _check_finite(model)
        self.dtype = dtype or _theta_dtype(self.layout)
        named: dict[str, Tensor] = dict(model.named_parameters())
        # What a point moves: theta, and with bn="interpolate" the running statistics after it.
        self.moved = self.layout
        if bn == "interpolate":
            self.moved = statistics.with_statistics(self.layout, model, params)
            named |= dict(model.named_buffers())
        self.origin = self.moved.flatten(named, self.dtype, self.device)
        self.theta = self.origin[: self.layout.n]
        self.has_batchnorm = any(isinstance(m, _BatchNorm) for m in model.modules())
        self.bn = bn
        self.memory = _memory(memory)
        self.dataset = Dataset(
            data, pairs=objective is None, device=self.device, move=device is not None
        )
        if objective is None:
            self.loss_spec: KnownLoss | FreeLoss | Objective = resolve_loss(loss)
        else:
            self.loss_spec = Objective(objective, _weights(weight, self.dataset))
        effective_bn = bn if self.has_batchnorm else "eval"
        if bn == "interpolate":
            effective_bn = bn if self.moved.n > self.layout.n else "eval"
        self._torch = TorchEngine(
            model,
            self.loss_spec,
            self.dataset.batches,
            self.moved,
            dtype=dtype,
            device=self.device,
            bn=effective_bn,
            memory=self.memory,
        )
        self._model_loss = self._first_loss(own_device, effective_bn, dtype)
        self._native, self._report = self._choose(engine, effective_bn)

    @property
    def n_params(self) -> int:
        """The length n of theta."""
        return self.layout.n

    @property
    def engine(self) -> str:
        """ "native" or "torch"."""
        return self._report.engine

    def __repr__(self) -> str:
        return (
            f"<Landscape of {type(self.model).__name__}: {self.n_params} parameters, "
            f"{self.loss_spec.name} over {self.dataset.size} samples, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}, {self.engine} engine>"
        )

    def engine_report(self) -> EngineReport:
        """Which engine runs and, where it is torch's, what kept the native one from it."""
        return self._report

    def loss(self, theta: Any = None) -> float:
        """L at theta (n,); default the model's parameters."""
        return float(self.losses(points=self._point(theta)[None])[0])

    def losses(
        self,
        coefficients: Any = None,
        directions: Any = None,
        *,
        points: Any = None,
        theta: Any = None,
    ) -> np.ndarray:
        """L at many points, float64.

        Args:
            coefficients, directions: (G, k) and (k, n): the points theta + C D.
            points: instead of them, any thetas (P, n).
            theta: the origin (n,) of the directions; default the model's parameters.

        With bn="interpolate", running statistics come along in a module, a state dict or a
        Direction that has them, or as further columns (n + m) in the order of ``moved``. A bare
        theta (n,) has the model's own.
        """
        if points is None:
            return self.evaluate(coefficients, directions, theta=theta)["loss"]
        if coefficients is not None or directions is not None or theta is not None:
            raise InvalidArgument(
                "points: expected either points or coefficients with directions, got both"
            )
        p = torch.as_tensor(points).detach()
        if p.dim() != 2 or p.shape[1] not in (self.n_params, self.moved.n):
            raise InvalidArgument(
                f"points: expected shape (P, {self.n_params}), got {tuple(p.shape)}"
            )
        p = p.to(self.dtype)
        if p.shape[1] < self.moved.n:
            rest = self.origin[self.n_params :].to(p.device).expand(len(p), -1)
            p = torch.cat([p, rest], dim=1)
        engine = self._native or self._torch
        ask = engine.prepare_points(("loss",))
        bad = statistics.negative_points(self.moved, p)
        found = statistics.without(bad, ("loss",), lambda good: ask(p[torch.as_tensor(good)]))
        return found["loss"]

    def evaluate(
        self,
        coefficients: Any,
        directions: Any,
        *,
        metrics: Sequence[Metric] = ("loss",),
        theta: Any = None,
    ) -> dict[str, np.ndarray]:
        """{metric: (G,) float64} at theta + C D; arguments as in ``losses`` and ``prepare``."""
        if coefficients is None or directions is None:
            raise InvalidArgument(
                "coefficients, directions: expected both (or points=), got "
                f"{type(coefficients).__name__} and {type(directions).__name__}"
            )
        ask = self.prepare(directions, metrics=metrics, theta=theta)
        c = np.asarray(torch.as_tensor(coefficients).detach().cpu(), dtype=np.float64)
        return ask(c)

    def prepare(
        self, directions: Any, *, metrics: Sequence[Metric] = ("loss",), theta: Any = None
    ) -> Evaluate:
        """A function from coefficients (g, k) to {metric: (g,)}, to be called chunk by chunk.

        What no point changes is computed here, once. ``metrics``: "loss", "accuracy", or
        callables ``f(outputs, target) -> float`` of the whole data's outputs, keyed by their
        ``__name__``. Chunks do not change the values.
        """
        from .directions import as_steps

        chosen = _checked_metrics(metrics, self.loss_spec)
        vectors, _ = as_steps(self, directions)
        base = self._point(theta)
        engine = self._native or self._torch
        ask = engine.prepare(base, vectors, chosen)
        negative = statistics.negative(self.moved, base, vectors)
        names = [metric_name(m) for m in chosen]
        k = vectors.shape[0]

        def evaluate(coefficients: np.ndarray) -> dict[str, np.ndarray]:
            c = np.asarray(coefficients, dtype=np.float64)
            if c.ndim != 2 or c.shape[1] != k:
                raise InvalidArgument(
                    f"coefficients: expected shape (G, {k}) for {k} direction"
                    f"{'s' if k != 1 else ''}, got {c.shape}"
                )
            if negative is None:
                return ask(c)
            return statistics.without(negative(c), names, lambda good: ask(c[good]))

        return evaluate

    def gradient(self, theta: Any = None) -> Tensor:
        """dL/dtheta (n,) float64, in loss per unit of parameter."""
        point = self._smooth_point(theta)
        try:
            result: Tensor = (self._native or self._torch).gradient(point)
        except NotLowered:  # an op without a compiled derivative
            result = self._torch.gradient(point)
        return result[: self.n_params]

    def hvp(self, v: Any, theta: Any = None) -> Tensor:
        """H v (n,) for v (n,), or the rows H v_i (k, n) for v (k, n); float64, H at theta."""
        return self._product("hessian", v, theta)

    def gauss_newton_product(self, v: Any, theta: Any = None) -> Tensor:
        """G v as `hvp`, G = J^T H_out J: the Hessian without the model's own curvature.

        J: the outputs' Jacobian, H_out: the loss's Hessian in the outputs. For cross-entropy, G is
        the Fisher information matrix (Martens 2020, section 9.2).
        """
        return self._product("gauss_newton", v, theta)

    def covariance_product(self, v: Any, theta: Any = None) -> Tensor:
        """Sigma v as `hvp`, Sigma = (1/N) sum_i g_i g_i^T of the per-sample gradients, uncentred.

        Also called the empirical Fisher matrix; g_i as in `per_sample_gradients`.
        """
        return self._product("covariance", v, theta)

    def per_sample_gradients(self, theta: Any = None) -> Tensor:
        """The samples' own gradients g_i (N, n), of the model's dtype; their mean is `gradient`.

        N n numbers: for small models.
        """
        point = self._smooth_point(theta)
        try:
            result: Tensor = (self._native or self._torch).per_sample_gradients(point)
        except NotLowered:  # an op without a compiled derivative
            result = self._torch.per_sample_gradients(point)
        return result[:, : self.n_params].contiguous()

    def hessian(self, theta: Any = None) -> Tensor:
        """The Hessian (n, n), float64, symmetrised; n^2 numbers, so for small models."""
        identity = torch.eye(self.n_params, dtype=self.dtype, device=self.device)
        h = self.hvp(identity, theta)
        return (h + h.T) / 2

    def linear_operator(self, theta: Any = None) -> LinearOperator:
        """The Hessian at theta as a scipy LinearOperator (n, n), float64."""
        point = self._point(theta)

        def matmat(v: np.ndarray) -> np.ndarray:
            rows = torch.as_tensor(np.ascontiguousarray(np.asarray(v).T))
            return np.asarray(self.hvp(rows, point).cpu()).T

        def matvec(v: np.ndarray) -> np.ndarray:
            return matmat(np.asarray(v).reshape(-1, 1))[:, 0]

        shape = (self.n_params, self.n_params)
        return LinearOperator(
            shape,
            matvec=matvec,
            rmatvec=matvec,
            matmat=matmat,
            rmatmat=matmat,
            dtype=np.dtype(np.float64),
        )

    def model_loss(self) -> float:
        """The module's own loss when the landscape was made: plain torch, no engine."""
        return self._model_loss

    def describe(self) -> dict[str, Any]:
        """What determines the numbers, JSON-able (see `identity.py`): the model's structure, code
        and frozen state, the loss by what it computes, data, arithmetic, versions."""
        return identity.of_landscape(self, self._torch.fixed_digest())

    def _product(self, matrix: str, v: Any, theta: Any) -> Tensor:
        vectors = torch.as_tensor(getattr(v, "vector", v)).detach().to(self.theta)
        if vectors.dim() not in (1, 2) or vectors.shape[-1] != self.n_params:
            raise InvalidArgument(
                f"v: expected shape ({self.n_params},) or (k, {self.n_params}), "
                f"got {tuple(vectors.shape)}"
            )
        return self._product_at(matrix, vectors, self._point(theta))

    def _product_at(self, matrix: str, vectors: Tensor, point: Tensor) -> Tensor:
        """The same of vectors (n,) or (k, n) like theta at a point of `_point`, all checked."""
        block = vectors.reshape(-1, self.n_params)
        if self.moved.n > self.n_params:
            point = statistics.without_negative(self.moved, point)
            block = torch.nn.functional.pad(block, (0, self.moved.n - self.n_params))
        try:
            result: Tensor = (self._native or self._torch).product(matrix, point, block)
        except NotLowered:  # an op without a compiled derivative
            result = self._torch.product(matrix, point, block)
        return result[:, : self.n_params].reshape(vectors.shape)

    def product_into(self, matrix: str, point: Tensor) -> Callable[[int, int, int], None] | None:
        """The native engine's product between addresses (see SymmetricOperator), or None."""
        if self._native is None or self.moved.n > self.n_params:
            return None
        return self._native.product_into(matrix, self._point(point))

    def _theta(self, theta: Any) -> Tensor:
        """The parameters (n,) of a point."""
        return self._point(theta)[: self.n_params]

    def _point(self, theta: Any) -> Tensor:
        """The parameters and what else the landscape moves, (n + m,)."""
        return self.origin if theta is None else statistics.point(self, theta, "theta")

    def _smooth_point(self, theta: Any) -> Tensor:
        """The point of derivatives: NaN in place of negative variances, where there are none."""
        return statistics.without_negative(self.moved, self._point(theta))

    def _first_loss(self, own: torch.device, bn: str, dtype: torch.dtype | None) -> float:
        """Runs the module once as the user would; every misfit of model and data shows here."""
        try:
            if bn in ("recompute", "batch") or isinstance(self.loss_spec, Objective) or dtype:
                points = self._torch.prepare_points(("loss",))(self.origin[None])
                return float(points["loss"][0])
            if own != self.device:
                points = self._torch.prepare_points(("loss",))(self.origin[None])
                return float(points["loss"][0])
            return self._eager_loss()
        except InvalidArgument:
            raise
        except Exception as error:
            raise InvalidArgument(
                f"data: the model and its loss could not be run on the batches given: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _eager_loss(self) -> float:
        total = denominator = 0.0
        spec = self.loss_spec
        with eval_mode(self.model), untouched_random_state(self.device), torch.no_grad():
            buffers = {name: b.clone() for name, b in self.model.named_buffers()}
            for batch in self.dataset.batches:
                inputs = batch.inputs
                outputs = torch.func.functional_call(
                    _Plain(self.model), {f"model.{k}": b for k, b in buffers.items()}, (inputs,)
                )
                if isinstance(spec, KnownLoss):
                    total += float(spec.total(outputs, batch.target))
                    share = spec.denominator(batch.target, tuple(outputs.shape))
                    denominator += share if spec.reduction == "mean" else 0.0
                elif isinstance(spec, FreeLoss):
                    total += batch.size * float(as_scalar(spec.fn(outputs, batch.target), "loss"))
                    denominator += batch.size
        if isinstance(spec, KnownLoss) and spec.reduction == "sum":
            return total
        return total / denominator if denominator else float("nan")

    def _choose(self, engine: str, bn: str) -> tuple[Any, EngineReport]:
        start = time.perf_counter()
        if engine == "torch":
            return None, EngineReport("torch", "asked for", 0.0)
        try:
            native = self._lower(bn)
        except NotLowered as refusal:
            if engine == "native":
                raise InvalidArgument(
                    f"engine: expected a model that the native engine can run, but {refusal.reason}"
                ) from refusal
            return None, EngineReport("torch", refusal.reason, time.perf_counter() - start)
        seconds = time.perf_counter() - start
        return native, EngineReport(
            "native", None, seconds, native.how, native.ops, native.instruction_set
        )

    def _lower(self, bn: str) -> Any:
        if not isinstance(self.loss_spec, KnownLoss):
            raise NotLowered(f"the loss {self.loss_spec.name!r} is free Python code")
        build: Any = engine_recompute.build if bn == "recompute" else engine_native.build
        if self.device.type == "cuda":
            build = engine_cuda.build
        elif self.device.type != "cpu":
            raise NotLowered(f"the landscape is on {self.device}")
        with eval_mode(self.model, bn == "batch"), untouched_random_state():
            return build(
                self.model,
                self.loss_spec,
                self.dataset,
                self.moved,
                self.origin,
                dtype=self.dtype,
                memory=self.memory,
                bn=bn,
            )


class _Plain(nn.Module):
    """Calls the module with its own parameters and with copies of its buffers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return call_model(self.model, inputs)


def _check_choices(
    model: Any,
    loss: Any,
    data: Any,
    objective: Any,
    weight: Any,
    bn: str,
    dtype: torch.dtype | None,
    engine: str,
) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if (loss is None) == (objective is None):
        got = "neither" if loss is None else "both"
        raise InvalidArgument(f"loss, objective: expected exactly one of them, got {got}")
    if objective is not None and not callable(objective):
        raise InvalidArgument(
            f"objective: expected a callable f(model, batch), got {type(objective).__name__}"
        )
    if data is None:
        raise InvalidArgument("data: expected (x, y), a DataLoader or batches, got nothing")
    if weight is not None and objective is None:
        raise InvalidArgument("weight: expected only together with objective=")
    if bn not in _BN_MODES:
        raise InvalidArgument(f"bn: expected one of {', '.join(_BN_MODES)}, got {bn!r}")
    if engine not in _ENGINES:
        raise InvalidArgument(f"engine: expected one of {', '.join(_ENGINES)}, got {engine!r}")
    if dtype is not None and dtype not in (torch.float32, torch.float64):
        raise InvalidArgument(f"dtype: expected torch.float32 or torch.float64, got {dtype}")


def _check_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        finite = torch.isfinite(parameter.detach())
        if not bool(finite.all()):
            bad = int((~finite).sum())
            raise InvalidArgument(
                f"model: expected finite parameters, but {name!r} has {bad} that are not"
            )


def _memory(memory: Any) -> int:
    if memory is None:
        return MEMORY
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 0:
        raise InvalidArgument(f"memory: expected a number of bytes, 0 or more, got {memory!r}")
    return memory


def _device(device: torch.device | str) -> torch.device:
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgument(f'device: expected "cpu" or "cuda", got {device!r}') from error
    if chosen.type == "meta":
        raise InvalidArgument("device: expected one that holds numbers, got meta")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InvalidArgument(
            f"device: expected one that this torch can use, got {chosen}, but this torch "
            f"({torch.__version__}) sees no CUDA device"
        )
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", torch.cuda.current_device())
    if chosen.type == "cuda" and chosen.index >= torch.cuda.device_count():
        raise InvalidArgument(
            f"device: expected one of {torch.cuda.device_count()} CUDA devices, got {chosen}"
        )
    return chosen


def _device_of(model: nn.Module) -> torch.device:
    devices = {t.device: name for name, t in (*model.named_parameters(), *model.named_buffers())}
    if len(devices) > 1:
        (a, first), (b, second) = list(devices.items())[:2]
        raise InvalidArgument(
            f"model: expected all parameters on one device, got {first!r} on {a} and "
            f"{second!r} on {b}"
        )
    return next(iter(devices), torch.device("cpu"))


def _theta_dtype(layout: ParameterLayout) -> torch.dtype:
    """The widest dtype of the parameters; float32 for half-precision models."""
    widest = max((e.dtype for e in layout.entries), key=lambda d: torch.finfo(d).bits)
    return widest if torch.finfo(widest).bits >= 32 else torch.float32


def _weights(weight: Any, dataset: Dataset) -> tuple[float, ...]:
    if weight is None:
        return tuple(float(batch.size) for batch in dataset.batches)
    if callable(weight):
        values = [float(weight(batch.raw)) for batch in dataset.batches]
    else:
        values = [float(w) for w in weight]
    if len(values) != len(dataset.batches):
        raise InvalidArgument(
            f"weight: expected one number per batch ({len(dataset.batches)}), got {len(values)}"
        )
    if not sum(values) > 0:
        raise InvalidArgument(f"weight: expected a positive sum, got {sum(values)}")
    return tuple(values)


def _checked_metrics(metrics: Sequence[Metric], loss: Any) -> tuple[Metric, ...]:
    chosen = (metrics,) if isinstance(metrics, str) or callable(metrics) else tuple(metrics)
    for metric in chosen:
        if not (callable(metric) or metric in ("loss", "accuracy")):
            raise InvalidArgument(
                f"metrics: expected 'loss', 'accuracy' or a callable, got {metric!r}"
            )
        if callable(metric) and not hasattr(metric, "__name__"):
            raise InvalidArgument(
                "metrics: expected a callable with a __name__ (its key in the result), got "
                f"{type(metric).__name__}"
            )
    if "accuracy" in chosen and getattr(loss, "kind", None) not in (
        "cross_entropy",
        "nll",
        "bce_with_logits",
    ):
        raise InvalidArgument(
            "metrics: 'accuracy' needs one of the losses cross_entropy, nll and "
            f"bce_with_logits, got {loss.name!r}; pass a callable metric instead"
        )
    return chosen
