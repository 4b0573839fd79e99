"""What all rooms use: arrays, grid borders, digests, JSON, scipy's operator, a progress bar."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgument

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator
    from torch import Tensor
    from tqdm import tqdm


Array = NDArray[np.float64]

OPAQUE = "opaque"  # in a request: what cannot be looked into, and the numbers that tell it


def edges(axis: Array) -> Array:
    """Borders (n + 1,) half-way between the points of an axis (n,); width 1 around a lone one."""
    if axis.size == 1:
        return np.array([axis[0] - 0.5, axis[0] + 0.5])
    middle = 0.5 * (axis[1:] + axis[:-1])
    return np.concatenate([[2 * axis[0] - middle[0]], middle, [2 * axis[-1] - middle[-1]]])


def all_finite(x: Tensor) -> bool:
    """Whether no element is infinite or NaN: a finite sum says it in one pass of reading."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def scipy_operator(
    n: int, product: Callable[[np.ndarray], np.ndarray], dtype: Any = np.float64
) -> LinearOperator:
    """A symmetric matrix A as scipy's LinearOperator (n, n).

    ``product``: the rows v (k, n) to the rows A v_i (k, n); ``matmat``'s columns are one block.
    """
    from scipy.sparse.linalg import LinearOperator

    def matmat(v: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(np.asarray(v).T)
        return product(rows).T.astype(dtype, copy=False)

    def matvec(v: np.ndarray) -> np.ndarray:
        return matmat(np.asarray(v).reshape(-1, 1))[:, 0]

    return LinearOperator(
        (n, n), matvec=matvec, rmatvec=matvec, matmat=matmat, rmatmat=matmat, dtype=np.dtype(dtype)
    )


def digest(array: Any) -> str:
    """sha256 of dtype, shape and bytes of a tensor or array."""
    head, raw = _head_and_bytes(array)
    state = hashlib.sha256(f"{head} ".encode())
    state.update(raw)
    return state.hexdigest()


def digest_of_all(items: Iterable[Any]) -> str:
    """sha256 of nested lists, tuples, mappings and None of tensors, arrays, numbers and texts.

    Another object counts by its type alone.
    """
    state = hashlib.sha256()

    def add(item: Any) -> None:
        if _is_array(item):
            head, raw = _head_and_bytes(item)
            state.update(head.encode())
            state.update(raw)
        elif isinstance(item, Mapping):
            state.update(f"{{{len(item)}".encode())
            for key in item:
                state.update(repr(key).encode())
                add(item[key])
        elif isinstance(item, tuple | list):
            state.update(f"[{len(item)}".encode())
            for value in item:
                add(value)
        elif item is None or isinstance(item, int | float | complex | str | bool | bytes):
            state.update(f"{item!r},".encode())
        else:  # an object whose repr may hold an address
            state.update(type(item).__qualname__.encode())

    for item in items:
        add(item)
    return state.hexdigest()


def is_plain(item: Any) -> bool:
    """Whether `digest_of_all` tells all of it."""
    if isinstance(item, Mapping):
        return all(map(is_plain, item.values()))
    if isinstance(item, tuple | list):
        return all(map(is_plain, item))
    plain = int | float | complex | str | bool | bytes
    return item is None or isinstance(item, plain) or _is_array(item)


def text_digest(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor; without torch there are none, so files are read without it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_array(item: Any) -> bool:
    return isinstance(item, np.ndarray) or hasattr(item, "untyped_storage")


def _head_and_bytes(array: Any) -> tuple[str, Any]:
    """dtype and shape as a text, and the bytes."""
    if hasattr(array, "untyped_storage"):  # a tensor; torch need not be loaded to read a file
        tensor = array.detach().cpu()
        if tensor.is_quantized:
            tensor = tensor.int_repr()
        if tensor.layout is not _strided():
            tensor = tensor.to_dense()
        tensor = tensor.resolve_conj().resolve_neg().contiguous()
        try:
            array = tensor.numpy()
        except TypeError:  # bfloat16 and others that NumPy does not have
            import torch

            raw = tensor.reshape(-1).view(torch.uint8).numpy()
            return f"{tensor.dtype} {tuple(tensor.shape)}", raw.data if raw.size else b""
    if array.dtype.kind == "O":
        return f"objects {array.shape}", repr(array.tolist()).encode()
    raw = np.ascontiguousarray(array)
    return f"{raw.dtype.str} {array.shape}", raw.data.cast("B") if raw.size else b""


def _strided() -> Any:
    import torch

    return torch.strided


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
    if isinstance(value, np.generic | np.ndarray) or hasattr(value, "untyped_storage"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def progress_bar(
    total: int,
    label: str,
    unit: str,
    shown: bool,
    initial: int = 0,
    *,
    memory: int = 0,
    guess: float = 0.0,
) -> tqdm[Any]:
    """A bar on stderr, which appears after half a second, and above it, for long work, an estimate
    of its time (see `progress.Bar`); a context. Of several ranks, the first shows it."""
    from .progress import Bar
    from .ranks import speaks

    return Bar(
        total=total, initial=initial, desc=label, unit=unit, disable=not (shown and speaks()),
        memory=memory, guess=guess,
    )  # fmt: skip


Path = str | os.PathLike[str]
