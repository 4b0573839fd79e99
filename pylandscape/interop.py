"""Inside other people's code, and other people's code inside: operators, arrays, functions.

    interop.as_scipy(land)            scipy.sparse.linalg.LinearOperator
    interop.as_tensors(land)          shape, dtype, device and @, as curvlinops' operators have them
    pl.spectrum(curvlinops_operator)  Lanczos on theirs; scipy's operators and matrices as well
    interop.from_product(f, n)        Lanczos on a plain function v -> A v
    interop.from_function(f, params)  surfaces of a loss that is a function of {name: tensor}

Vectors come as tensors, numpy arrays or anything with ``__dlpack__``, and go back in kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, nn

from .arrays import scipy_operator
from .curvature.operators import as_operator
from .curvature.symmetric_operator import SymmetricOperator
from .errors import InvalidArgument

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

    from .landscape import Landscape

__all__ = [
    "TensorOperator",
    "as_scipy",
    "as_tensor",
    "as_tensors",
    "from_function",
    "from_product",
    "in_kind",
]


def as_tensor(value: Any, name: str = "value") -> Tensor:
    """A tensor that shares memory with a tensor, an array or a DLPack exporter where it can.

    Raises:
        InvalidArgument: anything else.
    """
    if isinstance(value, Tensor):
        return value.detach()
    try:
        if not isinstance(value, np.ndarray) and hasattr(value, "__dlpack__"):
            return torch.from_dlpack(value)
        array = np.asarray(value)
        return torch.as_tensor(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InvalidArgument(
            f"{name}: expected a tensor, an array or a DLPack exporter, got "
            f"{type(value).__name__}: {error}"
        ) from error


def in_kind(result: Tensor, given: Any) -> Any:
    """The result as what was given: a tensor, a numpy array, or its library's own array."""
    if isinstance(given, Tensor):
        return result
    if isinstance(given, np.ndarray | np.generic | list | tuple):
        return result.cpu().numpy()
    if hasattr(given, "__array_namespace__"):
        return given.__array_namespace__().from_dlpack(result)
    return result


def as_scipy(
    a: Any,
    matrix: str = "hessian",
    theta: Any = None,
    params: Sequence[str] | None = None,
    dtype: DTypeLike = np.float64,
) -> LinearOperator:
    """A landscape's matrix, or any symmetric operator of `as_operator`, as scipy's (n, n).

    ``matmat`` multiplies all columns as one block. ``dtype``: of the products, which are computed
    in the landscape's dtype and summed in double.
    """
    op = as_operator(a, matrix, theta, params)
    return scipy_operator(op.n, lambda rows: op(torch.from_numpy(rows)).numpy(), dtype)


def as_tensors(
    a: Any, matrix: str = "hessian", theta: Any = None, params: Sequence[str] | None = None
) -> TensorOperator:
    """A landscape's matrix, or any symmetric operator of `as_operator`, to be used as ``A @ v``."""
    return TensorOperator(as_operator(a, matrix, theta, params))


class TensorOperator:
    """A symmetric matrix with the interface of curvlinops' linear operators.

    ``A @ v`` for v (n,) or columns (n, k): a tensor, an array or a DLPack exporter; or for a list
    of tensors with the parameters' shapes, optionally with a last axis of k columns. What comes
    back is of the same kind and form, with `dtype` and on `device`.

    Attributes:
        shape: (n, n).
        dtype, device: of the products.
    """

    SELF_ADJOINT = True

    def __init__(self, operator: SymmetricOperator) -> None:
        self.operator = operator
        self.shape = (operator.n, operator.n)
        self.dtype, self.device = operator.dtype, operator.device
        entries = operator.layout.entries if operator.layout else ()
        self._shapes = [torch.Size(e.shape) for e in entries] or [torch.Size([operator.n])]

    def __matmul__(self, v: Any) -> Any:
        if isinstance(v, list | tuple) and v and all(isinstance(part, Tensor) for part in v):
            return self._parts(list(v))
        columns = as_tensor(v, "v")
        if columns.dim() not in (1, 2) or columns.shape[0] != self.shape[1]:
            raise InvalidArgument(
                f"v: expected shape ({self.shape[1]},) or ({self.shape[1]}, k), got "
                f"{tuple(columns.shape)}"
            )
        return in_kind(self._columns(columns), v)

    def adjoint(self) -> TensorOperator:
        """The operator itself."""
        return self

    T = property(adjoint)

    def to_scipy(self, dtype: DTypeLike | None = None) -> LinearOperator:
        """As a scipy LinearOperator; default dtype the operator's own."""
        own = torch.empty(0, dtype=self.dtype).numpy().dtype
        return as_scipy(self.operator, dtype=own if dtype is None else dtype)

    def symmetric_operator(self) -> SymmetricOperator:
        """What the drivers of this package take."""
        return self.operator

    def _columns(self, v: Tensor) -> Tensor:
        block = v.reshape(self.shape[1], -1).T
        found = self.operator(block).to(self.device, self.dtype)
        return found.T.reshape(v.shape)

    def _parts(self, parts: list[Tensor]) -> list[Tensor]:
        given = [part.shape for part in parts]
        single = given == self._shapes
        trailing = {shape[-1] if len(shape) else 0 for shape in given}
        if not single and not (
            [shape[:-1] for shape in given] == self._shapes and len(trailing) == 1
        ):
            raise InvalidArgument(
                f"v: expected tensors of shapes {[tuple(s) for s in self._shapes]}, optionally "
                f"with a last axis of columns, got {[tuple(s) for s in given]}"
            )
        columns = torch.cat([p.detach().reshape(s.numel(), -1) for p, s in self._zip(parts)])
        sizes = [s.numel() for s in self._shapes]
        return [
            rows.reshape(shape)
            for rows, shape in zip(self._columns(columns).split(sizes), given, strict=True)
        ]

    def _zip(self, parts: list[Tensor]) -> Any:
        return zip(parts, self._shapes, strict=True)


