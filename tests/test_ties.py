"""At exact ties and kinks (zeros, bounds, equal maxima) derivatives are those of torch's autograd.

Values lie there more often than chance has it: biases that start at zero, saturated pixels, dead
units. Every function's slope there is a convention, and each has torch's own here.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl

D = 8
GRID = (0.0, 1.0, -1.0, 3.0, -3.0, 6.0, 0.5, 2.0)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "clamp": lambda z: z.clamp(-1, 1),
    "clamp to pixels": lambda z: torch.clamp(z, 0, 1),
    "clamp_min": lambda z: z.clamp_min(0),
    "clamp_max": lambda z: torch.clamp(z, max=1.0),
    "clip": lambda z: torch.clip(z, -3, 3),
    "residual clamp": lambda z: z + z.clamp(0, 1),
    "hardswish": F.hardswish,
    "leaky relu": F.leaky_relu,
    "threshold": lambda z: F.threshold(z, 1.0, -2.0),
    "abs": torch.abs,
    "elu": F.elu,
    "celu": lambda z: F.celu(z, 2.0),
    "selu": F.selu,
    "softplus": lambda z: F.softplus(z, 1, 3.0),
    "softsign": F.softsign,
    "softshrink": lambda z: F.softshrink(z, 1.0),
    "max pool": lambda z: F.max_pool1d(z[:, None], 2).repeat(1, 1, 2).squeeze(1),
    "overlapping max pool": lambda z: F.max_pool1d(z[:, None], 3, 1, 1).squeeze(1),
    "maximum": lambda z: torch.maximum(z, z.flip(1)),
    "minimum": lambda z: torch.minimum(z, z.roll(1, 1)),
    "amax": lambda z: z.view(-1, 4, 2).amax(-1).repeat(1, 2),
    "max": lambda z: z.view(-1, 4, 2).max(-1).values.repeat(1, 2),
    "norm": lambda z: z / (z.norm(dim=1, keepdim=True) + 1),
    "normalize": lambda z: F.normalize(z.view(-1, 4, 2), dim=-1).flatten(1),
    "norms of pairs": lambda z: z.view(-1, 4, 2).norm(dim=-1).repeat(1, 2),
    "std": lambda z: z.view(-1, 4, 2).std(-1).repeat(1, 2),
    "root of relu": lambda z: F.relu(z).sqrt(),
    "root of clamp": lambda z: z.clamp(min=0).sqrt(),
    "root of squares": lambda z: (z * z).sqrt(),
    "cosine": lambda z: F.cosine_similarity(z[:, :4], z[:, 4:], dim=1)[:, None] * z,
    "copysign": lambda z: torch.copysign(z, z.flip(1)),
    "where": lambda z: torch.where(z >= 0, z, 0.1 * z),
}


class Net(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f
        self.scale, self.shift = nn.Parameter(torch.randn(D)), nn.Parameter(torch.randn(D))
        self.head = nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.f(x * self.scale + self.shift))


def _autograd(model: nn.Module, x: Tensor, y: Tensor, p: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The gradient, and the product of a second backward pass."""
    parameters = list(model.parameters())
    for q, part in zip(parameters, p.split([q.numel() for q in parameters]), strict=True):
        q.data.copy_(part.view_as(q))
    loss = F.mse_loss(model(x), y)
    g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss, parameters, create_graph=True)])
    h = torch.autograd.grad(g @ v, parameters, allow_unused=True, materialize_grads=True)
    return g.detach(), torch.cat([t.reshape(-1) for t in h])


