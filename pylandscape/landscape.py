"""The landscape: the loss L(theta) of a model on data, as a function of one flat vector."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .arrays import digest_of_all
from .engines import native as engine_native
from .engines import recompute, slopes
from .engines.cuda import engine as engine_cuda
from .engines.eager import LOCK, TorchEngine, eval_mode, rebound
from .engines.eager_derivatives import MEMORY
from .errors import InvalidArgument, NotLowered, out_of_memory, wrapping
from .theta import identity, running_statistics
from .theta.checkpoints import without_wrappers
from .theta.checks import (
    batch_weights,
    check_choices,
    check_finite,
    chosen_device,
    device_of,
    theta_dtype,
)
from .theta.data import Batch, Dataset, not_finite
from .theta.layout import ParameterLayout
from .theta.losses import FreeLoss, KnownLoss, Objective, metric_name, resolve_loss, why_free
from .theta.snapshot import Snapshot, unwrapped

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

    from .engines.points.evaluator import PointEvaluator


Evaluate = Callable[[np.ndarray], dict[str, np.ndarray]]
Metric = str | Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class EngineReport:
    """Which engine answers, and why: ``reason`` is None for the native engine.

    ``seconds``: what capture, lowering and the comparison with the module took. ``derivatives``: of
    the native engine, why gradients and products run in torch nevertheless; None where they are
    compiled too. ``arithmetic``: how a model of half precision is computed. ``note``: where
    derivatives are not the slope of the losses (`Landscape.slope_mismatch`).
    """

    engine: str
    reason: str | None
    seconds: float
    capture: str | None = None
    ops: tuple[str, ...] = ()
    instruction_set: str | None = None
    derivatives: str | None = None
    arithmetic: str | None = None
    note: str | None = None

    def __str__(self) -> str:
        more = "" if self.arithmetic is None else f"; {self.arithmetic}"
        end = "" if self.note is None else f"; {self.note}"
        if self.reason is not None:
            return f"torch ({self.reason}{more}){end}"
        ops = ", ".join(dict.fromkeys(self.ops))
        about = (
            f"{self.instruction_set}; captured by {self.capture} in {self.seconds * 1e3:.0f} ms; "
            f"ops: {ops}{more}"
        )
        if self.derivatives is not None:
            return f"values native ({about}), derivatives torch ({self.derivatives}){end}"
        return f"native ({about}){end}"


class Landscape:
    """L(theta) of ``loss(model(x), y)`` over data, or of ``objective(model, batch)``.

    Args:
        model: any ``nn.Module``. The landscape answers for its own copy, ``land.model``, in eval
            mode: the module is never changed, and later changes of it do not reach here. While the
            landscape is made, the module itself runs once at moved parameters, as a check of the
            copy, and gets every bit back. DataParallel, DistributedDataParallel and torch.compile
            are taken off. State that the model keeps between calls (buffers, attributes, tensors
            changed in place) starts anew at every point; batches of one point see it evolve.
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
    class weights, targets not ignored), "sum" adds. They are computed in float64 from the outputs.
    What a free loss or an objective gives for a batch is averaged over the batches by batch size or
    ``weight``, also where it is a sum over the samples; of one batch, L is what it gives.

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
        check_choices(model, loss, data, objective, weight, bn, dtype, engine)
        whole, model = model, unwrapped(model)
        own_device = device_of(model)
        self.device = own_device if device is None else chosen_device(device)
        check_finite(model)
        moved = None if self.device == own_device else self.device
        with LOCK:  # another landscape in the making moves its module
            snapshot = Snapshot(model, dtype, moved)
        if whole is not model:  # what holds the wrapper gets the copy of the module inside
            snapshot.alias(whole, model)
        self.model = snapshot.model
        params = _own_names(params)
        self.layout = ParameterLayout.of(self.model, params)
        self.dtype = dtype or theta_dtype(self.layout)
        named: dict[str, Tensor] = dict(self.model.named_parameters())
        # What a point moves: theta, and with bn="interpolate" the running statistics after it.
        self.moved = self.layout
        if bn == "interpolate":
            self.moved = running_statistics.with_statistics(self.layout, self.model, params)
            named |= dict(self.model.named_buffers())
        self.origin = self.moved.flatten(named, self.dtype, self.device)
        self.theta = self.origin[: self.layout.n]
        self.has_batchnorm = any(isinstance(m, _BatchNorm) for m in model.modules())
        self.bn = bn
        self.memory = _memory(memory)
        self.dataset = Dataset(
            data, pairs=objective is None, device=self.device, move=device is not None
        )
        own_loss: KnownLoss | FreeLoss | Objective
        if objective is None:
            own_loss = resolve_loss(loss)
        else:
            own_loss = Objective(objective, batch_weights(weight, self.dataset))
        self.loss_spec = rebound(snapshot, own_loss)
        effective_bn = bn if self.has_batchnorm else "eval"
        if bn == "interpolate":
            effective_bn = bn if self.moved.n > self.layout.n else "eval"
        self._asked = effective_bn, dtype, engine
        self._start(snapshot)
        first = self.dataset.batches[0]
        if moved is not None:
            first = first.mapped(lambda t: t.to(own_device))
        # Where it is not the module itself that runs, an error there says nothing.
        converted = dtype is not None or moved is not None or whole is not model
        self.eager.compare(model, own_loss, first, converted)
        self.eager.release()
        self._choose()

    def _start(self, snapshot: Snapshot) -> None:
        bn, dtype, _ = self._asked
        self._lock = threading.RLock()  # of what is made when it is first asked for:
        self._elsewhere: tuple[str, Landscape] | None = None  # with another model's buffers
        self._points: PointEvaluator | None = None
        self.eager = TorchEngine(
            self.model,
            self.loss_spec,
            self.dataset.batches,
            self.moved,
            dtype=dtype,
            device=self.device,
            bn=bn,
            memory=self.memory,
            snapshot=snapshot,
        )
        self._model_loss = self._first_loss()
        self._slope: tuple[str | None, ...] = ()

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
        """Which engine runs and, where it is torch's, what kept the native one from it.

        The first call also looks at the derivatives (`slope_mismatch`), but for networks of more
        than ten million parameters, where that has to be asked for.
        """
        return replace(self._report, note=self.slope_note())

    def slope_note(self) -> str | None:
        """`slope_mismatch` where it is cheap or known already, else None."""
        known = self._slope or self.n_params <= slopes.UNASKED
        return self.slope_mismatch() if known else None

    def slope_mismatch(self) -> str | None:
        """A sentence where the derivatives, autograd's, are not the slope of the losses.

        So it is for models with detach, no_grad, hooks on gradients, custom autograd functions.
        None where they are; found once, from a few samples of the first batch.
        """
        if not self._slope:
            self._slope = (slopes.mismatch(self),)
        return self._slope[0]

    def loss(self, theta: Any = None) -> float:
        """L at theta (n,); default the model's parameters."""
        home, point = self._located(theta)
        return float(home.losses(points=point[None])[0])

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
            theta: the origin of the directions: (n,), a module or a state dict; default the
                model's parameters.

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
        engine = self.native or self.eager
        ask = engine.prepare_points(("loss",))
        bad = running_statistics.negative_points(self.moved, p)
        found = running_statistics.without(
            bad, ("loss",), lambda good: ask(p[torch.as_tensor(good)])
        )
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
        from .theta.directions import as_steps

        chosen = _checked_metrics(metrics, self.loss_spec)
        vectors, _ = as_steps(self, directions)
        home, base = self._located(theta)
        engine = home.native or home.eager
        ask = engine.prepare(base, vectors, chosen)
        negative = running_statistics.negative(self.moved, base, vectors)
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
            return running_statistics.without(negative(c), names, lambda good: ask(c[good]))

        return evaluate

    def gradient(self, theta: Any = None) -> Tensor:
        """dL/dtheta (n,) float64, in loss per unit of parameter.

        ``theta``, as in all of this class: (n,), or a module or state dict, which brings its
        buffers along (see `at`); default the model's parameters.
        """
        home, point = self._smooth_point(theta)
        try:
            result: Tensor = (home.native or home.eager).gradient(point)
        except NotLowered:  # derivatives that are not compiled
            result = home.eager.gradient(point)
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
        home, point = self._smooth_point(theta)
        try:
            result: Tensor = (home.native or home.eager).per_sample_gradients(point)
        except NotLowered:  # derivatives that are not compiled
            result = home.eager.per_sample_gradients(point)
        return result[:, : self.n_params].contiguous()

    def hessian(self, theta: Any = None) -> Tensor:
        """The Hessian (n, n), float64, symmetrised; n^2 numbers, so for small models.

        Raises InvalidArgument where it and what it is made from cannot fit the machine's memory.
        """
        there, needed = _memory_of(self.device), 3 * 8 * self.n_params**2
        if needed > there:
            raise InvalidArgument(
                f"hessian: expected a model whose Hessian fits the memory, but of n = "
                f"{self.n_params:,} parameters it takes {needed / 2**30:,.0f} GiB and there are "
                f"{there / 2**30:,.0f}; hvp(), linear_operator(), eigenpairs() and spectrum() need "
                "products alone"
            )
        identity = torch.eye(self.n_params, dtype=self.dtype, device=self.device)
        h = self.hvp(identity, theta)
        return (h + h.T) / 2

    def linear_operator(self, theta: Any = None) -> LinearOperator:
        """The Hessian at theta as a scipy LinearOperator (n, n), float64."""
        from scipy.sparse.linalg import LinearOperator

        home, point = self._located(theta)

        def matmat(v: np.ndarray) -> np.ndarray:
            rows = torch.as_tensor(np.ascontiguousarray(np.asarray(v).T))
            return np.asarray(home.hvp(rows, point).cpu()).T

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

    def model_loss(self, theta: Any = None) -> float:
        """The module's own loss when the landscape was made, or that of another module or state
        dict: by torch, without the compiled program."""
        if theta is None:
            return self._model_loss
        home, point = self._located(theta)
        return float(home.eager.prepare_points(("loss",))(point[None])["loss"][0])

    def at(self, theta: Any) -> Landscape:
        """The landscape that ``theta`` is a point of: this one, unless theta is a module, a state
        dict or a checkpoint's path with other buffers than the model's, for example other running
        statistics.

        Points have only what `moved` lists, so such a model has a landscape of its own: with its
        buffers, the same data and loss. The last one is kept. All methods and functions that take
        ``theta=`` ask it.

        Raises:
            InvalidArgument: theta has other parameters beside those that ``params=`` chose.
            LayoutMismatch: another layout; a state dict without running statistics.
        """
        buffers = running_statistics.foreign_buffers(self, theta, "theta")
        if not buffers:
            return self
        whole = {**dict(self.model.named_buffers()), **buffers}
        point = self.moved.vector(theta, "theta", self.dtype, self.device)
        key = digest_of_all([point, {name: whole[name] for name in sorted(buffers)}])
        with self._lock:
            if self._elsewhere is None or self._elsewhere[0] != key:
                self._elsewhere = None  # before the next one takes its memory
                self._elsewhere = key, self._moved_to(point, buffers)
            return self._elsewhere[1]

    def _moved_to(self, point: Tensor, buffers: dict[str, Tensor]) -> Landscape:
        other = copy.copy(self)
        with self.eager.session():
            snapshot = Snapshot(self.model)
            other.loss_spec = rebound(snapshot, self.loss_spec)
        other.model, other.origin, other.theta = snapshot.model, point, point[: self.n_params]
        named = dict(other.model.named_parameters()) | dict(other.model.named_buffers())
        with torch.no_grad():
            for name, tensor in (self.moved.unflatten(point) | buffers).items():
                named[name].copy_(tensor)
        other._start(snapshot)
        other.eager.release()
        other._choose()
        return other

    def point_evaluator(self) -> PointEvaluator:
        """Loss, gradient and Hessian of many points of a small model, made once."""
        from .engines.points.evaluator import PointEvaluator

        with self._lock:
            if self._points is None:
                self._points = PointEvaluator(self)
            return self._points

    def describe(self) -> dict[str, Any]:
        """What determines the numbers, JSON-able (theta/identity.py): the model's structure, code
        and frozen state, the loss by what it computes, data, arithmetic, versions."""
        return identity.of_landscape(self, self.eager.fixed_digest())

    def _product(self, matrix: str, v: Any, theta: Any) -> Tensor:
        vectors = torch.as_tensor(getattr(v, "vector", v)).detach().to(self.theta)
        if vectors.dim() not in (1, 2) or vectors.shape[-1] != self.n_params:
            raise InvalidArgument(
                f"v: expected shape ({self.n_params},) or (k, {self.n_params}), "
                f"got {tuple(vectors.shape)}"
            )
        home, point = self._located(theta)
        return home.product_at(matrix, vectors, point)

    def product_at(self, matrix: str, vectors: Tensor, point: Tensor) -> Tensor:
        """The same of vectors (n,) or (k, n) like theta at a `point`, all checked."""
        block = vectors.reshape(-1, self.n_params)
        if self.moved.n > self.n_params:
            point = running_statistics.without_negative(self.moved, point)
            block = torch.nn.functional.pad(block, (0, self.moved.n - self.n_params))
        try:
            result: Tensor = (self.native or self.eager).product(matrix, point, block)
        except NotLowered:  # derivatives that are not compiled
            result = self.eager.product(matrix, point, block)
        return result[:, : self.n_params].reshape(vectors.shape)

    def native_products(
        self, matrix: str, point: Tensor
    ) -> Callable[[], tuple[Any, Any, float]] | None:
        """What gives the native engine's products (see SymmetricOperator), or None."""
        if self.native is None or self.moved.n > self.n_params:
            return None
        return self.native.products_at(matrix, self.point(point))

    def _theta(self, theta: Any) -> Tensor:
        """The parameters (n,) of a point, whatever its buffers."""
        if theta is None:
            return self.theta
        return running_statistics.parameters(self, theta, "theta")

    def point(self, theta: Any) -> Tensor:
        """The parameters and what else the landscape moves, (n + m,); not of other buffers."""
        return self.origin if theta is None else running_statistics.point(self, theta, "theta")

    def _located(self, theta: Any) -> tuple[Landscape, Tensor]:
        """The landscape that has the buffers of theta, and theta as its point."""
        home = self.at(theta)
        return home, home.point(theta)

    def _smooth_point(self, theta: Any) -> tuple[Landscape, Tensor]:
        """The same for derivatives: NaN in place of negative variances, where there are none."""
        home, point = self._located(theta)
        return home, running_statistics.without_negative(self.moved, point)

    def _first_loss(self) -> float:
        """Runs the copy over the data; every misfit of model and data shows here."""
        try:
            loss = self.eager.first_loss()
        except InvalidArgument:
            raise
        except Exception as error:
            raise wrapping(error, _advice(error, self.dataset.batches[0])) from error
        if not np.isfinite(loss):
            where = not_finite(self.dataset.batches)
            if where is not None:
                raise InvalidArgument(f"data: expected finite numbers, but {where}; L is {loss}")
        return loss

    def _choose(self) -> None:
        """Which engine answers."""
        self.eager.release()
        bn, _, engine = self._asked
        start = time.perf_counter()
        self.native: Any = None
        if engine == "torch":
            self._report = EngineReport("torch", "asked for", 0.0, arithmetic=self._half())
            return
        try:
            if self.eager.writes_input:
                raise NotLowered("the forward pass writes into its input")
            native = self._lower(bn)
            obstacle = self.eager.obstacle()
            if obstacle is not None:
                raise NotLowered(obstacle)
        except NotLowered as refusal:
            if engine == "native":
                raise InvalidArgument(
                    f"engine: expected a model that the native engine can run, but {refusal.reason}"
                ) from refusal
            seconds = time.perf_counter() - start
            self._report = EngineReport("torch", refusal.reason, seconds, arithmetic=self._half())
            return
        self.native = native
        self._report = EngineReport(
            "native",
            None,
            time.perf_counter() - start,
            native.how,
            native.ops,
            native.instruction_set,
            native.derivatives_refused(),
            self._half(),
        )

    def _half(self) -> str | None:
        """How a model of half precision is computed."""
        half = {e.dtype for e in self.layout.entries if torch.finfo(e.dtype).bits < 32}
        if not half:
            return None
        names = " and ".join(sorted(str(d).removeprefix("torch.") for d in half))
        if self._asked[1] is not None:
            return f"a {names} model, converted to {self.dtype}".replace("torch.", "")
        return (
            f"a {names} model: theta is float32 and rounded to {names} at every point, the forward "
            f"pass runs in {names}; dtype=torch.float32 computes it in float32"
        )

    def _lower(self, bn: str) -> Any:
        if not isinstance(self.loss_spec, KnownLoss):
            raise NotLowered(why_free(self.loss_spec))
        build: Any = recompute.build if bn == "recompute" else engine_native.build
        if self.device.type == "cuda":
            build = engine_cuda.build
        elif self.device.type != "cpu":
            raise NotLowered(f"the landscape is on {self.device}")
        with self.eager.session(), eval_mode(self.model, bn == "batch"):
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


