"""Lanczos vectors in a GPU's memory: what the driver (csrc/lanczos/rows.h) asks of them.

Vectors and products never leave the device. What crosses are numbers: everything that one question
found, of all starts together, in one copy that is waited for; a step with full
reorthogonalisation is one question. Random numbers are those of the CPU (`random_source`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._native import core, cuda_problem, ops
from ..errors import InvalidArgument
from ..theta import random_source

if TYPE_CHECKING:
    from .symmetric_operator import SymmetricOperator

COMBINED = 1 << 25  # elements of the basis that are combined at once

Where = Sequence[tuple[int, int]]  # (start, rows) of each job: w is row `rows`, Q the rows before
Found = list[tuple[list[float], list[float], float]]  # (in, out, ||w||) of each job


def device_kernels(device: torch.device) -> Any:
    """The ops of csrc/binding/spectral_ops.h if they can take tensors of this device, else None."""
    return ops if device.type == "cuda" and cuda_problem() is None else None


def combine(coefficients: Tensor, rows: Tensor, out: Tensor) -> None:
    """out (k, n) = coefficients (k, m) float64 times rows (m, n), rounded once; out may be the
    first k rows.

    In double by blocks of columns: where float32 products are allowed to be TF32, they would not be
    orthonormal.
    """
    columns = max(1 << 14, COMBINED // max(1, len(rows)))
    for c in range(0, rows.shape[1], columns):
        out[:, c : c + columns] = coefficients @ rows[:, c : c + columns].double()


class DevicePasses:
    """Rows of bases (starts, capacity, n) on a device, and the operator that multiplies them.

    Args:
        operator: its products are taken where they are.
        basis: (starts, capacity, n), float32 or float64.
        kernels: of `device_kernels`.
        seed: of what is drawn.
    """

    def __init__(self, operator: SymmetricOperator, basis: Tensor, kernels: Any, seed: int) -> None:
        self.operator, self.basis, self.kernels, self.seed = operator, basis, kernels, seed
        self._products: Tensor | None = None

    def multiply(self, where: Where) -> None:
        """Products of the rows before each w, kept for `advance`."""
        self._products = None
        v = torch.stack([self.basis[start, rows - 1] for start, rows in where])
        found = self.operator.multiply(v)
        if found.shape != v.shape:
            raise InvalidArgument(
                f"operator: expected products of shape {tuple(v.shape)}, got {tuple(found.shape)}"
            )
        if found.dtype != self.basis.dtype:
            found = found.double()
        self._products = found.contiguous()

    def advance(
        self, where: Where, local: list[list[float]], removes: bool
    ) -> tuple[list[float], Found]:
        """alpha = q . p and w = p - alpha q - (local terms) for the rows before q; where it
        removes, as `orthogonalize`."""
        assert self._products is not None
        kernels, blocks = self.kernels, []
        for jobs, q, w in self._blocks(where, local):
            p = self._products[jobs]
            alpha = kernels.row_dots(q[:, -1], p)[:, None]
            c = torch.cat([self._numbers(local[jobs]), alpha], 1)
            if removes:
                h = kernels.basis_pass_(q, p, c, w)[:, :-1]
                blocks.append(torch.cat([alpha, h, kernels.basis_pass_(q, w, h, w)], 1))
            else:
                norm = kernels.basis_pass_(q[:, -c.shape[1] :], p, c, w)[:, -1:]
                blocks.append(torch.cat([alpha, norm], 1))
        self._products = None
        rows = self._fetch(blocks)
        return [row[0] for row in rows], [_found(row[1:]) for row in rows]

    def project(self, where: Where) -> Found:
        """out = Q w."""
        return self._measured([self._pass(q, w, self._none(w)) for _, q, w in self._blocks(where)])

    def orthogonalize(self, where: Where) -> Found:
        """in = Q w, w <- w - Q^T in, out = Q w."""
        blocks = []
        for _, q, w in self._blocks(where):
            h = self._pass(q, w, self._none(w))[:, :-1]
            blocks.append(torch.cat([h, self._pass(q, w, h)], 1))
        return [_found(row) for row in self._fetch(blocks)]

    def remove(self, where: Where, coefficients: list[list[float]]) -> Found:
        """w <- w - Q^T in, out = Q w."""
        blocks = self._blocks(where)
        return self._measured(
            [self._pass(q, w, self._numbers(coefficients[jobs])) for jobs, q, w in blocks]
        )

    def normalize(self, where: Where, norms: list[float]) -> None:
        """w <- w / norm."""
        for jobs, _, w in self._blocks(where):
            factors = 1.0 / torch.tensor(norms[jobs], dtype=torch.float64)
            self.kernels.scale_rows_(w, factors)

    def draw(self, start: int, row: int, attempt: int) -> None:
        """w = standard normal numbers, those that csrc/lanczos/host_rows.cpp draws."""
        index = start << 40 | row << 8 | attempt
        random_source.fill(self.basis[start, row], self.seed, random_source.FRESH_ROWS, index)

    def _pass(self, q: Tensor, w: Tensor, c: Tensor) -> Tensor:
        found: Tensor = self.kernels.basis_pass_(q, w, c, w)
        return found

    def _blocks(
        self, where: Where, local: Sequence[Sequence[float]] | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Jobs that are one launch: neighbouring starts with the same numbers of rows and local
        coefficients. Their slice of all jobs, Q (s, rows, n), w (s, n)."""
        first = 0
        for last in range(1, len(where) + 1):
            (start, rows), size = where[first], last - first
            alike = last < len(where) and where[last] == (start + size, rows)
            if alike and local is not None:
                alike = len(local[last]) == len(local[first])
            if alike and size < core.MOST_STARTS:
                continue
            block = self.basis[start : start + size]
            yield slice(first, last), block[:, :rows], block[:, rows]
            first = last

    def _numbers(self, rows: list[list[float]]) -> Tensor:
        """(s, k) float64 there; the copy, of no more than a few KB, is not waited for."""
        host = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1)
        return host.to(self.basis.device, non_blocking=True)

    def _none(self, w: Tensor) -> Tensor:
        return torch.empty(len(w), 0, dtype=torch.float64, device=w.device)

    def _measured(self, blocks: list[Tensor]) -> Found:
        return [([], row[:-1], row[-1]) for row in self._fetch(blocks)]

    def _fetch(self, blocks: list[Tensor]) -> list[list[float]]:
        """The rows of all blocks, on the host: the one place that waits for the device."""
        together = torch.cat([block.reshape(-1) for block in blocks]).cpu()
        parts = together.split([block.numel() for block in blocks])
        return [
            row
            for part, block in zip(parts, blocks, strict=True)
            for row in part.view(block.shape).tolist()
        ]


def _found(row: list[float]) -> tuple[list[float], list[float], float]:
    m = (len(row) - 1) // 2
    return row[:m], row[m:-1], row[-1]
