"""What the algorithms share: the operator as the drivers take it, random vectors, the report."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....curvature.operators import as_operator
from ....curvature.symmetric_operator import SymmetricOperator
from ....errors import InvalidArgument
from ..._current import count
from ..._report import report


def driven(operator: Any) -> SymmetricOperator:
    """An operator of this package, of hessian-eigenthings or of curvlinops for the drivers."""
    op = as_operator(operator)
    op.products = 0
    return op


def note(name: str, operator: Any, op: SymmetricOperator) -> None:
    """Products made, into the report."""
    name = f"hessian_eigenthings.{name}"
    land = getattr(operator, "landscape", None)
    if land is None:
        report.add(name, "python", op.products, f"products of a {type(operator).__name__}")
    else:
        count(name, land, op.products)


def generator(seed: int | None) -> torch.Generator:
    """As the original's: torch's default seed for None."""
    made = torch.Generator()
    return made if seed is None else made.manual_seed(seed)


def signs(op: SymmetricOperator, rows: int, source: torch.Generator) -> Tensor:
    """(rows, n) of random signs, row by row from the generator."""
    coins = [torch.randint(0, 2, (op.n,), generator=source) for _ in range(rows)]
    return torch.stack(coins).to(op.dtype) * 2.0 - 1.0


def check_least(value: int, name: str, least: int = 1) -> None:
    if value < least:
        raise InvalidArgument(f"{name}: expected at least {least}, got {value}")
