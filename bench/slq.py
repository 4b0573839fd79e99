"""SLQ: the spectral density of 784-20-10's Hessian by stochastic Lanczos quadrature, per probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

import pylandscape as pl

from . import curvature_peers as peers
from .curvature import Field, Problem, Products, ours, w
from .curvature_peers import Quadrature
from .harness import Arm, Row, Run
from .products import retained

RTOL = 1e-4  # of the largest eigenvalue: float32 products, and Lanczos has converged there
MOMENT = 1e-6  # of the p-th moment, in units of the largest eigenvalue to the p
ERRORS = 5  # standard errors between two estimates of the trace, at most


@dataclass
class Truth:
    """The Hessian in float64, by torch alone: its products, and what follows from them."""

    products: Products
    largest: float
    trace: float  # an estimate of tr H / n from random signs
    trace_error: float  # its standard error


def truth(problem: Problem, probes: int = 64) -> Truth:
    n, products = problem.n, retained(problem.double())

    def matvec(v: np.ndarray) -> np.ndarray:
        return products(torch.as_tensor(v.reshape(1, n)))[0].numpy()

    operator = LinearOperator((n, n), matvec=matvec, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    (largest,) = eigsh(operator, 1, which="LA", tol=1e-8, v0=start, return_eigenvectors=False)
    coins = torch.randint(0, 2, (probes, n), generator=torch.Generator().manual_seed(0))
    signs = 2.0 * coins.double() - 1
    samples = (signs * products(signs)).mean(dim=1).numpy()
    error = float(samples.std(ddof=1)) / probes**0.5
    return Truth(products, float(largest), float(samples.mean()), error)


def slq(quick: bool, repetitions: int) -> list[Row]:
    problem = w(quick)
    probes, steps = (3, 40) if quick else (10, 90)
    exact = truth(problem)
    field = Field(f"SLQ {steps} steps, 784-20-10", "probe")
    spectrum = ours("spectrum")
    name = "pylandscape spectrum()"
    if spectrum is None:
        field.miss(name, "not in this build: pylandscape.spectrum")
    else:
        land = pl.Landscape(problem.model, "cross_entropy", (problem.x, problem.y), engine="native")

        def call() -> object:
            return spectrum(land, probes=probes, steps=steps, progress=False)

        field.mine = Arm(name, call, probes, note=f"{probes} probes, all of the call")
        _check_ours(field.mine, call(), exact)
    for make, other, target, note in (
        (peers.torch_lanczos, "torch Lanczos, all reorthogonalised twice", 2.5, ""),
        (peers.pyhessian_density, "PyHessian 0.1 density", 7, "torch.eig given back"),
        (peers.eigenthings_density, "hessian-eigenthings 1.0.0a5 spectral_density", 20, ""),
    ):
        form = {"one probe a repetition": partial(_seeded, make, problem, steps)}
        field.add(other, form, partial(_check, exact=exact), target=target, note=note)
    field.measure(repetitions)
    return field.rows()


def _seeded(
    make: Callable[[Problem, int], Callable[[int], Quadrature]], problem: Problem, steps: int
) -> Run:
    return partial(make(problem, steps), 1)


def _check(arm: Arm, got: Quadrature, exact: Truth) -> None:
    """The largest node is the largest eigenvalue; the first moments are v^T H v and |H v|^2."""
    arm.check(got.nodes.max(), exact.largest, RTOL)
    v: Tensor = got.probe.double()
    v = v / v.norm()
    hv = exact.products(v[None])[0]
    for power, want in ((0, 1.0), (1, float(v @ hv)), (2, float(hv @ hv))):
        moment = float(got.weights.astype(np.float64) @ got.nodes.astype(np.float64) ** power)
        assert abs(moment - want) <= MOMENT * exact.largest**power, (arm.name, power, moment, want)


def _check_ours(arm: Arm, got: object, exact: Truth) -> None:
    """As the others, but the probes are not known: tr H / n against random signs, in float64."""
    nodes, weights = np.asarray(got.nodes), np.asarray(got.weights)  # type: ignore[attr-defined]
    arm.check(np.nanmax(nodes, axis=1), np.full(len(nodes), exact.largest), RTOL)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    means = np.nansum(weights * nodes, axis=1)
    error = float(np.hypot(means.std(ddof=1) / len(means) ** 0.5, exact.trace_error))
    assert abs(means.mean() - exact.trace) <= ERRORS * error, (means.mean(), exact.trace, error)
