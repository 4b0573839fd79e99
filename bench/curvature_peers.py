"""Spectra and eigenvalues by plain torch, PyHessian and hessian-eigenthings.

Each function does its set-up (which is not timed) and gives a function that does the work. Peers
are imported when they are asked for: ImportError where one is not installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor
from torch.nn import functional as F

from .curvature import Problem
from .products import retained


@dataclass
class Quadrature:
    """Gauss quadrature of one probe: nodes (m,), weights (m,), and the probe (n,), of any norm."""

    nodes: np.ndarray
    weights: np.ndarray
    probe: Tensor


def torch_lanczos(problem: Problem, steps: int) -> Callable[[int], Quadrature]:
    """Plain torch: products by the retained graph, Gram-Schmidt against the whole basis, twice.

    The function returned takes the probe's seed. The basis is allocated once.
    """
    product, theta = retained(problem), problem.theta
    basis = torch.empty(steps, problem.n, dtype=theta.dtype)

    def run(seed: int) -> Quadrature:
        probe = torch.randn(problem.n, generator=torch.Generator().manual_seed(seed)).to(theta)
        torch.div(probe, probe.norm(), out=basis[0])
        alpha, beta = [], []
        for j in range(steps):
            w = product(basis[j : j + 1])[0]
            alpha.append(float(basis[j] @ w))  # all the rest is removed by what follows
            q = basis[: j + 1]
            for _ in range(2):  # w <- w - Q^T (Q w)
                w.addmv_(q.T, q @ w, alpha=-1)
            if j + 1 == steps:
                break
            norm = float(w.norm())
            if norm <= torch.finfo(theta.dtype).eps * max(map(abs, [*alpha, *beta])):
                break  # an invariant subspace: what is left of w is rounding
            beta.append(norm)
            torch.div(w, norm, out=basis[j + 1])
        nodes, vectors = eigh_tridiagonal(alpha, beta)
        return Quadrature(nodes, vectors[0] ** 2, probe)

    return run


def pyhessian_density(problem: Problem, steps: int) -> Callable[[int], Quadrature]:
    """PyHessian's ``density`` of one probe, with the ``torch.eig`` that it calls given back."""
    hessian = _pyhessian(problem)

    def run(seed: int) -> Quadrature:
        with torch_eig():
            torch.manual_seed(seed)
            nodes, weights = hessian.density(iter=steps, n_v=1)
        torch.manual_seed(seed)
        probe = [torch.randint_like(p, high=2) * 2 - 1 for p in hessian.params]
        flat = torch.cat([part.detach().flatten() for part in probe])
        return Quadrature(np.array(nodes[0]), np.array(weights[0]), flat)

    return run


def eigenthings_density(problem: Problem, steps: int) -> Callable[[int], Quadrature]:
    """hessian-eigenthings' ``spectral_density`` of one probe."""
    package = import_module("hessian_eigenthings")
    loss = package.supervised_loss(F.cross_entropy)
    operator = package.HessianOperator(problem.copy(), [(problem.x, problem.y)], loss)

    def run(seed: int) -> Quadrature:
        done = package.spectral_density(operator, num_runs=1, lanczos_steps=steps, seed=seed)
        coins = torch.randint(0, 2, (problem.n,), generator=torch.Generator().manual_seed(seed))
        nodes, weights = done.raw_eigenvalues[0], done.raw_weights[0]
        return Quadrature(nodes.numpy(), weights.numpy(), (2 * coins - 1).to(operator.dtype))

    return run


@dataclass
class Eigen:
    """Eigenvalues (k,), eigenvectors (k, n), the products used, residuals (k,) if reported."""

    values: np.ndarray
    vectors: Tensor
    products: int
    residuals: np.ndarray | None = None


def pyhessian_eigenvalues(problem: Problem, k: int, tol: float, most: int) -> Callable[[], Eigen]:
    """PyHessian's ``eigenvalues``: deflated power iteration, at most ``most`` steps for each."""
    hessian = _pyhessian(problem)
    module = import_module("pyhessian.hessian")
    product = module.hessian_vector_product

    def run() -> Eigen:
        torch.manual_seed(0)
        counted = mock.Mock(side_effect=product)
        with mock.patch.object(module, "hessian_vector_product", counted):
            values, vectors = hessian.eigenvalues(maxIter=most, tol=tol, top_n=k)
        rows = torch.stack([torch.cat([part.flatten() for part in v]) for v in vectors])
        return Eigen(np.array(values), rows, counted.call_count)

    return run


def _pyhessian(problem: Problem) -> Any:
    package = import_module("pyhessian")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of its backward(create_graph=True)
        data = (problem.x, problem.y)
        return package.hessian(problem.copy(), F.cross_entropy, data=data, cuda=False)


@contextmanager
def torch_eig() -> Iterator[None]:
    """``torch.eig``, which torch no longer has: eigenvalues (n, 2) as real and imaginary parts,
    eigenvectors (n, n) in columns, real where the eigenvalues are (here: of symmetric matrices).
    """

    def eig(a: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eig(a)
        return torch.view_as_real(values), vectors.real

    with mock.patch.object(torch, "eig", eig, create=True):
        yield
