"""Polynomial networks: ReLU replaced by a polynomial, where Bezout's theorem counts solutions.

Zhang, Liao, Rakhlin, Miranda, Golowich, Poggio, "Theory of deep learning II" (2017), section 3 and
figure 2. A network of depth d with an activation of degree l is a polynomial of degree l^d of its
weights; N samples are N equations. With K > N weights the zeros of the loss are no points but sets
of at least K - N dimensions: at an interpolator the Hessian of the mean squared error is
(2 / N) J^T J, of rank at most N.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor, nn
from torch.func import functional_call

from ..arguments import check_landscape, integer
from ..arrays import Array
from ..errors import InvalidArgument
from ..results.simple_models import Interpolator
from ..theta.snapshot import Snapshot

if TYPE_CHECKING:
    from ..landscape import Landscape


def relu_fit(degree: int = 2, radius: float = 1.0) -> Array:
    """Coefficients (degree + 1,), lowest power first, of the polynomial that is nearest to ReLU on
    [-radius, radius] in the mean square: its Legendre expansion.

        >>> relu_fit(2) * 32  # 3/32 + x/2 + 15 x^2/32
        array([ 3., 16., 15.])
    """
    degree = integer(degree, "degree", 1)
    if not 0 < radius < math.inf:
        raise InvalidArgument(f"radius: expected a positive number, got {radius!r}")
    terms = []
    for k in range(degree + 1):
        power = legendre.leg2poly(np.eye(degree + 1)[k])
        moments = power / np.arange(2, len(power) + 2)  # integral over [0, 1] of t P_k(t)
        terms.append((2 * k + 1) / 2 * moments.sum())
    found = legendre.leg2poly(np.array(terms)) * radius
    scaled = np.zeros(degree + 1)  # numpy leaves out highest powers of 0
    scaled[: len(found)] = found / float(radius) ** np.arange(len(found))
    return scaled


class Polynomial(nn.Module):
    """The activation sum_k coefficients[k] x^k; by default the one nearest to ReLU."""

    def __init__(self, coefficients: Any = None, *, degree: int = 2, radius: float = 1.0) -> None:
        super().__init__()
        given = relu_fit(degree, radius) if coefficients is None else coefficients
        self.coefficients = tuple(float(c) for c in given)

    def forward(self, x: Tensor) -> Tensor:
        found = self.coefficients[-1] * x + self.coefficients[-2]
        for c in self.coefficients[-3::-1]:  # Horner
            found = found * x + c
        return found

    def extra_repr(self) -> str:
        return " + ".join(f"{c:.4g} x^{k}" for k, c in enumerate(self.coefficients))


def polynomial_network(model: nn.Module, degree: int = 2, radius: float = 1.0) -> nn.Module:
    """A copy of a model with a `Polynomial` in the place of every ``nn.ReLU``.

    Far from [-radius, radius] the polynomial is far from ReLU: keep the inputs of activations there
    (batch norm before them does).

    Raises:
        InvalidArgument: the model has no nn.ReLU (calls of functional.relu are not seen).
    """
    if isinstance(model, nn.ReLU):
        return Polynomial(degree=degree, radius=radius)
    found = copy.deepcopy(model)
    places = [
        (parent, name)
        for parent in found.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ReLU)
    ]
    if not places:
        raise InvalidArgument(
            f"model: expected one with nn.ReLU modules, found none in {type(model).__name__}"
        )
    for parent, name in places:
        setattr(parent, name, Polynomial(degree=degree, radius=radius))
    return found


@dataclass(frozen=True)
class SolutionCounts:
    """log2 of how many isolated solutions N polynomial equations of degree l^d have.

    Attributes:
        bezout: log2 of l^(N d): at most so many complex ones (Bezout);
        shub_smale: log2 of l^(N d / 2): real ones of a random system, on average (Shub, Smale).
    """

    bezout: float
    shub_smale: float


def solution_counts(degree: int, depth: int, samples: int) -> SolutionCounts:
    """For an activation of this degree l, ``depth`` layers d and N samples.

    The paper's example, l = 2, d = 4 and N = 50,000, has a Shub-Smale count of 2^100,000.
    """
    d, layers, n = (
        integer(v, k, 1) for v, k in ((degree, "degree"), (depth, "depth"), (samples, "samples"))
    )
    whole = n * layers * math.log2(d)
    return SolutionCounts(whole, whole / 2)


def find_interpolator(
    land: Landscape, theta: Any = None, *, tolerance: float = 1e-12, steps: int = 500
) -> Interpolator:
    """Go from theta to a point that fits all targets (Levenberg-Marquardt); its Hessian.

    Args:
        land: a small network with the loss "mse".
        theta: where to begin; default the model's parameters.
        tolerance: of the largest |residual|.
        steps: of the search, at most.

    Eigenvalues are zero up to K eps times the largest, or 1e-10 of it, whichever is more.

    Raises:
        InvalidArgument: another loss; no interpolator was reached (it says how far it came).
    """
    check_landscape(land, "find_interpolator")
    if land.loss_spec.name != "mse":
        raise InvalidArgument(f"land: expected the loss 'mse', got {land.loss_spec.name!r}")
    outputs = _Outputs(land)
    point = np.asarray(land.point(theta).cpu(), dtype=np.float64)[: land.n_params]
    mu, (r, j) = 1e-3, outputs(point)
    for _ in range(integer(steps, "steps", 1)):
        if np.abs(r).max() <= tolerance:
            break
        gram = j @ j.T
        scale = float(np.trace(gram)) / len(gram)
        step = -j.T @ np.linalg.lstsq(gram + mu * scale * np.eye(len(gram)), r, rcond=None)[0]
        there = outputs(point + step)
        if there[0] @ there[0] < r @ r:
            point, (r, j), mu = point + step, there, mu / 10
        elif mu < 1e8:
            mu = max(mu * 10, 1e-16)
        else:
            break
    worst = float(np.abs(r).max())
    if worst > max(tolerance, 1e-9):
        raise InvalidArgument(
            f"theta: expected a start that leads to an interpolator, came to a residual of "
            f"{worst:.2g} in {steps} steps; more parameters than {len(r)} equations are needed"
        )
    h = np.asarray(land.hessian(torch.from_numpy(point).to(land.theta)).cpu(), dtype=np.float64)
    values = np.linalg.eigvalsh(h).astype(np.float64)
    share = max(len(point) * np.finfo(np.float64).eps, 1e-10)
    own = np.linalg.svd(j, compute_uv=False)
    rank = int((own > max(j.shape) * np.finfo(np.float64).eps * own[0]).sum())
    return Interpolator(
        point, values, float(r @ r) / len(r), rank, len(r), share * float(np.abs(values).max())
    )


class _Outputs:
    """theta (K,) to the residuals (N o,) and the Jacobian (N o, K), float64, by torch."""

    def __init__(self, land: Landscape) -> None:
        self.model = Snapshot(land.model).model.double()
        self.layout = land.layout
        self.batches = [(b.inputs.double(), b.target.double()) for b in land.dataset.batches]

    def __call__(self, theta: Array) -> tuple[Array, Array]:
        point = torch.from_numpy(theta).requires_grad_()
        state = self.layout.unflatten(point)
        with torch.enable_grad():
            parts = [functional_call(self.model, state, (x,)) - y for x, y in self.batches]
            r = torch.cat([part.reshape(-1) for part in parts])
            rows = [torch.autograd.grad(each, point, retain_graph=True)[0] for each in r]
        return r.detach().numpy(), torch.stack(rows).numpy()
