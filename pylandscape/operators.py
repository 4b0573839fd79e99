"""Symmetric matrices known by their products: what Lanczos and the trace estimators take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import issparse
from torch import Tensor

from .arrays import digest
from .errors import InvalidArgument
from .identity import of_product

if TYPE_CHECKING:
    from .landscape import Landscape
    from .layout import ParameterLayout

MATRICES = ("hessian", "gauss_newton", "covariance")

Product = Callable[[Tensor], Tensor]
Into = Callable[[int, int, int], None]


class SymmetricOperator:
    """A symmetric (n, n) matrix A: called with rows v (k, n) of ``dtype``, gives the rows A v_i,
    in float64 and on v's device.

    Args:
        n: order of the matrix.
        product: the rows v (k, n) to the rows A v_i (k, n), in float64; both on ``device``.
        dtype: of the vectors.
        device: where the vectors are that the product takes. A Lanczos basis is kept there.
        name: "hessian", "gauss_newton", "covariance" or "user".
        layout: the parameters that the n coordinates are, if they are a model's.
        about: JSON-able, what determines the numbers, or a function that gives it. Default: what
            the function `product` computes: its code, closure and defaults, or, where these cannot
            be looked into, two products.
        into: the same product between addresses: (k, address of v in ``dtype``, address of the
            float64 products), for callers that own the memory.
        hint: a vector (n,) that leans towards the eigenvectors of large eigenvalues, if one is at
            hand; the gradient of a loss does (Gur-Ari, Roberts, Dyer 2018).

    ``products`` counts the vectors multiplied so far.
    """

    def __init__(
        self,
        n: int,
        product: Product,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        name: str = "user",
        layout: ParameterLayout | None = None,
        about: dict[str, Any] | Callable[[], dict[str, Any]] | None = None,
        into: Into | None = None,
        hint: Callable[[], Tensor] | None = None,
    ) -> None:
        self.n, self.dtype, self.device = n, dtype, _numbered(device)
        self.name, self.layout = name, layout
        self.products = 0
        self.into, self.hint = into, hint
        self._product, self._about = product, about

    def __call__(self, v: Tensor) -> Tensor:
        if v.dim() != 2 or v.shape[1] != self.n:
            raise InvalidArgument(f"v: expected rows (k, {self.n}), got {tuple(v.shape)}")
        return self.multiply(v).to(v.device, torch.float64)

    def multiply(self, v: Tensor) -> Tensor:
        """The rows A v_i on ``device``, in the dtype that the product has."""
        found = self._product(v.to(self.device, self.dtype))
        if not isinstance(found, Tensor):
            raise InvalidArgument(
                f"operator: expected products as a tensor, got {type(found).__name__}"
            )
        self.products += len(v)
        return found.to(self.device)

    def describe(self) -> dict[str, Any]:
        """What determines the numbers: matrix, order, dtype, and the landscape's description."""
        dtype = str(self.dtype).removeprefix("torch.")
        about = self._about
        if about is None:
            about = self.known_by(self._product)
        elif callable(about):
            about = about()
        return {"matrix": self.name, "n": self.n, "dtype": dtype, **about}

    def known_by(self, what: Any) -> dict[str, Any]:
        """What determines the products of an object that makes them, JSON-able."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return dict(of_product(what, self.n, self._product, like))


def as_operator(
    a: Any,
    matrix: str = "hessian",
    theta: Any = None,
    params: Sequence[str] | None = None,
) -> SymmetricOperator:
    """A Landscape's matrix, or any symmetric matrix, as a SymmetricOperator.

    Args:
        a: a Landscape; a SymmetricOperator, which is returned; a scipy LinearOperator or sparse
            matrix, or a dense array or tensor, all (n, n), real and taken to be symmetric;
            another package's operator on tensors (curvlinops, hessian-eigenthings). A function
            makes one by ``SymmetricOperator(n, function)`` or ``interop.from_product``. Files know
            an operator or function by what it computes, see ``SymmetricOperator``.
        matrix: of a landscape: "hessian", "gauss_newton" (J^T H_out J) or "covariance" (of the
            per-sample gradients, uncentred).
        theta: of a landscape: where; default its own parameters.
        params: of a landscape: name patterns; the matrix is the block of these parameters.

    Raises:
        InvalidArgument: anything else, a matrix that is not square, an unknown `matrix`.
    """
    from . import interop
    from .landscape import Landscape

    if isinstance(a, Landscape):
        return _of_landscape(a, matrix, theta, params)
    if matrix != "hessian" or theta is not None or params is not None:
        raise InvalidArgument("matrix, theta, params: expected only with a Landscape")
    if isinstance(a, SymmetricOperator):
        return a
    if isinstance(a, Tensor | np.ndarray | list | tuple):
        dense = _dense(a)
        _check_square(tuple(dense.shape))
        dense = dense if dense.dtype in (torch.float32, torch.float64) else dense.double()
        return SymmetricOperator(
            len(dense), lambda v: v @ dense.T, dtype=dense.dtype, device=dense.device,
            about=lambda: {"digest": digest(dense)},
        )  # fmt: skip
    foreign = interop.on_tensors(a)
    if foreign is not None:
        return foreign
    if not hasattr(a, "shape") or not hasattr(a, "dot"):
        raise InvalidArgument(
            "operator: expected a Landscape, a SymmetricOperator, a scipy or curvlinops operator, "
            f"or a symmetric matrix, got {type(a).__name__}"
        )
    _check_square(tuple(a.shape))
    if np.dtype(getattr(a, "dtype", None)).kind == "c":
        raise InvalidArgument(f"operator: expected real numbers, got dtype {a.dtype}")

    def product(v: Tensor) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(np.asarray(a.dot(v.numpy().T)).T))

    def about() -> dict[str, Any]:
        if not issparse(a):
            return found.known_by(a)
        rows = a.tocoo()
        told = digest(np.stack([rows.row, rows.col, rows.data.astype(np.float64)]))
        return {"type": type(a).__name__, "digest": told}

    found = SymmetricOperator(a.shape[0], product, about=about)
    return found


def _numbered(device: torch.device | str) -> torch.device:
    """The device with its number: "cuda" is the one that is current now."""
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def _dense(a: Any) -> Tensor:
    try:
        dense = torch.as_tensor(a if isinstance(a, Tensor) else np.asarray(a)).detach()
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"operator: expected a matrix of real numbers, got {type(a).__name__}: {error}"
        ) from error
    if dense.is_complex():
        raise InvalidArgument(f"operator: expected real numbers, got {dense.dtype}")
    return dense


def _check_square(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise InvalidArgument(f"operator: expected a square matrix, got shape {shape}")


def _of_landscape(
    land: Landscape, matrix: str, theta: Any, params: Sequence[str] | None
) -> SymmetricOperator:
    if matrix not in MATRICES:
        raise InvalidArgument(f"matrix: expected one of {', '.join(MATRICES)}, got {matrix!r}")
    point = land._point(theta)
    layout = land.layout if params is None else land.layout.select(params)

    def about() -> dict[str, Any]:
        described = {**land.describe(), "theta": digest(point)}
        described.pop("model_theta")  # the point says it
        return described | ({} if params is None else {"params": [e.name for e in layout.entries]})

    def whole(v: Tensor) -> Tensor:
        return land._product_at(matrix, v, point)

    if params is None:
        return SymmetricOperator(
            land.n_params, whole, dtype=land.dtype, device=land.device, name=matrix,
            layout=layout, about=about, into=land.product_into(matrix, point),
            hint=lambda: land.gradient(point),
        )  # fmt: skip
    at = torch.cat(
        [
            torch.arange(land.layout[e.name].offset, land.layout[e.name].offset + e.numel)
            for e in layout.entries
        ]
    ).to(land.device)

    def block(v: Tensor) -> Tensor:
        embedded = torch.zeros(len(v), land.n_params, dtype=v.dtype, device=v.device)
        embedded[:, at] = v
        return whole(embedded)[:, at]

    return SymmetricOperator(
        layout.n, block, dtype=land.dtype, device=land.device, name=matrix, layout=layout,
        about=about, hint=lambda: land.gradient(point)[at],
    )  # fmt: skip
