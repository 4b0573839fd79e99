"""The Python side of the Lanczos driver (csrc/lanczos): memory, products, checkpoints, T.

Basis, vectors and products are where the operator is. On a GPU only numbers come to the host, once
a step (device_passes.py). The way goes on in csrc/lanczos, which multiplies with a landscape's
matrix by csrc/derivatives itself where the operator has `native`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._native import core
from ..arrays import progress_bar
from ..errors import InvalidArgument, ResumeMismatch
from ..theta import random_source
from . import device_passes, tall
from .operators import Balanced
from .symmetric_operator import SymmetricOperator

Array = NDArray[np.float64]

_DRIVERS = {torch.float32: core.LanczosF32, torch.float64: core.LanczosF64}
REORTHOGONALIZE = ("full", "partial", "none")
RUNNING = core.Outcome.running
OWN_VECTORS = 256  # rows of T up to which its eigenvectors take no longer than to import scipy's
RECHECK = 1e-3  # relative difference of a recomputed alpha that is taken for the same matrix
_OUTCOMES = {
    core.Outcome.running: "complete",
    core.Outcome.breakdown: "breakdown",
    core.Outcome.exhausted: "exhausted",
    core.Outcome.not_finite: "not finite",
}


class Lanczos:
    """A Q^T = Q^T T + r e^T for several starts at once: full, partial or no reorthogonalisation.

    Args:
        operator: the symmetric matrix A (n, n).
        starts: (s, n), one row per start, not zero; normalised here.
        steps: most rows of T; at most n are ever made.
        dtype: of the basis, torch.float32 or float64; default the operator's. Sums and T are
            float64 always.
        reorthogonalize: "full": every vector against all before it, until only rounding is left
            (Gram-Schmidt with a measured second pass; Giraud et al. 2005). "partial": where the
            recurrence of Simon (1984) asks for it. "none": the three-term recurrence alone, whose
            Ritz values repeat.
        fresh: after a breakdown go on with a random vector orthogonal to all before.
        seed: of these random vectors, each of which depends on the seed and its row alone.
        workspace: file that holds the basis (s (steps + 1) n numbers) instead of memory. It is host
            memory: of an operator on a GPU every vector and product then crosses. So they do beyond
            8,192 steps, and where this build has no CUDA kernels.

    Attributes:
        basis: (s, steps + 1, n), on the operator's device (see `workspace`).

    A start ends with `outcome`: "complete" (all steps), "breakdown" (beta <= eps ||T||: the Krylov
    space is invariant), "exhausted" (n steps), "not finite" (a product with NaN or infinity; what
    came before is kept).

    Where the first product is beyond 2^-200 or 2^200, A is multiplied by a power of two
    (`operators.Balanced`); T is in the units of A all the same.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        starts: Tensor,
        steps: int,
        *,
        dtype: torch.dtype | None = None,
        reorthogonalize: str = "full",
        fresh: bool = False,
        seed: int = 0,
        workspace: str | Path | None = None,
    ) -> None:
        n = operator.n
        if starts.dim() != 2 or starts.shape[1] != n or len(starts) < 1:
            raise InvalidArgument(f"starts: expected shape (s, {n}), got {tuple(starts.shape)}")
        if steps < 1:
            raise InvalidArgument(f"steps: expected at least 1, got {steps}")
        if reorthogonalize not in REORTHOGONALIZE:
            raise InvalidArgument(
                f"reorthogonalize: expected one of {', '.join(REORTHOGONALIZE)}, "
                f"got {reorthogonalize!r}"
            )
        self._own = not isinstance(operator, Balanced)  # whether its units are kept from the caller
        self.operator = operator if isinstance(operator, Balanced) else Balanced(operator)
        self.n, self.count = n, len(starts)
        self.dtype = dtype or operator.dtype
        if self.dtype not in _DRIVERS:
            raise InvalidArgument(
                f"dtype: expected torch.float32 or torch.float64, got {self.dtype}"
            )
        self.most_steps = min(steps, n)
        shape = (self.count, self.most_steps + 1, n)
        kernels = None
        if workspace is None and shape[1] <= core.MOST_BASIS_ROWS:
            kernels = device_passes.device_kernels(operator.device)
        place = torch.device("cpu") if kernels is None else operator.device
        self.basis = _allocate(shape, self.dtype, workspace, place)
        self.basis[:, 0] = starts
        mode = getattr(core.Reorthogonalize, reorthogonalize)
        self._native: tuple[Any, Any, float] | None = None
        self._passes: device_passes.DevicePasses | None = None
        if kernels is None:
            self._driver = _DRIVERS[self.dtype](
                n, self.count, shape[1], self.basis.data_ptr(), mode, fresh, seed % 2**64
            )
        else:
            self._passes = device_passes.DevicePasses(self.operator, self.basis, kernels, seed)
            wide = self.dtype == torch.float64
            self._driver = core.LanczosDevice(n, self.count, shape[1], wide, mode, fresh)
        try:
            self._driver.begin(*(() if self._passes is None else (self._passes,)))
        except ValueError as error:
            raise InvalidArgument(
                "starts: expected rows that are finite and not zero, got one that is not"
            ) from error

    def run(self, steps: int | None = None) -> None:
        """Up to `steps` rows of T for every start; default all. Raises what a product raises."""
        steps = self.most_steps if steps is None else steps
        if self._passes is not None:
            self._driver.run(steps, self._passes)
            return
        operator = self.operator
        if operator.native is None or operator.dtype != self.dtype:
            self._driver.run(steps, self._multiply)
            return
        if operator.exponent is None:  # which the first product decides
            first = 1 + min(self.steps(i) for i in range(self.count))
            self._driver.run(min(steps, first), self._multiply)
        if operator.exponent is None:  # or the first one that is not zero
            self._driver.run(steps, self._multiply)
            return
        if self._native is None:  # one object for all steps, whatever else the landscape is asked
            self._native = operator.native()
        derivatives, matrix, scale = self._native
        before = self._driver.multiplied
        try:
            self._driver.run(steps, derivatives, matrix, scale)
        finally:
            operator.products += self._driver.multiplied - before

    def load(
        self,
        start: int,
        alpha: Sequence[float] | Array,
        beta: Sequence[float] | Array,
        spikes: Sequence[float] | Array = (),
        outcome: Any = RUNNING,
    ) -> None:
        """Take up a state whose rows are in ``basis`` already, the next vector among them."""
        parts = [np.asarray(part, dtype=np.float64) for part in (alpha, beta, spikes)]
        if self._own:
            self.operator.settle(np.concatenate([[0.0], *parts]))
            parts = [np.ldexp(part, self.operator.exponent or 0) for part in parts]
        self._driver.load(start, *(part.tolist() for part in parts), outcome)

    def recheck(self, start: int, alpha: Array, row: int, tolerance: float) -> None:
        """Compute alpha of a recorded row again: a request cannot tell of everything.

        Raises:
            ResumeMismatch: it comes out differently.
        """
        if row >= len(alpha):
            return
        q = self.basis[start, row][None]
        now = float(tall.dots(q.double(), self._restored(self.operator(q)))[0])
        scale = max(float(np.abs(alpha).max()), 1e-300)
        if not abs(now - alpha[row]) <= tolerance * scale:
            raise ResumeMismatch(
                f"path: the unfinished run records alpha = {alpha[row]!r} in row {row}, but the "
                f"matrix gives {now!r} now: it is another matrix; remove the file or use another "
                "path"
            )

    def steps(self, start: int = 0) -> int:
        """Rows of T made so far."""
        return int(self._driver.steps(start))

    def running(self, start: int = 0) -> bool:
        """Whether this start may go on."""
        return self._driver.outcome(start) == RUNNING and self.steps(start) < self.most_steps

    def outcome(self, start: int = 0) -> str:
        """How it ended."""
        return _OUTCOMES[self._driver.outcome(start)]

    def state(self, start: int = 0) -> tuple[Array, Array, Array, Any]:
        """alpha (m,), beta (m,), spikes (kept,) and the outcome, as `load` takes them."""
        d = self._driver
        values = (np.array(f(start)) for f in (d.alpha, d.beta, d.spikes))
        alpha, beta, spikes = (self._restored(part) for part in values)
        return alpha, beta, spikes, d.outcome(start)

    @property
    def passes(self) -> int:
        """How often the basis was streamed so far."""
        return int(self._driver.passes)

    def tridiagonal(self, start: int = 0) -> tuple[Array, float]:
        """T (m, m) and beta_m; after a restart its first rows are an arrow."""
        alpha, beta, spikes, _ = self.state(start)
        m, kept = len(alpha), len(spikes)
        t = np.diag(alpha)
        for i in range(kept, m - 1):
            t[i, i + 1] = t[i + 1, i] = beta[i]
        if kept and kept < m:
            t[:kept, kept] = t[kept, :kept] = spikes
        return t, float(beta[-1]) if m else 0.0

    def ritz(self, start: int = 0) -> tuple[Array, Array, Array]:
        """Ritz values (m,) ascending, T's eigenvectors (m, m) in columns, residual bounds (m,).

        The bound of value i is beta_m |last component of its vector| = ||A x - value x||.
        """
        alpha, beta, spikes, _ = self.state(start)
        if len(spikes) or not len(alpha):
            values, vectors = np.linalg.eigh(self.tridiagonal(start)[0])
        elif len(alpha) > OWN_VECTORS:
            from scipy.linalg import eigh_tridiagonal

            values, vectors = eigh_tridiagonal(alpha, beta[:-1])
        else:
            values, vectors = _turned(alpha, beta, np.eye(len(alpha)))
        bounds = abs(beta[-1] * vectors[-1]) if len(alpha) else np.empty(0)
        return values, vectors, bounds

    def nodes(self, start: int = 0) -> tuple[Array, Array, Array]:
        """Ritz values and bounds (m,) as `ritz`, and between them the first components (m,) of T's
        eigenvectors, whose squares are the weights of Gauss quadrature: in O(m^2) operations."""
        alpha, beta, spikes, _ = self.state(start)
        if len(spikes) or not len(alpha):
            values, vectors, bounds = self.ritz(start)
            return values, vectors[:1].reshape(-1), bounds
        ends = np.zeros((2, len(alpha)))
        ends[0, 0] = ends[1, -1] = 1
        values, (first, last) = _turned(alpha, beta, ends)
        return values, first, abs(beta[-1] * last)

    def vectors(self, coefficients: Array, start: int = 0) -> Tensor:
        """Combinations (k, n) of the basis' rows with the columns of coefficients (m, k), where
        the basis is."""
        rows, c = self.basis[start, : len(coefficients)], torch.as_tensor(coefficients.T.copy())
        if self._passes is None:
            return tall.combine(c, rows)
        found = torch.empty(len(c), self.n, dtype=self.dtype, device=rows.device)
        device_passes.combine(c.to(rows.device), rows, found)
        return found

    def rotate(self, coefficients: Array, start: int = 0) -> None:
        """The first k rows become those combinations (m, k); the others stay."""
        rows, c = self.basis[start, : len(coefficients)], torch.as_tensor(coefficients.T.copy())
        if self._passes is None:
            tall.combine(c, rows, rows[: len(c)])
        else:
            device_passes.combine(c.to(rows.device), rows, rows[: len(c)])

    def rows(self, count: int) -> NDArray[Any]:
        """The first rows (s, count, n) on the host."""
        found: NDArray[Any] = self.basis[:, :count].cpu().numpy()
        return found

    def _restored(self, values: Any) -> Any:
        """Numbers of the balanced operator in the units of the operator that was given."""
        exponent = self.operator.exponent if self._own else None
        return values * 2.0**-exponent if exponent else values

    def _multiply(self, count: int, vectors: int, products: int) -> None:
        found = self.operator(_view(vectors, (count, self.n), self.dtype).clone())
        if tuple(found.shape) != (count, self.n):
            raise InvalidArgument(
                f"operator: expected products of shape {(count, self.n)}, got {tuple(found.shape)}"
            )
        _view(products, (count, self.n), torch.float64).copy_(found)


