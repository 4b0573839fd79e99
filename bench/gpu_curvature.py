"""gpu_check's rows of curvature: kernels against float64, their floors and torch's calls; a whole
Lanczos quadrature against plain torch and hessian-eigenthings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import gpu_products, networks
from .workloads import mlp

Run = Callable[[int], Any]
Make = Callable[[nn.Module, Any], Any]
# name, milliseconds, floor, share, torch's milliseconds, error: gpu_check.Row
Values = tuple[str, float, float, float, float | None, float]
ALLOWED: dict[str, float] = {}  # error by name, filled as rows are measured
CHUNK = 1 << 20  # columns at a time, where float64 copies are made
LARGE = 64, 100_000_000  # where there is room for it
PEERS = 200  # matrices that torch takes eigenvalues of


@dataclass
class Spectrum:
    """A network and data whose Hessian's spectrum is found by stochastic Lanczos quadrature."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of a sample
    samples: int
    classes: int = 10
    probes: int = 10
    steps: int = 90
    repetitions: int = 3
    allowed: float = 1e-4  # relative difference of the largest Ritz values


def resnet() -> nn.Module:
    """ResNet-20 with statistics of its data."""
    model: nn.Module = networks.ResNet()
    return networks.settle(model, torch.randn(256, 3, 32, 32)).eval()


SPECTRA = (
    Spectrum("784-20-10", lambda: mlp(784, 20, 10, activation=nn.Tanh), (784,), 1797),
    Spectrum("784-512-512-10", lambda: mlp(784, 512, 512, 10, activation=nn.Tanh), (784,), 2000),
    # Of two float32 products with ReLUs, some differ: those at 0.
    Spectrum("ResNet-20", resnet, (3, 32, 32), 500, repetitions=1, allowed=1e-2),
)


def measure(
    engine_of: Make, bandwidth: float, median_ms: Callable[[Run, int], float]
) -> Iterator[Values]:
    """Rows; ``engine_of(model, landscape)`` gives the engine whose products are measured, bandwidth
    is in bytes per millisecond."""
    for dtype in (torch.float32, torch.float64):
        for rows, n in ((64, 10_000_000), (64, 9_999_999), (200, 2_000_000), (600, 500_000)):
            yield _orthogonalize(rows, n, dtype, bandwidth, median_ms)
    rows, n = LARGE
    if torch.cuda.mem_get_info()[0] > 1.5 * rows * n * 4:
        yield _orthogonalize(rows, n, torch.float32, bandwidth, median_ms)
    for spectrum in SPECTRA:
        yield from quadrature(torch.device("cuda"), spectrum, bandwidth)
    for count, n in (
        (100_000, 10),
        (20_000, 32),
        (10_000, 33),
        (5_000, 64),
        (2_000, 105),
        (500, 200),
    ):
        yield _eigenvalues(count, n, bandwidth, median_ms)
    yield from _hessian_products(engine_of, bandwidth, median_ms)


def _hessian_products(
    engine_of: Make, bandwidth: float, median_ms: Callable[[Run, int], float]
) -> Iterator[Values]:
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


def quadrature(device: torch.device, spectrum: Spectrum, bandwidth: float) -> Iterator[Values]:
    """The spectrum of a Hessian, beside torch alone (products from a gradient whose graph is kept,
    Gram-Schmidt twice) and hessian-eigenthings; milliseconds of a whole run. Floor: our products
    alone, and two streams of the basis a step."""
    import pylandscape as pl
    from pylandscape.curvature.lanczos import Lanczos, random_starts

    torch.manual_seed(0)
    model = spectrum.make().to(device)
    x = torch.randn(spectrum.samples, *spectrum.shape).to(device)
    y = torch.randint(0, spectrum.classes, (spectrum.samples,)).to(device)
    op = pl.as_operator(pl.Landscape(model, "cross_entropy", (x, y)))
    probes, steps, repetitions = spectrum.probes, spectrum.steps, spectrum.repetitions
    starts = random_starts(op.n, probes, 0, op.dtype, op.device)
    by_torch = gpu_products.ways(model, x, y)["graph kept"]

    def mine(count: int = steps) -> list[np.ndarray]:
        lanczos = Lanczos(op, starts, count)
        lanczos.run()
        return [lanczos.ritz(i)[0] for i in range(probes)]

    def products(count: int = steps) -> None:
        for _ in range(count):
            op.multiply(starts)

    def plain(count: int = steps) -> list[np.ndarray]:
        return [np.linalg.eigvalsh(t) for t in plain_lanczos(by_torch, starts, count)]

    took, found = _seconds(mine, device, repetitions)
    alone, _ = _seconds(products, device, repetitions)
    theirs, want = _seconds(plain, device, repetitions)
    tops = np.array([[mine[-1], other[-1]] for mine, other in zip(found, want, strict=True)])
    error = float(np.abs(tops[:, 0] / tops[:, 1] - 1).max())
    streams = sum(2 * j for j in range(1, steps + 1)) * probes * op.n * starts.element_size()
    floor = 1e3 * alone + streams / bandwidth
    name = f"SLQ {probes} x {steps}, {spectrum.name}"
    ALLOWED[name] = ALLOWED[f"{name}, eigenthings"] = spectrum.allowed
    yield name, 1e3 * took, floor, floor / (1e3 * took), 1e3 * theirs, error
    if find_spec("hessian_eigenthings") is None:
        return
    package = import_module("hessian_eigenthings")
    operator = package.HessianOperator(model, [(x, y)], package.supervised_loss(F.cross_entropy))

    def eigenthings(count: int = steps) -> Any:
        return package.spectral_density(operator, num_runs=probes, lanczos_steps=count, seed=0)

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


def _seconds(run: Callable[..., Any], device: torch.device, repetitions: int) -> tuple[float, Any]:
    """The median time of a run, after three of its steps that do not count, and its result."""
    times, done = [], run(3)
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
