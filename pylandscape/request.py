"""What was asked: the record of everything that determines the numbers of a result.

A request is a JSON-able dict. Equal requests give bit-identical values, so a file that holds a
request can be resumed or taken as it is by an equal one, and by no other.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InvalidArgument

if TYPE_CHECKING:
    import torch

    from .landscape import Landscape
    from .results import Array

FORMAT = 1

Metric = str | Callable[..., Any]


def build(
    land: Landscape,
    kind: str,
    axes: Mapping[str, Array],
    metrics: Sequence[Metric],
    theta: torch.Tensor,
    directions: torch.Tensor,
    direction_infos: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The request for L at theta + C D on the given axes; `directions`: (k, n), one info for
    each."""
    about = land.describe()
    about.pop("model_theta", None)  # the base's digest says it
    return jsonable(
        {
            **about,
            "model": _structure(land.model),
            "arithmetic": _arithmetic(land),
            "format": FORMAT,
            "kind": kind,
            "axes": {
                name: {"min": axis[0], "max": axis[-1], "n": axis.size, "digest": digest(axis)}
                for name, axis in axes.items()
            },
            "metrics": [identity(metric) for metric in metrics],
            "theta": digest(theta),
            "directions": [
                {**info, "digest": digest(vector)}
                for info, vector in zip(direction_infos, directions, strict=True)
            ],
        },
        "request",
    )


def _structure(model: torch.nn.Module) -> str:
    """sha256 of how the model prints itself: its modules and their options, without addresses."""
    text = re.sub(r"0x[0-9a-fA-F]+", "", repr(model))
    return hashlib.sha256(text.encode()).hexdigest()


def _arithmetic(land: Landscape) -> dict[str, Any]:
    """What decides the last bits beside the engine: PyTorch's sums depend on threads and device."""
    import torch

    if land.device.type == "cuda":
        return {"device": torch.cuda.get_device_name(land.device)}
    if land.engine == "native":
        return {"device": "cpu"}
    return {
        "device": land.device.type,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def with_loss(
    metrics: str | Metric | Sequence[Metric],
) -> tuple[tuple[Metric, ...], tuple[str, ...]]:
    """The metrics, with the loss first (always computed), and the names of their arrays."""
    one = isinstance(metrics, str) or callable(metrics)
    given: list[Any] = [metrics] if one or not isinstance(metrics, Iterable) else list(metrics)
    for metric in given:
        if not isinstance(metric, str) and not callable(metric):
            raise InvalidArgument(
                f"metrics: expected 'loss', 'accuracy' or callables, got {metric!r}"
            )
    found: list[Metric] = ["loss"]
    found += [metric for metric in given if metric != "loss"]
    names = [name_of(metric) for metric in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidArgument(f"metrics: expected different names, got {', '.join(twice)} twice")
    return tuple(found), tuple(names)


def name_of(metric: Metric) -> str:
    """The metric's key in the results: itself, or the callable's `__name__`."""
    if isinstance(metric, str):
        return metric
    name = getattr(metric, "__name__", None)
    if not isinstance(name, str):
        raise InvalidArgument(f"metrics: expected callables with a __name__, got {metric!r}")
    return name


def identity(metric: Metric) -> str:
    """What a file records of a metric: its name, or the callable's "module:qualified name"."""
    if isinstance(metric, str):
        return metric
    module = getattr(metric, "__module__", None)
    return f"{module}:{getattr(metric, '__qualname__', name_of(metric))}"


def digest(array: Any) -> str:
    """sha256 of dtype, shape and bytes of an array or a tensor."""
    if is_tensor(array):
        array = array.detach().cpu().contiguous().numpy()
    state = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    state.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return state.hexdigest()


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor; without torch there are none, so files are read without it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, found, wanted) where two requests differ; nested fields are written
    "directions[0].seed".

    Directions of equal digests are equal, however they were described.
    """
    return list(_walk("", found, wanted))


def _walk(at: str, found: Any, wanted: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        if at.startswith("directions[") and found.get("digest") == wanted.get("digest"):
            return []
        out: list[tuple[str, Any, Any]] = []
        for key in dict.fromkeys([*found, *wanted]):
            field = f"{at}.{key}" if at else key
            out += _walk(field, found.get(key), wanted.get(key))
        return out
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [line for i, (a, b) in pairs for line in _walk(f"{at}[{i}]", a, b)]
    return [] if json.dumps(found) == json.dumps(wanted) else [(at, found, wanted)]


def listing(rows: Sequence[tuple[str, Any, Any]]) -> str:
    """Differences as lines of an error message; of a digest, its first digits."""

    def shown(value: Any) -> str:
        is_digest = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
        return f"{value[:12]}..." if is_digest else repr(value)

    return "".join(f"\n  {field}: file {shown(a)}, request {shown(b)}" for field, a, b in rows)


def jsonable(value: Any, name: str) -> Any:
    """The value as it comes back from JSON (tuples as lists, NumPy numbers as Python's).

    Raises:
        InvalidArgument: something in it has no JSON form.
    """
    return json.loads(to_json(value, name))


def to_json(value: Any, name: str) -> str:
    """JSON text, ASCII; NaN and infinities as Python writes them."""
    try:
        return json.dumps(value, default=_plain)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{name}: expected what JSON can hold, got {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray) or is_tensor(value):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")
