"""Kernels around torch's convolutions and products: on a GPU where one is, by emulation everywhere.

`fold` has the bits of the same steps one after the other; the others are close to float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cuda_support import Backend, backend, one_thread  # noqa: F401
from torch import Tensor

from pylandscape._native import core, ops

DTYPES = (torch.float32, torch.float64)
pytestmark = pytest.mark.usefixtures("one_thread")
NOWHERE = -(2**63)
EPS = 1e-3  # of a batch norm


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def close(got: Tensor, want: Tensor, units: float = 8) -> None:
    """To some eps of the largest element, and NaN in the same places."""
    scale = max(1.0, float(want[want.isfinite()].abs().max())) if want.numel() else 1.0
    eps = torch.finfo(got.dtype).eps * units * scale
    torch.testing.assert_close(got.cpu().double(), want.double(), rtol=0, atol=eps, equal_nan=True)


class Network:
    """Parameters of one convolution with batch norm, in theta and in the constants."""

    def __init__(self, rows: int, channels: int, taps: int, fixed: str, dtype: torch.dtype) -> None:
        self.shape, self.dtype = (rows, channels, taps), dtype
        sizes = [rows * channels * taps, rows, rows, rows, rows, rows]
        places, at, constant = [], 3, 2  # not aligned
        for name, size in zip("wbgsmv", sizes, strict=True):
            if name in fixed:
                places.append(-1 - constant)
                constant += size
            else:
                places.append(at)
                at += size
        self.n, self.sizes, self.sources = at + 1, sizes, places
        self.constants = normal(constant + 1, dtype=dtype).abs()
        self.theta = normal(self.n, dtype=dtype).abs() + 0.5  # variances stay positive

    def parameter(self, thetas: Tensor, i: int) -> Tensor | None:
        """(g, elements) of parameter i at thetas (g, n)."""
        at, size = self.sources[i], self.sizes[i]
        if at == NOWHERE:
            return None
        if at < 0:
            return self.constants[-1 - at : -1 - at + size].expand(len(thetas), -1)
        return thetas[:, at : at + size]

    def folded(self, thetas: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Weights and (scale, shift), step by step."""
        weight, bias, gain, shift, mean, variance = (self.parameter(thetas, i) for i in range(6))
        zeros = thetas.new_zeros(len(thetas), self.shape[0])
        affine = None if bias is None else torch.stack([zeros + 1, bias])
        if mean is not None and variance is not None:
            root = torch.from_numpy(np.sqrt((variance.double() + EPS).numpy()))  # rounded right
            scale = (zeros + 1 if gain is None else gain).double() / root
            at = (zeros if bias is None else bias).double() - mean.double()
            moved = at * scale + (zeros if shift is None else shift).double()
            affine = torch.stack([scale.to(self.dtype), moved.to(self.dtype)])
        if weight is None:
            return None, affine
        weight = weight.view(-1, *self.shape).transpose(2, 3).contiguous()
        return weight if affine is None else weight * affine[0][:, :, None, None], affine


