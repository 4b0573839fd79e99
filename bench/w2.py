"""W2: 10,000 points of XOR 2-2-1 (sigmoid) and of Iris 4-10-10-3 (ReLU; tanh)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl

from . import peers
from .harness import Arm, Row, fastest, interleave, rows
from .workloads import mlp, reference, spread

RTOL = 1e-3  # float32, at points whose losses reach far below their outputs


def w2(quick: bool, repetitions: int) -> list[Row]:
    torch.manual_seed(0)
    xor = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    label = torch.tensor([[0.0], [1], [1], [0]])
    xor_model = mlp(2, 2, 1, activation=nn.Sigmoid)
    table = _small("XOR 2-2-1 sigmoid", xor_model, "mse", (xor, label), 8, quick, repetitions)
    for activation, target in ((nn.ReLU, 10), (nn.Tanh, 5)):
        model = mlp(4, 10, 10, 3, activation=activation)
        name = f"Iris 4-10-10-3 {activation.__name__}"
        table += _small(name, model, "cross_entropy", _iris(), target, quick, repetitions)
    return table


def _iris() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_iris

    iris = load_iris()
    x = torch.as_tensor(iris.data, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.as_tensor(iris.target, dtype=torch.int64)


def _small(
    name: str,
    model: nn.Module,
    loss: str,
    data: tuple[Tensor, Tensor],
    target: float,
    quick: bool,
    repetitions: int,
) -> list[Row]:
    count, few = (200, 20) if quick else (10_000, 200)
    land = pl.Landscape(model, loss, data, engine="native")
    g = torch.Generator().manual_seed(2)
    d = torch.randn(2, land.n_params, generator=g)
    c = torch.randn(count, 2, generator=g, dtype=torch.float64)
    function = F.mse_loss if loss == "mse" else F.cross_entropy
    whole = peers.Case(model, function, *data, d, c)
    part = peers.Case(model, function, *data, d, c[:few])
    points = whole.points
    chunks = (50, 200) if quick else (100, 300, 1000, 3000, 10_000)
    vmapped, chunk = fastest({f"chunk {k}": partial(peers.vmap, whole, k) for k in chunks})
    loop, form = fastest(
        {"foreach": partial(peers.foreach_loop, part), "flat": partial(peers.flat_loop, part)}
    )
    mine = Arm("pylandscape losses(points=)", lambda: land.losses(points=points), count)
    arms = [
        Arm("pylandscape losses(c, d)", lambda: land.losses(c, d), count),
        Arm("torch.func.vmap", vmapped, count, target, note=f"{chunk}, the best of {chunks}"),
        Arm("torch loop", loop, few, 200, note=f"{few} of the points a repetition; {form}"),
    ]
    for arm in (mine, *arms):
        sample = spread(50, int(arm.units))
        want = reference(model, function, *data, points[sample])
        arm.check(arm.run()[sample], want, RTOL)
    interleave([mine, *arms], repetitions)
    return rows(f"W2 {count} points, {name}", mine, arms, "point")