def from_product(
    product: Callable[[Any], Any],
    n: int,
    *,
    dtype: torch.dtype = torch.float64,
    like: type[np.ndarray] | type[Tensor] = Tensor,
) -> SymmetricOperator:
    """A symmetric matrix of order n from a function of one vector v (n,) that gives A v (n,).

    Args:
        product: takes and gives a tensor, or with ``like=numpy.ndarray`` an array; products may
            also be anything with ``__dlpack__``. Blocks: ``pl.SymmetricOperator(n, function)``.
        dtype: of the vectors.
    """
    if not callable(product):
        raise InvalidArgument(f"product: expected a function, got {type(product).__name__}")

    def rows(v: Tensor) -> Tensor:
        given = [row.numpy() if issubclass(like, np.ndarray) else row for row in v]
        found = [as_tensor(product(row), "product").to(torch.float64) for row in given]
        for one in found:
            if tuple(one.shape) != (n,):
                raise InvalidArgument(
                    f"product: expected a vector of shape ({n},), got {tuple(one.shape)}"
                )
        return torch.stack(found)

    return SymmetricOperator(n, rows, dtype=dtype, source=product)


def from_function(
    loss: Callable[..., Any],
    params: Mapping[str, Any],
    data: Any = None,
    **options: Any,
) -> Landscape:
    """The landscape of a function of its parameters: ``loss(theta)`` or ``loss(theta, batch)``.

    Args:
        loss: takes {name: tensor} and gives a scalar. Where ``params`` are numpy arrays it takes
            arrays, and may give a float; there are no derivatives then.
        params: {name: tensor, array or DLPack exporter}: where it is, and the shapes. Dots make
            layers of names: ``"encoder.weight"``.
        data: batches, given to ``loss`` one by one; without, ``loss`` takes ``theta`` alone.
        options: of `Landscape`.

    Parameters of one dimension count as biases: directions need ``ignore=()`` to move them.

    Raises:
        InvalidArgument: no parameters, names that exclude each other, numbers that are not real.
    """
    from .landscape import Landscape

    if not callable(loss):
        raise InvalidArgument(f"loss: expected a function of a dict, got {type(loss).__name__}")
    if not isinstance(params, Mapping) or not params:
        raise InvalidArgument("params: expected a dict of at least one tensor by name")
    arrays = all(isinstance(value, np.ndarray) for value in params.values())
    batched = data is not None

    def objective(model: nn.Module, batch: Any) -> Any:
        theta: dict[str, Any] = dict(model.named_parameters())
        if arrays:
            if torch.is_grad_enabled() and any(p.requires_grad for p in theta.values()):
                raise InvalidArgument(
                    "loss: expected a function of tensors, of which there are derivatives, got "
                    "one of numpy arrays (pass params as tensors)"
                )
            theta = {name: p.detach().cpu().numpy() for name, p in theta.items()}
        found = loss(theta, batch) if batched else loss(theta)
        return found if isinstance(found, Tensor) else torch.as_tensor(np.asarray(found))

    objective.__name__ = getattr(loss, "__name__", type(loss).__name__)
    return Landscape(
        _Parameters(params), objective=objective, data=data if batched else [None], **options
    )


class _Parameters(nn.Module):
    """Tensors by name as a module's parameters."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__()
        self._order: list[tuple[str, nn.Module, str]] = []
        for name, value in params.items():
            tensor = as_tensor(value, f"params[{name!r}]").clone()
            if not tensor.is_floating_point():
                raise InvalidArgument(
                    f"params[{name!r}]: expected real numbers, got {tensor.dtype}"
                )
            *path, leaf = str(name).split(".")
            module: nn.Module = self
            try:
                for part in path:
                    if part not in module._modules:
                        module.add_module(part, nn.Module())
                    module = module._modules[part]  # type: ignore[assignment]
                module.register_parameter(leaf, nn.Parameter(tensor))
            except (KeyError, TypeError) as error:
                raise InvalidArgument(
                    f"params: expected names that a module can have side by side, got {name!r}"
                ) from error
            self._order.append((str(name), module, leaf))

    def named_parameters(self, prefix: str = "", *_: Any, **__: Any) -> Iterator[Any]:
        """In the order of the dict, which nested modules would not keep."""
        for name, module, leaf in self._order:
            yield f"{prefix}.{name}" if prefix else name, module._parameters[leaf]
