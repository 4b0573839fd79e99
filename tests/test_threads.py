"""One thread and several give the same bits, on the native engine and of dense matrices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.curvature import tall

QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def land(width: int = 16) -> pl.Landscape:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, width), torch.nn.Tanh(), torch.nn.Linear(width, 8), torch.nn.Tanh(),
        torch.nn.Linear(8, 3),
    )  # fmt: skip
    return pl.Landscape(model, "cross_entropy", (torch.randn(200, 8), torch.randint(0, 3, (200,))))


def bits(*arrays: Any) -> list[bytes]:
    return [np.ascontiguousarray(torch.as_tensor(a).numpy()).tobytes() for a in arrays]


def _pairs(**options: Any) -> Callable[[], list[bytes]]:
    def run() -> list[bytes]:
        found = pl.eigenpairs(land(2000), 3, max_products=40, **options, **QUIET)
        return bits(found.values, found.vectors, found.residuals)

    return run


def _spectrum() -> list[bytes]:
    found = pl.spectrum(land(2000), 2, 12, vectors=2, **QUIET)
    assert found.pairs is not None
    return bits(found.nodes, found.weights, found.pairs.vectors, found.pairs.residuals)


def _estimate(function: Any, method: str, width: int = 2000) -> Callable[[], list[bytes]]:
    def run() -> list[bytes]:
        found = function(land(width), 16, method)
        return bits(found.value, found.standard_error)

    return run


def _outliers() -> list[bytes]:
    found = pl.outliers(land(), 3, **QUIET)
    return bits(found.values, found.gradient_concentration, found.covariance_overlap)


def _critical(method: str, solver: str) -> Callable[[], list[bytes]]:
    def run() -> list[bytes]:
        small = land()
        starts = np.random.default_rng(0).standard_normal((2, small.n_params))
        found = pl.find_critical_points(
            small, starts, max_iter=3, method=method, solver=solver, samples=0, **QUIET
        )
        return bits(found.final_losses, found.final_norms)

    return run


def _convexity(dense: int) -> Callable[[], list[bytes]]:
    def run() -> list[bytes]:
        small = land()
        found = pl.convexity(
            small, *pl.random_directions(small, 2), (-1, 1, 2), (-1, 1, 2), dense=dense, **QUIET
        )
        return bits(*(found.metrics[name] for name in ("lambda_min", "lambda_max")))

    return run


def _dense() -> list[bytes]:
    a = np.random.default_rng(0).standard_normal((400, 400))
    found = pl.eigenpairs(a + a.T, 3, **QUIET)
    return bits(found.values, found.vectors, found.residuals, pl.trace(a + a.T, 20).value)


QUESTIONS: dict[str, Callable[[], list[bytes]]] = {
    "eigenpairs": _pairs(), "measured": _pairs(measure=True), "spectrum": _spectrum,
    **{f"trace {m}": _estimate(pl.trace, m) for m in ("xtrace", "hutch++", "hutchinson")},
    "frobenius norm": _estimate(pl.frobenius_norm, "xtrace"),
    **{f"diagonal {m}": _estimate(pl.diagonal, m) for m in ("xdiag", "hutchinson")},
    "outliers": _outliers, "newton": _critical("newton", "exact"),
    "gradient norm": _critical("gradient_norm", "exact"),
    "products": _critical("newton", "products"),
    "convexity, dense": _convexity(2000), "convexity, Lanczos": _convexity(0), "dense": _dense,
}  # fmt: skip
ONE_THREAD: dict[str, list[bytes]] = {}


@pytest.mark.parametrize("question", QUESTIONS)
def test_bits_do_not_depend_on_threads(question: str, threads: int) -> None:
    if threads == 1:
        ONE_THREAD[question] = QUESTIONS[question]()
    elif question not in ONE_THREAD:
        torch.set_num_threads(1)
        ONE_THREAD[question] = QUESTIONS[question]()
        torch.set_num_threads(threads)
    assert QUESTIONS[question]() == ONE_THREAD[question]


def test_rows_become_orthonormal_whatever_their_rank() -> None:
    a = torch.randn(6, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a[3], a[5] = a[1] + a[2], 0.0
    q, r = tall.orthonormal(a)
    torch.testing.assert_close(q @ q.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(r.T @ q, a, rtol=0, atol=1e-14)
    assert torch.equal(r, r.triu())


@pytest.mark.parametrize("n", [1, 7, 300, 40_000])
def test_products_of_tall_matrices_are_torchs(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x, y, c = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((70, n), (3, n), (4, 70))
    )
    close = {"rtol": 1e-12, "atol": 1e-11}
    torch.testing.assert_close(tall.inner(x, y), x @ y.T, **close)
    torch.testing.assert_close(tall.dots(x[:3], y), (x[:3] * y).sum(1), **close)
    torch.testing.assert_close(tall.combine(c, x), c @ x, **close)
    torch.testing.assert_close(tall.norms(y * 1e-200), y.norm(dim=1) * 1e-200, rtol=1e-12, atol=0)
    expected = c @ x
    tall.combine(c, x, x[:4])  # in place
    torch.testing.assert_close(x[:4], expected, **close)


class Grouped(nn.Module):
    """Attention in which two heads of queries read each head of keys, and a product by x @ w."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(48, 64), nn.Linear(48, 64)
        self.w, self.end = nn.Parameter(torch.randn(64, 48) / 8), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 16)).transpose(1, 2)
        kv = self.kv(x).unflatten(-1, (4, 16)).transpose(1, 2)
        k, v = (h.repeat_interleave(2, 1) for h in kv.split(2, 1))
        mixed = (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v
        return self.end(F.gelu(mixed.transpose(1, 2).flatten(2) @ self.w) + x).mean(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.end = nn.LSTM(48, 160, batch_first=True), nn.Linear(160, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.cell(x[:, :7])[0][:, -1])


def _wide() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * 48, 300), nn.Tanh(), nn.Linear(300, 500),
                         nn.ReLU(), nn.Linear(500, 3))  # fmt: skip


def _end(run: pl.Trajectory) -> Tensor:
    return torch.cat([part.flatten() for part in run[-1].values()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [Grouped, Recurrent, _wide])
def test_threads_that_share_one_tile_give_the_bits_of_one(
    make: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    """Samples that fill a vector, or less: threads divide the ops."""
    torch.manual_seed(0)
    samples = 13 if dtype == torch.float32 else 8
    model, x, y = make(), torch.randn(samples, 64, 48), torch.arange(samples) % 3
    model, x = model.to(dtype), x.to(dtype)
    exact = pl.Landscape(
        copy.deepcopy(model).double(), "cross_entropy", (x.double(), y), engine="torch"
    )
    v = torch.randn(2, exact.n_params, dtype=dtype)
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
            runs = pl.train(land, [land.theta], pl.SGD(lr=0.1), steps=3, **QUIET)
            found[threads] = (land.gradient(), land.hvp(v[0]), land.hvp(v),
                              land.gauss_newton_product(v[0]), _end(runs[0]))  # fmt: skip
    finally:
        torch.set_num_threads(before)
    want = exact.gradient(), exact.hvp(v[0].double()), exact.hvp(v.double())
    for one, other in zip(found[1], want, strict=False):
        scale = float(other.abs().max())
        assert float((one.double() - other).abs().max()) <= 500 * torch.finfo(dtype).eps * scale
    for one, other in zip(found[1], found[3], strict=True):
        assert torch.equal(one, other)
