"""Symmetric matrices known by their products: what Lanczos and the trace estimators take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arrays import digest
from ..errors import InvalidArgument
from ..results.spectra import MATRICES
from .symmetric_operator import Native, SymmetricOperator
from .tall import inner

if TYPE_CHECKING:
    from ..landscape import Landscape


SAFE = 200  # products between 2^-SAFE and 2^SAFE stay as they are


class Balanced(SymmetricOperator):
    """2^exponent A, with products that are far from underflow and overflow, as are their squares.

    The exponent is 0 unless the first product that is not zero is beyond 2^-200 or 2^200: then it
    brings that one there. Multiplying by a power of two is exact, so that eigenvectors, and
    eigenvalues times 2^-exponent, are those of A.

    Args:
        of: A; the products are counted there.
        known: what `known` gave in an earlier run; default found from the first product.
    """

    def __init__(self, of: SymmetricOperator, known: np.ndarray | None = None) -> None:
        self.of = of
        self.n, self.dtype, self.device = of.n, of.dtype, of.device
        self.name, self.layout, self.hint, self.note = of.name, of.layout, of.hint, of.note
        self.exponent: int | None = None if known is None or not len(known) else int(known[0])

    @property
    def products(self) -> int:
        return self.of.products

    @products.setter
    def products(self, count: int) -> None:
        self.of.products = count

    @property
    def native(self) -> Native | None:  # type: ignore[override]
        of = self.of.native
        if of is None:
            return None

        def scaled() -> tuple[Any, Any, float]:
            derivatives, matrix, scale = of()
            return derivatives, matrix, scale * 2.0 ** (self.exponent or 0)

        return scaled

    def multiply(self, v: Tensor) -> Tensor:
        found = self.of.multiply(v)
        self.settle(found)
        return found.double() * 2.0**self.exponent if self.exponent else found

    def forms(self, v: Tensor) -> Tensor:
        found = self.of.forms(v)
        self.settle(found)
        return found * 2.0**self.exponent if self.exponent else found

    def settle(self, found: Any) -> None:
        """Choose the exponent by numbers of A's size, unless there is one or all are zero."""
        if self.exponent is None:
            largest = float(torch.as_tensor(found).abs().max())
            if 0.0 < largest < float("inf"):
                size = int(np.frexp(largest)[1])
                self.exponent = int(np.clip(size, -SAFE, SAFE)) - size

    def known(self) -> np.ndarray:
        """The exponent (1,), or (0,) without one: what a checkpoint keeps of it."""
        return np.array([] if self.exponent is None else [self.exponent], dtype=np.int64)

    def restored(self, values: Any) -> Any:
        """Numbers of 2^exponent A as those of A: floats, arrays."""
        return np.ldexp(values, -(self.exponent or 0))

    def describe(self, whole: bool = True) -> dict[str, Any]:
        return self.of.describe(whole)


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
    from ..landscape import Landscape
    from . import foreign_operators

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
        dense = dense.contiguous()

        def rows(v: Tensor) -> Tensor:
            return inner(dense, v).T if dense.device.type == "cpu" else v @ dense.T

        return SymmetricOperator(
            len(dense), rows, dtype=dense.dtype, device=dense.device,
            about=lambda _: {"digest": digest(dense)},
        )  # fmt: skip
    foreign = foreign_operators.on_tensors(a)
    if foreign is not None:
        return foreign
    if not hasattr(a, "shape") or not hasattr(a, "dot"):
        make = isinstance(a, torch.nn.Module)
        raise InvalidArgument(
            "operator: expected a Landscape, a SymmetricOperator, a scipy or curvlinops operator, "
            f"or a symmetric matrix, got {'the module ' if make else ''}{type(a).__name__}"
            + ("; make one with pylandscape.Landscape(model, loss, data)" if make else "")
        )
    _check_square(tuple(a.shape))
    if np.dtype(getattr(a, "dtype", None)).kind == "c":
        raise InvalidArgument(f"operator: expected real numbers, got dtype {a.dtype}")

    def product(v: Tensor) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(np.asarray(a.dot(v.numpy().T)).T))

    from scipy.sparse import issparse

    def sparse(_: bool) -> dict[str, Any]:
        rows = a.tocoo()
        told = digest(np.stack([rows.row, rows.col, rows.data.astype(np.float64)]))
        return {"type": type(a).__name__, "digest": told}

    about = sparse if issparse(a) else None
    return SymmetricOperator(a.shape[0], product, about=about, source=a)


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
    land = land.at(theta)
    point = land.point(theta)
    layout = land.layout if params is None else land.layout.select(params)

    def about(_: bool) -> dict[str, Any]:
        described = {**land.describe(), "theta": digest(point)}
        described.pop("model_theta")  # the point says it
        return described | ({} if params is None else {"params": [e.name for e in layout.entries]})

    def whole(v: Tensor) -> Tensor:
        return land.product_at(matrix, v, point)

    def note() -> str | None:
        return land.products_note() if matrix == "hessian" else None

    if params is None:
        return SymmetricOperator(
            land.n_params, whole, dtype=land.dtype, device=land.device, name=matrix,
            layout=layout, about=about, native=land.native_products(matrix, point),
            hint=lambda: land.gradient(point), note=note,
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
        about=about, hint=lambda: land.gradient(point)[at], note=note,
    )  # fmt: skip