def _own_names(params: Sequence[str] | None) -> Sequence[str] | None:
    """Name patterns without what DataParallel and torch.compile put in front."""
    if params is None or isinstance(params, str):
        return None if params is None else without_wrappers(params)
    return [without_wrappers(p) if isinstance(p, str) else p for p in params]


def _advice(error: BaseException, batch: Batch) -> str:
    """What a first run that failed may mean."""
    if out_of_memory(error):
        return (
            "data: not enough memory to run one batch; pass smaller batches "
            f"({type(error).__name__}: {error})"
        )
    advice = (
        "the model runs in eval mode, so a loss that it computes in train mode alone is not there; "
        "a batch (inputs, target) is called as loss(model(inputs), target), anything else needs "
        "objective=f(model, batch)"
    )
    if isinstance(batch.inputs, Tensor) and batch.inputs.dim() <= 1:
        advice = (
            f"inputs of shape {tuple(batch.inputs.shape)} look like one sample: expected a leading "
            "batch dimension, x[None]"
        )
    return (
        "data: the model and its loss could not be run on the batches given: "
        f"{type(error).__name__}: {error} ({advice})"
    )


def _memory(memory: Any) -> int:
    if memory is None:
        return MEMORY
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 0:
        raise InvalidArgument(f"memory: expected a number of bytes, 0 or more, got {memory!r}")
    return memory


def _memory_of(device: torch.device) -> int:
    """Bytes of all of the device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this system
        return 1 << 40


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
