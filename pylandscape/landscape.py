"""The landscape: the loss L(theta) of a model on data, as a function of one flat vector.

The facade: it finds the point that is asked about and hands the question to its engine. Where the
way goes on: values and derivatives in engines/native.py (from there into csrc), else in
engines/eager.py; which of them, and why, in engines/choose.py; checks of arguments in
theta/checks.py; directions in theta/directions.py; what a request records in theta/identity.py.
"""

from __future__ import annotations

import contextlib
import copy as copying
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DistributedSampler

from .arguments import callers_level, integer
from .arrays import all_finite, digest_of_all, scipy_operator
from .engines import shared_data, slopes
from .engines.choose import EngineReport, choose
from .engines.differences import LINEAR, check_products, hessian_by_differences
from .engines.eager import TorchEngine
from .engines.eager_derivatives import MEMORY
from .engines.eager_switches import LOCK, Autocast, outside_inference_mode
from .engines.forward_pass import rebound
from .engines.shared_data import DataShards
from .errors import InvalidArgument, NotLowered, PylandscapeError, wrapping
from .theta import computed, identity, running_statistics, sampling
from .theta.checks import (
    Metric,
    advice_on_first_run,
    as_coefficients,
    batch_weights,
    check_choices,
    check_finite,
    check_fits_memory,
    check_room,
    check_subset,
    chosen_device,
    chosen_metrics,
    device_of,
    own_names,
    theta_dtype,
    whole_bytes,
)
from .theta.data import Dataset, not_finite
from .theta.eval_mode import bare_names, into_eval, unwrapped
from .theta.layout import ParameterLayout
from .theta.losses import (
    Objective,
    counted_labels,
    metric_name,
    own_loss,
    resolve_loss,
)
from .theta.pieces import ModuleTensors, Row, Rows, Stored, named_tensors
from .theta.snapshot import Snapshot

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

    from .engines.contract import CompiledEngine, CoreProducts, Engine, Evaluate
    from .engines.points.evaluator import PointEvaluator
    from .engines.shared_data import Part, Plan


