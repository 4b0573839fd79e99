"""What a landscape checks of its arguments, and the advice that it gives where they fail."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidArgument, out_of_memory
from . import sampling
from .checkpoints import without_wrappers
from .data import Batch, Dataset
from .layout import ParameterLayout
from .losses import WITH_ACCURACY

Metric = str | Callable[[Tensor, Tensor], Any]

_BN_MODES = ("eval", "recompute", "batch", "interpolate")
_ENGINES = ("auto", "native", "torch")

log = logging.getLogger("pylandscape")


def check_choices(
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
        path = isinstance(model, str | os.PathLike | Mapping)
        hint = "; load the parameters into your module, model.load_state_dict(...)" if path else ""
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise InvalidArgument(f"model: expected a torch.nn.Module, got {got}{hint}")
    loss_like = isinstance(data, str) or (callable(data) and not isinstance(data, Iterable))
    if loss_like and isinstance(loss, Iterable) and not isinstance(loss, str):
        raise InvalidArgument(
            "loss, data: expected Landscape(model, loss, data), got them the other way round"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidArgument(
            f"model: expected a torch.nn.Module of Python, got TorchScript "
            f"({type(model).__name__}); pass the module that it was scripted or traced from"
        )
    if loss is not None and objective is not None:
        raise InvalidArgument("loss, objective: expected at most one of them, got both")
    if objective is not None and not callable(objective):
        raise InvalidArgument(
            f"objective: expected a callable f(model, batch), got {type(objective).__name__}"
        )
    if data is None and objective is None:
        raise InvalidArgument("data: expected (x, y), a DataLoader or batches, got nothing")
    if weight is not None and loss is not None:
        raise InvalidArgument("weight: expected only together with objective=")
    if bn not in _BN_MODES:
        raise InvalidArgument(f"bn: expected one of {', '.join(_BN_MODES)}, got {bn!r}")
    if engine not in _ENGINES:
        raise InvalidArgument(f"engine: expected one of {', '.join(_ENGINES)}, got {engine!r}")
    if dtype is not None and dtype not in (torch.float32, torch.float64):
        raise InvalidArgument(f"dtype: expected torch.float32 or torch.float64, got {dtype}")


def check_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise InvalidArgument(
                f"model: expected parameters that have shapes, but {name!r} is of a lazy module "
                "that has not run yet; call the model once on a batch"
            )
        if parameter.is_meta:
            raise InvalidArgument(
                f"model: expected parameters that have values, but {name!r} is on the meta device; "
                "load the weights first, for example model.to_empty(device=...) and load_state_dict"
            )
        finite = torch.isfinite(parameter.detach())
        if not bool(finite.all()):
            bad = int((~finite).sum())
            raise InvalidArgument(
                f"model: expected finite parameters, but {name!r} has {bad} that are not"
            )


def chosen_device(device: torch.device | str) -> torch.device:
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


def device_of(model: nn.Module) -> torch.device:
    devices = {t.device: name for name, t in (*model.named_parameters(), *model.named_buffers())}
    if len(devices) > 1:
        (a, first), (b, second) = list(devices.items())[:2]
        raise InvalidArgument(
            f"model: expected all parameters on one device, got {first!r} on {a} and "
            f"{second!r} on {b}"
        )
    return next(iter(devices), torch.device("cpu"))


def theta_dtype(layout: ParameterLayout) -> torch.dtype:
    """The widest dtype of the parameters; float32 for half-precision models."""
    widest = max((e.dtype for e in layout.entries), key=lambda d: torch.finfo(d).bits)
    return widest if torch.finfo(widest).bits >= 32 else torch.float32


def batch_weights(weight: Any, dataset: Dataset) -> tuple[float, ...]:
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


def check_subset(samples: Any, seed: Any, weight: Any) -> None:
    """Whether ``samples``, ``seed`` and ``weight`` go together; their values: `Dataset`."""
    if samples is None:
        if seed != 0:
            raise InvalidArgument(f"seed: expected only together with samples=, got {seed!r}")
    elif weight is not None and not callable(weight):
        raise InvalidArgument(
            "weight: expected a function of the batch together with samples=, whose batches are "
            f"others, got {type(weight).__name__}"
        )


def own_names(params: Sequence[str] | None) -> Sequence[str] | None:
    """Name patterns without what DataParallel and torch.compile put in front."""
    if params is None or isinstance(params, str):
        return None if params is None else without_wrappers(params)
    return [without_wrappers(p) if isinstance(p, str) else p for p in params]


def whole_bytes(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidArgument(f"{name}: expected a number of bytes, 0 or more, got {value!r}")
    return value


def chosen_metrics(metrics: Metric | Sequence[Metric], loss: Any) -> tuple[Metric, ...]:
    """The metrics, each of which this loss can give."""
    chosen = (metrics,) if isinstance(metrics, str) or callable(metrics) else tuple(metrics)
    for metric in chosen:
        if not (callable(metric) or metric in ("loss", "accuracy", *sampling.METRICS)):
            raise InvalidArgument(
                f"metrics: expected 'loss', 'accuracy', {', '.join(map(repr, sampling.METRICS))} "
                f"or a callable, got {metric!r}"
            )
        if callable(metric) and not hasattr(metric, "__name__"):
            raise InvalidArgument(
                "metrics: expected a callable with a __name__ (its key in the result), got "
                f"{type(metric).__name__}"
            )
    if "accuracy" in chosen and getattr(loss, "kind", None) not in WITH_ACCURACY:
        raise InvalidArgument(
            "metrics: 'accuracy' needs one of the losses cross_entropy, nll and "
            f"bce_with_logits, got {loss.name!r}; pass a callable metric instead"
        )
    return chosen


def as_coefficients(value: Any, k: int) -> np.ndarray:
    """(G, k) float64: one row for each point theta + C D of k directions."""
    c = np.asarray(value, dtype=np.float64)
    if c.ndim != 2 or c.shape[1] != k:
        raise InvalidArgument(
            f"coefficients: expected shape (G, {k}) for {k} direction{'s' if k != 1 else ''}, got "
            f"{c.shape}"
        )
    return c


def check_fits_memory(n: int, device: torch.device) -> None:
    """Whether a Hessian (n, n) in float64, and what it is made from, can fit the device."""
    there, needed = _memory_of(device), 3 * 8 * n**2
    if needed > there:
        raise InvalidArgument(
            f"hessian: expected a model whose Hessian fits the memory, but of n = {n:,} parameters "
            f"it takes {needed / 2**30:,.0f} GiB and there are {there / 2**30:,.0f}; hvp(), "
            "linear_operator(), eigenpairs() and spectrum() need products alone"
        )


def check_room(
    model: nn.Module,
    dtype: torch.dtype | None,
    device: torch.device,
    copy: bool,
    params: Sequence[str] | None,
) -> None:
    """Whether a landscape's own copy of the model, and its point, fit the memory that is free.

    Raises InvalidArgument where they do not; says so in the log where they take half of it.
    """
    held = theta = 0
    for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
        cast = dtype if dtype is not None and t.is_floating_point() else t.dtype
        held += t.numel() * cast.itemsize
    if copy:
        n = ParameterLayout.of(model, params).n
        theta = n * max(4, (dtype or torch.float32).itemsize)
    needed, free = held + theta, free_memory(device)
    if 2 * needed <= free:
        return
    size = f"{needed / 2**30:.3g} GiB"
    parts = f"{held / 2**30:.3g} for its copy of the model"
    if copy:
        parts += (
            f", {theta / 2**30:.3g} for the point that directions start from, which copy=False "
            "reads from the model"
        )
    if needed > free:
        raise InvalidArgument(
            f"model: a landscape of it needs {size} of memory beside it ({parts}) and "
            f"{free / 2**30:.3g} are free on {device}"
        )
    log.warning(
        "Landscape: needs %s of memory beside the model (%s); %.3g GiB are free on %s",
        size, parts, free / 2**30, device,
    )  # fmt: skip


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; on a CPU also within the limit of the control group."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    free = 1 << 40
    try:
        rows = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines())
        free = int(rows["MemAvailable"].split()[0]) * 1024
        limit = _read("/sys/fs/cgroup/memory.max").strip()
        if limit.isdigit():
            used = int(_read("/sys/fs/cgroup/memory.current"))
            stat = dict(line.split() for line in _read("/sys/fs/cgroup/memory.stat").splitlines())
            files = int(stat["active_file"]) + int(stat["inactive_file"])  # given up when asked for
            free = min(free, int(limit) - used + files)
    except (OSError, KeyError, ValueError):  # not on this system
        pass
    return free


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _memory_of(device: torch.device) -> int:
    """Bytes of all of the device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this system
        return 1 << 40