FOLDED = {  # rows, channels, taps, what is constant, what is not there
    "batch norm and bias": (5, 3, 9, "", ""),
    "no bias": (16, 16, 9, "", "b"),
    "no gain": (7, 1, 4, "", "g"),
    "statistics are constants": (33, 5, 1, "mv", "b"),
    "only the norm moves": (9, 4, 6, "w", "b"),
    "a bias alone": (17, 31, 3, "", "gsmv"),
    "weights alone": (40, 13, 2, "", "bgsmv"),
    "a norm alone": (300, 0, 0, "", "w"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FOLDED)
def test_folded_weights_have_the_bits_of_perturbing_then_scaling(
    backend: Backend,  # noqa: F811
    case: str,
    dtype: torch.dtype,
) -> None:
    rows, channels, taps, fixed, absent = FOLDED[case]
    network = Network(rows, channels, taps, fixed, dtype)
    for i, name in enumerate("wbgsmv"):
        if name in absent:
            network.sources[i] = NOWHERE
    for g, k in ((1, 1), (5, 2), (16, 3), (17, 4), (33, 2), (2, 0)):
        d = 0.01 * normal(k, network.n, dtype=dtype)
        c = normal(g, k, dtype=torch.float64)
        thetas = ops.perturb(network.theta, c, d)
        along = (network.theta[None], c, d)
        free = (thetas, c[:, :0].contiguous(), d[:0])
        want = network.folded(thetas)
        for theta, coefficients, directions in (along, free):
            got = backend.ops.fold(
                *(t.to(backend.device) for t in (theta, coefficients, directions)),
                network.constants.to(backend.device), torch.tensor(network.sources),
                *network.shape, EPS,
            )  # fmt: skip
            for found, wanted in zip(got, want, strict=True):
                assert found.numel() == 0 if wanted is None else torch.equal(found.cpu(), wanted)


def test_fold_refuses_what_lies_outside(backend: Backend) -> None:  # noqa: F811
    there = backend.device
    theta, c, d = (torch.ones(s, device=there) for s in ((1, 20), (3, 1), (1, 20)))
    constants = torch.ones(4, device=there)

    def call(*sources: int, theta: Tensor = theta, d: Tensor = d) -> Any:
        where = torch.tensor([*sources, *[NOWHERE] * (6 - len(sources))])
        return backend.ops.fold(theta, c.double(), d, constants, where, 2, 3, 3, EPS)

    assert call(2)[0].shape == (3, 2, 3, 3)
    for bad in ((3,), (-1,), (2, 19), (2, -4), (2, 0, 0, 0, 0, NOWHERE)):
        with pytest.raises((RuntimeError, ValueError)):
            call(*bad)
    for wrong in ({"theta": theta[:, 1:]}, {"theta": theta.expand(2, -1)}, {"d": d.double()}):
        with pytest.raises((RuntimeError, ValueError)):
            call(2, **wrong)


def applied(f: int, x: Tensor) -> Tensor:
    return {int(core.Unary.relu): torch.relu, int(core.Unary.tanh): torch.tanh}[f](x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 3, 4, 10, 64, 513, 1030])
def test_an_epilogue_scales_shifts_adds_and_bends(
    backend: Backend,  # noqa: F811
    m: int,
    dtype: torch.dtype,
) -> None:
    for g, rows in ((1, 1), (3, 7), (2, 130 if m < 100 else 3)):
        for bits in range(16):
            present = [bool(bits >> i & 1) for i in range(3)]
            one = bool(bits >> 3)  # for all points
            shapes = ((m,), (m,), (rows, m))
            parts = [
                normal(1 if one else g, *shape, dtype=dtype) if there else None
                for there, shape in zip(present, shapes, strict=True)
            ]
            scale, shift, add = (None if p is None else p.double() for p in parts)
            x = normal(1 if one else g, rows, m, dtype=dtype)
            want = x.double() if scale is None else x.double() * scale[:, None]
            want = want if shift is None else want + shift[:, None]
            want = want if add is None else want + add
            f = int(core.Unary.relu if bits % 2 else core.Unary.tanh)
            given = [
                torch.empty(0, dtype=dtype, device=backend.device)
                if p is None
                else p.to(backend.device)
                for p in parts
            ]
            x = x.clone().to(backend.device)
            out = x if not one else torch.empty(g, rows, m, dtype=dtype, device=backend.device)
            backend.ops.epilogue_(out, x, *given, f, 0.0, 0.0)
            close(out, applied(f, want).expand(g, -1, -1))


def test_an_epilogue_takes_memory_that_is_not_aligned(backend: Backend) -> None:  # noqa: F811
    none, f = torch.empty(0, device=backend.device), int(core.Unary.relu)
    x, add = normal(25).to(backend.device), normal(24).to(backend.device)
    got = backend.ops.epilogue_(
        torch.empty(1, 3, 8, device=backend.device), x[1:].view(1, 3, 8), none, none,
        add.view(1, 3, 8), f, 0.0, 0.0,
    )  # fmt: skip
    close(got.reshape(-1), torch.relu(x[1:].cpu().double() + add.cpu().double()))
    own = torch.ones(2, 3, 8, device=backend.device)
    with pytest.raises((RuntimeError, ValueError), match="out: expected other memory"):
        backend.ops.epilogue_(own, own[:1], none, none, none, f, 0.0, 0.0)
    for wrong in (own[:, :2].contiguous(), own.double(), own[:1, :, :4].contiguous()):
        with pytest.raises((RuntimeError, ValueError), match="expected"):
            backend.ops.epilogue_(own, wrong, none, none, none, f, 0.0, 0.0)


