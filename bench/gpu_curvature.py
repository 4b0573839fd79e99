"""gpu_check's rows of curvature: kernels against float64, their floors and torch's calls; a whole
Lanczos quadrature against plain torch and hessian-eigenthings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Run = Callable[[int], Any]
# name, milliseconds, floor, share, torch's milliseconds, error: gpu_check.Row
Values = tuple[str, float, float, float, float | None, float]
ALLOWED: dict[str, float] = {}  # error by name, filled as rows are measured
CHUNK = 1 << 20  # columns at a time, where float64 copies are made
LARGE = 64, 100_000_000  # where there is room for it
PEERS = 200  # matrices that torch takes eigenvalues of
PROBES, STEPS = 10, 90  # of stochastic Lanczos quadrature
WIDTHS, SAMPLES = (784, 512, 512, 10), 2000


def measure(bandwidth: float, median_ms: Callable[[Run, int], float]) -> Iterator[Values]:
    """Rows; bandwidth in bytes per millisecond."""
    for dtype in (torch.float32, torch.float64):
        for rows, n in ((64, 10_000_000), (64, 9_999_999), (200, 2_000_000), (600, 500_000)):
            yield _orthogonalize(rows, n, dtype, bandwidth, median_ms)
    rows, n = LARGE
    if torch.cuda.mem_get_info()[0] > 1.5 * rows * n * 4:
        yield _orthogonalize(rows, n, torch.float32, bandwidth, median_ms)
    yield from quadrature(torch.device("cuda"), PROBES, STEPS, WIDTHS, SAMPLES, bandwidth)
    for count, n in (
        (100_000, 10),
        (20_000, 32),
        (10_000, 33),
        (5_000, 64),
        (2_000, 105),
        (500, 200),
    ):
        yield _eigenvalues(count, n, bandwidth, median_ms)
    yield from _hessian_products(bandwidth, median_ms)


def _hessian_products(bandwidth: float, median_ms: Callable[[Run, int], float]) -> Iterator[Values]:
    import gpu_products
    from gpu_check import engine_of

    for values in gpu_products.measure(engine_of, bandwidth, median_ms):
        ALLOWED[values[0]] = gpu_products.ALLOWED
        yield values


def _orthogonalize(
    rows: int, n: int, dtype: torch.dtype, bandwidth: float, median_ms: Callable[[Run, int], float]
) -> Values:
    """w <- w - Q^T(Q w) and what is left of Q w: two streams of Q; torch's: twice w -= Q^T(Q w)."""
    from pylandscape._native import ops

    q = _orthonormal(rows, n, dtype)
    span = torch.randn(rows, dtype=dtype, device="cuda") * (n / rows) ** 0.5
    start = torch.randn(n, dtype=dtype, device="cuda") + span @ q
    w, none = torch.empty_like(start), torch.empty(0, dtype=torch.float64, device="cuda")

    def mine(_: int) -> Tensor:
        h = ops.basis_pass_(q, start, none, start)
        return ops.basis_pass_(q, start, h[:-1], w)

    def plain(_: int) -> Tensor:
        other = torch.addmv(start, q.T, q @ start, alpha=-1)
        return other.addmv_(q.T, q @ other, alpha=-1)

    measured, eps = mine(0).clone(), torch.finfo(dtype).eps
    h, pieces = _products(q, start), []
    for part, piece in zip(q.split(CHUNK, 1), start.split(CHUNK), strict=True):
        pieces.append(piece.double() - h @ part.double())
    exact = torch.cat(pieces)
    error = float((w.double() - exact).abs().max() / exact.abs().max())
    left = _products(q, w)  # measured on w as it is: its error counts as much as w's
    norm = float(w.double().norm())
    error = max(error, float((measured[:-1] - left).abs().max()) / norm)
    error = max(error, abs(float(measured[-1]) / norm - 1))
    took = median_ms(mine, 1)
    size = q.element_size()
    floor = (2 * rows * n + 3 * n) * size / bandwidth
    name = f"reorth {rows} x {n:,} {str(dtype).removeprefix('torch.')}"
    ALLOWED[name] = 8 * eps
    return name, took, floor, floor / took, median_ms(plain, 1), error


