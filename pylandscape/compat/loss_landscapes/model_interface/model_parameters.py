"""The parameters of a model as one vector whose parts keep their shapes.

In-place operations act on the tensors given: on a live model's parameters, they move the model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....errors import InvalidArgument


class NotTensors(InvalidArgument, AttributeError):
    """Parameters that are not a list of tensors."""


class ModelParameters:
    """A list of tensors, with the arithmetic of one vector.

    Norms and products are sums in float64. ``order`` is that of the norm.

    Raises:
        NotTensors (an AttributeError): for anything but a list of tensors.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, parameters: list[Tensor]) -> None:
        if not isinstance(parameters, list) or not all(isinstance(p, Tensor) for p in parameters):
            raise NotTensors(
                f"parameters: expected a list of tensors, got {type(parameters).__name__}"
            )
        self.parameters = parameters

    def __len__(self) -> int:
        return len(self.parameters)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.parameters)

    def __getitem__(self, index: int) -> Tensor:
        return self.parameters[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelParameters) or len(self) != len(other):
            return False
        return all(torch.equal(a, b) for a, b in zip(self, other, strict=True))

    def numel(self) -> int:
        """How many numbers."""
        return sum(p.numel() for p in self)

    def __add__(self, other: ModelParameters) -> ModelParameters:
        return ModelParameters(_map(torch._foreach_add, self, other))

    __radd__ = __add__

    def __sub__(self, other: ModelParameters) -> ModelParameters:
        return ModelParameters(_map(torch._foreach_sub, self, other))

    def __rsub__(self, other: ModelParameters) -> ModelParameters:
        return other - self

    def __mul__(self, scalar: float) -> ModelParameters:
        return ModelParameters([p * scalar for p in self])

    __rmul__ = __mul__

    def __truediv__(self, scalar: float) -> ModelParameters:
        return ModelParameters([p / scalar for p in self])

    def __floordiv__(self, scalar: float) -> ModelParameters:
        return ModelParameters([p // scalar for p in self])

    def __matmul__(self, other: ModelParameters) -> ModelParameters:
        raise NotImplementedError("ModelParameters are vectors: use dot()")

    def add_(self, other: ModelParameters) -> None:
        """self <- self + other."""
        _map(torch._foreach_add_, self, other)

    def sub_(self, vector: ModelParameters) -> None:
        """self <- self - vector."""
        _map(torch._foreach_sub_, self, vector)

    @torch.no_grad()
    def mul_(self, scalar: float) -> None:
        """self <- scalar self."""
        torch._foreach_mul_(self.parameters, float(scalar))

    @torch.no_grad()
    def truediv_(self, scalar: float) -> None:
        """self <- self / scalar."""
        torch._foreach_div_(self.parameters, float(scalar))

    @torch.no_grad()
    def floordiv_(self, scalar: float) -> None:
        """self <- floor(self / scalar)."""
        for p in self:
            p.floor_divide_(scalar)

    @torch.no_grad()
    def dot(self, other: ModelParameters) -> float:
        """The inner product."""
        pairs = zip(self, other.parameters, strict=True)
        return sum(float(torch.sum(a * b, dtype=torch.float64)) for a, b in pairs)

    def model_norm(self, order: float = 2) -> float:
        """The norm of the whole vector."""
        norms = [_norm(p, order) for p in self]
        return float(torch.linalg.vector_norm(torch.tensor(norms, dtype=torch.float64), order))

    def layer_norm(self, index: int, order: float = 2) -> float:
        """The norm of one tensor."""
        return _norm(self[index], order)

    def filter_norm(self, index: tuple[int, int], order: float = 2) -> float:
        """The norm of row index[1] of tensor index[0]."""
        return _norm(self[index[0]][index[1]], order)

    @torch.no_grad()
    def model_normalize_(self, ref_point: ModelParameters, order: float = 2) -> None:
        """The whole vector gets the norm of ``ref_point``; zero stays zero."""
        self.mul_(ratio(ref_point.model_norm(order), self.model_norm(order)))

    @torch.no_grad()
    def layer_normalize_(self, ref_point: ModelParameters, order: float = 2) -> None:
        """Every tensor gets the norm of that of ``ref_point``."""
        for p, ref in zip(self, ref_point.parameters, strict=True):
            p.mul_(ratio(_norm(ref, order), _norm(p, order)))

    @torch.no_grad()
    def filter_normalize_(self, ref_point: ModelParameters, order: float = 2) -> None:
        """Every filter gets the norm of that of ``ref_point``.

        Filters are the rows ``W[o, ...]``; a tensor of at most one dimension is one filter.
        """
        for p, ref in zip(self, ref_point.parameters, strict=True):
            p.mul_(row_ratios(p, ref, order) if p.dim() > 1 else ratio(_norm(ref), _norm(p)))

    def as_numpy(self) -> np.ndarray:
        """All numbers, flat."""
        return np.concatenate([p.detach().cpu().numpy().ravel() for p in self])

    def _get_parameters(self) -> list[Tensor]:
        return self.parameters


def ratio(a: float, b: float) -> float:
    """a / b; 0 where b is 0: a direction without a part there stays so."""
    return a / b if b else 0.0


def row_ratios(p: Tensor, ref: Tensor, order: float = 2) -> Tensor:
    """norms of the rows of ref over those of p, (rows, 1, ...), 0 where p's is 0."""
    dims = tuple(range(1, p.dim()))
    kw: dict[str, Any] = {"dim": dims, "keepdim": True, "dtype": torch.float64}
    if not dims:
        return (ref.double().abs() / p.double().abs()).nan_to_num_(0.0, 0.0).to(p.dtype)
    own = torch.linalg.vector_norm(p, order, **kw)
    wanted = torch.linalg.vector_norm(ref.detach(), order, **kw)
    return torch.where(own > 0, wanted / own, 0.0).to(p.dtype)


def _norm(p: Tensor, order: float = 2) -> float:
    return float(torch.linalg.vector_norm(p.detach(), order, dtype=torch.float64))


@torch.no_grad()
def _map(operation: Any, a: ModelParameters, b: ModelParameters) -> Any:
    """The foreach operation on both lists; InvalidArgument where they do not fit each other."""
    shapes = [[tuple(p.shape) for p in v] for v in (a, b)]
    if shapes[0] != shapes[1]:
        raise InvalidArgument(f"other: expected tensors of shapes {shapes[0]}, got {shapes[1]}")
    found = operation(a.parameters, b.parameters)
    return None if found is None else list(found)


def rand_u_like(example_vector: ModelParameters) -> ModelParameters:
    """Uniform numbers of [0, 1), by torch's global generator; shapes and devices as given."""
    return ModelParameters(_drawn(torch.rand, example_vector.parameters))


def rand_n_like(example_vector: ModelParameters) -> ModelParameters:
    """Standard normal numbers, likewise."""
    return ModelParameters(_drawn(torch.randn, example_vector.parameters))


def _drawn(draw: Any, like: Sequence[Tensor]) -> list[Tensor]:
    # Always drawn on the CPU: the same numbers for a seed on every device.
    return [draw(p.shape, dtype=like[0].dtype).to(p.device) for p in like]


def orthogonal_to(vector: ModelParameters) -> ModelParameters:
    """Uniform numbers without their component along ``vector``."""
    drawn = rand_u_like(vector)
    return drawn - vector * ratio(drawn.dot(vector), math.pow(vector.model_norm(2), 2))


def add(vector_a: ModelParameters, vector_b: ModelParameters) -> ModelParameters:
    return vector_a + vector_b


def sub(vector_a: ModelParameters, vector_b: ModelParameters) -> ModelParameters:
    return vector_a - vector_b


def mul(vector: ModelParameters, scalar: float) -> ModelParameters:
    return vector * scalar


def truediv(vector: ModelParameters, scalar: float) -> ModelParameters:
    return vector / scalar


def floordiv(vector: ModelParameters, scalar: float) -> ModelParameters:
    return vector // scalar


def filter_normalize(
    tensor: ModelParameters, ref_point: ModelParameters, order: float = 2
) -> ModelParameters:
    """`ModelParameters.filter_normalize_` of a copy."""
    new = copy.deepcopy(tensor)
    new.filter_normalize_(ref_point, order)
    return new


def layer_normalize(
    tensor: ModelParameters, ref_point: ModelParameters, order: float = 2
) -> ModelParameters:
    """`ModelParameters.layer_normalize_` of a copy."""
    new = copy.deepcopy(tensor)
    new.layer_normalize_(ref_point, order)
    return new


def model_normalize(
    tensor: ModelParameters, ref_point: ModelParameters, order: float = 2
) -> ModelParameters:
    """`ModelParameters.model_normalize_` of a copy."""
    new = copy.deepcopy(tensor)
    new.model_normalize_(ref_point, order)
    return new
