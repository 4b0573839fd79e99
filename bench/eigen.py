"""eigen: the ten largest eigenvalues with their vectors, of 784-20-10 and of a ResNet-20."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.nn import functional as F

import pylandscape as pl

from .curvature import Field, Problem, Products, ours, w
from .curvature_peers import Eigen, pyhessian_eigenvalues
from .harness import Arm, Row, absent
from .networks import ResNet, settle
from .products import retained
from .workloads import digits

TOL = 1e-6  # of an eigenvalue, for its residual
RTOL = 1e-5  # between the arms' eigenvalues, of the largest
LOOSE = 1e-4  # of an eigenvalue by power iteration, which has no residual
OURS, EIGSH = "pylandscape eigenpairs()", "scipy eigsh"
PART = 100  # images at a time, for the ResNet in float64


@dataclass
class Case:
    """k eigenpairs of the problem's Hessian; ``exact``: its products in float64."""

    name: str
    problem: Problem
    land: pl.Landscape
    k: int
    exact: Products

    def check(self, arm: Arm, got: Eigen) -> None:
        """Residuals in float64 within tol (but for the rounding of float32 products and vectors),
        and true where they are reported; vectors orthonormal."""
        v = got.vectors.double()
        hv, values = self.exact(v), torch.as_tensor(got.values.copy())
        rounding = 2 * (self.land.hvp(v).cpu() - hv).norm(dim=1).numpy()
        rounding += torch.finfo(torch.float32).eps * np.abs(got.values).max()
        residuals = (hv - values[:, None] * v).norm(dim=1).numpy()
        assert (residuals <= TOL * np.abs(got.values) + rounding).all(), (arm.name, residuals)
        if got.residuals is not None:
            off = np.abs(got.residuals - residuals)
            assert (off <= rounding).all(), (arm.name, got.residuals, residuals)
        gram = v @ v.T - torch.eye(self.k, dtype=torch.float64)
        assert float(gram.abs().max()) <= 1e-5, arm.name
        self._note(arm, got, residuals)

    def check_loose(self, arm: Arm, got: Eigen, want: np.ndarray) -> None:
        """Of power iteration: its first eigenvalue only; the note says how far the vectors are."""
        arm.check(got.values[0], want[0], LOOSE)
        v = got.vectors.double()
        rest = self.exact(v) - torch.as_tensor(got.values)[:, None] * v
        self._note(arm, got, rest.norm(dim=1).numpy())

    def _note(self, arm: Arm, got: Eigen, residuals: np.ndarray) -> None:
        worst = float((residuals / np.abs(got.values)).max())
        said = f"{got.products} products, relative residual up to {worst:.0e}"
        arm.note = "; ".join(filter(None, (said, arm.note)))


def eigen(quick: bool, repetitions: int) -> list[Row]:
    problem, k = w(quick), 3 if quick else 10
    land = pl.Landscape(problem.model, "cross_entropy", (problem.x, problem.y), engine="native")
    small = Case("784-20-10", problem, land, k, retained(problem.double()))
    return _table(small, repetitions, pairs=k, most=1000)


def eigen_resnet(quick: bool) -> list[Row]:
    if quick:
        return [absent("eigen ResNet-20", OURS, "not with --quick")]
    return _table(resnet_case(500, 10), None, pairs=1, most=100)


def resnet_case(images: int, k: int) -> Case:
    """ResNet-20 (n = 269,722), its statistics of these images, over the first digits at 32 x 32."""
    torch.manual_seed(0)
    x, y = digits()
    x = F.interpolate(x[:images].view(-1, 1, 28, 28), size=(32, 32), mode="bilinear")
    x, y = x.repeat(1, 3, 1, 1), y[:images]
    model = settle(ResNet(20), x)
    problem = Problem(model, x, y)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="native")
    return Case(f"ResNet-20, {images} images", problem, land, k, in_parts(problem.double()))


def _table(case: Case, repetitions: int | None, pairs: int, most: int) -> list[Row]:
    """Of PyHessian ``pairs`` by ``most`` steps each at most; without repetitions all runs once."""
    field = Field(f"eigen top {case.k}, {case.name}", "pair", once=repetitions is None)
    found: dict[str, Eigen] = {}

    def check(arm: Arm, got: Eigen) -> None:
        found[arm.name] = got
        case.check(arm, got)

    field.add(EIGSH, {"on our products": lambda: _eigsh(case)}, check, units=case.k)
    theirs = found[EIGSH]
    eigenpairs = ours("eigenpairs")
    if eigenpairs is None:
        field.miss(OURS, "not in this build: pylandscape.eigenpairs")
    else:

        def call() -> Eigen:
            got = eigenpairs(case.land, case.k, "LA", tol=TOL, progress=False)
            assert got.converged.all(), got
            return Eigen(got.values, got.vectors, got.products, got.residuals)

        field.add_ours(Arm(OURS, call, case.k, note="all of the call"), check)
        used = found[OURS].products
        assert used <= theirs.products, f"{used} products, scipy's eigsh {theirs.products}"
        np.testing.assert_allclose(found[OURS].values, theirs.values, rtol=RTOL)
    field.add(
        "PyHessian 0.1 eigenvalues",
        {f"tol {TOL:g}": partial(pyhessian_eigenvalues, case.problem, pairs, TOL, most)},
        lambda arm, got: case.check_loose(arm, got, theirs.values),
        units=pairs,
    )
    if repetitions is not None:
        field.measure(repetitions)
    return field.rows()


def _eigsh(case: Case) -> Callable[[], Eigen]:
    operator, count = case.land.linear_operator(), 0

    def matvec(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        product: np.ndarray = operator.matvec(v)
        return product

    counted = LinearOperator(operator.shape, matvec=matvec, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(operator.shape[0])

    def run() -> Eigen:
        nonlocal count
        count = 0
        values, vectors = eigsh(counted, case.k, which="LA", tol=TOL, v0=start)
        rows = np.ascontiguousarray(vectors.T[::-1])
        return Eigen(values[::-1], torch.as_tensor(rows), count)

    return run


def in_parts(problem: Problem) -> Products:
    """Products of which no graph over all images is kept."""
    shares = [len(y) / len(problem.y) for y in problem.y.split(PART)]
    pairs = zip(problem.x.split(PART), problem.y.split(PART), strict=True)
    parts = [Problem(problem.model, x, y) for x, y in pairs]

    def products(v: Tensor) -> Tensor:
        out = torch.zeros_like(v)
        for part, share in zip(parts, shares, strict=True):
            out.add_(retained(part)(v), alpha=share)
        return out

    return products