def _turned(alpha: Array, beta: Array, rows: Array) -> tuple[Array, Array]:
    """Eigenvalues (m,) of a tridiagonal matrix, ascending; rows (r, m) times its eigenvectors."""
    values, beside = alpha.copy(), beta.copy()
    turned = np.ascontiguousarray(rows.T)
    done = core.tridiagonal_eigen(
        len(alpha), values.ctypes.data, beside.ctypes.data, len(rows), turned.ctypes.data
    )
    if not done:
        raise ArithmeticError(f"no eigenvalues of a tridiagonal matrix: {alpha}, {beta}")
    return values, turned.T


def outcome_of(number: int) -> Any:
    """The outcome that `int(outcome)` gave."""
    return core.Outcome(number)


def random_starts(
    n: int,
    count: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Tensor:
    """(count, n) of standard normal numbers on the device: row i depends on (seed, i) alone, and
    has the same bits on every device."""
    return random_source.normals(count, n, seed, random_source.STARTS, dtype, device)


@contextmanager
def watched(total: int, label: str, progress: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar of products; the function given takes how many are done."""
    with progress_bar(total, label, "Av", progress) as bar:

        def at(done: int) -> None:
            bar.update(max(0, done - bar.n))

        yield at


def _allocate(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    workspace: str | Path | None,
    device: torch.device,
) -> Tensor:
    if workspace is None:
        return torch.empty(shape, dtype=dtype, device=device)
    size = int(np.prod(shape))
    storage = torch.from_file(str(workspace), shared=True, size=size, dtype=dtype)
    return storage.view(shape)


def _view(address: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    number = ctypes.c_float if dtype == torch.float32 else ctypes.c_double
    array = (number * (shape[0] * shape[1])).from_address(address)
    return torch.from_numpy(np.ctypeslib.as_array(array).reshape(shape))
