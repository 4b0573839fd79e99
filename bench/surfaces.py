"""W1, W2, W3: losses of many points of multilayer perceptrons, against torch and a peer."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl

from . import peers
from .timing import Arm, agree, interleave, rows

_RTOL = 1e-4  # float32 losses, mean in float32 on the peers' side


def mlp(*dims: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(dims)):
        layers.append(nn.Linear(a, b))
        if i < len(dims) - 2:
            layers.append(activation())
    return nn.Sequential(*layers)


def digits() -> tuple[Tensor, Tensor]:
    from pylandscape.demo import digits_28x28

    x, y = digits_28x28()
    return x.reshape(len(x), -1), y


def grid(nx: int, ny: int) -> Tensor:
    x, y = np.linspace(-1, 1, nx), np.linspace(-1, 1, ny)
    return torch.as_tensor(np.stack([g.ravel() for g in np.meshgrid(x, y, indexing="ij")], axis=1))


def reference(model: nn.Module, loss: Any, x: Tensor, y: Tensor, points: Tensor) -> np.ndarray:
    """Float64 torch, one point at a time."""
    exact = copy.deepcopy(model).double().eval()
    names = list(dict(exact.named_parameters()))
    shapes = [p.shape for p in exact.parameters()]
    sizes = [p.numel() for p in exact.parameters()]
    y = y.double() if y.is_floating_point() else y
    out = []
    for theta in points.double():
        parts = [p.view(s) for p, s in zip(theta.split(sizes), shapes, strict=True)]
        state = dict(zip(names, parts, strict=True))
        out.append(float(loss(torch.func.functional_call(exact, state, (x.double(),)), y)))
    return np.array(out)


def w1(quick: bool, repetitions: int) -> list[dict[str, Any]]:
    """A 51x51 grid of the 784-20-10 MLP over 1,797 digits: everything a user waits for."""
    torch.manual_seed(0)
    x, y = digits()
    model = mlp(784, 20, 10)
    side, subset = (5, 9) if quick else (51, 153)
    c = grid(side, side)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    d = pl.random_directions(land, 2, seed=1)
    vectors = torch.stack([v.vector for v in d])
    some = c[:: max(1, len(c) // subset)][:subset]
    points = (land.theta.double() + some @ vectors.double()).float()
    loss = F.cross_entropy

    def ours() -> np.ndarray:
        axis = (-1, 1, side)
        return pl.plane(land, *d, x=axis, y=axis, progress=False).values

    chunks = (4, 16) if quick else (1, 4, 16, 51, 153)
    vmapped, chunk = peers.best_vmap(
        lambda size: peers.vmap(model, loss, x, y, points, size), chunks
    )
    loop = (model, loss, x, y, vectors, some)
    n, what = len(some), f"{len(some)} of the points a repetition"
    arms = [
        Arm("torch loop, foreach, no_grad", peers.plain_loop(*loop), n, 25, what),
        Arm("torch vmap", vmapped, n, 25, f"{what}, chunk {chunk}"),
        Arm(
            "torch loop, first-layer identity by hand",
            peers.identity_loop(model, x, y, vectors, some),
            n,
            8,
            what,
        ),
    ]
    if not quick:
        arms.append(Arm("torch.compile of the loop", peers.compiled_loop(*loop), n, 25, what))
    want = reference(model, loss, x, y, points[:8])
    exact_grid = reference(model, loss, x, y, land.theta + c[:8] @ vectors.double())
    agree("ours", ours().ravel()[:8], exact_grid, _RTOL)
    for arm in arms:
        agree(arm.name, arm.run()[:8], want, _RTOL)
    steps = 3 if quick else 12
    plane = peers.loss_landscapes_plane(model, loss, x, y, steps)
    if plane is not None:  # draws its own directions: nothing to compare but the centre's scale
        arms.append(
            Arm(
                "loss-landscapes 3.0.6 random_plane",
                plane,
                steps**2,
                25,
                f"{steps}x{steps} points a repetition",
            )
        )
    mine = Arm("pylandscape plane()", ours, len(c), note=f"{side}x{side}, all of the call")
    interleave([mine, *arms], repetitions)
    table = rows(f"W1 {side}x{side}, 784-20-10", mine, arms, "point")
    table[0]["note"] += f"; capture once {land.engine_report().seconds * 1e3:.0f} ms"
    return table


def _small(
    name: str,
    model: nn.Module,
    loss: Any,
    data: tuple[Tensor, Tensor],
    target: float,
    quick: bool,
    repetitions: int,
) -> list[dict[str, Any]]:
    x, y = data
    count = 200 if quick else 10_000
    land = pl.Landscape(model, loss, (x, y), engine="native")
    g = torch.Generator().manual_seed(2)
    d = torch.randn(2, land.n_params, generator=g)
    c = torch.randn(count, 2, generator=g, dtype=torch.float64)
    points = (land.theta.double() + c @ d.double()).float()
    function = F.mse_loss if loss == "mse" else F.cross_entropy
    chunks = (50, 200) if quick else (100, 300, 1000, 3000, 10_000)
    vmapped, chunk = peers.best_vmap(
        lambda size: peers.vmap(model, function, x, y, points, size), chunks
    )
    few = 20 if quick else 200
    loop = peers.plain_loop(model, function, x, y, d, c[:few])
    want = reference(model, function, x, y, points[:20])
    agree("points", land.losses(points=points[:20]), want, 1e-3)
    agree("plane", land.losses(c[:20], d), want, 1e-3)
    agree("vmap", vmapped()[:20], want, 1e-3)
    agree("loop", loop()[:20], want, 1e-3)
    mine = Arm("pylandscape losses(points=)", lambda: land.losses(points=points), count)
    arms = [
        Arm("pylandscape losses(coefficients)", lambda: land.losses(c, d), count),
        Arm("torch vmap", vmapped, count, target, f"chunk {chunk}"),
        Arm("torch loop", loop, few, 200, f"{few} of the points a repetition"),
    ]
    interleave([mine, *arms], repetitions)
    return rows(f"W2 {count} points, {name}", mine, arms, "point")


def w2(quick: bool, repetitions: int) -> list[dict[str, Any]]:
    """10,000 points of XOR 2-2-1 (sigmoid) and of Iris 4-10-10-3 (ReLU; tanh)."""
    from sklearn.datasets import load_iris

    torch.manual_seed(0)
    xor = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    label = torch.tensor([[0.0], [1], [1], [0]])
    iris = load_iris()
    x = torch.as_tensor(iris.data, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    y = torch.as_tensor(iris.target)
    xor_model = mlp(2, 2, 1, activation=nn.Sigmoid)
    table = _small("XOR 2-2-1 sigmoid", xor_model, "mse", (xor, label), 8, quick, repetitions)
    for activation, target in ((nn.ReLU, 10), (nn.Tanh, 5)):
        model = mlp(4, 10, 10, 3, activation=activation)
        name = f"Iris 4-10-10-3 {activation.__name__}"
        table += _small(name, model, "cross_entropy", (x, y), target, quick, repetitions)
    return table


def w3(quick: bool, repetitions: int) -> list[dict[str, Any]]:
    """A 21x21 grid of a 784-512-512-10 MLP, and the share of the sgemm peak that it reaches."""
    torch.manual_seed(0)
    x, y = digits()
    model = mlp(784, 512, 512, 10)
    side, few = (2, 2) if quick else (21, 12)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    d = pl.random_directions(land, 2, seed=1)
    vectors = torch.stack([v.vector for v in d])
    c = grid(side, side)
    some = c[:: max(1, len(c) // few)][:few]
    want = reference(model, F.cross_entropy, x, y, land.theta + c[:2] @ vectors.double())
    loop = peers.plain_loop(model, F.cross_entropy, x, y, vectors, some)

    def ours() -> np.ndarray:
        axis = (-1, 1, side)
        return pl.plane(land, *d, x=axis, y=axis, progress=False).values

    agree("ours", ours().ravel()[:2], want, _RTOL)
    agree("loop", loop()[:1], want[:1], _RTOL)
    size = 256 if quick else 2048
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    mine = Arm("pylandscape plane()", ours, len(c), note=f"{side}x{side}, all of the call")
    peak = Arm(f"sgemm {size}", lambda: torch.mm(a, b, out=out))
    arms = [Arm("torch loop, foreach, no_grad", loop, len(some), 2, f"{len(some)} points")]
    interleave([mine, peak, *arms], repetitions)
    table = rows(f"W3 {side}x{side}, 784-512-512-10", mine, arms, "point")
    # What must be done a point: the first layer by its identity, the other two in full.
    flops = 2.0 * len(x) * (512 * 2 + 512 * 512 + 512 * 10)
    own = flops / mine.per_unit
    top = 2.0 * size**3 / peak.per_unit
    share = float(np.median(own / top))
    table[0]["note"] += (
        f"; {np.median(own) / 1e9:.0f} GFLOP/s, {share:.0%} of the sgemm peak "
        f"({np.median(top) / 1e9:.0f}) of the same run (target 70 %)"
    )
    table[0]["share_of_sgemm"] = share
    return table
