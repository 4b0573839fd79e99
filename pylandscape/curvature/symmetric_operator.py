"""A symmetric matrix known by its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arrays import all_finite
from ..errors import InvalidArgument
from ..theta.identity import of_product
from .tall import dots

if TYPE_CHECKING:
    from ..theta.layout import ParameterLayout


Product = Callable[[Tensor], Tensor]
Native = Callable[[], tuple[Any, Any, float]]
About = Callable[[bool], dict[str, Any]]


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
        about: JSON-able, what determines the numbers, or a function that gives it and takes what
            `describe` takes. Default: what `source` computes: its code, closure and defaults, or,
            where these cannot be looked into, two products.
        source: the object that makes the products; default `product`.
        native: gives the same product as the core has it, if it does: (its Derivatives at the
            point, which matrix, what their sums are multiplied by), for `Lanczos` to call without
            Python.
        hint: a vector (n,) that leans towards the eigenvectors of large eigenvalues, if one is at
            hand; the gradient of a loss does (Gur-Ari, Roberts, Dyer 2018).
        note: how products were had, where they are not exact: for the notes of results.

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
        about: dict[str, Any] | About | None = None,
        source: Any = None,
        native: Native | None = None,
        hint: Callable[[], Tensor] | None = None,
        note: Callable[[], str | None] | None = None,
    ) -> None:
        self.n, self.dtype, self.device = n, dtype, _numbered(device)
        self.name, self.layout = name, layout
        self.products = 0
        self.native, self.hint, self.note = native, hint, note
        self._product, self._about = product, about
        self._source = product if source is None else source

    def notes(self) -> list[str]:
        """How products were had so far, where they are not exact."""
        said = None if self.note is None else self.note()
        return [] if said is None else [said]

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

    def forms(self, v: Tensor) -> Tensor:
        """v_i^T A v_i (k,) float64 for the rows v (k, n), on v's device; k products.

        Where the core has the products, from tangents forward alone: no product is made.
        """
        if self.native is not None and v.dim() == 2 and v.shape[1] == self.n:
            derivatives, matrix, scale = self.native()
            rows = v.to(self.device, self.dtype).contiguous()
            found = torch.empty(len(rows), dtype=torch.float64)
            address = rows.data_ptr(), found.data_ptr()
            derivatives.forms(matrix, len(rows), *address, scale)
            if all_finite(found):
                self.products += len(rows)
                return found.to(v.device)
        return dots(self(v), v)

    def describe(self, whole: bool = True) -> dict[str, Any]:
        """What determines the numbers: matrix, order, dtype, and the landscape's description.

        `whole`: also of a function without `about`, which costs looking into it, maybe two
        products; only files need that.
        """
        dtype = str(self.dtype).removeprefix("torch.")
        about = self._about
        if callable(about):
            about = about(whole)
        elif about is None and whole:
            like = torch.empty(0, dtype=self.dtype, device=self.device)
            about = of_product(self._source, self.n, self._product, like)
        elif about is None:
            about = {"operator": "not looked into"}
        return {"matrix": self.name, "n": self.n, "dtype": dtype, **about}


def _numbered(device: torch.device | str) -> torch.device:
    """The device with its number: "cuda" is the one that is current now."""
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found
