"""dropin: scripts for loss-landscapes and PyHessian, unchanged, by the original and by ours.

A script imports its package each time it runs: outside `pylandscape.compat.patched` the original,
inside ours. Answers are checked first; with compat="3.0.6" they are the original's own.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pylandscape.compat import patched

from .curvature import Problem, w
from .curvature_peers import torch_eig
from .harness import Arm, Row, absent, interleave, rows
from .nets import resnet20
from .slq import Truth, truth
from .workloads import digits, mlp, reference, spread

RTOL = 1e-4  # of a loss in float32, as the other benchmarks
NOT_SLOWER = 1.02  # times the original's time, at most, where nothing can be compiled
TOL = 1e-3  # PyHessian's default
TRACE = 0.25  # of the trace: PyHessian's rule stops at few probes
LOOSE = {"rtol": 1e-2, "trace": 1.0}  # of PyHessian itself: it stops by changes, not by residuals
SEED = 5

Script = Callable[[int], Any]


@dataclass(frozen=True)
class Models:
    """What the loss-landscapes scripts work on: a model, two others, data."""

    model: nn.Module
    one: nn.Module
    two: nn.Module
    x: Tensor
    y: Tensor


def random_plane(models: Models, steps: int) -> np.ndarray:
    """As in the README of loss-landscapes."""
    landscapes = import_module("loss_landscapes")
    metrics = import_module("loss_landscapes.metrics")
    metric = metrics.Loss(nn.CrossEntropyLoss(), models.x, models.y)
    values: np.ndarray = landscapes.random_plane(
        models.model, metric, 10, steps, normalization="filter", deepcopy_model=True
    )
    return values


def planar_interpolation(models: Models, steps: int) -> np.ndarray:
    landscapes = import_module("loss_landscapes")
    metrics = import_module("loss_landscapes.metrics")
    metric = metrics.Loss(nn.CrossEntropyLoss(), models.x, models.y)
    values: np.ndarray = landscapes.planar_interpolation(
        models.model, models.one, models.two, metric, steps, deepcopy_model=True
    )
    return values


def own_metric(models: Models, steps: int) -> np.ndarray:
    """A user's metric, of which nothing can be compiled: the margin between the best two logits."""
    landscapes = import_module("loss_landscapes")
    base = import_module("loss_landscapes.metrics").Metric

    class Margin(base):  # type: ignore[misc, valid-type]
        def __call__(self, model_wrapper: Any) -> float:
            best = model_wrapper.forward(models.x).topk(2, dim=1).values
            return float((best[:, 0] - best[:, 1]).mean())

    values: np.ndarray = landscapes.planar_interpolation(
        models.model, models.one, models.two, Margin(), steps, deepcopy_model=True
    )
    return values


def dropin(quick: bool, repetitions: int) -> list[Row]:
    if find_spec("loss_landscapes") is None:
        table = [absent("dropin", "loss-landscapes 3.0.6", "not installed")]
    else:
        table = _loss_landscapes(quick, repetitions)
    return table + _pyhessian(quick, repetitions)


def _loss_landscapes(quick: bool, repetitions: int) -> list[Row]:
    torch.manual_seed(0)
    x, y = digits()
    if quick:
        x, y = x[::20], y[::20]
    side, few = (4, 4) if quick else (40, 20)
    small = Models(*(mlp(784, 20, 10) for _ in range(3)), x, y)
    model, x, y = resnet20(quick)
    networks = [copy.deepcopy(model).eval() for _ in range(3)]
    for p in (p for network in networks for p in network.parameters()):
        p.data.add_(torch.randn_like(p), alpha=1e-2)  # the original cannot take biases of zero
    big = Models(*networks, x, y)
    run = partial(_compared, repetitions=repetitions)
    pixels = f"784-20-10, {len(small.x):,} digits"
    images = f"ResNet-20, {len(x)} images"
    table = []
    for script in (random_plane, planar_interpolation):
        table += run(f"{script.__name__}, {pixels}", script, small, (side, side), 12.0)
    large = (4, 2) if quick else (6, 2)
    for script in (random_plane, planar_interpolation):
        table += run(f"{script.__name__}, {images}", script, big, large, 1.5)
    table += run(f"a metric in Python, {pixels}", own_metric, small, (few, few), NOT_SLOWER, True)
    return table