def _shapes(batch: Batch) -> str:
    """ ", inputs (40, 3), target (40,)" of a first batch of plain tensors."""
    parts = (("inputs", batch.inputs), ("target", batch.target))
    known = [f"{n} {tuple(t.shape)}" for n, t in parts if isinstance(t, Tensor)]
    return "".join(f", {text}" for text in known)


def _span(whole: Tensor) -> str:
    return f"{int(whole.min())} to {int(whole.max())}"


def advice_on_first_run(
    error: BaseException, batches: Sequence[Batch], dtype: torch.dtype, converted: bool
) -> str:
    """What a first run that failed may mean; dtype: of the parameters, and of the data where they
    are ``converted``."""
    batch = batches[0]
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
    inputs = batch.raw if batch.inputs is None else batch.inputs
    floats = {t.dtype for t in Batch(inputs, None, None, 0).tensors() if t.is_floating_point()}
    alone = isinstance(batch.target, Tensor) and batch.target.dim() == 0
    if isinstance(batch.inputs, Tensor) and (batch.inputs.dim() <= 1 or alone):
        advice = (
            f"inputs of shape {tuple(batch.inputs.shape)} look like one sample: expected a leading "
            "batch dimension, x[None]"
        )
    elif isinstance(batch.raw, Mapping) and not batch.tensors():
        advice = (
            "the batches hold no tensors: collate samples into dicts of tensors with a leading "
            "batch dimension; of a datasets.Dataset, DataLoader(dataset.with_format('torch'))"
        )
    elif batch.raw is None:
        advice = "no data were given, so the objective gets None in place of a batch"
    elif converted and "dtype" in str(error):
        advice = (
            f"all is {str(dtype).removeprefix('torch.')} as dtype= asks, but the model's code "
            "makes tensors of another dtype: give them x's, x.new_zeros(...) or dtype=x.dtype, or "
            "leave dtype= out"
        )
    elif floats and dtype not in floats and "dtype" in str(error):
        got = " and ".join(sorted(str(d).removeprefix("torch.") for d in floats))
        advice = (
            f"the inputs are {got} and the parameters {str(dtype).removeprefix('torch.')}: convert "
            "the inputs, or pass dtype=torch.float64 to compute all in float64"
        )
    elif not floats and "type" in str(error) and isinstance(batch.inputs, Tensor):
        got, own = (str(d).removeprefix("torch.") for d in (batch.inputs.dtype, dtype))
        advice = f"the inputs are {got} and the parameters {own}: convert the inputs, x.to({dtype})"
    elif isinstance(error, IndexError) and "index out of range" in str(error):
        whole = [t for t in Batch(inputs, None, None, 0).tensors() if not t.is_floating_point()]
        seen = f": they are {_span(whole[0])}" if whole and whole[0].numel() else ""
        advice = f"an embedding has fewer rows than the indices in the inputs need{seen}"
    elif isinstance(error, IndexError) and isinstance(batch.target, Tensor):
        whole = [] if batch.target.is_floating_point() else [b.target for b in batches]
        seen = f": they are {_span(torch.cat([t.reshape(-1) for t in whole]))}" if whole else ""
        advice = f"classes are counted from 0 to one less than the model's outputs{seen}"
    elif len(batches) == 2 and all(isinstance(b.inputs, Tensor) for b in batches):
        advice += (
            "; data of two tuples are two batches: one batch of several inputs and targets is "
            "written [((x1, x2), (y1, y2))]"
        )
    return (
        f"data: the model and its loss could not be run on the batches given{_shapes(batch)}: "
        f"{type(error).__name__}: {error} ({advice})"
    )