class Landscape:
    """L(theta) of ``loss(model(x), y)`` over data, or of ``objective(model, batch)``.

    Args:
        model: any ``nn.Module``. The landscape answers for its own copy, ``land.model``, in eval
            mode: the module is never changed, and later changes of it do not reach here. While the
            landscape is made, the module itself runs once at moved parameters, as a check of the
            copy, and gets every bit back. DataParallel, DistributedDataParallel and torch.compile
            are taken off. State that the model keeps between calls (buffers, attributes, tensors
            changed in place) starts anew at every point; batches of one point see it evolve. So
            does what its code and the loss's change outside (in closures, globals, classes,
            context variables, the environment) and also read, which has your values again after
            every question; what they only change are notes, which are yours, and what they only
            read is read as it stands. Iterators that it takes from, which nothing sets back, are
            refused.
        loss: a torch.nn loss, its functional form, a name ("cross_entropy", "nll", "mse",
            "bce_with_logits", "l1", "smooth_l1", "huber", "bce", "kl_div", "poisson_nll"), or any
            callable of (outputs, target) giving a scalar.
        data: (x, y) of tensors or arrays (one batch), a Dataset (in its order, in batches of 1,000
            samples), a DataLoader, or an iterable of batches; read once, in order, kept. What the
            reading changes in the data's objects (counters, caches, generators) is put back, unless
            an iterator or a file of theirs has moved on with it. Several inputs are written ((x1,
            x2), y) and passed as ``model(*inputs)``, ({...}, y) as ``model(**inputs)``. A tensor x
            alone is its own target, for losses that are not of classes. To an objective goes any
            batch as it is; a tensor, a dict or a tuple of tensors is one batch, and without data it
            gets None.
        objective: instead of loss: ``f(model, batch)`` giving a scalar, for any task. With neither,
            the model's own: ``.loss`` or ["loss"] of what it returns, as in transformers; dict
            batches are passed as ``model(**batch)``.
        max_batches: read this many batches and no more.
        weight: with objective: one number per batch, or a function of the batch; default its size,
            for a model's own loss the number of its ``labels`` that are not -100, where the loss is
            their mean.
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
        shard: "data": the processes of a group (`pylandscape.distributed`) share out the samples,
            for losses, accuracies, gradients, products and what is made of them. Given the same
            data, each keeps a part of them; given different data, each has its own, and L is that
            of all. The bits are those of one process with shard="data".
        samples: take that many of the data's samples, a random subset without replacement; L is
            theirs, and everything says so. Its error against all of the data is the metric
            "subset_error".
        seed: of the subset: the same one on every machine.
        copy: False saves the memory of one theta: the point that directions start from is read from
            the module's own parameters, which must keep their values for as long as the landscape
            is asked; it raises InvalidArgument once they have changed. The landscape then needs
            one theta beside the module, whatever the number of directions that are not stored.
        products: "exact": products with the Hessian by double backward, or compiled.
            "differences": by central differences of gradients, for models with operations that have
            no second derivative, with a bound of the error (`hvp_by_differences`): the largest one
            stands in ``worst_product``, in the results' notes and in `engine_report`.

    L is the loss of the concatenated data: known losses divide by their own denominator (samples,
    class weights, targets not ignored), "sum" adds. They are computed in float64 from the outputs.
    What a free loss or an objective gives for a batch is averaged over the batches by batch size or
    ``weight``, also where it is a sum over the samples; of one batch, L is what it gives.

    Raises:
        InvalidArgument: for arguments that do not fit each other, non-finite parameters, data that
            the model cannot take, a loss that is no scalar.
    """

    @outside_inference_mode
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
        samples: int | None = None,
        seed: int = 0,
        max_batches: int | None = None,
        copy: bool = True,
        products: str = "exact",
        shard: str | None = None,
    ) -> None:
        check_choices(model, loss, data, objective, weight, bn, dtype, engine)
        check_products(products)
        self.products = products
        self.worst_product = 0.0  # the largest bound so far of a product by differences, over |Hv|
        whole, model = model, unwrapped(model)
        self.device = own_device = device_of(model)
        if device is not None:
            self.device = chosen_device(device)
        snapshot = self._copied(model, whole, params, dtype, bn, copy)
        self.memory = MEMORY if memory is None else whole_bytes(memory, "memory")
        check_subset(samples, seed, weight)
        spec: Any = None if loss is None else resolve_loss(loss)
        if samples is not None and getattr(spec, "reduction", "mean") == "sum":
            raise InvalidArgument(
                "samples: expected a loss with reduction 'mean', got 'sum', which over a subset "
                "is no estimate of that over all"
            )
        self.dataset = Dataset(
            data,
            targets=None if spec is None else spec.targets,
            device=self.device,
            move=device is not None,
            max_batches=None if max_batches is None else integer(max_batches, "max_batches", 1),
            samples=samples,
            seed=seed,
        )
        if spec is None:
            if objective is None and weight is None:
                weight = counted_labels(self.model, [b.raw for b in self.dataset.batches])
            spec = Objective(objective or own_loss, batch_weights(weight, self.dataset))
        plan = None if shard is None else self._plan(shard, data, spec)
        self._shards: DataShards | None = None
        self._slope: tuple[str | None, ...] = ()
        self.native: CompiledEngine | None = None
        if plan is not None:
            self.dataset, spec = plan.parts[0].data, plan.parts[0].loss
        self.loss_spec = rebound(snapshot, spec)
        effective_bn = bn if self.has_batchnorm else "eval"
        if bn == "interpolate":
            effective_bn = bn if self.moved.n > self.layout.n else "eval"
        self._asked = effective_bn, dtype, engine
        self.autocast = Autocast(self.device)
        self.point_seconds = 0.0  # that L at one point took, by torch
        self._start(snapshot)
        self.computed = computed.note(model, self, self._eager.trained, self._eager.draws)
        first, moved = self.dataset.batches[0], self.device != own_device
        if moved:
            first = first.mapped(lambda t: t.to(own_device))
        # Where it is not the module itself that runs, an error there says nothing.
        converted = dtype is not None or moved or whole is not model
        self._eager.comparison.compare(model, spec, first, converted)
        self._model_loss = self._first_loss()  # another where it needs gradients enabled
        parts = [] if plan is None else [self._of_part(each, snapshot) for each in plan.parts[1:]]
        self._eager.release()
        self._choose()
        if plan is not None:
            self._share_out(plan, parts)
        if not np.isfinite(self._model_loss):
            said = f"L is {self._model_loss} at the model's own parameters"
            self.computed += f"; {said}"
            warnings.warn(
                f"{said}: look at the weights and the loss or objective before any picture",
                stacklevel=callers_level(),
            )

    def _copied(
        self,
        model: nn.Module,
        whole: nn.Module,
        params: Sequence[str] | None,
        dtype: torch.dtype | None,
        bn: str,
        copy: bool,
    ) -> Snapshot:
        """The landscape's own copy of the module, in eval mode; theta, and where it begins.

        ``whole``: the module as it was given, with its wrappers.
        """
        check_finite(model)
        if whole is not model:
            params = own_names(params)
        check_room(model, dtype, self.device, copy, params)
        with LOCK:  # another landscape in the making moves its module
            snapshot = Snapshot(
                model, dtype, None if self.device == device_of(model) else self.device
            )
        if whole is not model:  # what holds the wrapper gets the copy of the module inside
            snapshot.alias(whole, model)
        self.model = snapshot.model
        into_eval(self.model)
        self.layout = ParameterLayout.of(self.model, params, bare_names(model))
        self.dtype = dtype or theta_dtype(self.layout)
        named: dict[str, Tensor] = dict(self.model.named_parameters())
        # What a point moves: theta, and with bn="interpolate" the running statistics after it.
        self.moved = self.layout
        if bn == "interpolate":
            self.moved = running_statistics.with_statistics(self.layout, self.model, params)
            named |= dict(self.model.named_buffers())
        self.base: Row
        if copy:
            self.base = Stored(self.moved.flatten(named, self.dtype, self.device))
        else:
            own = named_tensors(model)
            self.base = ModuleTensors(own, self.moved, self.dtype, self.device)
        self.has_batchnorm = any(isinstance(m, _BatchNorm) for m in model.modules())
        self.bn = bn
        return snapshot

    def _plan(self, shard: str, data: Any, spec: Any) -> Plan:
        if shard != "data":
            raise InvalidArgument(f"shard: expected 'data', got {shard!r}")
        if not isinstance(self.base, Stored):
            raise InvalidArgument("copy: expected True with shard='data', got False")
        if self.bn not in ("eval", "interpolate") and self.has_batchnorm:
            raise InvalidArgument(
                f"bn: expected 'eval' or 'interpolate' with shard='data', got {self.bn!r}, whose "
                "statistics are those of samples that lie apart"
            )
        sampler = getattr(data, "sampler", None)
        return shared_data.plan(self.dataset, spec, isinstance(sampler, DistributedSampler))

    def _of_part(self, part: Part, snapshot: Snapshot) -> Landscape:
        """This landscape over other samples."""
        other = copying.copy(self)
        other.dataset, other.loss_spec = part.data, rebound(snapshot, part.loss)
        other._start(snapshot, self._eager.needs_grad)
        return other

    def _share_out(self, plan: Plan, parts: Sequence[Landscape]) -> None:
        """From here on, all answers are those of all samples."""
        for part in parts:
            part._choose()
        if self.n_params <= slopes.UNASKED:
            self.slope_mismatch()
        self._slope = self._slope or (None,)
        lands = [self, *parts]
        answers: list[list[Engine]] = [
            [each._eager] if each.native is None else [each.native, each._eager] for each in lands
        ]
        by_torch = DataShards(plan, [[each._eager] for each in lands], self.loss_spec)
        self._shards = DataShards(plan, answers, self.loss_spec)
        self.native = None
        self.dataset = plan.whole
        self._model_loss = float(by_torch.prepare_points(("loss",))(self.origin[None])["loss"][0])

    @property
    def eager(self) -> TorchEngine:
        """torch's engine, over all samples."""
        if self._shards is not None:
            raise InvalidArgument(f"shard: {shared_data.NEEDS_ALL}")
        return self._eager

    def _start(self, snapshot: Snapshot, needs_grad: bool = False) -> None:
        bn, dtype, _ = self._asked
        self._lock = threading.RLock()  # of what is made when it is first asked for:
        self._elsewhere: tuple[str, Landscape] | None = None  # with another model's buffers
        self._points: PointEvaluator | None = None
        self._eager = TorchEngine(
            self.model,
            self.loss_spec,
            self.dataset.batches,
            self.moved,
            dtype=dtype,
            device=self.device,
            bn=bn,
            memory=self.memory,
            snapshot=snapshot,
            needs_grad=needs_grad,
            base=self.base,
            autocast=self.autocast,
        )
        self._model_loss = self._first_loss()
        self._slope = ()

    @property
    def origin(self) -> Tensor:
        """(n + m,) the model's own point: its parameters and what else moves; with copy=False a
        copy made for the asking."""
        return self.base.vector if isinstance(self.base, Stored) else self.base.whole()

    @property
    def theta(self) -> Tensor:
        """(n,) the model's parameters."""
        return self.origin[: self.layout.n]

    @property
    def n_params(self) -> int:
        """The length n of theta."""
        return self.layout.n

    @property
    def engine(self) -> str:
        """ "native" or "torch"."""
        return self._report.engine

    def __repr__(self) -> str:
        data = self.dataset.subset or f"{self.dataset.size} samples"
        return (
            f"<Landscape of {type(self.model).__name__}: {self.n_params} parameters, "
            f"{self.loss_spec.name} over {data}, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}, {self.engine} engine; "
            f"{self.computed}>"
        )

    def engine_report(self) -> EngineReport:
        """Which engine runs and, where it is torch's, what kept the native one from it.

        The first call also looks at the derivatives (`slope_mismatch`), but for networks of more
        than ten million parameters, where that has to be asked for.
        """
        subset = self.dataset.subset
        data = None if subset is None else str(subset)
        notes = [each for each in (self.slope_note(), self.products_note()) if each is not None]
        note = "; ".join(notes) or None
        return replace(self._report, note=note, data=data, computed=self.computed)

    @property
    def half(self) -> str | None:
        """Which half precision the model computes in, "bfloat16" for example; None in none."""
        return None if self._asked[1] is not None else self.layout.half

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
        ask = self._engine.prepare_points(("loss",))
        bad = running_statistics.negative_points(self.moved, p)
        found = running_statistics.without(
            bad, ("loss",), lambda good: ask(p if good.all() else p[torch.as_tensor(good)])
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
        self,
        directions: Any,
        *,
        metrics: Sequence[Metric] = ("loss",),
        theta: Any = None,
        between: bool = False,
    ) -> Evaluate:
        """A function from coefficients (g, k) to {metric: (g,)}, to be called chunk by chunk.

        What is the same at all points is computed here, once. ``metrics``: "loss", "accuracy",
        errors from the data ("standard_error", "difference_standard_error", "subset_error":
        theta/sampling.py), or callables ``f(outputs, target) -> float`` of the whole data's
        outputs, keyed by their ``__name__``. Chunks do not change the values.

        ``between``: the directions are solutions, theta is 0, and "difference_standard_error" is
        that of L minus sum_j c_j L(d_j); otherwise of L - L(theta).
        """
        from .theta.directions import as_rows

        chosen = chosen_metrics(metrics, self.loss_spec)
        vectors, _ = as_rows(self, directions)
        home, base = self._rows_base(theta) if isinstance(vectors, Rows) else self._located(theta)
        if home.native is not None or home._shards is not None:  # which read stored vectors alone
            vectors = vectors.matrix() if isinstance(vectors, Rows) else vectors
            base = base.whole() if isinstance(base, Row) else base
        sampling.check_own_losses(chosen, self.loss_spec, self._eager.mixes, self.dataset.size)
        ask = self._with_subset_error(
            chosen, lambda asked: home._prepared(base, vectors, asked, between)
        )
        if isinstance(base, Row) or isinstance(vectors, Rows):
            return ask
        negative = running_statistics.negative(self.moved, base, vectors)
        if negative is None:
            return ask
        names, k = [metric_name(m) for m in chosen], len(vectors)

        def evaluate(coefficients: np.ndarray) -> dict[str, np.ndarray]:
            c = as_coefficients(coefficients, k)
            return running_statistics.without(negative(c), names, lambda good: ask(c[good]))

        return evaluate

    def _with_subset_error(
        self, chosen: Sequence[Metric], prepare: Callable[[Sequence[Metric]], Evaluate]
    ) -> Evaluate:
        """The engine's answer, in which the error against all data is the standard error times
        what a finite population leaves of it."""
        if sampling.SUBSET not in chosen:
            return prepare(chosen)
        ask = prepare((*(m for m in chosen if m not in (sampling.STANDARD, sampling.SUBSET)),
                       sampling.STANDARD))  # fmt: skip
        subset = self.dataset.subset
        left = 0.0 if subset is None else sampling.remaining(subset.samples, subset.of)

        def evaluate(coefficients: np.ndarray) -> dict[str, np.ndarray]:
            found = ask(coefficients)
            found[sampling.SUBSET] = found[sampling.STANDARD] * left
            return {name: found[name] for name in map(metric_name, chosen)}

        return evaluate

    def gradient(self, theta: Any = None) -> Tensor:
        """dL/dtheta (n,) float64, in loss per unit of parameter.

        ``theta``, as in all of this class: (n,), or a module or state dict, which brings its
        buffers along (see `at`); default the model's parameters.
        """
        home, point = self._smooth_point(theta)
        return home._derivative(lambda engine: engine.gradient(point))[: self.n_params]

    def hvp(self, v: Any, theta: Any = None) -> Tensor:
        """H v (n,) for v (n,), or the rows H v_i (k, n) for v (k, n); float64, H at theta."""
        return self._product("hessian", v, theta)

    def hvp_by_differences(self, v: Any, theta: Any = None) -> tuple[Tensor, Tensor]:
        """H v as `hvp`, by central differences of gradients, and a bound of the error's norm.

        D(eps) = [g(theta + eps v) - g(theta - eps v)] / (2 eps) with eps = u^(1/3) |theta| / |v|,
        u the machine epsilon of the coarsest parameter, halved where the gradient is not linear
        within that step. The bound is |D(eps) - D(2 eps)|, or that of rounding the gradients.
        Where it is a third of the product or more, no step lies between rounding and what is not
        linear, and the error can be larger.

        Returns:
            (n,) and a scalar for v (n,); (k, n) and (k,) for the rows v (k, n). float64.
        """
        vectors = self._vectors(v)
        home, point = self._smooth_point(theta)
        rows, bounds = home._differences(vectors.reshape(-1, self.n_params), point)
        return rows.reshape(vectors.shape), bounds.reshape(vectors.shape[:-1])

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
        own = home._derivative(lambda engine: engine.per_sample_gradients(point))
        return own[:, : self.n_params].contiguous()

    def hessian(self, theta: Any = None) -> Tensor:
        """The Hessian (n, n), float64, symmetrised; n^2 numbers, so for small models.

        Raises InvalidArgument where it and what it is made from cannot fit the machine's memory.
        """
        check_fits_memory(self.n_params, self.device)
        identity = torch.eye(self.n_params, dtype=self.dtype, device=self.device)
        h = self.hvp(identity, theta)
        return (h + h.T) / 2

    def linear_operator(self, theta: Any = None) -> LinearOperator:
        """The Hessian at theta as a scipy LinearOperator (n, n), float64."""
        home, point = self._located(theta)

        def rows(v: np.ndarray) -> np.ndarray:
            return np.asarray(home.hvp(torch.from_numpy(v), point).cpu())

        return scipy_operator(self.n_params, rows)

    def model_loss(self, theta: Any = None) -> float:
        """The module's own loss when the landscape was made, or that of another module or state
        dict: by torch, without the compiled program."""
        if theta is None:
            return self._model_loss
        home, point = self._located(theta)
        return float(home._eager.prepare_points(("loss",))(point[None])["loss"][0])

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
        if self._shards is not None:
            raise InvalidArgument(
                "theta: expected the buffers of the landscape's own model with shard='data'; make "
                "a landscape of the other model"
            )
        whole = {**dict(self.model.named_buffers()), **buffers}
        point = self.moved.vector(theta, "theta", self.dtype, self.device)
        key = digest_of_all([point, {name: whole[name] for name in sorted(buffers)}])
        with self._lock:
            if self._elsewhere is None or self._elsewhere[0] != key:
                self._elsewhere = None  # before the next one takes its memory
                self._elsewhere = key, self._moved_to(point, buffers)
            return self._elsewhere[1]

    def _moved_to(self, point: Tensor, buffers: dict[str, Tensor]) -> Landscape:
        other = copying.copy(self)
        with self._eager.session():
            snapshot = Snapshot(self.model)
            other.loss_spec = rebound(snapshot, self.loss_spec)
        other.model, other.base = snapshot.model, Stored(point)
        named = dict(other.model.named_parameters()) | dict(other.model.named_buffers())
        with torch.no_grad():
            for name, tensor in (self.moved.unflatten(point) | buffers).items():
                named[name].copy_(tensor)
        other._start(snapshot, self._eager.needs_grad)
        other._eager.release()
        other._choose()
        return other

    def point_evaluator(self) -> PointEvaluator:
        """Loss, gradient and Hessian of many points of a small model, made once."""
        from .engines.points.evaluator import PointEvaluator

        if self._shards is not None:
            raise InvalidArgument(f"shard: {shared_data.NEEDS_ALL}")
        with self._lock:
            if self._points is None:
                self._points = PointEvaluator(self)
            return self._points

    def describe(self) -> dict[str, Any]:
        """What determines the numbers, JSON-able (theta/identity.py): the model's structure, code
        and frozen state, the loss by what it computes, data, arithmetic, versions."""
        found = identity.of_landscape(self, self._eager.fixed_digest())
        if self._shards is not None:
            found["shard"] = "data"
        return found if self.products == "exact" else {**found, "products": self.products}

    def _product(self, matrix: str, v: Any, theta: Any) -> Tensor:
        home, point = self._located(theta)
        return home.product_at(matrix, self._vectors(v), point)

    def _vectors(self, v: Any) -> Tensor:
        given = getattr(v, "vector", v)
        try:
            vectors = torch.as_tensor(given).detach().to(self.device, self.dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidArgument(
                f"v: expected a tensor or array ({self.n_params},) or (k, {self.n_params}), got a "
                f"{type(given).__name__}; of tensors shaped like the parameters, "
                "torch.cat([t.reshape(-1) for t in v]) is one"
            ) from error
        if vectors.dim() not in (1, 2) or vectors.shape[-1] != self.n_params:
            raise InvalidArgument(
                f"v: expected shape ({self.n_params},) or (k, {self.n_params}), "
                f"got {tuple(vectors.shape)}"
            )
        return vectors

    def _differences(self, block: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        rest = point[self.n_params :]

        def gradient(theta: Tensor) -> Tensor:
            at = torch.cat([theta, rest])
            return self._derivative(lambda engine: engine.gradient(at))[: self.n_params]

        rows, bounds = hessian_by_differences(
            gradient, point[: self.n_params], block, self._eager.parameters.rounding()
        )
        sizes = torch.linalg.vector_norm(rows, dim=1)
        shares = (bounds / sizes)[bounds > 0]  # infinite where rounding leaves nothing
        if len(shares):
            self.worst_product = max(self.worst_product, float(shares.max()))
        return rows, bounds

    def products_note(self) -> str | None:
        """How products with the Hessian were had, where it is not exactly."""
        if self.products == "exact":
            return None
        told, worst = "", self.worst_product
        if worst > LINEAR:
            told = (
                f"; rounding, or a gradient that is not linear, moves them by {worst:.2g} of their "
                "norm whatever the step, and the error can be larger than that"
            )
            if self._eager.parameters.rounding() > torch.finfo(torch.float32).eps:
                told += "; dtype=torch.float32 rounds less"
        elif worst:
            told = f", off by at most {worst:.2g} of its norm"
        return f"products with the Hessian by central differences of gradients{told}"

    def product_at(self, matrix: str, vectors: Tensor, point: Tensor) -> Tensor:
        """The same of vectors (n,) or (k, n) like theta at a `point`, all checked."""
        block = vectors.reshape(-1, self.n_params)
        if matrix == "hessian" and self.products == "differences":
            at = running_statistics.without_negative(self.moved, point)
            return self._differences(block, at)[0].reshape(vectors.shape)
        if self.moved.n > self.n_params:
            point = running_statistics.without_negative(self.moved, point)
            block = torch.nn.functional.pad(block, (0, self.moved.n - self.n_params))
        rows = self._derivative(lambda engine: engine.product(matrix, point, block))
        return rows[:, : self.n_params].reshape(vectors.shape)

    def native_products(self, matrix: str, point: Tensor) -> CoreProducts | None:
        """What gives the native engine's products (see SymmetricOperator), or None."""
        if self.native is None or self.moved.n > self.n_params:
            return None
        if matrix == "hessian" and self.products == "differences":
            return None
        return self.native.products_at(matrix, self.point(point))

    @property
    def _engine(self) -> Engine:
        """Who gives values; derivatives are asked for by `_derivative`."""
        return self._shards or self.native or self._eager

    def _derivative(self, ask: Callable[[Engine], Tensor]) -> Tensor:
        """From the compiled engine, or from torch's where derivatives are not compiled.

        Also where they are not finite: of an infinite slope behind a zero one (the root of a relu)
        autograd takes some as zero and others as NaN, and its answer is the user's.
        """
        try:
            found = ask(self._engine)
        except NotLowered:
            return ask(self._eager)
        if self.native is None or all_finite(found):
            return found
        with contextlib.suppress(PylandscapeError):
            return ask(self._eager)
        return found

    def point(self, theta: Any) -> Tensor:
        """The parameters and what else the landscape moves, (n + m,); not of other buffers."""
        return self.origin if theta is None else running_statistics.point(self, theta, "theta")

    def _located(self, theta: Any) -> tuple[Landscape, Tensor]:
        """The landscape that has the buffers of theta, and theta as its point."""
        home = self.at(theta)
        return home, home.point(theta)

    def _prepared(
        self, base: Tensor | Row, vectors: Tensor | Rows, asked: Sequence[Metric], between: bool
    ) -> Evaluate:
        """The function of the engine that answers; Rows are only for torch's."""
        if isinstance(base, Row) or isinstance(vectors, Rows):
            return self._eager.prepare(base, vectors, asked, between)
        return self._engine.prepare(base, vectors, asked, between)

    def _rows_base(self, theta: Any) -> tuple[Landscape, Tensor | Row]:
        """As `_located`, but the point is read piece by piece where it can be."""
        if theta is None:
            return self, self.base
        return (self, theta) if isinstance(theta, Row) else self._located(theta)

    def _smooth_point(self, theta: Any) -> tuple[Landscape, Tensor]:
        """As `_located`, for derivatives: negative variances, which have none, become NaN."""
        home, point = self._located(theta)
        return home, running_statistics.without_negative(self.moved, point)

    def _first_loss(self) -> float:
        """Runs the copy over the data; every misfit of model and data shows here."""
        begun = time.perf_counter()
        try:
            loss = self._eager.first_loss()
        except InvalidArgument:
            raise
        except Exception as error:
            raise wrapping(error, self._advice(error)) from error
        self.point_seconds = max(self.point_seconds, time.perf_counter() - begun)
        if not np.isfinite(loss):
            where = not_finite(self.dataset.batches)
            if where is not None:
                raise InvalidArgument(f"data: expected finite numbers, but {where}; L is {loss}")
        return loss

    def _advice(self, error: Exception) -> str:
        _, dtype, _ = self._asked
        computed_in = dtype or theta_dtype(self.layout)
        return advice_on_first_run(error, self.dataset.batches, computed_in, dtype is not None)

    def _choose(self) -> None:
        """Who answers: `native` where there is a compiled engine, else `eager`."""
        bn, dtype, engine = self._asked
        self.native, self._report = choose(self, self._eager, bn=bn, dtype=dtype, engine=engine)
        self._eager.forget()
