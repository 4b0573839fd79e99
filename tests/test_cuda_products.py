"""Kernels of derivatives against float64: on a GPU where one is, by emulation everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_support import Backend, backend  # noqa: F401
from emulation_support import emulated_ops, scheduled
from torch import Tensor

DTYPES = (torch.float32, torch.float64)
# (vectors, rows, inner of the pairs, columns), around tiles of 64 and 128 x 32, steps of 8 and 16
SIZES = (
    (1, 1, (1,), 1), (2, 3, (7, 9), 5), (3, 64, (16, 17), 64), (1, 65, (15, 1), 63),
    (2, 127, (8, 33), 32), (1, 129, (31,), 33), (4, 130, (3, 2), 31), (1, 40, (70, 64), 66),
)  # fmt: skip


def draw(dtype: torch.dtype, seed: int, *shape: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


def strided(dtype: torch.dtype, seed: int, g: int, rows: int, columns: int) -> Tensor:
    """(g, rows, columns), as it comes or as views: transposed, and with room between matrices."""
    if seed % 3 == 1:
        return draw(dtype, seed, g, columns, rows).mT
    if seed % 3 == 2:
        return draw(dtype, seed, g, rows * columns + 5)[:, 2:-3].unflatten(1, (rows, columns))
    return draw(dtype, seed, g, rows, columns)


def close(got: Tensor, want: Tensor, size: Tensor, dtype: torch.dtype, terms: int) -> None:
    """Sums of so many terms of ``size`` in dtype."""
    assert got.shape == want.shape
    allowed = (2 + terms) * torch.finfo(dtype).eps * size + 1e-300
    assert ((got.cpu().double() - want).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_pairs_match_float64(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    none = torch.empty(0, dtype=dtype, device=backend.device)
    for seed, (g, rows, inner, columns) in enumerate(SIZES):
        shared = seed % 2  # one matrix for all vectors
        pairs = []
        for p, k in enumerate(inner):
            pairs.append(strided(dtype, seed + p, 1 if p == shared else g, rows, k))
            pairs.append(strided(dtype, seed + p + 1, g if p == shared else 1, k, columns))
        bias, first = draw(dtype, 1, g, columns + 3)[:, :columns], draw(dtype, 2, rows, columns)
        curved, r = draw(dtype, 3, rows, columns), draw(dtype, 4, g, rows, columns)
        there = [t.to(backend.device) if seed % 3 == 0 else t for t in pairs]
        there = [t if t.device == backend.device else t.to(backend.device) for t in there]
        given = [*there, none, none][:4]
        more = [t.to(backend.device) for t in (bias, first, curved, r)]
        g = max(len(t) for t in pairs)
        more[0], more[3] = more[0][:g], more[3][:g].contiguous()
        t, bent = backend.ops.pair_products(*given, *more[:2], False, *more[2:], True)
        wide = [x.double() for x in pairs]
        want = sum(wide[i] @ wide[i + 1] for i in range(0, len(wide), 2)) + bias[:g, None].double()
        size = sum(wide[i].abs() @ wide[i + 1].abs() for i in range(0, len(wide), 2))
        size = size + bias[:g, None].abs().double()
        close(t, want, size, dtype, sum(inner))
        own = first.double() * want + curved.double() * r[:g].double()
        more_size = first.double().abs() * size + (curved * r[:g]).double().abs()
        close(bent, own, more_size, dtype, sum(inner) + 2)
        none_kept, masked = backend.ops.pair_products(
            *given, none, more[1], True, none, none, False
        )
        assert none_kept.numel() == 0
        plain, _ = backend.ops.pair_products(*given, none, none, False, none, none, True)
        assert torch.equal(masked, torch.where(more[1] > 0, plain, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", [1, 63, 64, 65, 200, 600])
def test_sums_of_pairs_match_float64(
    backend: Backend,  # noqa: F811
    samples: int,
    dtype: torch.dtype,
) -> None:
    none = torch.empty(0, dtype=dtype, device=backend.device)
    for seed, (rows, columns) in enumerate(((1, 1), (5, 40), (40, 5), (33, 34), (3, 130), (65, 2))):
        a, b = strided(dtype, seed, 2, samples, rows), strided(dtype, seed + 1, 1, samples, columns)
        c, d = strided(dtype, seed + 2, 1, samples, rows), draw(dtype, 9, 2, samples, columns)
        for pair in (False, True):
            out = torch.ones(2, rows * columns + 2 * rows, dtype=torch.float64)
            found = out.to(backend.device)
            transposed = seed % 2 == 1
            at, bias = rows, rows + rows * columns
            given = [t.to(backend.device) for t in (a, b)]
            given += [t.to(backend.device) for t in (c, d)] if pair else [none, none]
            backend.ops.pair_sums_(found, at, bias, transposed, *given)
            want = a.double().mT @ b.double()
            size = a.double().abs().mT @ b.double().abs()
            if pair:
                want = want + c.double().mT @ d.double()
                size = size + c.double().abs().mT @ d.double().abs()
            got = found.cpu() - 1
            block = got[:, at:bias].view(2, columns, rows).mT if transposed else got[:, at:bias]
            close(block.reshape(2, rows, columns), want, size + 1, dtype, min(samples, 64))
            sums = a.double().sum(1)
            close(got[:, bias:], sums, a.double().abs().sum(1) + 1, dtype, min(samples, 64))
            assert (got[:, :at] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 31, 33, 100, 2048, 2049, 4500])
def test_sums_of_rows_are_those_of_float64(
    backend: Backend,  # noqa: F811
    rows: int,
    dtype: torch.dtype,
) -> None:
    x = draw(dtype, rows, 2, rows, 6)
    out = torch.zeros(2, 9, dtype=torch.float64, device=backend.device)
    backend.ops.add_row_sums_(out, 2, x.to(backend.device), 0)
    want = x.double().sum(1)
    size = x.double().abs().sum(1)
    close(out[:, 2:8], want, size, torch.float64, 80)
    backend.ops.add_row_sums_(out.zero_(), 1, x.to(backend.device), 3)
    close(out[:, 1:7].view(2, 2, 3).mT.reshape(2, 6), want, size, torch.float64, 80)


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_no_order_of_threads_and_blocks_changes_the_bits(order: str) -> None:
    kernels, none = emulated_ops(), torch.empty(0)
    a, b = draw(torch.float32, 0, 3, 70, 20), draw(torch.float32, 1, 1, 20, 40)
    long, other = draw(torch.float32, 2, 2, 600, 5), draw(torch.float32, 3, 1, 600, 33)
    norm = draw(torch.float32, 4, 1, 9, 40)

    def run() -> list[Tensor]:
        sums = torch.zeros(2, 400, dtype=torch.float64)
        kernels.pair_sums_(sums, 0, 200, False, long, other, none, none)
        kernels.add_row_sums_(sums, 300, long, 0)
        found: list[Any] = [*kernels.pair_products(a, b, none, none, none, none, False, none, none,
                                                   True), sums]  # fmt: skip
        dx, terms = kernels.norm_slopes(
            norm, norm, none, none, none, none, none, 1, 1, 2, 20, 1, False, 1e-5, True
        )
        return [
            *found,
            dx,
            terms,
            kernels.softmax_slopes(norm, norm, none, none, False, False, 1, 40, 1),
        ]

    want = run()
    with scheduled(order, order, 3):
        found = run()
    assert all(torch.equal(x, y) for x, y in zip(found, want, strict=True))


def test_tensors_that_do_not_fit_are_refused(backend: Backend) -> None:  # noqa: F811
    ops, device = backend.ops, backend.device
    none, x = torch.empty(0, device=device), torch.zeros(2, 4, 3, device=device)
    sums = torch.zeros(2, 5, dtype=torch.float64, device=device)
    calls: list[tuple[Any, ...]] = [
        (ops.pair_products, x, x, none, none, none, none, False, none, none, True),
        (ops.pair_products, x, x.mT, none, none, x[:, 0], none, False, none, none, True),
        (ops.pair_products, x, x.mT, none, none, none, x, False, none, none, True),
        (ops.pair_products, x, x.double().mT, none, none, none, none, False, none, none, True),
        (ops.pair_sums_, sums, 0, -1, False, x, x, none, none),
        (ops.pair_sums_, sums.float(), 0, -1, False, x[..., :1], x, none, none),
        (ops.add_row_sums_, sums, 3, x, 0),
        (ops.add_row_sums_, sums[:1], 0, x, 0),
        (ops.bend_, x, none, x, False, none, none),
        (ops.bend_, x, none, x[0].contiguous(), False, x[0].contiguous(), none),
        (ops.unary_slopes, x, x[:1], 0, 0.0, 0.0),
        (ops.unary_slopes, x, x, 99, 0.0, 0.0),
        (ops.scatter_sums, x, none, none),
        (ops.softmax_slopes, x, x, none, none, False, True, 1, 3, 1),
        (ops.norm_slopes, x, x, none, none, none, none, none, 2, 1, 1, 3, 1, False, 0.1, True),
    ]
    for call, *arguments in calls:
        with pytest.raises((RuntimeError, ValueError), match="expected"):
            call(*arguments)
