"""Trace, Frobenius norm and diagonal of a symmetric matrix A (n, n) that is known by its products.

    XTrace       Epperly, Tropp, Webber (2024), XTrace: making the most of every sample in
                 stochastic trace estimation, sections 2 and 3 (XDiag: section 2.4)
    Hutch++      Meyer, Musco, Musco, Woodruff (2021), algorithm 1
    Hutchinson   Hutchinson (1990); of the diagonal: Bekas, Kokiopoulou, Saad (2007)

All are unbiased, and all come with a standard error. The test vectors are `random_source`'s: the
same on every device. Everything after the products is float64, with sums in an order of their own
(`tall`), and done where the operator is. Matrices far from 1 are multiplied by a power of two
first (`Balanced`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..arguments import integer
from ..arrays import digest, progress_bar
from ..errors import InvalidArgument
from ..ranks import current
from ..results.estimates import Estimate
from ..runs.items import by_ranks
from ..runs.request import build
from ..theta import random_source
from .operators import Balanced, as_operator
from .tall import combine, dots, inner, matmul, orthonormal

METHODS = {"xtrace": 4, "hutch++": 4, "hutchinson": 2}  # the fewest products that give an error
DIAGONAL_METHODS = {"xdiag": 4, "hutchinson": 2}
BLOCK = 16  # vectors multiplied at once
SHIFTS = 4  # pairs (i, i + shift) of XDiag's test vectors that give its covariance
LEAST_ROOM = 1e-10  # of 1 - cos^2 of two directions, for what is built on their difference


def trace(
    a: Any,
    products: int = 100,
    method: str = "xtrace",
    seed: int = 0,
    matrix: str = "hessian",
    theta: Any = None,
    params: Sequence[str] | None = None,
    progress: bool = False,
) -> Estimate:
    """tr A, estimated from products with A.

    Args:
        a: a Landscape, or what `operators.as_operator` takes.
        products: vectors to multiply, in blocks of at most 16. With `products` >= n the trace is
            exact, from n products.
        method: "xtrace" (the most accurate where the spectrum decays), "hutch++" (its error
            estimate rests on independent samples) or "hutchinson" (no memory: the others hold up
            to 3/2 `products` vectors (n,) in float64).
        seed: of the test vectors; it fixes their bits.
        matrix, theta, params: of a Landscape, as in `as_operator`.
        progress: show a bar on stderr.

    Returns:
        An Estimate. XTrace's standard error counts that its leave-one-out samples are dependent;
        where each product lowers the error by far it is rough (up to a few times too large).
        Products that are not finite give NaN.

    Raises:
        InvalidArgument: an unknown method, products < 2 (4 for "xtrace" and "hutch++" unless they
            reach n), what `as_operator` refuses.

    Example:
        >>> trace(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
        6 +- 0 (3 products, exact)
    """
    op, count = _checked(a, matrix, theta, params, products, method, METHODS)
    with _bar(op, count, "trace", progress) as bar:
        found = _quadratic(op, count, method, _Draw(op, seed), bar, square=False)
    return _restored(op, found)


def frobenius_norm(
    a: Any,
    products: int = 100,
    method: str = "xtrace",
    seed: int = 0,
    matrix: str = "hessian",
    theta: Any = None,
    params: Sequence[str] | None = None,
    progress: bool = False,
) -> Estimate:
    """||A||_F: the square root of the estimate of tr A^2, whose quadratic forms are ||A v||^2.

    Arguments and errors as in `trace`. tr A^2 is unbiased, so its root is low by about
    standard_error^2 / (2 value). The standard error is that of tr A^2 over 2 value.
    """
    op, count = _checked(a, matrix, theta, params, products, method, METHODS)
    with _bar(op, count, "frobenius norm", progress) as bar:
        found = _quadratic(op, count, method, _Draw(op, seed), bar, square=True)
    norm = float(np.sqrt(np.maximum(found.value, 0.0)))
    error = found.standard_error / (2 * norm) if norm else found.standard_error
    return _restored(op, Estimate(norm, error, found.products, found.method))


def diagonal(
    a: Any,
    products: int = 100,
    method: str = "xdiag",
    seed: int = 0,
    matrix: str = "hessian",
    theta: Any = None,
    params: Sequence[str] | None = None,
    progress: bool = False,
) -> Estimate:
    """diag A (n,), with one standard error per element.

    Args:
        method: "xdiag" (XTrace's form for the diagonal) or "hutchinson" (mean of v * A v).
        The others, and the errors, are those of `trace`.
    """
    op, count = _checked(a, matrix, theta, params, products, method, DIAGONAL_METHODS)
    with _bar(op, count, "diagonal", progress) as bar:
        if count >= op.n:
            rows = torch.cat([rows[:, at].diagonal() for at, rows in _rows(op, bar)])
            found = Estimate(rows.cpu().numpy(), np.zeros(op.n), op.n, "exact")
        elif method == "xdiag":
            found = _xdiag(op, count // 2, _Draw(op, seed), bar)
        else:
            found = _sampled_diagonal(op, count, _Draw(op, seed), bar)
    return _restored(op, found)


# --- quadratic forms: tr A, or tr A^2 from ||A v||^2 --------------------------------------------


def _quadratic(
    op: Balanced,
    count: int,
    method: str,
    draw: _Draw,
    bar: tqdm,
    square: bool,
) -> Estimate:
    """tr A or, with `square`, tr A^2."""
    if count >= op.n:
        blocks = _rows(op, bar)
        parts = [dots(rows, rows).sum() if square else rows[:, at].trace() for at, rows in blocks]
        return Estimate(float(torch.stack(parts).sum()), 0.0, op.n, "exact")
    if method == "xtrace":
        value, error = _xtrace(op, count // 2, draw, bar, square)
        return Estimate(float(value), float(error), count // 2 * 2, method)
    if method == "hutch++":
        samples = _hutch_plus_plus(op, count, draw, bar, square)
    else:
        samples = _hutchinson(op, count, draw, bar, square)
    error = samples.std() / len(samples) ** 0.5
    return Estimate(float(samples.mean()), float(error), count, method)


def _hutchinson(
    op: Balanced,
    count: int,
    draw: _Draw,
    bar: tqdm,
    square: bool,
    basis: Tensor | None = None,
) -> Tensor:
    """(count,) samples v^T A v or ||A v||^2, v = (I - Q Q^T) g, g of random signs; `basis`: Q^T."""
    samples = []
    for at in range(0, count, BLOCK):
        v = draw.signs(min(BLOCK, count - at))
        if basis is not None:
            v = v - combine(inner(v, basis), basis)
        if square:
            found = _multiply(op, v, bar)
            samples.append(dots(found, found))
        else:
            samples.append(op.forms(v))
            bar.update(len(v))
    return torch.cat(samples)


def _hutch_plus_plus(op: Balanced, count: int, draw: _Draw, bar: tqdm, square: bool) -> Tensor:
    """Samples of the trace: exact on Q = orth(A S), Hutchinson's on its complement.

    Given Q the samples are independent, so that their standard error is honest.
    """
    k = count // 3
    q, _ = orthonormal(_multiply(op, draw.signs(k), bar))
    z = _multiply(op, q, bar)
    inside = dots(z, z if square else q).sum()
    return inside + _hutchinson(op, count - 2 * k, draw, bar, square, basis=q)


def _xtrace(op: Balanced, k: int, draw: _Draw, bar: tqdm, square: bool) -> tuple[Tensor, Tensor]:
    """tr B and its standard error, for B = A or A^2, from k test vectors and 2 k products with A.

    omega_i: Gaussian vectors, A Omega = Q R. Sample i has the basis of A Omega without its column
    i, Q_i = Q (I - s_i s_i^T), and for the rest omega_i, which is independent of that basis:

        t_i = tr(Q_i^T B Q_i) + (n - k + 1) x^T B x / ||x||^2,   x = omega_i - Q u_i,
        u_i = (I - s_i s_i^T) Q^T omega_i

    The scale is exact in the mean: x has a uniform direction in the n - k + 1 dimensions that Q_i
    leaves. All follows from the small matrices H = Q^T B Q, F = Q^T B Omega, W = Q^T Omega.
    """
    omega = draw.gaussians(k)
    y = _multiply(op, omega, bar)
    forms = dots(y, y if square else omega)  # omega_i^T B omega_i
    q, r = orthonormal(y)  # rows
    w, sizes = inner(q, omega), dots(omega, omega)
    del omega, y  # n k numbers each
    z = _multiply(op, q, bar)
    h, f = (inner(z, z), matmul(inner(z, q), r)) if square else (inner(z, q), r)
    s = _left_out(r)
    along = (s * w).sum(0)
    u = w - s * along
    base = h.trace() - (s * matmul(h, s)).sum(0)
    rest = forms - 2 * (f * u).sum(0) + (u * matmul(h, u)).sum(0)  # x^T B x
    size = sizes - w.square().sum(0) + along.square()  # ||x||^2
    samples = base + (op.n - k + 1) * rest / size

    # t_i(j), sample i without test vector j: its basis also lacks e = s_j - c s_i, normalised.
    c = matmul(s.T, s)
    room = 1 - c.square()  # ||s_j - c s_i||^2
    room = torch.where(room > LEAST_ROOM, room, torch.inf)  # an infinite one: t_i(j) = t_i

    def onto(a: Tensor) -> Tensor:
        """[j, i]: e^T a_i, for the columns a_i."""
        b = matmul(s.T, a)
        return (b - c * b.diagonal()) / room.sqrt()

    k_ = matmul(matmul(s.T, h), s)
    curvature = (k_.diagonal()[:, None] - 2 * c * k_ + c.square() * k_.diagonal()) / room
    step = onto(w)
    slope = onto(f) - onto(matmul(h, u))
    rest_j = rest + 2 * step * slope + step.square() * curvature
    pairs = base - curvature + (op.n - k + 2) * rest_j / (size + step.square())
    return samples.mean(), _error(samples, pairs)


def _error(samples: Tensor, pairs: Tensor) -> Tensor:
    """The standard error of the mean of leave-one-out samples t_i (k,).

    Args:
        pairs: (k, k), [j, i]: t_i(j), the sample i without test vector j.

    Var(mean t_i) = (Var t_i - C) / k + C, C the covariance of t_i and t_j. The paper's estimate,
    which takes them as independent, is of the first term only: 3/4 of the true error where the
    spectrum decays. Given the other vectors t_i - tr B and t_i(j) - tr B have mean zero, and
    t_j(i) is a function of those, so that

        C = E[(t_i - t_i(j)) (t_j - t_j(i))],

    averaged over all pairs here. It costs no products. It is kept within 0 <= C <= Var t_i - C,
    which cuts its noise where the spectrum falls steeply.
    """
    k = len(samples)
    change = (samples - pairs).fill_diagonal_(0.0)
    covariance = ((change * change.T).sum() / (k * (k - 1))).clamp_min(0.0)
    variance = samples.var()
    return (variance / k + torch.minimum(covariance, variance)).sqrt()


def _left_out(r: Tensor) -> Tensor:
    """(k, k) unit columns s_i with s_i^T R e_j = 0 for every j != i: those of R^-T, normalised.

    R is singular where A has a rank below k. Its diagonal is kept above rounding then: s_i is
    some vector orthogonal to the other columns, and the basis without it still holds A's range.
    """
    scale = r.abs().max()
    if scale == 0:
        return torch.eye(len(r), dtype=r.dtype, device=r.device)
    lower = (r / scale).T.contiguous()
    diagonal = lower.diagonal()
    floor = len(r) * torch.finfo(r.dtype).eps
    diagonal.copy_(torch.where(diagonal.abs() < floor, floor, diagonal))
    rows, found = lower.cpu().numpy(), np.eye(len(r))
    for i in range(len(r)):  # R^T S = 1, row by row
        found[i] = (found[i] - np.einsum("j,jk->k", rows[i, :i], found[:i])) / rows[i, i]
    s = torch.as_tensor(found).to(r.device)
    return s / s.square().sum(0).sqrt()


# --- the diagonal ------------------------------------------------------------------------------


def _xdiag(op: Balanced, k: int, draw: _Draw, bar: tqdm) -> Estimate:
    """As `_xtrace`: sample i is diag(Q_i Q_i^T A) + omega_i * (I - Q_i Q_i^T) A omega_i.

    As A omega_i = Q R e_i, the second term is omega_i * (Q s_i) (s_i^T R e_i). The standard error
    is `_error`'s per element, its covariance averaged over `SHIFTS` k pairs (i, j).
    """
    omega = draw.signs(k)
    q, r = orthonormal(_multiply(op, omega, bar))  # rows
    z = _multiply(op, q, bar)
    s = _left_out(r)
    base = torch.zeros_like(q[0])
    for on_q, on_z in zip(q, z, strict=True):
        base += on_q * on_z
    shares, c = (s * r).sum(0), matmul(s.T, s)
    q, z = combine(s.T, q), combine(s.T, z)  # rows Q s_i and A Q s_i
    moments = _Moments(op)
    for i in range(k):
        moments.add(q[i] * (shares[i] * omega[i] - z[i]))

    def change(i: int, j: int) -> Tensor:
        """t_i - t_i(j) = (Q e) * (A Q e - omega_i (e^T R e_i)), e = s_j - c s_i, normalised."""
        room = 1 - c[i, j].square()
        if room <= LEAST_ROOM:
            return torch.zeros_like(base)
        on_q, on_z = q[j] - c[i, j] * q[i], z[j] - c[i, j] * z[i]
        return on_q * (on_z + c[i, j] * shares[i] * omega[i]) / room

    covariance = torch.zeros_like(base)
    shifts = max(1, min(SHIFTS, (k - 1) // 2))
    for shift in range(1, shifts + 1):
        for i in range(k):
            j = (i + shift) % k
            covariance += change(i, j) * change(j, i)
    covariance = (covariance / (shifts * k)).clamp_min(0.0)
    variance = moments.variance()
    error = (variance / k + torch.minimum(covariance, variance)).sqrt()
    mean = (base + moments.mean).cpu().numpy()
    return Estimate(mean, error.cpu().numpy(), 2 * k, "xdiag")


def _sampled_diagonal(op: Balanced, count: int, draw: _Draw, bar: tqdm) -> Estimate:
    moments = _Moments(op)
    for at in range(0, count, BLOCK):
        v = draw.signs(min(BLOCK, count - at))
        for row in v * _multiply(op, v, bar):
            moments.add(row)
    error = (moments.variance() / count).sqrt()
    return Estimate(moments.mean.cpu().numpy(), error.cpu().numpy(), count, "hutchinson")


class _Moments:
    """Mean and spread of vectors (n,) that come one by one (Welford's updates)."""

    def __init__(self, op: Balanced) -> None:
        self.count = 0
        self.mean = torch.zeros(op.n, dtype=torch.float64, device=op.device)
        self.spread = torch.zeros_like(self.mean)

    def add(self, x: Tensor) -> None:
        self.count += 1
        away = x - self.mean
        self.mean = self.mean + away / self.count
        self.spread = self.spread + away * (x - self.mean)

    def variance(self) -> Tensor:
        return self.spread / (self.count - 1)


# --- products and test vectors -----------------------------------------------------------------


def _multiply(op: Balanced, rows: Tensor, bar: tqdm) -> Tensor:
    """The rows A v_i (k, n) float64."""
    if current() is not None and len(rows) > BLOCK:
        if op.exponent is None:
            op(rows[:1])  # which settles it, on all ranks alike
        request = build(op, "products", False, count=len(rows), first=digest(rows[0]))

        def some(at: np.ndarray, beat: Any) -> dict[str, np.ndarray]:
            return {"products": op(rows[torch.as_tensor(at).to(rows.device)]).cpu().numpy()}

        shared = by_ranks(
            "products", request, len(rows), some, most=BLOCK, unit="product", progress=False
        )
        if shared is not None:
            bar.update(len(rows))
            return torch.from_numpy(shared["products"]).to(rows.device)
    found = []
    for block in rows.split(BLOCK):
        found.append(op(block))
        bar.update(len(block))
    return torch.cat(found)


def _rows(op: Balanced, bar: tqdm) -> Any:
    """All of A, as (slice of rows, those rows (b, n))."""
    for at in range(0, op.n, BLOCK):
        size = min(BLOCK, op.n - at)
        unit = torch.zeros(size, op.n, dtype=torch.float64, device=op.device)
        unit[:, at : at + size].fill_diagonal_(1.0)
        yield slice(at, at + size), _multiply(op, unit, bar)


class _Draw:
    """Test vectors (count, n) float64 on the operator's device, one after the other."""

    def __init__(self, op: Balanced, seed: int) -> None:
        self.op, self.drawn = op, 0
        try:
            self.seed = operator.index(seed)
        except TypeError:
            raise InvalidArgument(f"seed: expected a 64-bit integer, got {seed!r}") from None
        if not -(1 << 63) <= self.seed < 1 << 64:
            raise InvalidArgument(f"seed: expected a 64-bit integer, got {seed!r}")

    def gaussians(self, count: int) -> Tensor:
        """N(0, 1), of float32."""
        found = torch.empty(count, self.op.n, dtype=torch.float64, device=self.op.device)
        for row in found:
            random_source.fill(row, self.seed, random_source.TEST_VECTORS, self.drawn)
            self.drawn += 1
        return found

    def signs(self, count: int) -> Tensor:
        """Each element -1 or 1."""
        return torch.ones_like(found := self.gaussians(count)).copysign_(found)


def _restored(op: Balanced, found: Estimate) -> Estimate:
    """The estimate in the units of the matrix that was given."""
    value, error = (op.restored(each) for each in (found.value, found.standard_error))
    if not isinstance(found.value, np.ndarray):
        value, error = float(value), float(error)
    return Estimate(value, error, found.products, found.method)


def _bar(op: Balanced, count: int, label: str, progress: bool) -> tqdm:
    total = min(count, op.n)
    return progress_bar(total, label, "product", progress)


def _checked(
    a: Any,
    matrix: str,
    theta: Any,
    params: Sequence[str] | None,
    products: int,
    method: str,
    methods: dict[str, int],
) -> tuple[Balanced, int]:
    if method not in methods:
        known = ", ".join(map(repr, methods))
        raise InvalidArgument(f"method: expected one of {known}, got {method!r}")
    count = integer(products, "products")
    op = Balanced(as_operator(a, matrix, theta, params))
    fewest = methods[method] if op.n > count else 2
    if count < fewest:
        raise InvalidArgument(
            f"products: expected at least {fewest} for {method!r} and n = {op.n}, got {count}"
        )
    return op, count