def _compared(
    name: str,
    script: Callable[[Models, int], np.ndarray],
    models: Models,
    steps: tuple[int, int],
    target: float,
    at_most: bool = False,
    *,
    repetitions: int,
) -> list[Row]:
    """Rows of ours and the original, per point; steps: of ours and the original's."""
    ours, theirs = steps

    def call() -> np.ndarray:
        with patched("loss_landscapes"):
            return script(models, ours)

    sizes = [f"{n}x{n} points" for n in steps]
    note = f"{sizes[0]}, capture and all of the call"
    mine = Arm("pylandscape.compat", call, ours**2, note=note)
    peer = Arm("loss-landscapes 3.0.6", lambda: script(models, theirs), theirs**2, target)
    peer.at_most, peer.note = at_most, sizes[1]
    torch.manual_seed(SEED)
    want = peer.run()
    torch.manual_seed(SEED)
    with patched("loss_landscapes", compat={"loss_landscapes": "3.0.6"}):
        np.testing.assert_allclose(script(models, theirs), want, rtol=RTOL, err_msg=name)
    if script is not own_metric:
        _check(mine, script, models, ours)
    interleave([mine, peer], repetitions)
    return rows(f"dropin {name}", mine, [peer], "point")


def _check(arm: Arm, script: Any, models: Models, steps: int) -> None:
    """A sample of the interpolation, or the centre of the random plane, against float64."""
    some = spread(2 if len(models.x) < 1000 else 12, steps**2)
    rows_, columns = np.divmod(some, steps)
    theta, one, two = (_flat(m) for m in (models.model, models.one, models.two))
    c = torch.as_tensor(np.stack([rows_, columns]) / steps)
    points = theta + c[0][:, None] * (one - theta) + c[1][:, None] * (two - theta)
    if script is random_plane:
        some, points = np.array([steps // 2 * (steps + 1)]), theta[None]
    want = reference(models.model, F.cross_entropy, models.x, models.y, points)
    arm.check(arm.run().ravel()[some], want, RTOL)


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


@dataclass(frozen=True)
class Found:
    """What PyHessian's example prints."""

    values: np.ndarray  # (5,)
    vectors: Tensor  # (5, n)
    trace: float
    nodes: np.ndarray  # of the density
    weights: np.ndarray


def hessian_example(problem: Problem) -> Found:
    """As PyHessian's example: top-5 eigenvalues, trace, density."""
    hessian = import_module("pyhessian").hessian
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of its backward(create_graph=True)
        data = (problem.x, problem.y)
        comp = hessian(problem.copy(), nn.CrossEntropyLoss(), data=data, cuda=False)
        values, vectors = comp.eigenvalues(top_n=5)
    trace = float(np.mean(comp.trace()))
    nodes, weights = comp.density()
    flat = torch.stack([torch.cat([p.detach().flatten() for p in v]) for v in vectors])
    return Found(np.array(values), flat, trace, np.array(nodes[0]), np.array(weights[0]))


def _pyhessian(quick: bool, repetitions: int) -> list[Row]:
    name, peer_name = "dropin PyHessian's example, W", "PyHessian 0.1, torch.eig given back"
    if find_spec("pylandscape.compat.pyhessian") is None:
        return [absent(name, "pylandscape.compat", "not in this build")]
    problem = w(quick)
    exact = truth(problem)

    def call() -> Found:
        with patched("pyhessian"):
            return hessian_example(problem)

    def original() -> Found:
        with torch_eig():
            return hessian_example(problem)

    mine = Arm("pylandscape.compat", call, note="capture and all of the script")
    worst = _check_hessian(mine, call(), exact, problem)
    assert worst <= TOL, worst
    if find_spec("pyhessian") is None:
        return [*rows(name, mine, [], "script"), absent(name, peer_name, "not installed")]
    peer = Arm(peer_name, original, target=8.0)
    _check_hessian(peer, original(), exact, problem, **LOOSE)
    interleave([mine, peer], repetitions)
    return rows(name, mine, [peer], "script")


def _check_hessian(
    arm: Arm, got: Found, exact: Truth, problem: Problem, rtol: float = TOL, trace: float = TRACE
) -> float:
    """The largest relative residual |H v - lambda v| / |lambda|, in float64."""
    arm.check(max(got.values), exact.largest, rtol)
    np.testing.assert_allclose(got.nodes.max(), exact.largest, rtol=TOL, err_msg=arm.name)
    np.testing.assert_allclose(got.weights.sum(), 1, rtol=TOL, err_msg=arm.name)
    off = abs(got.trace / (exact.trace * problem.n) - 1)
    assert off <= trace, (arm.name, got.trace, exact.trace * problem.n)
    v = got.vectors.double()
    v = v / v.norm(dim=1, keepdim=True)
    values = torch.as_tensor(got.values).double()
    residuals = (exact.products(v) - values[:, None] * v).norm(dim=1)
    worst = float((residuals / values.abs()).max())
    said = f"relative residuals up to {worst:.0e}, trace off by {off:.0%}"
    arm.note = "; ".join(filter(None, (arm.note, said)))
    return worst