def lists(windows: list[list[int]]) -> tuple[Tensor, Tensor]:
    bounds = torch.tensor([0, *(len(w) for w in windows)]).cumsum(0)
    return bounds, torch.tensor([i for w in windows for i in w], dtype=torch.int64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (3, 5), (2, 130)])
def test_windows_of_any_length_give_their_maximum_and_sum(
    backend: Backend,  # noqa: F811
    rows: int,
    channels: int,
    dtype: torch.dtype,
) -> None:
    windows = [[0], [5, 2, 2], list(range(40)), [39, 0], [7, 8, 9, 10]]
    bounds, index = (t.to(backend.device) for t in lists(windows))
    x = normal(rows, 40, channels, dtype=dtype)
    x[0, 8] = float("nan")
    there = x.to(backend.device)
    none = torch.empty(0, dtype=torch.float64, device=backend.device)
    best = torch.stack([x[:, w].amax(1) for w in windows], 1)
    for mode in (core.Pool.max, core.Pool.max_even):
        assert torch.equal(
            backend.ops.pool_windows(there, bounds, index, none, int(mode)).cpu().nan_to_num(7e7),
            best.nan_to_num(7e7),
        )
    total = torch.stack([x[:, w].double().sum(1) for w in windows], 1)
    factor = torch.tensor([1.0, 0.5, 1 / 40, -2.0, 0.25], dtype=torch.float64)
    sums = int(core.Pool.sum)
    close(backend.ops.pool_windows(there, bounds, index, none, sums), total, 40)
    given = factor.to(backend.device)
    means = backend.ops.pool_windows(there, bounds, index, given, sums)
    close(means, total * factor[:, None], 40)


def test_a_sum_over_no_pixels_is_zero(backend: Backend) -> None:  # noqa: F811
    bounds, index = (t.to(backend.device) for t in lists([[], [1]]))
    none = torch.empty(0, dtype=torch.float64, device=backend.device)
    x = torch.ones(2, 3, 4, device=backend.device)
    found = backend.ops.pool_windows(x, bounds, index, none, int(core.Pool.sum))
    assert torch.equal(found.cpu(), torch.tensor([0.0, 1])[:, None].expand(2, 2, 4))
    assert backend.ops.pool_windows(x[:0], bounds, index, none, 2).shape == (0, 2, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 5, 96])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_cells_are_torchs(
    backend: Backend,  # noqa: F811
    kind: str,
    hidden: int,
    dtype: torch.dtype,
) -> None:
    gates, rows, first = (4 if kind == "lstm" else 3), 7, 3
    x, h = (normal(rows, gates * hidden, dtype=dtype) * s for s in (1, 2))
    state = normal(rows, first + hidden + 2, dtype=dtype)
    wide = [t.double().view(rows, gates, hidden).unbind(1) for t in (x, h)]
    before = state[:, first : first + hidden].double()
    if kind == "lstm":
        i, f, g, o = (a + b for a, b in zip(*wide, strict=True))
        c = torch.sigmoid(f) * before + torch.sigmoid(i) * torch.tanh(g)
        want = torch.cat([torch.sigmoid(o) * torch.tanh(c), c], 1)
    else:
        r, z = (torch.sigmoid(a + b) for a, b in zip(*(w[:2] for w in wide), strict=True))
        n = torch.tanh(wide[0][2] + r * wide[1][2])
        want = n + z * (before - n)
    there = [t.to(backend.device) for t in (x, h, state)]
    number = int(getattr(core.Cell, kind))
    close(backend.ops.recurrent_cell(*there, first, number), want)
    with pytest.raises((RuntimeError, ValueError), match="state: expected"):
        backend.ops.recurrent_cell(*there, first + 3, number)


@pytest.mark.parametrize("dtype", DTYPES)
def test_perturb_takes_coefficients_from_beside_theta(
    backend: Backend,  # noqa: F811
    dtype: torch.dtype,
) -> None:
    theta, d, c = normal(515, dtype=dtype), normal(3, 515, dtype=dtype), normal(40, 3).double()
    want = ops.perturb(theta, c, d)
    there = [t.to(backend.device) for t in (theta, c, d)]
    assert torch.equal(backend.ops.perturb(*there).cpu(), want)
    assert torch.equal(backend.ops.perturb(there[0], c, there[2]).cpu(), want)