def _tied_points(n: int) -> Tensor:
    """Points at which the values before the function are at a place of `GRID`, many of them
    equal."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(6, n, generator=generator, dtype=torch.float64)
    places = torch.tensor(GRID, dtype=torch.float64)
    points[0, : 2 * D] = 0
    points[1, :D], points[1, D : 2 * D] = 0, places
    points[2, :D], points[2, D : 2 * D] = 1, 0
    for row in points[3:]:
        row[: 2 * D] = places[torch.randint(0, len(GRID), (2 * D,), generator=generator)]
    points[4:, 2 * D :].round_()
    return points


RARER = {  # by torch, or like another one
    "clamp_max", "clip", "celu", "selu", "softsign", "softshrink", "overlapping max pool",
    "minimum", "max", "root of clamp", "root of squares", "cosine", "copysign", "where",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(f, marks=[pytest.mark.ci] * (f in RARER)) for f in FUNCTIONS]
)
def test_derivatives_at_ties_are_autograds(name: str) -> None:
    torch.manual_seed(1)
    model = Net(FUNCTIONS[name]).double()
    x = torch.randint(-1, 2, (13, D)).double()
    x[0], x[1] = 0, 1
    y = torch.randint(-1, 2, (13, 3)).double()
    land = pl.Landscape(model, "mse", (x, y))
    points, v = _tied_points(land.n_params), torch.randn(land.n_params).double()
    found = pl.hessians(land, points)
    assert found.matrices is not None
    for i, p in enumerate(points):
        g, h = _autograd(model, x, y, p, v)
        for got in (land.gradient(p), torch.as_tensor(found.gradients[i])):
            torch.testing.assert_close(got, g, rtol=1e-8, atol=1e-8, equal_nan=True)
        for got in (land.hvp(v, p), torch.as_tensor(found.matrices[i]) @ v):
            if not bool(h.isfinite().all()):  # where autograd has no derivative, neither have we
                assert not bool(got.isfinite().all())
                continue
            torch.testing.assert_close(got, h, rtol=1e-8, atol=1e-7)


class Sloped(Net):
    """Slopes that are learnt, or numbers."""

    def __init__(self, slopes: int) -> None:
        super().__init__(F.relu)
        self.f = (
            nn.PReLU(slopes)
            if slopes
            else lambda z: F.prelu(z, torch.tensor([0.25], dtype=z.dtype))
        )


def _gauss_newton(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """By two backward passes for J v, and one for its transpose."""
    parameters, out = list(model.parameters()), model(x)
    u = torch.zeros_like(out, requires_grad=True)
    g = torch.autograd.grad(out, parameters, u, create_graph=True)
    (along,) = torch.autograd.grad(torch.cat([t.reshape(-1) for t in g]) @ v, u, retain_graph=True)
    back = torch.autograd.grad(out, parameters, 2 * along / out.numel())
    return torch.cat([t.reshape(-1) for t in back])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("slopes", [0, 1, D])
def test_products_of_a_prelu_are_autograds_where_any_sample_is_zero(
    slopes: int, dtype: torch.dtype
) -> None:
    """At zero torch's slope is w, and 1 where that is differentiated."""
    torch.manual_seed(1)
    model = Sloped(slopes).to(dtype)
    x, y = torch.randn(600, D).to(dtype), torch.randn(600, 3).to(dtype)
    x[-1] = 0  # the last of many, so far from theta too
    land = pl.Landscape(model, "mse", (x, y))
    assert land.engine == "native"
    assert land.engine_report().derivatives is None
    of_torch = pl.Landscape(model, "mse", (x, y), engine="torch")
    points, v = land.theta.repeat(2, 1), torch.randn(land.n_params).to(dtype)
    points[1, D : 2 * D] = 0
    rounding = (
        {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    )
    for p in points.to(dtype):
        g, h = _autograd(model, x, y, p, v)
        for got, want in (
            (land.gradient(p), g),
            (land.hvp(v, p), h),
            (land.gauss_newton_product(v, p), _gauss_newton(model, x, v)),
        ):
            torch.testing.assert_close(got.to(dtype), want, **rounding)
        found, wanted = (pl.hessians(each, p[None]).matrices for each in (land, of_torch))
        torch.testing.assert_close(found, wanted, **rounding)


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(beta=0.5)])
def test_derivatives_of_losses_at_ties_are_autograds(loss: nn.Module) -> None:
    torch.manual_seed(1)
    model = nn.Linear(4, 3).double()
    x = torch.randint(-1, 2, (13, 4)).double()
    y = torch.randint(-1, 2, (13, 3)).double()
    land = pl.Landscape(model, loss, (x, y))
    for p in torch.randint(-2, 3, (5, land.n_params)).double() / 2:
        w = p.requires_grad_()
        wanted = loss(x @ w[:12].view(3, 4).T + w[12:], y)
        (g,) = torch.autograd.grad(wanted, w)
        torch.testing.assert_close(land.gradient(p.detach()), g)