def quadrature(
    device: torch.device,
    probes: int,
    steps: int,
    widths: tuple[int, ...],
    samples: int,
    bandwidth: float,
    repetitions: int = 3,
) -> Iterator[Values]:
    """The spectrum of an MLP's Hessian, beside plain torch and hessian-eigenthings with the same
    products; milliseconds of a whole run. Floor: the products alone, and two streams of the basis
    a step."""
    import pylandscape as pl
    from pylandscape.lanczos import Lanczos, random_starts

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for k, m in pairwise(widths):
        layers += [nn.Linear(k, m), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).to(device)
    x = torch.randn(samples, widths[0]).to(device)
    y = torch.randint(0, widths[-1], (samples,)).to(device)
    op = pl.as_operator(pl.Landscape(model, "cross_entropy", (x, y)))
    starts = random_starts(op.n, probes, 0, op.dtype, op.device)

    def mine() -> list[np.ndarray]:
        lanczos = Lanczos(op, starts, steps)
        lanczos.run()
        return [lanczos.ritz(i)[0] for i in range(probes)]

    def products() -> None:
        for _ in range(steps):
            op.multiply(starts)

    def plain() -> list[np.ndarray]:
        return [np.linalg.eigvalsh(t) for t in plain_lanczos(op.multiply, starts, steps)]

    took, found = _seconds(mine, device, repetitions)
    alone, _ = _seconds(products, device, repetitions)
    theirs, want = _seconds(plain, device, repetitions)
    tops = np.array([[mine[-1], other[-1]] for mine, other in zip(found, want, strict=True)])
    error = float(np.abs(tops[:, 0] / tops[:, 1] - 1).max())
    streams = sum(2 * j for j in range(1, steps + 1)) * probes * op.n * starts.element_size()
    floor = 1e3 * alone + streams / bandwidth
    name = f"SLQ {probes} x {steps}, n = {op.n:,}"
    ALLOWED[name] = ALLOWED[f"{name}, eigenthings"] = 1000 * torch.finfo(op.dtype).eps
    yield name, 1e3 * took, floor, floor / (1e3 * took), 1e3 * theirs, error
    if find_spec("hessian_eigenthings") is None:
        return
    package = import_module("hessian_eigenthings")
    operator = package.HessianOperator(model, [(x, y)], package.supervised_loss(F.cross_entropy))

    def eigenthings() -> Any:
        return package.spectral_density(operator, num_runs=probes, lanczos_steps=steps, seed=0)

    theirs, done = _seconds(eigenthings, device, 1)
    top = max(float(np.max(np.asarray(nodes.cpu()))) for nodes in done.raw_eigenvalues)
    error = abs(top / tops[:, 0].max() - 1)
    yield f"{name}, eigenthings", 1e3 * took, floor, floor / (1e3 * took), 1e3 * theirs, error


def plain_lanczos(
    multiply: Callable[[Tensor], Tensor], starts: Tensor, steps: int
) -> list[np.ndarray]:
    """T (steps, steps) of each start, by batched torch calls that wait for nothing until the end:
    Gram-Schmidt twice."""
    count, n = starts.shape
    basis = torch.empty(count, steps + 1, n, dtype=starts.dtype, device=starts.device)
    basis[:, 0] = starts / torch.linalg.vector_norm(starts, dim=1, keepdim=True)
    t = torch.zeros(count, steps, steps, dtype=torch.float64, device=starts.device)
    for j in range(steps):
        w = multiply(basis[:, j]).to(starts.dtype)
        q = basis[:, : j + 1]
        for _ in range(2):
            h = torch.bmm(q, w[:, :, None])
            w = torch.baddbmm(w[:, None], h.mT, q, alpha=-1)[:, 0]
            t[:, j, j] += h[:, j, 0]
        beta = torch.linalg.vector_norm(w, dim=1)
        if j + 1 < steps:
            t[:, j, j + 1] = t[:, j + 1, j] = beta
        torch.div(w, beta[:, None], out=basis[:, j + 1])
    return list(t.cpu().numpy())


def _seconds(run: Callable[[], Any], device: torch.device, repetitions: int) -> tuple[float, Any]:
    """The median time of a run, after one that does not count, and its result."""
    times, done = [], run()
    for _ in range(repetitions):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        done = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times)), done


def _eigenvalues(
    count: int, n: int, bandwidth: float, median_ms: Callable[[Run, int], float]
) -> Values:
    """Matrices (count, n, n) read and values written; torch's eigvalsh."""
    from pylandscape._native import ops

    a = torch.randn(count, n, n, dtype=torch.float64, device="cuda")
    a = a + a.mT
    want = torch.linalg.eigvalsh(a[:200].cpu())
    got = ops.small_eigenvalues(a)[:200].cpu()
    error = float(((got - want).abs().amax(1) / want.abs().amax(1)).max())
    took = median_ms(lambda _: ops.small_eigenvalues(a), 1)
    floor = (a.nbytes + count * n * 8) / bandwidth
    name = f"eigenvalues {count:,} of order {n}"
    ALLOWED[name] = (10 + 3 * n**0.5) * torch.finfo(torch.float64).eps
    some = a[:PEERS]  # torch takes large batches one by one, or not at all
    plain = median_ms(lambda _: torch.linalg.eigvalsh(some), 1, 3) * count / len(some)
    return name, took, floor, floor / took, plain, error


def _orthonormal(rows: int, n: int, dtype: torch.dtype) -> Tensor:
    """Random rows, orthonormal up to rounding: Cholesky QR of a Gaussian."""
    q = torch.randn(rows, n, dtype=dtype, device="cuda")
    gram = torch.zeros(rows, rows, dtype=torch.float64, device="cuda")
    for part in q.split(CHUNK, 1):
        gram.addmm_(part.double(), part.double().T)
    factor = torch.linalg.cholesky(gram)
    for part in q.split(CHUNK, 1):
        part.copy_(torch.linalg.solve_triangular(factor, part.double(), upper=False))
    return q


def _products(q: Tensor, w: Tensor) -> Tensor:
    """Q w in float64."""
    out = torch.zeros(len(q), dtype=torch.float64, device="cuda")
    for part, piece in zip(q.split(CHUNK, 1), w.split(CHUNK), strict=True):
        out.addmv_(part.double(), piece.double())
    return out
