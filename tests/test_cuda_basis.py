"""Passes over a Lanczos basis against float64: on a GPU where one is, by emulation everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_support import Backend, backend  # noqa: F401
from emulation_support import emulated_ops, scheduled
from torch import Tensor

DTYPES = (torch.float32, torch.float64)
# Around eight rows a warp, eight warps, another tile (64), what waits in shared memory (256).
ROWS = (1, 2, 7, 8, 9, 33, 63, 64, 65, 255, 256, 257, 300)
COLUMNS = (1, 2, 3, 31, 32, 33, 64, 127, 128, 255, 256, 257, 514)
RUN = 8  # products that are added in the basis' dtype


def orthonormal(m: int, n: int, dtype: torch.dtype) -> Tensor:
    g = torch.Generator().manual_seed(m * 1000 + n)
    return torch.linalg.qr(torch.randn(n, m, generator=g, dtype=torch.float64))[0].T.to(dtype)


def vector(n: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(dtype)


def check_pass(
    on: Backend, q: Tensor, source: Tensor, c: Tensor, *, in_place: bool = False
) -> None:
    """A pass against the same in float64, to the rounding that basis.h allows it."""
    eps, there = torch.finfo(q.dtype).eps, on.device
    rows, wide = q.double(), source.double()
    first = len(q) - len(c)
    exact = wide - c @ rows[first:]
    given = source.to(there)
    w = given if in_place else torch.full((q.shape[1],), torch.nan, dtype=q.dtype, device=there)
    out = on.ops.basis_pass_(q.to(there), given, c.to(there), w).cpu()
    w = w.cpu()
    size = wide.abs() + c.abs() @ rows[first:].abs()
    tiny = 2**-52 * (len(q) + 4)
    assert ((w.double() - exact).abs() <= eps * exact.abs() + tiny * size).all()
    found = w.double()  # sums are those of w as it was rounded
    sums = rows.abs() @ found.abs()
    assert ((out[:-1] - rows @ found).abs() <= (RUN * eps + 1e-15 * q.shape[1]) * sums).all()
    assert abs(out[-1] - found.norm()) <= 1e-14 * found.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pass_subtracts_and_measures_as_float64_does(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    sizes = [(m, 70 + m % 5) for m in ROWS] + [(5, n) for n in COLUMNS] + [(70, n) for n in COLUMNS]
    for m, n in sizes:
        q = torch.randn(m, n, generator=torch.Generator().manual_seed(m + n), dtype=dtype)
        source = vector(n, dtype)
        c = vector(m, torch.float64)
        check_pass(backend, q, source, c[:0])
        check_pass(backend, q, source, c, in_place=n % 2 == 0)
        check_pass(backend, q, vector(n, torch.float64), c[: min(2, m)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_passes_orthogonalise_to_rounding_and_measure_it(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    on, there, eps = backend.ops, backend.device, torch.finfo(dtype).eps
    for m, n in ((1, 5), (20, 77), (64, 1000), (65, 515), (130, 400)):
        q = orthonormal(m, n, dtype).to(there)
        w = (vector(n, dtype) + 3 * orthonormal(m, n, dtype).sum(0)).to(there)
        before = w.double().norm()
        h = on.basis_pass_(q, w, torch.empty(0, dtype=torch.float64, device=there), w)[:-1]
        for _ in range(2):  # what is left of the rows' own rounding, relative to a shorter w
            out = on.basis_pass_(q, w, h, w)
            left = (q.double() @ w.double()).norm()
            assert left <= 4 * eps * before
            assert abs(out[:-1].norm() - left) <= RUN * eps * w.double().norm()
            h = out[:-1]
        assert left <= 4 * eps * w.double().norm()


def test_rows_may_be_part_of_a_larger_storage_at_any_alignment(
    backend: Backend,  # noqa: F811
) -> None:
    for shift, extra, m in ((0, 3, 9), (1, 0, 9), (1, 4, 70), (2, 2, 70), (3, 1, 64)):
        storage = torch.randn(m + 1, 200 + shift + extra, device=backend.device)
        q = storage[:m, shift : shift + 200]
        source, c = torch.randn(200), torch.randn(m, dtype=torch.float64)
        w = torch.full((204,), torch.nan, device=backend.device)
        got = backend.ops.basis_pass_(q, source.to(backend.device), c.to(backend.device), w[1:201])
        exact = source.double() - c @ q.cpu().double()
        torch.testing.assert_close(w[1:201].cpu().double(), exact, rtol=1e-6, atol=1e-12)
        assert w[:1].isnan().all()
        assert w[201:].isnan().all()
        want = q.double().cpu() @ w[1:201].double().cpu()
        torch.testing.assert_close(got[:-1].cpu(), want, rtol=1e-5, atol=1e-4)


def test_a_new_row_of_the_basis_can_be_w(backend: Backend) -> None:  # noqa: F811
    basis = torch.cat([orthonormal(12, 90, torch.float32), torch.full((1, 90), torch.nan)])
    basis = basis.to(backend.device)
    p = torch.randn(90, dtype=torch.float64, device=backend.device)
    local = torch.randn(2, dtype=torch.float64, device=backend.device)
    backend.ops.basis_pass_(basis[:12], p, local, basis[12])
    exact = p - local @ basis[10:12].double()
    torch.testing.assert_close(basis[12].double(), exact, rtol=1e-7, atol=1e-14)


def test_several_starts_are_each_what_it_is_alone(backend: Backend) -> None:  # noqa: F811
    """Q of every second start of a larger storage, with w in the row that follows."""
    on, there = backend.ops, backend.device
    none = torch.empty(3, 0, dtype=torch.float64, device=there)
    for dtype in DTYPES:
        for m, n in ((0, 40), (2, 131), (9, 64), (70, 90)):
            g = torch.Generator().manual_seed(m)
            basis = torch.randn(6, m + 2, n, generator=g, dtype=dtype).to(there)[::2]
            p = torch.randn(3, n, generator=g, dtype=torch.float64).to(there)
            c = torch.randn(3, m + 1, generator=g, dtype=torch.float64).to(there)[:, :m]
            want = basis.clone()
            for i in range(3):
                first = on.basis_pass_(want[i, :m], p[i], c[i].contiguous(), want[i, m])
                assert first.shape == (m + 1,)
            single = [on.basis_pass_(b[:m], b[m], none[0], b[m]) for b in want]
            on.basis_pass_(basis[:, :m], p, c, basis[:, m])
            together = on.basis_pass_(basis[:, :m], basis[:, m], none, basis[:, m])
            assert torch.equal(basis, want)
            assert torch.equal(together, torch.stack(single))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dots_and_scaling_are_those_of_float64(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    eps = torch.finfo(dtype).eps
    for s, n, extra in ((1, 1, 0), (3, 7, 1), (2, 1024, 0), (64, 30, 2), (2, 9001, 0)):
        g = torch.Generator().manual_seed(n)
        storage = torch.randn(s, n + extra, generator=g, dtype=dtype)
        for other in {dtype, torch.float64}:
            y = torch.randn(s, n, generator=g, dtype=other)
            got = backend.ops.row_dots(storage.to(backend.device)[:, :n], y.to(backend.device))
            exact = (storage[:, :n].double() * y.double()).sum(1)
            size = (storage[:, :n].double() * y.double()).abs().sum(1)
            assert ((got.cpu() - exact).abs() <= 1e-15 * n**0.5 * size + 2**-52 * size).all()
        x = storage.clone().to(backend.device)
        factors = torch.randn(s, generator=g, dtype=torch.float64)
        backend.ops.scale_rows_(x[:, :n], factors)
        exact = storage[:, :n].double() * factors[:, None]
        assert ((x[:, :n].cpu().double() - exact).abs() <= eps / 2 * exact.abs() + 1e-40).all()
        assert torch.equal(x[:, n:].cpu(), storage[:, n:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [3, 70, 258])
def test_no_order_of_threads_and_blocks_changes_a_bit(m: int, dtype: torch.dtype) -> None:
    on = emulated_ops()
    q, source, c = torch.randn(m, 700, dtype=dtype), vector(700, dtype), vector(m, torch.float64)

    def run() -> tuple[Tensor, Tensor]:
        w = torch.empty_like(source)
        return w, on.basis_pass_(q, source, c, w)

    want = run()
    for order in ("reversed", "shuffled"):
        with scheduled(order, order, seed=m):
            assert all(torch.equal(a, b) for a, b in zip(run(), want, strict=True))


def test_a_number_that_is_not_finite_is_seen_in_the_norm(backend: Backend) -> None:  # noqa: F811
    for bad in (torch.nan, torch.inf):
        w = torch.randn(300, device=backend.device)
        w[299] = bad
        q, none = torch.randn(5, 300, device=backend.device), torch.empty(0, dtype=torch.float64)
        assert not backend.ops.basis_pass_(q, w, none.to(backend.device), w)[-1].isfinite()


def test_what_does_not_fit_is_refused(backend: Backend) -> None:  # noqa: F811
    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=backend.device)

    q, w, c = make(4, 10), make(10), make(4, dtype=torch.float64)
    thin, several = make(65, 2, 10), make(3, 4, 10)
    no = make(65, 0, dtype=torch.float64)
    refused: list[tuple[Any, str]] = [
        ((q.half(), w, c, w), "basis: expected float32 or float64"),
        ((make(10), w, c, w), r"basis: expected shape \(m, n\) or \(starts, m, n\)"),
        ((make(8193, 10), w, c, w), "m <= 8192"),
        ((q.T, w, c, w), "basis: expected rows of neighbouring"),
        ((q, w, c, make(9)), r"w: expected a contiguous vector \(10,\)"),
        ((q, w, c, w.double()), "w: expected basis' dtype"),
        ((q, w.half(), c, w), "source: expected basis' dtype or float64"),
        ((q, w, c.float(), w), "coefficients: expected float64"),
        ((q, w, make(5, dtype=torch.float64), w), "coefficients: expected at most 4"),
        (
            (thin, thin[:, 0], make(65, 0, dtype=torch.float64), thin[:, 1]),
            "starts: expected 1 .. 64",
        ),
        ((several, w, no[:3], w), r"w: expected rows \(3, 10\)"),
        ((several, several[:, 0], c, several[:, 1]), "coefficients: expected at most 4"),
    ]
    for arguments, message in refused:
        with pytest.raises((RuntimeError, ValueError), match=message):
            backend.ops.basis_pass_(*arguments)
    with pytest.raises((RuntimeError, ValueError), match="others: expected rows"):
        backend.ops.row_dots(q, make(4, 9))
    with pytest.raises((RuntimeError, ValueError), match="others: expected the rows' dtype"):
        backend.ops.row_dots(q, q.half())
    with pytest.raises((RuntimeError, ValueError), match="rows: expected shape"):
        backend.ops.row_dots(w, w)
    with pytest.raises((RuntimeError, ValueError), match=r"factors: expected \(4,\) float64"):
        backend.ops.scale_rows_(q, torch.ones(4))
